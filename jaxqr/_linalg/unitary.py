"""Q = H_0 H_1 ..., H_j = I - tau_j v_j v_j^H, applied as LAPACK stores it: Q is not formed."""

import jax.numpy as jnp
from jax import Array
from jax.lax.linalg import ormqr

from jaxqr._linalg.exporting import unless_exported
from jaxqr._linalg.products import adjoint, matmul, solve_adjoint_left, solve_left


def apply_q(v: Array, taus: Array, x: Array) -> Array:
    """Q X for v (..., m, k), below the diagonal, taus (..., k) and x (..., m, n)."""
    (y,) = _apply(v, taus, x, transpose=False)
    return y


def apply_q_adjoint(v: Array, taus: Array, x: Array) -> Array:
    """Q^H X likewise."""
    (y,) = _apply(v, taus, x, transpose=True)
    return y


def _by_lapack(v: Array, taus: Array, x: Array, *, transpose: bool) -> list[Array]:
    return [ormqr(v, taus, x, left=True, transpose=transpose)]


def _by_products(v: Array, taus: Array, x: Array, *, transpose: bool) -> list[Array]:
    """Q = I - V T V^H with T^-1 = D^-1 + S, D = diag(taus), S strictly upper of V^H V.

    So T = D (I + S D)^-1, whatever taus are zero (C. Puglisi, "Modification of the Householder
    method based on the compact WY representation", SIAM J. Sci. Stat. Comput. 13 (1992)).
    """
    rows, columns = v.shape[-2:]
    v = jnp.tril(v, -1) + jnp.eye(rows, columns, dtype=v.dtype)
    taus = taus[..., :, None]
    s = jnp.triu(matmul(adjoint(v), v), 1)
    unit = jnp.eye(s.shape[-1], dtype=s.dtype) + s * taus.mT
    projected = matmul(adjoint(v), x)
    if transpose:
        inner = solve_adjoint_left(unit, jnp.conj(taus) * projected)
    else:
        inner = taus * solve_left(unit, projected)
    return [x - matmul(v, inner)]


_apply = unless_exported(_by_lapack, _by_products)
