"""QZ, the generalized Schur decomposition of a pencil, and Schur's decomposition."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import checkify
from jax.typing import ArrayLike, DTypeLike

from jaxqr._arguments import as_matrices, batch_of, by_name, compute_dtype, flags, one_of, promoted
from jaxqr._autodiff import (
    Arrays,
    MaybeArrays,
    differentiated,
    or_zeros,
    varying_alike,
    watching_cotangents,
)
from jaxqr._forward import schur as forward
from jaxqr._linalg.batching import over_leading_axes, with_batch_of
from jaxqr._linalg.exporting import serializable
from jaxqr._rules import qz as rules
from jaxqr._rules.qz import Factors

Sort = Literal["lhp", "rhp", "iuc", "ouc"]


@serializable
class QZResult(NamedTuple):
    """What :func:`jaxqr.qz` returns: A = Q S Z^H, B = Q T Z^H; all (..., n, n), complex."""

    s: Array
    t: Array
    q: Array
    z: Array


@serializable
class SchurResult(NamedTuple):
    """What :func:`jaxqr.schur` returns: A = Z S Z^H; both (..., n, n), complex."""

    s: Array
    z: Array


@by_name
def qz(
    a: ArrayLike,
    b: ArrayLike,
    *,
    sort: Sort | None = None,
    forward_mode: bool = False,
    check_distinct: bool = False,
    check_gauge: bool = False,
) -> QZResult:
    """The QZ (generalized Schur) decomposition A = Q S Z^H, B = Q T Z^H, differentiable.

    S and T are upper triangular, Q and Z unitary; the eigenvalues of the pencil A - lambda B are
    S_ii / T_ii, infinite where T_ii = 0.

    Args:
        a, b: (..., n, n), real or complex, of any type that :func:`jaxqr.qr` takes. Their batch
            axes broadcast against each other.
        sort: None leaves the order of the eigenvalues to the algorithm. "lhp" and "rhp" bring
            those in the open left or right half plane to the front, "iuc" and "ouc" those inside
            or outside the unit circle, where infinite ones are, as in ``scipy.linalg.ordqz``.
        forward_mode: as in :func:`jaxqr.qr`.
        check_distinct: True adds a ``jax.experimental.checkify`` check that names two eigenvalues
            that are too close for a derivative with two correct digits: within 8 sqrt(eps) of each
            other, in the chordal metric of A and B scaled to one size. That is where rounding
            leaves eigenvalues that coincide.
        check_gauge: True adds a checkify check to the pullback, that the loss does not see the
            phases that are free (see below). Not together with forward_mode.

    Returns:
        ``(s, t, q, z)``, with the real T_ii >= 0. Always complex, even for real input: the real
        form, with blocks on its diagonal, is not smooth where two of its eigenvalues meet.
        complex64 or complex128 by the type to which those of a and b promote. All NaN for a
        pencil that is not finite, or for which the algorithm does not converge or cannot
        reach the order.

    Raises:
        ValueError: a or b is not square, or they do not match; an unknown ``sort``; check_gauge
            together with forward_mode.
        TypeError: an argument is not an array of numbers; an option is not True or False.

    The derivative solves one generalized Sylvester equation of the pencil with itself, of which
    the pullback solves the adjoint: some 10 n^3 complex operations, beside the some 70 n^3 of the
    factors. It exists where the eigenvalues are distinct, at most one of them infinite;
    elsewhere it is not finite. Close ones cost accuracy, by eps / gap^2.

    A pencil fixes its factors up to phases, Q C, Z C, C^H S C, C^H T C with C diagonal and
    unitary, which LAPACK chooses as it comes. The derivative is exact for every loss that does
    not see them, as those of eigenvalues, of |s|, or of the projectors onto deflating subspaces,
    spanned by leading columns of Z and Q. Likewise for the order of the eigenvalues, unless
    ``sort`` makes the loss one of it.

    The factors are SciPy's, of LAPACK, computed on the host through ``jax.pure_callback``: so a
    program with them cannot be exported, nor lowered for a platform that is not at hand. The
    method is that of C. B. Moler and G. W. Stewart, "An algorithm for generalized matrix
    eigenvalue problems", SIAM J. Numer. Anal. 10 (1973).

    >>> import jax, jax.numpy as jnp, jaxqr, numpy as np
    >>> a, b = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.0, 0.0], [1.0, 1.0]])
    >>> s, t, q, z = jaxqr.qz(a, b)
    >>> np.allclose(q @ s @ z.conj().T, a, atol=1e-5)
    True
    >>> def abscissa(a):
    ...     s, t, *_ = jaxqr.qz(a, b)
    ...     return (jnp.diagonal(s) / jnp.diagonal(t)).real.max()
    >>> print(np.asarray(jax.grad(abscissa)(a)).round(4))
    [[-0.1063 -0.1362]
     [ 0.4851  0.6213]]
    """
    a, b = as_matrices("qz", "a", a), as_matrices("qz", "b", b)
    _check_pencil(a, b)
    _check_options(
        "qz",
        sort,
        forward_mode=forward_mode,
        check_distinct=check_distinct,
        check_gauge=check_gauge,
    )
    factors = Factors(*_qz(a, b, sort=sort, forward_mode=forward_mode, check_gauge=check_gauge))
    if check_distinct:
        _check_distinct("qz", factors)
    return QZResult(*factors)


@by_name
def schur(
    a: ArrayLike,
    *,
    sort: Sort | None = None,
    forward_mode: bool = False,
    check_distinct: bool = False,
    check_gauge: bool = False,
) -> SchurResult:
    """The Schur decomposition A = Z S Z^H, differentiable.

    S is upper triangular, Z unitary; the eigenvalues of A are S_ii.

    Args:
        a: (..., n, n), real or complex, of any type that :func:`jaxqr.qr` takes.
        sort: None leaves the order of the eigenvalues to the algorithm. "lhp" and "rhp" bring
            those in the left half plane, or not in it, to the front, "iuc" and "ouc" those inside
            the unit circle or on it, or outside, as in ``scipy.linalg.schur``.
        forward_mode, check_distinct, check_gauge: as in :func:`jaxqr.qz`.

    Returns:
        ``(s, z)``, always complex; NaN as in :func:`jaxqr.qz`.

    Raises:
        ValueError: a is not square; an unknown ``sort``; check_gauge together with forward_mode.
        TypeError: a is not an array of numbers; an option is not True or False.

    It is :func:`jaxqr.qz` of the pencil (A, I), and so is the derivative, with what is said there
    of its existence, its accuracy and the phases Z C, C^H S C that a loss may not see. The
    pullback takes some 10 n^3 complex operations, the factors, which are SciPy's, some 25 n^3.

    >>> import jax, jax.numpy as jnp, jaxqr, numpy as np
    >>> a = jnp.array([[-1.0, 1.0], [1.0, 1.0]])
    >>> s, z = jaxqr.schur(a, sort="lhp")
    >>> np.allclose(z @ s @ z.conj().T, a, atol=1e-5)
    True
    >>> stable = lambda a: jaxqr.schur(a, sort="lhp").s[0, 0].real
    >>> print(np.asarray(jax.grad(stable)(a)).round(4))
    [[ 0.8536 -0.3536]
     [-0.3536  0.1464]]
    """
    a = as_matrices("schur", "a", a)
    if a.shape[-2] != a.shape[-1]:
        raise ValueError(f"schur expects a to be square, (..., n, n). Got shape {a.shape}.")
    _check_options(
        "schur",
        sort,
        forward_mode=forward_mode,
        check_distinct=check_distinct,
        check_gauge=check_gauge,
    )
    s, z = _schur(a, sort=sort, forward_mode=forward_mode, check_gauge=check_gauge)
    if check_distinct:
        _check_distinct("schur", of_schur(s, z))
    return SchurResult(s, z)


def _check_pencil(a: Array, b: Array) -> None:
    if a.shape[-2:] != b.shape[-2:] or a.shape[-2] != a.shape[-1]:
        raise ValueError(
            "qz expects a and b to be square and of one size, (..., n, n). Got a of shape "
            f"{a.shape} and b of shape {b.shape}. A rectangular pencil has no such form that is a "
            "function of it; where [A B] and [A; B] have one rank r, compress it first: with "
            "orthonormal columns U of [A B] and V of [A; B]^H from jaxqr.pivoted_qr(..., rank=r), "
            "take qz of U^H A V and U^H B V, r x r."
        )
    got = f"Got a of shape {a.shape} and b of shape {b.shape}."
    batch_of("qz", got, a.shape[:-2], b.shape[:-2])


def _check_options(caller: str, sort: str | None, **options: bool) -> None:
    if sort is not None:
        one_of(caller, "sort", sort, forward.SORTS, "None")
    flags(caller, **options)
    if options["check_gauge"] and options["forward_mode"]:
        raise ValueError(
            f"{caller} expects check_gauge, which checks cotangents, without forward_mode. Got "
            "both; leave out one of them."
        )


_OPTIONS = ("sort", "forward_mode", "check_gauge")


@functools.partial(jax.jit, static_argnames=_OPTIONS)
def _qz(a: Array, b: Array, *, sort: str | None, forward_mode: bool, check_gauge: bool) -> Arrays:
    dtype = _complex(promoted("qz", a=a, b=b))
    shape = np.broadcast_shapes(a.shape, b.shape)
    a, b = (jnp.broadcast_to(x.astype(dtype), shape) for x in (a, b))
    factors = differentiated(QZ(sort), forward_mode)(a, b)
    return _watched("qz", *factors) if check_gauge else factors


@functools.partial(jax.jit, static_argnames=_OPTIONS)
def _schur(a: Array, *, sort: str | None, forward_mode: bool, check_gauge: bool) -> Arrays:
    s, z = differentiated(Schur(sort), forward_mode)(a.astype(_complex(a.dtype)))
    if check_gauge:
        s, _, _, z = _watched("schur", *of_schur(s, z))
    return s, z


def _complex(dtype: DTypeLike) -> Any:
    return np.result_type(compute_dtype(dtype), np.complex64)


def from_the_host(factors: Arrays, a: Array) -> Arrays:
    """The factors, varying over devices as A does: those of a callback count as the same on all."""
    return tuple(varying_alike([a, *factors])[1:])


def of_schur(s: Array, z: Array) -> Factors:
    """Schur's decomposition of A as the QZ of (A, I)."""
    return Factors(s, with_batch_of(s, jnp.eye(s.shape[-1], dtype=s.dtype)), z, z)


