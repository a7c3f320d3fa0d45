"""Determinants of square matrices, and volumes of deep ones, as logarithms."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxqr._arguments import as_matrices, by_name, compute_dtype, flags, result_dtype
from jaxqr._autodiff import Arrays, MaybeArrays, Wiring, constant
from jaxqr._forward import least_squares
from jaxqr._linalg.exporting import serializable
from jaxqr._rules import determinant as rules
from jaxqr._rules.least_squares import System
from jaxqr._solution import OfTree, operators


@serializable
class SlogDet(NamedTuple):
    """What ``slogdet`` returns: the determinant is sign * exp(logabsdet)."""

    sign: Array  # (...,), of the type of A
    logabsdet: Array  # (...,), real


@by_name
def slogdet(a: ArrayLike, *, forward_mode: bool = False) -> SlogDet:
    """The sign and the logarithm of |det A|, by QR; of deep A, of the volume of its columns.

    Args:
        a: (..., m, n) with m >= n, of any type that :func:`jaxqr.qr` takes. (Of wide A, the volume
            of its rows is that of the columns of ``a.mT``.)
        forward_mode: as in :func:`jaxqr.qr`.

    Returns:
        ``SlogDet(sign, logabsdet)``, each (...,). Of square A, ``sign`` is that of the determinant,
        of magnitude one and in the type of A, and ``logabsdet`` is the logarithm of its magnitude,
        real: as ``jnp.linalg.slogdet`` has them. Of deep A, ``logabsdet`` is log sqrt(det A^H A),
        and ``sign`` is 1. Where R's diagonal has a zero, ``sign`` is 0 and ``logabsdet``
        -inf; rounding may leave something else of dependent columns.

    Raises:
        ValueError: a has fewer than two axes, or more columns than rows.
        TypeError: a is not an array of numbers; an option is not of its type.

    |det A| is the product of the diagonal of R, and the sign is that of the reflectors that make
    up Q times that of R's diagonal. It takes 2 n^2 (m - n / 3) operations, and the gradient

        A-bar = logabsdet-bar A^+H

    (for complex A, the sign adds an imaginary part to the factor in front) another 3 n^3 for square
    A, by the reflectors, and 2 m n^2 for deep A, with the same factorization: under ``jit``, that
    of ``lstsq(a, b)``, too. ``jnp.linalg.slogdet`` takes an LU factorization, half as many
    operations, of square A alone. ``lstsq(a, b)`` solves with A, and ``lstsq(a, jnp.eye(n))`` is
    its inverse. Derivatives of any order, and ``jax.experimental.jet``, are those of
    :func:`jaxqr.lstsq`. Where columns are dependent no derivative is finite.

    >>> import jax, jax.numpy as jnp, jaxqr, numpy as np
    >>> a = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> sign, logabsdet = jaxqr.slogdet(a)
    >>> print(np.asarray(sign * jnp.exp(logabsdet)).round(4))
    -2.0
    >>> print(np.asarray(jax.grad(lambda a: jaxqr.slogdet(a).logabsdet)(a)).round(4))  # A^-T
    [[-2.   1.5]
     [ 1.  -0.5]]
    >>> volume = jaxqr.slogdet(jnp.array([[3.0], [4.0]])).logabsdet
    >>> print(np.asarray(jnp.exp(volume)).round(4))
    5.0
    """
    a = as_matrices("slogdet", "a", a)
    flags("slogdet", forward_mode=forward_mode)
    m, n = a.shape[-2:]
    if m < n:
        raise ValueError(
            "slogdet expects at least as many rows as columns; of a wide matrix, "
            f"slogdet(a.mT) has the volume of the rows. Got shape {a.shape}."
        )
    out: SlogDet = _slogdet(a, forward_mode=forward_mode)
    return out


@functools.partial(jax.jit, static_argnames="forward_mode")
def _slogdet(a: Array, *, forward_mode: bool) -> SlogDet:
    dtype = compute_dtype(a.dtype)
    result = result_dtype(a.dtype)
    if a.size:
        sign, logarithm = _of_some(a.astype(dtype), forward_mode)
    else:
        shape = a.shape[:-2]
        sign, logarithm = jnp.ones(shape, dtype), jnp.zeros(shape, jnp.finfo(dtype).dtype)
    return SlogDet(sign.astype(result), logarithm.astype(jnp.finfo(result).dtype))


def _of_some(a: Array, forward_mode: bool) -> Arrays:
    factor = functools.partial(least_squares.determinant, with_q=forward_mode)
    factors, sign, logarithm = constant(factor, a)
    return Determinant.of((System(a, None, None, *factors), sign, logarithm), forward_mode)


class Determinant(OfTree):
    """(sign, logarithm), with their derivative. Arguments are the leaves of (system, sign, log).

    All but A among them are constants, which the derivative with respect to A accounts for.
    """

    caller = "slogdet"

    def forward(self, *args: Array) -> Arrays:
        """(sign, logarithm)."""
        _, sign, logarithm = self.structure.unflatten(args)
        return sign, logarithm

    def residuals(self, args: Arrays, outputs: Arrays) -> Arrays:
        """The arguments, but the outputs as the functions that they are."""
        system, _, _ = self.structure.unflatten(args)
        return tuple(jax.tree.leaves((system, *outputs)))

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Any:
        """(a_bar, and None for the constants)."""
        system, sign, _ = self.structure.unflatten(residuals)
        a_bar = rules.pullback(self.apply, system, sign, *cotangents)
        return a_bar, *(None,) * (len(residuals) - 1)

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        """(dsign, dlogarithm)."""
        system, sign, _ = self.structure.unflatten(residuals)
        da, *_ = tangents
        assert da is not None
        return rules.pushforward(self.apply, system, sign, da)

    def taylor(self, args: list[Arrays], wire: Wiring) -> list[Arrays]:
        """The series of (sign, logarithm)."""
        sign, logarithm = wire(self)(*args[0])
        system, _, _ = self.structure.unflatten(args[0])
        a = jnp.stack([term[0] for term in args])
        signs, logs = rules.series(operators(True), system, a, sign)
        return [(sign, logarithm), *zip(signs, logs, strict=True)]

    def recovered(self, residuals: list[Arrays]) -> tuple[list[Arrays], Arrays | None]:
        """The series of the arguments, and the outputs."""
        _, sign, logarithm = self.structure.unflatten(residuals[0])
        return residuals, (sign, logarithm)
