"""Every transformation, alone and in combination, against the plain gradient of each matrix."""

import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import jet
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numerics import (
    FACTORIZATIONS,
    NAMES,
    assert_close,
    inexact,
    matrix,
    norm,
    random_like,
    tolerance,
)

import jaxqr

SHAPE = (5, 3)
BATCH = 8
TOL = tolerance("complex128", SHAPE, c=64)
WIRINGS = pytest.mark.parametrize("forward_mode", [False, True], ids=["reverse", "forward"])
ALL = pytest.mark.parametrize("name", NAMES)


def loss_of(name, forward_mode, **options):
    """A real function of all factors with fixed random weights."""

    def loss(a, scale=None):
        out = FACTORIZATIONS[name](a, forward_mode=forward_mode, positive_diagonal=True, **options)
        xs = inexact(out)
        value = sum(jnp.sum(w * x).real for w, x in zip(random_like(xs), xs, strict=True))
        return value if scale is None else value * scale

    return loss


def batch(dtype="complex128"):
    return jnp.asarray(matrix((BATCH, *SHAPE), dtype))


@functools.cache
def gradients(name):
    """The gradient of each matrix of the batch, one by one."""
    grad = jax.jit(jax.grad(loss_of(name, forward_mode=False)))
    return np.stack([grad(a) for a in batch()])


@ALL
@WIRINGS
def test_of_one_matrix(name, forward_mode):
    loss = loss_of(name, forward_mode)
    a, expected = batch()[0], gradients(name)[0]

    def scanned(a):
        return jax.lax.scan(lambda total, s: (total + loss(a, s), None), 0.0, jnp.ones(3))[0] / 3

    def looped(a):
        return jax.lax.cond(a[0, 0].real > 0, loss, lambda a: loss(a), a)

    for transformed in (
        jax.grad(loss),
        jax.jit(jax.grad(loss)),
        jax.grad(jax.jit(loss)),
        jax.grad(jax.checkpoint(loss)),
        jax.jit(jax.grad(jax.checkpoint(jax.jit(loss)))),
        jax.grad(scanned),
        jax.grad(jax.checkpoint(scanned)),
        jax.grad(looped),
        lambda a: jax.vjp(loss, a)[1](1.0)[0],
        lambda a: jax.value_and_grad(loss)(a)[1],
        jax.jit(jax.grad(loss), donate_argnums=0),
    ):
        assert_close(transformed(jnp.array(a)), expected, TOL)


@ALL
@WIRINGS
def test_under_vmap(name, forward_mode):
    loss = loss_of(name, forward_mode)
    a, expected = batch(), gradients(name)
    grad, scales = jax.grad(loss), jnp.arange(1.0, 4.0)
    by = jnp.moveaxis
    scaled = np.asarray(scales)[:, None, None] * expected[0]
    for ours, theirs in (
        (jax.vmap(grad)(a), expected),
        (jax.jit(jax.vmap(grad))(a), expected),
        (jax.vmap(jax.jit(grad))(a), expected),
        (jax.grad(lambda a: jax.vmap(loss)(a).sum())(a), expected),
        (jax.grad(lambda a: jax.vmap(jax.checkpoint(loss))(a).sum())(a), expected),
        (jax.vmap(grad, in_axes=-1, out_axes=-1)(by(a, 0, -1)), by(expected, 0, -1)),
        (jax.vmap(grad, in_axes=1)(by(a, 0, 1)), expected),
        (jax.vmap(grad, in_axes=(None, 0))(a[0], scales), scaled),
        (
            jax.vmap(jax.vmap(grad))(a.reshape(2, 4, *SHAPE)),
            expected.reshape(2, 4, *SHAPE),
        ),
        (jax.lax.map(grad, a, batch_size=4), expected),
    ):
        assert_close(ours, theirs, TOL)


@ALL
@WIRINGS
def test_batch_axes_are_vmap(name, forward_mode):
    """A batch by leading axes is the batch by vmap, in value and gradient."""
    f = functools.partial(FACTORIZATIONS[name], forward_mode=forward_mode)
    a = batch()
    mapped = jax.vmap(f)(a)
    assert_close(f(a), mapped, TOL)
    bars = random_like(inexact(mapped))
    pull = jax.vjp(lambda a: inexact(f(a)), a)[1]
    mapped_pull = jax.vjp(lambda a: inexact(jax.vmap(f)(a)), a)[1]
    assert_close(pull(bars), mapped_pull(bars), TOL)


