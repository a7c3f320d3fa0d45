"""Factor, differentiate, check and time real matrices: ``python -m jaxqr [FILE.mtx ...]``.

``python -m jaxqr tune`` measures where ``method="auto"`` should choose what.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxqr
from jaxqr._streams import Parser, guarded, say, show
from jaxqr.cli import longley, reading, tables, tune
from jaxqr.cli.measuring import Report, measure
from jaxqr.cli.progress import Progress, why_busy
from jaxqr.cli.reading import MatrixMarketError

_DESCRIPTION = """\
Factor, differentiate, check and time the matrices in Matrix Market files.
With no file: Longley's regression data (16 x 7), which are built in.

python -m jaxqr tune measures on this machine where method="auto" should choose
what; python -m jaxqr tune --help says more. (A file of that name is ./tune.)
"""

_EPILOG = """\
Files are dense (array) or sparse (coordinate); real, complex, integer or pattern;
general, symmetric, skew-symmetric or hermitian; as they are or compressed (.gz,
.bz2). Repeated coordinates are summed.

FILE may be -, standard input.

A file that cannot be read, or does not fit in memory, is told in one line,
FILE:LINE: why. The others are still done.

The exit status is 0; 1 if a gradient of jaxqr is wrong; 2 if a file was left out,
the arguments are wrong or the output cannot be written; 130 if interrupted; 141 if
nobody reads the output to its end (| head).

--json prints one object. Numbers that do not exist or are not finite are null.
  jaxqr, jax, platform  versions, and what the factorizations ran on
  matrices              a list of
    name, shape, dtype  dtype is the type that was computed in
    norm                Frobenius norm; null beyond 1.8e308
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
  errors                a list of file, line (1 if it cannot be read at all, null if it
                        does not fit in memory), message
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
        The exit status: 0; 1 if a gradient of jaxqr is wrong; 2 if a file could not be read or
        does not fit in memory; 130 if interrupted. An interrupt ends the process where the work
        cannot be ended alone.

    Raises:
        SystemExit: after --help, --version and wrong arguments; the output cannot be written (2),
            or nobody reads it to its end (141).
    """
    argv = sys.argv[1:] if argv is None else argv
    with guarded():
        if argv[:1] == ["tune"]:
            return tune.main(argv[1:])
        parser = _parser()
        arguments = parser.parse_args(argv)
        if arguments.files.count("-") > 1:
            parser.error("- can be given once: standard input is read to its end")
        try:
            return _run(_sources(arguments.files), arguments.dtype, arguments.json)
        except KeyboardInterrupt:
            return 130


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m jaxqr",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"jaxqr {jaxqr.__version__}")
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
    return [
        _Source("<stdin>" if file == "-" else file, functools.partial(reading.read, file))
        for file in files
    ]


def _run(sources: list[_Source], dtype: str | None, as_json: bool) -> int:
    busy = f"\n{why}: times are rough." if (why := why_busy()) else ""
    width = shutil.get_terminal_size().columns
    reports: list[Report] = []
    matrices: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    for i, source in enumerate(sources):
        progress = Progress(f"[{i + 1}/{len(sources)}] {_printable(source.name)}")
        try:
            report = progress.during(functools.partial(_measured, source, dtype, progress))
        except (MatrixMarketError, MemoryError, jax.errors.JaxRuntimeError) as error:
            progress.clear()
            errors.append(_refusal(source.name, error, progress.doing))
            place = [str(errors[-1][key]) for key in ("file", "line") if errors[-1][key]]
            say(_printable(f"{':'.join(place)}: {errors[-1]['message']}"))
            continue
        except KeyboardInterrupt:
            progress.clear()
            say(f"interrupted while doing {progress}")
            if progress.busy:  # in compiled code perhaps, and Python would wait for it
                os._exit(130)
            return 130
        finally:
            progress.clear()
        reports.append(report)
        matrices.append({"name": source.name, **dataclasses.asdict(report)})
        if not as_json:
            show(tables.table(_printable(source.name), report, width))
    if as_json:
        show(_json({**_versions(), "matrices": matrices, "errors": errors}))
    elif matrices:
        versions = "jaxqr {jaxqr}, JAX {jax}, {platform}".format(**_versions())
        show(tables.legend(width) + versions + busy)
    wrong = any(f.jaxqr.gradient == "wrong" for report in reports for f in report.factorizations)
    return 2 if errors else int(wrong)


def _measured(source: _Source, dtype: str | None, progress: Progress) -> Report:
    with jax.enable_x64(True):  # which holds for one thread
        progress("reading")
        return measure(source.load(dtype), progress)


def _refusal(name: str, error: Exception, doing: str) -> dict[str, Any]:
    """Tell why a file is left out, and the next one done."""
    if isinstance(error, MatrixMarketError):
        return {"file": error.path, "line": error.line, "message": error.message}
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    reason = " ".join(str(error).split()) or type(error).__name__
    return {"file": name, "line": None, "message": f"does not fit in memory ({doing}): {reason}"}


def _versions() -> dict[str, str]:
    return {
        "jaxqr": jaxqr.__version__,
        "jax": jax.__version__,
        "platform": jax.default_backend(),
    }


def _json(value: Any) -> str:
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    """Replace what JSON has no word for, nan and inf, by None, also where a decimal overflows."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, Decimal):
        value = float(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _printable(text: str) -> str:
    """Keep a name on one line and within what the terminal can show, whatever it is."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    encoding = sys.stdout.encoding or "ascii"
    return shown.encode(encoding, "backslashreplace").decode(encoding)
