"""The pages: examples run, quoted code is the code, rows are equal, links lead somewhere."""

import doctest
import importlib.util
import re
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import jaxqr

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUOTED = re.compile(r'^```python title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([\w-]+))?\)")


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.fixture
def as_users_have_it():
    """Single precision and JAX's own promotions; a page may ask for double."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        jax.config.update("jax_enable_x64", False)
        yield
    jax.config.update("jax_enable_x64", True)


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_examples(path):
    examples = "\n".join(body for body in FENCE.findall(text(path)) if ">>>" in body)
    for package in ("lineax", "optimistix"):
        if package in examples:
            pytest.importorskip(package, reason=f"the examples need {package}")
    test = doctest.DocTestParser().get_doctest(examples, {}, path.name, str(path), 0)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert not doctest.DocTestRunner(optionflags=flags).run(test).failed


def test_code_that_is_quoted_is_the_code():
    quotes = [quote for path in PAGES for quote in QUOTED.findall(text(path))]
    assert len(quotes) >= 10
    for source, lines in quotes:
        assert lines in text(ROOT / source), f"{source} has no lines\n{lines}"


def rows(name: str) -> list[tuple[str, str]]:
    """The pairs of expressions in the tables of a page."""
    return re.findall(r"^\| `(.+)` \| `(.+)` \|$", text(DOCS / name), re.MULTILINE)


def names() -> dict[str, object]:
    rng = np.random.default_rng(0)
    a, w, b = rng.standard_normal((5, 3)), rng.standard_normal((3, 5)), rng.standard_normal(5)
    known = {"jax": jax, "jnp": jnp, "np": np, "scipy": scipy, "jaxqr": jaxqr}
    return known | {"a": a, "w": w, "b": b, "c": b[:3]}


@pytest.mark.parametrize(("theirs", "ours"), rows("coming_from.md"))
def test_rows_are_equal(theirs, ours):
    space = names()
    if "torch" in theirs:
        torch = pytest.importorskip("torch", reason="the row needs torch")
        space["torch"] = torch
        space |= {f"t{name}": torch.tensor(space[name]) for name in "awb"}
    with jax.numpy_rank_promotion("allow"):
        found = [eval(side, space) for side in (theirs, ours)]
    theirs, ours = (x if isinstance(x, tuple) else (x,) for x in found)
    for x, y in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(np.asarray(y), np.asarray(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("theirs", "ours"), rows("coming_from.md"))
def test_rows_that_find_the_rank_do_so_in_float32(theirs, ours):
    if "rcond" not in ours or theirs.startswith(("np", "torch")):  # which compute in float64
        return
    space = {k: x.astype("f4") if isinstance(x, np.ndarray) else x for k, x in names().items()}
    for name in "aw":
        u, s, v = np.linalg.svd(space[name], full_matrices=False)
        space[name] = ((u * s * [1, 1, 0]) @ v).astype("f4")
    x, y = (np.asarray(eval(side, space)) for side in (ours, theirs))
    np.testing.assert_allclose(x, y, rtol=1e-4)


def anchors(path: Path) -> set[str]:
    """The anchors that mkdocs gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(FENCE, "", text(path)), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[\s-]+", "-", heading) for heading in plain}


def file_of(target: str, page: Path) -> Path:
    """What a link of a page is built from: notebooks and the benchmark's plots lie elsewhere."""
    path = (page.parent / target).relative_to(DOCS)
    if path.parts[0] == "notebooks":
        return ROOT / path.with_suffix(".ipynb")
    return ROOT / "bench" / "results" / path.name if path.parts[0] == "bench" else DOCS / path


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    for target, anchor in LINK.findall(re.sub(FENCE, "", text(path))):
        goal = file_of(target, path) if target else path
        assert goal.exists(), f"{path.name} links to {target}"
        if anchor and goal.suffix == ".md":
            assert anchor in anchors(goal), f"{path.name} links to {target}#{anchor}"


def test_the_menu_leads_to_pages_and_to_every_notebook():
    listed = re.findall(r"^ +- .*?([\w/]+\.md)$", text(ROOT / "mkdocs.yml"), re.MULTILINE)
    for target in listed:
        assert file_of(target, DOCS / "index.md").exists(), f"mkdocs.yml lists {target}"
    notebooks = {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks <= set(listed)


def test_the_readme_links_absolutely():
    targets = re.findall(r"\]\(([^)]*)\)", re.sub(FENCE, "", text(ROOT / "README.md")))
    assert targets
    assert all(target.startswith("https://") for target in targets)


def test_docstrings_become_markdown():
    pytest.importorskip("griffe", reason="docstrings are read with griffe")
    path = DOCS / "hooks" / "docstrings.py"
    spec = importlib.util.spec_from_file_location("docstrings", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    given = textwrap.dedent(""":func:`jaxqr.qr` and

    >>> 1 + 1
    2
    """)
    made = module.as_markdown(given)
    assert made.startswith("`jaxqr.qr` and")
    assert "```pycon\n    >>> 1 + 1\n    2\n    ```" in made
