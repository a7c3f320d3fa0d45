"""Shortest solutions of wide systems, by the reflectors of Q where few products with it follow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import assert_close, gaussian, matrix, random_like, tolerance

import jaxqr
from jaxqr._forward import least_squares


@pytest.fixture
def by_reflectors(monkeypatch):
    """For small matrices, too."""
    monkeypatch.setattr(least_squares, "_LEAST_FOR_REFLECTORS", 1)
    monkeypatch.setattr(least_squares, "_DEEP", 100)
    jax.clear_caches()
    yield
    jax.clear_caches()


def derivatives(a, b, x_bar, **options):
    """x, A-bar and b-bar, and the derivative of these two along A and b."""

    def first(a, b):
        x, pullback = jax.vjp(functools.partial(jaxqr.lstsq, **options), a, b)
        return x, pullback(x_bar)

    def second(a, b):
        bars, pullback = jax.vjp(lambda a, b: first(a, b)[1], a, b)
        return pullback(random_like(bars, seed=5))

    return *jax.jit(first)(a, b), jax.jit(second)(a, b)


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("columns", [(), (2,)], ids=str)
def test_derivatives_are_those_by_q(columns, dtype, by_reflectors):
    a, b, x_bar = (
        matrix((6, 10), dtype),
        gaussian((6, *columns), dtype),
        gaussian((10, *columns), dtype),
    )
    given = tuple(map(jnp.asarray, (a, b, x_bar)))
    ours, theirs = derivatives(*given), derivatives(*given, forward_mode=True)
    tol = tolerance(dtype, a.shape, 100.0)
    assert_close(ours, theirs, 100 * tol)
    x, (_, b_bar), _ = ours
    assert_close(x, np.linalg.pinv(a) @ b, tol)
    assert_close(b_bar, np.linalg.pinv(a).mT @ x_bar, 10 * tol)


@pytest.mark.parametrize("exponent", [-100, 100])
def test_every_scale(exponent, by_reflectors):
    a, b, x_bar = (jnp.asarray(gaussian(s, "float32")) for s in ((6, 10), (6,), (10,)))
    s = 2.0**exponent
    x, (a_bar, b_bar), _ = derivatives(a, b, x_bar)
    scaled, (a_bar_of, b_bar_of), _ = derivatives(a * s, b * s, x_bar)
    assert_close((scaled, s * a_bar_of, s * b_bar_of), (x, a_bar, b_bar), 0.0)


@pytest.mark.parametrize("options", [{}, {"forward_mode": True}, {"rcond": 1e-6}], ids=str)
@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5)], ids=str)
def test_a_near_the_largest_number(shape, options):
    """The solution is small, and what it is made of smaller: no digit of what is not is lost."""
    m, n = shape
    a = np.asarray(matrix(shape, "float32", 1e3))
    b, x_bar = gaussian((m,), "float32"), jnp.asarray(gaussian((n,), "float32"))
    s = 2.0**105

    @jax.jit
    def both(a, b, x_bar):
        x, pullback = jax.vjp(lambda b: jaxqr.lstsq(a, b, **options), b)
        return x, *pullback(x_bar)

    x, b_bar = both(a, b, x_bar)
    (small, _), (_, bar_of_small) = both(a * s, b / 2**20, x_bar), both(a * s, b, x_bar / 2**20)
    assert_close((small * s * 2**20, bar_of_small * s * 2**20), (x, b_bar), 1e-6)


def test_what_the_rows_span_leaves_nothing(by_reflectors):
    """A-bar is -xi x^H and what x-bar has outside the rows of A."""
    a = jnp.asarray(np.eye(4, 7))
    x_bar = jnp.asarray(np.r_[gaussian((4,)), np.zeros(3)])
    _, (a_bar, _), _ = derivatives(a, jnp.asarray(gaussian((4,))), x_bar)
    assert not np.asarray(a_bar)[:, 4:].any()


def test_batches_right_hand_sides_and_what_else_is_asked_for(by_reflectors):
    a, b = jnp.asarray(matrix((3, 4, 9))), jnp.asarray(gaussian((3, 4)))
    tol = tolerance("float64", a.shape[1:], 100.0)
    assert_close(jaxqr.lstsq(a, b)[..., None], np.linalg.pinv(a) @ b[..., None], tol)
    over_b = jax.vmap(functools.partial(jaxqr.lstsq, a[0]))(b)
    assert_close(over_b, b @ np.linalg.pinv(a[0]).mT, tol)
    found = jaxqr.lstsq(a[0], b[0], full=True)
    assert_close(found.covariance, np.linalg.pinv(a[0].mT @ a[0]), 100 * tol)
    assert found.rank == 4


def calls(shape, **options):
    a, b = (jax.ShapeDtypeStruct(s, "float64") for s in (shape, shape[:1]))
    solve = functools.partial(jaxqr.lstsq, **options)

    def run(a, b):
        x, pullback = jax.vjp(solve, a, b)
        return pullback(x)

    text = jax.jit(run).trace(a, b).lower(lowering_platforms=("cpu",)).as_text()
    return {name for name in ("dgeqrf", "dorgqr", "dormqr", "dpotrf") if name in text}


def test_where_reflectors_are_faster():
    for shape in [(200, 300), (500, 600), (300, 2000)]:
        assert calls(shape) == {"dgeqrf", "dormqr"}
    assert "dormqr" not in calls((200, 1000))  # deep and narrow: by CholeskyQR2
    assert "dormqr" not in calls((200, 300), forward_mode=True)
    assert "dormqr" not in calls((200, 300), ridge=0.1)
