"""Products and triangular solves, in the one precision and the one spelling the package uses."""

import jax.numpy as jnp
from jax import Array, lax

_TINY = 8 * 8 * 32  # multiplications


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
    return lax.linalg.triangular_solve(u, b, left_side=True, lower=False)


def solve_adjoint_left(u: Array, b: Array) -> Array:
    """U^-H B for upper triangular u (..., k, k) and b (..., k, n)."""
    return lax.linalg.triangular_solve(
        u, b, left_side=True, lower=False, transpose_a=True, conjugate_a=True
    )
