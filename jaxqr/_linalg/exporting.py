"""What exported programs do without: calls for which JAX makes no promise.

``jax.export`` refuses a program with a call that a later version may not have, such as LAPACK's
ormqr and geqp3. Whether a program is for export is known when it is lowered, and not before: so the
choice between such a call and something else is a primitive.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import jax
from jax import Array, export
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

T = TypeVar("T")


def serializable(of: type[T]) -> type[T]:
    """A named tuple, by the name that it has in programs that ``jax.export`` serializes."""
    with contextlib.suppress(ValueError):  # a module that is read anew finds the name taken
        export.register_namedtuple_serialization(of, serialized_name=f"jaxqr.{of.__name__}")
    return of


class _Choice(Protocol):
    """Two ways to the same arrays. Compared and hashed by value."""

    def usual(self, *args: Array) -> Sequence[Array]:
        """The faster one."""

    def exported(self, *args: Array) -> Sequence[Array]:
        """The one for ``jax.export``."""


@dataclasses.dataclass(frozen=True)
class _Functions:
    """Functions at the top of a module, and their static arguments."""

    of_usual: Callable[..., Sequence[Array]]
    of_exported: Callable[..., Sequence[Array]]
    options: tuple[tuple[str, Any], ...]

    def usual(self, *args: Array) -> Sequence[Array]:
        return self.of_usual(*args, **dict(self.options))

    def exported(self, *args: Array) -> Sequence[Array]:
        return self.of_exported(*args, **dict(self.options))


@dataclasses.dataclass(frozen=True)
class _Mapped:
    """A choice under vmap."""

    choice: _Choice
    axes: tuple[int | None, ...]

    def usual(self, *args: Array) -> Sequence[Array]:
        out: Sequence[Array] = jax.vmap(self.choice.usual, self.axes)(*args)
        return out

    def exported(self, *args: Array) -> Sequence[Array]:
        out: Sequence[Array] = jax.vmap(self.choice.exported, self.axes)(*args)
        return out


def unless_exported(
    usual: Callable[..., Sequence[Array]], exported: Callable[..., Sequence[Array]]
) -> Callable[..., list[Array]]:
    """USUAL, of arrays and static options by name, and ``exported`` in programs for export.

    Both return sequences of arrays. The derivative is that of ``exported``.
    """

    def chosen(*args: Array, **options: Any) -> list[Array]:
        choice = _Functions(usual, exported, tuple(sorted(options.items())))
        return list(unless_exported_p.bind(*args, choice=choice))

    return chosen


unless_exported_p = Primitive("jaxqr_unless_exported")
unless_exported_p.multiple_results = True


def _usual(*args: Array, choice: _Choice) -> list[Array]:
    return list(choice.usual(*args))


def _exported(*args: Array, choice: _Choice) -> list[Array]:
    return list(choice.exported(*args))


@functools.cache
def _abstract_eval(*avals: Any, choice: _Choice) -> list[Any]:
    return list(jax.make_jaxpr(functools.partial(_usual, choice=choice))(*avals).out_avals)


def _lowering(ctx: Any, *args: Any, choice: _Choice) -> Any:
    for_export = ctx.module_context.lowering_parameters.for_export
    rule = mlir.lower_fun(_exported if for_export else _usual, multiple_results=True)
    return rule(ctx, *args, choice=choice)


def _jvp(primals: Any, tangents: Any, *, choice: _Choice) -> Any:
    out = unless_exported_p.bind(*primals, choice=choice)
    moving = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]

    def of_moving(*values: Array) -> list[Array]:
        at = list(primals)
        for i, value in zip(moving, values, strict=True):
            at[i] = value
        return _exported(*at, choice=choice)

    at, along = (tuple(xs[i] for i in moving) for xs in (primals, tangents))
    return out, jax.jvp(of_moving, at, along)[1]


def _batch(args: Any, dims: Any, *, choice: _Choice) -> Any:
    out = unless_exported_p.bind(*args, choice=_Mapped(choice, tuple(dims)))
    return out, [0] * len(out)


unless_exported_p.def_impl(jax.jit(_usual, static_argnames="choice"))
unless_exported_p.def_abstract_eval(_abstract_eval)
mlir.register_lowering(unless_exported_p, _lowering)
ad.primitive_jvps[unless_exported_p] = _jvp
batching.primitive_batchers[unless_exported_p] = _batch
