"""The solution of an augmented system as a function of all that it depends on.

The derivative of the solution is a solution of the same system, and so on: the rules of
:mod:`jaxqr._rules.least_squares` in both wirings, with the solves that they stand on.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxqr._autodiff import (
    NO_TAYLOR,
    Arrays,
    MaybeArrays,
    Wiring,
    constant,
    differentiated,
    linear,
    varying_alike,
)
from jaxqr._forward import least_squares
from jaxqr._linalg.algebra import total
from jaxqr._linalg.augmented import (
    minus_ridge_times,
    near_one,
    rank,
    solve_augmented,
    solve_augmented_without_q,
)
from jaxqr._linalg.batching import over_leading_axes
from jaxqr._linalg.products import adjoint, matmul
from jaxqr._rules import least_squares as rules
from jaxqr._rules.least_squares import Operators, Solved, System


def derive(solved: Solved, forward_mode: bool) -> tuple[Array, Array, Array]:
    """(r, x, x / d) as functions of A, ridge, f and g; factors and solution count as constants."""
    r, x, unmeasured = Solution.of(solved, forward_mode)
    return r, x, unmeasured


def linear_solution(system: System, f: Array | None, g: Array | None) -> tuple[Array, Array, Array]:
    """(r, x, x / d) in forward mode: the tangent map at nothing, linear in f and g.

    As such ``jax.linear_transpose`` takes it. Its derivative in A is that of the tangent map. One
    of f and g is None.
    """
    name, given = ("f", f) if f is not None else ("g", g)
    assert given is not None
    like = Solved(system, f, g, *jax.eval_shape(solution_of, system, f, g))

    def zero(x: Any) -> Array:
        # By vmap over A: sharded as the batch is.
        of_matrix = over_leading_axes(lambda _: jnp.zeros(x.shape[-2:], x.dtype))
        zeros: Array = of_matrix(system.a)
        return zeros

    at = Solved(system, *jax.tree.map(zero, like[1:]))
    structure: Any = jax.tree.structure(at)
    *leaves, dot = varying_alike([*jax.tree.leaves(at), given])
    dots = jax.tree.map(lambda _: None, at)._replace(**{name: dot})
    rule = Solution(structure, True)
    r, x, unmeasured = linear(rule, tuple(leaves), tuple(structure.flatten_up_to(dots)))
    return r, x, unmeasured


def operators(forward_mode: bool) -> Operators:
    """M^+ and N in one of the two wirings."""

    def solve(system: System, f: Array | None, g: Array | None) -> tuple[Array, Array]:
        known = constant(solution_of, system, f, g)
        return derive(Solved(system, f, g, *known), forward_mode)[:2]

    def null_part(system: System, t: Array) -> Array:
        (s,) = NullPart.of((system, t), forward_mode)
        return s

    def residual(system: System, b: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
        g, back = near_one(b, system.d)
        x, y = solve(system, None, g)
        return residual_of(system, system.d * g, x, y, forward_mode), x, back

    return Operators(solve, null_part, residual)


def residual_of(system: System, b: Array, x: Array, y: Array, forward_mode: bool) -> Array:
    """B - A x = -lambda y, where A^H is the system's matrix; y is measured."""
    r = constant(minus_ridge_times, system.ridge, system.d, y)
    (r,) = Residual.of(Solved(system, b, None, r, x), forward_mode)
    return r


def solution_of(system: System, f: Array | None, g: Array | None) -> tuple[Array, Array]:
    """(r, x), by the factors; of right-hand sides in the units of the system."""
    root, q = system.root, system.q
    a = rules.matrix(system, system.a)
    if f is None and g is not None and q is None:
        return solve_augmented_without_q(a, system.d, root, g)
    if q is None:
        root, _, q = least_squares.factor(a, system.ridge, system.rcond)
    return solve_augmented(root, q, f, g, spans=rules.spans(system))


def solution_for_g(system: System, unmeasured: Array) -> list[Array]:
    """(r, x) for f = 0 and g of the user's size."""
    g, back = near_one(unmeasured, system.d)
    return [back(x) for x in solution_of(system, None, g)]


