"""Many small matrices at once: the batch axis innermost, columns unrolled.

A loop over the batch inside LAPACK spends its time on calls. With the batch axis innermost, what is
done to one number of one matrix is done to the same number of all of them by vector instructions,
and as it is elementwise along the batch, a sharded batch stays where it is.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxqr._forward.reflectors import reflector, scale_of

# Measured on a CPU (bench/results, suite shapes): unrolling gains up to eight columns, and costs
# seconds of compile time beyond sixteen.
LEAST_BATCH = 64
MOST_COLUMNS = 8
MOST_UNROLLED = 16
MOST_ROWS = 32


def suits(*arrays: Any) -> bool:
    """Whether these arrays (..., rows, columns) are many small matrices."""
    return all(
        math.prod(x.shape[:-2]) >= LEAST_BATCH
        and max(x.shape[-2:]) <= MOST_ROWS
        and 0 < min(x.shape[-2:]) <= MOST_COLUMNS
        for x in jax.tree.leaves(arrays)
    )


def _innermost(x: Array) -> Array:
    """(..., rows, columns) as (rows, columns, batch)."""
    return jnp.moveaxis(x.reshape(-1, *x.shape[-2:]), 0, -1)


def batch_innermost(f: Callable[..., Array]) -> Callable[..., Array]:
    """F, a function of matrices, mapped over leading axes that all arguments share."""

    def mapped(*args: Any) -> Array:
        batch = jax.tree.leaves(args)[0].shape[:-2]
        out: Array = jax.vmap(f, in_axes=-1, out_axes=-1)(*jax.tree.map(_innermost, args))
        return jnp.moveaxis(out, -1, 0).reshape(*batch, *out.shape[:-1])

    return mapped


def qr(a: Array, mode: str) -> tuple[Array, ...]:
    """(q, r), or (r,) in mode "r", of a (..., m, n)."""
    factors = jax.vmap(lambda x: _unrolled_qr(x, mode), in_axes=-1, out_axes=-1)(_innermost(a))
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
