"""The derivative of least squares: one self-adjoint system, and the system is its own rule.

Least squares (g = 0), minimum norm (f = 0) and the derivatives of both, of any order, are
solutions of the augmented system M (r, x) = (f, g) (see :mod:`jaxqr._forward.least_squares`)::

    M = [ I    A       ]      dM (r, x) = (dA x,  dA^H r - dlambda x)
        [ A^H  -lambda ]

Where M is invertible, d(r, x) = M^-1 ((df, dg) - dM (r, x)). M is Hermitian, so with
(rho, xi) = M^-1 (r-bar, x-bar) the pullback is

    f-bar = rho    g-bar = xi    A-bar = -rho x^H - r xi^H    lambda-bar = Re(xi^H x)

Where A has lost rank (and lambda = 0), M^+ takes the place of M^-1, and the rank is held: by
G. H. Golub and V. Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares
problems whose variables separate", SIAM J. Numer. Anal. 10 (1973),

    dM^+ = -M^+ dM M^+  +  M^+ M^+ dM N  +  N dM M^+ M^+        N = I - M M^+

With w(t) = A^+H t, and N t = t - A^H w(t) the part of t in the null space of A, that adds

    to A-bar       w(x) (N x-bar)^H + w(xi) (N g)^H
    to d(r, x)     (0, N dA^H w(x)) + M^+ (0, A^+ dA N g)

where terms that vanish along tangents of the manifold of constant rank are left out. For f = b,
g = 0 this is Golub and Pereyra's derivative of A^+ b.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxqr._autodiff import Arrays, MaybeArrays, varying_alike
from jaxqr._factorization import differentiated
from jaxqr._forward import least_squares
from jaxqr._forward.triangular import adjoint, matmul


class System(NamedTuple):
    """The augmented system but for its right-hand sides, factored."""

    a: Array  # (..., m, n)
    ridge: Array | None  # (..., 1, 1), real; None is zero
    rcond: Array | None  # None: A has full column rank
    root: least_squares.Root
    q: Array | None  # None: not kept; computed anew where it is needed, which f != 0 alone does


class Solved(NamedTuple):
    """A system with right-hand sides, of which None is zero, and its solution."""

    system: System
    f: Array | None  # (..., m, nrhs)
    g: Array | None  # (..., n, nrhs)
    r: Array  # (..., m, nrhs)
    x: Array  # (..., n, nrhs)


def solve(
    system: System, f: Array | None, g: Array | None, *, forward_mode: bool
) -> tuple[Array, Array]:
    """(r, x), differentiable to any order."""
    return derive(
        Solved(system, f, g, *_solution(*lax.stop_gradient((system, f, g)))), forward_mode
    )


def _solution(system: System, f: Array | None, g: Array | None) -> tuple[Array, Array]:
    q = system.q
    if f is None and g is not None and q is None:
        return least_squares.solve_augmented_without_q(system.a, system.root, g)
    root = system.root
    if q is None:
        root, q = least_squares.factor(system.a, system.ridge, system.rcond)
    return least_squares.solve_augmented(root, q, f, g)


def derive(solved: Solved, forward_mode: bool) -> tuple[Array, Array]:
    """(r, x) as functions of A, ridge, f and g; factors and solution count as constants."""
    leaves, structure = jax.tree.flatten(solved)
    function = differentiated(Solution(structure, forward_mode), forward_mode)
    r, x = function(*varying_alike(leaves))
    return r, x


@dataclasses.dataclass(frozen=True)
class Solution:
    """(r, x) of a solved system, with its derivative. Arguments are the leaves of Solved.

    The factors and the solution among them are constants, which the derivative with respect to A
    accounts for.
    """

    structure: Any
    forward_mode: bool

    def _unflatten(self, leaves: MaybeArrays) -> Any:
        return self.structure.unflatten(leaves)

    def forward(self, *args: Array) -> Arrays:
        """(r, x)."""
        solved = self._unflatten(args)
        return solved.r, solved.x

    def residuals(self, args: Arrays, outputs: Arrays) -> Arrays:
        """The arguments, but the solution as the function that it is."""
        r, x = outputs
        return tuple(jax.tree.leaves(self._unflatten(args)._replace(r=r, x=x)))

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Any:
        """Cotangents of the arguments; None for the constants."""
        system, f, g, r, x = self._unflatten(residuals)
        r_bar, x_bar = cotangents
        rho, xi = self._solve(system, r_bar, x_bar)
        left, right = [rho, r], [-x, -xi]
        if system.rcond is not None:
            for range_of, null_of in ((x, x_bar), (xi, g)):
                if null_of is not None:
                    left.append(self._w(system, range_of))
                    right.append(self._null(system, null_of))
        a_bar = matmul(jnp.concatenate(left, -1), adjoint(jnp.concatenate(right, -1)))
        ridge_bar = jnp.sum((jnp.conj(xi) * x).real, axis=(-2, -1), keepdims=True)
        constants = (None,) * len(system.root)
        bars = (
            (a_bar, None if system.ridge is None else ridge_bar, None, constants, None),
            None if f is None else rho,
            None if g is None else xi,
            None,
            None,
        )
        return tuple(self.structure.flatten_up_to(Solved(System(*bars[0]), *bars[1:])))

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        """(dr, dx)."""
        system, _, g, r, x = self._unflatten(residuals)
        dot, df, dg, _, _ = self._unflatten(tangents)
        beyond = None
        if dot.ridge is not None:
            dg = _sum(dg, dot.ridge.astype(x.dtype) * x)
        if dot.a is not None:
            df = _sum(df, -matmul(dot.a, x))
            dg = _sum(dg, -matmul(adjoint(dot.a), r))
            if system.rcond is not None:
                beyond = self._null(system, matmul(adjoint(dot.a), self._w(system, x)))
                if g is not None:
                    _, turned = self._solve(system, matmul(dot.a, self._null(system, g)), None)
                    dg = dg + turned
        dr, dx = self._solve(system, df, dg)
        return dr, dx if beyond is None else dx + beyond

    def _solve(self, system: System, f: Array | None, g: Array | None) -> tuple[Array, Array]:
        return solve(system, f, g, forward_mode=self.forward_mode)

    def _w(self, system: System, t: Array) -> Array:
        """A^+H t."""
        return self._solve(system, None, t)[0]

    def _null(self, system: System, t: Array) -> Array:
        """The part of t in the null space of A."""
        return t - matmul(adjoint(system.a), self._w(system, t))


def _sum(x: Array | None, y: Array) -> Array:
    return y if x is None else x + y
