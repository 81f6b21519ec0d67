"""From the name of a checkpoint to its network and its tokenizer: the only room that loads weights."""

import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Regex, pre_tokenizers
from tokenizers.models import Unigram
from torch.overrides import TorchFunctionMode
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from bertclf._files import ModelFileError
from bertclf._folder import (
    CONFIG,
    MANIFEST,
    TOKENIZER_CONFIG,
    WEIGHTS,
    blaming,
    parse_json,
    refuse_adapter,
    refuse_code,
    refuse_paths_in_arguments,
)
from bertclf._hub import download
from bertclf._network import (
    Network,
    PooledClassifier,
    draw_new_head,
    is_decoder,
    length_limit,
    override_dropout,
    own_pooling,
    padding_matters,
)
from bertclf._process import lock_for
from bertclf._silence import quiet

# No network for classification has as many weights, nor one with as many values.
MOST_TENSORS, MOST_VALUES = 1 << 16, 1 << 34

# Where transformers tells that it loads weights, and which are missing.
LOGS = ("transformers.modeling_utils", "transformers.utils.loading_report")

# Loading sets torch's default dtype and the verbosity of transformers for a moment: one thread at a time.
LOADING = "loading"


@dataclass(frozen=True)
class Checkpoint:
    """A pretrained network with a new head, on the CPU in float32, and the tokenizer that belongs to it."""

    network: Network
    tokenizer: PreTrainedTokenizerBase

    @property
    def length_limit(self) -> int | None:
        """Longest input in tokens, special tokens included; None if there is no limit."""
        return length_limit(self.network, self.tokenizer)


def load_checkpoint(
    model: str | os.PathLike[str],
    *,
    revision: str | None,
    labels: list[str],
    multilabel: bool,
    pooling: str,
    dropout: float | None,
    verbose: bool,
) -> Checkpoint:
    """Load a pretrained network, give it a new head, and load its tokenizer.

    Parameters
    ----------
    model : str or path-like
        Folder with config, tokenizer and safetensors weights, or the name of a repository on the Hugging Face Hub.
    revision : str or None
        Branch, tag or commit on the Hub.
    labels : list of str
        Name of each class, in order.
    multilabel : bool
        Whether a text can have any number of the labels, which a saved model has to know.
    pooling : {"auto", "cls", "mean", "last"}
        How hidden states become one vector a text; "auto" follows the checkpoint.
    dropout : float or None
        Overrides every dropout probability of the checkpoint.
    verbose : bool
        Whether a download shows its progress.

    Raises
    ------
    OSError
        If the checkpoint is not there or can't be read.
    ModelFileError
        If one of its files is damaged, of an architecture that can't classify, or asks for code of its own.
    ValueError
        If `revision` or `pooling` doesn't suit it, or its answers depend on the padding.
    """
    folder = _locate(model, revision=revision, verbose=verbose)
    _refuse_foreign_code(folder)
    _check_weights(folder)
    with lock_for(LOADING), _quiet(), torch.device("cpu"):
        with blaming(folder / CONFIG):
            config = AutoConfig.from_pretrained(folder)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: position for position, label in enumerate(labels)}
        config.problem_type = problem_type(len(labels), multilabel=multilabel)
        if dropout is not None:
            override_dropout(config, dropout)
        with blaming(folder / TOKENIZER_CONFIG):
            tokenizer = load_tokenizer(folder)
        if tokenizer.pad_token_id < config.get_text_config().vocab_size:
            config.pad_token_id = tokenizer.pad_token_id
        network = _load_network(folder, config, _resolve_pooling(pooling, folder, config, tokenizer))
        _make_room_for_padding(network, tokenizer)
    draw_new_head(network)
    if padding_matters(network, tokenizer("a text")["input_ids"]):
        raise ValueError(
            f"model={str(model)!r} is a {config.model_type}, whose answer with pooling={pooling!r} depends on the "
            "padding beside a text. Use pooling='mean' or 'last', or if that doesn't help another architecture."
        )
    return Checkpoint(network, tokenizer)


