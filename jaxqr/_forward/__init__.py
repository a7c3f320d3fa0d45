"""How factors are computed. Nothing here knows of derivatives."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxqr._forward import batched, cholesky, householder, panels, wide
from jaxqr._forward.householder import real_diagonal
from jaxqr._linalg import reflectors
from jaxqr._linalg.batching import are_many_small, batch_aware, over_columns, over_matrices
from jaxqr._linalg.crossovers import MOST_UNROLLED, Crossovers
from jaxqr._linalg.phases import phases, with_positive_diagonal
from jaxqr._linalg.reflectors import Reflectors
from jaxqr._linalg.tuning import by_platform

# What ``method`` may be. "auto" takes only what has the orthogonality of Householder's, as "panels"
# and "wide" have it, too, and on platforms where nothing was measured, Householder's itself.
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
    if are_many_small(c, a, most_columns=c.most_unrolled):
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

    def multiplied(reflectors_of: ReflectorsOf, a: Array, c: Array) -> tuple[Array, Array]:
        r0, q = reflectors_of(a)
        (r,) = with_positive_diagonal(r0) if positive_diagonal else real_diagonal(r0)
        return _times(q, r0, r, c, adjoint), r

    product, r = batch_aware(_by_reflectors(multiplied, method))(a, c)
    return product, r


def times(a: Array, r: Array, c: Array, method: str, *, adjoint: bool) -> Array:
    """Q C or Q^H C likewise, for the Q that belongs to r = qr(a, "r", method)."""

    def multiplied(reflectors_of: ReflectorsOf, a: Array, r: Array, c: Array) -> Array:
        r0, q = reflectors_of(a)
        return _times(q, r0, r, c, adjoint)

    product: Array = over_columns(batch_aware(_by_reflectors(multiplied, method)))(a, r, c)
    return product


def _by_reflectors(f: Callable[..., Any], method: str) -> Callable[..., Any]:
    """F, of what makes reflectors and of A and others, by the reflectors of this method."""
    by_householder = partial(f, householder.reflectors_of)
    ways: dict[str, Callable[..., Any]] = {
        "batched": partial(f, batched.reflectors_of),
        "panels": partial(f, panels.reflectors_of),
        "wide": partial(f, wide.reflectors_of),
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

    def product(q: Reflectors, of_r: Array, c: Array) -> Array:
        if adjoint:
            return of_r * reflectors.adjoint_times(q, c)
        return reflectors.times(q, jnp.conj(of_r) * c)

    rows = c.shape[-2]
    of_r = (phases(r, rows) * jnp.conj(phases(r0, rows)))[..., None]  # r = of_r * r0
    out: Array = over_matrices(product)(q, of_r, c)
    return out


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
