"""The tables that ``python -m jaxqr`` prints."""

import math
import textwrap
from collections.abc import Sequence
from decimal import Decimal

from jaxqr.cli.measuring import DIRECTIONS, Factorization, Implementation, Report

_LEGEND = f"""\
derivative    qr has one where the leading min(m, n) columns are independent, lq
              where the leading rows are, pivoted_qr where the rank is full.
gradient      of a random linear function of both factors. right: it agrees with
              central differences as far as rounding allows. finite: there is
              nothing to compare it with.
error         of the gradient, relative: the largest of {DIRECTIONS} random directions.
value, +grad  median times of the factors; of that function with its gradient.
JAX           jnp.linalg.qr, for lq of the conjugate transpose; for pivoted_qr
              jax.scipy.linalg.qr(pivoting=True). Timed in turns with jaxqr.
Norms are Frobenius norms; ranks are numerical ranks in the type given.
"""

_ROW = "  {:<10} {:<5} {:>11} {:>8}  {:<10} {:>8} {:>9} {:>9}"
_HEADINGS = ("", "", "|A-QR|/|A|", "|Q'Q-I|", "gradient", "error", "value", "+grad")


# Below a width of 80 the times stand in a table of their own, and lines that are too long break.
_WIDE, _NARROW = 80, 60
_BEFORE_NUMBERS, _BEFORE_TIMES = 18, 60


def table(name: str, report: Report, width: int = _WIDE) -> str:
    """Lay out what has been found out about one matrix, in lines of `width`, at least 60."""
    m, n = report.shape
    k = min(m, n)
    condition = "" if report.condition is None else f", condition {report.condition:.1e}"
    lines = [
        f"{name}: {m} x {n}, {report.dtype}, norm {_norm(report.norm)}{condition}",
        f"  rank {report.rank} of {k}; leading {k} columns: {report.leading_columns_rank}, "
        f"leading {k} rows: {report.leading_rows_rank}",
        f"  derivative: {_names(report.factorizations, True)}",
    ]
    if without := _names(report.factorizations, False):
        lines.append(f"  none for:   {without}")
    rows = [_ROW.format(*_HEADINGS)]
    for factorization in report.factorizations:
        rows += _rows(factorization)
    if width < _WIDE:
        lines = [_filled(line, width, "    ") for line in lines]
        rows = [
            *(row[:_BEFORE_TIMES].rstrip() for row in rows),
            "",
            *(row[:_BEFORE_NUMBERS] + row[_BEFORE_TIMES:] for row in rows),
        ]
    return "\n".join([*lines, "", *rows]) + "\n"


def legend(width: int = _WIDE) -> str:
    """Say what the words of the tables mean."""
    if width >= _WIDE:
        return _LEGEND
    indent = " " * _LEGEND.index("qr")
    paragraphs = _LEGEND.replace(f"\n{indent}", " ").splitlines()
    return "".join(
        _filled(text, width, indent if "  " in text else "") + "\n" for text in paragraphs
    )


def _filled(line: str, width: int, indent: str) -> str:
    return textwrap.fill(
        line,
        max(width, _NARROW),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _norm(norm: Decimal) -> str:
    """Two digits, beyond the largest float as below it.

    >>> _norm(Decimal(1.66e6)), _norm(2 * Decimal(1.2e308))
    ('1.7e+06', '2.4e+308')
    """
    number = float(norm)
    return f"{number:.1e}" if math.isfinite(number) else f"{norm:.1e}"


def _names(factorizations: Sequence[Factorization], differentiable: bool) -> str:
    chosen = [f for f in factorizations if f.differentiable == differentiable]
    if differentiable:
        return ", ".join(f.name for f in chosen) or "none"
    return ", ".join(f"{f.name} (rank {f.rank} < {f.needed})" for f in chosen)


def _rows(factorization: Factorization) -> list[str]:
    # A name of two words, "pivoted_qr rank=6", stands on both lines.
    first, _, second = factorization.name.partition(" ")
    ours = _ROW.format(first, "jaxqr", *_cells(factorization.jaxqr))
    peer = _ROW.format(second, "JAX", *_cells(factorization.jax))
    return [ours, peer]


def _cells(done: Implementation | None) -> list[str]:
    if done is None:
        return ["-"] * 6
    return [
        f"{done.residual:.1e}",
        f"{done.orthogonality:.1e}",
        done.gradient,
        "-" if done.gradient_error is None else f"{done.gradient_error:.1e}",
        _duration(done.value_seconds),
        _duration(done.gradient_seconds),
    ]


def _duration(seconds: float) -> str:
    """Three digits and a unit.

    >>> [_duration(s) for s in (12.345, 0.1, 0.0123456, 4.56e-6)]
    ['12.3 s', '100 ms', '12.3 ms', '4.56 us']
    >>> [_duration(s) for s in (9.996, 0.9996, 0.0009996)]
    ['10.0 s', '1.00 s', '1.00 ms']
    """
    seconds = float(f"{seconds:.2e}")  # it is what is shown that chooses unit and digits
    unit, size = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e-3)) if seconds >= s), ("us", 1e-6))
    number = round(seconds / size, 3)
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f} {unit}"
