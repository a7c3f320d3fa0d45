"""Least squares: solutions, right-hand sides of every form, types, errors, certified answers."""

import functools

import jax
import jax.numpy as jnp
import nist
import numpy as np
import pytest
from numerics import DTYPES, assert_close, gaussian, matrix, norm, tolerance

import jaxqr

SHAPES = [(9, 4), (4, 4), (4, 9)]
COND = 10.0


def of_rank(shape, rank, dtype="float64", cond=COND, seed=0):
    """A random matrix (m, n) of this rank, its singular values from 1 to 1/cond."""
    wide = "complex128" if np.issubdtype(np.dtype(dtype), np.complexfloating) else "float64"
    u, _, vh = np.linalg.svd(gaussian(shape, wide, seed), full_matrices=False)
    s = np.geomspace(1, 1 / cond, rank) if rank else np.zeros(0)
    return (u[..., :rank] * s @ vh[..., :rank, :]).astype(dtype)


def by_svd(a, b, rank=None, ridge=0.0):
    """The solution in double precision, from the singular values."""
    u, s, vh = np.linalg.svd(np.asarray(a, np.result_type(a, np.float64)), full_matrices=False)
    rank = min(a.shape) if rank is None else rank
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    return vh.conj().T @ ((u.conj().T @ b).T * (s / (s**2 + ridge))).T


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_solution(shape, dtype):
    """Full rank by either path, with a ridge, and rank deficient."""
    full, deficient = matrix(shape, dtype), of_rank(shape, 2, dtype)
    b = gaussian((shape[0], 3), dtype)
    tol, rcond = tolerance(dtype, shape, COND), tolerance(dtype, shape, 1)
    for forward_mode in (False, True) if dtype == "complex128" else (False,):
        solve = functools.partial(jaxqr.lstsq, forward_mode=forward_mode)
        for ours, theirs in (
            (solve(full, b), by_svd(full, b)),
            (solve(full, b, rcond=rcond), by_svd(full, b)),
            (solve(full, b, ridge=0.3), by_svd(full, b, ridge=0.3)),
            (solve(deficient, b, ridge=0.3), by_svd(deficient, b, ridge=0.3)),
            (solve(deficient, b, rcond=rcond), by_svd(deficient, b, rank=2)),
        ):
            assert ours.dtype == dtype
            assert_close(ours, theirs.astype(dtype), tol)


def test_square_is_solve():
    a, b = matrix((5, 5)), gaussian((5,))
    assert_close(jaxqr.lstsq(a, b), np.linalg.solve(a, b), tolerance("float64", (5, 5)))


def test_more_right_hand_sides_than_columns():
    a, b = matrix((6, 2)), gaussian((6, 20))
    assert_close(jaxqr.lstsq(a, b), by_svd(a, b), tolerance("float64", (6, 2)))


# The forms of b: the number of axes decides.

FORMS = [  # a, b, x
    ((5, 3), (5,), (3,)),
    ((5, 3), (5, 2), (3, 2)),
    ((5, 3), (4, 5, 2), (4, 3, 2)),
    ((5, 3), (2, 4, 5, 1), (2, 4, 3, 1)),
    ((4, 5, 3), (5,), (4, 3)),
    ((4, 5, 3), (4, 5), (4, 3)),
    ((4, 5, 3), (1, 5), (4, 3)),
    ((1, 5, 3), (4, 5), (4, 3)),
    ((5, 5, 3), (5, 5), (5, 3)),  # vectors, by their number of axes
    ((4, 5, 3), (4, 5, 2), (4, 3, 2)),
    ((4, 5, 3), (1, 5, 2), (4, 3, 2)),
    ((2, 1, 5, 3), (2, 4, 5), (2, 4, 3)),
    ((2, 1, 5, 3), (1, 4, 5, 2), (2, 4, 3, 2)),
    ((4, 2, 5), (4, 2), (4, 5)),
]


