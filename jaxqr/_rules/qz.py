"""The derivative of the generalized Schur decomposition (QZ), and of Schur's with it.

::

    A = Q S Z^H    B = Q T Z^H      Q, Z unitary; S, T upper triangular, T_ii >= 0; all n x n

With E = Q^H dA Z, F = Q^H dB Z and the skew-Hermitian Omega = Q^H dQ, Theta = Z^H dZ,

    dS = E - Omega S + S Theta      dT = F - Omega T + T Theta

are upper triangular. So the strictly lower parts X of Omega and Y of Theta solve

    low(X S - S Y) = low(E)         low(X T - T Y) = low(F)                                     (1)

entry by entry from the bottom-left corner on, dividing by D_ij = S_ii T_jj - S_jj T_ii: it is the
generalized Sylvester equation (B. Kågström and P. Poromaa, "LAPACK-style algorithms and software
for solving the generalized Sylvester equation", ACM Trans. Math. Software 22 (1996)) of a pencil
with itself. The derivative exists where no D_ij is zero: where eigenvalues are distinct, at most
one of them infinite. The diagonals of Omega and Theta are a gauge: T_ii >= 0 fixes their
difference, and of their sum, which nothing fixes, we take zero.

Schur's decomposition A = Z S Z^H is the QZ of the pencil (A, I), with Q = Z and T = I.

Cotangents follow the convention dL = Re tr(G-bar^H dG). Matrices are (n, n), complex.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxqr._linalg.algebra import times_i
from jaxqr._linalg.products import adjoint, matmul
from jaxqr._linalg.scaling import magnitudes, unit

Pair = tuple[Array, Array]


class Factors(NamedTuple):
    """The factors of a pencil; or their tangents, or their cotangents."""

    s: Array
    t: Array
    q: Array
    z: Array


def pushforward(factors: Factors, da: Array, db: Array) -> Factors:
    """The tangents of the factors from those of A and B."""
    (s, t, q, z), s_unit, t_unit = _in_units(factors)
    e, f = (matmul(matmul(adjoint(q), dx), z) for dx in (da * (1 / s_unit), db * (1 / t_unit)))
    x, y = solve(s, t, (e, f))
    omega, theta = x - adjoint(x), y - adjoint(y)
    ds = e - matmul(omega, s) + matmul(s, theta)
    dt = f - matmul(omega, t) + matmul(t, theta)

    # Omega + i diag(half) and Theta - i diag(half) make the diagonal of dT real.
    sizes = jnp.abs(_diagonal(f)) + _sizes((omega, t), (t, theta))
    half = _over_diagonal(_diagonal(dt).imag, t, sizes) / 2
    turn = times_i(half)
    turns = turn[:, None] + turn[None, :]
    return Factors(
        jnp.triu(ds - turns * s) * s_unit,
        _real_diagonal(jnp.triu(dt - turns * t), t) * t_unit,
        matmul(q, omega + jnp.diag(turn)),
        matmul(z, theta - jnp.diag(turn)),
    )


def pullback(factors: Factors, bars: Factors) -> Pair:
    """The cotangents of A and B from those of the factors.

    With P = Q^H Q-bar - S-bar S^H - T-bar T^H and N = Z^H Z-bar + S^H S-bar + T^H T-bar,

        low(V S^H + W T^H) = low(P - P^H)       -low(S^H V + T^H W) = low(N - N^H)              (2)
        A-bar = Q (S-bar + V) Z^H               B-bar = Q (T-bar + W) Z^H

    the adjoint of (1), after T-bar has got the imaginary diagonal with which Im diag(P - N) = 0.
    """
    (s, t, q, z), s_unit, t_unit = _in_units(factors)
    s_bar = jnp.triu(bars.s) * s_unit
    t_bar = _real_diagonal(jnp.triu(bars.t), t) * t_unit
    factors, bars = Factors(s, t, q, z), Factors(s_bar, t_bar, bars.q, bars.z)
    p, n, sizes = _turned(factors, bars)

    gamma = _over_diagonal(_diagonal(p - n).imag, t, sizes) / 2
    turn = times_i(gamma)
    t_bar = t_bar + jnp.diag(turn)
    p = p - turn[:, None] * adjoint(t)
    n = n + adjoint(t) * turn[None, :]
    v, w = solve_adjoint(s, t, (p - adjoint(p), n - adjoint(n)))
    a_bar, b_bar = (matmul(matmul(q, g), adjoint(z)) for g in (s_bar + v, t_bar + w))
    return a_bar * (1 / s_unit), b_bar * (1 / t_unit)


def seen_gauge(factors: Factors, bars: Factors) -> Array:
    """How much of each phase that the factors leave free the cotangents see, from 0 to 1: (n,).

    Under Q -> Q C, Z -> Z C, S -> C^H S C, T -> C^H T C, with a diagonal unitary C, a loss changes
    by Im diag(P + N).
    """
    factors, s_unit, t_unit = _in_units(factors)
    p, n, sizes = _turned(factors, bars._replace(s=bars.s * s_unit, t=bars.t * t_unit))
    return jnp.abs(_diagonal(p + n).imag) / jnp.where(sizes == 0, 1, sizes)


def chordal_distances(s: Array, t: Array) -> Array:
    """The chordal distances |D_ij| between the eigenvalues S_ii / T_ii, (n, n), on a sphere.

    S and T in units of their largest elements: so the sphere is the pencil's own.
    """
    (s, t, *_), _, _ = _in_units(Factors(s, t, s, t))
    alpha, beta = _diagonal(s), _diagonal(t)
    length = jnp.hypot(jnp.abs(alpha), jnp.abs(beta))
    length = jnp.where(length == 0, 1, length).astype(s.dtype)
    alpha, beta = alpha / length, beta / length
    return jnp.abs(alpha[:, None] * beta[None, :] - alpha[None, :] * beta[:, None])


def _in_units(factors: Factors) -> tuple[Factors, Array, Array]:
    """The factors with S and T divided by powers of two that are about as large; those powers."""
    s, t, q, z = factors
    s_unit, t_unit = (unit(jnp.max(magnitudes(x), initial=0)).astype(x.dtype) for x in (s, t))
    return Factors(s * (1 / s_unit), t * (1 / t_unit), q, z), s_unit, t_unit


def _turned(factors: Factors, bars: Factors) -> tuple[Array, Array, Array]:
    """P and N, what a loss sees of Omega and Theta; the sizes (n,) of their diagonals' terms."""
    (s, t, q, z), (s_bar, t_bar, q_bar, z_bar) = factors, bars
    sums = (
        (_row(adjoint(q), -s_bar, -t_bar), _column(q_bar, adjoint(s), adjoint(t))),
        (_row(adjoint(z), adjoint(s), adjoint(t)), _column(z_bar, s_bar, t_bar)),
    )
    p, n = (matmul(left, right) for left, right in sums)
    return p, n, _sizes(*sums)