def sum_of_squares(r: Array, *others: Any, forward_mode: bool) -> Array:
    """||r||^2 of each column, (..., nrhs); see :class:`SumOfSquares`."""
    (rss,) = SumOfSquares.of((r, *others), forward_mode)
    return rss


@dataclasses.dataclass(frozen=True)
class OfTree:
    """A rule whose arguments are the leaves of a tree."""

    structure: Any
    forward_mode: bool
    caller: ClassVar[str] = "lstsq"

    @classmethod
    def of(cls, tree: Any, forward_mode: bool) -> Arrays:
        """The outputs."""
        leaves, structure = jax.tree.flatten(tree)
        outputs: Arrays = differentiated(cls(structure, forward_mode), forward_mode)(*leaves)
        return outputs

    @property
    def apply(self) -> Operators:
        """What the derivative applies."""
        return operators(self.forward_mode)


class Solution(OfTree):
    """(r, x, x / d) of a solved system, with its derivative. Arguments are the leaves of Solved.

    The factors and the solution among them are constants, which the derivative with respect to A
    accounts for. x is measured in the units d, x / d is what the user sees.
    """

    def forward(self, *args: Array) -> Arrays:
        """(r, x, x / d)."""
        solved = self.structure.unflatten(args)
        return solved.r, solved.x, solved.x / solved.system.d

    def residuals(self, args: Arrays, outputs: Arrays) -> Arrays:
        """The arguments, but the solution as the function that it is."""
        r, x, _ = outputs
        return tuple(jax.tree.leaves(self.structure.unflatten(args)._replace(r=r, x=x)))

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Any:
        """Cotangents of the arguments; None for the constants."""
        if all(bar is None for bar in cotangents):  # a sum of squares has none for r
            return (None,) * self.structure.num_leaves
        solved = self.structure.unflatten(residuals)
        bars = rules.pullback(self.apply, solved, *cotangents)
        return tuple(self.structure.flatten_up_to(bars))

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        """(dr, dx, dx / d)."""
        solved, dots = self.structure.unflatten(residuals), self.structure.unflatten(tangents)
        dr, dx = rules.pushforward(self.apply, solved, dots)
        return dr, dx, dx / solved.system.d

    def taylor(self, args: list[Arrays], wire: Wiring) -> list[Arrays]:
        """The series of (r, x, x / d)."""
        solved, terms = _first_and_all(self.structure, args)
        if solved.system.rcond is not None:
            raise NotImplementedError(f"lstsq with rcond {NO_TAYLOR}")
        r, x, _ = wire(self)(*args[0])
        rs, xs = rules.taylor(operators(True), solved._replace(r=r, x=x), terms)
        return list(zip(rs, xs, xs / solved.system.d[None], strict=True))

    def recovered(self, residuals: list[Arrays]) -> tuple[list[Arrays], Arrays | None]:
        """The series of the arguments, and (r, x, x / d)."""
        solved = self.structure.unflatten(residuals[0])
        return residuals, (solved.r, solved.x, solved.x / solved.system.d)


def _first_and_all(structure: Any, terms: list[Arrays]) -> tuple[Solved, Solved]:
    """Of the series of a solved system's leaves the first term, and all of them, stacked."""
    first = structure.unflatten(terms[0])
    d = lax.stop_gradient(first.system.d)  # zeros for a tangent, times 1 / d^2, may be NaN
    stacked = structure.unflatten([jnp.stack(leaf) for leaf in zip(*terms, strict=True)])
    return first._replace(system=first.system._replace(d=d)), stacked


