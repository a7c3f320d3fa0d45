"""Dependent columns as they come: square-root filters, tensor networks, mixed batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import assert_close, gaussian, inexact

import jaxqr

# A state of two numbers, position and speed; noise in the speed alone; the position is observed.
F = jnp.array([[1.0, 0.1], [0.0, 1.0]])
H = jnp.array([1.0, 0.0])


def noise(parameters):
    """Standard deviations in the speed, as a vector of state, and of the observations."""
    return jnp.exp(parameters[0]) * jnp.array([0.005, 0.1]), jnp.exp(parameters[1])


def covariance_filter(parameters, ys):
    """Means, covariances and log likelihood, from a known start."""
    g, sigma = noise(parameters)

    def step(state, y):
        m, p = state
        m, p = F @ m, F @ p @ F.T + jnp.outer(g, g)
        s, v = H @ p @ H + sigma**2, y - H @ m
        k = p @ H / s
        m, p = m + k * v, p - jnp.outer(k, k) * s
        return (m, p), (m, p, -(v**2 / s + jnp.log(s)) / 2)

    return jax.lax.scan(step, (jnp.ones(2), jnp.zeros((2, 2))), ys)[1]


def square_root_filter(parameters, ys):
    """Likewise, with the covariance as S^T S, upper triangular: it is zero in the beginning."""
    g, sigma = noise(parameters)
    qr_of = functools.partial(jaxqr.qr, mode="r")

    def step(state, y):
        m, s = state
        m, s = F @ m, qr_of(jnp.concatenate([s @ F.T, g[None]]))
        pre = jnp.zeros((3, 3)).at[0, 0].set(sigma).at[1:, 0].set(s @ H).at[1:, 1:].set(s)
        post = qr_of(pre)
        v = y - H @ m
        m, s = m + post[0, 1:] * v / post[0, 0], post[1:, 1:]
        return (m, s), (m, s.T @ s, -(v**2 / post[0, 0] ** 2 + jnp.log(post[0, 0] ** 2)) / 2)

    return jax.lax.scan(step, (jnp.ones(2), jnp.zeros((2, 2))), ys)[1]


def test_square_root_kalman_filter():
    """200 steps, 500 series: the gradient of the log likelihood is the covariance filter's."""
    parameters = jnp.asarray(0.3 * gaussian((500, 2)))
    ys = jnp.cumsum(jnp.asarray(gaussian((500, 200))), axis=1) / 10

    def gradients(run):
        @jax.jit
        @jax.vmap
        def gradient(parameters, ys):
            return jax.value_and_grad(lambda p: jnp.sum(run(p, ys)[2]))(parameters)

        return gradient(parameters, ys)

    assert_close(gradients(square_root_filter), gradients(covariance_filter), 1e-10)


def tria(x):
    return jaxqr.lq(x, mode="l")


def parallel_filter(parameters, ys):
    """Means and covariances by associative_scan, whose square roots are padded with zeros.

    F. Yaghoobi, A. Corenflos, S. Hassan, S. Särkkä, "Parallel square-root statistical linear
    regression for inference in nonlinear state space models", SIAM J. Sci. Comput. 47 (2025).
    """
    g, sigma = noise(parameters)
    root = jnp.zeros((2, 2)).at[:, 0].set(g)

    def element(y, first):
        m = jnp.where(first, F @ jnp.ones(2), 0.0)
        pre = jnp.zeros((3, 3)).at[0, 2].set(sigma).at[0, :2].set(H @ root).at[1:, :2].set(root)
        post = tria(pre)
        s, k = post[0, 0], post[1:, 0] / post[0, 0]
        z = jnp.where(first, 0.0, jnp.zeros((2, 2)).at[:, 0].set(F.T @ H / s))
        a = jnp.where(first, 0.0, F - jnp.outer(k, H @ F))
        return a, m + k * (y - H @ m), post[1:, 1:], z[:, 0] * y / s, z

    def combine(one, two):
        (a, b, u, eta, z), (a2, b2, u2, eta2, z2) = one, two
        zero = jnp.zeros((2, 2))
        xi = tria(jnp.block([[u.T @ z2, jnp.eye(2)], [z2, zero]]))
        x11, x21, x22 = xi[:2, :2], xi[2:, :2], xi[2:, 2:]
        turn = jnp.eye(2) - u @ jnp.linalg.solve(x11.T, x21.T)
        return (
            a2 @ turn @ a,
            a2 @ (turn @ (b + u @ (u.T @ eta2))) + b2,
            tria(jnp.concatenate([a2 @ jnp.linalg.solve(x11, u.T).T, u2], axis=1)),
            a.T @ (turn.T @ (eta2 - z2 @ (z2.T @ b))) + eta,
            tria(jnp.concatenate([a.T @ x22, z], axis=1)),
        )

    elements = jax.vmap(element)(ys, jnp.arange(len(ys)) == 0)
    _, m, u, *_ = jax.lax.associative_scan(jax.vmap(combine), elements)
    return m, u @ u.mT


def test_filter_parallel_in_time():
    ys = jnp.asarray(gaussian((6,)))
    wm, wp = jnp.asarray(gaussian((6, 2))), jnp.asarray(gaussian((6, 2, 2)))

    def value_and_gradient(run):
        def loss(parameters):
            m, p = run(parameters, ys)[:2]
            return jnp.sum(wm * m) + jnp.sum(jnp.sin(wp * p))

        return jax.jit(jax.value_and_grad(loss))(jnp.array([0.1, -0.2]))

    assert_close(value_and_gradient(parallel_filter), value_and_gradient(covariance_filter), 1e-10)


