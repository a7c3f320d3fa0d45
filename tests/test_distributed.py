"""Rows on many devices: the factors, their derivatives, and what travels."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numerics import (
    DTYPES,
    assert_close,
    central_difference,
    check_qr,
    gaussian,
    inner,
    matrix,
    norm,
    random_like,
    tolerance,
)

import jaxqr
from bench.distributed import collectives, received
from jaxqr import distributed
from jaxqr.distributed._reduction import chosen, rounds, rounds_of


@functools.cache
def mesh_of(shape, names=("rows",)):
    devices = np.array(jax.devices("cpu"))[: np.prod(shape)]
    return Mesh(devices.reshape(shape), names)


def on(mesh, x, *spec):
    return jax.device_put(jnp.asarray(x), NamedSharding(mesh, P(*spec)))


@functools.cache
def factors(devices, reduction="auto", check_vma=True):
    """tsqr over so many devices."""
    return jax.shard_map(
        lambda a: distributed.tsqr(a, "rows", positive_diagonal=True, reduction=reduction),
        mesh=mesh_of((devices,)),
        in_specs=P("rows"),
        out_specs=(P("rows"), P()),
        check_vma=check_vma,
    )


def with_pullback(f):
    def run(a, bars):
        out, pullback = jax.vjp(f, a)
        return out, pullback(bars)[0]

    return jax.jit(run)


@functools.cache
def factors_and_pullback(devices, reduction="auto"):
    return with_pullback(factors(devices, reduction))


on_one_device = with_pullback(lambda a: jaxqr.qr(a, positive_diagonal=True))


def check_as_on_one_device(devices, rows, columns, dtype, cond, reduction):
    shape = (devices * rows, columns)
    a = jnp.asarray(matrix(shape, dtype, cond))
    bars = random_like((jnp.zeros(shape, dtype), jnp.zeros((columns, columns), dtype)))
    (q, r), a_bar = factors_and_pullback(devices, reduction)(a, bars)
    check_qr(np.asarray(a), np.asarray(q), np.asarray(r), tolerance(dtype, shape, cond=1))
    one, one_bar = on_one_device(a, bars)
    assert_close((q, r, a_bar), (*one, one_bar), tolerance(dtype, shape, cond, c=32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("devices", [1, 2, 3, 4, 7, 8])
def test_as_on_one_device(devices, dtype):
    """Both reductions, with each number of devices; one shape, compiled once for one device."""
    reduction = "tree" if dtype in ("float32", "complex128") else "gather"
    cond = 10 if np.finfo(dtype).eps > 1e-10 else 1e12
    check_as_on_one_device(devices, 168 // devices, 3, dtype, cond, reduction)


@pytest.mark.parametrize(
    ("devices", "rows", "columns", "dtype", "cond", "reduction"),
    [
        (2, 3, 4, "complex64", 10, "auto"),
        (4, 2, 5, "complex128", 1e12, "tree"),
        (5, 1, 4, "complex128", 1e12, "tree"),
        (7, 1, 5, "complex128", 1e12, "tree"),
        (8, 1, 3, "complex64", 10, "gather"),
        (7, 3, 4, "float64", 1e12, "tree"),
    ],
)
def test_fewer_rows_than_columns(devices, rows, columns, dtype, cond, reduction):
    """On each device, and with fewer devices than columns as well as more."""
    check_as_on_one_device(devices, rows, columns, dtype, cond, reduction)


def test_dependent_columns():
    """Q is orthonormal, and none of it lies in rows that a device has not."""
    a = matrix((5, 4), "complex128")
    a[:, 2] = a[:, 0]
    a[:, 3] = 0
    bars = (jnp.zeros((5, 4), "complex128"), jnp.zeros((4, 4), "complex128"))
    (q, r), _ = factors_and_pullback(5, "tree")(jnp.asarray(a), bars)
    check_qr(a, np.asarray(q), np.asarray(r), tolerance("complex128", a.shape, cond=1))


def test_unequal_rows():
    """A device whose rows are all zero, one whose are tiny, one whose are dependent."""
    a = matrix((36, 4))[:24]
    a[:3], a[6:9], a[9:12] = 0, a[6:9] * 1e-200, a[9]
    bars = random_like((jnp.zeros((24, 4)), jnp.zeros((4, 4))))
    (q, r), a_bar = factors_and_pullback(8, "tree")(jnp.asarray(a), bars)
    check_qr(a, np.asarray(q), np.asarray(r), tolerance("float64", a.shape, cond=1))
    one, one_bar = on_one_device(jnp.asarray(a), bars)
    assert_close((q, r, a_bar), (*one, one_bar), tolerance("float64", a.shape, c=32))


@pytest.mark.parametrize("reduction", ["tree", "gather"])
def test_the_rule_by_itself(reduction):
    """Against finite differences, and the pullback as the pushforward's adjoint; complex."""
    f = jax.jit(factors(3, reduction))
    a = jnp.asarray(matrix((6, 3), "complex128"))
    da, bars = random_like(a), random_like(f(a), seed=5)
    out, dots = jax.jit(lambda a, da: jax.jvp(f, (a,), (da,)))(a, da)
    assert_close(dots, central_difference(f, a, da, 1e-4), 1e-9)
    _, a_bar = factors_and_pullback(3, reduction)(a, bars)
    dq, dr = dots
    q, _ = out
    assert abs(inner(bars, dots) - inner(a_bar, da)) < 1e-13 * norm(bars[0]) * norm(da)
    dr = np.asarray(dr)
    assert np.all(np.tril(dr, -1) == 0)
    assert np.all(np.diagonal(dr).imag == 0)
    skew = np.conj(q.T) @ dq
    assert norm(skew + np.conj(skew.T)) < 1e-13 * norm(dq)


