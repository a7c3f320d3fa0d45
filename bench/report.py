"""The results in Markdown."""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import TypeVar

from bench.case import GRADIENT, LSTSQ, QR, R_ALONE, Case
from bench.measure import (
    COMPILE,
    FIRST_CALL,
    FLOPS,
    MATRIX_PRODUCT,
    PEAK,
    RECEIVED,
    RESIDUALS,
    SECONDS,
    SHARE,
    TEMPORARIES,
    TRACE,
    Row,
)
from bench.results import Result
from bench.suites import SUITES, Suite
from bench.timing import Spread, ratio

T = TypeVar("T")

# Milliseconds by eq. 3 and by eq. 8 that the paper gives for the matrices it names.
PAPER = {"wm1": (4.55, 11.67), "wm2": (3.68, 8.69), "wm3": (3.47, 7.90)}

SUBSETS: dict[str, Callable[[Case], bool]] = {
    "all": lambda case: True,
    "batches of ≥ 1000, at most 8 × 8": lambda case: (
        math.prod(case.shape[:-2]) >= 1000 and max(case.shape[-2:]) <= 8
    ),
    "deep, m ≥ 50 n": lambda case: len(case.shape) == 2 and case.shape[0] >= 50 * case.shape[1],
    "square and wide, m ≤ n": lambda case: case.shape[-2] <= case.shape[-1],
}
ALL, SMALL, DEEP, *_ = SUBSETS

# Operation, work, subset, rival: the factor that the project aims at. Printed, never asserted.
GOALS = {
    (QR, GRADIENT, ALL, "JAX"): 2.0,
    (QR, GRADIENT, SMALL, "JAX"): 5.0,
    (QR, GRADIENT, DEEP, "JAX"): 2.5,
    (QR, GRADIENT, ALL, "torch"): 1.0,
    (R_ALONE, GRADIENT, ALL, "JAX"): 2.5,
    (LSTSQ, GRADIENT, ALL, "lineax QR"): 3.0,
}

UNDER_XLA = (
    "What changes under XLA. The paper timed frameworks that run one kernel after another, so "
    "that eq. 8 pays for each of its masks, adjoints and sums; here each equation is one compiled "
    "program, in which these fuse. What remains of the difference is what the equations cannot "
    "share: as printed, eq. 8 has two triangular solves with R where eq. 3 has one, and six "
    "products where eq. 3 has three; two of the six are adjoints of two others, which the compiler "
    "does not see. The products with Y = A[:, m:] and with V-bar are the same in both, so the "
    "ratio falls as columns are added. Where the leading square block is singular, as in wm1, wm2 "
    "and wm3, unpivoted QR has no derivative, and both equations are applied after pivoting."
)


def report(results: Sequence[Result], beside: Sequence[Result] = ()) -> str:
    """Every suite, in the order of :data:`SUITES`, and beside it those of other machines."""
    by_name = {result.suite: result for result in results}
    parts = ["# Benchmark", _introduction()]
    previous: Result | None = None
    for suite in SUITES:
        if (result := by_name.get(suite.name)) is not None:
            others = [other for other in beside if other.suite == suite.name]
            parts += _suite(suite, result, previous, others)
            previous = result
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction() -> str:
    return (
        "Written by `python -m bench`. The contestants run in one process and take turns, round "
        "by round, after a warm-up; a sample of a short call is many calls, and 120 ms of calls "
        "that are not timed lead up to each, until the last contestant's threads sleep. Tables "
        "give medians; a ratio is the median over the rounds of a rival's time over jaxqr's in "
        "the same round, with its quartiles: above 1, jaxqr is faster (or smaller)."
    )


def _suite(
    suite: Suite, result: Result, previous: Result | None, others: Sequence[Result]
) -> list[str]:
    parts = [f"## {suite.name}: {suite.title}", suite.about, _where(result, previous)]
    parts += [
        f"{name} is left out: the package {package} is not installed here."
        for name, package in result.absent.items()
    ]
    parts.append(f"![{suite.title}]({suite.name}.png)")
    if suite.name == "equations":
        parts += [_beside_the_paper(result), UNDER_XLA]
    if suite.name == "limit":
        parts.append(_rates(result))
    for metric in suite.metrics:
        parts.append(_summary(suite, result, metric))
    if others and suite.metrics[0] != SHARE:
        parts.append(_on_machines(suite, [result, *others]))
    parts.append(_failures(result))
    tables = [_details(suite, result, metric) for metric in suite.metrics]
    return [*parts, "<details><summary>Every row</summary>", *tables, "</details>"]


