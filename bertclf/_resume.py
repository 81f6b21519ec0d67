"""The state of a fit after its last epoch, in one file: written as the fit goes, found when it is started again.

The file is a safetensors file. Its metadata hold JSON, which says whose state it is, and a checksum over that and all
tensors. Nothing in it can run.
"""

import errno
import json
import os
import re
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import torch
import transformers
from safetensors import SafetensorError, safe_open

from bertclf._files import ModelFileError, replace_file
from bertclf._memory import key_of
from bertclf._network import Network
from bertclf._targets import Classes, LabelledTexts
from bertclf._tokens import TokenStore
from bertclf._version import __version__

FILE_NAME = "bertclf-fit.safetensors"
FORMAT = 1
VERSIONS = {"bertclf": __version__, "torch": str(torch.__version__), "transformers": transformers.__version__}

# Settings of a network that change nothing in what it does.
IRRELEVANT = {"_name_or_path", "transformers_version"}

# Names of types in safetensors files.
DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class State:
    """All that the epochs to come depend on: `values`, which JSON can hold, and tensors by name."""

    values: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def part(self, kind: str) -> dict[str, torch.Tensor]:
        """Return the tensors whose names begin with a kind and a slash, by the rest of their names."""
        prefix = f"{kind}/"
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


class FitFile:
    """The file in a folder that keeps the state of one fit.

    Parameters
    ----------
    folder : path-like
        The folder; it is made if it is missing.
    parameters : dict of str to Any
        How to train; the file must have been written with the same.
    data : dict of str to bytes
        What stands for the data; the same.
    seed : int
        Seed of the fit.
    takes_any_seed : bool
        Whether a fit that goes on takes its seed from the file.

    Attributes
    ----------
    path : Path
        The file.
    seed : int
        Seed of the fit.

    Raises
    ------
    ValueError
        If the file holds the state of another fit.
    ModelFileError
        If the file is damaged.
    OSError
        If the folder can't be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        parameters: Mapping[str, Any],
        data: Mapping[str, bytes],
        seed: int,
        takes_any_seed: bool,
    ) -> None:
        if os.fspath(folder) == "":
            raise ValueError("checkpoint='' names no folder. Pass '.' for the current folder, or None to keep nothing.")
        self.path = Path(folder).expanduser() / FILE_NAME
        _check_writable(self.path.parent)
        found = _read(self.path)  # with all tensors, without which no damage would be noticed
        self.seed = found[0]["seed"] if found is not None and takes_any_seed else seed
        self._parameters = {name: _spelt(value) for name, value in parameters.items()}
        self._data = {name: key.hex() for name, key in data.items()}
        if found is not None:
            self._check_is_same(found[0])
            _warn_about_versions(self.path, found[0]["versions"])

    def add_data(self, name: str, key: bytes) -> None:
        """Tell what stands for data that were not known when the file was opened."""
        self._data[name] = key.hex()

    def read(self) -> State | None:
        """Return the state that the file holds; None if there is no file.

        Raises
        ------
        ValueError
            If it is the state of another fit.
        ModelFileError
            If it is damaged.
        """
        found = _read(self.path)
        if found is None:
            return None
        told, tensors = found
        self._check_is_same(told)
        return State(told["values"], tensors)

    def write(self, state: State) -> None:
        """Write a state in the place of the last one, whole or not at all.

        Raises
        ------
        ValueError
            If another fit has written to the folder meanwhile.
        OSError
            If the file can't be written.
        """
        with suppress(ModelFileError):
            earlier = _read(self.path, with_tensors=False)
            if earlier is not None:
                self._check_is_same(earlier[0])
        fit = {"parameters": self._parameters, "data": self._data, "seed": self.seed}
        told = json.dumps({"format": FORMAT, "versions": VERSIONS, **fit, "values": state.values})
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
        metadata = {"bertclf": told, "sha256": _checksum(told, tensors)}
        replace_file(self.path, lambda file: _write_safetensors(file, tensors, metadata))

    def _check_is_same(self, told: dict[str, Any]) -> None:
        """Raise if the file is that of another fit."""
        differences = []
        for name, value in self._parameters.items():
            other = told["parameters"].get(name, "unknown")  # to an earlier version
            if other != value:
                differences.append(f"{name}={value} here and {other} there")
        others = [name for name, key in self._data.items() if told["data"].get(name) != key]
        if told["seed"] != self.seed:
            others.append("random_state")
        if others:
            differences.append(f"another {', another '.join(others)}")
        if differences:
            raise ValueError(
                f"checkpoint={str(self.path.parent)!r} keeps the state of another fit: {'; '.join(differences)}. Pass "
                f"another folder to this fit, or delete {self.path} if the other is not to go on; in a search or a "
                "cross-validation, where fits follow each other, pass checkpoint=None."
            )


def keys_of_texts(labelled: LabelledTexts | None, *, classes: Classes, suffix: str = "") -> dict[str, bytes]:
    """Return what stands for labelled texts, by the names that their parts have as arguments of `fit`.

    Parameters
    ----------
    labelled : LabelledTexts or None
        The texts; None if none were passed.
    classes : Classes
        What they can be labelled with.
    suffix : str, default=""
        What the names of the arguments end with.
    """
    names = [f"X{suffix}", f"y{suffix}", f"sample_weight{suffix}"]
    if labelled is None:
        return dict.fromkeys(names, b"")
    weights = b"" if labelled.weights is None else labelled.weights.tobytes()
    texts = key_of(*labelled.texts.first), key_of(*labelled.texts.second or [])
    labels = key_of(repr(classes.values.tolist()), labelled.targets.tobytes())
    return dict(zip(names, [key_of(*texts), labels, key_of(weights)], strict=True))


def key_of_start(network: Network, stores: list[TokenStore]) -> bytes:
    """Return what stands for a network before its training, and for the tokens that it is to see."""
    settings = {name: value for name, value in network.config.to_dict().items() if name not in IRRELEVANT}
    weights = (key_of(name, _bytes_of(weight)) for name, weight in network.state_dict().items())
    tokens = (
        key_of(
            store.ids.tobytes(),
            store.offsets.tobytes(),
            b"" if store.segments is None else store.segments.tobytes(),
            *([] if store.first_window is None else [store.first_window.tobytes()]),
        )
        for store in stores
    )
    return key_of(json.dumps(settings, sort_keys=True, default=str), *weights, *tokens)


def _check_writable(folder: Path) -> None:
    """Raise if nothing can be written to a folder: after the first epoch that would be told late."""
    try:
        if folder.is_file():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"checkpoint can't be written: {error.strerror}. Pass a folder that can"
        raise OSError(error.errno, reason, str(folder)) from error


def _spelt(value: Any) -> str:
    """Return a parameter as a str that is the same in another process, and for equal values."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{_spelt(key)}: {_spelt(part)}' for key, part in value.items()))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_spelt, value))}]"
    value = value.item() if hasattr(value, "item") else value
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _warn_about_versions(path: Path, versions: dict[str, str]) -> None:
    """Warn if a state was written with other versions than it is to go on with."""
    others = [f"{name} {version}" for name, version in versions.items() if VERSIONS.get(name) != version]
    if others:
        here = ", ".join(f"{name} {version}" for name, version in VERSIONS.items())
        warnings.warn(
            f"{path} was written with {', '.join(others)}, and goes on with {here}: the result may not have the bits "
            "of a fit that was never stopped. Delete the file to begin anew.",
            UserWarning,
            stacklevel=2,
        )


