"""The solvers for lineax: every shape, type and rank, their states, and lineax's derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import DTYPES, assert_close, gaussian, inner, matrix, random_like, tolerance

lx = pytest.importorskip("lineax", reason="the solvers for lineax need lineax")

import jaxqr  # noqa: E402
from jaxqr.lineax import QR, PivotedQR  # noqa: E402

SHAPES = [(6, 3), (2, 5)]
SOLVERS = [QR(), PivotedQR()]


def deficient(shape, dtype, rank: int, seed: int = 0):
    """A matrix (..., m, n) of the given rank and condition 10."""
    *batch, m, n = shape
    left = matrix((*batch, m, rank), dtype, 3.0, seed)
    return left @ matrix((*batch, rank, n), dtype, 3.0, seed + 1)


def test_it_comes_with_the_package():
    assert jaxqr.lineax.QR is QR
    with pytest.raises(AttributeError, match="module 'jaxqr' has no attribute 'lineaks'"):
        jaxqr.lineaks  # noqa: B018


@functools.partial(jax.jit, static_argnames=("solver", "throw"))
def solve(a, b, solver, throw=True):
    return lx.linear_solve(lx.MatrixLinearOperator(a), b, solver, throw=throw)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_states_solve_for_the_operator_its_transpose_and_conjugate(shape, dtype, solver):
    a, b, c = matrix(shape, dtype), gaussian(shape[:1], dtype), gaussian(shape[1:], dtype)
    tol = tolerance(dtype, shape)

    @jax.jit
    def four(a, b, c):
        state = solver.init(lx.MatrixLinearOperator(a), {})
        conjugate, _ = solver.conj(state, {})
        states = [state, conjugate, *(solver.transpose(s, {})[0] for s in (state, conjugate))]
        return [solver.compute(s, v, {})[0] for s, v in zip(states, (b, b, c, c), strict=True)]

    matrices = [a, a.conj(), a.T, a.conj().T]
    for x, of, v in zip(four(a, b, c), matrices, (b, b, c, c), strict=True):
        assert x.dtype == dtype
        assert_close(x, np.linalg.pinv(of) @ v, tol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6)], ids=str)
@pytest.mark.parametrize("rank", [0, 2])
def test_any_rank(shape, dtype, rank):
    a, b = deficient(shape, dtype, rank), gaussian(shape[:1], dtype)
    solution = solve(a, b, PivotedQR())
    assert solution.stats["rank"] == rank
    cut = 100 * float(np.finfo(dtype).eps)
    assert_close(solution.value, np.linalg.pinv(a, rcond=cut) @ b, tolerance(dtype, shape))


def test_rcond_sets_the_rank():
    a, b = np.diag([1.0, 1e-3, 1e-6]), np.ones(3)
    for rcond, rank in ((None, 3), (1e-4, 2), (1e-2, 1)):
        solution = solve(a, b, PivotedQR(rcond))
        assert solution.stats["rank"] == rank
        assert_close(solution.value, np.linalg.pinv(a, rcond=rcond or 0.0) @ b, 1e-13)


def test_without_full_rank_qr_says_so():
    solution = solve(np.zeros((3, 2)), np.ones(3), QR(), throw=False)
    assert solution.result == lx.RESULTS.singular
    with pytest.raises(Exception, match="singular"):
        solve(np.zeros((3, 2)), np.ones(3), QR())


@pytest.mark.parametrize(
    ("rcond", "message"),
    [
        (-1.0, r"rcond not to be negative. Got -1.0"),
        (np.nan, r"rcond to be in 0\.\.1. Got nan"),
        (2.0, r"rcond to be in 0\.\.1. Got 2.0"),
        (np.array([1e-3]), r"rcond to be a scalar. Got shape \(1,\)"),
        ("auto", "rcond to be one of None, a number in 0..1. Got 'auto'"),
    ],
    ids=str,
)
def test_rcond_is_checked(rcond, message):
    with pytest.raises((ValueError, TypeError), match=f"PivotedQR expects {message}"):
        PivotedQR(rcond)


def test_rcond_may_be_traced():
    a, b = np.diag([1.0, 1e-3, 1e-6]), np.ones(3)
    ranks = jax.vmap(lambda rcond: solve.__wrapped__(a, b, PivotedQR(rcond)).stats["rank"])
    assert ranks(jnp.array([1e-4, 1e-2])).tolist() == [2, 1]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0, 0)], ids=str)
def test_empty_operators(shape, solver):
    m, n = shape
    solution = solve(np.ones(shape), np.ones(m), solver)
    assert np.array_equal(solution.value, np.zeros(n))
    assert solution.stats.get("rank", 0) == 0
    bars = jax.grad(lambda a, b: jnp.sum(solve(a, b, solver).value), (0, 1))(
        np.ones(shape), np.ones(m)
    )
    assert [bar.tolist() for bar in bars] == [np.zeros(shape).tolist(), [0.0] * m]


# Derivatives: of the pseudoinverse, along operators of the same rank.


def moving(shape, dtype, rank):
    """A(t) of constant rank with A(0) = left right, and its tangent."""
    left, right = matrix((shape[0], rank), dtype, 3.0), matrix((rank, shape[1]), dtype, 3.0, 1)
    dl, dr = gaussian(left.shape, dtype, 2), gaussian(right.shape, dtype, 3)
    return (lambda t: (left + t * dl) @ (right + t * dr)), left @ dr + dl @ right


@pytest.mark.parametrize(
    ("shape", "rank", "solver", "dtype"),
    [
        ((6, 3), 3, QR(), "complex128"),
        ((3, 6), 3, QR(), "complex128"),
        ((4, 4), 4, QR(), "float64"),
        ((4, 4), 2, PivotedQR(), "complex128"),
        ((6, 3), 2, PivotedQR(), "complex128"),
        ((3, 6), 2, PivotedQR(), "float64"),
    ],
    ids=str,
)
def test_both_modes_of_differentiation(shape, rank, solver, dtype):
    path, da = moving(shape, dtype, rank)
    a, b, db = path(0.0), gaussian(shape[:1], dtype, 4), gaussian(shape[:1], dtype, 5)
    bar = random_like(np.zeros(shape[1], dtype))

    @jax.jit
    def both(a, b):
        def value(a, b):
            return lx.linear_solve(lx.MatrixLinearOperator(a), b, solver).value

        _, pullback = jax.vjp(value, a, b)
        return jax.jvp(value, (a, b), (da, db))[1], pullback(bar)

    def by_svd(t):
        return np.linalg.pinv(path(t), rcond=1e-9) @ (b + t * db)

    dx, bars = both(a, b)
    h = 1e-5
    assert_close(dx, (by_svd(h) - by_svd(-h)) / (2 * h), 1e-7)
    assert np.isclose(inner(bar, dx), inner(bars, (da, db)), rtol=1e-12)


def test_second_order():
    a, b, da = matrix((5, 3)), gaussian((5,)), gaussian((5, 3), seed=1)

    def turned(solver):
        def loss(a):
            return jnp.sum(jnp.sin(lx.linear_solve(lx.MatrixLinearOperator(a), b, solver).value))

        return jax.jit(lambda: jax.jvp(jax.grad(loss), (a,), (da,))[1])()

    assert_close(turned(QR()), turned(lx.SVD()), 1e-11)


def test_batches_of_mixed_ranks_under_vmap_jit_and_grad():
    a = np.concatenate([deficient((20, 5, 4), "float64", rank) for rank in (1, 2, 4)])
    b = gaussian((60, 5))

    def solutions(solver):
        return jax.vmap(lambda a, b: solve(a, b, solver))(a, b)

    by_qr, by_svd = solutions(PivotedQR(1e-9)), solutions(lx.SVD(1e-9))
    np.testing.assert_array_equal(by_qr.stats["rank"], by_svd.stats["rank"])
    assert_close(by_qr.value, by_svd.value, 1e-13)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(solver):
        def loss(a):
            return jnp.sum(jax.vmap(lambda a, b: solve(a, b, solver).value ** 2)(a, b))

        return jax.grad(loss)(a)

    assert_close(gradient(PivotedQR(1e-9)), gradient(lx.SVD(1e-9)), 1e-12)


def test_many_right_hand_sides_by_one_state():
    a, b = matrix((6, 3)), gaussian((7, 6))
    operator, solver = lx.MatrixLinearOperator(a), QR()
    state = solver.init(operator, {})
    x = jax.vmap(lambda b: lx.linear_solve(operator, b, solver, state=state).value)(b)
    assert_close(x.T, np.linalg.lstsq(a, b.T)[0], 1e-14)


# What is not one matrix and one vector of the four types.


def test_operators_on_pytrees_and_functions():
    x, y = gaussian((2,)), gaussian((3, 2))

    def f(z):
        return {"sum": z["x"][0] + jnp.sum(z["y"]) + 3 * z["x"], "y": jnp.cumsum(z["y"]) * 2.0}

    at = {"x": jnp.asarray(x), "y": jnp.asarray(y)}
    operator = lx.JacobianLinearOperator(lambda z, _: f(z), at)
    for solver in SOLVERS:
        for of in (operator, lx.FunctionLinearOperator(f, operator.in_structure())):
            solution = lx.linear_solve(of, f(at), solver).value
            jax.tree.map(lambda u, v: assert_close(u, v, 1e-13), solution, at)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_small_floats_are_factored_in_float32(dtype, solver):
    a, b = (jnp.asarray(x, dtype) for x in (matrix((6, 3)), gaussian((6,))))
    x = solve(a, b, solver).value
    assert x.dtype == dtype
    expected = np.linalg.lstsq(np.asarray(a, "float64"), np.asarray(b, "float64"))[0]
    assert_close(x.astype("float64"), expected, float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("solver", [QR(), PivotedQR()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["GaussNewton", "LevenbergMarquardt"])
def test_optimistix_fits_curves_with_it(name, solver):
    optimistix = pytest.importorskip("optimistix", reason="the fits need Optimistix")
    t = jnp.linspace(0.0, 1.0, 12)
    rates, heights = jnp.linspace(0.5, 3.0, 5), jnp.linspace(1.0, 2.0, 5)
    y = heights[:, None] * jnp.exp(-rates[:, None] * t[None])

    def residual(parameters, y):
        return parameters["height"] * jnp.exp(-parameters["rate"] * t) - y

    method = getattr(optimistix, name)(rtol=1e-10, atol=1e-10, linear_solver=solver)

    @jax.jit
    @jax.vmap
    def fit(y):
        start = {"height": jnp.ones(()), "rate": jnp.ones(())}
        return optimistix.least_squares(residual, method, start, args=y).value

    fitted = fit(y)
    assert_close(fitted["rate"], rates, 1e-9)
    assert_close(fitted["height"], heights, 1e-9)
