"""64 bits, strict types and ranks, and eight devices: a silent cast or broadcast fails a test.

Nearly all of the tests' time is compilation, and much of that is LLVM's optimization of kernels
that run once: it is left out, but where the rounding itself is tested (test_accuracy.py).
"""

import math
import os
import zlib

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

os.environ["JAXQR_TUNING"] = "none"  # nothing that was measured on the machine at hand

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _programs_of_one_file():
    """The programs that a file compiled go with it.

    Each is mapped into memory in a dozen pieces, and those of all files together come near what
    Linux lets one process have (vm.max_map_count, 65530), beyond which the process dies.
    """
    yield
    jax.clear_caches()


def pytest_addoption(parser):
    parser.addoption("--every", type=int, default=1, help="one in so many cases of each test")


def pytest_collection_modifyitems(config, items):
    """Of each test, one in so many of its cases, at least one: which, their names decide."""
    every = config.getoption("every")
    cases = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    chosen = set()
    for of_one in cases.values():
        shuffled = sorted(of_one, key=lambda item: zlib.crc32(item.nodeid.encode()))
        chosen.update(shuffled[: math.ceil(len(of_one) / every)])
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]
