"""The tables that ``python -m jaxqr`` prints."""

from collections.abc import Sequence

from jaxqr.cli.measuring import DIRECTIONS, Factorization, Implementation, Report

LEGEND = f"""\
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


def table(name: str, report: Report) -> str:
    """Lay out what has been found out about one matrix."""
    m, n = report.shape
    k = min(m, n)
    condition = "" if report.condition is None else f", condition {report.condition:.1e}"
    lines = [
        f"{name}: {m} x {n}, {report.dtype}, norm {report.norm:.1e}{condition}",
        f"  rank {report.rank} of {k}; leading {k} columns: {report.leading_columns_rank}, "
        f"leading {k} rows: {report.leading_rows_rank}",
        f"  derivative: {_names(report.factorizations, True)}",
    ]
    if without := _names(report.factorizations, False):
        lines.append(f"  none for:   {without}")
    lines += ["", _ROW.format(*_HEADINGS)]
    for factorization in report.factorizations:
        lines += _rows(factorization)
    return "\n".join(lines) + "\n"


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
    """
    unit, size = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e-3)) if seconds >= s), ("us", 1e-6))
    number = seconds / size
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f} {unit}"
