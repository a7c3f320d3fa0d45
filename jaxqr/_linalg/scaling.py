"""Powers of two that bring numbers near one: what is multiplied by them keeps its digits.

Products of several factors of a matrix leave the range of the type long before the matrix does:
squares of 1e20 do in float32. So factors are measured in units of their own size, column by column
where a factorization commutes with the scaling of columns, and results are brought back at the end.
"""

import functools

import jax.numpy as jnp
from jax import Array, lax

from jaxqr._linalg.layouts import materialized


def unit(largest: Array) -> Array:
    """The power of two next to a magnitude, real; 1 for what is zero or not finite.

    Its inverse is a power of two in the type's range as well.
    """
    largest = lax.stop_gradient(largest)
    limits = jnp.finfo(largest.dtype)
    rounded = lax.reduce_precision(largest, limits.nexp, 0)
    within = jnp.clip(rounded, float(limits.tiny), 1 / float(limits.tiny))
    usable = (largest > 0) & (largest < jnp.inf)
    return jnp.where(usable, within, jnp.ones_like(within))


def column_units(x: Array) -> Array:
    """The units (n[, batch]) of the columns of x (m, n[, batch])."""
    sizes = magnitudes(x)
    if x.ndim == 2:
        return unit(jnp.max(sizes, axis=0, initial=0))
    # Written out: XLA would have what it reduces in memory.
    return unit(functools.reduce(jnp.maximum, sizes))


def units_of_columns(x: Array) -> Array:
    """The units (..., 1, n) of the columns of matrices x (..., m, n), in the type of x."""
    return unit(largest_of_columns(x)).astype(x.dtype)


def units_at_the_ends(x: Array) -> Array:
    """The units (..., 1, n) of columns near the ends of the type's range; of all others 1.

    There LAPACK loses digits: XLA's threads flush subnormal numbers, and complex columns overflow
    before their norms do.
    """
    largest = largest_of_columns(x)
    low, high = _ends(x)
    within = (largest > low) & (largest < high)
    units = jnp.where(within, jnp.ones_like(largest), unit(largest)).astype(x.dtype)
    # XLA would find them anew for each element that it multiplies with them.
    return materialized(units)


def unit_at_the_ends(x: Array) -> Array:
    """One unit (..., 1, 1) for all columns likewise, where their sizes among each other count.

    In it the largest is as large as may be, so that the smallest one has room.
    """
    largest = largest_of_columns(x)
    low, high = _ends(x)
    most = jnp.max(largest, axis=-1, keepdims=True, initial=0)
    least = jnp.min(largest, axis=-1, keepdims=True, initial=high, where=largest > 0)
    within = (low < least) & (most < high) | ~(most < jnp.inf)
    largest_unit = jnp.maximum(unit(most) / high, float(jnp.finfo(x.dtype).tiny))
    unit_of_all = jnp.where(within, 1, unit(largest_unit)).astype(x.dtype)
    return materialized(unit_of_all)


def _ends(x: Array) -> tuple[float, float]:
    """Between which sizes of columns LAPACK keeps all digits."""
    limits = jnp.finfo(x.dtype)
    return float(limits.tiny / limits.eps**1.5), float(limits.max * limits.eps)


def largest_of_columns(x: Array) -> Array:
    """The largest magnitudes (..., 1, n) in the columns of x (..., m, n).

    Of real x without |x|, for which XLA would copy a transpose.
    """
    if jnp.iscomplexobj(x):
        return jnp.max(magnitudes(x), axis=-2, keepdims=True, initial=0)
    most, least = (f(x, axis=-2, keepdims=True, initial=0) for f in (jnp.max, jnp.min))
    return jnp.maximum(most, -least)


SPREAD = 2.0**8
"""Of the sizes of rows: up to that, times eps, rounding of the largest may be in a small one."""


def largest_of_rows(x: Array) -> Array:
    """The largest magnitudes (..., m, 1) in the rows of x (..., m, n)."""
    return jnp.max(magnitudes(x), axis=-1, keepdims=True, initial=0)


def row_units(x: Array) -> Array:
    """The units (..., m, 1) of the rows of x (..., m, n), by the one in the middle.

    1 where rows are of one size: then results are as without units.
    """
    largest = largest_of_rows(x)
    most = jnp.max(largest, axis=-2, keepdims=True, initial=0)
    least = jnp.min(largest, axis=-2, keepdims=True, initial=jnp.inf, where=largest > 0)
    spread = (most > SPREAD * least) & (most < jnp.inf) & (largest > 0)
    units = unit(largest) / unit(jnp.sqrt(most) * jnp.sqrt(least))
    return jnp.where(spread, units, 1).astype(x.dtype)


def divided(x: Array, d: Array) -> Array:
    """X / D for real numbers d in the type of x: a complex division is many times as slow."""
    if not jnp.iscomplexobj(x):
        return x / d
    return lax.complex(x.real / d.real, x.imag / d.real)


def magnitudes(x: Array) -> Array:
    """Of the size of |x|, within a factor of two, without its squares."""
    return jnp.maximum(jnp.abs(x.real), jnp.abs(x.imag)) if jnp.iscomplexobj(x) else jnp.abs(x)


def any_extreme(units: Array) -> Array:
    """Whether the square of one of them (..., 1, n) may leave the range of the type: (...,)."""
    far = 2.0 ** (jnp.finfo(units.dtype).maxexp // 4)
    size = magnitudes(lax.stop_gradient(units))
    return jnp.any((size > far) | (size < 1 / far), axis=(-2, -1))
