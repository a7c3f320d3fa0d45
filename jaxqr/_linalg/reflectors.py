"""Householder reflectors, as LAPACK's larfg makes them, and products with what they make up."""

import os
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.lax.linalg import ormqr

from jaxqr._linalg.algebra import (
    above_zeros,
    matmul,
    project,
    solve_adjoint_left,
    solve_left,
    total,
)
from jaxqr._linalg.algebra import adjoint as conjugate_transpose
from jaxqr._linalg.batching import are_known, over_columns
from jaxqr._linalg.crossovers import SUMS_ARE_KEPT
from jaxqr._linalg.exporting import unless_exported
from jaxqr._linalg.layouts import materialized
from jaxqr._linalg.row_order import put_back, take
from jaxqr._linalg.scaling import divided


class Reflectors(NamedTuple):
    """Q = H_0 H_1 ... with H_j = I - tau_j v_j v_j^H, k of them, as LAPACK stores them."""

    v: Array  # (..., m, k): v_j below the diagonal, 1 on it; what is there and above is not read
    taus: Array  # (..., 1, k)


class InOrder(NamedTuple):
    """Of a matrix whose rows, in this order, are those of Q B: Q with its rows put back."""

    q: Any  # Q, or its reflectors
    rows: Array  # (..., m, 1)


class InUnits(NamedTuple):
    """P = E^-1 Q for a square matrix E Q B, whose rows are in units E of their own.

    It is what solves, as Q would: A^H r = g has r = P B^-H g, and A x = f has x = B^-1 P^H f.
    """

    q: Any  # Q, or its reflectors
    units: Array  # (..., m, 1)


def det(q: Reflectors) -> Array:
    """Det Q (...,): det H_j = 1 - tau |v|^2, and |v|^2 is 2 Re(tau) / |tau|^2."""
    signs = jnp.where(q.taus == 0, 1, -(jnp.sign(q.taus) ** 2))
    product: Array = jnp.prod(signs[..., 0, :], axis=-1)
    return product


def times(q: Array | Reflectors | InOrder | InUnits, c: Array) -> Array:
    """Q C, for c (rows, n[, batch]) and as many of q's first columns."""
    if isinstance(q, InOrder):
        return put_back(times(q.q, c), q.rows, axis=0)
    if isinstance(q, InUnits):
        return divided(times(q.q, c), q.units)
    if not isinstance(q, Reflectors):
        return matmul(q, c)
    if q.v.ndim == 2:
        x: Array = over_columns(_q)(q.v, q.taus, c)
    else:
        x = above_zeros(c, q.v.shape[0] - c.shape[0])
        for v, taus in reversed(_groups(q)):
            done = len(x) - len(v)
            x = materialized(jnp.concatenate([x[:done], *_reflect(v, taus, x[done:])]))
    return x


def adjoint_times(q: Array | Reflectors | InOrder | InUnits, b: Array) -> Array:
    """The first k rows of Q^H B likewise, for b (m, n[, batch]); all m of reflectors."""
    if isinstance(q, InOrder):
        return adjoint_times(q.q, take(b, q.rows, axis=0))
    if isinstance(q, InUnits):
        return adjoint_times(q.q, divided(b, q.units))
    if not isinstance(q, Reflectors):
        return project(q, b)
    if q.v.ndim == 2:
        y: Array = over_columns(_q_adjoint)(q.v, q.taus, b)
        return y
    return materialized(jnp.concatenate(reflected(_groups(q), b)))


# Q X and Q^H X for one matrix, complete: (m, k), (1, k) and (m, n); X's last rows may be left out,
# where they are zero.


# LAPACK's ormqr applies a block's worth of reflectors or fewer, at most 64, by orm2r, which puts
# ones into v's diagonal, where R's is, and puts R's back afterwards. XLA lets other threads read v
# meanwhile, another ormqr among them: up to one result in two hundred was wrong. Where there are
# more reflectors, v is only read.
_MOST_UNBLOCKED = 64


