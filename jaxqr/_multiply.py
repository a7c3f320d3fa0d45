"""Products with Q, which is not formed."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxqr import _forward
from jaxqr._applied import Applied, ByReflectors
from jaxqr._arguments import (
    as_array,
    as_matrices,
    batch_of,
    by_name,
    compute_dtype,
    flags,
    not_sharded,
    one_of,
    promoted,
    result_dtype,
)
from jaxqr._autodiff import Arrays, MaybeArrays, differentiated, with_more_columns
from jaxqr._linalg.batching import smaller, with_batch_of


@by_name
def qr_multiply(
    a: ArrayLike,
    c: ArrayLike,
    *,
    adjoint: bool = False,
    mode: Literal["reduced", "complete"] = "reduced",
    forward_mode: bool = False,
    positive_diagonal: bool = False,
) -> tuple[Array, Array]:
    """Q C or Q^H C, and R, of A = Q R: Q is applied by its reflectors, and never formed.

    Args:
        a: (..., m, n), of any type that :func:`jaxqr.qr` takes; k stands for min(m, n).
        c: vectors (..., rows) where c has one axis, or one axis less than a; matrices
            (..., rows, p) otherwise. Batch axes of a and c broadcast against each other.
        adjoint: False for Q C, True for Q^H C.
        mode: "reduced" for Q (m, k): c has k rows, or m with ``adjoint``; "complete" for
            Q (m, m): c has m rows.
        forward_mode, positive_diagonal: as in :func:`jaxqr.qr`.

    Returns:
        ``(product, r)``: Q C (..., m, p), or Q^H C (..., k, p), in mode "complete" (..., m, p),
        without the last axis for vectors; and R (..., k, n), in either mode. In the type to which
        those of a and c promote.

    Raises:
        ValueError: a has fewer than two axes, c none; rows or batch axes do not match; an unknown
            mode.
        TypeError: a or c is not an array of numbers; an option is not of its type.

    As ``scipy.linalg.qr_multiply(a, c, "left")``, with ``adjoint`` for its transposed product. It
    takes 2 n k (m - k / 3) operations for the reflectors, which the pullback computes anew, and
    4 m k for each column of c. Memory is that of a and c, in mode "complete" too.

    The derivative is that of Q and R in :func:`jaxqr.qr` (Roberts and Roberts, arXiv:2009.10071),
    with dQ = Q Omega, Omega = L - L^H and L the lower triangle of Q^H dA R^-1: so it takes
    products with Q alone. In mode "complete" the columns beyond the k-th do not turn among
    themselves: right for what depends on them by their span, as ||(Q^H b)[n:]|| does. Columns that
    depend on others do not turn Q, as with ``dependent="hold"`` in :func:`jaxqr.qr`.

    >>> import jax.numpy as jnp, jaxqr, numpy as np
    >>> a = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    >>> b = jnp.array([0.0, 1.0, 5.0])
    >>> c, r = jaxqr.qr_multiply(a, b, adjoint=True, mode="complete")
    >>> print(np.asarray(jnp.linalg.solve(r, c[:2])).round(4))  # least squares
    [-0.5  2.5]
    >>> print(np.asarray(c[2:] ** 2).round(4))  # and its residual
    [1.5]
    """
    a, c = as_matrices("qr_multiply", "a", a), as_array("qr_multiply", "c", c)
    one_of("qr_multiply", "mode", mode, ("reduced", "complete"))
    flags(
        "qr_multiply",
        adjoint=adjoint,
        forward_mode=forward_mode,
        positive_diagonal=positive_diagonal,
    )
    vectors = c.ndim in (1, a.ndim - 1)
    _check_shapes(a, c, vectors, adjoint or mode == "complete")
    not_sharded("qr_multiply", "c", c, -1 if vectors else -2)
    rule = Multiplied(adjoint, positive_diagonal, forward_mode)
    columns = c[..., None] if vectors else c
    product, r = _multiply(a, columns, rule=rule, complete=mode == "complete")
    return product[..., 0] if vectors else product, r


def _check_shapes(a: Array, c: Array, vectors: bool, square: bool) -> None:
    if not c.ndim:
        raise ValueError("qr_multiply expects c to be a vector or a matrix. Got shape ().")
    m, n = a.shape[-2:]
    expected = m if square else smaller(m, n)
    rows = c.shape[-1 if vectors else -2]
    if rows != expected:
        raise ValueError(
            f"qr_multiply expects c to have {expected} rows, for a of shape {a.shape}. Got c of "
            f"shape {c.shape}, which by its number of axes is "
            f"{'(..., rows)' if vectors else '(..., rows, p)'}."
        )
    got = f"Got a of shape {a.shape} and c of shape {c.shape}."
    batch_of("qr_multiply", got, a.shape[:-2], c.shape[: -1 if vectors else -2])


@dataclasses.dataclass(frozen=True)
class Multiplied:
    """Q C and R, or Q^H C and R, of A and C, by one factorization.

    A (..., m, n), C (..., m, p), or for Q C fewer rows of C, below which it is zero.
    """

    adjoint: bool
    positive_diagonal: bool
    forward_mode: bool
    method: str = "auto"

    caller: ClassVar[str] = "qr_multiply"

    def forward(self, a: Array, c: Array) -> Arrays:
        """(product, r)."""
        how = {"adjoint": self.adjoint, "positive_diagonal": self.positive_diagonal}
        return _forward.multiply(a, c, self.method, **how)

    def before_derivative(self) -> "Multiplied":
        """The same, by a method that leaves the cores to the derivative's products."""
        return dataclasses.replace(self, method=_forward.BEFORE_PRODUCTS)

    def residuals(self, args: Arrays, outputs: Arrays) -> Arrays:
        """A, R, and what Q has on its right: C, or the product."""
        (a, c), (product, r) = args, outputs
        return self._applied.residuals((a, r, c), (product,))

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        """(dproduct, dr)."""
        a, r, _ = residuals
        da, dc = tangents
        (dproduct,) = self._applied.pushforward(residuals, (da, None, dc))
        return dproduct, jnp.zeros_like(r) if da is None else self._q.push_held_r(a, r, da)

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Any:
        """(a_bar, c_bar)."""
        a, r, _ = residuals
        bar, r_bar = cotangents
        a_bar, c_bar = None, None
        if bar is not None:
            a_bar, _, c_bar = self._applied.pullback(residuals, (bar,))
        if r_bar is not None:
            of_r = self._q.pull_held_r(a, r, r_bar)
            a_bar = of_r if a_bar is None else a_bar + of_r
        return a_bar, c_bar

    @property
    def _q(self) -> ByReflectors:
        return ByReflectors(self.method, self.forward_mode, self.caller)

    @property
    def _applied(self) -> Applied:
        return Applied(self._q, self.adjoint)


