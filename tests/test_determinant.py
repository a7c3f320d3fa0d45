"""log|det| of square matrices and log-volumes of deep ones, with their signs and derivatives."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.jet import jet
from numerics import DTYPES, assert_close, gaussian, matrix, random_like, tolerance

import jaxqr

SHAPES = [(4, 4), (2, 70, 70), (70, 4, 4), (6, 3), (5, 40, 10)]


def expected(a):
    """By jnp, and the volume by the determinant of A^H A."""
    if a.shape[-2] == a.shape[-1]:
        return tuple(jnp.linalg.slogdet(a))
    gram = jnp.conj(a.mT) @ a
    return jnp.ones(a.shape[:-2], a.dtype), jnp.linalg.slogdet(gram)[1] / 2


@functools.partial(jax.jit, static_argnums=0)
def derivatives(f, a, da, bars):
    out, pull = jax.vjp(f, a)
    return out, pull(bars)[0], jax.jvp(f, (a,), (da,))[1]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_value_and_derivatives(dtype, shape):
    a = jnp.asarray(matrix(shape, dtype, cond=10))
    da = random_like(a)
    bars = random_like(jax.eval_shape(expected, a), seed=3)
    out, a_bar, dots = derivatives(expected, a, da, bars)
    reverse = jax.jit(lambda a, bars: jax.vjp(tuple_of, a)[1](bars)[0])(a, bars)
    found = derivatives(functools.partial(tuple_of, forward_mode=True), a, da, bars)
    tol = tolerance(dtype, shape, 100, c=32)
    assert_close((out, a_bar, dots), found, tol)
    assert_close(reverse, a_bar, tol)


def tuple_of(a, **options):
    return tuple(jaxqr.slogdet(a, **options))


@pytest.mark.parametrize("dtype", DTYPES)
def test_types(dtype):
    a = jnp.asarray(gaussian((3, 3), dtype))
    sign, logarithm = jaxqr.slogdet(a)
    assert sign.dtype == dtype
    assert logarithm.dtype == np.finfo(dtype).dtype
    assert abs(np.asarray(sign) * np.exp(logarithm) - np.linalg.det(a)) < 100 * np.finfo(dtype).eps
    assert jaxqr.slogdet(a.astype("float16") if a.dtype.kind == "f" else a).sign.ndim == 0


@pytest.mark.parametrize("batch", [(), (64,)], ids=str)
def test_units_of_rows(batch):
    """They are factors of the determinant, and cost no digits."""
    a = jnp.asarray(gaussian((*batch, 4, 4), "float32"))
    a = a * 10.0 ** jnp.asarray([[-4], [-4], [4], [0]], "float32").reshape(
        (1,) * len(batch) + (4, 1)
    )
    value = jax.jit(lambda a: jaxqr.slogdet(a))(a)
    gradient = jax.jit(jax.grad(lambda a: jaxqr.slogdet(a).logabsdet.sum()))(a)
    exact = np.asarray(a, "float64")
    sign, logarithm = np.linalg.slogdet(exact)
    cond = np.linalg.cond(exact / np.abs(exact).max(axis=-1, keepdims=True)).max()
    tol = 64 * np.finfo("float32").eps * cond
    np.testing.assert_array_equal(value.sign, sign)
    np.testing.assert_allclose(value.logabsdet, logarithm, atol=tol)
    inverse = np.linalg.inv(exact).mT.astype("float32")
    assert_close(gradient, inverse, tol)


def test_second_order():
    """The Hessian of log|det| along V, W is -tr(A^-1 V A^-1 W)."""
    a, v, w = (jnp.asarray(x) for x in (matrix((4, 4)), gaussian((4, 4)), gaussian((4, 4), seed=2)))
    y = np.linalg.inv(a)

    def along(f):
        return jax.jvp(jax.grad(f), (a,), (v,))[1]

    def f(a, forward_mode):
        return jaxqr.slogdet(a, forward_mode=forward_mode).logabsdet

    def by_reverse(a):
        return jnp.sum(jax.grad(functools.partial(f, forward_mode=False))(a) * v)

    forward = jax.jit(lambda: along(functools.partial(f, forward_mode=True)))()
    for product in (forward, jax.jit(jax.grad(by_reverse))(a)):
        assert abs(jnp.sum(product * w) + np.trace(y @ v @ y @ w)) < 1e-12


@pytest.mark.parametrize("shape", [(4, 4), (5, 3)])
def test_series(shape):
    """Of exp(log) s along a polynomial curve: the determinant's own, of A or of A^H A."""
    order = 4
    a = jnp.asarray(matrix(shape, "complex128", cond=4))
    terms = [jnp.asarray(gaussian(shape, "complex128", seed)) / 4 for seed in range(order)]

    @jax.jit
    def series(a, terms):
        out, rest = jet(tuple_of, (a,), (terms,), factorial_scaled=False)
        gradients = jet(
            jax.grad(lambda a: jaxqr.slogdet(a).logabsdet), (a,), (terms,), factorial_scaled=False
        )
        return out, rest, gradients

    (sign, logarithm), rest, (gradient, gradients) = series(a, terms)
    signs, logs = ([x, *xs] for x, xs in zip((sign, logarithm), rest, strict=True))
    at = np.exp(2j * np.pi * np.arange(64) / 64) / 8  # the coefficients by Cauchy's formula

    def coefficients(values):
        return [
            np.mean(values * at.reshape(-1, *[1] * (values.ndim - 1)) ** -d, axis=0)
            for d in range(order + 1)
        ]

    def curve(t):
        return sum(t**d * np.asarray(x) for d, x in enumerate([a, *terms]))

    def adjoint_curve(t):  # A(t)^H for real t, and analytic
        return sum(t**d * np.conj(np.asarray(x)).T for d, x in enumerate([a, *terms]))

    squares = coefficients(np.array([np.linalg.det(adjoint_curve(t) @ curve(t)) for t in at]))
    t = 1e-2
    value = sum(x * t**d for d, x in enumerate(logs))
    exact = jaxqr.slogdet(jnp.asarray(curve(t)))
    assert abs(value - exact.logabsdet) < 1e-7
    assert abs(sum(x * t**d for d, x in enumerate(signs)) - exact.sign) < 1e-7
    # exp(2 l) has the series of det A^H A: d e_d = sum_k 2 k l_k e_{d-k}
    powers = [np.exp(2 * logs[0])]
    for d in range(1, order + 1):
        powers.append(sum(2 * k * logs[k] * powers[d - k] for k in range(1, d + 1)) / d)
    np.testing.assert_allclose(powers, squares, rtol=1e-11, atol=1e-11 * abs(powers[0]))
    inverse = coefficients(np.array([np.linalg.pinv(adjoint_curve(t)) for t in at]))
    if shape[0] == shape[1]:
        assert_close([np.conj(x) for x in (gradient, *gradients)], inverse, 1e-11)


