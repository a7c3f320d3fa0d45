"""What the rules and the forward algorithms both stand on.

* :mod:`~jaxqr._linalg.products`: products and solves of matrices (..., rows, columns);
* :mod:`~jaxqr._linalg.algebra`: the same of one matrix (rows, columns), or of many small ones with
  the batch axis innermost;
* :mod:`~jaxqr._linalg.batching`: how batches get that form, and how ``vmap`` is seen through;
* :mod:`~jaxqr._linalg.correcting`: a usual way for all matrices, a careful one for those in need;
* :mod:`~jaxqr._linalg.blocked`: triangular products and solves, by blocks;
* :mod:`~jaxqr._linalg.reflectors`, :mod:`~jaxqr._linalg.phases`: of Householder and of diagonals;
* :mod:`~jaxqr._linalg.augmented`, :mod:`~jaxqr._linalg.ridge`: the system of least squares;
* :mod:`~jaxqr._linalg.scaling`, :mod:`~jaxqr._linalg.dependence`: units, and what rounding hides;
* :mod:`~jaxqr._linalg.layouts`, :mod:`~jaxqr._linalg.exporting`: how XLA has arrays in memory, and
  what a serialized program may hold;
* :mod:`~jaxqr._linalg.crossovers`, :mod:`~jaxqr._linalg.tuning`: which algorithm is the faster one.
"""
