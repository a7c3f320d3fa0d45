"""The derivative of log|det A| and of its sign, by the augmented system of least squares.

For square A, det A = s e^l with |s| = 1 and real l. For deep A (m > n), l is log sqrt(det A^H A),
the logarithm of the volume of its columns, and s is 1. In both

    dl = Re tau,    ds = i s Im tau (square A),    tau = tr(A^+ dA) = tr(B^H dA)

(Jacobi's formula), so that

    A-bar = (l-bar - i Im(conj(s-bar) s)) B

with B = A^+H, which is the r of the augmented system with f = 0 and g = I (see
:mod:`jaxqr._linalg.augmented`). B is had by the operator that least squares has: so every order and
every expansion follows, from the one factorization.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxqr._linalg.algebra import times_i
from jaxqr._rules.least_squares import Operators, Solved, System, taylor
from jaxqr._rules.taylor import coefficient, from_first

Parts = tuple[Array, Array]  # the sign (...,) and the logarithm (...,)


def right_hand_side(system: System) -> Array:
    """The g of which r is A^+H: the identity, measured."""
    n = system.a.shape[-1]
    eye = jnp.broadcast_to(jnp.eye(n, dtype=system.a.dtype), (*system.a.shape[:-2], n, n))
    g: Array = eye / system.d
    return g


def pullback(
    apply: Operators, system: System, sign: Array, sign_bar: Array | None, log_bar: Array | None
) -> Array:
    """A-bar; a cotangent that is None is zero."""
    b, _ = apply.solve(system, None, right_hand_side(system))
    weight = jnp.zeros_like(sign) if log_bar is None else log_bar.astype(sign.dtype)
    if sign_bar is not None and turns(system):
        weight = weight - times_i((jnp.conj(sign_bar) * sign).imag)
    return weight[..., None, None] * b


def pushforward(apply: Operators, system: System, sign: Array, da: Array) -> Parts:
    """(ds, dl)."""
    b, _ = apply.solve(system, None, right_hand_side(system))
    tau = jnp.sum(jnp.conj(b) * da, axis=(-2, -1))
    return (sign * times_i(tau.imag) if turns(system) else jnp.zeros_like(sign)), tau.real


def turns(system: System) -> bool:
    """Whether the sign can change: that of real A jumps, and that of deep A is 1."""
    m, n = system.a.shape[-2:]
    return bool(jnp.iscomplexobj(system.a) and not m > n)  # JAX refuses symbols that may be equal


def series(apply: Operators, system: System, a: Array, sign: Array) -> Parts:
    """The terms of s and of l beyond the first, (orders - 1, ...), from those of A, all of them.

    t l'(t) = Re tau(t) with tau(t) = tr(B^H t A'(t)), and t s'(t) = i s(t) Im tau(t).
    """
    orders = a.shape[0]
    g = right_hand_side(system)
    first = Solved(system, None, g, *apply.solve(system, None, g))
    terms = first._replace(system=system._replace(a=a), g=from_first(g, orders))
    bs, _ = taylor(apply, first, terms)
    order = jnp.arange(orders).astype(a.real.dtype)
    slopes = order.reshape(-1, *[1] * (a.ndim - 1)).astype(a.dtype) * a
    taus = inner_products(bs, slopes)[1:]
    order = order[1:].reshape(-1, *[1] * sign.ndim)
    logs = taus.real / order
    if not turns(system):
        return jnp.zeros_like(sign, shape=logs.shape), logs
    signs = [sign]
    for d in range(1, orders):
        steps = times_i(taus[:d].imag) * jnp.stack(signs[::-1])
        signs.append(jnp.sum(steps, axis=0) / d)
    return jnp.stack(signs[1:]), logs


def inner_products(x: Array, y: Array) -> Array:
    """The series of tr(X^H Y), (orders, ...), from those of X and Y, (orders, ..., m, n)."""

    def of_matrix(x: Array, y: Array) -> Array:
        orders, m, n = x.shape
        rows, columns = jnp.conj(x).reshape(orders, 1, m * n), y.reshape(orders, m * n, 1)
        out: Array = lax.map(lambda d: coefficient(rows, columns, d)[0, 0], jnp.arange(len(x)))
        return out

    for _ in x.shape[1:-2]:
        of_matrix = jax.vmap(of_matrix, 1, 1)
    return of_matrix(x, y)
