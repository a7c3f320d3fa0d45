"""Turns a forward computation and its pair of derivative rules into a differentiable function.

Here, and in :mod:`jaxqr._linalg.exporting`, are the primitives with their rules for JAX's
interpreters. There are two wirings of the same rules:

* :func:`reverse_mode` makes a ``jax.custom_vjp``: the pullback, and nothing but the pullback.
* :func:`forward_mode` makes a ``jax.custom_jvp`` whose tangent map is one linear primitive, the
  pushforward, whose transpose is the pullback. ``jvp``, ``linearize``, ``jacfwd``, ``hessian`` and
  ``grad`` all work, and ``grad`` costs what it costs in reverse mode. The primitive is our own
  because a linear function with a given transpose has no public spelling under ``vmap``:
  ``jax.custom_derivatives.linear_call`` has no batching rule.

In both, the function itself and its pullback are primitives: so ``jax.experimental.jet``, which
enters the bodies of custom rules and does not look at these, finds a rule there (see
:mod:`jaxqr._autodiff.series`) instead of the steps of an algorithm, of which some would count as
constant.

Rules follow the paper's convention dL = Re tr(G-bar^H dG). JAX's cotangents are the conjugates of
those, so what comes in and what goes out is conjugated, here and nowhere else.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero, zero_from_primal
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

Arrays = tuple[Array, ...]
# A tangent or cotangent that is None is zero.
MaybeArrays = tuple[Array | None, ...]
Wiring = Callable[[Any], Callable[..., Arrays]]


class Rule(Protocol):
    """A linear map and its adjoint, given the residuals. Compared and hashed by value."""

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        """Tangents of the inexact outputs from those of the inputs."""

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Arrays:
        """Cotangents of the inputs from those of the inexact outputs."""


class Differentiable(Rule, Protocol):
    """A function of arrays with its derivative. Compared and hashed by value.

    One that has Taylor coefficients has two more methods, of series, lists of what is an argument,
    an output or a residual at each order: ``taylor(args, wire)``, the outputs, of which those of
    integer type are at order 0 alone, where ``wire`` makes functions of other rules differentiable;
    and ``recovered(residuals)``, the arguments, and the outputs at order 0 if they are known. One
    whose outputs come another way where a derivative follows has ``before_derivative()``, the rule
    that takes it.
    """

    @property
    def caller(self) -> str:
        """The public function that it is part of, by name."""

    def forward(self, *args: Array) -> Arrays:
        """The outputs; those of integer type, if any, come last and carry no derivative."""

    def residuals(self, args: Arrays, outputs: Arrays) -> Arrays:
        """What the rules read, and no more."""


def _before_derivative(f: Any) -> Any:
    return f.before_derivative() if hasattr(f, "before_derivative") else f


def _conj(xs: MaybeArrays) -> Any:
    return tuple(None if x is None else jnp.conj(x) for x in xs)


def none_for_zero(xs: Sequence[Any]) -> MaybeArrays:
    """Tangents or cotangents, of which JAX's zeros become None."""
    return tuple(None if isinstance(x, ad.Zero | SymbolicZero) else x for x in xs)


def or_zeros(xs: MaybeArrays, like: Sequence[Array]) -> Arrays:
    """Tangents or cotangents with zeros for None, as many as there are of them."""
    pairs = zip(xs, like, strict=False)
    # Of integers, such as an order of rows, JAX wants zeros of a type of their own.
    return tuple(zero_from_primal(y) if x is None else x for x, y in pairs)


def _jax_pullback(rule: Rule, residuals: Arrays, cotangents: MaybeArrays) -> MaybeArrays:
    """The cotangents of the arguments, through ``pullback_p``; None for what is constant."""
    present = tuple(c is not None for c in cotangents)
    operands = (*residuals, *(c for c in cotangents if c is not None))
    pull = functools.partial(_pulled, rule=rule, present=present)
    traced, shapes = jax.make_jaxpr(pull, return_shape=True)(*map(jax.typeof, operands))
    moving = tuple(x is not None for x in shapes)
    bars = iter(
        pullback_p.bind(*operands, traced=traced, rule=rule, present=present, moving=moving)
    )
    return tuple(next(bars) if m else None for m in moving)


