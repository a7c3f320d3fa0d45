"""From a public function's arguments to its factors: the part that qr, lq, rq and ql share.

LQ, QL and RQ are QR seen in a mirror: of the transpose, of the columns in reverse order, of both.
Transposing and reversing are linear, so none of them needs a rule of its own: QR's takes and gives
what the mirror shows. (No conjugation is needed: A^T = Q' R' gives A = R'^T Q'^T.)
"""

import dataclasses
import functools
from typing import Any, Literal, TypedDict

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import checkify
from jax.typing import ArrayLike

from jaxqr import _forward
from jaxqr._arguments import as_matrices, compute_dtype, one_of, result_dtype
from jaxqr._autodiff import Arrays, MaybeArrays, differentiated
from jaxqr._forward import METHODS
from jaxqr._linalg.batching import over_matrices
from jaxqr._linalg.phases import with_positive_diagonal
from jaxqr._rules import partial_qr as _rules

Method = Literal["auto", "householder", "batched", "cholesky"]
_PIVOTING_HELPS = " jaxqr.pivoted_qr takes them in an order of its own."


class Options(TypedDict, total=False):
    """The keywords that all factorizations share."""

    forward_mode: bool
    positive_diagonal: bool
    check_rank: bool
    method: Method


@dataclasses.dataclass(frozen=True)
class Mirror:
    """How a relative of QR is read off the QR factorization of what the mirror shows."""

    transposed: bool
    reversed: bool

    @property
    def triangle(self) -> str:
        """The triangular factor's name."""
        return "l" if self.transposed != self.reversed else "r"

    @property
    def name(self) -> str:
        """The public function's name: the factors in their order."""
        return f"{self.triangle}q" if self.transposed else f"q{self.triangle}"

    @property
    def across(self) -> tuple[str, str]:
        """What the rows and the columns in the mirror are of the matrix."""
        return ("columns", "rows") if self.transposed else ("rows", "columns")

    @property
    def line(self) -> str:
        """What the orthonormal factor's vectors are made from."""
        return "row" if self.transposed else "column"

    def of(self, a: Array) -> Array:
        """What is to be factored as Q R, or Q from the orthonormal factor."""
        a = a.mT if self.transposed else a
        return jnp.flip(a, -1) if self.reversed else a

    def q(self, q: Array) -> Array:
        """The orthonormal factor from Q, or the matrix from what was factored."""
        q = jnp.flip(q, -1) if self.reversed else q
        return q.mT if self.transposed else q

    def r(self, r: Array) -> Array:
        """The triangular factor from R, or R from the triangular factor."""
        r = jnp.flip(r, (-2, -1)) if self.reversed else r
        return r.mT if self.transposed else r

    def order(self, q: Any, r: Any) -> tuple[Any, Any]:
        """The factors in the order in which their product is the matrix."""
        return (r, q) if self.transposed else (q, r)


@dataclasses.dataclass(frozen=True)
class QR:
    """The QR factorization in a mirror, with its derivative; mode is "reduced", "complete" or "r".

    The orthonormal factor comes first whatever the mirror. What comes in and what goes out is as
    the user has it, and turned here: a cotangent that is turned on its way here is a copy.
    """

    mirror: Mirror
    mode: str
    positive_diagonal: bool
    method: str

    def forward(self, a: Array) -> Arrays:
        """(q, r), or (r,)."""
        factors = _forward.qr(self.mirror.of(a), self.mode, self.method)
        return self._out(with_positive_diagonal(*factors) if self.positive_diagonal else factors)

    def residuals(self, args: Arrays, outputs: Arrays) -> Arrays:
        """(q, r): even for wide input, where Y = Q V. Or (a, r): Q is never formed."""
        *_, r = outputs
        first = args if self.mode == "r" else outputs
        return self.mirror.of(first[0]), self.mirror.r(r)

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        """(dq, dr), or (dr,)."""
        (da,) = tangents
        assert da is not None
        da = self.mirror.of(da)
        if self.mode == "r":
            a, r = residuals
            return (self.mirror.r(over_matrices(_rules.pushforward_r)(_leading(a), r, None, da)),)
        q, r = residuals
        return self._out(over_matrices(_rules.pushforward)(q, r, None, da))

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Arrays:
        """(a_bar,)."""
        *_, r_bar = cotangents
        r_bar = None if r_bar is None else self.mirror.r(r_bar)
        if self.mode == "r":
            a, r = residuals
            if r_bar is None:
                a_bar = jnp.zeros_like(a)
            else:
                a_bar = over_matrices(_rules.pullback_r)(_leading(a), r, None, r_bar)
        else:
            q, r = residuals
            q_bar = None if cotangents[0] is None else self.mirror.of(cotangents[0])
            a_bar = over_matrices(_rules.pullback)(q, r, None, q_bar, r_bar)
        return (self.mirror.q(a_bar),)

    def _out(self, factors: Arrays) -> Arrays:
        *q, r = factors
        return *(self.mirror.q(x) for x in q), self.mirror.r(r)


