"""QR, and how its relatives are read off it.

LQ, QL and RQ are QR seen in a mirror: of the transpose, of the columns in reverse order, of both.
Transposing and reversing are linear, so none of them needs a rule of its own: QR's takes and gives
what the mirror shows. (No conjugation is needed: A^T = Q' R' gives A = R'^T Q'^T.)
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Generic, Literal, Protocol, TypeVar, Unpack, cast, overload

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxqr import _forward
from jaxqr._applied import ByReflectors
from jaxqr._arguments import (
    Method,
    Options,
    as_matrices,
    by_name,
    compute_dtype,
    first_lost_rank,
    flags,
    known_mode,
    one_of,
    require_rank,
    result_dtype,
)
from jaxqr._autodiff import Arrays, MaybeArrays, Wiring, constant, differentiated
from jaxqr._forward import METHODS
from jaxqr._linalg.batching import over_leading_axes, over_matrices, smaller
from jaxqr._linalg.correcting import unless_any
from jaxqr._linalg.dependence import dependent_columns, marks
from jaxqr._linalg.phases import with_positive_diagonal
from jaxqr._rules import partial_qr, taylor

# The mode in which the triangular factor comes alone.
Alone = TypeVar("Alone", Literal["r"], Literal["l"], contravariant=True)


@dataclasses.dataclass(frozen=True)
class Mirror(Generic[Alone]):
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

    mirror: Mirror[Any]
    mode: str
    positive_diagonal: bool
    method: str
    dependent: str | None
    forward_mode: bool

    @property
    def caller(self) -> str:
        """The public function."""
        return self.mirror.name

    def forward(self, a: Array) -> Arrays:
        """(q, r), or (r,)."""
        factors = _forward.qr(self.mirror.of(a), self.mode, self.method)
        return self._out(with_positive_diagonal(*factors) if self.positive_diagonal else factors)

    def before_derivative(self) -> "QR":
        """The same, by a method that leaves the cores to the derivative's products."""
        method = _forward.BEFORE_PRODUCTS if self.method == "auto" else self.method
        return dataclasses.replace(self, method=method)

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
            push = _where_dependent(_push_r, self._by_reflectors.push_held_r)
            return (self.mirror.r(push(a, r, da)),)
        q, r = residuals
        push = over_matrices(partial_qr.pushforward)
        if self.dependent == "hold":
            push = _where_dependent(push, _push_held)
        return self._out(push(q, r, da))

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Arrays:
        """(a_bar,)."""
        *_, r_bar = cotangents
        r_bar = None if r_bar is None else self.mirror.r(r_bar)
        if self.mode == "r":
            a, r = residuals
            if r_bar is None:
                return (self.mirror.q(jnp.zeros_like(a)),)
            pull = _where_dependent(_pull_r, self._by_reflectors.pull_held_r)
            return (self.mirror.q(pull(a, r, r_bar)),)
        q, r = residuals
        q_bar = None if cotangents[0] is None else self.mirror.of(cotangents[0])
        pull = over_matrices(partial_qr.pullback)
        if self.dependent == "hold":
            pull = _where_dependent(pull, _pull_held)
        return (self.mirror.q(pull(q, r, q_bar, r_bar)),)

    def taylor(self, args: list[Arrays], wire: Wiring) -> list[Arrays]:
        """The series of (q, r), or of (r,): of the factors in reduced mode."""
        mode = "reduced" if self.mode == "r" else self.mode
        q0, r0 = wire(dataclasses.replace(self, mode=mode))(*args[0])
        a = self.mirror.of(taylor.stacked([a for (a,) in args]))
        expand = over_leading_axes(functools.partial(taylor.qr, k=smaller(*a.shape[-2:])))
        series = expand(self.mirror.of(q0), self.mirror.r(r0), a)
        terms = zip(*map(taylor.unstacked, series), strict=True)
        return [self._out((r,) if self.mode == "r" else (q, r)) for q, r in terms]

    def recovered(self, residuals: list[Arrays]) -> tuple[list[Arrays], Arrays | None]:
        """The series of (a,), and the factors, where Q is among them."""
        first, rs = map(list, zip(*residuals, strict=True))
        if self.mode == "r":
            return [(self.mirror.q(a),) for a in first], None
        a = taylor.product(taylor.stacked(first), taylor.stacked(rs))
        return [(self.mirror.q(x),) for x in taylor.unstacked(a)], self._out(residuals[0])

    @property
    def _by_reflectors(self) -> ByReflectors:
        """What applies the Q of R alone."""
        return ByReflectors(self.method, self.forward_mode, self.caller)

    def _out(self, factors: Arrays) -> Arrays:
        *q, r = factors
        return *(self.mirror.q(x) for x in q), self.mirror.r(r)


