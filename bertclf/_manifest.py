"""What `bertclf.json` says of a saved classifier: parameters, labels, fitted attributes, and a hash of each file."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bertclf._files import ModelFileError
from bertclf._folder import CONFIG, MANIFEST, MODEL_FILES, TOKENIZER_CONFIG, WEIGHTS, blaming, parse_json
from bertclf._targets import Classes

FORMAT = "bertclf model"

# Counted up when the format changes. A reader takes what was written by a later one if its `oldest_reader` is not later
# than itself, and passes over what it doesn't know. The first one truncates all texts that are too long, and a label is
# a text's where its probability is above 0.5: it must not read what answers otherwise.
FORMAT_VERSION = 2
LONG_TEXT = {"truncate", "head_tail", "chunk"}

REQUIRED_FILES = {CONFIG, WEIGHTS, TOKENIZER_CONFIG}
MOST_BYTES_OF_LABELS = 256 << 20
SHA256 = re.compile("[0-9a-f]{64}")
PLAIN_DTYPE = re.compile(r"[<>|][biufU]\d{1,9}")
STRING_DTYPES = {
    "StringDType": np.dtypes.StringDType(),
    "StringDType(na_object=nan)": np.dtypes.StringDType(na_object=np.nan),
}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and 0 < value < math.inf


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


def _are_probabilities(value: Any) -> bool:
    return isinstance(value, list) and all(_is_number(item) and 0 <= item <= 1 for item in value)


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and _is_count(value.get("step")) and all(map(_is_number_or_none, value.values()))


def _lists(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_one, value))


# The attributes that tell of the training, and what each must be.
FITTED: dict[str, Callable[[Any], bool]] = {
    "n_iter_": _is_count,
    "history_": _lists(_is_row),
    "loss_curve_": _lists(_is_number),
    "validation_scores_": lambda value: value is None or _lists(_is_number)(value),
    "best_validation_score_": _is_number_or_none,
    "best_loss_": _is_number_or_none,
    "micro_batch_size_": _is_count,
    "temperature_": _is_positive,
    "thresholds_": lambda value: value is None or _are_probabilities(value),
}

# What fields, parameters and attributes are in files that were written before there were such.
FIELDS_BEFORE = {"long_text": "truncate"}
PARAMETERS_BEFORE = {"long_text": "truncate"}
BEFORE = {"temperature_": 1.0, "thresholds_": None}


@dataclass(frozen=True)
class Manifest:
    """What is known of a saved classifier beside its network and its tokenizer.

    Attributes
    ----------
    parameters : dict
        Parameters of the constructor, those that JSON can hold.
    classes : Classes
        The labels.
    takes_pairs : bool
        Whether a row holds two texts.
    max_length : int or None
        Longest input in tokens; None for no limit.
    long_text : str
        What becomes of longer texts.
    tokenizer_max_length : int or float
        What the tokenizer of the checkpoint took for the longest input: in the folder it says `max_length`.
    pooling : str or None
        Pooling of a `PooledClassifier`, None for the architecture's own class.
    column_names : list of str, or None
        Names of the columns of X, if it had such.
    n_columns : int or None
        Number of columns of X, if it was two-dimensional.
    truncation : dict
        The attribute `truncation_`.
    fitted : dict
        The attributes that tell of the training, see `FITTED`.
    versions : dict of str to str
        Version of each package that had a part in it.
    files : dict of str to (int, str)
        Size in bytes and SHA-256 of each file.
    """

    parameters: dict[str, Any]
    classes: Classes
    takes_pairs: bool
    max_length: int | None
    long_text: str
    tokenizer_max_length: int
    pooling: str | None
    column_names: list[str] | None
    n_columns: int | None
    truncation: dict[str, Any]
    fitted: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, tuple[int, str]]

    def to_bytes(self) -> bytes:
        """Return the content of the file.

        Raises
        ------
        ValueError
            If the labels are of a type that can't be written.
        """
        counts = self.truncation["per_class"].values()
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "oldest_reader": self._oldest_reader(),
            "versions": self.versions,
            "parameters": {name: encode(value) for name, value in self.parameters.items()},
            "labels": _encode_labels(self.classes.values),
            "indicator_dtype": None if self.classes.indicator_dtype is None else self.classes.indicator_dtype.str,
            "pairs": self.takes_pairs,
            "pooling": self.pooling,
            "max_length": self.max_length,
            "long_text": self.long_text,
            "tokenizer_max_length": self.tokenizer_max_length,
            "n_columns": self.n_columns,
            "column_names": self.column_names,
            "fitted": {name: encode(self.fitted[name]) for name in FITTED},
            "truncation": {
                "texts": self.truncation["texts"],
                "tokens": self.truncation["tokens"],
                "per_class": [[count["texts"], count["tokens"]] for count in counts],
            },
            "files": {name: {"size": size, "sha256": sha256} for name, (size, sha256) in self.files.items()},
        }
        return json.dumps(content | {"sha256": _hash_of(content)}, indent=1).encode("ascii") + b"\n"

    def _oldest_reader(self) -> int:
        """Return the first version of the format that gives the same answers."""
        return 1 if self.long_text == "truncate" and self.fitted["thresholds_"] is None else 2

    @classmethod
    def from_bytes(cls, stored: bytes, file: Path) -> Self:
        """Read the content of the file.

        Raises
        ------
        ModelFileError
            If it is not what `to_bytes` returns, or of a format that this version of bertclf can't read.
        """
        content = parse_json(stored, file)
        _check_format(content, file)
        with blaming(file):
            fields = _Fields(FIELDS_BEFORE | content)
            classes = _read_classes(fields)
            truncation = fields.within("truncation")
            counts = truncation.take("per_class", _lists(lambda pair: _lists(_is_count)(pair) and len(pair) == 2))
            per_class = [{"texts": texts, "tokens": tokens} for texts, tokens in counts]
            told = fields.within("fitted", otherwise=BEFORE)
            fitted = {name: told.take(name, is_right, decode=decode) for name, is_right in FITTED.items()}
            if fitted["thresholds_"] is not None and len(fitted["thresholds_"]) != len(classes.values):
                raise ValueError("its 'thresholds_' are not one a label")
            return cls(
                parameters=PARAMETERS_BEFORE
                | {name: decode(value) for name, value in fields.take("parameters", _is_object).items()},
                classes=classes,
                takes_pairs=fields.take("pairs", lambda value: isinstance(value, bool)),
                max_length=fields.take("max_length", lambda value: value is None or (_is_count(value) and value > 0)),
                long_text=fields.take("long_text", lambda value: _is_str(value) and value in LONG_TEXT),
                tokenizer_max_length=fields.take("tokenizer_max_length", _is_count),
                pooling=fields.take("pooling", lambda value: value in (None, "cls", "mean", "last")),
                column_names=fields.take("column_names", lambda value: value is None or _lists(_is_str)(value)),
                n_columns=fields.take("n_columns", lambda value: value is None or value in (1, 2)),
                truncation={
                    "texts": truncation.take("texts", _is_count),
                    "tokens": truncation.take("tokens", _is_count),
                    "per_class": dict(zip(classes.values.tolist(), per_class, strict=True)),
                },
                fitted=fitted,
                versions=fields.take("versions", lambda value: _is_object(value) and all(map(_is_str, value.values()))),
                files=_read_files(fields),
            )


class _Fields:
    """The fields of an object of JSON, which are checked when they are taken."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content

    def take(
        self, name: str, is_right: Callable[[Any], bool], *, decode: Callable[[Any], Any] = lambda value: value
    ) -> Any:
        """Return a field, or raise if it is missing or not what it must be."""
        if name not in self._content:
            raise ValueError(f"it has no {name!r}")
        value = decode(self._content[name])
        if not is_right(value):
            raise ValueError(f"its {name!r} is {_shown(value)}, which it can't be")
        return value

    def within(self, name: str, *, otherwise: Mapping[str, Any] | None = None) -> "_Fields":
        """Return the fields of a field; those that it doesn't have are as `otherwise` says."""
        return _Fields(dict(otherwise or {}) | self.take(name, _is_object))


