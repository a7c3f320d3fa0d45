"""The paper's experiment: eq. 3 against eq. 8, each with the rest of the pullback the same."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from bench.case import PIVOTED, Case, read_matrix
from bench.contestants import Function, InJax
from bench.eq8 import pullback_eq8

Pullback = Callable[[Array, Array, Array, Array], Array]


def pullback_eq3(q: Array, r: Array, q_bar: Array, r_bar: Array) -> Array:
    """A-bar = (Q-bar + Q copyltu(M)) R^-H, M = R R-bar^H - Q-bar^H Q; as :func:`pullback_eq8`."""
    n = r.shape[-1]
    m = r @ _adjoint(r_bar) - _adjoint(q_bar) @ q
    hermitian = jnp.where(jnp.tri(n, n, -1, dtype=bool).mT, _adjoint(m), m)
    if jnp.iscomplexobj(m):
        hermitian = jnp.where(jnp.eye(n, dtype=bool), m.real.astype(m.dtype), hermitian)
    return lax.linalg.triangular_solve(
        r,
        q_bar + q @ hermitian,
        left_side=False,
        lower=False,
        transpose_a=True,
        conjugate_a=True,
    )


def factorization(pullback: Pullback, pivoting: bool = False) -> Function:
    """(q, r) of a (m, n), m <= n, by LAPACK; backward by cutting A = [X | Y].

    Only the equation that gives X-bar from the factors of X is the contestant's own.
    """

    def factors(a: Array) -> tuple[Array, Array, Array]:
        if pivoting:
            q, r, p = jax.scipy.linalg.qr(a, mode="economic", pivoting=True)
            return q, r, p
        q, r = jnp.linalg.qr(a)
        return q, r, jnp.arange(a.shape[-1])

    @jax.custom_vjp
    def of(a: Array) -> tuple[Array, Array]:
        return factors(a)[:2]

    def forward(a: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        q, r, p = factors(a)
        return (q, r), (q, r, p, a)

    def backward(kept: tuple[Array, ...], cotangents: tuple[Array, Array]) -> tuple[Array]:
        q, r, p, a = kept
        q_bar, r_bar = (jnp.conj(x) for x in cotangents)  # from JAX's convention to the paper's
        m = q.shape[-1]
        y = (a[:, p] if pivoting else a)[:, m:]
        x_bar = pullback(q, r[:, :m], q_bar + y @ _adjoint(r_bar[:, m:]), r_bar[:, :m])
        b_bar = jnp.concatenate([x_bar, q @ r_bar[:, m:]], axis=1)
        return (jnp.conj(b_bar[:, jnp.argsort(p)] if pivoting else b_bar),)

    of.defvjp(forward, backward)
    return of


def leading_block_is_singular(path: str) -> bool:
    """Then wide QR has no derivative without pivoting."""
    a = read_matrix(path)
    k = min(a.shape)
    return bool(np.linalg.matrix_rank(a[:, :k]) < k)


def contestant(name: str, pullback: Pullback) -> InJax:
    return InJax(name, lambda case: factorization(pullback, pivoting=_is_pivoted(case)))


def _is_pivoted(case: Case) -> bool:
    return case.op == PIVOTED


def _adjoint(x: Array) -> Array:
    return jnp.conj(x.mT)


EQ3 = contestant("eq. 3", pullback_eq3)
EQ8 = contestant("eq. 8", pullback_eq8)
