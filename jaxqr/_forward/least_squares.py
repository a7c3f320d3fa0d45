"""The factors that least squares needs (see :mod:`jaxqr._linalg.augmented`)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxqr import _forward
from jaxqr._forward import batched, cholesky, householder, pivoting
from jaxqr._linalg import products, row_order
from jaxqr._linalg.algebra import diagonal, solve_left
from jaxqr._linalg.augmented import Root
from jaxqr._linalg.batching import (
    are_known,
    are_many_small,
    at_most,
    batch_aware,
    over_columns,
    over_matrices,
    smaller,
)
from jaxqr._linalg.crossovers import Crossovers
from jaxqr._linalg.reflectors import InOrder, InUnits, Reflectors, adjoint_times, det
from jaxqr._linalg.ridge import beside, with_ridge, with_zeros
from jaxqr._linalg.scaling import divided, largest_of_columns, magnitudes, row_units, unit
from jaxqr._linalg.tuning import by_platform

_LEAST_FOR_REFLECTORS = 128  # columns
# Of deep matrices, columns up to which CholeskyQR2 has Q before LAPACK has the reflectors.
_MOST_FOR_Q = 256
_DEEP = 3  # rows by columns


class Factors(NamedTuple):
    """A D^-1 = Q B."""

    root: Root
    d: Array  # (..., n, 1) or (..., 1, 1)
    q: Any  # (..., m, k), or its reflectors; None where there are none


def factor(a: Array, ridge: Array | None, rcond: Array | None, *, by_size: bool = False) -> Factors:
    """Of a (..., m, n); with m >= n unless rcond or ridge is given.

    Of square a rows are in units of their own, above a ridge in order of their size, as
    ``by_size`` takes them of any other.
    """
    if rcond is not None:
        return _rank_revealing(a, rcond)
    if _is_square(a) and ridge is None:
        return _in_row_units(functools.partial(_full_rank, ridge=None, by_size=False), a)
    return _full_rank(a, ridge, by_size or at_most(*a.shape[-2:]))


def _is_square(a: Array) -> bool:
    """Whether that is known."""
    rows, columns = a.shape[-2:]
    return bool(rows == columns)


def _full_rank(a: Array, ridge: Array | None, by_size: bool) -> Factors:
    factored, rows = a if ridge is None else with_ridge(a, ridge), None
    if by_size:
        factored, rows = _largest_rows_first(factored)
    q, u = _forward.qr(factored, "reduced", "auto")
    factors = Factors(*_in_units(u), q if rows is None else InOrder(q, rows))
    if ridge is None:
        return factors
    q = q if rows is None else batch_aware(row_order.put_back)(q, rows)
    return factors._replace(q=beside(a, ridge, q))


def _largest_rows_first(a: Array) -> tuple[Array, Array]:
    """A with its rows in order of their size, and the order."""
    rows = row_order.largest_first(a)
    # As the columns of its adjoint, which is what there is of wide matrices: a copy in its order.
    take_columns = batch_aware(functools.partial(row_order.take, axis=-1))
    return products.adjoint(take_columns(products.adjoint(a), rows.mT)), rows


def factor_for_few_products(a: Array) -> Factors:
    """Of a (..., m, n) with m >= n; with the reflectors of Q where to form it takes longer.

    Rows are taken in order of their size.
    """
    rows, columns = a.shape[-2:]
    known = are_known(rows, columns)
    deep = known and rows >= _DEEP * columns
    if not known or columns < _LEAST_FOR_REFLECTORS or (deep and columns <= _MOST_FOR_Q):
        return factor(a, None, None, by_size=True)
    in_order, order = _largest_rows_first(a)
    factors: Factors = batch_aware(_reflectors)(in_order)
    return factors._replace(q=InOrder(factors.q, order))


def _in_row_units(factored: Callable[..., Factors], a: Array, *others: Array) -> Factors:
    """The factors of square a, of rows in units of their own."""
    units = row_units(a)
    root, d, q = factored(divided(a, units), *others)
    return Factors(root, d, InUnits(q, units))


def factor_and_solve_without_q(a: Array, b: Array, ridge: Array | None) -> tuple[Factors, Array]:
    """The factors without Q, and D x, for a (..., m, n) with m >= n and b (..., m, nrhs).

    Of square a also the reflectors of Q: they have room where U has zeros.
    """
    reduce = _reduce
    if ridge is not None:
        a, b = with_ridge(a, ridge), with_zeros(a, b, ridge)
    elif a.shape[-2] == a.shape[-1]:
        reduce = _reduce_square
    factors, c = over_columns(batch_aware(reduce), shared=True)(a, b)
    (u,) = factors.root
    return factors, over_matrices(solve_left)(u, c)


def determinant(a: Array, *, with_q: bool) -> tuple[Factors, Array, Array]:
    """The factors, and the sign and logarithm (...,) of a (..., m, n), m >= n.

    Of det A for square a, and of the volume of its columns for deep a. Of square a there are the
    reflectors of Q, as where symbols do not tell; of deep a Q itself if it is asked for.
    """
    rows, columns = a.shape[-2:]
    square = _is_square(a)
    if not at_most(columns + 1, rows):  # of symbols, it may be square
        reflectors = batch_aware(_reflectors)
        factors = _in_row_units(reflectors, a) if square else reflectors(a)
    else:
        *of_q, r = _forward.qr(a, "reduced" if with_q else "r", "auto")
        factors = Factors(*_in_units(r), of_q[0] if of_q else None)
    (u,), d, q = factors
    on_diagonal = diagonal(u) * d[..., 0]
    sign = jnp.prod(jnp.sign(on_diagonal), axis=-1)
    of_volume = jnp.abs(sign).astype(a.dtype)
    logarithm = jnp.sum(jnp.log(jnp.abs(on_diagonal)), axis=-1)
    if isinstance(q, InUnits):
        sign = sign * det(q.q)
        logarithm = logarithm + jnp.sum(jnp.log(q.units.real[..., 0]), axis=-1)
    elif isinstance(q, Reflectors):  # of symbols
        sign = jnp.where(jnp.equal(rows, columns), sign * det(q), of_volume)
    else:
        sign = of_volume
    return factors, sign, logarithm


def _in_units(u: Array) -> tuple[Root, Array]:
    """U D^-1, and D: the units of A's columns. They are as long as U's, and U is smaller."""
    d = _units(largest_of_columns(u)).astype(u.dtype)
    return (divided(u, d),), d.mT


def _units(largest: Array) -> Array:
    """Not a number where a number is not finite: neither is what is made of it, then."""
    return jnp.where(largest < jnp.inf, unit(largest), jnp.nan)


# Of U (..., n, n), what is below the diagonal need not be zero.


def _reduce(a: Array, b: Array) -> tuple[Factors, Array]:
    """The factors without Q, and the first n rows of Q^H b."""

    def best(c: Crossovers) -> Callable[..., tuple[Array, Array]]:
        if are_many_small(c, a, b):
            return batched.triangle_and_product
        if cholesky.suits(c, a, "r"):
            return cholesky.triangle_and_product
        return householder.triangle_and_product

    u, c = by_platform(best, householder.triangle_and_product, a, b)
    return Factors(*_in_units(u), None), c


def _reduce_square(a: Array, b: Array) -> tuple[Factors, Array]:
    """The factors with the reflectors of Q, and Q^H b."""
    factors = _in_row_units(batch_aware(_reflectors), a, b)
    return factors, over_matrices(adjoint_times)(factors.q, b)


def _reflectors(a: Array, *others: Array) -> Factors:
    """With the reflectors of Q; what there is beside a counts where small matrices are told."""

    def by_batch(a: Array) -> Factors:
        u, q = batched.reflectors_of(a)
        return Factors(*_in_units(u), q)

    def by_lapack(a: Array) -> Factors:
        # A in units spares a pass over U, and to keep U beside the reflectors.
        d = _units(largest_of_columns(a)).astype(a.dtype)
        u, q = householder.packed(householder.in_units(a, d))
        return Factors((u,), d.mT, q)

    def best(c: Crossovers) -> Callable[..., Factors]:
        return by_batch if are_many_small(c, a, *others) else by_lapack

    factors: Factors = by_platform(best, by_lapack, a)
    return factors


def _rank_revealing(a: Array, rcond: Array) -> Factors:
    """Of a (..., m, n) of whatever rank, with q (..., m, k), k = min(m, n).

    The rank is the number of diagonal elements of the pivoted R that exceed rcond |r_00|. All
    shapes are static: beyond the rank, columns of Q and W are zero, and T is the identity.
    """
    k = smaller(*a.shape[-2:])
    q, r, p = pivoting.pivoted_qr(a, "reduced", k)
    d = _units(jnp.max(magnitudes(r), axis=(-2, -1), keepdims=True)).astype(r.dtype)
    left = jnp.abs(diagonal(r))
    # Not "left > ...": what is not a number must not be dropped but be seen.
    keep = ~(left <= rcond * left[..., :1]) | jnp.isnan(d[..., 0])
    # Up to the rank, what lies beyond plays no part.
    z, t = householder.qr(products.adjoint(divided(r, d)), "reduced")
    columns = keep[..., None, :]
    t = jnp.where(columns, t, jnp.eye(k, dtype=t.dtype))
    w = jnp.where(columns, z, 0)
    unpermuted = jnp.take_along_axis(w, jnp.argsort(p, axis=-1)[..., :, None], axis=-2)
    return Factors((t, unpermuted), d, jnp.where(columns, q, 0))