@pytest.mark.parametrize("check_vma", [True, False])
def test_replicated_and_varying_cotangents_of_r(check_vma):
    """R is used by all devices together, and by each in a way of its own."""
    mesh, n = mesh_of((4,)), 3
    a = jnp.asarray(matrix((12, n), "complex128"))
    together, own = random_like((jnp.zeros((n, n), a.dtype), jnp.zeros((4, n, n), a.dtype)))

    def loss(a, together, own):
        q, r = distributed.tsqr(a, "rows", positive_diagonal=True)
        each = jnp.sum(own * r[None]).real + jnp.sum(q**2).real
        return jnp.sum(together * r).real + jax.lax.psum(each, "rows")

    sharded = jax.shard_map(
        loss,
        mesh=mesh,
        in_specs=(P("rows"), P(), P("rows")),
        out_specs=P(),
        check_vma=check_vma,
    )

    def single(a):
        q, r = jaxqr.qr(a, positive_diagonal=True)
        return jnp.sum((together + own.sum(0)) * r).real + jnp.sum(q**2).real

    expected = jax.jit(jax.grad(single))(a)
    tol = tolerance(a.dtype, a.shape, c=32)
    assert_close(jax.jit(jax.grad(sharded))(a, together, own), expected, tol)
    if check_vma:  # and the gradient taken inside
        inside = jax.shard_map(
            jax.grad(loss), mesh=mesh, in_specs=(P("rows"), P(), P("rows")), out_specs=P("rows")
        )
        assert_close(jax.jit(inside)(a, together, own), expected, tol)


def test_r_is_the_same_to_the_last_bit():
    for reduction in ("tree", "gather"):
        every = jax.shard_map(
            lambda a, reduction=reduction: distributed.tsqr(a, "rows", reduction=reduction)[1],
            mesh=mesh_of((7,)),
            in_specs=P("rows"),
            out_specs=P("rows"),
        )
        rs = np.asarray(jax.jit(every)(jnp.asarray(matrix((21, 4))))).reshape(7, 4, 4)
        assert all(np.array_equal(r, rs[0]) for r in rs)


def curvature(f, *args):
    """Hessian times a vector, in both orders of the modes that start from reverse mode."""
    vs = random_like(args)
    arguments = tuple(range(len(args)))

    def forward_over_reverse(*args):
        return jax.jvp(jax.grad(f, arguments), args, vs)[1]

    def reverse_over_reverse(*args):
        return jax.grad(lambda *args: dot(jax.grad(f, arguments)(*args), vs), arguments)(*args)

    def dot(xs, ys):
        return sum(jnp.sum(x * y) for x, y in zip(xs, ys, strict=True))

    return forward_over_reverse, reverse_over_reverse


def test_second_order():
    a = jnp.asarray(matrix((6, 2)))

    def loss(qr, a):
        return sum(jnp.sum(jnp.sin(x) * x) for x in qr(a))

    single = functools.partial(loss, lambda a: jaxqr.qr(a, forward_mode=True))
    sharded = functools.partial(
        loss, lambda a: distributed.sharded_qr(a, mesh_of((2,)), "rows", reduction="tree")
    )

    expected = jax.jit(curvature(single, a)[0])(a)
    for second in curvature(sharded, a):
        assert_close(jax.jit(second)(a), expected, tolerance("float64", a.shape, 100, c=32))


# Least squares.


