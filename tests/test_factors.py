"""The factors themselves: product, orthonormality, shape, type, uniqueness."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.experimental import jet
from numerics import (
    DTYPES,
    FACTORIZATIONS,
    NAMES,
    TRIANGLE,
    as_qr,
    assert_close,
    matrix,
    norm,
    tolerance,
    unpack,
)

import jaxqr

SHAPES = [(7, 4), (5, 5), (4, 7), (1, 5), (5, 1), (1, 1), (2, 3, 6, 4), (2, 3, 5)]
EMPTY = [(0, 3), (3, 0), (0, 0), (0, 4, 3), (2, 3, 0), (2, 0, 3)]


def run(name, a, mode, **options):
    """(triangle, q, p) of the named function; mode "alone" is the triangle's."""
    alone = mode == "alone"
    out = FACTORIZATIONS[name](a, mode=TRIANGLE[name] if alone else mode, **options)
    return unpack(name, out, alone)


@functools.partial(jax.jit, static_argnames=("name", "options"))
def run_all(a, name, options=()):
    """What ``run`` gives in each mode, from one program."""
    return {mode: run(name, a, mode, **dict(options)) for mode in ("reduced", "complete", "alone")}


def expected_shapes(b_shape, mode, rank=None):
    *batch, m, n = b_shape
    k = rank or min(m, n)
    if mode == "complete":
        return (*batch, m, m), (*batch, m, n)
    return (*batch, m, k), (*batch, k, n)


def check(name, a, mode, tri, q, p, *, tol):
    b, q, r = as_qr(name, a, tri, q, p)
    q_shape, r_shape = expected_shapes(b.shape, mode)
    assert r.shape == r_shape
    assert np.all(np.tril(r, -1) == 0)
    assert np.all(np.diagonal(r, axis1=-2, axis2=-1).imag == 0)
    assert r.dtype == np.asarray(a).dtype
    if q is not None:
        assert q.shape == q_shape
        assert q.dtype == np.asarray(a).dtype
        assert norm(q @ r - b) <= tol * max(norm(b), 1)
        eye = np.broadcast_to(np.eye(q.shape[-1]), (*q.shape[:-2], *[q.shape[-1]] * 2))
        assert norm(np.conj(q.mT) @ q - eye) <= tol * max(norm(eye), 1)
    if p is not None:
        assert p.dtype == np.int32
        assert p.shape == (*a.shape[:-2], a.shape[-1])
        assert np.all(np.sort(p, axis=-1) == np.arange(a.shape[-1]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_factors(name, shape, dtype):
    a = matrix(shape, dtype)
    tol = tolerance(dtype, shape, cond=1)
    found = run_all(a, name)
    for mode in ("reduced", "complete"):
        check(name, a, mode, *found[mode], tol=tol)
    assert_close(found["alone"][0], found["reduced"][0], tol)


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_empty(name, shape):
    a = matrix(shape)
    for mode in ("reduced", "complete", "alone"):
        tri, q, p = run(name, a, mode)
        check(name, a, mode, tri, q, p, tol=0)
        grad = jax.grad(lambda a: jnp.sum(run(name, a, mode)[0]))(jnp.asarray(a))  # noqa: B023
        assert grad.shape == shape


@pytest.mark.parametrize("shape", [(2, 0), (0, 2, 3)], ids=str)
@pytest.mark.parametrize("name", ["qr", "lq", "pivoted_qr"])
def test_second_derivatives_and_series_of_nothing(name, shape):
    a = jnp.asarray(matrix(shape))

    def loss(a):
        return jnp.sum(run(name, a, "alone", forward_mode=True)[0] ** 2)

    assert jax.hessian(loss)(a).shape == shape * 2
    found, series = jet.jet(getattr(jaxqr, name), (a,), ([a, a],), factorial_scaled=False)
    assert [x.shape for x in series[0]] == [found[0].shape] * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 4), (4, 4), (4, 6)], ids=str)
def test_positive_diagonal_makes_the_factors_unique(shape, dtype):
    a = matrix(shape, dtype)
    for name in NAMES:
        found = run_all(a, name, options=(("positive_diagonal", True),))
        for mode in ("reduced", "complete"):
            check(name, a, mode, *found[mode], tol=tolerance(dtype, shape, 1))
            b, q, r = as_qr(name, a, *found[mode])
            assert np.all(np.diagonal(r).real >= 0)
        b, q, r = as_qr(name, a, *found["reduced"])
        q_np, r_np = np.linalg.qr(b)
        phase = np.diagonal(r_np) / np.abs(np.diagonal(r_np))
        tol = tolerance(dtype, shape)
        assert_close(q, (q_np * phase).astype(dtype), tol)
        assert_close(r, (np.conj(phase)[:, None] * r_np).astype(dtype), tol)


