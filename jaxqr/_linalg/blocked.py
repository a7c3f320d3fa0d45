"""Triangular products and solves by blocks, nearly all of it matrix products: for the derivatives.

A solve here inverts the diagonal blocks of U and leaves the rest to products. For derivatives it is
as accurate as substitution, and it is faster: a LAPACK solve between XLA's products costs several
times what it costs alone, for its threads compete with XLA's for the cores, and it wants columns
contiguous where XLA keeps rows so.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxlib.version
from jax import Array, lax
from jax.lax.linalg import cholesky

from jaxqr._linalg.algebra import (
    adjoint,
    adjoint_matmul,
    adjoint_summand,
    below_diagonal,
    beside,
    diagonal,
    matmul,
    select,
    settled,
    solve_adjoint_left,
    solve_left,
    summand,
    total,
)
from jaxqr._linalg.batching import are_known, over_leading_axes
from jaxqr._linalg.correcting import unless_any
from jaxqr._linalg.layouts import materialized
from jaxqr._linalg.products import adjoint_of_factor
from jaxqr._linalg.scaling import any_extreme, column_units, divided, unit

_BLOCK = 64, 128  # columns of a diagonal block: half of all, within these
LONE = 96  # columns up to which LAPACK's Cholesky factorization leaves its threads asleep
# Until jaxlib 0.11.1 a call for a batch waited for threads of the pool that it ran in: for ever,
# once all were in such calls, of one device each.
LAPACK_TAKES_BATCHES = jaxlib.version.__version_info__ >= (0, 11, 1)
# Real numbers on the right-hand side for which LAPACK's triangular solve wakes threads of its own.
_AWAKE = 1024 if LAPACK_TAKES_BATCHES else 1
# Columns of a complex U up to which it is faster all the same than products that are as slow as
# XLA's complex ones.
_MOST_FOR_THREADS = 100 if LAPACK_TAKES_BATCHES else 0
_STRIP = 128  # columns up to which the triangle of a product is made in one piece, ...
_MOST_STRIPS = 3  # ... and the most pieces
_CACHED = 2**20  # elements of a factor up to which there are pieces


def _block(k: int) -> int:
    least, most = _BLOCK
    return min(max(least, -(-k // 2)), most)


def lower_of_adjoint_product(x: Array, y: Array) -> list[Array]:
    """The lower triangle of X^H Y for x and y (m, k), as strips for :func:`lower_sum`.

    Strips are copied for it, which does not pay where they are beyond the caches.
    """
    cuts = _cuts(x.shape[1])
    if x.ndim == 3 or not are_known(x.shape[0]) or x.size > _CACHED:
        product = adjoint_summand(x, y)
        return [product[i:j, :j] for i, j in cuts]
    adjoint_x = adjoint_of_factor(x, y)
    return [summand(adjoint_x[i:j], y[:, :j]) for i, j in cuts]


def lower_of_upper_product(u: Array, v: Array) -> list[Array]:
    """Likewise of U V^H for upper triangular u and v (k, k).

    Few zeros of U and V are multiplied, and what v has below its diagonal is not read.
    """
    return [summand(u[i:j, i:], adjoint(v[:j, i:])) for i, j in _cuts(u.shape[0])]


def _cuts(k: int) -> list[tuple[int, int]]:
    if not are_known(k):
        return [(0, k)]
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
    """An upper triangular U (k, k) = E D with the inverses of E's diagonal blocks.

    D is diagonal and holds the units of U's columns (see :mod:`jaxqr._linalg.scaling`): no product
    leaves the range of the type but where the result does. Of many small ones (k, k, batch) there
    are no inverses: substitution takes fewer loops and less memory. Nor of a small U that is
    applied to no more than its own size: LAPACK solves with it in the time that its inverse takes.
    """

    e: Array
    inverses: tuple[Array, ...]
    d: Array  # (k[, batch])

    @classmethod
    def of(cls, u: Array, rows: float = math.inf) -> "Inverted":
        """Of u, the upper triangle alone is read; ``rows`` are what it will be applied to."""
        k = u.shape[0]
        d = column_units(select(below_diagonal(u), 0, u)).astype(u.dtype)
        e = divided(u, d[None])
        # With few rows: as many as the identity has.
        if not are_known(k) or u.ndim > 2 or (rows <= k and _is_for_lapack(u)):
            return cls(e, (), d)
        size = _block(k)
        if k <= size:
            return cls(e, (_inverse(e),), d)
        # The last block begins early enough to be whole: of its inverse the last rows and columns
        # are the inverse of its own.
        starts = [min(j, k - size) for j in range(0, k, size)]
        blocks = jnp.stack([e[j : j + size, j : j + size] for j in starts])
        *inverses, last = jax.vmap(_inverse)(blocks)
        own = k - size * len(inverses)
        return cls(e, (*inverses, last[-own:, -own:]), d)

    @property
    def u(self) -> Array:
        """U itself."""
        return self.e * self.d[None]

    @classmethod
    def cholesky(cls, gram: Array) -> "Inverted":
        """The Cholesky factor of gram (k, k), of which the lower triangle is read.

        Rows of blocks from the first on. LAPACK factors what is on the diagonal alone: had it more
        to do, it would wake threads of its own, and for 100 ms these look for work on the cores
        that XLA's products need.
        """
        k = gram.shape[0]
        size = -(-k // -(-k // LONE))  # all blocks alike
        d = unit(jnp.sqrt(diagonal(gram).real)).astype(gram.dtype)
        gram = divided(divided(gram, d[None]), d[:, None])
        u, inverses = jnp.zeros_like(gram), []
        for j in range(0, k, size):
            above = u[:j, j:]
            row = adjoint(gram[j:, j : j + size]) - matmul(adjoint(above[:, :size]), above)
            lower = cholesky(adjoint(row[:, :size]), symmetrize_input=False)
            block = adjoint(lower)
            inverses.append(_inverse(block))
            rest = matmul(adjoint(inverses[-1]), row[:, size:])
            u = lax.dynamic_update_slice(u, jnp.concatenate([block, rest], axis=1), (j, j))
        return cls(u, tuple(inverses), d)

    def unscaled(self) -> "Inverted":
        """Itself with D = I where it is one block, so that no pass over B scales it.

        For U whose inverse is within the type's range.
        """
        if len(self.inverses) != 1:
            return self
        inverse = divided(self.inverses[0], self.d[:, None])
        return Inverted(self.u, (inverse,), jnp.ones_like(self.d))

    def within_reach(self) -> tuple["Inverted", Array]:
        """U / g, and g: 1, but where the least elements of U^-1 would be taken for zero.

        That is where columns of U are near the largest number; where others are near the smallest
        one, g is as large as these allow. A power of two, (1, 1[, batch]).
        """
        one = jnp.ones_like(self.d, shape=(1, *self.d.shape[1:]))
        if len(self.inverses) != 1:  # B is scaled
            return self, one[None]
        limits, d = jnp.finfo(self.d.dtype), self.d.real
        high = float(limits.eps / limits.tiny)
        most, least = (f(d, axis=0, keepdims=True, initial=1) for f in (jnp.max, jnp.min))
        g = unit(jnp.clip(least * high, 1, 1 / float(limits.eps) ** 2)).astype(one.dtype)
        g = jnp.where(most > high, g, one)
        return self._replace(d=divided(self.d, g)), g[None]

    def left(self, b: Array) -> Array:
        """U^-1 B for b (k, n)."""
        return divided(self._left(b), self.d[:, None])

    def adjoint_left(self, b: Array) -> Array:
        """U^-H B for b (k, n)."""
        return self._adjoint_left(divided(b, self.d[:, None]))

    def right(self, b: Array) -> Array:
        """B U^-1 for b (m, k)."""
        return self._right(divided(b, self.d[None]))

    def adjoint_right(self, b: Array) -> Array:
        """B U^-H for b (m, k)."""
        return divided(self._adjoint_right(b), self.d[None])

    # The same with E.

    def _split(self) -> tuple["Inverted", Array, "Inverted", int]:
        """[[E11, E12], [0, E22]], and the size of E11."""
        blocks = -(-len(self.inverses) // 2)
        h = sum(inverse.shape[0] for inverse in self.inverses[:blocks])
        return (
            Inverted(self.e[:h, :h], self.inverses[:blocks], self.d[:h]),
            self.e[:h, h:],
            Inverted(self.e[h:, h:], self.inverses[blocks:], self.d[h:]),
            h,
        )

    def _left(self, b: Array) -> Array:
        if not self.inverses:
            return solve_left(self.e, b)
        if len(self.inverses) == 1:
            return matmul(self.inverses[0], b)
        e11, e12, e22, h = self._split()
        below = e22._left(b[h:])
        return jnp.concatenate([e11._left(b[:h] - matmul(e12, below)), below])

    def _adjoint_left(self, b: Array) -> Array:
        if not self.inverses:
            return solve_adjoint_left(self.e, b)
        if len(self.inverses) == 1:
            return matmul(adjoint(self.inverses[0]), b)
        e11, e12, e22, h = self._split()
        above = e11._adjoint_left(b[:h])
        rest = b[h:] - matmul(adjoint(e12), above)
        return jnp.concatenate([above, e22._adjoint_left(rest)])

    def _right(self, b: Array) -> Array:
        if not self.inverses:
            return adjoint(self._adjoint_left(adjoint(b)))
        if len(self.inverses) == 1:
            return matmul(b, self.inverses[0])
        e11, e12, e22, h = self._split()
        left = e11._right(b[:, :h])
        return jnp.concatenate([left, e22._right(b[:, h:] - matmul(left, e12))], 1)

    def _adjoint_right(self, b: Array) -> Array:
        if not self.inverses:
            return adjoint(self._left(adjoint(b)))
        if len(self.inverses) == 1:
            return matmul(b, adjoint(self.inverses[0]))
        e11, e12, e22, h = self._split()
        right = e22._adjoint_right(b[:, h:])
        rest = b[:, :h] - matmul(right, adjoint(e12))
        return jnp.concatenate([e11._adjoint_right(rest), right], 1)


def sum_over_adjoint(p: Array | None, q: Array, s: Array, u: Array) -> Array:
    """(P + Q S) U^-H for p and q (m, k), s and upper triangular u (k, k); P = 0 if None.

    Deep input is cheaper to pass through once than twice: P U^-H + Q (S U^-H).
    """
    m, k = q.shape[:2]
    # The solve begins when what S is made of is done with: less is in memory at a time.
    if u.ndim > 2 or (are_known(k) and not _is_for_lapack(u)):
        s, u = materialized((s, u))
    if p is None:
        return matmul(q, Inverted.of(u, rows=k).adjoint_right(s))
    known = are_known(m, k)
    inverted, g = Inverted.of(u, rows=m if known else math.inf).within_reach()
    of_p = inverted.unscaled()
    if known and m >= 32 * k:
        product = matmul(q, inverted.adjoint_right(divided(s, g)))
        return divided(of_p.adjoint_right(p), g) + product
    return of_p.adjoint_right(settled(divided(p + summand(q, s), g)))


def product_over(x: Array, u: Array, s: Array, v: Array) -> Array:
    """X U^-1 [S U^-H | V] for x (m, k), upper triangular u (k, k), s (k, k) and v (k, n)."""
    inverted = Inverted.of(u)
    d = inverted.d[None]
    factor = inverted._adjoint_right(s)  # times D^-1
    rows, columns = x.shape[0], x.shape[1] + v.shape[1]
    if are_known(rows, columns) and rows < columns:
        # X U^-1 is smaller than what it is multiplied by.
        return matmul(inverted.right(x), beside(divided(factor, d), v))
    units = beside(d, jnp.ones_like(d, shape=(1, *v.shape[1:])))
    factor = inverted._left(beside(factor, v))
    if x.ndim > 2:  # the divisions are part of the product's loop
        return settled(divided(summand(divided(x, d), factor), units))
    product: Array = _product_in_units(x, inverted.d[:, None], factor, units)
    return product


def adjoint_over(inverted: Inverted, x: Array, y: Array) -> Array:
    """U^-H X^H Y for U and x (m, k), of the size of U, and y (m, n)."""
    in_units = settled(divided(x, inverted.d[None]))
    return inverted._adjoint_left(adjoint_matmul(in_units, y))


@jax.custom_jvp
def _product_in_units(x: Array, inner: Array, y: Array, outer: Array) -> Array:
    """X C^-1 Y D^-1 for x (m, k), y (k, n), units C (k, 1), those of X, and D (1, n)."""
    product: Array = _unless_extreme(x, inner, y, outer)
    return product


@_product_in_units.defjvp
def _product_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    """Without the choice, which would be taken for each matrix of a batch; units are constant."""
    (x, inner, y, outer), (dx, _, dy, _) = primals, tangents
    y, dy = divided(y, inner), divided(dy, inner)
    tangent = divided(matmul(dx, y) + matmul(x, dy), outer)
    return _product_in_units(*primals), tangent


# C^-1 Y D^-1 leaves the range of the type where products of two units do; where they do not, it
# spares two passes, over X and over the product.
_unless_extreme = unless_any(
    lambda _x, _inner, _y, outer: any_extreme(outer),
    lambda x, inner, y, outer: over_leading_axes(matmul)(x, divided(divided(y, inner), outer)),
    lambda x, inner, y, outer: divided(over_leading_axes(matmul)(divided(x, inner.mT), y), outer),
)


def _leaves_lapack_asleep(k: int, u: Array) -> bool:
    """Whether k x k of u's type, for a B of k columns, is solved with in the thread that calls."""
    return k * k * (2 if jnp.iscomplexobj(u) else 1) < _AWAKE


