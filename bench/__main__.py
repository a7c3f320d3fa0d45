"""``python -m bench [SUITE ...] [--quick] [--matrix FILE ...] [--out DIR] [--beside DIR ...]``."""

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from bench.case import read_matrix
from bench.machine import machine, pinned, versions
from bench.measure import FIRST_CALL, SECONDS, SHARE, TEMPORARIES, Row
from bench.report import ratio_of, report
from bench.results import Result, load, save
from bench.suites import EFFORTS, SUITES, Size, Suite

RESULTS = Path("bench/results")


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    chosen = [suite for suite in SUITES if not args.suites or suite.name in args.suites]
    files = [str(path) for path in args.matrix]
    try:  # told now, not after what is measured
        for folder in [args.out, *args.beside] if args.report else args.beside:
            if not _results(folder):
                raise ValueError(f"{folder}: there are no results")
        if not args.report:
            for file in files:
                read_matrix(file)
            _results(args.out, but=chosen)  # which will be in the report, too
            args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _say(f"{error.filename}: {error.strerror}")
        return 2
    except ValueError as error:
        _say(str(error))
        return 2
    if not args.report:
        if warning := pinned():
            _say(warning)
        jax.config.update("jax_enable_compilation_cache", False)  # what is compiled is timed
        with jax.enable_x64(True):
            for suite in chosen:
                result = run(suite, args.size, files)
                save(result, args.out / f"{suite.name}.json")
    _write_up(args.out, chosen, args.beside)
    return 0


def run(suite: Suite, size: Size, files: Sequence[str] = ()) -> Result:
    """All cases of a suite. Progress goes to stderr."""
    cases = suite.cases(size, files)
    result = Result(suite.name, size, 0.0, machine(), versions(), suite.absent())
    for name, package in result.absent.items():
        _say(f"{suite.name}: {name} is left out, the package {package} is not installed")
    load = float(result.machine.get("load at the start", 0))
    if load > 0.5:  # after a suite of our own it is about the number of cores
        _say(f"{suite.name}: the load is {load}; if that is others' work, times will not be steady")
    contestants = suite.present()
    start = time.perf_counter()
    for done, case in enumerate(cases):
        row = suite.measure(case, contestants, EFFORTS[size])
        result.rows.append(row)
        elapsed = time.perf_counter() - start
        estimate = elapsed / (done + 1) * len(cases)
        _say(
            f"{suite.name} {done + 1}/{len(cases)} {_clock(elapsed)} of about {_clock(estimate)}: "
            f"{case}: {_outcome(suite, row)}"
        )
    result.seconds = round(time.perf_counter() - start, 1)
    return result


def _outcome(suite: Suite, row: Row) -> str:
    """What the row says, in a line."""
    metric = suite.metrics[0]
    if metric == SHARE:
        said = [f"{name} {of[SHARE][0]:.1%}" for name, of in row.results.items() if SHARE in of]
    else:
        assert metric in (SECONDS, FIRST_CALL, TEMPORARIES)
        said = [
            f"{name} / {suite.base} {found.median:.2f}"
            for name in row.results
            if name != suite.base and (found := ratio_of(row, name, suite.base, metric))
        ]
    return ", ".join(said + [f"not {name}: {why}" for name, why in row.failures.items()])


def _write_up(out: Path, chosen: Sequence[Suite], beside: Sequence[Path]) -> None:
    """The pictures of the suites chosen, and the report of all that is there, and beside it."""
    results = _results(out)
    others = [result for folder in beside for result in _results(folder).values()]
    if importlib.util.find_spec("matplotlib") is None:
        _say("no plots: the package matplotlib is not installed")
    else:
        from bench.plots import draw

        for suite in chosen:
            if suite.name in results:
                draw(suite, results[suite.name], out / f"{suite.name}.png")
    (out / "README.md").write_text(report(list(results.values()), others))
    _say(f"written: {out / 'README.md'}")


def _results(folder: Path, but: Sequence[Suite] = ()) -> dict[str, Result]:
    """What is there of the suites, by name."""
    paths = {suite.name: folder / f"{suite.name}.json" for suite in SUITES if suite not in but}
    return {name: load(path) for name, path in paths.items() if path.exists()}


def _parser() -> argparse.ArgumentParser:
    described = "\n".join(f"  {suite.name:<10} {suite.title}" for suite in SUITES)
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="jaxqr beside its peers, in one process. Writes SUITE.json and SUITE.png for "
        "each suite and README.md for all of them.",
        epilog="suites:\n" + described,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "suites",
        nargs="*",
        metavar="SUITE",
        type=_name_of_a_suite,  # Python 3.11 would refuse none at all by choices
        help="what to run (default: all)",
    )
    parser.add_argument(
        "--quick",
        dest="size",
        action="store_const",
        const="quick",
        default="full",
        help="fewer shapes, shorter samples; without, all of it takes about an hour",
    )
    parser.add_argument(
        "--tiny", dest="size", action="store_const", const="tiny", help="only see that it runs"
    )
    parser.add_argument(
        "--matrix",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="Matrix Market files for the suites equations and pivoted",
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="where to write (default: %(default)s)"
    )
    parser.add_argument(
        "--beside",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="results of other machines, to stand in the report beside those in --out",
    )
    parser.add_argument(
        "--report", action="store_true", help="measure nothing: write up what is in --out"
    )
    return parser


def _name_of_a_suite(name: str) -> str:
    known = [suite.name for suite in SUITES]
    if name not in known:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(known)}")
    return name


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
