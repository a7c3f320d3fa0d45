"""Crossovers that ``python -m jaxqr tune`` measured on a user's machine: a JSON file, read once.

A file holds one entry for each kind of device and release of JAX. Without a file, or an entry that
is of this release and device, nothing differs from what is shipped.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax import lax

from jaxqr._linalg.crossovers import MOST_UNROLLED, NOTHING, SHIPPED, Crossovers

VARIABLE = "JAXQR_TUNING"
"""The environment variable that names another file, or "none"."""

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

ByPlatform = Mapping[str, Crossovers]
SHIPPED_TABLE: ByPlatform = types.MappingProxyType({"cpu": SHIPPED})
_FORMAT = "jaxqr tuning 1"
_LARGEST = sys.float_info.max  # JSON has whole numbers beyond it
_KEY = ("platform", "device_kind", "jax", "jaxlib")


@dataclasses.dataclass(frozen=True)
class Entry:
    """What was measured on a kind of device with a release of JAX."""

    platform: str
    device_kind: str
    jax: str
    jaxlib: str
    crossovers: Crossovers

    @property
    def release(self) -> tuple[str, str]:
        """Of JAX."""
        return self.jax, self.jaxlib

    @property
    def key(self) -> tuple[str, ...]:
        """What there is one entry of."""
        return tuple(getattr(self, name) for name in _KEY)


def release() -> tuple[str, str]:
    """The versions of jax and jaxlib here."""
    return jax.__version__, importlib.metadata.version("jaxlib")


def crossovers() -> ByPlatform:
    """Of every platform that has any."""
    return _read() if _forced is None else _forced


def by_platform(
    best: Callable[[Crossovers], Callable[..., Any]], usual: Callable[..., Any], *args: Any
) -> Any:
    """What is BEST by the crossovers of each platform that has any, and ``usual`` elsewhere."""
    chosen = {platform: best(of_platform) for platform, of_platform in crossovers().items()}
    faster = {platform: f for platform, f in chosen.items() if f is not usual}
    if not faster:
        return usual(*args)
    return lax.platform_dependent(*args, default=usual, **faster)


def base(platform: str) -> Crossovers:
    """What holds on a platform where nothing was measured by the user."""
    return SHIPPED_TABLE.get(platform, NOTHING)


_forced: ByPlatform | None = None


@contextlib.contextmanager
def forced(table: ByPlatform) -> Iterator[None]:
    """Use this table, in all threads. What JAX has traced by another is forgotten."""
    global _forced
    before, _forced = _forced, table
    jax.clear_caches()
    try:
        yield
    finally:
        _forced = before
        jax.clear_caches()


@functools.cache
def _read() -> ByPlatform:
    """What the user's file says of this release and these devices, over what is shipped."""
    named = os.environ.get(VARIABLE, "")
    file = path()
    if file is None or not (named or os.path.exists(file)):
        return SHIPPED_TABLE
    try:
        entries = load(file)
    except (OSError, ValueError) as error:
        warnings.warn(
            f"{file} is left out: {error}. `python -m jaxqr tune` {_what_tune_does(file)}; "
            f"{VARIABLE}=none does without",
            stacklevel=2,
        )
        return SHIPPED_TABLE
    found = {platform: _of_platform(entries, platform) for platform in PLATFORMS}
    return {**SHIPPED_TABLE, **{platform: x for platform, x in found.items() if x is not None}}


def _what_tune_does(file: Path) -> str:
    """With a file that cannot be read."""
    try:
        load_what_there_is(file)
    except (OSError, ValueError):
        return "does not overwrite it"
    return "writes a new one"


def _of_platform(entries: list[Entry], platform: str) -> Crossovers | None:
    of_release = [
        entry for entry in entries if entry.platform == platform and entry.release == release()
    ]
    if not of_release:
        return None
    try:
        kind = jax.local_devices(backend=platform)[0].device_kind
    except RuntimeError:  # there is none here: a program that is lowered for somewhere else
        return of_release[0].crossovers if len(of_release) == 1 else None
    return next((entry.crossovers for entry in of_release if entry.device_kind == kind), None)


# --- The file


def path() -> Path | None:
    """Where the table is, or would be; None where the environment says "none"."""
    named = os.environ.get(VARIABLE, "")
    if named == "none":
        return None
    return Path(named) if named else default_path()


def default_path() -> Path:
    """In the user's cache directory, by the convention of each system."""
    home, xdg = Path(os.path.expanduser("~")), os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):
        folder = Path(xdg) / "jaxqr"
    elif sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA", "")
        folder = (Path(local) if local else home / "AppData" / "Local") / "jaxqr" / "Cache"
    elif sys.platform == "darwin":
        folder = home / "Library" / "Caches" / "jaxqr"
    else:
        folder = home / ".cache" / "jaxqr"
    return folder / "tuning.json"


def load(file: Path) -> list[Entry]:
    """The entries of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a table.
    """
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(table, dict) or table.get("format") != _FORMAT:
        raise ValueError(f'it is no table of the format "{_FORMAT}"')
    entries = table.get("entries")
    if not isinstance(entries, list):
        raise ValueError("it has no list of entries")
    return [_entry(entry) for entry in entries]


def load_what_there_is(file: Path) -> list[Entry]:
    """The entries of a file that may be written anew: none, if it is missing, empty or spoilt.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else, and not ours to overwrite, as what is in the cache is.
    """
    try:
        empty = os.path.isfile(file) and not os.path.getsize(file)
        return [] if empty else load(file)
    except FileNotFoundError:
        return []
    except ValueError:
        if file != default_path():
            raise
        return []


def save(entries: list[Entry], file: Path) -> None:
    """Write a file, in one step: who reads it meanwhile gets the old one or the new one."""
    file = Path(os.path.realpath(file))  # a link stays one
    with room_beside(file) as folder:
        new = folder / file.name
        new.write_text(text(entries), encoding="utf-8")
        os.replace(new, file)


@contextlib.contextmanager
def room_beside(file: Path) -> Iterator[Path]:
    """A folder beside a file that is to be, for as long as it takes.

    Raises:
        OSError: nothing can be written there.
    """
    parent = Path(os.path.realpath(file)).parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)


def text(entries: list[Entry]) -> str:
    """What a file of these entries says."""
    table = {"format": _FORMAT, "entries": [dataclasses.asdict(entry) for entry in entries]}
    return json.dumps(table, indent=2) + "\n"


def _entry(entry: Any) -> Entry:
    if not isinstance(entry, dict) or set(entry) != {*_KEY, "crossovers"}:
        raise ValueError(f"an entry has other names than {', '.join(_KEY)} and crossovers")
    if not all(isinstance(entry[name], str) for name in _KEY):
        raise ValueError(f"{', '.join(_KEY)} are not all strings")
    numbers = entry["crossovers"]
    names = {field.name for field in dataclasses.fields(Crossovers)}
    if not isinstance(numbers, dict) or not set(numbers) <= names:
        raise ValueError(f"crossovers are others than {', '.join(sorted(names))}")
    for name, x in numbers.items():
        if type(x) not in (int, float) or not 0 <= x <= _LARGEST:
            raise ValueError(f"{name} is {x!r:.40}, and no number from 0 to {_LARGEST:.0e}")
    for name in ("most_unrolled", "most_unrolled_in_rules"):
        if numbers.get(name, 0) > MOST_UNROLLED:
            raise ValueError(f"{name} is {numbers[name]}, more than {MOST_UNROLLED}")
    # What jaxqr did not know yet when it was measured is as it is shipped.
    return Entry(**entry | {"crossovers": dataclasses.replace(base(entry["platform"]), **numbers)})
