"""What the rules and the forward algorithms both stand on. Nothing here knows of a factorization.

* :mod:`~jaxqr._linalg.products`: products and solves of matrices (..., rows, columns);
* :mod:`~jaxqr._linalg.algebra`: the same of one matrix (rows, columns), or of many small ones with
  the batch axis innermost;
* :mod:`~jaxqr._linalg.batching`: how batches get that form, and how ``vmap`` is seen through;
* :mod:`~jaxqr._linalg.blocked`: triangular products and solves, by blocks;
* :mod:`~jaxqr._linalg.reflectors`, :mod:`~jaxqr._linalg.phases`: of Householder and of diagonals.
"""