@pytest.mark.parametrize(
    ("devices", "shape", "nrhs", "dtype", "cond", "ridge", "options"),
    [
        (1, (6, 3), (), "float32", 10, 0.3, {}),
        (3, (9, 4), (5,), "complex64", 10, 0.0, {"reduction": "tree"}),
        (4, (8, 3), (), "complex128", 10, 0.3, {"reduction": "tree"}),
        (7, (7, 5), (2,), "float64", 10, 0.3, {"forward_mode": True}),
        (8, (16, 3), (), "complex128", 10, 0.0, {"forward_mode": True, "reduction": "tree"}),
        (8, (32, 4), (), "float64", 1e12, 0.0, {}),
        (2, (3, 6, 2), (), "float64", 10, 0.3, {}),
    ],
)
def test_lstsq_as_on_one_device(devices, shape, nrhs, dtype, cond, ridge, options):
    a = jnp.asarray(matrix(shape, dtype, cond))
    b = jnp.asarray(gaussian((*shape[:-1], *nrhs), dtype))
    if cond > 1e8:  # b in the range of A: or the residual counts with the square of cond
        b = a @ jnp.ones(shape[-1], a.dtype)
    x_bar = random_like(jnp.zeros((*shape[:-2], shape[-1], *nrhs), dtype))
    level = () if ridge == 0 else (jnp.asarray(ridge, jnp.finfo(dtype).dtype),)

    def run(solve, a, b, *level):
        x, pullback = jax.vjp(solve, a, b, *level)
        return x, *pullback(x_bar)

    def sharded(a, b, ridge=0.0):
        mesh = mesh_of((devices,))
        return distributed.sharded_lstsq(a, b, mesh, "rows", ridge, **options)

    def single(a, b, ridge=0.0):
        return jaxqr.lstsq(a, b, ridge=ridge)

    ours, theirs = (jax.jit(functools.partial(run, f))(a, b, *level) for f in (sharded, single))
    tol = tolerance(dtype, shape, cond * (cond if cond < 1e8 else 1), c=32)
    assert_close(ours, theirs, tol)


@pytest.mark.parametrize("forward_mode", [False, True])
def test_lstsq_with_ridges_of_any_size(forward_mode):
    """Also beyond A's own, where the rows of A are the small ones; each has its own accuracy."""
    a, b = jnp.asarray(matrix((9, 4))), jnp.asarray(gaussian((9,)))

    def with_gradients(solve):
        def loss(a, b, ridge):
            x = solve(a, b, ridge)
            return jnp.sum(jnp.arange(1.0, 5.0) * x), x

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))

    def sharded(a, b, ridge):
        options = {"forward_mode": forward_mode}
        return distributed.sharded_lstsq(a, b, mesh_of((3,)), "rows", ridge, **options)

    def single(a, b, ridge):
        return jaxqr.lstsq(a, b, ridge=ridge)

    ours, theirs = map(with_gradients, (sharded, single))
    for ridge in map(jnp.asarray, (1e-6, 1.0, 1e8, 1e20, 1e100)):
        assert_close(ours(a, b, ridge), theirs(a, b, ridge), tolerance("float64", a.shape))


@pytest.mark.parametrize("forward_mode", [False, True])
def test_lstsq_of_columns_far_apart_beside_a_ridge(forward_mode):
    """Each has a unit of its own: b-bar is within the range, and so is what it is made of."""
    sizes = np.array([1, 1e-21], "float32")
    a, b = gaussian((6, 2), "float32"), jnp.asarray(gaussian((6,), "float32"))

    def second(b, ridge):
        options = {"forward_mode": forward_mode}
        scaled = jnp.asarray(a * sizes)
        return distributed.sharded_lstsq(scaled, b, mesh_of((2,)), "rows", ridge, **options)[1]

    b_bar = jax.jit(jax.grad(second))(b, jnp.float32(0))
    expected = np.linalg.pinv(a.astype("float64"))[1] / sizes[1]
    assert_close(b_bar.astype("float64"), expected, tolerance("float32", a.shape))


