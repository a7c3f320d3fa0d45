"""What value and gradient ask of a GPU, without one: ``python -m bench.lowered [SHAPE ...]``.

What is chosen as in :mod:`bench.thunks`. Counted in the StableHLO that JAX lowers it to, of jaxqr
as it is where nothing was measured, and with the CPU's crossovers. XLA fuses what is elementwise:
what there is beside library calls and products is more operations than kernels. All branches of a
choice count, and a loop's body once.
"""

import collections
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from bench.case import Case
from bench.contestants import JAX, JAXQR, InJax
from bench.thunks import cases, of_cases
from jaxqr._linalg import tuning
from jaxqr._linalg.crossovers import SHIPPED

CALLS, PRODUCTS, LOOPS, OTHERS, MEGABYTES = "library calls", "products", "loops", "others", "MB"
_KINDS = {
    "stablehlo.custom_call": CALLS,
    "stablehlo.triangular_solve": CALLS,
    "stablehlo.cholesky": CALLS,
    "stablehlo.dot_general": PRODUCTS,
    "stablehlo.while": LOOPS,
}
# What holds other operations, and what asks for nothing.
_FREE = re.compile(r"func\.|stablehlo\.(return|constant|iota|case|if|optimization_barrier)")
_LAYOUT = "LayoutConstraint"
_TYPE = re.compile(r"tensor<((?:\d+x)*)(complex<)?[a-z]+(\d+)>?>")


def counted(case: Case, contestant: InJax, platform: str = "cuda") -> Mapping[str, float]:
    """How many of each kind, and the megabytes that calls and products read and write."""
    work, args = contestant.program(case)
    module = jax.jit(work).trace(*args).lower(lowering_platforms=(platform,)).compiler_ir()
    functions = {function.name.value: function.operation for function in module.body.operations}
    found: dict[str, float] = collections.Counter()
    for operation in _operations(functions["main"], functions):
        kind = _KINDS.get(operation.name, OTHERS)
        found[kind] += 1
        if kind in (CALLS, PRODUCTS):
            values = (*operation.operands, *operation.results)
            found[MEGABYTES] += sum(_bytes(str(value.type)) for value in values) / 1e6
    return found


def _operations(inside: Any, functions: Mapping[str, Any]) -> Iterator[Any]:
    """All that is done, functions in each place that calls them."""
    for block in (block for region in inside.regions for block in region.blocks):
        for operation in (view.operation for view in block.operations):
            if not _is_free(operation):
                yield operation
            if operation.name == "func.call":
                yield from _operations(functions[operation.attributes["callee"].value], functions)
            elif operation.name != "stablehlo.reduce":
                yield from _operations(operation, functions)


def _is_free(operation: Any) -> bool:
    if operation.name == "stablehlo.custom_call":
        return bool(operation.attributes["call_target_name"].value == _LAYOUT)
    return _FREE.match(operation.name) is not None


def _bytes(of: str) -> int:
    """Of a type like tensor<4096x16xcomplex<f64>>."""
    found = _TYPE.fullmatch(of)
    if found is None:
        raise ValueError(f"{of} is no type of an array")
    sizes, is_complex, bits = found.groups()
    elements = math.prod(int(size) for size in sizes.split("x") if size)
    return elements * max(int(bits) // 8, 1) * (2 if is_complex else 1)


def main(argv: Sequence[str] | None = None) -> int:
    parser = of_cases("python -m bench.lowered", __doc__)
    parser.add_argument("--platform", default="cuda", choices=("cuda", "rocm", "tpu"))
    args = parser.parse_args(argv)
    kinds = (CALLS, PRODUCTS, LOOPS, OTHERS, MEGABYTES)
    contestants: list[tuple[str, InJax, tuning.ByPlatform]] = [
        ("JAX", JAX, {}),
        ("jaxqr", JAXQR, {}),
        ("jaxqr, the CPU's crossovers", JAXQR, {args.platform: SHIPPED}),
    ]
    print("| matrix | | " + " | ".join(kinds) + " |")
    print("| --- | --- |" + " ---: |" * len(kinds))
    with jax.enable_x64(True):
        for case in cases(args):
            for name, contestant, table in contestants:
                with tuning.forced(table):
                    found = counted(case, contestant, args.platform)
                cells = [f"{found.get(kind, 0):.4g}" for kind in kinds]
                print("| " + " | ".join([case.matrix, name, *cells]) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
