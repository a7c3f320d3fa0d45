"""CholeskyQR2 is as accurate as Householder's algorithm, or gives way to it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import DTYPES, assert_close, gaussian, matrix, norm, random_like, tolerance

import jaxqr
from jaxqr._forward import cholesky

SHAPE = (300, 20)


def errors(a, q, r):
    """The largest column's residual against the matrix, and the departure from orthonormality."""
    wide = "complex128" if np.iscomplexobj(a) else "float64"
    scale = float(np.abs(a).max()) or 1.0
    a, r = np.asarray(a).astype(wide) / scale, np.asarray(r).astype(wide) / scale
    q = np.asarray(q).astype(wide)
    return norm(q @ r - a), norm(np.conj(q.T) @ q - np.eye(q.shape[1]))


def kinds(shape, dtype):
    tiny = 1e-30 if np.finfo(dtype).eps > 1e-10 else 1e-150
    plain = matrix(shape, dtype)
    graded = plain * np.geomspace(1, 1e-10, shape[1]).astype(plain.real.dtype)
    zero = plain.copy()
    zero[:, 7] = 0
    repeated = plain.copy()
    repeated[:, 5] = repeated[:, 3]
    conditions = {f"1e{p}": matrix(shape, dtype, 10.0**p) for p in (0, 1, 2, 3, 5, 8, 12, 15)}
    return conditions | {
        "gaussian": gaussian(shape, dtype),
        "nearly repeated": nearly_repeated(shape, dtype),
        "graded": graded,
        "graded the other way": graded[:, ::-1].copy(),
        "tiny": (plain.astype(dtype) * plain.real.dtype.type(tiny)).astype(dtype),
        "huge": (plain / plain.real.dtype.type(tiny)).astype(dtype),
        "zero column": zero,
        "repeated column": repeated,
        "zero": np.zeros_like(plain),
    }


