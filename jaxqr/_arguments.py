"""What all public functions do to their arguments: check, promote, and say what is wrong."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike


def as_matrices(caller: str, name: str, value: ArrayLike) -> Array:
    """The argument as an array (..., m, n)."""
    array = as_array(caller, name, value)
    if array.ndim < 2:
        raise ValueError(
            f"{caller} expects {name} to be a matrix or a batch of matrices, of shape "
            f"(..., m, n). Got shape {array.shape}."
        )
    return array


def as_array(caller: str, name: str, value: ArrayLike) -> Array:
    """The argument as a numerical array."""
    if isinstance(value, Array):  # jnp.asarray would make the residuals a copy of it
        return value
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        kind = type(value).__name__
        raise TypeError(
            f"{caller} expects {name} to be an array of numbers. Got {kind}. {error}"
        ) from error


def one_of(caller: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless the value is one of the choices."""
    if value not in choices:
        listed = ", ".join(repr(c) for c in choices)
        raise ValueError(f"{caller} expects {name} to be one of {listed}. Got {value!r}.")


def compute_dtype(dtype: DTypeLike) -> Any:
    """The type in which a matrix of this type is factored.

    Itself for float32, float64, complex64 and complex128; float32 for smaller floats; what
    ``jnp.linalg`` takes for integers and booleans.
    """
    dtype = jnp.dtype(dtype)
    if jnp.issubdtype(dtype, jnp.inexact):
        return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
    return jnp.dtype(jnp.float64 if dtype.itemsize == 8 else jnp.float32)


def result_dtype(dtype: DTypeLike) -> Any:
    """The type in which factors are returned."""
    return dtype if jnp.issubdtype(dtype, jnp.inexact) else compute_dtype(dtype)
