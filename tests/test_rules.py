"""Each derivative rule by itself: structure, finite differences, adjoint identity, and the oracle.

The structure is asserted of the derivatives: dR upper triangular with a real diagonal, Q^H dQ
skew-Hermitian, dQ R + Q dR = dB. A rule whose dQ and dR are wrong in ways that cancel passes the
product rule alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import (
    DTYPES,
    FACTORIZATIONS,
    NAMES,
    TRIANGLE,
    as_qr,
    assert_close,
    central_difference,
    covering,
    gaussian,
    inexact,
    inner,
    matrix,
    norm,
    random_like,
    tolerance,
    unpack,
)

import jaxqr
from bench.eq8 import pullback_eq8
from jaxqr._rules import partial_qr

SHAPES = [(6, 4), (4, 4), (4, 6), (1, 4), (4, 1), (2, 5, 3)]
DOUBLE = ("float64", "complex128")
SINGLE = ("float32", "complex64")
CASES = [
    *((name, {}, shape, dtype) for name, shape, dtype in covering(NAMES, SHAPES, DOUBLE)),
    *((name, {}, shape, dtype) for name, shape, dtype in covering(NAMES, SHAPES, SINGLE)),
    *(("pivoted_qr", {"rank": 2}, shape, dtype) for shape in SHAPES[:3] for dtype in DOUBLE),
    ("pivoted_qr", {"rank": 2}, (6, 4), "float32"),
    ("pivoted_qr", {"rank": 2}, (4, 6), "complex64"),
]
IDS = [
    "-".join([name, *map(str, options), str(shape), dtype]) for name, options, shape, dtype in CASES
]


def function(name, mode, **options):
    """The named factorization, its outputs uniquely determined."""
    mode = TRIANGLE[name] if mode == "alone" else mode
    return functools.partial(FACTORIZATIONS[name], mode=mode, positive_diagonal=True, **options)


@functools.partial(jax.jit, static_argnames=("name", "mode", "options"))
def derivatives(a, da, *, name, mode, options):
    """The outputs, their tangents, their cotangents, and what each wiring pulls these back to.

    All in one program: compiled apart, the tests would take twice as long.
    """
    options = dict(options)
    out, tangents = jax.jvp(function(name, mode, forward_mode=True, **options), (a,), (da,))
    cotangents = random_like(inexact(out))

    def pull(forward_mode):
        f = function(name, mode, forward_mode=forward_mode, **options)
        return jax.vjp(lambda a: inexact(f(a)), a)[1](cotangents)[0]

    return out, tangents, cotangents, {wiring: pull(wiring) for wiring in (False, True)}


@pytest.mark.parametrize(("name", "options", "shape", "dtype"), CASES, ids=IDS)
def test_rule(name, options, shape, dtype):
    """Structure and differences of the pushforward; the pullbacks of both wirings its adjoint."""
    a = jnp.asarray(matrix(shape, dtype))
    da = random_like(a)
    tol = tolerance(dtype, shape, c=64)
    modes = ("reduced", "alone") if options else ("reduced", "complete", "alone")
    for mode in modes:
        at = functools.partial(
            derivatives, da=da, name=name, mode=mode, options=tuple(options.items())
        )
        out, tangents, cotangents, pulled = at(a)
        check_structure(name, mode, options, a, da, out, tangents, tol)
        if dtype in DOUBLE:
            differences = central_difference(lambda a: inexact(at(a)[0]), a, da)  # noqa: B023
            check_differences(name, mode, a, out, tangents, differences)
        for a_bar in pulled.values():
            assert a_bar.dtype == a.dtype
            assert a_bar.shape == a.shape
            scale = norm(a_bar) * norm(da)
            assert abs(inner(a_bar, da) - inner(cotangents, inexact(tangents))) <= tol * scale


def with_units(name, mode, out, of_triangle, of_q):
    """The factors, or what is like them, times a unit each."""
    triangle = 1 if mode == "reduced" and name not in ("lq", "rq") else 0
    return [(of_triangle if i == triangle else of_q) * x for i, x in enumerate(out)]


@functools.partial(jax.jit, static_argnames=("name", "mode", "options"))
def derivatives_at_scale(a, da, unit, *, name, mode, options):
    """Tangents, cotangents and the tangents of these, of unit * A, as those of A are."""
    one, over_unit = jnp.ones_like(unit), (1 / unit.real).astype(unit.dtype)
    f = lambda a: inexact(function(name, mode, forward_mode=True, **dict(options))(a))  # noqa: E731

    def pull(a):
        out, pullback = jax.vjp(f, a)
        bars = [x / 256 for x in random_like(out)]
        return pullback(with_units(name, mode, bars, one, unit))[0]

    _, tangents = jax.jvp(f, (unit * a,), (unit * da,))
    tangents = with_units(name, mode, tangents, over_unit, one)
    return tangents, jax.jvp(pull, (unit * a,), (unit * da,))


@pytest.mark.parametrize(
    ("name", "mode", "dtype", "shape"),
    covering((*NAMES, "truncated"), ("reduced", "alone"), SINGLE, [(6, 4), (4, 6), (70, 40)]),
)
def test_every_scale(name, mode, dtype, shape):
    """Powers of two change no digit of A, nor any of a derivative, nearly up to the ends."""
    options = (("rank", 3),) if name == "truncated" else ()
    name = "pivoted_qr" if options else name
    a = jnp.asarray(matrix(shape, dtype))
    da = random_like(a) / 256  # so that norms of what is random are in the type's range, as A's are
    of = functools.partial(derivatives_at_scale, a, da, name=name, mode=mode, options=options)
    plain = of(jnp.ones((), dtype))
    for power in (-100, -60, 60, 124):
        assert_close(of(jnp.asarray(2.0**power, dtype)), plain, tolerance(dtype, shape))


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("sizes", [(1e-25, 1e33), (1e33, 1e-25), (1e-30, 1e36)], ids=str)
def test_columns_at_both_ends_of_the_range(sizes, dtype):
    """Powers of two of columns change no digit of Q's derivative either, and R's are in theirs."""
    a, q_bar = gaussian((5, 2), dtype), jnp.asarray(gaussian((5, 2), dtype) / 4)
    units = (2.0 ** np.round(np.log2(sizes))).astype(dtype)
    pull = jax.jit(lambda a: jax.vjp(lambda a: jaxqr.qr(a)[0], a)[1](q_bar)[0])
    found, expected = (np.asarray(pull(x)).astype("complex128") for x in (a * units, a))
    subnormal = float(np.finfo(dtype).tiny) * units.real.astype("float64")
    error = np.maximum(np.abs(found * units - expected) - 2 * subnormal, 0)
    assert norm(error) <= tolerance(dtype, (5, 2)) * norm(expected)


@functools.partial(jax.jit, static_argnames="batch")
def gradient_of_r_alone(a, w, *, batch):
    """Of a matrix, the last of a batch."""

    def loss(a):
        return jnp.sum(w * jaxqr.qr(a, mode="r", positive_diagonal=True)).real

    if not batch:
        return jax.grad(loss)(a)
    return jax.vmap(jax.grad(loss))(
        jnp.concatenate([jnp.ones((batch, *a.shape), a.dtype), a[None]])
    )[-1]


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("batch", [0, 1, 70])
def test_columns_of_r_alone_at_both_ends_of_the_range(batch, dtype):
    """Also where one column is shorter than another by more than the type's range has."""
    a, w = gaussian((5, 2), dtype), np.triu(gaussian((2, 2), dtype))
    wide = np.result_type(dtype, "float64")
    for powers in [(62, -62), (-62, 62), (100, -100)]:
        graded = a * (2.0 ** np.array(powers)).astype(dtype)
        found = gradient_of_r_alone(graded, w, batch=batch)
        expected = gradient_of_r_alone(graded.astype(wide), w.astype(wide), batch=0)
        for ours, theirs in zip(found.T, expected.T, strict=True):
            assert norm(np.asarray(ours, wide) - theirs) <= tolerance(dtype, (5, 2)) * norm(theirs)


