"""The same for the whole array and a mesh: the ``shard_map`` is done here."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from jax import Array
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, reshard
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from jaxqr._arguments import as_array, as_matrices, flags, one_of, ridge_of
from jaxqr.distributed._arguments import check_axes, names_of
from jaxqr.distributed._lstsq import lstsq
from jaxqr.distributed._reduction import REDUCTIONS, AxisName, Reduction
from jaxqr.distributed._tsqr import tsqr


def sharded_qr(
    a: ArrayLike,
    mesh: Mesh | AbstractMesh,
    row_axes: AxisName,
    *,
    batch_axes: AxisName = (),
    positive_diagonal: bool = False,
    reduction: Reduction = "auto",
) -> tuple[Array, Array]:
    """A = Q R of a deep A sharded by rows.

    Args:
        a: (..., m, n) with m >= n, sharded by rows; if it is not, it will be.
        mesh: a mesh of devices.
        row_axes: the axis of the mesh that shards the rows, or a tuple of several. The number of
            their devices divides m.
        batch_axes: likewise the axes that shard the first batch axis, if any.
        positive_diagonal, reduction: as in :func:`jaxqr.distributed.tsqr`.

    Returns:
        ``(q, r)``: q (..., m, n) sharded as a is, r (..., n, n) replicated over ``row_axes``.

    Raises:
        ValueError: an axis that the mesh has not, or one named twice; rows or a batch that do not
            divide; no rows; m < n; an unknown reduction.
        TypeError: a is not an array of numbers; mesh is no mesh; axes are no names.

    Differentiable, at the cost of :func:`jaxqr.distributed.tsqr`. Wrap the gradient in ``jax.jit``:
    without, JAX refuses what is made of q and r on a mesh of explicit axes, as ``jax.make_mesh``
    gives one ("Length of device assignment 1"), but inside ``with jax.set_mesh(mesh)``.

    >>> import jax, jax.numpy as jnp, jaxqr.distributed
    >>> mesh = jax.make_mesh((len(jax.devices()),), ("rows",))
    >>> a = jnp.arange(1.0, 17.0).reshape(8, 2) ** 2
    >>> q, r = jaxqr.distributed.sharded_qr(a, mesh, "rows")
    >>> q.shape, r.shape, bool(jnp.allclose(q @ r, a, rtol=1e-4))
    ((8, 2), (2, 2), True)
    >>> loss = lambda a: jnp.sum(jaxqr.distributed.sharded_qr(a, mesh, "rows")[1])
    >>> jax.jit(jax.grad(loss))(a).shape
    (8, 2)
    """
    a = as_matrices("sharded_qr", "a", a, sharded=True)
    flags("sharded_qr", positive_diagonal=positive_diagonal)
    _check("sharded_qr", a.shape, mesh, row_axes, batch_axes, reduction, ("rows", "columns"))
    a = _moved(a, mesh, _spec(a.ndim - 2, batch_axes, row_axes))
    factors: tuple[Array, Array] = _qr(a, mesh, row_axes, batch_axes, positive_diagonal, reduction)
    return factors


def sharded_lq(
    a: ArrayLike,
    mesh: Mesh | AbstractMesh,
    column_axes: AxisName,
    *,
    batch_axes: AxisName = (),
    positive_diagonal: bool = False,
    reduction: Reduction = "auto",
) -> tuple[Array, Array]:
    """A = L Q of a wide A sharded by columns: :func:`sharded_qr` of the transpose, transposed.

    Args:
        a: (..., m, n) with m <= n, sharded by columns.
        column_axes: the axes of the mesh that shard the columns.
        mesh, batch_axes, positive_diagonal, reduction: as in :func:`sharded_qr`.

    Returns:
        ``(l, q)``: l (..., m, m) replicated over ``column_axes``, q (..., m, n) sharded as a is.

    Raises:
        ValueError: an axis that the mesh has not, or one named twice; columns or a batch that do
            not divide; no columns; m > n; an unknown reduction.
        TypeError: a is not an array of numbers; mesh is no mesh; axes are no names.

    Differentiable, under ``jax.jit``, as :func:`sharded_qr` is.

    >>> import jax, jax.numpy as jnp, jaxqr.distributed
    >>> mesh = jax.make_mesh((len(jax.devices()),), ("columns",))
    >>> a = jnp.arange(1.0, 17.0).reshape(2, 8) ** 2
    >>> l, q = jaxqr.distributed.sharded_lq(a, mesh, "columns")
    >>> l.shape, q.shape, bool(jnp.allclose(l @ q, a, rtol=1e-4))
    ((2, 2), (2, 8), True)
    """
    a = as_matrices("sharded_lq", "a", a, sharded=True)
    flags("sharded_lq", positive_diagonal=positive_diagonal)
    *batch, m, n = a.shape
    across = ("columns", "rows")
    _check("sharded_lq", (*batch, n, m), mesh, column_axes, batch_axes, reduction, across)
    a = _moved(a, mesh, _spec(a.ndim - 2, batch_axes, None, column_axes))
    factors: tuple[Array, Array] = _lq(
        a, mesh, column_axes, batch_axes, positive_diagonal, reduction
    )
    return factors


def sharded_lstsq(
    a: ArrayLike,
    b: ArrayLike,
    mesh: Mesh | AbstractMesh,
    row_axes: AxisName,
    ridge: ArrayLike = 0.0,
    *,
    batch_axes: AxisName = (),
    forward_mode: bool = False,
    reduction: Reduction = "auto",
) -> Array:
    """The x that minimizes ||A x - b||^2 + ridge ||x||^2, of A and b sharded by rows.

    Args:
        a: (..., m, n) with m >= n.
        b: (..., m) or (..., m, nrhs), with the same batch axes as a.
        mesh, row_axes, batch_axes: as in :func:`sharded_qr`.
        ridge, forward_mode, reduction: as in :func:`jaxqr.distributed.lstsq`; ridge is a scalar.

    Returns:
        x (..., n) or (..., n, nrhs), replicated over ``row_axes``. Gradients by a and b are
        sharded as they are. Wrap them in ``jax.jit``, as those of :func:`sharded_qr`.

    Raises:
        ValueError, TypeError: as :func:`sharded_qr` and :func:`jaxqr.distributed.lstsq` do.

    >>> import jax, jax.numpy as jnp, jaxqr.distributed, numpy as np
    >>> mesh = jax.make_mesh((len(jax.devices()),), ("rows",))
    >>> t = jnp.arange(8.0)
    >>> a = jnp.stack([jnp.ones(8), t], axis=1)
    >>> print(np.asarray(jaxqr.distributed.sharded_lstsq(a, 3 * t + 1, mesh, "rows")).round(4))
    [1. 3.]
    """
    a = as_matrices("sharded_lstsq", "a", a, sharded=True)
    b = as_array("sharded_lstsq", "b", b)
    flags("sharded_lstsq", forward_mode=forward_mode)
    _check("sharded_lstsq", a.shape, mesh, row_axes, batch_axes, reduction, ("rows", "columns"))
    of_b = b.shape if b.ndim == a.ndim else (*b.shape, 1)
    if of_b[:-1] != a.shape[:-1]:
        raise ValueError(
            "sharded_lstsq expects b to have the batch axes and the rows of a. Got a of shape "
            f"{a.shape} and b of shape {b.shape}."
        )
    shift = ridge_of("sharded_lstsq", ridge)
    if shift is not None and shift.ndim:
        raise ValueError(f"sharded_lstsq expects ridge to be a scalar. Got shape {shift.shape}.")
    rows = _spec(a.ndim - 2, batch_axes, row_axes)
    a, b = _moved(a, mesh, rows), _moved(b, mesh, rows)
    shift = None if shift is None else _moved(shift, mesh, P())
    x: Array = _lstsq(a, b, shift, mesh, row_axes, batch_axes, forward_mode, reduction)
    return x


def _check(
    caller: str,
    shape: tuple[int, ...],  # (..., m, n), the sharded axis first
    mesh: Mesh | AbstractMesh,
    axes: AxisName,
    batch_axes: AxisName,
    reduction: str,
    across: tuple[str, str],
) -> None:
    one_of(caller, "reduction", reduction, REDUCTIONS)
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise TypeError(
            f"{caller} expects mesh to be a mesh of devices, as jax.make_mesh gives one. "
            f"Got {mesh!r}."
        )
    for argument, given in ((f"{across[0][:-1]}_axes", axes), ("batch_axes", batch_axes)):
        if not isinstance(given, str | tuple):
            raise TypeError(
                f"{caller} expects {argument} to be the name of an axis of the mesh, or a tuple "
                f"of several. Got {given!r}."
            )
    sizes: Mapping[Any, int] = mesh.shape
    *batch, m, n = shape
    named = f"{across[0][:-1]}_axes and batch_axes" if batch_axes else f"{across[0][:-1]}_axes"
    check_axes(caller, named, (*names_of(axes), *names_of(batch_axes)))
    for name in (*names_of(axes), *names_of(batch_axes)):
        if name not in sizes:
            raise ValueError(
                f"{caller} expects axes of the mesh, which has {dict(sizes)}. Got {name!r}."
            )
    devices = _devices(sizes, axes)
    sharded, other = across
    if m < n:
        raise ValueError(
            f"{caller} expects at least as many {sharded} as {other}. Got {m} and {n}."
        )
    if not m:
        raise ValueError(f"{caller} expects each device to have {sharded}. Got {m} of them.")
    if m % devices:
        raise ValueError(
            f"{caller} expects the number of {sharded} to be a multiple of {devices}, the devices "
            f"of {axes!r}. Got {m}; {-m % devices} of zeros would do, and change nothing else."
        )
    if names_of(batch_axes) and (not batch or batch[0] % _devices(sizes, batch_axes)):
        raise ValueError(
            f"{caller} expects a first batch axis that is a multiple of "
            f"{_devices(sizes, batch_axes)}, the devices of {batch_axes!r}. Got batch axes "
            f"{tuple(batch)}."
        )


def _devices(sizes: Mapping[Any, int], axes: AxisName) -> int:
    devices = 1
    for name in names_of(axes):
        devices *= sizes[name]
    return devices


def _spec(batch_ndim: int, batch_axes: AxisName, *last: Any) -> P:
    """Of an array with so many batch axes and the last ones sharded so."""
    batch = (names_of(batch_axes) or None, *(None,) * (batch_ndim - 1)) if batch_ndim else ()
    return P(*batch, *last)


def _moved(x: Array, mesh: Mesh | AbstractMesh, spec: P) -> Array:
    """X on the mesh's devices, if it has been put on others: ``jit`` leaves it where it is."""
    if isinstance(x, jax.core.Tracer) or isinstance(mesh, AbstractMesh) or not x.committed:
        return x
    moved: Array = jax.device_put(x, NamedSharding(mesh, spec))
    return moved


