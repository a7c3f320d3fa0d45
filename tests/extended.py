"""QR and its pullback in numpy's 80-bit extended precision, step by step: the reference."""

import numpy as np

X87 = np.finfo(np.longdouble).eps < 1e-18


def extended(a):
    """As extended precision holds it."""
    return a.astype(np.clongdouble if np.iscomplexobj(a) else np.longdouble)


def extended_qr(a):
    """Modified Gram-Schmidt, twice, of the leading columns; R's diagonal is positive."""

    def once(x):
        q, r = x.copy(), np.zeros((x.shape[1],) * 2, x.dtype)
        for j in range(x.shape[1]):
            r[j, j] = np.sqrt(np.sum(np.abs(q[:, j]) ** 2))
            q[:, j] /= r[j, j]
            r[j, j + 1 :] = np.conj(q[:, j]) @ q[:, j + 1 :]
            q[:, j + 1 :] -= np.outer(q[:, j], r[j, j + 1 :])
        return q, r

    k = min(a.shape)
    q1, r1 = once(a[:, :k])
    q, r2 = once(q1)
    return q, np.concatenate([r2 @ r1, np.conj(q.T) @ a[:, k:]], axis=1)


def extended_pullback(a, q, r, q_bar, r_bar):
    """Eqs. 3, 9, 10, 21; the solve by back substitution."""
    k = q.shape[1]
    u, u_bar, v_bar, y = r[:, :k], r_bar[:, :k], r_bar[:, k:], a[:, k:]
    qp = q_bar + y @ np.conj(v_bar.T)
    m = u @ np.conj(u_bar.T) - np.conj(qp.T) @ q
    lower = np.tril(m, -1)
    x = qp + q @ (lower + np.conj(lower.T) + np.diag(np.diag(m).real))
    for j in reversed(range(k)):  # x := x u^-H, column by column
        x[:, j] = (x[:, j] - x[:, j + 1 :] @ np.conj(u[j, j + 1 :])) / u[j, j]
    return np.concatenate([x, q @ v_bar], axis=1)
