"""Derivatives of a QR factorization by central differences, without JAX.

The check on a gradient has to know nothing of what it checks: numpy factors, in double precision.

QR commutes with the scaling of columns, A S = Q (R S), and so does its derivative. So everything
here is relative to the lengths of the columns. The condition number that limits the accuracy is
then that of the matrix with columns of length one, which for regression data is smaller by orders
of magnitude: 4e4 instead of 5e9 for Longley's.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Differences:
    """Derivatives of the factors of a matrix B (m, n), cut after column k.

    Attributes:
        lengths: the lengths of the columns of B, (n,).
        directions: directions in B, each (m, n).
        derivatives: for each direction, those of Q (m, k) and R (k, n), the diagonal of R positive.
        condition: the condition number of the first k columns, scaled to length one.
        error: the relative error to expect of `derivatives`.
    """

    lengths: _Array
    directions: list[_Array]
    derivatives: list[tuple[_Array, _Array]]
    condition: float
    error: float


def differentiate(b: _Array, k: int, count: int, rng: np.random.Generator) -> Differences:
    """Differentiate Q and R of ``b[:, :k] = Q R[:, :k]``, ``R = Q^H b`` along random directions.

    Args:
        b: (m, n), float64 or complex128, its first k columns linearly independent, k at least 1.
        k: where to cut, at most min(m, n).
        count: how many directions.
        rng: where they come from.

    Returns:
        The directions and the derivatives.
    """
    lengths = _column_lengths(b)
    singular = np.linalg.svd(b[:, :k] / lengths[:k], compute_uv=False)
    condition = float(singular[0] / singular[-1])
    # Four evaluations leave a relative error of t^4 by truncation and of eps condition / t by
    # rounding, for a step of t times the distance to a singular matrix. They are equal at
    t = (_EPS * condition) ** 0.2
    unit = np.sqrt(b.shape[0]) + np.sqrt(k)  # the 2-norm of a normal matrix of this shape
    directions = [normal(rng, b.shape, b.dtype) * (lengths / unit) for _ in range(count)]
    derivatives = [_central(b, k, direction, t * float(singular[-1])) for direction in directions]
    return Differences(lengths, directions, derivatives, condition, t**4)


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: npt.DTypeLike) -> _Array:
    """Draw a normal array, complex if `dtype` is."""
    draw = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        draw = (draw + 1j * rng.standard_normal(shape)) / np.sqrt(2)
    return draw.astype(dtype)


def phases(numbers: _Array) -> _Array:
    """Divide numbers by their moduli: their signs, if they are real. Zero becomes one."""
    zero = numbers == 0
    ones: _Array = np.where(zero, 1, numbers / np.where(zero, 1, np.abs(numbers)))
    return ones


def _column_lengths(b: _Array) -> _Array:
    """Return the length of every column, or the greatest of them for a column of zeros."""
    largest = np.max(np.abs(b), initial=0.0) or 1.0
    lengths: _Array = largest * np.linalg.norm(b / largest, axis=0)  # no overflow, no underflow
    return np.where(lengths > 0, lengths, np.max(lengths, initial=0.0) or 1.0)


def _central(b: _Array, k: int, direction: _Array, step: float) -> tuple[_Array, _Array]:
    """Differentiate by differences of fourth order."""
    (q1, r1), (q2, r2), (q3, r3), (q4, r4) = (
        _positive_qr(b + i * step * direction, k) for i in (-2, -1, 1, 2)
    )
    return (q1 - 8 * q2 + 8 * q3 - q4) / (12 * step), (r1 - 8 * r2 + 8 * r3 - r4) / (12 * step)


def _positive_qr(b: _Array, k: int) -> tuple[_Array, _Array]:
    """Factor b, cut after column k, with a positive diagonal: there is one such Q and R."""
    q, u = np.linalg.qr(b[:, :k])
    signs = phases(u.diagonal())
    q = q * signs
    return q, np.hstack([signs.conj()[:, None] * u, q.conj().T @ b[:, k:]])
