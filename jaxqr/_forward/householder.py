"""QR by Householder reflectors, as each platform has it: LAPACK, cuSOLVER, XLA's own expander.

JAX's functions are bound here by name, once: a program may set ``jnp.linalg.qr = jaxqr.qr``.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.numpy.linalg import qr as jax_qr

from jaxqr._linalg.batching import over_matrices
from jaxqr._linalg.phases import with_positive_diagonal
from jaxqr._linalg.reflectors import Reflectors, adjoint_times
from jaxqr._linalg.scaling import divided, units_at_the_ends


def qr(a: Array, mode: str) -> tuple[Array, ...]:
    """(q, r), or (r,) in mode "r", of a (..., m, n)."""
    units = units_at_the_ends(a)
    *q, r = within_the_range(divided(a, units), mode)
    return *q, r * units


def within_the_range(a: Array, mode: str) -> tuple[Array, ...]:
    """Likewise, but digits are lost where columns are near the ends of the type's range."""
    result: Any = jax_qr(a, mode=mode)
    return real_diagonal(*((result,) if mode == "r" else result))


def reflectors_of(a: Array) -> tuple[Array, Reflectors]:
    """R (..., k, n) as LAPACK leaves it, and the reflectors of a (..., m, n)."""
    units = units_at_the_ends(a)
    transposed, taus = jax_qr(divided(a, units), mode="raw")
    k = min(a.shape[-2:])
    stored = transposed.mT
    return jnp.triu(stored[..., :k, :]) * units, Reflectors(stored[..., :k], taus[..., None, :])


def triangle_and_product(a: Array, b: Array) -> tuple[Array, Array]:
    """U and the first n rows of Q^H B without Q, for a (..., m, n), m >= n, and b (..., m, p)."""
    u, q = reflectors_of(a)
    units = units_at_the_ends(b)
    product = over_matrices(adjoint_times)(q, divided(b, units))
    return u, product[..., : u.shape[-2], :] * units


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
