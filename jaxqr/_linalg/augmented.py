"""The augmented system of least squares, solved by the factors of its matrix.

For A (..., m, n) and lambda >= 0, the augmented system of least squares is

    r + A x          = f
    A^H r - lambda x = g

With g = 0, x minimizes ||A x - f||^2 + lambda ||x||^2 and r is the residual. With f = 0, r is the
shortest vector with A^H r = g (for lambda = 0). Where A has lost rank, x is the shortest solution
and g counts by its projection on the row space of A: (r, x) is the system's pseudoinverse applied
to (f, g).

A is held as Q B, Q with orthonormal columns, and B by its *root*: ``(u,)`` where A has full column
rank and B = U is upper triangular, or ``(t, w)``, where B = T^H W^H, T upper triangular, W with
orthonormal columns: a complete orthogonal decomposition. With lambda, Q B is [A; sqrt(lambda) I],
and of Q the first m rows suffice. The normal equations are never formed.
"""

from jax import Array

from jaxqr._linalg.algebra import adjoint, matmul, project, solve_adjoint_left, solve_left
from jaxqr._linalg.batching import over_matrices

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


def solve_augmented(root: Root, q: Array, f: Array | None, g: Array | None) -> tuple[Array, Array]:
    """(r, x) from the right-hand sides f (..., m, nrhs) and g (..., n, nrhs); None is zero.

    Björck, "Solving linear least squares problems by Gram-Schmidt orthogonalization" (1967) and
    "Numerical Methods for Least Squares Problems" (1996), section 2.4.
    """

    def solve(root: Root, q: Array, f: Array | None, g: Array | None) -> tuple[Array, Array]:
        d = None if f is None else project(q, f)
        if g is not None:
            z = _solve_adjoint(root, g)
            d = -z if d is None else d - z
        assert d is not None
        fitted = matmul(q, d)
        return -fitted if f is None else f - fitted, _solve(root, d)

    r, x = over_matrices(solve)(root, q, f, g)
    return r, x


def solve_augmented_without_q(a: Array, root: Root, g: Array) -> tuple[Array, Array]:
    """(r, x) for f = 0: the semi-normal equations, B^H B x = -g, and r = -A x.

    For f = 0 they are as accurate as Q would be: C. C. Paige, "An error analysis of a method for
    solving matrix equations", Mathematics of Computation 27 (1973). For f != 0 they are not.
    """

    def solve(a: Array, root: Root, g: Array) -> tuple[Array, Array]:
        x = -_solve(root, _solve_adjoint(root, g))
        return -matmul(a, x), x

    r, x = over_matrices(solve)(a, root, g)
    return r, x
