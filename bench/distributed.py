"""What a compiled program sends, by its text."""

import dataclasses
import math
import re

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


def sent(hlo: str, devices: int) -> int:
    """Bytes that each device hands to collectives: of a gather, its own part."""
    return sum(x.bytes // devices if x.kind == "all-gather" else x.bytes for x in collectives(hlo))
