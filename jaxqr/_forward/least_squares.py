"""Least squares by orthogonal factorization: factors, and solutions of the augmented system.

For A (..., m, n) and lambda >= 0, the augmented system of least squares is

    r + A x          = f
    A^H r - lambda x = g

With g = 0, x minimizes ||A x - f||^2 + lambda ||x||^2 and r is the residual. With f = 0, r is the
shortest vector with A^H r = g (for lambda = 0). Where A has lost rank, x is the shortest solution
and g counts by its projection on the row space of A: (r, x) is the system's pseudoinverse applied
to (f, g).

A is held as Q B, Q with orthonormal columns, and B by its *root*: ``(u,)`` where A has full column
rank and B = U is upper triangular, or ``(t, w)``, where B = T^H W^H, T upper triangular, W with
orthonormal columns: a complete orthogonal decomposition. With lambda, Q B is [A; sqrt(lambda) I],
and of Q the first m rows suffice. The normal equations are never formed.
"""

import jax.numpy as jnp
from jax import Array, lax

from jaxqr import _forward
from jaxqr._forward import batched, cholesky, householder, pivoting
from jaxqr._linalg import products
from jaxqr._linalg.algebra import adjoint, matmul, project, solve_adjoint_left, solve_left
from jaxqr._linalg.batching import batch_aware, over_matrices, suits

Root = tuple[Array, ...]


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


def _solve(root: Root, d: Array) -> Array:
    """B^+ d."""
    if len(root) == 1:
        return solve_left(root[0], d)
    t, w = root
    return matmul(w, solve_adjoint_left(t, d))


def _solve_adjoint(root: Root, g: Array) -> Array:
    """B^+H g."""
    if len(root) == 1:
        return solve_adjoint_left(root[0], g)
    t, w = root
    return solve_left(t, matmul(adjoint(w), g))


def solve_augmented(root: Root, q: Array, f: Array | None, g: Array | None) -> tuple[Array, Array]:
    """(r, x) from the right-hand sides f (..., m, nrhs) and g (..., n, nrhs); None is zero.

    Björck, "Solving linear least squares problems by Gram-Schmidt orthogonalization" (1967) and
    "Numerical Methods for Least Squares Problems" (1996), section 2.4.
    """

    def solve(root: Root, q: Array, f: Array | None, g: Array | None) -> tuple[Array, Array]:
        d = None if f is None else project(q, f)
        if g is not None:
            z = _solve_adjoint(root, g)
            d = -z if d is None else d - z
        assert d is not None
        fitted = matmul(q, d)
        return -fitted if f is None else f - fitted, _solve(root, d)

    r, x = over_matrices(solve)(root, q, f, g)
    return r, x


def solve_augmented_without_q(a: Array, root: Root, g: Array) -> tuple[Array, Array]:
    """(r, x) for f = 0: the semi-normal equations, B^H B x = -g, and r = -A x.

    For f = 0 they are as accurate as Q would be: C. C. Paige, "An error analysis of a method for
    solving matrix equations", Mathematics of Computation 27 (1973). For f != 0 they are not.
    """

    def solve(a: Array, root: Root, g: Array) -> tuple[Array, Array]:
        x = -_solve(root, _solve_adjoint(root, g))
        return -matmul(a, x), x

    r, x = over_matrices(solve)(a, root, g)
    return r, x
