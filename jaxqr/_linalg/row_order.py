"""Rows in order of their size, the largest first.

Elimination by reflectors is accurate row by row if large rows come first: a small one that is the
pivot of larger ones takes on their rounding (M. J. D. Powell and J. K. Reid, "On applying
Householder transformations to linear least squares problems", 1968; A. J. Cox and N. J. Higham,
"Stability of Householder QR factorization for weighted least squares problems", 1998). So rows of
different units, or of the adjoint of a matrix whose columns are, do not cost digits.

An order is (..., m, 1), of integers. Where none is needed it is 0, 1, ..., and nothing is moved.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxqr._linalg.batching import batch_aware, over_leading_axes, smaller
from jaxqr._linalg.layouts import laid_out
from jaxqr._linalg.scaling import SPREAD, largest_of_columns


def largest_first(a: Array) -> Array:
    """The order of the rows of a (..., m, n), by size where one of the pivots is small."""

    def order(a: Array) -> Array:
        sizes = largest_of_columns(a.mT).mT  # as of wide A, which a is the adjoint of
        pivots = sizes[..., : smaller(*a.shape[-2:]), :]
        largest = jnp.max(sizes, axis=-2, keepdims=True, initial=0)
        needed = jnp.any(SPREAD * pivots < largest, axis=-2, keepdims=True)

        def by_size(sizes: Array) -> Array:
            sorted_rows = jnp.argsort(-sizes, axis=-2).astype(jnp.int32)
            return jnp.where(needed, sorted_rows, _as_they_are(sizes))

        rows: Array = lax.cond(jnp.any(needed), by_size, _as_they_are, sizes)
        return rows

    rows: Array = batch_aware(order)(a)
    return rows


def _as_they_are(x: Array) -> Array:
    """0, 1, ... (..., m, 1), by vmap over x: sharded as the batch is, and varying as x does."""

    def of_one(x: Array) -> Array:
        return jnp.arange(x.shape[0], dtype=jnp.int32)[:, None] * _one(x, jnp.int32)

    rows: Array = over_leading_axes(of_one)(x)
    return rows


def take(x: Array, rows: Array, axis: int = -2) -> Array:
    """The rows of x in this order; they are on the axis, as those of the order are."""

    def moved(x: Array, rows: Array) -> Array:
        return _single_by_rows(jnp.take_along_axis(x, rows, axis))

    return _unless_in_order(moved, x, rows, axis)


def put_back(x: Array, rows: Array, axis: int = -2) -> Array:
    """X, of which the rows were taken in this order."""

    def moved(x: Array, rows: Array) -> Array:
        return jnp.take_along_axis(x, jnp.argsort(rows, axis=axis), axis)

    return _unless_in_order(moved, x, rows, axis)


def _unless_in_order(
    moved: Callable[[Array, Array], Array], x: Array, rows: Array, axis: int
) -> Array:
    def as_it_is(x: Array, rows: Array) -> Array:
        return _single_by_rows(x * _one(rows, x.dtype))

    in_order = lax.broadcasted_iota(rows.dtype, rows.shape, axis % rows.ndim)
    out: Array = lax.cond(jnp.any(rows != in_order), moved, as_it_is, x, rows)
    return out


def _single_by_rows(x: Array) -> Array:
    """A single matrix as it lies in memory: for a gather XLA would transpose it, and back."""
    return laid_out(x)[0] if x.ndim == 2 else x


def _one(like: Array, dtype: DTypeLike) -> Array:
    """1, which under ``shard_map`` varies over the axes that ``like`` does; XLA leaves it out."""
    return jnp.ones_like(like, dtype=dtype, shape=())