_pushforward = over_leading_axes(rules.pushforward)
_pullback = over_leading_axes(rules.pullback)


@dataclasses.dataclass(frozen=True)
class QZ:
    """The QZ decomposition, with its derivative."""

    sort: str | None
    caller = "qz"

    def forward(self, a: Array, b: Array) -> Arrays:
        """(s, t, q, z)."""
        return from_the_host(forward.qz(a, b, self.sort), a)

    def residuals(self, args: Arrays, outputs: Arrays) -> Arrays:
        """The factors."""
        return outputs

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        """(ds, dt, dq, dz)."""
        dots: Arrays = tuple(_pushforward(Factors(*residuals), *or_zeros(tangents, residuals)))
        return dots

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Arrays:
        """(a_bar, b_bar)."""
        factors = Factors(*residuals)
        bars: Arrays = _pullback(factors, Factors(*or_zeros(cotangents, factors)))
        return bars


@dataclasses.dataclass(frozen=True)
class Schur:
    """Schur's decomposition, with its derivative: that of the QZ of (A, I)."""

    sort: str | None
    caller = "schur"

    def forward(self, a: Array) -> Arrays:
        """(s, z)."""
        return from_the_host(forward.schur(a, self.sort), a)

    def residuals(self, args: Arrays, outputs: Arrays) -> Arrays:
        """The factors."""
        return outputs

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        """(ds, dz)."""
        (da,) = tangents
        assert da is not None
        dots = _pushforward(of_schur(*residuals), da, jnp.zeros_like(da))
        return dots.s, dots.z

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Arrays:
        """(a_bar,)."""
        factors, (s_bar, z_bar) = of_schur(*residuals), cotangents
        bars = Factors(*or_zeros((s_bar, None, None, z_bar), factors))
        a_bar, _ = _pullback(factors, bars)
        return (a_bar,)