def _row(*blocks: Array) -> Array:
    return jnp.concatenate(blocks, axis=1)


def _column(*blocks: Array) -> Array:
    return jnp.concatenate(blocks, axis=0)


def _sizes(*pairs: Pair) -> Array:
    """The diagonal of the sum of |X| |Y|, (n,): rounding of X Y is of its size times epsilon."""
    terms = [jnp.sum(jnp.abs(x) * jnp.abs(y.mT), axis=1) for x, y in pairs]
    return sum(terms[1:], terms[0])


def _over_diagonal(x: Array, t: Array, sizes: Array) -> Array:
    """X_i / T_ii (n,); 0 where T_ii is zero, or x_i rounding, which a small T_ii would enlarge.

    dx_i / T_ii is no rounding where x_i is zero; but where T_ii is next to zero, and in a second
    derivative two of them meet, rounding is all that counts of it.
    """
    diagonal = _diagonal(t).real
    eps = float(jnp.finfo(x.dtype).eps)
    is_rounding = jnp.abs(x) <= max(t.shape[0], 8) * eps * sizes
    x = jnp.where(is_rounding & (diagonal <= eps ** (2 / 3)), 0, x)
    x = x - lax.stop_gradient(jnp.where(is_rounding, x, 0))
    return jnp.where(diagonal == 0, 0, x / jnp.where(diagonal == 0, 1, diagonal))


def _real_diagonal(x: Array, t: Array) -> Array:
    """X with a real diagonal where T_ii > 0, as all tangents of T have."""
    real = jnp.diag(_diagonal(t) != 0)
    return jnp.where(real, x.real.astype(x.dtype), x)


def _diagonal(x: Array) -> Array:
    diagonal: Array = jnp.diagonal(x)
    return diagonal


# The equations (1) and their adjoint (2), differentiable in S and T: the derivative of a solution
# is a solution.


def solve(s: Array, t: Array, right: Pair) -> Pair:
    """X and Y, strictly lower, of (1) from the strictly lower parts of E and F."""
    return _linear_solve(_equations, _substitute, _substitute_adjoint, s, t, right)


def solve_adjoint(s: Array, t: Array, right: Pair) -> Pair:
    """V and W, strictly lower, of (2) from the strictly lower parts of its right-hand sides."""
    return _linear_solve(_adjoint_equations, _substitute_adjoint, _substitute, s, t, right)


