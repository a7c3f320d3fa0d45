"""Many small matrices: elimination and the rules with the batch axis innermost."""

import functools

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numerics import (
    DTYPES,
    FACTORIZATIONS,
    NAMES,
    assert_close,
    check_columns,
    check_qr,
    gaussian,
    graded,
    inexact,
    matrix,
    random_like,
    tolerance,
)

import jaxqr
from jaxqr._linalg import reflectors

BATCH = 80
LOOPS = (20, 17)  # more columns than are written out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(8, 4), (4, 4), (3, 6), (5, 1), (1, 5), LOOPS, (18, 18)], ids=str
)
def test_factors(shape, dtype):
    a = jnp.asarray(matrix((BATCH, *shape), dtype))
    tol = tolerance(dtype, shape, 1)

    @functools.partial(jax.jit, static_argnums=0)
    def in_all_modes(method):
        return {
            mode: jaxqr.qr(a, mode=mode, method=method) for mode in ("reduced", "complete", "r")
        }

    ours, theirs = in_all_modes("batched"), in_all_modes("householder")
    for mode in ("reduced", "complete"):
        check_qr(np.asarray(a), *map(np.asarray, ours[mode]), tol)
        assert_close(ours[mode][1], theirs[mode][1], tolerance(dtype, shape))
    assert_close(ours["r"], ours["reduced"][1], tol)


@pytest.mark.parametrize("least", [1, 2**40])
def test_loops_in_one_thread_and_in_more(least, monkeypatch):
    monkeypatch.setattr(reflectors, "_LEAST_FOR_THREADS", least)
    jax.clear_caches()
    a = matrix((BATCH, *LOOPS))
    tol = tolerance("float64", LOOPS, 1)
    check_qr(a, *map(np.asarray, jaxqr.qr(a, method="batched")), tol)
    identity = np.broadcast_to(np.eye(LOOPS[1]), (BATCH, LOOPS[1], LOOPS[1]))
    check_qr(a, *map(np.asarray, jaxqr.qr_multiply(a, identity)), tol)


def test_the_method_by_its_name():
    a = jnp.asarray(matrix((BATCH, 8, 4)))
    assert_close(jaxqr.qr(a), jaxqr.qr(a, method="batched"), 0)


@pytest.mark.parametrize("shape", [(8, 8), (10, 6), (20, 3), (16, 16), LOOPS, (40, 10)], ids=str)
def test_elimination_is_chosen_where_it_pays(shape):
    """Of more rows or elements only where XLA keeps sums."""
    a = jax.ShapeDtypeStruct((BATCH, *shape), "float64")
    pays = jaxlib.version.__version_info__ >= (0, 11, 1) or shape in [(8, 8), (10, 6)]
    assert ("geqrf" in jax.jit(jaxqr.qr).lower(a).as_text()) is not pays


def well_conditioned(shape, dtype):
    """A batch whose leading and trailing square blocks are well conditioned too."""
    pool, k = matrix((20 * BATCH, *shape), dtype, cond=3), min(shape)
    blocks = (pool[:, :k], pool[:, -k:], pool[..., :k], pool[..., -k:])
    worst = np.max([np.linalg.cond(block) for block in blocks], axis=0)
    return jnp.asarray(pool[np.argsort(worst)[:BATCH]])


