"""Bad input, rank checks, and any shape and type whatever."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from numerics import (
    DTYPES,
    FACTORIZATIONS,
    NAMES,
    TRIANGLE,
    as_qr,
    gaussian,
    inexact,
    inner,
    matrix,
    norm,
    random_like,
    tolerance,
    unpack,
)

ALL = pytest.mark.parametrize("name", NAMES)


def raises(kind, message, name, a, **options):
    """At trace time, and so under jit as well."""
    f = FACTORIZATIONS[name]
    with pytest.raises(kind, match=message):
        f(a, **options)
    with pytest.raises(kind, match=message):
        jax.jit(lambda a: f(a, **options))(a)


@ALL
def test_errors_name_the_argument(name):
    a = jnp.asarray(matrix((4, 3)))
    raises(ValueError, rf"{name} expects a to be a matrix .* Got shape \(4,\)", name, a[:, 0])
    raises(ValueError, rf"{name} expects a .* Got shape \(\)", name, a[0, 0])
    other = "l" if TRIANGLE[name] == "r" else "r"
    listed = rf"'reduced', 'complete', '{TRIANGLE[name]}'. Got '{other}'"
    raises(ValueError, rf"{name} expects mode to be one of {listed}", name, a, mode=other)
    raises(ValueError, rf"{name} expects method to be one of .* Got 'svd'", name, a, method="svd")
    with pytest.raises(TypeError, match=f"{name} expects a to be an array of numbers. Got dict"):
        FACTORIZATIONS[name]({"a": 1})
    with pytest.raises(TypeError, match=f"{name} expects a to be an array of numbers. Got str"):
        FACTORIZATIONS[name]("matrix")


@pytest.mark.parametrize("rank", [0, -1, 4])
def test_rank_out_of_range(rank):
    message = rf"pivoted_qr expects rank to be in 1..3 for a of shape \(4, 3\). Got {rank}"
    raises(ValueError, message, "pivoted_qr", jnp.ones((4, 3)), rank=rank)


def test_rank_of_the_wrong_type_or_mode():
    a = jnp.ones((4, 3))
    for rank in (2.0, True, "2", jnp.asarray(2)):
        with pytest.raises(TypeError, match="pivoted_qr expects rank to be an int"):
            FACTORIZATIONS["pivoted_qr"](a, rank=rank)
    message = 'expects no rank in mode "complete"'
    raises(ValueError, message, "pivoted_qr", a, rank=2, mode="complete")


def test_lists_and_numpy_arrays_are_taken():
    rows = [[3.0, 1.0], [4.0, 2.0]]
    for name in NAMES:
        for x, y in zip(
            FACTORIZATIONS[name](rows), FACTORIZATIONS[name](np.array(rows)), strict=True
        ):
            assert np.array_equal(x, y)


def dependent():
    a = matrix((5, 4), cond=3).copy()
    a[:, 2] = 2 * a[:, 0] - a[:, 1]
    return jnp.asarray(a)


def transposed(name):
    return name in ("lq", "rq")


@pytest.mark.parametrize(("name", "at"), [("qr", 2), ("lq", 2), ("rq", 0), ("ql", 0)])
def test_check_rank_names_the_first_dependent_line(name, at):
    a = dependent().mT if transposed(name) else dependent()
    line = "row" if transposed(name) else "column"

    def checked(a):
        return checkify.checkify(jax.jit(lambda a: FACTORIZATIONS[name](a, check_rank=True)))(a)

    message = checked(a)[0].get()
    assert f"{name} expects a to have full rank" in message
    assert f"lost at {line} {at}, which" in message
    good = jnp.asarray(matrix(a.shape))
    assert checked(good)[0].get() is None
    assert f"{line} {at} of matrix 1 of the batch" in checked(jnp.stack([good, a]))[0].get()
    with pytest.raises(checkify.JaxRuntimeError, match=f"{line} {at}"):
        FACTORIZATIONS[name](a, check_rank=True)


def test_check_rank_of_pivoted_qr_names_a_column_of_a():
    a = dependent()
    error, (_, _, p) = checkify.checkify(
        lambda a: FACTORIZATIONS["pivoted_qr"](a, check_rank=True)
    )(a)
    assert f"column {p[3]}, which" in error.get()


def test_check_rank_in_a_gradient():
    def loss(a):
        return jnp.sum(FACTORIZATIONS["qr"](a, mode="r", check_rank=True))

    grad = checkify.checkify(jax.jit(jax.grad(loss)))
    assert grad(dependent())[0].get() is not None
    error, bar = grad(jnp.asarray(matrix((5, 4))))
    assert error.get() is None
    assert np.all(np.isfinite(bar))


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(
    name=st.sampled_from(NAMES),
    dtype=st.sampled_from(DTYPES),
    batch=st.lists(st.integers(0, 2), max_size=2),
    m=st.integers(0, 6),
    n=st.integers(0, 6),
    mode=st.sampled_from(["reduced", "complete"]),
)
def test_any_shape_and_type(name, dtype, batch, m, n, mode):
    """A = Q R, Q^H Q = I, and the two wirings' derivatives adjoint to each other."""
    shape = (*batch, m, n)
    a = jnp.asarray(gaussian(shape, dtype))

    def f(a, forward_mode=False):
        return FACTORIZATIONS[name](a, mode=mode, forward_mode=forward_mode)

    out, pullback = jax.vjp(lambda a: inexact(f(a)), a)
    b, q, r = as_qr(name, a, *unpack(name, f(a), False))
    leading = b[..., : min(m, n)]
    cond = np.linalg.cond(leading).max() if leading.size else 1.0
    assert norm(q @ r - b) <= tolerance(dtype, shape, 1) * norm(b)
    bars, da = random_like(out), random_like(a)
    dots = jax.jvp(lambda a: inexact(f(a, forward_mode=True)), (a,), (da,))[1]
    (a_bar,) = pullback(bars)
    tol = tolerance(dtype, shape, cond, c=64)
    assert abs(inner(a_bar, da) - inner(bars, dots)) <= tol * norm(a_bar) * norm(da)