def test_one_row_near_the_largest_number():
    """XLA takes quotients of single numbers together."""
    a, w = gaussian((1, 3), "complex64"), gaussian((1, 3), "complex64")
    expected = gradient_of_r_alone(a, w, batch=0)
    found = gradient_of_r_alone(a * np.complex64(2.0**115), w, batch=0)
    assert_close(found, expected, tolerance("complex64", (1, 3)))


def check_structure(name, mode, options, a, da, out, tangents, tol):
    alone = mode == "alone"
    tri, q, p = unpack(name, out, alone)
    dtri, dq, _ = unpack(name, tangents, alone)
    b, q, r = as_qr(name, a, tri, q, p)
    db, dq, dr = as_qr(name, da, dtri, dq, p)

    scale = max(norm(dr), norm(dq) if dq is not None else 0)
    assert np.all(np.tril(dr, -1) == 0)
    assert np.abs(np.diagonal(dr, axis1=-2, axis2=-1).imag).max(initial=0) <= tol * scale
    if dq is not None:
        qh_dq = np.conj(q.mT) @ dq
        assert norm(qh_dq + np.conj(qh_dq.mT)) <= tol * scale
        k = r.shape[-2] if options else b.shape[-1]
        assert norm((dq @ r + q @ dr - db)[..., :k]) <= tol * max(norm(db), scale)


