"""The suites: which cases, who takes part, what is measured."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

from bench import distributed
from bench.case import (
    FIRST_PIVOTS,
    GRADIENT,
    KALMAN,
    LAYER,
    LQ,
    LSTSQ,
    PIVOTED,
    PULLBACK,
    QR,
    R_ALONE,
    RHS,
    STEP,
    VALUE,
    Case,
    read_matrix,
)
from bench.contestants import (
    JAX,
    JAXQR,
    LINEAX_AUTO,
    LINEAX_QR,
    SCIPY,
    TENSORFLOW,
    TORCH,
    absent,
)
from bench.equations import EQ3, EQ8, leading_block_is_singular
from bench.measure import (
    COMPILE,
    FIRST_CALL,
    FLOPS,
    PEAK,
    RECEIVED,
    RESIDUALS,
    SECONDS,
    SHARE,
    TEMPORARIES,
    TRACE,
    Measure,
    compiling,
    memory,
    seconds,
    share_of_limit,
)
from bench.timing import Effort
from bench.uses import STEPS

Size = Literal["full", "quick", "tiny"]
Shapes = list[tuple[int, ...]]

EFFORTS: dict[Size, Effort] = {
    "full": Effort(total=1.0, sample=0.015, lead=0.12, rounds=(5, 15)),
    "quick": Effort(total=0.4, sample=0.01, lead=0.12, rounds=(3, 9)),
    "tiny": Effort(total=0.0, sample=0.0, lead=0.0, rounds=(2, 2)),
}

# fmt: off
SHAPES: dict[Size, Shapes] = {
    "full": [
        (500, 500), (1000, 1000), (2000, 200), (5000, 500), (20000, 64), (100000, 16),
        (200, 1000), (207, 277),
        (10000, 8, 4), (100000, 4, 3), (2000, 20, 6), (4096, 16, 16), (512, 64, 32), (1000, 12, 30),
    ],
    "quick": [(500, 500), (20000, 64), (200, 1000), (10000, 8, 4), (512, 64, 32)],
    "tiny": [(6, 4), (3, 5), (2, 4, 3)],
}
LSTSQ_SHAPES: dict[Size, Shapes] = {
    "full": [
        (2000, 50), (20000, 64), (100000, 16), (1000, 500),
        (2000, 20, 6), (10000, 8, 4), (100000, 4, 3),
        (500, 500), (1000, 1000), (300, 400), (500, 1000),
    ],
    "quick": [(2000, 50), (20000, 64), (10000, 8, 4)],
    "tiny": [(6, 4), (2, 4, 3)],
}
COMPILE_SHAPES: dict[Size, Shapes] = {
    "full": [
        (500, 500), (2000, 200), (20000, 64), (200, 1000),
        (10000, 8, 4), (4096, 16, 16), (512, 64, 32),
    ],
    "quick": [(500, 500), (10000, 8, 4)],
    "tiny": [(6, 4)],
}
LIMIT_SHAPES: dict[Size, Shapes] = {
    "full": [
        (500, 500), (1000, 1000), (2000, 2000), (2000, 200), (5000, 500), (20000, 64),
        (100000, 16), (200, 1000), (10000, 8, 4), (4096, 16, 16), (512, 64, 32),
    ],
    "quick": [(500, 500), (20000, 64), (10000, 8, 4)],
    "tiny": [(6, 4), (3, 5)],
}
KALMAN_SHAPES: dict[Size, Shapes] = {  # series and their transitions
    "full": [(500, 4, 4), (500, 8, 8), (500, 16, 16)], "quick": [(500, 8, 8)], "tiny": [(3, 2, 2)],
}
LAYER_SHAPES: dict[Size, Shapes] = {
    "full": [(4096, 8, 4), (4096, 16, 8), (4096, 32, 8), (4096, 32, 16)],
    "quick": [(4096, 16, 8)],
    "tiny": [(3, 5, 2)],
}
RHS_SHAPES: dict[Size, list[tuple[int, int, int]]] = {  # rows, columns, right-hand sides
    "full": [(400, 100, 300), (2000, 50, 100)], "quick": [(400, 100, 300)], "tiny": [(6, 4, 3)],
}
PIVOTS_SHAPES: dict[Size, Shapes] = {
    "full": [(300, 300), (1000, 1000), (2000, 200), (5000, 500), (200, 1000), (100, 100, 100)],
    "quick": [(1000, 1000)],
    "tiny": [(5, 4)],
}
DEFECTS: dict[Size, Sequence[float]] = {
    "full": (1, 1.3, 2, 4, 8, 16), "quick": (1, 2, 8), "tiny": (1, 2),
}
ROWS: dict[Size, Sequence[int]] = {
    "full": (8, 16, 32, 64, 125, 250, 500), "quick": (8, 64, 250), "tiny": (3,),
}
# fmt: on


@dataclasses.dataclass(frozen=True)
class Suite:
    name: str
    title: str
    about: str
    cases: Callable[[Size, Sequence[str]], list[Case]]  # the size, and Matrix Market files
    contestants: Sequence[Any]
    measure: Measure
    metrics: Sequence[str] = (SECONDS,)
    base: str = JAXQR.name  # whom the others are compared with

    def present(self) -> list[Any]:
        return [c for c in self.contestants if not absent(c.name)]

    def absent(self) -> dict[str, str]:
        return {c.name: absent(c.name) for c in self.contestants if absent(c.name)}


def _grid(
    shapes: Shapes, ops: Sequence[str], dtypes: Sequence[str], works: Sequence[str]
) -> list[Case]:
    return [
        Case(op, work, shape, dtype)
        for op in ops
        for work in works
        for dtype in dtypes
        for shape in shapes
    ]


def _of_file(path: str, op: str, work: str, dtype: str = "float64") -> Case:
    return Case(op, work, read_matrix(path).shape, dtype, path)


def _both(size: Size) -> Sequence[str]:
    return ("float32",) if size == "quick" else ("float32", "float64")


def _equations(size: Size, files: Sequence[str]) -> list[Case]:
    shapes: Shapes = [(m, round(defect * m)) for defect in DEFECTS[size] for m in ROWS[size]]
    cases = _grid(shapes, (QR,), ("float64", "complex128"), (PULLBACK,))
    for path in files:
        op = PIVOTED if leading_block_is_singular(path) else QR
        cases += [_of_file(path, op, work) for work in (PULLBACK, GRADIENT)]
    return cases


def _shapes(size: Size, files: Sequence[str]) -> list[Case]:
    cases = _grid(SHAPES[size], (QR, R_ALONE, LQ), _both(size), (VALUE, GRADIENT))
    if size != "quick":
        cases += _grid(SHAPES[size], (QR,), ("complex64", "complex128"), (VALUE, GRADIENT))
    return cases


def _lstsq(size: Size, files: Sequence[str]) -> list[Case]:
    return _grid(LSTSQ_SHAPES[size], (LSTSQ,), _both(size), (VALUE, GRADIENT))


def _rhs(size: Size, files: Sequence[str]) -> list[Case]:
    return [
        dataclasses.replace(case, rhs=rhs)
        for m, n, rhs in RHS_SHAPES[size]
        for case in _grid([(m, n)], (RHS,), _both(size), (VALUE, GRADIENT))
    ]


def _kalman(size: Size, files: Sequence[str]) -> list[Case]:
    return _grid(KALMAN_SHAPES[size], (KALMAN,), _both(size), (VALUE, GRADIENT))


def _layer(size: Size, files: Sequence[str]) -> list[Case]:
    return _grid(LAYER_SHAPES[size], (LAYER,), _both(size), (STEP,))


def _pivoted(size: Size, files: Sequence[str]) -> list[Case]:
    cases = _grid(SHAPES[size], (PIVOTED,), _both(size), (VALUE, GRADIENT))
    cases += _grid(PIVOTS_SHAPES[size], (FIRST_PIVOTS,), _both(size), (VALUE, GRADIENT))
    return cases + [_of_file(path, PIVOTED, work) for path in files for work in (VALUE, GRADIENT)]


def _compile(size: Size, files: Sequence[str]) -> list[Case]:
    return _grid(COMPILE_SHAPES[size], (QR, R_ALONE), ("float32",), (VALUE, GRADIENT))


def _memory(size: Size, files: Sequence[str]) -> list[Case]:
    return _grid(SHAPES[size], (QR, R_ALONE), ("float32",), (VALUE, GRADIENT)) + _grid(
        LSTSQ_SHAPES[size], (LSTSQ,), ("float32",), (VALUE, GRADIENT)
    )


def _limit(size: Size, files: Sequence[str]) -> list[Case]:
    return _grid(LIMIT_SHAPES[size], (QR, R_ALONE), _both(size), (VALUE, PULLBACK))


SUITES = [
    Suite(
        "equations",
        "Eq. 3 against eq. 8",
        "The paper's experiment. Wide QR (defect = columns / rows), differentiated by eq. 3 and by "
        "eq. 8 (Walter and Lehmann's eq. 42, with its correction where the matrix is complex), all "
        "else equal: the factors, the cut of the columns, the triangular solver, one compiled "
        "program each. What is timed is the pullback alone; for files, value and gradient as "
        "well. jaxqr is what the package ships: eq. 3, arranged for speed.",
        _equations,
        (EQ3, EQ8, JAXQR),
        seconds,
        base=EQ3.name,
    ),
    Suite(
        "shapes",
        "QR and LQ over the grid of shapes",
        "The loss weighs all of every output (in mode r, R alone), so no gradient is partly zero. "
        "LQ is QR of the adjoint where the contestant has no other; torch has no gradient in mode "
        "r, and tf no mode r: they form Q as well.",
        _shapes,
        (JAXQR, JAX, TORCH, TENSORFLOW),
        seconds,
    ),
    Suite(
        "lstsq",
        "Least squares, gradients by A and by b",
        "One right-hand side. JAX is jnp.linalg.lstsq (by SVD; under vmap where there is a "
        "batch); lineax runs without the check of its result; torch with the driver that "
        "assumes full rank.",
        _lstsq,
        (JAXQR, JAX, LINEAX_QR, LINEAX_AUTO, TORCH),
        seconds,
    ),
    Suite(
        "rhs",
        "Least squares, vmap over b alone",
        "One matrix, many right-hand sides that jax.vmap maps over, gradients by both.",
        _rhs,
        (JAXQR, JAX, LINEAX_QR),
        seconds,
    ),
    Suite(
        "layer",
        "Least squares as a layer",
        "A step of gradient descent, compiled, on the weights of a small network whose last layer "
        "is solved by least squares, of full rank: a batch of m x n problems, each with its own "
        "layer, judged by m rows more.",
        _layer,
        (JAXQR, JAX, LINEAX_QR),
        seconds,
    ),
    Suite(
        "kalman",
        "A square-root Kalman filter",
        f"The log likelihood of {STEPS} observations, for a batch of series, each with its own "
        "n x n transition: jax.vmap over jax.lax.scan over R alone of (2 n + 1) x (n + 1). "
        "Gradients by the transition and by the observations. JAX is jnp.linalg.qr(mode='r').",
        _kalman,
        (JAXQR, JAX),
        seconds,
    ),
    Suite(
        "pivoted",
        "QR with column pivoting",
        "JAX is jax.scipy.linalg.qr(pivoting=True); its gradient of a wide matrix is timed though "
        "it is wrong in the releases that this was written against. scipy has values only. Of the "
        "first pivots (rank=min(m, n) // 20) the others make all, and leave off the rest.",
        _pivoted,
        (JAXQR, JAX, SCIPY),
        seconds,
    ),
    Suite(
        "compile",
        "The first call",
        "A function that JAX has never seen, after jax.clear_caches(): seconds to trace and lower, "
        "to compile, and both together.",
        _compile,
        (JAXQR, JAX),
        compiling,
        metrics=(FIRST_CALL, TRACE, COMPILE),
    ),
    Suite(
        "memory",
        "Memory",
        "Temporaries: what the compiled program allocates beside arguments and results. Residuals: "
        "bytes alive between the forward and the backward pass, the input among them if it is "
        "kept. Flops: the compiler's own count, which leaves out what LAPACK or cuSOLVER does: it "
        "compares programs that call the same routines, and no others.",
        _memory,
        (JAXQR, JAX),
        memory,
        metrics=(TEMPORARIES, RESIDUALS, FLOPS),
    ),
    Suite(
        "limit",
        "The share of the machine",
        "Operations that the formulas need, a second, over the rate that a product of two square "
        "matrices reaches in the same rounds.",
        _limit,
        (JAXQR, JAX),
        share_of_limit,
        metrics=(SHARE,),
    ),
    Suite(
        "distributed",
        "Rows on several devices",
        "Strong scaling: one matrix on more and more devices. Weak scaling: as many rows on each. "
        "The devices are the host's, and share its cores: times are worth no more than their "
        "ratio. Received: the bytes that collectives bring to each device, by the compiled "
        "program's text; held: arguments, results and temporaries of each device. jaxqr chooses "
        "between tree and gather; JAX is jnp.linalg.qr of the matrix that is sharded likewise.",
        distributed.cases,
        distributed.CONTESTANTS,
        distributed.scaling,
        metrics=(SECONDS, RECEIVED, PEAK),
    ),
]