def _pull_r(a: Array, r: Array, r_bar: Array) -> Any:
    return over_matrices(partial_qr.pullback_r)(_leading(a), r, r_bar)


def _push_r(a: Array, r: Array, da: Array) -> Any:
    return over_matrices(partial_qr.pushforward_r)(_leading(a), r, da)


def _pull_held(q: Array, r: Array, *bars: Array) -> Any:
    return over_leading_axes(partial_qr.pullback_held)(q, r, marks(r), *bars)


def _push_held(q: Array, r: Array, da: Array) -> Any:
    return over_leading_axes(partial_qr.pushforward_held)(q, r, marks(r), da)


def _where_dependent(usual: Callable[..., Any], held: Callable[..., Any]) -> Callable[..., Any]:
    """USUAL, of (first, r, ...), and ``held`` for each matrix with dependent columns."""

    def needed(_: Array, r: Array, *rest: Array) -> Array:
        return dependent_columns(r).any(axis=-1)

    return unless_any(needed, usual, held)


def _leading(a: Array) -> Array:
    return a[..., : smaller(*a.shape[-2:])]


@functools.partial(jax.jit, static_argnames="rule")
def _factors(a: Array, *, rule: QR) -> Arrays:
    factors = differentiated(rule, rule.forward_mode)(a.astype(compute_dtype(a.dtype)))
    return tuple(x.astype(result_dtype(a.dtype)) for x in factors)


# The public functions. They differ in their mirrors and in what is written about them.


class MirroredOptions(Options, total=False):
    """The keywords of qr, lq, rq and ql."""

    method: Method
    dependent: Literal["hold"] | None


class Factorize(Protocol[Alone]):
    """A factorization as its caller sees it: two factors, or the triangular one alone."""

    @overload
    def __call__(
        self,
        a: ArrayLike,
        *,
        mode: Literal["reduced", "complete"] = ...,
        **options: Unpack[MirroredOptions],
    ) -> tuple[Array, Array]: ...
    @overload
    def __call__(
        self, a: ArrayLike, *, mode: Alone, **options: Unpack[MirroredOptions]
    ) -> Array: ...


def seen_in(mirror: Mirror[Alone]) -> Callable[[Callable[..., None]], Factorize[Alone]]:
    """The factorization that a mirror shows, with the name and docstring of what is decorated."""

    def decorate(described: Callable[..., None]) -> Factorize[Alone]:
        def factorize(
            a: ArrayLike,
            *,
            mode: str = "reduced",
            forward_mode: bool = False,
            positive_diagonal: bool = False,
            check_rank: bool = False,
            method: Method = "auto",
            dependent: Literal["hold"] | None = None,
        ) -> tuple[Array, Array] | Array:
            a = as_matrices(mirror.name, "a", a)
            _check_modes(mirror, a, mode, method)
            flags(
                mirror.name,
                forward_mode=forward_mode,
                positive_diagonal=positive_diagonal,
                check_rank=check_rank,
            )
            if dependent is not None:
                one_of(mirror.name, "dependent", dependent, ("hold",), "None")
            alone = mode == mirror.triangle
            rule = QR(
                mirror,
                "r" if alone else mode,
                positive_diagonal,
                method,
                dependent,
                forward_mode,
            )
            factors = _factors(a, rule=rule)
            if check_rank:
                _check_rank(mirror, a, factors[-1])
            return factors[0] if alone else mirror.order(*factors)

        # What help() shows: the options one by one, and this function's modes.
        shown = inspect.signature(factorize)
        modes = inspect.signature(described).parameters["mode"]
        shown = shown.replace(parameters=list({**shown.parameters, "mode": modes}.values()))
        public = functools.update_wrapper(factorize, described)
        public.__signature__ = shown  # type: ignore[attr-defined]
        return cast(Factorize[Alone], by_name(public))

    return decorate


def _check_modes(mirror: Mirror[Any], a: Array, mode: str, method: str) -> None:
    known_mode(mirror.name, mode, mirror.triangle)
    one_of(mirror.name, "method", method, METHODS)
    shape = a.mT.shape if mirror.transposed else a.shape
    needs = _forward.refusal(shape, mode, method, mirror.across)
    if needs is not None:
        raise ValueError(
            f'{mirror.name} expects a to have {needs}, for method "{method}". Got shape {a.shape} '
            f'and mode "{mode}"; method "auto" takes any.'
        )


