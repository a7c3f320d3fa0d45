"""The plan of the house: which room may know of which, read off the imports."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "jaxqr"

# Each room, and the rooms that it may import from. Public functions are the files at the top.
MAY_KNOW = {
    "_linalg": {"_linalg"},
    "_rules": {"_rules", "_linalg"},
    "_forward": {"_forward", "_linalg"},
    "_arguments": {"_linalg"},
    "_autodiff": set(),
    "public": {"public", "_arguments", "_autodiff", "_forward", "_rules", "_linalg"},
    "_streams": set(),
    "cli": {"cli", "public", "_linalg", "_streams"},  # it measures crossovers
    "distributed": {"distributed", "public", "_arguments", "_autodiff", "_rules", "_linalg"},
    "upstream": {"upstream", "_streams"},
    "package": {"package", "public", "distributed", "upstream"},
}
# What is at the top of the package beside the public functions.
ALSO_THERE = {"__init__": "package", "__main__": "cli"}


def room(path: Path) -> str:
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return ALSO_THERE.get(name, name if name in MAY_KNOW else "public")


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, as dotted names below jaxqr."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.removeprefix("jaxqr").removeprefix(".") for name in names if is_own(name)}


def is_own(name: str) -> bool:
    return name == "jaxqr" or name.startswith("jaxqr.")


def room_of_module(name: str) -> str:
    first = name.split(".")[0]
    return first if first in MAY_KNOW else "public"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_arrows_run_one_way(path):
    known = {room_of_module(name) for name in imported(path)}
    strangers = known - MAY_KNOW[room(path)] - {room(path)}
    assert not strangers, f"{path.relative_to(PACKAGE)} ({room(path)}) knows of {strangers}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_private_jax_is_in_one_file(path):
    if path.relative_to(PACKAGE).parts[0] == "upstream":  # which is a change to JAX's own source
        return
    assert "jax._src" not in path.read_text(encoding="utf-8")


def test_every_room_is_there():
    rooms = {room(path) for path in PACKAGE.rglob("*.py")}
    assert rooms >= {"_linalg", "_rules", "_forward", "public", "_autodiff", "_arguments"}
