"""LQ, RQ and QL: QR seen in a mirror."""

from typing import Literal, Unpack

from jax.typing import ArrayLike

from jaxqr._qr import Mirror, MirroredOptions, seen_in

_LQ: Mirror[Literal["l"]] = Mirror(transposed=True, reversed=False)
_RQ: Mirror[Literal["r"]] = Mirror(transposed=True, reversed=True)
_QL: Mirror[Literal["l"]] = Mirror(transposed=False, reversed=True)


@seen_in(_LQ)
def lq(
    a: ArrayLike,
    *,
    mode: Literal["reduced", "complete", "l"] = "reduced",
    **options: Unpack[MirroredOptions],
) -> None:
    """The LQ factorization A = L Q, differentiable for every shape.

    Args:
        a: (..., m, n), real or complex, of any type that :func:`jaxqr.qr` takes; k stands for
            min(m, n).
        mode: "reduced" for L (..., m, k) and Q (..., k, n); "complete" for L (..., m, n) and
            Q (..., n, n); "l" for L (..., m, k) alone, and then Q is never formed.
        forward_mode, positive_diagonal, check_rank, method, dependent: as in :func:`jaxqr.qr`,
            for the triangular factor and for rows.

    Returns:
        ``(l, q)``, or ``l`` in mode "l", in the type of ``a``. L is lower triangular with a real
        diagonal, Q has orthonormal rows.

    Raises:
        ValueError: a has fewer than two axes; an unknown mode or method.
        TypeError: a is not an array of numbers; an option is not of its type.

    It is the QR factorization of the transpose. The derivative exists where the leading min(m, n)
    rows are independent; for deep input it is Proposition 3 of Roberts and Roberts
    (arXiv:2009.10071). The cost is that of :func:`jaxqr.qr`, and for row-major data it saves the
    copies into the column-major order that LAPACK wants.

    >>> import jax.numpy as jnp, jaxqr, numpy as np
    >>> a = jnp.array([[3.0, 4.0, 0.0], [1.0, 2.0, 3.0]])
    >>> l, q = jaxqr.lq(a, positive_diagonal=True)
    >>> print(np.asarray(l).round(2))
    [[5.  0. ]
     [2.2 3.03]]
    >>> bool(jnp.allclose(l @ q, a, atol=1e-5))
    True
    """


@seen_in(_RQ)
def rq(
    a: ArrayLike,
    *,
    mode: Literal["reduced", "complete", "r"] = "reduced",
    **options: Unpack[MirroredOptions],
) -> None:
    """The RQ factorization A = R Q, differentiable for every shape, as ``scipy.linalg.rq``.

    Args:
        a: (..., m, n), real or complex, of any type that :func:`jaxqr.qr` takes; k stands for
            min(m, n).
        mode: "reduced" for R (..., m, k) and Q (..., k, n); "complete" for R (..., m, n) and
            Q (..., n, n); "r" for R (..., m, k) alone, and then Q is never formed.
        forward_mode, positive_diagonal, check_rank, method, dependent: as in :func:`jaxqr.qr`,
            for the triangular factor and for rows.

    Returns:
        ``(r, q)``, or ``r`` in mode "r", in the type of ``a``. R is upper triangular, aligned with
        its last row and column, with a real diagonal; Q has orthonormal rows.

    Raises:
        ValueError: a has fewer than two axes; an unknown mode or method.
        TypeError: a is not an array of numbers; an option is not of its type.

    It is the LQ factorization of the rows in reverse order. The derivative (Roberts and Roberts,
    arXiv:2009.10071) exists where the last min(m, n) rows are independent. The cost is that of
    :func:`jaxqr.lq`.

    >>> import jax.numpy as jnp, jaxqr, numpy as np
    >>> a = jnp.array([[1.0, 2.0, 3.0], [3.0, 4.0, 0.0]])
    >>> r, q = jaxqr.rq(a, positive_diagonal=True)
    >>> print(np.asarray(r).round(2))
    [[3.03 2.2 ]
     [0.   5.  ]]
    >>> bool(jnp.allclose(r @ q, a, atol=1e-5))
    True
    """


@seen_in(_QL)
def ql(
    a: ArrayLike,
    *,
    mode: Literal["reduced", "complete", "l"] = "reduced",
    **options: Unpack[MirroredOptions],
) -> None:
    """The QL factorization A = Q L, differentiable for every shape.

    Args:
        a: (..., m, n), real or complex, of any type that :func:`jaxqr.qr` takes; k stands for
            min(m, n).
        mode: "reduced" for Q (..., m, k) and L (..., k, n); "complete" for Q (..., m, m) and
            L (..., m, n); "l" for L (..., k, n) alone, and then Q is never formed.
        forward_mode, positive_diagonal, check_rank, method, dependent: as in :func:`jaxqr.qr`,
            for the triangular factor and for columns.

    Returns:
        ``(q, l)``, or ``l`` in mode "l", in the type of ``a``. Q has orthonormal columns; L is
        lower triangular, aligned with its last row and column, with a real diagonal.

    Raises:
        ValueError: a has fewer than two axes; an unknown mode or method.
        TypeError: a is not an array of numbers; an option is not of its type.

    It is the QR factorization of the columns in reverse order. The derivative (Roberts and
    Roberts, arXiv:2009.10071) exists where the last min(m, n) columns are independent. The cost is
    that of :func:`jaxqr.qr`.

    >>> import jax.numpy as jnp, jaxqr, numpy as np
    >>> a = jnp.array([[1.0, 3.0], [2.0, 4.0], [3.0, 0.0]])
    >>> q, l = jaxqr.ql(a, positive_diagonal=True)
    >>> print(np.asarray(l).round(2))
    [[3.03 0.  ]
     [2.2  5.  ]]
    >>> bool(jnp.allclose(q @ l, a, atol=1e-5))
    True
    """
