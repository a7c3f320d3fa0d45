"""QR by Householder reflectors, as each platform has it: LAPACK, cuSOLVER, XLA's own expander.

JAX's functions are bound here by name, once: a program may set ``jnp.linalg.qr = jaxqr.qr``.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.numpy.linalg import qr as jax_qr

from jaxqr._linalg.phases import with_positive_diagonal
from jaxqr._linalg.unitary import apply_q, apply_q_adjoint


def qr(a: Array, mode: str) -> tuple[Array, ...]:
    """(q, r), or (r,) in mode "r", of a (..., m, n)."""
    result = jax_qr(a, mode=mode)
    factors = (result,) if mode == "r" else tuple(result)
    return real_diagonal(*factors)


def triangle_and_product(a: Array, b: Array) -> tuple[Array, Array]:
    """U and the first n rows of Q^H B without Q, for a (..., m, n), m >= n, and b (..., m, p)."""
    transposed, taus = jax_qr(a, mode="raw")
    reflectors, n = transposed.mT, a.shape[-1]
    c = apply_q_adjoint(reflectors, taus, b)
    return jnp.triu(reflectors[..., :n, :]), c[..., :n, :]


def reflectors_of(a: Array, columns: int) -> tuple[Array, Any]:
    """R (..., k, n) as LAPACK leaves it, and the first reflectors of a (..., m, n)."""
    transposed, taus = jax_qr(a, mode="raw")
    stored = transposed.mT
    return jnp.triu(stored)[..., :columns, :], (stored[..., :columns], taus[..., :columns])


def q_times(reflectors: Any, c: Array) -> Array:
    """Q C for the first k columns of Q and c (..., k, n): Q is applied, not formed."""
    v, taus = reflectors
    rows = [(0, 0)] * (c.ndim - 2) + [(0, v.shape[-2] - c.shape[-2]), (0, 0)]
    return apply_q(v, taus, jnp.pad(c, rows))


def q_adjoint_times(reflectors: Any, b: Array) -> Array:
    """Q^H B for the first k columns of Q and b (..., m, n)."""
    v, taus = reflectors
    return apply_q_adjoint(v, taus, b)[..., : v.shape[-1], :]


def real_diagonal(*factors: Array) -> tuple[Array, ...]:
    """The same factors with a real diagonal of R.

    LAPACK and its kin give one already. XLA's expander, which TPUs use, leaves a complex element
    as it is where there is nothing below it to eliminate.
    """
    if not jnp.iscomplexobj(factors[-1]):
        return factors
    out: tuple[Array, ...] = lax.platform_dependent(
        *factors,
        cpu=_as_they_are,
        cuda=_as_they_are,
        rocm=_as_they_are,
        default=with_positive_diagonal,
    )
    return out


def _as_they_are(*factors: Array) -> tuple[Array, ...]:
    return factors
