"""Where a measurement was made."""

import importlib.metadata
import os
import platform
from pathlib import Path

import jax

import jaxqr
from bench.contestants import cores

PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "lineax", "torch", "tensorflow")


def machine() -> dict[str, str]:
    device = jax.devices()[0]
    found = {
        "processor": _processor(),
        "cores": str(cores()),
        "system": f"{platform.system()} {platform.machine()}",
        "JAX device": f"{device.platform} ({device.device_kind})",
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


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
