"""Forward computations and their derivative rules, made differentiable functions of JAX.

* :mod:`~jaxqr._autodiff.wiring`: custom derivatives, and the primitives that they are made of;
* :mod:`~jaxqr._autodiff.series`: the Taylor coefficients of these, for ``jax.experimental.jet``.
"""

from jaxqr._autodiff.series import NO_TAYLOR
from jaxqr._autodiff.wiring import (
    Arrays,
    MaybeArrays,
    Wiring,
    constant,
    differentiated,
    linear,
    none_for_zero,
    or_zeros,
    reverse_mode,
    varying_alike,
    watching_cotangents,
    with_more_columns,
)

__all__ = [
    "NO_TAYLOR",
    "Arrays",
    "MaybeArrays",
    "Wiring",
    "constant",
    "differentiated",
    "linear",
    "none_for_zero",
    "or_zeros",
    "reverse_mode",
    "varying_alike",
    "watching_cotangents",
    "with_more_columns",
]
