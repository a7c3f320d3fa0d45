"""Householder QR of many small matrices at once: columns unrolled, the batch axis innermost."""

import functools

import jax.numpy as jnp
from jax import Array

from jaxqr._linalg.algebra import materialized, total
from jaxqr._linalg.batching import innermost, outermost
from jaxqr._linalg.reflectors import (
    Reflectors,
    abs2,
    eliminated,
    magnitude,
    reflect,
    reflected,
    scalars,
    terms,
)


def qr(a: Array, mode: str) -> tuple[Array, ...]:
    """(q, r), or (r,) in mode "r", of a (..., m, n)."""
    m, n = a.shape[-2:]
    reflectors, r = _triangle(innermost(a), min(m, n))
    if mode == "complete":
        r = jnp.pad(r, [(0, m - len(r)), (0, 0), (0, 0)])
    factors = [r]
    if mode != "r":
        factors.insert(0, _q(reflectors, m if mode == "complete" else min(m, n)))
    return tuple(outermost(materialized(x), a.shape[:-2]) for x in factors)


def triangle_and_product(a: Array, b: Array) -> tuple[Array, Array]:
    """U and the first n rows of Q^H B, for a (..., m, n), m >= n, and b (..., m, p)."""
    reflectors, u = _triangle(innermost(a), a.shape[-1])
    rows, _ = reflected(reflectors, innermost(b))
    c = jnp.stack(rows)
    return outermost(materialized(u), a.shape[:-2]), outermost(materialized(c), a.shape[:-2])


def reflectors_of(a: Array) -> tuple[Array, Reflectors]:
    """R (..., k, n) and the reflectors of a (..., m, n)."""
    m, k = a.shape[-2], min(a.shape[-2:])
    reflectors, r = _triangle(innermost(a), k)
    columns = [jnp.pad(v, [(m - len(v), 0), (0, 0)]) for v, _ in reflectors]
    v, taus = jnp.stack(columns, axis=1), jnp.stack([tau for _, tau in reflectors])[None]
    r, v, taus = (outermost(materialized(x), a.shape[:-2]) for x in (r, v, taus))
    return r, Reflectors(v, taus)


def _triangle(x: Array, steps: int) -> tuple[list[tuple[Array, Array]], Array]:
    """The reflectors that eliminate so many columns of x (m, n, batch), and as many rows of R."""
    largest = functools.reduce(jnp.maximum, map(jnp.abs, x))
    scale = materialized(magnitude(largest)).astype(x.dtype)  # (n, batch)
    reflectors, rows = _eliminate(x / scale[None], steps)
    zero = jnp.zeros_like(scale[:1])
    r = [jnp.concatenate([zero] * i + [row * scale[i:]]) for i, row in enumerate(rows)]
    return reflectors, jnp.stack(r)


def _eliminate(x: Array, steps: int) -> tuple[list[tuple[Array, Array]], list[Array]]:
    """The reflectors (v, tau) of x (m, n, batch), v below its 1; R's rows from the diagonal on.

    What a step leaves to do is a matrix with one row and one column less.
    """
    reflectors, rows = [], []
    for _ in range(steps):
        alpha, below = x[0, 0], x[1:, 0]
        rest = total([jnp.zeros_like(alpha.real), *abs2(below)])
        beta = materialized(eliminated(alpha, rest))
        tau, scale = scalars(alpha, beta)
        v = materialized(below * scale[None])
        reflectors.append((v, materialized(tau)))  # in what follows it is part of a loop
        beta = beta.astype(x.dtype)[None]
        if x.shape[1] == 1:
            rows.append(beta)
            break
        row, x = reflect(v, tau, x[:, 1:])
        rows.append(jnp.concatenate([beta, row]))
    return reflectors, rows


def _q(reflectors: list[tuple[Array, Array]], columns: int) -> Array:
    """So many columns of Q = H_0 H_1 ...

    From the last on: H_j meets a matrix that is still the identity in its first rows and columns.
    """
    v, tau = reflectors[-1]
    identity = jnp.eye(v.shape[0], columns - len(reflectors), dtype=v.dtype)
    q = identity[..., None] + jnp.zeros_like(tau)[None, None]
    for v, tau in reversed(reflectors):
        turned = jnp.concatenate([1 - tau[None], -tau[None] * v])[:, None]
        if q.shape[1]:
            w = materialized(tau[None] * total(terms(v, q)))
            others = jnp.concatenate([-w[None], q - v[:, None] * w[None]])
            turned = jnp.concatenate([turned, others], axis=1)
        q = materialized(turned)
    return q
