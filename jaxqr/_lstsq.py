"""Least squares."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxqr._arguments import (
    as_array,
    as_matrices,
    by_name,
    compute_dtype,
    flags,
    is_number_zero,
    level,
    result_dtype,
)
from jaxqr._autodiff import Arrays, MaybeArrays, differentiated, varying_alike
from jaxqr._forward import least_squares
from jaxqr._linalg.augmented import solve_augmented, solve_augmented_without_q
from jaxqr._linalg.products import adjoint, matmul
from jaxqr._rules import least_squares as rules
from jaxqr._rules.least_squares import Operators, Solved, System


@by_name
def lstsq(
    a: ArrayLike,
    b: ArrayLike,
    *,
    rcond: ArrayLike | None = None,
    ridge: ArrayLike = 0.0,
    forward_mode: bool = False,
) -> Array:
    """The x that minimizes ||A x - b||, and the shortest where there are many; differentiable.

    Args:
        a: (..., m, n), real or complex, of any shape and of any type that :func:`jaxqr.qr` takes.
        b: right-hand sides: vectors (..., m) where b has one axis, or one axis less than a;
            matrices (..., m, nrhs) otherwise. The number of axes decides, never their lengths.
            The batch axes of a and b (and ridge) broadcast against each other. Many right-hand
            sides of one matrix share its factorization, as (m, nrhs) or as a batch (..., m, nrhs)
            beside a (m, n); under ``vmap`` over b alone they do not.
        rcond: None assumes that A has full rank, min(m, n); where it has not, the result is not
            finite or has no correct digit. A number >= 0, which may be traced, finds the rank of
            each matrix: the number of diagonal elements of the column-pivoted R with
            |r_jj| > rcond |r_00|. What lies below is taken to be zero. Some multiple of
            max(m, n) * eps is a good choice for data exact to the last digit.
        ridge: real and >= 0: minimizes ||A x - b||^2 + ridge ||x||^2 instead, for A of any shape
            and, where ridge > 0, of any rank. A number, or one for each matrix of the batch
            (...,); it may be traced, is differentiable, at 0 too, and goes to 0 continuously where
            A has full rank. Not together with rcond.
        forward_mode: as in :func:`jaxqr.qr`.

    Returns:
        x (..., n), or (..., n, nrhs), in the type to which those of a and b promote. Half types are
        computed in float32.

    Raises:
        ValueError: a has fewer than two axes; b none; rows or batch axes do not match; rcond is
            not a scalar; rcond and ridge are both given; one of them is known to be negative, or
            rcond not to be in 0..1.
        TypeError: an argument is not an array of numbers; rcond or ridge is complex.

    All of it is done by orthogonal factorization, the ridge by that of [A; sqrt(ridge) I]. Deep
    and square A (m >= n): the reflectors that make A triangular are applied to b as they are, so Q
    is never formed: 2 m n^2 operations. Wide A: the LQ factorization. With rcond: column-pivoted QR
    and a complete orthogonal decomposition, two to three times that.

    The derivative is that of G. H. Golub and V. Pereyra, "The differentiation of pseudo-inverses
    and nonlinear least squares problems whose variables separate", SIAM J. Numer. Anal. 10 (1973),
    along matrices of the same rank: x itself jumps where the rank changes. With
    r = b - A x, z = A^+ A^+H x-bar and, where A has not full column rank, w = A^+H x and
    u = x-bar - A^H b-bar,

        b-bar = A^+H x-bar        A-bar = r z^H + w u^H - b-bar x^H

    It takes triangular solves and products with A: 8 m n nrhs operations for deep A. Nothing of
    the size of A is kept beside A but, for wide A or in forward mode, Q. Equal singular values
    do no harm. Errors were seen to be at most three times those of explicit Q.

    >>> import jax, jax.numpy as jnp, jaxqr, numpy as np
    >>> a = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])  # a line through three points
    >>> b = jnp.array([0.0, 1.0, 5.0])
    >>> print(np.asarray(jaxqr.lstsq(a, b)).round(4))
    [-0.5  2.5]
    >>> intercept = lambda b: jaxqr.lstsq(a, b)[0]
    >>> print(np.asarray(jax.grad(intercept)(b)).round(4))
    [ 0.8333  0.3333 -0.1667]
    >>> twice = jnp.concatenate([a, a], axis=1)  # rank 2 of 4
    >>> print(np.asarray(jaxqr.lstsq(twice, b, rcond=1e-5)).round(4))
    [-0.25  1.25 -0.25  1.25]
    >>> shrunk = lambda ridge: jaxqr.lstsq(a, b, ridge=ridge)[1]
    >>> print(np.asarray(jax.grad(shrunk)(1.0)).round(4))
    -0.4222
    """
    a = as_matrices("lstsq", "a", a)
    b = as_array("lstsq", "b", b)
    shift = None if is_number_zero(ridge) else level("lstsq", "ridge", ridge)
    cut = None if rcond is None else level("lstsq", "rcond", rcond, most=1)
    flags("lstsq", forward_mode=forward_mode)
    if cut is not None and cut.ndim:
        raise ValueError(f"lstsq expects rcond to be a scalar. Got shape {cut.shape}.")
    if cut is not None and shift is not None:
        raise ValueError(
            "lstsq expects rcond or ridge but not both: with ridge > 0 there is one solution, "
            f"whatever the rank. Got rcond={rcond} and ridge={ridge}."
        )
    vectors = b.ndim in (1, a.ndim - 1)
    _check_shapes(a, b, shift, vectors)
    x: Array = _lstsq(a, b[..., None] if vectors else b, shift, cut, forward_mode=forward_mode)
    return x[..., 0] if vectors else x


def _check_shapes(a: Array, b: Array, ridge: Array | None, vectors: bool) -> None:
    if not b.ndim:
        raise ValueError(
            "lstsq expects b to have shape (..., m) or (..., m, nrhs), for a of shape "
            f"(..., m, n). Got a of shape {a.shape} and b of shape ()."
        )
    form, rows = ("(..., m)", b.shape[-1]) if vectors else ("(..., m, nrhs)", b.shape[-2])
    got = (
        f"Got a of shape {a.shape} and b of shape {b.shape}, which by its number of axes is {form}."
    )
    if rows != a.shape[-2]:
        raise ValueError(f"lstsq expects a (..., m, n) and b to have the same m rows. {got}")
    shapes = [a.shape[:-2], b.shape[: -1 if vectors else -2], () if ridge is None else ridge.shape]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        also = "" if ridge is None else f" And ridge of shape {ridge.shape}."
        raise ValueError(
            f"lstsq expects batch axes that broadcast against each other. {got}{also}"
        ) from None


@functools.partial(jax.jit, static_argnames="forward_mode")
def _lstsq(
    a: Array, b: Array, ridge: Array | None, rcond: Array | None, *, forward_mode: bool
) -> Array:
    """X (..., n, nrhs) for a (..., m, n) and b (..., m, nrhs), in the type that they promote to."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(a, b)
    scalar = compute_dtype(dtype)
    real = jnp.finfo(scalar).dtype
    ridge, rcond = (None if x is None else x.astype(real) for x in (ridge, rcond))
    solve = functools.partial(_real_or_complex, ridge=ridge, rcond=rcond, forward_mode=forward_mode)
    if jnp.iscomplexobj(a) or not jnp.iscomplexobj(b):
        x = solve(a.astype(scalar), b.astype(scalar))
    else:  # two real right-hand sides cost half of what a complex matrix does
        b = b.astype(scalar)
        parts = solve(a.astype(real), jnp.concatenate([b.real, b.imag], axis=-1))
        x = lax.complex(*jnp.split(parts, 2, axis=-1))
    return x.astype(result_dtype(dtype))


