"""Products with Q, which is not formed."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxqr._applied import Applied, apply_q
from jaxqr._arguments import (
    as_array,
    as_matrices,
    by_name,
    compute_dtype,
    flags,
    one_of,
    result_dtype,
)
from jaxqr._linalg.batching import smaller
from jaxqr._qr import qr


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
    product, r = _multiply(
        a,
        c[..., None] if vectors else c,
        adjoint=adjoint,
        complete=mode == "complete",
        forward_mode=forward_mode,
        positive_diagonal=positive_diagonal,
    )
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
    try:
        jnp.broadcast_shapes(a.shape[:-2], c.shape[: -1 if vectors else -2])
    except ValueError:
        raise ValueError(
            "qr_multiply expects batch axes that broadcast against each other. Got a of shape "
            f"{a.shape} and c of shape {c.shape}."
        ) from None


_OPTIONS = ("adjoint", "complete", "forward_mode", "positive_diagonal")


@functools.partial(jax.jit, static_argnames=_OPTIONS)
def _multiply(
    a: Array,
    c: Array,
    *,
    adjoint: bool,
    complete: bool,
    forward_mode: bool,
    positive_diagonal: bool,
) -> tuple[Array, Array]:
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(a, c)
    a, c = (x.astype(compute_dtype(dtype)) for x in (a, c))
    k = smaller(*a.shape[-2:])
    r = qr(a, mode="r", forward_mode=forward_mode, positive_diagonal=positive_diagonal)
    batch = jnp.broadcast_shapes(a.shape[:-2], c.shape[:-2])
    a_, r_, c_ = (jnp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (a, r, c))
    product = apply_q(a_, r_, c_, Applied(adjoint, "auto", forward_mode, "qr_multiply"))
    if adjoint and not complete:
        product = product[..., :k, :]
    return product.astype(result_dtype(dtype)), r.astype(result_dtype(dtype))