@pytest.mark.parametrize("forward_mode", [False, True])
@pytest.mark.parametrize("ridge", [None, 0.5])
def test_lstsq_at_every_scale(ridge, forward_mode):
    """A power of two changes no digit of x or of its gradients; an infinite ridge leaves zeros."""

    @jax.jit
    def with_gradients(a, b, ridge):
        def loss(a, b, ridge):
            level = 0.0 if ridge is None else ridge
            options = {"forward_mode": forward_mode}
            x = distributed.sharded_lstsq(a, b, mesh_of((2,)), "rows", level, **options)
            return jnp.sum(jnp.arange(1, 4, dtype=x.dtype) * x), x

        bars, x = jax.grad(loss, (0, 1), has_aux=True)(a, b, ridge)
        return x, *bars

    dtype = np.dtype("float32")
    a, b = jnp.asarray(matrix((8, 3), dtype)), jnp.asarray(gaussian((8,), dtype))
    level = None if ridge is None else jnp.asarray(ridge, dtype)
    x, a_bar, b_bar = with_gradients(a, b, level)
    for exponent in (100, -100) if ridge is None else (60, -60):
        s = jnp.asarray(2.0**exponent, dtype)
        shifted = None if level is None else level * s * s
        found = with_gradients(s * a, s * b, shifted)
        for y, expected in zip(found, (x, a_bar / s, b_bar / s), strict=True):
            np.testing.assert_array_equal(y, expected)
    if level is not None:
        assert all(not np.any(y) for y in with_gradients(a, b, level * jnp.inf))


@pytest.mark.parametrize("forward_mode", [False, True])
def test_lstsq_pushforward_and_second_order(forward_mode):
    mesh = mesh_of((3,))
    a, b, ridge = jnp.asarray(matrix((9, 2))), jnp.asarray(gaussian((9,))), jnp.asarray(0.2)
    args = (a, b, ridge)
    dots = random_like(args)

    def sharded(a, b, ridge):
        return distributed.sharded_lstsq(a, b, mesh, "rows", ridge, forward_mode=forward_mode)

    def single(a, b, ridge):
        return jaxqr.lstsq(a, b, ridge=ridge, forward_mode=True)

    def loss(f, *args):
        return jnp.sum(jnp.sin(f(*args)))

    def tangent(f):
        return jax.jit(lambda *args: jax.jvp(f, args, dots)[1])

    assert_close(tangent(sharded)(*args), tangent(single)(*args), 1e-12)
    expected = jax.jit(curvature(functools.partial(loss, single), *args)[0])(*args)
    for second in curvature(functools.partial(loss, sharded), *args):
        assert_close(jax.jit(second)(*args), expected, 1e-11)


def test_lstsq_forward_mode_is_as_accurate_as_the_value():
    """cond 1e9: with Q the tangent has six digits, and A^H (db - dA x) alone has none."""
    a = matrix((16, 4), cond=1e9)
    x = np.ones(4)
    b = a @ x

    def tangent(forward_mode):
        f = functools.partial(
            distributed.sharded_lstsq, jnp.asarray(a), mesh=mesh_of((4,)), row_axes="rows"
        )
        g = functools.partial(f, forward_mode=forward_mode)
        return jax.jit(lambda b: jax.jvp(g, (b,), (b,))[1])(jnp.asarray(b))

    assert norm(tangent(True) - x) < 1e-5
    assert norm(tangent(False) - x) > 1e-4  # documented; if this fails, the keyword can go


# What travels.


@pytest.mark.parametrize("reduction", ["tree", "gather"])
@pytest.mark.parametrize("devices", [7, 8])
def test_only_triangles_travel(devices, reduction):
    mesh, m, n = mesh_of((devices,)), devices * 20, 6
    a = on(mesh, matrix((m, n)), "rows")
    bars = (on(mesh, gaussian((m, n)), "rows"), on(mesh, gaussian((n, n))))
    triangle = 8 * n * n

    def value(a):
        return distributed.sharded_qr(a, mesh, "rows", reduction=reduction)

    compiled = jax.jit(value).lower(a).compile()
    both = with_pullback(value).lower(a, bars).compile()
    for program, sums in ((compiled, 1), (both, 2)):
        text = program.as_text()
        for x in collectives(text):
            parts = devices if x.kind == "all-gather" else 1
            assert x.kind in ("all-reduce", "collective-permute", "all-gather")
            assert x.bytes <= parts * triangle
            assert (x.kind == "all-gather") <= (reduction == "gather")
        if reduction == "tree":  # with 7 devices, two rounds have a second message
            assert len(collectives(text)) == 3 + (0, 2)[devices == 7] + sums
            assert max(np.bincount(targets(text))) == rounds(devices) == 3
        else:
            assert len(collectives(text)) == 1 + sums
            assert received(text, devices) == (devices - 1 + sums) * triangle
    q, _ = compiled(a)
    assert q.sharding.is_equivalent_to(a.sharding, 2)
    (_, _), a_bar = both(a, bars)
    assert a_bar.sharding.is_equivalent_to(a.sharding, 2)
    # A, Q, and what is between: no device ever holds more than a few times its part.
    assert both.memory_analysis().temp_size_in_bytes < 12 * 8 * 20 * n + 40 * triangle


