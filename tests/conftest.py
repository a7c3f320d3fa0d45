"""64 bits, strict types and ranks, and eight devices: a silent cast or broadcast fails a test.

Nearly all of the tests' time is compilation, and much of that is LLVM's optimization of kernels
that run once: it is left out, but where the rounding itself is tested (test_accuracy.py).
"""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

os.environ["JAXQR_TUNING"] = "none"  # nothing that was measured on the machine at hand

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
