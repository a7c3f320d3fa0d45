"""Products with Q, which is not formed: what they are with Q, value and derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from numerics import (
    DTYPES,
    assert_close,
    central_difference,
    gaussian,
    inner,
    matrix,
    random_like,
    tolerance,
)

import jaxqr

CASES = [
    ((6, 3), False, "reduced"),
    ((6, 3), True, "reduced"),
    ((6, 3), True, "complete"),
    ((3, 5), False, "complete"),
    ((70, 4, 2), False, "complete"),
]


def rows_of(shape, adjoint, mode):
    return shape[-2] if adjoint or mode == "complete" else min(shape[-2:])


def with_q(a, c, adjoint, mode):
    """The same with Q formed."""
    q, r = jaxqr.qr(a, mode=mode, positive_diagonal=True, forward_mode=True)
    q = jnp.conj(q.mT) if adjoint else q
    return q @ c, r[..., : min(a.shape[-2:]), :]


@functools.partial(jax.jit, static_argnames=("adjoint", "mode"))
def derivatives(a, c, tangents, *, adjoint, mode):
    """Of the product and R: values, cotangents in either wiring, tangents; and with Q formed."""
    options = {"adjoint": adjoint, "mode": mode, "positive_diagonal": True}

    def f(a, c, forward_mode=True):
        return jaxqr.qr_multiply(a, c, forward_mode=forward_mode, **options)

    def g(a, c):
        return with_q(a, c, adjoint, mode)

    out, pull = jax.vjp(functools.partial(f, forward_mode=False), a, c)
    bars = random_like(out)
    results = [out, pull(bars), jax.vjp(f, a, c)[1](bars), jax.jvp(f, (a, c), tangents)[1]]
    expected, pull = jax.vjp(g, a, c)
    bars_of_g = pull(bars)
    return results, [expected, bars_of_g, bars_of_g, jax.jvp(g, (a, c), tangents)[1]]


@pytest.mark.parametrize(("shape", "adjoint", "mode"), CASES, ids=str)
def test_it_is_what_it_is_with_q(shape, adjoint, mode):
    """In reverse mode, in forward mode and its transpose, of complex matrices."""
    dtype = "complex128"
    a = jnp.asarray(matrix(shape, dtype))
    c = jnp.asarray(gaussian((*shape[:-2], rows_of(shape, adjoint, mode), 3), dtype))
    got, expected = derivatives(a, c, random_like((a, c), seed=5), adjoint=adjoint, mode=mode)
    assert_close(got, expected, tolerance(dtype, shape, c=64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_types_vectors_and_differences(dtype):
    a = jnp.asarray(matrix((5, 3), dtype))
    c = jnp.asarray(gaussian((5,), dtype))

    def f(a, c):
        return jaxqr.qr_multiply(a, c, adjoint=True, positive_diagonal=True)

    out, pull = jax.vjp(f, a, c)
    assert out[0].shape == (3,)
    assert {x.dtype for x in out} == {np.dtype(dtype)}
    q = jaxqr.qr(a, positive_diagonal=True)[0]
    assert_close(out[0], jnp.conj(q.mT) @ c, tolerance(dtype, (5, 3)))
    if dtype in ("float64", "complex128"):
        bars, da = random_like(out), random_like(a, seed=9)
        dots = central_difference(lambda a: f(a, c), a, da)
        assert abs(inner(pull(bars)[0], da) - inner(bars, dots)) < 1e-8


def test_second_order():
    a, c = jnp.asarray(matrix((4, 3))), jnp.asarray(gaussian((3, 2)))

    def loss(f, *args):
        return sum(jnp.sum(jnp.sin(x)) for x in f(*args))

    def multiply(a, forward_mode):
        return jaxqr.qr_multiply(a, c, positive_diagonal=True, forward_mode=forward_mode)

    def f(a, forward_mode=True):
        return loss(multiply, a, forward_mode)

    expected = jax.jit(jax.hessian(lambda a: loss(with_q, a, c, False, "reduced")))(a)
    assert_close(jax.jit(jax.hessian(f))(a), expected, 1e-12)
    reverse = jax.jit(jax.jacrev(jax.grad(lambda a: f(a, forward_mode=False))))
    assert_close(reverse(a), expected, 1e-12)


def test_batches():
    """Of a, of c, of both; by vmap and by leading axes; a dependent column in one of them."""
    a, c = jnp.asarray(matrix((2, 5, 3))), jnp.asarray(gaussian((2, 5, 2)))
    a = a.at[1, :, 2].set(a[1, :, 0])

    def f(a, c):
        return jaxqr.qr_multiply(a, c, adjoint=True, mode="complete")

    expected = f(a, c)
    assert_close(jax.vmap(f)(a, c), expected, 1e-14)
    one = jax.tree.map(lambda x: x[0], expected)
    assert_close(f(a[0], c)[0][0], one[0], 1e-14)
    assert_close(jax.vmap(f, (None, 0))(a[0], c)[0][0], one[0], 1e-14)
    assert_close(f(a, c[:1])[0][0], one[0], 1e-14)
    grad = jax.grad(lambda a, c: jnp.sum(f(a, c)[0][..., 3:, :] ** 2), (0, 1))
    both = grad(a, c)
    assert np.isfinite(both[0]).all()
    assert_close([x[0] for x in both], grad(a[0], c[0]), 1e-13)


@pytest.mark.parametrize("shape", [(128, 6, 4), (200, 200)], ids=str)
def test_the_product_has_the_q_of_r(shape):
    """Where columns depend on others, rounding chooses Q: whatever chooses the algorithm."""
    a = gaussian(shape)
    n = shape[-1]
    a[..., n // 2 : 3 * n // 4] = 3 * a[..., : n // 4]
    a, eye = jnp.asarray(a), jnp.eye(n)

    def both(a, c=eye, forward_mode=False):
        c = c.reshape(*(1,) * (a.ndim - c.ndim), *c.shape)
        return jaxqr.qr_multiply(a, c, forward_mode=forward_mode)

    def of_halves(a):
        halves, r = jax.vmap(lambda c: both(a, c))(jnp.stack(jnp.split(eye, 2, axis=1)))
        return jnp.concatenate(halves, axis=-1), r[0]

    over = jax.vmap if a.ndim == 3 else lambda f: f
    ways = {
        "as it is": both,
        "vmap": over(both),
        "vjp": lambda a: jax.vjp(over(both), a)[0],
        "jvp": lambda a: jax.jvp(functools.partial(both, forward_mode=True), (a,), (a,))[0],
        "vjp of c": lambda a: over(lambda a: jax.vjp(lambda c: both(a, c), eye)[0])(a),
    }
    if a.ndim == 3:
        ways["c in parts"] = jax.vmap(of_halves)
        ways["one a"] = lambda a: both(a[0], jnp.broadcast_to(eye, a.shape[:1] + eye.shape))
    for way, f in ways.items():
        q, r = jax.jit(f)(a)
        assert_close(q @ r, a if way != "one a" else jnp.broadcast_to(a[0], a.shape), 1e-13)


@pytest.mark.parametrize("forward_mode", [False, True])
def test_shard_map(forward_mode):
    """A batch of one argument over the devices, and the other the same on all, in turn."""
    mesh = Mesh(np.array(jax.devices("cpu")), ("batch",))
    a, c = (jnp.asarray(gaussian((mesh.size, 5, n), seed=n)) for n in (3, 2))

    def loss(a, c):
        product, _ = jaxqr.qr_multiply(a, c, adjoint=True, forward_mode=forward_mode)
        return jnp.sum(jnp.sin(product))

    def total(a, c):
        return jax.lax.psum(loss(a, c), "batch")

    for specs, args in (((P("batch"), P()), (a, c[:1])), ((P(), P("batch")), (a[:1], c))):
        mapped = jax.shard_map(total, mesh=mesh, in_specs=specs, out_specs=P())
        expected = jax.grad(loss, (0, 1))(*args)
        assert_close(jax.jit(jax.grad(mapped, (0, 1)))(*args), expected, 1e-13)


def test_memory_is_that_of_the_arguments():
    """Of a 20000 x 4 matrix, whose square Q has 1.6 GB."""
    a, b = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((20000, 4), (20000,)))

    def rest(a, b):
        c, _ = jaxqr.qr_multiply(a, b, adjoint=True, mode="complete")
        return jnp.sum(c[4:] ** 2)

    size = 4 * 20000 * 4
    for f, most in ((rest, 3), (jax.grad(rest, (0, 1)), 8)):
        compiled = jax.jit(f).lower(a, b).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < most * size


@pytest.mark.parametrize(("n", "called"), [(64, False), (65, True)])
def test_lapack_is_called_where_it_only_reads(n, called):
    """Its orm2r writes into the reflectors, which other threads read: it is not to be called."""
    a, c = jnp.asarray(matrix((n, n), "complex128")), jnp.asarray(gaussian((n, 2), "complex128"))

    @jax.jit
    def both(a, c):
        return jaxqr.qr_multiply(a, c, adjoint=True)[0], jaxqr.qr_multiply(a, c)[0]

    assert ("lapack_zunmqr" in both.lower(a, c).as_text()) == called
    q, r = np.linalg.qr(a)
    phases = (np.sign(np.diag(r)) / np.sign(np.diag(jaxqr.qr(a, mode="r"))))[:, None]
    q = q * phases.T
    tol = tolerance("complex128", (n, n))
    assert_close(both(a, c), (np.conj(q.T) @ c, q @ c), tol)


def test_errors():
    a = jnp.ones((5, 3))
    for c, options in ((jnp.ones(5), {}), (jnp.ones(3), {"adjoint": True})):
        with pytest.raises(ValueError, match=r"qr_multiply expects c to have \d rows, for a"):
            jaxqr.qr_multiply(a, c, **options)
    with pytest.raises(ValueError, match="qr_multiply expects mode to be one of"):
        jaxqr.qr_multiply(a, jnp.ones(3), mode="r")
    with pytest.raises(ValueError, match="expects batch axes that broadcast"):
        jaxqr.qr_multiply(jnp.ones((2, 5, 3)), jnp.ones((4, 3, 1)))
    with pytest.raises(TypeError, match="qr_multiply takes only a, c by position"):
        jaxqr.qr_multiply(a, jnp.ones(3), True)
    with pytest.raises(TypeError, match=r"qr_multiply is for reverse mode .* forward_mode=True"):
        jax.jvp(lambda c: jaxqr.qr_multiply(a, c)[0], (jnp.ones(3),), (jnp.ones(3),))