def targets(text):
    """The devices that collective permutations send to, as often as they do."""
    pairs = re.findall(r"source_target_pairs=\{([{}0-9,]*)\}", text)
    return [int(x) for x in re.findall(r",(\d+)\}", "".join(pairs))]


@pytest.mark.parametrize("devices", [*range(1, 18), 1000])
def test_rounds_of_the_tree(devices):
    """After ceil(log2 devices) rounds each device has what all had, in their order, once."""
    have = [(i,) for i in range(devices)]
    tree = rounds_of(devices)
    assert len(tree) == math.ceil(math.log2(devices))
    for above, upper, *messages in tree:
        for pairs in messages:  # of one permutation
            for ends in zip(*pairs, strict=True):
                assert len(set(ends)) == len(ends)
        theirs = [()] * devices
        for sender, target in (pair for pairs in messages for pair in pairs):
            assert not theirs[target]
            theirs[target] = have[sender]
        pairs = [(a, b) if up else (b, a) for up, a, b in zip(above, have, theirs, strict=True)]
        assert [len(a) for a, _ in pairs] == upper
        have = [a + b for a, b in pairs]
    assert have == [tuple(range(devices))] * devices


def test_lstsq_pullback_sends_nothing():
    mesh, m, n = mesh_of((8,)), 160, 6
    a, b = on(mesh, matrix((m, n)), "rows"), on(mesh, gaussian((m,)), "rows")

    def loss(a, b):
        return jnp.sum(distributed.sharded_lstsq(a, b, mesh, "rows", reduction="tree") ** 2)

    value = jax.jit(loss).lower(a, b).compile().as_text()
    grad = jax.jit(jax.grad(loss, (0, 1))).lower(a, b).compile()
    for text in (value, grad.as_text()):
        assert [x.kind for x in collectives(text)].count("collective-permute") == 3
        assert received(text, 8) == 4 * 8 * n * (n + 1) + 8 * (n + 1)  # and largest elements
    for bar, x in zip(grad(a, b), (a, b), strict=True):
        assert bar.sharding.is_equivalent_to(x.sharding, x.ndim)


def test_residuals():
    """Q for the factors, A for least squares, and besides what is n x n or a column."""
    mesh, m, n = mesh_of((2,)), 200, 64
    a, b = jnp.asarray(matrix((m, n), "complex128")), jnp.asarray(gaussian((m,), "complex128"))

    def kept(f, *args):
        _, pullback = jax.vjp(lambda *args: f(*args, mesh, "rows"), *args)
        sizes = [x.size for x in jax.tree.leaves(pullback) if isinstance(x, jax.Array)]
        return [size for size in sizes if size > 2 * n * n]

    assert kept(distributed.sharded_qr, a) == [m * n]
    assert kept(distributed.sharded_lstsq, a, b) == [m * n]


def test_parser_of_collectives():
    text = """
      %r = (f32[5,5]{0,1}, c128[]) all-reduce(%x, %y), channel_id=1
      %s = (f32[2,3]{1,0}, f32[8,3]{1,0}) all-gather-start(%x), dimensions={0}
      %d = f32[8,3]{1,0} all-gather-done(%s)
      %p = bf16[4]{0} collective-permute(%x), metadata={op_name="all-reduce(x)"}
      %f = f32[5,5]{0,1} fusion(%all-reduce.3), calls=%c
    """
    assert [(x.kind, x.shape, x.bytes) for x in collectives(text)] == [
        ("all-reduce", (5, 5), 100),
        ("all-reduce", (), 16),
        ("all-gather", (8, 3), 96),
        ("collective-permute", (4,), 8),
    ]
    assert received(text, 4) == 100 + 16 + 3 * 24 + 8


def test_cost_model():
    assert [rounds(p) for p in (1, 2, 3, 4, 7, 8, 1000, 1024)] == [0, 1, 2, 2, 3, 3, 10, 10]
    assert all(chosen("auto", p, 256, 256, 4) == "gather" for p in (2, 3))
    assert all(chosen("auto", p, 256, 256, 4) == "tree" for p in (4, 8, 16, 1000, 1024))
    assert chosen("auto", 8, 4, 4, 4) == "gather"
    assert chosen("tree", 2, 4, 4, 4) == "tree"
    assert chosen("gather", 1024, 256, 256, 4) == "gather"


# Meshes, batches, the mirror.


