"""Solvers for lineax, and so for Optimistix, Diffrax and what else takes a lineax solver.

``pip install '.[lineax]'``, from a checkout, installs what this module needs. Pass a solver where
lineax takes one: ``lineax.linear_solve(operator, vector, solver)``, or
``optimistix.LevenbergMarquardt(rtol, atol, linear_solver=solver)``.

* :class:`QR` takes operators of full rank, square, wide or deep.
* :class:`PivotedQR` takes operators of any rank, and gives the shortest least-squares solution, as
  ``lineax.SVD`` does, without singular values.

Operators on pytrees and operators given as functions are made into a matrix (``as_matrix``).
lineax has a derivative of its own, in both modes and of any order, in which it applies A^+, A^+T
and their conjugates by the same factors: nothing is factored twice, and no rule of jaxqr's plays a
part. Factors are computed as :func:`jaxqr.qr` and :func:`jaxqr.lstsq` compute theirs, batches by
``vmap`` of many small operators among them.
"""

from typing import Any, NamedTuple

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import lineax as lx
from jax import Array
from lineax.internal import (
    PackedStructures,
    pack_structures,
    ravel_vector,
    transpose_packed_structures,
    unravel_solution,
)

from jaxqr._arguments import compute_dtype, nonnegative, one_of
from jaxqr._forward.least_squares import factor, factor_for_few_products
from jaxqr._linalg.augmented import Root, solve_augmented
from jaxqr._linalg.dependence import ROUNDING
from jaxqr._linalg.products import adjoint
from jaxqr._linalg.scaling import divided

__all__ = ["QR", "PivotedQR"]


class Factored(NamedTuple):
    """An operator's matrix A, or its adjoint, as Q times the matrix that ``root`` stands for."""

    root: Root
    d: Array
    q: Any  # or its reflectors
    of_adjoint: Any  # whether A^H is what was factored: a static bool
    structures: PackedStructures


class _Solver(lx.AbstractLinearSolver):
    """What the solvers share: all but how the matrix is factored."""

    def compute(
        self, state: Factored, vector: Any, options: dict[str, Any]
    ) -> tuple[Any, lx.RESULTS, dict[str, Any]]:
        """A^+ applied to a vector (a pytree), lineax's result code, and what else is known."""
        b = ravel_vector(vector, state.structures)[:, None].astype(state.d.dtype)
        if state.of_adjoint.value:  # with f = 0, the augmented system's r is the shortest solution
            x, _ = solve_augmented(state.root, state.q, None, divided(b, state.d))
        else:
            _, x = solve_augmented(state.root, state.q, b, None)
            x = divided(x, state.d)
        return unravel_solution(x[:, 0], state.structures), lx.RESULTS.successful, self._also(state)

    def _also(self, state: Factored) -> dict[str, Any]:
        return {}

    def transpose(
        self, state: Factored, options: dict[str, Any]
    ) -> tuple[Factored, dict[str, Any]]:
        """The state for A^T, which is the adjoint of conj(A)."""
        state, options = self.conj(state, options)
        return state._replace(
            of_adjoint=eqxi.Static(not state.of_adjoint.value),
            structures=transpose_packed_structures(state.structures),
        ), options

    def conj(self, state: Factored, options: dict[str, Any]) -> tuple[Factored, dict[str, Any]]:
        """The state for conj(A)."""
        root, q = jax.tree.map(jnp.conj, (state.root, state.q))
        return state._replace(root=root, q=q), {}


def _matrix(operator: lx.AbstractLinearOperator) -> Array:
    matrix: Array = operator.as_matrix()
    return jax.lax.stop_gradient(matrix.astype(compute_dtype(matrix.dtype)))


class QR(_Solver):
    """QR for lineax: least squares of deep operators, minimum norm of wide ones, of full rank.

    It takes the place of ``lineax.QR()``. Without full rank the solution is not finite, and lineax
    says so; or, where rounding hides it, finite and without a correct digit. :class:`PivotedQR`
    finds the rank.

    Cost: the factorization of :func:`jaxqr.qr`, at most 4 m n^2 operations for m >= n, once for an
    operator; then 4 m n + n^2 for each vector.

    >>> import jax.numpy as jnp, lineax as lx, jaxqr.lineax
    >>> a = lx.MatrixLinearOperator(jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]))
    >>> b = jnp.array([0.0, 1.0, 5.0])
    >>> print(lx.linear_solve(a, b, jaxqr.lineax.QR()).value.round(4))
    [-0.5  2.5]
    """

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Factored:
        """The factors of an operator, of its adjoint where it has fewer rows than columns."""
        a = _matrix(operator)
        wide = a.shape[0] < a.shape[1]
        factors = factor_for_few_products(adjoint(a) if wide else a)
        return Factored(*factors, eqxi.Static(wide), pack_structures(operator))

    def assume_full_rank(self) -> bool:
        """True: lineax may leave out what vanishes at full rank."""
        return True


class PivotedQR(_Solver):
    """Column-pivoted QR for lineax: the shortest least-squares solution for operators of any rank.

    It takes the place of ``lineax.SVD()``, at a fraction of its cost. The rank is the number of
    diagonal elements of the pivoted R that exceed ``rcond`` times the first, and is among the
    solution's ``stats`` as "rank". Under ``vmap`` each operator has its own. Derivatives are those
    along operators of the same rank (Golub and Pereyra's): the solution jumps where it changes.

    Attributes:
        rcond: a number from 0 to 1, which may be traced, or None for 8 times machine epsilon, as
            ``jaxqr.lstsq(rcond="auto")``.

    Cost: a complete orthogonal decomposition, two to three times that of :class:`QR`.

    Source: G. H. Golub and V. Pereyra, "The differentiation of pseudo-inverses and nonlinear least
    squares problems whose variables separate", SIAM J. Numer. Anal. 10 (1973).

    >>> import jax.numpy as jnp, lineax as lx, jaxqr.lineax
    >>> a = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    >>> twice = lx.MatrixLinearOperator(jnp.concatenate([a, a], axis=1))  # rank 2 of 4
    >>> solution = lx.linear_solve(twice, jnp.array([0.0, 1.0, 5.0]), jaxqr.lineax.PivotedQR())
    >>> print(solution.value.round(4), solution.stats["rank"])
    [-0.25  1.25 -0.25  1.25] 2
    """

    rcond: float | None = None

    def __check_init__(self) -> None:
        """Raises what ``jaxqr.lstsq`` does for such an rcond."""
        rcond: Any = self.rcond
        if isinstance(rcond, str | bool):
            one_of("PivotedQR", "rcond", rcond, (), "None", "a number in 0..1")
        if rcond is not None:
            nonnegative("PivotedQR", "rcond", rcond, most=1, scalar=True)

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Factored:
        """The factors of an operator, up to its rank."""
        a = _matrix(operator)
        if not a.size:  # its rank, which is 0, is full
            return QR().init(operator, options)
        rcond = ROUNDING * jnp.finfo(a.dtype).eps if self.rcond is None else self.rcond
        factors = factor(a, None, jnp.asarray(rcond, jnp.finfo(a.dtype).dtype))
        return Factored(*factors, eqxi.Static(False), pack_structures(operator))

    def _also(self, state: Factored) -> dict[str, Any]:
        # Beyond the rank, columns of Q are zero; what is not a number is not zero.
        q = jax.tree.leaves(state.q)[0]  # of an empty operator, it is within something else
        return {"rank": jnp.sum(jnp.any(q != 0, axis=0), dtype=jnp.int32)}

    def assume_full_rank(self) -> bool:
        """False: lineax's derivative is to hold at any rank."""
        return False
