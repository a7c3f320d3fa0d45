"""Least squares whose equations are on many devices."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import zero_from_primal
from jax.typing import ArrayLike

from jaxqr._arguments import (
    as_array,
    as_matrices,
    batch_of,
    compute_dtype,
    flags,
    promoted,
    result_dtype,
    ridge_of,
)
from jaxqr._autodiff import none_for_zero
from jaxqr._linalg.layouts import materialized
from jaxqr._linalg.products import solve_adjoint_left, solve_left
from jaxqr._linalg.ridge import beside, with_ridge, with_zeros
from jaxqr._linalg.scaling import divided, magnitudes, unit
from jaxqr._qr import qr
from jaxqr._rules.least_squares import plus
from jaxqr.distributed._arguments import check, varying
from jaxqr.distributed._reduction import AxisName, Reduction, reduce
from jaxqr.distributed._rules import adjoint_matmul, matmul, right_solve, upper_of_twice_hermitian
from jaxqr.distributed._tsqr import tsqr


def lstsq(
    a: ArrayLike,
    b: ArrayLike,
    axis_name: AxisName,
    ridge: ArrayLike = 0.0,
    *,
    forward_mode: bool = False,
    reduction: Reduction = "auto",
) -> Array:
    """The x that minimizes ||A x - b||, inside ``jax.shard_map``; rows of A and b lie on an axis.

    Args:
        a: (..., m_local, n), the rows that this device has: one or more, as many on each, and
            m >= n in all. A has full column rank, unless ridge > 0.
        b: right-hand sides: this device's elements of vectors (..., m_local), where b has one axis
            or one axis less than a; its rows of matrices (..., m_local, nrhs) otherwise. Batch
            axes of a, b and ridge broadcast against each other.
        axis_name, reduction: as in :func:`jaxqr.distributed.tsqr`.
        ridge: real and >= 0, a number or one for each matrix of the batch (...,), the same on all
            devices of the axis: minimizes ||A x - b||^2 + ridge ||x||^2. Differentiable.
        forward_mode: True forms and keeps Q, and tangents are as accurate as the value; without Q
            their relative error is about eps cond(A)^2. Gradients are accurate either way, and
            both modes work with either.

    Returns:
        x (..., n) or (..., n, nrhs), the same on all devices of the axis and typed so, in the type
        to which those of a and b promote.

    Raises:
        ValueError: as :func:`jaxqr.distributed.tsqr` does; rows or batch axes of a and b do not
            match; ridge is known to be negative or not a number.
        TypeError: an argument is not an array of numbers; ridge is complex.

    R of [A | b] holds R of A and Q^H b, so that Q is never formed; what travels are the first n
    rows of it, n x (n + nrhs) words where ``tsqr`` has n x n, and once the largest element of each
    column. In reverse mode, with r = b - A x and z = R^-1 R^-H x-bar,

        b-bar = A z        A-bar = r z^H - b-bar x^H        ridge-bar = -Re(z^H x)

    is local: no collective at all, and the cotangents of a and b lie where a and b do.

    >>> import jax, jax.numpy as jnp, jaxqr.distributed, numpy as np
    >>> from jax.sharding import NamedSharding, PartitionSpec as P
    >>> mesh = jax.make_mesh((len(jax.devices()),), ("rows",))
    >>> by_rows = NamedSharding(mesh, P("rows"))
    >>> t = jax.device_put(jnp.arange(8.0), by_rows)
    >>> a = jnp.stack([jnp.ones_like(t), t], axis=1)
    >>> def line(a, b):
    ...     return jaxqr.distributed.lstsq(a, b, "rows")
    >>> sharded = jax.shard_map(line, mesh=mesh, in_specs=P("rows"), out_specs=P())
    >>> print(np.asarray(jax.jit(sharded)(a, 3 * t + 1)).round(4))
    [1. 3.]
    >>> slope = jax.jit(jax.grad(lambda b: sharded(a, b)[1]))
    >>> print(np.asarray(slope(t)).round(4))
    [-0.0833 -0.0595 -0.0357 -0.0119  0.0119  0.0357  0.0595  0.0833]
    """
    a = as_matrices("lstsq", "a", a)
    b = as_array("lstsq", "b", b)
    flags("lstsq", forward_mode=forward_mode)
    check("lstsq", a, axis_name, reduction)
    dtype = promoted("lstsq", a=a, b=b)
    scalar = compute_dtype(dtype)
    vectors = b.ndim in (1, a.ndim - 1)
    b = b[..., None] if vectors else b
    shift = ridge_of("lstsq", ridge)
    batch = _batch(a, b, shift, vectors)

    def prepared(x: Array) -> Array:
        x = varying(x.astype(scalar), axis_name)
        return jnp.broadcast_to(x, (*batch, *x.shape[-2:]))

    if shift is not None:
        shift = shift.astype(jnp.finfo(scalar).dtype)
        shift = jnp.broadcast_to(shift, batch)[..., None, None]
    x = _measured(prepared(a), prepared(b), shift, axis_name, reduction, forward_mode)
    x = x.astype(result_dtype(dtype))
    return x[..., 0] if vectors else x


def _batch(a: Array, b: Array, ridge: Array | None, vectors: bool) -> tuple[int, ...]:
    """The batch axes of all; b (..., m_local, nrhs)."""
    of_b = b.shape[:-1] if vectors else b.shape
    got = f"Got, on each device, a of shape {a.shape} and b of shape {of_b}"
    if b.ndim < 2 or b.shape[-2] != a.shape[-2]:
        raise ValueError(f"lstsq expects a (..., m, n) and b to have the same m rows. {got}.")
    of_ridge = () if ridge is None else ridge.shape
    got = f"{got}, and ridge of shape {of_ridge}."
    return batch_of("lstsq", got, a.shape[:-2], b.shape[:-2], of_ridge)


def _measured(
    a: Array, b: Array, ridge: Array | None, axis_name: AxisName, reduction: str, with_q: bool
) -> Array:
    """The solution by A D^-1, with the units D of the columns of [A; sqrt(ridge) I].

    So the rules, which square A, do not leave the range of the type. Where the ridge is infinite, x
    is zero.
    """
    infinite = None
    if ridge is not None:
        infinite = ridge == jnp.inf
        ridge = jnp.where(infinite, 1, ridge)
    n = a.shape[-1]
    columns = magnitudes(lax.stop_gradient(jnp.concatenate([a, b], axis=-1)))
    largest = lax.pmax(jnp.max(columns, axis=-2, keepdims=True), axis_name)
    d, of_b = largest[..., :n], unit(largest[..., n:])
    if ridge is not None:
        d = jnp.maximum(d, jnp.sqrt(ridge))
    d = unit(d)
    # In two steps: XLA would divide by d^2, which may leave the range.
    shift = None if ridge is None else (materialized(ridge / d) / d).mT
    a, b = divided(a, d.astype(a.dtype)), divided(b, of_b.astype(a.dtype))
    x: Array = _solution(a, b, shift, axis_name, reduction, with_q).x
    x = x * (of_b / d.mT).astype(x.dtype)
    return x if infinite is None else jnp.where(infinite, 0, x)


class _Solution(NamedTuple):
    """Factors of [A; sqrt(ridge)], ridge (..., n, 1) on the diagonal, and the solution.

    All of it is differentiable.
    """

    q: Any  # (..., m_local, n), the rows of this device; None if it is not formed
    u: Any  # (..., n, n)
    x: Any  # (..., n, nrhs)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _solution(
    a: Array, b: Array, ridge: Array | None, axis_name: AxisName, reduction: str, with_q: bool
) -> _Solution:
    n = a.shape[-1]
    if with_q:
        q, u = tsqr(a, axis_name, reduction=reduction)  # type: ignore[arg-type]
        if ridge is not None:
            turn, t = qr(with_ridge(u, ridge))
            q, u = matmul(q, beside(u, ridge, turn)), t
        c = lax.psum(adjoint_matmul(q, b), axis_name)
        return _Solution(q, u, solve_left(u, c))

    def triangle(u: Array, c: Array) -> Array:
        return qr(jnp.concatenate([u, c], axis=-1), mode="r")[..., :n, :]

    _, t = reduce(triangle(a, b), axis_name, reduction, rank=n)
    u, c = t[..., :n], t[..., n:]
    if ridge is not None:
        t = triangle(with_ridge(u, ridge), with_zeros(u, c, ridge))
        u, c = t[..., :n], t[..., n:]
    return _Solution(None, u, solve_left(u, c))


def _jvp(axis_name: AxisName, reduction: str, with_q: bool, primals: Any, tangents: Any) -> Any:
    """The solution and its tangents.

    At first order only dx is used, at second order those of the factors that dx is made of.
    """
    a, b, ridge = primals
    solution = _solution(a, b, ridge, axis_name, reduction, with_q)
    da, db, dridge = none_for_zero(tangents)
    dx = _tangent_of_x(a, b, solution, da, db, dridge, axis_name)
    dq, du = _tangents_of_factors(a, solution, da, dridge, axis_name)
    return solution, _Solution(dq, du, dx)


def _tangent_of_x(
    a: Array,
    b: Array,
    solution: _Solution,
    da: Array | None,
    db: Array | None,
    dridge: Array | None,
    axis_name: AxisName,
) -> Array:
    """G^-1 (A^H (db - dA x) + dA^H (b - A x) - dridge x), where G = U^H U = A^H A + ridge.

    Where there is Q, A^H = U^H Q^H.
    """
    q, u, x = solution
    f, g = db, None
    if da is not None:
        f = plus(f, -matmul(da, x))
    if f is not None and q is None:
        g = adjoint_matmul(a, f)
    if da is not None:
        g = plus(g, adjoint_matmul(da, b - matmul(a, x)))
    g = None if g is None else lax.psum(g, axis_name)
    if dridge is not None:
        g = plus(g, -dridge.astype(x.dtype) * x)
    c = None if g is None else solve_adjoint_left(u, g)
    if f is not None and q is not None:
        c = plus(c, lax.psum(adjoint_matmul(q, f), axis_name))
    assert c is not None  # else there is no tangent at all
    return solve_left(u, c)


def _tangents_of_factors(
    a: Array, solution: _Solution, da: Array | None, dridge: Array | None, axis_name: AxisName
) -> tuple[Any, Any]:
    """dQ = dA U^-1 - Q W and dU = W U, W the upper triangle of U^-H dG U^-1, half of its diagonal.

    Of dG one half is kept, of which the other is the adjoint.
    """
    q, u, _ = solution
    half, dau = None, None
    if da is not None:
        dau = right_solve(da, u)
        if q is None:
            products = lax.psum(adjoint_matmul(a, da), axis_name)
            half = right_solve(solve_adjoint_left(u, products), u)
        else:
            half = lax.psum(adjoint_matmul(q, dau), axis_name)
    if dridge is not None:
        eye = jnp.broadcast_to(jnp.eye(u.shape[-1], dtype=u.dtype), u.shape)
        inverse = solve_left(u, eye)
        half = plus(half, adjoint_matmul(inverse, dridge.astype(u.dtype) / 2 * inverse))
    if half is None:
        dq, du = (y if y is None else zero_from_primal(y, symbolic_zeros=True) for y in (q, u))
        return dq, du
    w = upper_of_twice_hermitian(half)
    dq = None if q is None else plus(dau, -matmul(q, w))
    return dq, matmul(w, u)


_solution.defjvp(_jvp, symbolic_zeros=True)