def check_architecture(settings: dict[str, Any], file: Path) -> None:
    """Raise `ModelFileError` if the settings of a network in a file are of none that transformers can classify with.

    To be called before a configuration is made of them: those of some other architectures ask the Hub for more
    (CVE-2026-5241).
    """
    model_type = settings.get("model_type")
    if model_type is None:
        raise ModelFileError(
            f'{file} has no model_type, which says what network it is of. Add it, such as "model_type": "bert", or use '
            "another checkpoint."
        )
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ModelFileError(
            f"{file} has model_type {repr(model_type)[:40]}, which this version of transformers does not know. Update "
            "transformers, or use another checkpoint."
        )
    if model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise ModelFileError(
            f"{file} is of a {model_type}, an architecture that transformers has no sequence-classification network "
            "for. Use an encoder such as BERT, or a decoder such as GPT-2."
        )


def problem_type(n_labels: int, *, multilabel: bool) -> str | None:
    """Return what transformers calls the problem: it has no name for a single label that each text has."""
    if multilabel:
        return "multi_label_classification"
    return "single_label_classification" if n_labels > 1 else None


def build_network(config: PretrainedConfig, pooling: str | None, weights: dict[str, torch.Tensor]) -> Network:
    """Build a network from its configuration and weights in memory.

    Parameters
    ----------
    config : PretrainedConfig
        Configuration of the network.
    pooling : str or None
        Pooling of a `PooledClassifier`, None for the architecture's own class.
    weights : dict of str to Tensor
        State of the network, without copies of tied tensors.
    """
    with lock_for(LOADING), _quiet(), torch.device("cpu"):
        if pooling is None:
            return _from_memory(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)], config, weights)
        prefix = "encoder."
        inner = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        network = PooledClassifier(_from_memory(MODEL_MAPPING[type(config)], config, inner), pooling)
        network.classifier.load_state_dict({name: weights[f"classifier.{name}"] for name in ("weight", "bias")})
        return network.eval()


def needed_weights(
    config: PretrainedConfig, pooling: str | None, *, most_tensors: int = MOST_TENSORS, most_values: int = MOST_VALUES
) -> dict[str, torch.Tensor]:
    """Return the weights that a network has, each once if some are tied, without memory and without values.

    Parameters
    ----------
    config, pooling
        As those of `build_network`.
    most_tensors, most_values : int
        What is built of a network that is larger than its weights: about so many tensors, and none of more values.

    Raises
    ------
    ValueError
        If the network is larger.
    """
    bounds = _Bounded(most_tensors=most_tensors, most_values=most_values)
    with lock_for(LOADING), _quiet(), torch.device("meta"), bounds:
        mapping: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING if pooling is None else MODEL_MAPPING
        network = mapping[type(config)](config)
        if pooling is not None:
            network = PooledClassifier(network, pooling)
    first_names: dict[int, str] = {}
    weights = network.state_dict(keep_vars=True)
    for name, weight in weights.items():
        first_names.setdefault(id(weight), name)
    return {name: weights[name] for name in first_names.values()}


