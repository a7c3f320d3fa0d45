"""Who takes part, and how each does the same work."""

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bench.case import (
    FIRST_PIVOTS,
    GRADIENT,
    KALMAN,
    LAYER,
    LQ,
    LSTSQ,
    PIVOTED,
    QR,
    R_ALONE,
    RHS,
    STEP,
    VALUE,
    Case,
)
from bench.case import inputs as inputs_of
from bench.case import weights as weights_of
from bench.timing import Call
from bench.uses import log_likelihood, training_step

Outputs = tuple[Any, ...]
Function = Callable[..., Outputs]  # of the inputs


class Unsupported(Exception):
    """The contestant does not do this, for the reason given."""


class Contestant(Protocol):
    @property
    def name(self) -> str: ...

    def prepare(self, case: Case) -> Call:
        """The work of the case, with its inputs in place."""


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- In JAX: a contestant is a choice of function.


@dataclasses.dataclass(frozen=True)
class InJax:
    name: str
    function: Callable[[Case], Function]

    def prepare(self, case: Case) -> Call:
        work, args = self.program(case)
        compiled, args = jax.jit(work), jax.block_until_ready(jax.device_put(args))
        return lambda: jax.block_until_ready(compiled(*args))

    def program(self, case: Case) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """A function that is new to JAX's caches, and its arguments."""
        return _program(self.function(case), case)


def _program(function: Function, case: Case) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    args = inputs_of(case)
    if case.work in (VALUE, STEP):
        return lambda *args: function(*args), args
    weights = weights_of(case)
    if case.work == GRADIENT:

        def loss(weights: Outputs, *args: Any) -> Any:
            outputs = function(*args)
            return sum(
                jnp.sum((w * jnp.conj(x)).real) for w, x in zip(weights, outputs, strict=True)
            )

        arguments = tuple(range(1, 1 + len(args)))
        return jax.value_and_grad(loss, argnums=arguments), (weights, *args)

    # The backward pass alone: from what the forward pass kept, and the cotangents.
    pullback = jax.jit(lambda *args: jax.vjp(function, *args)[1])(*args)
    return lambda pullback, cotangents: pullback(cotangents), (pullback, weights)


def _unknown(name: str, case: Case) -> Unsupported:
    return Unsupported(f"{name} has no {case.op}")


def _jaxqr_function(case: Case) -> Function:
    import jaxqr

    def r_alone(a: Any) -> Any:
        return jaxqr.qr(a, mode="r")

    functions: dict[str, Function] = {
        QR: jaxqr.qr,
        R_ALONE: lambda a: (r_alone(a),),
        LQ: jaxqr.lq,
        PIVOTED: lambda a: jaxqr.pivoted_qr(a)[:2],
        FIRST_PIVOTS: lambda a: jaxqr.pivoted_qr(a, rank=case.pivots)[:2],
        LSTSQ: lambda a, b: (jaxqr.lstsq(a, b),),
        KALMAN: _kalman(r_alone, case),
    }
    return functions.get(case.op) or _by_solving(jaxqr.lstsq, case)


def _jax_function(case: Case) -> Function:
    def lq(a: Any) -> Outputs:
        q, r = jnp.linalg.qr(jnp.conj(a.mT))
        return jnp.conj(r.mT), jnp.conj(q.mT)

    def r_alone(a: Any) -> Any:
        return jnp.linalg.qr(a, mode="r")

    def pivoted(a: Any) -> Outputs:
        return tuple(jax.scipy.linalg.qr(a, mode="economic", pivoting=True)[:2])

    def first_pivots(a: Any) -> Outputs:
        q, r = pivoted(a)
        return q[..., : case.pivots], r[..., : case.pivots, :]

    functions: dict[str, Function] = {
        QR: lambda a: tuple(jnp.linalg.qr(a)),
        R_ALONE: lambda a: (r_alone(a),),
        LQ: lq,
        PIVOTED: pivoted,
        FIRST_PIVOTS: first_pivots,
        KALMAN: _kalman(r_alone, case),
    }
    return functions.get(case.op) or _by_solving(lambda a, b: jnp.linalg.lstsq(a, b)[0], case)


def _kalman(r_alone: Callable[[Any], Any], case: Case) -> Function:
    return lambda a, y: (over_batch(log_likelihood(r_alone), case)(a, y),)


def _by_solving(one: Callable[[Any, Any], Any], case: Case) -> Function:
    """What is made of the least squares ONE, of a matrix (m, n) and a right-hand side (m,)."""
    functions: dict[str, Function] = {
        LSTSQ: lambda a, b: (over_batch(one, case)(a, b),),
        RHS: lambda a, b: (jax.vmap(one, in_axes=(None, 0))(a, b),),
        LAYER: lambda weights, x, y: (training_step(one)(weights, x, y),),
    }
    return functions[case.op]


