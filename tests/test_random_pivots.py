"""Random pivots: their probabilities, their limit, and the gradient through their choice."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from numerics import (
    assert_close,
    central_difference,
    check_qr,
    gaussian,
    inner,
    norm,
    random_like,
    tolerance,
)

import jaxqr
from jaxqr._forward import pivoting

KEY = jax.random.key(0)


def h(x):
    return np.conj(x.mT)


def log_probability_by_projections(a, order, k, temperature):
    """Log P by its definition: norms of the residuals of A's columns, projected one by one."""
    left, total = np.array(a), 0.0
    remaining = list(range(a.shape[1]))
    for j in order[:k]:
        merits = np.linalg.norm(left[:, remaining], axis=0) ** (2 / temperature)
        total += np.log(merits[remaining.index(j)] / merits.sum())
        q = left[:, [j]] / np.linalg.norm(left[:, j])
        left -= q @ (h(q) @ left)
        remaining.remove(j)
    return total


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((5, 3), "float32"), ((4, 4), "complex64"), ((3, 5), "complex128"), ((5, 3), "float64")],
    ids=str,
)
def test_factors(shape, dtype):
    """A[:, p] = Q R for a random p, in every mode; the derivative is the one at this p."""
    a = jnp.asarray(gaussian(shape, dtype))
    tol = tolerance(dtype, shape, c=32)

    @jax.jit
    def of(a, key):
        def pivoted(mode="reduced", **options):
            return jaxqr.pivoted_qr(a, mode=mode, temperature=3.0, key=key, **options)

        return pivoted(), pivoted("complete"), pivoted("r"), pivoted(rank=2)

    reduced, complete, alone, truncated = jax.device_get(of(a, jax.random.key(3)))
    q, r, p = reduced
    b = np.asarray(a)[:, p]
    check_qr(b, q, r, tol)
    check_qr(b, *complete[:2], tol)
    assert_close(alone, (r, p), tol)
    assert_close(truncated[:2], (q[:, :2], r[:2]), tol)
    assert (truncated[2][:2] == p[:2]).all()
    assert all((np.sort(x) == np.arange(shape[1])).all() for x in (p, truncated[2]))

    @jax.jit
    def pulled(a, p):
        def at_random(forward_mode, a):
            options = {"temperature": 3.0, "key": jax.random.key(3), "forward_mode": forward_mode}
            return jaxqr.pivoted_qr(a, **options)[:2]

        def at_p(a):
            return jaxqr.qr(jnp.take(a, p, axis=-1), method="householder")

        bars = random_like((q, r))
        random = (functools.partial(at_random, mode) for mode in (False, True))
        return [jax.vjp(f, a)[1](bars) for f in (at_p, *random)]

    expected, *ours = pulled(a, p)
    for a_bar in ours:
        assert_close(a_bar, expected, tolerance(dtype, shape, c=256))


@pytest.mark.parametrize(("shape", "dtype"), [((6, 4), "float32"), ((2, 4, 6), "complex128")])
def test_cold_pivots_are_those_of_largest_norm(shape, dtype):
    a = jnp.asarray(gaussian(shape, dtype))
    greedy = jaxqr.pivoted_qr(a)
    cool = jax.jit(lambda t: jaxqr.pivoted_qr(a, temperature=t, key=jax.random.key(1)))
    for temperature in (0, 1e-9):
        cold = cool(temperature)
        assert (cold[2] == greedy[2]).all()
        assert_close(cold[:2], greedy[:2], tolerance(dtype, shape))


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_cold_pivots_of_columns_far_apart(dtype):
    """Norms span more than the type's range; of the largest columns nothing is left after one."""
    far = 0.4 * np.finfo(dtype).maxexp * np.log10(2)
    greedy = jax.jit(lambda a: jaxqr.pivoted_qr(a, mode="r")[1])
    cold = jax.jit(lambda a: jaxqr.pivoted_qr(a, mode="r", temperature=0.0, key=KEY)[1])
    elsewhere = jax.jit(lambda a: pivoting._like_lapack(a, "r", 4)[1])
    powers = far * np.array([2.0, -1.5, -0.9, -2.0])
    scales = jnp.asarray(10.0**powers, dtype)[None]
    apart = scales * jnp.asarray(gaussian((4, 4), dtype))
    few = jnp.diag(scales[0]).at[1].set(0).at[0, 1].set(scales[0, 0])  # twice the largest
    for a in (apart, few, few[:, ::-1]):
        expected = greedy(a)
        assert (cold(a) == expected).all()
        assert (elsewhere(a) == expected).all()


