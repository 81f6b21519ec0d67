"""A fitted classifier as a plain model folder of Hugging Face with `bertclf.json` beside it, and back."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from bertclf._checkpoint import Checkpoint, build_network, check_architecture, needed_weights, problem_type
from bertclf._device import choose_compute
from bertclf._encoding import Way
from bertclf._engine import Engine
from bertclf._files import ModelFileError, folder_to_read, replace_folder
from bertclf._folder import (
    CONFIG,
    HARMFUL,
    MANIFEST,
    MODEL_FILES,
    MOST_BYTES_OF_JSON,
    MOST_BYTES_OF_TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    WEIGHTS,
    ModelFolder,
    blaming,
    check_hash,
    parse_json,
    refuse_adapter,
    refuse_code,
    refuse_paths,
)
from bertclf._inference import predict_logits, prediction_budget
from bertclf._manifest import Manifest
from bertclf._network import Network, encoder_of, takes_segments
from bertclf._persistence import files_of, pooling_of, tokenizer_of, weights_of
from bertclf._targets import Classes
from bertclf._tokens import resolve_max_length, tokenize
from bertclf._weights import DTYPES, check_finite, compare, read_header, read_tensors

PACKAGES = ("bertclf", "torch", "transformers", "tokenizers", "safetensors", "scikit-learn", "numpy")

# What comes before the weights of the head where the pooling is not the architecture's own: a name that no class of
# transformers has, so that none takes the head for its own.
POOLED_HEAD, OWN_HEAD, OWN_ENCODER = "pooled_head.", "classifier.", "encoder."

# More than a network makes besides its weights, such as a mask for all its positions.
VALUES_BESIDE_WEIGHTS, MOST_LAYERS, LARGEST_NUMBER = 1 << 26, 10_000, 1 << 31

LAYERS = re.compile(r"layer|block|group|expert|stage|depth")
TOKENIZER_CLASS = re.compile(r"\w{0,60}Tokenizer(Fast)?|TokenizersBackend|PythonBackend|SentencePieceBackend")


def save_folder(
    folder: str | os.PathLike[str],
    network: Network,
    tokenizer: PreTrainedTokenizerBase,
    *,
    parameters: dict[str, Any],
    classes: Classes,
    takes_pairs: bool,
    max_length: int | None,
    long_text: str,
    n_columns: int | None,
    column_names: npt.NDArray[Any] | None,
    truncation: dict[str, Any],
    fitted: dict[str, Any],
) -> None:
    """Write a model folder, new or in the place of an earlier one, whole or not at all.

    Parameters
    ----------
    folder : str or path-like
        The folder.
    network, tokenizer
        Network and tokenizer, on any device.
    parameters, classes, takes_pairs, max_length, long_text, n_columns, column_names, truncation, fitted
        See `Manifest`.

    Raises
    ------
    ValueError
        If something can't be written as what it is, or a weight is not float32 or not finite.
    OSError
        If the folder can't be written, or holds files of others.
    """
    weights = _weights_to_save(network)
    files = files_of(tokenizer)
    if unknown := sorted(files.keys() - TOKENIZER_FILES):
        raise ValueError(f"A {type(tokenizer).__name__} can't be saved: it writes {unknown[0]}, which is not known.")
    if max_length is not None:
        settings = json.loads(files[TOKENIZER_CONFIG]) | {"model_max_length": max_length}
        files[TOKENIZER_CONFIG] = _written(settings)
    files[CONFIG] = _written(_settings_of(network))
    files[WEIGHTS] = save(_as_in_folder(network, weights), metadata={"format": "pt"})
    manifest = Manifest(
        parameters=parameters,
        classes=classes,
        takes_pairs=takes_pairs,
        max_length=max_length,
        long_text=long_text,
        tokenizer_max_length=int(tokenizer.model_max_length),
        pooling=pooling_of(network),
        n_columns=n_columns,
        column_names=None if column_names is None else column_names.tolist(),
        truncation=truncation,
        fitted=fitted,
        versions={"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES},
        files={name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in sorted(files.items())},
    )
    files[MANIFEST] = manifest.to_bytes()

    def write(new: Path) -> None:
        """Write all files into a new folder."""
        for name, content in files.items():
            (new / name).write_bytes(content)

    replace_folder(folder, write, marker=MANIFEST, names=MODEL_FILES)


@dataclass(frozen=True)
class Loaded:
    """What a model folder holds: network, on the CPU, and tokenizer, what is known beside them, and how to run them."""

    checkpoint: Checkpoint
    manifest: Manifest
    engine: Engine


def load_folder(folder: str | os.PathLike[str]) -> Loaded:
    """Read a model folder that `save_folder` has written, or somebody who means harm.

    Raises
    ------
    ModelFileError
        If a file is damaged, or is refused.
    OSError
        If the folder isn't there or can't be read.
    """
    while True:
        try:
            source = ModelFolder(folder_to_read(folder))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise type(error)(
                error.errno,
                "There is no such folder. Pass one that save_pretrained has written; a checkpoint is passed to "
                "BertSequenceClassifier, as model",
                str(folder),
            ) from error
        with source:
            try:
                return _read(source)
            except ModelFileError:
                if not source.was_replaced():  # by a save, which then deleted the files of the old folder
                    raise


def _read(source: ModelFolder) -> Loaded:
    """Read the files of an opened folder."""
    names, weights_file = source.names(), source.path / WEIGHTS
    refuse_adapter(names, source.path)
    if MANIFEST not in names:
        raise ModelFileError(
            f"{source.path} holds no {MANIFEST}: BertSequenceClassifier.save_pretrained did not write it. To fine-tune "
            "it, pass it as the parameter model."
        )
    manifest = Manifest.from_bytes(source.read(MANIFEST, most=MOST_BYTES_OF_JSON), source.path / MANIFEST)
    if harmful := [name for name in names if HARMFUL.fullmatch(name) and name not in manifest.files]:
        raise ModelFileError(
            f"{source.path / harmful[0]} can run code where somebody opens it, and is no file of a saved classifier. "
            "Delete it, or get the folder anew."
        )
    files = {}
    for name, (size, sha256) in manifest.files.items():
        if name != WEIGHTS:
            most = MOST_BYTES_OF_JSON if name == CONFIG else MOST_BYTES_OF_TOKENIZER
            files[name] = source.read(name, most=most, size=size, sha256=sha256)
    config = _read_config(files.pop(CONFIG), manifest, source.path / CONFIG)
    size, sha256 = manifest.files[WEIGHTS]
    with source.opened(WEIGHTS, size=size) as (stream, _), ThreadPoolExecutor(1) as executor:
        header = read_header(stream, n_bytes=size, file=weights_file)
        with blaming(source.path / CONFIG):
            needed = needed_weights(
                config,
                manifest.pooling,
                most_tensors=100 + len(header.places),
                most_values=size // 4 + VALUES_BESIDE_WEIGHTS,
            )
        names_in_folder = _names_in_folder(needed, config, manifest.pooling)
        compare(header, {names_in_folder[name]: weight for name, weight in needed.items()}, file=weights_file)
        reading, digest = read_tensors(stream, header, executor=executor, file=weights_file)
        tokenizer = _read_tokenizer(files, manifest, source.path)
        tensors = reading.result()
        with blaming(source.path / CONFIG):
            weights = {name: tensors[names_in_folder[name]] for name in needed}
            network = build_network(config, manifest.pooling, weights)
        checkpoint = Checkpoint(network, tokenizer)
        check_finite(tensors, file=weights_file)
        with blaming(source.path / MANIFEST):
            engine = _tried(checkpoint, manifest)
        check_hash(digest.result(), sha256, weights_file)
    return Loaded(checkpoint, manifest, engine)


def _weights_to_save(network: Network) -> dict[str, torch.Tensor]:
    """Return the weights of a network, if they could be read again."""
    weights = weights_of(network)
    for name, weight in weights.items():
        if weight.dtype not in DTYPES.values():
            raise ValueError(
                f"model_ can't be saved: {name} is {str(weight.dtype).removeprefix('torch.')}, but weights are saved "
                "as float32. Call clf.model_.float() first."
            )
    try:
        check_finite(weights, file=Path("model_"))
    except ModelFileError as error:
        raise ValueError(f"{error} It can't be saved: fit again, with a lower learning_rate.") from None
    return weights


def _settings_of(network: Network) -> dict[str, Any]:
    """Return the configuration of a network as others read it, without what is of this machine alone."""
    named = network if pooling_of(network) is None else encoder_of(network)
    settings = {name: value for name, value in network.config.to_dict().items() if not name.startswith("_")}
    return settings | {"architectures": [type(named).__name__], "dtype": "float32"}


def _as_in_folder(network: Network, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = _names_in_folder(weights, network.config, pooling_of(network))
    return {names[name]: weight for name, weight in weights.items()}


def _names_in_folder(names: Any, config: PretrainedConfig, pooling: str | None) -> dict[str, str]:
    """Return what each weight is called in the folder: as transformers calls it, in an encoder that has a head."""
    if pooling is None:
        return {name: name for name in names}
    encoder_class: Any = MODEL_MAPPING[type(config)]
    prefix = encoder_class.base_model_prefix
    encoder = f"{prefix}." if prefix else ""
    return {
        name: encoder + name.removeprefix(OWN_ENCODER)
        if name.startswith(OWN_ENCODER)
        else POOLED_HEAD + name.removeprefix(OWN_HEAD)
        for name in names
    }


def _read_config(content: bytes, manifest: Manifest, file: Path) -> PretrainedConfig:
    """Return the configuration of a network that transformers has, with the labels of the manifest."""
    settings = parse_json(content, file)
    refuse_code(settings, file)
    check_architecture(settings, file)
    if foreign := [name for name in settings if name.startswith("_") or name == "quantization_config"]:
        raise ModelFileError(f"{file} has the key {foreign[0][:40]!r}, which save_pretrained does not write.")
    with blaming(file):
        labels = [str(label) for label in manifest.classes.values.tolist()]
        stored = settings.get("id2label")
        if not isinstance(stored, dict) or stored != {str(number): label for number, label in enumerate(labels)}:
            raise ValueError(f"its labels are others than those of {MANIFEST}")
        if settings.get("num_labels", len(labels)) != len(labels):
            raise ValueError("its num_labels is not the number of labels")
        if settings.get("problem_type") != problem_type(len(labels), multilabel=manifest.classes.are_multilabel):
            raise ValueError(f"its problem_type is not that of {MANIFEST}")
        _check_sizes(settings)
        config: PretrainedConfig = AutoConfig.for_model(**settings)
        if manifest.pooling is not None and type(config) not in MODEL_MAPPING:
            raise ValueError(f"transformers has no encoder of a {config.model_type}")
    return config


def _check_sizes(settings: Any, name: str = "") -> None:
    """Raise if a number in a configuration is so large that reading it would fill the memory."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            _check_sizes(value, key)
    elif isinstance(settings, list):
        for value in settings:
            _check_sizes(value, name)
    elif isinstance(settings, (int, float)) and abs(settings) > (
        MOST_LAYERS if LAYERS.search(name) else LARGEST_NUMBER
    ):
        raise ValueError(f"its {name[:40]!r} is {settings:.3g}, which is out of all proportion")


