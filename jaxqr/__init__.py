"""Differentiable orthogonal factorizations and least squares for JAX."""

__version__ = "0.1.0"
