"""QR and least squares of a deep matrix whose rows lie on many devices, differentiable there.

``jnp.linalg.qr`` of a matrix sharded by rows gathers all of it on every device. Here each device
factors the rows that it has, and only triangles travel: TSQR, of J. Demmel, L. Grigori,
M. Hoemmen and J. Langou, "Communication-optimal parallel and sequential QR and LU factorizations",
SIAM J. Sci. Comput. 34 (2012). It runs on JAX's own collectives, on any platform and any number of
processes (``jax.distributed``).

* :func:`tsqr` and :func:`lstsq` are called inside ``jax.shard_map``, with the rows of one device.
* :func:`sharded_qr`, :func:`sharded_lq` and :func:`sharded_lstsq` take the whole array and a mesh.
  Their gradients belong under ``jax.jit``.

**The derivative.** With the paper's pushforward, dQ and dR are local but for C = Q^H dA R^-1, a sum
over the devices; its transpose is the paper's pullback (eq. 3), local but for the sum that makes
M = R R-bar^H - Q-bar^H Q. So the rule is written once, in plain JAX, and both modes of
differentiation work to any order, under ``jax.shard_map`` with and without ``check_vma``. R is the
same on all devices, to the last bit and by its type. Where a device uses it in a way of its own,
JAX sums R's cotangents over the devices before the rule sees them; with ``check_vma=False`` that
sum and the rule's are one.

**The cost**, for A (m, n) on P devices, m / P rows each, on the critical path; a round is one
collective, a word is a number of A's type, and log is to the base 2 and rounded up::

                       rounds                  words sent        flops
    value, tree        log P + 1               n^2 a round       6 m n^2 / P + 9 n^3 log P
    value, gather      2                       n^2 a round       6 m n^2 / P + 4 P n^3
    pushforward        1                       n^2               5 m n^2 / P + 2 n^3
    pullback           1                       n^2               5 m n^2 / P + 2 n^3
    lstsq (nrhs = 1)   like the value          n^2 a round       2 m n^2 / P + 4 n^3 log P
      its pullback     0                       0                 8 m n / P

Where P is not a power of two, some devices send two messages in a round. The gathered triangles
are P n^2 words on each device; the tree holds two at a time. The last round of either makes R that
of the first device everywhere; in value and gradient together it and the pullback's sum become one.
``reduction="auto"`` takes what is cheaper by :func:`a model
<jaxqr.distributed._reduction.seconds>`: with 2 or 3 devices the gather, with more the tree, unless
triangles are small.

**What that means** for 10^9 x 256 in float32 on 1024 accelerators: 976563 rows and 1.0 GB of A on
each (512 rows of zeros make m divide, and change neither R nor the other rows of Q), as much again
for Q. Value: 3.8e11 flops of local work on each, and 11 rounds of 256 KiB; at 10 Tflop/s and
20 us and 10 GB/s a round, 38 ms of work beside 0.5 ms of messages, and ten factorizations of
512 x 256 between them (1.5e8 flops each: at the 0.1 Tflop/s that such small ones reach, 15 ms in
all). Pullback: 3.2e11 flops and one round. 3.1 MB leave each device for value and gradient
together. Gathering A instead would take 1 TB on each of them.
"""

from jaxqr.distributed._lstsq import lstsq
from jaxqr.distributed._sharded import sharded_lq, sharded_lstsq, sharded_qr
from jaxqr.distributed._tsqr import tsqr

__all__ = ["lstsq", "sharded_lq", "sharded_lstsq", "sharded_qr", "tsqr"]
