"""What the functions of this package do to their arguments."""

from collections.abc import Hashable

import jax.numpy as jnp
from jax import Array, lax

from jaxqr._arguments import one_of
from jaxqr.distributed._reduction import REDUCTIONS, AxisName


def names_of(axis_name: AxisName) -> tuple[str, ...]:
    """The axes as a tuple."""
    return axis_name if isinstance(axis_name, tuple) else (axis_name,)


def check_axes(caller: str, argument: str, axes: tuple[str, ...]) -> None:
    """Raises an error if one of the axes is there twice, or is no name."""
    if not all(isinstance(axis, Hashable) for axis in axes):
        raise TypeError(
            f"{caller} expects {argument} to be the name of an axis or a tuple of such names. "
            f"Got {axes if len(axes) > 1 else axes[0]}."
        )
    if len(set(axes)) < len(axes):
        raise ValueError(f"{caller} expects {argument} to name different axes. Got {axes}.")


def check(caller: str, a: Array, axis_name: AxisName, reduction: str) -> None:
    """Raises ValueError unless a, the rows of one of the axis's devices, is part of a deep A."""
    one_of(caller, "reduction", reduction, REDUCTIONS)
    check_axes(caller, "axis_name", names_of(axis_name))
    try:
        devices = lax.axis_size(axis_name)
    except (NameError, ValueError):  # no axis of that name, or a number
        raise ValueError(
            f"{caller} expects axis_name to be an axis of the jax.shard_map around it. "
            f"Got {axis_name!r}."
        ) from None
    rows, columns = a.shape[-2:]
    if devices * rows < columns:
        raise ValueError(
            f"{caller} expects at least as many rows as columns. Got {devices} devices with "
            f"{rows} rows each, {devices * rows} in all, of {columns} columns."
        )
    if not rows:
        raise ValueError(f"{caller} expects each device to have rows. Got shape {a.shape}.")


def varying(x: Array, axis_name: AxisName) -> Array:
    """X, typed as different on each device of the axis."""
    return jnp.where(lax.axis_index(axis_name) >= 0, x, x)
