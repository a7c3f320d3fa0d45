"""Taylor mode: jax.experimental.jet through the factorizations and least squares.

The coefficients are tested by the equations that define them, order by order: products of series,
where no difference has to be taken.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.experimental.jet import jet
from numerics import (
    FACTORIZATIONS,
    TRIANGLE,
    as_qr,
    assert_close,
    central_difference,
    gaussian,
    inner,
    matrix,
    norm,
    random_like,
    tolerance,
    unpack,
)

import jaxqr

ORDER = 4


def h(x):
    return np.conj(x.mT)


def curve(shape, dtype, order=ORDER, seed=20):
    """Coefficients of order 1 and more."""
    return [jnp.asarray(gaussian(shape, dtype, seed + i)) / 2 for i in range(order)]


def expand(f, a, terms):
    """The outputs of F along a curve, as lists of series, order 0 included."""
    out, series = jet(f, (a,), (terms,), factorial_scaled=False)
    outs = jax.tree.leaves(out)
    rest = series if isinstance(out, tuple) else [series]
    return jax.device_get([[x, *xs] for x, xs in zip(outs, rest, strict=True)])


def times(x, y):
    """The product of two series."""
    return [sum(x[i] @ y[d - i] for i in range(d + 1)) for d in range(len(x))]


def assert_series(x, y, tol):
    """Order by order, in units of the largest coefficient up to it."""
    scale = 0.0
    for a, b in zip(x, y, strict=True):
        scale = max(scale, norm(b), 1.0)
        assert norm(a - b) <= tol * scale


CASES = [
    ("qr", {}, (5, 3), "float64"),
    ("qr", {}, (3, 5), "complex128"),
    ("qr", {"positive_diagonal": True}, (2, 4, 4), "complex128"),
    ("qr", {"forward_mode": True}, (4, 4), "float32"),
    ("lq", {}, (5, 3), "complex128"),
    ("rq", {}, (3, 5), "float64"),
    ("ql", {}, (5, 3), "complex128"),
    ("pivoted_qr", {}, (3, 5), "complex128"),
    ("pivoted_qr", {"rank": 2}, (5, 4), "complex128"),
]


@pytest.mark.parametrize(("name", "options", "shape", "dtype"), CASES, ids=str)
def test_factors(name, options, shape, dtype):
    a, terms = jnp.asarray(matrix(shape, dtype, cond=4)), curve(shape, dtype)
    tol = 2e3 * tolerance(dtype, shape)
    modes = ("reduced", "alone") if "rank" in options else ("reduced", "complete", "alone")

    @jax.jit
    def of_modes(a, terms):
        def of(mode):
            f = functools.partial(FACTORIZATIONS[name], **options)
            mode = TRIANGLE[name] if mode == "alone" else mode
            return jet(lambda a: f(a, mode=mode), (a,), (terms,), factorial_scaled=False)

        return [of(mode) for mode in modes]

    found = {}
    for mode, (out, series) in zip(modes, jax.device_get(of_modes(a, terms)), strict=True):
        alone = mode == "alone"
        rest = zip(*(series if isinstance(out, tuple) else [series]), strict=True)
        orders = [out, *(x if isinstance(out, tuple) else x[0] for x in rest)]
        p = unpack(name, out, alone)[2]
        parts = [unpack(name, term, alone)[:2] for term in orders]
        seen = [
            as_qr(name, x, r, q, p)
            for x, (r, q) in zip(jax.device_get([a, *terms]), parts, strict=True)
        ]
        b, q, r = map(list, zip(*seen, strict=True))
        assert all(not np.tril(x, -1).any() for x in r)
        found[mode] = r
        if alone:
            continue
        k = q[0].shape[-1]
        eye = np.broadcast_to(np.eye(k), (*b[0].shape[:-2], k, k))
        assert_series(times([h(x) for x in q], q), [eye, *[0 * eye] * ORDER], tol)
        if "rank" not in options:
            assert_series(times(q, r), b, tol)
        else:  # V = Q^H Y, and X = Q U
            assert_series(times([h(x) for x in q], b), r, tol)
            assert_series([x[..., :k] for x in times(q, r)], [x[..., :k] for x in b], tol)
        if mode == "complete" and k > min(shape[-2:]):  # Q2's frame does not turn
            q2 = [x[..., min(shape[-2:]) :] for x in q]
            slopes = [(d + 1) * x for d, x in enumerate(q2[1:])]
            turns = times([h(x) for x in q2[:-1]], slopes)
            assert_series(turns, [0 * x for x in turns], tol)
    assert_series(found["alone"], found["reduced"], tol)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((5, 3), "complex128"), ((4, 4), "float64"), ((3, 5), "complex128"), ((2, 5, 3), "float64")],
    ids=str,
)
def test_least_squares(shape, dtype):
    """A, b and the ridge move: r = b - A x, A^H r = lambda x, and x = A^H y for wide A."""
    *batch, m, n = shape
    a, terms = jnp.asarray(matrix(shape, dtype, cond=4)), curve(shape, dtype)
    b, b_terms = jnp.asarray(gaussian((*batch, m, 2), dtype)), curve((*batch, m, 2), dtype, seed=9)
    ridge = [jnp.asarray(x) for x in (0.5, 0.1, -0.3, 0.2, 0.1)]
    tol = 2e3 * tolerance(dtype, shape)

    @jax.jit
    def of(a, b, ridge, terms, b_terms, ridge_terms):
        two = {"primals": (a, b), "series": (terms, b_terms), "factorial_scaled": False}
        three = (a, b, ridge), (terms, b_terms, ridge_terms)
        solve = functools.partial(jaxqr.lstsq, forward_mode=shape[-2] <= shape[-1])
        return jet(solve, **two), jet(
            lambda a, b, ridge: solve(a, b, ridge=ridge), *three, factorial_scaled=False
        )

    plain, shrunk = jax.device_get(of(a, b, ridge[0], terms, b_terms, ridge[1:]))
    a, b = (list(map(np.asarray, [x, *xs])) for x, xs in ((a, terms), (b, b_terms)))
    for (x0, rest), levels in ((plain, [0.0] * 5), (shrunk, list(map(float, ridge)))):
        x = [x0, *rest]
        r = [y - z for y, z in zip(b, times(a, x), strict=True)]
        normal = times([h(y) for y in a], r)
        scaled = [sum(levels[i] * x[d - i] for i in range(d + 1)) for d in range(5)]
        assert_series(normal, scaled, tol * max(1, *map(norm, x)))
    if m <= n:  # without the ridge A x = b, with x in the row space
        x = [plain[0], *plain[1]]
        assert_series(times(a, x), b, tol * max(1, *map(norm, x)))
        gram = times(a, [h(y) for y in a])
        y = [np.linalg.solve(gram[0], b[0])]
        for d in range(1, 5):
            y.append(
                np.linalg.solve(gram[0], b[d] - sum(gram[i] @ y[d - i] for i in range(1, d + 1)))
            )
        assert_series(x, times([h(z) for z in a], y), tol * max(1, *map(norm, x)))


def inverse_series(a, terms):
    """Y = X^-1: X_0 Y_d = -sum_{i>0} X_i Y_{d-i}."""
    x = [np.asarray(a), *map(np.asarray, terms)]
    y = [np.linalg.inv(x[0])]
    for d in range(1, len(x)):
        y.append(-y[0] @ sum(x[i] @ y[d - i] for i in range(1, d + 1)))
    return y


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_jet_of_grad(dtype):
    """The gradients of log|det X| and of tr(S X^-1) have the series of X^-1 and - X^-1 S X^-1."""
    n = 4
    a, terms = jnp.asarray(matrix((n, n), dtype, cond=4)), curve((n, n), dtype)
    s = jnp.asarray(gaussian((n, n), dtype, 3))
    y = inverse_series(a, terms)

    def log_det(factor, a):
        _, r = factor(a)[:2]
        diagonal = jnp.sum(r * jnp.eye(n, dtype=dtype), axis=0)
        return jnp.sum(jnp.log((diagonal * jnp.conj(diagonal)).real)) / 2

    def trace(a):
        return jnp.sum(s.T * jaxqr.lstsq(a, jnp.eye(n, dtype=dtype))).real

    def alone(a, **options):
        return None, jaxqr.qr(a, mode="r", **options)

    losses = [
        functools.partial(log_det, jaxqr.qr),
        functools.partial(log_det, jaxqr.pivoted_qr),
        functools.partial(log_det, alone),
        functools.partial(log_det, functools.partial(jaxqr.qr, forward_mode=True)),
        trace,
    ]

    @jax.jit
    def of(a, terms):
        return [jet(jax.grad(f), (a,), (terms,), factorial_scaled=False) for f in losses]

    *logs, trace_series = ([x, *xs] for x, xs in jax.device_get(of(a, terms)))
    tol = 5e3 * tolerance(dtype, (n, n))
    for series in logs:
        assert_series(series, [x.T for x in y], tol)
    s_series = [np.asarray(s), *[np.zeros((n, n))] * ORDER]
    expected = [-x.T for x in times(times(y, s_series), y)]
    assert_series(trace_series, expected, tol * max(map(norm, expected)))


def test_grad_of_jet_and_jet_of_jvp():
    a, terms = jnp.asarray(matrix((4, 3), "complex128", cond=4)), curve((4, 3), "complex128", 3)
    b, da = jnp.asarray(gaussian((4, 2), "complex128")), random_like(a)

    def third(a):
        _, (_, r) = jet(jaxqr.qr, (a,), (terms,))
        _, x = jet(lambda a: jaxqr.lstsq(a, b), (a,), (terms,))
        return sum(jnp.sum((y * jnp.conj(y)).real) for y in (r[2], x[2]))

    f = jax.jit(jax.value_and_grad(third))
    slope = central_difference(lambda a: f(a)[0], a, da)
    gradient = f(a)[1]
    assert abs(inner(gradient, da) - slope) <= 1e-8 * norm(gradient) * norm(da)
    assert abs(jax.jit(lambda a: jax.jvp(third, (a,), (da,))[1])(a) - slope) <= 1e-8 * abs(slope)

    def along(a):
        return jax.jvp(lambda a: jaxqr.qr(a, forward_mode=True)[1], (a,), (da,))[1]

    @jax.jit
    def both(a):
        pushed = jet(along, (a,), ([da, 0 * da],))
        return pushed, jet(jaxqr.qr, (a,), ([da, 0 * da, 0 * da],))

    (_, pushed), (_, (_, r)) = both(a)
    assert_close(list(pushed), list(r[1:]), 1e-11)


def test_under_vmap_and_jit():
    a = jnp.asarray(matrix((2, 4, 3), cond=4))
    terms = curve((2, 4, 3), "float64", 2)

    def loss(a):
        return jnp.sum(jaxqr.qr(a)[1] ** 4)

    @jax.jit
    def one(a, *terms):
        return jet(jax.grad(loss), (a,), (list(terms),))[1]

    expected = [one(*x) for x in zip(a, *terms, strict=True)]
    expected = [jnp.stack(x) for x in zip(*expected, strict=True)]
    outside = jax.jit(jax.vmap(one))(a, *terms)
    inside = jax.jit(lambda a: jet(jax.vmap(jax.grad(loss)), (a,), (terms,))[1])(a)
    for found in (outside, inside, one(a, *terms)):
        assert_close(list(found), expected, 1e-11)


def test_random_pivots():
    a, terms = jnp.asarray(matrix((4, 3))), curve((4, 3), "float64", 2)

    def f(a):
        return jaxqr.pivoted_qr(a, temperature=2.0, key=jax.random.key(1))

    p = f(a)[2]
    _, (q, r) = jet(lambda a: f(a)[:2], (a,), (terms,))
    _, (q1, r1) = jet(lambda a: jaxqr.qr(a[:, p], method="householder"), (a,), (terms,))
    assert_close([*q, *r], [*q1, *r1], 1e-12)
    gradient = jet(jax.grad(lambda a: jnp.sum(f(a)[1] ** 4)), (a,), (terms,))[1]
    assert all(np.isfinite(x).all() and norm(x) > 0 for x in gradient)


@pytest.mark.parametrize(
    ("shape", "options"),
    [((5, 3), {}), ((2, 3, 5), {"forward_mode": True}), ((3, 3), {"ridge": 0.5})],
    ids=str,
)
def test_all_of_least_squares(shape, options):
    """The sum of squares is that of b - A x; the rank does not move, and has no say in the rest."""
    a, terms = jnp.asarray(matrix(shape, cond=4)), curve(shape, "float64", 2)
    b = jnp.asarray(gaussian((*shape[:-1], 2)))
    b_terms = curve(b.shape, "float64", 2, seed=9)

    @jax.jit
    def of(a, b, terms, b_terms):
        def alone(a, b):
            x = jaxqr.lstsq(a, b, **options)
            return x, jnp.sum((b - a @ x) ** 2, axis=-2)

        given = {"primals": (a, b), "series": (terms, b_terms), "factorial_scaled": False}
        full = jet(lambda a, b: tuple(jaxqr.lstsq(a, b, full=True, **options)), **given)
        of_grad = jet(
            jax.grad(lambda a: jnp.sum(jaxqr.lstsq(a, b, full=True, **options).rss)), (a,), (terms,)
        )
        expected = jet(alone, **given)
        return full, expected, of_grad

    (full, rest), (expected, expected_rest), of_grad = jax.device_get(of(a, b, terms, b_terms))
    assert np.array_equal(full[2], np.full(shape[:-2], min(shape[-2:])))
    for i in range(2):
        found, wanted = [full[i], *rest[i]], [expected[i], *expected_rest[i]]
        assert_series(found, wanted, 1e3 * tolerance("float64", shape))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((rest, of_grad)))


def test_rank_is_checked_on_the_way():
    a, terms = jnp.asarray(matrix((4, 3))), curve((4, 3), "float64", 2)
    functions = {
        "qr": lambda a, **checks: jaxqr.qr(a, **checks),
        "pivoted_qr": lambda a, **checks: jaxqr.pivoted_qr(a, **checks)[:2],
        "lstsq": lambda a, **checks: jaxqr.lstsq(a, a, **checks),
    }

    @jax.jit
    def of(a):
        def series(f):
            return jet(f, (a,), (terms,))[1]

        def checked(f):
            return checkify.checkify(lambda: series(lambda a: f(a, check_rank=True)))()

        return {name: (series(f), checked(f)) for name, f in functions.items()}

    for expected, (error, found) in of(a).values():
        assert error.get() is None
        assert_close(jax.tree.leaves(found), jax.tree.leaves(expected), 1e-12)
    dependent = a.at[:, 2].set(a[:, 0])
    for name, (_, (error, _)) in of(dependent).items():
        assert f"{name} expects a to have full rank" in error.get()


def test_what_has_no_series_is_refused():
    """And does not come out as zero, as what a body computes with constants would."""
    a, terms, b = jnp.asarray(matrix((3, 3))), curve((3, 3), "float64", 2), jnp.ones(3)
    for f in (
        lambda a: jaxqr.lstsq(a, b, rcond=1e-9),
        jax.grad(lambda a: jnp.sum(jaxqr.lstsq(a, b, rcond=1e-9))),
    ):
        with pytest.raises(NotImplementedError, match="lstsq with rcond has no Taylor"):
            jet(f, (a,), (terms,))
    with pytest.raises(NotImplementedError, match="qr_multiply has no Taylor expansion"):
        jet(lambda a: jaxqr.qr_multiply(a, a), (a,), (terms,))
    with pytest.raises(NotImplementedError, match="schur has no Taylor expansion"):
        jet(lambda a: jaxqr.schur(a).s, (a,), (terms,))
    with pytest.raises(NotImplementedError, match="qz has no Taylor expansion"):
        jet(lambda a: jaxqr.qz(a, a.T).s, (a,), (terms,))


@pytest.mark.parametrize("f", [jaxqr.qr, lambda a: jaxqr.lstsq(a, a)], ids=["qr", "lstsq"])
def test_one_factorization_and_a_program_that_does_not_grow(f):
    a = jnp.asarray(matrix((20, 20)))

    def program(order):
        terms = curve((20, 20), "float64", order)
        return jax.jit(lambda a: jet(f, (a,), (terms,))).lower(a).as_text()

    def calls(text):
        return [len(re.findall(name, text)) for name in ("lapack_dgeqrf", "dot_general", "while")]

    few, many = (calls(program(order)) for order in (2, 6))
    assert few == many
    assert few[0] == calls(jax.jit(f).lower(a).as_text())[0]
