"""Factor, differentiate, check and time real matrices: ``python -m jaxqr [FILE.mtx ...]``."""

import argparse
import dataclasses
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxqr
from jaxqr.cli import longley, reading
from jaxqr.cli.measuring import DIRECTIONS, Factorization, Implementation, Report, measure
from jaxqr.cli.reading import MatrixMarketError

_DESCRIPTION = """\
Factor, differentiate, check and time the matrices in Matrix Market files.
With no file: Longley's regression data (16 x 7), which are built in.
"""

_EPILOG = """\
Files are dense (array) or sparse (coordinate); real, complex, integer or pattern;
general, symmetric, skew-symmetric or hermitian; as they are or compressed (.gz,
.bz2). Repeated coordinates are summed.

A file that cannot be read is told in one line, FILE:LINE: why. The others are
still done, and the exit status is 2.

--json prints one object. Numbers that do not exist or are not finite are null.
  jaxqr, jax, platform  versions, and what the factorizations ran on
  matrices              a list of
    name, shape, dtype  dtype is the type that was computed in
    norm                Frobenius norm
    rank, condition     numerical rank; condition number, if the rank is full
    leading_columns_rank, leading_rows_rank
                        ranks of the first min(m, n) columns and rows
    factorizations      a list of
      name              qr, lq, pivoted_qr; if the rank is R < min(m, n), also
                        pivoted_qr rank=R
      rank, needed      the rank of what must have full rank for a derivative to
                        exist, and full rank
      differentiable    whether the two are equal
      gradient_tolerance
                        the gradient error that rounding explains
      jaxqr, jax        by this package; by JAX, null where JAX cannot do it
        residual        ||A - Q R|| / ||A||
        orthogonality   ||Q^H Q - I||
        gradient        right, wrong, not finite, or finite if nothing more can
                        be said
        gradient_error  largest error against central differences
        value_seconds, gradient_seconds
                        median time of the factors; of a loss and its gradient
  errors                a list of file, line, message
"""

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


class _Source(NamedTuple):
    """A matrix by name; `load` takes the type asked for, or None."""

    name: str
    load: Callable[[str | None], Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments, by default those of the process.

    Returns:
        The exit status: 0; 2 if a file could not be read.
    """
    arguments = _parser().parse_args(argv)
    try:
        with jax.enable_x64(True):
            return _run(_sources(arguments.files), arguments.dtype, arguments.json)
    except BrokenPipeError:
        # The reader has seen enough (| head). Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jaxqr",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", metavar="FILE.mtx", help="Matrix Market files")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--dtype",
        choices=["float32", "float64", "complex64", "complex128"],
        help="type to compute in (default: float64, complex128 for complex files)",
    )
    return parser


def _sources(files: Sequence[str]) -> list[_Source]:
    if not files:
        return [_Source("Longley", lambda dtype: longley.DESIGN.astype(dtype or np.float64))]
    return [_Source(file, functools.partial(reading.read, file)) for file in files]


def _run(sources: list[_Source], dtype: str | None, as_json: bool) -> int:
    busy = _busy()
    matrices: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    for i, source in enumerate(sources):
        progress = _Progress(f"[{i + 1}/{len(sources)}] {_printable(source.name)}")
        try:
            progress("reading")
            report = measure(source.load(dtype), progress)
        except MatrixMarketError as error:
            progress.clear()
            print(_printable(str(error)), file=sys.stderr)
            errors.append({"file": error.path, "line": error.line, "message": error.message})
            continue
        finally:
            progress.clear()
        matrices.append({"name": source.name, **dataclasses.asdict(report)})
        if not as_json:
            print(_table(_printable(source.name), report), flush=True)
    if as_json:
        print(_json({**_versions(), "matrices": matrices, "errors": errors}), flush=True)
    elif matrices:
        versions = "jaxqr {jaxqr}, JAX {jax}, {platform}".format(**_versions())
        print(_LEGEND + versions + busy, flush=True)
    return 2 if errors else 0


def _versions() -> dict[str, str]:
    return {
        "jaxqr": jaxqr.__version__,
        "jax": jax.__version__,
        "platform": jax.default_backend(),
    }


def _busy() -> str:
    """Say so if threads have to wait for a core: times then vary a hundredfold."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = os.cpu_count() or 1
    if load <= cores:
        return ""
    return f"\nThe machine is busy (load {load:.0f} on {cores} cores): times are rough."


class _Progress:
    """One line on a terminal's stderr that says what is being done; silent elsewhere."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def __call__(self, doing: str) -> None:
        self._write(f"{self.prefix}: {doing} ...")

    def clear(self) -> None:
        self._write("")

    @staticmethod
    def _write(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


# The table.

_ROW = "  {:<10} {:<5} {:>11} {:>8}  {:<10} {:>8} {:>9} {:>9}"
_HEADINGS = ("", "", "|A-QR|/|A|", "|Q'Q-I|", "gradient", "error", "value", "+grad")


def _table(name: str, report: Report) -> str:
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


def _json(value: Any) -> str:
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    """Replace what JSON has no word for, nan and inf, by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _printable(text: str) -> str:
    """Keep a name on one line and within what the terminal can show, whatever it is."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    encoding = sys.stdout.encoding or "ascii"
    return shown.encode(encoding, "backslashreplace").decode(encoding)