@ALL
def test_jacobians(name):
    """jacfwd = jacrev, of real input: and under vmap and jit."""
    a = batch("float64")

    def outputs(a, *, forward_mode):
        return inexact(FACTORIZATIONS[name](a, forward_mode=forward_mode))

    forward = functools.partial(outputs, forward_mode=True)
    reverse = functools.partial(outputs, forward_mode=False)
    expected = jax.vmap(jax.jacrev(reverse))(a)
    tol = tolerance("float64", SHAPE, c=64)
    for jacobian in (
        jax.vmap(jax.jacfwd(forward)),
        jax.jit(jax.vmap(jax.jacrev(forward))),
        jax.vmap(jax.jit(jax.jacfwd(jax.checkpoint(forward)))),
    ):
        assert_close(jacobian(a), expected, tol)
    out, tangent_map = jax.linearize(forward, a[0])
    da = random_like(a[0])
    assert_close(out, forward(a[0]), 0)
    assert_close(tangent_map(da), jax.jvp(forward, (a[0],), (da,))[1], tol)
    pulled = jax.linear_transpose(tangent_map, a[0])(random_like(out))
    assert_close(pulled, jax.vjp(reverse, a[0])[1](random_like(out)), tol)


@ALL
def test_hessian_in_combination(name):
    loss = loss_of(name, forward_mode=True)
    a = batch("float64")[:2]
    expected = jax.vmap(jax.hessian(loss))(a)
    tol = tolerance("float64", SHAPE, cond=100, c=64)
    for hessian in (
        jax.vmap(jax.jacrev(jax.jacrev(loss_of(name, forward_mode=False)))),
        jax.jit(jax.vmap(jax.jacrev(jax.jacfwd(loss)))),
        jax.vmap(jax.jacfwd(jax.jacfwd(jax.checkpoint(loss)))),
    ):
        assert_close(hessian(a), expected, tol)


M = matrix((4, 4), "complex128", seed=2)


def diagonal(q, z):
    """Diag(Q^H M Z), which does not see the phases that Q and Z leave free."""
    return jnp.sum(q.conj() * (M @ z), 0)


def of_qz(a, **mode):
    _, _, q, z = jaxqr.qz(a, matrix((4, 4), "complex128", seed=3), **mode)
    return diagonal(q, z)


def of_schur(a, **mode):
    z = jaxqr.schur(a, **mode).z
    return diagonal(z, z)


CURVED = {
    "qr": jaxqr.qr,
    "r alone": functools.partial(jaxqr.qr, mode="r"),
    "pivoted_qr": functools.partial(jaxqr.pivoted_qr, rank=2),
    "qr_multiply": functools.partial(jaxqr.qr_multiply, c=M, adjoint=True),
    "slogdet": jaxqr.slogdet,
    "qz": of_qz,
    "schur": of_schur,
}


@pytest.mark.parametrize("f", CURVED.values(), ids=CURVED)
def test_second_order_at_a_minimum(f):
    """That of |F(A) - F(A0)|^2 is 2 |dF|^2, though all cotangents are zero there."""
    a, da = (jnp.asarray(matrix((4, 4), "complex128", seed=seed)) for seed in (0, 1))

    @jax.jit
    def curvatures(t0):
        def along(t, forward_mode):
            return inexact(f(a + t.astype(a.dtype) * da, forward_mode=forward_mode))

        def loss(t, forward_mode):
            known = jax.lax.stop_gradient(along(t0, forward_mode))
            return sum(norm2(x - y) for x, y in zip(along(t, forward_mode), known, strict=True))

        dots = jax.jvp(lambda t: along(t, True), (t0,), (jnp.ones_like(t0),))[1]
        by_grad = jax.grad(jax.grad(lambda t: loss(t, False)))(t0)
        by_jvp = jax.jacfwd(jax.grad(lambda t: loss(t, True)))(t0)
        return 2 * sum(map(norm2, dots)), by_grad, by_jvp

    expected, *found = curvatures(jnp.zeros(()))
    assert_close(found, [expected] * 2, tolerance("complex128", (4, 4), 100, c=64))


def norm2(x):
    return jnp.vdot(x, x).real


