"""The rules of this package under JAX's own QR, and the change that is offered to JAX.

`register()` replaces the derivative of `jax.lax.linalg.qr`, and so of `jax.numpy.linalg.qr` and
`jax.scipy.linalg.qr`, in the JAX that is running. `python -m jaxqr.upstream make-patch` writes the
same change as a patch to JAX's source.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad

__all__ = ["register", "registered", "unregister"]

_lock = threading.RLock()
_clear_caches: Callable[[], None] = jax.clear_caches
_replaced: Callable[..., Any] | None = None  # JAX's own rule, while ours stands in its place
_wanted_by: set[object] = set()  # whoever put ours there, and the blocks that came since


def _unknown(what: str) -> RuntimeError:
    return RuntimeError(
        f"jaxqr.upstream does not know the QR of jax {jax.__version__}: {what}. "
        "Nothing was changed."
    )


def _jax_rule() -> tuple[Any, Callable[..., Any]]:
    """QR's primitive and the rule that JAX itself gave it, if both look as expected."""
    try:
        linalg = importlib.import_module("jax._src.lax.linalg")
        primitive, rule = linalg.qr_p, linalg.qr_jvp_rule
    except (ImportError, AttributeError) as error:
        raise _unknown(str(error)) from error
    parameters = inspect.signature(rule).parameters
    if not {"primals", "tangents", "pivoting", "full_matrices"} <= set(parameters):
        raise _unknown(f"its rule takes {', '.join(parameters)}")
    if ad.primitive_jvps.get(primitive) is not rule:
        raise _unknown("the rule in use is not JAX's own; something else has replaced it")
    return primitive, linalg.qr_jvp_rule


def _own_rule() -> Callable[..., Any]:
    """The offered rule; it uses names of JAX's interior, so any of them may be missing."""
    try:
        rule: Callable[..., Any] = importlib.import_module("jaxqr.upstream._rule").qr_jvp_rule
    except (ImportError, AttributeError) as error:
        raise _unknown(str(error)) from error
    return rule


def _trace_every_case() -> None:
    """Trace, without computing, each branch of the rule that is in place."""
    for shape in (3, 2), (2, 3), (1, 3, 2):
        x = jnp.zeros(shape, "float32")
        for pivoting in False, True:
            for full in False, True:

                def qr(
                    x: jax.Array, pivoting: bool = pivoting, full: bool = full
                ) -> tuple[jax.Array, ...]:
                    return jax.lax.linalg.qr(x, pivoting=pivoting, full_matrices=full)

                jax.eval_shape(lambda x, dx: jax.jvp(qr, (x,), (dx,)), x, x)


def register() -> None:
    """Put this package's derivative under JAX's own QR.

    From then on `jax.numpy.linalg.qr`, `jax.scipy.linalg.qr` and `jax.lax.linalg.qr` use it, in the
    whole process: for every shape, mode and type that they take, pivoted or not, in forward and
    reverse mode and under every transformation. Values do not change. Of the derivatives these do:

    * wide and pivoted: right, where JAX 0.10 to 0.12 partition the matrix before permuting it;
    * batched and pivoted: works, where JAX raises TypeError;
    * ``mode="complete"`` with more rows than columns: finite where some column is zero below the
      diagonal, where JAX returns NaN. The tangent of the columns that complete Q is taken without
      rotation among themselves, so a loss that depends on more than their span gets another
      gradient than from JAX, which follows the reflectors that LAPACK happens to use.

    The rule is a JVP. Its transpose is the pullback of arXiv:2009.10071 (eqs. 3, 9, 10, 21 and 26),
    at the same cost beside the factorization: 5 m n^2 + 2 n^3 floating-point operations for m x n
    with m >= n, and 4 m^2 n + 3 m^3 with m < n.

    What was traced or compiled before keeps the rule that it was traced with; so `register` clears
    JAX's caches (`jax.clear_caches`), and every jitted function is traced anew at its next call.
    What is no cache stays as it was: a function that `jax.vjp` or `jax.linearize` has returned,
    a jaxpr, and what ``.lower()`` or ``.compile()`` have returned.

    Registering again does nothing.

    Raises:
        RuntimeError: this JAX has no QR rule of the kind that is replaced here, or something else
            has replaced it already. Nothing is changed then.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxqr import upstream
        >>> a = jnp.array([[1.0, 2.0], [0.0, 3.0], [0.0, 0.0]])
        >>> upstream.register()
        >>> jax.grad(lambda a: jnp.linalg.qr(a, mode="complete")[1].sum())(a).shape
        (3, 2)
        >>> upstream.unregister()
    """
    global _replaced, _wanted_by
    with _lock:
        if _replaced is not None:
            return
        primitive, theirs = _jax_rule()
        ad.primitive_jvps[primitive] = _own_rule()
        try:
            _trace_every_case()
        except Exception as error:
            ad.primitive_jvps[primitive] = theirs
            raise _unknown(f"{type(error).__name__}: {error}") from error
        finally:
            _clear_caches()
        _replaced, _wanted_by = theirs, {register}


def unregister() -> None:
    """Give JAX's QR its own derivative back, and clear JAX's caches as `register` does.

    Without a `register` before it, this does nothing.

    Raises:
        RuntimeError: since `register`, something else has replaced the rule. It is left in place.

    Example:
        >>> from jaxqr import upstream
        >>> upstream.unregister()
    """
    global _replaced
    with _lock:
        if _replaced is None:
            return
        primitive = jax.lax.linalg.qr_p
        if ad.primitive_jvps.get(primitive) is not _own_rule():
            raise RuntimeError(
                "jaxqr.upstream's rule for QR has been replaced since it was registered. "
                "What replaced it was left in place."
            )
        ad.primitive_jvps[primitive] = _replaced
        _replaced = None
        _clear_caches()


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """`register` for the length of a ``with`` block; what was registered before it stays so.

    The rule is the whole process's: other threads that trace meanwhile see it too, and where they
    have such blocks of their own the last one out removes it. JAX's caches are cleared where it
    comes and where it goes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxqr import upstream
        >>> a = jnp.array([[3.0, 1.0, 2.0], [4.0, 0.0, 5.0]])
        >>> def loss(a):
        ...     return jax.scipy.linalg.qr(a, mode="economic", pivoting=True)[1].sum()
        >>> with upstream.registered():
        ...     gradient = jax.grad(loss)(a)
        >>> gradient.shape
        (2, 3)
    """
    global _wanted_by
    block = object()
    with _lock:
        if _replaced is None:
            register()
            _wanted_by = set()
        wanted_by = _wanted_by
        wanted_by.add(block)
    try:
        yield
    finally:
        with _lock:
            wanted_by.remove(block)
            if not wanted_by:
                unregister()
