"""The augmented system of least squares, solved by the factors of its matrix.

For A (..., m, n) and lambda >= 0, the augmented system of least squares is

    r + A x          = f
    A^H r - lambda x = g

With g = 0, x minimizes ||A x - f||^2 + lambda ||x||^2 and r is the residual. With f = 0, r is the
shortest vector with A^H r = g (for lambda = 0). Where A has lost rank, x is the shortest solution
and g counts by its projection on the row space of A: (r, x) is the system's pseudoinverse applied
to (f, g).

x is measured in units: D x takes its place, D^-1 g that of g, and A D^-1 that of A, where D is
diagonal and holds the units of A's columns (see :mod:`jaxqr._linalg.scaling`), or one unit for all
of them where the rank is to be found. So all vectors are of the size of f or of D^-1 g, whatever
the size of A. From here on x and g are the measured ones, and D is d (..., n, 1) or (..., 1, 1).

A D^-1 is held as Q B, Q with orthonormal columns, and B by its *root*: ``(u,)`` where A has full
column rank and B = U is upper triangular, or ``(t, w)``, where B = T^H W^H, T upper triangular, W
with orthonormal columns: a complete orthogonal decomposition. With lambda, Q B is
[A; sqrt(lambda) I] D^-1, and of Q the rows beside A suffice. The normal equations are never formed.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxqr._linalg import products, reflectors
from jaxqr._linalg.algebra import adjoint, matmul, project, solve_adjoint_left, solve_left, total
from jaxqr._linalg.batching import are_known, over_columns, over_matrices
from jaxqr._linalg.layouts import materialized
from jaxqr._linalg.scaling import (
    column_units,
    divided,
    magnitudes,
    unit,
    units_of_columns,
)

Root = tuple[Array, ...]


def _solve(root: Root, d: Array) -> Array:
    """B^+ d."""
    if len(root) == 1:
        return solve_left(root[0], d)
    t, w = root
    return matmul(w, solve_adjoint_left(t, d))


def _solve_adjoint(root: Root, g: Array) -> Array:
    """B^+H g."""
    if len(root) == 1:
        return solve_adjoint_left(root[0], g)
    t, w = root
    return solve_left(t, matmul(adjoint(w), g))


def rank(root: Root) -> Array:
    """The rank (..., 1, 1) of a complete orthogonal decomposition: W's columns beyond are zero."""
    _, w = root
    return jnp.sum(jnp.any(w != 0, axis=-2, keepdims=True), axis=-1, keepdims=True)


def solve_augmented(
    root: Root, q: Any, f: Array | None, g: Array | None, *, spans: Array | None = None
) -> tuple[Array, Array]:
    """(r, x) from the right-hand sides f (..., m, nrhs) and g (..., n, nrhs); None is zero.

    q is Q or its reflectors. ``spans`` (..., 1, 1) tells whether the columns of A span all there
    is: then f leaves no residual, not even rounding. None: they do not.

    Björck, "Solving linear least squares problems by Gram-Schmidt orthogonalization" (1967) and
    "Numerical Methods for Least Squares Problems" (1996), section 2.4.
    """

    def solve(
        root: Root, q: Any, f: Array | None, g: Array | None, spans: Array | None
    ) -> tuple[Array, Array]:
        z = None if g is None else _solve_adjoint(root, g)
        if isinstance(q, reflectors.InUnits):  # of a square matrix: A^H r = g, A x = f - r
            if z is None:
                assert f is not None
                return jnp.zeros_like(f), _solve(root, reflectors.adjoint_times(q, f))
            r = reflectors.times(q, z)
            return r, _solve(root, reflectors.adjoint_times(q, -r if f is None else f - r))
        if f is None:
            assert z is not None
            return reflectors.times(q, z), -_solve(root, z)
        k, turned = root[0].shape[0], reflectors.adjoint_times(q, f)
        d = turned[:k] if z is None else turned[:k] - z
        if turned.shape[0] != k:  # of square Q: what the columns of A leave of f is beside
            r = reflectors.times(q, jnp.concatenate([turned[:k] - d, turned[k:]]))
        else:
            r = f - reflectors.times(q, d)
        if spans is not None:
            r = jnp.where(spans, 0 if z is None else reflectors.times(q, z), r)
        return r, _solve(root, d)

    r, x = over_matrices(solve)(root, q, f, g, spans)
    return r, x


