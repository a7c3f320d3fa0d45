"""How matrices lie in memory."""

from typing import TypeVar

import jax
from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint

from jaxqr._linalg.exporting import unless_exported

T = TypeVar("T")

# Before JAX 0.11, XLA gathered a sharded batch wherever a layout was asked for.
LAYOUT_IS_SHARDED = jax.__version_info__ >= (0, 11)


def materialized(x: T) -> T:
    """X, in memory: XLA would compute it anew in each of the loops that read it."""
    out: T = lax.optimization_barrier(x)
    return out


def by_rows(x: Array) -> Array:
    """X, in memory by rows: else XLA may keep a transpose for a view, and read it slowly."""
    (x,) = laid_out(x)
    return materialized(x)


def _by_rows(x: Array) -> list[Array]:
    return [with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))]


def _as_it_is(x: Array) -> list[Array]:
    return [x]


laid_out = unless_exported(_by_rows, _as_it_is) if LAYOUT_IS_SHARDED else _as_it_is
