"""Q by its reflectors, as a function with a derivative: what applies Q without forming it."""

import dataclasses
from typing import Any, cast

import jax.numpy as jnp
from jax import Array

from jaxqr import _forward
from jaxqr._autodiff import Arrays, MaybeArrays, differentiated
from jaxqr._linalg.batching import over_leading_axes
from jaxqr._linalg.dependence import marks
from jaxqr._linalg.layouts import by_rows, materialized
from jaxqr._linalg.products import with_more
from jaxqr._rules import partial_qr


@dataclasses.dataclass(frozen=True)
class ByReflectors:
    """The square Q that belongs to R, applied by the reflectors that a method makes of A.

    A (..., m, n), R (..., k, n), C (..., m, p), or for Q C fewer rows of C, below which it is zero.
    """

    method: str
    forward_mode: bool
    caller: str

    def times(self, a: Array, r: Array, c: Array) -> Array:
        """Q C."""
        return self._apply(Applied(self, adjoint=False), a, r, c)

    def adjoint_times(self, a: Array, r: Array, c: Array) -> Array:
        """Q^H C."""
        return self._apply(Applied(self, adjoint=True), a, r, c)

    def _apply(self, rule: "Applied", *args: Array) -> Array:
        (product,) = differentiated(rule, self.forward_mode)(*args)
        return cast(Array, product)

    # The derivative of R alone where columns depend on others.

    def pull_held_r(self, a: Array, r: Array, r_bar: Array) -> Array:
        """A-bar (..., m, n) from the cotangent of R alone."""
        factor = over_leading_axes(partial_qr.pullback_held_r)(r, r_bar, marks(r))
        # Side by side with the reflectors, its steps would take memory as well.
        a, factor = materialized((by_rows(a), by_rows(factor)))
        return self.times(a, r, factor)

    def push_held_r(self, a: Array, r: Array, da: Array) -> Array:
        """dR (..., k, n) from dA."""
        g = self.adjoint_times(a, r, da)[..., : r.shape[-2], :]
        dr: Array = over_leading_axes(partial_qr.pushforward_held_r)(g, r, marks(r))
        return dr


@dataclasses.dataclass(frozen=True)
class Applied:
    """Q C, or Q^H C, as a function of A, R and C, with its derivative.

    Of R nothing but the phases of its diagonal counts: its cotangent is zero.
    """

    q: ByReflectors
    adjoint: bool

    @property
    def caller(self) -> str:
        """The public function."""
        return self.q.caller

    def forward(self, a: Array, r: Array, c: Array) -> Arrays:
        """(product,)."""
        return (_forward.times(a, r, c, self.q.method, adjoint=self.adjoint),)

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
            g = self.q.adjoint_times(a, r, da)
            turned = over_leading_axes(partial_qr.turned)(g, r, marks(r), right)
        if self.adjoint:
            return ((0 if dc is None else self.q.adjoint_times(a, r, dc)) - turned,)
        return (self.q.times(a, r, turned if dc is None else _whole(dc, a) + turned),)

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Any:
        """(a_bar, None, c_bar)."""
        a, r, right = residuals
        (bar,) = cotangents
        assert bar is not None
        c_bar = (self.q.times if self.adjoint else self.q.adjoint_times)(a, r, bar)
        right_bar = -bar if self.adjoint else c_bar
        pull = over_leading_axes(partial_qr.pullback_turned)
        f = pull(r, marks(r), _whole(right, a), right_bar)
        return self.q.times(a, r, f), None, c_bar[..., : right.shape[-2], :]


def _whole(c: Array, a: Array) -> Array:
    """C with the rows that are left out."""
    return with_more(c, rows=a.shape[-2] - c.shape[-2])
