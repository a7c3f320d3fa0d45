"""The derivative of least squares: one self-adjoint system, and the system is its own rule.

Least squares (g = 0), minimum norm (f = 0) and the derivatives of both, of any order, are
solutions of the augmented system M (r, x) = (f, g) (see :mod:`jaxqr._linalg.augmented`)::

    M = [ I    A       ]      dM (r, x) = (dA x,  dA^H r - dlambda x)
        [ A^H  -lambda ]

Where M is invertible, d(r, x) = M^-1 ((df, dg) - dM (r, x)). M is Hermitian, so with
(rho, xi) = M^-1 (r-bar, x-bar) the pullback is

    f-bar = rho    g-bar = xi    A-bar = -rho x^H - r xi^H    lambda-bar = Re(xi^H x)

Where A has lost rank (and lambda = 0), M^+ takes the place of M^-1, and the rank is held: by
G. H. Golub and V. Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares
problems whose variables separate", SIAM J. Numer. Anal. 10 (1973),

    dM^+ = -M^+ dM M^+  +  M^+ M^+ dM N  +  N dM M^+ M^+        N = I - M M^+

With w(t) = A^+H t, and with N t for the part of t in the null space of A, that adds

    to A-bar       w(x) (N x-bar)^H + w(xi) (N g)^H
    to d(r, x)     (0, N dA^H w(x)) + M^+ (0, A^+ dA N g)

where terms that vanish along tangents of the manifold of constant rank are left out. For f = b,
g = 0 this is Golub and Pereyra's derivative of A^+ b. N is Hermitian too, and from N = I - A^+ A

    d(N t) = N dt - A^+ dA N t - N dA^H w(t)

so that the pullback of s = N t is t-bar = N s-bar, A-bar = -w(s-bar) s^H - w(t) (N s-bar)^H.

For g = 0 the sum of squares has 2 Re r^H dr with dr = db - dA x - A dx, where r^H A dx is
lambda x^H dx, which as a product would be rounding where lambda is small:

    d ||r||^2 = 2 Re r^H (db - dA x) - 2 lambda Re x^H dx

x and g are measured as :mod:`jaxqr._linalg.augmented` says: A D^-1, with the units D held, takes
the place of A, and lambda D^-2 that of lambda.

The rules stand on M^+ and N as the operators that they differentiate: so every order follows.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxqr._linalg.augmented import (
    adjoint_times,
    inner_product,
    near_one,
    product_over,
    rank,
    shifted,
    times,
)
from jaxqr._linalg.batching import at_most, is_wide
from jaxqr._linalg.products import adjoint
from jaxqr._linalg.scaling import divided, units_of_columns
from jaxqr._rules.taylor import from_first, reversed_from


class System(NamedTuple):
    """The augmented system but for its right-hand sides, factored.

    Where A has full rank and fewer rows than columns, A^H is the system's matrix. Of tangents and
    cotangents of a system, any field may be None.
    """

    a: Any
    ridge: Array | None  # (..., 1, 1), real; None is zero
    rcond: Array | None  # None: A has full column rank
    root: tuple[Any, ...]
    d: Any  # the units of A's columns, (..., n, 1), or one for all of them, (..., 1, 1)
    q: Any  # or its reflectors; None: computed anew where it is needed, which f != 0 alone does


class Solved(NamedTuple):
    """A system with right-hand sides, of which None is zero, and its solution."""

    system: System
    f: Array | None  # (..., m, nrhs)
    g: Array | None  # (..., n, nrhs)
    r: Any  # (..., m, nrhs)
    x: Any  # (..., n, nrhs)


class Operators(NamedTuple):
    """What the rules apply, each differentiable in all of its arguments."""

    solve: Callable[[System, Array | None, Array | None], tuple[Array, Array]]  # M^+ (f, g)
    null_part: Callable[[System, Array], Array]  # N t
    # Of least squares of A^H: r and x for b in units in which y is near one, and what brings
    # them back.
    residual: Callable[[System, Array], tuple[Array, Array, Callable[[Array], Array]]]

    def solve_for(self, system: System, unmeasured: Array) -> tuple[Array, Array]:
        """M^+ (0, D^-1 g) for g of the user's size."""
        g, back = near_one(unmeasured, system.d)
        r, x = self.solve(system, None, g)
        return back(r), back(x)

    def w(self, system: System, t: Array) -> Array:
        """A^+H t."""
        return self.solve(system, None, t)[0]


