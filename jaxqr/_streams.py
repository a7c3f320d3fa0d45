"""What command lines print, on streams that may be closed, full, or read by nobody any more."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

BROKEN_PIPE = 141
"""The exit status that a shell gives what SIGPIPE ended: 128 + 13."""


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Let closed streams lead nowhere, and write at the end what others have printed.

    Raises:
        SystemExit: as `show` does.
    """
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(sys.stdout or nowhere))
        stack.enter_context(contextlib.redirect_stderr(sys.stderr or nowhere))
        try:
            yield
        finally:
            say("", end="")
            show("", end="")


def show(text: str, end: str = "\n") -> None:
    """Print on stdout, at once.

    Raises:
        SystemExit: nobody reads it any more (`BROKEN_PIPE`), or it cannot be written (2).
    """
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:  # the reader has seen enough (| head)
        _give_up(sys.stdout)
        raise SystemExit(BROKEN_PIPE) from None
    except OSError as error:
        _give_up(sys.stdout)
        say(f"standard output: {error.strerror or error}")
        raise SystemExit(2) from None


def say(text: str, end: str = "\n") -> None:
    """Print on stderr, at once; where that cannot be written, nobody is told."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        _give_up(sys.stderr)


class Parser(argparse.ArgumentParser):
    """One that prints by `show` and `say`: argparse's own is silent about what it cannot write."""

    def _print_message(self, message: str, file: Any = None) -> None:
        print_ = show if file is sys.stdout else say
        print_(message or "", end="")


def _give_up(stream: TextIO) -> None:
    """Let the rest lead nowhere: Python would complain once more when it flushes, and exit so."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
