"""The results as pictures."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from bench.case import QR, VALUE
from bench.measure import FIRST_CALL, RESIDUALS, SECONDS, SHARE, TEMPORARIES, Row
from bench.report import names, ratio_of, unique
from bench.results import Result
from bench.suites import Suite

# Okabe and Ito's colours, which the colour-blind tell apart.
BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#222222",
)  # fmt: skip
OF_TYPE = {"float32": BLUE, "float64": RED, "complex64": GREEN, "complex128": PURPLE}
FEW = tuple(10.0**i for i in range(-6, 7))
TICKS = tuple(sorted(step * x for step in (1, 2, 5) for x in FEW))
MANY = tuple(sorted(step * x for step in (1, 1.5, 2, 3, 4, 5, 6, 8) for x in FEW))

# The other metrics are in the tables.
PICTURED = (SECONDS, FIRST_CALL, TEMPORARIES, RESIDUALS)

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "savefig.dpi": 130,
    "savefig.bbox": "tight",
}


def draw(suite: Suite, result: Result, path: Path) -> None:
    """The suite's picture, as a PNG file."""
    special = {"equations": _equations, "limit": _limit}
    with plt.rc_context(STYLE):
        figure = special.get(suite.name, _ratios)(suite, result)
        figure.savefig(path)
        plt.close(figure)


def _ratios(suite: Suite, result: Result) -> Any:
    """A panel for each rival (or metric) and operation, a line for each matrix, a dot for each
    type: how many times jaxqr's time the rival takes."""
    rivals = [name for name in names(suite, result) if name != suite.base]
    strips = [(rival, metric) for rival in rivals for metric in suite.metrics if metric in PICTURED]
    ops = unique(
        row.case.op
        for row in result.rows
        if any(ratio_of(row, rival, suite.base, metric) for rival, metric in strips)
    )
    if not ops:
        return _nothing(f"{suite.title}: no two contestants to compare")
    if len(ops) == 1:  # then the rivals stand side by side
        layout = [[(op, *strip) for strip in strips] for op in ops]
    else:
        layout = [[(op, *strip) for op in ops] for strip in strips]
    heights = [max(len(_matrices(result, op)) for op, *_ in line) for line in layout]
    figure, axes = plt.subplots(
        len(layout),
        len(layout[0]),
        squeeze=False,
        sharex="row",
        figsize=(1.5 + 3.4 * len(layout[0]), sum(0.36 * h + 0.9 for h in heights) + 0.5),
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for line, strip in zip(layout, axes, strict=True):
        for j, ((op, rival, metric), ax) in enumerate(zip(line, strip, strict=True)):
            rows = [row for row in result.rows if row.case.op == op]
            _dots(ax, rows, _matrices(result, op), rival, suite.base, metric)
            same = j > 0 and _matrices(result, op) == _matrices(result, line[j - 1][0])
            ax.tick_params(labelleft=not same)
            ax.set_title(op)
            ax.set_xlabel(f"{metric}, {rival} / {suite.base}")
    _log_ticks([ax for strip in axes for ax in strip])
    _legend(figure, result)
    figure.suptitle(f"{suite.title}: right of 1, {suite.base} is ahead", fontsize=12)
    return figure


def _nothing(why: str) -> Any:
    figure = plt.figure(figsize=(6, 1))
    figure.text(0.5, 0.5, why, ha="center", va="center")
    return figure


def _matrices(result: Result, op: str) -> list[str]:
    return unique(row.case.matrix for row in result.rows if row.case.op == op)


def _dots(
    ax: Any, rows: Sequence[Row], matrices: Sequence[str], rival: str, base: str, metric: str
) -> None:
    kinds = unique((row.case.dtype, row.case.work) for row in rows)
    for row in rows:
        spread = ratio_of(row, rival, base, metric)
        if spread is None or spread.median <= 0:
            continue
        dtype, work = kind = row.case.dtype, row.case.work
        offset = (kinds.index(kind) + 0.5) / len(kinds) - 0.5
        y = matrices.index(row.case.matrix) + 0.7 * offset
        colour = OF_TYPE[dtype]
        ax.plot([spread.low, spread.high], [y, y], color=colour, lw=1.4, solid_capstyle="butt")
        ax.plot(spread.median, y, "o", ms=4.6, color=colour, mfc="white" if work == VALUE else None)
    ax.axvline(1, color=BLACK, lw=1)
    ax.set_yticks(range(len(matrices)), matrices)
    ax.set_ylim(len(matrices) - 0.45, -0.55)
    ax.set_xscale("log")


def _log_ticks(axes: Sequence[Any]) -> None:
    """Plain numbers, as many as there is room for; 1 and its neighbours are always in view."""
    for ax in axes:
        low, high = ax.get_xlim()
        low, high = min(low, 0.8), max(high, 2.2)
        ticks = FEW if high / low > 200 else MANY if high / low < 8 else TICKS
        ax.set_xlim(low, high)
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Any, result: Result) -> None:
    """Colour is the type; hollow is the value, full the gradient or the pullback."""
    handles = [
        Line2D([], [], marker="o", ls="", color=OF_TYPE[dtype], label=dtype)
        for dtype in unique(row.case.dtype for row in result.rows)
    ]
    handles += [
        Line2D([], [], marker="o", ls="", color="#666666", mfc="white" if work == VALUE else None,
               label=work)
        for work in unique(row.case.work for row in result.rows)
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _equations(suite: Suite, result: Result) -> Any:
    """Time by eq. 8 over time by eq. 3 against the number of rows, a line for each defect."""
    rows = [row for row in result.rows if not row.case.file and row.case.op == QR]
    dtypes = unique(row.case.dtype for row in rows)
    rivals = [name for name in names(suite, result) if name != suite.base]
    figure, axes = plt.subplots(
        len(rivals),
        len(dtypes),
        squeeze=False,
        sharey="row",
        sharex=True,
        figsize=(1.2 + 4.2 * len(dtypes), 0.8 + 2.9 * len(rivals)),
        layout="constrained",
    )
    colours = (BLACK, BLUE, SKY, GREEN, ORANGE, RED)
    defects = unique(_defect(row) for row in rows)
    for i, rival in enumerate(rivals):
        for j, dtype in enumerate(dtypes):
            ax = axes[i][j]
            for defect, colour, marker in zip(defects, colours, "osD^vP", strict=False):
                line = [row for row in rows if row.case.dtype == dtype and _defect(row) == defect]
                points = [
                    (row.case.shape[0], r)
                    for row in line
                    if (r := ratio_of(row, rival, suite.base, SECONDS))
                ]
                if not points:
                    continue
                m, spreads = zip(*points, strict=True)
                middle = [s.median for s in spreads]
                ax.plot(m, middle, marker=marker, ms=4, lw=1.2, color=colour, label=f"{defect:g}")
                ax.fill_between(
                    m, [s.low for s in spreads], [s.high for s in spreads], color=colour,
                    alpha=0.12, lw=0,
                )  # fmt: skip
            ax.axhline(1, color=BLACK, lw=1)
            ax.set_xscale("log")
            ms = unique(row.case.shape[0] for row in rows)
            ax.set_xticks(ms, [str(m) for m in ms])
            ax.xaxis.set_minor_locator(NullLocator())
            ax.set_title(dtype if i == 0 else "")
            ax.set_xlabel("rows" if i == len(rivals) - 1 else "")
            ax.set_ylabel(f"time, {rival} / {suite.base}" if j == 0 else "")
    for ax in axes[:, 0]:
        ax.set_ylim(bottom=0)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, title="columns / rows", loc="outside lower center", ncols=len(labels)
    )
    figure.suptitle("The pullback of wide QR: above 1, eq. 3 is faster", fontsize=12)
    return figure


