"""Products and triangular solves of matrices (..., rows, columns), in one precision."""

from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jax.lax.linalg import triangular_solve

from jaxqr._linalg.crossovers import LEAST_COMPLEX_PRODUCT


def adjoint(x: Array) -> Array:
    """The conjugate transpose of x (..., m, n)."""
    return jnp.conj(x.mT)


def matmul(x: Array, y: Array) -> Array:
    """X Y at full precision: GPUs and TPUs would round float32 to fewer bits by default."""
    product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    if jnp.iscomplexobj(x) and min(*x.shape[-2:], y.shape[-1]) >= LEAST_COMPLEX_PRODUCT:
        out: Array = lax.platform_dependent(x, y, cpu=_by_real_products, default=product)
        return out
    return product(x, y)


def _by_real_products(x: Array, y: Array) -> Array:
    """X Y for complex x and y by four real products, which XLA has faster ones of."""
    return lax.complex(
        x.real @ y.real - x.imag @ y.imag,
        x.real @ y.imag + x.imag @ y.real,
    )


def solve_left(u: Array, b: Array) -> Array:
    """U^-1 B for upper triangular u (..., k, k) and b (..., k, n)."""
    return triangular_solve(u, b, left_side=True, lower=False)


def solve_adjoint_left(u: Array, b: Array) -> Array:
    """U^-H B for upper triangular u (..., k, k) and b (..., k, n)."""
    return triangular_solve(u, b, left_side=True, lower=False, transpose_a=True, conjugate_a=True)