def _read_tokenizer(files: dict[str, bytes], manifest: Manifest, folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer that the files make, if they speak of nothing outside the folder."""
    for name in (TOKENIZER_CONFIG, "special_tokens_map.json"):
        if name in files:
            settings = parse_json(files[name], folder / name)
            refuse_code(settings, folder / name)
            refuse_paths(settings, folder / name)
            kind = settings.get("tokenizer_class")
            if kind is not None and not (isinstance(kind, str) and TOKENIZER_CLASS.fullmatch(kind)):
                raise ModelFileError(f"{folder / name} has tokenizer_class {str(kind)[:40]!r}, which is no tokenizer.")
    with blaming(folder / TOKENIZER_CONFIG):
        tokenizer = tokenizer_of(files)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ValueError(f"it makes a {type(tokenizer).__name__}, which is no tokenizer")
        tokenizer.model_max_length = manifest.tokenizer_max_length
    return tokenizer


def _tried(checkpoint: Checkpoint, manifest: Manifest) -> Engine:
    """Return what runs the network on the CPU, or raise if the parts of a classifier don't fit together."""
    network, tokenizer, pairs = checkpoint.network, checkpoint.tokenizer, manifest.takes_pairs
    limit, max_length = checkpoint.length_limit, manifest.max_length
    if resolve_max_length(max_length, limit, tokenizer, pairs=pairs) != max_length:
        raise ValueError(f"its max_length is None, but the network takes no more than {limit} tokens")
    embeddings: Any = encoder_of(network).get_input_embeddings()
    known = range(embeddings.num_embeddings)
    if max(tokenizer.get_vocab().values()) not in known or network.config.pad_token_id not in known:
        raise ValueError("the tokenizer has tokens that the network does not know")
    tokens = tokenize(
        ["a text"],
        ["another"] if pairs else None,
        way=Way(tokenizer, max_length, manifest.long_text),
        with_segments=takes_segments(network, tokenizer),
    )
    compute = choose_compute(device="cpu", precision="float32")
    engine = Engine(network, device=compute.device)
    logits = predict_logits(engine, tokens, compute=compute, budget=prediction_budget(compute, verbose=False))
    if logits.shape != (1, len(manifest.classes)) or not np.isfinite(logits).all():
        raise ValueError("the network does not give a finite number for each label")
    return engine


def _written(settings: dict[str, Any]) -> bytes:
    """Return settings as a JSON file."""
    return json.dumps(settings, indent=2, sort_keys=True, allow_nan=False).encode("ascii") + b"\n"
