"""How factors are computed. Nothing here knows of derivatives."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxqr._forward import batched, cholesky, householder, panels, wide
from jaxqr._linalg.algebra import diagonal
from jaxqr._linalg.batching import batch_aware, over_matrices, smaller, suits
from jaxqr._linalg.crossovers import MOST_UNROLLED, Crossovers
from jaxqr._linalg.reflectors import Reflectors, adjoint_times, times
from jaxqr._linalg.tuning import by_platform

# What ``method`` may be. "auto" takes only what has the orthogonality of Householder's, and on
# platforms where nothing was measured, Householder's itself. ("panels" and "wide" are, too.)
METHODS = ("auto", "householder", "batched", "cholesky")

# "auto" where the derivative's products follow, which want the cores for themselves.
BEFORE_PRODUCTS = "auto, before products"


def qr(a: Array, mode: str, method: str) -> tuple[Array, ...]:
    """(q, r), or (r,) in mode "r", of a (..., m, n) by one of METHODS, or BEFORE_PRODUCTS."""
    methods: dict[str, Callable[..., Any]] = {
        "householder": partial(householder.qr, mode=mode),
        "batched": partial(batched.qr, mode=mode),
        "cholesky": partial(cholesky.qr, mode=mode),
        "panels": partial(panels.qr, mode=mode),
        "wide": partial(wide.qr, mode=mode, of_leading=householder.qr),
        "wide, by panels": partial(wide.qr, mode=mode, of_leading=panels.qr),
    }

    def choose(a: Array) -> Any:
        return by_platform(lambda c: methods[_best(c, a, mode, method)], methods["householder"], a)

    methods |= {"auto": choose, BEFORE_PRODUCTS: choose}
    chosen = methods[method if a.size else "householder"]  # which takes empty matrices
    factors: tuple[Array, ...] = batch_aware(chosen)(a)
    return factors


def _best(c: Crossovers, a: Array, mode: str, method: str) -> str:
    """The method that "auto" or BEFORE_PRODUCTS comes to by these crossovers."""
    if suits(c, a, most_columns=c.most_unrolled):
        return "batched"
    if cholesky.suits(c, a, mode):
        return "cholesky"
    if method == BEFORE_PRODUCTS and panels.suits(c, a, mode):
        return "panels" if a.shape[-2] >= a.shape[-1] else "wide, by panels"
    return "wide" if wide.suits(c, a, mode) else "householder"


def q_times(a: Array, r: Array, c: Array, method: str) -> Array:
    """Q C for the square Q that belongs to r = qr(a, "r", method), by its reflectors.

    r is (..., k, n), c (..., m, p), or fewer rows of C, below which it is zero.
    """

    def apply(q: Reflectors, phases: Array, c: Array) -> Array:
        return times(q, jnp.conj(phases) * c)

    return _by_reflectors(apply, a, r, c, method)


def q_adjoint_times(a: Array, r: Array, b: Array, method: str) -> Array:
    """Q^H B likewise."""

    def apply(q: Reflectors, phases: Array, b: Array) -> Array:
        return phases * adjoint_times(q, b)

    return _by_reflectors(apply, a, r, b, method)


def _by_reflectors(
    apply: Callable[[Reflectors, Array, Array], Array], a: Array, r: Array, x: Array, method: str
) -> Array:
    def by(reflectors_of: Callable[[Array], tuple[Array, Reflectors]]) -> Callable[..., Array]:
        def applied(a: Array, r: Array, x: Array) -> Any:
            r0, q = reflectors_of(a)
            return over_matrices(apply)(q, _phases(r, r0, x.shape[-2]), x)

        return applied

    by_householder, by_batch = by(householder.reflectors_of), by(batched.reflectors_of)
    by_panels = by(panels.reflectors_of)
    k = smaller(*a.shape[-2:])

    def of_leading(a: Array, r: Array, x: Array) -> Array:
        return by_householder(a[..., :k], r[..., :k], x)

    if method == "batched":
        return by_batch(a, r, x)
    if method not in ("auto", BEFORE_PRODUCTS):
        return by_householder(a, r, x)

    def best(c: Crossovers) -> Callable[..., Array]:
        ways = {"batched": by_batch, "panels": by_panels, "wide": of_leading}
        return ways.get(_best(c, a, "r", method), by_householder)

    out: Array = by_platform(best, by_householder, a, r, x)
    return out


def _phases(r: Array, r0: Array, rows: int) -> Array:
    """The phases with r = phases * r0, of two triangular factors of one matrix: (..., rows, 1)."""
    signs = [jnp.where(d == 0, 1, jnp.sign(d)) for d in (diagonal(r), diagonal(r0))]
    phases = (signs[0] * jnp.conj(signs[1]))[..., None]
    rest = [(0, 0)] * (r.ndim - 2) + [(0, rows - phases.shape[-2]), (0, 0)]
    return jnp.pad(phases, rest, constant_values=1)


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
