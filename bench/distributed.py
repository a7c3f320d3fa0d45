"""Rows on several devices: TSQR beside ``jnp.linalg.qr`` of a matrix that is sharded by rows.

The devices are the host's, so all of them share its cores and its memory: what a program sends and
holds is what it would send and hold elsewhere, but times are worth no more than their ratio.
"""

import dataclasses
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bench.case import GRADIENT, QR, VALUE, Case
from bench.contestants import JAX, JAXQR, InJax
from bench.measure import PEAK, RECEIVED, SECONDS, Row
from bench.timing import Effort, interleave

STRONG, WEAK = "qr, strong scaling", "qr, weak scaling"
DEVICES = (1, 2, 4, 8)
ROWS = {"full": (2**17, 2**14), "quick": (2**14, 2**12), "tiny": (64, 16)}  # of all, of each
COLUMNS = {"full": 64, "quick": 32, "tiny": 4}


def cases(size: str, files: Sequence[str] = ()) -> list[Case]:
    """The same matrix on more and more devices, and more and more rows, as many on each."""
    of_all, of_each = ROWS[size]
    return [
        Case(op, work, (rows(p), COLUMNS[size]), "float32", devices=p)
        for op, rows in ((STRONG, lambda p: of_all), (WEAK, lambda p: p * of_each))
        for work in (VALUE, GRADIENT)
        for p in ((DEVICES[-1],) if size == "tiny" else DEVICES)
    ]


def _mesh(devices: int) -> Mesh:
    return Mesh(np.array(jax.devices("cpu")[:devices]), ("rows",))


def _tsqr(reduction: Any) -> Callable[[int], Callable[..., Any]]:
    def function(devices: int) -> Callable[..., Any]:
        from jaxqr.distributed import sharded_qr

        return lambda a: sharded_qr(a, _mesh(devices), "rows", reduction=reduction)

    return function


@dataclasses.dataclass(frozen=True)
class OnDevices:
    """A contestant: a function of a global array, for so many devices."""

    name: str
    function: Callable[[int], Callable[..., Any]]

    def program(self, case: Case) -> tuple[Callable[..., Any], Any]:
        """The work and its arguments, those that have all rows sharded by rows."""
        one = InJax(self.name, lambda _: self.function(case.devices))
        work, args = one.program(dataclasses.replace(case, op=QR))
        mesh = _mesh(case.devices)

        def placed(x: Any) -> jax.Array:
            spec = P("rows") if x.shape[0] == case.shape[0] else P()
            return jax.device_put(x, NamedSharding(mesh, spec))

        return work, jax.tree.map(placed, args)


CONTESTANTS = (
    OnDevices(JAXQR.name, _tsqr("auto")),
    OnDevices("tree", _tsqr("tree")),
    OnDevices("gather", _tsqr("gather")),
    OnDevices(JAX.name, lambda _: lambda a: tuple(jnp.linalg.qr(a))),
)


def scaling(case: Case, contestants: Sequence[OnDevices], effort: Effort) -> Row:
    """Seconds, bytes that reach each device, and the most that each holds.

    In a process that has as many devices as any case, for which each case gets one of its own.
    """
    if len(jax.devices("cpu")) >= DEVICES[-1]:
        return _here(case, contestants, effort)
    asked = {
        "case": dataclasses.asdict(case),
        "contestants": [c.name for c in contestants],
        "effort": dataclasses.asdict(effort),
    }
    command = [sys.executable, "-m", "bench.distributed", json.dumps(asked)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    if answer.returncode:
        last = (answer.stderr.strip() or "no message").splitlines()[-1]
        return Row(case, {}, {c.name: last[:160] for c in contestants})
    found = json.loads(answer.stdout.splitlines()[-1])
    return Row(case, found["results"], found["failures"])


def _here(case: Case, contestants: Sequence[OnDevices], effort: Effort) -> Row:
    row, calls = Row(case), {}
    for contestant in contestants:
        try:
            work, args = contestant.program(case)
            compiled = jax.jit(work).lower(*args).compile()
            jax.block_until_ready(compiled(*args))
        except Exception as error:
            first_line = (str(error).strip() or "no message").splitlines()[0]
            row.failures[contestant.name] = f"{type(error).__name__}: {first_line}"[:160]
            continue
        calls[contestant.name] = _call(compiled, args)
        row.results[contestant.name] = {
            RECEIVED: [float(received(compiled.as_text(), case.devices))],
            PEAK: [float(_held(compiled.memory_analysis()))],
        }
    for name, samples in (interleave(calls, effort) if calls else {}).items():
        row.results[name][SECONDS] = samples
    return row


def _call(compiled: Any, args: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(compiled(*args))


def _held(stats: Any) -> int:
    """Bytes of arguments, results and temporaries on each device."""
    held = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return int(held - stats.alias_size_in_bytes)


def main(asked: str) -> None:
    """Answers :func:`scaling`, on standard output."""
    question = json.loads(asked)
    jax.config.update("jax_num_cpu_devices", DEVICES[-1])
    case = Case(**question["case"] | {"shape": tuple(question["case"]["shape"])})
    effort = Effort(**question["effort"] | {"rounds": tuple(question["effort"]["rounds"])})
    contestants = [c for c in CONTESTANTS if c.name in question["contestants"]]
    with jax.enable_x64(True):
        row = _here(case, contestants, effort)
    print(json.dumps({"results": row.results, "failures": row.failures}))


# --- What a compiled program sends, by its text.

# name = type opcode(operands), attributes: of an asynchronous pair the start alone.
_COLLECTIVE = re.compile(
    r"= (?P<type>\([^=]*?\)|\S+) "
    r"(?P<kind>all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)"
    r"(?P<start>-start)?\("
)
_ARRAY = re.compile(r"(?P<type>pred|[a-z]+\d+)\[(?P<shape>[\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One array of a collective instruction, as each device receives it."""

    kind: str
    shape: tuple[int, ...]
    bytes: int


def collectives(hlo: str) -> list[Collective]:
    """All arrays that the collectives of a compiled program give."""
    found = []
    for line in hlo.splitlines():
        if match := _COLLECTIVE.search(line):
            arrays = list(_ARRAY.finditer(match["type"]))
            if match["start"] and match["kind"] != "all-reduce":  # (operands, results, ...)
                arrays = arrays[1:2]
            for array in arrays:
                shape = tuple(int(n) for n in array["shape"].split(",") if n)
                size = _itemsize(array["type"])
                found.append(Collective(match["kind"], shape, size * math.prod(shape)))
    return found


def _itemsize(name: str) -> int:
    return 1 if name == "pred" else int(re.sub(r"\D", "", name)) // 8


def received(hlo: str, devices: int) -> int:
    """Bytes that reach each device; of a gather, the parts of the others."""
    return sum(
        x.bytes - x.bytes // devices if x.kind == "all-gather" else x.bytes
        for x in collectives(hlo)
    )


if __name__ == "__main__":
    main(sys.argv[1])