def _pulled(*operands: Array, rule: Rule, present: tuple[bool, ...]) -> Arrays:
    residuals, cotangents = unpack(operands, present)
    # Cotangents wait for the residuals: XLA would bring those that it has into place before the
    # forward pass, and keep them in memory all along.
    _, cotangents = lax.optimization_barrier((residuals, cotangents))
    out: Arrays = _conj(rule.pullback(residuals, _conj(cotangents)))
    return out


def is_inexact(x: Array) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def varying_alike(xs: Sequence[Array]) -> list[Array]:
    """The arrays, each varying over all the axes of a ``shard_map`` over which one of them does.

    A function of several arguments needs it: the cotangent of an argument that is the same on all
    devices is a sum over them, which JAX takes where the argument is made to vary.
    """
    zeros = [jnp.zeros_like(x, dtype=bool, shape=()) for x in xs]
    varying = functools.reduce(jnp.logical_or, zeros)
    return [
        x if jax.typeof(zero) == jax.typeof(varying) else x + varying.astype(x.dtype)
        for x, zero in zip(xs, zeros, strict=True)
    ]


@functools.cache
def reverse_mode(f: Differentiable) -> Callable[..., Arrays]:
    """F as a ``jax.custom_vjp``. Residuals are functions of inputs and outputs alone.

    The outputs among the residuals carry a derivative of their own, which is this one: so higher
    orders come by themselves.
    """
    f = _before_derivative(f)
    function = functools.partial(_function, rule=f, forward=False)

    def fwd(*primals: Any) -> tuple[Arrays, Arrays]:
        args = tuple(p.value for p in primals)
        outputs = function(*args)
        return outputs, f.residuals(args, outputs)

    def bwd(residuals: Arrays, cotangents: tuple[Any, ...]) -> MaybeArrays:
        return _jax_pullback(f, residuals, none_for_zero(cotangents))

    wrapped = jax.custom_vjp(function)
    wrapped.defvjp(fwd, bwd, symbolic_zeros=True)

    def in_reverse_alone(*args: Array) -> Arrays:
        outputs: Arrays = wrapped(*(watched_p.bind(x, caller=f.caller) for x in args))
        return outputs

    return in_reverse_alone


@functools.cache
def forward_mode(f: Differentiable) -> Callable[..., Arrays]:
    """F as a ``jax.custom_jvp`` through the linear primitive ``pushforward_p``."""
    f = _before_derivative(f)
    function = functools.partial(_function, rule=f, forward=True)

    def jvp(primals: Arrays, tangents: tuple[Any, ...]) -> tuple[Arrays, tuple[Any, ...]]:
        outputs = function(*primals)
        dots = iter(linear(f, f.residuals(primals, outputs), none_for_zero(tangents)))
        return outputs, tuple(
            next(dots) if is_inexact(out) else zero_from_primal(out, symbolic_zeros=True)
            for out in outputs
        )

    wrapped = jax.custom_jvp(function)
    wrapped.defjvp(jvp, symbolic_zeros=True)
    return wrapped


def differentiated(f: Any, forward: bool) -> Callable[..., Any]:
    """F in one of the two wirings; see :func:`varying_alike`."""
    return lambda *args: _function(*varying_alike(args), rule=f, forward=forward)


# Forward mode meets a custom_vjp with a sentence of JAX's that names neither the function nor the
# way out, and as late as when the tangent is computed, vectorized or lowered. So arguments on their
# way into one pass an identity whose tangent map is a primitive that is refused in the same places
# with a sentence of ours. Its transpose is the identity. Both are primitives, for these are mapped
# before they are differentiated, as a custom_vjp is: so the tangent map is mapped only where
# forward mode is, by vmap of a jvp or of what a Jacobian's columns go through.


