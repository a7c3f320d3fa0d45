"""Read Matrix Market files into dense numpy arrays.

A file is a banner, a size line and one entry a line::

    %%MatrixMarket matrix coordinate real symmetric
    % comments and blank lines may stand anywhere below the banner
    2 2 2
    1 1  4.0
    2 1 -1.5

Where the format leaves a choice, or readers differ:

* coordinates named twice are summed, as an assembled finite element matrix means them;
* symmetric, skew-symmetric and Hermitian files store the lower triangle, and an entry above the
  diagonal is an error, not a guess;
* a skew-symmetric matrix has zeros on its diagonal and a Hermitian one real numbers;
* every number must be finite in the type that is asked for.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

_FORMATS = ("coordinate", "array")
_FIELDS = ("real", "complex", "integer", "pattern")
_SYMMETRIES = ("general", "symmetric", "skew-symmetric", "hermitian")

# 1 GiB in float64. A sparse file of a few bytes can name a dense matrix of any size, and asking
# the machine for it would end the program instead of this one file.
_MOST_ENTRIES = 2**27

_T = TypeVar("_T")


class MatrixMarketError(ValueError):
    """A file that cannot be read as a matrix: where it fails, what was expected and what came.

    ``str(error)`` is one line, ``path:line: expected ..., got ...``; lines count from 1.
    """

    def __init__(self, path: str, line: int, message: str) -> None:
        """Keep the place beside the message."""
        super().__init__(f"{path}:{line}: {message}")
        self.path = path
        self.line = line
        self.message = message


class _Line(NamedTuple):
    """The words of one line and its place in the file."""

    number: int
    words: list[bytes]


class _Banner(NamedTuple):
    """The three choices that the first line makes."""

    format: str
    field: str
    symmetry: str


@dataclass(frozen=True)
class _Source:
    """A file's name and lines; every complaint about it goes through `fail`."""

    path: str
    lines: list[bytes]

    def fail(self, line: int, expected: str, got: str) -> NoReturn:
        raise MatrixMarketError(self.path, line, f"expected {expected}, got {got}")

    def below_banner(self) -> Iterator[_Line]:
        for number, text in enumerate(self.lines[1:], start=2):
            words = text.split()
            if words and not words[0].startswith(b"%"):
                yield _Line(number, words)

    def numbers(
        self, lines: Sequence[_Line], word: int, convert: Callable[[bytes], _T], expected: str
    ) -> list[_T]:
        """Convert one word of every line."""
        converted = []
        for line in lines:
            try:
                converted.append(convert(line.words[word]))
            except (ValueError, OverflowError):
                self.fail(line.number, expected, _shown(line.words[word]))
        return converted


