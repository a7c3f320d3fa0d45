"""QZ and Schur's decomposition: SciPy's, on the host. JAX has no QZ, and Schur on CPUs alone.

What does not converge, or is not finite to begin with, is NaN.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import scipy.linalg  # type: ignore[import-untyped]
from jax import Array
from jax.sharding import PartitionSpec as P

from jaxqr._linalg.batching import batch_aware

SORTS = ("lhp", "rhp", "iuc", "ouc")


def qz(a: Array, b: Array, sort: str | None) -> tuple[Array, Array, Array, Array]:
    """(s, t, q, z) of complex a and b (..., n, n), with eigenvalues ordered by one of SORTS."""
    s, t, q, z = _on_the_host(partial(_qz, sort=sort), 4, a, b)
    return s, t, q, z


def schur(a: Array, sort: str | None) -> tuple[Array, Array]:
    """(s, z) likewise."""
    s, z = _on_the_host(partial(_schur, sort=sort), 2, a)
    return s, z


def _qz(a: np.ndarray, b: np.ndarray, sort: str | None) -> tuple[np.ndarray, ...]:
    """In units of A's and of B's own: LAPACK exchanges eigenvalues by products S_ii T_jj."""
    of_a, of_b = _exponent(a), _exponent(b)
    a, b = _shifted(a, -of_a), _shifted(b, -of_b)
    if sort is None:
        s, t, q, z = scipy.linalg.qz(a, b, output="complex")
    else:
        s, t, q, z = _in_order(a, b, partial(_comes_first, sort, of_b - of_a))
    return _shifted(s, of_a), _shifted(t, of_b), q, z


def _in_order(a: np.ndarray, b: np.ndarray, first: Callable[..., Any]) -> tuple[np.ndarray, ...]:
    try:
        s, t, _, _, q, z = scipy.linalg.ordqz(a, b, sort=first, output="complex")
    except ValueError as error:  # so SciPy calls it where eigenvalues are too close to be exchanged
        raise np.linalg.LinAlgError(str(error)) from error
    return s, t, q, z


def _comes_first(sort: str, exponent: int, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Which eigenvalues S_ii / (T_ii 2^exponent) (n,) SORT takes, as SciPy defines it; T_ii >= 0.

    The quotient itself may leave the range of the type.
    """
    chosen: np.ndarray
    size, other = abs(s), abs(_shifted(t, exponent))
    if sort == "lhp":
        chosen = (t != 0) & (s.real < 0)
    elif sort == "rhp":
        chosen = (t != 0) & (s.real > 0)
    elif sort == "iuc":
        chosen = (t != 0) & ((s == 0) | (size < other))
    else:
        chosen = (s != 0) & ((t == 0) | (size > other))
    return chosen


def _exponent(x: np.ndarray) -> int:
    """That of the power of two by which x is divided: its largest element is far above one then.

    A quarter of the range: squares do not overflow, and what is small beside it keeps its digits.
    """
    largest = max(abs(x.real).max(), abs(x.imag).max())
    return int(np.frexp(largest)[1]) - np.finfo(x.dtype).maxexp // 4


def _shifted(x: np.ndarray, exponent: int) -> np.ndarray:
    """The complex x times a power of two, which itself may be beyond the range of the type."""
    parts = np.ascontiguousarray(x).view(x.real.dtype)
    with np.errstate(over="ignore", under="ignore"):
        shifted: np.ndarray = np.ldexp(parts, exponent).view(x.dtype)
    return shifted


def _schur(a: np.ndarray, sort: str | None) -> tuple[np.ndarray, ...]:
    return tuple(scipy.linalg.schur(a, output="complex", sort=sort)[:2])


def _on_the_host(
    factor: Callable[..., tuple[np.ndarray, ...]], count: int, *arrays: Array
) -> tuple[Array, ...]:
    if not arrays[0].size:
        return (arrays[0],) * count
    out: tuple[Array, ...] = batch_aware(_where_the_batch_lies(partial(_called, factor, count)))(
        *arrays
    )
    return out


def _called(
    factor: Callable[..., tuple[np.ndarray, ...]], count: int, *arrays: Array
) -> tuple[Array, ...]:
    shape = jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)
    out: tuple[Array, ...] = jax.pure_callback(
        partial(_each, factor, count), (shape,) * count, *arrays, vmap_method="broadcast_all"
    )
    return out


def _where_the_batch_lies(f: Callable[..., Any]) -> Callable[..., Any]:
    """F, on each device of the matrices that it has, where their type tells: else on one of all."""

    def mapped(*arrays: Array) -> Any:
        spec = jax.typeof(arrays[0]).sharding.spec
        batch = P(*spec[: arrays[0].ndim - 2])
        names = {name for axes in batch if axes for name in np.atleast_1d(axes).tolist()}
        if not names:
            return f(*arrays)
        return jax.shard_map(f, in_specs=batch, out_specs=batch, axis_names=names)(*arrays)

    return mapped


def _each(factor: Callable[..., Any], count: int, *arrays: Any) -> tuple[np.ndarray, ...]:
    """COUNT factors of each matrix (n, n), of each of the arrays (..., n, n)."""
    arrays = tuple(np.asarray(x) for x in arrays)
    of = arrays[0]
    out = tuple(np.full(of.shape, complex(np.nan, np.nan), of.dtype) for _ in range(count))
    for at in np.ndindex(of.shape[:-2]):
        for x, factors in zip(out, _factors(factor, *(x[at] for x in arrays)), strict=False):
            x[at] = factors
    return out


def _factors(factor: Callable[..., Any], *matrices: np.ndarray) -> tuple[np.ndarray, ...]:
    """The factors, the triangular one first, or none."""
    if not all(np.isfinite(x).all() for x in matrices):  # LAPACK may never return
        return ()
    try:
        factors: tuple[np.ndarray, ...] = factor(*matrices)
    except (np.linalg.LinAlgError, scipy.linalg.LinAlgWarning):
        return ()
    triangular = not np.tril(factors[0], -1).any()  # or else SciPy's QZ has warned, no more
    return factors if triangular else ()
