"""The README's examples run and print what they say."""

import doctest
import pathlib

import jax

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_examples():
    with jax.enable_x64(False):
        result = doctest.testfile(str(README), module_relative=False)
    assert result.attempted >= 8
    assert not result.failed
