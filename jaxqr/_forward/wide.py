"""Wide matrices by the paper's partition, A = [X | Y]: X alone is factored, and V = Q^H Y.

As orthonormal as the Q of X is, and as accurate: Q is square, so Y - Q V is rounding alone. Where
R alone is wanted, the reflectors of X are applied to Y, and Q is not formed.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from jaxqr._forward import householder
from jaxqr._linalg.batching import are_known
from jaxqr._linalg.crossovers import ASLEEP, Crossovers
from jaxqr._linalg.products import adjoint_of_factor, matmul
from jaxqr._linalg.reflectors import Reflectors

_FEW = 512  # elements: LAPACK's calls take a few microseconds, and products as many


def suits(c: Crossovers, a: Array, mode: str) -> bool:
    """Whether a (..., m, n) is wide enough to gain, and real: complex products are slow.

    R alone gains where LAPACK's threads would wake.
    """
    m, n = a.shape[-2:]
    if not are_known(m, n) or jnp.iscomplexobj(a):
        return False
    return n > m and n >= c.least_width * m and m * n > (ASLEEP if mode == "r" else _FEW)


def qr(a: Array, mode: str, of_leading: Callable[..., tuple[Array, ...]]) -> tuple[Array, ...]:
    """(q, r), or (r,) in mode "r", of a (..., m, n), m <= n; X by ``of_leading`` where Q is."""
    m = a.shape[-2]
    x, y = a[..., :m], a[..., m:]
    if mode == "r":
        return (reflectors_of(a)[0],)
    q, u = of_leading(x, "reduced")
    return q, jnp.concatenate([u, matmul(adjoint_of_factor(q, y), y)], axis=-1)


def reflectors_of(a: Array) -> tuple[Array, Reflectors]:
    """R and the reflectors likewise."""
    m = a.shape[-2]
    u, q = householder.reflectors_of(a[..., :m])
    return jnp.concatenate([u, householder.adjoint_times(q, a[..., m:])], axis=-1), q
