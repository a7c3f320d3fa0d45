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

A series is a list of its coefficients, the first included; matrices are (rows, columns).
"""

import jax.numpy as jnp
from jax import Array

from jaxqr._linalg.products import adjoint, matmul, solve_adjoint_left
from jaxqr._rules.partial_qr import upper_of_twice_hermitian

Series = list[Array]


def product(x: Series, y: Series, d: int, *, first: int = 0, last: int | None = None) -> Array:
    """The sum of X_i Y_{d-i} for i from ``first`` to ``last`` (to d), as one product."""
    i = range(first, (d if last is None else last) + 1)
    left = jnp.concatenate([x[j] for j in i], axis=-1)
    return matmul(left, jnp.concatenate([y[d - j] for j in i], axis=-2))


def qr(q: Array, r: Array, a: Series, k: int) -> tuple[Series, Series]:
    """The series of Q and R from that of A and their first terms; k columns are factored.

    q is (m, k), or (m, m) in complete mode; r is (k, n), or (m, n).
    """
    u, qs, rs = r[:k, :k], [q[:, :k]], [r[:k]]
    for d in range(1, len(a)):
        g, h = a[d][:, :k], jnp.zeros_like(u)
        if d > 1:
            g = g - product(qs, [r[:, :k] for r in rs], d, first=1, last=d - 1)
            h = -product([adjoint(x) for x in qs], qs, d, first=1, last=d - 1)
        z = _over(g, u)
        w = upper_of_twice_hermitian(matmul(adjoint(qs[0]), z) - h / 2)
        qs.append(z - matmul(qs[0], w))
        r_d = matmul(w, u)
        if r.shape[1] > k:  # V = Q^H Y
            v_d = product([adjoint(x) for x in qs], [x[:, k:] for x in a], d)
            r_d = jnp.concatenate([r_d, v_d], axis=1)
        rs.append(r_d)
    if q.shape[1] == k:
        return qs, rs
    below = [(0, r.shape[0] - k), (0, 0)]
    complements = complement(qs, q[:, k:])
    complete = [jnp.concatenate(pair, axis=1) for pair in zip(qs, complements, strict=True)]
    return complete, [jnp.pad(x, below) for x in rs]


def complement(q: Series, q2: Array) -> Series:
    """The series of Q2, whose frame does not turn: Q2^H dQ2 = 0, so that dQ2 = -Q dQ^H Q2."""
    slopes = [adjoint((d + 1) * x) for d, x in enumerate(q[1:])]  # of Q^H
    q2s: Series = [q2]
    turned: Series = []
    for d in range(1, len(q)):
        turned.append(product(slopes, q2s, d - 1))
        q2s.append(-product(q, turned, d - 1) / d)
    return q2s


def _over(x: Array, u: Array) -> Array:
    """X U^-1."""
    return adjoint(solve_adjoint_left(u, adjoint(x)))