def _by_lapack(v: Array, taus: Array, x: Array, *, adjoint: bool) -> list[Array]:
    if not are_known(taus.shape[1]) or taus.shape[1] <= _MOST_UNBLOCKED:
        return _by_products(v, taus, x, adjoint=adjoint)
    x = above_zeros(x, v.shape[0] - x.shape[0])
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
    projected = matmul(conjugate_transpose(v[: x.shape[0]]), x)
    if adjoint:
        inner = solve_adjoint_left(unit, jnp.conj(taus.T) * projected)
    else:
        inner = taus.T * solve_left(unit, projected)
    return [above_zeros(x, rows - x.shape[0]) - matmul(v, inner)]


_apply = unless_exported(_by_lapack, _by_products)


def _q(v: Array, taus: Array, x: Array) -> Array:
    return _apply(v, taus, x, adjoint=False)[0]


def _q_adjoint(v: Array, taus: Array, x: Array) -> Array:
    return _apply(v, taus, x, adjoint=True)[0]


# Many small ones (rows, columns, batch). Few columns are written out, one by one; of more, some at
# a time are a loop, which is compiled once. What they leave to do has fewer rows and columns.

_MOST_WRITTEN_OUT = 16  # columns
_MOST_ELEMENTS = 384  # in them
_LOOPS = 2
# Bytes: within a core's cache, one thread is faster than several that start anew for each loop.
_LEAST_FOR_THREADS = 6 * 2**20 // (os.cpu_count() or 1)

Group = tuple[Array, Array]
"""V (rows, k, batch), of which what is below the diagonal is read, and taus (k, batch)."""


