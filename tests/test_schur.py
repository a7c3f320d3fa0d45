"""QZ and Schur: factors, the derivative by itself, its gauge, and what has none."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.experimental import checkify
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from numerics import (
    DTYPES,
    assert_close,
    central_difference,
    gaussian,
    inner,
    norm,
    random_like,
    tolerance,
)

import jaxqr
from jaxqr._forward import schur as forward

DOUBLE = ("float64", "complex128")


def h(x):
    return np.conj(np.asarray(x).mT)


def pencil(n, dtype, kind="regular", batch=()):
    a, b = (gaussian((*batch, n, n), dtype, seed) for seed in (1, 2))
    if kind == "A singular":
        a[..., 0] = a[..., 1:].sum(-1)
    if kind == "B singular":
        b[..., 0] = b[..., 1:].sum(-1)
    if kind == "triangular":
        a, b = np.triu(a), np.triu(b)
    if kind == "diagonal":
        a, b = a * np.eye(n, dtype=dtype), b * np.eye(n, dtype=dtype)
    return jnp.asarray(a), jnp.asarray(b)


@functools.partial(jax.jit, static_argnames="sort")
def derivatives(a, b, da, db, sort=None):
    """The factors, their tangents, their cotangents, and what each wiring pulls these back to."""
    out, dots = jax.jvp(functools.partial(jaxqr.qz, sort=sort, forward_mode=True), (a, b), (da, db))
    bars = random_like(out)
    pulled = [
        jax.vjp(functools.partial(jaxqr.qz, sort=sort, forward_mode=mode), a, b)[1](bars)
        for mode in (False, True)
    ]
    return out, dots, bars, pulled


def check_rule(a, b, tol, sort=None):
    da, db = random_like((a, b), 3)
    out = derivatives(a, b, da, db, sort)
    (a, b, da, db), ((s, t, q, z), (ds, dt, dq, dz), bars, pulled) = jax.device_get(
        ((a, b, da, db), out)
    )
    dtypes = a.dtype, b.dtype
    wide = functools.partial(jax.tree.map, lambda x: x.astype("complex128"))
    a, b, da, db, s, t, q, z, ds, dt, dq, dz, bars = wide(
        (a, b, da, db, s, t, q, z, ds, dt, dq, dz, tuple(bars))
    )
    assert norm(q @ s @ h(z) - a) <= tol * norm(a)
    assert norm(q @ t @ h(z) - b) <= tol * norm(b)
    eye = np.broadcast_to(np.eye(a.shape[-1]), a.shape)
    for u, du in ((q, dq), (z, dz)):
        assert norm(h(u) @ u - eye) <= tol * norm(eye)
        assert norm(h(u) @ du + h(du) @ u) <= tol * max(norm(du), 1)
    assert not np.tril(s, -1).any()
    assert not np.tril(t, -1).any()
    diagonal = np.diagonal(t, axis1=-2, axis2=-1)
    assert not diagonal.imag.any()
    assert (diagonal.real >= 0).all()

    assert not np.tril(ds, -1).any()
    assert not np.tril(dt, -1).any()
    assert not np.where(diagonal == 0, 0, np.diagonal(dt, axis1=-2, axis2=-1).imag).any()
    size = norm(dq) + norm(dz) + 1
    for x, dx, m, dm in ((s, ds, a, da), (t, dt, b, db)):
        residual = dq @ x @ h(z) + q @ dx @ h(z) + q @ x @ h(dz) - dm
        assert norm(residual) <= tol * (norm(m) * size + norm(dx))
    for a_bar, b_bar in pulled:
        assert (a_bar.dtype, b_bar.dtype) == dtypes
        a_bar, b_bar = wide((a_bar, b_bar))
        scale = norm(a_bar) * norm(da) + norm(b_bar) * norm(db)
        paired = inner((a_bar, b_bar), (da, db)) - inner(bars, (ds, dt, dq, dz))
        assert abs(paired) <= tol * scale


@pytest.mark.parametrize(
    ("n", "dtype"), [*((n, dtype) for n in (1, 2, 5, 12) for dtype in DOUBLE), (50, "complex128")]
)
def test_rule(n, dtype):
    kinds = ["regular", *(["A singular", "B singular"] if n > 1 else [])]
    for kind in [*kinds, "triangular", "diagonal"] if n == 5 else kinds:
        check_rule(*pencil(n, dtype, kind), tol=tolerance(dtype, (n, n), c=32))


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_rule_in_single_precision(dtype):
    check_rule(*pencil(4, dtype, batch=(3,)), tol=tolerance(dtype, (4, 4), cond=100))


@pytest.mark.parametrize(("power", "dtype"), [(100, "float64"), (30, "float32"), (-25, "float32")])
def test_extreme_scales(power, dtype):
    a, b = pencil(3, dtype)
    check_rule(10.0**power * a, b, tol=tolerance(dtype, (3, 3), cond=100))


def invariant(s, t, q, z):
    """A loss of random weights on all factors that sees neither phases nor the order."""
    n = s.shape[-1]
    w = [jnp.asarray(gaussian((n, n), "complex128", 10 + i)) for i in range(4)]
    order = jnp.arange(1.0, n + 1)[None].astype(s.dtype)  # of the eigenvalues, as LAPACK has them
    hq, hz = jnp.conj(q.mT), jnp.conj(z.mT)
    linear = [
        w[0] * ((q * order) @ hq),
        w[1] * ((z * order) @ hz),
        w[2] * ((q * order) @ hz),
        w[3] * ((q * order) @ s @ hz + (q @ t * order) @ hz),
    ]
    values = jnp.diagonal(s) * order[0], jnp.diagonal(t) * order[0] ** 2
    rest = sum(jnp.sum(jnp.abs(x) ** 4) for x in (s, t, q, z))
    return rest + sum(jnp.sum(x).real for x in (*linear, *values))


@pytest.mark.parametrize("dtype", DOUBLE)
@pytest.mark.parametrize("n", [2, 4, 8])
def test_differences(n, dtype):
    a, b = pencil(n, dtype)
    ab = jnp.stack([a, b])
    loss = jax.jit(jax.value_and_grad(lambda ab: invariant(*jaxqr.qz(*ab))))
    dot = random_like(ab)
    slope = central_difference(lambda ab: loss(ab)[0], ab, dot)
    gradient = loss(ab)[1]
    assert abs(inner(gradient, dot) - slope) <= 1e-7 * norm(gradient) * norm(dot)


@pytest.mark.parametrize("dtype", DOUBLE)
def test_differences_of_schur(dtype):
    a, _ = pencil(5, dtype)

    def value(a):
        s, z = jaxqr.schur(a)
        return invariant(s, jnp.eye(5, dtype=s.dtype), z, z)

    loss, dot = jax.jit(jax.value_and_grad(value)), random_like(a)
    slope = central_difference(lambda a: loss(a)[0], a, dot)
    gradient = loss(a)[1]
    assert abs(inner(gradient, dot) - slope) <= 1e-7 * norm(gradient) * norm(dot)


def test_schur_is_the_qz_of_a_and_the_identity():
    a, _ = pencil(5, "complex128")
    da = random_like(a)
    (s, z), (ds, dz) = jax.jvp(lambda a: jaxqr.schur(a, forward_mode=True), (a,), (da,))
    assert norm(z @ s @ h(z) - a) <= tolerance("float64", a.shape) * norm(a)
    assert not np.tril(ds, -1).any()
    assert norm(np.diagonal(h(z) @ dz)) <= 1e-14
    assert_close(dz @ s @ h(z) + z @ ds @ h(z) + z @ s @ h(dz), da, 1e-12)
    bars = random_like((s, z))
    for mode in (False, True):
        out, pull = jax.vjp(lambda a: tuple(jaxqr.schur(a, forward_mode=mode)), a)  # noqa: B023
        assert_close(out, (s, z), 0)
        (a_bar,) = pull(bars)
        difference = inner(a_bar, da) - inner(bars, (ds, dz))
        assert abs(difference) <= 1e-13 * norm(a_bar) * norm(da)


def test_eigenvalues_by_their_closed_form():
    """D lambda_i = y_i^H (dA - lambda_i dB) x_i for A = P diag(lambda) R, B = P R: also close."""
    n = 5
    p, r = gaussian((n, n), "complex128", 1), gaussian((n, n), "complex128", 2)
    y, x = np.linalg.inv(p), np.linalg.inv(r)
    b = p @ r
    da, db = random_like((b, b))

    @jax.jit
    def values_and_slopes(a):
        def values(a, b):
            s, t, *_ = jaxqr.qz(a, b, forward_mode=True)
            return jnp.diagonal(s) / jnp.diagonal(t)

        return jax.jvp(values, (a, b), (da, db))

    for gap in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        values = np.array([1, 1 + gap, -1, 2j, 3])
        changes = np.asarray(da) - values[:, None, None] * np.asarray(db)
        exact = np.einsum("ij,ijk,ki->i", y, changes, x)
        found, slopes = jax.device_get(values_and_slopes(p @ (values[:, None] * r)))
        order = np.argmin(abs(values[:, None] - found), axis=1)
        assert sorted(order) == list(range(n))
        error = norm(slopes[order] - exact) / norm(exact)
        assert error <= 100 * n * np.finfo(float).eps / gap**2


def test_transformations():
    a, b = pencil(3, "float64", batch=(2,))
    b = b[0]

    def loss(a, b, forward_mode=False):
        return sum(jnp.sum(jnp.abs(x) ** 4) for x in jaxqr.qz(a, b, forward_mode=forward_mode))

    def scanned(a):
        return jax.lax.scan(lambda total, x: (total + loss(x, b), None), 0.0, a)[0]

    one = jax.jit(jax.grad(loss))
    gradients = jnp.stack([one(x, b) for x in a])
    assert_close(jax.jit(jax.grad(loss))(a, b), gradients, 1e-12)
    assert_close(jax.jit(jax.vmap(jax.grad(loss), (0, None)))(a, b), gradients, 1e-12)
    assert_close(jax.jit(jax.grad(scanned))(a), gradients, 1e-12)

    # The second order, forward over reverse and reverse over reverse.
    at, v, w = a[0], random_like(a[0], 5), random_like(a[0], 6)
    by_differences = central_difference(lambda x: jax.device_get(one(x, b)), at, v)

    @jax.jit
    def second(x):
        forward = jax.jvp(jax.grad(lambda x: loss(x, b, True)), (x,), (v,))[1]
        return forward, jax.grad(lambda x: jnp.sum(w * jax.grad(loss)(x, b)))(x)

    forward, reverse = second(at)
    assert_close(np.asarray(forward), by_differences, 1e-7)
    scale = norm(by_differences) * norm(w)
    assert abs(inner(reverse, v) - inner(by_differences, w)) <= 1e-7 * scale


def test_second_derivative_next_to_an_infinite_eigenvalue():
    """Of |S_nn|^2, which is smooth there and sees no phase, so that no 1 / T_nn is in it."""
    rng = np.random.default_rng(0)
    u, w = (np.linalg.qr(rng.standard_normal((4, 4)))[0] for _ in range(2))
    a, *dots = 0.1 * rng.standard_normal((4, 4)), *rng.standard_normal((2, 4, 4))

    def loss(a, b, forward_mode=False):
        corner = jaxqr.qz(a, b, sort="iuc", forward_mode=forward_mode).s[-1, -1]
        return corner.real**2 + corner.imag**2

    def along(a, b):
        bars = jax.grad(loss, (0, 1))(a, b)
        return sum(jnp.vdot(bar, dot) for bar, dot in zip(bars, dots, strict=True))

    @jax.jit
    def second(b):
        gradient = jax.grad(lambda *pencil: loss(*pencil, True), (0, 1))
        return jax.jvp(gradient, (a, b), tuple(dots))[1], jax.grad(along, (0, 1))(a, b)

    def singular_but_for(sigma):
        return u * np.array([2, 1.5, 1, sigma]) @ w.T

    expected, _ = second(singular_but_for(1e-7))
    for sigma in (1e-11, 1e-13, 1e-14):
        for of_one in second(singular_but_for(sigma)):
            assert_close(of_one, expected, 1e-5)


@pytest.mark.parametrize("forward_mode", [False, True])
def test_shard_map(forward_mode):
    """What comes from the host varies over the devices as A does; B is the same on all."""
    a, b = pencil(3, "float64", batch=(2,))
    b = b[0]

    def loss(a, b):
        factors = (
            *jaxqr.qz(a, b, forward_mode=forward_mode),
            *jaxqr.schur(a, forward_mode=forward_mode),
        )
        return sum(jnp.sum(jnp.abs(x) ** 4) for x in factors)

    mapped = jax.shard_map(
        lambda a, b: jax.lax.psum(loss(a, b), "batch"),
        mesh=Mesh(np.array(jax.devices("cpu")[:2]), ("batch",)),
        in_specs=(P("batch"), P()),
        out_specs=P(),
    )
    expected, ours = (jax.jit(jax.grad(f, (0, 1)))(a, b) for f in (loss, mapped))
    assert_close(ours, expected, 1e-12)


def test_sort():
    a, b = jax.device_get(pencil(6, "float64"))
    for sort, first in (
        ("lhp", lambda x: x.real < 0),
        ("rhp", lambda x: x.real > 0),
        ("iuc", lambda x: abs(x) < 1),
        ("ouc", lambda x: abs(x) > 1),
    ):
        s, t, q, z = jax.device_get(jaxqr.qz(a, b, sort=sort))
        assert norm(q @ s @ h(z) - a) <= 1e-13 * norm(a)
        assert norm(q @ t @ h(z) - b) <= 1e-13 * norm(b)
        inside = first(np.diagonal(s) / np.diagonal(t))
        assert 0 < inside.sum() < 6
        assert inside[: inside.sum()].all()
        s, z = jax.device_get(jaxqr.schur(a, sort=sort))
        assert norm(z @ s @ h(z) - a) <= 1e-13 * norm(a)
        inside = first(np.diagonal(s))
        assert inside[: inside.sum()].all()
    check_rule(a, b, tolerance("float64", a.shape, c=32), sort="lhp")


@pytest.mark.parametrize("dtype", DTYPES)
def test_sort_at_every_scale(dtype):
    """Also where products S_ii T_jj leave the range of the type, or quotients S_ii / T_jj do."""
    limits = np.finfo(dtype)
    powers = np.linspace(-1, 1, 9) * (limits.maxexp - 24)
    scales = np.ldexp(limits.dtype.type(1), powers.astype(int))[:, None, None]
    a, b = jax.device_get(pencil(3, dtype, batch=(3, 1, 1)))
    a, b = np.broadcast_arrays(a * scales[:, None], b * scales)
    for sort in forward.SORTS:
        s, t, q, z = jax.device_get(jaxqr.qz(a, b, sort=sort))
        for x, m in ((s, a), (t, b)):
            largest = abs(m).max(axis=(-2, -1), keepdims=True)
            residual = abs(q @ (x / largest) @ h(z) - m / largest)
            assert residual.max() <= tolerance(dtype, (3, 3))
        alpha, beta = (np.diagonal(x, axis1=-2, axis2=-1) for x in (s, t))
        inside = np.log2(abs(alpha)) < np.log2(beta.real)
        first = {
            "lhp": alpha.real < 0,
            "rhp": alpha.real > 0,
            "iuc": inside,
            "ouc": ~inside,
        }[sort]
        assert (first[..., :-1] >= first[..., 1:]).all()


def test_what_scipy_refuses_is_no_nan(monkeypatch):
    """But for eigenvalues that it cannot exchange, which it calls a ValueError."""

    def refusing(*args, **kwargs):
        raise ValueError("refused")

    for name in ("qz", "ordqz"):
        monkeypatch.setattr(scipy.linalg, name, refusing)
    eye = np.eye(2, dtype=complex)
    with pytest.raises(ValueError, match="refused"):
        forward._factors(functools.partial(forward._qz, sort=None), eye, eye)
    assert forward._factors(functools.partial(forward._qz, sort="lhp"), eye, eye) == ()


def test_sort_of_diagonal_pencils():
    """Nothing is lost of what is far smaller than the rest; zero and infinite eigenvalues."""
    for scale in (1e-160, 1e-200, 1.0, 1e160):
        a, b = scale * jnp.diag(jnp.array([1.0, -2.0])), scale * jnp.eye(2)
        s, t, *_ = jaxqr.qz(a, b, sort="lhp")
        assert_close(jnp.diagonal(s).real / jnp.diagonal(t).real, jnp.array([-2.0, 1.0]), 1e-15)
    a, b = jnp.array([1e20, 1e-20, 0.0, 1.0]), jnp.array([1.0, 1.0, 1.0, 0.0])
    for sort, first in (("iuc", [0.0, 1e-20]), ("ouc", [1.0, 1e20])):
        s, *_ = jaxqr.qz(*(jnp.diag(x.astype("float32")) for x in (a, b)), sort=sort)
        assert sorted(abs(jnp.diagonal(s))[:2].tolist()) == pytest.approx(first, rel=1e-6, abs=0)


def test_types_and_empty_matrices():
    a, b = pencil(2, "float32")
    for dtype, expected in (
        ("bfloat16", "complex64"),
        ("float16", "complex64"),
        ("int32", "complex64"),
        ("complex64", "complex64"),
        ("float64", "complex128"),
    ):
        assert {x.dtype.name for x in jaxqr.qz(a.astype(dtype), b)} == {expected}
        assert {x.dtype.name for x in jaxqr.schur(a.astype(dtype))} == {expected}
    half = jax.grad(lambda a: abs(jaxqr.schur(a).s).sum())(a.astype("bfloat16"))
    assert half.dtype == jnp.bfloat16
    for shape in ((0, 0), (0, 3, 3)):
        empty = jnp.zeros(shape)
        options = {"check_distinct": True, "check_gauge": True}
        assert [x.shape for x in jaxqr.qz(empty, empty, **options)] == [shape] * 4
        gradient = jax.grad(lambda a: sum(abs(x).sum() for x in jaxqr.qz(a, a, **options)))  # noqa: B023
        assert gradient(empty).shape == shape


def test_what_is_not_finite_or_does_not_converge_is_nan(monkeypatch):
    a, b = pencil(3, "float64", batch=(3,))
    for bad in (np.nan, np.inf):
        with_bad = a.at[1, 0, 0].set(bad)
        for out in jax.device_get((jaxqr.qz(with_bad, b), jaxqr.schur(with_bad))):
            for x in out:
                assert np.isnan(x[1]).all()
                assert np.isfinite(x[::2]).all()

    def warns(a, b, **_):
        return (gaussian((3, 3), "complex128"),) * 4  # SciPy gives what there is, and warns

    def raises(*_, **__):
        raise np.linalg.LinAlgError

    complex_ab = [x.astype("complex128") for x in (a, b)]
    for broken in (warns, raises):
        monkeypatch.setattr(scipy.linalg, "qz", broken)
        assert all(np.isnan(x).all() for x in forward.qz(*complex_ab, None))


@functools.partial(jax.jit, static_argnames="name")
def distinct(name, *args):
    """The error of the check of the eigenvalues."""
    return checkify.checkify(functools.partial(getattr(jaxqr, name), check_distinct=True))(*args)[0]


def test_distinct_eigenvalues():
    a, b = pencil(3, "float64")
    p = gaussian((3, 3), seed=4)
    defective = jnp.asarray(p @ (np.diag([1.0, 1, 3]) + np.eye(3, k=1)) @ np.linalg.inv(p))
    assert distinct("qz", a, b).get() is None
    assert "0 and 1 are within 8 sqrt(eps)" in distinct("qz", jnp.eye(3), jnp.eye(3)).get()
    assert distinct("schur", a).get() is None
    assert "schur expects distinct eigenvalues" in distinct("schur", defective).get()
    batch = jnp.stack([jnp.diag(jnp.array([1.0, 2.0, x])) for x in (3.0, 4.0, 1.0)])
    assert "0 and 2 of matrix 2 of the batch" in distinct("schur", batch).get()
    equal = jax.grad(lambda a: abs(jaxqr.schur(a).z).sum())(jnp.eye(2) + jnp.eye(2, k=1))
    assert not np.isfinite(equal).any()


def test_gauge():
    """The sum of all elements of all factors, of which people ask for the gradient, sees it."""

    @functools.partial(jax.jit, static_argnames=("name", "invariant"))
    def error(name, invariant, *args):
        def loss(*args):
            out = getattr(jaxqr, name)(*args, check_gauge=True)
            return sum((abs(x) if invariant else x).sum().real for x in out)

        return checkify.checkify(jax.grad(loss))(*args)[0]

    a, b = pencil(3, "complex128", batch=(2,))
    assert error("qz", True, a, b).get() is None
    seen = r"qz expects a loss that does not see .* column [012] of matrix [01] of the batch"
    assert re.match(seen, error("qz", False, a, b).get())
    assert "schur expects a loss that does not see" in error("schur", False, a[0]).get()
    a = a.at[1].set(jnp.nan)  # which sees nothing, and hides nothing
    assert error("qz", True, a, b).get() is None
    assert re.match(seen.replace("[01]", "0"), error("qz", False, a, b).get())


def test_arguments():
    a, b = pencil(3, "float64")
    with pytest.raises(ValueError, match=r"square .* compress it first: .* r x r\."):
        jaxqr.qz(a[:2], b[:2])
    with pytest.raises(ValueError, match="one size"):
        jaxqr.qz(a, b[:2, :2])
    with pytest.raises(ValueError, match="broadcast against each other"):
        jaxqr.qz(jnp.stack([a] * 2), jnp.stack([b] * 3))
    with pytest.raises(ValueError, match=r"schur expects a to be square.*\(2, 3\)"):
        jaxqr.schur(a[:2])
    with pytest.raises(ValueError, match=r"sort to be one of 'lhp', 'rhp', 'iuc', 'ouc', None"):
        jaxqr.schur(a, sort="left")
    with pytest.raises(ValueError, match="without forward_mode"):
        jaxqr.qz(a, b, forward_mode=True, check_gauge=True)
    with pytest.raises(ValueError, match="matrix"):
        jaxqr.qz(a[0], b)
    with pytest.raises(TypeError, match="array of numbers"):
        jaxqr.schur("text")
    with pytest.raises(TypeError, match=r"schur expects forward_mode to be True or False.*'no'"):
        jaxqr.schur(a, forward_mode="no")
    with pytest.raises(TypeError, match="qz expects check_distinct to be True or False"):
        jaxqr.qz(a, b, check_distinct=jnp.ones(2))
    with pytest.raises(TypeError, match=r"as in qz\(a, b, sort='lhp'\)"):
        jaxqr.qz(a, b, "lhp")
