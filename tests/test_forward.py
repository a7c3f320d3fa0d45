"""Algorithms that the platform at hand would not choose, against the one it chooses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import DTYPES, check_columns, check_qr, gaussian, graded, matrix, norm, tolerance

import jaxqr
from jaxqr._forward import pivoting
from jaxqr._linalg.phases import with_positive_diagonal


def xla_pivoted_qr(a, mode="reduced", k=None):
    k = min(a.shape[-2:]) if k is None else k
    return jax.jit(lambda a: pivoting._xla(a, mode, k))(a)


def check(a, q, r, p, tol):
    a, q, r, p = map(np.asarray, (a, q, r, p))
    b = np.take_along_axis(a, p[..., None, :], -1)
    assert p.dtype == np.int32
    assert np.all(np.sort(p, -1) == np.arange(a.shape[-1]))
    check_qr(b, q, r, tol)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, "complex128") for shape in [(7, 4), (5, 5), (4, 7), (1, 3), (3, 1), (2, 3, 5)]),
        *((shape, "float64") for shape in [(7, 4), (1, 3), (3, 1)]),
        *((shape, "float32") for shape in [(5, 5), (2, 3, 5)]),
        *((shape, "complex64") for shape in [(4, 7), (7, 4)]),
    ],
    ids=str,
)
def test_xla_pivoted_qr_is_lapacks(shape, dtype):
    a = jnp.asarray(matrix(shape, dtype))
    tol = tolerance(dtype, shape, 1)

    @functools.partial(jax.jit, static_argnums=0)
    def in_all_modes(algorithm):
        k = min(shape[-2:])
        factors = {mode: algorithm(a, mode, k) for mode in ("reduced", "complete", "r")}
        unique = {mode: with_positive_diagonal(*f[:-1]) for mode, f in factors.items()}
        return factors, unique

    ours, ours_unique = in_all_modes(pivoting._xla)
    lapacks, lapacks_unique = in_all_modes(pivoting._lapack)
    for mode in ("reduced", "complete"):
        check(a, *ours[mode], tol)
        assert np.array_equal(ours[mode][-1], lapacks[mode][-1])
        x, y = ours_unique[mode][-1], lapacks_unique[mode][-1]
        assert norm(x - y) <= tolerance(dtype, shape) * norm(y)
    assert norm(ours["r"][0] - ours["reduced"][1]) <= tol * norm(a)


@pytest.mark.parametrize("dtype", DTYPES)
def test_xla_pivoted_qr_truncates(dtype):
    a = jnp.asarray(matrix((6, 5), dtype))
    q, r, _ = xla_pivoted_qr(a)
    q3, r3, p3 = xla_pivoted_qr(a, k=3)
    tol = tolerance(dtype, a.shape, 1)
    assert norm(q3 - q[:, :3]) <= tol
    assert norm(r3[:, :3] - r[:3, :3]) <= tol
    b = np.asarray(a)[:, p3]
    assert norm(np.conj(q3.mT) @ b - r3) <= tol * norm(a)


def deficient(dtype="float64"):
    a = matrix((6, 5), dtype).copy()
    a[:, 3] = a[:, 0]
    a[:, 1] = 0
    return a


@pytest.mark.parametrize(
    "a",
    [
        deficient(),
        deficient("complex128"),
        np.zeros((4, 3)),
        np.ones((4, 3)),
        np.eye(5, 3),
        np.triu(gaussian((4, 4))),
        1e-150 * gaussian((5, 4)),
        1e150 * gaussian((5, 4)),
    ],
    ids=["deficient", "complex", "zero", "ones", "eye", "upper", "tiny", "huge"],
)
def test_xla_pivoted_qr_of_hard_input(a):
    check(jnp.asarray(a), *xla_pivoted_qr(jnp.asarray(a)), tolerance("float64", a.shape, 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_xla_pivoted_qr_of_columns_of_very_different_lengths(dtype):
    a = graded((40, 6, 4), dtype)
    q, r, p = map(np.asarray, xla_pivoted_qr(jnp.asarray(a)))
    for b, *factors in zip(np.take_along_axis(a, p[:, None], -1), q, r, strict=True):
        check_columns(b, *factors, tolerance(dtype, a.shape, 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_xla_pivoted_qr_of_nan(bad):
    a = gaussian((5, 4))
    a[2, 1] = bad
    _, r, p = xla_pivoted_qr(jnp.asarray(a))
    assert not np.all(np.isfinite(r))
    assert np.all(np.sort(p) == np.arange(4))


# The first k pivots, by themselves.

FEW = (60, 48), 30


@functools.partial(jax.jit, static_argnums=1)
def first_pivots(a, algorithm):
    return algorithm(a, "reduced", FEW[1])


def graded_to_the_ends(n, real):
    """Powers of two whose ratios leave the range of the type."""
    exponents = np.linspace(1, -1, n) * (0.8 * np.log2(float(np.finfo(real).max)))
    return (2.0 ** exponents.round()).astype(real)


def hard_kinds(dtype):
    """Of matrices, and whether LAPACK's first pivots have to be found among them."""
    m, n = FEW[0]
    plain = gaussian((m, n), dtype)
    real = plain.real.dtype.type
    signs = np.sign(plain.real).astype(dtype)
    low_rank = gaussian((m, 5), dtype) @ gaussian((5, n), dtype, 1)
    dependent = plain.copy()
    dependent[:, 3], dependent[:, 0] = dependent[:, 1], 0
    corner = np.zeros_like(plain)
    corner[:4] = plain[:4]
    # The pivots of Kahan's matrix are barely the largest; Q = I.
    kahan = (np.eye(m, n) - 0.285 * np.triu(np.ones((m, n)), 1)) * 0.958 ** np.arange(m)[:, None]
    tiny = real(1e-30 if real is np.float32 else 1e-250)
    return {
        "gaussian": (plain, True),
        "signs": (signs, True),
        "condition 1e3": (matrix((m, n), dtype, 1e3), True),
        "graded": (plain * np.geomspace(1, 1e-12, n).astype(real), True),
        "graded to the ends": (plain * graded_to_the_ends(n, real), True),
        "dependent": (dependent, True),
        "tiny": (plain * tiny, True),
        "huge": (plain / tiny, True),
        "Kahan": (kahan.astype(dtype), True),
        "condition 1e12": (matrix((m, n), dtype, 1e12), False),
        "rank 5": (low_rank, False),
        "four rows": (corner, False),
        "zero": (np.zeros_like(plain), False),
        "ones": (np.ones_like(plain), False),
        "identity": (np.eye(m, n, dtype=dtype), False),
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_first_pivots_by_themselves(dtype):
    """As orthonormal as LAPACK's, as close to A, and after pivots that leave as little."""
    (_, n), k = FEW
    eps = float(np.finfo(dtype).eps)
    for kind, (a, same) in hard_kinds(dtype).items():
        q, r, p = map(np.asarray, first_pivots(jnp.asarray(a), pivoting._leading))
        theirs = map(np.asarray, first_pivots(jnp.asarray(a), pivoting._lapack))
        scale = float(np.abs(a).max()) or 1.0
        left = []
        for q_, r_, p_ in ((q, r, p), theirs):
            b = (a[:, p_] / scale).astype("complex128")
            rest = b - q_.astype("complex128") @ (r_ / scale).astype("complex128")
            left.append((norm(rest[:, :k]), np.linalg.norm(rest[:, k:], 2)))
            if same:
                assert np.array_equal(p[:k], p_[:k]), kind
        assert np.array_equal(np.sort(p), np.arange(n)), kind
        assert norm(np.conj(q.T) @ q - np.eye(k)) <= 4 * k * eps, kind
        assert left[0][0] <= 4 * max(left[1][0], 2 * eps * norm(a / scale)), kind
        assert left[0][1] <= 1.01 * left[1][1] + 4 * n * eps * norm(a / scale), kind
        assert not np.any(np.tril(r, -1)), kind
        on_diagonal = np.diagonal(r)
        assert np.all(on_diagonal.imag == 0), kind
        assert np.all(on_diagonal.real >= 0), kind


def test_first_pivots_in_other_units_and_of_a_batch():
    """Powers of two change no digit, nor does what else is in the batch: zeros, NaN."""
    shape, _ = FEW
    a = gaussian(shape, "float32")
    batch = np.stack([a, a * 2.0**60, np.zeros_like(a), np.full_like(a, np.nan), a / 2.0**60])
    q, r, p = map(np.asarray, first_pivots(jnp.asarray(batch), pivoting._leading))
    for i, unit in ((1, 2.0**60), (4, 2.0**-60)):
        np.testing.assert_array_equal(q[i], q[0])
        np.testing.assert_array_equal(r[i], r[0] * np.float32(unit))
        np.testing.assert_array_equal(p[i], p[0])
    alone = first_pivots(jnp.asarray(a[None]), pivoting._leading)[0]
    assert norm(alone[0] - q[0]) <= tolerance("float32", shape, 1)
    assert not np.any(r[2])
    assert not np.any(np.isfinite(r[3, 0]))
    assert np.array_equal(np.sort(p[3]), np.arange(shape[1]))


def test_few_pivots_do_not_wait_for_all_of_them():
    """They are found without geqp3, and their derivative is that of QR of the same columns."""
    a, w = jnp.asarray(gaussian((80, 60))), jnp.asarray(gaussian((80, 80), seed=1))

    def calls_lapack(shape, **options):
        traced = jax.jit(lambda a: jaxqr.pivoted_qr(a, **options)).trace(
            jax.ShapeDtypeStruct(shape, "float64")
        )
        return "geqp3" in traced.lower(lowering_platforms=("cpu",)).as_text()

    assert not calls_lapack((80, 60), rank=6)
    assert not calls_lapack((3, 80, 60), rank=6, mode="r")
    for options in ({"rank": 7}, {}, {"mode": "complete"}):
        assert calls_lapack((80, 60), **options)
    assert calls_lapack((9, 40, 30), rank=3)

    p = jaxqr.pivoted_qr(a, rank=6)[2]

    def projected(q):
        return jnp.sum(w * (q @ q.T))

    found = jax.jit(jax.grad(lambda a: projected(jaxqr.pivoted_qr(a, rank=6)[0])))(a)
    expected = jax.grad(lambda a: projected(jnp.linalg.qr(a[:, p[:6]])[0]))(a)
    assert norm(found - expected) <= tolerance("float64", a.shape, 10.0) * norm(expected)


ENDS = {"float32": (2e-35, 1e36), "float64": (1e-299, 1e306), "complex64": (2e-35, 1e36)}


@pytest.mark.parametrize("dtype", ENDS)
@pytest.mark.parametrize("shape", [(9, 5), (130, 128), (5, 9), (3, 40, 20)], ids=str)
def test_ends_of_the_range(shape, dtype):
    """There LAPACK loses digits, in XLA's threads; not here, by itself or before a derivative."""
    plain = gaussian(shape, dtype)
    # No element may be subnormal, for XLA takes those for zero.
    plain = np.where(np.abs(plain) < 0.1, plain.dtype.type(0.1), plain)
    tol = tolerance(dtype, shape, cond=1)
    for size in map(plain.real.dtype.type, ENDS[dtype]):
        a = jnp.asarray(plain * size)
        (q, r), _ = jax.vjp(jaxqr.qr, a)
        for factors in ((q, r), jaxqr.qr(a, method="householder")):
            check_in_units(a, *factors, size, tol)
        alone = np.asarray(jaxqr.qr(a, mode="r", method="householder")) / size
        of_both = np.asarray(r) / size
        assert norm(np.abs(alone) - np.abs(of_both)) <= 8 * tol * norm(of_both)
        *factors, p = jaxqr.pivoted_qr(a)
        check_in_units(jnp.take_along_axis(a, p[..., None, :], axis=-1), *factors, size, tol)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("shape", [(5, 4), (4, 6), (60, 8)], ids=str)
def test_pivots_of_columns_at_both_ends_of_the_range(shape, dtype):
    """The largest is near the largest number, and no other is lost beside it."""
    sizes = 10.0 ** np.linspace(-32, 33, shape[-1])[::-1]
    a = (gaussian(shape, dtype) * np.random.default_rng(0).permutation(sizes)).astype(dtype)
    q, r, p = (np.asarray(x) for x in jaxqr.pivoted_qr(a))
    sizes = np.abs(a).max(axis=0)[p]
    wide = q.astype("complex128")
    assert norm((wide @ r - a[:, p]) / sizes) <= tolerance(dtype, shape, 1) * norm(a[:, p] / sizes)
    assert norm(np.conj(wide.T) @ wide - np.eye(wide.shape[1])) <= 8 * tolerance(dtype, shape, 1)


def check_in_units(b, q, r, size, tol):
    check_qr(np.asarray(b) / size, np.asarray(q), np.asarray(r) / size, tol)