def solve_augmented_without_q(a: Array, d: Array, root: Root, g: Array) -> tuple[Array, Array]:
    """(r, x) for f = 0: the semi-normal equations, B^H B x = -g, and r = -A D^-1 x.

    For f = 0 they are as accurate as Q would be: C. C. Paige, "An error analysis of a method for
    solving matrix equations", Mathematics of Computation 27 (1973). For f != 0 they are not.
    """

    def solve(a: Array, d: Array, root: Root, g: Array) -> tuple[Array, Array]:
        x = -_solve(root, _solve_adjoint(root, g))
        return -_times(a, d, x), x

    r, x = over_matrices(solve)(a, d, root, g)
    return r, x


def near_one(g: Array, d: Array) -> tuple[Array, Callable[[Array], Array]]:
    """D^-1 G (..., n, nrhs) in units, and what brings the solution for it back.

    Where A is near the largest number D^-1 G is near the smallest one, and loses digits.
    """
    of_d = middle(d)
    g = divided(g, beside_one(d, of_d))
    size = units_of_columns(g)
    half = unit(jnp.sqrt(magnitudes(size)) / jnp.sqrt(magnitudes(of_d))).astype(g.dtype)
    other = divided(divided(size, half), of_d)  # size / of_d may be out of range
    return divided(g, size), lambda x: x * half * other


def beside_one(d: Array, unit: Array) -> Array:
    """D in a unit, to divide by. XLA would multiply what is divided by the unit first.

    It does not see through the maximum, as it does through a barrier in a loop that it unrolls.
    """
    quotients = divided(d, unit).real
    return jnp.maximum(quotients, float(jnp.finfo(quotients.dtype).tiny)).astype(d.dtype)


# Products with A D^-1. Numbers of D^-1 x may be beyond the range of the type where A D^-1 x is not:
# so narrow factors are brought near one first, and d near its middle. A itself is read as it is.


def times(a: Array, d: Array, x: Array) -> Array:
    """A D^-1 X for a (..., m, n) and a narrow x (..., n, nrhs)."""
    y: Array = over_matrices(_times)(a, d, x)
    return y


def adjoint_times(a: Array, d: Array, r: Array) -> Array:
    """D^-1 A^H R for a (..., m, n) and a narrow r (..., m, nrhs)."""

    def product(a: Array, d: Array, r: Array) -> Array:
        size = column_units(r)[None]
        projected = project(a, divided(r, size.astype(r.dtype)))
        return times_all(projected, size, _inverse(d))

    y: Array = over_matrices(product)(a, d, r)
    return y


def product_over(left: Array, d: Array, right: Array, *, as_adjoint: bool) -> Array:
    """L R^H D^-1 for narrow left (..., m, p) and right (..., n, p), or the adjoint of that.

    What L leaves out is left out though R be infinite there; dL, where L is zero, is not.
    """
    largest = jnp.max(magnitudes(left), axis=-2, keepdims=True)
    size = unit(largest)
    right = times_all(right, size, _inverse(d))
    right = jnp.where((largest == 0) & ~jnp.isfinite(right), 0, right)
    x, y = materialized((divided(left, size.astype(left.dtype)), right))
    return _outer(y, x) if as_adjoint else _outer(x, y)


