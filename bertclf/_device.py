"""Where the arithmetic runs and in which precision: the only room that asks the hardware."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Products of 921 tokens with weights of MiniLM took up to four times as long as those of 960, and in random batches the
# making of kernels for new numbers of tokens took 22 ms of a step of 174 (bfloat16, two cores of a Xeon with AMX).
TOKENS_AT_ONCE = 64

# A text of 26 tokens took 11.6 ms among 64 and 9.8 alone, one of 201 20.7 and 19.2; one of 251 as long either way. The
# first text of a new length takes 5 ms more (the same machine).
FEW_TOKENS = 256


@dataclass(frozen=True)
class Compute:
    """A device and the precision of the matrix products on it; weights are always kept in float32."""

    device: torch.device
    dtype: torch.dtype

    def place(self, network: nn.Module) -> None:
        """Move a network to the device, in place."""
        network.to(self.device)

    @property
    def is_host(self) -> bool:
        """Whether it is the CPU, on which all that is no matrix product is dear as well."""
        return self.device.type == "cpu"

    def autocast(self, *, enabled: bool = True) -> AbstractContextManager[None]:
        """Return a context in which matrix products run in `dtype`, or none in another precision than its own.

        Weights are cast once for all that happens within the outermost context.
        """
        is_lower = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=enabled and is_lower)

    def gradient_scaler(self) -> torch.amp.GradScaler:
        """Return a scaler that keeps float16 gradients from vanishing, and does nothing in any other precision."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def choose_compute(*, device: str, precision: str) -> Compute:
    """Resolve the parameters `device` and `precision`.

    Raises
    ------
    ValueError
        If torch doesn't know the device, or this machine doesn't have it.
    """
    chosen = _best_device() if device == "auto" else _named_device(device)
    return Compute(chosen, _best_dtype(chosen) if precision == "auto" else PRECISIONS[precision])


def compute_after_loading(*, device: str, precision: str) -> Compute:
    """Resolve `device` and `precision` where a fitted classifier is loaded: on the CPU if the device isn't here."""
    try:
        return choose_compute(device=device, precision=precision)
    except ValueError:
        warnings.warn(
            f"device={device!r} of the classifier is not on this machine: it runs on the CPU.",
            UserWarning,
            stacklevel=2,
        )
        return choose_compute(device="cpu", precision=precision)


@contextmanager
def with_gradients() -> Iterator[None]:
    """Compute with gradients, whatever mode of torch the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def apart() -> Iterator[None]:
    """Compute without gradients; in training, autocast keeps no weight that it casts inside.

    It would hand such a weight, which has no gradient, to what is trained of the network.
    """
    keeps_casts = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(keeps_casts and not torch.is_grad_enabled())
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(keeps_casts)


def n_idle_tokens(n_tokens: int, device: torch.device) -> int:
    """Return how many tokens of no text to put behind a batch of tokens, for the sake of speed.

    In autocast on a CPU, oneDNN makes kernels for each number that it meets, and those for odd numbers are slow. A
    batch of few tokens, such as a single text, is quicker as it is.
    """
    is_helped = device.type == "cpu" and torch.is_autocast_enabled("cpu") and n_tokens >= FEW_TOKENS
    return -n_tokens % TOKENS_AT_ONCE if is_helped else 0


def in_own_precision(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which products on a device are in the precision of what is multiplied."""
    return torch.autocast(device.type, enabled=False)


def forget_casts() -> None:
    """Forget weights in a lower precision that were cast before: where the caller is in autocast, torch keeps them."""
    torch.clear_autocast_cache()


def give_back_memory() -> None:
    """Give the memory that torch holds for reuse back to the device, where it may lie in pieces of the wrong sizes."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _named_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device={name!r} is not a device that torch knows. Use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'."
        ) from error
    n_devices = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if device.type not in n_devices:
        raise ValueError(f"device={name!r} is not supported. Use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'.")
    if (device.index or 0) >= n_devices[device.type]:
        raise ValueError(
            f"device={name!r} is not available: torch sees {n_devices[device.type]} device(s) of type "
            f"{device.type!r} here. Use device='auto' to take the best one there is."
        )
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _best_dtype(device: torch.device) -> torch.dtype:
    """Take the fastest precision that the hardware has circuits for; emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and _cpu_multiplies_bfloat16():
        return torch.bfloat16
    return torch.float32


def _cpu_multiplies_bfloat16() -> bool:
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)
