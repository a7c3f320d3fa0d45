"""The derivative of least squares: the rules by themselves, then against four other derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import (
    DTYPES,
    assert_close,
    central_difference,
    covering,
    gaussian,
    inner,
    matrix,
    norm,
    random_like,
    tolerance,
)

import jaxqr
from jaxqr._forward import least_squares
from jaxqr._linalg.augmented import solve_augmented, solve_augmented_without_q
from jaxqr._rules import least_squares as rules
from jaxqr._solution import NullPart, Residual, Solution, operators

SHAPES = [(7, 4), (4, 4), (4, 7)]
RCOND = 1e-9
COMPLEX = pytest.mark.parametrize("dtype", ["float64", "complex128"])


def product(shape, rank, dtype, seed=0):
    """Two factors of a matrix (m, n) of this rank: a chart of the manifold of that rank."""
    left = matrix((shape[0], rank), dtype, cond=4, seed=seed)
    return left, matrix((rank, shape[1]), dtype, cond=4, seed=seed + 1)


def curve(shape, rank, dtype):
    """A(t) of constant rank, and dA at 0."""
    left, right = product(shape, rank, dtype)
    dleft, dright = product(shape, rank, dtype, seed=2)

    def a(t):
        return jnp.asarray((left + t * dleft) @ (right + t * dright))

    return a, jnp.asarray(left @ dright + dleft @ right)


# The rules by themselves.


def solved(kind, f, g, dtype, shape=(6, 4)):
    """A solved system of some kind, with the right-hand sides named."""
    a = jnp.asarray(matrix(shape, dtype))
    ridge = rcond = None
    if kind == "ridge":
        ridge = jnp.full((1, 1), 0.3)
    if kind == "deficient":
        a, rcond = jnp.asarray(np.matmul(*product(shape, 2, dtype))), jnp.asarray(RCOND)
    root, d, q = least_squares.factor(a, ridge, rcond)
    f = jnp.asarray(gaussian((shape[0], 2), dtype)) if f else None
    g = jnp.asarray(gaussian((shape[1], 2), dtype)) if g else None
    r, x = solve_augmented(root, q, f, g)
    return rules.Solved(rules.System(a, ridge, rcond, root, d, q), f, g, r, x)


@COMPLEX
@pytest.mark.parametrize(("f", "g"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("kind", ["full", "ridge", "deficient"])
def test_augmented_system(kind, f, g, dtype):
    """What is solved is the system, and by Q as without it."""
    system, f, g, r, x = solved(kind, f, g, dtype)
    a = np.asarray(system.a)
    ridge = 0.0 if system.ridge is None else float(system.ridge[0, 0])
    measured_g, measured_x = g, x
    g, x = None if g is None else system.d * g, x / system.d
    tol = 10 * tolerance(dtype, a.shape)
    first, second = r + a @ x, a.conj().T @ r - ridge * x
    f = np.zeros_like(first) if f is None else f
    if g is None:
        g = np.zeros_like(second)
    elif kind == "deficient":
        g = a.conj().T @ np.linalg.pinv(a.conj().T, rcond=RCOND) @ g
    assert norm(first - f) <= tol * (norm(f) + norm(g))
    assert norm(second - g) <= tol * (norm(f) + norm(g))
    if kind == "deficient":
        row_space = np.linalg.pinv(a, rcond=RCOND) @ a
        assert norm(x - row_space @ x) <= tol * norm(x)
    if not norm(f):
        without = solve_augmented_without_q(system.a, system.d, system.root, measured_g)
        assert_close(without, (r, measured_x), tol)


def adjoint_pair(rule, args, constants):
    """Re<out-bar, push(dot)> and Re<pull(out-bar), dot>, in the convention of the paper."""
    structure_leaves = jax.tree.leaves(args)
    outputs = rule.forward(*structure_leaves)
    residuals = rule.residuals(structure_leaves, outputs)
    dots = [None if c else x for c, x in zip(constants, random_like(structure_leaves), strict=True)]
    out_bars = random_like(list(outputs), seed=50)
    pushed = rule.pushforward(residuals, dots)
    pulled = rule.pullback(residuals, tuple(out_bars))
    conj = functools.partial(jax.tree.map, np.conj)
    given = [(bar, dot) for bar, dot in zip(pulled, dots, strict=True) if dot is not None]
    bars, dots = zip(*given, strict=True)
    return inner(conj(out_bars), list(pushed)), inner(conj(list(bars)), list(dots))


def constants_of(system, *rest):
    """Which leaves are constants: rcond, the factors, and what the caller says."""
    marks = rules.System(
        a=False,
        ridge=None if system.ridge is None else False,
        rcond=None if system.rcond is None else True,
        root=(True,) * len(system.root),
        d=True,
        q=None if system.q is None else True,
    )
    return jax.tree.leaves((marks, *rest))


@COMPLEX
@pytest.mark.parametrize(("f", "g"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("kind", ["full", "ridge", "deficient"])
def test_pullback_is_the_adjoint_of_the_pushforward(kind, f, g, dtype):
    problem = solved(kind, f, g, dtype)
    given = [None if h is None else False for h in (problem.f, problem.g)]
    constants = constants_of(problem.system, *given, True, True)
    rule = Solution(jax.tree.structure(problem), True)
    pushed, pulled = adjoint_pair(rule, problem, constants)
    assert abs(pushed - pulled) <= 100 * tolerance(dtype, (6, 4)) * abs(pushed)


@COMPLEX
def test_null_part(dtype):
    """N t, and that its rules are adjoint and right along matrices of the same rank."""
    system = solved("deficient", True, False, dtype).system
    t = jnp.asarray(gaussian((4, 2), dtype))
    rule = NullPart(jax.tree.structure((system, t)), True)
    tol = 10 * tolerance(dtype, (6, 4))
    pushed, pulled = adjoint_pair(rule, (system, t), constants_of(system, False))
    assert abs(pushed - pulled) <= tol * abs(pushed)

    def null_part(a):
        root, d, q = least_squares.factor(jax.lax.stop_gradient(a), None, system.rcond)
        return operators(True).null_part(rules.System(a, None, system.rcond, root, d, q), t)

    def by_pinv(a):
        return t - np.linalg.pinv(np.asarray(a), rcond=RCOND) @ np.asarray(a) @ t

    a, da = curve((6, 4), 2, dtype)
    s, ds = jax.jvp(null_part, (a(0.0),), (da,))
    assert_close(s, by_pinv(a(0.0)), tol)
    assert_close(ds, central_difference(lambda t: by_pinv(a(t)), 0.0, 1.0, 1e-4), 1e-9)


@COMPLEX
@pytest.mark.parametrize("shape", [(4, 4), (3, 5)], ids=str)
def test_residual_beside_a_ridge(shape, dtype):
    """Of wide A and of square A, whose system has A^H for its matrix, and is called no adjoint."""
    a, ridge = jnp.asarray(matrix(shape, dtype)), jnp.full((1, 1), 0.3)
    b = jnp.asarray(gaussian((shape[0], 2), dtype))
    root, d, q = least_squares.factor(a.conj().mT, ridge, None)
    held = a if shape[0] < shape[1] else a.conj().mT
    system = rules.System(held, ridge, None, root, d, q)

    def by_inverse(a, ridge, b):
        a, ridge, b = map(np.asarray, (a, ridge, b))
        return ridge * np.linalg.solve(a @ a.conj().T + ridge * np.eye(len(a)), b)

    r, x, back = operators(True).residual(system, b)
    r, x = back(r), back(x)
    tol = 10 * tolerance(dtype, shape)
    assert_close(r, by_inverse(a, ridge, b), tol)
    assert norm(r - (b - a @ x)) <= tol * norm(b)

    problem = rules.Solved(system, b, None, r, x)
    rule = Residual(jax.tree.structure(problem), True)
    constants = constants_of(system, False, None, True, True)
    pushed, pulled = adjoint_pair(rule, problem, constants)
    assert abs(pushed - pulled) <= tol * abs(pushed)

    leaves = jax.tree.leaves(problem)
    dots = [None if c else x for c, x in zip(constants, random_like(leaves), strict=True)]
    (dr,) = rule.pushforward(leaves, dots)
    of_a, of_ridge, *_, of_b = (np.asarray(x) for x in dots if x is not None)
    of_a = of_a if shape[0] < shape[1] else of_a.conj().T

    def along(t):
        return by_inverse(np.asarray(a) + t * of_a, 0.3 + t * of_ridge, np.asarray(b) + t * of_b)

    assert_close(dr, central_difference(along, 0.0, 1.0, 1e-4), 1e-7)


# Against differences along the manifold of constant rank, first order and second.

RANKS = {"rcond": (1, 3, 4), "full": (4,), "ridge": (2,)}
CASES = [
    (shape, rank, kind, dtype)
    for shape, kind, dtype in covering(SHAPES, RANKS, ["complex128", "float64"])
    for rank in RANKS[kind]
]
OPTIONS = {"full": {}, "rcond": {"rcond": RCOND}, "ridge": {"ridge": 0.2}}


@functools.cache
def derivatives(kind):
    """Compiled once for all ranks: value, gradient of a loss, and the derivatives of both."""
    forward = functools.partial(jaxqr.lstsq, **OPTIONS[kind], forward_mode=True)
    reverse = functools.partial(jaxqr.lstsq, **OPTIONS[kind])

    def gradient(solve, a, b, x_bar):
        loss = lambda a, b: jnp.sum((solve(a, b) * x_bar).real ** 3)  # noqa: E731
        return jax.grad(loss, argnums=(0, 1))(a, b)

    @jax.jit
    def values(a, b, x_bar):
        return reverse(a, b), gradient(reverse, a, b, x_bar)

    @jax.jit
    def by_rule(at, dots, x_bar, weights):
        def weighted(a, b):
            pairs = zip(weights, gradient(reverse, a, b, x_bar), strict=True)
            return sum(jnp.sum(w * bar).real for w, bar in pairs)

        dx = jax.jvp(forward, at, dots)[1]
        bars = jax.vjp(reverse, *at)[1](x_bar)
        along = jax.jvp(lambda a, b: gradient(forward, a, b, x_bar), at, dots)[1]
        return (dx, bars), (along, jax.grad(weighted, argnums=(0, 1))(*at))

    return values, by_rule


@pytest.mark.parametrize(("shape", "rank", "kind", "dtype"), CASES, ids=str)
def test_against_differences(shape, rank, kind, dtype):
    a, da = curve(shape, rank, dtype)
    b, db = (jnp.asarray(gaussian((shape[0], 2), dtype, seed)) for seed in (0, 1))
    x_bar = random_like(jnp.zeros((shape[1], 2), dtype))
    at, dots = (a(0.0), b), (da, db)
    weights = random_like(at, seed=9)
    values, by_rule = derivatives(kind)
    expected = central_difference(lambda t: values(a(t), b + t * db, x_bar), 0.0, 1.0, 1e-4)
    first, second = by_rule(at, dots, x_bar, weights)
    for (along, bars), difference, bar in (
        (first, expected[0], x_bar),
        (second, expected[1], weights),
    ):
        assert_close(along, difference, 1e-7)
        scale = norm(bars[0]) * norm(da) + norm(bars[1]) * norm(db)
        assert abs(inner(bars, dots) - inner(bar, along)) <= 1e-11 * scale


# Against other programs' derivatives.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "rank"), [((7, 4), 2), ((4, 7), 3), ((5, 5), 4)], ids=str)
def test_against_the_pseudoinverse(shape, rank, dtype):
    """jnp.linalg.pinv goes through the SVD; its derivative is Golub and Pereyra's too."""
    a = jnp.asarray(np.matmul(*product(shape, rank, dtype)))
    b = jnp.asarray(gaussian((shape[0], 2), dtype))
    dots = random_like((a, b))
    tol = 20 * tolerance(dtype, shape, 16)
    rcond = 1e-4 if "32" in str(a.real.dtype) else RCOND

    @jax.jit
    def both(a, b, dots):
        solve = functools.partial(jaxqr.lstsq, rcond=rcond, forward_mode=True)
        by_pinv = lambda a, b: jnp.matmul(jnp.linalg.pinv(a, rtol=rcond), b)  # noqa: E731
        return [jax.jvp(f, (a, b), dots) for f in (solve, by_pinv)]

    ours, theirs = both(a, b, (along_rank(a, dots[0]), dots[1]))
    assert_close(ours, theirs, tol)


