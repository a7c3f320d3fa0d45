"""Least squares."""

import functools
import math
from typing import Any, Literal, NamedTuple, cast, overload

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxqr._arguments import (
    as_array,
    as_matrices,
    batch_of,
    by_name,
    compute_dtype,
    flags,
    nonnegative,
    not_sharded,
    one_of,
    promoted,
    require_rank,
    result_dtype,
    ridge_of,
)
from jaxqr._autodiff import constant, with_more_columns
from jaxqr._forward import least_squares
from jaxqr._linalg.augmented import beside_one, middle, rank
from jaxqr._linalg.batching import at_most, is_wide, with_batch_of
from jaxqr._linalg.dependence import ROUNDING, dependent_columns, first_dependent
from jaxqr._linalg.exporting import serializable
from jaxqr._linalg.products import adjoint, matmul
from jaxqr._linalg.scaling import divided, unit, units_of_columns
from jaxqr._rules import least_squares as rules
from jaxqr._rules.least_squares import Solved, System
from jaxqr._solution import (
    derive,
    linear_solution,
    operators,
    residual_of,
    solution_for_g,
    solution_of,
    sum_of_squares,
)


@serializable
class LeastSquares(NamedTuple):
    """What ``lstsq(..., full=True)`` returns; each field is differentiable but the rank."""

    x: Array  # (..., n) or (..., n, nrhs)
    rss: Array  # ||b - A x||^2, real, (...,) or (..., nrhs)
    rank: Array  # (...,), integers
    covariance: Array  # (A^H A + ridge I)^+, (..., n, n)


# Whether rank was lost, the matrix of the batch and its column.
Lost = tuple[Array, Array, Array]


@overload
def lstsq(
    a: ArrayLike,
    b: ArrayLike,
    *,
    rcond: ArrayLike | Literal["auto"] | None = None,
    ridge: ArrayLike = 0.0,
    forward_mode: bool = False,
    check_rank: bool = False,
    full: Literal[False] = False,
) -> Array: ...


@overload
def lstsq(
    a: ArrayLike,
    b: ArrayLike,
    *,
    rcond: ArrayLike | Literal["auto"] | None = None,
    ridge: ArrayLike = 0.0,
    forward_mode: bool = False,
    check_rank: bool = False,
    full: Literal[True],
) -> LeastSquares: ...


@overload
def lstsq(
    a: ArrayLike,
    b: ArrayLike,
    *,
    rcond: ArrayLike | Literal["auto"] | None = None,
    ridge: ArrayLike = 0.0,
    forward_mode: bool = False,
    check_rank: bool = False,
    full: bool,
) -> Array | LeastSquares: ...


