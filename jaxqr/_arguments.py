"""What all public functions do to their arguments: check, promote, and say what is wrong."""

import numbers
from typing import Any, Literal, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import checkify
from jax.typing import ArrayLike, DTypeLike

from jaxqr._linalg.dependence import first_dependent

Method = Literal["auto", "householder", "batched", "cholesky"]


class Options(TypedDict, total=False):
    """The keywords that all factorizations share."""

    forward_mode: bool
    positive_diagonal: bool
    check_rank: bool
    method: Method


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


def level(caller: str, name: str, value: ArrayLike) -> Array:
    """A real number that is not negative, as far as can be told when it is traced."""
    array = as_array(caller, name, value)
    if jnp.iscomplexobj(array):
        raise TypeError(f"{caller} expects {name} to be real. Got {array.dtype}.")
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))
    if not traced and (np.asarray(value) < 0).any():
        raise ValueError(f"{caller} expects {name} not to be negative. Got {value}.")
    return array


def is_number_zero(value: Any) -> bool:
    """Whether it is the number 0, known when it is traced."""
    return isinstance(value, numbers.Real) and value == 0


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


def first_lost_rank(r: Array) -> tuple[Array, Array, Array]:
    """Whether R (..., k, n) has lost rank anywhere; the first matrix and column where it has."""
    return first_dependent(jax.lax.stop_gradient(r).astype(compute_dtype(r.dtype)))


def require_rank(
    caller: str, line: str, a: Array, lost: Array, matrix: Array, at: Array, hint: str = ""
) -> None:
    """A checkify check that a has not lost rank at its line (row or column) ``at``."""
    where = f"{line} {{at}}" + (" of matrix {matrix} of the batch" if a.ndim > 2 else "")
    checkify.check(
        ~lost,
        f"{caller} expects a to have full rank, for its derivative to exist. Rank is lost at "
        f"{where}, which depends on the {line}s before it.{hint}",
        at=at,
        matrix=matrix,
    )
