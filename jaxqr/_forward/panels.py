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

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.numpy.linalg import qr as jax_qr

from jaxqr._linalg.algebra import diagonal, materialized, matmul, solve_left
from jaxqr._linalg.batching import over_leading_axes
from jaxqr._linalg.crossovers import Crossovers
from jaxqr._linalg.layouts import by_rows
from jaxqr._linalg.reflectors import Reflectors

_ASLEEP = 8192  # elements that LAPACK factors in the thread that calls
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


def suits(c: Crossovers, a: Array, mode: str) -> bool:
    """Whether a (..., m, n), or its leading block, is real, large, and not too deep; and alone."""
    *batch, m, n = a.shape
    is_alone = all(isinstance(d, int) and d == 1 for d in batch)  # not symbolic, for jax.export
    if not is_alone or jnp.iscomplexobj(a):
        return False
    has_room = m <= n if mode == "complete" else m >= n or mode == "reduced"
    large = min(m, n) >= c.least_columns_of_panels
    return has_room and large and _columns_of_a_panel(m) >= _LEAST_COLUMNS


def qr(a: Array, mode: str) -> tuple[Array, ...]:
    """(q, r), or (r,) in mode "r", of a real a (..., m, n), m >= n; m = n in mode "complete"."""

    def factors(a: Array) -> tuple[Array, ...]:
        (m, n), steps = a.shape, _factored(a)
        r = _triangle(steps)[:n, :n].T
        return (r,) if mode == "r" else (_q(steps, m - n)[:m, :n], r)

    out: tuple[Array, ...] = over_leading_axes(factors)(a)
    return out


def reflectors_of(a: Array) -> tuple[Array, Reflectors]:
    """R (..., n, n) and the reflectors of a real a (..., m, n), m >= n."""

    def factors(a: Array) -> tuple[Array, ...]:
        (m, n), steps = a.shape, _factored(a)
        taus = jnp.concatenate([diagonal(turn.t) for _, turn in steps])
        return _triangle(steps)[:n, :n].T, _reflectors(steps)[:n, :m].T, taus[None, :n]

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
        rows = rest[:, :w] - change[:, :w]
        steps.append((jnp.concatenate([first, rows]), turn))
        rest = rest[:, w:] - change[:, w:]
    return steps


def _columns_of_a_panel(m: int) -> int:
    """The most for which the top and what the pieces leave are as small as a piece."""
    fits = (b for b in range(_MOST_COLUMNS, 1, -1) if b * b * (1 + _pieces(m, b)) <= _ASLEEP)
    return next(fits, 1)


def _pieces(m: int, b: int) -> int:
    """Into how many the rows below the top are cut, of m rows and b columns."""
    return 0 if m * b <= _ASLEEP else -(-(m - b) // (_ASLEEP // b))


def _shares(blocks: int) -> list[int]:
    """How many blocks each group has: nearly alike, most in the last, where matrices are small."""
    groups = min(blocks, _MOST_GROUPS)
    return [(blocks + i) // groups for i in range(groups)]


def _by_parts(x: Array, count: int, factor: Callable[[Array], Step]) -> Step:
    """R^T (w, w) of x (w, m), and the turn, by so many parts of its rows, all alike."""
    if count == 1:
        return factor(x)
    w, b = len(x), len(x) // count

    def step(x: Array, _: None) -> tuple[Array, Step]:
        first, turn = factor(x[:b])
        rest = x[b:] - turn.change(x[b:])
        left = jnp.pad(rest[:, b:], [(0, b), (0, b)])
        return left, (jnp.concatenate([first, rest[:, :b]]), turn)

    _, (firsts, turns) = lax.scan(step, x, None, length=count)
    steps = [(firsts[i], Turn(turns.vt[i], turns.t[i])) for i in range(count)]
    vt, t = _reflectors(steps), turns.t[0]
    products = matmul(vt, vt.T)
    for j, after in zip(range(b, w, b), turns.t[1:], strict=True):
        beside = -matmul(t, matmul(products[:j, j : j + b], after))
        t = jnp.block([[t, beside], [jnp.zeros_like(beside.T), after]])
    return _triangle(steps), Turn(vt, t)


def _block(x: Array) -> Step:
    """R^T (w, w) of x (w, m), and the turn, by panels."""
    return _by_parts(x, _PANELS, _panel)


def _panel(x: Array) -> Step:
    """R^T (b, b) of x (b, m), and the turn, by LAPACK."""
    b, m = x.shape
    pieces = _pieces(m, b)
    cuts = [b + (m - b) * i // pieces for i in range(pieces + 1)] if pieces else [m]
    below = [jax_qr(x[:, i:j].T) for i, j in itertools.pairwise(cuts)]
    top = jnp.concatenate([x[:, : cuts[0]].T, *(c for _, c in below)])
    stored, taus = jax_qr(top, mode="raw")
    vt = jnp.triu(stored, 1) + jnp.eye(b, stored.shape[1], dtype=x.dtype)
    # T^-1 = D^-1 + S, S strictly upper of V^H V, as in :mod:`jaxqr._linalg.reflectors`.
    unit = jnp.eye(b, dtype=x.dtype) + jnp.triu(matmul(vt, vt.T), 1) * taus[None]
    t = taus[:, None] * solve_left(unit, jnp.eye(b, dtype=x.dtype))
    first, *others = jnp.split(vt, [cuts[0] + b * i for i in range(pieces)], axis=1)
    beneath = [matmul(v, q.T) for v, (q, _) in zip(others, below, strict=True)]
    return jnp.tril(stored[:, :b]), Turn(jnp.concatenate([first, *beneath], axis=1), t)


def _q(steps: list[Step], deeper: int) -> Array:
    """Q: all turns of the identity, with so many more rows than columns, the last one first."""
    q = jnp.zeros_like(steps[0][0], shape=(deeper, 0))
    for _, (vt, t) in reversed(steps):
        w, m = vt.shape
        inner = jnp.concatenate([vt[:, :w], matmul(vt[:, w:], q)], axis=1)
        q = jnp.concatenate([jnp.eye(m, w, dtype=q.dtype), jnp.pad(q, [(w, 0), (0, 0)])], axis=1)
        q = q - matmul(materialized(vt.T), matmul(t, inner))
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
