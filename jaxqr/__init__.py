"""Differentiable orthogonal factorizations and least squares for JAX."""

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
