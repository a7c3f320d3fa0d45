"""Householder QR of many small matrices at once, with the batch axis innermost.

A few columns are a loop, compiled once; what they leave to do is a smaller matrix.
"""

import functools

import jax.numpy as jnp
from jax import Array

from jaxqr._linalg.algebra import select
from jaxqr._linalg.batching import innermost, outermost
from jaxqr._linalg.layouts import materialized
from jaxqr._linalg.reflectors import (
    Group,
    Reflectors,
    eliminate,
    in_groups,
    inner,
    magnitude,
    reflect_in_loop,
    reflected,
)
from jaxqr._linalg.scaling import divided

_LEAST_ROWS_APART = 16


def qr(a: Array, mode: str) -> tuple[Array, ...]:
    """(q, r), or (r,) in mode "r", of a (..., m, n)."""
    m, n = a.shape[-2:]
    r, groups = _factored(innermost(a))
    if mode == "complete":
        r = jnp.pad(r, [(0, m - len(r)), (0, 0), (0, 0)])
    factors = [r]
    if mode != "r":
        factors.insert(0, _q(groups, m if mode == "complete" else min(m, n)))
    return tuple(outermost(materialized(x), a.shape[:-2]) for x in factors)


def triangle_and_product(a: Array, b: Array) -> tuple[Array, Array]:
    """U and the first n rows of Q^H B, for a (..., m, n), m >= n, and b (..., m, p)."""
    u, groups = _factored(innermost(a))
    c, _ = reflected(groups, innermost(b))
    return outermost(materialized(u), a.shape[:-2]), outermost(materialized(c), a.shape[:-2])


def reflectors_of(a: Array) -> tuple[Array, Reflectors]:
    """R (..., k, n) and the reflectors of a (..., m, n)."""
    m = a.shape[-2]
    r, groups = _factored(innermost(a))
    v = jnp.concatenate([jnp.pad(v, [(m - len(v), 0), (0, 0), (0, 0)]) for v, _ in groups], axis=1)
    taus = jnp.concatenate([taus for _, taus in groups])[None]
    r, v, taus = (outermost(materialized(x), a.shape[:-2]) for x in (r, v, taus))
    return r, Reflectors(v, taus)


def _factored(x: Array) -> tuple[Array, list[Group]]:
    """R (k, n, batch) and the reflectors of x (m, n, batch)."""
    k = min(x.shape[:2])
    largest = functools.reduce(jnp.maximum, map(jnp.abs, x))
    scale = materialized(magnitude(largest)).astype(x.dtype)  # (n, batch)
    x = divided(x, scale[None])
    groups, rows = [], []
    # R's rows by themselves keep no trailing matrix in memory, but they are copied: which is little
    # where there are many others.
    are_apart = x.shape[0] >= max(x.shape[1], _LEAST_ROWS_APART)
    for columns in in_groups(x, k):
        size = columns.stop - columns.start
        x, taus = eliminate(x, size)
        groups.append((x[:, :size], taus))
        done = _rows_of_r(x[:size], scale)
        rows.append(materialized(done) if are_apart else done)
        x = x[size:, size:]
    return jnp.concatenate(rows), groups


def _rows_of_r(x: Array, scale: Array) -> Array:
    """(size, n, batch), from what is stored of them from the first one's diagonal on."""
    size, columns = x.shape[:2]
    done = len(scale) - columns
    rows = select(jnp.tri(size, columns, -1, dtype=bool), 0, x * scale[None, done:])
    return jnp.pad(rows, [(0, 0), (done, 0), (0, 0)])


def _q(groups: list[Group], columns: int) -> Array:
    """So many columns of Q = H_0 H_1 ...

    From the last on: they meet a matrix that is still the identity in its first rows and columns.
    """
    v, taus = groups[-1]
    rows, columns = len(v) - len(taus), columns - sum(len(taus) for _, taus in groups)
    zero = jnp.zeros_like(taus[:1])[None]  # "like": under shard_map it varies where A does
    q = jnp.eye(rows, columns, dtype=v.dtype)[..., None] + zero
    for v, taus in reversed(groups):
        size = len(taus)
        if size == 1:
            q = _bordered(v[1:, 0], taus, q)
            continue
        below = jnp.pad(q, [(0, 0), (size, 0), (0, 0)])
        new = jnp.eye(size, below.shape[1], dtype=v.dtype)[..., None] + zero
        q = reflect_in_loop(v, taus, jnp.concatenate([new, below]))
    return q


def _bordered(v: Array, tau: Array, q: Array) -> Array:
    """H times q with the identity's first row and column, for v (m - 1, batch) below its 1."""
    turned = jnp.concatenate([1 - tau, -tau * v])[:, None]
    if q.shape[1]:
        w = inner(tau[0], v, q)
        others = jnp.concatenate([-w[None], q - v[:, None] * w[None]])
        turned = jnp.concatenate([turned, others], axis=1)
    return materialized(turned)