def test_positive_diagonal_of_a_zero_matrix():
    q, r = jaxqr.qr(jnp.zeros((4, 3)), positive_diagonal=True)
    assert np.all(np.asarray(r) == 0)
    assert norm(q.mT @ q - np.eye(3)) < 1e-15


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)], ids=str)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_rq_and_pivoted_qr_as_scipy(shape, dtype):
    a = matrix(shape, dtype)
    tol = tolerance(dtype, shape)
    for mode, theirs in (("reduced", "economic"), ("complete", "full")):
        r, q = jaxqr.rq(a, mode=mode)
        r_sp, q_sp = scipy.linalg.rq(a, mode=theirs)
        assert r.shape == r_sp.shape
        assert q.shape == q_sp.shape
        assert_close(jnp.abs(r), np.abs(r_sp), tol)
        q, r, p = jaxqr.pivoted_qr(a, mode=mode)
        q_sp, r_sp, p_sp = scipy.linalg.qr(a, mode=theirs, pivoting=True)
        assert q.shape == q_sp.shape
        assert_close(jnp.abs(r), np.abs(r_sp), tol)
        assert np.array_equal(p, p_sp)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "k"), [((6, 4), 2), ((4, 6), 3), ((2, 5, 5), 1)], ids=str)
def test_truncated(shape, k, dtype):
    a = matrix(shape, dtype)
    q, r, p = jaxqr.pivoted_qr(a)
    qk, rk, pk = jaxqr.pivoted_qr(a, rank=k)
    tol = tolerance(dtype, shape, 1)
    assert qk.shape == (*shape[:-1], k)
    assert rk.shape == (*shape[:-2], k, shape[-1])
    assert_close((qk, rk), (q[..., :k], r[..., :k, :]), tol)
    assert np.array_equal(p, pk)
    assert_close(jaxqr.pivoted_qr(a, rank=k, mode="r")[0], rk, tol)
    b = np.take_along_axis(a, np.asarray(p)[..., None, :], -1)
    rest = np.linalg.norm(b - np.asarray(qk @ rk), 2, axis=(-2, -1))
    best = np.linalg.svd(a, compute_uv=False)[..., k]
    assert np.all(rest <= 2**k * np.sqrt(shape[-1]) * best)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_are_computed_in_float32(name, dtype):
    a = jnp.asarray(matrix((6, 4), "float32")).astype(dtype)
    eps = float(jnp.finfo(dtype).eps)
    exact = FACTORIZATIONS[name](a.astype("float32"))
    for x, y in zip(FACTORIZATIONS[name](a), exact, strict=True):
        assert x.dtype == (y.dtype if y.dtype == jnp.int32 else dtype)
        assert np.array_equal(x, y.astype(x.dtype))

    def loss(a):
        return sum(jnp.sum(x.astype("float32")) for x in FACTORIZATIONS[name](a)[:2])

    bar = jax.grad(loss)(a)
    assert bar.dtype == dtype
    assert norm(bar.astype("float32") - jax.grad(loss)(a.astype("float32"))) < 2 * eps * norm(
        bar.astype("float32")
    )


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "int32", "int64", "uint64"])
def test_integers_are_promoted_as_jax_does(dtype):
    a = jnp.asarray([[1, 0], [1, 1], [0, 1]], dtype)
    expected = jnp.linalg.qr(a)
    for name in NAMES:
        tri, *_ = run(name, a, "reduced")
        assert tri.dtype == expected.R.dtype
    assert np.array_equal(jaxqr.qr(a)[1], expected.R)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_come_out_as_nan(name, bad):
    for shape in ((5, 3), (3, 5), (2, 4, 4)):
        a = matrix(shape).copy()
        a[..., 1, 1] = bad
        tri, _, p = run(name, a, "reduced")
        assert not np.all(np.isfinite(tri))
        if p is not None:
            assert np.all(np.sort(p, axis=-1) == np.arange(shape[-1]))


def test_rank_deficient_input_has_right_factors():
    a = matrix((6, 4)).copy()
    a[:, 2] = a[:, 0] - a[:, 1]
    for name in NAMES:
        for mode in ("reduced", "complete"):
            check(name, a, mode, *run(name, a, mode), tol=tolerance("float64", a.shape, 1))


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_extreme_scales(scale):
    a = matrix((6, 4))
    for name in NAMES:
        tri, q, p = run(name, scale * a, "reduced")
        check(name, a, "reduced", tri / scale, q, p, tol=tolerance("float64", a.shape, 1))