class Residual(OfTree):
    """The residual of a system's adjoint beside a ridge, with its derivative.

    Arguments are the leaves of Solved, for f = b, with r and x as the user sees them. All but A,
    ridge and b are constants, x as the function that it is.
    """

    def forward(self, *args: Array) -> Arrays:
        """(r,)."""
        return (self.structure.unflatten(args).r,)

    def residuals(self, args: Arrays, outputs: Arrays) -> Arrays:
        """The arguments, but r as the function that it is."""
        (r,) = outputs
        return tuple(jax.tree.leaves(self.structure.unflatten(args)._replace(r=r)))

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Any:
        """Cotangents of A, ridge and b."""
        solved, (r_bar,) = self.structure.unflatten(residuals), cotangents
        assert r_bar is not None
        bars = rules.pullback_of_residual(self.apply, solved, r_bar)
        return tuple(self.structure.flatten_up_to(bars))

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        """(dr,)."""
        solved, dots = self.structure.unflatten(residuals), self.structure.unflatten(tangents)
        return (rules.pushforward_of_residual(self.apply, solved, dots),)

    def taylor(self, args: list[Arrays], wire: Wiring) -> list[Arrays]:
        """The series of (r,)."""
        solved, terms = _first_and_all(self.structure, args)
        (r,) = wire(self)(*args[0])
        rs = rules.taylor_of_residual(operators(True), solved._replace(r=r), terms)
        return [(r,) for r in rs]

    def recovered(self, residuals: list[Arrays]) -> tuple[list[Arrays], Arrays | None]:
        """The series of the arguments, and (r,)."""
        return residuals, (self.structure.unflatten(residuals[0]).r,)


class SumOfSquares(OfTree):
    """||r||^2 (..., nrhs), with its derivative.

    Arguments are the leaves of (r,) or, where r = b - A x has A^H r = ridge x and the derivative is
    not to be that of r, of (r, x, d, a, b, ridge), x measured in the units d, which are held.
    """

    def forward(self, *args: Array) -> Arrays:
        """(||r||^2,)."""
        r, *_ = self.structure.unflatten(args)
        return (rules.real_products(r, r),)

    def residuals(self, args: Arrays, outputs: Arrays) -> Arrays:
        """The arguments."""
        return args

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Any:
        """Cotangents of x, A and b."""
        r, *others = self.structure.unflatten(residuals)
        (bar,) = cotangents
        assert bar is not None
        if not others:
            return (rules.twice(bar, r),)
        x, d, _, _, ridge = others
        x_bar, *bars = rules.pullback_of_sum_of_squares(r, x, d, ridge, bar)
        return tuple(self.structure.flatten_up_to((None, x_bar, None, *bars, None)))

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        """(d ||r||^2,)."""
        r, *others = self.structure.unflatten(residuals)
        dr, *dots = self.structure.unflatten(tangents)
        if not others:
            return (2 * rules.real_products(r, dr),)
        (x, d, _, _, ridge), (dx, _, da, db, _) = others, dots
        return (rules.pushforward_of_sum_of_squares(r, x, d, ridge, dx, da, db),)

    def taylor(self, args: list[Arrays], wire: Wiring) -> list[Arrays]:
        """The series of (||r||^2,)."""
        rs = [self.structure.unflatten(term)[0] for term in args]
        products = [
            total(rules.real_products(rs[i], rs[d - i]) for i in range(d + 1))
            for d in range(len(rs))
        ]
        return [wire(self)(*args[0]), *((x,) for x in products[1:])]

    def recovered(self, residuals: list[Arrays]) -> tuple[list[Arrays], Arrays | None]:
        """The series of the arguments."""
        return residuals, None


class NullPart(OfTree):
    """N t, with its derivative. Arguments are the leaves of (system, t)."""

    def forward(self, *args: Array) -> Arrays:
        """(N t,), by the factor and not by A: what is zero must be zero to the last digit."""
        system, t = self.structure.unflatten(args)
        _, w = system.root
        outside = t - matmul(w, matmul(adjoint(w), t))
        return (jnp.where(rank(system.root) == w.shape[-2], 0, outside),)

    def residuals(self, args: Arrays, outputs: Arrays) -> Arrays:
        """The arguments and N t."""
        return (*args, *outputs)

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Any:
        """Cotangents of the arguments; None for the constants."""
        *args, s = residuals
        system, t = self.structure.unflatten(args)
        (s_bar,) = cotangents
        assert s_bar is not None
        bars = rules.pullback_of_null_part(self.apply, system, t, s, s_bar)
        return tuple(self.structure.flatten_up_to(bars))

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        """(ds,)."""
        *args, s = residuals
        system, t = self.structure.unflatten(args)
        dot, dt = self.structure.unflatten(tangents)
        return (rules.pushforward_of_null_part(self.apply, system, t, s, dot, dt),)