@pytest.mark.parametrize(("of_a", "of_b", "of_x"), FORMS, ids=str)
def test_forms_of_b(of_a, of_b, of_x):
    """Values and cotangents, summed back over what was broadcast, against a loop."""
    a, b = jnp.asarray(matrix(of_a)), jnp.asarray(gaussian(of_b))
    vectors = len(of_b) in (1, len(of_a) - 1)
    b_batch = of_b[: -1 if vectors else -2]
    batch = np.broadcast_shapes(of_a[:-2], b_batch)
    x_bar = gaussian(of_x)

    x, pull = jax.vjp(jaxqr.lstsq, a, b)

    many_a = np.broadcast_to(a, (*batch, *of_a[-2:]))
    many_b = np.broadcast_to(b, (*batch, *of_b[len(b_batch) :]))
    expected, of_many_a, of_many_b = np.zeros(of_x), np.zeros(many_a.shape), np.zeros(many_b.shape)
    for at in np.ndindex(batch):
        pinv = np.linalg.pinv(many_a[at])
        expected[at] = pinv @ many_b[at]
        of_many_b[at] = pinv.T @ x_bar[at]
        columns = [y.reshape(len(y), -1) for y in (many_b[at], expected[at], x_bar[at])]
        of_many_a[at] = golub_pereyra(many_a[at], pinv, *columns)
    tol = tolerance("float64", of_a, c=64)
    assert_close(x, expected, tol)
    assert_close(pull(x_bar), (summed_to(of_a, of_many_a), summed_to(of_b, of_many_b)), tol)


def golub_pereyra(a, pinv, b, x, x_bar):
    """A-bar."""
    r, b_bar = b - a @ x, pinv.T @ x_bar
    return r @ (pinv @ b_bar).T + pinv.T @ x @ (x_bar - a.T @ b_bar).T - b_bar @ x.T


def summed_to(shape, x):
    """Summed over the axes along which something of this shape was broadcast."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    return x.sum(axis=tuple(i for i, n in enumerate(shape) if n != x.shape[i]), keepdims=True)


def test_a_batch_of_right_hand_sides_shares_the_factorization():
    a, b = jnp.asarray(matrix((50, 9))), jnp.asarray(gaussian((3, 50, 2)))
    text = jax.jit(jaxqr.lstsq).lower(a, b).as_text()
    assert "tensor<50x6xf64>" in text
    assert "tensor<3x50x9xf64>" not in text


def test_ridge_may_be_a_batch():
    a, b, ridges = matrix((5, 3)), gaussian((5,)), np.array([0.0, 0.1, 2.0])
    expected = np.stack([by_svd(a, b, ridge=ridge) for ridge in ridges])
    tol = tolerance("float64", (5, 3))
    assert_close(jaxqr.lstsq(a, b, ridge=ridges), expected, tol)
    assert_close(jax.vmap(lambda ridge: jaxqr.lstsq(a, b, ridge=ridge))(ridges), expected, tol)
    many = np.broadcast_to(a, (2, 1, 5, 3))
    x = jaxqr.lstsq(many, np.broadcast_to(b, (2, 1, 5)), ridge=ridges)
    assert_close(x, np.broadcast_to(expected, (2, 3, 3)), tol)


# Types.


@pytest.mark.parametrize(
    ("of_a", "of_b", "of_x"),
    [
        ("float32", "float64", "float64"),
        ("float32", "complex64", "complex64"),
        ("float32", "complex128", "complex128"),
        ("float64", "complex64", "complex128"),
        ("complex64", "float32", "complex64"),
        ("complex64", "float64", "complex128"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float16", "float32", "float32"),
        ("bfloat16", "float16", "float32"),
        ("float16", "complex64", "complex64"),
        ("int32", "float32", "float32"),
        ("int64", "int64", "float64"),
        ("bool", "bool", "float32"),
    ],
)
def test_types(of_a, of_b, of_x):
    """The result's type, its value, and cotangents in the types of the arguments."""
    seeds = gaussian((5, 3), "complex128"), gaussian((5, 2), "complex128", seed=1)
    a, b = (
        jnp.asarray(x if "complex" in d else x.real > 0 if d == "bool" else 3 * x.real).astype(d)
        for x, d in zip(seeds, (of_a, of_b), strict=True)
    )
    x = jaxqr.lstsq(a, b)
    assert x.dtype == of_x
    wide = [np.asarray(y).astype(np.complex128) for y in (a, b)]
    eps = float(jnp.finfo(x.dtype).eps)
    assert norm(np.asarray(x).astype(complex) - by_svd(*wide)) <= 500 * eps * norm(
        x.astype(complex)
    )
    moving = [i for i, y in enumerate((a, b)) if jnp.issubdtype(y.dtype, jnp.inexact)]
    if not moving:
        return

    def loss(a, b):
        return jnp.sum(jnp.abs(jaxqr.lstsq(a, b).astype("complex128")) ** 2)

    def by_pinv(a, b):
        x = jnp.linalg.pinv(a.astype("complex128"), rtol=1e-9) @ b.astype("complex128")
        return jnp.sum(jnp.abs(x) ** 2)

    for i in moving:
        bar, expected = (jax.jit(jax.grad(f, argnums=i))(a, b) for f in (loss, by_pinv))
        assert bar.dtype == (a, b)[i].dtype
        error = norm((bar - expected).astype(complex))
        assert error <= 2000 * eps * norm(expected.astype(complex))