@by_name
def lstsq(
    a: ArrayLike,
    b: ArrayLike,
    *,
    rcond: ArrayLike | Literal["auto"] | None = None,
    ridge: ArrayLike = 0.0,
    forward_mode: bool = False,
    check_rank: bool = False,
    full: bool = False,
) -> Array | LeastSquares:
    """The x that minimizes ||A x - b||, and the shortest where there are many; differentiable.

    It returns x itself, where NumPy, SciPy, ``jnp.linalg`` and torch return a tuple that begins
    with it: ``lstsq(a, b)[0]`` is the first element of x here. ``full=True`` returns a tuple.

    Args:
        a: (..., m, n), real or complex, of any shape and of any type that :func:`jaxqr.qr` takes.
        b: right-hand sides: vectors (..., m) where b has one axis, or one axis less than a;
            matrices (..., m, nrhs) otherwise. The number of axes decides, never their lengths.
            The batch axes of a and b (and ridge) broadcast against each other. Many right-hand
            sides of one matrix share its factorization, as (m, nrhs), as a batch (..., m, nrhs)
            beside a (m, n), and under ``vmap`` over b alone.
        rcond: None assumes that A has full rank, min(m, n); where it has not, the result is not
            finite, or finite and without a correct digit where rounding hides it: see
            ``check_rank``. (None has another meaning in NumPy and jnp: "auto" is next to it.) A
            number from 0 to 1, which may be traced, finds the rank of each matrix: the number of
            diagonal elements of the column-pivoted R with |r_jj| > rcond |r_00|. What lies below
            is taken to be zero. "auto" is what to begin with, for data exact to the last digit: 8
            times the spacing eps of the type. Rounding was seen to leave up to 4 eps of a dependent
            column, however many rows there are (20 where few rows repeat ten thousand times).
            max(m, n) * eps, which others take, drops good columns of tall data: of years and a
            constant over 10000 rows in float32, one.
        ridge: real and >= 0: minimizes ||A x - b||^2 + ridge ||x||^2 instead, for A of any shape
            and, where ridge > 0, of any rank. A number, or one for each matrix of the batch
            (...,); it may be traced, is differentiable, at 0 too, and goes to 0 continuously where
            A has full rank. Where it is infinite, x is zero. Not together with rcond.
        forward_mode: as in :func:`jaxqr.qr`.
        check_rank: True adds a ``jax.experimental.checkify`` check that names the first column (row
            of wide A) that depends on those before it. Not together with rcond, which finds it.
        full: True returns x among what else there is: see below.

    Returns:
        x (..., n), or (..., n, nrhs), in the type to which those of a and b promote. Half types are
        computed in float32. With ``full``, ``LeastSquares(x, rss, rank, covariance)``: the sum of
        squares ||b - A x||^2 (...,) or (..., nrhs); the rank (...,) that was found, or without
        rcond the number of columns (rows of wide A) that do not depend on those before them, where
        [A; sqrt(ridge) I] stands for A; and (A^H A + ridge I)^+ (..., n, n), which times the
        variance of the noise in b is the covariance of x (with a ridge, for m < n, not finite at
        0). What is not used of it costs nothing under ``jit``; the sum of squares takes another
        factorization of square A with a ridge, of which it has all digits that are left.

    Raises:
        ValueError: a has fewer than two axes; b none; rows or batch axes do not match; rcond is
            not a scalar; rcond and ridge, or rcond and check_rank, are both given; one of them is
            known to be negative or not a number, or rcond to be beyond 1.
        TypeError: an argument is not an array of numbers; rcond or ridge is complex.

    All of it is done by orthogonal factorization, the ridge by that of A and sqrt(ridge) I, the
    larger of the two above the other. Deep and square A (m >= n): the reflectors that make A
    triangular are applied to b as they are, so Q is never formed (but for square A with a ridge):
    2 m n^2 operations. Wide A: the LQ factorization. With rcond: column-pivoted QR and a complete
    orthogonal decomposition, two to three times that. Columns are in units of their own, equations
    of square A as well, and wide A's columns are taken in order of their size: units cost no digits
    (A. J. Cox and N. J. Higham, "Stability of Householder QR factorization for weighted least
    squares problems", 1998). Equations of deep A have weights, and are taken as they are.

    The derivative is that of G. H. Golub and V. Pereyra, "The differentiation of pseudo-inverses
    and nonlinear least squares problems whose variables separate", SIAM J. Numer. Anal. 10 (1973),
    along matrices of the same rank: x itself jumps where the rank changes. With
    r = b - A x, z = A^+ A^+H x-bar and, where A has not full column rank, w = A^+H x and
    u = x-bar - A^H b-bar,

        b-bar = A^+H x-bar        A-bar = r z^H + w u^H - b-bar x^H

    It takes triangular solves and products with A: 8 m n nrhs operations for deep A. Nothing of
    the size of A is kept beside A but, for wide and square A or in forward mode, Q or its
    reflectors. Equal singular values do no harm. Where there is no residual (square A, full row
    rank), r is zero, not rounding; and all of it holds at every scale of A and b that the type has.

    For deep A, b-bar is that of the semi-normal equations, with an error of about eps cond(A).
    Where rows of A fall off and are few (weights from 1 to 1e-5 on 8 rows of 6 columns), Q gives
    b-bar to a few eps, 1e4 times better, and A-bar two to five times: ``forward_mode=True`` keeps
    Q, for the gradient too.

    >>> import jax, jax.numpy as jnp, jaxqr, numpy as np
    >>> a = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])  # a line through three points
    >>> b = jnp.array([0.0, 1.0, 5.0])
    >>> print(np.asarray(jaxqr.lstsq(a, b)).round(4))
    [-0.5  2.5]
    >>> intercept = lambda b: jaxqr.lstsq(a, b)[0]
    >>> print(np.asarray(jax.grad(intercept)(b)).round(4))
    [ 0.8333  0.3333 -0.1667]
    >>> twice = jnp.concatenate([a, a], axis=1)  # rank 2 of 4
    >>> print(np.asarray(jaxqr.lstsq(twice, b, rcond="auto")).round(4))
    [-0.25  1.25 -0.25  1.25]
    >>> shrunk = lambda ridge: jaxqr.lstsq(a, b, ridge=ridge)[1]
    >>> print(np.asarray(jax.grad(shrunk)(1.0)).round(4))
    -0.4222
    >>> fit = jaxqr.lstsq(a, b, full=True)
    >>> print(np.asarray(fit.rss).round(4), fit.rank, np.asarray(fit.covariance).round(4).tolist())
    1.5 2 [[0.8333, -0.5], [-0.5, 0.5]]
    """
    a = as_matrices("lstsq", "a", a)
    b = as_array("lstsq", "b", b)
    shift = ridge_of("lstsq", ridge)
    cut = _cut(a, b, rcond)
    flags("lstsq", forward_mode=forward_mode, check_rank=check_rank, full=full)
    if cut is not None and shift is not None:
        raise ValueError(
            "lstsq expects rcond or ridge but not both: with ridge > 0 there is one solution, "
            f"whatever the rank. Got rcond={rcond} and ridge={ridge}."
        )
    if cut is not None and check_rank:
        raise ValueError(
            "lstsq expects rcond or check_rank but not both: with rcond it finds the rank, and "
            f"full=True tells it. Got rcond={rcond}."
        )
    vectors = b.ndim in (1, a.ndim - 1)
    _check_shapes(a, b, shift, vectors)
    not_sharded("lstsq", "b", b, -1 if vectors else -2)
    out, lost = _lstsq(
        a,
        b[..., None] if vectors else b,
        shift,
        cut,
        forward_mode=forward_mode,
        check_rank=check_rank,
        full=full,
    )
    if lost is not None:
        found = constant(tuple, lost)  # jit may have made series of zeros for them
        line = "row" if a.shape[-2] < a.shape[-1] else "column"
        hint = " rcond finds the rank of such a matrix."
        require_rank("lstsq", (line, "before it"), a, found, hint)
    if vectors:
        out = out._replace(x=out.x[..., 0], rss=None if out.rss is None else out.rss[..., 0])
    return out if full else cast(Array, out.x)


