"""Optimistix fits many small curves, by lineax's solvers and jaxqr's: ``python -m bench.curves``.

10000 curves h exp(-r t) + c of 16 noisy points each, three parameters, by Gauss-Newton and by
Levenberg-Marquardt under ``vmap``. Prints seconds (medians of rounds in which the solvers take
turns) and the largest difference of the fitted parameters, as a table in Markdown.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx

from jaxqr.lineax import QR, PivotedQR

COUNT, POINTS, ROUNDS = 10000, 16, 5
SOLVERS = {"lineax QR": lx.QR(), "jaxqr QR": QR(), "jaxqr PivotedQR": PivotedQR()}


def data(count: int = COUNT) -> tuple[jax.Array, jax.Array]:
    """The times (points,), and the curves (count, points)."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 3, POINTS)
    height, rate, level = rng.uniform([1, 0.5, 0], [2, 2, 0.5], (count, 3)).T[..., None]
    y = height * np.exp(-rate * t) + level + 0.01 * rng.standard_normal((count, POINTS))
    return jnp.asarray(t), jnp.asarray(y)


def fit(method: Callable[..., Any], solver: Any, t: jax.Array) -> Callable[..., Any]:
    """The fit of many curves, compiled."""

    def residual(p: jax.Array, y: jax.Array) -> jax.Array:
        return p[0] * jnp.exp(-p[1] * t) + p[2] - y

    def one(y: jax.Array) -> Any:
        start = jnp.stack([y[0] - y[-1], jnp.ones(()), y[-1]])
        search = method(rtol=1e-8, atol=1e-8, linear_solver=solver)
        return optx.least_squares(residual, search, start, args=y, max_steps=64, throw=False).value

    return jax.jit(jax.vmap(one))


def table(count: int = COUNT, rounds: int = ROUNDS) -> str:
    """A row for each method and solver."""
    t, y = data(count)
    lines = ["| method | solver | seconds | largest difference |", "|---|---|---:|---:|"]
    for method in (optx.GaussNewton, optx.LevenbergMarquardt):
        fits = {name: fit(method, solver, t) for name, solver in SOLVERS.items()}
        found = {name: jax.block_until_ready(f(y)) for name, f in fits.items()}
        seconds: dict[str, list[float]] = {name: [] for name in fits}
        for _ in range(rounds):
            for name, f in fits.items():
                start = time.perf_counter()
                jax.block_until_ready(f(y))
                seconds[name].append(time.perf_counter() - start)
        for name, x in found.items():
            off = float(jnp.abs(x - found["lineax QR"]).max())
            lines.append(
                f"| {method.__name__} | {name} | {median(seconds[name]):.3f} | {off:.1e} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    print(table())