def is_adjoint(system: System) -> bool:
    """Whether A^H is the system's matrix."""
    return bool(system.rcond is None and is_wide(*system.a.shape[-2:]))


def matrix(system: System, like_a: Array) -> Array:
    """A, or its tangent, as the system's matrix or its tangent."""
    return adjoint(like_a) if is_adjoint(system) else like_a


def spans(system: System) -> Array | None:
    """Whether the columns of the system's matrix span all there is, (..., 1, 1); None: they do not.

    Then there is no residual, where lambda = 0.
    """
    rows, columns = system.a.shape[-2:]
    if is_adjoint(system) or at_most(columns + 1, rows):
        return None
    if system.rcond is not None:
        return jnp.equal(rank(system.root), rows)
    square = True if rows == columns else jnp.equal(rows, columns)  # of symbols, when it is run
    every = jnp.full_like(system.a[..., :1, :1], square, dtype=bool)
    return every if system.ridge is None else every & jnp.equal(system.ridge, 0)


def pullback(
    apply: Operators,
    solved: Solved,
    r_bar: Array | None,
    x_bar: Array | None,
    unmeasured_bar: Array | None,
) -> Solved:
    """Cotangents of a solved system, from those of r, x and D^-1 x; None for what is constant."""
    system, f, g, r, x = solved
    is_alone = r_bar is None and x_bar is None
    if unmeasured_bar is not None:
        x_bar = plus(x_bar, unmeasured_bar / system.d)
    if unmeasured_bar is not None and is_alone:
        rho, xi = apply.solve_for(system, unmeasured_bar)
    else:
        rho, xi = apply.solve(system, r_bar, x_bar)
    pairs = [(rho, -x), (r, -xi)]
    if system.rcond is not None:
        for t, s in ((x, x_bar), (xi, g)):
            if s is not None:
                pairs.append((apply.w(system, t), apply.null_part(system, s)))
    ridge_bar = None if system.ridge is None else inner_product(xi, x, system.d)
    return Solved(
        _cotangent(system, pairs, ridge_bar),
        None if f is None else rho,
        None if g is None else xi,
        r=None,
        x=None,
    )


def pushforward(apply: Operators, solved: Solved, tangents: Solved) -> tuple[Array, Array]:
    """(dr, dx) from the tangents of a solved system."""
    system, _, g, r, x = solved
    dot, df, dg, _, _ = tangents
    turned = None
    if dot.ridge is not None:
        dg = plus(dg, shifted(dot.ridge, system.d, x))
    if dot.a is not None:
        da, d = matrix(system, dot.a), system.d
        df = plus(df, -times(da, d, x))
        dg = plus(dg, -adjoint_times(da, d, r))
        if system.rcond is not None:
            turned = apply.null_part(system, adjoint_times(da, d, apply.w(system, x)))
            if g is not None:
                fitted = times(da, d, apply.null_part(system, g))
                dg = dg + apply.solve(system, fitted, None)[1]
    dr, dx = apply.solve(system, df, dg)
    return dr, dx if turned is None else dx + turned