def test_frequencies_of_columns_far_apart():
    """Those of which log_probability says that they may come do; zero columns come last."""
    scales = jnp.array([1e-30, 0.0, 1e30, 1e-8], "float32")
    keys = jax.random.split(KEY, 4000)

    @jax.jit
    def draw(temperature):
        def pivots(key):
            r = jaxqr.pivoted_qr(jnp.diag(scales), mode="r", temperature=temperature, key=key)
            return r[1]

        return jax.vmap(pivots)(keys)

    for temperature in (50.0, 3e38, 1e308, np.inf):
        drawn = np.asarray(draw(jnp.float64(temperature)))
        assert (drawn[:, 3] == 1).all()
        for order in itertools.permutations([0, 2, 3]):
            r = jnp.diag(scales)[:, np.array([*order, 1])]
            p = np.exp(jaxqr.log_probability(r[jnp.array([*order, 1])], temperature))
            seen = (drawn[:, :3] == np.array(order)).all(axis=1).mean()
            assert abs(seen - p) <= 5 * np.sqrt(p * (1 - p) / len(keys))
            assert temperature < 1e38 or abs(p - 1 / 6) < 1e-6


def test_frequencies():
    """At temperature 1 the first pivot comes in proportion to squared norms, and so on."""
    n, draws = 3, 20000
    a = jnp.asarray(gaussian((3, n), "complex64"))
    for temperature in (1.0, 3.0):

        @jax.jit
        def draw(key, temperature=temperature):
            keys = jax.random.split(key, draws)
            return jax.vmap(
                lambda key: jaxqr.pivoted_qr(a, mode="r", temperature=temperature, key=key)[1]
            )(keys)

        drawn = np.asarray(draw(jax.random.key(0)))
        for order in itertools.permutations(range(n)):
            p = np.exp(log_probability_by_projections(np.asarray(a), order, n, temperature))
            seen = (drawn == np.array(order)).all(axis=1).mean()
            assert abs(seen - p) <= 5 * np.sqrt(p * (1 - p) / draws) + 1e-9


def test_a_batch_has_chances_of_its_own():
    a = jnp.broadcast_to(jnp.asarray(gaussian((4, 8))), (50, 4, 8))
    p = jaxqr.pivoted_qr(a, temperature=5.0, key=jax.random.key(0))[2]
    assert len({tuple(x.tolist()) for x in p}) > 25
    again = jaxqr.pivoted_qr(a, temperature=5.0, key=jax.random.key(0))[2]
    assert (p == again).all()


@pytest.mark.parametrize("shape", [(6, 4), (3, 5)], ids=str)
def test_log_probability(shape):
    """By its definition, for the whole factor and after two pivots; and its gradient."""
    dtype, temperature = "complex128", 0.7
    a = jnp.asarray(gaussian(shape, dtype))
    order = np.array([2, 0, *range(3, shape[1]), 1])

    def whole(a):
        return jaxqr.log_probability(jaxqr.qr(a[:, order], mode="r"), temperature)

    def of_two(a):
        b = a[:, order]
        q, u = jaxqr.qr(b[:, :2])
        r = jnp.concatenate([u, jnp.conj(q.mT) @ b[:, 2:]], axis=1)
        return jaxqr.log_probability(r, temperature, residual=b - q @ r)

    da = random_like(a)
    for f, k in ((whole, min(shape)), (of_two, 2)):
        f = jax.jit(jax.value_and_grad(f))
        value, gradient = f(a)
        expected = log_probability_by_projections(np.asarray(a), list(order), k, temperature)
        assert abs(value - expected) <= 1e-13 * abs(expected)
        slope = central_difference(lambda a, f=f: f(a)[0], a, da)
        assert abs(inner(gradient, da) - slope) <= 1e-8 * norm(gradient) * norm(da)


@pytest.mark.parametrize("dtype", ["bool", "int8"])
def test_log_probability_of_numbers_of_other_types(dtype):
    r = jnp.asarray([[1, 1, 0], [0, 1, 1]], dtype)
    expected = jaxqr.log_probability(r.astype("float64"), 1.0)
    np.testing.assert_allclose(jaxqr.log_probability(r, 1.0), expected, rtol=1e-6)


def test_log_probability_of_what_random_pivots_return():
    """All probabilities add up to one; the factors' own residual serves after ``rank`` pivots."""
    a = jnp.asarray(gaussian((5, 4), "float64"))

    @jax.jit
    @jax.vmap
    def score(key):
        q, r, p = jaxqr.pivoted_qr(a, rank=2, temperature=2.0, key=key)
        residual = jnp.take(a, p, axis=-1) - q @ r
        return p, jaxqr.log_probability(r, 2.0, residual=residual)

    seen = {}
    for p, value in zip(
        *jax.device_get(score(jax.random.split(jax.random.key(0), 200))), strict=True
    ):
        seen[tuple(p[:2].tolist())] = np.exp(value)
    assert len(seen) == 12
    assert abs(sum(seen.values()) - 1) <= 1e-13

    r = jnp.triu(a[:4])
    padded = jnp.concatenate([r, jnp.zeros((1, 4))])  # as complete mode has it
    assert jaxqr.log_probability(padded, 2.0) == jaxqr.log_probability(r, 2.0)


