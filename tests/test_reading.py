"""The Matrix Market reader: what it means by a file, and what it says of a broken one."""

import bz2
import contextlib
import gzip
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from jaxqr.cli.reading import MatrixMarketError, read

BANNER = "%%MatrixMarket matrix "
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "a.mtx"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def _dense(path):
    matrix = scipy.io.mmread(path, spmatrix=False)
    return matrix.toarray() if scipy.sparse.issparse(matrix) else matrix


# What scipy writes is read back, bit for bit.


def _symmetrized(a, symmetry):
    lower = np.tril(a, -1)
    if symmetry == "skew-symmetric":
        return lower - lower.T
    if symmetry == "hermitian":
        return lower + lower.conj().T + np.diag(a.diagonal().real)
    return lower + lower.T + np.diag(a.diagonal())


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    m=st.integers(1, 6),
    n=st.integers(1, 6),
    field=st.sampled_from(["real", "complex", "integer", "pattern"]),
    symmetry=st.sampled_from(["general", "symmetric", "skew-symmetric", "hermitian"]),
    sparse=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_reads_what_scipy_writes(tmp_path, m, n, field, symmetry, sparse, seed):
    if symmetry == "hermitian":
        field = "complex"
    if field == "pattern" and symmetry != "symmetric":
        symmetry = "general"
    n = n if symmetry == "general" else m
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((m, n)) * 10.0 ** rng.integers(-200, 200, (m, n))
    if field == "complex":
        a = a + 1j * rng.standard_normal((m, n))
    if field in ("integer", "pattern"):
        a = rng.integers(-9, 9, (m, n)) if field == "integer" else np.ones((m, n), int)
    if sparse or field == "pattern":
        a = np.where(rng.random((m, n)) < 0.5, a, 0)
    if symmetry != "general":
        a = _symmetrized(a, symmetry)
    assume(a.any())  # scipy forgets the field of a sparse matrix with nothing in it
    path = tmp_path / "a.mtx"
    stored = scipy.sparse.coo_array(a) if sparse or field == "pattern" else a
    scipy.io.mmwrite(path, stored, field=field, symmetry=symmetry, precision=17)

    read_back = read(path)

    assert read_back.dtype == (np.complex128 if field == "complex" else np.float64)
    np.testing.assert_array_equal(read_back, a)
    np.testing.assert_array_equal(read_back, _dense(path))


@pytest.mark.parametrize("name", ["wm1", "wm2", "wm3", "well1033", "illc1033"])
def test_reads_real_files_as_scipy_does(name):
    path = SHARED / f"{name}.mtx"
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    np.testing.assert_array_equal(read(path), _dense(path))


# Every layout, written by hand: the file and the matrix it means.

