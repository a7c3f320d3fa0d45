"""Taylor coefficients of the factors, order by order: each costs products and a solve.

Along a curve A(t) = A_0 + A_1 t + A_2 t^2 + ..., cut after column k as in
:mod:`jaxqr._rules.partial_qr`, the coefficients of order d > 0 of X = Q U and of Q^H Q = I are

    Q_0 U_d + Q_d U_0     = X_d - sum_{0<i<d} Q_i U_{d-i}  = G
    Q_0^H Q_d + Q_d^H Q_0 = -sum_{0<i<d} Q_i^H Q_{d-i}     = H                                  (1)

of which the first is, with Z = G U_0^-1 and multiplied by Q_0^H,

    Q_0^H Z - H/2 = (Q_0^H Q_d - H/2) + U_d U_0^-1

a skew-Hermitian and an upper triangular matrix with a real diagonal: the pushforward again, for
another right-hand side (S. F. Walter and L. Lehmann, "Algorithmic differentiation of linear algebra
functions with application in optimum experimental design", arXiv:1001.1654). So every order is
made with the factors of A_0.

A series is a stack of its coefficients, (orders, rows, columns), the first included; those that are
not yet known are zero. Orders are made in a loop, so that a program does not grow with them.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxqr._linalg.products import adjoint, matmul, solve_adjoint_left
from jaxqr._rules.partial_qr import upper_of_twice_hermitian


def stacked(terms: list[Array]) -> Array:
    """Coefficients (..., rows, columns) as a series, (..., orders, rows, columns)."""
    return jnp.stack(terms, axis=-3)


def unstacked(series: Array) -> list[Array]:
    """The coefficients of a series."""
    return [series[..., d, :, :] for d in range(series.shape[-3])]


def product(x: Array, y: Array) -> Array:
    """The series of X Y, (..., orders, rows, columns)."""
    of_order = coefficient
    for _ in x.shape[:-3]:
        of_order = jax.vmap(of_order, (0, 0, None))
    orders = jnp.arange(x.shape[-3])
    out: Array = jax.vmap(of_order, (None, None, 0), -3)(x, y, orders)
    return out


def coefficient(x: Array, y: Array, d: Array | int) -> Array:
    """The coefficient of order d of the product X Y of two series: the sum of X_i Y_{d-i}."""
    left, right = jnp.moveaxis(x, 0, 1), reversed_from(y, d)
    inner = right.shape[0] * right.shape[1]
    out: Array = matmul(left.reshape(len(left), inner), right.reshape(inner, y.shape[-1]))
    return out


def reversed_from(y: Array, d: Array | int) -> Array:
    """Y_d, Y_{d-1}, ..., Y_0 and zeros: as many as there are."""
    at = d - jnp.arange(y.shape[0])
    there = (at >= 0).reshape(-1, *[1] * (y.ndim - 1))
    return jnp.where(there, y[jnp.maximum(at, 0)], 0)


def from_first(x: Array, orders: int) -> Array:
    """The series of which X is the first coefficient, and the others are not yet known."""
    return jnp.pad(x[None], [(0, orders - 1), *[(0, 0)] * x.ndim])  # sharded as X


def qr(q: Array, r: Array, a: Array, *, k: int) -> tuple[Array, Array]:
    """The series of Q and R from that of A and their first terms; k columns are factored.

    q is (m, k), or (m, m) in complete mode; r is (k, n), or (m, n); a is (orders, m, n).
    """
    u, q1 = r[:k, :k], q[:, :k]

    def step(d: Array, factors: tuple[Array, Array]) -> tuple[Array, Array]:
        qs, rs = factors
        g = a[d, :, :k] - coefficient(qs, rs[:, :, :k], d)
        h = -coefficient(adjoint(qs), qs, d)
        z = _over(g, u)
        w = upper_of_twice_hermitian(matmul(adjoint(q1), z) - h / 2)
        qs = qs.at[d].set(z - matmul(q1, w))
        r_d = matmul(w, u)
        if r.shape[1] > k:  # V = Q^H Y
            r_d = jnp.concatenate([r_d, coefficient(adjoint(qs), a[:, :, k:], d)], axis=1)
        return qs, rs.at[d].set(r_d)

    orders = a.shape[0]
    start = from_first(q1, orders), from_first(r[:k], orders)
    qs, rs = lax.fori_loop(1, orders, step, start)
    if q.shape[1] == k:
        return qs, rs
    complete = jnp.concatenate([qs, complement(qs, q[:, k:])], axis=2)
    return complete, jnp.pad(rs, [(0, 0), (0, r.shape[0] - k), (0, 0)])


def complement(q: Array, q2: Array) -> Array:
    """The series of Q2, whose frame does not turn: Q2^H dQ2 = 0, so that dQ2 = -Q dQ^H Q2."""
    orders = q.shape[0]
    order = jnp.arange(1, orders).astype(q.dtype)[:, None, None]
    slopes = adjoint(jnp.concatenate([order * q[1:], jnp.zeros_like(q[:1])]))  # of Q^H

    def step(d: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        q2s, turned = state
        turned = turned.at[d - 1].set(coefficient(slopes, q2s, d - 1))
        q2_d = coefficient(q, turned, d - 1) / d.astype(q.dtype)
        return q2s.at[d].set(-q2_d), turned

    turned = jnp.zeros_like(q, shape=(orders, q.shape[2], q2.shape[1]))
    q2s, _ = lax.fori_loop(1, orders, step, (from_first(q2, orders), turned))
    out: Array = q2s
    return out


def _over(x: Array, u: Array) -> Array:
    """X U^-1."""
    return adjoint(solve_adjoint_left(u, adjoint(x)))