def encode(value: Any) -> Any:
    """Return a value as JSON can hold it, so that `decode` gives it back; scalars of numpy in types of Python.

    Raises
    ------
    TypeError
        If JSON can't hold it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        pairs = [[encode(key), encode(item)] for key, item in value.items()]
        is_plain = all(isinstance(key, str) for key, _ in pairs) and not value.keys() & {"float", "pairs"}
        return dict(pairs) if is_plain else {"pairs": pairs}
    raise TypeError(f"JSON can't hold a {type(value).__name__}")


def decode(value: Any) -> Any:
    """Return what `encode` was given."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"float"}:
            return float(value["float"])
        if value.keys() == {"pairs"}:
            return {decode(key): decode(item) for key, item in value["pairs"]}
        return {key: decode(item) for key, item in value.items()}
    return value


def _check_format(content: dict[str, Any], file: Path) -> None:
    """Raise if a file is of another format, or was changed after it was written."""
    if content.get("format") != FORMAT or not _is_count(content.get("oldest_reader")):
        raise ModelFileError(f"{file} was not written by save_pretrained of BertSequenceClassifier.")
    if content["oldest_reader"] > FORMAT_VERSION:
        raise ModelFileError(
            f"{file} is of format {_shown(content.get('format_version'))}, which this version of bertclf, of format "
            f"{FORMAT_VERSION}, can't read. Update bertclf."
        )
    sha256 = content.pop("sha256", None)
    if sha256 != _hash_of(content):
        raise ModelFileError(
            f"{file} has another SHA-256 than it says of itself: it is damaged or was changed. Get the folder anew."
        )


