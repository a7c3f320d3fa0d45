"""Which columns depend on those before them, read off a triangular factor."""

import jax.numpy as jnp
from jax import Array


def dependent_columns(r: Array) -> Array:
    """Which of the first k columns of R (..., k, n) do: |r_jj| <= max(k, n) * eps * ||r_j||."""
    rows, columns = r.shape[-2:]
    k = min(rows, columns)
    diagonal = jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1))
    norms = jnp.linalg.norm(r[..., :k], axis=-2)
    tolerance = max(rows, columns) * float(jnp.finfo(r.dtype).eps)
    return jnp.less_equal(diagonal, tolerance * norms)


def first_dependent(r: Array) -> tuple[Array, Array, Array]:
    """Whether R (..., k, n) has a dependent column anywhere; the first matrix and column."""
    if r.size == 0:
        return jnp.asarray(False), jnp.asarray(0), jnp.asarray(0)
    dependent = dependent_columns(r).reshape(-1, min(r.shape[-2:]))
    matrix = jnp.argmax(dependent.any(axis=1))
    return dependent.any(), matrix, jnp.argmax(dependent[matrix])
