"""Bad input, rank checks, and any shape and type whatever."""

import decimal
import fractions
import functools
import inspect
import re
from typing import Literal

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.experimental import checkify, sparse
from numerics import (
    DTYPES,
    FACTORIZATIONS,
    NAMES,
    TRIANGLE,
    as_qr,
    assert_close,
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
    for rank in (2.0, True, "2", np.float64(2)):
        with pytest.raises(TypeError, match="pivoted_qr expects rank to be an int"):
            FACTORIZATIONS["pivoted_qr"](a, rank=rank)
    with pytest.raises(TypeError, match="int, known when it is traced"):
        jax.jit(lambda rank: FACTORIZATIONS["pivoted_qr"](a, rank=rank))(2)
    message = 'expects no rank in mode "complete"'
    raises(ValueError, message, "pivoted_qr", a, rank=2, mode="complete")


def test_rank_is_what_operator_index_takes():
    a = jnp.asarray(matrix((4, 3)))
    expected = jaxqr.pivoted_qr(a, rank=2)
    for rank in (np.int64(2), np.uint8(2), jnp.asarray(2)):
        assert_close(jaxqr.pivoted_qr(a, rank=rank), expected, 0)
    message = r"expects no rank where a is empty. Got a of shape \(0, 3\) and rank 1"
    raises(ValueError, message, "pivoted_qr", jnp.ones((0, 3)), rank=1)


def no_numbers():
    """What is not an array of JAX's numbers, and what is said of it."""
    a = np.eye(3, 2)
    for dtype in ("object", "U1", "S1", "datetime64[s]", "timedelta64[s]", [("x", "f4")]):
        x = np.zeros((3, 2), dtype)
        yield x, re.escape(f"Got type {x.dtype}; ") + r".*\.astype\(float\)"
    of_fields = np.zeros((3, 2), [("x", "f4"), ("y", "f4")])
    yield of_fields, r"Got type .*, which has fields: .*structured_to_unstructured"
    for dtype, serves in ((">f8", "float64"), (">i4", "int32"), (">c8", "complex64")):
        yield a.astype(dtype), rf'Got type {dtype}, whose byte order .*astype\("{serves}"\)'
    for dtype, serves in ((np.longdouble, "float64"), (np.clongdouble, "complex128")):
        x = a.astype(dtype)
        if x.dtype.itemsize > np.dtype(serves).itemsize:  # it is the same on some systems
            yield x, rf'Got type {x.dtype}, which .*\.astype\("{serves}"\) serves'
    yield scipy.sparse.csr_array(a), r"Got csr_array, which is sparse: \w\.toarray\(\)"
    yield scipy.sparse.coo_matrix(a), r"Got coo_matrix, which is sparse: \w\.toarray\(\)"
    yield sparse.BCOO.fromdense(a), r"Got BCOO, which is sparse: \w\.todense\(\)"
    yield sparse.BCSR.fromdense(a), r"Got BCSR, which is sparse: \w\.todense\(\)"
    keys = jax.random.split(jax.random.key(0), (3, 2))
    yield keys, r"Got type key<fry>: random keys are no numbers"
    yield jnp.ones((3, 2), jnp.float8_e8m0fnu), "Got type float8_e8m0fnu, which has no zero"


def test_what_is_no_array_of_numbers_is_told():
    a = np.eye(3, 2)
    for x, message in no_numbers():
        for name in NAMES:
            with pytest.raises(TypeError, match=f"{name} expects a .* {message}"):
                FACTORIZATIONS[name](x)
        with pytest.raises(TypeError, match=f"lstsq expects a .* {message}"):
            jaxqr.lstsq(x, a)
        with pytest.raises(TypeError, match=f"lstsq expects b .* {message}"):
            jaxqr.lstsq(a, x)


def test_what_is_hidden_is_not_made_numbers():
    masked = np.ma.masked_array(np.ones((3, 2)), mask=np.eye(3, 2))
    with pytest.raises(TypeError, match=r"qr expects a .* mask would be lost: a\.filled\([^:]*$"):
        jaxqr.qr(masked)
    for b in (None, [1.0, None, 2.0]):
        with pytest.raises(TypeError, match="lstsq expects b to be") as raised:
            jaxqr.lstsq(jnp.ones((3, 2)), b)
        assert "makes numbers" not in str(raised.value)


def test_lists_are_told_what_is_wrong_inside():
    row = np.ma.masked_array([3.0, 1.0], mask=[True, False])
    for rows in ([row, row], [[3.0, 1.0], (row[0], row[1])]):
        with pytest.raises(TypeError, match=r"qr expects a .* Got list of masked.*filled"):
            jaxqr.qr(rows)
    message = r"lstsq expects b .* Got list\. .*np\.asarray\(b, float\) makes numbers"
    with pytest.raises(TypeError, match=message):
        jaxqr.lstsq(jnp.eye(2), [10**30, 1])
    for x in ([[1.0, 2.0], [3.0]], [[10**400]]):  # of which it makes none
        with pytest.raises(TypeError, match=r"qr expects a .* Got list\. .*\.$") as caught:
            jaxqr.qr(x)
        assert "np.asarray" not in str(caught.value)
    half = fractions.Fraction(1, 2)
    for x in ([["1", "2"]], [[half]], [[decimal.Decimal(1)]]):
        with pytest.raises(
            TypeError, match=r"qr expects a .* Got list\. .*np\.asarray\(a, float\)"
        ):
            jaxqr.qr(x)
    with pytest.raises(TypeError, match=r"ridge .* Got Fraction.*np\.asarray\(ridge, float\)"):
        jaxqr.lstsq(jnp.eye(2), jnp.ones(2), ridge=half)


def test_types_that_promote_to_none():
    small, other = jnp.ones((2, 2), jnp.float8_e4m3fn), jnp.ones((2, 2), jnp.float32)
    message = r"types that promote to one. Got float8_e4m3fn and float32.*\.astype\([bc]\.dtype\)"
    for name, function in (
        ("lstsq expects a and b", jaxqr.lstsq),
        ("lstsq expects a and b", functools.partial(jaxqr.lstsq, rcond="auto")),
        ("qr_multiply expects a and c", jaxqr.qr_multiply),
        ("qz expects a and b", jaxqr.qz),
    ):
        with pytest.raises(TypeError, match=f"{name} to be of {message}"):
            function(small, other)


def test_integers_of_any_size_are_numbers():
    """Without 64 bits, where JAX would keep the lower 32."""
    a, b = jnp.asarray(matrix((5, 3), "float32")), jnp.ones(5, jnp.float32)
    with jax.enable_x64(False):
        for large in (np.int64(2**32), np.uint64(2**63), np.array(2**40)):
            found = jaxqr.lstsq(a, b, ridge=large)
            assert_close(found, jaxqr.lstsq(a, b, ridge=float(large)), 0)
            found = jaxqr.log_probability(a.T, large)
            assert_close(found, jaxqr.log_probability(a.T, float(large)), 0)
        with pytest.raises(ValueError, match=r"lstsq expects rcond to be in 0\.\.1"):
            jaxqr.lstsq(a, b, rcond=np.int64(2**32))
    for x in (-(10**400), -1):
        with pytest.raises(ValueError, match="lstsq expects ridge not to be negative"):
            jaxqr.lstsq(a, b, ridge=x)


def test_modes_of_other_libraries():
    a = jnp.ones((3, 2))
    for name in NAMES:
        raises(ValueError, r"'economic'. .*\"reduced\" here", name, a, mode="economic")
        raises(ValueError, r"'full'. .*\"complete\" here", name, a, mode="full")
        raises(ValueError, r"'raw'. .*jnp.linalg.qr", name, a, mode="raw")
        for mode in (None, 1, a):
            raises(ValueError, "expects mode to be one of", name, a, mode=mode)


def test_names_that_there_are_not():
    a = jnp.ones((3, 2))
    for name in NAMES:
        message = rf"{name} has no argument pivoting: it takes a, mode, .*jaxqr.pivoted_qr"
        with pytest.raises(TypeError, match=message):
            FACTORIZATIONS[name](a, pivoting=True)
    with pytest.raises(TypeError, match=r"lstsq has no argument driver: it takes a, b, rcond, .*"):
        jaxqr.lstsq(a, a, driver="gelsd")


def test_what_is_given_by_name_alone():
    a = jnp.ones((3, 2))
    for name in NAMES:
        for mode, shown in ((TRIANGLE[name], f"'{TRIANGLE[name]}'"), ("raw", r"\.\.\.")):
            message = rf"{name} takes only a by position, .* {name}\(a, mode={shown}\). Got 2"
            with pytest.raises(TypeError, match=message):
                FACTORIZATIONS[name](a, mode)
    for given, shown in ((1e-5, "1e-05"), ("auto", "'auto'"), ("gelsd", "..."), (2, "...")):
        message = re.escape(f"as in lstsq(a, b, rcond={shown}). Got 3")
        with pytest.raises(TypeError, match=message):
            jaxqr.lstsq(a, a, given)
    for f, args, shown in (
        (jaxqr.schur, (a[:2], "complex"), "schur(a, sort=...)"),
        (jaxqr.schur, (a[:2], "lhp"), "schur(a, sort='lhp')"),
        (jaxqr.qr_multiply, (a, a, "left"), "qr_multiply(a, c, adjoint=...)"),
        (jaxqr.qr_multiply, (a, a, True), "qr_multiply(a, c, adjoint=True)"),
        (jaxqr.slogdet, (a, 3), "slogdet(a, forward_mode=...)"),
    ):
        with pytest.raises(TypeError, match=re.escape(shown)):
            f(*args)
    shown = inspect.signature(jaxqr.qr)
    assert [p.name for p in shown.parameters.values() if p.kind is not p.KEYWORD_ONLY] == ["a"]
    assert shown.parameters["mode"].annotation == Literal["reduced", "complete", "r"]


def test_static_options_are_of_their_types():
    a = jnp.ones((3, 2))
    for name in NAMES:
        for option in ("forward_mode", "positive_diagonal", "check_rank"):
            for value in ("yes", 1, None, jnp.asarray(True)):
                message = f"{name} expects {option} to be True or False"
                raises(TypeError, message, name, a, **{option: value})
        for method in (None, 1, a, ("auto",)):
            raises(ValueError, f"{name} expects method to be one of", name, a, method=method)
    functions = [
        (jaxqr.lstsq, (a, a[:, 0]), "forward_mode"),
        (jaxqr.distributed.tsqr, (a, "rows"), "positive_diagonal"),
        (jaxqr.distributed.lstsq, (a, a[:, 0], "rows"), "forward_mode"),
        (jaxqr.distributed.sharded_qr, (a, None, "rows"), "positive_diagonal"),
        (jaxqr.distributed.sharded_lq, (a, None, "rows"), "positive_diagonal"),
        (jaxqr.distributed.sharded_lstsq, (a, a[:, 0], None, "rows"), "forward_mode"),
    ]
    for f, args, option in functions:
        with pytest.raises(TypeError, match=f"{f.__name__} expects {option} to be True or False"):
            f(*args, **{option: "yes"})
    assert_close(jaxqr.qr(a, positive_diagonal=np.True_), jaxqr.qr(a, positive_diagonal=True), 0)


@pytest.mark.parametrize("rcond", [float("nan"), 1.5, np.inf, jnp.asarray(2.0)])
def test_rcond_is_in_0_to_1(rcond):
    with pytest.raises(ValueError, match=r"lstsq expects rcond to be in 0\.\.1. Got"):
        jaxqr.lstsq(jnp.ones((3, 2)), jnp.ones(3), rcond=rcond)


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


@pytest.mark.parametrize(
    ("name", "at", "side"),
    [("qr", 2, "before"), ("lq", 2, "before"), ("rq", 0, "after"), ("ql", 0, "after")],
)
def test_check_rank_names_the_first_dependent_line(name, at, side):
    a = dependent().mT if transposed(name) else dependent()
    line = "row" if transposed(name) else "column"

    def checked(a):
        return checkify.checkify(jax.jit(lambda a: FACTORIZATIONS[name](a, check_rank=True)))(a)

    message = checked(a)[0].get()
    assert f"{name} expects a to have full rank" in message
    assert f"lost at {line} {at}, which depends on the {line}s {side} it." in message
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
    assert f"column {p[3]}, which depends on the columns taken before it." in error.get()


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
