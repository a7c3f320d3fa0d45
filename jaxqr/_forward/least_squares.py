"""The factors that least squares needs: A as Q and a root (see :mod:`jaxqr._linalg.augmented`)."""

import jax.numpy as jnp
from jax import Array, lax

from jaxqr import _forward
from jaxqr._forward import batched, cholesky, householder, pivoting
from jaxqr._linalg import products
from jaxqr._linalg.algebra import solve_left
from jaxqr._linalg.augmented import Root
from jaxqr._linalg.batching import batch_aware, over_matrices, suits


def _with_ridge(a: Array, ridge: Array | None) -> Array:
    """[A; sqrt(ridge) I] for a (..., m, n) and ridge (..., 1, 1)."""
    if ridge is None:
        return a
    identity = jnp.eye(a.shape[-1], dtype=a.dtype)
    below = jnp.sqrt(ridge).astype(a.dtype) * jnp.broadcast_to(
        identity, (*a.shape[:-2], *identity.shape)
    )
    return jnp.concatenate([a, below], axis=-2)


def factor(a: Array, ridge: Array | None, rcond: Array | None) -> tuple[Root, Array]:
    """The root and q, for a (..., m, n); with m >= n unless rcond is given."""
    return _full_rank(a, ridge) if rcond is None else _rank_revealing(a, rcond)


def _full_rank(a: Array, ridge: Array | None) -> tuple[Root, Array]:
    """The root (u,) and q (..., m, n), of a (..., m, n) with m >= n."""
    q, u = _forward.qr(_with_ridge(a, ridge), "reduced", "auto")
    return (u,), q[..., : a.shape[-2], :]


def factor_and_solve_without_q(a: Array, b: Array, ridge: Array | None) -> tuple[Root, Array]:
    """The root (u,) and x, for a (..., m, n) with m >= n and b (..., m, nrhs)."""
    if ridge is not None:
        zeros = jnp.zeros((*b.shape[:-2], a.shape[-1], b.shape[-1]), b.dtype)
        a, b = _with_ridge(a, ridge), jnp.concatenate([b, zeros], axis=-2)
    u, c = batch_aware(_reduce)(a, b)
    return (u,), over_matrices(solve_left)(u, c)


def _reduce(a: Array, b: Array) -> tuple[Array, Array]:
    """U and the first n rows of Q^H b without Q."""
    best = safe = householder.triangle_and_product
    if suits(a, b):
        best = batched.triangle_and_product
    elif cholesky.suits(a, "r"):
        best = cholesky.triangle_and_product
    if best is safe:
        return safe(a, b)
    out: tuple[Array, Array] = lax.platform_dependent(a, b, cpu=best, default=safe)
    return out


def _rank_revealing(a: Array, rcond: Array) -> tuple[Root, Array]:
    """The root (t, w) and q (..., m, k) of a (..., m, n), k = min(m, n), of whatever rank.

    The rank is the number of diagonal elements of the pivoted R that exceed rcond |r_00|. All
    shapes are static: beyond the rank, columns of Q and W are zero, and T is the identity.
    """
    k = min(a.shape[-2:])
    q, r, p = pivoting.pivoted_qr(a, "reduced", k)
    diagonal = jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1))
    # Not "diagonal > ...": what is not a number must not be dropped but be seen.
    keep = ~(diagonal <= rcond * diagonal[..., :1])
    z, t = householder.qr(
        products.adjoint(r), "reduced"
    )  # up to the rank, what lies beyond plays no part
    columns = keep[..., None, :]
    t = jnp.where(columns, t, jnp.eye(k, dtype=t.dtype))
    w = jnp.where(columns, z, 0)
    unpermuted = jnp.take_along_axis(w, jnp.argsort(p, axis=-1)[..., :, None], axis=-2)
    return (t, unpermuted), jnp.where(columns, q, 0)
