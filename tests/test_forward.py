"""Algorithms that the platform at hand would not choose, against the one it chooses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import DTYPES, check_columns, check_qr, gaussian, graded, matrix, norm, tolerance

from jaxqr._forward import pivoting
from jaxqr._linalg.phases import with_positive_diagonal


def xla_pivoted_qr(a, mode="reduced", k=None):
    k = min(a.shape[-2:]) if k is None else k
    return jax.jit(lambda a: pivoting._xla(a, mode, k))(a)


def check(a, q, r, p, tol):
    a, q, r, p = map(np.asarray, (a, q, r, p))
    b = np.take_along_axis(a, p[..., None, :], -1)
    assert p.dtype == np.int32
    assert np.all(np.sort(p, -1) == np.arange(a.shape[-1]))
    check_qr(b, q, r, tol)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, "complex128") for shape in [(7, 4), (5, 5), (4, 7), (1, 3), (3, 1), (2, 3, 5)]),
        *((shape, "float64") for shape in [(7, 4), (1, 3), (3, 1)]),
        *((shape, "float32") for shape in [(5, 5), (2, 3, 5)]),
        *((shape, "complex64") for shape in [(4, 7), (7, 4)]),
    ],
    ids=str,
)
def test_xla_pivoted_qr_is_lapacks(shape, dtype):
    a = jnp.asarray(matrix(shape, dtype))
    tol = tolerance(dtype, shape, 1)

    @functools.partial(jax.jit, static_argnums=0)
    def in_all_modes(algorithm):
        k = min(shape[-2:])
        factors = {mode: algorithm(a, mode, k) for mode in ("reduced", "complete", "r")}
        unique = {mode: with_positive_diagonal(*f[:-1]) for mode, f in factors.items()}
        return factors, unique

    ours, ours_unique = in_all_modes(pivoting._xla)
    lapacks, lapacks_unique = in_all_modes(pivoting._lapack)
    for mode in ("reduced", "complete"):
        check(a, *ours[mode], tol)
        assert np.array_equal(ours[mode][-1], lapacks[mode][-1])
        x, y = ours_unique[mode][-1], lapacks_unique[mode][-1]
        assert norm(x - y) <= tolerance(dtype, shape) * norm(y)
    assert norm(ours["r"][0] - ours["reduced"][1]) <= tol * norm(a)


@pytest.mark.parametrize("dtype", DTYPES)
def test_xla_pivoted_qr_truncates(dtype):
    a = jnp.asarray(matrix((6, 5), dtype))
    q, r, _ = xla_pivoted_qr(a)
    q3, r3, p3 = xla_pivoted_qr(a, k=3)
    tol = tolerance(dtype, a.shape, 1)
    assert norm(q3 - q[:, :3]) <= tol
    assert norm(r3[:, :3] - r[:3, :3]) <= tol
    b = np.asarray(a)[:, p3]
    assert norm(np.conj(q3.mT) @ b - r3) <= tol * norm(a)


def deficient(dtype="float64"):
    a = matrix((6, 5), dtype).copy()
    a[:, 3] = a[:, 0]
    a[:, 1] = 0
    return a


@pytest.mark.parametrize(
    "a",
    [
        deficient(),
        deficient("complex128"),
        np.zeros((4, 3)),
        np.ones((4, 3)),
        np.eye(5, 3),
        np.triu(gaussian((4, 4))),
        1e-150 * gaussian((5, 4)),
        1e150 * gaussian((5, 4)),
    ],
    ids=["deficient", "complex", "zero", "ones", "eye", "upper", "tiny", "huge"],
)
def test_xla_pivoted_qr_of_hard_input(a):
    check(jnp.asarray(a), *xla_pivoted_qr(jnp.asarray(a)), tolerance("float64", a.shape, 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_xla_pivoted_qr_of_columns_of_very_different_lengths(dtype):
    a = graded((40, 6, 4), dtype)
    q, r, p = map(np.asarray, xla_pivoted_qr(jnp.asarray(a)))
    for b, *factors in zip(np.take_along_axis(a, p[:, None], -1), q, r, strict=True):
        check_columns(b, *factors, tolerance(dtype, a.shape, 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_xla_pivoted_qr_of_nan(bad):
    a = gaussian((5, 4))
    a[2, 1] = bad
    _, r, p = xla_pivoted_qr(jnp.asarray(a))
    assert not np.all(np.isfinite(r))
    assert np.all(np.sort(p) == np.arange(4))
