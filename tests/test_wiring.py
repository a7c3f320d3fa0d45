"""What the compiled program holds: the rule that ran, the work it skips, the residuals it keeps."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import (
    FACTORIZATIONS,
    NAMES,
    TRIANGLE,
    assert_close,
    inexact,
    matrix,
    random_like,
    tolerance,
)

import jaxqr
from jaxqr import _autodiff

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
FORMS_Q = re.compile(r"orgqr|ungqr|householder_product|ProductOfElementaryHouseholderReflectors")


def value_and_pullback(name, *, alone=False, forward_mode=False, **options):
    mode = TRIANGLE[name] if alone else "reduced"

    def f(a):
        return inexact(FACTORIZATIONS[name](a, mode=mode, forward_mode=forward_mode, **options))

    def run(a):
        out, pullback = jax.vjp(f, a)
        return out, pullback(random_like(out))

    return jax.jit(run)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(30, 5), (5, 30)], ids=str)
def test_a_triangle_alone_never_forms_q(name, shape):
    a = jnp.asarray(matrix(shape))
    for forward_mode in (False, True):
        run = value_and_pullback(name, alone=True, forward_mode=forward_mode)
        assert not FORMS_Q.search(run.lower(a).compile().as_text())
    assert FORMS_Q.search(value_and_pullback(name).lower(a).compile().as_text())


def residual_shapes(f, a):
    """Shapes of what jax.vjp keeps between the forward and the backward pass, a itself aside."""
    _, pullback = jax.vjp(f, a)
    kept = [x for x in jax.tree.leaves(pullback) if isinstance(x, jax.Array) and x is not a]
    return sorted(x.shape for x in kept if x.ndim >= 2)


@pytest.mark.parametrize(
    ("call", "shape", "kept"),
    [
        (lambda a: jaxqr.qr(a), (30, 5), [(5, 5), (30, 5)]),
        (lambda a: jaxqr.qr(a), (5, 30), [(5, 5), (5, 30)]),
        (lambda a: jaxqr.qr(a, mode="r"), (30, 5), [(5, 5)]),
        (lambda a: jaxqr.qr(a, mode="complete"), (30, 5), [(30, 5), (30, 30)]),
        (lambda a: jaxqr.pivoted_qr(a)[:2], (30, 5), [(5, 5), (30, 5)]),
        (lambda a: jaxqr.pivoted_qr(a, rank=3)[:2], (30, 5), [(3, 5), (30, 3)]),
    ],
    ids=["deep", "wide", "r", "complete", "pivoted", "truncated"],
)
def test_residuals(call, shape, kept):
    """Q and R; A, which is there anyway, only where Y is not Q V or Q is not formed."""
    assert residual_shapes(call, jnp.asarray(matrix(shape))) == kept


def test_zero_cotangents_skip_their_work():
    a = jnp.asarray(matrix((400, 20)))
    q, r = jaxqr.qr(a)
    q_bar, r_bar = random_like((q, r))

    def flops(*bars):
        def loss(a):
            pairs = zip(bars, jaxqr.qr(a), strict=True)
            return sum(jnp.sum(x * bar) for bar, x in pairs if bar is not None)

        return jax.jit(jax.grad(loss)).lower(a).compile().cost_analysis()["flops"]

    both, r_alone = flops(q_bar, r_bar), flops(None, r_bar)
    product = 2 * 400 * 20 * 20
    assert r_alone < 1.6 * product
    assert both > r_alone + product


def test_the_rule_ran():
    """The gradient is not bitwise that of jax.grad through jnp.linalg.qr."""
    a = jnp.asarray(matrix((40, 40)))

    def gradient(qr):
        return jax.grad(lambda a: sum(jnp.sum(jnp.sin(x)) for x in qr(a)))(a)

    ours, theirs = gradient(jaxqr.qr), gradient(jnp.linalg.qr)
    assert_close(ours, theirs, tolerance("float64", a.shape, c=64))
    assert not np.array_equal(ours, theirs)


def test_the_two_wirings_are_what_they_say():
    a = jnp.asarray(matrix((4, 3)))
    (factored,) = jax.make_jaxpr(lambda a: jaxqr.qr(a))(a).eqns
    (function,) = (x for x in factored.params["jaxpr"].eqns if x.primitive.name == "jaxqr_function")
    wired = _autodiff.reverse_mode(function.params["rule"])
    assert "custom_vjp_call" in str(jax.make_jaxpr(wired)(a))

    def tangent(a):
        return jax.jvp(lambda a: jaxqr.qr(a, forward_mode=True), (a,), (a,))[1]

    assert str(jax.make_jaxpr(tangent)(a)).count("jaxqr_pushforward") == 1


FORWARD = {
    "jvp": lambda f, a: jax.jvp(f, (a,), (a,)),
    "jacfwd": lambda f, a: jax.jacfwd(f)(a),
    "linearize": lambda f, a: jax.linearize(f, a)[1](a),
    "hessian": lambda f, a: jax.hessian(lambda a: jnp.sum(jnp.sin(f(a))))(a),
    "vmap": lambda f, a: jax.vmap(lambda a: jax.jvp(f, (a,), (a,)))(a[None]),
    "vmap, of a jit": lambda f, a: jax.vmap(lambda a: jax.jvp(jax.jit(f), (a,), (a,)))(a[None]),
    "vmap, of a cond": lambda f, a: jax.vmap(
        lambda a: jax.jvp(lambda a: jax.lax.cond(a[0, 0] > 0, f, f, a), (a,), (a,))
    )(a[None]),
    "of a vmap": lambda f, a: jax.jvp(jax.vmap(f), (a[None],), (a[None],)),
    "of a scan": lambda f, a: jax.jvp(
        lambda a: jax.lax.scan(lambda a, _: (a + jnp.sum(f(a)), None), a, length=2), (a,), (a,)
    ),
    "twice": lambda f, a: jax.jacfwd(jax.jacfwd(f))(a),
}


@pytest.mark.parametrize("use", FORWARD)
@pytest.mark.parametrize("name", [*NAMES, "lstsq", "lstsq rcond"])
def test_forward_mode_is_refused_with_the_way_out(name, use):
    """Before anything is computed; all of these are right with forward_mode=True."""
    caller, *rcond = name.split()

    def f(a):
        if caller == "lstsq":
            return jaxqr.lstsq(a, a[:, 0], rcond=1e-5 if rcond else None)
        return FACTORIZATIONS[name](a, mode=TRIANGLE[name])[0]

    a = jnp.asarray(matrix((4, 3)))
    use = FORWARD[use]
    message = f"jaxqr's {caller} is for reverse mode .* forward_mode=True"
    for run in (use, lambda f, a: jax.jit(lambda a: use(f, a))(a)):
        with pytest.raises(TypeError, match=message):
            run(f, a)


@pytest.mark.parametrize("caller", ["lstsq", "qr_multiply"])
def test_transposes_are_refused_with_the_way_out(caller):
    """Of what is linear in its second argument, as far as JAX can see of a call."""
    a, b = jnp.asarray(matrix((4, 3))), jnp.ones((4, 2))

    def f(b, forward_mode=False):
        how = {} if caller == "lstsq" else {"adjoint": True, "mode": "complete"}
        return jax.tree.leaves(getattr(jaxqr, caller)(a, b, **how, forward_mode=forward_mode))[0]

    message = f"{caller} is not known .* forward_mode=True.*jax.linearize"
    with pytest.raises(TypeError, match=message):
        jax.linear_transpose(f, b)(f(b))
    out, linear = jax.linearize(lambda b: f(b, forward_mode=True), b)
    (transposed,) = jax.linear_transpose(linear, b)(out)
    assert_close(transposed, jax.vjp(f, b)[1](out)[0], 1e-13)


def test_reverse_mode_passes_what_refuses_forward_mode():
    """Through scan, checkpoint, jit, cond and linearize: tangents are staged, then transposed."""
    a = jnp.asarray(matrix((4, 3)))

    def f(a, forward_mode=False):
        return jaxqr.qr(a, forward_mode=forward_mode)[1]

    def step(a, _, **options):
        return a + jnp.sum(jnp.sin(f(a, **options))), None

    def scanned(a):
        return jnp.sum(jax.lax.scan(jax.checkpoint(step), a, length=2)[0] ** 2)

    def unrolled(a):
        for _ in range(2):
            a, _ = step(a, None, forward_mode=True)
        return jnp.sum(a**2)

    run, expected = (jax.jit(jax.vmap(jax.jacrev(jax.grad(g)))) for g in (scanned, unrolled))
    assert_close(run(a[None]), expected(a[None]), 1e-12)
    of_a_map = jax.grad(lambda a: jnp.sum(jnp.sin(jax.vmap(f)(a))))
    each = jax.vmap(jax.grad(lambda a: jnp.sum(jnp.sin(f(a)))))
    assert_close(of_a_map(a[None]), each(a[None]), 1e-12)
    either = jax.jit(lambda a: jax.lax.cond(a[0, 0] > 0, f, f, a))
    of_either = jax.vmap(jax.grad(lambda a: jnp.sum(jnp.sin(either(a)))))
    assert_close(of_either(a[None]), each(a[None]), 1e-12)
    (pulled,) = jax.linear_transpose(jax.linearize(f, a)[1], a)(f(a))
    assert_close(pulled, jax.vjp(f, a)[1](f(a))[0], 1e-15)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_lowering(platform, name):
    """Values and gradients lower for every platform, without MAGMA and without host callbacks."""
    for shape, dtype, alone in (
        ((5, 3), "float32", False),
        ((2, 3, 5), "complex64", False),
        ((5, 3), "float32", True),
    ):
        for forward_mode in (False, True):
            run = value_and_pullback(name, alone=alone, forward_mode=forward_mode)
            traced = run.trace(jax.ShapeDtypeStruct(shape, dtype))
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            assert "callback" not in text
            assert platform == "cpu" or not re.search("geqp3|magma|hybrid", text)


def test_lq_of_row_major_data_copies_no_more_than_qr_of_the_transpose():
    a = jnp.asarray(matrix((20, 300)))

    def copies(f, a):
        text = jax.jit(f).lower(a).compile().as_text()
        return len(re.findall(r"= f64\[\d+,\d+\]\S* (?:copy|transpose)\(", text))

    of_transpose = copies(lambda a: tuple(x.mT for x in jnp.linalg.qr(a.mT)), a)
    assert copies(jaxqr.lq, a) <= of_transpose
