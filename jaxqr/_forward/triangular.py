"""Products and triangular solves, in the one precision and the one spelling the package uses."""

import jax.numpy as jnp
from jax import Array, lax

_TINY = 8 * 8 * 32  # multiplications
_UNROLLED = 8  # columns


def adjoint(x: Array) -> Array:
    """The conjugate transpose of x (..., m, n)."""
    return jnp.conj(x.mT)


def matmul(x: Array, y: Array) -> Array:
    """X Y at full precision: GPUs and TPUs would round float32 to fewer bits by default.

    The product of two tiny matrices is written out, so that XLA can fuse it with its neighbours and
    put a batch axis where it likes; a batch of them as a dot is a loop over small calls.
    """
    if x.ndim == y.ndim == 2 and 0 < x.size * y.shape[1] <= _TINY:
        return jnp.sum(x[:, :, None] * y[None, :, :], axis=1)
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)


def solve_left(u: Array, b: Array) -> Array:
    """U^-1 B for upper triangular u (..., k, k) and b (..., k, n)."""
    if u.ndim == 2 and 0 < u.shape[-1] <= _UNROLLED and b.shape[-1] <= _UNROLLED:
        return substitute(u, b)
    return lax.linalg.triangular_solve(u, b, left_side=True, lower=False)


def solve_adjoint_left(u: Array, b: Array) -> Array:
    """U^-H B for upper triangular u (..., k, k) and b (..., k, n)."""
    if u.ndim == 2 and 0 < u.shape[-1] <= _UNROLLED and b.shape[-1] <= _UNROLLED:
        return substitute(adjoint(u)[::-1, ::-1], b[::-1])[::-1]
    return lax.linalg.triangular_solve(
        u, b, left_side=True, lower=False, transpose_a=True, conjugate_a=True
    )


def substitute(u: Array, b: Array) -> Array:
    """U^-1 B written out, row by row from the last, for the same reason as a tiny product."""
    k = u.shape[-1]
    rows: list[Array] = [b[..., 0, :]] * k
    for i in reversed(range(k)):
        row = b[..., i, :]
        for j in range(i + 1, k):
            row = row - u[..., i, j, None] * rows[j]
        rows[i] = row / u[..., i, i, None]
    return jnp.stack(rows, axis=-2)