def nearly_repeated(shape, dtype="float64"):
    """Every block of columns is well conditioned, and the first Q is not quite orthonormal."""
    half = (shape[0], shape[1] // 2)
    x, near = gaussian(half, dtype), np.sqrt(np.finfo(dtype).eps) * 100
    return np.hstack([x, x + x.real.dtype.type(near) * gaussian(half, dtype, 1)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [SHAPE, (150, 100)], ids=str)
def test_errors_are_within_four_times_householders(shape, dtype):
    by_cholesky = jax.jit(lambda a: cholesky.qr(a, "reduced"))
    by_householder = jax.jit(lambda a: jaxqr.qr(a, method="householder", positive_diagonal=True))
    floor = 4 * float(np.finfo(dtype).eps)
    for kind, a in kinds(shape, dtype).items():
        ours, theirs = errors(a, *by_cholesky(a)), errors(a, *by_householder(a))
        for mine, other in zip(ours, theirs, strict=True):
            assert mine <= 4 * max(other, floor), kind


def error_of_triangle(a, r):
    """||A - Q R|| / ||A|| for the orthonormal Q that makes it least."""
    wide = "complex128" if np.iscomplexobj(a) else "float64"
    scale = float(np.abs(a).max()) or 1.0
    a, r = np.asarray(a).astype(wide) / scale, np.asarray(r).astype(wide) / scale
    u, _, vh = np.linalg.svd(a @ np.conj(r.T), full_matrices=False)
    return norm(a - u @ vh @ r) / (norm(a) or 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [SHAPE, (150, 100)], ids=str)
def test_the_triangle_alone_is_as_accurate(shape, dtype):
    """Also where the blocks are orthonormal each and far from orthogonal to each other."""
    ours = jax.jit(lambda a: cholesky.qr(a, "r")[0])
    theirs = jax.jit(lambda a: jnp.linalg.qr(a, mode="r"))
    floor = 4 * float(np.finfo(dtype).eps)
    for kind, a in kinds(shape, dtype).items():
        mine, other = (error_of_triangle(a, r(a)) for r in (ours, theirs))
        assert mine <= 4 * max(other, floor), kind


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("shape", [(300, 20), (500, 64), (300, 200)], ids=str)
def test_well_conditioned_input_takes_no_detour(shape, dtype, monkeypatch):
    """With Householder's branch out of order the factors are still right."""

    def out_of_order(*factors):
        return tuple(jnp.nan * x for x in factors)

    monkeypatch.setattr(cholesky, "with_positive_diagonal", out_of_order)
    a = gaussian(shape, dtype)
    q, r = jax.jit(lambda a: cholesky.qr(a, "reduced"))(a)
    assert max(errors(a, q, r)) <= tolerance("float64", shape, 1)
    assert_close(jax.jit(lambda a: cholesky.qr(a, "r"))(a)[0], r, 1e-14)
    q, _ = jax.jit(lambda a: cholesky.qr(a, "reduced"))(matrix(shape, cond=1e9))
    assert np.isnan(q).all()


def test_nan_and_inf_come_out_as_nan():
    for bad in (np.nan, np.inf):
        a = gaussian(SHAPE)
        a[7, 3] = bad
        _, r = jaxqr.qr(a, method="cholesky")
        assert not np.all(np.isfinite(r))


@pytest.mark.parametrize("columns", [20, 100])
def test_in_units_of_the_columns_no_digit_changes(columns):
    """One block of columns and several, of which the second attempt has what the first could not.

    A column of zeros in one of the batch takes Householder's algorithm there, and nowhere else.
    """
    a = jnp.asarray(gaussian((2, 250, columns), "float32"))
    b = jnp.asarray(gaussian((2, 250, 3), "float32", seed=1))

    @jax.jit
    def factors(a, b):
        q, r = cholesky.qr(a, "reduced")
        u, c = cholesky.triangle_and_product(a, b)
        return (q, c), (*cholesky.qr(a, "r"), r, u)

    unscaled, in_proportion = factors(a, b)
    units = 2.0 ** jnp.asarray(np.linspace(-90, 90, columns).round(), "float32")
    found, scaled = factors(a * units[None, None], b)
    for x, y in zip(found, unscaled, strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(scaled, in_proportion, strict=True):
        np.testing.assert_array_equal(x, y * units[None, None])
    found, scaled = factors(a.at[0, :, 7].set(0), b)
    for x, y in zip((*found, *scaled), (*unscaled, *in_proportion), strict=True):
        np.testing.assert_array_equal(x[1], y[1])


@pytest.mark.parametrize("columns", [20, 100])
def test_the_way_back_keeps_digits_at_the_end_of_the_range(columns):
    """Where columns are dependent LAPACK factors them, which by itself loses digits there."""
    a = gaussian((250, columns), "float32")
    a[:, 5] = a[:, 3]
    scale = np.float32(2.0**-113)  # 1e-34

    @jax.jit
    def factors(a):
        return *jaxqr.qr(a, method="cholesky"), jaxqr.qr(a, method="cholesky", mode="r")

    q, r, alone = map(np.asarray, factors(jnp.asarray(a * scale)))
    eps = np.finfo(np.float32).eps
    assert_close(q @ (r / scale), a, 32 * eps)
    assert_close((alone / scale).T @ (alone / scale), a.T @ a, 32 * eps)


def test_the_gradient_and_vmap():
    a = jnp.asarray(np.stack([matrix(SHAPE, cond=c) for c in (1.5, 2.0, 1e9)]))

    def pull(method):
        def one(a):
            out, pullback = jax.vjp(lambda a: jaxqr.qr(a, method=method, positive_diagonal=True), a)
            return pullback(random_like(out))[0]

        return one

    for x, tol in zip(a, (1, 1, 1e9), strict=True):
        expected = pull("householder")(x)
        assert_close(jax.jit(pull("cholesky"))(x), expected, tolerance("float64", SHAPE, tol, 64))
    mapped = jax.jit(jax.vmap(pull("cholesky")))(a)
    assert_close(mapped[1], pull("householder")(a[1]), tolerance("float64", SHAPE, 2.0, 64))


def test_shapes_it_cannot_take():
    for shape, options in (((5, 9), {}), ((9, 5), {"mode": "complete"})):
        with pytest.raises(ValueError, match=r'at least as many rows as.* for method "cholesky"'):
            jaxqr.qr(jnp.ones(shape), method="cholesky", **options)
    with pytest.raises(ValueError, match=r'lq expects .* for method "cholesky"'):
        jaxqr.lq(jnp.ones((9, 5)), method="cholesky")


def calls_potrf(f, shape, dtype="float64", **options):
    traced = jax.jit(functools.partial(f, **options)).trace(jax.ShapeDtypeStruct(shape, dtype))
    return "potrf" in traced.lower(lowering_platforms=("cpu",)).as_text()


def test_auto_takes_it_for_deep_input():
    lowers_to_potrf = functools.partial(calls_potrf, jaxqr.qr)
    assert lowers_to_potrf((4000, 32))
    assert lowers_to_potrf((4000, 32), mode="r")
    assert lowers_to_potrf((2, 4000, 32))
    for shape, options in (
        ((4000, 32), {"method": "householder"}),
        ((4000, 32), {"mode": "complete"}),
        ((100, 32), {}),
        ((200, 100, 32), {}),
        ((250, 200), {}),
        ((250, 200), {"mode": "r"}),
        ((6000, 600), {}),
        ((8000, 800), {"mode": "r"}),
    ):
        assert not lowers_to_potrf(shape, **options)
    assert lowers_to_potrf((600, 400))
    assert lowers_to_potrf((6000, 600), mode="r")
    assert not lowers_to_potrf((4000, 32), dtype="complex64")
    traced = jax.jit(jaxqr.qr).trace(jax.ShapeDtypeStruct((4000, 32), "float32"))
    assert "potrf" not in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_a_batch_of_which_one_needs_householder():
    a = jnp.asarray(np.stack([matrix(SHAPE, cond=c) for c in (1.5, 2.0, 1e9)]))
    factors = jax.jit(jax.vmap(lambda a: jaxqr.qr(a, method="cholesky")))(a)
    for x, q, r in zip(a, *factors, strict=True):
        assert max(errors(x, q, r)) <= tolerance("float64", SHAPE, 1)


@pytest.mark.parametrize(
    "a",
    [
        *(matrix((300, n), cond=10.0**p) for n in (40, 160) for p in (0, 3, 9)),
        nearly_repeated((300, 160)),
        nearly_repeated((300, 160), "complex128"),
    ],
    ids=[
        *(f"{n} columns, 1e{p}" for n in (40, 160) for p in (0, 3, 9)),
        "nearly repeated",
        "nearly repeated, complex",
    ],
)
def test_triangle_and_product(a):
    """R x = Q^H b for what is in the range of A, and R^H R = A^H A."""
    a = jnp.asarray(a)
    x = jnp.asarray(gaussian((a.shape[1], 3), a.dtype))
    u, c = jax.jit(cholesky.triangle_and_product)(a, a @ x)
    assert norm(u @ x - c) <= tolerance("float64", a.shape, 1) * norm(c)
    uhu, aha = (jnp.conj(y.T) @ y for y in (u, a))
    assert norm(uhu - aha) <= tolerance("float64", a.shape, 1) * norm(aha)


def test_what_the_second_pass_corrects(monkeypatch):
    """The first Q of the one block departs by 1e-4, which only the corrections undo."""
    monkeypatch.setattr(cholesky, "_MOST_CONDITION", np.inf)
    a, b = nearly_repeated((300, 60)), gaussian((300, 2))
    sound, u, c = jax.jit(cholesky._gram_schmidt)(a, b)
    assert sound
    q, r = np.linalg.qr(a)
    phase = np.sign(np.diagonal(r))
    assert norm(u - phase[:, None] * r) <= 1e-7 * norm(r)
    assert norm(c - (q * phase).T @ b) <= 1e-7 * norm(c)


# Pivots of deep matrices.

PIVOTED = (1000, 20)
OF_COMPLEX = (1100, 16)  # as many columns as "auto" takes of them


def in_column_order(factors, a):
    *q, r, p = map(np.asarray, factors)
    assert sorted(p) == list(range(a.shape[1]))
    return a[:, p], *q, r


@pytest.mark.parametrize("dtype", DTYPES)
def test_pivots_of_deep_matrices_are_as_good_as_lapacks(dtype):
    """Of every spectrum and scale: residuals, orthonormality, and how large each pivot is."""
    is_complex = np.issubdtype(dtype, np.complexfloating)
    ours = jax.jit(jaxqr.pivoted_qr)
    theirs = jax.jit(lambda a: jaxqr.pivoted_qr(a, method="householder", positive_diagonal=True))
    alone = jax.jit(lambda a: jaxqr.pivoted_qr(a, mode="r"))
    real = np.finfo(dtype)
    floor = 4 * float(real.eps)
    shape = OF_COMPLEX if is_complex else PIVOTED
    least, most = (np.asarray(2.0**e, real.dtype) for e in (real.minexp + 8, real.maxexp - 8))
    ends = {str(s): gaussian(shape, dtype) * s for s in (least, most)}
    for kind, a in (kinds(shape, dtype) | ends).items():
        mine, other, r_alone = ours(a), theirs(a), alone(a)
        found, expected = (errors(*in_column_order(x, a)) for x in (mine, other))
        for x, y in zip(found, expected, strict=True):
            assert x <= 4 * max(y, floor), kind
        triangles = (np.asarray(x[-2]) for x in (mine, other, r_alone))
        diagonals = [np.abs(np.diagonal(r).astype("complex128")) for r in triangles]
        largest = diagonals[1][0]
        for d in diagonals:
            assert (np.diff(d) <= 100 * floor * largest).all(), kind
            np.testing.assert_allclose(d, diagonals[1], rtol=0.5, atol=1e3 * floor * largest)
        assert (np.diagonal(mine[1]).real >= 0).all(), kind
        if kind in ("gaussian", "graded", *ends):
            np.testing.assert_array_equal(mine[2], other[2])
            assert_close(*(np.asarray(x) / largest for x in (r_alone[0], mine[1])), 100 * floor)


@pytest.mark.parametrize("mode", ["reduced", "r"])
@pytest.mark.parametrize("shape", [PIVOTED, (400, 100)], ids=str)
def test_pivots_are_the_triangles_where_it_is_sound(shape, mode):
    """With LAPACK out of order for all that is deep."""

    def of_squares(a):
        *q, r, p = jax.lax.linalg.qr(a, pivoting=True, full_matrices=False)
        q = q if mode == "reduced" else []
        return *q, r if r.shape[-2:] == a.shape[-2:] else jnp.nan * r, p

    factors = jax.jit(lambda a: cholesky.pivoted_qr(a, mode, of_squares))
    a = gaussian(shape)
    found, expected = factors(a), jaxqr.pivoted_qr(a, mode=mode, positive_diagonal=True)
    for x, y in zip(found, expected, strict=True):
        assert_close(x, y, tolerance("float64", shape, 1, 64))
    a[:, 3] = a[:, 0]
    if mode == "reduced" or shape == PIVOTED:  # where R is alone blocks of columns are enough
        assert np.isnan(factors(a)[-2]).any()


def test_pivots_of_a_batch_of_deep_matrices():
    """One has dependent columns, and the others are not told."""
    a = np.stack([gaussian(PIVOTED, seed=s) for s in range(3)])
    a[1, :, 7] = a[1, :, 2]
    at_once, mapped = (jax.jit(f) for f in (jaxqr.pivoted_qr, jax.vmap(jaxqr.pivoted_qr)))
    for x, y in zip(at_once(a), mapped(a), strict=True):
        np.testing.assert_array_equal(x, y)
    for x, *factors in zip(a, *mapped(a), strict=True):
        assert max(errors(*in_column_order(factors, x))) <= tolerance("float64", PIVOTED, 1)


@pytest.mark.parametrize("options", [{}, {"mode": "r"}, {"rank": 5}], ids=str)
def test_the_gradient_by_the_triangles_pivots(options):
    a = gaussian(PIVOTED)

    def pull(a, method):
        def factors(a):
            return jaxqr.pivoted_qr(a, method=method, positive_diagonal=True, **options)[:-1]

        out, pullback = jax.vjp(factors, a)
        return pullback(random_like(out))[0]

    found, expected = jax.jit(lambda a: [pull(a, method) for method in ("auto", "householder")])(a)
    assert_close(found, expected, tolerance("float64", PIVOTED, 2.0, 64))


def test_auto_takes_the_pivots_of_deep_triangles():
    lowers_to_potrf = functools.partial(calls_potrf, jaxqr.pivoted_qr)
    assert lowers_to_potrf((4000, 32))
    assert lowers_to_potrf((2, 4000, 32), mode="r")
    assert not lowers_to_potrf((4000, 32), mode="complete")
    assert not lowers_to_potrf((4000, 32), method="householder")
    assert not lowers_to_potrf((4000, 32), dtype="complex64")
    assert not lowers_to_potrf((2000, 500))
