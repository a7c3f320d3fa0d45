"""What is written twice agrees, and a machine that will not do is told so."""

import os
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import jax
import pytest

import jaxqr

ROOT = Path(__file__).resolve().parents[1]


def test_the_version_is_the_same_everywhere():
    (cited,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited == jaxqr.__version__
    command = ["git", "tag", "--points-at", "HEAD", "--list", "v[0-9]*"]
    try:
        tags = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        tags = ""  # no git here, or no repository
    assert set(tags.split()) <= {f"v{jaxqr.__version__}"}


def test_what_is_returned_has_types():
    fit, of_det = jaxqr.lstsq([[1.0]], [1.0], full=True), jaxqr.slogdet([[1.0]])
    for returned in (fit, of_det):
        assert typing.get_type_hints(type(returned)) == dict.fromkeys(returned._fields, jax.Array)
    hints = [typing.get_type_hints(f) for f in typing.get_overloads(jaxqr.lstsq)]
    assert {hint["full"]: hint["return"] for hint in hints} == {
        typing.Literal[False]: jax.Array,
        typing.Literal[True]: type(fit),
        bool: jax.Array | type(fit),
    }


def test_a_program_may_put_jaxqr_in_the_place_of_jax():
    command = [sys.executable, str(ROOT / "tests" / "rebound.py")]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.stdout == "done\n", done.stderr[-2000:]


# A Python that is too old, by its own account; and one that cannot make an environment.
_PYTHON = """#!/bin/sh
case "$1" in
-c) exec "{real}" -c "import sys; sys.version_info = {version}
$2" ;;
*) mkdir -p "$3/bin"; touch "$3/bin/python"; exit 1 ;;
esac
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize("goal", ["run", "test"])
@pytest.mark.parametrize("version", [(3, 10, 14), (2, 7, 18), (3, 11, 0)])
def test_make_leaves_no_broken_environment(tmp_path, goal, version):
    python, environment = tmp_path / "python", tmp_path / "venv"
    python.write_text(_PYTHON.format(real=sys.executable, version=version))
    python.chmod(0o755)
    command = ["make", goal, f"PYTHON={python}", f"VENV={environment}"]
    # A make that runs these tests hands its own options down.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        command, cwd=ROOT, env=inherited, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert not environment.exists()
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    if version < (3, 11):
        found = "{}.{}".format(*version)
        needs = f"jaxqr needs Python 3.11 or newer, {python} is {found}"
        assert said == [f"{needs}: make {goal} PYTHON=python3.12"]
        assert done.stdout == ""
    else:
        assert said == []
