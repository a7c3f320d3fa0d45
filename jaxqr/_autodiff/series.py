"""Taylor coefficients: the rules of ``jax.experimental.jet`` for the primitives of the wiring.

A series is a list of tuples of arrays, one of each order. A rule that has none is refused.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import jet
from jax.extend.core import jaxpr_as_fun

from jaxqr._autodiff.wiring import (
    Arrays,
    Batched,
    MaybeArrays,
    Wiring,
    columns_p,
    constant_p,
    differentiated,
    function_p,
    is_inexact,
    or_zeros,
    pullback_p,
    pushforward_p,
    unpack,
    watched_p,
)

NO_TAYLOR = "has no Taylor expansion: jax.experimental.jet does not go through it."


def _expanded(args: list[Arrays], *, rule: Any, wire: Wiring) -> list[Arrays]:
    """The series of the outputs from that of the arguments."""
    if not hasattr(rule, "taylor"):
        raise NotImplementedError(f"{rule.caller} {NO_TAYLOR}")
    series: list[Arrays] = rule.taylor(args, wire)
    return series


@dataclasses.dataclass(frozen=True)
class _Known:
    """A function whose last arguments are its outputs, known, and constant."""

    rule: Any
    count: int

    def forward(self, *args: Array) -> Arrays:
        return args[-self.count :]

    def residuals(self, args: Arrays, outputs: Arrays) -> Arrays:
        out: Arrays = self.rule.residuals(args[: -self.count], outputs)
        return out

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        out: Arrays = self.rule.pushforward(residuals, tangents[: -self.count])
        return out

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Any:
        return *self.rule.pullback(residuals, cotangents), *(None,) * self.count


def _along(rule: Any, residuals: list[Arrays]) -> tuple[Callable[..., Any], list[Arrays]]:
    """The series of the outputs as a function of that of the arguments, and these."""
    if not hasattr(rule, "recovered"):
        raise NotImplementedError(f"{rule.caller} {NO_TAYLOR}")
    args, known = rule.recovered(residuals)

    def wire(other: Any) -> Callable[..., Arrays]:
        if known is None or other != rule:
            return differentiated(other, forward=True)
        return lambda *args: differentiated(_Known(rule, len(known)), True)(*args, *known)

    def outputs(args: list[Arrays]) -> list[Arrays]:
        series = rule.taylor(args, wire)
        return [tuple(x for x in term if is_inexact(x)) for term in series]

    return outputs, args


def _pulled_series(
    operands: list[Arrays], *, rule: Any, present: tuple[bool, ...], moving: tuple[bool, ...]
) -> list[Arrays]:
    """The series of the pullback.

    Of F along a(t), the coefficient F_{K-i} depends on a_{K-d} as F_{d-i} does on a_0. So the
    pullback of (F_0, ..., F_K) to (a_0, ..., a_K) is, both in reverse, the series of the pullback.
    """
    residuals, bars = zip(*(unpack(term, present) for term in operands), strict=True)
    outputs, args = _along(rule, list(residuals))
    series, pull = jax.vjp(outputs, args)
    (pulled,) = pull([or_zeros(*pair) for pair in zip(bars[::-1], series, strict=True)])
    return [tuple(x for x, m in zip(term, moving, strict=True) if m) for term in pulled[::-1]]


def _pushed_series(operands: list[Arrays], *, rule: Any, present: tuple[bool, ...]) -> list[Arrays]:
    """The series of the pushforward: the tangent of the series of the outputs."""
    residuals, dots = zip(*(unpack(term, present) for term in operands), strict=True)
    outputs, args = _along(rule, list(residuals))
    tangents = [or_zeros(*pair) for pair in zip(dots, args, strict=True)]
    pushed: list[Arrays] = jax.jvp(outputs, (args,), (tangents,))[1]
    return pushed


def _series_of_traced(primals_in: Any, series_in: Any, **params: Any) -> Any:
    f = jaxpr_as_fun(params["traced"])
    return jet.jet(f, tuple(primals_in), series_in, factorial_scaled=False)


def _typed_as(like: Any, x: Any) -> Any:
    """X, sharded as another of its dtype: the zeros that jet makes are not."""
    if jnp.result_type(x) != jnp.result_type(like) or jax.typeof(x) == jax.typeof(like):
        return x
    return x + jnp.zeros_like(like)


def _jet_rule(series_of: Callable[..., list[Arrays]]) -> Callable[..., Any]:
    """JAX's rule, of a function from a rule and the series of the operands to that of outputs."""

    def mapped(operands: list[Arrays], *, rule: Any, **params: Any) -> list[Arrays]:
        if not isinstance(rule, Batched):
            return series_of(operands, rule=rule, **params)

        def of_each(operands: list[Arrays]) -> list[Arrays]:
            return mapped(operands, rule=rule.rule, **params)

        axes = (*rule.axes, *(0,) * sum(params.get("present", ())))
        out: list[Arrays] = jax.vmap(of_each, in_axes=([axes] * len(operands),))(operands)
        return out

    def of_operands(
        primals: Any, terms: Any, *, traced: Any = None, forward: bool = False, **params: Any
    ) -> Any:
        pairs = zip(primals, terms, strict=True)
        typed = [[_typed_as(primal, x) for x in series] for primal, series in pairs]
        operands = [tuple(primals), *zip(*typed, strict=True)]
        outputs, *rest = mapped(operands, **params)
        series = [list(x) for x in zip(*rest, strict=True)]
        constant = [jet.zero_series] * (len(outputs) - len(series))
        return list(outputs), [*series, *constant]

    return of_operands


def _series_of_constant(primals_in: Any, series_in: Any, **params: Any) -> Any:
    outputs = constant_p.bind(*primals_in, **params)
    return outputs, [jet.zero_series] * len(outputs)


jet.deflinear(watched_p)
jet.jet_rules[constant_p] = _series_of_constant
jet.jet_rules[function_p] = _jet_rule(
    functools.partial(_expanded, wire=functools.partial(differentiated, forward=True))
)
jet.jet_rules[pullback_p] = _jet_rule(_pulled_series)
jet.jet_rules[pushforward_p] = _jet_rule(_pushed_series)
jet.jet_rules[columns_p] = _series_of_traced
