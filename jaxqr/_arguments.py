"""What all public functions do to their arguments: check, promote, and say what is wrong."""

import functools
import inspect
import math
import numbers
import sys
from collections.abc import Callable
from typing import Any, Literal, TypedDict, TypeVar, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import checkify
from jax.typing import ArrayLike, DTypeLike

from jaxqr._linalg.dependence import first_dependent

Method = Literal["auto", "householder", "batched", "cholesky"]
F = TypeVar("F", bound=Callable[..., Any])


class Options(TypedDict, total=False):
    """The keywords that all factorizations share."""

    forward_mode: bool
    positive_diagonal: bool
    check_rank: bool


def by_name(f: F) -> F:
    """F, which says what may be given by name, and how to write what may be given so alone."""
    parameters = inspect.signature(f).parameters
    first = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    then = next(p for p in parameters.values() if p.kind is p.KEYWORD_ONLY)
    possible = _possible(then.annotation)

    @functools.wraps(f)
    def checked(*args: Any, **options: Any) -> Any:
        if len(args) > len(first):
            value = args[len(first)]
            shown = repr(value) if _may_be(value, possible) else "..."
            raise TypeError(
                f"{f.__name__} takes only {', '.join(first)} by position, and all else by name, "
                f"as in {f.__name__}({', '.join(first)}, {then.name}={shown}). Got {len(args)} "
                "arguments by position."
            )
        for name in options:
            if name not in parameters:
                pivots = " jaxqr.pivoted_qr has column pivots." if name == "pivoting" else ""
                known = ", ".join(parameters)
                raise TypeError(f"{f.__name__} has no argument {name}: it takes {known}.{pivots}")
        return f(*args, **options)

    return checked  # type: ignore[return-value]


def _possible(annotation: Any) -> set[Any]:
    """The strings and the types that an argument may be."""
    args = get_args(annotation)
    if get_origin(annotation) is Literal:
        return set(args)
    return set().union(*map(_possible, args)) if args else {annotation}


def _may_be(value: Any, possible: set[Any]) -> bool:
    """Whether a string, a bool or a number, of which all are in 0..1, may be the argument."""
    if isinstance(value, str):
        return value in possible
    if isinstance(value, bool):
        return bool in possible and float not in possible
    return isinstance(value, int | float) and float in possible and 0 <= value <= 1


def as_matrices(caller: str, name: str, value: ArrayLike, *, sharded: bool = False) -> Array:
    """The argument as an array (..., m, n), each matrix whole on a device unless ``sharded``."""
    array = as_array(caller, name, value)
    if array.ndim < 2:
        raise ValueError(
            f"{caller} expects {name} to be a matrix or a batch of matrices, of shape "
            f"(..., m, n). Got shape {array.shape}."
        )
    if not sharded:
        not_sharded(caller, name, array, -2, -1)
    return array


def not_sharded(caller: str, name: str, array: Array, *axes: int) -> None:
    """Refuse an array of which one of these axes is sharded, as far as its type tells."""
    spec = jax.typeof(array).sharding.spec
    if any(spec[axis] is not None for axis in axes):
        raise TypeError(
            f"{caller} expects {name} to be sharded along batch axes alone. Got shape "
            f"{array.shape}, sharded as {spec}: jaxqr.distributed has QR, LQ and least squares of "
            "a matrix that is on many devices, and jax.sharding.reshard gives each the whole of it."
        )


def as_array(caller: str, name: str, value: ArrayLike) -> Array:
    """The argument as a numerical array."""
    expected = f"{caller} expects {name} to be an array of numbers. Got"
    if isinstance(value, Array | np.ndarray):
        why_not = _refusal(value.dtype)
        if why_not is not None:
            raise TypeError(f"{expected} type {value.dtype}{why_not.format(name=name)}")
    if isinstance(value, Array):  # jnp.asarray would make the residuals a copy of it
        return value
    kind = type(value).__name__
    for dense in ("toarray", "todense"):  # SciPy's and JAX's own
        if hasattr(value, dense):
            raise TypeError(
                f"{expected} {kind}, which is sparse: {name}.{dense}() makes an array of it."
            )
    if np.ma.isMA(value):
        raise TypeError(
            f"{expected} {kind}, whose mask would be lost: {name}.filled(...) makes numbers of "
            "what is masked."
        )
    if kind in ("list", "tuple") and any(map(np.ma.isMA, jax.tree.leaves(value))):
        raise TypeError(
            f"{expected} {kind} of masked arrays, whose masks would be lost: x.filled(...) of each "
            "makes numbers of what is masked."
        )
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        why = str(error).rstrip(".")
        raise TypeError(f"{expected} {kind}. {why}.{_way_out(name, value)}") from error


def _way_out(name: str, value: Any) -> str:
    """What makes floats of integers that are too large, of fractions and decimals, and of text."""
    try:
        np.asarray(value, float)
        if any(x is None for x in np.asarray(value, object).flat):  # NaN, which are no numbers
            return ""
    except (TypeError, ValueError, OverflowError):
        return ""
    return f" np.asarray({name}, float) makes numbers of what stands for some."