def _cut(a: Array, b: Array, rcond: ArrayLike | str | None) -> Array | None:
    if rcond is None:
        return None
    if isinstance(rcond, str | bool):
        one_of("lstsq", "rcond", rcond, ("auto",), "None", "a number in 0..1")
        scalar = compute_dtype(promoted("lstsq", a=a, b=b))
        return jnp.asarray(ROUNDING * float(jnp.finfo(scalar).eps))
    return nonnegative("lstsq", "rcond", rcond, most=1, scalar=True)


def _check_shapes(a: Array, b: Array, ridge: Array | None, vectors: bool) -> None:
    if not b.ndim:
        raise ValueError(
            "lstsq expects b to have shape (..., m) or (..., m, nrhs), for a of shape "
            f"(..., m, n). Got a of shape {a.shape} and b of shape ()."
        )
    form, rows = ("(..., m)", b.shape[-1]) if vectors else ("(..., m, nrhs)", b.shape[-2])
    got = (
        f"Got a of shape {a.shape} and b of shape {b.shape}, which by its number of axes is {form}."
    )
    if rows != a.shape[-2]:
        raise ValueError(f"lstsq expects a (..., m, n) and b to have the same m rows. {got}")
    shapes = [a.shape[:-2], b.shape[: -1 if vectors else -2]]
    if ridge is not None:
        shapes.append(ridge.shape)
        got += f" And ridge of shape {ridge.shape}."
    batch_of("lstsq", got, *shapes)


