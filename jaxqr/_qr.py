"""QR."""

from typing import Literal, Unpack, overload

from jax import Array
from jax.typing import ArrayLike

from jaxqr._factorization import Method, Mirror, Options, factorize

_MIRROR = Mirror(transposed=False, reversed=False)


@overload
def qr(
    a: ArrayLike, *, mode: Literal["reduced", "complete"] = ..., **options: Unpack[Options]
) -> tuple[Array, Array]: ...
@overload
def qr(a: ArrayLike, *, mode: Literal["r"], **options: Unpack[Options]) -> Array: ...
def qr(
    a: ArrayLike,
    *,
    mode: Literal["reduced", "complete", "r"] = "reduced",
    forward_mode: bool = False,
    positive_diagonal: bool = False,
    check_rank: bool = False,
    method: Method = "auto",
) -> tuple[Array, Array] | Array:
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
            depends on those before it.
        method: the algorithm. "householder" is that of ``jnp.linalg.qr``; "batched", for many small
            matrices of at most 16 columns or rows, is unrolled; "cholesky", for deep ones, is
            CholeskyQR2 (for R alone, of blocks of columns), verified, with Householder's algorithm
            where it fails; "auto" chooses by shape, type, platform and batch, that of leading axes
            as well as that of ``vmap``, and factors of a wide matrix the leading block alone: the
            rest is a product.

    Returns:
        ``(q, r)``, or ``r`` in mode "r", in the type of ``a``. Q has orthonormal columns, R is
        upper triangular with a real diagonal.

    Raises:
        ValueError: a has fewer than two axes; an unknown mode or method; a method that cannot take
            this shape.
        TypeError: a is not an array of numbers.

    The derivative is that of Roberts and Roberts (arXiv:2009.10071), eqs. 3 and 9, 10, 21 for wide
    input. It exists where the leading min(m, n) columns are independent; elsewhere the factors are
    right and the gradient is not finite (see :func:`jaxqr.pivoted_qr`). In complete mode A fixes
    the columns of Q beyond the n-th only up to a rotation, and their derivative is the one that
    does not rotate them. The factors cost about 4 m n k operations, the pullback 6 m k^2, or
    2 m k n in mode "r".

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
    result: tuple[Array, Array] | Array = factorize(
        _MIRROR,
        a,
        mode=mode,
        forward_mode=forward_mode,
        positive_diagonal=positive_diagonal,
        check_rank=check_rank,
        method=method,
    )
    return result