def test_log_probability_where_nothing_is_left():
    """Zero, repeated and dependent columns; extreme scales; every gradient finite."""
    value_and_gradient = jax.jit(jax.value_and_grad(lambda r: jaxqr.log_probability(r, 1.0)))
    for r, expected in (
        ([[2.0, 0, 0], [0, 0, 0], [0, 0, 0]], 0.0),
        ([[1.0, 1, 0], [0, 1, 0], [0, 0, 0]], np.log(1 / 3)),
        ([[0.0, 1, 0], [0, 1, 0], [0, 0, 0]], -np.inf),
        ([[1e-200, 0, 1e200], [0, 1e-200, 0], [0, 0, 1e200]], -1600 * np.log(10) - np.log(2)),
    ):
        value, gradient = value_and_gradient(jnp.array(r))
        assert value == pytest.approx(expected)
        assert np.isfinite(gradient).all()
    a = jnp.asarray(gaussian((5, 4), "float32"))
    p = jaxqr.pivoted_qr(jnp.zeros_like(a), temperature=1.0, key=jax.random.key(0))[2]
    assert sorted(p.tolist()) == [0, 1, 2, 3]
    twice = a.at[:, 3].set(a[:, 0])
    p = jaxqr.pivoted_qr(twice, rank=3, temperature=1.0, key=jax.random.key(0))[2]
    assert not {0, 3} <= set(p[:3].tolist())


@pytest.mark.parametrize("temperature", [1.0, 0.001])
def test_log_probability_has_no_unit(temperature):
    r = np.triu(gaussian((3, 5), "float32"))
    expected = jaxqr.log_probability(r, temperature)
    for exponent in (-90, 60, 90):
        assert jaxqr.log_probability(np.ldexp(r, exponent), temperature) == expected


def test_log_probability_of_rows_far_smaller_than_the_first():
    """1 of 3 columns, then 4 of 5 parts, whatever the size of the second row."""
    value_and_gradient = jax.jit(jax.value_and_grad(lambda r: jaxqr.log_probability(r, 1.0)))
    for size in (1e-8, 1e-22, 1e-36):
        r = jnp.array([[1, 1, 1], [0, 2 * size, size]], "float32")
        value, gradient = value_and_gradient(r)
        assert value == pytest.approx(np.log(1 / 3) + np.log(4 / 5), rel=1e-5)
        np.testing.assert_allclose(gradient[1] * size, [0, 0.2, -0.4], rtol=1e-5)


def test_log_probability_of_the_coldest_pivots():
    """Its limit, where the temperature is below all numbers of R's type."""
    value_and_gradient = jax.jit(jax.value_and_grad(jaxqr.log_probability))
    cases = (
        ([[3.0, 1, 0], [0, 2, 0], [0, 0, 1]], 0, 0),
        ([[2.0, 0, 0], [0, 2, 0], [0, 0, 2]], -np.log(6), -np.log(6)),
        ([[2.0, 1, 0], [0, 0, 0], [0, 0, 0]], 0, 0),
        ([[1.0, 1, 0], [0, 1, 0], [0, 0, 2]], -np.inf, -1e36),
    )
    for temperature in (1e-39, 1e-36):
        for r, least, most in cases:
            value, gradient = value_and_gradient(jnp.array(r, "float32"), temperature)
            assert least - 1e-6 <= float(value) <= most + 1e-6
            assert not np.isnan(gradient).any()


def test_the_score_function_gradient_is_that_of_the_expectation():
    """Summed over all permutations instead of samples: d sum P L = sum (L dlog P + dL) P."""
    a = jnp.asarray(gaussian((3, 3), "float64"))
    orders = np.array(list(itertools.permutations(range(3))))

    def terms(a):
        r = jaxqr.qr(jnp.moveaxis(a[:, orders], 1, 0), mode="r")
        return jnp.sum(jnp.abs(r[:, :2, 2]), axis=-1), jaxqr.log_probability(r, 1.5)

    def surrogate(a):
        losses, logs = terms(a)
        return jnp.sum(jax.lax.stop_gradient(jnp.exp(logs)) * losses) + jnp.sum(
            jax.lax.stop_gradient(jnp.exp(logs) * losses) * logs
        )

    expectation = jax.jit(lambda a: jnp.sum(jnp.exp(terms(a)[1]) * terms(a)[0]))
    gradient, da = jax.jit(jax.grad(surrogate))(a), random_like(a)
    slope = central_difference(expectation, a, da)
    assert abs(inner(gradient, da) - slope) <= 1e-8 * norm(gradient) * norm(da)


