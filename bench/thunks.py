"""Where the time of a compiled program goes: ``python -m bench.thunks [SHAPE ...] [--dtype T]``.

Of value and gradient of Q and R, or of R alone (``--r``), of least squares (``--lstsq``), or of
the value (``--value``). XLA's CPU runtime reports each thunk (a LAPACK call, a product, a loop) to
JAX's profiler. Those that run side by side are each counted in full, so a sum can exceed the time
of the call.
"""

import argparse
import collections
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax

from bench.case import GRADIENT, LSTSQ, QR, R_ALONE, VALUE, Case
from bench.contestants import JAX, JAXQR, InJax
from bench.suites import SHAPES

LAPACK, PRODUCTS, LOOPS = "LAPACK", "products", "loops"
CALLS = 20
# What only holds other thunks.
_CONTAINERS = ("conditional", "while", "call", "tuple")


def milliseconds(case: Case, contestant: InJax) -> Mapping[str, float]:
    """By kind of thunk, for one call."""
    work, args = contestant.program(case)
    compiled = jax.jit(work).lower(*args).compile()
    jax.block_until_ready(compiled(*args))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(CALLS):
                jax.block_until_ready(compiled(*args))
        (recorded,) = Path(folder).glob("**/*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(recorded))
    kinds = _kinds(compiled.as_text())
    spent: dict[str, float] = collections.Counter()
    for name, nanoseconds in _events(profile):
        if name in kinds:
            spent[kinds[name]] += nanoseconds / CALLS / 1e6
    return spent


def _events(profile: "jax.profiler.ProfileData") -> Iterator[tuple[str, float]]:
    for plane in profile.planes:
        for line in plane.lines:
            for event in line.events:
                for key, value in event.stats:
                    if key == "hlo_op":
                        yield value, event.duration_ns


def _kinds(hlo: str) -> dict[str, str]:
    """The kind of each instruction that is a thunk, by its name."""
    kinds = {}
    for name, rest in re.findall(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*)$", hlo, re.MULTILINE):
        opcode = re.search(r"([a-z-]+)\(", rest)
        if opcode is None or opcode[1] in _CONTAINERS:
            continue
        if "lapack_" in rest:
            kinds[name] = LAPACK
        elif opcode[1] == "dot" or "ynn" in name:
            kinds[name] = PRODUCTS
        else:
            kinds[name] = LOOPS
    return kinds


def of_cases(prog: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of what :func:`cases` reads."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help="like 10000x8x4; default: all")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--r", action="store_const", dest="op", const=R_ALONE, default=QR)
    parser.add_argument("--lstsq", action="store_const", dest="op", const=LSTSQ)
    parser.add_argument("--value", action="store_const", dest="work", const=VALUE, default=GRADIENT)
    return parser


def cases(args: argparse.Namespace) -> list[Case]:
    """One for each shape."""
    shapes = [tuple(map(int, shape.split("x"))) for shape in args.shapes] or SHAPES["full"]
    return [Case(args.op, args.work, shape, args.dtype) for shape in shapes]


def main(argv: Sequence[str] | None = None) -> int:
    args = of_cases("python -m bench.thunks", __doc__).parse_args(argv)
    contestants, kinds = (JAXQR, JAX), (LAPACK, PRODUCTS, LOOPS)
    print("| matrix | " + " | ".join(f"{c.name}: {k}" for c in contestants for k in kinds) + " |")
    print("| --- |" + " ---: |" * (len(contestants) * len(kinds)))
    with jax.enable_x64(True):
        for case in cases(args):
            spent = [milliseconds(case, contestant) for contestant in contestants]
            cells = [f"{of.get(kind, 0):.3g}" for of in spent for kind in kinds]
            print("| " + " | ".join([case.matrix, *cells]) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
