"""Where ``method="auto"`` should choose what on this machine: ``python -m jaxqr tune``.

Each crossover has a ladder: sizes, from where its algorithm is surest to gain to beyond where it is
known to. A rung is one matrix, factored by a program in which "auto" may choose the algorithm, and
by one in which it may not. The crossover is the last rung up to which all were won.
"""

import argparse
import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxqr
from jaxqr._linalg import tuning
from jaxqr._linalg.crossovers import MOST_UNROLLED, NEVER, NOTHING, Crossovers
from jaxqr._linalg.products import matmul
from jaxqr._streams import Parser, say, show
from jaxqr.cli.differences import normal
from jaxqr.cli.progress import Progress, why_busy

_DESCRIPTION = """\
Time the factorizations on this machine's default device, in less than two minutes,
and write the sizes from which each algorithm is the faster one to a file. In
programs started from then on, method="auto" chooses by them on that kind of device,
with these versions of jax and jaxlib. Nothing else should run meanwhile.

The file is in the user's cache directory. The environment variable JAXQR_TUNING
names another, to write as to read; or "none", and what is there is not read. A
file that it names and that is no such table is not overwritten.
"""

MARGIN = 1.05
"""How many times as fast an algorithm has to be, to be chosen."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure."""

    total: float = 90.0  # seconds: what is not measured by then stays as it was
    sample: float = 0.01  # a sample lasts at least so many seconds: short calls are repeated
    lead: float = 0.1  # so many seconds of calls before each that are not timed
    rounds: int = 3
    largest: int = NEVER  # what rows, columns and batches are cut down to


@dataclasses.dataclass(frozen=True)
class Ladder:
    """How a crossover is found."""

    name: str  # of the number
    sizes: Sequence[float]  # from where the algorithm is surest to gain
    shape: Callable[[float], tuple[int, ...]]  # of a matrix at the crossover
    work: Callable[[jax.Array], Any]
    algorithm: Crossovers  # by which it is always chosen
    otherwise: Crossovers = NOTHING
    dtypes: tuple[str, ...] = ("float32", "float64")


def _r_alone(a: jax.Array) -> jax.Array:
    return jaxqr.qr(a, mode="r")


def _gradient(a: jax.Array) -> Any:
    factors, pullback = jax.vjp(jaxqr.qr, a)
    return pullback(factors)


def _square(a: jax.Array) -> jax.Array:
    return matmul(a, a)


def _always(*names: str) -> Crossovers:
    """Numbers by which nothing is too large or too small for the algorithm that has these."""
    chosen: dict[str, float] = {n: NEVER if n.startswith("most") else 1 for n in names}
    for name in {"most_unrolled", "most_unrolled_in_rules"} & chosen.keys():
        chosen[name] = MOST_UNROLLED
    return dataclasses.replace(NOTHING, **chosen)


_SMALL = ("least_batch", "most_rows", "most_elements")
_BATCHED = _always(*_SMALL, "most_unrolled")
_IN_RULES = _always(*_SMALL, "most_unrolled", "most_unrolled_in_rules")
_DEEP = ("least_depth", "least_size")
_CHOLESKY = _always(
    *_DEEP,
    *("least_columns", "most_columns", "least_columns_of_r", "most_columns_of_r"),
    "most_columns_of_complex",
)
_COMPLEX = ("complex64", "complex128")

