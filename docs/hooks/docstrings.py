"""What the reference is made from: docstrings as Markdown, and signatures as help() shows them."""

import importlib
import inspect
import re
from typing import Any

import griffe
from jax.typing import ArrayLike

# Prompts and what they print, up to an empty line.
_EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1\S.*|\n\1 .*)*", re.MULTILINE)
_ROLE = re.compile(r":(?:func|class|mod|meth):`(?:([^<`]+) <)?~?([\w.]+)>?`", re.DOTALL)


def as_markdown(text: str) -> str:
    """A docstring's text with its doctests fenced and its roles as code."""
    text = _EXAMPLE.sub(lambda m: f"\n{m[1]}```pycon\n{m[0]}\n{m[1]}```\n", text)
    text = _ROLE.sub(lambda m: f"`{m[2]}`", text)
    return text.replace("::\n\n", ":\n\n")


def _text(annotation: Any) -> str:
    if annotation == ArrayLike:
        return "ArrayLike"
    return inspect.formatannotation(annotation).replace("jax.Array", "Array")


def _parameter(shown: inspect.Parameter) -> griffe.Parameter:
    default = None if shown.default is shown.empty else repr(shown.default)
    kind = griffe.ParameterKind(str(shown.kind.description))
    return griffe.Parameter(
        shown.name, annotation=_text(shown.annotation), kind=kind, default=default
    )


class Docstrings(griffe.Extension):
    """Turns docstrings into Markdown; gives decorated functions the signature that they have."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """The docstring as Markdown."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)

    def on_function_instance(self, *, func: griffe.Function, **kwargs: object) -> None:
        """The parameters that a decorator gave a function."""
        if not func.decorators or func.parent is None or not func.parent.is_module:
            return
        signature = inspect.signature(getattr(importlib.import_module(func.parent.path), func.name))
        func.parameters = griffe.Parameters(*map(_parameter, signature.parameters.values()))
        func.returns = _text(signature.return_annotation)
