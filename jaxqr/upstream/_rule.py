# fmt: off
# ruff: noqa: B905
# mypy: ignore-errors
"""The derivative of `jax.lax.linalg.qr`, written as it would stand in JAX's own source.

What lies between the two marker comments is used twice: `register` puts it under the QR of the
JAX that is running, and `make-patch` copies it into `jax/_src/lax/linalg.py` in the place of the
rule that is there. So what is tested here is what is offered there. Everything that the marked
part uses is imported above it, under the name that it has in `linalg.py`.
"""

import numpy as np
from jax._src import ad_util, api, dtypes
from jax._src.lax import lax
from jax._src.lax.linalg import _H, _triu, qr_p, triangular_solve

__all__ = ["qr_jvp_rule"]

# --- begin ---
# JVP of the QR decomposition
#
# The rules are those of D. A. O. Roberts and L. R. Roberts, "QR and LQ
# Decomposition Matrix Backpropagation Algorithms for Square, Wide, and Deep -
# Real or Complex - Matrices and Their Software Implementation",
# https://arxiv.org/abs/2009.10071. Transposing what follows gives the pullbacks
# of that paper (eqs. 3, 9, 10, 21 and 26), at their cost.
#
# Cut X = [X1 X2] and R = [U V] after column k = min(m, n), so that U is square:
#
#   X1 = Q1 U,   X2 = Q1 V,   Q1^H Q1 = I.
#
# Differentiate the first equation and multiply it by Q1^H and U^{-1}:
#
#   Q1^H dX1 U^{-1} = Q1^H dQ1 + dU U^{-1},   or   C = S + W.
#
# Q1^H Q1 = I makes S = Q1^H dQ1 skew-Hermitian. W = dU U^{-1} is upper
# triangular, with a real diagonal because U has one before and after. One such
# splitting of C exists. It gives dU = W U, and dQ1 from S or from W.

def _qr_tangent_w(c):
  """The upper triangular W, diag(W) real, that makes C - W skew-Hermitian."""
  # S drops out of C + C^H = W + W^H, whose strict upper triangle is that of W
  # and whose diagonal is twice that of W.
  w = _triu(c + _H(c))
  eye = lax.broadcast(lax._eye(bool, c.shape[-2:]), c.shape[:-2])
  if dtypes.issubdtype(c.dtype, np.complexfloating):
    # The product below would be right here too. XLA fuses it with the sign of
    # -W and, on CPU, starts dQ before dR then: faster for real types, but more
    # memory for complex ones.
    return lax.select(eye, w / 2, w)
  return (1 - eye.astype(c.dtype) / 2) * w

def _deep_qr_jvp(q, r, dx):
  """JVP for QR decompositions of [..., m, n] matrices with m >= n."""
  # From dX = dQ1 U + Q1 dU, dQ1 = dX U^{-1} - Q1 W.
  n = r.shape[-1]
  q1, q2 = q[..., :n], q[..., n:]
  u = r[..., :n, :]
  dx_rinv = triangular_solve(u, dx)  # Right side solve by default
  w = _qr_tangent_w(_H(q1) @ dx_rinv)
  if not q2.shape[-1]:
    return dx_rinv + q1 @ -w, w @ u
  # Full matrices. The columns Q2 are any orthonormal basis of the complement
  # of Q1. Q1^H Q2 = 0 makes Q1^H dQ2 = -dQ1^H Q2. Q2^H dQ2 is a rotation within
  # the complement, which X does not determine. Choose zero, the derivative of
  # least norm: it is right for all that depends on Q2 through its span alone,
  # and finite wherever U is invertible.
  dq1 = dx_rinv + q1 @ -w
  dq2 = q1 @ -(_H(dq1) @ q2)
  dq = lax.concatenate((dq1, dq2), q.ndim - 1)
  return dq, _pad_zeros(w @ u, r.shape)

def _wide_qr_jvp(q, r, dx):
  """JVP for QR decompositions of [..., m, n] matrices with m < n."""
  # Q = Q1 is square here: Q Q^H = I, so dQ = Q S. And from dX = dQ R + Q dR,
  # all columns at once, dR = Q^H dX - S R = Q^H dX + S^H R.
  m = q.shape[-1]
  qt_dx = _H(q) @ dx
  c = triangular_solve(r[..., :m], qt_dx[..., :m])
  s = c - _qr_tangent_w(c)
  return q @ s, qt_dx + _H(s) @ r

def _pad_zeros(x, shape):
  """Pads a batch of matrices with zeros below and to the right."""
  pads = [(0, after - before, 0) for before, after in zip(x.shape, shape)]
  return lax.pad(x, lax._zero(x), pads)

def _permute_columns(x, p):
  """Permutes the columns of each [..., m, n] matrix by its own p [..., n]."""
  def take(x, p):
    return x.at[:, p].get(mode="promise_in_bounds", unique_indices=True)
  for _ in range(p.ndim - 1):
    take = api.vmap(take)
  return take(x, p)

def qr_jvp_rule(primals, tangents, *, pivoting, full_matrices, **params):
  x, = primals
  dx, = tangents
  q, r, *p = qr_p.bind(x, pivoting=pivoting, full_matrices=full_matrices,
                       **params)
  if pivoting:
    # X P = Q R. The permutation is locally constant, and X itself is not used
    # below: all that is left to permute is its tangent.
    dx = _permute_columns(lax.asarray(dx), p[0])
  *_, m, n = dx.shape
  dq, dr = (_deep_qr_jvp if m >= n else _wide_qr_jvp)(q, r, dx)
  return (q, r, *p), (dq, dr, *map(ad_util.p2tz, p))
# --- end ---
