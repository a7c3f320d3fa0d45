"""Q by its reflectors, as a function with a derivative: what applies Q without forming it."""

import dataclasses
from typing import Any, cast

import jax.numpy as jnp
from jax import Array

from jaxqr import _forward
from jaxqr._autodiff import Arrays, MaybeArrays, differentiated, varying_alike
from jaxqr._linalg.batching import over_leading_axes
from jaxqr._linalg.dependence import marks
from jaxqr._linalg.layouts import by_rows, materialized
from jaxqr._linalg.products import with_more
from jaxqr._rules import partial_qr


@dataclasses.dataclass(frozen=True)
class Applied:
    """Q C, or Q^H C, for the square Q that belongs to R; arguments are A, R and C.

    A (..., m, n), R (..., k, n), C (..., m, p), or for Q C fewer rows of C, below which it is zero.
    Of R nothing but the phases of its diagonal counts: its cotangent is zero.
    """

    adjoint: bool
    method: str
    forward_mode: bool
    caller: str

    def forward(self, a: Array, r: Array, c: Array) -> Arrays:
        """(product,)."""
        return (_forward.times(a, r, c, self.method, adjoint=self.adjoint),)

    def residuals(self, args: Arrays, outputs: Arrays) -> Arrays:
        """A, R, and what Q has on its right: C, or the product."""
        a, r, c = args
        return (a, r, *(outputs if self.adjoint else (c,)))

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        """(dproduct,): d(Q C) = Q (dC + Omega C), d(Q^H C) = Q^H dC - Omega Q^H C."""
        a, r, right = residuals
        da, _, dc = tangents
        right = _whole(right, a)
        turned = jnp.zeros_like(right)
        if da is not None:
            g = self._by_q(a, r, da, adjoint=True)
            turned = over_leading_axes(partial_qr.turned)(g, r, marks(r), right)
        if self.adjoint:
            return ((0 if dc is None else self._by_q(a, r, dc, adjoint=True)) - turned,)
        return (self._by_q(a, r, turned if dc is None else _whole(dc, a) + turned, adjoint=False),)

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Any:
        """(a_bar, None, c_bar)."""
        a, r, right = residuals
        (bar,) = cotangents
        assert bar is not None
        c_bar = self._by_q(a, r, bar, adjoint=not self.adjoint)
        right_bar = -bar if self.adjoint else c_bar
        pull = over_leading_axes(partial_qr.pullback_turned)
        f = pull(r, marks(r), _whole(right, a), right_bar)
        return self._by_q(a, r, f, adjoint=False), None, c_bar[..., : right.shape[-2], :]

    def _by_q(self, a: Array, r: Array, x: Array, *, adjoint: bool) -> Array:
        return apply_q(a, r, x, dataclasses.replace(self, adjoint=adjoint))


def _whole(c: Array, a: Array) -> Array:
    """C with the rows that are left out."""
    return with_more(c, rows=a.shape[-2] - c.shape[-2])


def apply_q(a: Array, r: Array, c: Array, rule: Applied) -> Array:
    """Q C or Q^H C, as the rule has it; c (..., m, p)."""
    (product,) = differentiated(rule, rule.forward_mode)(*varying_alike((a, r, c)))
    return cast(Array, product)


# The derivative of R alone where columns depend on others, by the Q of a rule.


def pull_held_r(a: Array, r: Array, r_bar: Array, rule: Applied) -> Array:
    """A-bar (..., m, n) from the cotangent of R alone."""
    factor = over_leading_axes(partial_qr.pullback_held_r)(r, r_bar, marks(r))
    # Side by side with the reflectors, its steps would take memory as well.
    a, factor = materialized((by_rows(a), by_rows(factor)))
    return apply_q(a, r, factor, dataclasses.replace(rule, adjoint=False))


def push_held_r(a: Array, r: Array, da: Array, rule: Applied) -> Array:
    """DR (..., k, n) from dA."""
    g = apply_q(a, r, da, dataclasses.replace(rule, adjoint=True))[..., : r.shape[-2], :]
    dr: Array = over_leading_axes(partial_qr.pushforward_held_r)(g, r, marks(r))
    return dr