def _is_for_halves(u: Array) -> bool:
    return jnp.iscomplexobj(u) and _leaves_lapack_asleep(-(-len(u) // 2), u)


def _is_for_lapack(u: Array) -> bool:
    by_threads = jnp.iscomplexobj(u) and not _is_for_halves(u) and len(u) <= _MOST_FOR_THREADS
    return by_threads or _leaves_lapack_asleep(len(u), u)


def _inverse(u: Array) -> Array:
    """U^-1 for upper triangular u (k, k)."""
    return _inverse_by_solver(u) if _leaves_lapack_asleep(len(u), u) else _inverse_of_large(u)


@jax.custom_jvp
def _inverse_of_large(u: Array) -> Array:
    on_cpu = _inverse_by_halves if _is_for_halves(u) else _inverse_by_rows
    inverse: Array = lax.platform_dependent(u, cpu=on_cpu, default=_inverse_by_solver)
    return inverse


@_inverse_of_large.defjvp
def _inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """-U^-1 dU U^-1."""
    inverse = _inverse_of_large(*primals)
    return inverse, -matmul(inverse, matmul(jnp.triu(*tangents), inverse))


def _inverse_by_solver(u: Array) -> Array:
    return solve_left(u, jnp.eye(len(u), dtype=u.dtype))


def _inverse_by_halves(u: Array) -> Array:
    """[[A, B], [0, C]]^-1 = [[A^-1, -A^-1 B C^-1], [0, C^-1]]."""
    h = len(u) // 2
    a, c = _inverse_by_solver(u[:h, :h]), _inverse_by_solver(u[h:, h:])
    b = -matmul(a, matmul(u[:h, h:], c))
    return jnp.concatenate([jnp.concatenate([a, b], axis=1), jnp.pad(c, [(0, 0), (h, 0)])])


def _inverse_by_rows(u: Array) -> Array:
    """By substitution from the last row on, in a loop of products.

    A LAPACK solve of this size waits for the cores that XLA's threads hold.
    """
    k = u.shape[0]
    on_diagonal = diagonal(u)[:, None]
    above = jnp.triu(u, 1) / on_diagonal

    def substitute_row(step: Array, x: Array) -> Array:
        i = k - 1 - step
        row, known = (lax.dynamic_slice_in_dim(y, i, 1) for y in (above, x))
        return lax.dynamic_update_slice_in_dim(x, known - matmul(row, x), i, 0)

    x: Array = lax.fori_loop(0, k, substitute_row, jnp.eye(k, dtype=u.dtype) / on_diagonal)
    return x