def _check_rank(mirror: Mirror[Any], a: Array, triangle: Array) -> None:
    r = mirror.r(triangle)  # the mirror image of the mirror image
    lost, matrix, at = constant(first_lost_rank, r)
    last = a.shape[-1 - mirror.transposed] - 1
    at = last - at if mirror.reversed else at
    hint = " jaxqr.pivoted_qr takes them in an order of its own."
    lines = mirror.line, "after it" if mirror.reversed else "before it"
    require_rank(mirror.name, lines, a, (lost, matrix, at), hint)


_MIRROR: Mirror[Literal["r"]] = Mirror(transposed=False, reversed=False)


@seen_in(_MIRROR)
def qr(
    a: ArrayLike,
    *,
    mode: Literal["reduced", "complete", "r"] = "reduced",
    **options: Unpack[MirroredOptions],
) -> None:
    """The QR factorization A = Q R, differentiable for every shape.

    Args:
        a: (..., m, n), real or complex. float32, float64, complex64 and complex128 are factored as
            they are; smaller floats in float32; integers and booleans as ``jnp.linalg`` promotes
            them. k stands for min(m, n).
        mode: "reduced" for Q (..., m, k) and R (..., k, n); "complete" for Q (..., m, m) and
            R (..., m, n); "r" for R (..., k, n) alone, and then Q is never formed.
        forward_mode: False makes a ``jax.custom_vjp``, for reverse mode. True makes a function that
            ``jax.jvp``, ``jax.jacfwd``, ``jax.linearize`` and ``jax.hessian`` take too.
        positive_diagonal: True makes the diagonal of R nonnegative, and so the factorization
            unique. By default its signs are the algorithm's.
        check_rank: True adds a ``jax.experimental.checkify`` check that names the first column that
            depends on those before it (``rq`` and ``ql``, which begin at the end: after it).
        method: the algorithm. "householder" is that of ``jnp.linalg.qr``; "batched", for many small
            matrices of at most 24 columns or rows, goes through all of them at once; "cholesky",
            for deep ones, is CholeskyQR2 (for R alone, of blocks of columns), verified, with
            Householder's algorithm where it fails; "auto" chooses by shape, type, platform and
            batch, that of leading axes as well as that of ``vmap``, and factors of a wide matrix
            the leading block alone: the rest is a product. Where a derivative follows, a large real
            matrix goes by panels that leave the cores to its products: its factors then differ from
            those of the function alone by rounding, and so does the sign of a column whose pivot is
            zero to rounding, without ``positive_diagonal``.
        dependent: "hold" takes the derivative that does not let dependent columns turn Q, as mode
            "r" always does. It is right for losses of the span of Q, and for those of Q R whose
            gradient with respect to Q R lies in that span (always for m <= n); what lies outside it
            in dependent columns is not seen. By default the gradient is not to be used there.

    Returns:
        ``(q, r)``, or ``r`` in mode "r", in the type of ``a``. Q has orthonormal columns, R is
        upper triangular with a real diagonal.

    Raises:
        ValueError: a has fewer than two axes; an unknown mode or method; a method that cannot take
            this shape.
        TypeError: a is not an array of numbers; an option is not of its type.

    The derivative is that of Roberts and Roberts (arXiv:2009.10071), eqs. 3, 9, 10, 21 and 26.
    It exists where the leading min(m, n) columns are independent; elsewhere the factors are right
    and the gradient is not finite, or finite and meaningless where rounding hides the dependence:
    see ``check_rank`` and :func:`jaxqr.pivoted_qr`. In mode "r" dependent columns do not turn Q, so
    that every loss of R^H R has its gradient at every rank; a loss without a derivative gets a
    finite number there. In complete mode A fixes the columns of Q beyond the n-th only up to a
    rotation, and their derivative is the one that does not rotate them. The factors cost about
    4 m n k operations, the pullback 6 m k^2, or 2 m k n in mode "r".

    >>> import jax, jax.numpy as jnp, jaxqr, numpy as np
    >>> a = jnp.array([[3.0, 1.0], [4.0, 2.0], [0.0, 3.0]])
    >>> q, r = jaxqr.qr(a, positive_diagonal=True)
    >>> bool(jnp.allclose(q @ r, a, atol=1e-5))
    True
    >>> length = lambda a: jaxqr.qr(a, mode="r", positive_diagonal=True)[0, 0]
    >>> print(np.asarray(jax.grad(length)(a)).round(4))
    [[0.6 0. ]
     [0.8 0. ]
     [0.  0. ]]
    """
