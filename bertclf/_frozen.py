"""What the frozen part of a network makes of texts: computed once for each, and kept."""

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import transformers

from bertclf._batches import to_device
from bertclf._device import Compute
from bertclf._engine import Engine
from bertclf._memory import TextMemory, key_of
from bertclf._network import Network, PooledClassifier
from bertclf._tokens import TokenStore, places_of

# States of more are not kept in the working memory: with BERT-base those of 350,000 tokens.
MAX_KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class FrozenPart:
    """What stands for the frozen part of a network as it was when its training began.

    Attributes
    ----------
    key : bytes
        Key of its weights, its settings and the precision.
    sums : dict of str to int
        Sum of the bits of each of its weights, by name: they change if somebody changes the weights in place.
    """

    key: bytes
    sums: dict[str, int]

    @classmethod
    def of(cls, network: Network, *, frozen: int | str, compute: Compute) -> "FrozenPart":
        """Describe the weights that need no gradient, and what is done with them."""
        pooling = network.pooling if isinstance(network, PooledClassifier) else ""
        config = {name: value for name, value in network.config.to_dict().items() if not _is_irrelevant(name)}
        weights = {name: weight for name, weight in network.named_parameters() if not weight.requires_grad}
        key = key_of(
            repr(frozen),
            pooling,
            json.dumps(config, sort_keys=True, default=str),
            str(compute.dtype),
            transformers.__version__,
            *(key_of(name, weight.detach().cpu().numpy().tobytes()) for name, weight in weights.items()),
        )
        return cls(key, {name: _sum_of_bits(weight) for name, weight in weights.items()})

    def is_in(self, network: Network) -> bool:
        """Tell whether a network still has these weights."""
        weights = dict(network.named_parameters())
        return all(name in weights and _sum_of_bits(weights[name]) == bits for name, bits in self.sums.items())


class FrozenMemory:
    """States of windows of texts in a memory, by the content of each and what made them.

    Parameters
    ----------
    memory : TextMemory
        Where they are kept.
    key : bytes
        Key of a `FrozenPart`.
    """

    def __init__(self, memory: TextMemory, key: bytes) -> None:
        self._memory = memory
        self._key = key

    def states(self, engine: Engine, store: TokenStore, windows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the states of some windows, one after the other, and make those that are missing."""
        if store.keys is None:
            return _made(engine, store, windows)
        keys = [key_of(self._key, store.keys[window]) for window in windows]

        def make(positions: list[int]) -> list[bytes]:
            """Run the frozen part on what is missing."""
            missing = windows[positions]
            ends = np.cumsum(engine.n_states(store, missing))
            parts = np.split(_made(engine, store, missing), ends[:-1])
            return [part.astype("<f4").tobytes() for part in parts]

        kept = np.frombuffer(b"".join(self._memory.get_or_make(keys, make)), dtype="<f4")
        return kept.reshape(-1, engine.width).copy()


class FrozenStates:
    """States of the windows of one store, each computed when it is first asked for.

    They are kept in float32: of each window in a batch four bytes times the width for each of its tokens, or where the
    whole encoder is frozen for each window. If those of all are more than 1 GiB, they are looked up in the memory at
    each use; without one they are computed anew.

    Parameters
    ----------
    engine : Engine
        Runs the network; it must have states.
    store : TokenStore
        The texts.
    memory : FrozenMemory or None
        Where states are looked up before they are computed.
    is_reused : bool
        Whether the same window will be asked for again.
    """

    def __init__(self, engine: Engine, store: TokenStore, *, memory: FrozenMemory | None, is_reused: bool) -> None:
        self._engine = engine
        self._store = store
        self._memory = memory
        self._starts = np.concatenate([[0], np.cumsum(engine.n_states(store, np.arange(store.n_windows)))])
        shape = (int(self._starts[-1]), engine.width)
        self._kept: npt.NDArray[np.float32] | None = None
        if is_reused and 4 * shape[0] * shape[1] <= MAX_KEPT_BYTES:
            self._kept = np.empty(shape, dtype=np.float32)
            self._is_kept = np.zeros(store.n_windows, dtype=bool)

    def of(self, windows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the states of some windows, one after the other, on the device."""
        if self._kept is None:
            return to_device(self._looked_up(windows), self._engine.device)
        self.keep(windows)
        return to_device(self._kept[places_of(self._starts, windows)], self._engine.device)

    def keep(self, windows: npt.NDArray[np.int64]) -> None:
        """Compute the states of some windows if they are to be kept and are not yet."""
        if self._kept is None:
            return
        missing = windows[~self._is_kept[windows]]
        if len(missing):
            self._kept[places_of(self._starts, missing)] = self._looked_up(missing)
            self._is_kept[missing] = True

    def _looked_up(self, windows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        if self._memory is None:
            return _made(self._engine, self._store, windows)
        return self._memory.states(self._engine, self._store, windows)


def _sum_of_bits(weight: torch.Tensor) -> int:
    """Return the sum of a tensor, read as integers."""
    return int(weight.detach().contiguous().view(-1).view(torch.uint8 if weight.itemsize % 4 else torch.int32).sum())


def _is_irrelevant(name: str) -> bool:
    """Tell whether a setting of a network changes nothing in its frozen part."""
    return "label" in name or "dropout" in name or name in {"problem_type", "_name_or_path"}


def _made(engine: Engine, store: TokenStore, windows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the states of some windows, computed."""
    states: npt.NDArray[np.float32] = engine.states(store, windows).float().cpu().numpy()
    return states