@functools.partial(jax.jit, static_argnames=("rule", "complete"))
def _multiply(a: Array, c: Array, *, rule: Multiplied, complete: bool) -> tuple[Array, Array]:
    dtype = promoted("qr_multiply", a=a, c=c)
    a, c = (x.astype(compute_dtype(dtype)) for x in (a, c))

    def multiply(c: Array, a: Array) -> Any:
        return differentiated(rule, rule.forward_mode)(a, c)

    product, r = _over_batches(functools.partial(with_more_columns, multiply), a, c)
    if rule.adjoint and not complete:
        product = product[..., : r.shape[-2], :]
    return product.astype(result_dtype(dtype)), r.astype(result_dtype(dtype))


def _over_batches(multiply: Callable[..., Any], a: Array, c: Array) -> tuple[Array, Array]:
    """The product and R by MULTIPLY (c, a) of the same batch axes; axes of C alone are columns."""
    batch = jnp.broadcast_shapes(a.shape[:-2], c.shape[:-2])
    of_a = (1,) * (len(batch) + 2 - a.ndim) + a.shape[:-2]
    alone = [i for i, d in enumerate(of_a) if d == 1 and batch[i] != 1]
    shared = [i for i in range(len(batch)) if i not in alone]
    order = [*shared, len(batch), *alone, len(batch) + 1]
    sizes = [batch[i] for i in shared]

    if c.shape[:-2] != batch == a.shape[:-2]:
        c = with_batch_of(a, c)
    columns = jnp.broadcast_to(c, (*batch, *c.shape[-2:])).transpose(order)
    after = columns.shape[len(shared) + 1 :]
    product, r = multiply(
        columns.reshape(*sizes, c.shape[-2], math.prod(after)), a.reshape(*sizes, *a.shape[-2:])
    )
    product = product.reshape(*product.shape[:-1], *after)
    product = product.transpose([order.index(i) for i in range(len(order))])
    return product, r.reshape(*a.shape[:-2], *r.shape[-2:])
