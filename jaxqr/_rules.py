"""The derivative of a partial factorization: pullback and pushforward.

Cut A (m x n) after column k <= min(m, n), A = [X | Y], and factor X alone::

    X = Q U      Q: m x k, orthonormal columns;  U: k x k, upper triangular, real diagonal
    V = Q^H Y    R = [U | V]

Deep and square QR have no Y; wide QR has k = m, so that Y = Q V; cut earlier, it is the truncated
factorization that column pivoting gives, and then Y is more than Q V.

Everything here takes and returns arrays (..., rows, columns) and knows no transformation and no
option. Cotangents follow the convention of the paper, dL = Re tr(G-bar^H dG); JAX's are their
conjugates. Equation numbers are those of

    D. A. O. Roberts and L. R. Roberts, "QR and LQ Decomposition Matrix Backpropagation Algorithms
    for Square, Wide, and Deep - Real or Complex - Matrices and Their Software Implementation",
    arXiv:2009.10071.

A cotangent that is None is zero, and costs nothing.
"""

import jax.numpy as jnp
from jax import Array

from jaxqr._forward.triangular import (
    adjoint,
    matmul,
    solve_adjoint_left,
    solve_adjoint_right,
    solve_left,
    solve_right,
)


def _strictly_lower(k: int) -> Array:
    return jnp.tri(k, k, -1, dtype=bool)


def _real_diagonal(m: Array) -> Array:
    """Drops the imaginary part of the diagonal of m (..., k, k)."""
    if not jnp.iscomplexobj(m):
        return m
    return jnp.where(jnp.eye(m.shape[-1], dtype=bool), m.real.astype(m.dtype), m)


def copyltu(m: Array) -> Array:
    """The Hermitian matrix that has the lower triangle of m (..., k, k) (eq. 4)."""
    return _real_diagonal(jnp.where(_strictly_lower(m.shape[-1]).mT, adjoint(m), m))


def _upper_of_twice_hermitian(c: Array) -> Array:
    """The upper triangle of C + C^H with Re(diag C) on the diagonal: W of Lemma 1."""
    k = c.shape[-1]
    above = jnp.where(_strictly_lower(k).mT, c + adjoint(c), 0)
    return jnp.where(jnp.eye(k, dtype=bool), c.real.astype(c.dtype), above)


def _split(r: Array) -> tuple[Array, Array]:
    """R = [U | V], without the zero rows that R has in complete mode."""
    k = min(r.shape[-2:])
    return r[..., :k, :k], r[..., :k, k:]


def _inner(r: Array, qhq_bar: Array | None, r_bar: Array | None, *, spans: bool) -> Array:
    """The k x k matrix T with X-bar = Q T + (what is left of Q-bar) U^-H.

    T = copyltu(M) U^-H with M = U U-bar^H - Qp^H Q and Qp = Q-bar + Y V-bar^H (eqs. 9, 10, 21).
    Q^H Y = V, so M needs no Y; and where Y = Q V (``spans``) the term Y V-bar^H of Qp is
    Q (V V-bar^H), which belongs to T too.

    ``qhq_bar`` is Q-bar^H Q.
    """
    u, v = _split(r)
    m = jnp.zeros_like(u)
    wide = v.shape[-1] > 0
    if r_bar is not None:
        u_bar, v_bar = _split(r_bar)
        m = matmul(u, adjoint(u_bar))
        if wide:
            vv_bar = matmul(v, adjoint(v_bar))
            m = m - adjoint(vv_bar)
    if qhq_bar is not None:
        m = m - qhq_bar
    t = copyltu(m)
    if r_bar is not None and wide and spans:
        t = t + vv_bar
    return solve_adjoint_right(t, u)