class _Bounded(TorchFunctionMode):
    """Stops a configuration that asks for far more than there are weights for, before it fills the memory."""

    CALLS_PER_TENSOR = 50

    def __init__(self, *, most_tensors: int, most_values: int) -> None:
        super().__init__()
        self._most_values = most_values
        self._calls_left = self.CALLS_PER_TENSOR * most_tensors

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, and count."""
        result = func(*args, **(kwargs or {}))
        self._calls_left -= 1
        if self._calls_left < 0 or (isinstance(result, torch.Tensor) and result.numel() > self._most_values):
            raise ValueError("it asks for a network that is far larger than the weights")
        return result


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer that has a padding token: the end-of-text token if it has no other, else a new one.

    Control tokens that a text spells are plain text to it. Templates for chats, which have no use here, are dropped:
    before transformers 5.10 their names could lead `save_pretrained` out of its folder (CVE-2026-9856).
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.chat_template = None
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is not None:
            tokenizer.pad_token = tokenizer.eos_token
        else:
            tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    _split_control_tokens(tokenizer)
    return tokenizer


def _locate(model: str | os.PathLike[str], *, revision: str | None, verbose: bool) -> Path:
    """Return the local folder of a checkpoint, downloaded from the Hub if it is none yet."""
    folder = Path(model).expanduser()
    if os.fspath(model) and folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} chooses a version on the Hub, but model={str(model)!r} is a local folder. "
                "Pass revision=None."
            )
        return folder
    name = os.fspath(model)
    if isinstance(model, os.PathLike) or name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name:
        raise FileNotFoundError(
            f"model={name!r} is not a folder on this machine. Pass a folder with config.json, tokenizer files and "
            "model.safetensors, or the name of a repository on the Hugging Face Hub."
        )
    return download(name, revision=revision, verbose=verbose)


def _refuse_foreign_code(folder: Path) -> None:
    """Raise if a checkpoint is of no architecture that can classify, or brings code of its own."""
    refuse_adapter(os.listdir(folder), folder)
    for name in (CONFIG, TOKENIZER_CONFIG):
        refuse_code(_read_json(folder / name), folder / name)
    refuse_paths_in_arguments(_read_json(folder / TOKENIZER_CONFIG), folder / TOKENIZER_CONFIG)
    if not (folder / CONFIG).is_file():
        raise OSError(f"{folder} holds no config.json: it is no checkpoint. Pass a folder saved by save_pretrained.")
    check_architecture(_read_json(folder / CONFIG), folder / CONFIG)


def _check_weights(folder: Path) -> None:
    """Raise if the weights of a checkpoint are no safetensors files, or damaged so that they can't be read."""
    index = folder / "model.safetensors.index.json"
    files = [WEIGHTS]
    if not (folder / WEIGHTS).is_file() and index.is_file():
        with blaming(index):
            files = sorted(set(_read_json(index)["weight_map"].values()))
            if foreign := [name for name in files if not re.fullmatch(r"[\w.-]+\.safetensors", name)]:
                raise ValueError(f"it lists {foreign[0][:40]!r}, which is no file of safetensors in the folder")
    for name in files:
        if not (folder / name).is_file():
            raise ModelFileError(
                f"{folder} holds no {name}. Weights in other formats can run code when they are opened and are not "
                "read: save the checkpoint once with save_pretrained of a recent transformers."
            )
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except SafetensorError as error:
            raise ModelFileError(
                f"{folder / name} is no safetensors file, or is truncated: {error}. Get the checkpoint anew."
            ) from error