@functools.partial(jax.jit, static_argnames=("forward_mode", "full", "check_rank"))
def _lstsq(
    a: Array, b: Array, ridge: Array | None, rcond: Array | None, **options: bool
) -> tuple[LeastSquares, Lost | None]:
    """Of a (..., m, n) and b (..., m, nrhs), in the type that they promote to.

    What was not asked for is None.
    """
    dtype = promoted("lstsq", a=a, b=b)
    scalar = compute_dtype(dtype)
    real = jnp.finfo(scalar).dtype
    ridge, rcond = (None if x is None else x.astype(real) for x in (ridge, rcond))
    if jnp.iscomplexobj(a) or not jnp.iscomplexobj(b):
        out, lost = _real_or_complex(a.astype(scalar), b.astype(scalar), ridge, rcond, **options)
    else:  # two real right-hand sides cost half of what a complex matrix does
        b = b.astype(scalar)
        parts = jnp.concatenate([b.real, b.imag], axis=-1)
        out, lost = _real_or_complex(a.astype(real), parts, ridge, rcond, **options)
        out = out._replace(x=lax.complex(*jnp.split(out.x, 2, axis=-1)))
        if out.rss is not None:
            out = out._replace(rss=jnp.add(*jnp.split(out.rss, 2, axis=-1)))
    result = result_dtype(dtype)
    out = out._replace(x=out.x.astype(result))
    if out.rss is not None:
        result = result if jnp.iscomplexobj(a) else jnp.finfo(result).dtype
        out = out._replace(
            rss=out.rss.astype(jnp.finfo(result).dtype), covariance=out.covariance.astype(result)
        )
    return out, lost


def _real_or_complex(
    a: Array, b: Array, ridge: Array | None, rcond: Array | None, **options: bool
) -> tuple[LeastSquares, Lost | None]:
    """Of a and b of one type, with their batch axes broadcast against each other."""
    (m, n), nrhs = a.shape[-2:], b.shape[-1]
    of_ridge = () if ridge is None else ridge.shape
    batch = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2], of_ridge)
    if nrhs == 0 and (options["full"] or options["check_rank"]):  # which are of A alone
        column = jnp.zeros_like(b, shape=(*b.shape[:-1], 1))
        out, lost = _real_or_complex(a, column, ridge, rcond, **options)
        rss = None if out.rss is None else out.rss[..., :0]
        return out._replace(x=out.x[..., :0], rss=rss), lost
    if 0 in (*batch, m, n, nrhs):
        lost = first_dependent(a[..., :0, :0]) if options["check_rank"] else None
        return _of_nothing(a, b, ridge, batch, options["forward_mode"]), lost
    if a.ndim == 2 and b.ndim > 2 and of_ridge == ():  # one matrix: more b are more columns
        columns = jnp.moveaxis(b, -2, 0).reshape(m, nrhs * math.prod(batch))
        ridge = None if ridge is None else ridge[None, None]
        out, lost = _solve(a, columns, ridge, rcond, **options)
        out = out._replace(x=jnp.moveaxis(out.x.reshape(n, *batch, nrhs), 0, -2))
        if out.rss is not None:
            out = out._replace(
                rss=out.rss.reshape(*batch, nrhs),
                rank=jnp.broadcast_to(out.rank, batch),
                covariance=jnp.broadcast_to(out.covariance, (*batch, n, n)),
            )
        return out, lost
    a = jnp.broadcast_to(a, (*batch, m, n))
    if ridge is not None:
        ridge = with_batch_of(a, jnp.broadcast_to(ridge, batch)[..., None, None])
    b = b if b.shape[:-2] == batch else with_batch_of(a, b)
    return _solve(a, b, ridge, rcond, **options)


