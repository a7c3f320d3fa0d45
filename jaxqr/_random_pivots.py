"""The probability of random pivots."""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxqr._arguments import as_matrices, by_name, compute_dtype, nonnegative
from jaxqr._linalg.batching import smaller
from jaxqr._linalg.reflectors import abs2
from jaxqr._linalg.scaling import magnitudes, unit


@by_name
def log_probability(
    r: ArrayLike, temperature: ArrayLike, *, residual: ArrayLike | None = None
) -> Array:
    """The logarithm of the probability of the pivots that led to R, differentiable.

    Args:
        r: (..., k, n), real or complex: the triangular factor that ``jaxqr.pivoted_qr(a,
            temperature=..., key=...)`` returns, or that of any other order of A's columns.
        temperature: real and > 0; a scalar, or one for each matrix of the batch, (...,).
        residual: A[:, p] - Q R, (..., m, n), where R stops before A does: after ``rank`` pivots
            it is what the columns have left, which counts in each step's probabilities.

    Returns:
        (...,), real: the sum over the k steps of

            log pi_j = log(c_jj^(1/temperature) / sum_{i >= j} c_ji^(1/temperature))

        with c_ji = sum_{l >= j} |r_li|^2, the squared norm that column i has left at step j. A
        step at which nothing is left of any column counts as certain; -inf is what cannot happen.

    Raises:
        ValueError: r or residual has fewer than two axes; they do not match; the temperature has
            another shape than (...,), or is known not to be positive.
        TypeError: an argument is not an array of numbers; the temperature is complex.

    A function of A, through R and the residual, with the permutation p held fixed: that is what
    the score-function (REINFORCE) gradient of an expectation over random pivots takes,

        grad E[L] = E[grad L at p + (L - baseline) grad log P(p)],

    by R. J. Williams, "Simple statistical gradient-following algorithms for connectionist
    reinforcement learning", Machine Learning 8 (1992), where the baseline may be the mean of the
    other samples. The probabilities are those of R. L. Plackett and R. D. Luce, of columns by what
    they have left. It takes O(k n) operations. ``docs/random_pivots.md`` has an example.

    >>> import jax, jax.numpy as jnp, jaxqr, numpy as np
    >>> a = jnp.array([[2.0, 0.0, 0.0], [0.0, 1.0, 1.0]])  # squared norms 4, 1, 1
    >>> r, p = jaxqr.pivoted_qr(a, mode="r", temperature=1.0, key=jax.random.key(0))
    >>> def probability(order):
    ...     r = jaxqr.qr(a[:, jnp.array(order)], mode="r")
    ...     return jnp.exp(jaxqr.log_probability(r, 1.0))
    >>> print(np.asarray(probability([0, 1, 2])).round(4))  # 4/6 1/2
    0.3333
    >>> print(np.asarray(probability([1, 0, 2])).round(4))  # 1/6 4/4
    0.1667
    """
    r = as_matrices("log_probability", "r", r)
    heat = nonnegative("log_probability", "temperature", temperature, positive=True)
    rest = None if residual is None else as_matrices("log_probability", "residual", residual)
    if rest is not None and (*rest.shape[:-2], rest.shape[-1]) != (*r.shape[:-2], r.shape[-1]):
        raise ValueError(
            "log_probability expects residual to be (..., m, n) for r (..., k, n). Got residual of "
            f"shape {rest.shape} and r of shape {r.shape}."
        )
    if heat.shape not in ((), r.shape[:-2]):
        raise ValueError(
            "log_probability expects temperature to be a scalar, or one for each matrix of the "
            f"batch. Got shape {heat.shape}, for r of shape {r.shape}."
        )
    out: Array = _log_probability(r[..., : smaller(*r.shape[-2:]), :], heat, rest)
    return out


@jax.jit
def _log_probability(r: Array, temperature: Array, residual: Array | None) -> Array:
    scalar = compute_dtype(r.dtype)
    real = jnp.finfo(scalar).dtype
    *batch, k, n = r.shape
    steps = jnp.broadcast_to(jnp.triu(jnp.ones((k, n), bool)), r.shape)  # column i at step j <= i
    r = jnp.where(steps, r.astype(scalar), 0)
    heat = jnp.maximum(temperature.astype(real), float(jnp.finfo(real).tiny))  # XLA flushes others
    heat = jnp.broadcast_to(heat, batch)[..., None, None]

    # Squared norms, each in the unit of the largest element in it.
    whole = r if residual is None else jnp.concatenate([r, residual.astype(scalar)], axis=-2)
    sizes = jnp.where(whole == 0, float(jnp.finfo(real).tiny), unit(magnitudes(whole)))
    squares = abs2(whole * (1 / sizes).astype(scalar))
    size, c = lax.associative_scan(_together, (sizes, squares), reverse=True, axis=r.ndim - 2)
    size, c = size[..., :k, :], c[..., :k, :]

    left = steps & (c > 0)
    # Exponents before logarithms: in a step's own unit these have no digits to lose.
    exponents = _beside_largest(jnp.round(jnp.log2(size)), left)
    logs = jnp.log(jnp.where(left, c, 1)) + 2 * math.log(2) * exponents
    any_left = jnp.any(left, axis=-1, keepdims=True)
    # Beside the largest, so that only what is improbable leaves the range of the type.
    logs = _beside_largest(logs, left) / heat
    merits = jnp.where(left, logs, jnp.where(any_left, -jnp.inf, 0))
    chosen = jnp.diagonal(merits, axis1=-2, axis2=-1)
    log_pi = chosen - jax.nn.logsumexp(merits, axis=-1)
    return jnp.sum(jnp.where(any_left[..., 0], log_pi, 0), axis=-1)


def _beside_largest(x: Array, left: Array) -> Array:
    """X (..., k, n) less the largest of each step; 0 where nothing is left."""
    least = float(jnp.finfo(x.dtype).min)
    most = jnp.max(jnp.where(left, x, least), axis=-1, keepdims=True, initial=least)
    return jnp.where(left, x - lax.stop_gradient(most), 0)


def _together(x: tuple[Array, Array], y: tuple[Array, Array]) -> tuple[Array, Array]:
    """The sum of two squares, each with the unit of its root."""
    size = jnp.maximum(x[0], y[0])
    return size, x[1] * (x[0] / size) ** 2 + y[1] * (y[0] / size) ** 2
