"""Products and triangular solves of matrices (..., rows, columns), in one precision."""

import jax.numpy as jnp
from jax import Array, lax


def adjoint(x: Array) -> Array:
    """The conjugate transpose of x (..., m, n)."""
    return jnp.conj(x.mT)


def matmul(x: Array, y: Array) -> Array:
    """X Y at full precision: GPUs and TPUs would round float32 to fewer bits by default."""
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)


def solve_left(u: Array, b: Array) -> Array:
    """U^-1 B for upper triangular u (..., k, k) and b (..., k, n)."""
    return lax.linalg.triangular_solve(u, b, left_side=True, lower=False)


def solve_adjoint_left(u: Array, b: Array) -> Array:
    """U^-H B for upper triangular u (..., k, k) and b (..., k, n)."""
    return lax.linalg.triangular_solve(
        u, b, left_side=True, lower=False, transpose_a=True, conjugate_a=True
    )