def read(path: str | os.PathLike[str], dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """Read a Matrix Market file as a dense matrix.

    Args:
        path: the file; array or coordinate; real, complex, integer or pattern; general, symmetric,
            skew-symmetric or Hermitian.
        dtype: the floating-point type of the result, by default float64, or complex128 for a
            complex file.

    Returns:
        The matrix, (m, n), with both triangles of a symmetric one and ones for a pattern.

    Raises:
        MatrixMarketError: the file is missing, unreadable, empty, cut short or malformed, is
            complex while `dtype` is real, holds a number that is not finite in `dtype`, or names a
            dense matrix beyond 2**27 entries.
    """
    source = _open(os.fspath(path))
    banner = _banner(source)
    dtype = np.dtype(dtype or (np.complex128 if banner.field == "complex" else np.float64))
    if banner.field == "complex" and dtype.kind != "c":
        source.fail(1, f"a field that fits {dtype}", "complex")
    lines = source.below_banner()
    size = next(lines, None)
    (m, n), count = _size(source, banner, size)
    entries = list(lines)
    words = _words_per_entry(banner)
    _check_entries(source, entries, count, words)
    if banner.format == "array":
        rows, columns = _stored_positions(banner, m, n)
    else:
        rows, columns = _coordinates(source, banner, entries, m, n)
    values = _values(source, banner, entries, dtype)
    _check_diagonal(source, banner, entries, values, rows == columns)
    matrix = _assemble(banner, (m, n), rows, columns, values)
    if not np.isfinite(matrix).all():
        source.fail(len(source.lines), f"repeated entries that add up in {dtype}", "an overflow")
    return matrix


def _open(path: str) -> _Source:
    try:
        # Bytes, because names in comments come in any encoding; only \n, \r and \r\n end a line.
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise MatrixMarketError(path, 1, f"expected a readable file, got: {reason}") from error
    return _Source(path, lines)


def _banner(source: _Source) -> _Banner:
    if not any(line.strip() for line in source.lines):
        source.fail(1, "a line that begins with %%MatrixMarket", "an empty file")
    words = source.lines[0].lower().split()
    if not words or words[0] != b"%%matrixmarket":
        source.fail(1, "a line that begins with %%MatrixMarket", _shown(source.lines[0]))
    if len(words) != 5:
        source.fail(1, "five words, %%MatrixMarket matrix FORMAT FIELD SYMMETRY", f"{len(words)}")
    chosen = []
    choices = (("matrix",), _FORMATS, _FIELDS, _SYMMETRIES)
    for word, allowed in zip(words[1:], choices, strict=True):
        name = word.decode("latin-1")
        if name not in allowed:
            source.fail(1, " or ".join(allowed), _shown(word))
        chosen.append(name)
    banner = _Banner(*chosen[1:])
    if banner.field == "pattern" and banner.format == "array":
        source.fail(1, "coordinate format for a pattern", "array")
    if banner.field == "pattern" and banner.symmetry in ("skew-symmetric", "hermitian"):
        source.fail(1, "a general or symmetric pattern", banner.symmetry)
    if banner.symmetry == "hermitian" and banner.field != "complex":
        source.fail(1, "a complex field for a hermitian matrix", banner.field)
    return banner


def _size(source: _Source, banner: _Banner, line: _Line | None) -> tuple[tuple[int, int], int]:
    """Read the shape and the number of entries that follow."""
    names = ["rows", "columns"] + (["entries"] if banner.format == "coordinate" else [])
    expected = f"the size line, {len(names)} whole numbers ({', '.join(names)})"
    if line is None:
        source.fail(len(source.lines), expected, "the end of the file")
    if len(line.words) != len(names):
        source.fail(line.number, expected, _counted(len(line.words), "word"))
    sizes = [source.numbers([line], i, _size_number, expected)[0] for i in range(len(names))]
    m, n = sizes[:2]
    if banner.symmetry != "general" and m != n:
        source.fail(line.number, f"a square {banner.symmetry} matrix", f"{m} x {n}")
    if m * n > _MOST_ENTRIES:
        source.fail(line.number, f"at most {_MOST_ENTRIES} entries as a dense matrix", f"{m} x {n}")
    if banner.format == "coordinate":
        return (m, n), sizes[2]
    return (m, n), len(_stored_positions(banner, m, n)[0])


def _words_per_entry(banner: _Banner) -> int:
    coordinates = 2 if banner.format == "coordinate" else 0
    return coordinates + {"pattern": 0, "real": 1, "integer": 1, "complex": 2}[banner.field]


def _check_entries(source: _Source, entries: list[_Line], count: int, words: int) -> None:
    # A short line first: a file cut in the middle of a line is better told by that line.
    for line in entries[:count]:
        if len(line.words) != words:
            got = _counted(len(line.words), "word")
            source.fail(line.number, f"an entry of {_counted(words, 'word')}", got)
    if len(entries) < count:
        got = f"the end of the file after {len(entries)}"
        source.fail(len(source.lines), _counted(count, "entry", "entries"), got)
    if len(entries) > count:
        extra = entries[count]
        expected = f"the end of the file after {_counted(count, 'entry', 'entries')}"
        source.fail(extra.number, expected, _shown(b" ".join(extra.words)))


def _stored_positions(
    banner: _Banner, m: int, n: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and columns of what an array file stores: column by column, all or the lower part."""
    columns, rows = np.divmod(np.arange(m * n), max(m, 1))
    if banner.symmetry == "general":
        return rows, columns
    stored = rows > columns if banner.symmetry == "skew-symmetric" else rows >= columns
    return rows[stored], columns[stored]


def _coordinates(
    source: _Source, banner: _Banner, entries: list[_Line], m: int, n: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    rows = source.numbers(entries, 0, _index(m), f"a row from 1 to {m}")
    columns = source.numbers(entries, 1, _index(n), f"a column from 1 to {n}")
    if banner.symmetry != "general":
        for line, row, column in zip(entries, rows, columns, strict=True):
            if row < column:
                expected = f"an entry on or below the diagonal of a {banner.symmetry} matrix"
                source.fail(line.number, expected, f"row {row + 1}, column {column + 1}")
    return np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64)


def _values(
    source: _Source, banner: _Banner, entries: list[_Line], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    if banner.field == "pattern":
        return np.ones(len(entries), dtype)
    convert, expected = _real(dtype), f"a number, finite in {dtype}"
    if banner.field == "integer":
        convert, expected = _integer(dtype), f"a whole number, finite in {dtype}"
    last = [source.numbers(entries, -1, convert, expected)]
    if banner.field == "complex":
        last.insert(0, source.numbers(entries, -2, convert, expected))
        return (np.array(last[0]) + 1j * np.array(last[1])).astype(dtype)
    return np.array(last[0]).astype(dtype)


def _check_diagonal(
    source: _Source,
    banner: _Banner,
    entries: list[_Line],
    values: npt.NDArray[Any],
    diagonal: npt.NDArray[np.bool_],
) -> None:
    zero = {"skew-symmetric": values, "hermitian": values.imag}.get(banner.symmetry)
    if zero is None:
        return
    wrong = np.flatnonzero(diagonal & (zero != 0))
    if wrong.size:
        what = "zero" if banner.symmetry == "skew-symmetric" else "a real number"
        expected = f"{what} on the diagonal of a {banner.symmetry} matrix"
        source.fail(entries[wrong[0]].number, expected, f"{values[wrong[0]]}")


def _assemble(
    banner: _Banner,
    shape: tuple[int, int],
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    values: npt.NDArray[Any],
) -> npt.NDArray[Any]:
    matrix = np.zeros(shape, values.dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # told by the caller, with a place
        np.add.at(matrix, (rows, columns), values)
    if banner.symmetry == "general":
        return matrix
    strictly_lower = np.tril(matrix, -1)
    mirrored = strictly_lower.conj() if banner.symmetry == "hermitian" else strictly_lower
    return matrix + (-mirrored.T if banner.symmetry == "skew-symmetric" else mirrored.T)


def _whole(word: bytes) -> int:
    # int() and float() also take Python's 1_000, which no other reader of these files does.
    if b"_" in word:
        raise ValueError
    return int(word)


def _size_number(word: bytes) -> int:
    if (number := _whole(word)) < 0:
        raise ValueError
    return number


def _index(size: int) -> Callable[[bytes], int]:
    def convert(word: bytes) -> int:
        if not 1 <= (index := _whole(word)) <= size:
            raise ValueError
        return index - 1

    return convert


def _real(dtype: np.dtype[Any]) -> Callable[[bytes], float]:
    largest = float(np.finfo(dtype).max)

    def convert(word: bytes) -> float:
        # The comparison is also false for nan.
        if b"_" in word or not abs(number := float(word)) <= largest:
            raise ValueError
        return number

    return convert


def _integer(dtype: np.dtype[Any]) -> Callable[[bytes], float]:
    largest = float(np.finfo(dtype).max)

    def convert(word: bytes) -> float:
        if not abs(number := float(_whole(word))) <= largest:
            raise ValueError
        return number

    return convert


def _shown(word: bytes) -> str:
    """Show what came, on one line and short, whatever the bytes are."""
    text = ascii(word.strip().decode("latin-1"))
    return text if len(text) <= 40 else text[:37] + "..."


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one}" if count == 1 else f"{count} {many or one + 's'}"
