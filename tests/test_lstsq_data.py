"""Least squares on people's own data: every scale, exact zeros, ridges of any size, tall data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify, jet
from numerics import assert_close, covering, gaussian, matrix, norm, tolerance

import jaxqr

SHAPES = [(7, 4), (4, 4), (4, 7)]
FEW = pytest.mark.parametrize("shape", SHAPES, ids=str)
WIRINGS = pytest.mark.parametrize("forward_mode", [False, True], ids=["reverse", "forward"])
OPTIONS = {"full": {}, "rcond": {"rcond": 1e-6}, "ridge": {}}


def program(**options):
    """X, A-bar and b-bar, compiled."""

    @jax.jit
    def run(a, b, x_bar, ridge=None):
        solve = functools.partial(jaxqr.lstsq, **options)
        if ridge is not None:
            solve = functools.partial(solve, ridge=ridge)
        x, pull = jax.vjp(solve, a, b)
        return x, *pull(x_bar)

    return run


# Scale.


@WIRINGS
@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("shape", [(7, 4), (4, 4), (4, 7), (70, 5, 3)], ids=str)
def test_scaling_law(shape, kind, forward_mode):
    """Powers of two move no digit: of A and b together, of A alone, of b alone."""
    run = program(**OPTIONS[kind], forward_mode=forward_mode)
    a, b = gaussian(shape, "float32"), gaussian(shape[:-1], "float32")
    x_bar = gaussian((*shape[:-2], shape[-1]), "float32")
    ridge = (lambda s: np.float32(0.25) * s * s) if kind == "ridge" else (lambda s: None)
    one = np.float32(1)
    x, a_bar, b_bar = run(a, b, x_bar, ridge(one))
    most = 60 if kind == "ridge" else 100  # where the ridge is a number
    for power in (-most, -50, 50, most):
        s = np.float32(2.0) ** power
        together = run(s * a, s * b, x_bar, ridge(s))
        for ours, theirs in zip(together, (x, a_bar / s, b_bar / s), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        of_b = run(a, s * b, x_bar, ridge(one))
        for ours, theirs in zip(of_b, (x * s, a_bar * s, b_bar), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        if abs(power) < most:  # A-bar goes with the square
            of_a = run(s * a, b, x_bar, ridge(s))
            for ours, theirs in zip(of_a, (x / s, a_bar / s / s, b_bar / s), strict=True):
                np.testing.assert_array_equal(ours, theirs)


@WIRINGS
@FEW
def test_graded_columns(shape, forward_mode):
    """Columns (rows of wide A) over 60 decimal orders of float32."""
    deep = shape[0] >= shape[1]
    run = program(forward_mode=forward_mode)
    a, b = matrix(shape, "float32"), gaussian(shape[:1], "float32")
    x_bar = gaussian(shape[1:], "float32")
    x, a_bar, b_bar = (np.asarray(y) for y in run(a, b, x_bar))
    units = (2.0 ** np.array([90, -30, 0, -95])).astype("float32")
    over = units if deep else units[:, None]
    if deep:
        ours, expected = run(a * over, b, x_bar * units), (x / units, a_bar / over, b_bar)
    else:
        ours, expected = run(a * over, b * units, x_bar), (x, a_bar / over, b_bar / units)
    for y, z in zip(ours, expected, strict=True):
        np.testing.assert_allclose(y, z, rtol=1e-3)


# What is zero.


def polynomial():
    """A quadratic through four times in degrees; its gradient in double precision."""
    a = np.vander([0.0, 30.0, 60.0, 90.0], 3, increasing=True)
    b, x_bar = np.array([0.0, 1.0, 5.0, 2.0]), np.array([1.0, 100.0, 1e4])
    return a, b, x_bar


@WIRINGS
def test_no_null_space(forward_mode):
    """At full column rank N x-bar is zero, in each matrix of a batch; so at second order."""
    a, b, x_bar = polynomial()
    other = a.copy()
    other[:, 2] = other[:, 1]  # beside it, one that has lost rank
    solve = functools.partial(jaxqr.lstsq, rcond="auto", forward_mode=forward_mode)

    def loss(solve, a, b):
        return jnp.sum(solve(a, b) * x_bar.astype(a.dtype))

    def second(solve, a, b):
        return jnp.sum(jax.grad(loss, argnums=1)(solve, a, b)[0] ** 2)

    for f, tol in ((loss, 1e-4), (second, 1e-2)):
        expected = jax.grad(f, argnums=1)(jaxqr.lstsq, jnp.asarray(a), jnp.asarray(b))
        grad = jax.jit(jax.vmap(lambda a, b, f=f: jax.grad(f, argnums=1)(solve, a, b)))
        many = np.stack([a, other]).astype("float32"), np.stack([b, b]).astype("float32")
        np.testing.assert_allclose(grad(*many)[0], expected, rtol=tol)


@pytest.mark.parametrize("options", [{}, {"rcond": "auto"}, {"forward_mode": True}], ids=str)
def test_no_residual(options):
    """Of a square system, badly scaled by rows, alone and in a batch that the unrolled code takes.

    Where its rank is lost there is one.
    """
    a = np.array([[0.04, 0.02], [900.0, 400.0]])
    b = np.array([0.06, 400.0])
    inverse = np.linalg.inv(a)
    expected = -np.outer(inverse.T @ np.ones(2), inverse @ b)
    grad = jax.grad(lambda a, b: jnp.sum(jaxqr.lstsq(a, b, **options)))
    a, b = jnp.asarray(a, "float32"), jnp.asarray(b, "float32")
    np.testing.assert_allclose(grad(a, b), expected, rtol=0.1)  # condition 4.9e5
    many = jax.jit(jax.vmap(grad))(jnp.stack([a] * 70), jnp.stack([b] * 70))
    np.testing.assert_allclose(many[0], expected, rtol=0.1)
    square, right = matrix((9, 9), "float32"), gaussian((9,), "float32")
    assert jaxqr.lstsq(square, right, **options, full=True).rss == 0


def sum_of_squares(a, b, ridge):
    """||b - A x||^2, its gradient by A, its two derivatives by the ridge, from A = U S V^H.

    What is left of c = U^H b is ridge / (s^2 + ridge) of it, and x = V fit c.
    """
    u, s, vh = np.linalg.svd(a)
    k, v = s.size, vh[: s.size].conj().T
    s, c = np.pad(s, (0, len(a) - k)), u.conj().T @ b
    total = np.where(s**2 + ridge > 0, s**2 + ridge, 1)
    left, fit = np.where(s**2 + ridge > 0, ridge / total, 1), s / total
    a_bar = np.outer(u @ (left**2 * c), (v @ (fit * c)[:k]).conj())
    a_bar += np.outer(u @ (left * c), (v @ (left * fit * c)[:k]).conj())
    of_b = np.abs(c) ** 2
    by_ridge = 2 * np.sum(of_b * left * fit**2)
    twice = 2 * np.sum(of_b * fit**2 * (s**2 - 2 * ridge) / total**2)
    return np.sum(of_b * left**2), -2 * a_bar.conj(), by_ridge, twice


@WIRINGS
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("shape", [(9, 4), (4, 4), (4, 9)], ids=str)
def test_sum_of_squares_with_a_ridge(shape, dtype, forward_mode):
    """To the last digits for every ridge, however little of b is left, or of what cancels."""
    a, b = gaussian(shape, dtype), gaussian(shape[:1], dtype)
    ridges = np.array([0, 1e-14, 1e-6, 1e-4, 1, 1e3, 1e6, 1e9], "float32")

    def rss(a, ridge):
        return jaxqr.lstsq(a, b, ridge=ridge, full=True, forward_mode=forward_mode).rss

    def all_of_it(a, ridge):
        by_ridge = jax.grad(rss, argnums=1)
        return rss(a, ridge), jax.grad(rss)(a, ridge), *jax.value_and_grad(by_ridge, 1)(a, ridge)

    ours = map(np.asarray, jax.jit(jax.vmap(all_of_it, (None, 0)))(a, ridges))
    a, b = (x.astype(np.result_type(dtype, "float64")) for x in (a, b))
    for ridge, *found in zip(ridges, *ours, strict=True):
        for one, two in zip(found, sum_of_squares(a, b, float(ridge)), strict=True):
            if norm(two) > 1e-30:  # what is less may leave the range on its way
                assert norm(one - two) <= 1e-4 * norm(two)
            else:
                assert norm(one) <= 1e-29
        if ridge == 0:
            assert found[2] == 0
            assert shape[0] > shape[1] or found[0] == norm(found[1]) == 0


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("shape", [(9, 4), (4, 4), (4, 9)], ids=str)
def test_tangent_of_the_sum_of_squares(shape, dtype):
    """The gradient is not made of it, in neither wiring: it has to be its adjoint."""

    def rss(a, b, ridge):
        return jaxqr.lstsq(a, b, ridge=ridge, full=True, forward_mode=True).rss

    at = gaussian(shape, dtype), gaussian(shape[:1], dtype), np.float64(3)
    along = gaussian(shape, dtype, seed=1), gaussian(shape[:1], dtype, seed=2), np.float64(2)
    bars = jax.jit(jax.grad(rss, argnums=(0, 1, 2)))(*at)
    for i in range(3):  # each by itself, for they could make up for one another
        dots = [x if i == j else 0 * x for j, x in enumerate(along)]
        _, dot = jax.jit(lambda *xs: jax.jvp(rss, xs[:3], xs[3:]))(*at, *dots)
        expected = np.sum(np.asarray(bars[i]) * along[i]).real
        assert abs(dot - expected) <= 1e-12 * norm(bars[i]) * norm(along[i])


def times_two_to_the(exponent, x):
    """In double precision, where it is in range."""
    return np.ldexp(np.asarray(x, "float64"), exponent)


@WIRINGS
@pytest.mark.parametrize("shape", [(200, 4), (4, 4), (4, 9)], ids=str)
def test_sum_of_squares_of_small_numbers(shape, forward_mode):
    """Whose squares are out of range where their sum is not, and what depends on the ridge."""
    a, b = gaussian(shape, "float32"), gaussian(shape[:1], "float32")

    @jax.jit
    def all_of_it(a, b, ridge):
        def rss(b, ridge):
            return jaxqr.lstsq(a, b, ridge=ridge, full=True, forward_mode=forward_mode).rss

        along = jax.jvp if forward_mode else lambda *_: (0, 0)
        return rss(b, ridge), along(lambda b: rss(b, ridge), (b,), (b,))[1]

    def second(a, b, ridge):
        def rss(ridge):
            return jaxqr.lstsq(a, b, ridge=ridge, full=True, forward_mode=forward_mode).rss

        return jax.grad(jax.grad(rss))(ridge)

    exponent, one = (62, np.float32(0.01)) if shape[0] > 100 else (59, np.float32(8))
    s = np.float32(2.0**-exponent)
    for small, of_one in zip(all_of_it(a, s * b, one), all_of_it(a, b, one), strict=True):
        small, of_one = times_two_to_the(2 * exponent, small), times_two_to_the(0, of_one)
        assert_close(small, of_one, 1e-5)
    s, second = np.float32(2.0**-50), jax.jit(second)
    small, of_one = second(s * a, s * b, one * s * s), second(a, b, one)
    assert_close(times_two_to_the(-100, small), times_two_to_the(0, of_one), 1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_derivatives_by_the_ridge_where_products_are_out_of_range(shape):
    """Of 2^i A, 2^j b, 2^k times the cotangent and 2^l times dridge, whatever they are."""
    a, b = gaussian(shape, "float32"), gaussian(shape[:1], "float32")
    x_bar = gaussian(shape[1:], "float32")

    @functools.partial(jax.jit, static_argnames="forward_mode")
    def gradient(a, b, x_bar, ridge, forward_mode):
        solve = functools.partial(jaxqr.lstsq, a, b, forward_mode=forward_mode)
        return jax.grad(lambda ridge: x_bar @ solve(ridge=ridge))(ridge)

    @jax.jit
    def tangents(a, b, ridge, dot):
        def solve(ridge):
            return jaxqr.lstsq(a, b, ridge=ridge, forward_mode=True)

        series = jet.jet(solve, (ridge,), ([dot],), factorial_scaled=False)[1][0]
        return jax.jvp(solve, (ridge,), (dot,))[1], series

    for ridge, *sizes in (
        (0, -66, -100, 0, 0),
        (0.7, -50, -100, 50, -100),
        (0.7, 36, 100, -63, 72),
        (0.7, 36, 0, 0, 72),
    ):
        i, j, k, dot = sizes
        of_a, of_b, of_x, of_dot = np.exp2(np.float32(sizes))
        shift = np.float32(np.ldexp(ridge, 2 * i))
        one = np.float32(ridge), np.float32(1)
        for forward_mode in (False, True):
            ours = gradient(of_a * a, of_b * b, of_x * x_bar, shift, forward_mode)
            expected = gradient(a, b, x_bar, one[0], forward_mode)
            ours, expected = times_two_to_the(3 * i - j - k, ours), times_two_to_the(0, expected)
            assert_close(ours, expected, 1e-5)
        expected = tangents(a, b, *one)
        for x, y in zip(tangents(of_a * a, of_b * b, shift, of_dot), expected, strict=True):
            x, y = times_two_to_the(3 * i - j - dot, x), times_two_to_the(0, y)
            assert_close(x, y, 1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_derivatives_by_the_matrix_where_products_are_out_of_range(shape):
    """Of 2^i A, 2^j b, and 2^k times the cotangent or dA, whatever they are."""
    a, b = gaussian(shape, "float32"), gaussian(shape[:1], "float32")
    x_bar, da = gaussian(shape[1:], "float32"), gaussian(shape, "float32", seed=1)

    @functools.partial(jax.jit, static_argnames="forward_mode")
    def gradient(a, b, x_bar, forward_mode=False):
        return jax.vjp(lambda a: jaxqr.lstsq(a, b, forward_mode=forward_mode), a)[1](x_bar)[0]

    @jax.jit
    def tangent(a, b, da):
        return jax.jvp(lambda a: jaxqr.lstsq(a, b, forward_mode=True), (a,), (da,))[1]

    def check(function, last, sizes):
        i, j, k = sizes
        of_a, of_b, of_last = np.exp2(np.float32(sizes))
        ours = function(of_a * a, of_b * b, of_last * last)
        expected = times_two_to_the(0, function(a, b, last))
        assert_close(times_two_to_the(2 * i - j - k, ours), expected, 1e-5)

    for sizes in [(-40, -110, -75), (40, 75, 110), (75, 110, 110)]:
        check(gradient, x_bar, sizes)
        check(functools.partial(gradient, forward_mode=True), x_bar, sizes)
    for sizes in [(-40, -75, 110), (40, 110, -110), (75, 110, -75)]:
        check(tangent, da, sizes)


@WIRINGS
@pytest.mark.parametrize("shape", [(9, 4), (4, 4), (4, 9)], ids=str)
def test_sum_of_squares_beside_a_ridge_where_products_are_out_of_range(shape, forward_mode):
    """Of 2^i A, 2^j b, 4^i times the ridge and 2^k times the cotangent."""
    a, b, one = gaussian(shape, "float32"), gaussian(shape[:1], "float32"), np.float32(1)

    @jax.jit
    def gradients(a, b, ridge, bar):
        def rss(a, b, ridge):
            return jaxqr.lstsq(a, b, ridge=ridge, full=True, forward_mode=forward_mode).rss

        return jax.vjp(rss, a, b, ridge)[1](bar)

    @jax.jit
    def tangent(a, b, ridge, da):
        def rss(a):
            return jaxqr.lstsq(a, b, ridge=ridge, full=True, forward_mode=True).rss

        return jax.jvp(rss, (a,), (da,))[1]

    expected = gradients(a, b, one, one)
    for i, j, k in [(-60, 0, -75), (-40, -30, -75), (60, 20, 75)]:
        of_a, of_b, of_bar = np.exp2(np.float32([i, j, k]))
        of_one = gradients(of_a * a, of_b * b, of_a * of_a, of_bar)
        shifts = i - 2 * j - k, -j - k, 2 * i - 2 * j - k
        for ours, shift, right in zip(of_one, shifts, expected, strict=True):
            assert_close(times_two_to_the(shift, ours), times_two_to_the(0, right), 1e-5)
    if forward_mode:
        small, large = np.exp2(np.float32([-60, 60]))
        ours = tangent(small * a, small * b, small * small, large * a)
        assert_close(ours, tangent(a, b, one, a), 1e-5)


@WIRINGS
@pytest.mark.parametrize("shape", [(9, 4), (4, 4), (4, 9)], ids=str)
def test_sum_of_squares_without_a_ridge_at_the_ends_of_the_range(shape, forward_mode):
    """Where A A^H or its inverse is out of range, a ridge that is zero leaves zeros of zeros."""
    a, b = gaussian(shape, "float32"), gaussian(shape[:1], "float32")

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def run(a, ridge):
        return jaxqr.lstsq(a, b, ridge=ridge, full=True, forward_mode=forward_mode).rss

    expected, (a_bar, _) = run(a, jnp.float32(0))
    for s in np.array([2.0**-100, 2.0**100], "float32"):
        rss, (of_a, of_ridge) = run(s * a, jnp.float32(0))
        np.testing.assert_allclose(rss, expected, rtol=1e-5)
        assert norm(of_a * s - a_bar) <= 1e-5 * norm(a_bar)
        assert of_ridge == 0


def test_covariance_that_is_not_used_has_no_part_in_the_derivative():
    """The derivative of 1 / ridge is out of range before 1 / ridge is."""
    a, b = jnp.asarray(gaussian((2, 3), "float32")), jnp.asarray(gaussian((2,), "float32"))
    solve = functools.partial(jaxqr.lstsq, a, b, full=True)
    slope = jax.jit(jax.grad(lambda ridge: solve(ridge=ridge).x.sum()))

    @jax.jit
    @jax.grad
    def beside(ridge):
        out = solve(ridge=ridge)
        return out.x.sum() + jnp.sum(0 * out.covariance)

    for ridge in np.array([1e-37, 1e-30, 1e-20, 1], "float32"):
        np.testing.assert_allclose(beside(ridge), slope(ridge), rtol=1e-5)


@pytest.mark.parametrize("forward_mode", [False, True])
def test_next_to_no_residual(forward_mode):
    """The same system with a ridge that is zero, as only the values tell, or next to zero."""
    a = np.array([[0.04, 0.02], [900.0, 400.0]])
    b = np.array([0.06, 400.0])
    inverse = np.linalg.inv(a)
    expected = -np.outer(inverse.T @ np.ones(2), inverse @ b)

    def total(a, b, ridge):
        return jnp.sum(jaxqr.lstsq(a, b, ridge=ridge, forward_mode=forward_mode))

    ridges = jnp.asarray([0, 1e-14, 1e-12], "float32")
    grad = jax.jit(jax.vmap(jax.grad(total), (None, None, 0)))
    for ours in grad(jnp.asarray(a, "float32"), jnp.asarray(b, "float32"), ridges):
        np.testing.assert_allclose(ours, expected, rtol=0.1)


def test_full_row_rank_with_rcond():
    """Wide, with rcond: no residual, and nothing of it in A-bar."""
    a, b = matrix((3, 5), "float32", cond=1e3), gaussian((3,), "float32")
    x_bar = gaussian((5,), "float32")
    wide = program()(a.astype("float64"), b.astype("float64"), x_bar.astype("float64"))
    ours = program(rcond="auto")(a, b, x_bar)
    for y, z in zip(ours, wide, strict=True):
        assert norm(np.asarray(y) - np.asarray(z)) <= 1e-3 * norm(z)


# Ridges.


@FEW
def test_large_and_small_ridges(shape):
    """To a few eps of the formula by singular values, all in one batch; and infinite ones."""
    a, b = matrix(shape), gaussian(shape[:1])
    x_bar = gaussian(shape[1:])
    ridges = np.array([1e-20, 1e-3, 1.0, 1e6, 1e12, 1e20, 1e200])
    many_a, many_b, bars = (np.stack([y] * len(ridges)) for y in (a, b, x_bar))
    x, a_bar, _ = program()(many_a, many_b, bars, ridges)
    u, s, vh = np.linalg.svd(a, full_matrices=False)
    for i, ridge in enumerate(ridges):
        expected = vh.T @ (s / (s**2 + ridge) * (u.T @ b))
        w = u @ (s / (s**2 + ridge) * (vh @ x_bar))  # b-bar
        z = (x_bar - a.T @ w) / ridge if ridge > 1 else vh.T @ ((vh @ x_bar) / (s**2 + ridge))
        if ridge <= 1 and shape[0] < shape[1]:
            z = z + (x_bar - vh.T @ (vh @ x_bar)) / ridge
        bar = np.outer(b - a @ expected, z) - np.outer(w, expected)
        assert_close(x[i], jnp.asarray(expected), tolerance("float64", shape))
        if ridge > 1e-3:  # below, the formula itself subtracts
            assert_close(a_bar[i], jnp.asarray(bar), 10 * tolerance("float64", shape))


@WIRINGS
def test_infinite_ridge(forward_mode):
    """X and all of its derivatives are zero, beyond the type too; its neighbour is what it is."""
    a, b = (jnp.asarray(y) for y in (matrix((3, 5, 3), "float32"), gaussian((3, 5), "float32")))
    ridges = np.array([0.5, np.inf, 1e60])

    def loss(a, b, ridge):
        return jnp.sum(jaxqr.lstsq(a, b, ridge=ridge, forward_mode=forward_mode) ** 2 + 1)

    x = jaxqr.lstsq(a, b, ridge=ridges)
    bars = jax.grad(loss, argnums=(0, 1, 2))(a, b, jnp.asarray(ridges))
    alone = jax.grad(loss, argnums=(0, 1, 2))(a[:1], b[:1], jnp.asarray(ridges[:1]))
    assert_close(
        (x[:1], *(y[:1] for y in bars)), (jaxqr.lstsq(a[0], b[0], ridge=0.5)[None], *alone), 1e-6
    )
    for y in (x, *bars):
        np.testing.assert_array_equal(y[1:], 0)
    assert jaxqr.lstsq(a[0], b[0], ridge=10**400).tolist() == [0, 0, 0]


# Tall data, and what rcond keeps of it.


@pytest.mark.parametrize("options", [{"forward_mode": True}, {"rcond": "auto"}], ids=str)
def test_errors_do_not_grow_with_the_rows(options):
    a = gaussian((200_000, 4), "float32") + 1
    b = (a @ np.arange(1.0, 5) + 3).astype("float32")
    expected = np.linalg.lstsq(a.astype("float64"), b.astype("float64"), rcond=None)[0]
    x = np.asarray(jaxqr.lstsq(a, b, **options))
    assert norm(x - expected) <= 40 * np.finfo("float32").eps * norm(expected)


def test_auto_keeps_years_and_a_constant():
    years = np.repeat(np.arange(1950.0, 2000.0), 200)
    a = np.stack([np.ones_like(years), years], axis=1).astype("float32")
    b = (0.5 * years - 900).astype("float32")
    assert abs(float(jaxqr.lstsq(a, b, rcond="auto")[1]) - 0.5) < 1e-2
    twice = np.concatenate([a, a[:, 1:]], axis=1)[::200]
    assert jaxqr.lstsq(twice, b[::200], rcond="auto", full=True).rank == 2


@pytest.mark.parametrize("options", [{"rcond": 1e-10}, {}, {"ridge": 0.1}], ids=str)
def test_infinite_elements(options):
    """Wherever one is, not a number comes out."""
    for shape in ((5, 3), (3, 3), (3, 5)):
        many = np.broadcast_to(matrix(shape), (*shape, *shape)).copy()
        for at in np.ndindex(shape):
            many[(*at, *at)] = np.inf
        b = np.broadcast_to(gaussian(shape[:1]), (*shape, shape[0]))
        assert np.all(np.isnan(jaxqr.lstsq(many, b, **options)))


def test_check_rank():
    """A matrix whose dependence rounding hides: finite, meaningless, and named."""
    a = jnp.asarray([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    checked = checkify.checkify(jax.jit(functools.partial(jaxqr.lstsq, check_rank=True)))
    error, _ = checked(a, jnp.ones(3))
    with pytest.raises(Exception, match=r"lstsq expects a to have full rank.*column 2.*rcond"):
        error.throw()
    error, _ = checked(1e-30 * a.at[2, 2].set(0.0), jnp.ones(3))
    error.throw()
    error, _ = checked(jnp.stack([jnp.eye(3)[:2], a[:2].at[1].set(2 * a[0])]), jnp.ones((2, 2)))
    with pytest.raises(Exception, match="row 1 of matrix 1"):
        error.throw()
    with pytest.raises(ValueError, match="rcond or check_rank but not both"):
        jaxqr.lstsq(a, jnp.ones(3), rcond="auto", check_rank=True)
    with pytest.raises(ValueError, match="rcond to be one of 'auto'"):
        jaxqr.lstsq(a, jnp.ones(3), rcond="eps")


# What else comes out of it.


@pytest.mark.parametrize(
    ("shape", "kind", "dtype"),
    covering(SHAPES, ["full", "deficient", "ridge"], ["complex128", "float64"]),
)
def test_full(shape, kind, dtype):
    """Against the pseudoinverse; derivatives against those of the formula."""
    a, b = jnp.asarray(matrix(shape, dtype)), jnp.asarray(gaussian((shape[0], 2), dtype))
    options = {"full": {}, "deficient": {"rcond": 1e-9}, "ridge": {"ridge": 0.3}}[kind]
    if kind == "deficient":
        a = a @ (a[:2].conj().T @ a[:2])
    tol = tolerance(dtype, shape, cond=100, c=64)

    def by_formula(a, b):
        h = a.conj().T
        covariance = jnp.linalg.pinv(h @ a, rtol=1e-9, hermitian=True)
        if kind == "ridge":
            covariance = jnp.linalg.inv(h @ a + 0.3 * jnp.eye(shape[1], dtype=dtype))
        return jnp.sum(jnp.abs(b - a @ (covariance @ (h @ b))) ** 2, axis=0), covariance

    def ours(a, b):
        out = jaxqr.lstsq(a, b, **options, full=True)
        return out.rss, out.covariance

    def loss(f, a, b):
        rss, covariance = f(a, b)
        return jnp.sum(rss**2) + jnp.sum(jnp.abs(covariance) ** 2)

    out = jaxqr.lstsq(a, b, **options, full=True)
    assert_close(out.x, jaxqr.lstsq(a, b, **options), tol)
    full_rank = shape[1] if kind == "ridge" and shape[0] >= shape[1] else min(shape)
    assert out.rank == (2 if kind == "deficient" else full_rank)
    rss, covariance = by_formula(a, b)
    assert norm(out.rss - rss) <= tol * norm(b) ** 2
    assert_close(out.covariance, covariance, tol)
    if kind == "full" and shape[0] <= shape[1]:
        np.testing.assert_array_equal(out.rss, 0)
    if kind == "deficient" or (kind == "full" and shape[0] < shape[1]):
        return  # the pseudoinverse of A^H A has no derivative off the manifold
    bars = [
        jax.jit(jax.grad(functools.partial(loss, f), argnums=(0, 1)))(a, b)
        for f in (ours, by_formula)
    ]
    for x, y in zip(*bars, strict=True):
        assert norm(x - y) <= tol * max(norm(y), 1)


def test_full_of_batches_vectors_and_nothing():
    a, b = jnp.asarray(matrix((3, 5, 2), "float16")), jnp.asarray(gaussian((3, 5), "complex64"))
    out = jaxqr.lstsq(a, b, full=True)
    shapes = [y.shape for y in out]
    assert shapes == [(3, 2), (3,), (3,), (3, 2, 2)]
    assert [y.dtype for y in out] == ["complex64", "float32", "int32", "float32"]
    expected = b[..., None] - a.astype("complex64") @ out.x[..., None]
    np.testing.assert_allclose(out.rss, np.sum(np.abs(expected) ** 2, (-2, -1)), rtol=1e-5)
    shared = jaxqr.lstsq(a[0], jnp.ones((4, 5, 3)), full=True)
    assert [y.shape for y in shared] == [(4, 2, 3), (4, 3), (4,), (4, 2, 2)]
    nothing = jaxqr.lstsq(jnp.ones((3, 0)), jnp.ones(3), full=True)
    assert (nothing.rss, nothing.rank, nothing.covariance.shape) == (3, 0, (0, 0))


@pytest.mark.parametrize("options", [{}, {"ridge": 0.5}, {"rcond": "auto"}], ids=str)
@pytest.mark.parametrize("shape", [(5, 3), (3, 5)], ids=str)
def test_what_is_of_a_alone_needs_no_right_hand_side(shape, options):
    a = jnp.asarray(matrix(shape))
    none, one = (jaxqr.lstsq(a, jnp.zeros((shape[0], n)), full=True, **options) for n in (0, 1))
    assert (none.x.shape, none.rss.shape) == ((shape[1], 0), (0,))
    assert none.rank == one.rank == 3
    assert_close(none.covariance, one.covariance, 0)
    if not options:
        solve = functools.partial(jaxqr.lstsq, check_rank=True)
        error, x = checkify.checkify(solve)(jnp.ones(shape), jnp.zeros((shape[0], 0)))
        assert "Rank is lost" in error.get()
        assert x.shape == (shape[1], 0)


def test_what_is_not_asked_for_costs_nothing():
    a, b = jnp.asarray(matrix((60, 8))), jnp.asarray(gaussian((60,)))

    def flops(f):
        return jax.jit(f).lower(a, b).compile().cost_analysis()["flops"]

    x = flops(lambda a, b: jaxqr.lstsq(a, b))
    assert flops(lambda a, b: jaxqr.lstsq(a, b, full=True).x) == x
    assert flops(lambda a, b: jaxqr.lstsq(a, b, full=True)) > x


# Many right-hand sides by vmap.


@pytest.mark.parametrize(
    "options", [{}, {"ridge": 0.1}, {"rcond": "auto"}, {"forward_mode": True}], ids=str
)
def test_vmap_over_b_shares_a(options):
    """The value and the gradient, in memory too: no A, factor or cotangent of A for each b."""
    a, b = jnp.asarray(matrix((100, 40))), jnp.asarray(gaussian((300, 100)))

    def by_vmap(a, b):
        return jax.vmap(lambda b: jaxqr.lstsq(a, b, **options))(b)

    def by_matrix(a, b):
        return jaxqr.lstsq(a, b.T, **options).T

    def loss(f, a, b):
        return jnp.sum(f(a, b) ** 2)

    tol = tolerance("float64", a.shape, c=64)
    for f, g in (
        (by_vmap, by_matrix),
        *[[jax.grad(functools.partial(loss, h), argnums=(0, 1)) for h in (by_vmap, by_matrix)]],
    ):
        program = jax.jit(f).lower(a, b).compile()
        assert_close(program(a, b), g(a, b), tol)
        assert program.memory_analysis().temp_size_in_bytes < 8 * a.nbytes + 8 * b.nbytes
        assert "[300,100,40]" not in program.as_text()  # nor in a loop that adds them up


def test_vmap_over_b_of_all_that_comes_out():
    """Twice, along another axis than the first, complex beside a real A, with what b has not."""
    a, b = jnp.asarray(matrix((6, 3))), jnp.asarray(gaussian((6, 4, 2, 5), "complex128"))

    def solve(a, b):
        x, rss, rank, covariance = jaxqr.lstsq(a, b, full=True)
        return x, rss, rank.astype(rss.dtype), covariance

    def by_vmap(a, b):
        return jax.vmap(jax.vmap(solve, (None, 1)), (None, -1), -1)(a, b)

    def one_by_one(a, b):
        found = [[solve(a, b[:, i, :, j]) for i in range(4)] for j in range(5)]
        rows = [jax.tree.map(lambda *xs: jnp.stack(xs), *row) for row in found]
        return jax.tree.map(lambda *xs: jnp.stack(xs, -1), *rows)

    def loss(f, a, b):
        x, rss, _, covariance = f(a, b)
        return jnp.sum(jnp.abs(x) ** 3) + jnp.sum(rss**2) + jnp.sum(jnp.sin(covariance))

    def both(f):
        value, gradient = f(a, b), jax.grad(functools.partial(loss, f), (0, 1))(a, b)
        return *value, *gradient

    tol = tolerance("float64", a.shape, c=64)
    for x, y in zip(
        *(jax.jit(both, static_argnums=0)(f) for f in (by_vmap, one_by_one)), strict=True
    ):
        assert_close(x, y, tol)
