"""Triangular products and solves by blocks, at sizes around the block's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import assert_close, gaussian, matrix, norm, random_like, tolerance

import jaxqr
from jaxqr._linalg.algebra import adjoint_matmul
from jaxqr._linalg.batching import over_matrices
from jaxqr._linalg.blocked import (
    Inverted,
    lower_of_adjoint_product,
    lower_of_upper_product,
    lower_sum,
)
from jaxqr._linalg.layouts import LAYOUT_IS_SHARDED
from jaxqr._linalg.scaling import divided

SIZES = [0, 1, 4, 12, 30, 64, 65, 128, 129, 200, 256, 257, 300]


def triangular(k, dtype, batch=()):
    """Upper triangular, well conditioned, with rubbish below the diagonal."""
    u = gaussian((*batch, k, k), dtype) / np.sqrt(max(k, 1))
    return (u + 3 * np.eye(k)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("k", SIZES)
def test_solves(k, dtype):
    batch = (2,) if k == 129 else ()
    u = triangular(k, dtype, batch)
    b = gaussian((*batch, k, 5), dtype)
    exact = np.triu(u).astype("complex128" if dtype == "complex128" else "float64")
    tol = tolerance(dtype, (k, k), 10)

    @jax.jit
    @over_matrices
    def solves(u, b):
        v = Inverted.of(u, rows=b.shape[1])  # not of 12, and complex 64: b has fewer columns
        return v.left(b), v.adjoint_left(b), v.right(b.T).T, v.adjoint_right(b.T).T

    h = np.conj(exact.mT)
    for ours, m in zip(solves(u, b), (exact, h, exact.mT, h.mT), strict=True):
        assert norm(np.asarray(ours) - np.linalg.solve(m, b)) <= tol * max(norm(ours), 1)


@pytest.mark.parametrize("k", [40, 130])
def test_derivative_of_a_solve(k):
    """A loop makes the inverses, and their derivative has a rule of its own."""
    u, du = jnp.asarray(triangular(k, "complex128")), jnp.asarray(gaussian((k, k), "complex128"))
    x, dx = jax.jvp(lambda u: Inverted.of(u).left(jnp.eye(k, dtype=u.dtype)), (u,), (du,))
    expected = -np.linalg.solve(np.triu(u), np.triu(du) @ np.asarray(x))
    assert_close(dx, jnp.asarray(expected), tolerance("complex128", (k, k), 10))


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("k", SIZES)
def test_lower_triangles_of_products(k, dtype):
    x, y = gaussian((2, 7, k), dtype)
    u, v = gaussian((2, k, k), dtype, seed=1), gaussian((2, k, k), dtype, seed=2)
    tol = tolerance(dtype, (k, k), 10)

    @jax.jit
    def lower(x, y, u, v):
        return lower_sum(lower_of_adjoint_product(x, y), lower_of_upper_product(u, v))

    given = map(jnp.asarray, (x, y, np.triu(u), v))
    ours = np.tril(jax.vmap(lower, in_axes=(None, None, 0, 0))(*given))
    expected = np.tril(np.conj(x.T) @ y + np.triu(u) @ np.conj(np.triu(v).mT))
    assert norm(ours - expected) <= tol * max(norm(ours), 1)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("shape", [(300, 150), (150, 150), (140, 210)], ids=str)
def test_pullback_and_pushforward_of_many_blocks(shape, dtype):
    a = jnp.asarray(matrix(shape, dtype))

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(qr):
        """Those of both modes."""
        found = []
        for mode in ("reduced", "r"):

            def f(a, mode=mode):
                return jax.tree.leaves(qr(a, mode=mode))

            out, tangents = jax.jvp(f, (a,), (random_like(a),))
            found.append((out, tangents, jax.vjp(f, a)[1](random_like(out))))
        return found

    ours = functools.partial(jaxqr.qr, forward_mode=True, method="householder")
    tol = tolerance(dtype, shape, c=64)
    assert_close(derivatives(ours), derivatives(jnp.linalg.qr), tol)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_numbers_by_real_ones_are_divided_part_by_part(dtype):
    x = gaussian((4, 3), dtype) * np.array([1, 1e30, 1e-30], dtype)
    x[0] = 0, np.inf, complex(0, -np.inf)
    d = np.array([3, 2.0**100, 1e-35], dtype)
    program = jax.make_jaxpr(divided)(x, d[None])
    got = np.asarray(jax.jit(divided)(x, d[None]))
    for ours, part in ((got.real, x.real), (got.imag, x.imag)):
        np.testing.assert_allclose(ours, part / d.real, rtol=2 * np.finfo(dtype).eps)
    divisions = [e.outvars[0].aval.dtype for e in program.eqns if e.primitive.name == "div"]
    assert divisions == [np.empty(0, dtype).real.dtype] * 2


@pytest.mark.skipif(not LAYOUT_IS_SHARDED, reason="layouts are not asked for before JAX 0.11")
def test_transposed_factors_of_double_products_are_brought_in_order():
    def copies(dtype, columns):
        x, y = (jax.ShapeDtypeStruct((40, n), dtype) for n in (30, columns))
        lowered = jax.jit(adjoint_matmul).trace(x, y).lower(lowering_platforms=("cpu",))
        return "LayoutConstraint" in lowered.as_text()

    assert copies("float64", 200)
    assert not copies("float64", 100)
    assert not copies("float32", 200)
    assert not copies("complex128", 200)

    x, y = gaussian((3, 40, 30)), gaussian((3, 40, 200))
    ours = jax.vmap(adjoint_matmul)(jnp.asarray(x), jnp.asarray(y))
    assert_close(ours, np.conj(x.mT) @ y, tolerance("float64", x.shape))
