"""The derivative of a partial factorization: pullback and pushforward.

Cut A (m x n) after column k <= min(m, n), A = [X | Y], and factor X alone::

    X = Q U      Q: m x k, orthonormal columns;  U: k x k, upper triangular, real diagonal
    V = Q^H Y    R = [U | V]

Deep and square QR have no Y; wide QR has k = m, so that Y = Q V; cut earlier, it is the truncated
factorization that column pivoting gives, and then Y is more than Q V.

Everything here takes and returns matrices (rows, columns), or, where no column is dependent, many
small ones as (rows, columns, batch); it knows no transformation and no option. Cotangents follow
the convention of the paper, dL = Re tr(G-bar^H dG); JAX's are their conjugates. Equation numbers
are those of

    D. A. O. Roberts and L. R. Roberts, "QR and LQ Decomposition Matrix Backpropagation Algorithms
    for Square, Wide, and Deep - Real or Complex - Matrices and Their Software Implementation",
    arXiv:2009.10071.

A cotangent that is None is zero, and costs nothing.
"""

import jax.numpy as jnp
from jax import Array

from jaxqr._linalg.algebra import (
    above_diagonal,
    above_zeros,
    adjoint,
    adjoint_matmul,
    beside,
    difference,
    matmul,
    on_diagonal,
    select,
    times_i,
)
from jaxqr._linalg.batching import smaller
from jaxqr._linalg.blocked import (
    Inverted,
    adjoint_over,
    lower_of_adjoint_product,
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


def upper_of_twice_hermitian(c: Array) -> Array:
    """W of Lemma 1: the upper triangle of C + C^H, with Re(diag C) on the diagonal."""
    above = select(above_diagonal(c), c + adjoint(c), 0)
    return select(on_diagonal(c), c.real.astype(c.dtype), above)


def _split(r: Array) -> tuple[Array, Array]:
    """R = [U | V], without the zero rows that R has in complete mode."""
    k = smaller(*r.shape[:2])
    return r[:k, :k], r[:k, k:]


def _m(
    q: Array | None, r: Array, q_bar: Array | None, r_bar: Array | None
) -> tuple[Array, Array | None]:
    """The lower triangle of M = U U-bar^H - Qp^H Q with Qp = Q-bar + Y V-bar^H.

    Q^H Y = V, so it needs no Y: M = U U-bar^H - (V V-bar^H)^H - Q-bar^H Q. And V V-bar^H, if any.
    """
    u, v = _split(r)
    terms, vv_bar = [], None
    if r_bar is not None:
        u_bar, v_bar = _split(r_bar)
        terms.append(lower_of_upper_product(u, u_bar))
        if v.shape[1] != 0:
            vv_bar = matmul(v, adjoint(v_bar))
    if q_bar is not None and q is not None:
        terms.append([-strip for strip in lower_of_adjoint_product(q_bar, q)])
    m = lower_sum(*terms)
    return (m, None) if vv_bar is None else (difference(m, adjoint(vv_bar)), vv_bar)


def pullback(
    q: Array, r: Array, q_bar: Array | None, r_bar: Array | None, y: Array | None = None
) -> Array:
    """A-bar (m, n) from the cotangents of Q and R.

    Args:
        q: (m, k), or (m, m) in complete mode.
        r: (k, n), or (m, n) in complete mode.
        q_bar, r_bar: like q and r; None for zero.
        y: the columns of A beyond the k-th, (m, n - k), where Q does not span them (k < m);
            None where there are none or Y = Q V.

    The cost is that of a triangular solve and two products of 2 m k^2 operations, or one where
    q_bar is None, besides what is k x k.

    X-bar = (Qp + Q copyltu(M)) U^-H, Y-bar = Q V-bar (eqs. 3, 9, 10, 21 and 26).
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
    if q_bar is not None and qp is not None and q2.shape[1] != 0:
        qp = qp - matmul(q2, adjoint_matmul(q_bar[:, k:], q1))
    y_bar = jnp.zeros_like(q, shape=(q.shape[0], *v.shape[1:]))
    if r_bar is not None and v.shape[1] != 0:
        _, v_bar = _split(r_bar)
        y_bar = matmul(q1, v_bar)
        if y is not None:
            yv_bar = matmul(y, adjoint(v_bar))
            qp = yv_bar if qp is None else qp + yv_bar

    x_bar = sum_over_adjoint(qp, q1, s, u)
    return beside(x_bar, y_bar)


def pushforward(q: Array, r: Array, da: Array, y: Array | None = None) -> tuple[Array, Array]:
    """dQ and dR from dA (m, n); q, r and y as in :func:`pullback` (Lemmas 1 and 2)."""
    u, v = _split(r)
    k, rest = u.shape[1], v.shape[1]
    q1, q2 = q[:, :k], q[:, k:]
    dx, dy = da[:, :k], da[:, k:]

    dxu = Inverted.of(u).right(dx)
    c = adjoint_matmul(q1, dxu)
    w = upper_of_twice_hermitian(c)
    dq = dxu - matmul(q1, w)
    dr = matmul(w, u)
    if rest != 0:
        dqy = matmul(adjoint(c - w), v) if y is None else adjoint_matmul(dq, y)
        dr = beside(dr, dqy + adjoint_matmul(q1, dy))
    if q2.shape[1] != 0:
        dq2 = -matmul(q1, adjoint(adjoint_matmul(q2, dxu)))
        dq = beside(dq, dq2)
        dr = above_zeros(dr, r.shape[0] - k)
    return dq, dr


def pullback_r(x: Array, r: Array, r_bar: Array, y: Array | None = None) -> Array:
    """A-bar from the cotangent of R alone, without Q: Q = X U^-1.

    Args:
        x: the first k columns of A, (m, k).
        r: (k, n); r_bar likewise.
        y: as in :func:`pullback`.

    A-bar = X U^-1 [copyltu(M) U^-H | V-bar]: one product of 2 m k n operations.
    """
    u, _ = _split(r)
    _, v_bar = _split(r_bar)
    m, vv_bar = _m(None, r, None, r_bar)
    s = copyltu(m)
    if vv_bar is not None and y is None:
        s = s + vv_bar
    a_bar = product_over(x, u, s, v_bar)
    if y is None:
        return a_bar
    yv_bar = Inverted.of(u).adjoint_right(matmul(y, adjoint(v_bar)))
    return a_bar.at[:, : x.shape[1]].add(yv_bar)


def pushforward_r(x: Array, r: Array, da: Array, y: Array | None = None) -> Array:
    """dR from dA without Q; x, r and y as in :func:`pullback_r`."""
    u, v = _split(r)
    k = u.shape[1]
    inverted = Inverted.of(u)
    g = adjoint_over(inverted, x, da)  # Q^H [dX | dY]
    c = inverted.right(g[:, :k])
    w = upper_of_twice_hermitian(c)
    dr = matmul(w, u)
    if v.shape[1] == 0:
        return dr
    if y is None:
        dqy = matmul(adjoint(c - w), v)
    else:
        dqy = adjoint_over(inverted, da[:, :k], y) - matmul(adjoint(w), v)
    return beside(dr, dqy + g[:, k:])


# Dependent columns. With M = R R-bar^H - Q-bar^H Q, whole, and N = low(M - M^H) + i Im diag(M),
# copyltu(M) = M^H + N, and the pullback needs no U^-1 but beside N and what is outside span(Q):
#
#     A-bar = Q [R-bar + N U^-H] + (Q-bar - Q Q^H Q-bar) U^-H         (the second in X alone)
#     dR = Q^H dA - S R,   S = Q^H dQ skew-Hermitian, from the lower triangle of Q^H dX U^-1
#
# A column that depends on those before it does not turn Q: its row and column of U are the
# identity's, its columns of N and of what is outside span(Q) are zero. S is skew-Hermitian whatever
# is left out, so d(R^H R) = dA^H A + A^H dA holds at every rank.


def _without(r: Array, dependent: Array) -> tuple[Inverted, Array]:
    """U with the identity's rows and columns where a column is dependent; 0 there and 1 elsewhere.

    Dependent is (1, k), of numbers 0 and 1.
    """
    (u, _), keep = _split(r), 1 - dependent
    return Inverted.of(u * keep * keep.mT + jnp.diag(dependent[0])), keep


def _lower(x: Array) -> Array:
    """The strictly lower triangle of x (m, k), with half of the diagonal's imaginary part."""
    low = jnp.tril(x, -1)
    if not jnp.iscomplexobj(x):
        return low
    return low + jnp.tril(jnp.triu(times_i(x.imag / 2)))


def pullback_held_r(r: Array, r_bar: Array, dependent: Array) -> Array:
    """F (k, n) with A-bar = Q F, from the cotangent of R alone: dependent columns do not turn Q."""
    return _held(None, r, None, r_bar, dependent)


def _held(
    q: Array | None, r: Array, q_bar: Array | None, r_bar: Array | None, dependent: Array
) -> Array:
    """F (k, n): R-bar + N U^-H, the second in X alone."""
    k = dependent.shape[1]
    u, keep = _without(r, dependent)
    m = jnp.zeros((k, k), r.dtype)
    if r_bar is not None:
        m = matmul(r[:k], adjoint(r_bar[:k]))
    if q is not None and q_bar is not None:
        m = m - adjoint_matmul(q_bar, q)
    of_x = u.adjoint_right(_lower(m - adjoint(m)) * keep)
    factor = jnp.pad(of_x, [(0, 0), (0, r.shape[1] - k)])
    return factor if r_bar is None else factor + r_bar[:k]


def pullback_held(
    q: Array, r: Array, dependent: Array, q_bar: Array | None, r_bar: Array | None
) -> Array:
    """A-bar likewise, from the cotangents of Q and R; Y = Q V."""
    k = dependent.shape[1]
    q1, q2 = q[:, :k], q[:, k:]
    q1_bar = None if q_bar is None else q_bar[:, :k]
    a_bar = matmul(q1, _held(q1, r, q1_bar, r_bar, dependent))
    if q1_bar is None or q_bar is None:
        return a_bar
    u, keep = _without(r, dependent)
    outside = q1_bar - matmul(q1, adjoint_matmul(q1, q1_bar))
    if q2.shape[1] != 0:
        outside = outside - matmul(q2, adjoint_matmul(q_bar[:, k:], q1))
    return a_bar.at[:, :k].add(u.adjoint_right(outside * keep))


def _turning(g: Array, u: Inverted, keep: Array) -> Array:
    """S = Q^H dQ from the first k columns of G = Q^H dA."""
    low = _lower(u.right(g[:, : keep.shape[1]]) * keep)
    return low - adjoint(low)


def pushforward_held_r(g: Array, r: Array, dependent: Array) -> Array:
    """dR from G = Q^H dA (k, n)."""
    u, keep = _without(r, dependent)
    return g - matmul(_turning(g, u, keep), r)


def pushforward_held(q: Array, r: Array, dependent: Array, da: Array) -> tuple[Array, Array]:
    """dQ and dR; Y = Q V."""
    k = dependent.shape[1]
    q1, q2 = q[:, :k], q[:, k:]
    u, keep = _without(r, dependent)
    g, dx = adjoint_matmul(q1, da), da[:, :k]
    s = _turning(g, u, keep)
    dr = g - matmul(s, r[:k])
    dq = matmul(q1, s) + u.right(dx - matmul(q1, g[:, :k])) * keep
    if q2.shape[1] != 0:
        of_q2 = u.right(adjoint_matmul(q2, dx)) * keep
        dq = beside(dq, -matmul(q1, adjoint(of_q2)))
        dr = above_zeros(dr, r.shape[0] - k)
    return dq, dr


# Q applied, not formed: its rows and columns beyond the k-th do not turn among themselves either.
# dQ = Q Omega, and Omega = L - L^H, L (m, k) the lower triangle of Q^H dX U^-1.


def turned(g: Array, r: Array, dependent: Array, c: Array) -> Array:
    """Omega C (m, p) from G = Q^H dA (m, n), for the square Q and c (m, p)."""
    k = dependent.shape[1]
    u, keep = _without(r, dependent)
    low = _lower(u.right(g[:, :k]) * keep)
    back = matmul(adjoint(low), c)
    return matmul(low, c[:k]) - jnp.pad(back, [(0, c.shape[0] - k), (0, 0)])


def pullback_turned(r: Array, dependent: Array, c: Array, omega_c_bar: Array) -> Array:
    """G-bar (m, n) from the cotangent of Omega C; A-bar = Q G-bar."""
    k = dependent.shape[1]
    u, keep = _without(r, dependent)
    omega_bar = matmul(omega_c_bar, adjoint(c[:k])) - matmul(c, adjoint(omega_c_bar[:k]))
    g_bar = u.adjoint_right(_lower(omega_bar) * keep)
    return jnp.pad(g_bar, [(0, 0), (0, r.shape[1] - k)])