@functools.cache
def _refusal(dtype: Any) -> str | None:
    """Why arrays of this type are not taken, and what serves; None where they are."""
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        return ": random keys are no numbers; jax.random.normal and others make some."
    if len(dtype.names or ()) > 1:
        to_numbers = "numpy.lib.recfunctions.structured_to_unstructured({name})"
        return f", which has fields: {to_numbers} makes numbers of them."
    if dtype.kind in "mMOSU" or not (dtype.kind == "b" or jnp.issubdtype(dtype, jnp.number)):
        return "; {name}.astype(float) makes numbers of it, where its elements stand for some."
    if not dtype.isnative:
        native = dtype.newbyteorder("=").name
        return f', whose byte order JAX does not have: {{name}}.astype("{native}") serves.'
    if dtype in (np.longdouble, np.clongdouble) and dtype not in (np.double, np.cdouble):
        largest = "complex128" if dtype.kind == "c" else "float64"
        return f', which JAX does not have: {{name}}.astype("{largest}") serves.'
    if jnp.issubdtype(dtype, jnp.floating) and float(jnp.finfo(dtype).min) >= 0:
        return ", which has no zero and no sign: {name}.astype(jnp.float32) serves."
    return None


def nonnegative(
    caller: str,
    name: str,
    value: ArrayLike | None,
    *,
    most: float = np.inf,
    number: bool = False,
    positive: bool = False,
    scalar: bool = False,
) -> Array:
    """A real number that is in 0..most, as far as can be told when it is traced.

    With ``number`` it is not NaN, and with ``positive`` neither that nor 0. With ``scalar`` it has
    no axes.
    """
    if value is None:
        expected = "positive" if positive else "a number, 0.0 for none"
        raise TypeError(f"{caller} expects {name} to be {expected}. Got None.")
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{caller} expects {name} to be a number. Got {value}.")
    if isinstance(value, int):
        largest = math.inf if value > 0 else -math.inf
        value = float(value) if abs(value) <= sys.float_info.max else largest
    if isinstance(value, np.integer | np.ndarray) and value.dtype.kind in "iu":
        value = value.astype(np.float64)  # JAX may have no more than 32 bits of it
    array = as_array(caller, name, value)
    if jnp.iscomplexobj(array):
        raise TypeError(f"{caller} expects {name} to be real. Got {array.dtype}.")
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
        known = np.asarray(value)
        for is_wrong, expected in (
            ((known < 0).any(), "not to be negative"),
            (number and np.isnan(known).any(), "to be a number"),
            (positive and not (known > 0).all(), "to be positive"),
            (most < np.inf and not (known <= most).all(), f"to be in 0..{most}"),
        ):
            if is_wrong:
                raise ValueError(f"{caller} expects {name} {expected}. Got {value}.")
    if scalar and array.ndim:
        raise ValueError(f"{caller} expects {name} to be a scalar. Got shape {array.shape}.")
    return array


def is_number_zero(value: Any) -> bool:
    """Whether it is the number 0, known when it is traced."""
    return isinstance(value, numbers.Real) and value == 0


def ridge_of(caller: str, ridge: Any) -> Array | None:
    """The ridge as an array; None where it is the number 0, which costs nothing."""
    return None if is_number_zero(ridge) else nonnegative(caller, "ridge", ridge, number=True)


def batch_of(caller: str, got: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The batch axes to which these broadcast; ``got`` says of which arguments they are."""
    try:
        return jnp.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(
            f"{caller} expects batch axes that broadcast against each other. {got}"
        ) from None


def one_of(caller: str, name: str, value: Any, choices: tuple[str, ...], *others: str) -> None:
    """Raises ValueError unless the value is one of the choices; what is no string is in others."""
    if not (isinstance(value, str) and value in choices):
        listed = ", ".join([*map(repr, choices), *others])
        raise ValueError(f"{caller} expects {name} to be one of {listed}. Got {value!r}.")


# Modes that other libraries have, and what serves here.
_ELSEWHERE = {
    "economic": 'scipy.linalg.qr\'s "economic" is "reduced" here.',
    "full": 'scipy.linalg.qr\'s "full" is "complete" here.',
    "raw": 'Reflectors are what jnp.linalg.qr(a, mode="raw") gives, without a derivative.',
}


def known_mode(caller: str, mode: Any, triangle: str) -> None:
    """Raises ValueError unless it is a mode of a factorization whose triangle is named so."""
    try:
        one_of(caller, "mode", mode, ("reduced", "complete", triangle))
    except ValueError as error:
        if not (isinstance(mode, str) and mode in _ELSEWHERE):
            raise
        raise ValueError(f"{error} {_ELSEWHERE[mode]}") from None


def flags(caller: str, **values: Any) -> None:
    """Raises TypeError unless each is True or False."""
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(
                f"{caller} expects {name} to be True or False, known when it is traced. "
                f"Got {value!r}."
            )


def promoted(caller: str, **arrays: Array) -> Any:
    """The type that those of two arrays promote to, though they be strict about it elsewhere."""
    with jax.numpy_dtype_promotion("standard"):
        try:
            return jnp.result_type(*arrays.values())
        except ValueError:  # of floats of 8 bits
            (first, x), (second, y) = arrays.items()
            raise TypeError(
                f"{caller} expects {first} and {second} to be of types that promote to one. Got "
                f"{x.dtype} and {y.dtype}, which do not: {first}.astype({second}.dtype) "
                "serves, or the other way round."
            ) from None


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
    return first_dependent(r.astype(compute_dtype(r.dtype)))


def require_rank(
    caller: str, lines: tuple[str, str], a: Array, found: tuple[Array, ...], hint: str = ""
) -> None:
    """A checkify check that a has not lost rank: whether, in which matrix and line was found.

    ``lines`` says what a line is, a row or a column, and which ones it depends on.
    """
    (line, others), (lost, matrix, at) = lines, found
    where = f"{line} {{at}}" + (" of matrix {matrix} of the batch" if a.ndim > 2 else "")
    checkify.check(
        ~lost,
        f"{caller} expects a to have full rank, for its derivative to exist. Rank is lost at "
        f"{where}, which depends on the {line}s {others}.{hint}",
        at=at,
        matrix=matrix,
    )
