"""Factorizations where people use them: each takes the factorization of one problem as a function.

* :func:`log_likelihood`: a square-root Kalman filter, R alone under ``lax.scan``;
* :func:`training_step`: a small network whose last layer is solved by least squares.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

STEPS = 200  # of the filter
NOISE, RATE = 0.5, 0.01  # of the model and of its observations; of the descent


def log_likelihood(r_alone: Callable[[Array], Array]) -> Callable[[Array, Array], Array]:
    """Of a series y (steps,), given the transition (n, n); the first of n states is observed.

    With the covariance P = U^H U, a step predicts and updates by one triangular factor::

        | noise      0     |      | s   P h^T / s |
        | U F^T h    U F^T |  ->  | 0      U'     |
        | noise h    noise |
    """

    def filtered(a: Array, y: Array) -> Array:
        n = a.shape[-1]
        transition = a / (2 * jnp.sqrt(jnp.asarray(n, a.dtype)))  # a random one is stable then
        observed = jnp.zeros((n, 1), a.dtype).at[0].set(1)
        noise = NOISE * jnp.eye(n, dtype=a.dtype)
        first = jnp.zeros((1, n + 1), a.dtype).at[0, 0].set(NOISE)

        def step(state: Any, y: Array) -> Any:
            x, u = state
            below = jnp.concatenate([u @ transition.T, noise])
            below = jnp.concatenate([below @ observed, below], axis=1)
            r = r_alone(jnp.concatenate([first, below]))
            s, gain, u = r[0, 0], r[0, 1:], r[1:, 1:]
            x = transition @ x
            error = (y - x[0]) / s
            return (x + gain * error, u), -jnp.log(jnp.abs(s)) - (error**2) / 2

        start = jnp.zeros(n, a.dtype), jnp.eye(n, dtype=a.dtype)
        return jnp.sum(lax.scan(step, start, y)[1])

    return filtered


def training_step(solve: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    """One step of gradient descent on weights (n, n): tanh(x weights) are the last layer's input.

    Of each problem in x (batch, 2 m, n) and y (batch, 2 m) the first m rows fit the last layer,
    and the others are what it is judged by.
    """

    def loss(weights: Array, x: Array, y: Array) -> Array:
        features = jnp.tanh(x @ weights)
        m = x.shape[1] // 2
        layer = jax.vmap(solve)(features[:, :m], y[:, :m])
        predicted = (features[:, m:] @ layer[..., None])[..., 0]
        return jnp.mean((predicted - y[:, m:]) ** 2)

    def step(weights: Array, x: Array, y: Array) -> Array:
        return weights - RATE * jax.grad(loss)(weights, x, y)

    return step