def _placed(x: Array, mesh: Mesh | AbstractMesh, spec: P) -> Array:
    """X laid out so over the mesh's explicit axes; over the others ``shard_map`` does it itself."""
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    explicit = {name for name, of in types.items() if of == AxisType.Explicit}
    if not explicit:
        return x

    def kept(axes: AxisName | None) -> AxisName | None:
        return None if axes is None else tuple(n for n in names_of(axes) if n in explicit) or None

    placed: Array = reshard(x, NamedSharding(mesh, P(*map(kept, spec))))
    return placed


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _qr(
    a: Array,
    mesh: Mesh,
    axes: AxisName,
    batch_axes: AxisName,
    positive_diagonal: bool,
    reduction: Reduction,
) -> tuple[Array, Array]:
    def local(a: Array) -> tuple[Array, Array]:
        return tsqr(a, axes, positive_diagonal=positive_diagonal, reduction=reduction)

    rows = _spec(a.ndim - 2, batch_axes, axes, None)
    replicated = _spec(a.ndim - 2, batch_axes)
    factors: tuple[Array, Array] = jax.shard_map(
        local, mesh=mesh, in_specs=rows, out_specs=(rows, replicated)
    )(_placed(a, mesh, rows))
    return factors


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _lq(
    a: Array,
    mesh: Mesh,
    axes: AxisName,
    batch_axes: AxisName,
    positive_diagonal: bool,
    reduction: Reduction,
) -> tuple[Array, Array]:
    q, r = _qr(a.mT, mesh, axes, batch_axes, positive_diagonal, reduction)
    return r.mT, q.mT


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6, 7))
def _lstsq(
    a: Array,
    b: Array,
    ridge: Array | None,
    mesh: Mesh,
    axes: AxisName,
    batch_axes: AxisName,
    forward_mode: bool,
    reduction: Reduction,
) -> Array:
    def local(a: Array, b: Array, ridge: Array | None) -> Array:
        level: ArrayLike = 0.0 if ridge is None else ridge
        return lstsq(a, b, axes, level, forward_mode=forward_mode, reduction=reduction)

    rows = _spec(a.ndim - 2, batch_axes, axes)
    x: Array = jax.shard_map(
        local, mesh=mesh, in_specs=(rows, rows, P()), out_specs=_spec(a.ndim - 2, batch_axes)
    )(_placed(a, mesh, rows), _placed(b, mesh, rows), ridge)
    return x
