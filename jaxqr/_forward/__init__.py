"""How factors are computed. Nothing here knows of derivatives."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxqr._forward import batched, cholesky, householder, wide
from jaxqr._forward.crossovers import MOST_UNROLLED
from jaxqr._linalg.batching import batch_aware, over_columns, suits

# What ``method`` may be. "auto" takes only what has the orthogonality of Householder's, and on
# platforms where nothing was measured, Householder's itself.
METHODS = ("auto", "householder", "batched", "cholesky")


def qr(a: Array, mode: str, method: str) -> tuple[Array, ...]:
    """(q, r), or (r,) in mode "r", of a (..., m, n) by one of METHODS."""
    methods: dict[str, Callable[..., Any]] = {
        "householder": partial(householder.qr, mode=mode),
        "batched": partial(batched.qr, mode=mode),
        "cholesky": partial(cholesky.qr, mode=mode),
    }

    def choose(a: Array) -> Any:
        best, safe = _best_on_cpu(a, mode), householder.qr
        if best is safe:
            return safe(a, mode)
        return lax.platform_dependent(
            a, cpu=partial(best, mode=mode), default=partial(safe, mode=mode)
        )

    methods["auto"] = choose
    chosen = methods[method if a.size else "householder"]  # which takes empty matrices
    factors: tuple[Array, ...] = batch_aware(chosen)(a)
    return factors


def _best_on_cpu(a: Array, mode: str) -> Callable[..., tuple[Array, ...]]:
    if suits(a, most_columns=MOST_UNROLLED):
        return batched.qr
    if cholesky.suits(a, mode):
        return cholesky.qr
    if wide.suits(a):
        return wide.qr
    return householder.qr


def q_times(a: Array, r: Array, c: Array, method: str) -> Array:
    """Q C for the Q that belongs to r = qr(a, "r", method), by its reflectors; c is (..., k, n)."""

    def by_householder(a: Array, r: Array, c: Array) -> Array:
        r0, reflectors = householder.reflectors_of(a, c.shape[-2])
        return householder.q_times(reflectors, jnp.conj(_phases(r, r0)) * c)

    def by_batch(a: Array, r: Array, c: Array) -> Array:
        (r0,) = batched.qr(a, "r")
        return batched.q_times(a, jnp.conj(_phases(r, r0)) * c)

    return _by_reflectors(by_householder, by_batch, a, r, c, method)


def q_adjoint_times(a: Array, r: Array, b: Array, method: str) -> Array:
    """Q^H B likewise; b is (..., m, n)."""

    def by_householder(a: Array, r: Array, b: Array) -> Array:
        r0, reflectors = householder.reflectors_of(a, r.shape[-2])
        return _phases(r, r0) * householder.q_adjoint_times(reflectors, b)

    def by_batch(a: Array, r: Array, b: Array) -> Array:
        (r0,) = batched.qr(a, "r")
        return _phases(r, r0) * batched.q_adjoint_times(a, b)

    return _by_reflectors(by_householder, by_batch, a, r, b, method)


def _by_reflectors(
    by_householder: Callable[..., Array],
    by_batch: Callable[..., Array],
    a: Array,
    r: Array,
    x: Array,
    method: str,
) -> Array:
    by_householder, by_batch = over_columns(by_householder), over_columns(by_batch)
    k = min(a.shape[-2:])

    def of_leading(a: Array, r: Array, x: Array) -> Any:
        return by_householder(a[..., :k], r[..., :k], x)

    out: Array
    if method == "auto":
        by_best = {batched.qr: by_batch, wide.qr: of_leading}
        on_cpu = by_best.get(_best_on_cpu(a, "r"), by_householder)
        out = lax.platform_dependent(a, r, x, cpu=on_cpu, default=by_householder)
    else:
        out = (by_batch if method == "batched" else by_householder)(a, r, x)
    return out


def _phases(r: Array, r0: Array) -> Array:
    """The phases (..., k, 1) with r = phases * r0, of two triangular factors of one matrix."""
    signs = [
        jnp.where(d == 0, 1, jnp.sign(d))
        for d in (jnp.diagonal(x, axis1=-2, axis2=-1) for x in (r, r0))
    ]
    phases: Array = (signs[0] * jnp.conj(signs[1]))[..., None]
    return phases


def refusal(shape: tuple[int, ...], mode: str, method: str, across: tuple[str, str]) -> str | None:
    """What a method needs of a (..., m, n) that this shape lacks, if anything.

    ``across`` is how the caller names rows and columns.
    """
    rows, columns = across
    if method == "batched" and min(shape[-2:]) > MOST_UNROLLED:
        return f"at most {MOST_UNROLLED} rows or columns, which it unrolls"
    if method == "cholesky" and (shape[-2] < shape[-1] or mode == "complete"):
        return f'at least as many {rows} as {columns}, and no mode "complete"'
    return None
