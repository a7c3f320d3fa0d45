"""Triangular products and solves by blocks, nearly all of it matrix products: for the derivatives.

A solve here inverts the diagonal blocks of U and leaves the rest to products. For derivatives it is
as accurate as substitution, and it is faster: a LAPACK solve between XLA's products costs several
times what it costs alone, for its threads compete with XLA's for the cores, and it wants columns
contiguous where XLA keeps rows so.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxqr._linalg.algebra import (
    adjoint,
    matmul,
    settled,
    settled_together,
    solve_adjoint_left,
    solve_left,
    summand,
    total,
)

_BLOCK = 64, 128  # columns of a diagonal block: half of all, within these
LONE = 96  # columns up to which LAPACK's Cholesky factorization leaves its threads asleep
_SMALL = 32  # columns up to which LAPACK inverts
_STRIP = 128  # columns up to which the triangle of a product is made in one piece, ...
_MOST_STRIPS = 3  # ... and the most pieces
_CACHED = 2**20  # elements of a factor up to which there are pieces


def _block(k: int) -> int:
    least, most = _BLOCK
    return min(max(least, -(-k // 2)), most)


def lower_of_product(x: Array, y: Array) -> list[Array]:
    """The lower triangle of X Y for x (k, p) and y (p, k), as strips for :func:`lower_sum`.

    Strips are copied for it, which does not pay where they are beyond the caches.
    """
    cuts = _cuts(x.shape[0])
    if x.size > _CACHED:
        product = summand(x, y)
        return [product[i:j, :j] for i, j in cuts]
    return [summand(x[i:j], y[:, :j]) for i, j in cuts]


def lower_of_upper_product(u: Array, v: Array) -> list[Array]:
    """Likewise of U V^H for upper triangular u and v (k, k).

    Few zeros of U and V are multiplied, and what v has below its diagonal is not read.
    """
    return [summand(u[i:j, i:], adjoint(v[:j, i:])) for i, j in _cuts(u.shape[0])]


def _cuts(k: int) -> list[tuple[int, int]]:
    strips = max(1, min(-(-k // _STRIP), _MOST_STRIPS))
    return list(itertools.pairwise(round(k * i / strips) for i in range(strips + 1)))


def lower_sum(*triangles: list[Array]) -> Array:
    """The sum of lower triangles (k, k); above the diagonal it has anything.

    A triangle is a list of strips of rows, each as far as the diagonal.
    """
    strips = [total(strip) for strip in zip(*triangles, strict=True)]
    k = strips[-1].shape[1]
    rows = (jnp.pad(x, [(0, 0), (0, k - x.shape[1]), *[(0, 0)] * (x.ndim - 2)]) for x in strips)
    return settled(jnp.concatenate(list(rows)))


class Inverted(NamedTuple):
    """An upper triangular U (k, k) with the inverses of its diagonal blocks.

    Of many small ones (k, k, batch) it has none: substitution takes fewer loops and less memory.
    """

    u: Array
    inverses: tuple[Array, ...]

    @classmethod
    def of(cls, u: Array) -> "Inverted":
        """Of u, the upper triangle alone is read."""
        k = u.shape[0]
        size = _block(k)
        if u.ndim > 2:
            return cls(u, ())
        if k <= size:
            return cls(u, (_inverse(u),))
        # The last block begins early enough to be whole: of its inverse the last rows and columns
        # are the inverse of its own.
        starts = [min(j, k - size) for j in range(0, k, size)]
        blocks = jnp.stack([u[j : j + size, j : j + size] for j in starts])
        *inverses, last = jax.vmap(_inverse)(blocks)
        own = k - size * len(inverses)
        return cls(u, (*inverses, last[-own:, -own:]))

    @classmethod
    def cholesky(cls, gram: Array) -> "Inverted":
        """The Cholesky factor of gram (k, k), of which the lower triangle is read.

        Rows of blocks from the first on. LAPACK factors what is on the diagonal alone: had it more
        to do, it would wake threads of its own, and for 100 ms these look for work on the cores
        that XLA's products need.
        """
        k = gram.shape[0]
        size = -(-k // -(-k // LONE))  # all blocks alike
        u, inverses = jnp.zeros_like(gram), []
        for j in range(0, k, size):
            above = u[:j, j:]
            row = adjoint(gram[j:, j : j + size]) - matmul(adjoint(above[:, :size]), above)
            lower = lax.linalg.cholesky(adjoint(row[:, :size]), symmetrize_input=False)
            diagonal = adjoint(lower)
            inverses.append(_inverse(diagonal))
            rest = matmul(adjoint(inverses[-1]), row[:, size:])
            u = lax.dynamic_update_slice(u, jnp.concatenate([diagonal, rest], axis=1), (j, j))
        return cls(u, tuple(inverses))

    def _split(self) -> tuple["Inverted", Array, "Inverted", int]:
        """[[U11, U12], [0, U22]], and the size of U11."""
        blocks = -(-len(self.inverses) // 2)
        h = sum(inverse.shape[0] for inverse in self.inverses[:blocks])
        return (
            Inverted(self.u[:h, :h], self.inverses[:blocks]),
            self.u[:h, h:],
            Inverted(self.u[h:, h:], self.inverses[blocks:]),
            h,
        )

    def left(self, b: Array) -> Array:
        """U^-1 B for b (k, n)."""
        if not self.inverses:
            return solve_left(self.u, b)
        if len(self.inverses) == 1:
            return matmul(self.inverses[0], b)
        u11, u12, u22, h = self._split()
        below = u22.left(b[h:])
        return jnp.concatenate([u11.left(b[:h] - matmul(u12, below)), below])

    def adjoint_left(self, b: Array) -> Array:
        """U^-H B for b (k, n)."""
        if not self.inverses:
            return solve_adjoint_left(self.u, b)
        if len(self.inverses) == 1:
            return matmul(adjoint(self.inverses[0]), b)
        u11, u12, u22, h = self._split()
        above = u11.adjoint_left(b[:h])
        rest = b[h:] - matmul(adjoint(u12), above)
        return jnp.concatenate([above, u22.adjoint_left(rest)])

    def right(self, b: Array) -> Array:
        """B U^-1 for b (m, k)."""
        if not self.inverses:
            return adjoint(self.adjoint_left(adjoint(b)))
        if len(self.inverses) == 1:
            return matmul(b, self.inverses[0])
        u11, u12, u22, h = self._split()
        left = u11.right(b[:, :h])
        return jnp.concatenate([left, u22.right(b[:, h:] - matmul(left, u12))], 1)

    def adjoint_right(self, b: Array) -> Array:
        """B U^-H for b (m, k)."""
        if not self.inverses:
            return adjoint(self.left(adjoint(b)))
        if len(self.inverses) == 1:
            return matmul(b, adjoint(self.inverses[0]))
        u11, u12, u22, h = self._split()
        right = u22.adjoint_right(b[:, h:])
        rest = b[:, :h] - matmul(right, adjoint(u12))
        return jnp.concatenate([u11.adjoint_right(rest), right], 1)


def sum_over_adjoint(p: Array | None, q: Array, s: Array, u: Array) -> Array:
    """(P + Q S) U^-H for p and q (m, k), s and upper triangular u (k, k); P = 0 if None.

    Deep input is cheaper to pass through once than twice: P U^-H + Q (S U^-H).
    """
    # The solve begins when what S is made of is done with: less is in memory at a time.
    s, u = settled_together(s, u)
    inverted = Inverted.of(u)
    if p is None:
        return matmul(q, inverted.adjoint_right(s))
    m, k = q.shape[:2]
    if m >= 32 * k:
        return inverted.adjoint_right(p) + matmul(q, inverted.adjoint_right(s))
    return inverted.adjoint_right(settled(p + summand(q, s)))


def product_over(x: Array, u: Inverted, f: Array) -> Array:
    """X U^-1 F for x (m, k), upper triangular u (k, k) and f (k, n)."""
    if x.shape[0] < f.shape[1]:  # X U^-1 is smaller than what it is multiplied by
        return matmul(u.right(x), f)
    return matmul(x, u.left(f))


def _inverse(u: Array) -> Array:
    """U^-1 for upper triangular u (k, k)."""
    return _inverse_by_solver(u) if len(u) <= _SMALL else _inverse_of_large(u)


@jax.custom_jvp
def _inverse_of_large(u: Array) -> Array:
    inverse: Array = lax.platform_dependent(u, cpu=_inverse_by_rows, default=_inverse_by_solver)
    return inverse


@_inverse_of_large.defjvp
def _inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """-U^-1 dU U^-1."""
    inverse = _inverse_of_large(*primals)
    return inverse, -matmul(inverse, matmul(jnp.triu(*tangents), inverse))


def _inverse_by_solver(u: Array) -> Array:
    return solve_left(u, jnp.eye(len(u), dtype=u.dtype))


def _inverse_by_rows(u: Array) -> Array:
    """By substitution from the last row on, in a loop of products.

    A LAPACK solve of this size waits for the cores that XLA's threads hold.
    """
    k = u.shape[0]
    diagonal = jnp.diagonal(u)[:, None]
    above = jnp.triu(u, 1) / diagonal

    def substitute_row(step: Array, x: Array) -> Array:
        i = k - 1 - step
        row, known = (lax.dynamic_slice_in_dim(y, i, 1) for y in (above, x))
        return lax.dynamic_update_slice_in_dim(x, known - matmul(row, x), i, 0)

    x: Array = lax.fori_loop(0, k, substitute_row, jnp.eye(k, dtype=u.dtype) / diagonal)
    return x