def test_rows_over_two_axes_and_batches_over_a_third():
    mesh = mesh_of((2, 2, 2), ("data", "x", "y"))
    a = on(mesh, matrix((4, 16, 3), "complex128"), "data", ("x", "y"))
    options = {"batch_axes": "data", "positive_diagonal": True}

    def value(a):
        return distributed.sharded_qr(a, mesh, ("x", "y"), **options)

    bars = random_like((a, jnp.zeros((4, 3, 3), a.dtype)))
    run = with_pullback(value).lower(a, bars).compile()
    assert {x.shape for x in collectives(run.as_text())} <= {(2, 3, 3), (2, 12, 3)}
    (q, r), a_bar = run(a, bars)
    one, one_bar = on_one_device(np.asarray(a), bars)
    assert_close((q, r, a_bar), (*one, one_bar), tolerance(a.dtype, a.shape, c=32))
    assert q.sharding.is_equivalent_to(a.sharding, 3)
    assert r.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 3)

    mapped = jax.shard_map(  # a batch by vmap is a batch by leading axes
        jax.vmap(lambda a: distributed.tsqr(a, ("x", "y"), positive_diagonal=True)),
        mesh=mesh,
        in_specs=P("data", ("x", "y")),
        out_specs=(P("data", ("x", "y")), P("data")),
    )
    assert_close(jax.jit(mapped)(a), (q, r), tolerance(a.dtype, a.shape))


def test_lq_of_columns():
    mesh = mesh_of((4,), ("columns",))
    a = on(mesh, matrix((3, 12), "complex128"), None, "columns")
    l, q = distributed.sharded_lq(a, mesh, "columns", positive_diagonal=True)
    expected = jax.jit(lambda a: jaxqr.lq(a, positive_diagonal=True))(np.asarray(a))
    assert_close((l, q), expected, tolerance(a.dtype, a.shape, c=32))
    assert q.sharding.is_equivalent_to(a.sharding, 2)
    assert l.sharding.is_fully_replicated


def test_meshes_with_explicit_axes():
    """As jax.make_mesh makes them: the input is laid out first, whatever it was."""
    mesh = jax.make_mesh((4,), ("rows",), devices=jax.devices("cpu")[:4])
    a, b = matrix((8, 3)), gaussian((8,))

    def loss(qr, lstsq, a, b):
        q, r = qr(a, positive_diagonal=True)
        return jnp.sum(jnp.sin(q)) + jnp.sum(jnp.sin(r)) + jnp.sum(lstsq(a, b, ridge=0.1))

    def on_mesh(f):
        return functools.partial(f, mesh=mesh, row_axes="rows")

    sharded = on_mesh(distributed.sharded_qr), on_mesh(distributed.sharded_lstsq)
    ours, theirs = (
        jax.jit(jax.value_and_grad(functools.partial(loss, *fs), (0, 1)))
        for fs in (sharded, (jaxqr.qr, jaxqr.lstsq))
    )
    expected = theirs(a, b)
    assert_close(ours(a, b), expected, tolerance("float64", a.shape, c=32))
    got = ours(on(mesh, a, "rows"), on(mesh, b, "rows"))
    assert_close(got, expected, tolerance("float64", a.shape, c=32))
    assert got[1][0].sharding.is_equivalent_to(NamedSharding(mesh, P("rows")), 2)


def test_arrays_on_other_devices_are_moved():
    """Those put on one device, on part of the mesh, or there in another order; a ridge, too."""
    mesh, devices = mesh_of((4,)), np.array(jax.devices("cpu"))
    a, b = matrix((8, 4)), gaussian((8,))
    on_one = jax.sharding.SingleDeviceSharding(devices[5])
    others = [Mesh(devices[at], ("rows",)) for at in (slice(2), slice(3, None, -1))]
    for f, args, spec in (
        (distributed.sharded_qr, (a,), P("rows")),
        (distributed.sharded_lq, (a.T,), P(None, "rows")),
        (distributed.sharded_lstsq, (a, b), P("rows")),
    ):
        ridge = [0.5] if len(args) == 2 else []
        expected = f(*args, mesh, "rows", *ridge)
        for sharding in (on_one, *(NamedSharding(other, spec) for other in others)):
            moved = jax.device_put(args, sharding)
            got = f(*moved, mesh, "rows", *jax.device_put(ridge, on_one))
            assert_close(got, expected, 0)
            for x, y in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
                assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


