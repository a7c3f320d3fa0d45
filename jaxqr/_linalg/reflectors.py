"""Householder reflectors, as LAPACK's larfg makes them."""

from typing import Any

import jax.numpy as jnp
from jax import Array


def reflector(x: Array, j: Any, row: Any) -> tuple[Array, Array, Array]:
    """V, tau and beta with (I - conj(tau) v v^H) x = beta e_j below row j of x (m,); beta is real.

    v is 1 in row j and 0 above; tau = 0 where there is nothing to do. ``row`` is 0, 1, ..., m - 1.
    """
    below = jnp.where(row > j, x, 0)
    tau, beta, scale = scalars(x[j], jnp.sum(abs2(below)))
    return jnp.where(row == j, 1, below * scale), tau, beta


def scalars(alpha: Array, rest: Array) -> tuple[Array, Array, Array]:
    """Tau, beta, and what the elements below alpha times it are in v; rest is their |.|^2's sum.

    A column of magnitude one of which so little is left that squares underflow stays as it is:
    with an inexact norm the reflector would not be unitary, and what is left is far below rounding.
    """
    square = abs2(alpha) + rest
    norm = jnp.sqrt(square)
    beta = jnp.where(alpha.real >= 0, -norm, norm)
    limits = jnp.finfo(square.dtype)
    nothing = ((rest == 0) & (alpha.imag == 0)) | (square < limits.tiny / limits.eps**2)
    beta = jnp.where(nothing, alpha.real, beta)
    to = beta.astype(alpha.dtype)
    tau = jnp.where(nothing, 0, (to - alpha) / jnp.where(nothing, 1, to))
    return tau, beta, jnp.where(nothing, 0, 1 / jnp.where(nothing, 1, alpha - to))


def abs2(x: Array) -> Array:
    """|x|^2, real."""
    return jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else jnp.square(x)


def magnitude(largest: Array) -> Array:
    """What to divide columns by, given their largest magnitudes: by 1 where all is zero.

    Q does not change with the scale of a column, R's column does; and no square overflows.
    """
    return jnp.where(largest == 0, 1, largest)
