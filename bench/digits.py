"""Correct digits of least squares on NIST's certified problems: ``python -m bench.digits``.

Every solver in double precision with its own defaults, on the data as they are. A solver's digits
are those of its worst coefficient. Prints a table in Markdown.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxqr
from tests.nist import PROBLEMS, correct_digits

Solver = Callable[[np.ndarray, np.ndarray], object]


def solvers() -> dict[str, Solver]:
    """By name; lineax's where it is installed."""
    found: dict[str, Solver] = {
        "jaxqr.lstsq": lambda a, b: jaxqr.lstsq(a, b),
        "jaxqr.lstsq, rcond=1e-17": lambda a, b: jaxqr.lstsq(a, b, rcond=1e-17),
        "jnp.linalg.lstsq": lambda a, b: jnp.linalg.lstsq(a, b)[0],
        "numpy.linalg.lstsq": lambda a, b: np.linalg.lstsq(a, b)[0],
    }
    try:
        import lineax
    except ImportError:
        return found

    def by_lineax(solver: object) -> Solver:
        return lambda a, b: (
            lineax.linear_solve(
                lineax.MatrixLinearOperator(jnp.asarray(a)), jnp.asarray(b), solver=solver
            ).value
        )

    return found | {"lineax QR": by_lineax(lineax.QR()), "lineax SVD": by_lineax(lineax.SVD())}


def table() -> str:
    """A row for each solver, a column for each problem."""
    lines = [
        "| correct digits | " + " | ".join(PROBLEMS) + " |",
        "|---" * (len(PROBLEMS) + 1) + "|",
    ]
    for name, solver in solvers().items():
        digits = [correct_digits(solver(a, b), x) for a, b, x in PROBLEMS.values()]
        lines.append(f"| {name} | " + " | ".join(f"{d:.1f}" for d in digits) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    print(table())
