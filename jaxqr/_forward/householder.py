"""QR by Householder reflectors, as each platform has it: LAPACK, cuSOLVER, XLA's own expander.

JAX's functions are bound by name: a program may set ``jnp.linalg.qr = jaxqr.qr``.
"""

import jax.numpy as jnp
from jax import Array, lax
from jax.lax.linalg import householder_product
from jax.numpy.linalg import qr as jax_qr

from jaxqr._linalg import reflectors
from jaxqr._linalg.batching import are_known, over_matrices
from jaxqr._linalg.layouts import by_rows, materialized
from jaxqr._linalg.phases import with_positive_diagonal
from jaxqr._linalg.products import with_more
from jaxqr._linalg.reflectors import Reflectors
from jaxqr._linalg.scaling import divided, units_at_the_ends

_MOST_PAGES = 2000
_APART = 512  # bytes


def qr(a: Array, mode: str) -> tuple[Array, ...]:
    """(q, r), or (r,) in mode "r", of a (..., m, n)."""
    units = units_at_the_ends(a)
    return _factors(in_units(a, units), mode, units)


def qr_in_a_branch(a: Array, mode: str) -> tuple[Array, ...]:
    """Likewise, in no more memory than LAPACK's copy and Q take.

    From A by rows: else XLA has the copy made in front of the branch, and every call has its room.
    """
    a = by_rows(a)
    units = units_at_the_ends(a)
    return _factors(divided(a, units), mode, units)


def _factors(a: Array, mode: str, units: Array) -> tuple[Array, ...]:
    """(q, r), or (r,), of A times units (..., 1, n)."""
    r, (v, taus) = _raw(a, units)
    m, k = v.shape[-2:]
    if mode == "r":
        return real_diagonal(r)
    if mode == "complete":
        v, r = with_more(v, columns=m - k), with_more(r, rows=m - k)
    # LAPACK makes Q in the place of v, where R is: had XLA not read R before, it would copy both.
    v, r = materialized((v, r))
    return real_diagonal(householder_product(v, taus[..., 0, :]), r)


def _raw(a: Array, units: Array) -> tuple[Array, Reflectors]:
    """R (..., k, n) of A times units, and the reflectors."""
    stored, q = packed(a)
    return jnp.triu(stored) * units, q


def packed(a: Array) -> tuple[Array, Reflectors]:
    """R (..., k, n) as LAPACK leaves it, with reflectors where it has zeros, and these.

    Digits are lost where columns are near the ends of the type's range.
    """
    transposed, taus = jax_qr(a, mode="raw")
    stored, k = transposed.mT, taus.shape[-1]
    return stored[..., :k, :], Reflectors(stored[..., :k], taus[..., None, :])


def in_units(a: Array, units: Array) -> Array:
    """A (..., m, n) divided by units (..., 1, n), for LAPACK, which takes matrices by columns."""
    if not _misses_caches_down_a_column(a):
        return divided(a, units)
    # XLA transposes as it divides, and takes eight times as long as by itself.
    return divided(by_rows(a.mT), units.mT).mT


def _misses_caches_down_a_column(a: Array) -> bool:
    """Whether rows of a real matrix lie powers of two apart, or on more pages than are at hand."""
    if a.ndim > 2 or jnp.iscomplexobj(a) or not are_known(*a.shape):
        return False
    rows, columns = a.shape
    return rows > _MOST_PAGES or columns * a.dtype.itemsize % _APART == 0


def reflectors_of(a: Array) -> tuple[Array, Reflectors]:
    """R (..., k, n), its diagonal as LAPACK leaves it, and the reflectors of a (..., m, n)."""
    units = units_at_the_ends(a)
    return _raw(in_units(a, units), units)


def triangle_and_product(a: Array, b: Array) -> tuple[Array, Array]:
    """U and the first n rows of Q^H B without Q, for a (..., m, n), m >= n, and b (..., m, p)."""
    u, q = reflectors_of(a)
    return u, adjoint_times(q, b)[..., : u.shape[-2], :]


def adjoint_times(q: Reflectors, b: Array) -> Array:
    """Q^H B for b (..., m, p), in units of its columns where they are near the ends."""
    units = units_at_the_ends(b)
    product: Array = over_matrices(reflectors.adjoint_times)(q, divided(b, units))
    return product * units


def real_diagonal(*factors: Array) -> tuple[Array, ...]:
    """The same factors with a real diagonal of R.

    LAPACK and its kin give one already. XLA's expander, which TPUs use, leaves a complex element
    as it is where there is nothing below it to eliminate.
    """
    if not jnp.iscomplexobj(factors[-1]):
        return factors
    out: tuple[Array, ...] = lax.platform_dependent(
        *factors,
        cpu=_as_they_are,
        cuda=_as_they_are,
        rocm=_as_they_are,
        default=with_positive_diagonal,
    )
    return out


def _as_they_are(*factors: Array) -> tuple[Array, ...]:
    return factors