def test_scales_and_singular_matrices():
    a = jnp.asarray(matrix((3, 3), "float32"))
    grad = jax.jit(jax.grad(lambda a: jaxqr.slogdet(a).logabsdet))
    for s in (2.0**100, 2.0**-100):
        np.testing.assert_array_equal(grad(s * a) * np.float32(s), grad(a))
        assert jaxqr.slogdet(s * a).sign == jaxqr.slogdet(a).sign
    zero = jaxqr.slogdet(jnp.eye(2).at[1, 1].set(0))
    assert zero.sign == 0
    assert zero.logabsdet == -jnp.inf
    assert np.isnan(jaxqr.slogdet(a.at[0, 0].set(jnp.nan)).logabsdet)
    sign, logarithm = jaxqr.slogdet(jnp.ones((2, 0, 0)))
    assert sign.tolist() == [1, 1]
    assert logarithm.tolist() == [0, 0]


def test_a_function_of_three_terms():
    """f(X) = -log|det X| - tr(S X^-1) - |X^-1|^2: derivatives in closed form, and their cost.

    P. A. Olsen, A. Kambadur and others, "Numerical optimization using symbolic differentiation",
    2014. All of it takes one factorization, and value and gradient four times the value at most.
    """
    n = 80
    s, v, x = (jnp.asarray(gaussian((n, n), seed=seed)) for seed in range(3))
    x = x + 3 * n**0.5 * jnp.eye(n)

    def f(x, forward_mode=False):
        options = {"forward_mode": forward_mode}
        inverse = jaxqr.lstsq(x, jnp.eye(n), **options)
        log_det = jaxqr.slogdet(x, **options).logabsdet
        return -log_det - jnp.sum(s.T * inverse) - jnp.sum(inverse**2)

    value = jax.jit(f).lower(x).compile()
    gradient = jax.jit(jax.value_and_grad(f)).lower(x).compile()
    along = jax.jit(lambda x: jax.jvp(jax.grad(lambda x: f(x, True)), (x,), (v,))[1])
    y = np.linalg.inv(x)
    dy = -y @ v @ y
    expected = -np.linalg.slogdet(x)[1] - np.trace(s @ y) - (y**2).sum()
    bar = -y.T + (y @ s @ y).T + 2 * y.T @ y @ y.T
    product = dy @ s @ y + y @ s @ dy + 2 * (dy @ y.T @ y + y @ dy.T @ y + y @ y.T @ dy) - dy
    assert_close((value(x), gradient(x)[1], along(x)), (expected, bar, product.T), 1e-13)
    assert operations(gradient, n) <= 4 * operations(value, n)


def operations(compiled, n):
    """XLA's count, and that of LAPACK's calls, all of them n x n, by formula."""
    called = re.findall(r'custom_call_target="lapack_d(\w+)_ffi"', compiled.as_text())
    assert called.count("geqrf") == 1
    of = {"geqrf": 4 / 3, "ormqr": 2, "trsm": 1}
    return compiled.cost_analysis()["flops"] + n**3 * sum(map(of.__getitem__, called))


def test_errors():
    with pytest.raises(ValueError, match=r"rows as columns.*slogdet\(a.mT\).*Got shape \(2, 3\)"):
        jaxqr.slogdet(jnp.ones((2, 3)))
    with pytest.raises(TypeError, match=r"jaxqr's slogdet is for reverse mode.*forward_mode=True"):
        jax.jvp(jaxqr.slogdet, (jnp.eye(2),), (jnp.eye(2),))
