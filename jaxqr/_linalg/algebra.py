"""Products and solves of one matrix (rows, columns), or many small ones (rows, columns, batch).

For many small ones everything is written out, so that it is elementwise along the batch: a batch of
tiny products as a dot is a loop over calls.
"""

import functools
import operator
from collections.abc import Iterable

import jax.numpy as jnp
from jax import Array, lax

from jaxqr._linalg import products
from jaxqr._linalg.batching import are_known, smaller
from jaxqr._linalg.layouts import materialized


def total(terms: Iterable[Array]) -> Array:
    """Their sum, written out: as a reduction it would be a call of its own."""
    return functools.reduce(operator.add, terms)


def sum_of_rows(x: Array) -> Array:
    """(1, n[, batch]), of x (m, n[, batch]); of many small ones written out."""
    return jnp.sum(x, axis=0, keepdims=True) if x.ndim == 2 else total(x)[None]


def adjoint(x: Array) -> Array:
    """The conjugate transpose of x (m, n[, batch])."""
    return jnp.conj(jnp.swapaxes(x, 0, 1))


def matmul(x: Array, y: Array) -> Array:
    """X Y for x (m, p[, batch]) and y (p, n[, batch])."""
    return settled(summand(x, y))


def adjoint_matmul(x: Array, y: Array) -> Array:
    """X^H Y for x (m, k[, batch]) and y (m, n[, batch])."""
    return settled(adjoint_summand(x, y))


def project(q: Array, x: Array) -> Array:
    """Q^H X for q (m, k[, batch]) and a narrow x (m, n[, batch])."""
    return products.project(q, x) if q.ndim == 2 else adjoint_matmul(q, x)


def summand(x: Array, y: Array) -> Array:
    """X Y likewise, to be added to others and :func:`settled` then: that saves memory traffic."""
    if x.ndim == 2:
        return products.matmul(x, y)
    return total(x[:, i, None] * y[None, i] for i in range(x.shape[1]))


def adjoint_summand(x: Array, y: Array) -> Array:
    """X^H Y likewise; of many small ones by rows, for a transpose would be a copy."""
    if x.ndim == 2:
        return products.matmul(products.adjoint_of_factor(x, y), y)
    rows = zip(jnp.conj(x), y, strict=True)
    return total(of_x[:, None] * of_y[None] for of_x, of_y in rows)


def settled(x: Array) -> Array:
    """X (m, n[, batch]), :func:`materialized` where it has a batch axis."""
    return x if x.ndim == 2 else materialized(x)


def difference(x: Array, y: Array) -> Array:
    """X - Y for x and y (m, n[, batch])."""
    return settled(x - y)


def beside(x: Array, y: Array) -> Array:
    """[X | Y] for x (m, k[, batch]) and y (m, n[, batch])."""
    k, n = x.shape[1], y.shape[1]
    if n == 0:
        return x
    if are_known(k, n):
        return jnp.concatenate([x, y], axis=1)
    # JAX cannot lower the concatenation of symbols that add up to a number.
    return jnp.pad(x, [(0, 0), (0, n)]) + jnp.pad(y, [(0, 0), (k, 0)])


def above_zeros(x: Array, rows: int) -> Array:
    """X (m, n[, batch]) with so many rows of zeros below it."""
    return jnp.pad(x, [(0, rows), *[(0, 0)] * (x.ndim - 1)])


def times_i(x: Array) -> Array:
    """i x, for real x."""
    return lax.complex(jnp.zeros_like(x), x)


def select(mask: Array, x: Array | float, y: Array | float) -> Array:
    """Elements of x or y (m, n[, batch]) as a mask (m, n) has it."""
    ndim = max(jnp.ndim(x), jnp.ndim(y))
    return jnp.where(mask.reshape(mask.shape + (1,) * (ndim - 2)), x, y)


def above_diagonal(x: Array) -> Array:
    """A mask of what is above the diagonal of x (k, k[, batch])."""
    return jnp.tri(x.shape[0], k=-1, dtype=bool).T


def below_diagonal(x: Array) -> Array:
    """A mask of what is below the diagonal of x (k, k[, batch])."""
    return jnp.tri(x.shape[0], k=-1, dtype=bool)


def on_diagonal(x: Array) -> Array:
    """A mask of the diagonal of x (k, k[, batch])."""
    return jnp.eye(x.shape[0], dtype=bool)


def diagonal(x: Array) -> Array:
    """The diagonal (..., k) of x (..., m, n), as a sum: a gather would be two loops of its own."""
    k = smaller(*x.shape[-2:])
    block = x[..., :k, :k]
    on_it = jnp.broadcast_to(jnp.eye(k, dtype=bool), block.shape)
    return jnp.sum(jnp.where(on_it, block, 0), axis=-1)


def solve_left(u: Array, b: Array) -> Array:
    """U^-1 B for upper triangular u (k, k[, batch]) and b (k, n[, batch])."""
    return products.solve_left(u, b) if u.ndim == 2 else substitute(u, b)


def solve_adjoint_left(u: Array, b: Array) -> Array:
    """U^-H B for upper triangular u (k, k[, batch]) and b (k, n[, batch])."""
    if u.ndim == 2:
        return products.solve_adjoint_left(u, b)
    return substitute(adjoint(u)[::-1, ::-1], b[::-1])[::-1]


def substitute(u: Array, b: Array) -> Array:
    """U^-1 B written out, row by row from the last."""
    rows: list[Array] = []
    for i in reversed(range(u.shape[0])):
        known = (u[i, j, None] * row for j, row in zip(range(i + 1, u.shape[0]), rows, strict=True))
        rows.insert(0, materialized(total([b[i], *(-x for x in known)]) / u[i, i, None]))
    return jnp.stack(rows) if rows else b
