"""Errors of gradients over the condition number and over scale: ``python -m bench.precision``.

Draws docs/figures/*.png, and prints what is in them. Each dot is the geometric mean over several
matrices of ||error|| / ||gradient|| against 80-bit arithmetic. Gradients are those of a loss that
weighs every output by a random number.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

import jaxqr
from bench.plots import BLUE, GREEN, ORANGE, RED, STYLE
from tests.extended import extended, extended_pullback, extended_qr
from tests.numerics import gaussian, matrix

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
SHAPE = (60, 12)
SEEDS = range(5)
Curves = dict[str, list[float]]

FACTORIZATIONS: dict[str, Callable[[Any], Any]] = {
    "jaxqr.qr": lambda a: jaxqr.qr(a, positive_diagonal=True),
    "jnp.linalg.qr": lambda a: _positive(*jnp.linalg.qr(a)),
}
SOLVERS: dict[str, Callable[[Any, Any], Any]] = {
    "jaxqr.lstsq": jaxqr.lstsq,
    "jaxqr.lstsq, rcond=1e-14": lambda a, b: jaxqr.lstsq(a, b, rcond=1e-14),
    "jnp.linalg.lstsq": lambda a, b: jnp.linalg.lstsq(a, b)[0],
    "normal equations": lambda a, b: jnp.linalg.solve(a.T @ a, a.T @ b),
}
COLOURS = dict(zip([*FACTORIZATIONS, *SOLVERS], (BLUE, RED, BLUE, GREEN, RED, ORANGE), strict=True))


def _positive(q: Any, r: Any) -> Any:
    signs = jnp.sign(jnp.diagonal(r))
    return q * signs, signs[:, None] * r


def _error(found: Any, true: np.ndarray) -> float:
    size = np.max(np.abs(true))  # no square leaves the range of the type
    error, true = ((x / size).ravel() for x in (np.asarray(found) - true, true))
    return float(np.sqrt((error @ error) / (true @ true)))


def _mean(errors: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(errors)))) if np.isfinite(errors).all() else np.nan


def qr_errors(a: np.ndarray, seed: int) -> dict[str, float]:
    """Of the gradient of each factorization, by name."""
    q, r = extended_qr(extended(a))
    bars = [gaussian(x.shape, a.dtype, seed + i) for i, x in enumerate((q, r))]
    true = extended_pullback(extended(a), q, r, *(extended(bar) for bar in bars))
    return {
        name: _error(jax.vjp(f, jnp.asarray(a))[1](tuple(map(jnp.asarray, bars)))[0], true)
        for name, f in FACTORIZATIONS.items()
    }


def _solve_upper(u: np.ndarray, b: np.ndarray) -> np.ndarray:
    x = b.copy()
    for i in reversed(range(len(u))):
        x[i] = (x[i] - u[i, i + 1 :] @ x[i + 1 :]) / u[i, i]
    return x


def _solve_lower(low: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _solve_upper(low[::-1, ::-1], b[::-1])[::-1]


def lstsq_errors(a: np.ndarray, seed: int) -> dict[str, float]:
    """Of the gradient with respect to A of each solver, by name."""
    x_true = gaussian((a.shape[1],), "float64", seed)
    noise = 1e-2 * gaussian((a.shape[0],), "float64", seed + 1)
    b = (a @ x_true + noise * np.max(np.abs(a))).astype(a.dtype)
    x_bar = gaussian((a.shape[1],), a.dtype, seed + 2)
    wide, rhs = extended(a), extended(b)
    q, u = extended_qr(wide)
    x = _solve_upper(u, q.T @ rhs)
    z = _solve_lower(u.T, extended(x_bar))
    true = np.outer(rhs - wide @ x, _solve_upper(u, z)) - np.outer(q @ z, x)
    return {
        name: _error(jax.vjp(f, jnp.asarray(a), jnp.asarray(b))[1](jnp.asarray(x_bar))[0], true)
        for name, f in SOLVERS.items()
    }


def over_condition(
    errors: Callable[[np.ndarray, int], dict[str, float]], dtype: str
) -> tuple[list[float], Curves]:
    """Condition numbers, and the mean errors by name."""
    most = -np.log10(float(np.finfo(dtype).eps)) - 0.5
    conds = list(10.0 ** np.arange(0, most, 0.5))
    return conds, _curves([[errors(matrix(SHAPE, dtype, c, s), s) for s in SEEDS] for c in conds])


def over_scale(
    errors: Callable[[np.ndarray, int], dict[str, float]], dtype: str
) -> tuple[list[float], Curves]:
    """Powers of ten by which a matrix of condition 10 is multiplied, and the mean errors."""
    limits = np.finfo(dtype)
    low, high = np.log10(float(limits.tiny)), np.log10(float(limits.max))
    scales = list(10.0 ** np.linspace(low + 4, high - 2, 25))
    matrices = [
        [matrix(SHAPE, dtype, 10, s) * np.dtype(dtype).type(x) for s in SEEDS] for x in scales
    ]
    return scales, _curves(
        [[errors(a, s) for s, a in zip(SEEDS, row, strict=True)] for row in matrices]
    )


def _curves(errors: list[list[dict[str, float]]]) -> Curves:
    names = errors[0][0]
    return {name: [_mean([e[name] for e in at]) for at in errors] for name in names}


def _panel(axes: Any, x: Any, curves: Mapping[str, list[float]]) -> None:
    for name, y in curves.items():
        axes.semilogy(x, y, "o-", markersize=3, linewidth=1, color=COLOURS[name], label=name)


def figure(name: str, title: str, what: Callable[..., Any], errors: Callable[..., Any]) -> None:
    """One figure, float32 beside float64."""
    with plt.rc_context(STYLE):
        fig, panels = plt.subplots(1, 2, figsize=(8.5, 3.2))
        for axes, dtype in zip(panels, ("float32", "float64"), strict=True):
            x, curves = what(errors, dtype)
            powers = np.log10(x)  # the axis itself is linear: matplotlib's overflows at 1e300
            _panel(axes, powers, curves)
            eps = float(np.finfo(dtype).eps)
            if what is over_condition:
                axes.semilogy(
                    powers, [eps * c for c in x], color="#999", linestyle=":", label="eps cond"
                )
                axes.set_xlabel("condition number of A, power of ten")
            else:
                axes.axhline(eps, color="#999", linestyle=":", label="eps")
                axes.set_xlabel("largest singular value of A, power of ten")
            axes.set_ylabel("relative error of the gradient")
            axes.set_title(f"{title}, {dtype}")
            print(f"{title}, {dtype}")
            for curve, y in curves.items():
                print(f"  {curve}: " + " ".join(f"{v:.1e}" for v in y))
        panels[1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
        fig.savefig(FIGURES / f"{name}.png")
        plt.close(fig)


def main() -> None:
    """All figures."""
    FIGURES.mkdir(exist_ok=True)
    figure("qr_condition", "QR", over_condition, qr_errors)
    figure("lstsq_condition", "Least squares", over_condition, lstsq_errors)
    figure("qr_scale", "QR", over_scale, qr_errors)
    figure("lstsq_scale", "Least squares", over_scale, lstsq_errors)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
