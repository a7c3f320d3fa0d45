"""A usual way for all matrices of a batch, and a careful one for those that need it."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxqr._linalg.batching import (
    are_known,
    are_many_small,
    batch_aware,
    innermost,
    outermost,
)
from jaxqr._linalg.crossovers import Crossovers
from jaxqr._linalg.layouts import laid_out, materialized
from jaxqr._linalg.tuning import by_platform


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
            return by(together if are_many_small(c, *args) else apart, c.least_batch)

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