def _where(result: Result, previous: Result | None) -> str:
    """The machine and the versions, unless they are those of the suite before."""
    took = f"Size {result.size}; took {result.seconds / 60:.1f} minutes."
    if previous is not None and _place(previous) == _place(result):
        return took
    rows = [*result.machine.items(), *result.versions.items()]
    return took + "\n\n" + _table(["", ""], rows)


def _place(result: Result) -> tuple[dict[str, str], dict[str, str]]:
    fixed = {k: v for k, v in result.machine.items() if not k.startswith("load")}
    return fixed, result.versions


def _on_machines(suite: Suite, results: Sequence[Result]) -> str:
    """The ratios of every row on each of the machines, and above them those machines."""
    metric = suite.metrics[0]
    machines = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(results)]]
    said = unique(key for result in results for key in (*result.machine, *result.versions))
    places = [
        [key, *((result.machine | result.versions).get(key, "") for result in results)]
        for key in said
    ]
    rows = [{row.case: row for row in result.rows} for result in results]
    rivals = unique(name for r in results for name in names(suite, r) if name != suite.base)
    lines = []
    for case in unique(case for of_one in rows for case in of_one):
        cells = [
            _spread(ratio_of(of_one[case], rival, suite.base, metric)) if case in of_one else ""
            for rival in rivals
            for of_one in rows
        ]
        lines.append([case.op, case.work, case.matrix, case.dtype, *cells])
    header = ["operation", "work", "matrix", "type"]
    header += [f"{rival} / {suite.base}, {machine}" for rival in rivals for machine in machines]
    title = f"{metric.capitalize()} on other machines beside this one, A."
    tables = _table(["", *machines], places, left=1), _table(header, lines, left=4)
    return "\n\n".join([title, *tables])


# --- Summaries


def _summary(suite: Suite, result: Result, metric: str) -> str:
    """Geometric means of the ratios, by operation, work and type, over each subset."""
    if metric == SHARE:
        return _share_summary(suite, result)
    rivals = [name for name in names(suite, result) if name != suite.base]
    lines = []
    for op, work, dtype in _kinds(result):
        of_kind = [row for row in result.rows if _kind(row) == (op, work, dtype)]
        for subset, belongs in SUBSETS.items():
            rows = [row for row in of_kind if belongs(row.case)]
            if subset != ALL and (metric != SECONDS or len(rows) == len(of_kind)):
                continue
            cells = [_mean_cell(rows, rival, suite.base, metric) for rival in rivals]
            if any(cells):
                goals = ((rival, GOALS.get((op, work, subset, rival))) for rival in rivals)
                goal = ", ".join(f"{rival} {factor:g}" for rival, factor in goals if factor)
                lines.append([op, work, dtype, subset, *cells, goal])
    if not lines:
        return ""
    header = ["operation", "work", "type", "matrices"]
    header += [*(f"{rival} / {suite.base}" for rival in rivals), "goal"]
    if metric != SECONDS or not any(line[-1] for line in lines):
        header, lines = header[:-1], [line[:-1] for line in lines]
    title = f"Geometric means over the matrices: {metric} (lowest row; number of rows)."
    return title + "\n\n" + _table(header, lines, left=4)


def _share_summary(suite: Suite, result: Result) -> str:
    present = names(suite, result)
    lines = []
    for op, work, dtype in _kinds(result):
        cells = []
        for name in present:
            shares = [
                100 * median(row.results[name][SHARE])
                for row in result.rows
                if _kind(row) == (op, work, dtype) and name in row.results
            ]
            low, middle, high = (_number(f(shares)) for f in (min, median, max))
            cells.append(f"**{middle}** ({low} – {high})")
        lines.append([op, work, dtype, *cells])
    title = "Percent of the matrix product's rate: median over the matrices (lowest – highest)."
    return title + "\n\n" + _table(["operation", "work", "type", *present], lines, left=3)


def _kinds(result: Result) -> list[tuple[str, str, str]]:
    """Operation, work and type: what is averaged over the matrices."""
    return unique(_kind(row) for row in result.rows)


def _kind(row: Row) -> tuple[str, str, str]:
    return row.case.op, row.case.work, row.case.dtype


def _mean_cell(rows: Sequence[Row], rival: str, base: str, metric: str) -> str:
    found = [r.median for row in rows if (r := ratio_of(row, rival, base, metric))]
    found = [x for x in found if x > 0]
    if not found:
        return ""
    mean = math.exp(sum(map(math.log, found)) / len(found))
    return f"**{_number(mean)}** ({_number(min(found))}; {len(found)})"