@pytest.mark.parametrize(("shape", "dtype"), [((5, 3), "complex128"), ((3, 5), "float64")], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_each_matrix(name, shape, dtype):
    """By leading axes and by vmap, in both wirings; and second derivatives."""
    a = well_conditioned(shape, dtype)
    tol = tolerance(dtype, shape, c=64)

    def loss(a, forward_mode=False):
        xs = inexact(FACTORIZATIONS[name](a, positive_diagonal=True, forward_mode=forward_mode))
        weights = random_like([x[0] if x.ndim == 3 else x for x in xs])
        pairs = zip(weights, xs, strict=True)
        return sum(jnp.sum(jnp.broadcast_to(w, x.shape) * x).real for w, x in pairs)

    def vmapped(a, forward_mode):
        return jax.vmap(jax.grad(functools.partial(loss, forward_mode=forward_mode)))(a)

    @jax.jit  # one program: what is the same of these is compiled once
    def together(a):
        by_axes = jax.grad(loss)(a)
        found = [by_axes]
        for forward_mode in (False, True):
            mapped = functools.partial(vmapped, forward_mode=forward_mode)
            found += [mapped(a), jax.vmap(mapped)(a.reshape(2, -1, *shape)).reshape(a.shape)]
        return found

    expected = jax.lax.map(jax.grad(loss), a)
    for found in together(a):
        assert_close(found, expected, tol)

    def slope(a):
        return jnp.sum(jnp.sin(jax.grad(loss)(a))).real

    assert_close(jax.jit(jax.vmap(jax.grad(slope)))(a), jax.lax.map(jax.grad(slope), a), 8 * tol)


def test_the_batch_is_seen_through_vmap():
    a = jnp.asarray(matrix((BATCH, 8, 4)))
    for f in (jaxqr.qr, jax.vmap(jaxqr.qr), jax.vmap(lambda a: jaxqr.qr(a, forward_mode=True))):
        assert "geqrf" not in jax.jit(f).lower(a).compile().as_text()
    for f in (lambda a: jaxqr.qr(a, method="householder"), lambda a: jaxqr.qr(a[0])):
        assert "geqrf" in jax.jit(f).lower(a).compile().as_text()
    pull = jax.jit(jax.vmap(jax.grad(lambda a: jaxqr.qr(a)[0].sum())))
    assert "trsm" not in pull.lower(a).compile().as_text()


def test_a_jacobian_of_one_small_matrix():
    """vmap maps the cotangents alone: the residuals are not repeated, and nothing breaks."""
    a = jnp.asarray(matrix((12, 8)))
    ours = jax.jacrev(lambda a: jaxqr.qr(a))(a)
    theirs = jax.jacrev(lambda a: tuple(jnp.linalg.qr(a)))(a)
    assert_close(ours, theirs, tolerance("float64", a.shape, c=64))


@pytest.mark.parametrize("shape", [(3, 2), (2, 3)], ids=str)
def test_mapped_pullbacks_under_a_jvp(shape):
    """The batch axis of a function's outputs and of its derivative's are in one place."""
    a, da = jnp.asarray(matrix(shape)), jnp.asarray(gaussian(shape))  # along a itself: nothing
    bars = jnp.asarray(gaussian((4, 2, shape[1])))

    def pulled(a, mapped):
        _, pullback = jax.vjp(lambda a: jaxqr.qr(a, forward_mode=True)[1], a)
        return mapped(pullback)(bars)

    ours = jax.jvp(lambda a: pulled(a, jax.vmap), (a,), (da,))
    one_by_one = jax.jvp(
        lambda a: pulled(a, lambda f: lambda xs: [jnp.stack([f(x)[0] for x in xs])]), (a,), (da,)
    )
    assert_close(ours, one_by_one, tolerance("float64", shape, c=64))


@pytest.mark.parametrize("shape", [(8, 4), LOOPS], ids=str)
def test_a_sharded_batch_stays_where_it_is(shape):
    mesh = Mesh(np.array(jax.devices("cpu")), ("batch",))
    a = jax.device_put(matrix((512, *shape)), NamedSharding(mesh, P("batch")))
    grad = jax.jit(jax.grad(lambda a: sum(jnp.sum(x) for x in jaxqr.qr(a, method="batched"))))
    compiled = grad.lower(a).compile()
    text = compiled.as_text()
    assert "geqrf" not in text
    assert "all-gather" not in text
    assert "all-to-all" not in text
    da = jax.block_until_ready(compiled(a))  # which no device waits for for ever
    assert da.sharding.is_equivalent_to(a.sharding, 3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(6, 4), LOOPS], ids=str)
