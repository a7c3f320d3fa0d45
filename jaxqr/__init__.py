"""Differentiable orthogonal factorizations and least squares for JAX."""

import importlib
from types import ModuleType

from jaxqr import distributed, upstream
from jaxqr._determinant import slogdet
from jaxqr._lq import lq, ql, rq
from jaxqr._lstsq import lstsq
from jaxqr._multiply import qr_multiply
from jaxqr._pivoted import pivoted_qr
from jaxqr._qr import qr
from jaxqr._random_pivots import log_probability
from jaxqr._schur import qz, schur

__all__ = [
    "distributed",
    "log_probability",
    "lq",
    "lstsq",
    "pivoted_qr",
    "ql",
    "qr",
    "qr_multiply",
    "qz",
    "rq",
    "schur",
    "slogdet",
    "upstream",
]
__version__ = "0.2.0"


def __getattr__(name: str) -> ModuleType:
    """``jaxqr.lineax``, which is imported when it is asked for: it needs lineax."""
    if name != "lineax":
        raise AttributeError(f"module 'jaxqr' has no attribute {name!r}")
    try:
        return importlib.import_module("jaxqr.lineax")
    except ImportError as error:
        raise AttributeError(f"jaxqr.lineax needs lineax: {error}") from error