def _beside_the_paper(result: Result) -> str:
    lines = []
    for row in result.rows:
        name = row.case.matrix
        if row.case.file and {"eq. 3", "eq. 8"} <= row.results.keys():
            three, eight = (median(row.results[e][SECONDS]) * 1e3 for e in ("eq. 3", "eq. 8"))
            ours = row.results.get("jaxqr", {}).get(SECONDS)
            theirs = PAPER.get(row.case.file.removesuffix(".mtx"))
            lines.append(
                [
                    name,
                    row.case.work,
                    *([f"{x:.2f}" for x in theirs] if theirs else ["", ""]),
                    f"{theirs[1] / theirs[0]:.2f}" if theirs else "",
                    f"{three:.2f}",
                    f"{eight:.2f}",
                    f"{eight / three:.2f}",
                    f"{median(ours) * 1e3:.2f}" if ours else "",
                ]
            )
    if not lines:
        return "No Matrix Market file was given (--matrix): the paper's own are wm1, wm2 and wm3."
    header = ["matrix", "work", "paper, eq. 3", "paper, eq. 8", "8 / 3"]
    header += ["here, eq. 3", "here, eq. 8", "8 / 3", "jaxqr"]
    return "Milliseconds, beside the paper's.\n\n" + _table(header, lines)


def _rates(result: Result) -> str:
    rates: dict[str, list[float]] = {}
    for row in result.rows:
        if product := row.results.get(MATRIX_PRODUCT):
            rates.setdefault(row.case.dtype, []).extend(product["rate"])
    return "Matrix product: " + ", ".join(
        f"{dtype} {median(rate) / 1e9:.0f} GFLOP/s" for dtype, rate in rates.items()
    )


def _failures(result: Result) -> str:
    """Who did not do what, and why: once for each reason."""
    found: dict[tuple[str, str], list[Case]] = {}
    for row in result.rows:
        for name, reason in row.failures.items():
            found.setdefault((name, reason), []).append(row.case)
    lines = []
    for (name, reason), cases in found.items():
        what = "; ".join(unique(f"{case.op}, {case.work}" for case in cases))
        count = f"{len(cases)} row{'s' if len(cases) > 1 else ''}"
        lines.append(f"* {name}, {count} ({what}): {reason}")
    return "Not done:\n\n" + "\n".join(lines) if lines else ""


# --- Tables


def _details(suite: Suite, result: Result, metric: str) -> str:
    present = names(suite, result)
    rivals = [name for name in present if name != suite.base] if metric != SHARE else []
    parts = []
    for op, work in unique((row.case.op, row.case.work) for row in result.rows):
        lines = []
        for row in result.rows:
            if (row.case.op, row.case.work) == (op, work):
                values = [_value(row, name, metric) for name in present]
                ratios = [_spread(ratio_of(row, rival, suite.base, metric)) for rival in rivals]
                lines.append([row.case.matrix, row.case.dtype, *values, *ratios])
        header = ["matrix", "type", *present, *(f"{rival} / {suite.base}" for rival in rivals)]
        parts += [f"**{op}, {work}: {metric}{UNITS[metric][0]}**", _table(header, lines)]
    return "\n\n".join(parts)


UNITS: dict[str, tuple[str, float]] = {
    SECONDS: (" in ms", 1e3),
    FIRST_CALL: (" in ms", 1e3),
    TRACE: (" in ms", 1e3),
    COMPILE: (" in ms", 1e3),
    TEMPORARIES: (" in KiB", 1 / 1024),
    RESIDUALS: (" in KiB", 1 / 1024),
    FLOPS: (" in millions", 1e-6),
    RECEIVED: (" in KiB", 1 / 1024),
    PEAK: (" in KiB", 1 / 1024),
    SHARE: (" in percent", 100),
}


def names(suite: Suite, result: Result) -> list[str]:
    """The contestants that have a result, in the suite's order."""
    return [c.name for c in suite.contestants if any(c.name in row.results for row in result.rows)]


def ratio_of(row: Row, rival: str, base: str, metric: str) -> Spread | None:
    """The rival over the base in this row, where both have a result."""
    theirs, ours = (row.results.get(name, {}).get(metric) for name in (rival, base))
    return ratio(theirs, ours) if theirs and ours else None


def unique(items: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(items))


def _value(row: Row, name: str, metric: str) -> str:
    samples = row.results.get(name, {}).get(metric)
    return _number(median(samples) * UNITS[metric][1]) if samples else "–"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    low, middle, high = (_number(x) for x in (spread.low, spread.median, spread.high))
    return f"**{middle}** ({low} – {high})"


def _number(x: float) -> str:
    """Three digits, and no exponent."""
    if x == 0 or abs(x) >= 100:
        return f"{x:.0f}"
    return f"{x:.{max(0, 2 - math.floor(math.log10(abs(x))))}f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 2) -> str:
    """A table whose first columns, LEFT of them, are words, and the others numbers."""
    ruler = ["---" if i < left else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ruler, *rows))
