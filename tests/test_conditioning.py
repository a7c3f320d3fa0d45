"""Gradients of ill-conditioned matrices: the error is at most c * eps * cond, c = 100.

The reference is the same rule in the next higher precision: float64 for float32 input, and for
float64 numpy's 80-bit extended precision by the paper's formula, step by step.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import gaussian, matrix, norm

import jaxqr

C = 100
X87 = np.finfo(np.longdouble).eps < 1e-18
CONDITIONS = (1.0, 1e2, 1e4, 1e6, 1e8)


def extended_qr(a):
    """Modified Gram-Schmidt, twice, in extended precision; R's diagonal is positive."""

    def once(a):
        q, r = a.copy(), np.zeros((a.shape[1],) * 2, a.dtype)
        for j in range(a.shape[1]):
            r[j, j] = np.sqrt(np.sum(np.abs(q[:, j]) ** 2))
            q[:, j] /= r[j, j]
            r[j, j + 1 :] = np.conj(q[:, j]) @ q[:, j + 1 :]
            q[:, j + 1 :] -= np.outer(q[:, j], r[j, j + 1 :])
        return q, r

    q1, r1 = once(a)
    q, r2 = once(q1)
    return q, r2 @ r1


def extended_pullback(q, r, q_bar, r_bar):
    """Eq. 3, the solve by back substitution."""
    m = r @ np.conj(r_bar.T) - np.conj(q_bar.T) @ q
    lower = np.tril(m, -1)
    x = q_bar + q @ (lower + np.conj(lower.T) + np.diag(np.diag(m).real))
    for j in reversed(range(r.shape[0])):  # x := x r^-H, column by column
        x[:, j] = (x[:, j] - x[:, j + 1 :] @ np.conj(r[j, j + 1 :])) / r[j, j]
    return x


@pytest.mark.skipif(not X87, reason="long double is no wider than double here")
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("shape", [(30, 6), (8, 8), (200, 16)], ids=str)
def test_gradient_error_is_bounded_by_the_condition(shape, dtype):
    wide = np.clongdouble if np.issubdtype(np.dtype(dtype), np.complexfloating) else np.longdouble
    eps = float(np.finfo(dtype).eps)
    k = shape[1]
    q_bar, r_bar = gaussian(shape, dtype), np.triu(gaussian((k, k), dtype))

    @jax.jit
    def both(a):
        _, pullback = jax.vjp(lambda a: jaxqr.qr(a, positive_diagonal=True), a)
        _, pullback_r = jax.vjp(lambda a: jaxqr.qr(a, mode="r", positive_diagonal=True), a)
        return pullback((jnp.conj(q_bar), jnp.conj(r_bar)))[0], pullback_r(jnp.conj(r_bar))[0]

    for cond in CONDITIONS:
        if cond * eps > 0.05:  # no digit is left
            continue
        a = matrix(shape, dtype, cond)
        q, r = extended_qr(a.astype(wide))
        with_q, r_alone = both(a)
        for ours, bars in ((with_q, q_bar), (r_alone, np.zeros_like(q_bar))):
            expected = extended_pullback(q, r, bars.astype(wide), r_bar.astype(wide))
            error = norm(np.conj(ours) - expected) / norm(expected)
            assert error <= C * eps * cond, f"cond {cond:.0e}: {error / (eps * cond):.1f} eps cond"
