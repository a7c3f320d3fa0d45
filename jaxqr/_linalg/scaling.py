"""Powers of two that bring numbers near one: what is multiplied by them keeps its digits.

Products of several factors of a matrix leave the range of the type long before the matrix does:
squares of 1e20 do in float32. So factors are measured in units of their own size, column by column
where a factorization commutes with the scaling of columns, and results are brought back at the end.
"""

import jax.numpy as jnp
from jax import Array, lax

from jaxqr._linalg.batching import over_matrices


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
    return unit(jnp.max(magnitudes(x), axis=0, initial=0))


def units_of_columns(x: Array) -> Array:
    """The units (..., 1, n) of the columns of matrices x (..., m, n), in the type of x."""
    largest = jnp.max(magnitudes(x), axis=-2, keepdims=True, initial=0)
    return unit(largest).astype(x.dtype)


def magnitudes(x: Array) -> Array:
    """Of the size of |x|, within a factor of two, without its squares."""
    return jnp.maximum(jnp.abs(x.real), jnp.abs(x.imag)) if jnp.iscomplexobj(x) else jnp.abs(x)


def is_extreme(r: Array) -> Array:
    """Whether products of two factors of a matrix as large as r (..., k, n) may leave the range.

    That is (...,); what is not finite is not extreme.
    """
    extreme: Array = over_matrices(_extreme)(lax.stop_gradient(r))
    return extreme[..., 0, 0]


def _extreme(r: Array) -> Array:
    """Of r (k, n[, batch]), (1, 1[, batch])."""
    largest = jnp.max(magnitudes(r), axis=0, keepdims=True, initial=0)
    far = 2.0 ** (jnp.finfo(largest.dtype).maxexp // 4)
    of_column = (largest > far) | ((largest < 1 / far) & (largest > 0))
    return jnp.any(of_column & (largest < jnp.inf), axis=1, keepdims=True)
