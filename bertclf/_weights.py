"""Weights of a network from a safetensors file that may be hostile: compared before a byte of them is read."""

import hashlib
import math
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch

from bertclf._files import ModelFileError
from bertclf._folder import fill, parse_json

# All that networks for classification keep: weights, positions, masks.
DTYPES = {"F32": torch.float32, "I64": torch.int64, "BOOL": torch.bool}

MOST_BYTES_OF_HEADER = 32 << 20
BYTES_OF_LENGTH = 8

# Bytes: where torch puts a tensor, so that products are computed in the same way, to the last bit.
ALIGNMENT = 64


@dataclass(frozen=True)
class Place:
    """Type and shape of a tensor, and where it lies behind the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of its tensors, in the order in which they lie, and the bytes that say so."""

    places: dict[str, Place]
    content: bytes


def read_header(stream: IO[bytes], *, n_bytes: int, file: Path) -> Header:
    """Read the header of a safetensors file.

    Parameters
    ----------
    stream : binary file
        The file, at its beginning; it is left where the tensors begin.
    n_bytes : int
        Size of the file.
    file : Path
        Its name, for errors.

    Raises
    ------
    ModelFileError
        If the header is too large, or no header, or the tensors don't fill the rest of the file exactly.
    """
    length = bytearray(min(BYTES_OF_LENGTH, n_bytes))
    fill(length, stream, file)
    n_header = int.from_bytes(length, "little")
    if len(length) < BYTES_OF_LENGTH or n_header > min(n_bytes - BYTES_OF_LENGTH, MOST_BYTES_OF_HEADER):
        raise ModelFileError(
            f"{file} is no safetensors file, or is truncated: its {n_bytes:,} bytes don't hold the header that they "
            "announce. Get the file anew."
        )
    content = bytearray(n_header)
    fill(content, stream, file)
    described = parse_json(bytes(content), file)
    described.pop("__metadata__", None)
    try:
        places = {name: _place(entry) for name, entry in described.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{file} has a header that describes no tensors: {error}.") from error
    places = dict(sorted(places.items(), key=lambda item: (item[1].start, item[1].stop)))
    end = 0
    for name, place in places.items():
        if place.start != end:
            raise ModelFileError(f"{file}: {name[:100]!r} does not begin where the tensor before it ends.")
        end = place.stop
    if BYTES_OF_LENGTH + n_header + end != n_bytes:
        raise ModelFileError(f"{file} is truncated, or longer than its tensors. Get the file anew.")
    return Header(places, bytes(length + content))


def compare(header: Header, expected: Mapping[str, torch.Tensor], *, file: Path) -> None:
    """Raise if a file holds other tensors than a network has, by name, type or shape."""
    found = {name: (place.dtype, place.shape) for name, place in header.places.items()}
    needed = {
        name: (torch.float32 if weight.is_floating_point() else weight.dtype, tuple(weight.shape))
        for name, weight in expected.items()
    }
    wrong = sorted(name for name in found.keys() | needed.keys() if found.get(name) != needed.get(name))
    if not wrong:
        return
    name = wrong[0]
    reason = "is missing" if name not in found else "is not known" if name not in needed else ""
    if not reason:
        (dtype, shape), (right_dtype, right_shape) = found[name], needed[name]
        reason = f"is {dtype} of shape {list(shape)}, but must be {right_dtype} of shape {list(right_shape)}"
    raise ModelFileError(
        f"{file} does not hold the weights that the configuration speaks of: {name[:100]!r} {reason}; "
        f"{len(wrong)} of {len(needed)} differ."
    )


def read_tensors(
    stream: IO[bytes], header: Header, *, executor: Executor, file: Path
) -> tuple["Future[dict[str, torch.Tensor]]", "Future[Any]"]:
    """Read all tensors at once, and hash those very bytes, both in another thread.

    Parameters
    ----------
    stream : binary file
        The file, where `read_header` has left it.
    header : Header
        The header.
    executor : Executor
        The other thread.
    file : Path
        Its name, for errors.

    Returns
    -------
    tensors : Future of dict of str to Tensor
        The tensors, when they have been read: parts of one array.
    digest : Future
        The SHA-256 of the file. Until it is known the tensors must not be changed.
    """
    n_bytes = max((place.stop for place in header.places.values()), default=0)
    try:
        space = np.empty(n_bytes + ALIGNMENT, dtype=np.uint8)
    except MemoryError as error:
        raise ModelFileError(f"{file} takes {n_bytes:,} bytes of memory, more than there are.") from error
    first = -space.ctypes.data % ALIGNMENT
    content = space[first : first + n_bytes]

    def read() -> dict[str, torch.Tensor]:
        """Return the tensors."""
        fill(content.data, stream, file)
        return {name: _tensor(content[place.start : place.stop], place) for name, place in header.places.items()}

    def hashed() -> Any:
        """Return the digest. A single call for all tensors, after which this thread would have to wait its turn."""
        digest = hashlib.sha256(header.content)
        digest.update(content.data)
        return digest

    return executor.submit(read), executor.submit(hashed)


def check_finite(tensors: Mapping[str, torch.Tensor], *, file: Path) -> None:
    """Raise if a weight is not finite, or a truth value neither true nor false."""
    for name, tensor in tensors.items():
        values = tensor.numpy()
        with np.errstate(all="ignore"):
            # The sum is quicker than a look at each value, and finite if they are, unless it overflows.
            if values.dtype.kind == "f" and not np.isfinite(values.sum()) and not np.isfinite(values).all():
                raise ModelFileError(f"{file}: {name!r} holds values that are not finite.")
        if values.dtype.kind == "b" and (values.view(np.uint8) > 1).any():
            raise ModelFileError(f"{file}: {name!r} holds values that are neither true nor false.")


def _place(entry: Any) -> Place:
    """Return what an entry of a header says, if its parts agree."""
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"a tensor is of type {str(entry['dtype'])[:40]}, none of {', '.join(DTYPES)}")
    shape, (start, stop) = entry["shape"], entry["data_offsets"]
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in (*shape, start, stop)) or len(shape) > 8:
        raise ValueError("shapes and offsets must be whole numbers")
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError("a tensor takes other bytes than its shape says")
    return Place(dtype, tuple(shape), start, stop)


def _tensor(content: npt.NDArray[np.uint8], place: Place) -> torch.Tensor:
    """Return a tensor over some bytes; over a copy of them if they don't lie as tensors of torch lie."""
    flat = torch.from_numpy(content)
    if content.ctypes.data % ALIGNMENT:
        flat = flat.clone()
    return flat.view(place.dtype).reshape(place.shape)