@WIRINGS
def test_truncated_under_vmap(forward_mode):
    """The residuals of the truncated factorization include A, batched or not."""
    loss = loss_of("pivoted_qr", forward_mode, rank=2)
    a = batch()
    expected = jnp.stack([jax.grad(loss)(x) for x in a])
    assert_close(jax.jit(jax.vmap(jax.grad(loss)))(a), expected, TOL)
    scales = jnp.arange(1.0, 3.0)
    mapped = jax.vmap(jax.grad(loss), in_axes=(None, 0))(a[0], scales)
    assert_close(mapped[1], 2 * expected[0], TOL)


def test_forward_mode_jacobian_shares_residuals():
    """Under jacfwd one factorization serves all tangents: none is broadcast."""
    a = jnp.asarray(matrix((40, 10)))

    def r_of(a):
        return jaxqr.qr(a, mode="r", forward_mode=True)

    text = jax.jit(jax.jacfwd(r_of)).lower(a).as_text()
    assert "tensor<400x10x10xf64>" in text
    assert "(tensor<40x10xf64>) -> tensor<400x40x10xf64>" not in text


# Devices.


def devices():
    return Mesh(np.array(jax.devices("cpu")), ("batch",))


@ALL
@WIRINGS
def test_batch_sharded_input_gathers_nothing(name, forward_mode):
    sharding = NamedSharding(devices(), P("batch"))
    a = jax.device_put(batch(), sharding)
    grad = jax.jit(jax.vmap(jax.grad(loss_of(name, forward_mode))))
    compiled = grad.lower(a).compile()
    assert "all-gather" not in compiled.as_text()
    out = compiled(a)
    assert out.sharding.is_equivalent_to(sharding, 3)
    assert_close(out, gradients(name), TOL)


@ALL
@WIRINGS
def test_shard_map(name, forward_mode):
    loss = loss_of(name, forward_mode)

    def total(a):
        return jax.lax.psum(jax.vmap(loss)(a).sum(), "batch")

    mapped = jax.shard_map(total, mesh=devices(), in_specs=P("batch"), out_specs=P())
    assert_close(jax.jit(jax.grad(mapped))(batch()), gradients(name), TOL)


def test_shard_map_in_forward_mode():
    def r_of(a):
        return jaxqr.qr(a, mode="r", forward_mode=True)

    mapped = jax.shard_map(
        jax.vmap(r_of), mesh=devices(), in_specs=P("batch"), out_specs=P("batch")
    )
    a = batch()
    da = random_like(a)
    expected = jax.jvp(jax.vmap(r_of), (a,), (da,))
    assert_close(jax.jit(lambda a, da: jax.jvp(mapped, (a,), (da,)))(a, da), expected, TOL)


def test_only_one_factor_used():
    """The other's zero cotangent is symbolic: the gradient is that of the one."""
    a = jnp.asarray(matrix((6, 4)))
    zero_q, zero_r = jnp.zeros((6, 4)), jnp.zeros((4, 4))
    q_bar, r_bar = random_like((zero_q, zero_r))
    pull = jax.vjp(jaxqr.qr, a)[1]
    tol = tolerance("float64", a.shape, c=64)
    for forward_mode in (False, True):

        def q_alone(a, forward_mode=forward_mode):
            return jnp.sum(jaxqr.qr(a, forward_mode=forward_mode)[0] * q_bar)

        def r_alone(a, forward_mode=forward_mode):
            return jnp.sum(jaxqr.qr(a, forward_mode=forward_mode)[1] * r_bar)

        assert_close(jax.grad(q_alone)(a), pull((q_bar, zero_r))[0], tol)
        assert_close(jax.grad(r_alone)(a), pull((zero_q, r_bar))[0], tol)
    assert norm(pull((zero_q, zero_r))[0]) == 0


def trace(f, a):
    """The value and the gradient of what is inexact in F of A, traced and not compiled."""

    def loss(a):
        return sum(jnp.sum(jnp.abs(x)) for x in inexact(f(a)))

    return jax.eval_shape(f, a), jax.eval_shape(jax.grad(loss), a)