@pytest.mark.parametrize("reduction", ["tree", "gather"])
def test_no_columns(reduction):
    mesh = mesh_of((4,))

    def all_of(a):
        b = jnp.ones((8, 3))
        q, r = distributed.sharded_qr(a, mesh, "rows", reduction=reduction)
        options = {"ridge": 1.0, "reduction": reduction}
        x = distributed.sharded_lstsq(a, b, mesh, "rows", reduction=reduction)
        y = distributed.sharded_lstsq(a, b, mesh, "rows", forward_mode=True, **options)
        return q, r, x, y

    out, pull = jax.vjp(all_of, jnp.zeros((8, 0)))
    assert [x.shape for x in out] == [(8, 0), (0, 0), (0, 3), (0, 3)]
    assert pull(out)[0].shape == (8, 0)


def test_types():
    mesh = mesh_of((2,))
    for dtype, result in (("bfloat16", "bfloat16"), ("int32", "float32")):
        a = jnp.asarray(np.arange(12).reshape(6, 2) ** 2, dtype)
        assert {x.dtype for x in distributed.sharded_qr(a, mesh, "rows")} == {jnp.dtype(result)}
        x = distributed.sharded_lstsq(a, a[:, 0], mesh, "rows")
        assert x.dtype == result
        assert_close(x.astype("float32"), jnp.array([1.0, 0.0], "float32"), 1e-2)


def test_rows_that_are_the_same_on_all_devices():
    """They count once for each device."""
    a = jnp.asarray(matrix((4, 3)))
    f = jax.shard_map(
        lambda a: distributed.tsqr(a, "rows", positive_diagonal=True)[1],
        mesh=mesh_of((4,)),
        in_specs=P(),
        out_specs=P(),
    )
    grad = jax.jit(jax.grad(lambda a: jnp.sum(f(a))))
    (_, r), _ = on_one_device(a, random_like((a, jnp.zeros((3, 3)))))
    assert_close(jax.jit(f)(a), 2 * r, 1e-13)
    expected = jax.grad(lambda a: jnp.sum(jaxqr.qr(a, mode="r", positive_diagonal=True)))(a)
    assert_close(grad(a), 2 * expected, 1e-12)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowering(platform):
    mesh = mesh_of((8,))

    def loss(a):
        q, r = distributed.sharded_qr(a, mesh, "rows", reduction="tree")
        return jnp.sum(q) + jnp.sum(r) + jnp.sum(distributed.sharded_lstsq(a, a, mesh, "rows"))

    traced = jax.jit(jax.grad(loss)).trace(jax.ShapeDtypeStruct((32, 3), "float32"))
    assert "collective_permute" in traced.lower(lowering_platforms=(platform,)).as_text()