_FORWARD_REFUSED = (
    "jaxqr's {caller} is for reverse mode unless told otherwise: call it with "
    "forward_mode=True, and jax.jvp, jax.jacfwd, jax.linearize and jax.hessian take it too."
)


_TRANSPOSE_REFUSED = (
    "jaxqr's {caller} is not known to be linear in any argument: call it with forward_mode=True, "
    "and transpose the map that jax.linearize returns."
)


def _refuse_forward(*_: Any, caller: str, **__: Any) -> Any:
    raise TypeError(_FORWARD_REFUSED.format(caller=caller))


def _jvp_of_watched(primals: Any, tangents: Any, *, caller: str) -> Any:
    # The primal as it is: reverse mode sees that what it keeps is the argument.
    (x,), (dot,) = primals, tangents
    return x, dot if isinstance(dot, ad.Zero) else reverse_alone_p.bind(dot, caller=caller)


watched_p = Primitive("jaxqr_watched")
watched_p.def_impl(lambda x, **_: x)
watched_p.def_abstract_eval(lambda x, **_: x)
mlir.register_lowering(watched_p, lambda _, x, **__: [x])
ad.primitive_jvps[watched_p] = _jvp_of_watched
batching.defvectorized(watched_p)

reverse_alone_p = Primitive("jaxqr_reverse_alone")
reverse_alone_p.def_impl(_refuse_forward)
reverse_alone_p.def_abstract_eval(lambda t, **_: t)
mlir.register_lowering(reverse_alone_p, _refuse_forward)
ad.primitive_jvps[reverse_alone_p] = _refuse_forward
ad.primitive_transposes[reverse_alone_p] = lambda cotangent, *_, **__: [cotangent]
batching.primitive_batchers[reverse_alone_p] = _refuse_forward


def watching_cotangents(watch: Callable[[Arrays, MaybeArrays], None]) -> Callable[..., Arrays]:
    """The identity of several arrays; its pullback shows them and their cotangents to ``watch``."""

    @jax.custom_vjp
    def identity(*xs: Array) -> Arrays:
        return xs

    def bwd(xs: Arrays, cotangents: Arrays) -> Arrays:
        watch(xs, _conj(cotangents))
        return cotangents

    identity.defvjp(lambda *xs: (xs, xs), bwd)
    return identity


# The pushforward as a primitive. Operands: the residuals, then the tangents that are not zero.
# Parameters: the rule, and which tangents there are. It is linear in the tangents jointly.

pushforward_p = Primitive("jaxqr_pushforward")
pushforward_p.multiple_results = True


def linear(rule: Rule, residuals: Arrays, tangents: MaybeArrays) -> list[Any]:
    """The rule's tangent map, in both modes of differentiation and for jax.linear_transpose."""
    present = tuple(t is not None for t in tangents)
    operands = (*residuals, *(t for t in tangents if t is not None))
    return list(pushforward_p.bind(*operands, rule=rule, present=present))


def unpack(operands: Sequence[Any], present: tuple[bool, ...]) -> tuple[Arrays, MaybeArrays]:
    count = len(operands) - sum(present)
    given = iter(operands[count:])
    return tuple(operands[:count]), tuple(next(given) if p else None for p in present)


def _pushforward(*operands: Array, rule: Rule, present: tuple[bool, ...]) -> list[Array]:
    return list(rule.pushforward(*unpack(operands, present)))


@functools.cache
def _abstract_eval(*avals: Any, rule: Rule, present: tuple[bool, ...]) -> list[Any]:
    # Tracing, not shape arithmetic: it gets the sharding and the varying axes right as well.
    closed = jax.make_jaxpr(functools.partial(_pushforward, rule=rule, present=present))(*avals)
    return list(closed.out_avals)


