"""The phases of the triangular factor's diagonal: what makes a QR factorization unique."""

import jax.numpy as jnp
from jax import Array

from jaxqr._linalg.algebra import diagonal
from jaxqr._linalg.batching import smaller


def with_positive_diagonal(*factors: Array) -> tuple[Array, ...]:
    """(q, r) or (r,) with the phase of each diagonal element of R moved from R into Q.

    q is (..., m, k) or (..., m, m), r is (..., k, n) or (..., m, n).
    """
    r = factors[-1]
    rows, columns = r.shape[-2:]
    k = smaller(rows, columns)
    d = diagonal(r)
    phase = jnp.where(d == 0, jnp.ones_like(d), jnp.sign(d))
    of_rows = _pad_with_ones(phase, rows - k)
    turned = jnp.triu(r * jnp.conj(of_rows)[..., :, None], 1)
    on_diagonal = jnp.eye(rows, columns, dtype=bool)
    r = jnp.where(on_diagonal, jnp.abs(r).astype(r.dtype), turned)  # exactly real
    return *(q * _pad_with_ones(phase, q.shape[-1] - k)[..., None, :] for q in factors[:-1]), r


def _pad_with_ones(x: Array, count: int) -> Array:
    if count == 0:  # of a symbol, if that is known
        return x
    return jnp.concatenate([x, jnp.ones((*x.shape[:-1], count), x.dtype)], axis=-1)
