"""Timing that compares: the contestants take turns, so that what disturbs one disturbs all."""

import dataclasses
import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Call = Callable[[], object]  # does the work once, and returns when it is done
Samples = dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure a case."""

    total: float  # seconds, about
    sample: float  # a sample lasts at least so many seconds: short calls are repeated
    lead: float  # so many seconds of calls before each that are not timed
    rounds: tuple[int, int]  # at least, at most


def interleave(calls: Mapping[str, Call], effort: Effort) -> Samples:
    """Seconds a call: A B C A B C ..., one sample of each in a round.

    The calls have run before: what is done only once is done. Each contestant gives the same
    number of samples; sample i of one and sample i of another are neighbours in time. What leads
    up to a sample is not timed: the caches are the last contestant's, and its threads, OpenMP's
    and OpenBLAS's, look for work for some 100 ms more, on cores that the next one needs.
    """
    gc.collect()
    once = {name: _about(call, effort.sample) for name, call in calls.items()}
    repeats = {name: max(1, math.ceil(effort.sample / t)) for name, t in once.items()}
    around = sum(repeats[name] * t + max(effort.lead, t) for name, t in once.items())
    least, most = effort.rounds
    rounds = min(most, max(least, round(effort.total / around)))

    samples: Samples = {name: [] for name in calls}
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in calls.items():
                _lead_up(call, effort.lead)
                samples[name].append(_sample(call, repeats[name]))
    finally:
        gc.enable()
    return samples


def _about(call: Call, sample: float) -> float:
    """Seconds of a call, roughly: the first of short calls finds the caches cold."""
    once = _sample(call, 1)
    return once if once > sample else min(once, _sample(call, 2))


def _lead_up(call: Call, seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        call()


def _sample(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median and its quartiles."""

    low: float
    median: float
    high: float


def spread(samples: Sequence[float]) -> Spread:
    return Spread(*(float(x) for x in np.quantile(samples, [0.25, 0.5, 0.75])))


def ratio(samples: Sequence[float], base: Sequence[float]) -> Spread | None:
    """How many times as much as the base, round by round; None where the base is nothing."""
    if not all(base):
        return None
    return spread([x / y for x, y in zip(samples, base, strict=True)])
