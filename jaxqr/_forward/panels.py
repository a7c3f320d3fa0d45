"""Householder's algorithm by panels of columns that leave the threads of LAPACK asleep.

LAPACK's own, of a large matrix, wakes threads, which for 100 ms afterwards look for work on the
cores that XLA's products need, those of the derivative among them. OpenBLAS factors up to 8192
elements in the thread that calls. So a tall panel is cut: the rows below its top are factored in
pieces, X_i = Q_i C_i, and LAPACK eliminates what these leave under the top, [X_0; C_1; C_2; ...].
Its reflectors [V_0; V_1; V_2; ...] with Q_i before V_i are the panel's: the same R, the same taus
(J. Demmel, L. Grigori, M. Hoemmen, J. Langou, "Communication-optimal parallel and sequential QR and
LU factorizations", SIAM J. Sci. Comput. 34 (2012)). What is right of it is turned by products.

Matrices are kept transposed here, (columns, rows): LAPACK wants columns contiguous. A loop runs
over the panels of a block, another over the blocks of a group; what a step leaves is moved to where
the loop finds it again, its first column in front and zeros behind, so that all steps are alike.
What is right of a group is turned once, when all of the group is known.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.numpy.linalg import qr as jax_qr

from jaxqr._linalg.algebra import diagonal, matmul, solve_left
from jaxqr._linalg.batching import are_known, over_leading_axes
from jaxqr._linalg.blocked import LAPACK_TAKES_BATCHES
from jaxqr._linalg.crossovers import ASLEEP, Crossovers
from jaxqr._linalg.layouts import by_rows, materialized
from jaxqr._linalg.reflectors import Reflectors
from jaxqr._linalg.scaling import divided, units_at_the_ends

_MOST_COLUMNS = 31  # of a panel: a triangle of 32 it solves with by threads
_LEAST_COLUMNS = 24
_PANELS = 4  # of a block
_MOST_GROUPS = 4  # of blocks: each has fewer rows and columns, and is compiled by itself


class Turn(NamedTuple):
    """H = I - V T V^H, of w reflectors."""

    vt: Array  # V^T (w, m): 1 where a reflector begins, and 0 before
    t: Array  # (w, w), upper triangular; taus on the diagonal

    def change(self, x: Array) -> Array:
        """X - X H for x (n, m)."""
        return matmul(matmul(matmul(x, self.vt.T), self.t), self.vt)


Step = tuple[Array, Turn]
"""Of w columns: those of R^T from the diagonal on, (n, w), and how the rest was turned."""

Known = tuple[Array, Array, Array]
"""What there is still to factor, and R^T and V^T as far as they are known."""


def suits(c: Crossovers, a: Array, mode: str) -> bool:
    """Whether a (..., m, n), or its leading block, is real, large, and not too deep; and alone."""
    *batch, m, n = a.shape
    is_alone = are_known(*a.shape) and all(d == 1 for d in batch)
    if not is_alone or jnp.iscomplexobj(a):
        return False
    has_room = m <= n if mode == "complete" else m >= n or mode == "reduced"
    large = min(m, n) >= c.least_columns_of_panels
    return has_room and large and _columns_of_a_panel(m) >= _LEAST_COLUMNS


def qr(a: Array, mode: str) -> tuple[Array, ...]:
    """(q, r), or (r,) in mode "r", of a real a (..., m, n), m >= n; m = n in mode "complete"."""

    def factors(a: Array) -> tuple[Array, ...]:
        (m, n), units = a.shape, units_at_the_ends(a)
        steps = _factored(divided(a, units))
        r = by_rows(_triangle(steps)[:n, :n].T * units)
        return (r,) if mode == "r" else (by_rows(_q(steps, m - n)[:m, :n]), r)

    out: tuple[Array, ...] = over_leading_axes(factors)(a)
    return out


def reflectors_of(a: Array) -> tuple[Array, Reflectors]:
    """R (..., n, n) and the reflectors of a real a (..., m, n), m >= n."""

    def factors(a: Array) -> tuple[Array, ...]:
        (m, n), units = a.shape, units_at_the_ends(a)
        steps = _factored(divided(a, units))
        taus = jnp.concatenate([diagonal(turn.t) for _, turn in steps])
        return _triangle(steps)[:n, :n].T * units, _reflectors(steps)[:n, :m].T, taus[None, :n]

    r, v, taus = over_leading_axes(factors)(a)
    return r, Reflectors(v, taus)


def _factored(a: Array) -> list[Step]:
    """The groups of a (m, n), behind which zeros make all blocks alike."""
    m, n = a.shape
    blocks = -(-n // (_PANELS * _columns_of_a_panel(m)))
    width = _PANELS * -(-n // (_PANELS * blocks))
    behind = blocks * width - n
    rest, steps = by_rows(jnp.pad(a, [(0, behind), (0, behind)]).T), []
    for count in _shares(blocks):
        w = count * width
        first, turn = _by_parts(rest[:w], count, _block)
        rest, change = rest[w:], turn.change(rest[w:])
        rows, rest = materialized((rest[:, :w] - change[:, :w], rest[:, w:] - change[:, w:]))
        steps.append((jnp.concatenate([first, rows]), turn))
    return steps


def _columns_of_a_panel(m: int) -> int:
    """The most for which the top and what the pieces leave are as small as a piece."""
    fits = (b for b in range(_MOST_COLUMNS, 1, -1) if b * b * (1 + _pieces(m, b)) <= ASLEEP)
    return next(fits, 1)


def _pieces(m: int, b: int) -> int:
    """Into how many the rows below the top are cut, of m rows and b columns."""
    return 0 if m * b <= ASLEEP else -(-(m - b) // (ASLEEP // b))


def _shares(blocks: int) -> list[int]:
    """How many blocks each group has: nearly alike, most in the last, where matrices are small."""
    groups = min(blocks, _MOST_GROUPS)
    return [(blocks + i) // groups for i in range(groups)]


def _by_parts(x: Array, count: int, factor: Callable[[Array], Step]) -> Step:
    """R^T (w, w) of x (w, m), and the turn, by so many parts of its rows, all alike."""
    if count == 1:
        return factor(x)
    (w, m), b = x.shape, len(x) // count

    def step(known: Known, begin: Array) -> tuple[Known, Array]:
        x, rt, vt = known
        first, turn = factor(x[:b])
        rest = x[b:] - turn.change(x[b:])
        columns = jnp.concatenate([first, rest[:, :b]])
        rt, vt = (
            lax.dynamic_update_slice(whole, part, (begin, begin))
            for whole, part in ((rt, columns), (vt, turn.vt))
        )
        return (jnp.pad(rest[:, b:], [(0, b), (0, b)]), rt, vt), turn.t

    # The last part has as much room as the first; what is beyond x is zero.
    zero = jnp.zeros_like(x)
    start = x, jnp.pad(zero[:, :w], [(0, w - b), (0, 0)]), jnp.pad(zero, [(0, 0), (0, w - b)])
    (_, rt, vt), ts = lax.scan(step, start, jnp.asarray(b * np.arange(count)))
    vt = vt[:, :m]
    return rt[:w], Turn(vt, _together(vt, ts))


def _together(vt: Array, ts: Array) -> Array:
    """T (w, w) from V^T (w, m) and the triangles (count, b, b) of its parts.

    T^-1 = D^-1 + S, where D is the parts' own and S is V^H V above it: T = D - D S T, by parts from
    the last one on.
    """
    count, b, _ = ts.shape
    part = jnp.asarray(np.arange(count * b) // b)
    above, same = part[:, None] < part[None], part[:, None] == part[None]
    d = jnp.where(same, jnp.tile(ts.reshape(-1, b), count), 0)
    s = jnp.where(above, matmul(vt, vt.T), 0).reshape(count, b, -1)

    def substitute(t: Array, x: tuple[Array, Array, Array]) -> tuple[Array, None]:
        own, beyond, begin = x
        rows = lax.dynamic_slice_in_dim(t, begin, b) - matmul(own, matmul(beyond, t))
        return lax.dynamic_update_slice_in_dim(t, rows, begin, axis=0), None

    begins = jnp.asarray(b * np.arange(count - 1))
    t, _ = lax.scan(substitute, d, (ts[:-1], s[:-1], begins), reverse=True)
    return t


def _block(x: Array) -> Step:
    """R^T (w, w) of x (w, m), and the turn, by panels."""
    return _by_parts(x, _PANELS, _panel)


def _panel(x: Array) -> Step:
    """R^T (b, b) of x (b, m), and the turn, by LAPACK."""
    b, m = x.shape
    pieces = _pieces(m, b)
    if not pieces:
        return _lapack(x)
    rows = -(-(m - b) // pieces)
    below = jnp.pad(x[:, b:], [(0, 0), (0, pieces * rows - (m - b))])
    qs, cs = _each(jnp.swapaxes(below.reshape(b, pieces, rows), 0, 1).mT)
    first, turn = _lapack(jnp.concatenate([x[:, :b], cs.reshape(-1, b).T], axis=1))
    top, *others = jnp.split(turn.vt, pieces + 1, axis=1)
    beneath = [matmul(v, q) for v, q in zip(others, by_rows(qs.mT), strict=True)]
    return first, Turn(jnp.concatenate([top, *beneath], axis=1)[:, :m], turn.t)


def _each(x: Array) -> tuple[Array, Array]:
    """Q (pieces, rows, b) and R (pieces, b, b) of x (pieces, rows, b)."""
    q, r = jax_qr(x) if LAPACK_TAKES_BATCHES else lax.map(jax_qr, x)
    return q, r


def _lapack(x: Array) -> Step:
    """R^T (b, b) of x (b, m), and the turn, in one call."""
    b, m = x.shape
    stored, taus = jax_qr(x.T, mode="raw")
    vt = jnp.triu(stored, 1) + jnp.eye(b, m, dtype=x.dtype)
    # T^-1 = D^-1 + S, S strictly upper of V^H V, as in :mod:`jaxqr._linalg.reflectors`.
    unit = jnp.eye(b, dtype=x.dtype) + jnp.triu(matmul(vt, vt.T), 1) * taus[None]
    t = taus[:, None] * solve_left(unit, jnp.eye(b, dtype=x.dtype))
    return jnp.tril(stored[:, :b]), Turn(vt, t)


def _q(steps: list[Step], deeper: int) -> Array:
    """Q: all turns of the identity, with so many more rows than columns, the last one first."""
    q = jnp.zeros_like(steps[0][0], shape=(deeper, 0))
    for _, (vt, t) in reversed(steps):
        w, m = vt.shape
        inner = jnp.concatenate([vt[:, :w], matmul(vt[:, w:], q)], axis=1)
        # As sums these are part of the subtraction's loop.
        identity = jnp.pad(jnp.eye(m, w, dtype=q.dtype), [(0, 0), (0, q.shape[1])])
        change = matmul(materialized(vt.T), matmul(t, inner))
        q = identity + jnp.pad(q, [(w, 0), (w, 0)]) - change
    return q


# All steps together: each begins, in its rows or columns, where the one before it ends.


def _triangle(steps: list[Step]) -> Array:
    """R^T."""
    return _staircase([first for first, _ in steps], axis=0)


def _reflectors(steps: list[Step]) -> Array:
    """V^T."""
    return _staircase([turn.vt for _, turn in steps], axis=1)


def _staircase(parts: list[Array], axis: int) -> Array:
    """Parts beside one another, each behind zeros along the axis, as far as the first reaches."""
    length, begins, steps = parts[0].shape[axis], 0, []
    for x in parts:
        before = [(0, 0), (0, 0)]
        before[axis] = (begins, 0)
        steps.append(jnp.pad(lax.slice_in_dim(x, 0, length - begins, axis=axis), before))
        begins += x.shape[1 - axis]
    return jnp.concatenate(steps, axis=1 - axis)
