"""How factors are computed. Nothing here knows of derivatives."""

from collections.abc import Callable
from functools import partial
from typing import Any

from jax import Array, lax

from jaxqr._forward import batched, cholesky, householder, wide
from jaxqr._forward.crossovers import MOST_UNROLLED
from jaxqr._linalg.batching import batch_aware, suits

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
