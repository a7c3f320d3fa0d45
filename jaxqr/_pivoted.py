"""QR with column pivoting."""

import dataclasses
import functools
import operator
from typing import Any, Literal, SupportsIndex, Unpack, overload

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxqr._arguments import (
    Options,
    as_matrices,
    by_name,
    compute_dtype,
    first_lost_rank,
    flags,
    known_mode,
    nonnegative,
    one_of,
    require_rank,
    result_dtype,
)
from jaxqr._autodiff import Arrays, MaybeArrays, Wiring, constant, differentiated
from jaxqr._forward import pivoting
from jaxqr._forward.pivoting import take_columns
from jaxqr._linalg.batching import over_leading_axes, over_matrices, smaller
from jaxqr._linalg.phases import with_positive_diagonal
from jaxqr._rules import partial_qr, taylor


@dataclasses.dataclass(frozen=True)
class PivotedQR:
    """A[:, p] = Q R after k pivots, with its derivative; mode as in QR."""

    mode: str
    k: int
    positive_diagonal: bool
    method: str = "auto"
    caller = "pivoted_qr"

    def forward(self, a: Array, *chances: Array) -> Arrays:
        """(q, r, p), or (r, p)."""
        *factors, p = pivoting.pivoted_qr(a, self.mode, self.k, *chances, method=self.method)
        return *(with_positive_diagonal(*factors) if self.positive_diagonal else factors), p

    def residuals(self, args: Arrays, outputs: Arrays) -> Arrays:
        """The factors, and A where Q does not span it or is not formed."""
        (a,) = args
        return (*outputs, a) if self.mode == "r" or self._truncates(a) else outputs

    def _truncates(self, a: Array) -> bool:
        return bool(self.k != smaller(*a.shape[-2:]))

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        """(dq, dr), or (dr,): dB = dA[:, p]."""
        (da,) = tangents
        assert da is not None
        if self.mode == "r":
            r, p, a = residuals
            x, y = self._cut(a, p)
            return (over_matrices(partial_qr.pushforward_r)(x, r, take_columns(da, p), y),)
        q, r, p, *kept = residuals
        y = self._beyond(kept, p)
        dots: Arrays = over_matrices(partial_qr.pushforward)(q, r, take_columns(da, p), y)
        return dots

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Arrays:
        """(a_bar,): A-bar[:, p] = B-bar."""
        if self.mode == "r":
            r, p, a = residuals
            r_bar = cotangents[0]
            if r_bar is None:
                return (jnp.zeros_like(a),)
            x, y = self._cut(a, p)
            b_bar = over_matrices(partial_qr.pullback_r)(x, r, r_bar, y)
        else:
            q, r, p, *kept = residuals
            b_bar = over_matrices(partial_qr.pullback)(q, r, *cotangents[:2], self._beyond(kept, p))
        return (take_columns(b_bar, jnp.argsort(p, axis=-1)),)

    def taylor(self, args: list[Arrays], wire: Wiring) -> list[Arrays]:
        """The series of (q, r), or (r,), for the pivots p of the first term, which comes last."""
        mode = "reduced" if self.mode == "r" else self.mode
        q0, r0, p = wire(dataclasses.replace(self, mode=mode))(*args[0])
        b = taylor.stacked([take_columns(a, p) for a, *_ in args])
        expand = over_leading_axes(functools.partial(taylor.qr, k=self.k))
        qs, rs = map(taylor.unstacked, expand(q0, r0, b))
        terms = list(zip(rs, strict=True) if self.mode == "r" else zip(qs, rs, strict=True))
        return [(*terms[0], p), *terms[1:]]

    def recovered(self, residuals: list[Arrays]) -> tuple[list[Arrays], Arrays | None]:
        """The series of (a,), and the outputs, where Q is among them."""
        if self.mode == "r":
            return [(a,) for _, _, a in residuals], None
        outputs = residuals[0][:3]
        if len(residuals[0]) > 3:
            return [(a,) for *_, a in residuals], outputs
        qs, rs, (p, *_) = map(list, zip(*residuals, strict=True))
        b = taylor.product(taylor.stacked(qs), taylor.stacked(rs))
        back = jnp.argsort(p, axis=-1)
        return [(take_columns(x, back),) for x in taylor.unstacked(b)], outputs

    def _beyond(self, kept: list[Array], p: Array) -> Array | None:
        """The columns of B = A[:, p] beyond the k-th, where they are more than Q V."""
        return take_columns(kept[0], p[..., self.k :]) if kept else None

    def _cut(self, a: Array, p: Array) -> tuple[Array, Array | None]:
        """B = [X | Y]; Y is None where it is Q V."""
        x = take_columns(a, p[..., : self.k])
        return x, self._beyond([a], p) if self._truncates(a) else None


