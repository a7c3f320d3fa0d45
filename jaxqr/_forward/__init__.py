"""How factors are computed. Nothing here knows of derivatives."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxqr._forward import batched, cholesky, householder, panels, wide
from jaxqr._forward.householder import real_diagonal
from jaxqr._linalg import reflectors
from jaxqr._linalg.algebra import diagonal
from jaxqr._linalg.batching import batch_aware, over_columns, over_matrices, suits
from jaxqr._linalg.crossovers import MOST_UNROLLED, Crossovers
from jaxqr._linalg.phases import with_positive_diagonal
from jaxqr._linalg.reflectors import Reflectors
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


ReflectorsOf = Callable[[Array], tuple[Array, Reflectors]]
"""R (..., k, n), its diagonal as the algorithm leaves it, and the reflectors of Q."""


def multiply(
    a: Array, c: Array, method: str, *, adjoint: bool, positive_diagonal: bool
) -> tuple[Array, Array]:
    """Q C and R, or Q^H C and R, for the square Q of a (..., m, n) and c (..., m, p).

    Of C in Q C there may be fewer rows, below which it is zero.
    """

    def by(reflectors_of: ReflectorsOf) -> Callable[..., Any]:
        def multiplied(a: Array, c: Array) -> tuple[Array, Array]:
            r0, q = reflectors_of(a)
            (r,) = with_positive_diagonal(r0) if positive_diagonal else real_diagonal(r0)
            return _times(q, r0, r, c, adjoint), r

        return multiplied

    product, r = batch_aware(_by_reflectors(by, method))(a, c)
    return product, r


def times(a: Array, r: Array, c: Array, method: str, *, adjoint: bool) -> Array:
    """Q C or Q^H C likewise, for the Q that belongs to r = qr(a, "r", method)."""

    def by(reflectors_of: ReflectorsOf) -> Callable[..., Any]:
        def multiplied(a: Array, r: Array, c: Array) -> Array:
            r0, q = reflectors_of(a)
            return _times(q, r0, r, c, adjoint)

        return multiplied

    product: Array = over_columns(batch_aware(_by_reflectors(by, method)))(a, r, c)
    return product


def _by_reflectors(
    by: Callable[[ReflectorsOf], Callable[..., Any]], method: str
) -> Callable[..., Any]:
    """A function whose first argument is A, by the reflectors that this method makes of it."""
    by_householder = by(householder.reflectors_of)
    ways = {
        "batched": by(batched.reflectors_of),
        "panels": by(panels.reflectors_of),
        "wide": by(wide.reflectors_of),
    }

    def chosen(a: Array, *others: Array) -> Any:
        def best(c: Crossovers) -> Callable[..., Any]:
            return ways.get(_best(c, a, "r", method), by_householder)

        if method in ("auto", BEFORE_PRODUCTS):
            return by_platform(best, by_householder, a, *others)
        return ways.get(method, by_householder)(a, *others)

    return chosen


def _times(q: Reflectors, r0: Array, r: Array, c: Array, adjoint: bool) -> Array:
    """Q C or Q^H C for the Q of r, which is q, that of r0, but for phases."""

    def product(q: Reflectors, phases: Array, c: Array) -> Array:
        if adjoint:
            return phases * reflectors.adjoint_times(q, c)
        return reflectors.times(q, jnp.conj(phases) * c)

    out: Array = over_matrices(product)(q, _phases(r, r0, c.shape[-2]), c)
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
