"""Several processes on one machine, with JAX's own runtime between them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distributed_worker import SHAPE, data, programs
from jax.sharding import Mesh
from numerics import assert_close, tolerance

WORKER = Path(__file__).with_name("distributed_worker.py")
LIMIT = 120  # seconds for all processes of a run


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def processes(count, folder, *victim):
    """So many workers, each with a device of its own; none of them outlives the block."""
    port = free_port()
    environment = os.environ | {
        "PYTHONPATH": str(WORKER.parent.parent),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    running = []
    try:
        for i in range(count):
            command = [sys.executable, str(WORKER), f"127.0.0.1:{port}", str(count), str(i)]
            with open(folder / f"{i}.log", "w") as log:
                running.append(
                    subprocess.Popen(
                        [*command, str(folder / f"{i}.npz"), *victim],
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        yield running
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(running):
    """Their return codes, within the limit."""
    end = time.monotonic() + LIMIT
    return [process.wait(max(0.1, end - time.monotonic())) for process in running]


def logs(folder):
    return "\n".join(p.read_text()[-2000:] for p in sorted(folder.glob("*.log")))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_give_what_one_gives(count, tmp_path):
    with processes(count, tmp_path) as running:
        assert wait_for(running) == [0] * count, logs(tmp_path)
    found = [np.load(tmp_path / f"{i}.npz") for i in range(count)]

    mesh = Mesh(np.array(jax.devices("cpu"))[:count], ("rows",))
    (value, r), (a_bar, b_bar) = programs(mesh)(*(jnp.asarray(x) for x in data()))
    tol = tolerance("complex128", SHAPE)
    for each in found:
        assert np.array_equal(each["r"], found[0]["r"])
        assert_close((each["value"], each["r"]), (value, r), tol)
    for name, bar in (("a_bar", a_bar), ("b_bar", b_bar)):
        assert_close(np.concatenate([each[name] for each in found]), bar, tol)


@pytest.mark.parametrize("victim", [0, 1], ids=["coordinator", "other"])
def test_a_process_that_dies_ends_the_others(victim, tmp_path):
    """Within the time that a sign of life may take, and with an error."""
    with processes(2, tmp_path, str(victim)) as running:
        start = time.monotonic()
        codes = wait_for(running)
        assert time.monotonic() - start < 60
    assert codes.pop(victim) == -signal.SIGKILL, logs(tmp_path)
    assert codes[0] not in (0, 3), logs(tmp_path)  # 3: by its own clock alone
