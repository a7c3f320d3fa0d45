"""Where products leave XLA's own on a CPU, with the measurements that it goes by; two cores.

With the batch axis innermost the derivative's products gain up to 8 columns (10000 of 8 x 4: the
gradient and value 12 | 4.0 times as fast, float32 | float64); for 16 x 16, as a batch of dots they
take 4.3 | 9.5 ms instead of 8 | 22. Beyond 16 columns unrolling costs seconds of compile time.

A complex product as four real ones takes, of what XLA's own takes, complex64 | complex128::

    500 x 500 x 500   0.59 | 0.56     2000 x 200 x 200  0.65 | 0.65     64 x 64 x 64  0.88 | 0.78
    100000 x 16 x 16   1.6 | 2.9
"""

# many small matrices (..., rows, columns), the batch axis innermost
LEAST_BATCH = 64
MOST_UNROLLED_IN_RULES = 8  # the smaller of rows and columns, for the derivatives
MOST_ROWS = 48  # the larger
MOST_ELEMENTS = 384

# products of complex matrices by real ones: the least of the three dimensions
LEAST_COMPLEX_PRODUCT = 64
