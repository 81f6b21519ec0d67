"""The state of a fitted classifier as bytes and plain Python, and back."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from sklearn.exceptions import InconsistentVersionWarning
from transformers import AutoConfig, PreTrainedTokenizerBase

from bertclf._checkpoint import Checkpoint, blank_network, build_network, load_tokenizer
from bertclf._network import Network, PooledClassifier


class InconsistentBertclfVersionWarning(InconsistentVersionWarning):
    """A classifier was pickled with another version of bertclf than the one that loads it."""

    def __init__(self, *, current: str, original: str) -> None:
        super().__init__(
            estimator_name="BertSequenceClassifier", current_sklearn_version=current, original_sklearn_version=original
        )

    def __str__(self) -> str:
        """Return the message."""
        return (
            f"A BertSequenceClassifier pickled with bertclf {self.original_sklearn_version} is loaded with bertclf "
            f"{self.current_sklearn_version}. Predictions may differ: check them, or fit again."
        )


def to_state(
    network: Network, tokenizer: PreTrainedTokenizerBase, *, optimizer_state: dict[str, torch.Tensor] | None
) -> dict[str, Any]:
    """Return a network, a tokenizer and the state of an optimiser as str and bytes, wherever they were.

    The files of the tokenizer pass through a temporary folder, since transformers writes them to a folder only.

    Raises
    ------
    ValueError
        If the network has other weights than its configuration says, so that it could not be built again.
    """
    _check_unaltered(network)
    pooling = network.pooling if isinstance(network, PooledClassifier) else None
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()}
    return {
        "config": json.dumps(network.config.to_dict()),
        "pooling": pooling,
        "weights": save(_untied(network.state_dict())),
        "tokenizer": files,
        "optimizer": None if optimizer_state is None else save(_untied(optimizer_state)),
    }


def from_state(state: dict[str, Any]) -> tuple[Checkpoint, dict[str, torch.Tensor] | None]:
    """Rebuild network, tokenizer and state of the optimiser, all on the CPU, from what `to_state` returned."""
    network = build_network(
        AutoConfig.for_model(**json.loads(state["config"])), state["pooling"], load(state["weights"])
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, content in state["tokenizer"].items():
            (Path(folder) / name).write_bytes(content)
        tokenizer = load_tokenizer(Path(folder))
    optimizer = state["optimizer"]
    return Checkpoint(network, tokenizer), None if optimizer is None else load(optimizer)


def _check_unaltered(network: Network) -> None:
    """Raise if a network can't be built again from its configuration and its weights."""
    expected, found = (
        {name: weight.shape for name, weight in each.state_dict().items()} for each in (blank_network(network), network)
    )
    altered = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if altered:
        raise ValueError(
            f"model_ can't be saved: {altered[0]} and {len(altered) - 1} more of its weights are not what its "
            "configuration says, since modules of it were exchanged after the fit. Save model_.state_dict() with "
            "safetensors, and exchange the modules again after loading."
        )


def _untied(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors on the CPU, each stored once: safetensors refuses tensors that share memory."""
    seen: set[tuple[int, torch.Size, tuple[int, ...]]] = set()
    kept = {}
    for name, weight in weights.items():
        key = (weight.data_ptr(), weight.shape, weight.stride())
        if key not in seen or weight.numel() == 0:
            seen.add(key)
            kept[name] = weight.detach().cpu().contiguous()
    return kept