def _linear_solve(
    equations: Callable[[Array, Array, Pair], Pair],
    substitute: Callable[[Array, Array, Pair], Pair],
    substitute_adjoint: Callable[[Array, Array, Pair], Pair],
    s: Array,
    t: Array,
    right: Pair,
) -> Pair:
    def transposed(_: object, right: Pair) -> Pair:
        conj: Pair = jax.tree.map(jnp.conj, right)
        out: Pair = jax.tree.map(jnp.conj, substitute_adjoint(s, t, conj))
        return out

    solution: Pair = lax.custom_linear_solve(
        lambda left: equations(s, t, left),
        right,
        solve=lambda _, right: substitute(s, t, right),
        transpose_solve=transposed,
    )
    return solution


def _equations(s: Array, t: Array, left: Pair) -> Pair:
    x, y = left
    of_s, of_t = (jnp.tril(matmul(x, u) - matmul(u, y), -1) for u in (s, t))
    return of_s, of_t


def _adjoint_equations(s: Array, t: Array, left: Pair) -> Pair:
    v, w = left
    of_p = matmul(v, adjoint(s)) + matmul(w, adjoint(t))
    of_n = -matmul(adjoint(s), v) - matmul(adjoint(t), w)
    return jnp.tril(of_p, -1), jnp.tril(of_n, -1)


# Both are solved a diagonal d = i - j at a time: of all entries on it at once, what is known of the
# sums is products of row i of one matrix with column i - d of another.


def _substitute(s: Array, t: Array, right: Pair) -> Pair:
    """From the corner, d = n - 1, to the subdiagonal."""
    e, f = right
    n = s.shape[0]

    def step(count: Array, xy: Pair) -> Pair:
        d = n - 1 - count
        x, y = xy
        e_d = _on(e, d) - _rows_by_columns(x, s, d) + _rows_by_columns(s, y, d)
        f_d = _on(f, d) - _rows_by_columns(x, t, d) + _rows_by_columns(t, y, d)
        s_i, t_i, s_j, t_j, gap = _corners(s, t, d)
        x_d, y_d = (s_i * f_d - t_i * e_d) / gap, (s_j * f_d - t_j * e_d) / gap
        return _with(x, x_d, d), _with(y, y_d, d)

    return _by_diagonals(n, step, right)


def _substitute_adjoint(s: Array, t: Array, right: Pair) -> Pair:
    """From the subdiagonal, d = 1, to the corner."""
    p, n = right
    sh, th = adjoint(s), adjoint(t)

    def step(count: Array, vw: Pair) -> Pair:
        d = count + 1
        v, w = vw
        p_d = _on(p, d) - _rows_by_columns(v, sh, d) - _rows_by_columns(w, th, d)
        n_d = -_on(n, d) - _rows_by_columns(sh, v, d) - _rows_by_columns(th, w, d)
        s_i, t_i, s_j, t_j, gap = _corners(sh, th, d)
        v_d, w_d = (n_d * t_j - p_d * t_i) / gap, (p_d * s_i - n_d * s_j) / gap
        return _with(v, v_d, d), _with(w, w_d, d)

    return _by_diagonals(s.shape[0], step, right)


def _by_diagonals(n: int, step: Callable[[Array, Pair], Pair], like: Pair) -> Pair:
    start: Pair = jax.tree.map(jnp.zeros_like, like)
    out: Pair = lax.fori_loop(0, max(n - 1, 0), step, start)
    return out


def _rows_by_columns(x: Array, y: Array, d: Array) -> Array:
    """(X Y)_{i, i-d} (n,); i < d wraps around, and is not used."""
    return jnp.sum(x * jnp.roll(y.mT, d, axis=0), axis=1)


def _on(x: Array, d: Array) -> Array:
    """X_{i, i-d} (n,) likewise."""
    row = jnp.arange(x.shape[0])
    return x[row, row - d]


def _with(x: Array, values: Array, d: Array) -> Array:
    """X with these values added at (i, i - d)."""
    row = jnp.arange(x.shape[0])
    return x + jnp.where(row[:, None] - d == row[None, :], values[:, None], 0)


def _corners(s: Array, t: Array, d: Array) -> tuple[Array, Array, Array, Array, Array]:
    """S_ii, T_ii, S_jj, T_jj and D_ij = S_ii T_jj - S_jj T_ii, (n,) each, for j = i - d."""
    s_i, t_i = _diagonal(s), _diagonal(t)
    s_j, t_j = jnp.roll(s_i, d), jnp.roll(t_i, d)
    return s_i, t_i, s_j, t_j, s_i * t_j - s_j * t_i