class RandomlyPivotedQR(PivotedQR):
    """Likewise; two more arguments, noise and temperature of the choice of pivots, are constant."""

    def residuals(self, args: Arrays, outputs: Arrays) -> Arrays:
        """As without chances, and these."""
        a, *chances = args
        return (*super().residuals((a,), outputs), *chances)

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        """As without chances."""
        return super().pushforward(residuals[:-2], tangents[:1])

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Any:
        """(a_bar, None, None)."""
        return *super().pullback(residuals[:-2], cotangents), None, None

    def recovered(self, residuals: list[Arrays]) -> tuple[list[Arrays], Arrays | None]:
        """The series of (a, noise, temperature), and the outputs, where Q is among them."""
        args, outputs = super().recovered([term[:-2] for term in residuals])
        chances = [term[-2:] for term in residuals]
        return [(a, *pair) for (a,), pair in zip(args, chances, strict=True)], outputs


class PivotedOptions(Options, total=False):
    """The keywords of pivoted_qr beside mode."""

    rank: SupportsIndex | None
    method: Literal["auto", "householder"]
    temperature: ArrayLike | None
    key: ArrayLike | None


@overload
def pivoted_qr(
    a: ArrayLike,
    *,
    mode: Literal["reduced", "complete"] = ...,
    **options: Unpack[PivotedOptions],
) -> tuple[Array, Array, Array]: ...
@overload
def pivoted_qr(
    a: ArrayLike, *, mode: Literal["r"], **options: Unpack[PivotedOptions]
) -> tuple[Array, Array]: ...
@by_name
def pivoted_qr(
    a: ArrayLike,
    *,
    mode: Literal["reduced", "complete", "r"] = "reduced",
    rank: SupportsIndex | None = None,
    forward_mode: bool = False,
    positive_diagonal: bool = False,
    check_rank: bool = False,
    method: Literal["auto", "householder"] = "auto",
    temperature: ArrayLike | None = None,
    key: ArrayLike | None = None,
) -> tuple[Array, Array, Array] | tuple[Array, Array]:
    """QR with column pivoting, A[:, p] = Q R, differentiable for every shape.

    In each step the column that adds most to those chosen so far comes next, so the diagonal of R
    does not increase in magnitude, and the leading block of R is well conditioned where A has full
    rank, whatever the order of A's own columns.

    Args:
        a: (..., m, n), real or complex, of any type that :func:`jaxqr.qr` takes; k stands for
            min(m, n), or for ``rank``.
        mode: "reduced" for Q (..., m, k) and R (..., k, n); "complete" for Q (..., m, m) and
            R (..., m, n); "r" for R (..., k, n) alone, and then no Q is kept.
        rank: a static integer in 1..min(m, n): stop after so many pivots. Q R is then an
            approximation of A[:, p] of that rank; the rest of p is in no particular order.
        forward_mode, positive_diagonal, check_rank: as in :func:`jaxqr.qr`.
        method: "householder" is Householder's algorithm, by LAPACK's geqp3 on a CPU and in plain
            XLA elsewhere; and Gram-Schmidt, twice, where ``rank`` is up to a tenth of min(m, n) and
            A has 4096 elements: k passes over A. "auto" is the same, but of matrices that are three
            times as deep as wide, and large enough, it is, on a CPU, the triangular factor by
            CholeskyQR2 that goes through it: up to four times as fast. Where columns are dependent
            A does, after all, and "householder" spares the attempt, a tenth to a third of the time.
            The diagonal of R is then positive.
        temperature: real and >= 0, may be traced: pivots at random, column i with a probability
            proportional to c_i^(1 / temperature), c_i the squared norm of what is left of it. At 1
            that is randomly pivoted QR, in proportion to squared norms; towards 0 it goes to the
            pivots of largest norm, and at 0 it takes them. Together with ``key``.
        key: a key of ``jax.random``. The matrices of a batch have chances of their own.

    Returns:
        ``(q, r, p)``, or ``(r, p)`` in mode "r": ``jnp.take(a, p, axis=-1)`` is ``q @ r`` (for one
        matrix; without ``rank``). p is int32 (..., n).

    Raises:
        ValueError: a has fewer than two axes; an unknown mode or method; rank outside
            1..min(m, n); rank together with mode "complete"; temperature without key or key
            without temperature; a temperature that is no scalar, or known to be negative or NaN;
            several keys.
        TypeError: a is not an array of numbers; rank is not an integer; temperature is complex;
            key is none of jax.random; an option is not of its type.

    The derivative is that of :func:`jaxqr.qr` at A[:, p] with p held fixed (Roberts and Roberts,
    arXiv:2009.10071, eqs. 3, 9, 10, 21 and 26). It exists where A has full rank, or at least rank
    k; between two columns of equal norm the choice of p jumps. Through the choice itself, of random
    pivots, goes the score-function gradient: see :func:`jaxqr.log_probability`. The cost is that
    of :func:`jaxqr.qr`; of the first few pivots 2 m n k operations, forward.

    Random pivots are those of Y. Chen, E. N. Epperly, J. A. Tropp and R. J. Webber, "Randomly
    pivoted Cholesky" (arXiv:2207.06503), there of A^H A, chosen by Gumbel's trick.

    >>> import jax, jax.numpy as jnp, jaxqr
    >>> a = jnp.array([[0.0, 2.0, 0.0], [0.0, 4.0, 3.0]])  # the leading block is singular
    >>> q, r, p = jaxqr.pivoted_qr(a)
    >>> p
    Array([1, 2, 0], dtype=int32)
    >>> bool(jnp.allclose(jnp.take(a, p, axis=-1), q @ r, atol=1e-5))
    True
    >>> loss = lambda factor: lambda a: abs(factor(a)[1]).sum()
    >>> bool(jnp.isfinite(jax.grad(loss(jaxqr.pivoted_qr))(a)).all())
    True
    >>> bool(jnp.isfinite(jax.grad(loss(jaxqr.qr))(a)).all())
    False
    """
    a = as_matrices("pivoted_qr", "a", a)
    known_mode("pivoted_qr", mode, "r")
    one_of("pivoted_qr", "method", method, ("auto", "householder"))
    flags(
        "pivoted_qr",
        forward_mode=forward_mode,
        positive_diagonal=positive_diagonal,
        check_rank=check_rank,
    )
    k = smaller(*a.shape[-2:]) if rank is None else _rank(rank, mode, a)
    chances = _chances(a, k, temperature, key)
    of = RandomlyPivotedQR if chances else PivotedQR
    rule = of(mode, k, positive_diagonal, method)
    *q, r, p = _factors(a, *chances, rule=rule, forward_mode=forward_mode)
    if check_rank:
        found = constant(_first_lost_column, r, p)
        require_rank("pivoted_qr", ("column", "taken before it"), a, found)
    return (*q, r, p)


