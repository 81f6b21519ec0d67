"""The state of a fitted classifier as bytes and plain Python, and back."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from sklearn.exceptions import InconsistentVersionWarning
from transformers import AutoConfig, PreTrainedTokenizerBase

from bertclf._checkpoint import Checkpoint, build_network, load_tokenizer, needed_weights
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

    Raises
    ------
    ValueError
        If the network has other weights than its configuration says, so that it could not be built again.
    """
    return {
        "config": json.dumps(network.config.to_dict()),
        "pooling": pooling_of(network),
        "weights": save(weights_of(network)),
        "tokenizer": files_of(tokenizer),
        "optimizer": None if optimizer_state is None else save(_untied(optimizer_state)),
    }


def from_state(state: dict[str, Any]) -> tuple[Checkpoint, dict[str, torch.Tensor] | None]:
    """Rebuild network, tokenizer and state of the optimiser, all on the CPU, from what `to_state` returned."""
    network = build_network(
        AutoConfig.for_model(**json.loads(state["config"])), state["pooling"], load(state["weights"])
    )
    optimizer = state["optimizer"]
    checkpoint = Checkpoint(network, tokenizer_of(state["tokenizer"]))
    return checkpoint, None if optimizer is None else load(optimizer)


def pooling_of(network: Network) -> str | None:
    """Return the pooling of a network, None if it is that of the architecture's own class."""
    return network.pooling if isinstance(network, PooledClassifier) else None


def files_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """Return the files of a tokenizer by name. They pass through a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()}


def tokenizer_of(files: dict[str, bytes]) -> PreTrainedTokenizerBase:
    """Return the tokenizer that some files make. They pass through a temporary folder, in which nothing else is."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        return load_tokenizer(Path(folder))


def weights_of(network: Network) -> dict[str, torch.Tensor]:
    """Return the weights of a network on the CPU, each once.

    Raises
    ------
    ValueError
        If it has other weights than its configuration says, so that it could not be built again.
    """
    weights = _untied(network.state_dict())
    needed = needed_weights(network.config, pooling_of(network))
    expected, found = ({name: weight.shape for name, weight in each.items()} for each in (needed, weights))
    altered = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if altered:
        raise ValueError(
            f"model_ can't be saved: {altered[0]} and {len(altered) - 1} more of its weights are not what its "
            "configuration says, since modules of it were exchanged after the fit. Save model_.state_dict() with "
            "safetensors, and exchange the modules again after loading."
        )
    return weights


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
