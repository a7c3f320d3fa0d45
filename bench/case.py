"""A case: one row of a table, and the arrays that it works on."""

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np

from bench.uses import STEPS
from jaxqr.cli import reading

# What is computed.
QR, R_ALONE, LQ, PIVOTED, LSTSQ = "qr", "qr, mode r", "lq", "pivoted_qr", "lstsq"
FIRST_PIVOTS = "pivoted_qr, a 20th of all pivots"
RHS, KALMAN, LAYER = "lstsq, vmap over b", f"Kalman filter, {STEPS} steps", "lstsq as a layer"
# What is timed: the value, value and gradient together, the pullback alone, or a training step.
VALUE, GRADIENT, PULLBACK, STEP = "value", "value and gradient", "pullback", "training step"


@dataclasses.dataclass(frozen=True)
class Case:
    """An operation on a matrix of a shape and type, or on the matrix in a file."""

    op: str
    work: str
    shape: tuple[int, ...]  # (..., m, n)
    dtype: str
    file: str = ""  # a Matrix Market file
    devices: int = 0  # over which the rows lie; 0 where it does not matter
    rhs: int = 0  # right-hand sides that vmap maps over; 0 where it does not

    @property
    def matrix(self) -> str:
        """How the table names the matrix."""
        *batch, m, n = self.shape
        size = f"{m} × {n}"
        if self.file:
            return f"{Path(self.file).stem} ({size})"
        if self.devices:
            return f"{size} on {self.devices}"
        if self.rhs:
            return f"{size}, {self.rhs} right-hand sides"
        return f"{math.prod(batch)} of {size}" if batch else size

    @property
    def pivots(self) -> int:
        """How many are wanted, where it is the first."""
        return max(1, min(self.shape[-2:]) // 20)

    def __str__(self) -> str:
        return f"{self.op}, {self.matrix}, {self.dtype}, {self.work}"


def inputs(case: Case) -> tuple[np.ndarray, ...]:
    """What is differentiated: the matrix, and what comes with it, such as right-hand sides."""
    rng = np.random.default_rng(0)
    a = read_matrix(case.file) if case.file else _normal(rng, case.shape, case.dtype)
    a = a.astype(case.dtype)
    *batch, m, n = case.shape
    beside: dict[str, list[tuple[int, ...]]] = {
        LSTSQ: [(*batch, m)],
        RHS: [(case.rhs, m)],
        KALMAN: [(*batch, STEPS)],  # the matrix is the transition
        LAYER: [(*batch, 2 * m, n), (*batch, 2 * m)],  # see bench.uses
    }
    others = [_normal(rng, shape, case.dtype) for shape in beside.get(case.op, [])]
    return (_normal(rng, (n, n), case.dtype), *others) if case.op == LAYER else (a, *others)


def weights(case: Case) -> tuple[np.ndarray, ...]:
    """The loss is Re sum(w conj(output)) over the outputs: so its gradient needs all of each."""
    rng = np.random.default_rng(1)
    return tuple(_normal(rng, shape, case.dtype) for shape in _output_shapes(case))


def _output_shapes(case: Case) -> list[tuple[int, ...]]:
    *batch, m, n = case.shape
    k = case.pivots if case.op == FIRST_PIVOTS else min(m, n)
    shapes: dict[str, list[tuple[int, ...]]] = {
        QR: [(m, k), (k, n)],
        R_ALONE: [(k, n)],
        LQ: [(m, k), (k, n)],
        PIVOTED: [(m, k), (k, n)],
        FIRST_PIVOTS: [(m, k), (k, n)],
        LSTSQ: [(n,)],
        RHS: [(case.rhs, n)],
        KALMAN: [()],
    }
    return [(*batch, *shape) for shape in shapes[case.op]]


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    x = rng.standard_normal(shape)
    if dtype.startswith("complex"):
        x = x + 1j * rng.standard_normal(shape)
    return x.astype(dtype)


@functools.cache
def read_matrix(path: str) -> np.ndarray:
    """The dense matrix in a Matrix Market file."""
    return reading.read(path)
