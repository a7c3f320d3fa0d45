"""Least squares."""

import functools
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxqr._arguments import as_array, as_matrices, compute_dtype, result_dtype
from jaxqr._forward import least_squares
from jaxqr._forward.triangular import adjoint, matmul
from jaxqr._lstsq_rules import Solved, System, derive


def lstsq(
    a: ArrayLike,
    b: ArrayLike,
    *,
    rcond: ArrayLike | None = None,
    ridge: ArrayLike = 0.0,
    forward_mode: bool = False,
) -> Array:
    """The x that minimizes ||A x - b||, and of those the shortest.

    TODO
    """
    a = as_matrices("lstsq", "a", a)
    b = as_array("lstsq", "b", b)
    shift = None if isinstance(ridge, numbers.Real) and ridge == 0 else _level("ridge", ridge)
    cut = None if rcond is None else _level("rcond", rcond)
    if cut is not None and cut.ndim:
        raise ValueError(f"lstsq expects rcond to be a scalar. Got shape {cut.shape}.")
    if cut is not None and shift is not None:
        raise ValueError(
            "lstsq expects rcond or ridge but not both: with ridge > 0 there is one solution, "
            f"whatever the rank. Got rcond={rcond} and ridge={ridge}."
        )
    vectors = b.ndim in (1, a.ndim - 1)
    _check_shapes(a, b, shift, vectors)
    x = _lstsq(a, b[..., None] if vectors else b, shift, cut, forward_mode=forward_mode)
    return x[..., 0] if vectors else x


def _level(name: str, value: ArrayLike) -> Array:
    """A real number that is not negative, as far as can be told when it is traced."""
    array = as_array("lstsq", name, value)
    if jnp.iscomplexobj(array):
        raise TypeError(f"lstsq expects {name} to be real. Got {array.dtype}.")
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))
    if not traced and (np.asarray(value) < 0).any():
        raise ValueError(f"lstsq expects {name} not to be negative. Got {value}.")
    return array


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
        r, x = least_squares.solve_augmented(root, q, None, b_)
        system = System(adjoint(a), ridge, None, root, q)
        return derive(Solved(system, None, b, r, x), forward_mode)[0]
    keep_q = forward_mode or not deep
    if rcond is None and not keep_q and b.shape[-1] <= a.shape[-1]:
        root, x = least_squares.factor_and_solve_without_q(a_, b_, ridge_)
        q, r = None, b_ - matmul(a_, x)
    else:
        root, q = least_squares.factor(a_, ridge_, rcond_)
        r, x = least_squares.solve_augmented(root, q, b_, None)
    system = System(a, ridge, rcond_, root, q if keep_q else None)
    return derive(Solved(system, b, None, r, x), forward_mode)[1]
