"""Every notebook runs, as its reader's kernel would run it; what is kept in it came from that."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What a notebook imports beside what jaxqr itself needs.
NEEDS = ("matplotlib", "sklearn", "statsmodels", "sympy", "equinox", "flax")


def code(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="run once, by the newer Python of the two")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path):
    program = "\n\n".join("".join(cell["source"]) for cell in code(path))
    for name in NEEDS:
        if re.search(rf"^(import|from) {name}\b", program, re.MULTILINE) and not find_spec(name):
            pytest.skip(f"{path.stem} needs {name}")
    environment = {**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=path.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_stand_in_has_the_defect_that_it_stands_for():
    """The matrix of readers who have not the file."""
    pytest.importorskip("matplotlib")
    cells = code(ROOT / "notebooks" / "rank_and_pivoting.ipynb")[:2]
    names = {}
    exec(
        "".join(line for cell in cells for line in [*cell["source"], "\n"]).replace("wm1", "-"),
        names,
    )
    a = np.asarray(names["a"])
    assert a.shape == (207, 277)
    assert np.linalg.matrix_rank(a) == 207
    assert np.linalg.matrix_rank(a[:, :207]) == 176


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_kept(path):
    outputs = [output for cell in code(path) for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in code(path)] == list(range(1, len(code(path)) + 1))
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