def _jvp(primals: Any, tangents: Any, *, rule: Rule, present: tuple[bool, ...]) -> Any:
    residuals, ts = unpack(primals, present)
    residual_dots, t_dots = unpack(tangents, present)
    out = linear(rule, residuals, ts)
    dots = []
    given = none_for_zero(t_dots)
    if any(t is not None for t in given):
        dots.append(linear(rule, residuals, given))
    if not all(isinstance(dot, ad.Zero) for dot in residual_dots):

        def at(*values: Array) -> Arrays:
            return rule.pushforward(values, ts)

        dots.append(_jvp_of_moving(at, residuals, residual_dots)[1])
    return out, [functools.reduce(jnp.add, parts) for parts in zip(*dots, strict=True)]


def _transpose(
    cotangents: Any, *operands: Any, rule: Rule, present: tuple[bool, ...]
) -> list[Array | None]:
    residuals, _ = unpack(operands, present)
    pulled = _jax_pullback(rule, residuals, none_for_zero(cotangents))
    return [None] * len(residuals) + [bar for bar, p in zip(pulled, present, strict=True) if p]


@dataclasses.dataclass(frozen=True)
class Batched:
    """A rule under vmap: tangents and cotangents have a new leading axis."""

    rule: Any
    axes: tuple[int | None, ...]  # of the residuals, or of the arguments

    def forward(self, *args: Array) -> Arrays:
        out: Arrays = jax.vmap(self.rule.forward, in_axes=self.axes)(*args)
        return out

    def pushforward(self, residuals: Arrays, tangents: MaybeArrays) -> Arrays:
        mapped = jax.vmap(self.rule.pushforward, in_axes=(self.axes, 0))
        out: Arrays = mapped(residuals, tangents)
        return out

    def pullback(self, residuals: Arrays, cotangents: MaybeArrays) -> Arrays:
        mapped = jax.vmap(self.rule.pullback, in_axes=(self.axes, 0))
        out: Arrays = mapped(residuals, cotangents)
        return out


def _in_front(operands: Any, dims: Any, present: tuple[bool, ...]) -> tuple[Arrays, Any, Any]:
    """The residuals and their batch axes; tangents or cotangents with theirs in front."""
    residuals, given = unpack(operands, present)
    axes, given_dims = unpack(dims, present)
    first, at = next((x, d) for x, d in zip(operands, dims, strict=True) if d is not None)

    def in_front(x: Array, d: Any) -> Array:
        if d is not None:
            return jnp.moveaxis(x, d, 0)
        like_the_first: Array = jax.vmap(lambda _, x: x, (at, None))(first, x)  # sharded so, too
        return like_the_first

    fronted = tuple(
        None if x is None else in_front(x, d) for x, d in zip(given, given_dims, strict=True)
    )
    return residuals, axes, fronted


def _batch(
    operands: Any, dims: Any, *, rule: Rule, present: tuple[bool, ...]
) -> tuple[list[Array], list[int]]:
    residuals, axes, fronted = _in_front(operands, dims, present)
    out = linear(Batched(rule, axes), residuals, fronted)
    return out, [0] * len(out)


pushforward_p.def_impl(jax.jit(_pushforward, static_argnames=("rule", "present")))
pushforward_p.def_abstract_eval(_abstract_eval)
mlir.register_lowering(pushforward_p, mlir.lower_fun(_pushforward, multiple_results=True))
ad.primitive_jvps[pushforward_p] = _jvp
ad.primitive_transposes[pushforward_p] = _transpose
batching.primitive_batchers[pushforward_p] = _batch


# The function and its pullback as primitives. Operands of the function are its arguments; of the
# pullback, the residuals, then the cotangents that are not zero. Parameters: the rule; what it
# comes to, traced; the wiring of the function; which cotangents of the pullback are there.
# And two more that hold what they come to, for their own ways with series and under vmap.

function_p = Primitive("jaxqr_function")
pullback_p = Primitive("jaxqr_pullback")
constant_p = Primitive("jaxqr_constant")
columns_p = Primitive("jaxqr_columns")


def _function(*args: Array, rule: Any, forward: bool) -> Arrays:
    traced = jax.make_jaxpr(rule.forward)(*map(jax.typeof, args))
    return tuple(function_p.bind(*args, traced=traced, rule=rule, forward=forward))