def _real_or_complex(
    a: Array, b: Array, *, ridge: Array | None, rcond: Array | None, forward_mode: bool
) -> Array:
    """X for a and b of one type, with their batch axes broadcast against each other."""
    (m, n), nrhs = a.shape[-2:], b.shape[-1]
    of_ridge = () if ridge is None else ridge.shape
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2], of_ridge)
    if 0 in (*batch, m, n, nrhs):
        return jnp.zeros((*batch, n, nrhs), a.dtype)
    solve = functools.partial(_solve, rcond=rcond, forward_mode=forward_mode)
    if a.ndim == 2 and b.ndim > 2 and of_ridge == ():  # one matrix: more b are more columns
        columns = jnp.moveaxis(b, -2, 0).reshape(m, -1)
        x = solve(a, columns, None if ridge is None else ridge[None, None])
        return jnp.moveaxis(x.reshape(n, *batch, nrhs), 0, -2)
    return solve(
        jnp.broadcast_to(a, (*batch, m, n)),
        jnp.broadcast_to(b, (*batch, m, nrhs)),
        None if ridge is None else jnp.broadcast_to(ridge, batch)[..., None, None],
    )


def _solve(
    a: Array, b: Array, ridge: Array | None, *, rcond: Array | None, forward_mode: bool
) -> Array:
    """X for a and b with the same batch axes; ridge (..., 1, 1).

    Which factorization, and which parts of it the derivatives are to keep.
    """
    a_, b_, ridge_, rcond_ = lax.stop_gradient((a, b, ridge, rcond))
    deep = a.shape[-2] >= a.shape[-1]
    if rcond is None and not deep:
        # The shortest solution is the augmented system's r for the matrix A^H and g = b.
        root, q = least_squares.factor(adjoint(a_), ridge_, None)
        r, x = solve_augmented(root, q, None, b_)
        system = System(a, ridge, None, root, q)
        return derive(Solved(system, None, b, r, x), forward_mode)[0]
    keep_q = forward_mode or not deep
    if rcond is None and not keep_q and b.shape[-1] <= a.shape[-1]:
        root, x = least_squares.factor_and_solve_without_q(a_, b_, ridge_)
        r = b_ - matmul(a_, x)
        system = System(a, ridge, None, root, None)
    else:
        root, q = least_squares.factor(a_, ridge_, rcond_)
        r, x = solve_augmented(root, q, b_, None)
        system = System(a, ridge, rcond_, root, q if keep_q else None)
    return derive(Solved(system, b, None, r, x), forward_mode)[1]


