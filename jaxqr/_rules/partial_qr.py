"""The derivative of a partial factorization: pullback and pushforward.

Cut A (m x n) after column k <= min(m, n), A = [X | Y], and factor X alone::

    X = Q U      Q: m x k, orthonormal columns;  U: k x k, upper triangular, real diagonal
    V = Q^H Y    R = [U | V]

Deep and square QR have no Y; wide QR has k = m, so that Y = Q V; cut earlier, it is the truncated
factorization that column pivoting gives, and then Y is more than Q V.

Everything here takes and returns matrices (rows, columns), or many small ones as (rows, columns,
batch), and knows no transformation and no option. Cotangents follow the convention of the paper,
dL = Re tr(G-bar^H dG); JAX's are their conjugates. Equation numbers are those of

    D. A. O. Roberts and L. R. Roberts, "QR and LQ Decomposition Matrix Backpropagation Algorithms
    for Square, Wide, and Deep - Real or Complex - Matrices and Their Software Implementation",
    arXiv:2009.10071.

A cotangent that is None is zero, and costs nothing.
"""

import jax.numpy as jnp
from jax import Array

from jaxqr._linalg.algebra import above_diagonal, adjoint, difference, matmul, on_diagonal, select
from jaxqr._linalg.blocked import (
    Inverted,
    lower_of_product,
    lower_of_upper_product,
    lower_sum,
    product_over,
    sum_over_adjoint,
)


def copyltu(m: Array) -> Array:
    """The Hermitian matrix that has the lower triangle of m (k, k) (eq. 4)."""
    hermitian = select(above_diagonal(m), adjoint(m), m)
    if not jnp.iscomplexobj(m):
        return hermitian
    return select(on_diagonal(m), m.real.astype(m.dtype), hermitian)


def _w(c: Array) -> Array:
    """W of Lemma 1: the upper triangle of C + C^H, with Re(diag C) on the diagonal."""
    above = select(above_diagonal(c), c + adjoint(c), 0)
    return select(on_diagonal(c), c.real.astype(c.dtype), above)


def _split(r: Array) -> tuple[Array, Array]:
    """R = [U | V], without the zero rows that R has in complete mode."""
    k = min(r.shape[:2])
    return r[:k, :k], r[:k, k:]


def _m(
    q: Array | None, r: Array, q_bar: Array | None, r_bar: Array | None
) -> tuple[Array, Array | None]:
    """The lower triangle of M = U U-bar^H - Qp^H Q with Qp = Q-bar + Y V-bar^H (eqs. 9, 10).

    Q^H Y = V, so it needs no Y: M = U U-bar^H - (V V-bar^H)^H - Q-bar^H Q. And V V-bar^H, if any.
    """
    u, v = _split(r)
    terms, vv_bar = [], None
    if r_bar is not None:
        u_bar, v_bar = _split(r_bar)
        terms.append(lower_of_upper_product(u, u_bar))
        if v.shape[1]:
            vv_bar = matmul(v, adjoint(v_bar))
    if q_bar is not None and q is not None:
        terms.append(lower_of_product(-adjoint(q_bar), q))
    m = lower_sum(*terms)
    return (m, None) if vv_bar is None else (difference(m, adjoint(vv_bar)), vv_bar)


