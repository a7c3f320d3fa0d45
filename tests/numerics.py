"""Matrices with a prescribed spectrum, tolerances, and the five factorizations seen as one."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import jaxqr
from jaxqr._forward import panels
from jaxqr._linalg import tuning
from jaxqr._linalg.crossovers import SHIPPED

DTYPES = ("float32", "float64", "complex64", "complex128")
NAMES = ("qr", "lq", "rq", "ql", "pivoted_qr")
TRIANGLE = {"qr": "r", "lq": "l", "rq": "r", "ql": "l", "pivoted_qr": "r"}
FACTORIZATIONS = {name: getattr(jaxqr, name) for name in NAMES}


def covering(first, second, *others):
    """Cases in which every two values meet, those of the first two axes once; others rotate.

    A fault of one value, or of two together, is found as by all of them, which would be compiled
    several times over. Others have at most as many values as each of the first two has.
    """
    return [
        (x, y, *(axis[(i + j * (1 + k)) % len(axis)] for k, axis in enumerate(others)))
        for i, x in enumerate(first)
        for j, y in enumerate(second)
    ]


def gaussian(shape: Sequence[int], dtype: str = "float64", seed: int = 0) -> np.ndarray:
    """Standard normal; complex parts each."""
    rng = np.random.default_rng([seed, *shape])
    x = rng.standard_normal(shape)
    if np.issubdtype(np.dtype(dtype), np.complexfloating):
        x = x + 1j * rng.standard_normal(shape)
    return x.astype(dtype)


def matrix(
    shape: Sequence[int], dtype: str = "float64", cond: float = 10.0, seed: int = 0
) -> np.ndarray:
    """A random matrix (..., m, n) whose singular values fall geometrically from 1 to 1/cond."""
    k = min(shape[-2:])
    if 0 in shape:
        return np.zeros(shape, dtype)
    wide = "complex128" if np.issubdtype(np.dtype(dtype), np.complexfloating) else "float64"
    u, _, vh = np.linalg.svd(gaussian(shape, wide, seed), full_matrices=False)
    return (u * np.geomspace(1, 1 / cond, k) @ vh).astype(dtype)


def graded(shape: Sequence[int], dtype: str) -> np.ndarray:
    """A batch of matrices whose columns fall off more and more, to near underflow.

    In every other one the last column repeats the second: all of it is rounding in the end.
    """
    a = gaussian(shape, dtype)
    a[::2, :, -1] = a[::2, :, 1]
    limits = np.finfo(dtype)
    least = np.log10(limits.tiny / limits.eps) + 1
    fall = np.linspace(0, least, shape[0])[:, None, None]
    return a * (10 ** (fall * np.array([0, 0.5, *[1] * (shape[2] - 2)]))).astype(dtype)


def check_columns(b, q, r, tol: float) -> None:
    """:func:`check_qr` with each column of B measured by its own length."""
    lengths = np.abs(b).max(axis=-2, keepdims=True).astype("float64")
    check_qr(b / lengths, q, r / lengths, tol)


def random_like(tree, seed: int = 1):
    """Random cotangents or tangents, complex where the array is."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(
        [jnp.asarray(gaussian(x.shape, x.dtype, seed + i)) for i, x in enumerate(leaves)]
    )


def inner(xs, ys) -> float:
    """Re sum x y over all arrays: the pairing of JAX's cotangents with tangents."""
    pairs = zip(jax.tree.leaves(xs), jax.tree.leaves(ys), strict=True)
    return float(sum(np.sum(np.asarray(x) * np.asarray(y)).real for x, y in pairs))


def tolerance(dtype, shape: Sequence[int], cond: float = 10.0, c: float = 8.0) -> float:
    """c * eps * max(m, n) * cond."""
    return c * float(np.finfo(dtype).eps) * max(*shape[-2:], 1) * cond


def norm(x) -> float:
    return float(np.linalg.norm(np.asarray(x).ravel()))


def assert_close(x, y, rtol: float) -> None:
    """||x - y|| <= rtol * max(||x||, ||y||), leaf by leaf, and the same shapes and types."""
    xs, ys = jax.tree.leaves(x), jax.tree.leaves(y)
    assert len(xs) == len(ys)
    for a, b in zip(xs, ys, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        error, scale = norm(np.asarray(a) - np.asarray(b)), max(norm(a), norm(b))
        assert error <= rtol * scale, f"relative error {error / scale:.2e} > {rtol:.2e}"


def as_qr(name: str, a, tri, q=None, p=None):
    """(b, q, r) such that b = q r is the QR factorization that the named one mirrors."""
    a, tri = np.asarray(a), np.asarray(tri)
    q = None if q is None else np.asarray(q)
    transpose, flip = name in ("lq", "rq"), name in ("rq", "ql")
    if p is not None:
        a = np.take_along_axis(a, np.asarray(p)[..., None, :], -1)
    if transpose:
        a, tri, q = a.mT, tri.mT, None if q is None else q.mT
    if flip:
        a, tri = a[..., ::-1], tri[..., ::-1, ::-1]
        q = None if q is None else q[..., ::-1]
    return a, q, tri


def check_qr(b, q, r, tol: float) -> None:
    """B = Q R, Q^H Q = I, R upper triangular with a real diagonal."""
    assert norm(q @ r - b) <= tol * norm(b)
    eye = np.broadcast_to(np.eye(q.shape[-1]), (*q.shape[:-2], *[q.shape[-1]] * 2))
    assert norm(np.conj(q.mT) @ q - eye) <= tol * norm(eye)
    assert np.all(np.tril(r, -1) == 0)
    assert np.all(np.diagonal(r, axis1=-2, axis2=-1).imag == 0)


def unpack(name: str, out, alone: bool):
    """(triangle, q, p) of whatever the named function returned; q and p may be None."""
    if name == "pivoted_qr":
        return (out[0], None, out[1]) if alone else (out[1], out[0], out[2])
    if alone:
        return out, None, None
    return (out[0], out[1], None) if name in ("lq", "rq") else (out[1], out[0], None)


def inexact(out):
    """The outputs that carry a derivative."""
    return [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.inexact)]


def central_difference(f, a, da, step: float = 1e-5):
    """(f(a + h da) - f(a - h da)) / 2h, the h^2 error extrapolated away."""

    a, da = jax.device_get((a, da))  # NumPy's sums need no program

    def difference(h):
        return jax.tree.map(
            lambda x, y: (np.asarray(x) - np.asarray(y)) / (2 * h), f(a + h * da), f(a - h * da)
        )

    coarse, fine = difference(2 * step), difference(step)
    return jax.tree.map(lambda c, f: (4 * f - c) / 3, coarse, fine)


@contextlib.contextmanager
def panels_of_few_columns(monkeypatch) -> Iterator[None]:
    """Small matrices by panels, with several panels, pieces and blocks each."""
    monkeypatch.setattr(panels, "ASLEEP", 64)
    monkeypatch.setattr(panels, "_MOST_COLUMNS", 4)
    monkeypatch.setattr(panels, "_LEAST_COLUMNS", 1)
    monkeypatch.setattr(panels, "_MOST_GROUPS", 2)
    of_cpu = dataclasses.replace(SHIPPED, least_columns_of_panels=1)
    with tuning.forced({"cpu": of_cpu}):
        yield