# A matrix product state of eight sites: a product state, and a gate exp(i gamma Z Z) on each pair
# of neighbours, with bonds of two padded with zeros to three.
Z = jnp.array([1.0, -1.0])


def tensors(angles, gammas, *, padded):
    """Of each site, (left bond, 2, right bond); angles (8, 2), gammas (7,)."""
    states = jnp.stack(
        [jnp.cos(angles[:, 0]) + 0j, jnp.exp(1j * angles[:, 1]) * jnp.sin(angles[:, 0])], axis=1
    )
    pad = [(0, padded), (0, 0), (0, padded)]
    for i, v in enumerate(states):
        left = jnp.stack([v, Z * v]) if i else v[None]
        out = left[..., None] + jnp.zeros(1)
        if i < len(gammas):
            gate = jnp.cos(gammas[i]), 1j * jnp.sin(gammas[i]) * Z[None]
            out = jnp.stack([left * gate[0], left * gate[1]], axis=-1)
        edges = [(0, 0) if d == 1 else p for d, p in zip(out.shape, pad, strict=True)]
        yield jnp.pad(out, edges)


def energy(parameters, canonical):
    """Of a chain of X X and Z; by orthonormal tensors, whose norm is that of the last one."""
    state, carry = jnp.ones((1, 1), complex), jnp.ones((1, 1), complex)
    for m in tensors(*parameters, padded=canonical):
        m = jnp.tensordot(carry, m, 1)
        if canonical:
            q, carry = jaxqr.qr(m.reshape(-1, m.shape[-1]), dependent="hold")
            m = q.reshape(*m.shape[:2], -1)
        else:
            carry = jnp.eye(m.shape[-1], dtype=complex)
        state = jnp.tensordot(state, m, 1).reshape(-1, m.shape[-1])
    psi = (state @ carry).reshape((2,) * 8)
    flipped = sum(jnp.flip(psi, (i, i + 1)) for i in range(7))
    z = sum(psi * Z.reshape((2,) + (1,) * (7 - i)) for i in range(8))
    norm = jnp.sum(jnp.abs(carry) ** 2) if canonical else jnp.sum(jnp.abs(psi) ** 2)
    return jnp.sum(jnp.conj(psi) * (flipped + 0.5 * z)).real / norm


def test_matrix_product_state():
    parameters = jnp.asarray(gaussian((8, 2))), jnp.asarray(gaussian((7,)))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        gradients = [
            jax.jit(jax.value_and_grad(functools.partial(energy, canonical=canonical)))(parameters)
            for canonical in (True, False)
        ]
    assert_close(*gradients, 1e-12)


def test_what_comes_before_the_dependent_columns():
    """R[:2, :2] is that of the first two columns, whatever comes after them."""
    a = jnp.asarray(gaussian((5, 4)))
    a = a.at[:, 2].set(a[:, 0] + a[:, 1]).at[:, 3].set(0)

    def loss(qr, a):
        return jnp.sum(jnp.sin(jax.tree.leaves(qr(a))[-1][:2, :2] ** 2))

    expected = jax.grad(functools.partial(loss, jaxqr.qr))(a[:, :2])
    for options in (
        {"mode": "r"},
        {"dependent": "hold"},
        {"dependent": "hold", "mode": "complete"},
    ):
        qr = functools.partial(jaxqr.qr, **options)
        got = jax.jit(jax.grad(functools.partial(loss, qr)))(a)
        assert_close(got[:, :2], expected, 1e-12)
        assert np.abs(got[:, 2:]).max() < 1e-12


FUNCTIONS = {
    "qr": jaxqr.qr,
    "r": functools.partial(jaxqr.qr, mode="r"),
    "hold": functools.partial(jaxqr.qr, dependent="hold"),
    "lq": jaxqr.lq,
    "pivoted": jaxqr.pivoted_qr,
    "pivoted, r": functools.partial(jaxqr.pivoted_qr, mode="r"),
    "multiply": lambda a: jaxqr.qr_multiply(a, a + 1, adjoint=True),
    "lstsq": lambda a: jaxqr.lstsq(a, a[..., 0] + 1),
    "rcond": lambda a: jaxqr.lstsq(a, a[..., 0] + 1, rcond=1e-10),
    "ridge": lambda a: jaxqr.lstsq(a, a[..., 0] + 1, ridge=0.1),
}


@pytest.mark.parametrize(
    ("name", "count"), [*((name, 5) for name in FUNCTIONS), ("r", 70), ("lstsq", 70)], ids=str
)
def test_neighbours_of_bad_matrices(name, count):
    """Values and gradients are what they are among good ones, to the last digit."""

    @jax.jit
    def run(a):
        out, pull = jax.vjp(lambda a: inexact(FUNCTIONS[name](a)), a)
        return out, pull([jnp.cos(x) for x in out])[0]

    a = jnp.asarray(gaussian((count, 5, 3)))
    mixed = a.at[1, :, 1].set(a[1, :, 0]).at[2].set(0).at[3].multiply(1e250).at[4, 2, 1].set(np.nan)
    for x, y in zip(jax.tree.leaves(run(mixed)), jax.tree.leaves(run(a)), strict=True):
        assert np.array_equal(np.delete(x, range(1, 5), 0), np.delete(y, range(1, 5), 0))
