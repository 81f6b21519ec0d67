"""Files and folders that are replaced whole or not at all, whatever happens meanwhile; and what is said of broken ones.

A save is written beside its place, synced, and renamed into it. Killed at any moment, it leaves the old or the new.
What a killed save leaves beside its place is deleted by the next one. Of folders only files of known names are ever
deleted: what others have put there stays.
"""

import ctypes
import errno
import os
import re
import secrets
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST}
NOT_POSSIBLE_HERE = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}

# Arguments of renameat2 and of renamex_np, from linux/fs.h, fcntl.h and sys/stdio.h (macOS).
EXCHANGE, CURRENT_FOLDER = 2, -100


class ModelFileError(ValueError):
    """A file of a model or of a checkpoint is damaged, of no network that can classify, or refused as it could do harm.

    The message names the file and the reason.
    """


def replace_file(path: str | os.PathLike[str], content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file, new or in the place of an old one, whole or not at all.

    Parameters
    ----------
    path : str or path-like
        The file; folders on the way to it are made. Behind a link, the file that it leads to.
    content : bytes or callable
        What to write, or a function that writes it into the binary file that it gets.

    Raises
    ------
    OSError
        If it can't be written, with the path. The old file is as it was, and nothing is left behind.
    """
    path = Path(os.path.realpath(path))
    with _told_of(path), _parents(path), _temporary(path, make=lambda new: new.touch(exist_ok=False)) as new:
        with new.open("wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
        _sync_folder(path.parent)


def replace_folder(
    folder: str | os.PathLike[str], write: Callable[[Path], object], *, marker: str, names: Collection[str]
) -> None:
    """Write a folder, new or in the place of an old one, whole or not at all.

    Parameters
    ----------
    folder : str or path-like
        The folder; those on the way to it are made. Behind a link, the folder that it leads to; "~" is the home.
    write : callable
        Fills the empty folder that it gets.
    marker : str
        File that a folder must hold to be replaced, unless it is empty.
    names : collection of str
        All files that a folder may hold to be replaced, since nothing else may be lost.

    Raises
    ------
    OSError
        If it can't be written or holds anything else, with the path. The old folder is as it was, and nothing is left
        behind.

    Warns
    -----
    UserWarning
        If something else got into the old folder at the last moment. It is kept beside the new one.
    """
    folder = Path(os.path.realpath(Path(folder).expanduser()))
    # The marker last: of several processes, none takes for that of others a folder that another is deleting.
    names = [*sorted(set(names) - {marker}), marker]
    with _told_of(folder):
        _check_replaceable(folder, marker=marker, names=names)
        with _parents(folder), _temporary(folder, make=Path.mkdir, names=names) as new:
            write(new)
            for parent, _, files in os.walk(new):
                for name in files:
                    with open(os.path.join(parent, name), "rb+") as file:
                        os.fsync(file.fileno())
                _sync_folder(Path(parent))
            _check_replaceable(folder, marker=marker, names=names)  # again: writing takes a while
            _put(new, folder)
            _sync_folder(folder.parent)
    _warn_of_kept(new, folder, names=names)


def folder_to_read(folder: str | os.PathLike[str]) -> Path:
    """Return a folder; if it is missing since a save was killed between two renames, what that had set aside."""
    folder = Path(os.path.realpath(Path(folder).expanduser()))
    if not folder.exists() and (aside := [found for found in _leftovers(folder) if _is_aside(found)]):
        return aside[-1]
    return folder


def _check_replaceable(folder: Path, *, marker: str, names: Collection[str]) -> None:
    """Raise if a folder holds what may not be lost, or can't be exchanged for another."""
    try:
        is_current = os.path.samestat(os.stat(folder), os.stat("."))
        with os.scandir(folder) as entries:
            found = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        message = "A file is where the folder should be. Name another folder"
        raise NotADirectoryError(errno.ENOTDIR, message, folder) from error
    if is_current:
        raise OSError(errno.EBUSY, "The current folder can't be replaced. Name a folder inside it", folder)
    foreign = sorted(name for name, is_file in found.items() if name not in names or not is_file)
    if foreign or (found and marker not in found):
        what = f"holds {foreign[0]}" if foreign else f"lacks {marker}"
        raise FileExistsError(
            errno.EEXIST,
            f"The folder {what}, so that bertclf did not write all that would be lost with it. Name a new folder, or "
            "empty this one",
            folder,
        )


def _warn_of_kept(aside: Path, folder: Path, *, names: Collection[str]) -> None:
    """Warn if an old folder could not be deleted since it holds what is not of this package."""
    try:
        foreign = sorted(set(os.listdir(aside)) - set(names))
    except OSError:  # it is gone, as it should be
        return
    if foreign:
        warnings.warn(
            f"{foreign[0]} got into the folder {str(folder)!r} while it was replaced, and is kept in {str(aside)!r}. "
            "Move it to a place of its own, and delete that folder.",
            UserWarning,
            stacklevel=2,
        )


def _put(new: Path, folder: Path) -> None:
    """Put a folder into a place that is free, or taken by another; `new` may then hold the old one.

    Where two folders can't be exchanged in one step, the old one is set aside for a moment, in which `folder_to_read`
    finds it. Several processes may do so at once.
    """
    while True:
        try:
            os.rename(new, folder)  # works if nothing is there, or under Unix an empty folder
            return
        except OSError as error:
            if error.errno not in NOT_EMPTY:
                raise
        if _exchange(new, folder):
            return
        aside = _beside(folder, "old-")
        try:
            with suppress(FileNotFoundError):  # another process has just moved it
                os.rename(folder, aside)
            os.rename(new, folder)
            with suppress(FileNotFoundError):  # another process has just deleted it
                os.rename(aside, new)
            return
        except BaseException as error:
            with suppress(OSError):
                os.rename(aside, folder)
            if not isinstance(error, OSError) or error.errno not in NOT_EMPTY:
                raise


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step, and tell whether that was possible: network drives and Windows can't."""
    try:
        system = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return bool(system.renamex_np(os.fsencode(first), os.fsencode(second), EXCHANGE) == 0)
        paths = (CURRENT_FOLDER, os.fsencode(first), CURRENT_FOLDER, os.fsencode(second))
        return bool(system.renameat2(*paths, EXCHANGE) == 0)
    except (AttributeError, TypeError):  # no such function, no such library
        return False


def _beside(path: Path, kind: str = "") -> Path:
    """Return a new name beside a path, which `_leftovers` knows again."""
    return path.with_name(f".{path.name}.bertclf-{kind}{secrets.token_hex(8)}")


def _is_aside(path: Path) -> bool:
    return ".bertclf-old-" in path.name[-30:]


def _leftovers(path: Path) -> list[Path]:
    """Return what saves have put beside a path, living ones and killed ones, the oldest first."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.bertclf-(old-)?[0-9a-f]{{16}}")
    found = []
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name):
                with suppress(FileNotFoundError):
                    found.append((entry.stat(follow_symlinks=False).st_mtime_ns, Path(entry.path)))
    return [leftover for _, leftover in sorted(found)]


def _clear(path: Path, *, names: Collection[str]) -> None:
    """Delete what killed saves have left beside a path: files, and folders of some files."""
    leftovers = _leftovers(path)
    # Looked up after the list was made: what was set aside by then has been replaced.
    is_there = path.exists()
    for leftover in leftovers:
        if _is_aside(leftover):
            if is_there:
                _discard(leftover, names=names)
        else:
            with suppress(OSError), _locked(leftover) as is_mine:  # one that can't be opened stays
                if is_mine:
                    _discard(leftover, names=names)


@contextmanager
def _temporary(path: Path, *, make: Callable[[Path], object], names: Collection[str] = ()) -> Iterator[Path]:
    """Make a new file, or folder of some files, beside a path, and delete in the end what then bears its name."""
    _clear(path, names=names)
    while True:
        new = _beside(path)
        make(new)
        try:
            with _locked(new) as is_mine:
                # Another process that clears up may have found it before it was locked.
                if is_mine is False or not new.exists():
                    continue
                yield new
                return
        finally:
            _discard(new, names=names)
            _clear(path, names=names)


@contextmanager
def _locked(path: Path) -> Iterator[bool | None]:
    """Hold a lock on a file or folder that ends with the process, and tell whether it was free; None without locks.

    One that is gone was not free. Raises an OSError if it can't be opened for another reason.
    """
    if fcntl is None:
        yield None
        return
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_free: bool | None = False
        except OSError:  # a network drive
            is_free = None
        else:
            is_free = True
        yield is_free
    finally:
        os.close(handle)


@contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Make the folders on the way to a path, and delete them again if what follows fails."""
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in missing:
            _sync_folder(parent.parent)
        yield
    except BaseException:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()
        raise


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Let an OSError name a path: one of a full disk names none, others one that is only there for a moment."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _discard(path: Path, *, names: Collection[str]) -> None:
    """Delete a file, or a folder and in it the files of some names, if it is there and as far as possible.

    No folder is listed or opened for it, since that could fail where no more files can be opened.
    """
    if not path.is_dir() or path.is_symlink():
        with suppress(OSError):
            path.unlink()
        return
    for name in names:
        with suppress(OSError):
            if not (path / name).is_symlink():
                (path / name).unlink()
    with suppress(OSError):
        path.rmdir()


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system knows of such a thing."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_POSSIBLE_HERE:
            raise
    finally:
        os.close(handle)
