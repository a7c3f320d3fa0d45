"""What is measured of the contestants in a case: a list of samples for each of some metrics."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.case import LQ, LSTSQ, PIVOTED, PULLBACK, QR, R_ALONE, VALUE, Case, inputs
from bench.contestants import Contestant, InJax, Unsupported
from bench.timing import Call, Effort, Samples, interleave

# Metrics.
SECONDS, TRACE, COMPILE, FIRST_CALL = "time", "trace", "compile", "first call"
TEMPORARIES, RESIDUALS, FLOPS, SHARE = "temporaries", "residuals", "flops", "share"
RECEIVED, PEAK = "received by each device", "held by each device"

MATRIX_PRODUCT = "matrix product"


@dataclasses.dataclass
class Row:
    """What a case gave."""

    case: Case
    results: dict[str, Samples] = dataclasses.field(default_factory=dict)  # contestant, metric
    failures: dict[str, str] = dataclasses.field(default_factory=dict)  # contestant: the reason


Measure = Callable[[Case, Sequence[Any], Effort], Row]


def _each(row: Row, contestants: Sequence[Any], do: Callable[[Any], Any]) -> dict[str, Any]:
    """DO for each contestant by name, less those that fail; the row says why."""
    done = {}
    for contestant in contestants:
        try:
            done[contestant.name] = do(contestant)
        except Unsupported as reason:
            row.failures[contestant.name] = str(reason)
        except Exception as error:  # a peer's fault is a result
            first_line = (str(error).strip() or "no message").splitlines()[0]
            row.failures[contestant.name] = f"{type(error).__name__}: {first_line}"[:160]
    return done


def _ready(row: Row, contestants: Sequence[Contestant]) -> dict[str, Call]:
    """Calls that have worked once."""

    def ready(contestant: Contestant) -> Call:
        call = contestant.prepare(row.case)
        call()
        return call

    return _each(row, contestants, ready)


def seconds(case: Case, contestants: Sequence[Contestant], effort: Effort) -> Row:
    """Seconds a call, the contestants taking turns."""
    row = Row(case)
    if calls := _ready(row, contestants):
        times = interleave(calls, effort)
        row.results = {name: {SECONDS: samples} for name, samples in times.items()}
    return row


def compiling(case: Case, contestants: Sequence[InJax], effort: Effort) -> Row:
    """Seconds to trace and to compile, each time from nothing, the contestants taking turns."""
    row = Row(case)

    def once(contestant: InJax) -> Samples:
        work, args = contestant.program(case)
        args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
        jax.clear_caches()
        start = time.perf_counter()
        lowered = jax.jit(work).lower(*args)
        traced = time.perf_counter()
        lowered.compile()
        end = time.perf_counter()
        return {TRACE: [traced - start], COMPILE: [end - traced], FIRST_CALL: [end - start]}

    _each(row, contestants, once)  # imports, and whatever else is only done once
    running = [c for c in contestants if c.name not in row.failures]
    for _ in range(min(effort.rounds[0], 5)):
        for name, samples in _each(row, running, once).items():
            for metric, values in samples.items():
                row.results.setdefault(name, {}).setdefault(metric, []).extend(values)
    return row


def memory(case: Case, contestants: Sequence[InJax], effort: Effort) -> Row:
    """What the compiled program says of itself, and what its forward pass keeps."""
    row = Row(case)

    def analyse(contestant: InJax) -> Samples:
        work, args = contestant.program(case)
        compiled = jax.jit(work).lower(*args).compile()
        stats, costs = compiled.memory_analysis(), compiled.cost_analysis()
        costs = costs[0] if isinstance(costs, list) else costs
        found = {
            TEMPORARIES: getattr(stats, "temp_size_in_bytes", None),
            RESIDUALS: None if case.work == VALUE else residual_bytes(contestant, case),
            FLOPS: (costs or {}).get("flops"),
        }
        return {metric: [float(x)] for metric, x in found.items() if x is not None}

    row.results = _each(row, contestants, analyse)
    return row


def residual_bytes(contestant: InJax, case: Case) -> int:
    """Bytes alive between the forward and the backward pass; the inputs count if they are kept."""
    function = contestant.function(case)
    kept = jax.make_jaxpr(lambda *args: jax.vjp(function, *args)[1])(*inputs(case))
    arrays: dict[int, Any] = {id(v): v.aval for v in kept.jaxpr.outvars}
    return sum(a.size * a.dtype.itemsize for a in arrays.values())


# Rows of a matrix whose square is computed at full speed, and within a tenth of a second.
_LARGE = {"cpu": 1536}


def share_of_limit(case: Case, contestants: Sequence[Contestant], effort: Effort) -> Row:
    """Operations that the formulas need, a second, over the rate of a large matrix product."""
    row = Row(case)
    calls = _ready(row, contestants)
    n = _LARGE.get(jax.default_backend(), 8192) if effort.total else 64
    x = jnp.asarray(np.random.default_rng(2).standard_normal((n, n)), case.dtype)
    product = jax.jit(lambda x: jnp.matmul(x, x, precision=jax.lax.Precision.HIGHEST))
    calls[MATRIX_PRODUCT] = lambda: jax.block_until_ready(product(x))

    times = interleave(calls, effort)
    need, full = operations(case), 2 * n**3
    of_product = times.pop(MATRIX_PRODUCT)
    row.results = {
        name: {SHARE: [need / t / (full / u) for t, u in zip(samples, of_product, strict=True)]}
        for name, samples in times.items()
    }
    row.results[MATRIX_PRODUCT] = {SECONDS: of_product, "rate": [full / u for u in of_product]}
    return row


def operations(case: Case) -> float:
    """Multiplications and additions that the work takes at least, as it is done by formula.

    A complex operation counts like a real one here, and in the matrix product that it is
    measured by. Householder's value: m x n reduced to R, then Q formed from its reflectors. The
    pullback: A-bar = Q [T | V-bar] + Q-bar U^-H, half of Q-bar^H Q, and what is k x k.
    """
    *batch, m, n = case.shape
    k = min(m, n)
    reduce_to_r = 2 * k * k * (max(m, n) - k / 3)
    form_q = 2 * m * k * k - 2 * k**3 / 3
    inner = k**3 / 3 + k**3 + 2 * k * k * (n - k)  # M, T, V V-bar^H
    value = {QR: reduce_to_r + form_q, LQ: reduce_to_r + form_q, PIVOTED: reduce_to_r + form_q}
    value |= {R_ALONE: reduce_to_r, LSTSQ: reduce_to_r + 4 * m * n}
    pullback = dict.fromkeys((QR, LQ, PIVOTED), 2 * m * k * n + 2 * m * k * k + inner)
    pullback |= {R_ALONE: 2 * m * k * n + k * k * n + inner, LSTSQ: 8 * m * n}
    work = pullback if case.work == PULLBACK else value
    return float(np.prod(batch, dtype=float)) * work[case.op]