def _read(path: Path, *, with_tensors: bool = True) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """Return what a file tells of the fit that wrote it, and its tensors; None if there is no file.

    Without tensors the checksum can't be compared.

    Raises
    ------
    ModelFileError
        If it is no such file, damaged or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}
        content, checksum = metadata["bertclf"], metadata["sha256"]
        if with_tensors and checksum != _checksum(content, tensors):
            raise ValueError("it has another checksum")
        told: dict[str, Any] = json.loads(content)
        written = told["format"]
    except FileNotFoundError:
        return None
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ModelFileError(f"{path} is damaged: {error}. Delete the file to begin the fit anew.") from error
    if written != FORMAT:
        raise ModelFileError(
            f"{path} has format {written}, but this version of bertclf has {FORMAT}. Use the version that wrote it, or "
            "delete the file to begin the fit anew."
        )
    return told, tensors


def _checksum(told: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of all that a file holds."""
    digest = sha256(told.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor, not copied if it is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write_safetensors(file: IO[bytes], tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write tensors in the format of safetensors, the widest types first, so that each lies where it can be mapped.

    The library itself writes to a place of its own choosing, which could not be synced, or into memory, where the state
    of a large network would be held twice.
    """
    widest_first = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in widest_first:
        begin, end = end, end + tensor.numel() * tensor.itemsize
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for _, tensor in widest_first:
        file.write(_bytes_of(tensor))
