"""The pushforward where Q's rows are on many devices. Its transpose is the pullback.

Notation of :mod:`jaxqr._rules.partial_qr`, for Y empty; matrices are (..., rows, columns).
"""

import jax.numpy as jnp
from jax import Array, lax
from jax.lax.linalg import triangular_solve

from jaxqr._linalg.products import adjoint
from jaxqr.distributed._reduction import AxisName

# Products of one thing that is linear in the tangents and one that is not. JAX keeps the latter for
# the transpose as it stands in the product: so it stands there as it is, and is not kept twice.


def matmul(x: Array, y: Array) -> Array:
    """X Y."""
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)


def adjoint_matmul(x: Array, y: Array) -> Array:
    """X^H Y for x (..., m, k) and y (..., m, n)."""
    return jnp.conj(
        jnp.einsum("...mk,...mn->...kn", x, jnp.conj(y), precision=lax.Precision.HIGHEST)
    )


def right_solve(b: Array, u: Array) -> Array:
    """B U^-1 for upper triangular u (..., n, n) and b (..., m, n)."""
    return triangular_solve(u, b, left_side=False, lower=False)


def upper_of_twice_hermitian(c: Array) -> Array:
    """The upper triangle of C + C^H with Re(diag C) on the diagonal: W of Lemma 1."""
    twice = jnp.triu(c + adjoint(c))
    return jnp.where(jnp.eye(c.shape[-1], dtype=bool), twice / 2, twice)


def pushforward(q: Array, r: Array, da: Array, axis_name: AxisName) -> tuple[Array, Array]:
    """This device's rows of dQ, and dR (Lemmas 1 and 2).

    The transpose, with S = copyltu(R R-bar^H - sum Q-bar^H Q) a sum over the devices, is
    A-bar = (Q-bar + Q S) R^-H.
    """
    dau = right_solve(da, r)
    w = upper_of_twice_hermitian(lax.psum(adjoint_matmul(q, dau), axis_name))
    return dau - matmul(q, w), matmul(w, r)
