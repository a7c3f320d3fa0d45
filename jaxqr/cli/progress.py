"""What is being done, for whoever waits, and a way out for whoever will not."""

import concurrent.futures
import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from jaxqr._streams import say

PATIENCE = 10.0
"""Seconds of silence before the first plain line."""

_T = TypeVar("_T")


def why_busy() -> str:
    """Say so if threads have to wait for a core: times then vary a hundredfold."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = os.cpu_count() or 1
    return f"The machine is busy (load {load:.0f} on {cores} cores)" if load > cores else ""


class Progress:
    """Say on stderr what is being done. `busy` is true while it is, and after Ctrl-C.

    A terminal shows it all the time, on one line. Elsewhere (a file, a pipe, a batch job) a plain
    line comes after `PATIENCE` seconds, after twice as many, and so on: short work says nothing.
    """

    def __init__(self, prefix: str) -> None:
        """Take what stands before every word of it."""
        self.prefix = prefix
        self.doing = ""
        self.busy = False

    def __call__(self, doing: str) -> None:
        """Say that something begins."""
        self.doing = doing
        self._write(f"{self} ...")

    def __str__(self) -> str:
        """Name the work and the part of it."""
        return f"{self.prefix}: {self.doing}"

    def clear(self) -> None:
        """Leave the terminal as it was."""
        self._write("")

    def during(self, work: Callable[[], _T]) -> _T:
        """Do the work, which calls this object, in a thread; Ctrl-C ends the waiting at once.

        In the main thread it would have to wait until compiled code returns to Python, in minutes.
        What a thread cannot end is left running: the caller should end the process.

        Args:
            work: what to do.

        Returns:
            What the work returns.

        Raises:
            KeyboardInterrupt: on Ctrl-C.
            BaseException: what the work raises.

        >>> Progress("sums").during(lambda: 1 + 1)
        2
        """
        done: concurrent.futures.Future[_T] = concurrent.futures.Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        self.busy = True
        threading.Thread(target=run, daemon=True).start()
        patience = PATIENCE
        while not concurrent.futures.wait([done], patience).done:
            patience *= 2
            if not sys.stderr.isatty():
                say(f"{self} ...")
        self.busy = False
        return done.result()

    @staticmethod
    def _write(text: str) -> None:
        if sys.stderr.isatty():
            say(f"\r\x1b[K{text}", end="")
