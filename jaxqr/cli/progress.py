"""What is being done, for whoever waits."""

import sys


class Progress:
    """One line on a terminal's stderr that says what is being done; silent elsewhere."""

    def __init__(self, prefix: str) -> None:
        """Take what stands before every word of it."""
        self.prefix = prefix

    def __call__(self, doing: str) -> None:
        """Say it."""
        self._write(f"{self.prefix}: {doing} ...")

    def clear(self) -> None:
        """Leave the terminal as it was."""
        self._write("")

    @staticmethod
    def _write(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