def taylor(apply: Operators, solved: Solved, terms: Solved) -> tuple[Array, Array]:
    """The series of r and x, stacked, from that of a solved system of full rank.

    Of ``solved``, the first term, the solution is read, of the stacked terms A, ridge, f and g:
    M_0 (r_d, x_d) is (f_d, g_d) - sum_{0<i<=d} M_i (r_{d-i}, x_{d-i}), so that each order takes a
    solve with M_0.
    """
    system, unit = solved.system, solved.system.d
    dot, f, g, _, _ = terms
    a = matrix(system, dot.a)
    orders, n = a.shape[0], a.shape[-1]
    wide, tall = (_joined(a[1:], axis) for axis in (-1, -2))
    units = jnp.broadcast_to(unit, (*solved.x.shape[:-2], n, 1))
    units = jnp.concatenate([units] * (orders - 1), axis=-2)

    def step(d: Array, solution: tuple[Array, Array]) -> tuple[Array, Array]:
        rs, xs = solution
        r, x = (reversed_from(known, d - 1)[:-1] for known in solution)
        right = None if f is None else f[d], None if g is None else g[d]
        f_d = plus(right[0], -times(wide, units, _joined(x, -2)))
        g_d = plus(right[1], -adjoint_times(tall, unit, _joined(r, -2)))
        if dot.ridge is not None:
            g_d = g_d + jnp.sum(shifted(dot.ridge[1:], unit[None], x), axis=0)
        r_d, x_d = apply.solve(system, f_d, g_d)
        return rs.at[d].set(r_d), xs.at[d].set(x_d)

    start = from_first(solved.r, orders), from_first(solved.x, orders)
    rs, xs = lax.fori_loop(1, orders, step, start)
    return rs, xs


def _joined(terms: Array, axis: int) -> Array:
    """(terms, ..., rows, columns) as one matrix, side by side or one below the other."""
    return jnp.concatenate(list(terms), axis=axis)


def pullback_of_null_part(
    apply: Operators, system: System, t: Array, s: Array, s_bar: Array
) -> tuple[System, Array]:
    """Cotangents of the system and of t, for s = N t."""
    t_bar = apply.null_part(system, s_bar)
    pairs = [(apply.w(system, s_bar), -s), (apply.w(system, t), -t_bar)]
    return _cotangent(system, pairs, None), t_bar


def pushforward_of_null_part(
    apply: Operators, system: System, t: Array, s: Array, dot: System, dt: Array | None
) -> Array:
    """ds from the tangents of the system and of t, for s = N t."""
    if dot.a is None:
        assert dt is not None
        return apply.null_part(system, dt)
    _, fitted = apply.solve(system, times(dot.a, system.d, s), None)
    inside = plus(dt, -adjoint_times(dot.a, system.d, apply.w(system, t)))
    return apply.null_part(system, inside) - fitted


# The residual of least squares of A^H beside a ridge: r = b - A^H x = -lambda y, all digits of it
# right, for (x, y) = M^-1 (0, b). With R and X for b -> r and b -> x, and with Y g for the y of
# M^-1 (g, 0),
#
#     dr = R (db - dA^H x) + Y (dlambda x - dA r)
#
# R is self-adjoint, and X the adjoint of Y: with rho = R r-bar and xi = X r-bar
#
#     b-bar = rho    A-bar = -x rho^H - xi r^H    lambda-bar = Re(xi^H x)


def pullback_of_residual(apply: Operators, solved: Solved, r_bar: Array) -> Solved:
    """Cotangents of a system and of f = b, from that of r; x is the user's."""
    system, _, _, r, x = solved
    rho, xi, back = apply.residual(system, r_bar)
    rho, one = back(rho), jnp.ones_like(r[..., :1, :1])
    pairs = [(x, -rho), (xi, -back(r))]  # xi itself may be out of range
    system_bar = _cotangent(system._replace(d=one), pairs, inner_product(back(xi), x, one))
    return Solved(system_bar, rho, None, r=None, x=None)


def pushforward_of_residual(apply: Operators, solved: Solved, tangents: Solved) -> Array:
    """dr from the tangents of a system and of f = b."""
    system, _, _, r, x = solved
    dot, f, _, _, _ = tangents
    one, g = jnp.ones_like(r[..., :1, :1]), None
    if dot.ridge is not None:
        g = dot.ridge.astype(x.dtype) * x
    if dot.a is not None:
        da = matrix(system, dot.a)
        f = plus(f, -adjoint_times(da, one, x))
        g = plus(g, -times(da, jnp.ones_like(r[..., :1]), r))
    return _residual_for(apply, system, f, g)