def over_batch(one: Callable[..., Any], case: Case) -> Callable[..., Any]:
    """ONE, which takes a matrix, over the batch axes of the case."""
    for _ in case.shape[:-2]:
        one = jax.vmap(one)
    return one


def _lineax_function(solver: str) -> Callable[[Case], Function]:
    def function(case: Case) -> Function:
        import lineax

        if case.op not in (LSTSQ, RHS, LAYER):
            raise _unknown("lineax", case)
        solvers = {"QR": lineax.QR(), "Auto": lineax.AutoLinearSolver(well_posed=None)}

        def one(a: Any, b: Any) -> Any:
            operator = lineax.MatrixLinearOperator(a)
            # throw=False: without the check of the result, which jaxqr does not make either.
            return lineax.linear_solve(operator, b, solvers[solver], throw=False).value

        return _by_solving(one, case)

    return function


JAXQR = InJax("jaxqr", _jaxqr_function)
JAX = InJax("JAX", _jax_function)
LINEAX_QR = InJax("lineax QR", _lineax_function("QR"))
LINEAX_AUTO = InJax("lineax Auto", _lineax_function("Auto"))


# --- Elsewhere, on the CPU.


@dataclasses.dataclass(frozen=True)
class Torch:
    name: str = "torch"

    def prepare(self, case: Case) -> Call:
        import torch

        torch.set_num_threads(cores())
        function = self._function(case)
        differentiated = case.work != VALUE
        args = [torch.from_numpy(x).requires_grad_(differentiated) for x in inputs_of(case)]
        weights = [torch.from_numpy(w) for w in weights_of(case)]

        def value() -> object:
            with torch.no_grad():
                return function(*args)

        def value_and_gradient() -> object:
            loss = sum(
                (w * x.conj()).real.sum() for w, x in zip(weights, function(*args), strict=True)
            )
            return loss, torch.autograd.grad(loss, args)

        return value_and_gradient if differentiated else value

    def _function(self, case: Case) -> Function:
        import torch

        qr = torch.linalg.qr

        def lq(a: Any) -> Outputs:
            q, r = qr(a.mH)
            return r.mH, q.mH

        def lstsq(a: Any, b: Any) -> Outputs:  # "gels" assumes full rank, as jaxqr.lstsq does
            return (torch.linalg.lstsq(a, b[..., None], driver="gels").solution[..., 0],)

        # Mode "r" has no gradient in torch: who wants it forms Q as well.
        mode = "r" if case.work == VALUE else "reduced"
        functions: dict[str, Function] = {
            QR: lambda a: qr(a),
            R_ALONE: lambda a: (qr(a, mode=mode)[1],),
            LQ: lq,
            LSTSQ: lstsq,
        }
        if case.op not in functions:
            raise _unknown("torch", case)
        return functions[case.op]


@dataclasses.dataclass(frozen=True)
class TensorFlow:
    name: str = "tf"

    def prepare(self, case: Case) -> Call:
        import tensorflow as tf

        functions: dict[str, Function] = {
            QR: lambda a: tf.linalg.qr(a),
            R_ALONE: lambda a: (tf.linalg.qr(a)[1],),
        }
        if case.op not in functions:
            raise _unknown("tf", case)
        args = [tf.constant(x) for x in inputs_of(case)]
        weights = [tf.constant(w) for w in weights_of(case)]

        def value(*args: Any) -> Outputs:
            return tuple(functions[case.op](*args))

        def value_and_gradient(*args: Any) -> Outputs:
            with tf.GradientTape() as tape:
                tape.watch(args)
                loss = sum(
                    tf.reduce_sum(tf.math.real(w * tf.math.conj(x)))
                    for w, x in zip(weights, value(*args), strict=True)
                )
            return loss, tape.gradient(loss, args)

        compiled = tf.function(value if case.work == VALUE else value_and_gradient)
        return lambda: [np.asarray(x) for x in tf.nest.flatten(compiled(*args))]


@dataclasses.dataclass(frozen=True)
class SciPy:
    name: str = "scipy"

    def prepare(self, case: Case) -> Call:
        import scipy.linalg

        if case.op not in (PIVOTED, FIRST_PIVOTS) or case.work != VALUE:
            raise Unsupported("scipy has no derivatives")
        if len(case.shape) > 2:
            raise Unsupported("scipy is not run on batches")
        (a,) = inputs_of(case)
        return lambda: scipy.linalg.qr(a, mode="economic", pivoting=True, check_finite=False)


TORCH, TENSORFLOW, SCIPY = Torch(), TensorFlow(), SciPy()


@functools.cache
def absent(name: str) -> str:
    """The package that a contestant lacks here, or ""."""
    packages = {"torch": "torch", "tf": "tensorflow", "scipy": "scipy", "lineax": "lineax"}
    package = packages.get(name.split()[0])
    return package if package and importlib.util.find_spec(package) is None else ""