def shifted(ridge: Array, d: Array, x: Array) -> Array:
    """Ridge D^-2 X for ridge (..., 1, 1), real, and a narrow x (..., n, nrhs); linear in ridge."""
    of_d = middle(d)
    e = beside_one(d, of_d)
    x = divided(x, e)
    size = _sizes(x, of_d)
    of_user = unit(magnitudes(divided(size, of_d))).astype(x.dtype)  # of_d^2 may be out of range
    return divided(divided(x, size), e) * (divided(ridge.astype(x.dtype), of_d) * of_user)


def minus_ridge_times(ridge: Array, d: Array, y: Array) -> Array:
    """-Ridge D^-1 Y for ridge (..., 1, 1), real, and a narrow y (..., n, nrhs)."""
    size = unit(ridge)
    near = -divided(ridge, size).astype(y.dtype) * y
    return times_all(near, size, _inverse(d))


def inner_product(x: Array, y: Array, d: Array) -> Array:
    """Re sum conj(X) D^-2 Y (..., 1, 1) for narrow x and y (..., n, nrhs)."""
    of_d = middle(d)
    e = beside_one(d, of_d)
    x, y = divided(x, e), divided(y, e)
    of_x, of_y = _sizes(x, of_d), _sizes(y, of_d)
    products = jnp.conj(divided(x, of_x)) * divided(y, of_y)
    sums = jnp.sum(products.real, axis=-2, keepdims=True)
    least = float(jnp.finfo(sums.dtype).tiny)
    of_d = of_d.real
    of_user = jnp.clip(of_y.real / of_d, least, 1 / least)  # beyond it where X is zero
    return jnp.sum(times_all(sums, of_x.real, of_user, 1 / of_d), axis=-1, keepdims=True)


def _inverse(d: Array) -> Array:
    """D^-1, real. D's tangent would be zeros, but beside a factor 1 / d^2 out of range."""
    return 1 / lax.stop_gradient(d).real


def _sizes(x: Array, of_zero: Array) -> Array:
    """The units of the columns of X; given ones for what is zero, as its derivative is not."""
    largest = jnp.max(magnitudes(x), axis=-2, keepdims=True)
    return jnp.where(largest == 0, of_zero, units_of_columns(x))


def times_all(x: Array, a: Array, b: ArrayLike, c: ArrayLike = 1.0) -> Array:
    """X times three positive factors: nothing on the way is out of the range of X or the product.

    Of the factors, of which two may be any, the least and the largest go first, as one.
    """
    least, most = jnp.minimum(jnp.minimum(a, b), c), jnp.maximum(jnp.maximum(a, b), c)
    between = jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))
    return x * (least * most).astype(x.dtype) * between.astype(x.dtype)


def middle(d: Array, axis: int = -2) -> Array:
    """The unit in the middle of d's."""
    units = magnitudes(d)
    most, least = (f(units, axis=axis, keepdims=True) for f in (jnp.max, jnp.min))
    return unit(jnp.sqrt(most) * jnp.sqrt(least)).astype(d.dtype)


_WRITTEN_OUT = 4  # columns


def _outer(x: Array, y: Array) -> Array:
    """X Y^H for narrow x (..., m, p) and y (..., n, p).

    That of a column or two is written out: of a batch, such products as dots are a loop over calls.
    """
    if not are_known(x.shape[-1]) or not 0 < x.shape[-1] <= _WRITTEN_OUT:
        return products.matmul(x, products.adjoint(y))
    columns, rows = x[..., :, None, :], jnp.conj(y)[..., None, :, :]
    return total(columns[..., i] * rows[..., i] for i in range(x.shape[-1]))


def _times(a: Array, d: Array, x: Array) -> Array:
    """Of one matrix or, with the batch innermost, of many small ones."""
    size = column_units(x)[None]
    of_d = middle(d, axis=0)
    measured = divided(divided(x, size.astype(x.dtype)), beside_one(d, of_d))
    return times_all(over_columns(matmul)(a, measured), size, _inverse(of_d))