def _of_nothing(
    a: Array, b: Array, ridge: Array | None, batch: tuple[int, ...], forward_mode: bool
) -> LeastSquares:
    """Of empty arrays."""
    n, nrhs = a.shape[-1], b.shape[-1]
    covariance = jnp.zeros((*batch, n, n), a.dtype)
    if ridge is not None:
        each = jnp.broadcast_to(ridge, batch)[..., None, None]
        covariance = _over(each, _identity(n, covariance))
    rss = sum_of_squares(b, forward_mode=forward_mode)
    return LeastSquares(
        x=jnp.zeros((*batch, n, nrhs), a.dtype),
        rss=jnp.broadcast_to(rss, (*batch, nrhs)),
        rank=jnp.zeros(batch, jnp.int32),
        covariance=covariance,
    )


def _solve(
    a: Array, b: Array, ridge: Array | None, rcond: Array | None, **options: Any
) -> tuple[LeastSquares, Lost | None]:
    """Of a and b with the same batch axes; ridge (..., 1, 1)."""
    solve = functools.partial(_solve_columns, **options)
    (x, rss), (rank, covariance, lost) = with_more_columns(solve, b, a, ridge, rcond)
    return LeastSquares(x, rss, rank, covariance), lost


def _solve_columns(
    b: Array,
    a: Array,
    ridge: Array | None,
    rcond: Array | None,
    *,
    forward_mode: bool,
    full: bool,
    check_rank: bool,
) -> tuple[tuple[Array, Array | None], tuple[Array | None, Array | None, Lost | None]]:
    """(x, rss), and what does not know b: rank, covariance, and what check_rank found.

    Where the ridge is infinite, x is zero whatever A is, and so are all derivatives.
    """
    infinite, finite = None, None
    if ridge is not None:
        infinite = jnp.equal(ridge, jnp.inf)
        finite = jnp.where(infinite, 1, ridge)
    r, measured, x, system = _solved(a, b, finite, rcond, forward_mode)
    if infinite is not None:
        measured, x = (jnp.where(infinite, 0 * of_one, of_one) for of_one in (measured, x))
    lost = constant(first_dependent, _triangle(system)) if check_rank else None
    if not full:
        return (x, None), (None, None, lost)
    by_y = rules.is_adjoint(system)
    if finite is not None and a.shape[-2] == a.shape[-1]:
        # Where the ridge is small, b - A x is rounding, and -ridge y is not.
        (r, *_), by_y = _solved_wide(a, b, finite, forward_mode), True
    covariance = _covariance(system, forward_mode)
    if infinite is not None:
        r = jnp.where(infinite, b, r)
        covariance = jnp.where(infinite, 0 * covariance, covariance)
    others = () if by_y else (measured, lax.stop_gradient(system.d), a, b, finite)
    rss = sum_of_squares(r, *others, forward_mode=forward_mode)
    return (x, rss), (_rank(system), covariance, lost)


def _solved(
    a: Array, b: Array, ridge: Array | None, rcond: Array | None, forward_mode: bool
) -> tuple[Array, Array, Array, System]:
    """b - A x, the system's x, x and the system; all but the system with their derivatives.

    Which factorization, and which parts of it the derivatives are to keep.
    """
    rows, columns = a.shape[-2:]
    if rcond is None and is_wide(rows, columns):
        return _solved_wide(a, b, ridge, forward_mode)
    # Square A keeps its reflectors; above or below a ridge it has none, and Q serves.
    by_q = forward_mode or rcond is not None or (ridge is not None and rows == columns)
    if not by_q and at_most(b.shape[-1], columns):
        solved = _solved_without_q(a, b, ridge)
    else:
        factors = constant(least_squares.factor, a, ridge, rcond)
        system = System(a, ridge, lax.stop_gradient(rcond), *factors)
        if forward_mode:
            return *linear_solution(system, b, None), system
        solution = constant(solution_of, system, b, None)
        kept = system if at_most(rows, columns) else system._replace(q=None)
        solved = Solved(kept, b, None, *solution)
    return *derive(solved, forward_mode), solved.system