# Edges.


@pytest.mark.parametrize("options", [{}, {"ridge": 0.1}, {"rcond": 1e-9}], ids=str)
def test_empty(options):
    for of_a, of_b, of_x in (
        ((0, 3), (0,), (3,)),
        ((3, 0), (3,), (0,)),
        ((3, 2), (3, 0), (2, 0)),
        ((0, 3, 2), (0, 3), (0, 2)),
        ((0, 0), (0, 4), (0, 4)),
    ):
        a, b = jnp.zeros(of_a), jnp.zeros(of_b)
        assert jaxqr.lstsq(a, b, **options).shape == of_x
        grad = jax.jit(jax.grad(lambda a, b: jaxqr.lstsq(a, b, **options).sum(), argnums=(0, 1)))
        bars = grad(a, b)
        assert [bar.shape for bar in bars] == [of_a, of_b]
        assert norm(jaxqr.lstsq(a, b, **options)) == 0


@pytest.mark.parametrize("options", [{}, {"ridge": 0.1}, {"rcond": 1e-9}], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nan_in_nan_out(shape, options):
    a, b = matrix((2, *shape)), gaussian((2, shape[0]))
    a[1, 2, 1] = np.nan
    x = jaxqr.lstsq(a, b, **options)
    assert np.isfinite(x[0]).all()
    assert np.isnan(x[1]).all()


@pytest.mark.parametrize("options", [{}, {"ridge": 0.1}, {"rcond": 1e-9}], ids=str)
def test_equal_singular_values(options):
    """jnp.linalg.lstsq has NaN here."""
    b = jnp.asarray(gaussian((4, 2)))
    loss = lambda a: jnp.sum(jaxqr.lstsq(a, b, **options) ** 3)  # noqa: E731
    a_bar = jax.jit(jax.grad(loss))(jnp.eye(4))
    x = b / (1 + options.get("ridge", 0.0))
    z = 3 * x**2 / (1 + options.get("ridge", 0.0))
    assert_close(a_bar, (b - x) @ z.T - z @ x.T, tolerance("float64", (4, 4), 1))


def test_nothing_is_known_of_a_zero_matrix():
    """Rank 0: the shortest solution is 0, and constant along matrices of rank 0."""
    a, b = jnp.zeros((4, 3)), jnp.ones(4)
    x, pull = jax.vjp(lambda a, b: jaxqr.lstsq(a, b, rcond=1e-9), a, b)
    assert norm(x) == norm(pull(jnp.ones(3))[0]) == norm(pull(jnp.ones(3))[1]) == 0


def test_rank_is_by_the_diagonal_of_r():
    """|r_jj| > rcond |r_00|; rcond may be traced, and is a constant to the derivative."""
    a, b = jnp.diag(jnp.array([1e-4, 1.0, 1e-8])), jnp.ones(3)
    for solve in (jaxqr.lstsq, jax.jit(jaxqr.lstsq)):
        assert_close(solve(a, b, rcond=1e-9), jnp.array([1e4, 1.0, 1e8]), 1e-12)
        assert_close(solve(a, b, rcond=1e-6), jnp.array([1e4, 1.0, 0.0]), 1e-12)
        assert_close(solve(a, b, rcond=1e-4), jnp.array([0.0, 1.0, 0.0]), 1e-12)
        assert_close(solve(a, b, rcond=1), jnp.zeros(3), 1e-12)
    assert jax.grad(lambda rcond: jaxqr.lstsq(a, b, rcond=rcond).sum())(1e-6) == 0


# Ridge.


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ridge_goes_to_zero_continuously(shape):
    """And so does the derivative in it; the condition 1e6 would be 1e12 in normal equations."""
    a, b = matrix(shape, cond=1e6), gaussian((shape[0], 2))
    tol = tolerance("float64", shape, cond=1e6)
    plain = jaxqr.lstsq(a, b)
    solve = jax.jit(lambda ridge: jaxqr.lstsq(a, b, ridge=ridge, forward_mode=True))
    x, slope = jax.jvp(solve, (0.0,), (1.0,))
    assert_close(x, plain, tol)
    assert_close(solve(1e-30), plain, tol)
    u, s, vh = np.linalg.svd(a, full_matrices=False)
    expected = -(vh.T / s**3) @ (u.T @ b)  # d/dridge of s / (s^2 + ridge)
    assert_close(slope, expected, 1e3 * tol)
    x_bar = gaussian(plain.shape)
    reverse = jax.grad(lambda ridge: jnp.sum(jaxqr.lstsq(a, b, ridge=ridge) * x_bar))
    assert abs(reverse(0.0) - np.sum(expected * x_bar)) <= 1e3 * tol * norm(expected) * norm(x_bar)
    for ridge in (1e-16, 1e-13, 1e-11):  # comparable to the smallest singular value squared
        assert_close(solve(ridge), by_svd(a, b, ridge=ridge), tol)


# Errors.


@pytest.mark.parametrize(
    ("of_a", "of_b", "options", "message"),
    [
        ((5,), (5,), {}, r"expects a to be a matrix .* Got shape \(5,\)"),
        ((5, 3), (), {}, r"expects b to have shape .*\(5, 3\) and b of shape \(\)"),
        ((5, 3), (4,), {}, r"same m rows.*\(5, 3\).*\(4,\).*is \(..., m\)"),
        ((5, 3), (2, 5), {}, r"same m rows.*\(5, 3\).*\(2, 5\).*is \(..., m, nrhs\)"),
        ((2, 5, 3), (5, 2), {}, r"same m rows.*\(2, 5, 3\).*\(5, 2\).*is \(..., m\)"),
        ((2, 5, 3), (3, 5), {}, r"batch axes.*\(2, 5, 3\).*\(3, 5\)"),
        ((2, 5, 3), (2, 5), {"ridge": np.ones(3)}, r"batch axes.*ridge of shape \(3,\)"),
        ((5, 3), (5,), {"ridge": -1.0}, r"expects ridge not to be negative. Got -1.0"),
        ((5, 3), (5,), {"ridge": jnp.array([1.0, -1.0])}, r"expects ridge not to be negative"),
        ((5, 3), (5,), {"ridge": np.nan}, r"expects ridge to be a number. Got nan"),
        ((5, 3), (5,), {"rcond": "Auto"}, r"one of 'auto', None, a number in 0\.\.1. Got 'Auto'"),
        ((5, 3), (5,), {"rcond": -1e-9}, r"expects rcond not to be negative. Got -1e-09"),
        ((5, 3), (5,), {"rcond": [1e-9]}, r"expects rcond to be a scalar. Got shape \(1,\)"),
        ((5, 3), (5,), {"rcond": 1e-9, "ridge": 1.0}, r"rcond or ridge but not both"),
    ],
    ids=str,
)
def test_errors(of_a, of_b, options, message):
    """At trace time, and so under jit as well."""
    a, b = jnp.ones(of_a), jnp.ones(of_b)
    with pytest.raises(ValueError, match=f"lstsq {message}|{message}"):
        jaxqr.lstsq(a, b, **options)
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda a, b: jaxqr.lstsq(a, b, **options))(a, b)