def check_differences(name, mode, a, out, tangents, differences):
    out, tangents = inexact(out), inexact(tangents)
    scale = max(map(norm, tangents))
    *_, k, n = a.mT.shape if name in ("lq", "rq") else a.shape
    for x, dx, approximately in zip(out, tangents, differences, strict=True):
        if mode == "complete" and x.shape[-2:] == (k, k) and k > n:
            dx, approximately = (  # LAPACK turns the complement's frame, the rule does not
                projector_difference(name, x, y, n) for y in (dx, approximately)
            )
        assert norm(dx - approximately) <= 1e-8 * max(norm(approximately), scale)


def projector_difference(name, q, dq, n):
    """Q1's derivative and the derivative of the projector onto Q2's span, gauge-free."""
    _, q, _ = as_qr(name, np.zeros((1, 1)), np.zeros((1, 1)), q)
    _, dq, _ = as_qr(name, np.zeros((1, 1)), np.zeros((1, 1)), dq)
    half = dq[..., n:] @ np.conj(q[..., n:].mT)
    return np.concatenate([dq[..., :n], half + np.conj(half.mT)], axis=-1)


@pytest.mark.parametrize(("dtype", "shape", "mode"), covering(DTYPES, SHAPES, ["reduced", "r"]))
def test_qr_equals_jax(mode, shape, dtype):
    a = jnp.asarray(matrix(shape, dtype))

    @functools.partial(jax.jit, static_argnums=0)
    def with_pullback(qr, a):
        out, pullback = jax.vjp(lambda a: jax.tree.leaves(qr(a, mode=mode)), a)
        return out, pullback(random_like(out))

    theirs, their_a_bar = with_pullback(jnp.linalg.qr, a)
    ours, our_a_bar = with_pullback(jaxqr.qr, a)
    wide = shape[-2] < shape[-1]  # of which LAPACK gets the leading block alone
    assert_close(ours, theirs, tolerance(dtype, shape, 1) if wide else 0)
    assert_close(our_a_bar, their_a_bar, tolerance(dtype, shape, c=64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_deep_pivoted_qr_equals_jax(dtype):
    a = jnp.asarray(matrix((6, 4), dtype))

    def theirs(a):
        q, r, _ = jax.scipy.linalg.qr(a, mode="economic", pivoting=True)
        return q, r

    bars = random_like(theirs(a))
    ours = jax.vjp(lambda a: jaxqr.pivoted_qr(a)[:2], a)[1](bars)
    assert_close(ours, jax.vjp(theirs, a)[1](bars), tolerance(dtype, (6, 4), c=64))


# The paper's other form, and its Proposition 3 as printed.


def copyltu(m):
    lower = np.tril(m, -1)
    return lower + np.conj(lower.mT) + np.diag(np.diag(m).real)


def eq_3(q, r, q_bar, r_bar):
    """A-bar = (Q-bar + Q copyltu(R R-bar^H - Q-bar^H Q)) R^-H."""
    m = r @ np.conj(r_bar.mT) - np.conj(q_bar.mT) @ q
    return np.conj(np.linalg.solve(r, np.conj((q_bar + q @ copyltu(m)).mT)).mT)


@pytest.mark.parametrize("dtype", DOUBLE)
@pytest.mark.parametrize("shape", [(6, 4), (4, 4)], ids=str)
def test_eq_3_and_eq_8(shape, dtype):
    a = matrix(shape, dtype)
    q, r = np.linalg.qr(a)
    q_bar = gaussian(q.shape, dtype)
    r_bar = np.triu(gaussian(r.shape, dtype))
    ours = np.asarray(partial_qr.pullback(*map(jnp.asarray, (q, r, q_bar, r_bar))))
    tol = tolerance(dtype, shape, c=64)
    assert_close(ours, eq_3(q, r, q_bar, r_bar), tol)
    corrected = dtype == "complex128"
    given = [jnp.asarray(x) for x in (q, r, q_bar, r_bar)]
    assert_close(ours, pullback_eq8(*given, corrected=corrected), tol)
    if corrected:
        uncorrected = pullback_eq8(*given, corrected=False)
        assert norm(ours - uncorrected) > 1e-2 * norm(ours)


@pytest.mark.parametrize("dtype", DOUBLE)
def test_proposition_3_deep_lq(dtype):
    """A = [X; Y] = [U; V] Q: X-bar = U^-H (Qp + copyltu(M) Q), Y-bar = V-bar Q."""
    a = matrix((6, 4), dtype)
    l, q = (np.asarray(x) for x in jaxqr.lq(a))
    l_bar, q_bar = np.tril(gaussian(l.shape, dtype)), gaussian(q.shape, dtype)
    u, u_bar, v_bar, y = l[:4], l_bar[:4], l_bar[4:], a[4:]
    qp = q_bar + np.conj(v_bar.T) @ y
    m = np.conj(u.T) @ u_bar - qp @ np.conj(q.T)
    x_bar = np.linalg.solve(np.conj(u.T), qp + copyltu(m) @ q)
    expected = np.concatenate([x_bar, v_bar @ q])
    (ours,) = jax.vjp(jaxqr.lq, jnp.asarray(a))[1]((jnp.conj(l_bar), jnp.conj(q_bar)))
    assert_close(np.conj(ours), expected, tolerance(dtype, (6, 4), c=64))


# Complete mode where jax.grad through jnp.linalg.qr is NaN.


def already_upper(kind, dtype):
    a = np.zeros((5, 3), dtype)
    a[:3] = {
        "identity": np.eye(3),
        "zero-padded": matrix((3, 3), dtype),
        "upper": np.triu(matrix((3, 3), dtype)) + np.eye(3),
    }[kind]
    return jnp.asarray(a)


@pytest.mark.parametrize("dtype", DOUBLE)
@pytest.mark.parametrize("kind", ["identity", "zero-padded", "upper"])
def test_complete_mode_is_finite_and_right(kind, dtype):
    """Losses of Q2 through the projector onto the complement, I - Q1 Q1^H."""
    a = already_upper(kind, dtype)
    weights = jnp.asarray(gaussian((5, 5), dtype))

    def by_complement(a):
        q, _ = jaxqr.qr(a, mode="complete")
        return jnp.sum(weights * (q[:, 3:] @ jnp.conj(q[:, 3:].mT))).real

    def by_range(a):
        q, _ = jaxqr.qr(a)
        return jnp.sum(weights * (jnp.eye(5, dtype=a.dtype) - q @ jnp.conj(q.mT))).real

    ours = jax.grad(by_complement)(a)
    assert np.all(np.isfinite(ours))
    assert_close(ours, jax.grad(by_range)(a), tolerance(dtype, a.shape, c=64))
    da = random_like(a)
    slope = central_difference(by_complement, a, da)
    assert abs(inner(ours, da) - slope) <= 1e-8 * norm(ours) * norm(da)


def loss(name, forward_mode, a):
    """A nonlinear function of all outputs, with fixed random weights."""
    out = FACTORIZATIONS[name](a, positive_diagonal=True, forward_mode=forward_mode)
    xs = inexact(out)
    linear = sum(jnp.sum(w * x).real for w, x in zip(random_like(xs), xs, strict=True))
    return linear + sum(jnp.sum(jnp.abs(x) ** 4) for x in xs)


@pytest.mark.parametrize(("shape", "dtype"), [((4, 3), "complex128"), ((3, 4), "float64")], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_higher_orders(name, shape, dtype):
    """Reverse over reverse by default; forward over reverse and a third order in forward mode."""
    a = jnp.asarray(matrix(shape, dtype, cond=3))
    v, w = random_like(a, 5), random_like(a, 6)

    def gradient(a):
        return jax.grad(functools.partial(loss, name, False))(a)

    def slope(a):  # derivative along v of the gradient's pairing with w
        return jnp.sum(gradient(a) * w).real

    by_differences = central_difference(jax.jit(gradient), a, v)
    reverse_over_reverse = jax.jit(jax.grad(slope))(a)
    scale = norm(by_differences) * norm(w)
    assert abs(inner(reverse_over_reverse, v) - inner(by_differences, w)) <= 1e-7 * scale

    def hessian_times_v(a):
        return jax.jvp(jax.grad(functools.partial(loss, name, True)), (a,), (v,))[1]

    second = jax.jit(hessian_times_v)(a)
    assert norm(second - by_differences) <= 1e-7 * norm(by_differences)

    third = jax.jit(lambda a: jax.jvp(hessian_times_v, (a,), (w,))[1])(a)
    by_differences = central_difference(jax.jit(hessian_times_v), a, w)
    assert norm(third - by_differences) <= 1e-6 * norm(by_differences)
