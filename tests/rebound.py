"""A program that has put jaxqr's functions, or nothing, in the place of JAX's: run by itself.

Prints "done" when every function of the package has a value and a gradient, which for most is
traced, and not compiled. All of JAX's public linear algebra raises but `qr`, which is jaxqr's.
"""

import functools

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import jaxqr

A = np.random.default_rng(0).standard_normal((70, 6, 4)).astype("float32")
DEEP = np.random.default_rng(1).standard_normal((512, 32)).astype("float32")
WIDE = np.random.default_rng(2).standard_normal((40, 80)).astype("float32")


def refuse(*_, **__):
    raise AssertionError("JAX's linear algebra was looked up when it was called")


def rebind():
    for module in (jnp.linalg, jax.lax.linalg, jax.scipy.linalg):
        for name in dir(module):
            if callable(getattr(module, name)) and not name.startswith("_"):
                setattr(module, name, refuse)
    jnp.linalg.qr = jax.lax.linalg.qr = jax.scipy.linalg.qr = jaxqr.qr


def gradient(f):
    def loss(a):
        out = jax.tree.leaves(f(a))
        return sum(jnp.sum(jnp.sin(x)) for x in out if jnp.issubdtype(x.dtype, jnp.inexact))

    return jax.grad(loss)


def trace(f, a):
    jax.eval_shape(gradient(f), a)


def functions():
    b = jnp.ones(6)
    for forward_mode in (False, True):
        for f in (jaxqr.qr, jaxqr.lq, jaxqr.rq, jaxqr.ql, jaxqr.pivoted_qr):
            for mode in ("reduced", "complete", "l" if f in (jaxqr.lq, jaxqr.ql) else "r"):
                yield functools.partial(f, mode=mode, forward_mode=forward_mode)
        for options in ({}, {"rcond": 1e-5}, {"ridge": 0.1}):
            options = {"forward_mode": forward_mode, **options}
            yield lambda a, options=options: jaxqr.lstsq(a, b, **options)
    yield lambda a: jaxqr.qr(a, dependent="hold")
    yield lambda a: jaxqr.qr_multiply(a, b, adjoint=True)
    mesh = Mesh(np.array(jax.devices()[:1]), ("rows",))
    for f in (
        lambda a: jaxqr.distributed.tsqr(a, "rows")[1],
        lambda a: jaxqr.distributed.lstsq(a, b, "rows", forward_mode=True),
    ):
        yield jax.shard_map(f, mesh=mesh, in_specs=P("rows"), out_specs=P())


def main():
    rebind()
    for f in functions():
        trace(f, A[0])
    for method in ("auto", "householder", "batched"):  # many small ones
        trace(lambda a, method=method: jnp.linalg.qr(a, method=method), A)
    trace(lambda a: jaxqr.lstsq(a, jnp.ones((70, 6))), A)
    for a in (DEEP, WIDE):
        for mode in ("reduced", "r"):
            trace(lambda a, mode=mode: jax.lax.linalg.qr(a, mode=mode), a)
        trace(jaxqr.lq, a)
    q, r = jnp.linalg.qr(A[0])
    assert np.isfinite(gradient(jnp.linalg.qr)(A[0])).all()
    assert np.allclose(q @ r, A[0], atol=1e-5)
    print("done")


if __name__ == "__main__":
    main()