def along_rank(a, da):
    """The part of dA that is tangent to the manifold of constant rank."""
    dtype = a.dtype
    a, da = np.asarray(a), np.asarray(da)
    p = np.linalg.pinv(a.astype(np.result_type(dtype, np.float64)), rcond=1e-4)
    outside = (np.eye(a.shape[0]) - a @ p) @ da @ (np.eye(a.shape[1]) - p @ a)
    return jnp.asarray((da - outside).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_lineax(shape, dtype):
    lineax = pytest.importorskip("lineax")
    a, b = (jnp.asarray(x) for x in (matrix(shape, dtype), gaussian(shape[:1], dtype)))
    x_bar = random_like(jnp.zeros(shape[1], dtype))
    dots = random_like((a, b), seed=5)

    def by_lineax(a, b):
        operator = lineax.MatrixLinearOperator(a)
        return lineax.linear_solve(operator, b, solver=lineax.SVD()).value

    @jax.jit
    def derivatives(a, b):
        reverse = jax.vjp(jaxqr.lstsq, a, b)[1](x_bar)
        forward = jax.jvp(functools.partial(jaxqr.lstsq, forward_mode=True), (a, b), dots)
        theirs = jax.vjp(by_lineax, a, b)[1](x_bar), jax.jvp(by_lineax, (a, b), dots)
        return (reverse, forward), theirs

    ours, theirs = derivatives(a, b)
    assert_close(ours, theirs, 20 * tolerance(dtype, shape))
