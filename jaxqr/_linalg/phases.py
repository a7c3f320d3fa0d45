"""The phases of the triangular factor's diagonal: what makes a QR factorization unique."""

import jax.numpy as jnp
from jax import Array

from jaxqr._linalg.algebra import diagonal


def with_positive_diagonal(*factors: Array) -> tuple[Array, ...]:
    """(q, r) or (r,) with the phase of each diagonal element of R moved from R into Q.

    q is (..., m, k) or (..., m, m), r is (..., k, n) or (..., m, n).
    """
    *q, r = factors
    rows, columns = r.shape[-2:]
    turned = jnp.triu(r * jnp.conj(phases(r, rows))[..., :, None], 1)
    on_diagonal = jnp.eye(rows, columns, dtype=bool)
    positive = jnp.where(on_diagonal, jnp.abs(r).astype(r.dtype), turned)  # exactly real
    return *(x * phases(r, x.shape[-1])[..., None, :] for x in q), positive


def phases(r: Array, count: int) -> Array:
    """The phases (..., count) of the diagonal of R; 1 where it is zero, and beyond its end."""
    d = diagonal(r)
    phase = jnp.where(d == 0, jnp.ones_like(d), jnp.sign(d))
    beyond = count - d.shape[-1]
    if beyond == 0:  # of a symbol, if that is known
        return phase
    # Not beside an array of ones: a sharded batch has its phases where it is.
    return jnp.pad(phase, [(0, 0)] * (d.ndim - 1) + [(0, beyond)], constant_values=1)