def test_hard_input(shape, dtype):
    n = shape[1]
    tiny = 1e-30 if dtype == "float32" else 1e-150
    kinds = [
        np.zeros(shape),
        np.ones(shape),
        np.eye(*shape),
        np.triu(gaussian(shape)),
        tiny * gaussian(shape),
        gaussian(shape) / tiny,
        gaussian(shape) * np.geomspace(1, 1e-8, n),
        gaussian(shape) * (np.arange(n) < n // 2),
        *(matrix(shape, cond=10.0**p) for p in range(0, 16, 3)),
    ]
    a = np.stack([kinds[i % len(kinds)] for i in range(BATCH)]).astype(dtype)
    q, r = (np.asarray(x).astype("float64") for x in jaxqr.qr(a, method="batched"))
    lapack = [np.asarray(x).astype("float64") for x in jaxqr.qr(a, method="householder")]
    least = float(np.finfo(dtype).eps) * shape[0] * shape[1] / 12

    def errors(q, r):
        scale = np.maximum(np.abs(a).max(axis=(-2, -1)), np.finfo(dtype).tiny).astype("float64")
        rest = (q @ (r / scale[:, None, None])) - a / scale[:, None, None]
        gram = np.linalg.norm(q.mT @ q - np.eye(n), axis=(-2, -1))
        return np.linalg.norm(rest, axis=(-2, -1)), gram

    for ours, theirs in zip(errors(q, r), errors(*lapack), strict=True):
        assert np.all(ours <= 4 * np.maximum(theirs, least))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 4), LOOPS], ids=str)
def test_columns_of_very_different_lengths(shape, dtype):
    """Squares that underflow in part must not leave a reflector that is not unitary."""
    a = graded((BATCH, *shape), dtype)
    q, r = map(np.asarray, jaxqr.qr(a, method="batched"))
    for one in zip(a, q, r, strict=True):
        check_columns(*one, tolerance(dtype, a.shape, 1))


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_dependent_columns_of_r_alone_in_loops(dtype):
    """Of a loss of R^H R the derivative is A's own; some matrices of the batch have full rank."""
    a = matrix((BATCH, *LOOPS), dtype).copy()
    a[::3, :, 3], a[::3, :, 16], a[1::3, :, 9] = a[::3, :, 1], 0, a[1::3, :, :4].sum(axis=-1)
    w = gaussian((LOOPS[1], LOOPS[1]), dtype)

    @jax.jit
    def value_and_gradient(a):
        def loss(a):
            r = jaxqr.qr(a, mode="r", method="batched")
            return jnp.sum(w.conj()[None] * (jnp.conj(r.mT) @ r)).real

        return jax.value_and_grad(loss)(a)

    value, gradient = value_and_gradient(a)
    assert_close(value, np.sum(w.conj() * (np.conj(a.mT) @ a)).real, tolerance(dtype, a.shape))
    assert_close(np.conj(gradient), a @ (w + w.conj().T), tolerance(dtype, LOOPS, 64))


@pytest.mark.parametrize("shape", [(5, 3), LOOPS], ids=str)
def test_nan_stays_in_its_matrix(shape):
    a = matrix((BATCH, *shape)).copy()
    a[7, 2, 1] = np.nan
    r = jaxqr.qr(a, mode="r", method="batched")
    bad = np.isnan(np.asarray(r)).any(axis=(1, 2))
    assert bad[7]
    assert not bad[:7].any()
    assert not bad[8:].any()


def test_too_many_columns_by_name():
    with pytest.raises(ValueError, match=r'at most 24 rows or columns.*for method "batched"'):
        jaxqr.qr(jnp.ones((100, 40, 25)), method="batched")


@pytest.mark.parametrize("method", ["batched", "cholesky"])
def test_empty_matrices_by_any_method(method):
    for shape in ((100, 3, 0), (0, 3, 2), (0, 0)):
        q, r = jaxqr.qr(jnp.zeros(shape), method=method)
        assert q.shape == shape
        assert r.shape == (*shape[:-2], shape[-1], shape[-1])
