"""Batches: seeing them through vmap, and many small matrices with the batch axis innermost.

A loop over the batch inside LAPACK, or inside a batched product, spends its time on calls. With the
batch axis innermost, what is done to one number of one matrix is done to the same number of all of
them by vector instructions; and as it is elementwise along the batch, a sharded batch stays where
it is.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxqr._linalg.crossovers import Crossovers
from jaxqr._linalg.layouts import by_rows, laid_out, materialized
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


def suits(c: Crossovers, *arrays: Any, most_columns: float | None = None) -> bool:
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
        return by_platform(lambda c: together if suits(c, *args) else one_by_one, one_by_one, *args)

    return batch_aware(by_batch)


def unless_any(
    needed: Callable[..., Array], usual: Callable[..., Any], careful: Callable[..., Any]
) -> Callable[..., Any]:
    """USUAL, of arrays (..., rows, columns), and ``careful`` for each matrix that needs it.

    ``needed`` tells of each matrix whether it does, (...,). The usual way is taken whatever is
    needed: within a branch, XLA's loops for CPUs have one thread.
    """

    def apart(*args: Any, **how: Any) -> Any:
        kept = jax.tree.map(lambda x: laid_out(x)[0], args)
        wanted = needed(*kept)[..., None, None]
        if _elements(kept) >= _LARGE:
            # Side by side, what is needed for this and for the usual way are both in memory.
            kept, wanted = materialized((kept, wanted))
        return _corrected(careful, usual(*kept), wanted, kept, axis=0, **how)

    def together(*args: Any, **how: Any) -> Any:
        # What is kept has the batch axis innermost, as the usual way has it anyway.
        batch = jax.tree.leaves(args)[0].shape[:-2]
        kept = jax.tree.map(innermost, args)
        shown = jax.tree.map(lambda x: outermost(x, batch), kept)
        out = jax.tree.map(innermost, usual(*shown))
        wanted = needed(*shown).reshape(1, 1, -1)
        out = _corrected(careful, out, wanted, kept, axis=2, **how)
        return jax.tree.map(lambda x: outermost(x, batch), out)

    def by_batch(*args: Any, in_place: bool) -> Any:
        @functools.cache  # JAX tells alike ways of several platforms by identity
        def by(f: Callable[..., Any], least: float) -> Callable[..., Any]:
            return functools.partial(f, in_place=in_place, least=least)

        def way(c: Crossovers) -> Callable[..., Any]:
            batch = jax.tree.leaves(args)[0].shape[:-2]
            if not are_known(*batch) or math.prod(batch) < c.least_batch:
                return by(apart, 2)
            return by(together if suits(c, *args) else apart, c.least_batch)

        return by_platform(way, by(apart, 2), *args)

    return batch_aware(
        functools.partial(by_batch, in_place=True),
        in_derivatives=functools.partial(by_batch, in_place=False),
    )


_LARGE = 2**20  # elements
_AT_ONCE = 2**17  # elements: a megabyte in float64; more are corrected ...
_PIECES = 10  # ... in so many pieces or more, each of which has the room


def _corrected(
    f: Callable[..., Any],
    out: Any,
    wanted: Array,
    args: Any,
    *,
    axis: int,
    in_place: bool,
    least: float,
) -> Any:
    """OUT, but F of args where it is wanted; of a part of the batch at a time, for less memory.

    Arrays are (rows, columns, batch) where the axis of the batch is 2, else (..., rows, columns).
    ``in_place`` needs no room for another OUT, and has no derivative in reverse.

    What a branch that is not taken would take is asked for all the same, with what the program
    takes otherwise, and from a size on (32 MB in Linux) memory is had anew in every call.
    """
    leaves = jax.tree.leaves(args)
    batch = leaves[0].shape[:-2] if axis == 0 else leaves[0].shape[axis:]
    pieces, is_needed = _pieces(batch, leaves, least), jnp.any(wanted)

    def mixed(out: Any, wanted: Array, args: Any) -> Any:
        new = f(*jax.tree.map(lambda x: jnp.moveaxis(x, axis, 0), args))
        back = jax.tree.map(lambda x: jnp.moveaxis(x, 0, axis), new)
        return jax.tree.map(functools.partial(jnp.where, wanted), back, out)

    # Every so many-th matrix: each piece of a sharded batch is sharded as the batch is.
    def in_pieces(x: Array) -> Array:
        return x.reshape(*x.shape[:axis], -1, pieces, *x.shape[axis + len(batch) :])

    def by_pieces(times: Array | int, *given: Any) -> Any:
        apart, *others = jax.tree.map(in_pieces, given)

        def piece_of(x: Array, i: Array) -> Array:
            piece: Array = lax.dynamic_index_in_dim(x, i, axis + 1, False)
            return piece

        def correct(i: Array, apart: Any) -> Any:
            new = mixed(*jax.tree.map(lambda x: piece_of(x, i), (apart, *others)))
            put = functools.partial(lax.dynamic_update_index_in_dim, index=i, axis=axis + 1)
            return jax.tree.map(put, apart, new)

        corrected = lax.fori_loop(0, times, correct, apart)
        return jax.tree.map(lambda x, y: x.reshape(y.shape), corrected, out)

    if in_place and pieces > 1:
        return by_pieces(jnp.where(is_needed, pieces, 0), out, wanted, args)
    correct = mixed if pieces == 1 else functools.partial(by_pieces, pieces)
    return lax.cond(is_needed, correct, lambda out, *_: out, out, wanted, args)


def _pieces(batch: tuple[int, ...], arrays: list[Any], least: float) -> int:
    """How many there are, by which the batch is divided without a rest.

    A piece has that many matrices at ``least``: what chooses an algorithm by the batch must choose
    for a piece what it does for the whole, or Q is not the one that R belongs to.
    """
    if _elements(arrays) <= _AT_ONCE:
        return 1
    number = math.prod(batch)
    most = int(min(4 * _PIECES, number // least))
    may_be = [p for p in range(1, most + 1) if number % p == 0]
    return next((p for p in may_be if p >= _PIECES), max(may_be, default=1))


def _elements(arrays: Any) -> int:
    """Of the largest array; none where a size is a symbol."""
    leaves = jax.tree.leaves(arrays)
    known = are_known(*(d for x in leaves for d in x.shape))
    return max(x.size for x in leaves) if known else 0
