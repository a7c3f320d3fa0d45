"""Wide matrices by their leading block: the factors, and where "auto" takes them so."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import assert_close, check_qr, gaussian, random_like, tolerance

import jaxqr


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(20, 50), (3, 20, 27), (1, 3), (70, 120)], ids=str)
def test_factors_and_gradients_are_householders(shape, dtype):
    a = jnp.asarray(gaussian(shape, dtype))
    tol = tolerance(dtype, shape, 100.0)
    for mode in ("reduced", "complete", "r"):
        ours, theirs = (
            jax.vjp(functools.partial(jaxqr.qr, mode=mode, method=method), a)
            for method in ("auto", "householder")
        )
        assert_close(ours[0], theirs[0], tol)
        bars = random_like(ours[0])
        assert_close(ours[1](bars), theirs[1](bars), tol)
        if mode != "r":
            check_qr(np.asarray(a), *map(np.asarray, ours[0]), tolerance(dtype, shape, 1))


def factored_by_lapack(shape, dtype="float64", **options):
    """Whether LAPACK gets a matrix of this shape, and of its leading block's."""
    traced = jax.jit(lambda a: jaxqr.qr(a, **options)).trace(jax.ShapeDtypeStruct(shape, dtype))
    text = traced.lower(lowering_platforms=("cpu",)).as_text()
    calls = "\n".join(line for line in text.splitlines() if "geqrf" in line)
    m, n = shape
    return f"tensor<{m}x{n}x" in calls, f"tensor<{m}x{m}x" in calls


def test_auto_takes_the_leading_block_of_wide_input():
    assert factored_by_lapack((20, 50)) == (False, True)
    assert factored_by_lapack((7, 16)) == (True, False)  # it takes microseconds
    assert factored_by_lapack((100, 130), mode="r") == (False, True)
    assert factored_by_lapack((20, 50), mode="r") == (True, False)  # it wakes no thread
    assert factored_by_lapack((20, 22)) == (True, False)
    assert factored_by_lapack((20, 50), method="householder") == (True, False)
    assert factored_by_lapack((20, 50), dtype="complex128") == (True, False)


def test_nan_stays_in_its_column():
    a = gaussian((20, 50))
    a[3, 40] = np.nan
    bad = np.isnan(np.asarray(jaxqr.qr(a, mode="r"))).any(axis=0)
    assert bad[40]
    assert bad.sum() == 1
