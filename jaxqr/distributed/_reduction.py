"""One triangle from the triangles of all devices: by a tree, or by one gather.

A device that has k < n rows has a trapezoid (k, n) instead, and the trapezoid grows as rows come
together; there is no padding, which a factorization could mistake for rows (see :func:`_tree`).
"""

from typing import Literal

import jax.numpy as jnp
from jax import Array, lax

from jaxqr._linalg.products import matmul
from jaxqr._qr import qr

AxisName = str | tuple[str, ...]
Reduction = Literal["auto", "tree", "gather"]
REDUCTIONS = ("auto", "tree", "gather")

# The machine of the cost model: a network between accelerators, and factorizations too small to
# fill one. What is chosen depends on the ratios alone, and not much on them.
LATENCY = 2e-5  # seconds a round
BANDWIDTH = 1e10  # bytes a second
RATE = 1e11  # operations a second


def rounds(devices: int) -> int:
    """Rounds of the tree, each of one triangle."""
    core = devices.bit_length() - 1
    return core if devices == 1 << core else core + 2


def seconds(reduction: str, devices: int, rows: int, columns: int, itemsize: int) -> float:
    """The model's time of a reduction of trapezoids (rows, columns) on so many devices.

    A factorization of s rows takes 4 s n^2 operations; a gather receives all other trapezoids.
    """
    send = rows * columns * itemsize / BANDWIDTH
    work = 4 * rows * columns**2 / RATE
    if reduction == "gather":
        return LATENCY + (devices - 1) * send + devices * work
    return rounds(devices) * (LATENCY + send + 2 * work)


def chosen(reduction: str, devices: int, rows: int, columns: int, itemsize: int) -> str:
    """The reduction; "auto" is the cheaper by the model."""
    if reduction != "auto":
        return reduction
    gather, tree = (seconds(x, devices, rows, columns, itemsize) for x in ("gather", "tree"))
    return "gather" if gather <= tree else "tree"


def reduce(
    r: Array, axis_name: AxisName, reduction: str, *, rank: int | None = None
) -> tuple[Array | None, Array]:
    """W and R from this device's trapezoid r (..., k, columns), k <= n.

    Stacked over the devices, the trapezoids are Q R, and W (..., k, n) is this device's rows of Q.
    R (..., n, columns) is the first device's, on all of them. With ``rank``, n is that, only so
    many columns are made triangular, and there is no W; else n is the number of columns. For one
    device W is the identity: None.
    """
    devices = lax.axis_size(axis_name)
    w = None
    if devices > 1:
        k, columns = r.shape[-2:]
        reduction = chosen(reduction, devices, k, columns, r.dtype.itemsize)
        w, r = (_gather if reduction == "gather" else _tree)(r, axis_name, rank)
    first = lax.axis_index(axis_name) == 0
    return w, lax.psum(jnp.where(first, r, jnp.zeros_like(r)), axis_name)


def _factor(stack: Array, rank: int | None) -> tuple[Array | None, Array]:
    if rank is None:
        return qr(stack)
    return None, qr(stack, mode="r")[..., :rank, :]


def _gather(r: Array, axis_name: AxisName, rank: int | None) -> tuple[Array | None, Array]:
    k, me = r.shape[-2], lax.axis_index(axis_name)
    q, r = _factor(lax.all_gather(r, axis_name, axis=r.ndim - 2, tiled=True), rank)
    return None if q is None else _rows(q, me * k, k), r


def _rows(x: Array, at: Array | int, count: int) -> Array:
    return lax.dynamic_slice_in_dim(x, at, count, axis=x.ndim - 2)


def _tree(r: Array, axis_name: AxisName, rank: int | None) -> tuple[Array | None, Array]:
    """In round s, devices i and i ^ 2^s exchange what they have, and factor the same stack.

    Both then hold the triangle of a block of 2^(s+1) devices, and each multiplies its rows of Q
    by its half of the stack's. Devices beyond the last power of two hand in before the first
    round, and get their rows after the last.

    Where devices have fewer rows than columns and are no power of two, blocks differ in rows.
    What a trapezoid has less than its neighbour is zero rows at the end, and the stack has them
    all at its end: reflectors leave them zero there. As pivots they would take part in Q, whose
    columns would then lack what lies in rows that do not exist.
    """
    devices, me = lax.axis_size(axis_name), lax.axis_index(axis_name)
    levels = devices.bit_length() - 1
    core = 1 << levels
    extra = devices - core
    k, n = r.shape[-2], rank or r.shape[-1]

    own = folded = None
    if extra:
        hand_in = [(core + i, i) for i in range(extra)]
        q, r = _factor(_stack(r, lax.ppermute(r, axis_name, hand_in), k), rank)
        if q is not None:
            own, folded = q[..., :k, :], q[..., k:, :]

    w = None
    for level in range(levels):
        span, rows = 1 << level, r.shape[-2]
        theirs = lax.ppermute(r, axis_name, [(i, i ^ span) for i in range(core)])
        above = me & span == 0
        upper_rows: Array | int = rows
        if extra and k < n:
            behind = jnp.clip(extra - (me & -2 * span), 0, span)  # who handed in to upper's block
            upper_rows = jnp.minimum(n, k * (span + behind))
        stack = _stack(jnp.where(above, r, theirs), jnp.where(above, theirs, r), upper_rows)
        q, r = _factor(stack, rank)
        if q is not None:
            half = _rows(q, jnp.where(above, 0, upper_rows), rows)
            w = half if w is None else matmul(w, half)

    if own is not None and folded is not None and w is not None:
        back = [(i, core + i) for i in range(extra)]
        handed = lax.ppermute(matmul(folded, w), axis_name, back)
        w = jnp.where(me < core, matmul(own, w), handed)
    return w, r


def _stack(upper: Array, lower: Array, at: Array | int) -> Array:
    """[upper; lower; 0], where upper has ``at`` rows that count."""
    padded = jnp.concatenate([upper, jnp.zeros_like(upper)], axis=-2)
    return lax.dynamic_update_slice_in_dim(padded, lower, at, axis=padded.ndim - 2)
