"""Wide matrices by the paper's partition, A = [X | Y]: X alone is factored, V = Q^H Y is a product.

As orthonormal as the Q of X is, and as accurate: Q is square, so Y - Q V is rounding alone.
"""

import jax.numpy as jnp
from jax import Array

from jaxqr._forward import householder
from jaxqr._forward.products import adjoint, matmul

# Columns by rows from where it gains on a CPU with two cores, float32 and float64: 1.3 and 1.3
# times LAPACK's speed for 207 x 277, 3.4 and 1.8 for 200 x 1000, 1.0 and 1.0 for 500 x 600. R alone
# needs no Q in LAPACK: 0.9 and 0.9, 3.2 and 2.1, 0.6 and 0.6; 1.0 and 1.0 for 256 of 32 x 64.
_LEAST_WIDTH = {"reduced": 1.25, "complete": 1.25, "r": 2.0}


def suits(a: Array, mode: str) -> bool:
    """Whether a (..., m, n) is wide enough to gain."""
    m, n = a.shape[-2:]
    return n >= _LEAST_WIDTH[mode] * m


def qr(a: Array, mode: str) -> tuple[Array, ...]:
    """(q, r), or (r,) in mode "r", of a (..., m, n), m <= n."""
    m = a.shape[-2]
    q, u = householder.qr(a[..., :m], "reduced")
    r = jnp.concatenate([u, matmul(adjoint(q), a[..., m:])], axis=-1)
    return (r,) if mode == "r" else (q, r)
