"""Writes the changes offered to JAX as patches to its source, and checks them there."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LAX = "jax/_src/lax/linalg.py"
SCIPY = "jax/_src/scipy/linalg.py"
JET = "jax/experimental/jet.py"
TESTS = "tests/linalg_test.py"
HERE = Path(__file__).parent

# What stands around the new tests where JAX's own test file is absent, as in an installed package.
TEST_HEAD = """\
from functools import partial

import numpy as np
import scipy.linalg
from absl.testing import absltest

import jax
import jax.scipy.linalg
from jax import grad, jit, jvp, lax, numpy as jnp
from jax._src import test_util as jtu
from jax._src.lax import linalg as lax_linalg
from jax.experimental.jet import jet

jax.config.parse_flags_with_absl()

T = lambda x: np.swapaxes(x, -1, -2)
float_types = jtu.dtypes.floating
complex_types = jtu.dtypes.complex


class LinalgTest(jtu.JaxTestCase):

"""
TEST_TAIL = """

if __name__ == "__main__":
  absltest.main(testLoader=jtu.JaxTestLoader())
"""


class UnexpectedSource(Exception):
    """JAX's source does not have the shape that the change was written for."""


def _function(text: str, path: str, name: str) -> tuple[int, int]:
    """First and last line (from 1, decorators included) of the last function of that name."""
    found = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    if not found:
        raise UnexpectedSource(f"{path} has no function {name}")
    node = max(found, key=lambda node: node.lineno)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return first, node.end_lineno or first


def _insert_after(text: str, path: str, function: str, block: str, blank: int) -> str:
    lines = text.splitlines(keepends=True)
    _, last = _function(text, path, function)
    return "".join([*lines[:last], "\n" * blank, block, *lines[last:]])