def test_errors_of_type():
    a, b = jnp.ones((5, 3)), jnp.ones(5)
    with pytest.raises(TypeError, match=r"lstsq expects b to be an array of numbers. Got dict"):
        jaxqr.lstsq(a, {"b": 1})
    with pytest.raises(TypeError, match=r"lstsq expects ridge to be real. Got complex128"):
        jaxqr.lstsq(a, b, ridge=1j)
    with pytest.raises(TypeError, match=r"lstsq expects ridge to be a number. Got True"):
        jaxqr.lstsq(a, b, ridge=True)
    with pytest.raises(ValueError, match=r"rcond to be one of 'auto', None, .* in 0..1. Got True"):
        jaxqr.lstsq(a, b, rcond=True)
    with pytest.raises(TypeError, match=r"lstsq expects ridge to be a number, 0.0 for none. Got"):
        jaxqr.lstsq(a, b, ridge=None)
    with pytest.raises(TypeError, match=r"lstsq expects rcond to be an array of numbers. Got dict"):
        jaxqr.lstsq(a, b, rcond={})


# Certified answers.

DIGITS = {"Longley": 10.0, "Filip": 7.0, "Wampler 1": 8.5, "Wampler 2": 11.5}
DIGITS |= {"Wampler 3": 8.5, "Wampler 4": 7.0, "Wampler 5": 5.0}


@pytest.mark.parametrize("problem", nist.PROBLEMS)
def test_certified_digits(problem):
    """By every path: plain, with Q, rank-revealing, and with a ridge that is zero when it runs."""
    a, b, certified = nist.PROBLEMS[problem]
    eps = float(np.finfo(np.float64).eps)
    for options in (
        {},
        {"forward_mode": True},
        {"rcond": 1e-2 * eps},
        {"ridge": jnp.asarray(0.0)},
    ):
        x = jaxqr.lstsq(a, b, **options)
        assert nist.correct_digits(x, certified) >= DIGITS[problem], options