# The checks.


def _check_distinct(caller: str, factors: Factors) -> None:
    s, t = jax.lax.stop_gradient(factors[:2])
    n = s.shape[-1]
    if n < 2 or not s.size:
        return
    distances = over_leading_axes(rules.chordal_distances)(s, t)
    others = jnp.broadcast_to(~jnp.eye(n, dtype=bool), s.shape)
    near = (distances <= 8 * jnp.sqrt(jnp.finfo(s.dtype).eps)) & others
    matrix, i, j = jnp.unravel_index(jnp.argmax(near), (s.size // n**2, n, n))
    checkify.check(
        ~near.any(),
        f"{caller} expects distinct eigenvalues, for its derivative to exist. Eigenvalues {{i}} "
        f"and {{j}}{_OF_BATCH if s.ndim > 2 else ''} are within 8 sqrt(eps).",
        i=i,
        j=j,
        matrix=matrix,
    )


_OF_BATCH = " of matrix {matrix} of the batch"


def _watched(caller: str, *factors: Array) -> Arrays:
    """The factors, with a check of their cotangents: that the loss does not see the gauge."""

    if not factors[0].size:
        return factors

    def check(factors: Arrays, bars: MaybeArrays) -> None:
        of = Factors(*factors)
        n = of.s.shape[-1]
        seen = over_leading_axes(rules.seen_gauge)(of, Factors(*or_zeros(bars, of)))
        seen = jnp.where(jnp.isnan(seen), 0, seen)  # of what has no factors nothing is seen
        matrix, column = jnp.unravel_index(jnp.argmax(seen), (seen.size // n, n))
        checkify.check(
            seen.max() <= jnp.sqrt(jnp.finfo(seen.dtype).eps),
            f"{caller} expects a loss that does not see the phases that its factors have by "
            f"chance. It sees that of column {{column}}{_OF_BATCH if of.s.ndim > 2 else ''}.",
            column=column,
            matrix=matrix,
        )

    return watching_cotangents(check)(*factors)
