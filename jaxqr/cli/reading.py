"""Read Matrix Market files into dense numpy arrays: SciPy reads, and what it lets pass is refused.

Where the format leaves a choice, or readers differ:

* comments and blank lines may stand anywhere below the banner;
* coordinates named twice are summed, as an assembled finite element matrix means them;
* symmetric, skew-symmetric and Hermitian files store the lower triangle, and an entry above the
  diagonal is an error, not a guess;
* a skew-symmetric matrix has zeros on its diagonal and a Hermitian one real numbers; a Hermitian
  file of real numbers is a symmetric one;
* every number must be finite in the type that is asked for, and a whole number fit 64 bits;
* a line holds one entry and nothing else. SciPy reads 1.0D2 and 1_0 as 1, and a skew-symmetric
  array that has been cut short; it dies of an empty array, and of a symmetric one that is not
  square. So none of these comes to SciPy;
* a pattern has coordinates: an array of it, which SciPy lets pass, is none.
"""

import bz2
import codecs
import gzip
import inspect
import io
import os
import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import scipy.io  # type: ignore[import-untyped]

# 1 GiB in float64. A sparse file of a few bytes can name a dense matrix of any size, and asking
# the machine for it would end the program instead of this one file.
_MOST_ENTRIES = 2**27

_WHOLE, _NUMBER = rb"[+-]?\d+", rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_VALUES = {
    "pattern": [],
    "integer": [_WHOLE],
    "unsigned-integer": [_WHOLE],
    "complex": [_NUMBER] * 2,
}

_SIZES = {b"matrix array": "ROWS COLUMNS", b"matrix coordinate": "ROWS COLUMNS ENTRIES"}

# SciPy before 1.15 has no such argument; from 1.18 on it warns where it is missing.
_NEW = {"spmatrix": False} if "spmatrix" in inspect.signature(scipy.io.mmread).parameters else {}


class MatrixMarketError(ValueError):
    """A file that cannot be read as a matrix: ``str(error)`` is one line, ``path:line: reason``."""

    def __init__(self, path: str, line: int, message: str) -> None:
        """Keep the place, a line counted from 1, beside the message."""
        super().__init__(f"{path}:{line}: {message}")
        self.path, self.line, self.message = path, line, message