def test_transformations():
    """Keys and temperatures by vmap, temperatures traced, types."""
    a = jnp.asarray(gaussian((4, 6), "float32"))
    keys = jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def run(a, key, temperature):
        q, r, p = jaxqr.pivoted_qr(a, temperature=temperature, key=key)
        return q, r, p, jaxqr.log_probability(r, temperature)

    mapped = jax.jit(jax.vmap(run, (None, 0, 0)))(a, keys, jnp.array([0.5, 1.0, 2.0]))
    for i, temperature in enumerate((0.5, 1.0, 2.0)):
        one = run(a, keys[i], jnp.float32(temperature))
        assert (one[2] == mapped[2][i]).all()
        alike = [x[i] for x in mapped]
        assert_close([*alike[:2], alike[3]], [*one[:2], one[3]], tolerance("float32", a.shape))
    r = mapped[1]
    assert jaxqr.log_probability(r, jnp.ones(3)).shape == (3,)
    for dtype in ("bfloat16", "int32"):
        q, r, _ = jaxqr.pivoted_qr(a.astype(dtype), temperature=1, key=keys[0])
        assert q.dtype == (dtype if dtype != "int32" else "float32")
        assert jaxqr.log_probability(r, 1).dtype == jnp.float32
    empty = jaxqr.pivoted_qr(jnp.zeros((3, 0)), temperature=1, key=keys[0])
    assert [x.shape for x in empty] == [(3, 0), (0, 0), (0,)]
    assert jaxqr.log_probability(empty[1], 1.0) == 0


@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"mode": "r"}], ids=str)
def test_each_device_draws_its_own(options):
    """Of one matrix that all have: what varies over devices is the key."""
    a = jnp.asarray(gaussian((5, 4)))
    keys = jax.random.split(jax.random.key(0), 2)

    def drawn(a, keys):
        *_, r, p = jaxqr.pivoted_qr(a, temperature=1.0, key=keys[0], **options)
        return r[None], p[None]

    mesh = Mesh(np.array(jax.devices("cpu")[:2]), ("i",))
    over_devices = jax.shard_map(drawn, mesh=mesh, in_specs=(P(), P("i")), out_specs=P("i"))

    def one_by_one(a, keys):
        return tuple(map(jnp.concatenate, zip(*(drawn(a, key[None]) for key in keys), strict=True)))

    def with_gradient(f):
        def loss(a, keys):
            r, p = f(a, keys)
            return jnp.sum(jnp.sin(r)), (r, p)

        return jax.jit(jax.grad(loss, has_aux=True))(a, keys)

    assert_close(
        with_gradient(over_devices), with_gradient(one_by_one), tolerance(a.dtype, a.shape)
    )


def test_arguments():
    a, key = jnp.eye(3), jax.random.key(0)
    with pytest.raises(ValueError, match=r"together.*temperature without key"):
        jaxqr.pivoted_qr(a, temperature=1.0)
    with pytest.raises(ValueError, match=r"together.*key without temperature"):
        jaxqr.pivoted_qr(a, key=key)
    with pytest.raises(ValueError, match="temperature not to be negative"):
        jaxqr.pivoted_qr(a, temperature=-1.0, key=key)
    with pytest.raises(ValueError, match="temperature to be a scalar"):
        jaxqr.pivoted_qr(a, temperature=jnp.ones(3), key=key)
    with pytest.raises(TypeError, match="temperature to be real"):
        jaxqr.pivoted_qr(a, temperature=1j, key=key)
    with pytest.raises(ValueError, match="temperature to be a number"):
        jaxqr.pivoted_qr(a, temperature=jnp.nan, key=key)
    with pytest.raises(TypeError, match=r"pivoted_qr expects key to be one key of jax\.random"):
        jaxqr.pivoted_qr(a, temperature=1.0, key=0)
    with pytest.raises(ValueError, match=r"pivoted_qr expects key to be one key of jax\.random"):
        jaxqr.pivoted_qr(a, temperature=1.0, key=jax.random.split(key))
    for cold in (0, jnp.zeros(()), np.array(0.0), jnp.nan):
        with pytest.raises(ValueError, match="temperature to be positive"):
            jaxqr.log_probability(a, cold)
    with pytest.raises(TypeError, match=r"temperature to be positive. Got None"):
        jaxqr.log_probability(a, None)
    with pytest.raises(
        TypeError, match=r"by name, as in log_probability\(r, temperature, residual="
    ):
        jaxqr.log_probability(a, 1.0, a)
    with pytest.raises(ValueError, match=r"residual to be \(..., m, n\)"):
        jaxqr.log_probability(a, 1.0, residual=jnp.eye(4))
    with pytest.raises(ValueError, match="one for each matrix of the batch"):
        jaxqr.log_probability(a, jnp.ones(2))
