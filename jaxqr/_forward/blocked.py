"""Triangular products and solves by blocks, nearly all of it matrix products: for the derivatives.

A solve here inverts the diagonal blocks of U and leaves the rest to products. For derivatives it is
as accurate as substitution, and it is faster: a LAPACK solve between XLA's products costs several
times what it costs alone, for its threads compete with XLA's for the cores, and it wants columns
contiguous where XLA keeps rows so.
"""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxqr._forward import products
from jaxqr._forward.algebra import adjoint, matmul, substitute, summand

_BLOCK = 64  # columns of a diagonal block
_UNROLLED = 8  # columns of the smallest, inverted by substitution
_WHOLE = 128  # columns up to which products are made in one piece
_CACHED = 2**20  # elements up to which they are not
_STRIPS = 3


def _half(k: int) -> int:
    """Where to cut k rows in two, at a whole number of blocks."""
    return -(-k // (2 * _BLOCK)) * _BLOCK


def lower_of_product(x: Array, y: Array) -> Array:
    """The lower triangle of X Y for x (k, p) and y (p, k); above it, anything.

    By strips of rows, each as far as the diagonal. Strips are copied for it, which does not pay
    where they are beyond the caches.
    """
    k = x.shape[0]
    if k <= _WHOLE or x.size > _CACHED:
        return summand(x, y)
    return _stacked([matmul(x[i:j], y[:, :j]) for i, j in _strips(k)])


def lower_of_upper_product(u: Array, v: Array) -> Array:
    """The lower triangle of U V^H for upper triangular u and v (k, k); above it, anything.

    Few zeros of U and V are multiplied, and what v has below its diagonal is not read.
    """
    k = u.shape[0]
    if k <= _WHOLE:
        return summand(u, adjoint(v))
    return _stacked([matmul(u[i:j, i:], adjoint(v[:j, i:])) for i, j in _strips(k)])


def _strips(k: int) -> list[tuple[int, int]]:
    cuts = [round(k * i / _STRIPS) for i in range(_STRIPS + 1)]
    return list(itertools.pairwise(cuts))


def _stacked(strips: list[Array]) -> Array:
    """[[S1, 0], [S2, 0], ..., [Sl]]."""
    k = strips[-1].shape[1]
    return jnp.concatenate([jnp.pad(x, ((0, 0), (0, k - x.shape[1]))) for x in strips])


class Inverted(NamedTuple):
    """An upper triangular U (k, k) with the inverses of its diagonal blocks."""

    u: Array
    inverses: tuple[Array, ...]

    @classmethod
    def of(cls, u: Array) -> "Inverted":
        """Of u, the upper triangle alone is read."""
        k = u.shape[0]
        if k <= _UNROLLED or u.ndim > 2:
            return cls(u, (substitute(u, _identity_like(u)),))
        blocks = [u[j : j + _BLOCK, j : j + _BLOCK] for j in range(0, k, _BLOCK)]
        size = _UNROLLED
        while size < min(k, _BLOCK):
            size *= 2
        inverses = _inverse(jnp.stack([_padded(block, size) for block in blocks]))
        sizes = [block.shape[0] for block in blocks]
        return cls(u, tuple(inverses[i, :s, :s] for i, s in enumerate(sizes)))

    def _split(self) -> tuple["Inverted", Array, "Inverted", int]:
        """[[U11, U12], [0, U22]], and the size of U11."""
        h, blocks = _half(self.u.shape[0]), -(-len(self.inverses) // 2)
        return (
            Inverted(self.u[:h, :h], self.inverses[:blocks]),
            self.u[:h, h:],
            Inverted(self.u[h:, h:], self.inverses[blocks:]),
            h,
        )

    def left(self, b: Array) -> Array:
        """U^-1 B for b (k, n)."""
        if len(self.inverses) == 1:
            return matmul(self.inverses[0], b)
        u11, u12, u22, h = self._split()
        below = u22.left(b[h:])
        return jnp.concatenate([u11.left(b[:h] - matmul(u12, below)), below])

    def adjoint_left(self, b: Array) -> Array:
        """U^-H B for b (k, n)."""
        if len(self.inverses) == 1:
            return matmul(adjoint(self.inverses[0]), b)
        u11, u12, u22, h = self._split()
        above = u11.adjoint_left(b[:h])
        rest = b[h:] - matmul(adjoint(u12), above)
        return jnp.concatenate([above, u22.adjoint_left(rest)])

    def right(self, b: Array) -> Array:
        """B U^-1 for b (m, k)."""
        if len(self.inverses) == 1:
            return matmul(b, self.inverses[0])
        u11, u12, u22, h = self._split()
        left = u11.right(b[:, :h])
        return jnp.concatenate([left, u22.right(b[:, h:] - matmul(left, u12))], 1)

    def adjoint_right(self, b: Array) -> Array:
        """B U^-H for b (m, k)."""
        if len(self.inverses) == 1:
            return matmul(b, adjoint(self.inverses[0]))
        u11, u12, u22, h = self._split()
        right = u22.adjoint_right(b[:, h:])
        rest = b[:, :h] - matmul(right, adjoint(u12))
        return jnp.concatenate([u11.adjoint_right(rest), right], 1)


def _identity_like(u: Array) -> Array:
    """I for u (k, k) or (k, k, batch)."""
    k = u.shape[0]
    identity = jnp.eye(k, dtype=u.dtype).reshape(k, k, *[1] * (u.ndim - 2))
    return jnp.broadcast_to(identity, u.shape)


def _padded(u: Array, size: int) -> Array:
    """[[U, 0], [0, I]] of this size."""
    rest = size - u.shape[0]
    if not rest:
        return u
    below = jnp.diag(jnp.arange(size) >= u.shape[0]).astype(u.dtype)
    return jnp.pad(u, [(0, rest)] * 2) + below


def _inverse(u: Array) -> Array:
    """U^-1 for upper triangular u (..., k, k) with k a power of two times the smallest size.

    By doubling: [[A, B], [0, D]]^-1 = [[A^-1, -A^-1 B D^-1], [0, D^-1]], for all diagonal blocks of
    one size at once. LAPACK's threads would still be in the way of the products that follow.
    """
    k, s = u.shape[-1], _UNROLLED
    smallest = _diagonal_blocks(u, s, 0)
    inverse = jnp.moveaxis(smallest.reshape(-1, s, s), 0, -1)
    inverse = jnp.moveaxis(substitute(inverse, _identity_like(inverse)), -1, 0)
    inverse = inverse.reshape(smallest.shape)
    while s < k:
        a, d = inverse[..., ::2, :, :], inverse[..., 1::2, :, :]
        b = _diagonal_blocks(u, s, s)[..., ::2, :, :]
        corner = -products.matmul(a, products.matmul(b, d))
        rows = jnp.concatenate([a, corner], -1), jnp.concatenate([jnp.zeros_like(a), d], -1)
        inverse = jnp.concatenate(rows, -2)
        s *= 2
    return inverse[..., 0, :, :]


def _diagonal_blocks(u: Array, s: int, right: int) -> Array:
    """The s x s blocks of u (..., k, k) on the diagonal, or so far right of it: (..., -1, s, s)."""
    starts = range(0, u.shape[-1] - right, s)
    return jnp.stack([u[..., j : j + s, j + right : j + right + s] for j in starts], axis=-3)
