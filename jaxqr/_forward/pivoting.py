"""QR with column pivoting: LAPACK's geqp3 where there is one, plain XLA everywhere else.

Of deep matrices it is their triangular factor that goes through it. LAPACK makes all pivots, also
where the first k are wanted. So these are found by Gram-Schmidt, in k passes over the matrix.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.lax.linalg import householder_product
from jax.lax.linalg import qr as jax_qr

from jaxqr._forward import cholesky, householder
from jaxqr._linalg.batching import are_known, batch_aware, smaller
from jaxqr._linalg.crossovers import Crossovers
from jaxqr._linalg.exporting import unless_exported
from jaxqr._linalg.layouts import materialized
from jaxqr._linalg.products import adjoint, matmul, project
from jaxqr._linalg.reflectors import abs2, magnitude, reflector
from jaxqr._linalg.scaling import divided, unit_at_the_ends, units_of_columns
from jaxqr._linalg.tuning import by_platform

# Up to which share of all pivots the first k are found by themselves, and in a matrix of how many
# elements at least. How many times as fast as LAPACK on two cores, float32 | float64: 10 of
# 1000 x 1000 17 | 14, 100 of them 3.2 | 4.8, 250 1.0 | 1.1; 20 of 2000 x 200 4.8 | 5.1, of
# 200 x 2000 5.7 | 4.0; 50 of 5000 x 500 1.1 | 0.9; 4 of 64 x 64 1.8 | 2.1.
_MOST_SHARE = 0.1
_LEAST_SIZE = 2**12
_TURNS = 4  # after which a column that rounding has left nothing of is given up


def take_columns(a: Array, p: Array) -> Array:
    """The columns p (..., n) of a (..., m, n)."""
    # A gather reads by columns, from afar: once, and not all that a is the sum of.
    return jnp.take_along_axis(materialized(a), p[..., None, :], axis=-1)


def pivoted_qr(
    a: Array, mode: str, k: int, *chances: Array, method: str = "auto"
) -> tuple[Array, ...]:
    """(q, r, p), or (r, p) in mode "r", of a (..., m, n), after k <= min(m, n) pivots.

    q is (..., m, k) and r (..., k, n); in mode "complete", (..., m, m) and (..., m, n). The pivot
    at step j has the largest norm left, or with chances, which are noise (..., k, n) and a
    temperature (), the largest log norm^2 + temperature noise_j. ``method`` may be "householder".
    """
    if a.size == 0:
        p = jnp.broadcast_to(jnp.arange(a.shape[-1], dtype=jnp.int32), _like_columns(a))
        return *householder.qr(a, mode), p
    if chances:
        out: tuple[Array, ...] = _xla(a, mode, k, *chances)
        return out
    m, n = a.shape[-2:]
    if are_known(m, n) and k <= _MOST_SHARE * min(m, n) and m * n >= _LEAST_SIZE:
        out = _leading(a, mode, k)
        return out

    def all_pivots(a: Array) -> tuple[Array, ...]:
        out: tuple[Array, ...] = lax.platform_dependent(
            a,
            cpu=lambda a: tuple(_on_cpu(a, mode=mode, k=k)),
            default=lambda a: _xla(a, mode, k),
        )
        return out

    def of_triangle(a: Array) -> tuple[Array, ...]:
        return cholesky.pivoted_qr(a, mode, all_pivots)

    def by_depth(a: Array) -> tuple[Array, ...]:
        def best(c: Crossovers) -> Callable[[Array], tuple[Array, ...]]:
            deep = method == "auto" and cholesky.suits_pivots(c, a, mode)
            return of_triangle if deep else all_pivots

        out: tuple[Array, ...] = by_platform(best, all_pivots, a)
        return out

    out = batch_aware(by_depth)(a)
    return out


def _like_columns(a: Array) -> tuple[int, ...]:
    return (*a.shape[:-2], a.shape[-1])


def _lapack(a: Array, mode: str, k: int) -> tuple[Array, ...]:
    full = mode == "complete"
    unit = unit_at_the_ends(a)
    q, r, p = jax_qr(householder.in_units(a, unit), pivoting=True, full_matrices=full)
    return _cut((q, r * unit, p), mode, k)


def _like_lapack(a: Array, mode: str, k: int) -> tuple[Array, ...]:
    """In plain XLA, and as LAPACK does it: all pivots, of which k are kept."""
    full = "complete" if mode == "complete" else "reduced"
    return _cut(_xla(a, full, smaller(*a.shape[-2:])), mode, k)


def _cut(factors: tuple[Array, ...], mode: str, k: int) -> tuple[Array, ...]:
    q, r, p = factors
    if mode == "complete":
        return q, r, p
    q, r = q[..., :k], r[..., :k, :]
    return (r, p) if mode == "r" else (q, r, p)


@functools.partial(jax.jit, static_argnames=("mode", "k"))  # traced once, also for LAPACK
def _xla(
    a: Array, mode: str, k: int, noise: Array | None = None, temperature: Array | None = None
) -> tuple[Array, ...]:
    *batch, m, n = a.shape
    flat = a.reshape(-1, m, n), None if noise is None else noise.reshape(-1, k, n)
    reflectors, taus, p = jax.vmap(lambda x, noise: _eliminate(x, k, noise, temperature))(*flat)
    r = jnp.triu(reflectors)
    if mode != "complete":
        r = r[:, :k]
    factors: tuple[Array, ...] = (r, p)
    if mode != "r":
        v = reflectors[:, :, :k]
        if mode == "complete":
            v = jnp.pad(v, [(0, 0), (0, 0), (0, m - k)])
        factors = (householder_product(v, taus), r, p)
    return tuple(x.reshape(*batch, *x.shape[1:]) for x in factors)


@functools.partial(jax.jit, static_argnames=("mode", "k"))
def _leading(a: Array, mode: str, k: int) -> tuple[Array, ...]:
    *batch, m, n = a.shape
    q, r, p = jax.vmap(functools.partial(_orthogonalize, k=k))(a.reshape(-1, m, n))
    factors = (r, p) if mode == "r" else (q, r, p)
    return tuple(x.reshape(*batch, *x.shape[1:]) for x in factors)


_on_cpu = unless_exported(_lapack, _like_lapack)


def _eliminate(
    a: Array, k: int, noise: Array | None, temperature: Array | None
) -> tuple[Array, Array, Array]:
    """K steps of Householder elimination with column pivoting on a (m, n), as LAPACK stores it.

    Returns R in and above the diagonal with the reflectors v below it (v_j = 1 is implied), their
    scales tau (k,), and the permutation (n,). The norms of the trailing columns are computed anew
    in each step: nothing cancels, and the cost is a quarter of the update's.
    """
    m, n = a.shape
    scale = magnitude(jnp.max(jnp.abs(a), axis=0))
    row, column = jnp.arange(m, dtype=jnp.int32), jnp.arange(n, dtype=jnp.int32)

    def step(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        a, taus, p = state
        trailing = jnp.where((row >= j)[:, None], a, 0)
        left = _Left(jnp.sqrt(jnp.sum(abs2(trailing), axis=0)), scale[p], column >= j)
        merits = _in_one_unit(left)
        if noise is not None and temperature is not None:
            merits = jnp.where(temperature == 0, merits, _noisy(left, noise[j], temperature))
        pivot = jnp.argmax(jnp.where(column >= j, merits, -jnp.inf))
        a = a.at[:, pivot].set(a[:, j]).at[:, j].set(a[:, pivot])
        p = _exchanged(p, pivot, j)

        v, tau, beta = reflector(a[:, j], j, row)
        inner = adjoint(project(a, v[:, None]))
        updated = a - jnp.conj(tau) * v[:, None] * inner
        a = jnp.where((column > j)[None, :], updated, a)
        stored = jnp.where(row > j, v, jnp.where(row == j, beta.astype(a.dtype), a[:, j]))
        return a.at[:, j].set(stored), taus.at[j].set(tau), p

    start = (
        divided(a, scale.astype(a.dtype)[None]),
        jnp.zeros_like(a[0, :k]),  # "like": under shard_map they vary where a does
        column + jnp.zeros_like(a[0], dtype=jnp.int32),
    )
    a, taus, p = lax.fori_loop(jnp.int32(0), jnp.int32(k), step, start)
    on_or_above = row[:, None] <= column[None, :]
    eliminated = (column < k)[None, :]
    scaled = a * scale[p].astype(a.dtype)[None]
    return jnp.where(on_or_above | ~eliminated, scaled, a), taus, p


class _Left(NamedTuple):
    """What is left of columns, (n,) each: norms times scales, either of any size."""

    norms: Array
    scales: Array
    free: Array  # which are no pivots yet

    def most(self) -> Array:
        """The scale of the largest column of which anything is left to take."""
        most = jnp.max(jnp.where(self.free & (self.norms > 0), self.scales, 0))
        return jnp.where(most == 0, 1, most)


def _in_one_unit(left: _Left) -> Array:
    """The lengths left, of which the largest is in the range of the type."""
    return jnp.where(left.norms == 0, 0, left.norms * (left.scales / left.most()))


def _noisy(left: _Left, noise: Array, temperature: Array) -> Array:
    """What is largest where log length^2 + temperature noise is, finite at any temperature.

    Of columns of which nothing is left it is finite as well, and the least.
    """
    limits = jnp.finfo(noise.dtype)
    lengths = _in_one_unit(left)
    sums = jnp.log(left.norms) + jnp.log(left.scales) - jnp.log(left.most())
    logs = 2 * jnp.where(lengths < limits.tiny, sums, jnp.log(lengths))
    merits = logs / jnp.maximum(temperature, 1) + noise * jnp.minimum(temperature, 1)
    return jnp.where(left.norms == 0, float(limits.min), merits)


class _Chosen(NamedTuple):
    """The first steps of a factorization: rows of Q^T (k, m) and R (k, n), and the columns' order.

    Rows to come are zero, and the columns of R are A's.
    """

    q: Array
    r: Array
    p: Array
    taken: Array  # which columns of A are among the pivots


def _orthogonalize(a: Array, k: int) -> tuple[Array, Array, Array]:
    """Q (m, k), R (k, n) and p (n,) of a (m, n): k steps of Gram-Schmidt with column pivoting.

    A step reads the matrix once: what is left of its columns is not made, but the squares in R's
    row are taken from those of their norms. That loses digits. So when the largest norm has lost
    half of them, what is left is made, and its norms anew (where LAPACK does it column by column:
    Z. Drmac, Z. Bujanovic, "On the failure of rank-revealing QR factorization software - a case
    study", ACM Trans. Math. Softw. 35 (2008)). The diagonal of R is positive.
    """
    m, n = a.shape
    limits = jnp.finfo(a.dtype)
    digits, nothing = float(limits.eps) ** 0.25, float(limits.tiny / limits.eps**2)
    units = units_of_columns(a)
    place = jnp.arange(n, dtype=jnp.int32)

    def relative(squares: Array, taken: Array) -> Array:
        """The units in that of the largest column of which anything is left to take."""
        has_more = ~(taken | (squares < nothing))
        most = jnp.max(jnp.where(has_more, units[0].real, 0))
        return units[0].real / jnp.where(most == 0, 1, most)

    def lengths(squares: Array, units: Array, taken: Array) -> Array:
        some = jnp.where(squares < nothing, 0, units * jnp.sqrt(squares))
        return jnp.where(taken, -jnp.inf, some)

    def step(state: Any) -> Any:
        j, left, anew, squares, (q, r, p, taken) = state
        norms = lengths(squares, relative(squares, taken), taken)
        p = _exchanged(p, j, jnp.argmax(jnp.where(place >= j, norms[p], -jnp.inf)))
        is_pivot = place == p[j]
        no_more = jnp.all(taken | (squares < nothing))
        x, length = _orthonormal(jnp.where(no_more, 0, left[:, p[j]]), q)
        row = jnp.where(taken | no_more, 0, adjoint(project(left, x[:, None]))[0])
        row = jnp.where(is_pivot, length.astype(row.dtype), row)
        q, r = (lax.dynamic_update_index_in_dim(y, z, j, 0) for y, z in ((q, x), (r, row)))
        return j + 1, left, anew, squares - abs2(row), _Chosen(q, r, p, taken | is_pivot)

    def tells(state: Any) -> Array:
        """Whether the norms still tell which is the largest."""
        j, _, anew, squares, (*_, taken) = state
        units = relative(squares, taken)
        now, before = (jnp.max(lengths(s, units, taken)) for s in (squares, anew))
        some: Array = (j < k) & (now >= digits * before)
        return some

    def stretch(state: Any) -> Any:
        since, j, left, chosen = state
        new = (jnp.arange(k, dtype=jnp.int32) >= since)[:, None]
        left = left - matmul(chosen.q.T, jnp.where(new, chosen.r, 0))
        anew = jnp.sum(abs2(left), axis=0)
        first = step((j, left, anew, anew, chosen))
        reached, left, _, _, chosen = lax.while_loop(tells, step, first)
        return j, reached, left, chosen

    none = jnp.zeros_like(a, shape=(), dtype=jnp.int32)  # "like": it varies where A does
    nowhere = jnp.zeros_like(a, shape=(n,), dtype=jnp.int32)
    chosen = _Chosen(
        jnp.zeros_like(a, shape=(k, m)), jnp.zeros_like(a[:k]), place + nowhere, nowhere > 0
    )
    start = none, none, divided(a, units), chosen
    *_, (q, r, p, _) = lax.while_loop(lambda state: state[1] < k, stretch, start)
    return q.T, jnp.triu((r * units)[:, p]), p


def _exchanged(p: Array, i: Array, j: Array) -> Array:
    return p.at[i].set(p[j]).at[j].set(p[i])


def _orthonormal(x: Array, q: Array) -> tuple[Array, Array]:
    """Y of length one and orthogonal to the rows of q (k, m), and what length x (m,) has along it.

    Two turns are enough where rounding has left anything of x. Where it has not, Y is the direction
    of an axis, the one that is most free.
    """
    most_free = jnp.argmin(jnp.sum(abs2(q), axis=0))
    axis = (jnp.arange(x.shape[0]) == most_free).astype(x.dtype)

    def normalized(x: Array, length: Array, given_up: Array) -> tuple[Array, Array, Array]:
        norm = jnp.sqrt(jnp.sum(abs2(x)))
        lost = (norm == 0) | given_up
        y = jnp.where(lost, axis, divided(x, jnp.where(lost, 1, norm).astype(x.dtype)))
        return y, jnp.where(lost, 0, length * norm), jnp.where(lost, 0, norm)

    def take_a_turn(state: Any) -> Any:
        turn, (x, length, _) = state
        projection = jnp.conj(matmul(q, jnp.conj(x)[:, None]))
        x = x - matmul(projection.T, q)[0]
        given_up = (turn % _TURNS == _TURNS - 1) & (jnp.sum(abs2(x)) < 0.25)
        return turn + 1, normalized(x, length, given_up)

    turn = jnp.zeros_like(x, shape=(), dtype=jnp.int32)
    one = jnp.ones_like(x, shape=(), dtype=x.real.dtype)
    whole = normalized(x, one, turn > 0)
    start = turn, (*whole[:2], jnp.zeros_like(whole[2]))

    def goes_on(state: Any) -> Array:
        turn, (*_, norm) = state
        on: Array = (turn < 2) | (norm < 0.5)
        return on

    _, (y, length, _) = lax.while_loop(goes_on, take_a_turn, start)
    return y, length