def in_groups(v: Array, k: int) -> list[slice]:
    """The k columns that are eliminated, of v (m, k or more, batch).

    What is taken anew must round alike each time: where columns depend on others, rounding is all
    that is left of them. Of a complex product it does not, for a processor that multiplies and adds
    in one step rounds one half of it; what a loop hands on is in memory, and a loop has two columns
    at least, for one is written out.
    """
    few = k <= _MOST_WRITTEN_OUT and len(v) * k <= _MOST_ELEMENTS
    rounds_alike = SUMS_ARE_KEPT or not jnp.iscomplexobj(v)
    size = 1 if few and rounds_alike else max(2, -(-k // _LOOPS))
    return [slice(j, min(j + size, k)) for j in range(0, k, size)]


def _groups(q: Reflectors) -> list[Group]:
    return [(q.v[c.start :, c], q.taus[0, c]) for c in in_groups(q.v, q.v.shape[1])]


def reflected(groups: list[Group], x: Array) -> tuple[Array, Array]:
    """The first k rows of Q^H X, k columns in all groups, and the others."""
    done = []
    for v, taus in groups:
        rows, x = _reflect(v, jnp.conj(taus), x, adjoint=True)
        done.append(rows)
        x = materialized(x)
    return jnp.concatenate(done), x


def eliminate(x: Array, steps: int) -> tuple[Array, Array]:
    """What LAPACK stores of x (m, n, batch) after so many steps of elimination, and their taus."""
    if steps == 1:
        return _eliminate_first(x)
    rows, columns = (jnp.arange(d, dtype=jnp.int32) for d in x.shape[:2])
    rows, columns = rows[:, None], columns[None, :, None]

    def step(j: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, taus = state
        j = _in_threads(j, steps, x)
        column = lax.dynamic_index_in_dim(x, j, 1, keepdims=False)
        alpha = lax.dynamic_index_in_dim(column, j, 0, keepdims=False)
        below = materialized(jnp.where(rows > j, column, 0))
        beta, tau, v = _reflector(alpha, below)
        v = materialized(jnp.where(rows == j, 1, v))
        turned = x - v[:, None] * inner(jnp.conj(tau), v, x)[None]
        stored = jnp.where(rows == j, beta[None], v)[:, None]
        is_stored = (columns == j) & (rows[:, None] >= j)
        x = materialized(jnp.where(columns > j, turned, jnp.where(is_stored, stored, x)))
        return x, lax.dynamic_update_index_in_dim(taus, tau, j, 0)

    out: tuple[Array, Array] = lax.fori_loop(0, steps, step, (x, jnp.zeros_like(x[0, :steps])))
    return out


def _eliminate_first(x: Array) -> tuple[Array, Array]:
    beta, tau, v = _reflector(x[0, 0], x[1:, 0])
    v = materialized(v)
    row, rest = _reflect_first(v, jnp.conj(tau), x[:, 1:])
    upper = jnp.concatenate([beta[None], row])
    lower = jnp.concatenate([v[:, None], materialized(rest)], axis=1)
    return jnp.concatenate([upper[None], lower]), tau[None]


def _reflector(alpha: Array, below: Array) -> tuple[Array, Array, Array]:
    """Beta, tau, and v (m, batch) below its 1, of alpha and the elements ``below`` it."""
    rest = total([jnp.zeros_like(alpha.real), *abs2(below)])
    beta = materialized(eliminated(alpha, rest))
    tau, scale = scalars(alpha, beta)
    return beta.astype(alpha.dtype), materialized(tau), below * scale[None]


def _in_threads(j: Array, steps: int, x: Array) -> Array:
    """J, which counts so many steps on x, as a product has it.

    XLA makes one kernel of a loop without a product: quick to start, with one thread to run it.
    """
    j = j.astype(jnp.int32)
    if x.nbytes < _LEAST_FOR_THREADS:
        return j
    here = jnp.diag((jnp.arange(steps, dtype=j.dtype) == j).astype(j.dtype))
    return jnp.max(lax.dot(here, here * j))


def _reflect(v: Array, taus: Array, x: Array, *, adjoint: bool = False) -> tuple[Array, Array]:
    """The first k rows of H_0 H_1 ... X, or with ``adjoint`` ... H_1 H_0 X, and the others."""
    k = len(taus)
    if k == 1:
        row, rest = _reflect_first(v[1:, 0], taus[0], x)
        return row[None], rest
    x = reflect_in_loop(v, taus, x, adjoint=adjoint)
    return x[:k], x[k:]


def _reflect_first(v: Array, tau: Array, x: Array) -> tuple[Array, Array]:
    """The first row of H X and the others, for v (m - 1, batch) below its 1."""
    first, below = x[0], x[1:]
    w = inner(tau, v, below, first)
    return first - w, below - v[:, None] * w[None]


def reflect_in_loop(v: Array, taus: Array, x: Array, *, adjoint: bool = False) -> Array:
    """H_0 H_1 ... X for x (m, n, batch), or with ``adjoint`` ... H_1 H_0 X."""
    rows, k = jnp.arange(v.shape[0], dtype=jnp.int32)[:, None], len(taus)

    def step(i: Array, x: Array) -> Array:
        i = _in_threads(i, k, x)
        j = i if adjoint else k - 1 - i
        below = lax.dynamic_index_in_dim(v, j, 1, keepdims=False)
        tau = lax.dynamic_index_in_dim(taus, j, 0, keepdims=False)
        whole = materialized(jnp.where(rows > j, below, (rows == j).astype(x.dtype)))
        return materialized(x - whole[:, None] * inner(tau, whole, x)[None])

    out: Array = lax.fori_loop(0, k, step, x)
    return out


def inner(tau: Array, v: Array, x: Array, *first: Array) -> Array:
    """Tau (v^H X + first) (n, batch), for v (m, batch) and x (m, n, batch)."""
    terms = (jnp.conj(element) * row for element, row in zip(v[:, None], x, strict=True))
    return materialized(tau[None] * total([*first, *terms]))


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