LAYOUTS = {
    "array, column by column": (
        "array real general\n2 3\n1\n2\n3\n4\n5\n6\n",
        [[1, 3, 5], [2, 4, 6]],
    ),
    "array symmetric": ("array real symmetric\n2 2\n1\n2\n3\n", [[1, 2], [2, 3]]),
    "array skew-symmetric": (
        "array real skew-symmetric\n3 3\n1\n2\n3\n",
        [[0, -1, -2], [1, 0, -3], [2, 3, 0]],
    ),
    "array hermitian": (
        "array complex hermitian\n2 2\n1 0\n2 3\n4 0\n",
        [[1, 2 - 3j], [2 + 3j, 4]],
    ),
    "array integer": ("array integer general\n1 2\n-3\n+4\n", [[-3, 4]]),
    "coordinate": (
        "coordinate real general\n2 3 2\n2 3 1.5\n1 1 -2e-1\n",
        [[-0.2, 0, 0], [0, 0, 1.5]],
    ),
    "coordinate pattern": ("coordinate pattern general\n2 2 2\n1 2\n2 1\n", [[0, 1], [1, 0]]),
    "coordinate symmetric": ("coordinate real symmetric\n2 2 2\n1 1 5\n2 1 7\n", [[5, 7], [7, 0]]),
    "coordinate symmetric complex": (
        "coordinate complex symmetric\n2 2 1\n2 1 1 2\n",
        [[0, 1 + 2j], [1 + 2j, 0]],
    ),
    "coordinate skew-symmetric complex": (
        "coordinate complex skew-symmetric\n2 2 1\n2 1 1 2\n",
        [[0, -1 - 2j], [1 + 2j, 0]],
    ),
    "coordinate hermitian": (
        "coordinate complex hermitian\n2 2 2\n1 1 3 0\n2 1 1 2\n",
        [[3, 1 - 2j], [1 + 2j, 0]],
    ),
    "skew-symmetric with a zero on its diagonal": (
        "coordinate real skew-symmetric\n2 2 2\n1 1 0\n2 1 4\n",
        [[0, -4], [4, 0]],
    ),
    "repeated coordinates add up": ("coordinate real general\n1 1 3\n1 1 1\n1 1 2\n1 1 4\n", [[7]]),
    "repeated symmetric coordinates": (
        "coordinate real symmetric\n2 2 2\n2 1 1\n2 1 2\n",
        [[0, 3], [3, 0]],
    ),
    "capitals": ("COORDINATE Real GENERAL\n1 1 1\n1 1 1E+1\n", [[10]]),
    "comments and blank lines": (
        "array real general\n%\n% a comment\n\n  2 1 \n\n1\n% between\n   \n2\n\n",
        [[1], [2]],
    ),
    "carriage returns": ("array real general\r\n2 1\r\n1\r\n2\r\n", [[1], [2]]),
    "no newline at the end": ("array real general\n1 1\n3", [[3]]),
    "a plus before": ("coordinate real general\n1 1 1\n+1 +1 +1e+1\n", [[10]]),
    "points before and after": ("array real general\n3 1\n.5\n-5.\n5.E1\n", [[0.5], [-5], [50]]),
    "unsigned": ("array unsigned-integer general\n1 1\n18446744073709551615\n", [[2.0**64]]),
    "double": ("array double general\n1 1\n1.5\n", [[1.5]]),
    "integers that add up beyond 64 bits": (
        "coordinate integer general\n1 1 3\n" + f"1 1 {2**62}\n" * 3,
        [[3 * 2.0**62]],
    ),
    "real hermitian": ("coordinate real hermitian\n2 2 1\n2 1 3\n", [[0, 3], [3, 0]]),
    "skew-symmetric pattern": (
        "coordinate pattern skew-symmetric\n2 2 1\n2 1\n",
        [[0, -1], [1, 0]],
    ),
    "1 x 1": ("coordinate integer general\n1 1 1\n1 1 -3\n", [[-3]]),
    "no entries": ("coordinate real general\n2 1 0\n", [[0], [0]]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(write, name):
    text, expected = LAYOUTS[name]
    np.testing.assert_array_equal(read(write(BANNER + text)), np.array(expected))


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
@pytest.mark.parametrize(
    "tail",
    ["array real general\n{} {}\n", "coordinate real general\n{} {} 0\n"],
)
def test_empty_matrices(write, shape, tail):
    assert read(write(BANNER + tail.format(*shape))).shape == shape


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_compressed_files(write, compress):
    content = compress((BANNER + "array real general\n2 1\n1\n2\n").encode())
    np.testing.assert_array_equal(read(write(content)), [[1], [2]])
    for broken in (content[:10], content[:-5], content[:15] + b"\xff\xff" + content[17:]):
        with pytest.raises(MatrixMarketError, match=r":1: expected a readable file, got: [^\n]+$"):
            read(write(broken))


def test_what_editors_put_in_front(write):
    """A byte order mark."""
    text = BANNER + "array real general\n1 1\n3\n"
    np.testing.assert_array_equal(read(write(b"\xef\xbb\xbf" + text.encode())), [[3]])


def test_standard_input(monkeypatch):
    def standard_input(text):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    standard_input(BANNER + "array real general\n1 1\n3\n")
    np.testing.assert_array_equal(read("-"), [[3]])
    standard_input("")
    with pytest.raises(MatrixMarketError, match=r"^<stdin>:1: "):
        read("-")


def test_comments_in_any_encoding(write):
    text = BANNER.encode() + b"array real general\n% Andr\xe9 \xff\x85\x0c\n1 1\n2\n"
    assert read(write(text)) == [[2.0]]


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_dtype(write, dtype):
    a = read(write(BANNER + "array real general\n1 1\n0.1\n"), dtype)
    assert a.dtype == dtype
    np.testing.assert_array_equal(a, np.array([[0.1]], dtype))


# Broken files: what stands below the banner, the line that is named, and part of the complaint.

ARRAY, COORDINATE = "array real general\n", "coordinate real general\n"
BROKEN = {
    "not a matrix": (
        "",
        1,
        "Vector Matrix Market files not supported",
        "%%MatrixMarket vector array real general\n1\n1\n",
    ),
    "lower case": (
        "",
        1,
        "begins with %%MatrixMarket, got '%%matrixmarket matrix array real general'",
        "%%matrixmarket matrix array real general\n1 1\n2\n",
    ),
    "unknown format": ("sparse real general\n", 1, "element: sparse"),
    "unknown field": ("array quaternion general\n", 1, "element: quaternion"),
    "unknown symmetry": ("array real diagonal\n", 1, "element: diagonal"),
    "unprintable field": ("array \x1b[1m general\n", 1, r"element: \x1b[1m"),
    "field that is no text": (
        "",
        1,
        r"element: r\xe9al",
        BANNER.encode() + b"array r\xe9al general\n1 1\n2\n",
    ),
    "long and empty": (ARRAY + "0 9000000000000000000\n", 2, "expected at most 134217728 entries"),
    "endless field": ("array " + "real" * 1000 + " general\n", 1, "..."),
    "short banner": (
        "array\n1 1\n1\n",
        1,
        "expected %%MatrixMarket matrix FORMAT FIELD SYMMETRY, got '%%MatrixMarket matrix array'",
    ),
    "shortest banner": ("", 1, "SYMMETRY, got '%%MatrixMarket'", "%%MatrixMarket\n1 1\n1\n"),
    "pattern array": ("array pattern general\n1 1\n1\n", 1, "array of numbers"),
    "pattern array, empty": ("array pattern general\n0 1\n", 1, "array of numbers"),
    "no size line": (ARRAY, 1, "Premature EOF"),
    "only comments": (COORDINATE + "%\n%\n", 3, "Premature EOF"),
    "sizes missing": (COORDINATE + "2 2\n", 2, "expected ROWS COLUMNS ENTRIES, got '2 2'"),
    "sizes too many": (ARRAY + "% c\n2 2 4\n", 3, "expected ROWS COLUMNS, got '2 2 4'"),
    "negative size": (ARRAY + "-1 2\n", 2, "expected ROWS COLUMNS, got '-1 2'"),
    "negative count": (COORDINATE + "1 1 -1\n", 2, "got '1 1 -1'"),
    "fractional size": (ARRAY + "1.0 2\n", 2, "got '1.0 2'"),
    "underscore size": (ARRAY + "1_0 2\n", 2, "got '1_0 2'"),
    "endless size": (ARRAY + "9" * 30 + " 1\n", 2, "out of range"),
    "endless count": (
        COORDINATE + "2 2 9000000000000000000\n1 1 1\n",
        3,
        "expected 9000000000000000000",
    ),
    "huge": (
        COORDINATE + "1000000000 1000000000 0\n",
        2,
        "got 1000000000 x 1000000000, 7.45e+09 GiB",
    ),
    "symmetric, not square": (
        "array real symmetric\n2 3\n",
        2,
        "expected a square symmetric matrix, got 2 x 3",
    ),
    "symmetric, not square, full": ("array real symmetric\n2 3\n1\n2\n3\n4\n5\n6\n", 2, "square"),
    "skew, cut short": (
        "array real skew-symmetric\n3 3\n1\n2\n",
        4,
        "expected 3 entries, got the end of the file after 2",
    ),
    "cut short": (ARRAY + "2 1\n1\n", 3, "expected 2 entries, got the end of the file after 1"),
    "cut within a line": (
        COORDINATE + "2 2 3\n1 1 1\n2 2\n",
        4,
        "expected an entry of 3 words (real), got '2 2'",
    ),
    "too many": (
        ARRAY + "1 1\n1\n2\n3\n",
        4,
        "expected the end of the file after 1 entry, got '2'",
    ),
    "two numbers a line": (
        ARRAY + "2 1\n1 2\n",
        3,
        "expected an entry of 1 word (real), got '1 2'",
    ),
    "complex with one part": (
        "array complex general\n1 1\n1\n",
        3,
        "an entry of 2 words (complex), got '1'",
    ),
    "not a number": (ARRAY + "2 1\n1\nx\n", 4, "got 'x'"),
    "imaginary part": ("array complex general\n1 1\n1 i\n", 3, "got '1 i'"),
    "fortran exponent": (ARRAY + "1 1\n1.0D0\n", 3, "got '1.0D0'"),
    "underscore": (ARRAY + "1 1\n1_0\n", 3, "got '1_0'"),
    "nan": (ARRAY + "1 1\nNaN\n", 3, "got 'NaN'"),
    "infinite": (ARRAY + "1 1\n-inf\n", 3, "got '-inf'"),
    "overflow": (ARRAY + "1 1\n1e999\n", 3, "got '1e999'"),
    "integer overflow": ("array integer general\n1 1\n" + "9" * 400 + "\n", 3, "out of range"),
    "fractional integer": ("array integer general\n1 1\n1.5\n", 3, "(integer), got '1.5'"),
    "other digits": (ARRAY + "1 1\n\u0663\n", 3, "got"),
    "null byte": (ARRAY + "1 1\n\x00\n", 3, r"got '\x00'"),
    "row zero": (COORDINATE + "2 3 1\n0 1 1\n", 3, "Row index out of bounds, got '0 1 1'"),
    "row beyond": (COORDINATE + "2 3 1\n3 1 1\n", 3, "Row index out of bounds"),
    "column beyond": (COORDINATE + "2 3 2\n1 1 1\n1 4 1\n", 4, "bounds, got '1 4 1'"),
    "column far beyond": (
        COORDINATE + "2 3 1\n1 99999999999999999999 1\n",
        3,
        "Integer out of range",
    ),
    "fractional row": (COORDINATE + "2 3 1\n1.0 1 1\n", 3, "got '1.0 1 1'"),
    "above the diagonal": (
        "coordinate real symmetric\n2 2 1\n1 2 1\n",
        3,
        "on or below the diagonal (symmetric), got '1 2 1'",
    ),
    "skew diagonal": (
        "coordinate real skew-symmetric\n2 2 2\n2 1 1\n2 2 5\n",
        4,
        "expected zero on the diagonal (skew-symmetric), got '2 2 5'",
    ),
    "hermitian diagonal": (
        "array complex hermitian\n2 2\n1 0\n2 3\n4 1\n",
        5,
        "expected a real number on the diagonal (hermitian), got '4 1'",
    ),
    "unsigned skew": ("coordinate unsigned-integer skew-symmetric\n2 2 1\n2 1 3\n", 1, "uint64"),
    "trailing number": (COORDINATE + "2 2 1\n1 1 1 7\n", 3, "got '1 1 1 7'"),
    "index into nothing": (COORDINATE + "0 3 1\n1 1 1\n", 3, "Row index out of bounds"),
    "sum overflows": (COORDINATE + "1 1 2\n1 1 1e308\n1 1 1e308\n", 4, "got an overflow"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_name_the_line(write, name):
    text, line, complaint, *whole = BROKEN[name]
    path = write(whole[0] if whole else BANNER + text)
    with pytest.raises(MatrixMarketError) as caught:
        read(path)
    assert caught.value.line == line
    assert complaint in str(caught.value)
    assert str(caught.value) == f"{path}:{line}: {caught.value.message}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "\n \n", "1 2 3\n", "\n" + BANNER + ARRAY, "\x7fELF\x00\x01\n\x02"]
)
def test_not_a_matrix_market_file(write, text):
    with pytest.raises(MatrixMarketError, match=r":1: expected a file that begins with"):
        read(write(text))


def test_every_cut_of_a_file_is_an_error(write):
    text = BANNER + "coordinate complex hermitian\n% note\n2 2 2\n1 1 3 0\n2 1 1 25\n"
    for end in range(len(text) - len(" 25\n")):
        with pytest.raises(MatrixMarketError):
            read(write(text[:end]))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(write, data):
    text = bytearray(
        BANNER.encode() + b"coordinate real symmetric\n% c\n3 3 2\n2 1 -1.5\n3 3 2e1\n"
    )
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    with contextlib.suppress(MatrixMarketError):
        assert np.isfinite(read(write(bytes(text)))).all()


def test_number_too_large_for_the_type(write):
    path = write(BANNER + "array real general\n2 1\n1\n1e39\n")
    with pytest.raises(MatrixMarketError, match=r":4: .*finite in float32, got '1e39'"):
        read(path, "float32")


def test_complex_file_in_a_real_type(write):
    path = write(BANNER + "array complex general\n1 1\n1 0\n")
    with pytest.raises(
        MatrixMarketError, match=":1: expected a field that fits float64, got complex"
    ):
        read(path, "float64")


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(MatrixMarketError, match=r"none.mtx:1: .* no such file"):
        read(tmp_path / "none.mtx")
    with pytest.raises(
        MatrixMarketError, match=":1: expected a readable file, got: is a directory"
    ):
        read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file(write):
    path = write(BANNER)
    path.chmod(0)
    with pytest.raises(MatrixMarketError, match=r":1: .* permission denied"):
        read(path)
