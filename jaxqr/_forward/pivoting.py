"""QR with column pivoting: LAPACK's geqp3 where there is one, plain XLA everywhere else."""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.lax.linalg import householder_product
from jax.lax.linalg import qr as jax_qr

from jaxqr._forward import householder
from jaxqr._linalg.exporting import unless_exported
from jaxqr._linalg.products import adjoint, project
from jaxqr._linalg.reflectors import abs2, magnitude, reflector


def take_columns(a: Array, p: Array) -> Array:
    """The columns p (..., n) of a (..., m, n)."""
    return jnp.take_along_axis(a, p[..., None, :], axis=-1)


def pivoted_qr(a: Array, mode: str, k: int, noise: Array | None = None) -> tuple[Array, ...]:
    """(q, r, p), or (r, p) in mode "r", of a (..., m, n), after k <= min(m, n) pivots.

    q is (..., m, k) and r (..., k, n); in mode "complete", (..., m, m) and (..., m, n). The pivot
    at step j has the largest norm left, or with noise (..., k, n) the largest log norm^2 + noise_j.
    """
    if a.size == 0:
        p = jnp.broadcast_to(jnp.arange(a.shape[-1], dtype=jnp.int32), _like_columns(a))
        return *householder.qr(a, mode), p
    if noise is not None:
        out: tuple[Array, ...] = _xla(a, mode, k, noise)
        return out
    out = lax.platform_dependent(
        a,
        cpu=lambda a: tuple(_on_cpu(a, mode=mode, k=k)),
        default=lambda a: _xla(a, mode, k),
    )
    return out


def _like_columns(a: Array) -> tuple[int, ...]:
    return (*a.shape[:-2], a.shape[-1])


def _lapack(a: Array, mode: str, k: int) -> tuple[Array, ...]:
    full = mode == "complete"
    return _cut(jax_qr(a, pivoting=True, full_matrices=full), mode, k)


def _like_lapack(a: Array, mode: str, k: int) -> tuple[Array, ...]:
    """In plain XLA, and as LAPACK does it: all pivots, of which k are kept."""
    full = "complete" if mode == "complete" else "reduced"
    return _cut(_xla(a, full, min(a.shape[-2:])), mode, k)


def _cut(factors: tuple[Array, ...], mode: str, k: int) -> tuple[Array, ...]:
    q, r, p = factors
    if mode == "complete":
        return q, r, p
    q, r = q[..., :k], r[..., :k, :]
    return (r, p) if mode == "r" else (q, r, p)


@functools.partial(jax.jit, static_argnames=("mode", "k"))  # traced once, also for LAPACK
def _xla(a: Array, mode: str, k: int, noise: Array | None = None) -> tuple[Array, ...]:
    *batch, m, n = a.shape
    flat = a.reshape(-1, m, n), None if noise is None else noise.reshape(-1, k, n)
    reflectors, taus, p = jax.vmap(lambda x, noise: _eliminate(x, k, noise))(*flat)
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


_on_cpu = unless_exported(_lapack, _like_lapack)


def _eliminate(a: Array, k: int, noise: Array | None) -> tuple[Array, Array, Array]:
    """K steps of Householder elimination with column pivoting on a (m, n), as LAPACK stores it.

    Returns R in and above the diagonal with the reflectors v below it (v_j = 1 is implied), their
    scales tau (k,), and the permutation (n,). The norms of the trailing columns are computed anew
    in each step: nothing cancels, and the cost is a quarter of the update's.
    """
    m, n = a.shape
    scale = magnitude(jnp.max(jnp.abs(a), axis=0))
    relative = scale / jnp.max(scale)
    row, column = jnp.arange(m, dtype=jnp.int32), jnp.arange(n, dtype=jnp.int32)

    def step(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        a, taus, p = state
        trailing = jnp.where((row >= j)[:, None], a, 0)
        norms = jnp.sqrt(jnp.sum(abs2(trailing), axis=0)) * relative[p]
        merits = norms if noise is None else _noisy(norms, noise[j])
        pivot = jnp.argmax(jnp.where(column >= j, merits, -jnp.inf))
        a = a.at[:, pivot].set(a[:, j]).at[:, j].set(a[:, pivot])
        p = p.at[pivot].set(p[j]).at[j].set(p[pivot])

        v, tau, beta = reflector(a[:, j], j, row)
        inner = adjoint(project(a, v[:, None]))
        updated = a - jnp.conj(tau) * v[:, None] * inner
        a = jnp.where((column > j)[None, :], updated, a)
        stored = jnp.where(row > j, v, jnp.where(row == j, beta.astype(a.dtype), a[:, j]))
        return a.at[:, j].set(stored), taus.at[j].set(tau), p

    start = (
        a / scale.astype(a.dtype)[None],
        jnp.zeros_like(a[0, :k]),  # "like": under shard_map they vary where a does
        column + jnp.zeros_like(a[0], dtype=jnp.int32),
    )
    a, taus, p = lax.fori_loop(jnp.int32(0), jnp.int32(k), step, start)
    on_or_above = row[:, None] <= column[None, :]
    eliminated = (column < k)[None, :]
    scaled = a * scale[p].astype(a.dtype)[None]
    return jnp.where(on_or_above | ~eliminated, scaled, a), taus, p


def _noisy(norms: Array, noise: Array) -> Array:
    """Log norms^2 + noise, finite where a norm is zero."""
    least = float(jnp.finfo(norms.dtype).min)
    return jnp.where(norms == 0, least, 2 * jnp.log(jnp.where(norms == 0, 1, norms)) + noise)