def _solved_without_q(a: Array, b: Array, ridge: Array | None) -> Solved:
    """The system and its solution, before derivatives."""
    a_, b_ = lax.stop_gradient((a, b))
    size = units_of_columns(b_)
    solve = least_squares.factor_and_solve_without_q
    factors, measured = constant(solve, a, divided(b, size), ridge)
    system = System(a, ridge, None, *factors)
    x = divided(measured, system.d) * size
    r = b_ - matmul(a_, x)
    spanned = rules.spans(lax.stop_gradient(system))
    r = r if spanned is None else jnp.where(spanned, 0, r)
    return Solved(system, b, None, r, measured * size)


def _solved_wide(
    a: Array, b: Array, ridge: Array | None, forward_mode: bool
) -> tuple[Array, Array, Array, System]:
    """As ``_solved``: the shortest x is the augmented system's r for the matrix A^H and g = b.

    Square A can come this way too.
    """
    across = adjoint(a)
    if ridge is None and not forward_mode and at_most(b.shape[-1], a.shape[-2]):
        factors = constant(least_squares.factor_for_few_products, across)
    else:
        factor = functools.partial(least_squares.factor, by_size=True)
        factors = constant(factor, across, ridge, None)
    # Of wide A, the rules know that A^H is meant.
    system = System(a if is_wide(*a.shape[-2:]) else across, ridge, None, *factors)
    x, y = _shortest(system, b, forward_mode)
    r = jnp.zeros_like(b) if ridge is None else residual_of(system, b, x, y, forward_mode)
    return r, y, x, system


def _shortest(system: System, b: Array, forward_mode: bool) -> tuple[Array, Array]:
    """x of a wide A, and d y of A A^H y + ridge y = -b."""
    d = system.d
    if not forward_mode:
        solution = constant(solution_for_g, system, b)
        x, y, _ = derive(Solved(system, None, b / d, *solution), forward_mode=False)
        return x, y
    # As near_one does, but linear in b, and half of it for what goes the other way.
    half = unit(jnp.sqrt(middle(d).real)).astype(d.dtype)
    x, y = (x / half for x in linear_solution(system, None, b / beside_one(d, half))[:2])
    return x, y


def _rank(system: System) -> Array:
    """The rank (...,) that was found, or the number of independent columns."""
    if system.rcond is not None:
        return rank(system.root)[..., 0, 0].astype(jnp.int32)
    dependent = constant(dependent_columns, _triangle(system))
    independent: Array = jnp.sum(~dependent, axis=-1, dtype=jnp.int32)
    return independent


def _triangle(system: System) -> Array:
    """U, without what LAPACK has below it."""
    (u,) = system.root
    return jnp.triu(lax.stop_gradient(u))


def _covariance(system: System, forward_mode: bool) -> Array:
    """(A^H A + ridge I)^+ (..., n, n), with its derivative, from M^+ (0, I)."""
    a, d, ridge = system.a, system.d, system.ridge
    m, n = a.shape[-2:]
    wide = rules.is_adjoint(system)
    r, x = operators(forward_mode).solve(system, None, _identity(m if wide else n, a) / d)
    covariance: Array
    if not wide:
        covariance = -x / d
    elif ridge is None:
        covariance = matmul(r, adjoint(r))  # r is A^+
    else:
        covariance = _over(ridge, _identity(n, a) - matmul(r, a))
    return covariance


def _over(ridge: Array, x: Array) -> Array:
    """X / ridge, whose derivative would have 1 / ridge^2, out of range before 1 / ridge is."""
    inverse = 1 / jnp.sqrt(ridge).astype(x.dtype)
    return x * inverse * inverse


def _identity(n: int, a: Array) -> Array:
    """(..., n, n), with the batch axes of a."""
    return jnp.broadcast_to(jnp.eye(n, dtype=a.dtype), (*a.shape[:-2], n, n))
