"""Least squares on real, ill-conditioned systems, against references in extended precision."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import nist
import numpy as np
import pytest
from numerics import gaussian, norm

import jaxqr

DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"
CONDITIONS = {"well1033": 1.7e2, "illc1033": 1.9e4, "well1850": 1.1e2, "illc1850": 1.4e3}


def refined(a, b, x_bar, steps=4):
    """(x, b-bar, A-bar) by iterative refinement of the augmented system in extended precision.

    Björck, "Iterative refinement of linear least squares solutions I" (1967).
    """
    q, u = np.linalg.qr(a)
    inverse = np.linalg.inv(u)
    a, b, x_bar = (np.asarray(y, np.longdouble) for y in (a, b, x_bar))

    def solve(f, g):
        r, x = np.zeros_like(f), np.zeros_like(g)
        for _ in range(steps):
            rest_f, rest_g = (np.asarray(y, np.float64) for y in (f - r - a @ x, g - a.T @ r))
            d = q.T @ rest_f - inverse.T @ rest_g
            r, x = r + (rest_f - q @ d), x + inverse @ d
        return r, x

    r, x = solve(b, np.zeros_like(x_bar))
    b_bar, minus_z = solve(np.zeros_like(b), x_bar)
    a_bar = -np.outer(r, minus_z) - np.outer(b_bar, x)
    return tuple(np.asarray(y, np.float64) for y in (x, b_bar, a_bar))


@functools.cache
def system(name):
    """A system (a, b, x_bar), its entries exact in float32, and its reference."""
    path = DATA / f"{name}.mtx"
    if not path.exists():
        pytest.skip(f"{name}.mtx is not there")
    scipy_io = pytest.importorskip("scipy.io")
    a = scipy_io.mmread(path, spmatrix=False).toarray().astype(np.float32)
    a = a.astype(np.float64)
    b = a @ np.ones(a.shape[1]) + gaussian(a.shape[:1])
    b, x_bar = (y.astype(np.float32).astype(np.float64) for y in (b, gaussian(a.shape[1:])))
    return (a, b, x_bar), refined(a, b, x_bar)


def errors(problem, reference, dtype, **options):
    """Relative errors of x, b-bar and A-bar."""

    @jax.jit
    def run(a, b, x_bar):
        x, pull = jax.vjp(functools.partial(jaxqr.lstsq, **options), a, b)
        a_bar, b_bar = pull(x_bar)
        return x, b_bar, a_bar

    ours = run(*(jnp.asarray(y.astype(dtype)) for y in problem))
    return [norm(np.asarray(x) - y) / norm(y) for x, y in zip(ours, reference, strict=True)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CONDITIONS)
def test_harwell_boeing(name, dtype):
    """Errors of the order of eps times the condition, in the solution and in the gradient."""
    bound = 2 * float(np.finfo(dtype).eps) * CONDITIONS[name]
    of_x, of_b_bar, of_a_bar = errors(*system(name), dtype)
    assert of_x <= bound
    assert of_b_bar <= bound
    assert of_a_bar <= bound


@pytest.mark.parametrize("name", ["illc1033"])
def test_harwell_boeing_rank_revealing(name):
    bound = 8 * float(np.finfo(np.float64).eps) * CONDITIONS[name]
    assert max(errors(*system(name), "float64", rcond=1e-10)) <= bound


def test_longley_gradient():
    """Condition 4.9e9: nine digits and more of both cotangents."""
    a, b, _ = nist.longley()
    problem = a, b, gaussian((7,))
    assert max(errors(problem, refined(*problem), "float64")) <= 1e-8
