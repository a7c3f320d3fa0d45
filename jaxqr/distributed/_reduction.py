"""One triangle from the triangles of all devices: by a tree, or by one gather.

A device that has k < n rows has a trapezoid (k, n) instead, and the trapezoid grows as rows come
together; there is no padding, which a factorization could mistake for rows (see :func:`_tree`).
"""

from typing import Any, Literal, NamedTuple

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
    """Rounds of the tree, each of one triangle: ceil(log2 devices)."""
    return (devices - 1).bit_length()


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
    device, or no rows, W is the identity: None.
    """
    devices = lax.axis_size(axis_name)
    w = None
    k, columns = r.shape[-2:]
    if devices > 1 and k:  # XLA does not gather what is empty
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


class Round(NamedTuple):
    """A round of the tree: what each device does, and who sends to whom."""

    above: list[bool]  # whether the device is in the upper half of its block
    upper: list[int]  # devices in that half
    exchange: list[tuple[int, int]]
    late: list[tuple[int, int]]  # to the one whose half has one device more than the other


def rounds_of(devices: int) -> list[Round]:
    """Blocks of devices are halved, down to single ones; the rounds go the other way.

    Blocks of one round differ by at most one device. In the first, some may be single: their
    lower half is empty.
    """
    out, blocks = [], [(0, devices)]
    for _ in range(rounds(devices)):
        above: list[bool] = []
        upper: list[int] = []
        exchange: list[tuple[int, int]] = []
        late: list[tuple[int, int]] = []
        halves = [(start, start + -(-size // 2), start + size) for start, size in blocks]
        for start, middle, end in halves:
            above += [True] * (middle - start) + [False] * (end - middle)
            upper += [middle - start] * (end - start)
            pairs = list(zip(range(start, middle), range(middle, end), strict=False))
            exchange += pairs + [(low, high) for high, low in pairs]
            if pairs and len(pairs) < middle - start:
                late.append((end - 1, middle - 1))
        out.append(Round(above, upper, exchange, late))
        blocks = [(at, to - at) for s, m, e in halves for at, to in ((s, m), (m, e)) if to > at]
    return out[::-1]


def _tree(r: Array, axis_name: AxisName, rank: int | None) -> tuple[Array | None, Array]:
    """In each round the halves of a block exchange what they have, and factor the same stack.

    All devices of a block then hold its triangle, and each multiplies its rows of Q by its half
    of the stack's. A half that has one device more than the other gets a second message.

    Where devices have fewer rows than columns and are no power of two, blocks differ in rows.
    What a trapezoid has less than its neighbour is zero rows at the end, and the stack has them
    all at its end: reflectors leave them zero there. As pivots they would take part in Q, whose
    columns would then lack what lies in rows that do not exist.
    """
    devices, me = lax.axis_size(axis_name), lax.axis_index(axis_name)
    k, n = r.shape[-2], rank or r.shape[-1]
    w = None
    for above, upper, exchange, late in rounds_of(devices):
        rows = r.shape[-2]
        theirs = lax.ppermute(r, axis_name, exchange)
        if late:
            targets = {target for _, target in late}
            is_late = _mine([device in targets for device in range(devices)], me)
            theirs = jnp.where(is_late, lax.ppermute(r, axis_name, late), theirs)
        is_above = _mine(above, me)
        at = _mine([min(n, k * count) for count in upper], me)
        stack = _stack(jnp.where(is_above, r, theirs), jnp.where(is_above, theirs, r), at)
        q, r = _factor(stack, rank)
        if q is not None:
            half = _rows(q, jnp.where(is_above, 0, at), rows)
            w = half if w is None else matmul(w, half)
    return w, r


def _mine(values: list[Any], me: Array) -> Any:
    """What the device has of a list of all devices' values; if they are alike, it is no array."""
    return values[0] if len(set(values)) == 1 else jnp.asarray(values)[me]


def _stack(upper: Array, lower: Array, at: Array | int) -> Array:
    """[upper; lower; 0], where upper has ``at`` rows that count."""
    padded = jnp.concatenate([upper, jnp.zeros_like(upper)], axis=-2)
    return lax.dynamic_update_slice_in_dim(padded, lower, at, axis=padded.ndim - 2)
