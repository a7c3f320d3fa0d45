"""CholeskyQR2 for deep matrices: nearly all of it matrix products. Verified, with a way back.

The Cholesky factor of A^H A is R; made twice, Q is as orthonormal as Householder's wherever the
first Q was nearly so (Y. Yamamoto, Y. Nakatsukasa, Y. Yanagisawa, T. Fukaya, "Roundoff error
analysis of the CholeskyQR2 algorithm", ETNA 44 (2015)). Whether it was is known by then, and where
it was not, Householder's algorithm does the work. Both give R a positive diagonal, so that which of
them ran shows in nothing but time.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from jaxqr._batching import over_leading_axes
from jaxqr._crossovers import (
    LEAST_COLUMNS,
    LEAST_DEPTH,
    LEAST_SIZE,
    MOST_COLUMNS,
    MOST_COLUMNS_OF_COMPLEX,
)
from jaxqr._forward import householder
from jaxqr._forward.algebra import adjoint, matmul
from jaxqr._forward.blocked import Inverted, lower_of_product, stacked
from jaxqr._forward.phases import with_positive_diagonal

# The first Q's departure from orthonormality, and the mean condition of the blocks that are
# inverted: up to here errors are those of Householder's algorithm (tests/test_cholesky.py).
_MOST_DEPARTURE = 0.1
_MOST_CONDITION = 8.0


def suits(a: Array, mode: str) -> bool:
    """Whether the matrices a (..., m, n) are deep and large enough to gain."""
    if mode not in LEAST_COLUMNS:
        return False
    m, n = a.shape[-2:]
    most = MOST_COLUMNS_OF_COMPLEX if jnp.iscomplexobj(a) else MOST_COLUMNS[mode]
    return LEAST_COLUMNS[mode] <= n <= most and m >= LEAST_DEPTH[mode] * n and m * n >= LEAST_SIZE


def qr(a: Array, mode: str) -> tuple[Array, ...]:
    """(q, r), or (r,) in mode "r", of a (..., m, n), m >= n; the diagonal of R is positive."""

    def cholesky(q1: Array, u1: Array, u2: Inverted) -> tuple[Array, ...]:
        r = jnp.triu(matmul(u2.u, u1))
        return (r,) if mode == "r" else (u2.right(q1), r)

    def by_householder(a: Array) -> tuple[Array, ...]:
        return with_positive_diagonal(*householder.qr(a, mode))

    return _verified(cholesky, by_householder, a)


def triangle_and_product(a: Array, b: Array) -> tuple[Array, Array]:
    """U and Q^H B without Q, for a (..., m, n), m >= n, and b (..., m, p)."""

    def cholesky(q1: Array, u1: Array, u2: Inverted, b: Array) -> tuple[Array, ...]:
        return jnp.triu(matmul(u2.u, u1)), u2.adjoint_left(matmul(adjoint(q1), b))

    u, c = _verified(cholesky, householder.triangle_and_product, a, b)
    return u, c


def _verified(
    cholesky: Callable[..., tuple[Array, ...]],
    by_householder: Callable[..., tuple[Array, ...]],
    a: Array,
    *others: Array,
) -> tuple[Array, ...]:
    """What one of the two makes of a (..., m, n) and others: of a batch, the same for all.

    ``cholesky`` is of matrices (rows, columns), and of the first pass instead of A: Q1, U1 and the
    Cholesky factor of Q1^H Q1 with its inverted blocks.
    """

    def first_pass(a: Array) -> tuple[Array, ...]:
        u1, inverted, sound = _cholesky(a)
        q1 = inverted.right(a)
        gram = _lower_gram(q1)
        departure = jnp.max(jnp.abs(jnp.tril(gram) - jnp.eye(a.shape[1], dtype=a.dtype)))
        return sound & (departure <= _MOST_DEPARTURE), q1, u1, gram

    def second_pass(q1: Array, u1: Array, gram: Array, *others: Array) -> tuple[Array, ...]:
        return cholesky(q1, u1, Inverted.cholesky(gram), *others)

    sound, *first = over_leading_axes(first_pass)(a)
    out: tuple[Array, ...] = lax.cond(
        jnp.all(sound),
        lambda a, first, others: over_leading_axes(second_pass)(*first, *others),
        lambda a, first, others: by_householder(a, *others),
        *(a, first, others),
    )
    return out


def _lower_gram(a: Array) -> Array:
    return stacked(lower_of_product(adjoint(a), a))


def _cholesky(a: Array) -> tuple[Array, Inverted, Array]:
    """The Cholesky factor U of A^H A, its inverted blocks, and whether these can be relied on.

    A product with an inverse leaves a residual that grows with the condition of what was inverted,
    where substitution's does not.
    """
    inverted = Inverted.cholesky(_lower_gram(a))
    u = inverted.u
    sound = jnp.asarray(True)
    for i, inverse in enumerate(inverted.inverses):
        size = inverse.shape[-1]
        start = i * inverted.inverses[0].shape[-1]
        block = u[start : start + size, start : start + size]
        condition = jnp.linalg.norm(block) * jnp.linalg.norm(inverse) / size
        sound &= condition <= _MOST_CONDITION  # False for what is not a number
    return u, inverted, sound