def constant(f: Callable[..., Any], *args: Any) -> Any:
    """F of trees of arrays that count as constant; neither derivatives nor series look inside."""
    leaves, structure = jax.tree.flatten(lax.stop_gradient(args))

    def of_leaves(*leaves: Array) -> Any:
        return f(*jax.tree.unflatten(structure, leaves))

    trace = jax.make_jaxpr(of_leaves, return_shape=True)
    traced, shapes = trace(*map(jax.typeof, leaves))
    return jax.tree.unflatten(jax.tree.structure(shapes), constant_p.bind(*leaves, traced=traced))


def _wired(rule: Any, forward: bool) -> Callable[..., Arrays]:
    """The rule as a function of JAX's custom derivatives."""
    if isinstance(rule, Batched):
        mapped: Callable[..., Arrays] = jax.vmap(_wired(rule.rule, forward), in_axes=rule.axes)
        return mapped
    return (forward_mode if forward else reverse_mode)(rule)


def _jvp_of_function(primals: Any, tangents: Any, *, rule: Any, forward: bool, traced: Any) -> Any:
    # Only here the function gets JAX's custom rule, whose body is this primitive again.
    return _jvp_of_moving(_wired(rule, forward), primals, tangents)


def _refuse_transpose(*_: Any, rule: Any, **__: Any) -> Any:
    while isinstance(rule, Batched):
        rule = rule.rule
    raise TypeError(_TRANSPOSE_REFUSED.format(caller=rule.caller))


def _jvp_of_traced(primals: Any, tangents: Any, **params: Any) -> Any:
    return _jvp_of_moving(functools.partial(_traced, **params), primals, tangents)


def _jvp_of_moving(f: Callable[..., Any], primals: Any, tangents: Any) -> Any:
    """The outputs of F and their tangents, by ``jax.jvp``, where some tangents are zero."""
    moving = [i for i, dot in enumerate(tangents) if not isinstance(dot, ad.Zero)]

    def of_moving(*values: Array) -> Any:
        at = list(primals)
        for i, value in zip(moving, values, strict=True):
            at[i] = value
        return f(*at)

    out, dots = jax.jvp(of_moving, [primals[i] for i in moving], [tangents[i] for i in moving])
    zeros = [ad.Zero(jax.typeof(dot)) if dot.dtype == jax.dtypes.float0 else dot for dot in dots]
    return list(out), zeros


def _traced(*operands: Array, traced: Any, **_: Any) -> list[Array]:
    return list(jaxpr_as_fun(traced)(*operands))


def _batch_function(args: Any, dims: Any, *, rule: Any, forward: bool, traced: Any) -> Any:
    out = _function(*args, rule=Batched(rule, tuple(dims)), forward=forward)
    return out, (0,) * len(out)


def _batch_constant(operands: Any, dims: Any, *, traced: Any) -> Any:
    # What nothing mapped goes into stays as it is: a factor that right-hand sides share.
    f, axes = jaxpr_as_fun(traced), tuple(dims)
    out_axes = [0 if mapped else None for mapped in _which_are_mapped(f, axes, operands)]
    return constant(jax.vmap(f, axes, out_axes), *operands), out_axes


def _which_are_mapped(f: Callable[..., Any], axes: tuple[int | None, ...], args: Any) -> list[bool]:
    """Of each output of F, whether vmap maps it."""
    found: list[bool] = []

    def noted(i: int, x: Array) -> Array:
        @jax.custom_batching.custom_vmap
        def identity(x: Array) -> Array:
            return x

        @identity.def_vmap
        def rule(_: int, batched: list[bool], x: Array) -> tuple[Array, bool]:
            found[i] = True
            return x, batched[0]

        out: Array = identity(x)
        return out

    def watched(*args: Array) -> list[Array]:
        out = f(*args)
        found.extend([False] * len(out))
        return [noted(i, x) for i, x in enumerate(out)]

    jax.eval_shape(jax.vmap(watched, axes), *args)
    return found


