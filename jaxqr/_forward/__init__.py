"""How factors are computed. Nothing here knows of derivatives."""

from collections.abc import Callable
from functools import partial
from typing import Any

from jax import Array, lax

from jaxqr._batching import batch_aware, suits
from jaxqr._forward import batched, householder

# What ``method`` may be. "auto" takes only what has the orthogonality of Householder's, and on
# platforms where nothing was measured, Householder's itself.
METHODS = ("auto", "householder", "batched")


def qr(a: Array, mode: str, method: str) -> tuple[Array, ...]:
    """(q, r), or (r,) in mode "r", of a (..., m, n) by one of METHODS."""
    by_batch, one_by_one = partial(batched.qr, mode=mode), partial(householder.qr, mode=mode)

    def choose(a: Array) -> Any:
        if not suits(a):
            return one_by_one(a)
        return lax.platform_dependent(a, cpu=by_batch, default=one_by_one)

    methods: dict[str, Callable[..., Any]] = {
        "auto": choose,
        "householder": one_by_one,
        "batched": by_batch,
    }
    factors: tuple[Array, ...] = batch_aware(methods[method])(a)
    return factors
