"""Wide matrices by the paper's partition, A = [X | Y]: X alone is factored, V = Q^H Y is a product.

As orthonormal as the Q of X is, and as accurate: Q is square, so Y - Q V is rounding alone.
"""

import jax.numpy as jnp
from jax import Array

from jaxqr._crossovers import LEAST_WIDTH
from jaxqr._forward import householder
from jaxqr._forward.products import adjoint, matmul


def suits(a: Array, mode: str) -> bool:
    """Whether a (..., m, n) is wide enough to gain."""
    m, n = a.shape[-2:]
    return n >= LEAST_WIDTH[mode] * m


def qr(a: Array, mode: str) -> tuple[Array, ...]:
    """(q, r), or (r,) in mode "r", of a (..., m, n), m <= n."""
    m = a.shape[-2]
    q, u = householder.qr(a[..., :m], "reduced")
    r = jnp.concatenate([u, matmul(adjoint(q), a[..., m:])], axis=-1)
    return (r,) if mode == "r" else (q, r)
