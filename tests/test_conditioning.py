"""Gradients of ill-conditioned matrices: the error is at most c * eps * cond, c = 100.

The reference is the same rule in the next higher precision: float64 for float32 input, and for
float64 numpy's 80-bit extended precision by the paper's formula, step by step.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extended import X87, extended, extended_pullback, extended_qr
from numerics import gaussian, matrix, norm

import jaxqr

C = 100
CONDITIONS = (1.0, 1e2, 1e4, 1e6, 1e8)


@pytest.mark.skipif(not X87, reason="long double is no wider than double here")
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("shape", [(30, 6), (8, 8), (200, 16)], ids=str)
def test_gradient_error_is_bounded_by_the_condition(shape, dtype):
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
        exact = extended(a)
        q, r = extended_qr(exact)
        with_q, r_alone = both(a)
        for ours, bars in ((with_q, q_bar), (r_alone, np.zeros_like(q_bar))):
            expected = extended_pullback(exact, q, r, extended(bars), extended(r_bar))
            error = norm(np.conj(ours) - expected) / norm(expected)
            assert error <= C * eps * cond, f"cond {cond:.0e}: {error / (eps * cond):.1f} eps cond"