def _read_classes(fields: _Fields) -> Classes:
    """Return the labels, which must be of a known type, different and sorted."""
    labels = fields.within("labels")
    name = labels.take("dtype", _is_str)
    values = labels.take("values", lambda value: isinstance(value, list) and len(value) > 0)
    indicators = fields.take("indicator_dtype", lambda value: value is None or _is_str(value))
    array = _decode_labels(name, values)
    if indicators is None:
        return Classes(array)
    if not PLAIN_DTYPE.fullmatch(indicators) or np.dtype(indicators).kind not in "biuf":
        raise ValueError(f"its 'indicator_dtype' is {_shown(indicators)}, which it can't be")
    if array.tolist() != list(range(len(array))):
        raise ValueError("its labels are not the numbers of columns")
    return Classes(array, np.dtype(indicators))


def _encode_labels(values: npt.NDArray[Any]) -> dict[str, Any]:
    """Return labels and their type as JSON can hold them."""
    name = "object" if values.dtype.kind == "O" else values.dtype.str
    name = next((known for known, dtype in STRING_DTYPES.items() if dtype == values.dtype), name)
    listed = values.tolist()
    try:
        if json.loads(json.dumps(listed)) != listed:  # halves of one character
            raise ValueError("JSON would change them")
        again = _decode_labels(name, listed)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Labels of type {values.dtype} can't be saved: {error}. Fit on labels that are str, int, bool or float."
        ) from error
    if again.dtype != values.dtype:
        raise ValueError(f"Labels of type {values.dtype} can't be saved. Fit on labels that are str, int or bool.")
    return {"dtype": name, "values": listed}


def _decode_labels(name: str, values: list[Any]) -> npt.NDArray[Any]:
    """Return labels in their type."""
    if name == "object":
        dtype: Any = np.dtype(object)
    elif name in STRING_DTYPES:
        dtype = STRING_DTYPES[name]
    elif PLAIN_DTYPE.fullmatch(name):
        dtype = np.dtype(name)
        if dtype.itemsize * len(values) > MOST_BYTES_OF_LABELS:
            raise ValueError(f"its labels, {len(values)} of type {_shown(name)}, would fill the memory")
    else:
        raise ValueError(f"the type of its labels is {_shown(name)}, which is not known")
    expected = {"b": bool, "i": int, "u": int, "f": float}.get(dtype.kind, str)
    if wrong := [value for value in values if type(value) is not expected]:
        raise ValueError(f"a label is {_shown(wrong[0])}, which is no {expected.__name__}")
    array = np.array(values, dtype=dtype)
    if array.tolist() != values or not np.array_equal(np.unique(array), array):
        raise ValueError("its labels are not different, sorted and of their type")
    return array


def _read_files(fields: _Fields) -> dict[str, tuple[int, str]]:
    """Return size and hash of each file; only files of fixed names can be there, and some must be."""
    files = {}
    for name, entry in fields.take("files", _is_object).items():
        if name not in MODEL_FILES or name == MANIFEST:
            raise ValueError(f"it lists {_shown(name)}, which is no file of a saved classifier")
        described = _Fields(entry if _is_object(entry) else {})
        sha256 = described.take("sha256", lambda value: _is_str(value) and bool(SHA256.fullmatch(value)))
        files[name] = (described.take("size", _is_count), sha256)
    if missing := sorted(REQUIRED_FILES - files.keys()):
        raise ValueError(f"it does not list {missing[0]}")
    return files


def _hash_of(content: dict[str, Any]) -> str:
    """Return a hash of what a manifest says, however it is laid out."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _is_str(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."
