"""Every code cell of every notebook runs."""

import json
import pathlib

import jax
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path):
    matplotlib = pytest.importorskip("matplotlib", reason="the notebooks need matplotlib")
    matplotlib.use("agg")
    cells = json.loads(path.read_text())["cells"]
    space: dict[str, object] = {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for cell in cells:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), space)
