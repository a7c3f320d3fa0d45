"""CholeskyQR2 for deep matrices: nearly all of it matrix products. Verified, with a way back.

The Cholesky factor of A^H A is R; made twice, Q is as orthonormal as Householder's wherever the
first Q was nearly so (Y. Yamamoto, Y. Nakatsukasa, Y. Yanagisawa, T. Fukaya, "Roundoff error
analysis of the CholeskyQR2 algorithm", ETNA 44 (2015)). Whether it was is known by then, and where
it was not, Householder's algorithm does the work. Both give R a positive diagonal, so that which of
them ran shows in nothing but time.

Where Q is not wanted, blocks of columns are factored so, one after the other, and each is taken out
of what is to its right: block Gram-Schmidt, half the operations. Its R, and what becomes of Q^H B,
are as accurate as Householder's, also where such a Q would not be orthonormal (J. L. Barlow, "Block
modified Gram-Schmidt algorithms and their analysis", SIAM J. Matrix Anal. Appl. 40 (2019)).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxqr._forward import householder
from jaxqr._linalg.algebra import adjoint_matmul, diagonal, matmul, project
from jaxqr._linalg.batching import are_known, over_leading_axes
from jaxqr._linalg.blocked import LONE, Inverted, lower_of_adjoint_product, lower_sum
from jaxqr._linalg.crossovers import Crossovers
from jaxqr._linalg.layouts import materialized
from jaxqr._linalg.phases import with_positive_diagonal
from jaxqr._linalg.reflectors import abs2
from jaxqr._linalg.scaling import divided, units_of_columns

Arrays = tuple[Array, ...]

# The first Q's departure from orthonormality, and the mean condition of the blocks that are
# inverted: up to here errors are those of Householder's algorithm (tests/test_cholesky.py).
_MOST_DEPARTURE = 0.1
_MOST_CONDITION = 8.0
_DEEPER = 64  # columns for which a matrix is once more as deep, where its triangle is pivoted
_EVEN = 16  # columns: products with a multiple of so many are up to 1.5 times as fast


def suits(c: Crossovers, a: Array, mode: str, *, least_depth: float | None = None) -> bool:
    """Whether the matrices a (..., m, n) are deep and large enough to gain."""
    depth = c.least_depth if least_depth is None else least_depth
    columns = {
        "reduced": (c.least_columns, c.most_columns),
        "r": (c.least_columns_of_r, c.most_columns_of_r),
    }
    m, n = a.shape[-2:]
    if mode not in columns or not are_known(m, n):
        return False
    least, most = columns[mode]
    if jnp.iscomplexobj(a):
        most = c.most_columns_of_complex
    return m >= n and least <= n <= most and m >= depth * n and m * n >= c.least_size


def qr(a: Array, mode: str) -> Arrays:
    """(q, r), or (r,) in mode "r", of a (..., m, n), m >= n; the diagonal of R is positive."""

    def by_householder(a: Array, *_: Array) -> Arrays:
        return with_positive_diagonal(*householder.qr_in_a_branch(a, mode))[::-1]

    if mode == "r":
        return _without_q(by_householder, a)
    first_pass, second_pass = over_leading_axes(_first_pass), over_leading_axes(_second_pass)
    if a.shape[-1] > LONE:
        sound, first = _in_the_same_loop(first_pass, a)
        u, q = _mixed(by_householder, sound, second_pass(*first), a)
    else:
        sound, *first = first_pass(a)
        u, q = _chosen(
            sound,
            lambda a, *first: second_pass(*first),
            lambda a, *_: _two_passes_carefully(by_householder, a),
            *(a, *first),
        )
    return q, u


def suits_pivots(c: Crossovers, a: Array, mode: str) -> bool:
    """Whether these are so deep that the pivots of their triangular factors cost little."""
    n = a.shape[-1]
    depth = max(2 * c.least_depth, n / _DEEPER) if are_known(n) else c.least_depth
    return suits(c, a, mode, least_depth=depth)


def pivoted_qr(a: Array, mode: str, all_pivots: Callable[[Array], Arrays]) -> Arrays:
    """(q, r, p), or (r, p) in mode "r", by ``all_pivots`` of the triangular factor.

    For |A x| = |U x|, A's pivots are U's. Where U is not sound, ``all_pivots`` of A itself. The
    diagonal of R is positive.
    """

    def of_itself(a: Array, *_: Any) -> Arrays:
        *factors, p = all_pivots(a)
        return *with_positive_diagonal(*factors), p

    def of_triangle(a: Array, u: Array) -> Arrays:
        return of_itself(u)

    if mode == "r" and a.shape[-1] > LONE:
        sound, u = over_leading_axes(_gram_schmidt)(a)
        return _chosen(sound, of_triangle, of_itself, a, u)

    def second_pass(a: Array, u1: Array, q1: Array, gram: Array) -> Arrays:
        u2 = Inverted.cholesky(gram).unscaled()
        *q, r, p = of_itself(jnp.triu(matmul(u2.u, u1)))
        return *(matmul(q1, u2.left(x)) for x in q), r, p

    def first_pass(a: Array, u1: Array, inverted: Inverted) -> Arrays:
        sound, *first = over_leading_axes(_orthogonalized)(a, inverted)
        return _chosen(sound, over_leading_axes(second_pass), of_itself, a, u1, *first)

    # U1 alone tells nearly all that is unsound.
    u1, inverted, sound = over_leading_axes(_cholesky)(a)
    return _chosen(sound, first_pass, of_itself, a, u1, inverted)


def _chosen(sound: Array, usual: Callable[..., Arrays], careful: Any, *args: Any) -> Arrays:
    """USUAL of args, but ``careful`` if a matrix is not sound."""
    out: Arrays = lax.cond(jnp.all(sound), usual, careful, *args)
    return out


# What factors A here returns whether it was sound, the triangular factor, and what else there is.


def _carefully(
    by_blocks: Callable[..., Arrays],
    by_householder: Callable[..., Arrays],
    a: Array,
    *b: Array,
) -> Arrays:
    """BY_BLOCKS of A in units of its columns, and ``by_householder`` of each matrix unsound for it.

    Powers of two change no digit: a matrix that was sound as it is gets the factors that it had.
    """
    units = units_of_columns(a)
    sound, u, *others = by_blocks(divided(a, units), *b)
    return _mixed(by_householder, sound, (u * units, *others), a, *b)


def _mixed(
    by_householder: Callable[..., Arrays],
    sound: Array,
    factors: Arrays,
    a: Array,
    *b: Array,
) -> Arrays:
    """The factors, and those ``by_householder`` of each matrix that is not sound."""
    each = sound[..., None, None]

    def mixed(factors: Arrays, a: Array, *b: Array) -> Arrays:
        others = by_householder(a, *b)
        return tuple(jnp.where(each, x, y) for x, y in zip(factors, others, strict=True))

    return _chosen(sound, lambda factors, *_: factors, mixed, factors, a, *b)


def _two_passes_carefully(by_householder: Callable[..., Arrays], a: Array) -> Arrays:
    """U and Q likewise, Q1 made anew: or it would be in memory while LAPACK makes another Q."""
    units = units_of_columns(a)
    u1, inverted, sound = over_leading_axes(_cholesky)(divided(a, units))
    nearly, _, gram = over_leading_axes(_orthogonalized)(divided(a, units), inverted)

    def by_factors(a: Array, units: Array, u1: Array, inverted: Inverted, gram: Array) -> Arrays:
        q1 = over_leading_axes(_q1)(divided(a, units), inverted)
        u, q = over_leading_axes(_second_pass)(u1, q1, gram)
        return u * units, q

    known = (a, units, u1, inverted, gram)
    if sound.ndim:
        return _mixed(by_householder, sound & nearly, by_factors(*known), a)
    return _chosen(sound & nearly, by_factors, by_householder, *known)


def triangle_and_product(a: Array, b: Array) -> tuple[Array, Array]:
    """U and Q^H B without Q, for a (..., m, n), m >= n, and b (..., m, p)."""
    u, c = _without_q(householder.triangle_and_product, a, b)
    return u, c


def _first_pass(a: Array) -> Arrays:
    """Whether A (m, n) can go on; U1 and Q1 with A = Q1 U1, and the lower triangle of Q1^H Q1."""
    u1, inverted, sound = _cholesky(a)
    nearly, q1, gram = _orthogonalized(a, inverted)
    return sound & nearly, u1, q1, gram


def _orthogonalized(a: Array, inverted: Inverted) -> tuple[Array, Array, Array]:
    """Whether Q1 = A U1^-1 is nearly orthonormal, Q1, and the lower triangle of Q1^H Q1."""
    q1 = _q1(a, inverted)
    gram = _lower_gram(q1)
    departure = jnp.max(jnp.abs(jnp.tril(gram) - jnp.eye(a.shape[1], dtype=a.dtype)))
    return departure <= _MOST_DEPARTURE, q1, gram


def _q1(a: Array, inverted: Inverted) -> Array:
    return inverted.unscaled().right(a)


def _second_pass(u1: Array, q1: Array, gram: Array) -> tuple[Array, Array]:
    """U and Q."""
    u2 = Inverted.cholesky(gram).unscaled()
    return jnp.triu(matmul(u2.u, u1)), u2.right(q1)


def _without_q(by_householder: Callable[..., Arrays], a: Array, *b: Array) -> Arrays:
    """U of a (..., m, n), and the first n rows of Q^H B where there is a b."""
    by_blocks = over_leading_axes(_gram_schmidt)
    if a.shape[-1] > LONE:
        return _mixed(by_householder, *_in_the_same_loop(by_blocks, a, *b), a, *b)
    sound, *out = by_blocks(a, *b)
    return _chosen(
        sound,
        lambda out, *_: tuple(out),
        lambda _, a, *b: _carefully(by_blocks, by_householder, a, *b),
        *(out, a, *b),
    )


def _in_the_same_loop(
    by_blocks: Callable[..., Arrays], a: Array, *b: Array
) -> tuple[Array, Arrays]:
    """Which are sound, and the factors: as A is or, if one is not, in units of its columns.

    One loop of at most two turns compiles all this once. Blocks of columns are copied anyway, so
    it costs little to divide them on the way.
    """

    def attempt(state: Any) -> Any:
        tried, units, *_ = state
        sound, u, *others = by_blocks(divided(a, units), *b)
        next_units = lax.cond(
            jnp.all(sound), lambda a, d: d, lambda a, d: units_of_columns(a), a, units
        )
        return tried + 1, next_units, sound, u * units, *others

    def goes_on(state: Any) -> Array:
        tried, _, sound, *_ = state
        on: Array = (tried == 0) | ((tried == 1) & ~jnp.all(sound))
        return on

    def nothing_like(x: Array) -> Array:
        return jnp.zeros_like(a, shape=x.shape, dtype=x.dtype)

    start = map(nothing_like, jax.eval_shape(by_blocks, a, *b))
    tried = jnp.zeros_like(a, shape=(), dtype=jnp.int32)
    _, _, sound, *out = lax.while_loop(
        goes_on, attempt, (tried, jnp.ones_like(a[..., :1, :]), *start)
    )
    return sound, tuple(out)


def _gram_schmidt(a: Array, *b: Array) -> Arrays:
    """Whether all blocks of columns were sound, U, and Q^H B where there is a b."""
    n = a.shape[1]
    size = _columns_of_a_block(n)
    sound, u, products = jnp.asarray(True), jnp.zeros_like(a, shape=(n, n)), []
    block, rest = a[:, :size], a[:, size:]
    for j in range(0, n, size):
        block_is_sound, u1, q1, gram = _first_pass(block)
        sound &= block_is_sound
        u2 = Inverted.cholesky(gram).unscaled()
        above = u2.adjoint_left(adjoint_matmul(q1, rest))
        product = [u2.adjoint_left(project(q1, x)) for x in b]
        row = jnp.concatenate([jnp.triu(matmul(u2.u, u1)), above], axis=1)
        u = lax.dynamic_update_slice(u, row, (j, j))
        products.append(product)
        above = u2.left(above)
        block = _without(rest[:, :size], q1, above[:, :size])
        rest = _without(rest[:, size:], q1, above[:, size:])
        b = tuple(_without(x, q1, u2.left(y)) for x, y in zip(b, product, strict=True))
    return sound, u, *(jnp.concatenate(rows) for rows in zip(*products, strict=True))


def _columns_of_a_block(n: int) -> int:
    """Of n columns in blocks that are nearly alike; the last has what is left."""
    return min(-(-n // -(-n // LONE) // _EVEN) * _EVEN, n)


def _without(x: Array, q: Array, projection: Array) -> Array:
    return materialized(x - matmul(q, projection))


def _lower_gram(a: Array) -> Array:
    return lower_sum(lower_of_adjoint_product(a, a))


def _cholesky(a: Array) -> tuple[Array, Inverted, Array]:
    """The Cholesky factor U of A^H A, its inverted blocks, and whether these can be relied on.

    A product with an inverse leaves a residual that grows with the condition of what was inverted,
    where substitution's does not.
    """
    gram = _lower_gram(a)
    inverted = Inverted.cholesky(gram)
    u = inverted.e
    limits = jnp.finfo(gram.dtype)
    squares = diagonal(gram).real
    least, most = float(limits.tiny / limits.eps**2), float(limits.max * limits.eps)
    # No square left the range of the type; and False for what is not a number, here and below.
    sound = (least <= jnp.min(squares)) & (jnp.max(squares) <= most)
    for i, inverse in enumerate(inverted.inverses):
        size = inverse.shape[-1]
        start = i * inverted.inverses[0].shape[-1]
        block = u[start : start + size, start : start + size]
        condition = jnp.sum(abs2(block)) * jnp.sum(abs2(inverse)) / size**2
        sound &= condition <= _MOST_CONDITION**2
    return inverted.u, inverted, sound