def _read_json(file: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds, an empty one if there is no such file."""
    return parse_json(file.read_bytes(), file) if file.is_file() else {}


def _split_control_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Keep a text that spells a control token, such as "</s>", from becoming that token.

    `split_special_tokens` does so for most tokenizers, but a Unigram vocabulary holds control tokens as ordinary
    pieces: there the first character of such a spelling is set apart before the pieces are looked up.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, Unigram):
        return
    spellings = [token for token in tokenizer.all_special_tokens if len(token) > 1]
    pattern = "|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in spellings)
    earlier = [] if backend.pre_tokenizer is None else [backend.pre_tokenizer]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*earlier, pre_tokenizers.Split(Regex(pattern), "isolated")])


def _resolve_pooling(
    pooling: str, folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """Return the pooling that the network has to be built with, None for the architecture's own class."""
    own = own_pooling(config)
    if pooling == "auto" and own is None:
        return None
    if config.is_encoder_decoder:
        raise ValueError(
            f"pooling={pooling!r} does not apply to {config.model_type}, an encoder-decoder. Use pooling='auto'."
        )
    if pooling == "auto":
        pooling = _sentence_pooling(folder) or str(own)
    if pooling == "cls" and is_decoder(config):
        raise ValueError(
            f"pooling='cls' takes the first token, but in {config.model_type} that token sees no other. "
            "Use pooling='last' or 'mean'."
        )
    if hasattr(config, "classifier_pooling") and pooling in {"cls", "mean"}:
        config.classifier_pooling = own = pooling
    ends_in_padding = tokenizer("a text")["input_ids"][-1] == tokenizer.pad_token_id
    if pooling == "last" and ends_in_padding:
        return pooling  # the architecture's own class would pass over that token
    return None if pooling == own else pooling


def _sentence_pooling(folder: Path) -> str | None:
    """Return the pooling of a sentence-embedding checkpoint, None if the folder says nothing of it."""
    saved = _read_json(folder / MANIFEST).get("pooling")
    if saved is not None:
        if saved not in ("cls", "mean", "last"):
            raise ModelFileError(
                f"{folder / MANIFEST} has pooling {str(saved)[:40]!r}, but it must be 'cls', 'mean' or 'last'. Get the "
                "folder anew."
            )
        return str(saved)
    file = folder / "modules.json"
    if not file.is_file():
        return None
    with blaming(file):
        modules = json.loads(file.read_text(encoding="utf-8"))
        paths = [module["path"] for module in modules if str(module.get("type", "")).endswith("Pooling")]
        if any(Path(path).name != path for path in paths):
            raise ValueError(f"it names {paths[0][:40]!r}, which is no folder in that of the checkpoint")
    settings = _read_json(folder / paths[0] / CONFIG) if paths else {}
    if not settings:
        return None
    modes = {
        "cls": settings.get("pooling_mode_cls_token") or settings.get("pooling_mode") == "cls",
        "mean": settings.get("pooling_mode_mean_tokens") or settings.get("pooling_mode") == "mean",
        "last": settings.get("pooling_mode_lasttoken") or settings.get("pooling_mode") == "lasttoken",
    }
    pooling = next((name for name, is_on in modes.items() if is_on), None)
    if pooling is None:
        warnings.warn(
            f"{folder / paths[0] / 'config.json'} asks for a pooling other than 'cls', 'mean' and 'last', so that of "
            "the architecture is used. Pass the pooling that comes nearest.",
            UserWarning,
            stacklevel=2,
        )
    return pooling


def _load_network(folder: Path, config: PretrainedConfig, pooling: str | None) -> Network:
    """Load the weights into the architecture's own classifier, or into an encoder with a pooling and a head."""
    loader = AutoModelForSequenceClassification if pooling is None else AutoModel
    network, report = loader.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    _warn_about_missing_weights(folder, network, report)
    _take_over(network)
    return network if pooling is None else PooledClassifier(network, pooling).eval()


@torch.no_grad()
def _take_over(network: PreTrainedModel) -> None:
    """Copy weights out of the file, which is mapped into memory: it may be overwritten while the network lives."""
    for weight in network.parameters():
        weight.data = weight.data.clone()


def _warn_about_missing_weights(folder: Path, network: PreTrainedModel, report: dict[str, Any]) -> None:
    """Warn if weights of the encoder itself, not only of the pooler and the head, are random."""
    encoder = set(network.base_model.state_dict())
    prefix = f"{network.base_model_prefix}."
    missing = {name.removeprefix(prefix) for name in report["missing_keys"]} & encoder
    missing = {name for name in missing if "pooler" not in name}
    if missing:
        warnings.warn(
            f"{folder} lacks {len(missing)} of the {len(encoder)} weights of the encoder (the first is "
            f"{min(missing)}), which start at random. Is it a checkpoint of {network.config.model_type}?",
            UserWarning,
            stacklevel=2,
        )


def _make_room_for_padding(network: Network, tokenizer: PreTrainedTokenizerBase) -> None:
    """Grow the embedding table if the tokenizer got a padding token that the checkpoint does not know."""
    encoder = network.encoder if isinstance(network, PooledClassifier) else network
    embeddings: Any = encoder.get_input_embeddings()
    if len(tokenizer) > embeddings.num_embeddings:
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    network.config.pad_token_id = tokenizer.pad_token_id


def _from_memory(loader: Any, config: PretrainedConfig, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    network: PreTrainedModel = loader.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)
    return network


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from showing a progress bar and from reporting that the head is new."""
    had_bars = transformers_logging.is_progress_bar_enabled()
    # Not disable_progress_bar(), which would also overwrite the caller's settings of huggingface_hub.
    transformers_logging._tqdm_active = False
    try:
        with quiet(LOGS):
            yield
    finally:
        transformers_logging._tqdm_active = had_bars
