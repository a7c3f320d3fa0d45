"""Householder reflectors, as LAPACK's larfg makes them, and products with what they make up."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.lax.linalg import ormqr

from jaxqr._linalg.algebra import adjoint as conjugate_transpose
from jaxqr._linalg.algebra import (
    materialized,
    matmul,
    project,
    solve_adjoint_left,
    solve_left,
    total,
)
from jaxqr._linalg.batching import over_columns
from jaxqr._linalg.exporting import unless_exported


class Reflectors(NamedTuple):
    """Q = H_0 H_1 ... with H_j = I - tau_j v_j v_j^H, k of them, as LAPACK stores them."""

    v: Array  # (..., m, k): v_j below the diagonal, 1 on it; what is there and above is not read
    taus: Array  # (..., 1, k)


def det(q: Reflectors) -> Array:
    """Det Q (...,): det H_j = 1 - tau |v|^2, and |v|^2 is 2 Re(tau) / |tau|^2."""
    signs = jnp.where(q.taus == 0, 1, -(jnp.sign(q.taus) ** 2))
    product: Array = jnp.prod(signs[..., 0, :], axis=-1)
    return product


def times(q: Array | Reflectors, c: Array) -> Array:
    """Q C for the first k columns of q, or of many small ones, and c (k, n[, batch])."""
    if not isinstance(q, Reflectors):
        return matmul(q, c)
    v, taus = q
    x = jnp.pad(c, [(0, v.shape[0] - c.shape[0]), (0, 0), *[(0, 0)] * (c.ndim - 2)])
    if v.ndim == 2:
        y: Array = over_columns(_q)(v, taus, x)
        return y
    for j in reversed(range(v.shape[1])):
        below, tau = v[j + 1 :, j], taus[0, j]
        w = materialized(tau[None] * total([x[j], *terms(below, x[j + 1 :])]))
        rows = [x[:j], (x[j] - w)[None], x[j + 1 :] - below[:, None] * w[None]]
        x = materialized(jnp.concatenate(rows))
    return x


def adjoint_times(q: Array | Reflectors, b: Array) -> Array:
    """The first k rows of Q^H B likewise, for b (m, n[, batch]); all m of reflectors."""
    if not isinstance(q, Reflectors):
        return project(q, b)
    v, taus = q
    if v.ndim == 2:
        y: Array = over_columns(_q_adjoint)(v, taus, b)
        return y
    columns = [(v[j + 1 :, j], taus[0, j]) for j in range(v.shape[1])]
    rows, rest = reflected(columns, b)
    return materialized(jnp.concatenate([jnp.stack(rows), rest]))


# Q X and Q^H X for one matrix, complete: (m, k), (1, k) and (m, n).


# LAPACK's ormqr applies a block's worth of reflectors or fewer, at most 64, by orm2r, which puts
# ones into v's diagonal, where R's is, and puts R's back afterwards. XLA lets other threads read v
# meanwhile, another ormqr among them: up to one result in two hundred was wrong. Where there are
# more reflectors, v is only read.
_MOST_UNBLOCKED = 64


def _by_lapack(v: Array, taus: Array, x: Array, *, adjoint: bool) -> list[Array]:
    if taus.shape[1] <= _MOST_UNBLOCKED:
        return _by_products(v, taus, x, adjoint=adjoint)
    return [ormqr(v, taus[0], x, left=True, transpose=adjoint)]


def _by_products(v: Array, taus: Array, x: Array, *, adjoint: bool) -> list[Array]:
    """Q = I - V T V^H with T^-1 = D^-1 + S, D = diag(taus), S strictly upper of V^H V.

    So T = D (I + S D)^-1, whatever taus are zero (C. Puglisi, "Modification of the Householder
    method based on the compact WY representation", SIAM J. Sci. Stat. Comput. 13 (1992)).
    """
    rows, columns = v.shape
    v = jnp.tril(v, -1) + jnp.eye(rows, columns, dtype=v.dtype)
    s = jnp.triu(matmul(conjugate_transpose(v), v), 1)
    unit = jnp.eye(columns, dtype=v.dtype) + s * taus
    projected = matmul(conjugate_transpose(v), x)
    if adjoint:
        inner = solve_adjoint_left(unit, jnp.conj(taus.T) * projected)
    else:
        inner = taus.T * solve_left(unit, projected)
    return [x - matmul(v, inner)]


_apply = unless_exported(_by_lapack, _by_products)


def _q(v: Array, taus: Array, x: Array) -> Array:
    return _apply(v, taus, x, adjoint=False)[0]


def _q_adjoint(v: Array, taus: Array, x: Array) -> Array:
    return _apply(v, taus, x, adjoint=True)[0]


def reflected(reflectors: list[tuple[Array, Array]], x: Array) -> tuple[list[Array], Array]:
    """The rows of Q^H X, one for each (v, tau), v below its 1, and the rest; x (m, n, batch)."""
    rows = []
    for v, tau in reflectors:
        row, x = reflect(v, tau, x)
        rows.append(row)
    return rows, x


def reflect(v: Array, tau: Array, x: Array) -> tuple[Array, Array]:
    """The first row of H^H X, and what is below it, for x (m, n, batch)."""
    first, below = x[0], x[1:]
    w = materialized(jnp.conj(tau)[None] * total([first, *terms(v, below)]))
    return first - w, materialized(below - v[:, None] * w[None])


def terms(v: Array, x: Array) -> list[Array]:
    """What v^H X sums up, for v (m, batch) and x (m, n, batch)."""
    return [jnp.conj(element) * row for element, row in zip(v[:, None], x, strict=True)]


def reflector(x: Array, j: Any, row: Any) -> tuple[Array, Array, Array]:
    """V, tau and beta with (I - conj(tau) v v^H) x = beta e_j below row j of x (m,); beta is real.

    v is 1 in row j and 0 above; tau = 0 where there is nothing to do. ``row`` is 0, 1, ..., m - 1.
    """
    below = jnp.where(row > j, x, 0)
    beta = eliminated(x[j], jnp.sum(abs2(below)))
    tau, scale = scalars(x[j], beta)
    return jnp.where(row == j, 1, below * scale), tau, beta


def eliminated(alpha: Array, rest: Array) -> Array:
    """Beta, real: what H makes of alpha and the elements below it, whose |.|^2's sum is ``rest``.

    A column of magnitude one of which so little is left that squares underflow stays as it is:
    with an inexact norm the reflector would not be unitary, and what is left is far below rounding.
    """
    square = abs2(alpha) + rest
    norm = jnp.sqrt(square)
    beta = jnp.where(alpha.real >= 0, -norm, norm)
    limits = jnp.finfo(square.dtype)
    nothing = ((rest == 0) & (alpha.imag == 0)) | (square < limits.tiny / limits.eps**2)
    return jnp.where(nothing, alpha.real, beta)


def scalars(alpha: Array, beta: Array) -> tuple[Array, Array]:
    """Tau, and what the elements below alpha times it are in v."""
    nothing = beta == alpha.real  # which beta's sign is against, elsewhere
    to = beta.astype(alpha.dtype)
    tau = jnp.where(nothing, 0, (to - alpha) / jnp.where(nothing, 1, to))
    return tau, jnp.where(nothing, 0, 1 / jnp.where(nothing, 1, alpha - to))


def abs2(x: Array) -> Array:
    """|x|^2, real."""
    return jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else jnp.square(x)


def magnitude(largest: Array) -> Array:
    """What to divide columns by, given their largest magnitudes: by 1 where all is zero.

    Q does not change with the scale of a column, R's column does; and no square overflows.
    """
    return jnp.where(largest == 0, 1, largest)