def _defect(row: Row) -> float:
    """Columns over rows, as it was asked for: rounding to whole columns blurs it."""
    m, n = row.case.shape
    asked = (1, 1.3, 2, 4, 8, 16)
    return min(asked, key=lambda defect: abs(n / m - defect))


def _limit(suite: Suite, result: Result) -> Any:
    """Bars: the share of the matrix product's rate."""
    panels = unique((row.case.op, row.case.work) for row in result.rows)
    matrices = unique(row.case.matrix for row in result.rows)
    dtypes = unique(row.case.dtype for row in result.rows)
    contestants = names(suite, result)
    figure, axes = plt.subplots(
        1,
        len(panels),
        squeeze=False,
        sharex=True,
        sharey=True,
        figsize=(1.6 + 2.7 * len(panels), 1.6 + 0.5 * len(matrices)),
        layout="constrained",
    )
    bars = [(name, dtype) for dtype in dtypes for name in contestants]
    for (op, work), ax in zip(panels, axes[0], strict=True):
        for row in result.rows:
            if (row.case.op, row.case.work) != (op, work):
                continue
            for at, (name, dtype) in enumerate(bars):
                samples = row.results.get(name, {}).get(SHARE)
                if dtype != row.case.dtype or not samples:
                    continue
                y = matrices.index(row.case.matrix) + 0.8 * ((at + 0.5) / len(bars) - 0.5)
                ax.barh(
                    y, 100 * median(samples), height=0.72 / len(bars), color=OF_TYPE[dtype],
                    alpha=1 if name == suite.base else 0.4,
                )  # fmt: skip
        ax.set_title(f"{op}, {work}")
        ax.set_xlabel("percent of the matrix product")
        ax.set_yticks(range(len(matrices)), matrices)
        ax.set_ylim(len(matrices) - 0.45, -0.55)
        ax.grid(axis="y", visible=False)
    handles = [
        Rectangle(
            (0, 0),
            1,
            1,
            color=OF_TYPE[dtype],
            alpha=1 if name == suite.base else 0.4,
            label=f"{name}, {dtype}",
        )
        for name, dtype in bars
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.suptitle("Needed operations a second, of the matrix product's rate", fontsize=12)
    return figure