def _replace_once(text: str, path: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise UnexpectedSource(f"{path} has {text.count(old)} times, not once: {old.strip()!r}")
    return text.replace(old, new)


def _require(text: str, path: str, *needed: str) -> None:
    for name in needed:
        if name not in text:
            raise UnexpectedSource(f"{path} has no {name.strip()!r}")


def _read(name: str) -> str:
    return (HERE / "changes" / name).read_text(encoding="utf-8")


def rule_source() -> str:
    """The rule as it stands in JAX: what is between the markers of _rule.py."""
    text = (HERE / "_rule.py").read_text(encoding="utf-8")
    return text.partition("# --- begin ---\n")[2].partition("# --- end ---\n")[0]


def _put_rule(text: str, path: str) -> str:
    _require(
        text,
        path,
        "ad.primitive_jvps[qr_p] = qr_jvp_rule\n",
        "qr_p = linalg_primitive(",
        "import numpy as np\n",
        "from jax._src import ad_util\n",
        "from jax._src import api\n",
        "from jax._src import dtypes\n",
        "from jax._src.lax import lax\n",
        *("def _H(", "def _triu(", "def triangular_solve("),
    )
    first, end_of_helper = _function(text, path, "_thin_qr_jvp")
    start_of_rule, last = _function(text, path, "qr_jvp_rule")
    _require(
        text, path, "def qr_jvp_rule(primals, tangents, *, pivoting, full_matrices, use_magma)"
    )
    lines = text.splitlines(keepends=True)
    if "".join(lines[end_of_helper : start_of_rule - 1]).strip():
        raise UnexpectedSource(f"{path} has something between _thin_qr_jvp and qr_jvp_rule")
    if text.count("_thin_qr_jvp(") != 3:
        raise UnexpectedSource(f"{path} uses _thin_qr_jvp elsewhere than in qr_jvp_rule")
    return "".join([*lines[: first - 1], rule_source(), *lines[last:]])


def _put_rq(text: str, path: str) -> str:
    if "def rq(" in text:
        raise UnexpectedSource(f"{path} has a function rq already")
    return _insert_after(text, path, "qr_multiply", _read("rq.txt"), 2)


def _split_qr_multiply(text: str, path: str) -> str:
    """Move the computing half of qr_multiply, JAX's own lines, to a function with a JVP."""
    _, last = _function(text, path, "qr_multiply")
    lines = text.splitlines(keepends=True)
    head, _, _ = "".join(lines[:last]).rpartition("  p: Array | None = None\n")
    if not head:
        raise UnexpectedSource(f"{path}: qr_multiply does not start computing where it used to")
    body = "".join(lines[:last])[len(head) :]
    body = _replace_once(body, path, "  if onedim:\n    cQ = cQ.ravel()\n\n", "")
    helper = (
        "@partial(custom_jvp, nondiff_argnums=(2, 3, 4))\n"
        "def _qr_multiply(a: Array, c: Array, mode: str, pivoting: bool, conjugate: bool\n"
        "                 ) -> tuple[Array, Array] | tuple[Array, Array, Array]:\n"
        "  m, n = a.shape[-2:]\n"
        "  k = min(m, n)\n\n" + body + "\n" + _read("qr_multiply_jvp.txt") + "\n\n"
    )
    rest = (
        "  cQ, r, *p = _qr_multiply(a, c, mode, pivoting, conjugate)\n"
        "  if onedim:\n"
        "    cQ = cQ.ravel()\n"
        "  if pivoting:\n"
        "    return cQ, r, p[0]\n"
        "  return cQ, r\n"
    )
    first_overload = "@overload\ndef qr_multiply("
    _require(head, path, first_overload)
    before, _, after = head.partition(first_overload)
    text = before + helper + first_overload + after + rest + "".join(lines[last:])
    api = re.search(r"^from jax\._src\.api import .*\bjvp\b.*\n", text, re.MULTILINE)
    if not api:
        raise UnexpectedSource(f"{path} does not import jvp")
    new_import = "from jax._src.custom_derivatives import custom_jvp\n"
    return text.replace(api.group(), api.group() + new_import, 1)


def _put_geqp3(text: str, path: str) -> str:
    if "mlir.register_lowering(geqp3_p" in text:
        raise UnexpectedSource(f"{path} lowers geqp3 everywhere already")
    _require(text, path, "from jax._src.lax import control_flow\n", "from jax._src import api\n")
    registration = "register_cpu_gpu_lowering(geqp3_p, "
    text = _replace_once(
        text,
        path,
        registration,
        "mlir.register_lowering(geqp3_p, mlir.lower_fun(_geqp3_lowering))\n" + registration,
    )
    return _insert_after(text, path, "_geqp3_dtype_rule", _read("geqp3.txt"), 1)


def _put_jet(text: str, path: str) -> str:
    if "lax.linalg.qr_p" in text:
        raise UnexpectedSource(f"{path} has a rule for QR already")
    rule_of_jit = "\n\n@weakref_lru_cache\ndef _jet_jaxpr("
    _require(text, path, "from jax import lax\n", "import jax.numpy as jnp\n", "zero_series = ")
    return _replace_once(text, path, rule_of_jit, "\n" + _read("jet.txt") + rule_of_jit)


def _changelog(section: str, entry: str) -> Callable[[str, str], str]:
    def put(text: str, path: str) -> str:
        _require(text, path, "## Unreleased\n")
        before, heading, after = text.partition("## Unreleased\n")
        unreleased, next_heading, rest = after.partition("\n## ")
        if f"* {section}\n" in unreleased:
            unreleased = unreleased.replace(f"* {section}\n", f"* {section}\n{entry}", 1)
        else:
            unreleased = unreleased.rstrip("\n") + f"\n\n* {section}\n{entry}"
        return before + heading + unreleased + next_heading + rest

    return put


@dataclass(frozen=True)
class Change:
    """One change: an edit for each file it needs, and for each file that may be absent."""

    edits: dict[str, Callable[[str, str], str]]
    tests: str
    after_test: str  # the method of JAX's own that the new tests follow
    optional: dict[str, Callable[[str, str], str]]
    test_file: str = TESTS

    def test_names(self) -> list[str]:
        """The new tests, by name."""
        return re.findall(r"^  def (test\w+)\(", self.tests, re.MULTILINE)

    def put_tests(self, text: str, path: str) -> str:
        """JAX's test file with the new tests in it."""
        return _insert_after(text, path, self.after_test, self.tests, 1)


CHANGES = {
    "rule": Change(
        {LAX: _put_rule},
        _read("rule_tests.txt"),
        "testQr",
        {"CHANGELOG.md": _changelog("Bug fixes", _read("rule_changelog.txt"))},
    ),
    "rq": Change(
        {
            SCIPY: _put_rq,
            "jax/scipy/linalg.py": lambda text, path: _replace_once(
                text,
                path,
                "  qr_multiply as qr_multiply,\n",
                "  qr_multiply as qr_multiply,\n  rq as rq,\n",
            ),
        },
        _read("rq_tests.txt"),
        "testScipyQrModes",
        {
            "docs/jax.scipy.rst": lambda text, path: _replace_once(
                text, path, "   qr_multiply\n", "   qr_multiply\n   rq\n"
            ),
            "CHANGELOG.md": _changelog("New features", _read("rq_changelog.txt")),
        },
    ),
    "qr_multiply": Change(
        {SCIPY: _split_qr_multiply},
        _read("qr_multiply_tests.txt"),
        "testQrMultiply1D",
        {"CHANGELOG.md": _changelog("New features", _read("qr_multiply_changelog.txt"))},
    ),
    "geqp3": Change(
        {LAX: _put_geqp3},
        _read("geqp3_tests.txt"),
        "testHouseholderProduct",
        {"CHANGELOG.md": _changelog("New features", _read("geqp3_changelog.txt"))},
    ),
    "jet": Change(
        {JET: _put_jet},
        _read("jet_tests.txt"),
        "test_unstack",
        {"CHANGELOG.md": _changelog("New features", _read("jet_changelog.txt"))},
        test_file="tests/jet_test.py",
    ),
}


def find_root(path: Path) -> Path:
    """The directory that the package `jax` lies in: a checkout, or where packages are installed."""
    for root in (path, path.parent):
        if (root / LAX).is_file() and (root == path or path.name == "jax"):
            return root
    raise UnexpectedSource(f"{path} is neither a JAX checkout nor an installed jax: no {LAX}")


def make_patch(path: Path, change: Change) -> str:
    """The change as a unified diff against the JAX at `path`, for ``git apply`` in its root.

    Args:
        path: a checkout of JAX, or the directory of an installed package ``jax``.
        change: one of `CHANGES`.

    Returns:
        The text of the patch.

    Raises:
        UnexpectedSource: the source is not there or not of the shape that the change expects.
    """
    root = find_root(path)
    optional = {**change.optional, change.test_file: change.put_tests}
    edits = {**change.edits, **{p: e for p, e in optional.items() if (root / p).is_file()}}
    patch: list[str] = []
    for name, edit in edits.items():
        if not (root / name).is_file():
            raise UnexpectedSource(f"{root} has no {name}")
        try:
            old = (root / name).read_text(encoding="utf-8")
            new = edit(old, name)
            if name.endswith(".py"):
                ast.parse(new)
        except (ValueError, SyntaxError) as error:  # it is not UTF-8, or not Python
            raise UnexpectedSource(
                f"{root / name} is no source that can be read: {error}"
            ) from error
        patch += difflib.unified_diff(
            old.splitlines(keepends=True), new.splitlines(keepends=True), f"a/{name}", f"b/{name}"
        )
    return "".join(patch)


def _run_tests(root: Path, change: Change) -> dict[str, list[bool]]:
    """Run the change's tests on the jax in `root`: for each, whether each of its cases passed."""
    file = root / change.test_file
    if not file.is_file():
        file = root / "tests" / "new_test.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(TEST_HEAD + change.tests + TEST_TAIL, encoding="utf-8")
    report = root / "report.xml"
    report.unlink(missing_ok=True)
    result = subprocess.run(
        [sys.executable, str(file), f"--xml_output_file={report}"],
        cwd=root,
        env={
            "JAX_NUM_GENERATED_CASES": "1000",  # all of them, where nobody asks for a sample
            **os.environ,
            "PYTHONPATH": str(root),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TESTBRIDGE_TEST_ONLY": " ".join(f"*{name}*" for name in change.test_names()),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if not report.is_file():
        raise RuntimeError(f"the tests did not run:\n{result.stderr[-2000:]}")
    passed: dict[str, list[bool]] = {name: [] for name in change.test_names()}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = re.sub(r"\d*( .*)?$", "", case.get("name", ""))  # testName7 (shape=...)
        if name in passed and case.find("skipped") is None and case.get("status") == "run":
            passed[name].append(case.find("failure") is None and case.find("error") is None)
    return passed


def missing() -> str | None:
    """What `check_patch` needs and is not there, if anything, with how to get it."""
    if importlib.util.find_spec("absl") is None:
        return "--check runs tests of JAX's kind, which need absl-py: pip install absl-py"
    if shutil.which("git") is None:
        return "--check applies the patch with git, which is not installed"
    return None


def check_patch(path: Path, change: Change, patch: str) -> tuple[bool, str]:
    """Apply the patch to a scratch copy and run its tests there, before and after.

    It costs a copy of the package and two runs of the new tests, in processes of their own. The
    tests need what JAX's own need (absl-py, and SciPy), and ``git`` must be at hand.

    Args:
        path: the checkout or installed package that the patch was made for; it is only read.
        change: the change that the patch makes.
        patch: what `make_patch` returned.

    Returns:
        Whether every test had no passing case before and no failing case after, and a report
        of one line per test.

    Raises:
        RuntimeError: the patch does not apply, or the tests cannot be run.
    """
    root = find_root(path)
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory).resolve()
        shutil.copytree(root / "jax", scratch / "jax", ignore=shutil.ignore_patterns("__pycache__"))
        # Patched files outside the package, the tests among them, come along too.
        for name in re.findall(r"^--- a/(.*)$", patch, re.MULTILINE):
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, scratch / name)
        tests = scratch / change.test_file
        original = tests.read_text(encoding="utf-8") if tests.is_file() else None
        if original is not None:  # the new tests on the old source
            new = change.put_tests(original, change.test_file)
            tests.write_text(new, encoding="utf-8")
        before = _run_tests(scratch, change)
        if original is not None:
            tests.write_text(original, encoding="utf-8")
        (scratch / "change.patch").write_text(patch, encoding="utf-8")
        applied = subprocess.run(
            ["git", "apply", "change.patch"],
            cwd=scratch,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(scratch.parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        if applied.returncode:
            raise RuntimeError(f"git apply: {applied.stderr.strip()}")
        after = _run_tests(scratch, change)
    lines = [
        f"{name}: before {sum(before[name])} of {len(before[name])} pass, "
        f"after {sum(after[name])} of {len(after[name])}"
        for name in before
    ]
    good = all(
        before[name] and not any(before[name]) and after[name] and all(after[name])
        for name in before
    )
    return good, "\n".join(lines)