def _leading(a: Array) -> Array:
    return a[..., : min(a.shape[-2:])]


def factorize(
    mirror: Mirror,
    a: ArrayLike,
    *,
    mode: str,
    forward_mode: bool,
    positive_diagonal: bool,
    check_rank: bool,
    method: str,
) -> Any:
    """The body of qr, lq, rq and ql."""
    a = as_matrices(mirror.name, "a", a)
    one_of(mirror.name, "mode", mode, ("reduced", "complete", mirror.triangle))
    one_of(mirror.name, "method", method, METHODS)
    shape = a.mT.shape if mirror.transposed else a.shape
    needs = _forward.refusal(shape, mode, method, mirror.across)
    if needs is not None:
        raise ValueError(
            f'{mirror.name} expects a to have {needs}, for method "{method}". Got shape {a.shape} '
            f'and mode "{mode}"; method "auto" takes any.'
        )
    factors = _factors(
        a,
        mirror=mirror,
        mode="r" if mode == mirror.triangle else mode,
        forward_mode=forward_mode,
        positive_diagonal=positive_diagonal,
        method=method,
    )
    if check_rank:
        r = mirror.r(factors[-1])  # the mirror image of the mirror image
        lost, matrix, at = first_dependent(r)
        last = a.shape[-1 - mirror.transposed] - 1
        at = last - at if mirror.reversed else at
        require_rank(mirror.name, mirror.line, a, lost, matrix, at, hint=_PIVOTING_HELPS)
    return factors[0] if len(factors) == 1 else mirror.order(*factors)


@functools.partial(
    jax.jit, static_argnames=("mirror", "mode", "forward_mode", "positive_diagonal", "method")
)
def _factors(
    a: Array,
    *,
    mirror: Mirror,
    mode: str,
    forward_mode: bool,
    positive_diagonal: bool,
    method: str,
) -> Arrays:
    function = differentiated(QR(mirror, mode, positive_diagonal, method), forward_mode)
    factors = function(a.astype(compute_dtype(a.dtype)))
    return tuple(x.astype(result_dtype(a.dtype)) for x in factors)


def first_dependent(r: Array) -> tuple[Array, Array, Array]:
    """Whether R (..., k, n) has lost rank anywhere in the batch; the first matrix and column where.

    Column j has lost it where |r_jj| <= max(k, n) * eps * ||r_j||: it depends on those before it.
    """
    r = jax.lax.stop_gradient(r).astype(compute_dtype(r.dtype))
    rows, columns = r.shape[-2:]
    k = min(rows, columns)
    if r.size == 0:
        return jnp.asarray(False), jnp.asarray(0), jnp.asarray(0)
    diagonal = jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1))
    norms = jnp.linalg.norm(r[..., :k], axis=-2)
    tolerance = max(rows, columns) * float(jnp.finfo(r.dtype).eps)
    dependent = (diagonal <= tolerance * norms).reshape(-1, k)
    matrix = jnp.argmax(dependent.any(axis=1))
    return dependent.any(), matrix, jnp.argmax(dependent[matrix])


def require_rank(
    caller: str, line: str, a: Array, lost: Array, matrix: Array, at: Array, hint: str = ""
) -> None:
    """A checkify check that a has not lost rank at its line (row or column) ``at``."""
    where = f"{line} {{at}}" + (" of matrix {matrix} of the batch" if a.ndim > 2 else "")
    checkify.check(
        ~lost,
        f"{caller} expects a to have full rank, for its derivative to exist. Rank is lost at "
        f"{where}, which depends on the {line}s before it.{hint}",
        at=at,
        matrix=matrix,
    )
