"""QR of a matrix whose rows are on many devices."""

import functools
from typing import Any

import jax
from jax import Array
from jax.typing import ArrayLike

from jaxqr._arguments import as_matrices, compute_dtype, flags, result_dtype
from jaxqr._linalg.phases import with_positive_diagonal
from jaxqr._linalg.products import matmul
from jaxqr._qr import qr
from jaxqr.distributed import _rules
from jaxqr.distributed._arguments import check, varying
from jaxqr.distributed._reduction import AxisName, Reduction, reduce


def tsqr(
    a: ArrayLike,
    axis_name: AxisName,
    *,
    positive_diagonal: bool = False,
    reduction: Reduction = "auto",
) -> tuple[Array, Array]:
    """A = Q R inside ``jax.shard_map``, of a deep A whose rows are on the devices of an axis.

    Args:
        a: (..., m_local, n), the rows that this device has: one or more, as many on each, and
            m >= n in all. Of any type that :func:`jaxqr.qr` takes.
        axis_name: the mesh axis over which the rows are laid out, in the order of its devices; or
            a tuple of several.
        positive_diagonal: as in :func:`jaxqr.qr`.
        reduction: how the devices' triangles become one. "tree": in ceil(log2 P) rounds of one
            n x n triangle; "gather": all at once. After either, one round makes R the same
            everywhere. "auto": by a cost model (:mod:`jaxqr.distributed`).

    Returns:
        ``(q, r)``: q (..., m_local, n), this device's rows of Q, and r (..., n, n), to the last
        bit the same on all devices of the axis, and typed so.

    Raises:
        ValueError: a has fewer than two axes or no rows; m < n in all; the axis is not one of the
            ``shard_map`` around; an unknown reduction.
        TypeError: a is not an array of numbers; positive_diagonal is not True or False.

    Both modes of differentiation work, to any order; there is no ``forward_mode`` to be chosen. A
    derivative takes one sum of n x n matrices over the devices. It exists where A has full column
    rank. What value and derivative cost: :mod:`jaxqr.distributed`.

    >>> import jax, jax.numpy as jnp, jaxqr.distributed, numpy as np
    >>> from jax.sharding import NamedSharding, PartitionSpec as P
    >>> mesh = jax.make_mesh((len(jax.devices()),), ("rows",))
    >>> by_rows = NamedSharding(mesh, P("rows"))
    >>> a = jax.device_put(jnp.arange(1.0, 17.0).reshape(8, 2) ** 2, by_rows)
    >>> def factors(a):
    ...     return jaxqr.distributed.tsqr(a, "rows", positive_diagonal=True)
    >>> sharded = jax.shard_map(factors, mesh=mesh, in_specs=P("rows"), out_specs=(P("rows"), P()))
    >>> q, r = jax.jit(sharded)(a)
    >>> print(np.asarray(r).round(3))
    [[321.708 374.352]
     [  0.     14.581]]
    >>> bool(jnp.allclose(q @ r, a, rtol=1e-4))
    True
    """
    a = as_matrices("tsqr", "a", a)
    flags("tsqr", positive_diagonal=positive_diagonal)
    check("tsqr", a, axis_name, reduction)
    q, r = _tsqr(
        varying(a.astype(compute_dtype(a.dtype)), axis_name),
        axis_name,
        reduction,
        positive_diagonal,
    )
    return q.astype(result_dtype(a.dtype)), r.astype(result_dtype(a.dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _tsqr(
    a: Array, axis_name: AxisName, reduction: str, positive_diagonal: bool
) -> tuple[Array, Array]:
    q, r = qr(a)
    w, r = reduce(r, axis_name, reduction)
    q = q if w is None else matmul(q, w)
    if positive_diagonal:
        q, r = with_positive_diagonal(q, r)
    return q, r


@_tsqr.defjvp
def _tsqr_jvp(
    axis_name: AxisName, reduction: str, positive_diagonal: bool, primals: Any, tangents: Any
) -> Any:
    q, r = _tsqr(*primals, axis_name, reduction, positive_diagonal)
    (da,) = tangents
    return (q, r), _rules.pushforward(q, r, da, axis_name)