def with_more_columns(f: Callable[..., Any], b: Array, *shared: Any) -> Any:
    """F of b (..., columns) and of trees of arrays, which vmap over b alone gives more columns.

    F returns a tree of arrays that have b's columns as their last axis, and one of arrays that do
    not know how many there are. vmap comes before derivatives here: the cotangent of what is shared
    is one product, where the sum over a batch of them would be taken when all are in memory.
    """
    leaves, structure = jax.tree.flatten(shared)

    def of_leaves(b: Array, *leaves: Array) -> Any:
        return f(b, *jax.tree.unflatten(structure, leaves))

    return _of_columns(of_leaves, b, *leaves)


def _of_columns(f: Callable[..., Any], *args: Array) -> Any:
    traced, shapes = jax.make_jaxpr(f, return_shape=True)(*map(jax.typeof, args))
    out = columns_p.bind(*args, traced=traced, f=f, own=len(jax.tree.leaves(shapes[0])))
    return jax.tree.unflatten(jax.tree.structure(shapes), out)


def _batch_columns(args: Any, dims: Any, *, f: Callable[..., Any], own: int, traced: Any) -> Any:
    (b, *shared), (axis, *axes) = args, dims
    if any(d is not None for d in axes):
        out = jax.vmap(jaxpr_as_fun(traced), tuple(dims))(*args)
        return out, (0,) * len(out)
    apart = jnp.moveaxis(b, axis, -2)
    columns = apart.shape[-2] * apart.shape[-1]
    together = _of_columns(f, apart.reshape(*apart.shape[:-2], columns), *shared)
    out = jax.tree.leaves(together)
    for i, x in enumerate(out[:own]):
        out[i] = jnp.moveaxis(x.reshape(*x.shape[:-1], *apart.shape[-2:]), -2, 0)
    return out, (0,) * own + (None,) * (len(out) - own)


def _batch_pullback(
    operands: Any, dims: Any, *, rule: Any, present: tuple[bool, ...], **_: Any
) -> Any:
    residuals, axes, fronted = _in_front(operands, dims, present)
    out = [x for x in _jax_pullback(Batched(rule, axes), residuals, fronted) if x is not None]
    return out, [0] * len(out)


def _transpose_traced(cotangents: Any, *operands: Any, traced: Any, **_: Any) -> list[Array | None]:
    linear = [i for i, x in enumerate(operands) if ad.is_undefined_primal(x)]
    given = [i for i, c in enumerate(cotangents) if not isinstance(c, ad.Zero)]

    def of_linear(*values: Array) -> list[Array]:
        at = list(operands)
        for i, value in zip(linear, values, strict=True):
            at[i] = value
        out = jaxpr_as_fun(traced)(*at)
        return [out[i] for i in given]

    transposed = jax.linear_transpose(of_linear, *(operands[i].aval for i in linear))
    bars = iter(transposed([cotangents[i] for i in given]))
    return [next(bars) if i in linear else None for i in range(len(operands))]


for _primitive in (function_p, pullback_p, constant_p, columns_p):
    _primitive.multiple_results = True
    _primitive.def_impl(_traced)
    _primitive.def_abstract_eval(lambda *_, traced, **__: traced.out_avals)
    mlir.register_lowering(_primitive, mlir.lower_fun(_traced, multiple_results=True))
ad.primitive_jvps[function_p] = _jvp_of_function
ad.primitive_transposes[function_p] = _refuse_transpose
ad.primitive_jvps[pullback_p] = _jvp_of_traced
ad.primitive_jvps[columns_p] = _jvp_of_traced
ad.primitive_transposes[pullback_p] = _transpose_traced
ad.primitive_transposes[columns_p] = _transpose_traced
batching.primitive_batchers[function_p] = _batch_function
batching.primitive_batchers[pullback_p] = _batch_pullback
batching.primitive_batchers[constant_p] = _batch_constant
batching.primitive_batchers[columns_p] = _batch_columns
