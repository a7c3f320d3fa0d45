"""What ``python -m jaxqr`` finds out about one matrix: factors, gradients, times.

Each factorization is the QR of some matrix B, cut after column k: of A itself (qr), of A^H (lq), of
A with its columns permuted (pivoted_qr). Its gradient is checked against central differences of
numpy's QR of B. Signs and permutation are constant near A, so the differences hold them where the
factorization under test has put them.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
import numpy.typing as npt

from jaxqr import lq, pivoted_qr, qr
from jaxqr.cli.differences import Differences, differentiate, normal, phases

DIRECTIONS = 3
"""How many random directions a gradient is checked along."""

_TIMING_SECONDS = 0.3
_HIDDEN_BY_ROUNDING = 0.1
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 100

Gradient = Literal["right", "wrong", "finite", "not finite"]

_Array = npt.NDArray[Any]
_Pair = tuple[_Array, _Array]
_Factorize = Callable[[jax.Array], Sequence[jax.Array]]


@dataclass(frozen=True)
class Implementation:
    """One implementation of a factorization, at work on the matrix.

    Norms are Frobenius norms; the residual is relative to that of A. The gradient is "finite" if
    nothing more can be said: there is no derivative, or rounding hides it, or A is empty.
    """

    residual: float
    orthogonality: float
    gradient: Gradient
    gradient_error: float | None
    value_seconds: float
    gradient_seconds: float


@dataclass(frozen=True)
class Factorization:
    """One factorization by jaxqr and by JAX; `jax` is None where JAX has no such thing.

    `rank` is the rank of the columns (qr), the rows (lq) or the matrix (pivoted_qr) that has to be
    `needed` for a derivative to exist. `gradient_tolerance` is the error that rounding explains.
    """

    name: str
    rank: int
    needed: int
    differentiable: bool
    gradient_tolerance: float | None
    jaxqr: Implementation
    jax: Implementation | None


@dataclass(frozen=True)
class Report:
    """One matrix and its factorizations. Ranks are numerical ranks in the matrix's own type.

    `norm` may be beyond the largest float: that of a matrix of entries 1e308 is.
    """

    shape: tuple[int, int]
    dtype: str
    norm: Decimal
    condition: float | None
    rank: int
    leading_columns_rank: int
    leading_rows_rank: int
    factorizations: list[Factorization]


class _Case(NamedTuple):
    """A factorization: how to call it, and which QR it stands for.

    A mirrored one returns R^H and Q^H for B = A^H. A third output is a permutation.
    """

    name: str
    rank: int
    needed: int
    mirrored: bool
    ours: _Factorize
    peer: _Factorize | None


class _Trial(NamedTuple):
    """An implementation that has been tried, and how to run it again for its times."""

    residual: float
    orthogonality: float
    gradient: Gradient
    gradient_error: float | None
    tolerance: float | None
    run: Callable[[], object]
    run_gradient: Callable[[], object]


def measure(a: _Array, progress: Callable[[str], None]) -> Report:
    """Factor, differentiate, check and time one matrix.

    Args:
        a: the matrix, (m, n), float32, float64, complex64 or complex128. With float64 and
            complex128, JAX must have its 64-bit types enabled.
        progress: called with a few words before each part of the work.

    Returns:
        The report.
    """
    k = min(a.shape)
    relative, scale = _scaled(a)
    progress("rank")
    rank, condition = _rank_and_condition(a)
    columns = rank if a.shape[1] == k else _rank_and_condition(a[:, :k])[0]
    rows = rank if a.shape[0] == k else _rank_and_condition(a[:k])[0]
    factorizations = []
    for case in _cases(k, rank, columns, rows):
        progress(case.name)
        with np.errstate(all="ignore"):  # what overflows is reported as infinite
            factorizations.append(_factorization(case, a))
    return Report(
        shape=(a.shape[0], a.shape[1]),
        dtype=str(a.dtype),
        norm=Decimal(scale) * Decimal(_norm(relative)),
        condition=condition,
        rank=rank,
        leading_columns_rank=columns,
        leading_rows_rank=rows,
        factorizations=factorizations,
    )


# The factorizations, jaxqr's and JAX's.


def _cases(k: int, rank: int, columns: int, rows: int) -> list[_Case]:
    cases = [
        _Case("qr", columns, k, False, qr, jnp.linalg.qr),
        _Case("lq", rows, k, True, lq, _jax_lq),
        _Case("pivoted_qr", rank, k, False, pivoted_qr, _jax_pivoted_qr),
    ]
    if 0 < rank < k:
        # No full factorization has a derivative, but the one that stops at the rank has.
        cut = _pivoted_qr_to(rank)
        cases.append(_Case(f"pivoted_qr rank={rank}", rank, rank, False, cut, None))
    return cases


@functools.cache  # the same function each time, so that equal shapes are compiled once
def _pivoted_qr_to(rank: int) -> _Factorize:
    return functools.partial(pivoted_qr, rank=rank)


def _jax_lq(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    q, r = jnp.linalg.qr(a.conj().T)
    return r.conj().T, q.conj().T


def _jax_pivoted_qr(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    q, r, p = jax.scipy.linalg.qr(a, mode="economic", pivoting=True)
    return q, r, p


@functools.cache
def _compiled(factorize: _Factorize) -> Callable[..., Any]:
    return jax.jit(factorize)


@functools.cache
def _compiled_gradient(factorize: _Factorize) -> Callable[..., Any]:
    """Value of Re<first, F1> + Re<second, F2>, F1 and F2 the two factors; those; the gradient."""

    def loss(a: jax.Array, first: jax.Array, second: jax.Array) -> tuple[jax.Array, Any]:
        factors = factorize(a)
        return jnp.vdot(first, factors[0]).real + jnp.vdot(second, factors[1]).real, factors

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


# One factorization: factors, gradients, times.

_FindDifferences = Callable[[tuple[int, ...]], Differences | None]


def _factorization(case: _Case, a: _Array) -> Factorization:
    find_differences = functools.cache(functools.partial(_differences, case, a))
    trials = [_trial(case, case.ours, a, find_differences)]
    trials += _peer_trial(case, a, find_differences)
    seconds = iter(_interleaved_medians([run for t in trials for run in (t.run, t.run_gradient)]))
    done = [Implementation(*trial[:4], next(seconds), next(seconds)) for trial in trials]
    return Factorization(
        name=case.name,
        rank=case.rank,
        needed=case.needed,
        differentiable=case.rank == case.needed,
        gradient_tolerance=trials[0].tolerance,
        jaxqr=done[0],
        jax=done[1] if len(done) > 1 else None,
    )


def _peer_trial(case: _Case, a: _Array, find_differences: _FindDifferences) -> list[_Trial]:
    if case.peer is None:
        return []
    try:
        return [_trial(case, case.peer, a, find_differences)]
    except Exception:  # whatever keeps JAX from it (no geqp3 on a TPU), jaxqr's figures stand
        return []


def _trial(
    case: _Case, factorize: _Factorize, a: _Array, find_differences: _FindDifferences
) -> _Trial:
    run = functools.partial(_compiled(factorize), jnp.asarray(a))
    # A and R in units of `scale`, so that no square overflows or vanishes.
    relative, scale = _scaled(a)
    factors, columns = _read_off(case, run(), scale)
    errors = _factor_errors(_as_b(case, relative, columns), factors)
    w, z = weights = _weights(factors, find_differences(columns))
    # The loss is as far from one as the gradient, and neither as far as A: both are in range.
    size = math.ldexp(1.0, math.frexp(scale)[1] // 2)
    arguments = (x.astype(a.dtype) for x in _as_qr(case, (w * size, z * (size / scale))))
    run_gradient = functools.partial(_compiled_gradient(factorize), jnp.asarray(a), *arguments)
    (_, outputs), gradient = run_gradient()
    found = _double(np.asarray(gradient)) * (scale / size)
    # It is that of the factors beside it: another program may round to other signs and pivots.
    factors, columns = _read_off(case, outputs, scale)
    differences = find_differences(columns)
    error = None
    if differences and np.isfinite(found).all():
        found_in_b = _as_b(case, found.conj(), columns)
        error = _gradient_error(found_in_b, factors, weights, differences)
    tolerance = _tolerance(a, differences)
    verdict = _verdict(found, error, tolerance)
    return _Trial(*errors, verdict, error, tolerance, run, run_gradient)


def _read_off(
    case: _Case, outputs: Sequence[jax.Array], scale: float
) -> tuple[_Pair, tuple[int, ...]]:
    """Q and R of B, R in units of `scale`, and the permutation, if there is one."""
    first, second, *permutation = (_double(np.asarray(output)) for output in outputs)
    q, r = _as_qr(case, (first, second))
    return (q, r / scale), tuple(permutation[0].astype(int).tolist()) if permutation else ()


def _as_qr(case: _Case, factors: _Pair) -> _Pair:
    """Turn the factors of A into those of B = Q R, or those of B into those of A."""
    first, second = factors
    return (second.conj().T, first.conj().T) if case.mirrored else factors


def _as_b(case: _Case, a: _Array, columns: tuple[int, ...]) -> _Array:
    """Turn A, or a direction or gradient there, into B."""
    b = a.conj().T if case.mirrored else a
    return b[:, columns] if columns else b


def _factor_errors(b: _Array, factors: _Pair) -> tuple[float, float]:
    q, r = factors
    residual = _norm(b - q @ r) / (_norm(b) or 1.0)
    return residual, _norm(q.conj().T @ q - np.eye(q.shape[1]))


# The gradient and its check.


def _differences(case: _Case, a: _Array, columns: tuple[int, ...]) -> Differences | None:
    if case.rank < case.needed or a.size == 0:
        return None
    b = _as_b(case, _scaled(a)[0], columns)
    return differentiate(b, case.needed, DIRECTIONS, np.random.default_rng(0))


def _weights(factors: _Pair, differences: Differences | None) -> _Pair:
    """Draw W and Z for a loss Re<W, Q> + Re<Z, R> in which Q and every column of R count.

    Left alone, the derivative of Q outweighs that of R by the condition number, and a long column
    outweighs a short one; a fault in what is outweighed would not be seen.
    """
    rng = np.random.default_rng(1)
    w, z = (normal(rng, factor.shape, factor.dtype) for factor in factors)
    if differences is None:
        return w, z
    q, r = factors
    lengths = differences.lengths
    size_q = max(_norm(x) for x in (q, *(dq for dq, _ in differences.derivatives)))
    size_r = max(_norm(x / lengths) for x in (r, *(dr for _, dr in differences.derivatives)))
    return w / size_q, z / (size_r * lengths)


def _gradient_error(
    gradient: _Array, factors: _Pair, weights: _Pair, differences: Differences
) -> float:
    """Compare directional derivatives: the largest error, relative to the largest of them.

    The gradient is that in B, such that the derivative along D is Re<gradient, D>.
    """
    w, z = weights
    signs = phases(factors[1].diagonal())  # the differences have a positive diagonal
    expected = [
        np.vdot(w, dq * signs.conj()).real + np.vdot(z, signs[:, None] * dr).real
        for dq, dr in differences.derivatives
    ]
    found = [np.vdot(gradient, direction).real for direction in differences.directions]
    return float(np.max(np.abs(np.subtract(found, expected))) / np.max(np.abs(expected)))


def _tolerance(a: _Array, differences: Differences | None) -> float | None:
    """Bound the error by what rounding in the gradient and in the differences explains."""
    if differences is None:
        return None
    rounding = float(np.finfo(a.dtype).eps) * differences.condition
    return 30 * rounding + 100 * differences.error


def _verdict(gradient: _Array, error: float | None, tolerance: float | None) -> Gradient:
    if not np.isfinite(gradient).all():
        return "not finite"
    if error is None or tolerance is None or tolerance > _HIDDEN_BY_ROUNDING:
        return "finite"
    return "right" if error <= tolerance else "wrong"


# Numbers.


def _interleaved_medians(runs: Sequence[Callable[[], object]]) -> list[float]:
    """Time every run in turn, so that whatever else the machine does slows all of them alike."""
    rounds: list[list[float]] = []
    end = time.perf_counter() + _TIMING_SECONDS
    while len(rounds) < _FEWEST_ROUNDS or (
        len(rounds) < _MOST_ROUNDS and time.perf_counter() < end
    ):
        rounds.append([_seconds(run) for run in runs])
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def _rank_and_condition(a: _Array) -> tuple[int, float | None]:
    """Count singular values as numpy.linalg.matrix_rank does in the type of a."""
    if a.size == 0:
        return 0, None
    singular = np.linalg.svd(_scaled(a)[0], compute_uv=False)
    tolerance = singular[0] * max(a.shape) * np.finfo(a.dtype).eps
    rank = int(np.sum(singular > tolerance))
    return rank, float(singular[0] / singular[-1]) if rank == len(singular) else None


def _double(a: _Array) -> _Array:
    return a.astype(np.complex128 if a.dtype.kind == "c" else np.float64)


def _scaled(a: _Array) -> tuple[_Array, float]:
    """Divide by a power of two, so that the largest part of an entry is from 1 to 2."""
    double = _double(a)
    largest = max(float(np.max(np.abs(x), initial=0.0)) for x in (double.real, double.imag)) or 1.0
    scale = math.ldexp(1.0, max(math.frexp(largest)[1] - 1, -1022))  # 1 / scale is finite
    return double / scale, scale


def _norm(a: _Array) -> float:
    return float(np.linalg.norm(a))