def pullback(
    q: Array, r: Array, y: Array | None, q_bar: Array | None, r_bar: Array | None
) -> Array:
    """A-bar (..., m, n) from the cotangents of Q and R.

    Args:
        q: (..., m, k), or (..., m, m) in complete mode.
        r: (..., k, n), or (..., m, n) in complete mode.
        y: the columns of A beyond the k-th, (..., m, n - k), where Q does not span them (k < m);
            None where there are none or Y = Q V.
        q_bar, r_bar: like q and r; None for zero.

    The cost is three products of 2 m k^2 operations, two of them for Q-bar, and a triangular
    solve, besides what is k x k.

    This is X-bar = (Qp + Q copyltu(M)) U^-H, Y-bar = Q V-bar (eqs. 3, 9, 10, 21, 26) with the
    products by Q gathered in one: A-bar = Q [T | V-bar] + [(Q-bar + ...) U^-H | 0].
    """
    u, v = _split(r)
    k, rest = u.shape[-1], v.shape[-1]
    q1, q2 = q[..., :k], q[..., k:]

    bracket = qhq_bar = None
    if q_bar is not None:
        bracket = q_bar[..., :k]
        qhq_bar = matmul(adjoint(bracket), q1)
        if q2.shape[-1]:  # the frame of the complement does not turn: Q2^H dQ2 = 0
            bracket = bracket - matmul(q2, matmul(adjoint(q_bar[..., k:]), q1))
    if r_bar is not None and y is not None:
        yv_bar = matmul(y, adjoint(r_bar[..., k:]))
        bracket = yv_bar if bracket is None else bracket + yv_bar

    factor = _inner(r, qhq_bar, r_bar, spans=y is None)
    if rest:
        v_bar = jnp.zeros_like(v) if r_bar is None else r_bar[..., k:]
        factor = jnp.concatenate([factor, v_bar], axis=-1)
    a_bar = matmul(q1, factor)
    if bracket is None:
        return a_bar
    x_bar = solve_adjoint_right(bracket, u)
    return a_bar.at[..., :k].add(x_bar) if rest else a_bar + x_bar


def pushforward(q: Array, r: Array, y: Array | None, da: Array) -> tuple[Array, Array]:
    """dQ and dR from dA (..., m, n); q, r and y as in :func:`pullback` (Lemmas 1 and 2)."""
    u, v = _split(r)
    k, rest = u.shape[-1], v.shape[-1]
    q1, q2 = q[..., :k], q[..., k:]
    dx, dy = da[..., :k], da[..., k:]

    dxu = solve_right(dx, u)
    c = matmul(adjoint(q1), dxu)
    w = _upper_of_twice_hermitian(c)
    dq = dxu - matmul(q1, w)
    dr = matmul(w, u)
    if rest:
        dqy = matmul(adjoint(c - w), v) if y is None else matmul(adjoint(dq), y)
        dr = jnp.concatenate([dr, dqy + matmul(adjoint(q1), dy)], axis=-1)
    if q2.shape[-1]:
        dq2 = -matmul(q1, adjoint(matmul(adjoint(q2), dxu)))
        dq = jnp.concatenate([dq, dq2], axis=-1)
        dr = jnp.concatenate([dr, jnp.zeros_like(r[..., k:, :])], axis=-2)
    return dq, dr


def pullback_r(x: Array, r: Array, y: Array | None, r_bar: Array) -> Array:
    """A-bar from the cotangent of R alone, without Q: Q = X U^-1.

    Args:
        x: the first k columns of A, (..., m, k).
        r: (..., k, n); r_bar likewise.
        y: as in :func:`pullback`.

    A-bar = X U^-1 [T | V-bar]: one product of 2 m k n operations.
    """
    u, v = _split(r)
    k = u.shape[-1]
    factor = _inner(r, None, r_bar, spans=y is None)
    if v.shape[-1]:
        factor = jnp.concatenate([factor, r_bar[..., k:]], axis=-1)
    a_bar = matmul(x, solve_left(u, factor))
    if y is None:
        return a_bar
    return a_bar.at[..., :k].add(solve_adjoint_right(matmul(y, adjoint(r_bar[..., k:])), u))


def pushforward_r(x: Array, r: Array, y: Array | None, da: Array) -> Array:
    """dR from dA without Q; x, r and y as in :func:`pullback_r`."""
    u, v = _split(r)
    k = u.shape[-1]
    g = solve_adjoint_left(u, matmul(adjoint(x), da))  # Q^H [dX | dY]
    c = solve_right(g[..., :k], u)
    w = _upper_of_twice_hermitian(c)
    dr = matmul(w, u)
    if not v.shape[-1]:
        return dr
    if y is None:
        dqy = matmul(adjoint(c - w), v)
    else:
        dxy = matmul(adjoint(da[..., :k]), y)
        dqy = solve_adjoint_left(u, dxy) - matmul(adjoint(w), v)
    return jnp.concatenate([dr, dqy + g[..., k:]], axis=-1)
