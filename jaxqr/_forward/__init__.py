"""How factors are computed. Nothing here knows of derivatives."""

from jax import Array, lax

from jaxqr._forward import batched, householder

# What ``method`` may be. "auto" takes only what has the orthogonality of Householder's, and on
# platforms where nothing was measured, Householder's itself.
METHODS = ("auto", "householder", "batched")


def qr(a: Array, mode: str, method: str) -> tuple[Array, ...]:
    """(q, r), or (r,) in mode "r", of a (..., m, n) by one of METHODS."""
    if method == "batched":
        return batched.qr(a, mode)
    if method == "householder" or not batched.suits(a):
        return householder.qr(a, mode)
    out: tuple[Array, ...] = lax.platform_dependent(
        a,
        cpu=lambda a: batched.qr(a, mode),
        default=lambda a: householder.qr(a, mode),
    )
    return out
