"""Dependent columns, and columns of any length: the derivatives that exist are right."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import DTYPES, assert_close, gaussian, matrix, random_like, tolerance

import jaxqr
from jaxqr._linalg import correcting
from jaxqr._linalg.dependence import dependent_columns
from jaxqr._rules import partial_qr


def dependent(kind, shape, dtype):
    a = gaussian(shape, dtype)
    if kind == "zero in front":
        a[:, 0] = 0
    elif kind == "repeated":
        a[:, 2] = a[:, 0]
    elif kind == "combined":
        a[:, 1], a[:, 3] = 0, a[:, 0] - 2 * a[:, 2]
    elif kind == "zero":
        a[:] = 0
    return jnp.asarray(a)


@functools.partial(jax.jit, static_argnames="forward_mode")
def gradients(a, w, *, forward_mode):
    """Of a loss of R^H R, and of the same loss of A^H A."""

    def loss(r):
        return jnp.sum(w * jnp.matmul(jnp.conj(r.mT), r)).real

    def of_r(a):
        return loss(jaxqr.qr(a, mode="r", forward_mode=forward_mode))

    return jax.grad(of_r)(a), jax.grad(loss)(a)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)], ids=str)
def test_losses_of_r_alone(shape, dtype):
    w = jnp.asarray(gaussian((shape[1], shape[1]), dtype, seed=1))
    for kind in ("zero in front", "repeated", "combined", "zero"):
        for forward_mode in (False, True):
            got, expected = gradients(dependent(kind, shape, dtype), w, forward_mode=forward_mode)
            assert_close(got, expected, 1e-12)


@pytest.mark.parametrize("count", [3, 70])
def test_a_batch_with_dependent_matrices(count):
    """The gradients of the others are what they are without them, to the last digit."""
    a = jnp.asarray(gaussian((count, 6, 3), "float64"))
    mixed = a.at[1, :, 1].set(a[1, :, 0]).at[2].set(0)

    @jax.jit
    @jax.vmap
    def gradient(a):
        return jax.grad(lambda a: jnp.sum(jaxqr.qr(a, mode="r") ** 2))(a)

    ours, regular = gradient(mixed), gradient(a)
    assert_close(ours, 2 * mixed, 1e-12)
    assert np.array_equal(np.delete(ours, [1, 2], 0), np.delete(regular, [1, 2], 0))


def test_q_and_r_where_dependent_columns_are_held():
    a = jnp.diag(jnp.array([1.0, 0.0]))
    for forward_mode in (False, True):

        def product(a, forward_mode=forward_mode):
            q, r = jaxqr.qr(a, dependent="hold", forward_mode=forward_mode)
            return jnp.sum(q @ r)

        assert np.array_equal(jax.grad(product)(a), np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"dependent to be one of 'hold', None. Got 'free'"):
        jaxqr.qr(a, dependent="free")


def test_what_is_dependent_in_complete_mode():
    """Rows do not count there either: of R they are zeros."""
    r = jnp.triu(jnp.array([[1, 1], [0, 100 * jnp.finfo("float32").eps]], "float32"))
    assert not dependent_columns(jnp.pad(r, [(0, 1998), (0, 0)])).any()
    assert dependent_columns(r * jnp.array([[1, 1], [1, 0.05]], "float32")).tolist() == [
        False,
        True,
    ]


@pytest.mark.parametrize("method", ["auto", "cholesky", "batched"])
@pytest.mark.parametrize("mode", ["reduced", "r"])
def test_scaling_law(mode, method):
    """Factors of s A, and gradients, are those of A to the last digits for s in the whole range."""

    @jax.jit
    def run(a, s):
        def factors(a):
            out = jax.tree.leaves(jaxqr.qr(a, mode=mode, method=method))
            return [*out[:-1], out[-1] / s]

        out, pull = jax.vjp(factors, a * s)
        return out, pull(random_like(out))[0] * s

    a = jnp.asarray(gaussian((9, 4), "float32"))
    factors, bar = run(a, jnp.float32(1))
    for power in (-99, -40, 40, 97):
        scaled, scaled_bar = run(a, jnp.float32(2.0**power))
        for x, y in zip(scaled, factors, strict=True):
            assert np.array_equal(x, y)
        assert_close(scaled_bar, bar, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 4), (4, 4), (4, 6)], ids=str)
def test_held_rules_are_the_papers_at_full_rank(shape, dtype):
    """All of them, whatever cotangents are there, in reduced and complete mode."""
    a = jnp.asarray(matrix(shape, dtype))
    da, none = random_like(a, seed=7), jnp.zeros((1, min(shape)), dtype)
    tol = tolerance(dtype, shape, c=64)
    for mode in ("reduced", "complete"):
        q, r = jnp.linalg.qr(a, mode=mode)
        q_bar, r_bar = random_like((q, r))
        for bars in ((q_bar, r_bar), (q_bar, None), (None, r_bar)):
            held = partial_qr.pullback_held(q, r, none, *bars)
            assert_close(held, partial_qr.pullback(q, r, *bars), tol)
        dq, dr = partial_qr.pushforward(q, r, da)
        assert_close(partial_qr.pushforward_held(q, r, none, da), (dq, dr), tol)
    q, r = jnp.linalg.qr(a)
    factor = partial_qr.pullback_held_r(r, r_bar[: len(r)], none)
    assert_close(q @ factor, partial_qr.pullback(q, r, None, r_bar[: len(r)]), tol)
    g = jnp.conj(q.T) @ da
    assert_close(partial_qr.pushforward_held_r(g, r, none), dr[: len(r)], tol)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (70, 5, 3)], ids=str)
def test_second_order_of_r_alone(shape):
    """Where no column is dependent, though others of the batch have some."""
    a, da = (jnp.asarray(gaussian(shape, "float64", seed)) for seed in (0, 1))
    w = jnp.asarray(gaussian(shape[-1:] * 2, "float64", seed=2))
    if a.ndim == 3:
        a = a.at[1, :, 1].set(0)

    def loss(gram):
        return jnp.sum(jnp.sin(w * gram)) if a.ndim == 2 else jnp.sum(jnp.sin(w[None] * gram))

    def of_r(a, forward_mode):
        r = jaxqr.qr(a, mode="r", forward_mode=forward_mode)
        return loss(r.mT @ r)

    def turned(f):
        return jax.jit(jax.grad(lambda a: jnp.sum(da * jax.grad(f)(a))))(a)

    expected = np.asarray(turned(lambda a: loss(a.mT @ a)))
    for forward_mode in (False, True):
        got = np.asarray(turned(functools.partial(of_r, forward_mode=forward_mode)))
        keep = np.arange(len(a)) != 1 if a.ndim == 3 else slice(None)
        assert_close(got[keep], expected[keep], 1e-11)
    tangent = jax.jit(
        lambda a: jax.jvp(jax.grad(functools.partial(of_r, forward_mode=True)), (a,), (da,))[1]
    )
    assert_close(np.asarray(tangent(a))[keep], expected[keep], 1e-11)


@pytest.mark.parametrize(("batch", "forward_mode"), [(12, False), (256, False), (256, True)])
def test_a_large_batch_goes_in_pieces(batch, forward_mode, monkeypatch):
    """With dependent columns in some matrices, each gets what it gets alone."""
    a = jnp.asarray(matrix((batch, 6, 2)))
    a = a.at[3, :, 1].set(a[3, :, 0]).at[10].set(0)

    def gradient(a):
        return jax.grad(lambda a: jnp.sum(jaxqr.qr(a, mode="r", forward_mode=forward_mode) ** 3))(a)

    def turned(a):
        return jax.grad(lambda a: jnp.sum(gradient(a) ** 2))(a)

    alone = jax.lax.map(gradient, a)
    also_turned = jax.lax.map(turned, a[:3]) if forward_mode else None
    monkeypatch.setattr(correcting, "_AT_ONCE", 0)
    monkeypatch.setattr(correcting, "_PIECES", 4)
    assert correcting._pieces((batch,), [a], 2 if batch < 64 else 64) == 4
    jax.clear_caches()
    assert "dynamic_update_slice" in str(jax.make_jaxpr(gradient)(a))
    assert_close(jax.jit(gradient)(a), alone, 1e-13)
    if forward_mode:
        assert "length=4" in str(jax.make_jaxpr(turned)(a))
        assert_close(jax.jit(turned)(a)[:3], also_turned, 1e-11)
    jax.clear_caches()


@pytest.mark.parametrize("shape", [(100, 6, 3), (4, 130, 128)], ids=str)
def test_a_piece_is_factored_as_the_whole_batch_is(shape, monkeypatch):
    """Else its Q would be another one: of the rounding that dependent columns leave."""
    a = jnp.asarray(gaussian(shape))
    at = 1 if shape[-1] == 3 else 100
    a = a.at[1, :, at].set(a[1, :, 0])
    w = jnp.asarray(gaussian(shape[-1:] * 2, seed=2))

    def loss(gram):
        return jnp.sum(w[None] * gram**2)

    def of_r(a):
        r = jaxqr.qr(a, mode="r")
        return loss(r.mT @ r)

    monkeypatch.setattr(correcting, "_AT_ONCE", 0)
    monkeypatch.setattr(correcting, "_PIECES", 3)
    jax.clear_caches()
    found = jax.jit(jax.grad(of_r))(a)
    assert_close(found, jax.grad(lambda a: loss(a.mT @ a))(a), 1e-11)
    jax.clear_caches()
