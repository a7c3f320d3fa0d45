"""Householder QR of many small matrices at once: columns unrolled, the batch axis innermost."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxqr._batching import innermost
from jaxqr._forward.reflectors import reflector, scale_of

MOST_UNROLLED = 16  # rows or columns: beyond, compiling takes seconds


def qr(a: Array, mode: str) -> tuple[Array, ...]:
    """(q, r), or (r,) in mode "r", of a (..., m, n)."""
    factors = jax.vmap(lambda x: _unrolled_qr(x, mode), in_axes=-1, out_axes=-1)(innermost(a))
    return tuple(_from_columns(columns, a.shape[:-2]) for columns in factors)


def _from_columns(columns: list[Array], batch: tuple[int, ...]) -> Array:
    """(..., rows, columns) from columns (rows, batch)."""
    x = jnp.stack(columns)
    return jnp.moveaxis(x, -1, 0).mT.reshape(*batch, x.shape[1], x.shape[0])


def _unrolled_qr(a: Array, mode: str) -> tuple[list[Array], ...]:
    """Householder QR of one matrix (m, n) without a loop: the columns of its factors."""
    m, n = a.shape
    k = min(m, n)
    row = np.arange(m)
    scale = scale_of(a)
    columns = [a[:, j] / scale for j in range(n)]
    reflectors = []
    for j in range(k):
        v, tau, beta = reflector(columns[j], j, row)
        reflectors.append((v, tau))
        eliminated = jnp.where(row == j, beta.astype(a.dtype), 0)
        columns[j] = jnp.where(row < j, columns[j], eliminated)
        for i in range(j + 1, n):
            columns[i] = _reflect(v, jnp.conj(tau), columns[i])
    complete = mode == "complete"
    r = [c[: m if complete else k] * scale for c in columns]
    if mode == "r":
        return (r,)
    return [_column_of_q(reflectors, i, row) for i in range(m if complete else k)], r


def _reflect(v: Array, tau: Array, x: Array) -> Array:
    return x - v * (tau * jnp.sum(jnp.conj(v) * x))


def _column_of_q(reflectors: list[tuple[Array, Array]], i: int, row: np.ndarray) -> Array:
    """Column i of Q = H_0 H_1 ...; those beyond the i-th leave e_i alone, and H_i e_i is known."""
    x = jnp.where(row == i, 1, jnp.zeros_like(reflectors[0][0]))
    if i < len(reflectors):
        v, tau = reflectors[i]
        x = x - tau * v
    for v, tau in reversed(reflectors[:i]):
        x = _reflect(v, tau, x)
    return x