@pytest.mark.parametrize(
    "f",
    [
        jaxqr.qr,
        functools.partial(jaxqr.qr, mode="complete", forward_mode=True),
        functools.partial(jaxqr.qr, mode="r", dependent="hold"),
        jaxqr.lq,
        jaxqr.rq,
        jaxqr.ql,
        jaxqr.pivoted_qr,
        functools.partial(jaxqr.pivoted_qr, rank=2, method="householder"),
        functools.partial(jaxqr.pivoted_qr, temperature=1.0, key=jax.random.key(0)),
        lambda a: jaxqr.lstsq(a, a, full=True),
        lambda a: jaxqr.lstsq(a, a, rcond="auto"),
        lambda a: jaxqr.lstsq(a, a, ridge=0.1, forward_mode=True),
        lambda a: jaxqr.qr_multiply(a, a, adjoint=True),
        jaxqr.slogdet,
        lambda a: jaxqr.log_probability(a, 1.0),
        lambda a: jaxqr.schur(a[:3]),
        lambda a: jaxqr.qz(a[:3], a[2:]),
    ],
)
def test_no_tracer_leaks(f):
    gc.collect()
    gc.freeze()  # JAX collects garbage after each trace: it need not look at all there is
    try:
        with jax.checking_leaks():
            trace(f, jnp.asarray(matrix(SHAPE)))
    finally:
        gc.unfreeze()


def series(f, a):
    return jet.jet(f, (a,), ([a, 2 * a],), factorial_scaled=False)[1]


@pytest.mark.parametrize(
    "f",
    [
        jaxqr.qr,
        lambda a: jaxqr.lstsq(a, a, full=True),
        lambda a: jaxqr.lstsq(a, a, ridge=0.1),
        lambda a: jaxqr.lstsq(a, a, forward_mode=True),
        lambda a: jaxqr.lstsq(a, a, ridge=0.1, forward_mode=True, full=True),
        lambda a: jaxqr.lstsq(a, np.ones(SHAPE[0]), full=True),
        lambda a: jaxqr.lstsq(a, np.ones((1, *SHAPE)), forward_mode=True),
        jax.vmap(lambda a: jaxqr.lstsq(a, np.ones(SHAPE[0]), ridge=0.1, full=True)),
        jax.vmap(lambda a: jaxqr.qr_multiply(a, np.ones(SHAPE[1]))),
        lambda a: jaxqr.qr_multiply(a, np.ones((1, *SHAPE)), adjoint=True),
        jax.shard_map(jaxqr.pivoted_qr, in_specs=P("i"), out_specs=P("i")),
        lambda a: jaxqr.schur(a[:, :3]),
        lambda a: jaxqr.qz(a[:, :3], a[:, 2:], forward_mode=True),
        jax.vmap(lambda a: jaxqr.schur(a[:3])),
    ],
)
def test_batches_with_explicit_sharding(f):
    if jax.__version_info__ < (0, 11):
        pytest.skip("JAX does not know the sharding of some of these")
    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        a = jax.device_put(matrix((BATCH, *SHAPE)), NamedSharding(mesh, P("i")))
        for x in jax.tree.leaves(trace(f, a)):
            assert x.sharding.spec[0] == "i"


@pytest.mark.parametrize(
    ("name", "f"),
    [
        ("a", jaxqr.lq),
        ("a", lambda a: jaxqr.pivoted_qr(a.T)),
        ("a", jax.jit(jaxqr.slogdet)),
        ("b", lambda a: jaxqr.lstsq(np.ones(a.shape), a[:, 0])),
        ("c", lambda a: jaxqr.qr_multiply(np.ones(a.shape), a, adjoint=True)),
    ],
)
def test_matrices_with_explicit_sharding_are_refused(name, f):
    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        a = jax.device_put(jnp.ones((16, 3)), NamedSharding(mesh, P("i")))
        with pytest.raises(TypeError, match=rf"expects {name} to be .*sharded as .*reshard"):
            f(a)


@pytest.mark.parametrize(
    "f",
    [jaxqr.qr, lambda a: jaxqr.lstsq(a, np.ones(SHAPE[0])), lambda a: jaxqr.slogdet(a)[1]],
    ids=["qr", "lstsq", "slogdet"],
)
def test_series_with_explicit_sharding(f):
    if jax.__version_info__ < (0, 11):
        pytest.skip("JAX does not know the sharding of some of these")
    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Explicit,))
    a = matrix((BATCH, *SHAPE))
    expected = jax.tree.leaves(series(f, a))
    with jax.set_mesh(mesh):
        found = jax.tree.leaves(series(f, jax.device_put(a, NamedSharding(mesh, P("i")))))
        for x, y in zip(found, expected, strict=True):
            assert x.sharding.spec[0] == "i"
            assert_close(x, y, TOL)
