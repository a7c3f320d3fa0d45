"""Every algorithm that "auto" may choose is as accurate as LAPACK, within a factor of four.

Residual, departure from orthonormality, and the gradient's error against extended precision, for
prescribed spectra: next to jnp.linalg.qr and its own derivative on the same matrices. Gradients by
the geometric mean over several matrices of a kind.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extended import X87, extended, extended_pullback, extended_qr
from numerics import gaussian, matrix, norm, panels_of_few_columns

import jaxqr

BATCH = 256
SEEDS = (
    16  # of one matrix alone, now this algorithm's gradient is many times closer, now that one's
)

# As users compile: without LLVM's optimizations (see conftest.py), which fuse multiplications with
# additions, all of this rounds differently.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
ALGORITHMS = {
    "batched, deep": ((BATCH, 8, 4), {}),
    "batched, square": ((BATCH, 10, 10), {}),
    "batched, wide": ((BATCH, 5, 12), {}),
    "cholesky": ((300, 20), {"method": "cholesky"}),
    "wide": ((20, 50), {}),
    "panels": ((160, 160), {}),
    "panels of few columns": ((24, 24), {}),
}
# So few columns LAPACK turns by one reflector after another, which is closer than any blocks of
# reflectors where each column leaves little of the next: gradients by panels are compared where
# "auto" takes panels and LAPACK works by blocks itself. There one seed is much like another.
OF_GRADIENTS = {a: SEEDS for a in ALGORITHMS if a != "panels of few columns"} | {"panels": 3}


@pytest.fixture(autouse=True)
def of_few_columns(request, monkeypatch):
    """Panels have few columns, and blocks, where they are what is tested."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is None or callspec.params.get("algorithm") != "panels of few columns":
        yield
        return
    with panels_of_few_columns(monkeypatch):
        yield


def full_rank(shape, dtype, seed=0):
    """Matrices of full rank, by name."""
    eps = np.finfo(dtype).eps
    plain = matrix(shape, dtype, seed=seed)
    tiny = plain.dtype.type(1e-30 if eps > 1e-10 else 1e-150)
    grades = np.geomspace(1, 1e-10, shape[1]).astype(dtype)
    powers = [p for p in (0, 1, 2, 3, 5, 8, 12, 15) if 10.0**p * eps < 0.05]
    return {f"1e{p}": matrix(shape, dtype, 10.0**p, seed) for p in powers} | {
        "gaussian": gaussian(shape, dtype, seed),
        "graded": plain * grades,
        "graded the other way": plain * grades[::-1],
        "tiny": plain * tiny,
        "huge": plain / tiny,
    }


def deficient(shape, dtype):
    """Matrices with fewer independent columns among the leading ones."""
    plain = matrix(shape, dtype)
    zero, repeated = plain.copy(), plain.copy()
    zero[:, 2] = 0
    repeated[:, 3] = repeated[:, 1]
    return {
        "zero column": zero,
        "repeated column": repeated,
        "zero": np.zeros_like(plain),
        "ones": np.ones_like(plain),
        "1e15": matrix(shape, dtype, 1e15),
    }


def stacked(shape, values):
    """The matrices as a batch, where the shape is one: repeated until it is full."""
    if len(shape) == 2:
        return values
    return [np.stack([values[i % len(values)] for i in range(shape[0])])]


def each(shape, outputs):
    """The matrices' outputs one by one, from those of the calls."""
    return [x for out in outputs for x in (zip(*out, strict=True) if len(shape) > 2 else [out])]


def errors(a, q, r):
    """Of one matrix: the residual relative to its norm, and |Q^H Q - I|."""
    scale = float(np.abs(a).max()) or 1.0
    a, q, r = (np.asarray(x).astype(np.result_type(a, "float64")) for x in (a, q, r))
    a, r = a / scale, r / scale
    return norm(q @ r - a) / (norm(a) or 1), norm(q.conj().T @ q - np.eye(q.shape[1]))


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_factors(algorithm, dtype):
    shape, options = ALGORITHMS[algorithm]
    kinds = full_rank(shape[-2:], dtype) | deficient(shape[-2:], dtype)
    given = stacked(shape, list(kinds.values()))
    ours_of, theirs_of = (
        # As before a derivative, for which there is an algorithm more.
        jit(lambda a: jax.vjp(functools.partial(jaxqr.qr, **options), a)[0]),
        jit(lambda a: tuple(jnp.linalg.qr(a))),
    )
    ours, theirs = each(shape, map(ours_of, given)), each(shape, map(theirs_of, given))
    floor = 4 * float(np.finfo(dtype).eps)
    # Sums of equal numbers LAPACK may find without rounding: what it has elsewhere counts, too.
    elsewhere = errors(kinds["gaussian"], *theirs[list(kinds).index("gaussian")])
    for (kind, a), mine, other in zip(kinds.items(), ours, theirs, strict=False):
        for x, *others in zip(errors(a, *mine), errors(a, *other), elsewhere, strict=True):
            assert x <= 4 * max(*others, floor), kind


def test_of_two_columns_that_depend_on_each_other_q_is_orthonormal():
    x = gaussian((BATCH, 3, 1), "complex64")
    q, _ = jit(jaxqr.qr)(np.concatenate([x, (0.3 - 2j) * x], axis=2).astype(x.dtype))
    q = np.asarray(q)
    gram = np.swapaxes(np.conj(q), 1, 2) @ q
    assert np.abs(gram - np.eye(2)).max() <= 16 * np.finfo("float32").eps


@pytest.mark.skipif(not X87, reason="long double is no wider than double here")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("algorithm", "seeds"), OF_GRADIENTS.items())
def test_gradients(algorithm, seeds, dtype):
    shape, options = ALGORITHMS[algorithm]
    k = min(shape[-2:])
    q_bar = gaussian((shape[-2], k), dtype)
    r_bar = np.triu(gaussian((k, shape[-1]), dtype))

    def gradients(qr):
        def pull(a):
            (q, r), pullback = jax.vjp(lambda a: tuple(qr(a)), a)
            # As if R's diagonal were positive.
            signs = jnp.sign(jnp.linalg.diagonal(r))
            bars = jnp.broadcast_to(q_bar, q.shape), jnp.broadcast_to(r_bar, r.shape)
            return pullback((bars[0] * signs[..., None, :], bars[1] * signs[..., :, None]))

        return each(shape, map(jit(pull), given))

    several = [full_rank(shape[-2:], dtype, seed) for seed in range(seeds)]
    matrices = [(kind, a) for kinds in several for kind, a in kinds.items()]
    assert len(matrices) <= BATCH
    given = stacked(shape, [a for _, a in matrices])
    ours, theirs = gradients(lambda a: jaxqr.qr(a, **options)), gradients(jnp.linalg.qr)
    floor = 4 * float(np.finfo(dtype).eps)
    logarithms = collections.defaultdict(list)
    for (kind, a), (mine,), (other,) in zip(matrices, ours, theirs, strict=False):
        exact = extended(a)
        expected = extended_pullback(exact, *extended_qr(exact), extended(q_bar), extended(r_bar))
        scale = float(np.abs(expected).max())
        errors = [norm((np.asarray(x) - expected) / scale) for x in (mine, other)]
        logarithms[kind].append(np.log(np.maximum(errors, floor)))
    for kind, of_seeds in logarithms.items():
        error, of_jax = np.exp(np.mean(of_seeds, axis=0))
        assert error <= 4 * of_jax, f"{kind}: {error:.1e}, JAX {of_jax:.1e}"
