"""What is kept of texts between fits, in a folder: found again by content, whoever asks."""

import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zlib import crc32

FILE_NAME = "bertclf.sqlite"
SCHEMA = "CREATE TABLE IF NOT EXISTS kept (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"

# Another process may hold the file while it computes what is missing. SQLite waits where Ctrl-C is not heard, so it
# does that for a short time only, again and again.
SECONDS_TO_WAIT, SECONDS_AT_ONCE = 600.0, 0.5

KEYS_PER_QUERY = 500
SEAL_BYTES = 4


def key_of(*parts: str | bytes | memoryview) -> bytes:
    """Return 16 bytes that stand for some content; the parts are not run together."""
    digest = blake2b(digest_size=16)
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.digest()


class TextMemory:
    """Bytes by key in one file of a folder, for any number of threads and processes.

    Parameters
    ----------
    folder : path-like
        Folder of the file; both are made when they are first needed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()
        self._is_usable = True

    def get_or_make(self, keys: list[bytes], make: Callable[[list[int]], Iterable[bytes]]) -> list[bytes]:
        """Return the value of each key, and make and keep those that are missing.

        Parameters
        ----------
        keys : list of bytes
            What to look up.
        make : callable
            Gets the positions in `keys` of what is missing, each key once, and returns the values. While it works no
            other process makes anything for this file, so that nothing is made twice.

        Warns
        -----
        UserWarning
            If the file can't be read or written: from then on all that is missing is made, and nothing kept.
        """
        found: dict[bytes, bytes] = {}
        if self._is_usable:
            try:
                with self._opened() as file:
                    found |= _select(file, keys)
                    if any(key not in found for key in keys):
                        _execute(file, "BEGIN IMMEDIATE")
                        found |= _select(file, [key for key in keys if key not in found])
                        made = _made(keys, found, make)
                        found |= made
                        sealed = [(key, _sealed(value)) for key, value in made.items()]
                        file.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?)", sealed)
                        _execute(file, "COMMIT")
            except sqlite3.Error as error:
                self._is_usable = False
                warnings.warn(
                    f"memory={str(self.folder)!r} can't be used, so nothing is kept there: {error}. Pass a folder that "
                    f"can be written, or delete {FILE_NAME} in it if that is damaged.",
                    UserWarning,
                    stacklevel=2,
                )
        found |= _made(keys, found, make)
        return [found[key] for key in keys]

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """Open the file for a moment: a connection must not be shared by threads or inherited by processes."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise sqlite3.OperationalError(str(error)) from error
        with closing(sqlite3.connect(self.folder / FILE_NAME, timeout=SECONDS_AT_ONCE, isolation_level=None)) as file:
            _execute(file, SCHEMA)
            yield file


def open_memory(memory: Any) -> TextMemory | None:
    """Return what the parameter `memory` asks for: None, a folder, or a `joblib.Memory`, whose `clear` deletes it."""
    if hasattr(memory, "cache"):
        store = getattr(getattr(memory, "store_backend", None), "location", None)
        location = getattr(memory, "location", None) if store is None else Path(store) / "bertclf"
    else:
        location = memory
    if location == "":
        raise ValueError("memory='' names no folder. Pass '.' for the current folder, or None to keep nothing.")
    return None if location is None else TextMemory(location)


def _made(
    keys: list[bytes], found: dict[bytes, bytes], make: Callable[[list[int]], Iterable[bytes]]
) -> dict[bytes, bytes]:
    """Make the values of the keys that were not found, each key once."""
    missing: dict[bytes, int] = {}
    for position, key in enumerate(keys):
        if key not in found:
            missing.setdefault(key, position)
    return dict(zip(missing, make(list(missing.values())), strict=True)) if missing else {}


def _select(file: sqlite3.Connection, keys: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys that are there, with their values, but for values that are damaged."""
    for start in range(0, len(keys), KEYS_PER_QUERY):
        some = keys[start : start + KEYS_PER_QUERY]
        marks = ",".join("?" * len(some))
        for key, sealed in _execute(file, f"SELECT key, value FROM kept WHERE key IN ({marks})", some):
            if isinstance(sealed, bytes) and _sealed(sealed[:-SEAL_BYTES]) == sealed:
                yield key, sealed[:-SEAL_BYTES]


def _sealed(value: bytes) -> bytes:
    """Return a value with a checksum behind it: SQLite keeps none."""
    return value + crc32(value).to_bytes(SEAL_BYTES, "little")


def _execute(file: sqlite3.Connection, statement: str, values: list[bytes] | None = None) -> list[Any]:
    """Execute a statement and return all rows, as soon as other processes let go of the file."""
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while True:
        try:
            return file.execute(statement, values or []).fetchall()
        except sqlite3.OperationalError as error:
            is_busy = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() > deadline:
                raise
