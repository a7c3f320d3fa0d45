"""Least squares under every transformation, and what its compiled programs hold."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numerics import assert_close, gaussian, inner, matrix, random_like, tolerance

import jaxqr

SHAPE = (5, 3)
BATCH = 8
RANKS = (3, 2, 3, 1, 0, 3, 2, 1)
TOL = tolerance("complex128", SHAPE, c=64)
FORMS_Q = re.compile(r"orgqr|ungqr|householder_product|ProductOfElementaryHouseholderReflectors")
OPTIONS = {"full": {}, "rcond": {"rcond": 1e-9}, "ridge": {"ridge": 0.3}}
KINDS = pytest.mark.parametrize("kind", OPTIONS)
WIRINGS = pytest.mark.parametrize("forward_mode", [False, True], ids=["reverse", "forward"])


def problems(kind, dtype="complex128"):
    """A batch; with rcond of mixed ranks."""
    a = matrix((BATCH, *SHAPE), dtype)
    if kind == "rcond":
        pairs = zip(a, RANKS, strict=True)
        a = np.stack([x[:, :rank] @ x[:, :rank].conj().T @ x for x, rank in pairs])
    return jnp.asarray(a), jnp.asarray(gaussian((BATCH, SHAPE[0]), dtype))


def loss_of(kind, forward_mode, scale=1.0):
    options = OPTIONS[kind]

    def loss(a, b, scale=scale):
        x = jaxqr.lstsq(a, b, **options, forward_mode=forward_mode)
        weights = random_like(jnp.zeros(x.shape[-1:], x.dtype))
        return scale * jnp.sum((x * jnp.broadcast_to(weights, x.shape)).real ** 2, axis=-1)

    return loss


@functools.cache
def gradients(kind, dtype="complex128"):
    """The gradient of each problem of the batch, one by one."""
    grad = jax.jit(jax.grad(loss_of(kind, False), argnums=(0, 1)))
    each = [grad(a, b) for a, b in zip(*problems(kind, dtype), strict=True)]
    return tuple(np.stack(bars) for bars in zip(*each, strict=True))


@KINDS
@WIRINGS
def test_of_one_problem(kind, forward_mode):
    loss = loss_of(kind, forward_mode)
    (a, b), expected = (tuple(x[1] for x in xs) for xs in (problems(kind), gradients(kind)))
    grad = functools.partial(jax.grad, argnums=(0, 1))

    def scanned(a, b):
        return jax.lax.scan(lambda y, s: (y + loss(a, b, s), None), 0.0, jnp.ones(3))[0] / 3

    def branched(a, b):
        return jax.lax.cond(a[0, 0].real > -9, loss, lambda a, b: 0 * loss(a, b), a, b)

    for transformed in (
        jax.jit(grad(jax.checkpoint(jax.jit(loss)))),
        grad(jax.checkpoint(scanned)),
        jax.jit(grad(branched)),
    ):
        assert_close(transformed(a, b), expected, TOL)
    for i in (0, 1):
        assert_close(jax.jit(jax.grad(loss, argnums=i))(a, b), expected[i], TOL)


@KINDS
@WIRINGS
def test_under_vmap(kind, forward_mode):
    """A batch of mixed ranks, by every axis; and one argument shared, its cotangents summed."""
    loss = loss_of(kind, forward_mode)
    (a, b), expected = problems(kind), gradients(kind)
    grad = jax.grad(loss, argnums=(0, 1))

    def total(a, b, in_axes):
        return jax.vmap(loss, in_axes)(a, b).sum()

    assert_close(jax.jit(jax.vmap(grad))(a, b), expected, TOL)
    assert_close(jax.grad(lambda a, b: loss(a, b).sum(), argnums=(0, 1))(a, b), expected, TOL)
    mapped = jax.jit(jax.vmap(grad, in_axes=(1, -1), out_axes=(-1, 1)))
    moved = mapped(jnp.moveaxis(a, 0, 1), b.T)
    assert_close(moved, (np.moveaxis(expected[0], 0, -1), expected[1].T), TOL)
    if kind == "ridge":  # what follows is the same for all
        return
    shared = jax.jit(jax.grad(total, argnums=(0, 1)), static_argnums=2)
    same_a, same_b = jnp.broadcast_to(a[1], a.shape), jnp.broadcast_to(b[1], b.shape)
    each_a, each_b = jax.jit(jax.vmap(grad))(same_a, b), jax.jit(jax.vmap(grad))(a, same_b)
    assert_close(shared(a[1], b, (None, 0)), (each_a[0].sum(0), each_a[1]), TOL)
    assert_close(shared(a, b[1], (0, None)), (each_b[0], each_b[1].sum(0)), TOL)
    scaled = jax.vmap(grad, in_axes=(None, None, 0))(a[1], b[1], jnp.arange(1.0, 3.0))
    assert_close(jax.tree.map(lambda x: x[1] / 2, scaled), (expected[0][1], expected[1][1]), TOL)


@KINDS
def test_jacobians_and_hessians(kind):
    """jacfwd = jacrev, and every order of the two for the Hessian, under jit and vmap.

    Where the rank is not full the two differ in directions that change the rank: compared along
    one that does not.
    """
    a, b = (x[:3] for x in problems(kind, "float64"))
    options, tol = OPTIONS[kind], tolerance("float64", SHAPE, cond=100, c=64)
    forward = functools.partial(jaxqr.lstsq, **options, forward_mode=True)
    reverse = functools.partial(jaxqr.lstsq, **options)
    both = {"argnums": (0, 1)}
    expected = jax.jit(jax.vmap(jax.jacrev(reverse, **both)))(a, b)
    assert_close(jax.jit(jax.vmap(jax.jacfwd(forward, **both)))(a, b), expected, tol)
    out, tangent_map = jax.linearize(forward, a[0], b[0])
    dots, x_bar = random_like((a[0], b[0])), random_like(out, seed=3)
    assert_close(tangent_map(*dots), jax.jvp(forward, (a[0], b[0]), dots)[1], tol)
    pulled = jax.linear_transpose(tangent_map, a[0], b[0])(x_bar)
    assert_close(pulled, jax.vjp(reverse, a[0], b[0])[1](x_bar), tol)

    if kind == "rcond":
        a, b = a[::2], b[::2]  # those of full rank

    def hessian(of, by, forward_mode):
        loss = loss_of(kind, forward_mode)
        return jax.jit(jax.vmap(by(of(loss, **both), **both)))(a, b)

    expected = hessian(jax.jacrev, jax.jacrev, False)
    assert_close(hessian(jax.jacrev, jax.jacfwd, True), expected, tol)
    if kind == "full":
        assert_close(hessian(jax.jacfwd, jax.jacfwd, True), expected, tol)
        assert_close(hessian(jax.jacfwd, jax.jacrev, True), expected, tol)


@WIRINGS
def test_ridge_under_vmap_and_hessian(forward_mode):
    """Ridge and its first two derivatives, against the formula by eigenvalues."""
    a, b = matrix((3, 6)), gaussian((3,))
    ridges = jnp.array([0.0, 0.1, 3.0])

    def loss(ridge):
        return jnp.sum(jaxqr.lstsq(a, b, ridge=ridge, forward_mode=forward_mode) ** 2)

    u, s, _ = np.linalg.svd(a, full_matrices=False)
    c, at = (u.T @ b) * s, s**2 + np.asarray(ridges)[:, None]
    second = jax.jacfwd(jax.grad(loss)) if forward_mode else jax.grad(jax.grad(loss))
    ours = [jax.jit(jax.vmap(f))(ridges) for f in (loss, jax.grad(loss), second)]
    theirs = [np.sum(k * c**2 / at**p, -1) for k, p in ((1, 2), (-2, 3), (6, 4))]
    assert_close(ours, theirs, tolerance("float64", (3, 6), 100, c=64))


AT_ZERO = [((6, 3), "full"), ((4, 4), "rcond"), ((3, 6), "full"), ((3, 6), "ridge")]


@pytest.mark.parametrize(("shape", "kind"), AT_ZERO, ids=str)
def test_second_order_where_something_is_zero(shape, kind):
    """At the minimum of a loss its cotangents are; and with b = 0 x and the residual."""
    a, m = (jnp.asarray(gaussian(shape, seed=seed)) for seed in (0, 1))
    b = jnp.asarray(gaussian(shape[:1]))

    def solution(t, b, forward_mode):
        return jaxqr.lstsq(a + t * m, b, **OPTIONS[kind], forward_mode=forward_mode)

    @jax.jit
    def curvatures(t0):
        known = lax.stop_gradient(solution(t0, b, False))
        losses = (
            lambda t, mode: jnp.sum((solution(t, b, mode) - known) ** 2),
            lambda t, mode: jnp.sum(jnp.sin(solution(t, t * b, mode))),
        )
        dx = jax.jvp(lambda t: solution(t, b, True), (t0,), (jnp.ones_like(t0),))[1]
        alike = jax.jacfwd(jax.grad(lambda t: jnp.sum(jnp.sin(t * solution(t, b, True)))))
        by_grad = [jax.grad(jax.grad(lambda t, f=f: f(t, False)))(t0) for f in losses]
        by_jvp = [jax.jacfwd(jax.grad(lambda t, f=f: f(t, True)))(t0) for f in losses]
        return [2 * jnp.sum(dx**2), alike(t0)], by_grad, by_jvp

    expected, *found = curvatures(jnp.zeros(()))
    for pair in found:
        assert_close(pair, expected, tolerance("float64", shape, 100, c=64))


# Devices.


def devices():
    return Mesh(np.array(jax.devices("cpu")), ("batch",))


@KINDS
@WIRINGS
def test_shard_map(kind, forward_mode):
    """Batch sharded; then each argument in turn the same on all devices."""
    (a, b), expected = problems(kind), gradients(kind)
    loss = loss_of(kind, forward_mode)

    def sharded(specs):
        def total(a, b):
            return jax.lax.psum(loss(a, b).sum(), "batch")

        mapped = jax.shard_map(total, mesh=devices(), in_specs=specs, out_specs=P())
        return jax.jit(jax.grad(mapped, argnums=(0, 1)))

    assert_close(sharded((P("batch"), P("batch")))(a, b), expected, TOL)
    each = jax.jit(jax.grad(lambda a, b: loss(a, b).sum(), argnums=(0, 1)))
    same_a, same_b = jnp.broadcast_to(a[1], a.shape), jnp.broadcast_to(b[1], b.shape)
    bars = each(same_a, b)
    ours = sharded((P(), P("batch")))(a[1:2], b)
    assert_close(ours, (bars[0].sum(0, keepdims=True), bars[1]), TOL)
    bars = each(a, same_b)
    ours = sharded((P("batch"), P()))(a, b[1:2])
    assert_close(ours, (bars[0], bars[1].sum(0, keepdims=True)), TOL)


def test_a_sharded_batch_gathers_nothing():
    sharding = NamedSharding(devices(), P("batch"))
    a, b = jax.device_put(problems("full"), sharding)
    compiled = jax.jit(jax.vmap(jax.grad(loss_of("full", False), argnums=(0, 1)))).lower(a, b)
    compiled = compiled.compile()
    assert "all-gather" not in compiled.as_text()
    assert_close(compiled(a, b), gradients("full"), TOL)


# What the compiled programs hold.


def value_and_pullback(**options):
    def run(a, b):
        x, pull = jax.vjp(functools.partial(jaxqr.lstsq, **options), a, b)
        return x, pull(random_like(x))

    return run


@pytest.mark.parametrize("shape", [(30, 5), (5, 5)], ids=str)
def test_deep_never_forms_q(shape):
    """Forward or backward, under jit, grad and vmap, with a ridge or without; others do.

    So does square A with a ridge, whose gradient without Q is wrong where the ridge is next to zero
    (test_lstsq_data.py, test_next_to_no_residual).
    """
    a, b = jnp.asarray(matrix(shape)), jnp.asarray(gaussian(shape[:1]))
    many = jnp.stack([a, a]), jnp.stack([b, b])
    for options in ({}, {"ridge": 0.1}) if shape[0] > shape[1] else ({},):
        run = value_and_pullback(**options)
        for program in (
            jax.jit(functools.partial(jaxqr.lstsq, **options)).lower(a, b),
            jax.jit(run).lower(a, b),
            jax.jit(jax.vmap(run)).lower(*many),
            jax.jit(run).lower(*many),
        ):
            assert not FORMS_Q.search(program.compile().as_text())
    with_q = jax.jit(value_and_pullback(rcond=1e-9)).lower(a, b)
    assert FORMS_Q.search(with_q.compile().as_text())


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
def test_every_platform_has_it(platform):
    for dtype in ("float32", "complex64"):
        for shape in ((6, 3), (3, 6)):
            a, b = jnp.asarray(matrix(shape, dtype)), jnp.asarray(gaussian(shape[:1], dtype))
            for options in OPTIONS.values():
                run = jax.jit(value_and_pullback(**options))
                run.trace(a, b).lower(lowering_platforms=(platform,))


@pytest.mark.parametrize(
    ("shape", "options", "kept"),
    [
        ((30, 5), {}, [(5, 5)]),
        ((30, 5), {"ridge": jnp.asarray(0.1)}, [(5, 5)]),
        ((30, 5), {"rcond": 1e-9}, [(5, 5), (5, 5)]),  # T and W
        ((5, 30), {}, [(5, 5), (30, 5)]),  # U and Q
        ((5, 30), {"rcond": 1e-9}, [(5, 5), (5, 5), (30, 5)]),
    ],
    ids=str,
)
def test_residuals(shape, options, kept):
    """Nothing of the size of A beside A itself; for wide A, Q."""
    a, b = jnp.asarray(matrix(shape)), jnp.asarray(gaussian(shape[:1]))
    solve = functools.partial(jaxqr.lstsq, **options)
    _, pullback = jax.vjp(solve, a, b)
    arrays = [x for x in jax.tree.leaves(pullback) if isinstance(x, jax.Array) and x is not a]
    assert sorted(x.shape for x in arrays if min(x.shape[-2:], default=1) > 1) == kept


def flops(f, *args):
    """What XLA counts, and what it leaves to LAPACK: n^2 (2 m - 2 n / 3) in geqrf, n^2 in trsm."""
    compiled = jax.jit(f).lower(*args).compile()
    calls = re.findall(r"= \(?f64\[(\d+),(\d+)\].*lapack_d(geqrf|trsm)", compiled.as_text())
    by_lapack = sum(
        n**2 * (2 * m - 2 * n / 3) if name == "geqrf" else m**2 * n
        for m, n, name in ((int(m), int(n), name) for m, n, name in calls)
    )
    return len(calls), compiled.cost_analysis()["flops"] + by_lapack


def test_the_gradient_is_cheap():
    """Value and both gradients: at most 1.5 times the value, for m = 10 n."""
    a, b = jnp.asarray(matrix((300, 30))), jnp.asarray(gaussian((300,)))
    run = value_and_pullback()
    calls, value = flops(jaxqr.lstsq, a, b)
    assert calls == 3  # one factorization, one solve, and one in the product with Q
    calls, both = flops(run, a, b)
    assert calls == 5  # two more solves
    assert both <= 1.5 * value
    _, b_alone = flops(lambda a, b: run(a, b)[1][1], a, b)
    assert b_alone <= both - 4 * a.size  # A-bar is not computed where it is not wanted


def test_cotangents_are_adjoint_to_tangents():
    """In forward mode the pullback is the transpose of the tangent map, nothing recomputed."""
    a, b = jnp.asarray(matrix((6, 3))), jnp.asarray(gaussian((6,)))
    dots = random_like((a, b))
    solve = functools.partial(jaxqr.lstsq, forward_mode=True)
    x, dx = jax.jvp(solve, (a, b), dots)
    x_bar = random_like(x, seed=4)
    bars = jax.vjp(solve, a, b)[1](x_bar)
    assert abs(inner(bars, dots) - inner(x_bar, dx)) <= 1e-12


@KINDS
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)], ids=str)
def test_linear_in_b(shape, kind):
    """In forward mode ``jax.linear_transpose`` takes it: what comes is b-bar."""
    a, b = jnp.asarray(matrix(shape, "complex128")), jnp.asarray(gaussian(shape[:1], "complex128"))
    x_bar = jnp.asarray(gaussian(shape[1:], "complex128"))
    forward = functools.partial(jaxqr.lstsq, a, **OPTIONS[kind], forward_mode=True)
    (transposed,) = jax.linear_transpose(forward, b)(x_bar)
    (b_bar,) = jax.vjp(functools.partial(jaxqr.lstsq, a, **OPTIONS[kind]), b)[1](x_bar)
    assert_close(transposed, b_bar, TOL)
