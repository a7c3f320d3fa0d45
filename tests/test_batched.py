"""Many small matrices: the unrolled algorithm and the rules with the batch axis innermost."""

import functools

import jax
import jax.numpy as jnp
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

BATCH = 80


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 4), (4, 4), (3, 6), (5, 1), (1, 5)], ids=str)
def test_factors(shape, dtype):
    a = jnp.asarray(matrix((BATCH, *shape), dtype))
    tol = tolerance(dtype, shape, 1)

    @functools.partial(jax.jit, static_argnums=0)
    def in_all_modes(method):
        return {
            mode: jaxqr.qr(a, mode=mode, method=method) for mode in ("reduced", "complete", "r")
        }

    ours, theirs = in_all_modes("auto"), in_all_modes("householder")
    for mode in ("reduced", "complete"):
        check_qr(np.asarray(a), *map(np.asarray, ours[mode]), tol)
        assert_close(ours[mode][1], theirs[mode][1], tolerance(dtype, shape))
    assert_close(ours["r"], ours["reduced"][1], tol)


def test_the_method_by_its_name():
    a = jnp.asarray(matrix((BATCH, 8, 4)))
    assert_close(jaxqr.qr(a), jaxqr.qr(a, method="batched"), 0)


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


def test_a_sharded_batch_stays_where_it_is():
    mesh = Mesh(np.array(jax.devices("cpu")), ("batch",))
    a = jax.device_put(matrix((512, 8, 4)), NamedSharding(mesh, P("batch")))
    grad = jax.jit(jax.grad(lambda a: sum(jnp.sum(x) for x in jaxqr.qr(a))))
    compiled = grad.lower(a).compile()
    text = compiled.as_text()
    assert "geqrf" not in text
    assert "all-gather" not in text
    assert "all-to-all" not in text
    assert compiled(a).sharding.is_equivalent_to(a.sharding, 3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_hard_input(dtype):
    tiny = 1e-30 if dtype == "float32" else 1e-150
    kinds = [
        np.zeros((6, 4)),
        np.ones((6, 4)),
        np.eye(6, 4),
        np.triu(gaussian((6, 4))),
        tiny * gaussian((6, 4)),
        gaussian((6, 4)) / tiny,
        gaussian((6, 4)) * np.geomspace(1, 1e-8, 4),
        np.concatenate([gaussian((6, 2)), np.zeros((6, 2))], axis=1),
        *(matrix((6, 4), cond=10.0**p) for p in range(0, 16, 3)),
    ]
    a = np.stack([kinds[i % len(kinds)] for i in range(BATCH)]).astype(dtype)
    q, r = (np.asarray(x).astype("float64") for x in jaxqr.qr(a))
    lapack = [np.asarray(x).astype("float64") for x in jaxqr.qr(a, method="householder")]
    eps = float(np.finfo(dtype).eps)

    def errors(q, r):
        scale = np.maximum(np.abs(a).max(axis=(-2, -1)), np.finfo(dtype).tiny).astype("float64")
        rest = (q @ (r / scale[:, None, None])) - a / scale[:, None, None]
        gram = np.linalg.norm(q.mT @ q - np.eye(4), axis=(-2, -1))
        return np.linalg.norm(rest, axis=(-2, -1)), gram

    for ours, theirs in zip(errors(q, r), errors(*lapack), strict=True):
        assert np.all(ours <= 4 * np.maximum(theirs, 2 * eps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_of_very_different_lengths(dtype):
    """Squares that underflow in part must not leave a reflector that is not unitary."""
    a = graded((BATCH, 6, 4), dtype)
    q, r = map(np.asarray, jaxqr.qr(a, method="batched"))
    for one in zip(a, q, r, strict=True):
        check_columns(*one, tolerance(dtype, a.shape, 1))


def test_nan_stays_in_its_matrix():
    a = matrix((BATCH, 5, 3)).copy()
    a[7, 2, 1] = np.nan
    r = jaxqr.qr(a, mode="r")
    bad = np.isnan(np.asarray(r)).any(axis=(1, 2))
    assert bad[7]
    assert not bad[:7].any()
    assert not bad[8:].any()


def test_too_many_columns_to_unroll():
    with pytest.raises(ValueError, match=r'at most 16 rows or columns.*for method "batched"'):
        jaxqr.qr(jnp.ones((100, 40, 17)), method="batched")


@pytest.mark.parametrize("method", ["batched", "cholesky"])
def test_empty_matrices_by_any_method(method):
    for shape in ((100, 3, 0), (0, 3, 2), (0, 0)):
        q, r = jaxqr.qr(jnp.zeros(shape), method=method)
        assert q.shape == shape
        assert r.shape == (*shape[:-2], shape[-1], shape[-1])
