"""The peer that the paper measures against: Walter and Lehmann's pullback, eq. 8 of the paper.

S. F. Walter and L. Lehmann, "Algorithmic differentiation of linear algebra functions with
application in optimum experimental design" (arXiv:1001.1654), eq. 42, for a real matrix with at
least as many rows as columns; here with adjoints for transposes.
"""

import jax.numpy as jnp
from jax import Array, lax


def pullback_eq8(q: Array, r: Array, q_bar: Array, r_bar: Array, corrected: bool = True) -> Array:
    """A-bar (..., m, n) from the cotangents of A = Q R, m >= n, as eq. 8 has it::

        A-bar = Q [R-bar + P_L o (M - M^H) R^-H] + (Q-bar - Q Q^H Q-bar) R^-H
        M - M^H = R R-bar^H - R-bar R^H + Q^H Q-bar - Q-bar^H Q

    P_L o is the strictly lower triangle. Every product and both solves are there, as written.

    Args:
        q: (..., m, n) with orthonormal columns; q_bar likewise.
        r: (..., n, n), upper triangular with a real diagonal; r_bar likewise.
        corrected: adds Q (i Im diag M) R^-H, without which the formula is wrong for complex input:
            it leaves the diagonal of M^H = R-bar R^H - Q^H Q-bar as it is, where the real
            diagonal of R admits its real part only. For real input there is nothing to add.

    Cotangents follow the paper's convention, dL = Re tr(G-bar^H dG); JAX's are their conjugates.
    """
    n = r.shape[-1]
    rr_bar, r_bar_r = r @ _adjoint(r_bar), r_bar @ _adjoint(r)
    qhq_bar, q_barhq = _adjoint(q) @ q_bar, _adjoint(q_bar) @ q
    lower = jnp.where(jnp.tri(n, n, -1, dtype=bool), rr_bar - r_bar_r + qhq_bar - q_barhq, 0)
    if corrected and jnp.iscomplexobj(q):
        m = rr_bar - q_barhq
        i_im = (m - jnp.conj(m)) / 2
        # The diagonal shares the solve with the strict triangle.
        lower = lower + jnp.where(jnp.eye(n, dtype=bool), i_im, 0)
    return q @ (r_bar + _times_inverse_adjoint(lower, r)) + _times_inverse_adjoint(
        q_bar - q @ qhq_bar, r
    )


def _adjoint(x: Array) -> Array:
    return jnp.conj(x.mT)


def _times_inverse_adjoint(b: Array, r: Array) -> Array:
    """B R^-H."""
    return lax.linalg.triangular_solve(
        r, b, left_side=False, lower=False, transpose_a=True, conjugate_a=True
    )
