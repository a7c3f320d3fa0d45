"""Householder's algorithm by panels, which "auto" takes where a derivative follows."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import (
    assert_close,
    check_qr,
    gaussian,
    matrix,
    norm,
    panels_of_few_columns,
    random_like,
    tolerance,
)

import jaxqr
from jaxqr._forward import panels


@pytest.fixture
def small(monkeypatch):
    with panels_of_few_columns(monkeypatch):
        yield


def close_to_householders(f, a, tol, **options):
    """The outputs of f(a, method) and their derivative by "auto" are those by "householder"."""
    ours, theirs = (
        jax.vjp(functools.partial(f, method=method, **options), a)
        for method in ("auto", "householder")
    )
    assert_close(ours[0], theirs[0], tol)
    bars = random_like(ours[0])
    assert_close(ours[1](bars), theirs[1](bars), tol)
    return ours[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(40, 40), (30, 20), (33, 33), (20, 50), (5, 4), (1, 1)], ids=str)
def test_factors_and_gradients_are_householders(shape, dtype, small):
    a = jnp.asarray(matrix(shape, dtype))
    tol = tolerance(dtype, shape, 100.0)
    factors = close_to_householders(jaxqr.qr, a, tol)
    check_qr(np.asarray(a), *map(np.asarray, factors), tolerance(dtype, shape, 1))
    close_to_householders(jaxqr.qr, a, tol, mode="r")


def test_relatives_modes_and_transformations(small):
    a = jnp.asarray(matrix((24, 24)))
    tol = tolerance("float64", a.shape, 100.0)
    close_to_householders(jaxqr.qr, a, tol, mode="complete")
    close_to_householders(jaxqr.qr, a[:, :20], tol, mode="complete")
    close_to_householders(jaxqr.lq, a, tol)
    close_to_householders(jaxqr.rq, a, tol, mode="r")
    close_to_householders(jaxqr.qr, a, tol, positive_diagonal=True)
    close_to_householders(jax.jit(jaxqr.qr, static_argnames="method"), a, tol)
    da = jnp.asarray(gaussian(a.shape))

    def second(method):
        qr = functools.partial(jaxqr.qr, method=method, forward_mode=True)
        pull = lambda a: jax.vjp(qr, a)[1](random_like(qr(a)))  # noqa: E731
        return jax.jvp(qr, (a,), (da,)), jax.jvp(pull, (a,), (da,))

    assert_close(second("auto"), second("householder"), 100 * tol)
    batch = jnp.asarray(matrix((3, 24, 24)))
    for x, y in zip(panels.qr(batch, "reduced"), jnp.linalg.qr(batch), strict=True):
        assert_close(x, y, tol)


def lapack_calls(f, *shapes, dtype="float32"):
    """Of the program of F for CPUs: the calls, each by its name and its first operand's shape."""
    lowered = jax.jit(f).trace(*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes))
    text = lowered.lower(lowering_platforms=("cpu",)).as_text()
    calls = re.findall(r"@lapack_[sd](\w+?)_ffi\(.*?: \(tensor<([\dx]+)xf\d\d>", text)
    return [(name, tuple(map(int, shape.split("x")))) for name, shape in calls]


def value_and_gradient(a, **options):
    factors, pullback = jax.vjp(functools.partial(jaxqr.qr, **options), a)
    return factors, pullback(factors)


@pytest.mark.parametrize("shape", [(128, 128), (1000, 1000), (600, 500), (4000, 700)], ids=str)
def test_no_thread_of_lapack_wakes(shape):
    calls = lapack_calls(value_and_gradient, shape)
    of_panels = [x for x in calls if x[0] in ("geqrf", "orgqr")]
    assert of_panels
    assert all(np.prod(x[1][-2:]) <= 8192 for x in of_panels)
    assert all(np.prod(x[1]) < 1024 for x in calls if x not in of_panels)


def test_no_thread_wakes_for_r_alone_but_where_columns_are_dependent():
    calls = lapack_calls(functools.partial(value_and_gradient, mode="r"), (300, 300))
    assert all(np.prod(x[1][-2:]) <= 8192 for x in calls if x[0] != "ormqr")


def test_where_no_derivative_follows_lapack_factors_all_of_it():
    def gets(f, shape, of=None):
        return ("geqrf", of or shape) in lapack_calls(f, shape)

    assert gets(jaxqr.qr, (200, 200))
    assert gets(functools.partial(value_and_gradient, method="householder"), (200, 200))
    for shape in [(100, 100), (2, 200, 200), (5000, 700)]:  # small, several, too deep
        assert gets(value_and_gradient, shape)
    assert not gets(value_and_gradient, (200, 200))
    assert not gets(value_and_gradient, (200, 1000), of=(200, 200))  # the leading block


def test_what_lapack_gets_is_small():
    for m in range(128, 4500, 7):
        b = panels._columns_of_a_panel(m)
        pieces = panels._pieces(m, b)
        rows = (m - b) // pieces if pieces else m
        assert b <= rows
        assert b * b < 1024
        assert rows * b <= 8192
        assert (1 + pieces) * b * b <= 8192


def test_of_hundreds_of_columns():
    a = jnp.asarray(matrix((400, 300), "float32"))
    (q, _), _ = jax.jit(value_and_gradient)(a)
    theirs, _ = jnp.linalg.qr(a)
    departures = [norm(np.asarray(x.T @ x) - np.eye(300)) for x in (q, theirs)]
    assert departures[0] <= 4 * departures[1]
    close_to_householders(jaxqr.qr, a, tolerance("float32", a.shape, 100.0))


def test_zeros_are_exact(small):
    identity = jnp.eye(30, 24)
    (q, r), _ = value_and_gradient(identity)
    assert_close((abs(q), abs(r)), (identity, identity[:24]), 0.0)
    (q, r), _ = value_and_gradient(jnp.zeros((24, 24)))
    assert_close((q, r), (jnp.eye(24), jnp.zeros((24, 24))), 0.0)
    (_, r), _ = value_and_gradient(jnp.asarray(gaussian((24, 24))))
    assert not np.tril(r, -1).any()


def test_what_is_not_a_number_is_seen(small):
    a = gaussian((24, 24))
    a[20, 13] = np.nan
    (q, r), (a_bar,) = value_and_gradient(jnp.asarray(a))
    assert np.isnan(q).any()
    assert np.isnan(a_bar).all()
    assert np.isfinite(r[:, :12]).all()
    assert np.isnan(np.diagonal(r)[13:]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dependent_columns_of_r_alone(dtype, small):
    a = gaussian((24, 24), dtype)
    a[:, [3, 11, 20]] = a[:, [1, 2, 5]]
    w = gaussian((24, 24), dtype, seed=1)

    def loss(a):
        r = jaxqr.qr(a, mode="r")
        return jnp.sum(w * (r.T @ r))

    assert_close(jax.grad(loss)(jnp.asarray(a)), a @ (w + w.T), tolerance(dtype, a.shape))
