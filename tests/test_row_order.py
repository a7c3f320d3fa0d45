"""Rows of different units, and columns of wide matrices: large rows first, so that no digits go."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import assert_close, gaussian, tolerance

import jaxqr
from jaxqr._forward import least_squares
from jaxqr._linalg import row_order

# Of rows, the smallest first, as pivots should not be.
SPREAD = 10.0 ** np.array([-2.5, -2.5, 0.0, 2.5, -2.5, -2.5])


def graded(shape, seed=0, batch=()):
    """Of rows of square matrices, or of the columns of wide ones, each in a unit of its own."""
    rows, columns = shape
    a = gaussian((*batch, *shape), "float32", seed)
    units = SPREAD[:columns].astype("float32")
    return jnp.asarray(a * units if rows < columns else a * units[:, None])


def by_products(a, b, ridge):
    """x and ||b - A x||^2; in float64, as the condition is squared."""

    def of_one(a, b):
        y = jnp.linalg.solve(a @ a.T + ridge * jnp.eye(len(a), dtype=a.dtype), b)
        return a.T @ y, jnp.sum((ridge * y) ** 2)

    return (jax.vmap(of_one) if a.ndim > 2 else of_one)(a, b)


def measured(f, a, b):
    """What F returns, and the gradients of a loss of it; of rows and columns in their units."""

    def loss(a, b):
        x, rss = f(a, b)
        return jnp.vdot(gaussian(x.shape[-1:], x.dtype, 3), x.sum(range(x.ndim - 1))) + rss.sum(), (
            x,
            rss,
        )

    bars, out = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(a, b)
    return *out, *bars


KINDS = {
    "square": ((5, 5), {}),
    "square, ridge": ((4, 4), {"ridge": 1e-3, "full": True}),
    "wide": ((3, 5), {}),
    "wide, ridge": ((3, 6), {"ridge": 1e-3, "full": True}),
}


@pytest.mark.parametrize(
    ("forward_mode", "batch"), [(False, ()), (True, ()), (False, (64,))], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_units_cost_no_digits(kind, forward_mode, batch):
    """In a batch, of one matrix; the others are as they would be without it."""
    shape, options = KINDS[kind]
    a, b = graded(shape), jnp.asarray(gaussian(shape[:1], "float32", 1))
    if batch:
        others = jnp.asarray(gaussian((*batch, *shape), "float32", 2))
        a, b = others.at[7].set(a), jnp.broadcast_to(b, (*batch, *b.shape))

    def solve(a, b):
        out = jaxqr.lstsq(a, b, forward_mode=forward_mode, **options)
        return (out.x, out.rss) if options else (out, jnp.zeros(batch, out.dtype))

    def exact(a, b):
        return by_products(a, b, options.get("ridge", 0.0))

    ours = measured(solve, a, b)
    theirs = measured(exact, *(x.astype("float64") for x in (a, b)))
    of_one = [tuple(x[7] if batch else x for x in xs) for xs in (ours, theirs)]
    for x, y in zip(*of_one, strict=True):
        assert_close(x, y.astype("float32"), tolerance("float32", shape, cond=1.0, c=64))
    if batch:
        alone = measured(solve, a.at[7].set(others[7]), b)
        for x, y in zip(ours, alone, strict=True):
            np.testing.assert_array_equal(np.delete(x, 7, 0), np.delete(y, 7, 0))


@pytest.mark.parametrize("shape", [(5, 5), (3, 6)], ids=str)
def test_products_by_reflectors(shape, monkeypatch):
    """Of large matrices; vmap over both, and over b alone."""
    monkeypatch.setattr(least_squares, "_LEAST_FOR_REFLECTORS", 1)
    monkeypatch.setattr(least_squares, "_DEEP", 100)
    jax.clear_caches()
    a, b = graded(shape, batch=(2,)), jnp.asarray(gaussian((2, shape[0]), "float32", 1))
    exact, _ = by_products(*(x.astype("float64") for x in (a, b)), 0.0)
    tol = tolerance("float32", shape, cond=1.0, c=64)
    for x in (jaxqr.lstsq(a, b), jax.vmap(jaxqr.lstsq)(a, b)):
        for i in range(2):
            assert_close(x[i], exact[i].astype("float32"), tol)
    over_b = jax.vmap(functools.partial(jaxqr.lstsq, a[1]))(b)
    assert_close(over_b[1], exact[1].astype("float32"), tol)
    jax.clear_caches()


def test_a_column_of_zeros_has_no_part_in_the_shortest_solution():
    a = graded((3, 5)).at[:, 1].set(0)
    for ridge in (0.0, 1e-10):
        assert jaxqr.lstsq(a, jnp.ones(3, "float32"), ridge=ridge)[1] == 0


def test_order():
    a = jnp.asarray(gaussian((4, 3), "float32"))
    in_order = np.arange(4)[:, None]
    np.testing.assert_array_equal(row_order.largest_first(a), in_order)
    np.testing.assert_array_equal(row_order.largest_first(a.at[0, 0].set(jnp.nan)), in_order)
    # A small row that is no pivot does no harm.
    np.testing.assert_array_equal(row_order.largest_first(a.at[3].divide(1e6)), in_order)
    first = a.at[0].divide(1e6).at[1].divide(1e3)
    order = row_order.largest_first(first)
    assert set(order[:2, 0].tolist()) == {2, 3}
    assert order[2:, 0].tolist() == [1, 0]
    for axis, x in ((-2, first), (0, jnp.stack([first, first], -1))):
        rows = order if axis else jnp.stack([order, order], -1)
        back = row_order.put_back(row_order.take(x, rows, axis), rows, axis)
        np.testing.assert_array_equal(back, x)
