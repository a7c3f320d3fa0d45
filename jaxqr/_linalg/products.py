"""Products and triangular solves of matrices (..., rows, columns), in one precision."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jax.lax.linalg import triangular_solve

from jaxqr._linalg.batching import are_known
from jaxqr._linalg.crossovers import Crossovers
from jaxqr._linalg.layouts import LAYOUT_IS_SHARDED, by_rows
from jaxqr._linalg.tuning import by_platform

_ROWS = 2048  # of a sum that is taken term by term
_LEAST_COLUMNS = 192  # of Y, for X^H Y to be worth a copy of X


def with_more(x: Array, *, rows: int = 0, columns: int = 0) -> Array:
    """X (..., m, n), and so many rows and columns of zeros behind its own."""
    return jnp.pad(x, [*[(0, 0)] * (x.ndim - 2), (0, rows), (0, columns)])


def adjoint(x: Array) -> Array:
    """The conjugate transpose of x (..., m, n)."""
    return jnp.conj(x.mT)


def _product(x: Array, y: Array) -> Array:
    """X Y at full precision: GPUs and TPUs would round float32 to fewer bits by default."""
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)


def matmul(x: Array, y: Array) -> Array:
    """X Y, of large complex x and y by real products."""
    if not jnp.iscomplexobj(x) or not are_known(*x.shape[-2:], y.shape[-1]):
        return _product(x, y)

    def best(c: Crossovers) -> Callable[..., Array]:
        least = min(*x.shape[-2:], y.shape[-1])
        return _by_real_products if least >= c.least_complex_product else _product

    out: Array = by_platform(best, _product, x, y)
    return out


def adjoint_of_factor(x: Array, y: Array) -> Array:
    """X^H for x (..., m, k), to be multiplied with y (..., m, n).

    In float64 XLA's products for CPUs read a transposed factor at two thirds of their rate. Where
    there is enough to multiply, bringing it in order first costs less.
    """
    small = not are_known(y.shape[-1]) or y.shape[-1] < _LEAST_COLUMNS
    if x.dtype != jnp.float64 or small or not LAYOUT_IS_SHARDED:
        return adjoint(x)
    out: Array = lax.platform_dependent(x, cpu=lambda x: by_rows(adjoint(x)), default=adjoint)
    return out


def project(q: Array, x: Array) -> Array:
    """Q^H X for q (..., m, k) and a narrow x (..., m, n).

    As (X^H Q)^H: of a single column XLA makes a product with the transpose of Q, which it copies.
    A single row it adds up term by term, so that errors grow with m: it is given blocks of rows.
    """

    def product(q: Array, x: Array) -> Array:
        return adjoint(matmul(adjoint(x), q))

    m = x.shape[-2]
    if not are_known(m, x.shape[-1]) or x.shape[-1] > 1 or m < 2 * _ROWS:
        return product(q, x)
    blocks = m // _ROWS

    def add(i: Array, known: Array) -> Array:
        rows = (lax.dynamic_slice_in_dim(y, i * _ROWS, _ROWS, axis=-2) for y in (q, x))
        return known + product(*rows)

    rest = product(q[..., blocks * _ROWS :, :], x[..., blocks * _ROWS :, :])
    out: Array = lax.fori_loop(0, blocks, add, rest)
    return out


def _by_real_products(x: Array, y: Array) -> Array:
    """X Y for complex x and y by four real products, which XLA has faster ones of."""
    return lax.complex(
        _product(x.real, y.real) - _product(x.imag, y.imag),
        _product(x.real, y.imag) + _product(x.imag, y.real),
    )


def solve_left(u: Array, b: Array) -> Array:
    """U^-1 B for upper triangular u (..., k, k) and b (..., k, n)."""
    return triangular_solve(u, b, left_side=True, lower=False)


def solve_adjoint_left(u: Array, b: Array) -> Array:
    """U^-H B for upper triangular u (..., k, k) and b (..., k, n)."""
    return triangular_solve(u, b, left_side=True, lower=False, transpose_a=True, conjugate_a=True)
