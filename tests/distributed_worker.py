"""One process of several: factors its rows with the others', and writes what it has.

Run as ``python distributed_worker.py COORDINATOR COUNT ID OUT [VICTIM]``; see
test_distributed_processes.py. The process that is the VICTIM dies before the others are done.
"""

import os
import sys
import threading

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxqr import distributed

SHAPE = (24, 3)
LIMIT = 90  # seconds after which this one ends, whatever it waits for


def data():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s) + 1j * rng.standard_normal(s) for s in (SHAPE, SHAPE[:1]))
    return a, b


def programs(mesh):
    """Factors, a gradient through them and through least squares, all of global arrays."""

    def loss(a, b):
        q, r = distributed.sharded_qr(a, mesh, "rows", positive_diagonal=True, reduction="tree")
        x = distributed.sharded_lstsq(a, b, mesh, "rows", 0.1, reduction="gather")
        return (jax.numpy.abs(x) ** 2).sum() + (q**2).real.sum() + jax.numpy.sin(r.real).sum(), r

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def main(coordinator, count, process, out, victim=None):
    end = threading.Timer(LIMIT, os._exit, (3,))
    end.daemon = True
    end.start()
    # Seconds without a sign of life after which a process counts as dead.
    heartbeat = 10 if victim else 60
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator,
        num_processes=int(count),
        process_id=int(process),
        initialization_timeout=60,
        heartbeat_timeout_seconds=heartbeat,
        shutdown_timeout_seconds=heartbeat,
    )
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
    sharding = NamedSharding(mesh, P("rows"))
    a, b = (
        jax.make_array_from_callback(x.shape, sharding, lambda index, x=x: x[index]) for x in data()
    )
    run = programs(mesh)
    while True:
        (value, r), grads = jax.block_until_ready(run(a, b))
        if not victim:
            break
        if process == victim:  # the others go on, and wait for what does not come
            os.kill(os.getpid(), 9)
    (a_bar,), (b_bar,) = (bar.addressable_shards for bar in grads)
    np.savez(out, value=value, r=r, a_bar=a_bar.data, b_bar=b_bar.data)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
