"""Which columns depend on those before them, read off a triangular factor."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxqr._linalg.algebra import on_diagonal, select, sum_of_rows
from jaxqr._linalg.batching import over_matrices, smaller
from jaxqr._linalg.reflectors import abs2
from jaxqr._linalg.scaling import column_units, divided

ROUNDING = 8  # eps; of a dependent column, rounding was seen to leave up to four, in tall data too


def dependent_columns(r: Array) -> Array:
    """Which of the first k columns of R (..., k, n) do: |r_jj| <= max(n, 8) * eps * ||r_j||.

    In complete mode, too, where R has zeros below: they are as many as A has rows. In units of the
    column, so that no square leaves the range of the type.
    """
    marked: Array = over_matrices(_dependent)(lax.stop_gradient(r))
    return marked[..., 0, :]


def _dependent(r: Array) -> Array:
    """Of r (k, n[, batch]), (1, k[, batch])."""
    rows, columns = r.shape[:2]
    k = smaller(rows, columns)
    r = r[:k, :k]
    r = divided(r, column_units(r).astype(r.dtype)[None])
    diagonal = sum_of_rows(select(on_diagonal(r), jnp.abs(r), 0))
    norms = jnp.sqrt(sum_of_rows(abs2(r)))
    tolerance = jax.core.max_dim(columns, ROUNDING) * float(jnp.finfo(r.dtype).eps)
    return jnp.less_equal(diagonal, tolerance * norms)


def marks(r: Array) -> Array:
    """Of R (..., k, n): 1 for dependent columns, 0 for the others, (..., 1, k)."""
    return dependent_columns(r)[..., None, :].astype(r.dtype)


def first_dependent(r: Array) -> tuple[Array, Array, Array]:
    """Whether R (..., k, n) has a dependent column anywhere; the first matrix and column."""
    if r.size == 0:
        return jnp.asarray(False), jnp.asarray(0), jnp.asarray(0)
    dependent = dependent_columns(r).reshape(-1, smaller(*r.shape[-2:]))
    matrix = jnp.argmax(dependent.any(axis=1))
    return dependent.any(), matrix, jnp.argmax(dependent[matrix])
