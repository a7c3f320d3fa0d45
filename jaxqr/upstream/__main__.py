"""Command line: write a change offered to JAX as a patch, and check it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from jaxqr._streams import Parser, guarded, say, show
from jaxqr.upstream._patch import CHANGES, UnexpectedSource, check_patch, make_patch, missing


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m jaxqr.upstream``; return its exit status.

    0: the patch is written, and with ``--check`` its tests failed before and passed after it.
    1: ``--check`` found otherwise. 2: JAX's source is not as expected or cannot be read, the patch
    or the output cannot be written, or something that ``--check`` needs is not installed. 141:
    nobody reads the output to its end.

    Example:
        >>> main(["make-patch", "--jax", "/nowhere", "--out", "/nowhere/qr.patch"])
        2
    """
    with guarded():
        return _run(arguments)


def _run(arguments: list[str] | None) -> int:
    parser = Parser(prog="python -m jaxqr.upstream", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make-patch", help="write a patch that `git apply` takes")
    make.add_argument("--jax", type=Path, required=True, help="a JAX checkout or installed package")
    make.add_argument("--out", type=Path, required=True, help="the patch to write")
    make.add_argument("--change", choices=CHANGES, default="rule", help="default: %(default)s")
    make.add_argument(
        "--check", action="store_true", help="run the new tests on a copy, before and after"
    )
    options = parser.parse_args(arguments)
    change = CHANGES[options.change]
    refusal = _unwritable(options.out) or (missing() if options.check else None)
    if refusal is not None:
        say(f"{refusal}. Nothing was written.")
        return 2
    try:
        patch = make_patch(options.jax.resolve(), change)
        _write(options.out, patch)
        show(f"wrote {options.out}; apply it with `git apply` in the directory that holds jax/")
        if options.check:
            good, report = check_patch(options.jax.resolve(), change, patch)
            show(report)
            show("check passed" if good else "CHECK FAILED")
            return 0 if good else 1
    except UnexpectedSource as error:
        say(f"{error}. Nothing was written.")
        return 2
    except (OSError, RuntimeError) as error:
        say(str(error))
        return 2 if isinstance(error, OSError) else 1
    return 0


def _write(out: Path, patch: str) -> None:
    try:
        out.write_text(patch, encoding="utf-8")
    except OSError as error:  # which does not always say where
        raise OSError(error.errno, error.strerror, str(out)) from error


def _unwritable(out: Path) -> str | None:
    """Why the patch cannot be written there, if so."""
    if out.is_dir():
        return f"--out {out} is a directory, not a file to write"
    if not out.parent.is_dir():
        return f"--out {out} cannot be written: there is no directory {out.parent}"
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        return f"--out {out} cannot be written: permission denied"
    return None


if __name__ == "__main__":
    sys.exit(main())
