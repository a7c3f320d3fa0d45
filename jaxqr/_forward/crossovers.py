"""Where "auto" leaves LAPACK on a CPU: one table, with the measurements that it goes by.

How many times as fast the value is, float32 | float64; two cores, JAX 0.12, taking turns::

    batched     10000 of 8 x 4    8.5 | 4.5     4096 of 16 x 16  3.3 | 1.8    64 of 16 x 16  5.3
                2000 of 20 x 6    3.4 | 1.9     1000 of 12 x 30  3.6 | 2.1    64 of 8 x 4    3.6
                2000 of 64 x 6    1.3 | 0.7     2000 of 48 x 8   1.7
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
"""

# batched: many small matrices (..., rows, columns), unrolled with the batch axis innermost; what is
# many and small, see jaxqr._linalg.crossovers
MOST_UNROLLED = 16  # the smaller of rows and columns

# cholesky: deep matrices, real but where they are narrow
LEAST_DEPTH = 1.5  # rows by columns
LEAST_COLUMNS = {"reduced": 8, "r": 16}
MOST_COLUMNS = {"reduced": 512, "r": 768}
MOST_COLUMNS_OF_COMPLEX = 16
LEAST_SIZE = 2**14

# wide: columns by rows, real
LEAST_WIDTH = 1.25