# fmt: off
LADDERS = (
    # What compiles slowly comes late: it is what there may be no time for.
    Ladder("least_batch", (512, 64, 16), lambda b: (int(b), 8, 4), jaxqr.qr, _BATCHED),
    Ladder("most_columns", (128, 512, 768), lambda n: (4 * int(n), int(n)), jaxqr.qr,
           _CHOLESKY),
    Ladder("least_depth", (3, 1.5, 1.25), lambda d: (int(160 * d), 160), jaxqr.qr, _CHOLESKY),
    Ladder("least_width", (2, 1.25, 1.125), lambda w: (200, int(200 * w)), jaxqr.qr,
           _always("least_width")),
    Ladder("least_size", (2**16, 2**14, 2**13), lambda s: (int(s) // 32, 32), jaxqr.qr,
           _CHOLESKY),
    Ladder("least_columns", (16, 8, 4), lambda n: (20000, int(n)), jaxqr.qr, _CHOLESKY),
    Ladder("least_columns_of_panels", (192, 128, 96), lambda n: (int(n), int(n)), _gradient,
           _always("least_columns_of_panels")),
    Ladder("most_unrolled", (8, 16, 24), lambda n: (1000, int(n), int(n)), jaxqr.qr, _BATCHED),
    Ladder("most_rows", (10, 24, 48, 64), lambda m: (1000, int(m), 4), jaxqr.qr, _BATCHED),
    Ladder("most_columns_of_r", (128, 512, 768), lambda n: (4 * int(n), int(n)), _r_alone,
           _CHOLESKY),
    Ladder("least_columns_of_r", (32, 16, 8), lambda n: (20000, int(n)), _r_alone, _CHOLESKY),
    Ladder("most_columns_of_complex", (8, 16, 32), lambda n: (20000, int(n)), jaxqr.qr,
           _CHOLESKY, dtypes=_COMPLEX),
    Ladder("least_complex_product", (256, 64, 32), lambda n: (int(n), int(n)), _square,
           _always("least_complex_product"), dtypes=_COMPLEX),
    Ladder("most_elements", (64, 192, 384, 768), lambda e: (1000, int(e) // 8, 8), jaxqr.qr,
           _BATCHED),
    Ladder("most_unrolled_in_rules", (4, 8, 12), lambda n: (1000, int(n), int(n)), _gradient,
           _IN_RULES, _BATCHED),
)
# fmt: on


def main(argv: Sequence[str]) -> int:
    """Run the subcommand.

    Args:
        argv: the arguments after ``tune``.

    Returns:
        The exit status: 0; 2 if the file is something else or cannot be written; 130 if
        interrupted. An interrupt ends the process where the work cannot be ended alone.
    """
    parser = Parser(
        prog="python -m jaxqr tune",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be written, and write nothing"
    )
    arguments = parser.parse_args(argv)
    try:  # told now, not in two minutes
        tuning.load_what_there_is(_file())
        if not arguments.dry_run:
            with tuning.room_beside(_file()):
                pass
    except (OSError, ValueError) as error:
        return _refused(error)
    if why := why_busy():
        say(f"{why}: what is measured now may not hold when it is not.")
    progress = Progress("tune")
    try:
        measured, left_out = progress.during(functools.partial(tune, Effort(), progress, LADDERS))
    except KeyboardInterrupt:
        progress.clear()
        say(f"interrupted while doing {progress}")
        if progress.busy:
            os._exit(130)
        return 130
    progress.clear()
    if left_out:
        say(f"no time was left for {', '.join(left_out)}: as before")
    return _hand_over(measured, arguments.dry_run)


def _hand_over(measured: tuning.Entry, dry_run: bool) -> int:
    """Print or write the table: this entry, and those of other devices and releases."""
    file, entries = _file(), [measured]
    try:
        there = tuning.load_what_there_is(file)
        entries = [*(entry for entry in there if entry.key != measured.key), measured]
        if not dry_run:
            tuning.save(entries, file)
    except (OSError, ValueError) as error:  # it has changed meanwhile, or cannot be written
        show(tuning.text(entries), end="")  # two minutes' work
        return _refused(error)
    if dry_run:
        show(tuning.text(entries), end="")
        return 0
    show(f"written: {file}")
    if tuning.path() is None:
        show(f"It is not read as long as {tuning.VARIABLE} is none.")
    return 0


def _file() -> Path:
    return tuning.path() or tuning.default_path()


def _refused(error: OSError | ValueError) -> int:
    """Tell why the file cannot be written, or is not to be."""
    reason = getattr(error, "strerror", None) or f"{error}; it is not overwritten"
    say(f"{_file()}: {reason}")
    return 2


def tune(
    effort: Effort, progress: Callable[[str], None], ladders: Sequence[Ladder]
) -> tuple[tuning.Entry, list[str]]:
    """Measure the crossovers on the default device.

    Args:
        effort: how long.
        progress: is told what begins.
        ladders: how each is found.

    Returns:
        The entry of the table, and the names of the crossovers for which no time was left. They,
        and those that have no ladder, are as they are shipped.
    """
    end = time.perf_counter() + effort.total
    platform, kind = _device()
    found: dict[str, float] = {}
    left_out: list[str] = []
    with jax.enable_x64(True):  # which holds for one thread
        for ladder in ladders:
            try:
                found[ladder.name] = _climb(ladder, platform, effort, progress, end)
            except TimeoutError:
                left_out.append(ladder.name)
    crossovers = dataclasses.replace(tuning.base(platform), **found)
    return tuning.Entry(platform, kind, *tuning.release(), crossovers), left_out


def _device() -> tuple[str, str]:
    """The platform of the default device, as programs are lowered for it, and its kind."""
    device = jax.devices()[0]
    for platform in tuning.PLATFORMS:  # a GPU says only that it is one
        try:
            if device in jax.devices(platform):
                return platform, device.device_kind
        except RuntimeError:
            continue
    return device.platform, device.device_kind


def _climb(
    ladder: Ladder, platform: str, effort: Effort, progress: Callable[[str], None], end: float
) -> float:
    """The last size up to which the algorithm wins in all types by the margin.

    Raises:
        TimeoutError: there is no time to find out.
    """
    reached: float = getattr(NOTHING, ladder.name)
    for size in ladder.sizes:
        for dtype in ladder.dtypes:
            if time.perf_counter() >= end:
                raise TimeoutError
            shape = tuple(min(x, effort.largest) for x in ladder.shape(size))
            progress(f"{ladder.name}, {' x '.join(map(str, shape))} {dtype}")
            if advantage(ladder, platform, shape, dtype, effort) < MARGIN:
                return reached
        reached = size
    return reached


def advantage(
    ladder: Ladder, platform: str, shape: tuple[int, ...], dtype: str, effort: Effort
) -> float:
    """How many times as fast the work is where the algorithm is chosen; 0 if it can't be done."""
    a = jax.device_put(normal(np.random.default_rng(0), shape, dtype))
    try:
        calls = [
            _program(ladder.work, a, {platform: crossovers})
            for crossovers in (ladder.otherwise, ladder.algorithm)
        ]
        repeats = [_repeats(call, effort.sample) for call in calls]
        ratios = []
        for _ in range(effort.rounds):
            # What the last call left, in caches and in threads that look for work, is not timed.
            usual, chosen = (
                _sample(call, count, effort.lead)
                for call, count in zip(calls, repeats, strict=True)
            )
            ratios.append(usual / chosen)
    except jax.errors.JaxRuntimeError:  # it does not fit, or the device lacks the type
        return 0.0
    return statistics.median(ratios)


def _program(
    work: Callable[[jax.Array], Any], a: jax.Array, table: tuning.ByPlatform
) -> Callable[[], object]:
    """A call of the work, compiled by this table, that has run once."""
    with tuning.forced(table):
        compiled = jax.jit(work).lower(a).compile()

    def call() -> object:
        return jax.block_until_ready(compiled(a))

    call()
    return call


def _repeats(call: Callable[[], object], sample: float) -> int:
    once = max(_sample(call, 1, 0.0), 1e-9)
    return max(1, min(1000, round(sample / once)))


def _sample(call: Callable[[], object], repeats: int, lead: float) -> float:
    """Seconds of a call, after so many seconds of others."""
    end = time.perf_counter() + lead
    while time.perf_counter() < end:
        call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