def test_errors():
    mesh, square = mesh_of((4,)), mesh_of((2, 2), ("x", "y"))
    qr, lq, lstsq = distributed.sharded_qr, distributed.sharded_lq, distributed.sharded_lstsq
    for call, message in (
        (lambda: qr(jnp.ones((10, 2)), mesh, "rows"), "multiple of 4.* Got 10; 2 of zeros"),
        (lambda: lq(jnp.ones((2, 10)), mesh, "rows"), "number of columns .*multiple of 4"),
        (lambda: qr(jnp.ones((4, 8)), mesh, "rows"), "as many rows as columns. Got 4 and 8"),
        (lambda: lq(jnp.ones((8, 4)), mesh, "rows"), "as many columns as rows. Got 4 and 8"),
        (lambda: qr(jnp.ones((8, 2)), mesh, "x"), r"has \{'rows': 4\}. Got 'x'"),
        (lambda: qr(jnp.ones((8, 2)), mesh, ("rows", "y")), "Got 'y'"),
        (lambda: qr(jnp.ones(8), mesh, "rows"), r"\(\.\.\., m, n\)"),
        (lambda: qr(jnp.ones((8, 2)), mesh, "rows", reduction="star"), "sharded_qr .* Got 'star'"),
        (lambda: qr(jnp.ones((3, 8, 2)), square, "x", batch_axes="y"), "multiple of 2"),
        (lambda: lstsq(jnp.ones((8, 2)), jnp.ones(4), mesh, "rows"), r"b of shape \(4,\)"),
        (lambda: lstsq(jnp.ones((8, 2)), jnp.ones(8), mesh, "rows", -1.0), "negative"),
        (lambda: lstsq(jnp.ones((8, 2)), jnp.ones(8), mesh, "rows", jnp.nan), "to be a number"),
        (lambda: lstsq(jnp.ones((8, 2)), jnp.ones(8), mesh, "rows", jnp.ones(2)), "scalar"),
        (lambda: qr(jnp.ones((0, 0)), mesh, "rows"), "sharded_qr expects each .* have rows. Got 0"),
        (lambda: lq(jnp.ones((0, 0)), mesh, "rows"), "sharded_lq .* to have columns. Got 0"),
        (lambda: qr(jnp.ones((8, 2)), mesh, ("rows",) * 2), "row_axes to name different axes. Got"),
        (
            lambda: lq(jnp.ones((4, 2, 8)), mesh, "rows", batch_axes="rows"),
            r"sharded_lq expects column_axes and batch_axes .* Got \('rows', 'rows'\)",
        ),
        (
            lambda: distributed.tsqr(jnp.ones((8, 2)), ("rows",) * 2),
            "tsqr expects axis_name to name",
        ),
        (lambda: distributed.tsqr(jnp.ones((8, 2)), "rows"), "jax.shard_map around it"),
        (lambda: distributed.tsqr(jnp.ones((8, 2)), 0), "jax.shard_map around it. Got 0"),
        (lambda: distributed.lstsq(jnp.ones((8, 2)), jnp.ones(8), "rows"), "shard_map around it"),
    ):
        with pytest.raises(ValueError, match=message):
            call()

    for call, message in (
        (lambda: qr(jnp.ones((8, 2)), None, "rows"), "mesh to be a mesh of devices.* Got None"),
        (lambda: qr(jnp.ones((8, 2)), mesh, ["rows"]), r"row_axes to be the name.* Got \['rows'\]"),
        (lambda: lq(jnp.ones((2, 8)), mesh, 0), "column_axes to be the name.* Got 0"),
        (lambda: qr(jnp.ones((8, 2)), mesh, "rows", batch_axes=[]), "batch_axes to be the name"),
        (lambda: qr(jnp.ones((8, 2)), mesh, (["rows"],)), r"row_axes to be the name.*\['rows'\]"),
        (lambda: distributed.tsqr(jnp.ones((8, 2)), ["rows"]), "tsqr expects axis_name to be the"),
    ):
        with pytest.raises(TypeError, match=message):
            call()

    def inside(f, *args):
        jax.eval_shape(jax.shard_map(f, mesh=mesh, in_specs=P("rows"), out_specs=P()), *args)

    with pytest.raises(ValueError, match="4 devices with 2 rows each, 8 in all, of 9 columns"):
        inside(lambda a: distributed.tsqr(a, "rows")[1], jnp.ones((8, 9)))
    with pytest.raises(ValueError, match="same m rows"):
        inside(lambda a: distributed.lstsq(a, jnp.ones(3), "rows"), jnp.ones((8, 2)))
    with pytest.raises(TypeError, match="ridge to be real"):
        inside(lambda a: distributed.lstsq(a, a[:, 0], "rows", 1j), jnp.ones((8, 2)))


# A layer in a model.


def test_training_with_data_parallel_and_rows_sharded():
    """Features are learned by gradient descent through the fit of a last layer to each data set.

    Data sets on one axis of the mesh, the rows of each on the other, parameters everywhere.
    """
    mesh = mesh_of((2, 4), ("data", "rows"))
    inputs = gaussian((4, 16, 3))
    targets = np.sin(2 * inputs[..., 0]) * inputs[..., 1] + 0.5 * inputs[..., 2] ** 2

    def of_data_sets(solve, mean, params, x, y):
        w, bias = params
        features = jnp.tanh(x @ w + bias[None, None, :])
        c = solve(features, y)
        return mean((jnp.einsum("tmn,tn->tm", features, c) - y) ** 2)

    def local(params, x, y):
        def solve(a, b):
            return distributed.lstsq(a, b, "rows", ridge=1e-3)

        def mean(x):
            return jax.lax.pmean(x.mean(), ("data", "rows"))

        return of_data_sets(solve, mean, params, x, y)

    def single(params, x, y):
        def solve(a, b):
            return jaxqr.lstsq(a, b, ridge=1e-3)

        return of_data_sets(solve, jnp.mean, params, x, y)

    rows = P("data", "rows")
    sharded = jax.shard_map(local, mesh=mesh, in_specs=(P(), rows, rows), out_specs=P())
    params = (jnp.asarray(gaussian((3, 6))), jnp.asarray(gaussian((6,))))

    def train(loss, x, y):
        def step(params, _):
            value, grads = jax.value_and_grad(loss)(params, x, y)
            return jax.tree.map(lambda p, g: p - 0.2 * g, params, grads), value

        return jax.jit(lambda params: jax.lax.scan(step, params, length=40))(params)

    x, y = on(mesh, inputs, *rows), on(mesh, targets, *rows)
    trained, losses = train(sharded, x, y)
    expected, of_one = train(single, jnp.asarray(inputs), jnp.asarray(targets))
    assert losses[-1] < 0.7 * losses[0]
    assert_close((trained, losses), (expected, of_one), 1e-8)
