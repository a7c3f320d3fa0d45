"""A matrix with the rows of a ridge, [A; sqrt(ridge) I], the larger of the two first.

Elimination is accurate row by row if large rows come first (M. J. D. Powell and J. K. Reid, "On
applying Householder transformations to linear least squares problems", 1968).

The ridge is (..., 1, 1), or (..., n, 1) where each column of A has its own. What stands beside
A is made by ``vmap`` over A, so that it is sharded as the batch is.
"""

import jax.numpy as jnp
from jax import Array

from jaxqr._linalg.batching import over_leading_axes
from jaxqr._linalg.scaling import magnitudes


def with_ridge(a: Array, ridge: Array) -> Array:
    """A with sqrt(ridge) I, for a (..., m, n)."""
    identity = over_leading_axes(lambda a: jnp.eye(a.shape[-1], dtype=a.dtype))(a)
    rows = jnp.sqrt(ridge).astype(a.dtype) * identity
    return _stacked(a, rows, _ridge_first(a, ridge))


def with_zeros(a: Array, b: Array, ridge: Array) -> Array:
    """B with the zeros that stand beside sqrt(ridge) I."""
    n = a.shape[-1]
    zeros = over_leading_axes(lambda b: jnp.zeros_like(b, shape=(n, b.shape[-1])))(b)
    return _stacked(b, zeros, _ridge_first(a, ridge))


def beside(a: Array, ridge: Array, x: Array) -> Array:
    """The rows of X that stand beside A."""
    m = a.shape[-2]
    return jnp.where(_ridge_first(a, ridge), x[..., -m:, :], x[..., :m, :])


def _ridge_first(a: Array, ridge: Array) -> Array:
    largest = jnp.max(magnitudes(a), axis=(-2, -1), keepdims=True, initial=0)
    return jnp.sqrt(jnp.max(ridge, axis=-2, keepdims=True, initial=0)) > largest


def _stacked(x: Array, y: Array, y_first: Array) -> Array:
    return jnp.where(y_first, jnp.concatenate([y, x], axis=-2), jnp.concatenate([x, y], axis=-2))
