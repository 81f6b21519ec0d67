"""Model folders as they come from strangers: which files are read, how, and what is refused before it is parsed."""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

from bertclf._files import ModelFileError

MANIFEST, CONFIG, WEIGHTS = "bertclf.json", "config.json", "model.safetensors"
TOKENIZER_CONFIG = "tokenizer_config.json"

# All that a tokenizer of transformers may need.
TOKENIZER_FILES = frozenset(
    {
        TOKENIZER_CONFIG,
        "added_tokens.json",
        "bpe.codes",
        "chat_template.jinja",
        "dict.txt",
        "merges.txt",
        "prophetnet.tokenizer",
        "sentencepiece.bpe.model",
        "sentencepiece.model",
        "special_tokens_map.json",
        "spiece.model",
        "spm.model",
        "spm_char.model",
        "tokenizer.json",
        "tokenizer.model",
        "vocab.bpe",
        "vocab.json",
        "vocab.txt",
    }
)
MODEL_FILES = TOKENIZER_FILES | {MANIFEST, CONFIG, WEIGHTS}

# Far more than such files have; what is larger would only fill the memory.
MOST_BYTES_OF_JSON, MOST_BYTES_OF_TOKENIZER = 32 << 20, 256 << 20

# What runs when others open the folder, or puts other weights in the place of those that are listed.
HARMFUL = re.compile(
    r"adapter_config\.json|.*\.(py|pyc|so|bin|pt|pth|ckpt|pkl|pickle|joblib|h5|msgpack)", re.IGNORECASE
)

# Keys of configurations that name code: modules of a repository, kernels from the Hub, other libraries.
CODE_KEYS = {
    "auto_map",
    "trust_remote_code",
    "custom_pipelines",
    "_attn_implementation_internal",
    "_experts_implementation_internal",
}
IMPLEMENTATION_KEYS = {
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
}
IMPLEMENTATIONS_OF_TORCH = (None, "eager", "sdpa")

# Keys of configurations of tokenizers that name files, and those whose values are arguments for another library, which
# would open what these name.
PATH_KEYS = re.compile(r"init_inputs|name_or_path|.*_(files?|paths?|dirs?|folder)")
ARGUMENT_KEYS = re.compile(r".*_kwargs")

MOST_LEVELS = 100

HAS_FOLDER_HANDLES = os.open in os.supports_dir_fd


