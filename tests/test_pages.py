"""The examples in the documentation's pages run and print what they say."""

import doctest
from pathlib import Path

import jax
import pytest

PAGES = [
    page
    for page in sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    if ">>>" in page.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples(page):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted
    assert not result.failed
