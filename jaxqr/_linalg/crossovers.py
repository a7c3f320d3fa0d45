"""Where "auto" leaves LAPACK and XLA's own products: one table, and what it goes by.

How many times as fast the value is, float32 | float64; two CPU cores, JAX 0.12, taking turns::

    batched     10000 of 8 x 4    8.5 | 4.5     4096 of 16 x 16  3.3 | 1.8    64 of 16 x 16  5.3
                2000 of 20 x 6    3.4 | 1.9     1000 of 12 x 30  3.6 | 2.1    64 of 8 x 4    3.6
                2000 of 64 x 6    1.3 | 0.7     2000 of 48 x 8   1.7
                1000 of 20 x 20   4.8 | 2.6     500 of 24 x 24   3.1 | 2.3
                300 of 40 x 20    2.4 | 1.8     1000 of 20 x 30  3.3 | 2.2
                1000 of 48 x 16   1.9 | 1.2     512 of 32 x 32   1.8 | 0.8
                complex64 | complex128: 1000 of 20 x 20  1.6 | 0.9, 1000 of 48 x 16  0.7 | 0.3
    cholesky    2000 x 200       3.3 | 3.5    20000 x 64      2.8 | 3.5    100000 x 16   2.1 | 2.3
                512 x 64         5.3 | 4.5    400 x 100       4.5 | 3.2    400 x 200     1.9 | 1.8
                2400 x 300       2.5 | 2.6    600 x 300       1.7 | 1.5    5000 x 500    2.1 | 1.3
                1000 x 500       1.6 | 1.4    600 x 400       1.4 | 1.2    512 x 32      3.1 | 3.4
                300 x 200        1.4 | 1.4    150 x 100       2.4 | 2.1    250 x 200     1.2 | 1.0
                100 of 512 x 64  5.1 | 3.5    30 of 500 x 100 8.4 | 5.4    256 x 32      1.2 | 1.0
                512 of 64 x 32   0.6 | 0.4    128 x 64        0.9 | 0.8    1000 x 800    1.1 | 0.8
                R alone: 2000 x 200  2.5 | 2.6, 400 x 200  1.5 | 1.6, 600 x 300  1.6 | 1.5,
                1000 x 500  1.4 | 1.1, 5000 x 500  1.8 | 1.2, 4000 x 700  1.4 | 1.4,
                200 x 150  1.6 | 1.5, 300 x 200  1.3 | 1.1, 250 x 200  1.1 | 0.8,
                600 x 400  1.3 | 1.1, 1000 x 800  1.1 | 0.9, 2000 x 1000  1.2 | 0.9,
                20000 x 64  1.8 | 2.6, 100000 x 16  1.6 | 1.9, 1024 x 16  0.9 | 1.2
                complex64 | complex128: 2000 x 200  0.6 | 0.5, 100000 x 16  1.5 | 1.5
    wide        207 x 277         1.3 | 1.2     200 x 1000       3.5 | 2.8    500 x 600    1.0 | 1.0
                R alone: 207 x 277  1.3 | 1.4, 200 x 1000  2.8 | 2.8, 500 x 600  1.1 | 0.9

With the batch axis innermost the derivative's products gain up to 8 columns (10000 of 8 x 4: the
gradient and value 12 | 4.0 times as fast, float32 | float64); for 16 x 16, as a batch of dots they
take 4.3 | 9.5 ms instead of 8 | 22.

A complex product as four real ones takes, of what XLA's own takes, complex64 | complex128::

    500 x 500 x 500   0.59 | 0.56     2000 x 200 x 200  0.65 | 0.65     64 x 64 x 64  0.88 | 0.78
    100000 x 16 x 16   1.6 | 2.9

Elsewhere: what was measured there, see :mod:`jaxqr._linalg.tuning`.
"""

import dataclasses

import jaxlib.version

NEVER = 2**40  # a least size that nothing has
MOST_UNROLLED = 24  # beyond it compiling takes minutes
ASLEEP = 8192  # elements that OpenBLAS's LAPACK factors in the thread that calls

# Until jaxlib 0.11.1 XLA took sums anew for each element that they went into, so that elimination
# with the batch axis innermost pays for few rows alone: 4000 of 8 x 8 take 5.2 ms (by LAPACK 14),
# 3000 of 10 x 5 2.7 (5.8), 2000 of 20 x 6 11 (6.7), 4096 of 16 x 16 346 (42), in float32.
SUMS_ARE_KEPT = jaxlib.version.__version_info__ >= (0, 11, 1)


@dataclasses.dataclass(frozen=True)
class Crossovers:
    """From which size on, or up to which, an algorithm is the faster one on a platform."""

    # batched: many small matrices (..., rows, columns), with the batch axis innermost
    least_batch: float = 64
    most_rows: float = 48 if SUMS_ARE_KEPT else 10  # the larger of rows and columns
    most_elements: float = 768 if SUMS_ARE_KEPT else 64  # real ones; a complex one counts twice
    most_unrolled: float = MOST_UNROLLED if SUMS_ARE_KEPT else 8  # the smaller of rows and columns
    most_unrolled_in_rules: float = 8  # likewise, for the derivatives

    # cholesky: deep matrices, real but where they are narrow
    least_depth: float = 1.5  # rows by columns
    least_size: float = 2**14
    least_columns: float = 8
    most_columns: float = 512
    least_columns_of_r: float = 16  # R alone
    most_columns_of_r: float = 768
    most_columns_of_complex: float = 16

    # panels: the smaller of rows and columns of one matrix, real
    least_columns_of_panels: float = 128

    # wide: columns by rows, real
    least_width: float = 1.25

    # products of complex matrices by real ones: the least of the three dimensions
    least_complex_product: float = 64


SHIPPED = Crossovers()
"""Of CPUs."""

NOTHING = Crossovers(
    **{
        field.name: 0 if field.name.startswith("most") else NEVER
        for field in dataclasses.fields(Crossovers)
    }
)
"""Of platforms where nothing was measured."""
