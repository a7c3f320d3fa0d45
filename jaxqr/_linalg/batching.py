"""Batches: seeing them through vmap, and many small matrices with the batch axis innermost.

A loop over the batch inside LAPACK, or inside a batched product, spends its time on calls. With the
batch axis innermost, what is done to one number of one matrix is done to the same number of all of
them by vector instructions; and as it is elementwise along the batch, a sharded batch stays where
it is.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxqr._linalg.crossovers import Crossovers
from jaxqr._linalg.layouts import by_rows
from jaxqr._linalg.tuning import by_platform


def are_known(*sizes: Any) -> bool:
    """Whether these are numbers: in ``jax.export`` some are symbols, which no crossover knows."""
    return all(isinstance(d, int) for d in sizes)


def smaller(m: Any, n: Any) -> Any:
    """min(m, n), which Python finds of numbers alone; of symbols it may be one of them."""
    return jax.core.min_dim(m, n)


def at_most(m: Any, n: Any) -> bool:
    """Whether m <= n; of symbols, whether that is known."""
    return bool(smaller(m, n) == m)


def is_wide(m: Any, n: Any) -> bool:
    """Whether m < n, or of symbols m <= n, where that is all that is known of them."""
    k = smaller(m, n)
    if k == n:
        return False
    return bool(k == m or m < n)  # of which JAX says what it lacks


def are_many_small(c: Crossovers, *arrays: Any, most_columns: float | None = None) -> bool:
    """Whether these arrays (..., rows, columns) are many small matrices, as far as is known.

    The smaller of rows and columns is at most ``most_columns``, by default what derivatives have.
    """
    most = c.most_unrolled_in_rules if most_columns is None else most_columns
    return all(
        are_known(*x.shape)
        and math.prod(x.shape[:-2]) >= c.least_batch
        and max(x.shape[-2:]) <= c.most_rows
        and math.prod(x.shape[-2:]) * (2 if jnp.iscomplexobj(x) else 1) <= c.most_elements
        and 0 < min(x.shape[-2:]) <= most
        for x in jax.tree.leaves(arrays)
    )


def innermost(x: Array) -> Array:
    """(..., rows, columns) as (rows, columns, batch), in memory too."""
    rows, columns = x.shape[-2:]
    return by_rows(x.reshape(-1, rows * columns).T).reshape(rows, columns, -1)


def outermost(x: Array, batch: tuple[int, ...]) -> Array:
    """(rows, columns, batch) as (..., rows, columns)."""
    rows, columns = x.shape[:2]
    return x.reshape(rows * columns, -1).T.reshape(*batch, rows, columns)


def batch_aware(
    f: Callable[..., Any], in_derivatives: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """F, which maps over leading axes by itself, told by them of the batch that vmap adds.

    Where vmap maps the first array, ``f`` gets the new axis as a leading one of all, and can choose
    its algorithm by the size of the batch; elsewhere vmap maps ``f`` as usual. Derivatives are
    those of ``f`` as written, or of ``in_derivatives``, which is the same function:
    ``jax.custom_batching.custom_vmap`` has none of its own in reverse.
    """

    def rule(axis_size: int, in_batched: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        if not jax.tree.leaves(in_batched)[0]:
            return _as_usual(f, axis_size, in_batched, *args)
        first = jax.tree.leaves(args)[0]

        def with_axis(x: Array, batched: bool) -> Array:
            return x if batched else jax.vmap(lambda _, x: x, (0, None))(first, x)

        out = aware(*jax.tree.map(with_axis, args, in_batched))
        return out, jax.tree.map(lambda _: True, out)

    aware = _with_vmap_rule(f, rule, in_derivatives)
    return aware


def over_columns(f: Callable[..., Any], *, shared: bool = False) -> Callable[..., Any]:
    """F, of factors and at last x (..., rows, columns), whose columns it takes one by one.

    Where vmap maps x alone, ``f`` gets one x with more columns, and the factors are shared. What
    ``f`` returns has the columns of x; with ``shared``, what comes first has nothing of x.
    """

    def rule(axis_size: int, in_batched: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        *factors, x = args
        if any(jax.tree.leaves(in_batched[:-1])):
            return _as_usual(f, axis_size, in_batched, *args)
        columns = jnp.moveaxis(x, 0, -2)

        def apart(y: Array) -> Array:
            return jnp.moveaxis(y.reshape(*y.shape[:-1], *columns.shape[-2:]), -2, 0)

        out = aware(*factors, columns.reshape(*x.shape[1:-1], axis_size * x.shape[-1]))
        if not shared:
            return apart(out), True
        return (out[0], apart(out[1])), (jax.tree.map(lambda _: False, out[0]), True)

    aware = _with_vmap_rule(f, rule)
    return aware


def _as_usual(f: Any, axis_size: int, in_batched: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    axes = jax.tree.map(lambda batched: 0 if batched else None, in_batched)
    out = jax.vmap(f, in_axes=axes, axis_size=axis_size)(*args)
    return out, jax.tree.map(lambda _: True, out)


def _with_vmap_rule(
    f: Callable[..., Any],
    rule: Callable[..., Any],
    in_derivatives: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """F, which vmap maps by a rule: it returns the outputs, and which have the axis, in front."""
    differentiated = f if in_derivatives is None else in_derivatives

    @jax.custom_batching.custom_vmap
    def mapped(*args: Any) -> Any:
        return f(*args)

    @mapped.def_vmap
    def vmap_rule(axis_size: int, in_batched: Any, *args: Any) -> tuple[Any, Any]:
        out, has_axis = rule(axis_size, tuple(in_batched), *args)
        return out, has_axis

    @jax.custom_jvp
    def wrapped(*args: Any) -> Any:
        return mapped(*args)

    @wrapped.defjvp
    def jvp(primals: Any, tangents: Any) -> Any:
        return jax.tree.map(_batch_leading, jax.jvp(differentiated, primals, tangents))

    return wrapped


def _batch_leading(x: Array) -> Array:
    """X, with a batch axis that vmap adds in front, where ``mapped`` has it.

    JAX takes it for granted that a custom_jvp function and its rule have it in the same place.
    Reshaping is what puts it there.
    """
    return lax.squeeze(lax.reshape(x, (1, *x.shape)), (0,))


def over_leading_axes(f: Callable[..., Any]) -> Callable[..., Any]:
    """F, of matrices (rows, columns), mapped over leading axes that all arguments share."""

    def mapped(*args: Any) -> Any:
        over = f
        for _ in jax.tree.leaves(args)[0].shape[:-2]:
            over = jax.vmap(over)
        return over(*args)

    return mapped


def with_batch_of(a: Array, x: Array) -> Array:
    """X (..., rows, columns) with all batch axes of A, and sharded as A is."""
    zeros: Array = over_leading_axes(lambda _: jnp.zeros(x.shape[-2:], x.dtype))(a)
    return zeros + jnp.broadcast_to(x, zeros.shape)


def over_matrices(f: Callable[..., Any]) -> Callable[..., Any]:
    """F likewise, but many small ones it gets as (rows, columns, batch).

    See :mod:`jaxqr._linalg.algebra`.
    """
    one_by_one = over_leading_axes(f)

    def together(*args: Any) -> Any:
        batch = jax.tree.leaves(args)[0].shape[:-2]
        out = f(*jax.tree.map(innermost, args))
        return jax.tree.map(lambda x: outermost(x, batch), out)

    def by_batch(*args: Any) -> Any:
        return by_platform(
            lambda c: together if are_many_small(c, *args) else one_by_one, one_by_one, *args
        )

    return batch_aware(by_batch)