class ModelFolder:
    """The files of a folder, opened once: what is put in its place later is not seen.

    Parameters
    ----------
    path : Path
        The folder.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY) if HAS_FOLDER_HANDLES else None

    def __enter__(self) -> Self:
        """Return the folder."""
        return self

    def __exit__(self, *error: object) -> None:
        """Let go of the folder."""
        if self._handle is not None:
            os.close(self._handle)

    def names(self) -> list[str]:
        """Return the names of all that is in the folder, sorted."""
        return sorted(os.listdir(self.path if self._handle is None else self._handle))

    def was_replaced(self) -> bool:
        """Tell whether another folder has taken its place since it was opened."""
        if self._handle is None:
            return False
        try:
            return not os.path.samestat(os.fstat(self._handle), os.stat(self.path))
        except FileNotFoundError:
            return True

    @contextmanager
    def opened(self, name: str, *, size: int | None = None, most: int | None = None) -> Iterator[tuple[IO[bytes], int]]:
        """Open a file that is nothing but a file, and tell its size.

        Parameters
        ----------
        name : str
            One of `MODEL_FILES`.
        size : int or None, default=None
            Bytes that it has to have. None takes any number.
        most : int or None, default=None
            Bytes that it may have. None takes any number.

        Raises
        ------
        ModelFileError
            If it is missing, a link, not a file, or of another size.
        """
        file = self.path / name
        flags = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
        try:
            if not hasattr(os, "O_NOFOLLOW") and file.is_symlink():
                raise OSError(errno.ELOOP, "It is a link")
            handle = os.open(file, flags) if self._handle is None else os.open(name, flags, dir_fd=self._handle)
        except FileNotFoundError as error:
            raise ModelFileError(f"{file} is missing. Get the folder anew.") from error
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.EMLINK}:
                raise ModelFileError(f"{file} is a link, which is not followed. Put the file itself there.") from error
            raise
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ModelFileError(f"{file} is no regular file, and is not read.")
        except ModelFileError:
            os.close(handle)
            raise
        with open(handle, "rb", buffering=0) as stream:
            status = os.fstat(handle)
            if status.st_nlink > 1:
                raise ModelFileError(
                    f"{file} is a hard link: others can write into it under another name. Put a copy there."
                )
            if size is not None and status.st_size != size:
                raise ModelFileError(
                    f"{file} has {status.st_size:,} bytes, but {MANIFEST} says {size:,}: it is damaged or was "
                    "exchanged. Get the folder anew."
                )
            if most is not None and status.st_size > most:
                raise ModelFileError(f"{file} has {status.st_size:,} bytes, more than the {most:,} that are read.")
            yield stream, status.st_size

    def read(self, name: str, *, most: int, size: int | None = None, sha256: str | None = None) -> bytes:
        """Return the content of a file, which must have the size and the hash that are given."""
        with self.opened(name, size=size, most=most) as (stream, n_bytes):
            content = bytearray(n_bytes)
            fill(content, stream, self.path / name)
        if sha256 is not None:
            check_hash(hashlib.sha256(content), sha256, self.path / name)
        return bytes(content)


def fill(content: bytearray | memoryview, stream: IO[bytes], file: Path) -> None:
    """Read as many bytes as there is room for.

    Raises
    ------
    ModelFileError
        If the file ends before.
    """
    view, start = memoryview(content), 0
    while start < len(view):
        n_read = stream.readinto(view[start:])  # type: ignore[attr-defined]
        if not n_read:
            raise ModelFileError(f"{file} ends too early: it is truncated. Get the folder anew.")
        start += n_read


def check_hash(digest: Any, sha256: str, file: Path) -> None:
    """Raise if a file has another SHA-256 than it must have."""
    if digest.hexdigest() != sha256:
        raise ModelFileError(
            f"{file} has another SHA-256 than {MANIFEST} says: it is damaged or was exchanged. Get the folder anew."
        )


def parse_json(content: bytes, file: Path) -> dict[str, Any]:
    """Return what a JSON file holds, which must be an object.

    Raises
    ------
    ModelFileError
        If it is no JSON, or anything else than an object, or nested so deeply that others would fail on it.
    """
    try:
        parsed = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{file} is not valid JSON: {error}. Get the file anew.") from error
    if not isinstance(parsed, dict):
        raise ModelFileError(f"{file} holds a JSON {type(parsed).__name__}, but must hold an object.")
    level: list[Any] = [parsed]
    for _ in range(MOST_LEVELS):
        level = [value for item in level for value in _within(item)]
    if level:
        raise ModelFileError(f"{file} is nested more than {MOST_LEVELS} levels deep. Get the file anew.")
    return parsed


def refuse_code(settings: Any, file: Path) -> None:
    """Raise if a configuration asks for code of its own, at any depth."""
    if isinstance(settings, list):
        for value in settings:
            refuse_code(value, file)
    if not isinstance(settings, dict):
        return
    for key, value in settings.items():
        is_code = key in CODE_KEYS
        if key in IMPLEMENTATION_KEYS:
            is_code = not all(name in IMPLEMENTATIONS_OF_TORCH for name in _leaves(value))
        if is_code:
            raise ModelFileError(
                f"{file} asks for code of its own ({key}), which is never run. Use a checkpoint of an architecture "
                "that transformers has, without that key."
            )
        refuse_code(value, file)


def refuse_paths(settings: Any, file: Path) -> None:
    """Raise if a configuration, at any depth, names other files, or has arguments for a library that could."""
    for key, value in settings.items() if isinstance(settings, dict) else ():
        if (PATH_KEYS.fullmatch(key) and value is not None) or (ARGUMENT_KEYS.fullmatch(key) and value):
            raise ModelFileError(f"{file} may name other files ({key[:40]}), which are not read.")
    for value in _within(settings):
        refuse_paths(value, file)


def refuse_paths_in_arguments(settings: Any, file: Path) -> None:
    """Raise if arguments for a library name other files: older checkpoints name some elsewhere, which are not read."""
    for key, value in settings.items() if isinstance(settings, dict) else ():
        if ARGUMENT_KEYS.fullmatch(key):
            for name in value if isinstance(value, dict) else ():
                if PATH_KEYS.fullmatch(name):
                    raise ModelFileError(f"{file} names other files ({key[:40]}: {name[:40]}), which are not read.")
    for value in _within(settings):
        refuse_paths_in_arguments(value, file)


def refuse_adapter(names: list[str], folder: Path) -> None:
    """Raise if a folder holds an adapter, which transformers would put into the network."""
    if "adapter_config.json" in names:
        raise ModelFileError(
            f"{folder / 'adapter_config.json'} makes the folder an adapter for another network, which is not read. "
            "Merge the adapter into the network and save that."
        )


@contextmanager
def blaming(file: Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into a `ModelFileError` that names a file."""
    try:
        yield
    except ModelFileError:
        raise
    except BaseException as error:
        # What is raised where the tokenizers, written in Rust, panic is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ModelFileError(f"{file} can't be used: {reason[:500]}") from error


def _within(value: Any) -> Collection[Any]:
    """Return what stands in a dict or a list."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _leaves(value: Any) -> list[Any]:
    """Return what stands in dicts and lists, however deep."""
    is_leaf = not isinstance(value, (dict, list))
    return [value] if is_leaf else [leaf for item in _within(value) for leaf in _leaves(item)]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