# The wiring. The derivative of the solution is a solution of the same system, and so on.


def derive(solved: Solved, forward_mode: bool) -> tuple[Array, Array]:
    """(r, x) as functions of A, ridge, f and g; factors and solution count as constants."""
    leaves, structure = jax.tree.flatten(solved)
    function = differentiated(Solution(structure, forward_mode), forward_mode)
    r, x = function(*varying_alike(leaves))
    return r, x


def operators(forward_mode: bool) -> Operators:
    """M^+ and N in one of the two wirings."""

    def solve(system: System, f: Array | None, g: Array | None) -> tuple[Array, Array]:
        solution = _solution(*lax.stop_gradient((system, f, g)))
        return derive(Solved(system, f, g, *solution), forward_mode)

    def null_part(system: System, t: Array) -> Array:
        leaves, structure = jax.tree.flatten((system, t))
        function = differentiated(NullPart(structure, forward_mode), forward_mode)
        (s,) = function(*varying_alike(leaves))
        return cast(Array, s)

    return Operators(solve, null_part)


def _solution(system: System, f: Array | None, g: Array | None) -> tuple[Array, Array]:
    root, q = system.root, system.q
    a = rules.matrix(system, system.a)
    if f is None and g is not None and q is None:
        return solve_augmented_without_q(a, root, g)
    if q is None:
        root, q = least_squares.factor(a, system.ridge, system.rcond)
    return solve_augmented(root, q, f, g)


@dataclasses.dataclass(frozen=True)
class Solution:
    """(r, x) of a solved system, with its derivative. Arguments are the leaves of Solved.

    The factors and the solution among them are constants, which the derivative with respect to A
    accounts for.
    """

    structure: Any
    forward_mode: bool

    @property
    def caller(self) -> str:
        """The public function."""
        return "lstsq"

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
        solved = self.structure.unflatten(residuals)
        bars = rules.pullback(operators(self.forward_mode), solved, *cotangents)
        return tuple(self.structure.flatten_up_to(bars))

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        """(dr, dx)."""
        solved, dots = self.structure.unflatten(residuals), self.structure.unflatten(tangents)
        return rules.pushforward(operators(self.forward_mode), solved, dots)


@dataclasses.dataclass(frozen=True)
class NullPart:
    """N t, with its derivative. Arguments are the leaves of (system, t)."""

    structure: Any
    forward_mode: bool

    @property
    def caller(self) -> str:
        """The public function."""
        return "lstsq"

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
        apply = operators(self.forward_mode)
        bars = rules.pullback_of_null_part(apply, system, t, s, s_bar)
        return tuple(self.structure.flatten_up_to(bars))

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        """(ds,)."""
        *args, s = residuals
        system, t = self.structure.unflatten(args)
        dot, dt = self.structure.unflatten(tangents)
        apply = operators(self.forward_mode)
        return (rules.pushforward_of_null_part(apply, system, t, s, dot, dt),)