def pullback(
    q: Array, r: Array, y: Array | None, q_bar: Array | None, r_bar: Array | None
) -> Array:
    """A-bar (m, n) from the cotangents of Q and R.

    Args:
        q: (m, k), or (m, m) in complete mode.
        r: (k, n), or (m, n) in complete mode.
        y: the columns of A beyond the k-th, (m, n - k), where Q does not span them (k < m);
            None where there are none or Y = Q V.
        q_bar, r_bar: like q and r; None for zero.

    The cost is that of a triangular solve and two products of 2 m k^2 operations, or one where
    q_bar is None, besides what is k x k.

    X-bar = (Qp + Q copyltu(M)) U^-H, Y-bar = Q V-bar (eqs. 3, 9, 10, 21, 26).
    """
    u, v = _split(r)
    k = u.shape[1]
    q1, q2 = q[:, :k], q[:, k:]
    qp = None if q_bar is None else q_bar[:, :k]

    m, vv_bar = _m(q1, r, qp, r_bar)
    s = copyltu(m)
    if vv_bar is not None and y is None:  # Y = Q V, so Y V-bar^H joins what Q is multiplied by
        s = s + vv_bar
    # The complement's frame does not turn: Q2^H dQ2 = 0.
    if q_bar is not None and qp is not None and q2.shape[1]:
        qp = qp - matmul(q2, matmul(adjoint(q_bar[:, k:]), q1))
    y_bar = jnp.zeros_like(q, shape=(q.shape[0], *v.shape[1:]))
    if r_bar is not None and v.shape[1]:
        _, v_bar = _split(r_bar)
        y_bar = matmul(q1, v_bar)
        if y is not None:
            yv_bar = matmul(y, adjoint(v_bar))
            qp = yv_bar if qp is None else qp + yv_bar

    x_bar = sum_over_adjoint(qp, q1, s, u)
    return jnp.concatenate([x_bar, y_bar], axis=1) if v.shape[1] else x_bar


def pushforward(q: Array, r: Array, y: Array | None, da: Array) -> tuple[Array, Array]:
    """dQ and dR from dA (m, n); q, r and y as in :func:`pullback` (Lemmas 1 and 2)."""
    u, v = _split(r)
    k, rest = u.shape[1], v.shape[1]
    q1, q2 = q[:, :k], q[:, k:]
    dx, dy = da[:, :k], da[:, k:]

    dxu = Inverted.of(u).right(dx)
    c = matmul(adjoint(q1), dxu)
    w = _w(c)
    dq = dxu - matmul(q1, w)
    dr = matmul(w, u)
    if rest:
        dqy = matmul(adjoint(c - w), v) if y is None else matmul(adjoint(dq), y)
        dr = jnp.concatenate([dr, dqy + matmul(adjoint(q1), dy)], axis=1)
    if q2.shape[1]:
        dq2 = -matmul(q1, adjoint(matmul(adjoint(q2), dxu)))
        dq = jnp.concatenate([dq, dq2], axis=1)
        dr = jnp.concatenate([dr, jnp.zeros_like(r[k:])], axis=0)
    return dq, dr


def pullback_r(x: Array, r: Array, y: Array | None, r_bar: Array) -> Array:
    """A-bar from the cotangent of R alone, without Q: Q = X U^-1.

    Args:
        x: the first k columns of A, (m, k).
        r: (k, n); r_bar likewise.
        y: as in :func:`pullback`.

    A-bar = X U^-1 [copyltu(M) U^-H | V-bar]: one product of 2 m k n operations.
    """
    u, v = _split(r)
    _, v_bar = _split(r_bar)
    m, vv_bar = _m(None, r, None, r_bar)
    s = copyltu(m)
    if vv_bar is not None and y is None:
        s = s + vv_bar
    inverted = Inverted.of(u)
    factor = inverted.adjoint_right(s)
    if v.shape[1]:
        factor = jnp.concatenate([factor, v_bar], axis=1)
    a_bar = product_over(x, inverted, factor)
    if y is None:
        return a_bar
    return a_bar.at[:, : x.shape[1]].add(inverted.adjoint_right(matmul(y, adjoint(v_bar))))


def pushforward_r(x: Array, r: Array, y: Array | None, da: Array) -> Array:
    """dR from dA without Q; x, r and y as in :func:`pullback_r`."""
    u, v = _split(r)
    k = u.shape[1]
    inverted = Inverted.of(u)
    g = inverted.adjoint_left(matmul(adjoint(x), da))  # Q^H [dX | dY]
    c = inverted.right(g[:, :k])
    w = _w(c)
    dr = matmul(w, u)
    if not v.shape[1]:
        return dr
    if y is None:
        dqy = matmul(adjoint(c - w), v)
    else:
        dxy = matmul(adjoint(da[:, :k]), y)
        dqy = inverted.adjoint_left(dxy) - matmul(adjoint(w), v)
    return jnp.concatenate([dr, dqy + g[:, k:]], axis=1)
