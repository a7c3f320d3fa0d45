"""Programs for other machines and later versions: jax.export, with batch axes of any size."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from numerics import assert_close, gaussian, inexact, matrix, tolerance

import jaxqr
from jaxqr._determinant import SlogDet
from jaxqr._linalg import reflectors
from jaxqr._linalg.reflectors import Reflectors
from jaxqr._lstsq import LeastSquares
from jaxqr._schur import QZResult, SchurResult

FUNCTIONS = {
    "qr": jaxqr.qr,
    "qr, complete": lambda a: jaxqr.qr(a, mode="complete"),
    "qr, complete and unique": lambda a: jaxqr.qr(a, mode="complete", positive_diagonal=True),
    "qr, r": lambda a: jaxqr.qr(a, mode="r"),
    "qr, held": lambda a: jaxqr.qr(a, dependent="hold"),
    "qr, forward mode": lambda a: jaxqr.qr(a, forward_mode=True),
    "qr_multiply": lambda a: jaxqr.qr_multiply(a, a, adjoint=True, mode="complete"),
    "lq": jaxqr.lq,
    "lq, l": lambda a: jaxqr.lq(a, mode="l"),
    "rq": lambda a: jaxqr.rq(a, positive_diagonal=True),
    "ql": jaxqr.ql,
    "pivoted_qr": jaxqr.pivoted_qr,
    "pivoted_qr, rank": lambda a: jaxqr.pivoted_qr(a, rank=2),
    "pivoted_qr, complete": lambda a: jaxqr.pivoted_qr(a, mode="complete"),
    "pivoted_qr, r": lambda a: jaxqr.pivoted_qr(a, mode="r"),
    "lstsq": lambda a: jaxqr.lstsq(a, a[..., :2] + 1),
    "lstsq, rcond": lambda a: jaxqr.lstsq(a, a[..., 0] + 1, rcond=1e-6),
    "lstsq, ridge": lambda a: jaxqr.lstsq(a, a[..., 0] + 1, ridge=0.1),
    "lstsq, forward mode": lambda a: jaxqr.lstsq(a, a[..., 0] + 1, forward_mode=True),
}


def value_and_gradient(name):
    def run(a):
        out, pull = jax.vjp(lambda a: inexact(FUNCTIONS[name](a)), a)
        return FUNCTIONS[name](a), pull([jnp.sin(x) for x in out])

    return jax.jit(run)


def exported(name, shape, dtype="float64"):
    """Value and gradient, exported, serialized and read."""
    out = export.export(value_and_gradient(name))(jax.ShapeDtypeStruct(shape, dtype))
    if importlib.util.find_spec("flatbuffers"):  # which serializing takes, and no other part of it
        out = export.deserialize(out.serialize())
    return out


@pytest.mark.parametrize("name", FUNCTIONS)
def test_batch_axes_of_any_size(name):
    for shape in ("b, 4, 3", "b, c, 3, 5"):
        assert len(exported(name, export.symbolic_shape(shape)).in_avals) == 1


@pytest.mark.parametrize("name", ["qr, complete", "qr, r", "qr_multiply", "pivoted_qr", "lstsq"])
def test_rows_of_any_number(name):
    """Of a few columns: what is chosen by size is what serves every size."""
    run = exported(name, export.symbolic_shape("m, 3", constraints=["m >= 3"]))
    for m in (3, 300):
        a = jnp.asarray(matrix((m, 3)))
        assert_close(run.call(a), value_and_gradient(name)(a), tolerance(a.dtype, a.shape, c=64))


SYMBOLS = {
    "deep": ("m, 3", ["m >= 3"]),
    "wide": ("m, 4", ["m >= 2", "m <= 4"]),
    "m >= n": ("m, n", ["m >= n", "n >= 2"]),
    "n >= m": ("m, n", ["n >= m", "m >= 2"]),
    "any": ("m, n", ["m >= 2", "n >= 2"]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("symbols", SYMBOLS)
def test_rows_and_columns_that_are_symbols(symbols, name):
    form, constraints = SYMBOLS[symbols]
    shape = export.symbolic_shape(form, constraints=constraints)
    out = jax.ShapeDtypeStruct(shape, "float64")
    if symbols == "any" and name in ("lstsq", "lstsq, ridge", "lstsq, forward mode"):
        with pytest.raises(Exception, match="inconclusive"):
            export.export(value_and_gradient(name))(out)
    else:
        export.export(value_and_gradient(name))(out)


@pytest.mark.parametrize(
    ("name", "symbols", "shapes"),
    [
        ("qr", "any", [(5, 3), (3, 5)]),
        ("ql", "m >= n", [(4, 4), (140, 130)]),
        ("qr, complete and unique", "m >= n", [(3, 3), (5, 3)]),
        ("qr, r", "wide", [(2, 4), (4, 4)]),
        ("pivoted_qr", "n >= m", [(3, 5)]),
    ],
)
def test_rows_and_columns_of_any_number(name, symbols, shapes):
    form, constraints = SYMBOLS[symbols]
    run = exported(name, export.symbolic_shape(form, constraints=constraints))
    for shape in shapes:
        a = jnp.asarray(matrix(shape))
        assert_close(run.call(a), value_and_gradient(name)(a), tolerance(a.dtype, shape, c=64))


def test_signs_of_determinants_that_may_be_volumes():
    """With "m >= 3" a matrix of three columns may be square, as is known when it is there."""
    form, constraints = SYMBOLS["deep"]
    shape = export.symbolic_shape(form, constraints=constraints)
    for f in (jaxqr.slogdet, lambda a: jaxqr.slogdet(a, forward_mode=True)):
        run = export.export(jax.jit(f))(jax.ShapeDtypeStruct(shape, "float64"))
        for a in (-jnp.eye(3), -jnp.eye(4, 3)):
            assert_close(tuple(run.call(a)), tuple(jaxqr.slogdet(a)), 1e-12)
    gradient = jax.jit(jax.grad(lambda a: jaxqr.slogdet(a).sign.real))
    with pytest.raises(Exception, match="inconclusive"):
        export.export(gradient)(jax.ShapeDtypeStruct(shape, "complex128"))


@pytest.mark.parametrize("name", ["qr", "qr, r", "rq", "pivoted_qr, rank", "lstsq, rcond"])
def test_what_is_exported_is_what_it_is_at_home(name):
    run = exported(name, export.symbolic_shape("b, 3, 4"), "complex128")
    a = jnp.asarray(matrix((2, 3, 4), "complex128"))
    assert_close(run.call(a), value_and_gradient(name)(a), tolerance(a.dtype, a.shape, c=64))


@pytest.mark.parametrize("kind", [LeastSquares, QZResult, SchurResult, SlogDet])
def test_named_tuples_come_back_as_themselves(kind):
    pytest.importorskip("flatbuffers")
    given = kind(*(jax.ShapeDtypeStruct((), "float64") for _ in kind._fields))
    run = export.export(jax.jit(lambda fields: fields))(given)
    read = export.deserialize(run.serialize())
    assert type(read.call(kind(*map(float, range(len(kind._fields)))))) is kind


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (70, 3, 2), (512, 32)], ids=str)
def test_the_fast_ways_have_others_for_export(shape):
    """Of shapes for which calls are made at home that JAX gives no promise for."""
    a = jnp.asarray(matrix(shape))
    for name in ("qr", "qr, r", "lq, l", "pivoted_qr, rank", "lstsq", "lstsq, rcond"):
        run = exported(name, shape)
        if (name, shape) in [("qr, r", (4, 9)), ("lstsq", (9, 4)), ("qr", (70, 3, 2))]:
            assert_close(run.call(a), value_and_gradient(name)(a), tolerance(a.dtype, shape, c=64))


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_reflectors_by_products(dtype):
    """They are LAPACK's, some of which are the identity; and they have a derivative."""
    a = gaussian((7, 4), dtype)
    a[0, 0], a[1:, 0] = 1, 0  # nothing to eliminate
    stored, taus = jnp.linalg.qr(jnp.asarray(a), mode="raw")
    v, taus, x = stored.mT, taus[None], jnp.asarray(gaussian((7, 3), dtype))
    assert taus[0, 0] == 0
    for adjoint in (False, True):
        (expected,) = reflectors._by_lapack(v, taus, x, adjoint=adjoint)
        (got,) = reflectors._by_products(v, taus, x, adjoint=adjoint)
        assert_close(got, expected, tolerance(dtype, a.shape, 1))
    product = jax.jit(lambda x: reflectors.times(Reflectors(v, taus), x))
    _, tangent = jax.jvp(product, (x[:4],), (x[:4],))
    assert_close(tangent, product(x[:4]), tolerance(dtype, a.shape, 1))
    assert np.isfinite(tangent).all()
