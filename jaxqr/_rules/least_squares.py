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

With w(t) = A^+H t, and with N t for the part of t in the null space of A, that adds

    to A-bar       w(x) (N x-bar)^H + w(xi) (N g)^H
    to d(r, x)     (0, N dA^H w(x)) + M^+ (0, A^+ dA N g)

where terms that vanish along tangents of the manifold of constant rank are left out. For f = b,
g = 0 this is Golub and Pereyra's derivative of A^+ b. N is Hermitian too, and from N = I - A^+ A

    d(N t) = N dt - A^+ dA N t - N dA^H w(t)

so that the pullback of s = N t is t-bar = N s-bar, A-bar = -w(s-bar) s^H - w(t) (N s-bar)^H.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxqr._autodiff import Arrays, MaybeArrays, differentiated, varying_alike
from jaxqr._forward import least_squares
from jaxqr._linalg.products import adjoint, matmul


class System(NamedTuple):
    """The augmented system but for its right-hand sides, factored.

    Where A has full rank and fewer rows than columns, A^H is the system's matrix. Of tangents and
    cotangents of a system, any field may be None.
    """

    a: Any
    ridge: Array | None  # (..., 1, 1), real; None is zero
    rcond: Array | None  # None: A has full column rank
    root: tuple[Any, ...]
    q: Array | None  # None: not kept; computed anew where it is needed, which f != 0 alone does


class Solved(NamedTuple):
    """A system with right-hand sides, of which None is zero, and its solution."""

    system: System
    f: Array | None  # (..., m, nrhs)
    g: Array | None  # (..., n, nrhs)
    r: Any  # (..., m, nrhs)
    x: Any  # (..., n, nrhs)


def _is_adjoint(system: System) -> bool:
    rows, columns = system.a.shape[-2:]
    return system.rcond is None and rows < columns


def _matrix(system: System, like_a: Array) -> Array:
    """A, or its tangent, as the system's matrix or its tangent."""
    return adjoint(like_a) if _is_adjoint(system) else like_a


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
        return least_squares.solve_augmented_without_q(_matrix(system, system.a), system.root, g)
    root = system.root
    if q is None:
        root, q = least_squares.factor(_matrix(system, system.a), system.ridge, system.rcond)
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

    def forward(self, *args: Array) -> Arrays:
        """(r, x)."""
        solved = self.structure.unflatten(args)
        return solved.r, solved.x

    def residuals(self, args: Arrays, outputs: Arrays) -> Arrays:
        """The arguments, but the solution as the function that it is."""
        r, x = outputs
        return tuple(jax.tree.leaves(self.structure.unflatten(args)._replace(r=r, x=x)))

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Any:
        """Cotangents of the arguments; None for the constants."""
        system, f, g, r, x = self.structure.unflatten(residuals)
        r_bar, x_bar = cotangents
        rho, xi = solve(system, r_bar, x_bar, forward_mode=self.forward_mode)
        pairs = [(rho, -x), (r, -xi)]
        if system.rcond is not None:
            for t, s in ((x, x_bar), (xi, g)):
                if s is not None:
                    pairs.append((self._w(system, t), self._null(system, s)))
        ridge_bar = jnp.sum((jnp.conj(xi) * x).real, axis=(-2, -1), keepdims=True)
        bars = Solved(
            _cotangent(system, pairs, None if system.ridge is None else ridge_bar),
            None if f is None else rho,
            None if g is None else xi,
            r=None,
            x=None,
        )
        return tuple(self.structure.flatten_up_to(bars))

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        """(dr, dx)."""
        system, _, g, r, x = self.structure.unflatten(residuals)
        dot, df, dg, _, _ = self.structure.unflatten(tangents)
        turned = None
        if dot.ridge is not None:
            dg = _sum(dg, dot.ridge.astype(x.dtype) * x)
        if dot.a is not None:
            da = _matrix(system, dot.a)
            df = _sum(df, -matmul(da, x))
            dg = _sum(dg, -matmul(adjoint(da), r))
            if system.rcond is not None:
                turned = self._null(system, matmul(adjoint(da), self._w(system, x)))
                if g is not None:
                    fitted = matmul(da, self._null(system, g))
                    dg = dg + solve(system, fitted, None, forward_mode=self.forward_mode)[1]
        dr, dx = solve(system, df, dg, forward_mode=self.forward_mode)
        return dr, dx if turned is None else dx + turned

    def _w(self, system: System, t: Array) -> Array:
        return _pseudoinverse_adjoint(system, t, self.forward_mode)

    def _null(self, system: System, t: Array) -> Array:
        return _null_part(system, t, self.forward_mode)


@dataclasses.dataclass(frozen=True)
class NullPart:
    """N t, with its derivative. Arguments are the leaves of (system, t)."""

    structure: Any
    forward_mode: bool

    def forward(self, *args: Array) -> Arrays:
        """(N t,), by the factor and not by A: what is zero must be zero to the last digit."""
        system, t = self.structure.unflatten(args)
        _, w = system.root
        return (t - matmul(w, matmul(adjoint(w), t)),)

    def residuals(self, args: Arrays, outputs: Arrays) -> Arrays:
        """The arguments and N t."""
        return (*args, *outputs)

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Any:
        """Cotangents of the arguments; None for the constants."""
        *args, s = residuals
        system, t = self.structure.unflatten(args)
        (s_bar,) = cotangents
        assert s_bar is not None
        t_bar = _null_part(system, s_bar, self.forward_mode)
        pairs = [
            (_pseudoinverse_adjoint(system, s_bar, self.forward_mode), -s),
            (_pseudoinverse_adjoint(system, t, self.forward_mode), -t_bar),
        ]
        return tuple(self.structure.flatten_up_to((_cotangent(system, pairs, None), t_bar)))

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        """(ds,)."""
        *args, s = residuals
        system, t = self.structure.unflatten(args)
        dot, dt = self.structure.unflatten(tangents)
        if dot.a is None:
            return (_null_part(system, dt, self.forward_mode),)
        w = _pseudoinverse_adjoint(system, t, self.forward_mode)
        _, fitted = solve(system, matmul(dot.a, s), None, forward_mode=self.forward_mode)
        inside = _sum(dt, -matmul(adjoint(dot.a), w))
        return (_null_part(system, inside, self.forward_mode) - fitted,)


def _pseudoinverse_adjoint(system: System, t: Array, forward_mode: bool) -> Array:
    """A^+H t."""
    return solve(system, None, t, forward_mode=forward_mode)[0]


def _null_part(system: System, t: Array, forward_mode: bool) -> Array:
    """N t."""
    leaves, structure = jax.tree.flatten((system, t))
    function = differentiated(NullPart(structure, forward_mode), forward_mode)
    (s,) = function(*varying_alike(leaves))
    return cast(Array, s)


def _cotangent(
    system: System, pairs: Sequence[tuple[Array, Array]], ridge_bar: Array | None
) -> System:
    """A-bar, the sum of left right^H over the pairs, as one product; and ridge-bar."""
    left, right = (jnp.concatenate(side, axis=-1) for side in zip(*pairs, strict=True))
    if _is_adjoint(system):
        left, right = right, left
    constants = (None,) * len(system.root)
    return System(matmul(left, adjoint(right)), ridge_bar, None, constants, None)


def _sum(x: Array | None, y: Array) -> Array:
    return y if x is None else x + y
