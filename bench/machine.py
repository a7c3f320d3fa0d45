"""Where a measurement was made."""

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path

import jax

import jaxqr
from bench.contestants import cores
from jaxqr._linalg import tuning

PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "lineax", "torch", "tensorflow")

# What pins OpenBLAS's choice by the machine: every LAPACK figure may be worse by it, by up to 2.
PINS = {"OPENBLAS_CORETYPE": "kernel", "OPENBLAS_L2_SIZE": "block sizes"}


def machine() -> dict[str, str]:
    device = jax.devices()[0]
    found = {
        "processor": _processor(),
        "cores": str(cores()),
        "system": f"{platform.system()} {platform.machine()}",
        "JAX device": f"{device.platform} ({device.device_kind})",
        "crossovers": "shipped" if tuning.crossovers() == tuning.SHIPPED_TABLE else "tuned",
        **_lapack(),
        **{name: os.environ[name] for name in PINS if name in os.environ},
    }
    if hasattr(os, "getloadavg"):
        found["load at the start"] = f"{os.getloadavg()[0]:.1f}"
    return found


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "jaxqr": jaxqr.__version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def pinned() -> str:
    """What in the environment keeps OpenBLAS from its own choice, and the way out; or ""."""
    names = [name for name in PINS if name in os.environ]
    if not names:
        return ""
    pins = " and ".join(f"{n}={os.environ[n]} pins OpenBLAS's {PINS[n]}" for n in names)
    way_out = " ".join(f"-u {name}" for name in names)
    return (
        f"{pins}: where that is not the machine's own, LAPACK, and so every contestant that calls "
        f"it, is slower than it would be. Without: env {way_out} python -m bench"
    )


def _lapack() -> dict[str, str]:
    """The kernel and threads of the LAPACK that JAX calls on a CPU, SciPy's, if they are known."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return {}
    import scipy.linalg  # noqa: F401, which loads it
    import threadpoolctl

    found = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    found = list(filter(_is_scipys, found)) or found
    return {
        f"SciPy's {pool['internal_api']}": f"{pool['version']}, kernel "
        f"{pool.get('architecture', 'unknown')}, {pool['num_threads']} threads"
        for pool in found
    }


def _is_scipys(pool: dict[str, str]) -> bool:
    """By its folder, scipy.libs or scipy/.dylibs: NumPy has one of the same name in its own."""
    return any("scipy" in part for part in Path(pool["filepath"]).parts[-3:-1])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
