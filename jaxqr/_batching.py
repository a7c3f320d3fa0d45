"""Batches: seeing them through vmap, and many small matrices with the batch axis innermost.

A loop over the batch inside LAPACK, or inside a batched product, spends its time on calls. With the
batch axis innermost, what is done to one number of one matrix is done to the same number of all of
them by vector instructions; and as it is elementwise along the batch, a sharded batch stays where
it is.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

# Measured on a CPU (bench/results, suite shapes): unrolling gains up to eight columns, and costs
# seconds of compile time beyond sixteen.
LEAST_BATCH = 64
MOST_COLUMNS = 8
MOST_ROWS = 32


def suits(*arrays: Any) -> bool:
    """Whether these arrays (..., rows, columns) are many small matrices."""
    return all(
        math.prod(x.shape[:-2]) >= LEAST_BATCH
        and max(x.shape[-2:]) <= MOST_ROWS
        and 0 < min(x.shape[-2:]) <= MOST_COLUMNS
        for x in jax.tree.leaves(arrays)
    )


def innermost(x: Array) -> Array:
    """(..., rows, columns) as (rows, columns, batch)."""
    return jnp.moveaxis(x.reshape(-1, *x.shape[-2:]), 0, -1)


def batch_innermost(f: Callable[..., Any]) -> Callable[..., Any]:
    """F, a function of matrices, mapped over leading axes that all arguments share."""

    def mapped(*args: Any) -> Any:
        batch = jax.tree.leaves(args)[0].shape[:-2]
        out = jax.vmap(f, in_axes=-1, out_axes=-1)(*jax.tree.map(innermost, args))
        return jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0).reshape(*batch, *x.shape[:-1]), out)

    return mapped


def batch_aware(f: Callable[..., Any]) -> Callable[..., Any]:
    """F, which maps over leading axes by itself, told by them of the batch that vmap adds.

    Where vmap maps all arrays, ``f`` gets the new axis as a leading one, and can choose its
    algorithm by the size of the batch; where it maps some, it maps ``f`` as usual. Derivatives are
    those of ``f`` as written: ``jax.custom_batching.custom_vmap`` has none of its own in reverse.
    """

    @jax.custom_batching.custom_vmap
    def mapped(*args: Any) -> Any:
        return f(*args)

    @mapped.def_vmap
    def rule(axis_size: int, in_batched: Any, *args: Any) -> tuple[Any, Any]:
        if all(jax.tree.leaves(in_batched)):
            out = mapped(*args)
        else:
            axes = jax.tree.map(lambda batched: 0 if batched else None, tuple(in_batched))
            out = jax.vmap(f, in_axes=axes, axis_size=axis_size)(*args)
        return out, jax.tree.map(lambda _: True, out)

    @jax.custom_jvp
    def wrapped(*args: Any) -> Any:
        return mapped(*args)

    @wrapped.defjvp
    def jvp(primals: Any, tangents: Any) -> Any:
        return jax.jvp(f, primals, tangents)

    return wrapped


def small_or_large(f: Callable[..., Any]) -> Callable[..., Any]:
    """F, which maps over leading axes, with the batch axis innermost for many small matrices.

    f itself is right for one matrix; its products and solves write themselves out where that is
    tiny (see :mod:`jaxqr._forward.triangular`).
    """

    def by_batch(*args: Any) -> Any:
        if not suits(*args):
            return f(*args)
        return lax.platform_dependent(*args, cpu=batch_innermost(f), default=f)

    return batch_aware(by_batch)