def _first_lost_column(r: Array, p: Array) -> tuple[Array, Array, Array]:
    """As ``first_lost_rank``, the column by its number in A."""
    lost, matrix, pivot = first_lost_rank(r)
    column = p.reshape(-1, p.shape[-1])[matrix, pivot] if p.size else pivot
    return lost, matrix, column


def _rank(given: Any, mode: str, a: Array) -> int:
    """The argument as an int."""
    try:
        rank = operator.index(given)
    except TypeError:
        rank = None
    if rank is None or isinstance(given, bool):
        raise TypeError(
            f"pivoted_qr expects rank to be an int, known when it is traced. Got {given!r}."
        )
    largest = smaller(*a.shape[-2:])
    if not largest:
        raise ValueError(
            "pivoted_qr expects no rank where a is empty. Got a of shape "
            f"{a.shape} and rank {rank}."
        )
    if not 1 <= rank <= largest:
        raise ValueError(
            f"pivoted_qr expects rank to be in 1..{largest} for a of shape {a.shape}. Got {rank}."
        )
    if mode == "complete":
        raise ValueError(
            'pivoted_qr expects no rank in mode "complete", which completes Q to a square. '
            f"Got rank {rank}; use mode 'reduced'."
        )
    return rank


def _chances(a: Array, k: int, temperature: Any, key: Any) -> Arrays:
    """Noise (..., k, n) and temperature of the choice of pivots; none if they are not random."""
    if temperature is None and key is None:
        return ()
    if temperature is None or key is None:
        given, missing = ("key", "temperature") if temperature is None else ("temperature", "key")
        raise ValueError(
            "pivoted_qr expects temperature and key together, for random pivots. Got "
            f"{given} without {missing}."
        )
    heat = nonnegative("pivoted_qr", "temperature", temperature, number=True, scalar=True)
    real = jnp.finfo(compute_dtype(a.dtype)).dtype
    try:
        gumbel = jax.random.gumbel(key, (*a.shape[:-2], k, a.shape[-1]), real)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"pivoted_qr expects key to be one key of jax.random, as jax.random.key(0) is. {error}"
        ) from None
    return lax.stop_gradient((gumbel, heat.astype(real)))


@functools.partial(jax.jit, static_argnames=("rule", "forward_mode"))
def _factors(a: Array, *chances: Array, rule: PivotedQR, forward_mode: bool) -> Arrays:
    function = differentiated(rule, forward_mode)
    *factors, p = function(a.astype(compute_dtype(a.dtype)), *chances)
    dtype = result_dtype(a.dtype)
    return *(x.astype(dtype) for x in factors), p