def read(path: str | os.PathLike[str], dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """Read a Matrix Market file as a dense matrix.

    Args:
        path: the file, or "-" for standard input, as it is or compressed by gzip or bzip2: array or
            coordinate; real, complex, integer, unsigned-integer or pattern; of any symmetry.
        dtype: the floating-point type of the result, by default float64, or complex128 for a
            complex file.

    Returns:
        The matrix, (m, n), with both triangles of a symmetric one and ones for a pattern.

    Raises:
        MatrixMarketError: the file is missing, unreadable, empty, cut short or malformed, is
            complex while `dtype` is real, holds a number that is not finite in `dtype`, or names a
            dense matrix beyond 2**27 entries.
    """
    file = _File(os.fspath(path))
    file.check_banner()
    m, n, count, layout, field, symmetry = file.ask(scipy.io.mminfo, blame=1)
    if (layout, field) == ("array", "pattern"):
        file.fail(0, "expected an array of numbers (real, complex or integer), got pattern")
    dtype = np.dtype(dtype or (np.complex128 if field == "complex" else np.float64))
    if field == "complex" and dtype.kind != "c":
        file.fail(0, f"expected a field that fits {dtype}, got complex")
    if symmetry != "general" and m != n:
        file.fail(1, f"expected a square {symmetry} matrix, got {m} x {n}")
    if max(m, n, m * n) > _MOST_ENTRIES:
        size = f"{m} x {n}, {m * n * dtype.itemsize / 2**30:.3g} GiB"
        file.fail(1, f"expected at most {_MOST_ENTRIES} entries as a dense matrix, got {size}")
    strict, hermitian = symmetry == "skew-symmetric", symmetry == "hermitian"
    if layout == "array" and symmetry != "general":
        count = n * (n - 1) // 2 if strict else n * (n + 1) // 2
    file.check_entries(count, ([_WHOLE] * 2 if layout == "coordinate" else []), field)
    if not count:
        return np.zeros((m, n), dtype)

    found = file.ask(lambda stream: scipy.io.mmread(stream, **_NEW), blame=0)
    with np.errstate(over="ignore", invalid="ignore"):  # told below, with a place
        if layout == "coordinate":
            found.data = found.data.astype(dtype)  # in this type they are summed
            matrix: npt.NDArray[Any] = found.toarray()
            # What comes after `count` has been mirrored.
            rows, columns, values = (x[:count] for x in (found.row, found.col, found.data))
        else:  # column by column, all or the lower part
            matrix = found.astype(dtype)
            whole = np.indices((n, m)).reshape(2, -1)
            columns, rows = whole if symmetry == "general" else np.triu_indices(n, int(strict))
            values = matrix[rows, columns]
    diagonal, above = rows == columns, (rows < columns) & (symmetry != "general")
    wrong = {
        f"a number, finite in {dtype}": ~np.isfinite(values),
        f"an entry on or below the diagonal ({symmetry})": above,
        f"zero on the diagonal ({symmetry})": diagonal & (values != 0) & strict,
        f"a real number on the diagonal ({symmetry})": diagonal & (values.imag != 0) & hermitian,
    }
    for expected, where in wrong.items():
        if where.any():
            i = 2 + int(np.argmax(where))
            file.fail(i, f"expected {expected}, got {_shown(file.lines[i])}")
    if not np.isfinite(matrix).all():
        file.fail(-1, f"expected repeated entries that add up in {dtype}, got an overflow")
    return matrix


class _File:
    """The lines of a file that say something, banner, size line and entries, and their numbers."""

    def __init__(self, path: str) -> None:
        self.name = {"-": "<stdin>", "": "''"}.get(path, path)
        self.numbers = [1]
        try:
            content = _content(path)
            if content.startswith((b"\x1f\x8b", b"BZh")):
                content = (bz2 if content.startswith(b"B") else gzip).decompress(content)
            content = content.removeprefix(codecs.BOM_UTF8)
        except (OSError, ValueError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self.fail(0, f"expected a readable file, got: {_shown(reason.lower())}")
        # Bytes, because names in comments come in any encoding; only \n, \r and \r\n end a line.
        lines = [line.strip() for line in content.splitlines()] or [b""]
        below = [i for i, line in enumerate(lines[1:], 1) if line and not line.startswith(b"%")]
        self.lines = [lines[0].decode("latin-1").encode(), *(lines[i] for i in below)]
        self.numbers = [1, *(i + 1 for i in below), len(lines)]

    def fail(self, i: int, message: str) -> NoReturn:
        """Refuse line i of `lines`; one beyond or -1 is the end of the file."""
        line = self.numbers[min(i, len(self.numbers) - 1)]
        raise MatrixMarketError(self.name, line, message)

    def ask(self, reader: Callable[[io.BytesIO], Any], blame: int) -> Any:
        """Let SciPy read. What it does not like stands in the line that it names, or `blame`."""
        try:
            return reader(io.BytesIO(b"\n".join(self.lines).replace(b"+", b"")))
        except (ValueError, OverflowError, MemoryError) as error:
            _, place, reason = re.split(r"^(?:Line (\d+): )?", str(error), maxsplit=1)
            i = int(place) - 1 if place else blame
            got = f", got {_shown(self.lines[i])}" if place and i < len(self.lines) else ""
            self.fail(i, _shown(reason.removesuffix(".")) + got)

    def check_banner(self) -> None:
        """Refuse none, one with too few words, and a size line that does not go with it.

        Words beyond these are ignored, as by SciPy.
        """
        name, *words = self.lines[0].split() or [b""]
        if name not in (b"%%MatrixMarket", b"%MatrixMarket"):
            way_out = "scipy.io.mmwrite writes one"
            got = _shown(self.lines[0])
            self.fail(0, f"expected a file that begins with %%MatrixMarket, got {got}; {way_out}")
        if len(words) < 4:
            expected = "%%MatrixMarket matrix FORMAT FIELD SYMMETRY"
            self.fail(0, f"expected {expected}, got {_shown(self.lines[0])}")
        size = _SIZES.get(b" ".join(words[:2]).lower())
        if size is not None and len(self.lines) > 1:
            numbers = rb"\s+".join(rb"\+?\d+" for _ in size.split())
            if not re.fullmatch(numbers, self.lines[1]):
                self.fail(1, f"expected {size}, got {_shown(self.lines[1])}")

    def check_entries(self, count: int, place: list[bytes], field: str) -> None:
        """Refuse lines that are no entries, and more or fewer of them than there should be."""
        words = place + _VALUES.get(field, [_NUMBER])
        kind = f"{len(words)} {'word' if len(words) == 1 else 'words'} ({field})"
        entry = re.compile(rb"\s+".join(words))
        # A line that is none first: a file cut in the middle of a line is better told by that.
        for i, line in enumerate(self.lines[2 : 2 + count], start=2):
            if not entry.fullmatch(line):
                self.fail(i, f"expected an entry of {kind}, got {_shown(line)}")
        if (entries := len(self.lines) - 2) < count:
            self.fail(-1, f"expected {_entries(count)}, got the end of the file after {entries}")
        if entries > count:
            got = _shown(self.lines[2 + count])
            self.fail(2 + count, f"expected the end of the file after {_entries(count)}, got {got}")


def _content(path: str) -> bytes:
    if not path:  # which pathlib takes for the folder at hand
        raise OSError("an empty name")
    if path != "-":
        return Path(path).read_bytes()
    if sys.stdin is None:
        raise OSError("standard input is closed")
    return sys.stdin.buffer.read()


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"


def _shown(text: str | bytes) -> str:
    """Show what came, on one line and short, whatever it is."""
    shown = ascii(text.decode("latin-1")) if isinstance(text, bytes) else ascii(text)[1:-1]
    return shown if len(shown) <= 80 else shown[:77] + "..."