def _residual_for(apply: Operators, system: System, f: Array | None, g: Array | None) -> Array:
    """R F + Y G."""
    r = None
    if f is not None:
        r, _, back = apply.residual(system, f)
        r = back(r)
    if g is not None:
        r = plus(r, apply.solve(system, g, None)[1] / system.d)
    assert r is not None
    return r


def taylor_of_residual(apply: Operators, solved: Solved, terms: Solved) -> Array:
    """The series of r, stacked, from those of a system, of f = b and of x."""
    system, _, _, r, _ = solved
    (a, ridge, *_), f, _, _, xs = terms
    assert ridge is not None
    assert f is not None
    a = matrix(system, a)
    orders = a.shape[0]
    wide, tall = (_joined(a[1:], axis) for axis in (-1, -2))
    one = jnp.ones_like(r[..., :1, :1])
    ones = jnp.concatenate([jnp.ones_like(r[..., :1])] * (orders - 1), axis=-2)

    def step(d: Array, rs: Array) -> Array:
        r, x = (reversed_from(known, d - 1)[:-1] for known in (rs, xs))
        f_d = f[d] - adjoint_times(tall, one, _joined(x, -2))
        g_d = jnp.sum(ridge[1:].astype(x.dtype) * x, axis=0)
        g_d = g_d - times(wide, ones, _joined(r, -2))
        return rs.at[d].set(_residual_for(apply, system, f_d, g_d))

    rs: Array = lax.fori_loop(1, orders, step, from_first(r, orders))
    return rs


def pullback_of_sum_of_squares(
    r: Array, x: Array, d: Array, ridge: Array | None, bar: Array
) -> tuple[Array | None, Array, Array]:
    """Cotangents of x, A and b, for ||r||^2 (..., nrhs) of r = b - A x with A^H r = lambda x."""
    b_bar = twice(bar, r)
    a_bar = product_over(-b_bar, d, x, as_adjoint=False)
    x_bar = None if ridge is None else -twice(bar, shifted(ridge, d, x))
    return x_bar, a_bar, b_bar


def twice(bar: Array, x: Array) -> Array:
    """2 bar_j x_j: the cotangent of each column of x from that of ||x_j||^2."""
    return (2 * bar[..., None, :]).astype(x.dtype) * x


def pushforward_of_sum_of_squares(
    r: Array,
    x: Array,
    d: Array,
    ridge: Array | None,
    dx: Array | None,
    da: Array | None,
    db: Array | None,
) -> Array:
    """The tangent of ||r||^2: 2 Re r^H (db - dA x) - 2 lambda Re x^H dx."""
    half = jnp.zeros_like(r.real[..., 0, :])
    if db is not None:
        half = half + real_products(r, db)
    if da is not None:
        half = half - real_products(r, times(da, d, x))
    if ridge is not None and dx is not None:
        half = half - real_products(shifted(ridge, d, x), dx)
    return 2 * half


def real_products(x: Array, y: Array) -> Array:
    """Re x_j^H y_j of each column, (..., nrhs); in units of x, as both may be small."""
    units = units_of_columns(x)
    products = jnp.sum((jnp.conj(divided(x, units)) * y).real, axis=-2)
    return products * units.real[..., 0, :]


def _cotangent(
    system: System, pairs: Sequence[tuple[Array, Array]], ridge_bar: Array | None
) -> System:
    """A-bar, the sum of left right^H D^-1 over the pairs, as one product; and ridge-bar."""
    left, right = (jnp.concatenate(side, axis=-1) for side in zip(*pairs, strict=True))
    a_bar = product_over(left, system.d, right, as_adjoint=is_adjoint(system))
    root, q = jax.tree.map(lambda _: None, (system.root, system.q))
    return System(a_bar, ridge_bar, None, root, None, q)


def plus(x: Array | None, y: Array) -> Array:
    """X + Y, of which X may be None, which is zero."""
    return y if x is None else x + y
