"""JAX's derivative rule for QR beside the one offered in its place: cost and time.

    python -m bench.upstream              flops, temporaries, compile time (no timing noise)
    python -m bench.upstream --time       adds run times, the two rules taking turns
    python -m bench.upstream --json FILE  writes the rows as JSON too

For every row of the grid, in jvp and in vjp, the same program is compiled under both rules.
flops and temporaries are XLA's own figures for the whole program, value included; XLA does not
count what is done inside LAPACK calls, so those are counted beside them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.timing import Effort, interleave, ratio, spread
from jaxqr.upstream import registered

GRID = [
    (500, 500),
    (1000, 1000),
    (2000, 200),
    (20000, 64),
    (100000, 16),
    (200, 1000),
    (207, 277),
    (5000, 500),
    (10000, 8, 4),
    (2000, 20, 6),
    (100000, 4, 3),
    (4096, 16, 16),
    (512, 64, 32),
    (1000, 12, 30),
]
COMPLETE_ROWS_AT_MOST = 2000  # Q is rows x rows: beyond this it is memory that is measured
MODES: dict[str, Callable[[jax.Array], Any]] = {
    "reduced": lambda a: jnp.linalg.qr(a),
    "r": lambda a: jnp.linalg.qr(a, mode="r"),
    "complete": lambda a: jnp.linalg.qr(a, mode="complete"),
    "pivoted": lambda a: jax.lax.linalg.qr(a, pivoting=True, full_matrices=False)[:2],
}
RULES = {"jax": nullcontext, "offered": registered}


def rows(modes: list[str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for mode in modes:
        for shape in GRID:
            if mode == "complete" and shape[-2] > COMPLETE_ROWS_AT_MOST:
                continue
            if mode == "pivoted" and len(shape) > 2:
                continue  # JAX's rule raises a TypeError: there is nothing to compare with
            yield mode, shape


def jvp_program(f: Callable[[jax.Array], Any]) -> Callable[..., Any]:
    # A new function object each time: jit must not find the other rule's trace.
    return lambda a, tangent, _: jax.jvp(f, (a,), (tangent,))


def vjp_program(f: Callable[[jax.Array], Any]) -> Callable[..., Any]:
    def program(a: jax.Array, _: jax.Array, cotangent: Any) -> Any:
        value, pullback = jax.vjp(f, a)
        return value, pullback(cotangent)

    return program


def random_like(rng: np.random.Generator, x: Any) -> jax.Array:
    value = rng.standard_normal(x.shape)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        value = value + 1j * rng.standard_normal(x.shape)
    return jnp.asarray(value, x.dtype)


def measure(mode: str, shape: tuple[int, ...], dtype: str, ad: str, repeats: int) -> dict[str, Any]:
    f = MODES[mode]
    make = {"jvp": jvp_program, "vjp": vjp_program}[ad]
    rng = np.random.default_rng(0)
    a = random_like(rng, jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)))
    args = (
        a,
        random_like(rng, a),
        jax.tree.map(lambda x: random_like(rng, x), jax.eval_shape(f, a)),
    )
    row: dict[str, Any] = {"mode": mode, "shape": shape, "dtype": dtype, "ad": ad}
    compiled = {}
    for name, rule in RULES.items():
        with rule():
            jax.clear_caches()
            start = time.perf_counter()
            compiled[name] = jax.jit(make(f)).lower(*args).compile()
            row[f"compile_s_{name}"] = time.perf_counter() - start
        cost = compiled[name].cost_analysis()
        row[f"flops_{name}"] = cost.get("flops", 0.0)
        row[f"bytes_{name}"] = cost.get("bytes accessed", 0.0)
        row[f"temp_{name}"] = compiled[name].memory_analysis().temp_size_in_bytes
        row[f"lapack_{name}"] = compiled[name].as_text().count(" custom-call(")
    if repeats:
        calls = {
            name: lambda work=work: jax.block_until_ready(work(*args))
            for name, work in compiled.items()
        }
        for call in calls.values():
            call()
        effort = Effort(total=0.0, sample=0.015, lead=0.12, rounds=(repeats, repeats))
        times = interleave(calls, effort)
        row["time_ratio"] = ratio(times["offered"], times["jax"]).median
        row |= {f"ms_{name}": 1e3 * spread(of).median for name, of in times.items()}
    return row


def table(results: list[dict[str, Any]]) -> str:
    head = ["mode", "shape", "ad", "flops", "temporaries", "LAPACK calls", "compile"]
    timed = any("ms_jax" in row for row in results)
    lines = [head + ["time"] * timed]
    for row in results:
        shape = " x ".join(map(str, row["shape"]))
        line = [row["mode"], shape, row["ad"]]
        line += [f"{row['flops_jax']:.4g} -> {row['flops_offered']:.4g}"]
        line += [f"{row['temp_jax'] / 1e6:.2f} -> {row['temp_offered'] / 1e6:.2f} MB"]
        line += [f"{row['lapack_jax']} -> {row['lapack_offered']}"]
        line += [f"{row['compile_s_jax']:.2f} -> {row['compile_s_offered']:.2f} s"]
        if timed:
            line += [f"{row['ms_jax']:.2f} -> {row['ms_offered']:.2f} ms ({row['time_ratio']:.2f})"]
        lines.append(line)
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summary(results: list[dict[str, Any]]) -> str:
    """After / before, geometric mean and range over the shapes."""
    names = {"flops": "flops", "temp": "temporaries", "compile_s": "compile time", "ms": "run time"}
    names = {key: name for key, name in names.items() if f"{key}_jax" in results[0]}
    lines = [["", *names.values()], ["---"] * (1 + len(names))]
    for mode, ad in dict.fromkeys((row["mode"], row["ad"]) for row in results):
        rows = [row for row in results if (row["mode"], row["ad"]) == (mode, ad)]
        line = [f"{mode} ({len(rows)} shapes), {ad}"]
        for key in names:
            ratios = [row[f"{key}_offered"] / row[f"{key}_jax"] for row in rows]
            mean = statistics.geometric_mean(ratios)
            line.append(f"{mean:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def worse(row: dict[str, Any]) -> bool:
    names = [
        name for name in ("flops", "temp", "lapack") if row[f"{name}_offered"] > row[f"{name}_jax"]
    ]
    return bool(names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--modes", default="reduced,r,complete,pivoted")
    parser.add_argument("--time", type=int, nargs="?", const=15, default=0, metavar="REPEATS")
    parser.add_argument("--shapes", nargs="+", metavar="SHAPE", help="like 512x64x32; default: all")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worse", action="store_true", help="only rows that got worse")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    results = []
    for mode, shape in rows(options.modes.split(",")):
        if options.shapes and "x".join(map(str, shape)) not in options.shapes:
            continue
        for ad in ("jvp", "vjp"):
            print(mode, shape, ad, file=sys.stderr, flush=True)
            results.append(measure(mode, shape, options.dtype, ad, options.time))
    print(f"jax {jax.__version__}, {options.dtype}, {jax.devices()[0].device_kind}\n")
    shown = [row for row in results if worse(row)] if options.worse else results
    print(table(shown))
    print(f"\nAfter / before, geometric mean (range):\n\n{summary(results)}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as out:
            json.dump(results, out, indent=1)


if __name__ == "__main__":
    main()
