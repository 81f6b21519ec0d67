"""Rows 1 to 29 of the table of bad input and bad days, each through the public classifier alone."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from conftest import LABELS, TEXTS, saying, texts_are_cut
from datasets import Dataset
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.model_selection import KFold, cross_val_predict
from tiny import POSITIONS

from bertclf import BertSequenceClassifier

N = len(TEXTS)
PAIRS = list(zip(TEXTS, TEXTS[::-1], strict=True))
PAIR_LISTS = [list(pair) for pair in PAIRS]
STRING = np.dtypes.StringDType()

Maker = Callable[..., BertSequenceClassifier]


@pytest.fixture(scope="module")
def make(checkpoint: Path) -> Maker:
    """A function that makes an unfitted classifier of the tiny checkpoint."""

    def make_classifier(**parameters: Any) -> BertSequenceClassifier:
        return BertSequenceClassifier(**({"model": checkpoint, "epochs": 1, "random_state": 0} | parameters))

    return make_classifier


@pytest.fixture(scope="module")
def fitted(make: Maker) -> BertSequenceClassifier:
    return make().fit(TEXTS, LABELS)


@pytest.fixture(scope="module")
def fitted_on_pairs(make: Maker) -> BertSequenceClassifier:
    return make().fit(PAIRS, LABELS)


@pytest.fixture(params=["fit", "predict_proba"])
def use(request: pytest.FixtureRequest, make: Maker, fitted: BertSequenceClassifier) -> Callable[[Any], Any]:
    """What passes a container of texts to the classifier: `fit`, and `predict_proba` of a fitted one."""
    return fitted.predict_proba if request.param == "predict_proba" else lambda X: make().fit(X, LABELS)


def with_item(items: list[Any], row: int, item: Any) -> list[Any]:
    return [*items[:row], item, *items[row + 1 :]]


def object_array(items: list[Any]) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def assert_probabilities(probabilities: np.ndarray, shape: tuple[int, int]) -> None:
    assert probabilities.shape == shape
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)


def test_row_01_one_str_is_refused_with_the_advice_to_pass_a_list(use: Callable[[Any], Any]) -> None:
    rule = "Iterable over raw text documents expected, string object received."
    with pytest.raises(ValueError, match=saying(rule, "X is one str", "container of texts", "Pass [text]")):
        use("a fine film")


@pytest.mark.parametrize(
    "empty",
    [[], (), np.array([], dtype=object), pd.Series([], dtype=object), pd.DataFrame({"text": []}), pa.array([], "str")],
    ids=["list", "tuple", "array", "Series", "frame", "Arrow"],
)
def test_row_02_no_texts_are_refused(use: Callable[[Any], Any], empty: Any) -> None:
    with pytest.raises(ValueError, match=saying("0 sample(s)", "X is empty", "at least one text is required")):
        use(empty)


@pytest.mark.parametrize("row", [0, N // 2, N - 1], ids=["first", "middle", "last"])
@pytest.mark.parametrize("missing", [None, float("nan"), np.float64("nan"), pd.NA], ids=["None", "nan", "numpy", "NA"])
def test_row_03_a_missing_text_is_refused_with_its_row(use: Callable[[Any], Any], missing: Any, row: int) -> None:
    texts = with_item(TEXTS, row, missing)
    where, what = f"X[{row}] is ", f"{type(missing).__name__} ("
    for container in (texts, tuple(texts), object_array(texts), pd.Series(texts, dtype=object)):
        with pytest.raises(ValueError, match=saying(where + what, "every text must be a str", "Replace", "or drop")):
            use(container)
    for other in (pd.Series(texts, dtype="string"), pl.Series(with_item(TEXTS, row, None))):
        with pytest.raises(ValueError, match=saying(where, "every text must be a str", "Replace", "or drop")):
            use(other)


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA], ids=["None", "nan", "NA"])
def test_row_03_a_missing_text_of_a_pair_is_refused_with_row_and_column(make: Maker, missing: Any) -> None:
    pairs = with_item(PAIRS, 5, ("a film", missing))
    for container in (pairs, pd.DataFrame(pairs)):
        with pytest.raises(ValueError, match=saying("X[5, 1] is ", "every text must be a str", "Replace", "or drop")):
            make().fit(container, LABELS)


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA], ids=["None", "nan", "NA"])
def test_row_03_a_missing_pair_is_refused_with_its_row(make: Maker, missing: Any) -> None:
    with pytest.raises(ValueError, match=saying("X[5] is ", "Replace missing", "or drop")):
        make().fit(with_item(PAIRS, 5, missing), LABELS)


@pytest.mark.parametrize(
    ("container", "row"),
    [
        (with_item(TEXTS, 3, b"raw"), 3),
        (object_array(with_item(TEXTS, 3, b"raw")), 3),
        (pd.Series(with_item(TEXTS, 3, b"raw")), 3),
        (np.array([text.encode() for text in TEXTS]), 0),
    ],
    ids=["list", "object array", "Series", "array of bytes"],
)
def test_row_04_bytes_are_refused_with_the_advice_to_decode(
    use: Callable[[Any], Any], container: Any, row: int
) -> None:
    with pytest.raises(TypeError, match=saying(f"X[{row}] is bytes (b'", "must be a str", "Decode it first: text.de")):
        use(container)


@pytest.mark.parametrize(
    ("container", "where"),
    [
        (with_item(TEXTS, 0, 7), "X[0] is int (7)"),
        (with_item(TEXTS, 9, 2.5), "X[9] is float (2.5)"),
        (with_item(TEXTS, 13, ["nested"]), "X[13] is list (['nested'])"),
        (with_item(TEXTS, 4, 10**100), f"X[4] is int (1{'0' * 36}...)"),
        (list(range(N)), "X[0] is int (0)"),
        (np.arange(N), "X[0] is int (0)"),
        (np.arange(N)[:, None] / 2, "X[0] is float (0.0)"),
        (pd.Series(range(N)), "X[0] is int (0)"),
        (with_item(PAIRS, 2, ("a film", 7)), "X[2, 1] is int (7)"),
    ],
    ids=["int", "float", "list", "long", "ints", "array", "column", "Series", "pair"],
)
def test_row_05_what_is_no_text_is_refused_with_row_and_type(
    use: Callable[[Any], Any], container: Any, where: str
) -> None:
    with pytest.raises(TypeError, match=saying(where, "every text must be a str", "Convert it yourself")):
        use(container)


@pytest.mark.parametrize("row", [0, N - 1])
@pytest.mark.parametrize("text", ["\ud800", "a fine \udfff film"], ids=["alone", "within"])
def test_row_06_a_lone_surrogate_is_refused_with_its_row(use: Callable[[Any], Any], text: str, row: int) -> None:
    texts = with_item(TEXTS, row, text)
    for container in (texts, np.array(texts), pd.Series(texts, dtype=object)):
        with pytest.raises(
            ValueError,
            match=saying(f"X[{row}] is {text!a}", "lone surrogate at character", "must be valid unicode", "Decode"),
        ):
            use(container)


STRANGE = {
    "NUL": "a\x00fine\x00film",
    "only NUL": "\x00",
    "right-to-left override": "a \u202efine\u202c film",
    "zero width": "a\u200b fi\u200dne\ufeff film",
    "emoji sequences": "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 👍🏽 🇨🇭",
    "private use and unassigned": "\ue000 \U000e0001 \uffff \U0010ffff",
    "controls": "".join(map(chr, range(32))) + "\x7f\x85\u2028",
}


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE)
def test_row_07_strange_characters_give_finite_and_repeatable_probabilities(make: Maker, text: str) -> None:
    first, second = (make().fit([*TEXTS, text], [*LABELS, "fresh"]) for _ in range(2))
    probabilities = first.predict_proba([text, *TEXTS])

    assert_probabilities(probabilities, (N + 1, 2))
    assert_array_equal(first.predict_proba([text, *TEXTS]), probabilities)
    assert_array_equal(second.predict_proba([text, *TEXTS]), probabilities)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "xlm-roberta"])
@pytest.mark.parametrize("text", ["", " ", "\n\t\r ", "\u3000\u00a0"], ids=["empty", "space", "controls", "wide"])
def test_row_08_empty_texts_give_finite_probabilities(
    make: Maker, checkpoints: Callable[[str], Path], architecture: str, text: str
) -> None:
    clf = make(model=checkpoints(architecture)).fit([*TEXTS, text], [*LABELS, "fresh"])

    assert_probabilities(clf.predict_proba([text]), (1, 2))
    assert_probabilities(clf.predict_proba([text, "a film", text]), (3, 2))
    assert_probabilities(
        make(model=checkpoints(architecture)).fit([text, text], ["a", "b"]).predict_proba([text]), (1, 2)
    )


@texts_are_cut
def test_row_09_a_megabyte_of_words_is_classified_by_its_ends(make: Maker, fitted: BertSequenceClassifier) -> None:
    megabyte = "a fine film " * 1000 + "it was not dull " * 65_000 + "what a joy " * 1000
    clf = make().fit([*TEXTS, megabyte], [*LABELS, "fresh"])

    assert len(megabyte) > 1 << 20
    assert_array_equal(fitted.predict_proba([megabyte]), fitted.predict_proba([megabyte[:6000] + megabyte[-5500:]]))
    assert_probabilities(clf.predict_proba([megabyte]), (1, 2))
    assert clf.truncation_["texts"] == 1
    assert clf.truncation_["per_class"]["fresh"] == {"texts": 1, "tokens": clf.truncation_["tokens"]}
    assert clf.truncation_["tokens"] == pytest.approx(len(megabyte.split()) + 2 - POSITIONS, rel=0.02)


@pytest.mark.parametrize(
    "megabyte", ["abcdefghij" * 105_000, "a" + "\u0301" * 525_000], ids=["no space", "combining marks"]
)
def test_row_10_a_megabyte_without_spaces_is_fitted_and_classified(
    make: Maker, fitted: BertSequenceClassifier, megabyte: str
) -> None:
    clf = make().fit([*TEXTS, megabyte], [*LABELS, "fresh"])

    assert len(megabyte.encode()) > 1 << 20
    assert_probabilities(clf.predict_proba([megabyte, "a film"]), (2, 2))
    assert_array_equal(fitted.predict_proba([megabyte]), fitted.predict_proba([megabyte[:5000]]))


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert", "gpt2", "xlm-roberta", "deberta-v2"])
def test_row_11_names_of_control_tokens_reach_the_network_as_plain_text(
    make: Maker, checkpoints: Callable[[str], Path], architecture: str
) -> None:
    clf = make(model=checkpoints(architecture)).fit(TEXTS, LABELS)
    tokenizer = clf.tokenizer_
    roles = ("bos_token", "eos_token", "cls_token", "sep_token", "pad_token", "mask_token")
    names = sorted({getattr(tokenizer, role) for role in roles} - {None})
    control = torch.tensor(tokenizer.convert_tokens_to_ids(names))
    seen: list[torch.Tensor] = []

    def record(network: torch.nn.Module, arguments: Any, inputs: dict[str, torch.Tensor]) -> None:
        seen.append(inputs["input_ids"][inputs["attention_mask"].bool()])

    clf.model_.register_forward_pre_hook(record, with_kwargs=True)
    clf.predict_proba(["a film " + " a film ".join(names)])
    clf.predict_proba(["a film"])
    with_names, without = (torch.isin(ids, control).sum().item() for ids in seen)

    assert names
    assert with_names == without


@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["single", "pair"])
def test_row_12_a_max_length_beyond_the_checkpoint_is_refused_at_fit_with_the_limit(make: Maker, texts: Any) -> None:
    clf = make(max_length=POSITIONS + 1)
    with pytest.raises(
        ValueError, match=saying("max_length=65", "limit is 64 tokens", "Lower max_length, or pass None")
    ):
        clf.fit(texts, LABELS)
    with pytest.raises(NotFittedError):
        clf.predict(texts)


@texts_are_cut
def test_row_12_a_max_length_at_the_limit_of_the_checkpoint_is_taken(make: Maker) -> None:
    long = ["a fine film " * 40, *TEXTS[1:]]
    at_limit, default = (make(max_length=length).fit(long, LABELS) for length in (POSITIONS, None))

    assert_array_equal(at_limit.predict_proba(long), default.predict_proba(long))


PAIR_CONTAINERS = {
    "list of tuples": PAIRS,
    "list of lists": PAIR_LISTS,
    "tuple of tuples": tuple(PAIRS),
    "object array": np.array(PAIRS, dtype=object),
    "fixed-width array": np.array(PAIRS),
    "StringDType array": np.array(PAIRS, dtype=STRING),
    "array of tuples": object_array(PAIRS),
    "Series of tuples": pd.Series(PAIRS),
    "pandas frame": pd.DataFrame(PAIRS, columns=["first", "second"]),
    "pandas frame without names": pd.DataFrame(PAIRS),
    "polars frame": pl.DataFrame(PAIR_LISTS, schema=["first", "second"], orient="row"),
    "polars Series of lists": pl.Series(PAIR_LISTS),
    "Arrow table": pa.table({"first": TEXTS, "second": TEXTS[::-1]}),
    "Hugging Face column": Dataset.from_dict({"pair": PAIR_LISTS})["pair"],
}


@pytest.mark.parametrize("container", PAIR_CONTAINERS.values(), ids=PAIR_CONTAINERS)
def test_row_13_two_texts_a_row_are_a_pair_in_fit_and_predict(
    make: Maker, fitted_on_pairs: BertSequenceClassifier, container: Any
) -> None:
    clf = make().fit(container, LABELS)

    assert_array_equal(clf.predict_proba(container), fitted_on_pairs.predict_proba(PAIRS))
    assert clf.n_features_in_ == 2


@texts_are_cut
def test_row_13_the_second_text_of_a_pair_matters(fitted_on_pairs: BertSequenceClassifier) -> None:
    one, other = fitted_on_pairs.predict_proba([("a film", "great joy"), ("a film", "awful bore")])

    assert not np.array_equal(one, other)


def test_row_13_a_tuple_of_two_strings_is_two_texts(fitted: BertSequenceClassifier) -> None:
    assert_array_equal(fitted.predict_proba(("a film", "dull")), fitted.predict_proba(["a film", "dull"]))


def test_row_13_pairs_and_single_texts_cannot_be_exchanged(
    fitted: BertSequenceClassifier, fitted_on_pairs: BertSequenceClassifier
) -> None:
    with pytest.raises(ValueError, match=saying("X has 2 text(s) a row", "fitted on 1", "Pass what fit was given")):
        fitted.predict_proba(PAIRS)
    with pytest.raises(ValueError, match=saying("X has 1 text(s) a row", "fitted on 2", "Pass what fit was given")):
        fitted_on_pairs.predict_proba(TEXTS)


CONTAINERS = {
    "tuple": tuple(TEXTS),
    "fixed-width array": np.array(TEXTS),
    "object array": np.array(TEXTS, dtype=object),
    "StringDType array": np.array(TEXTS, dtype=STRING),
    "object Series": pd.Series(TEXTS, dtype=object),
    "string Series": pd.Series(TEXTS, dtype="string"),
    "category Series": pd.Series(TEXTS, dtype="category"),
    "Arrow-backed Series": pd.Series(TEXTS, dtype=pd.ArrowDtype(pa.string())),
    "polars Series": pl.Series(TEXTS),
    "(n, 1) object array": np.array(TEXTS, dtype=object)[:, None],
    "(n, 1) fixed-width array": np.array(TEXTS)[:, None],
    "one-column list": [[text] for text in TEXTS],
    "one-column pandas frame": pd.DataFrame({"text": TEXTS}),
    "one-column polars frame": pl.DataFrame({"text": TEXTS}),
    "Arrow array": pa.array(TEXTS),
    "Arrow chunked array": pa.chunked_array([TEXTS[:5], TEXTS[5:]]),
    "Arrow table": pa.table({"text": TEXTS}),
    "Hugging Face column": Dataset.from_dict({"text": TEXTS})["text"],
}


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_row_14_every_container_gives_the_predictions_of_a_list(
    make: Maker, fitted: BertSequenceClassifier, container: Any
) -> None:
    expected = fitted.predict_proba(TEXTS)
    clf = make().fit(container, LABELS)

    assert_array_equal(fitted.predict_proba(container), expected)
    assert_array_equal(clf.predict_proba(container), expected)
    assert_array_equal(clf.predict_proba(TEXTS), expected)


@pytest.mark.parametrize(
    "container",
    [
        [(text, text, text) for text in TEXTS],
        np.array([TEXTS] * 3).T,
        pd.DataFrame({"a": TEXTS, "b": TEXTS, "c": TEXTS}),
        pl.DataFrame({"a": TEXTS, "b": TEXTS, "c": TEXTS}),
    ],
    ids=["tuples", "array", "pandas", "polars"],
)
def test_row_15_three_columns_are_refused(use: Callable[[Any], Any], container: Any) -> None:
    with pytest.raises(ValueError, match=saying("X has 3 columns", "one, or two for pairs", "Select the columns")):
        use(container)


@pytest.mark.parametrize("index", [[0] * N, list(range(N))[::-1], list("nmlkjihgfedcba")], ids=["same", "back", "str"])
def test_row_16_rows_are_taken_by_position_whatever_the_index(
    make: Maker, fitted: BertSequenceClassifier, index: list[Any]
) -> None:
    expected = fitted.predict_proba(TEXTS)
    weights = np.linspace(0.5, 2.0, N)
    texts, labels = pd.Series(TEXTS, index=index), pd.Series(LABELS, index=index)
    weighted = make().fit(texts, LABELS, sample_weight=pd.Series(weights, index=index))

    assert_array_equal(make().fit(texts, LABELS).predict_proba(texts), expected)
    assert_array_equal(make().fit(texts.to_frame("text"), LABELS).predict_proba(texts.to_frame("text")), expected)
    assert_array_equal(make().fit(TEXTS, labels).predict_proba(TEXTS), expected)
    assert_array_equal(make().fit(texts, pd.Series(LABELS)).predict_proba(TEXTS), expected)
    assert weighted.loss_curve_ == make().fit(TEXTS, LABELS, sample_weight=weights).loss_curve_
    assert weighted.loss_curve_ != fitted.loss_curve_


def _memory_mapped(array: np.ndarray, file: Path) -> np.ndarray:
    np.save(file, array)
    return np.load(file, mmap_mode="r")


def _read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def _strided(array: np.ndarray) -> np.ndarray:
    return np.repeat(array, 2)[::2]


@pytest.mark.parametrize("kind", ["non-contiguous", "reversed twice", "read-only", "memory-mapped", "Fortran column"])
def test_row_17_arrays_of_any_memory_are_read_and_never_written(
    make: Maker, fitted: BertSequenceClassifier, kind: str, tmp_path: Path
) -> None:
    change: Callable[[np.ndarray, str], np.ndarray] = {
        "non-contiguous": lambda array, name: _strided(array),
        "reversed twice": lambda array, name: array[::-1].copy()[::-1],
        "read-only": lambda array, name: _read_only(array),
        "memory-mapped": lambda array, name: _memory_mapped(array, tmp_path / f"{name}.npy"),
        "Fortran column": lambda array, name: np.asfortranarray(np.stack([array, array], axis=1))[:, 0],
    }[kind]
    texts, labels = change(np.array(TEXTS), "texts"), change(np.array(LABELS), "labels")
    weights = change(np.full(N, 2.0), "weights")
    before = [array.copy() for array in (texts, labels, weights)]
    clf = make().fit(texts, labels, sample_weight=weights)

    assert_array_equal(clf.predict_proba(texts), fitted.predict_proba(TEXTS))
    for array, copy in zip((texts, labels, weights), before, strict=True):
        assert_array_equal(array, copy)


@pytest.mark.parametrize(
    ("generate", "kind"),
    [(lambda: (text for text in TEXTS), "generator"), (lambda: map(str, TEXTS), "map"), (lambda: zip(TEXTS), "zip")],
    ids=["generator", "map", "zip"],
)
def test_row_18_a_generator_is_refused(
    use: Callable[[Any], Any], generate: Callable[[], Iterator[Any]], kind: str
) -> None:
    with pytest.raises(TypeError, match=saying(f"X is a {kind}", "sequence of texts with a length", "Pass list(X)")):
        use(generate())


@pytest.mark.parametrize("row", [0, N - 1], ids=["first", "last"])
@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA], ids=["None", "nan", "NA"])
def test_row_19_a_missing_label_is_refused_with_its_row(make: Maker, missing: Any, row: int) -> None:
    labels = with_item(LABELS, row, missing)
    numbers = with_item([0.0, 1.0] * (N // 2), row, np.nan)
    for y in (labels, tuple(labels), object_array(labels), pd.Series(labels, dtype="string"), np.array(numbers)):
        with pytest.raises(ValueError, match=saying(f"y[{row}] is ", "every text needs a label", "Drop the texts")):
            make().fit(TEXTS, y)


def test_row_19_no_labels_at_all_are_refused(make: Maker) -> None:
    with pytest.raises(ValueError, match="requires y to be passed, but the target y is None"):
        make().fit(TEXTS, None)


@pytest.mark.parametrize("kind", [list, object_array, pd.Series], ids=["list", "array", "Series"])
def test_row_20_labels_of_mixed_types_are_refused_with_row_and_types(make: Maker, kind: Callable[[Any], Any]) -> None:
    labels = kind(with_item(LABELS, 4, 1))
    with pytest.raises(
        ValueError, match=saying("y[4] is int (1)", "y[0] is str ('fresh')", "one type that sorts", "Convert them all")
    ):
        make().fit(TEXTS, labels)


@pytest.mark.parametrize("kind", [list, np.array, object_array, pd.Series], ids=["list", "S array", "array", "Series"])
def test_row_20_bytes_as_labels_are_refused_with_the_advice_to_decode(make: Maker, kind: Callable[[Any], Any]) -> None:
    labels = kind([label.encode() for label in LABELS])
    with pytest.raises(TypeError, match=saying("y", "bytes", "Decode")):
        make().fit(TEXTS, labels)


IS_FRESH = [label == "fresh" for label in LABELS]


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        (IS_FRESH, "bool"),
        (np.array(IS_FRESH), "bool"),
        (np.array(IS_FRESH, dtype=np.int8), "int8"),
        (np.where(IS_FRESH, 300, -7).astype(np.int32), "int32"),
        (np.array(IS_FRESH, dtype=np.float32), "float32"),
        (LABELS, "<U6"),
        (np.array(LABELS), "<U6"),
        (np.array(LABELS, dtype=object), "object"),
        (pd.Series(LABELS), "object"),
        (pd.Series(LABELS, dtype="string"), "object"),
        (pd.Series(pd.Categorical(LABELS, categories=["rotten", "unused", "fresh"])), "object"),
        (pd.Series(IS_FRESH, dtype="int8").astype("category"), "int8"),
        (pl.Series(IS_FRESH), "bool"),
    ],
    ids=[
        "list of bool",
        "bool",
        "int8",
        "int32",
        "float32",
        "list of str",
        "str",
        "object",
        "Series",
        "string Series",
        "category",
        "category of int8",
        "polars",
    ],
)
def test_row_21_predict_keeps_the_dtype_of_the_labels_also_after_loading(make: Maker, labels: Any, dtype: str) -> None:
    clf = make(epochs=2).fit(TEXTS, labels)
    loaded = pickle.loads(pickle.dumps(clf))

    for classifier in (clf, loaded):
        assert classifier.classes_.dtype == dtype
        assert classifier.classes_.tolist() == sorted(set(labels))
        assert classifier.predict(TEXTS).dtype == dtype
        assert set(classifier.predict(TEXTS).tolist()) <= set(labels)
    assert_array_equal(loaded.predict(TEXTS), clf.predict(TEXTS))


def test_row_22_continuous_labels_are_refused(make: Maker) -> None:
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        make().fit(TEXTS, np.linspace(0.1, 0.9, N))


@pytest.mark.parametrize(
    "column",
    [[[label] for label in LABELS], np.array(LABELS)[:, None], pd.DataFrame({"label": LABELS})],
    ids=["list", "array", "frame"],
)
def test_row_22_a_column_of_labels_is_flattened_with_a_warning(
    make: Maker, fitted: BertSequenceClassifier, column: Any
) -> None:
    with pytest.warns(DataConversionWarning, match=r"column-vector y was passed when a 1d array was expected.*ravel"):
        clf = make().fit(TEXTS, column)

    assert_array_equal(clf.predict_proba(TEXTS), fitted.predict_proba(TEXTS))


def test_row_23_one_class_is_fitted_and_predicted(make: Maker) -> None:
    clf = make().fit(TEXTS, ["fresh"] * N)

    assert clf.classes_.tolist() == ["fresh"]
    assert clf.predict(TEXTS).tolist() == ["fresh"] * N
    assert_array_equal(clf.predict_proba(TEXTS), np.ones((N, 1), dtype=np.float32))
    assert np.isfinite(clf.loss_curve_).all()


@pytest.mark.parametrize("labels", [["fresh"], ["fresh", "rotten"], ["fresh", "fresh"]])
def test_row_24_one_or_two_texts_are_fitted_without_nan(make: Maker, labels: list[str]) -> None:
    clf = make(epochs=2).fit(TEXTS[: len(labels)], labels)

    assert_probabilities(clf.predict_proba(TEXTS), (N, len(set(labels))))
    assert np.isfinite(clf.loss_curve_).all()
    assert clf.n_iter_ == 2


def test_row_25_a_class_missing_in_a_fold_gets_a_column_of_zeros(make: Maker) -> None:
    labels = ["a"] * 4 + ["b"] * 5 + ["c"] * 5
    folds = KFold(n_splits=3)
    missing = [set(labels) - {labels[row] for row in train} for train, _ in folds.split(TEXTS)]
    with pytest.warns(RuntimeWarning, match="Number of classes in training fold"):
        probabilities = cross_val_predict(make(), TEXTS, labels, cv=folds, method="predict_proba")

    assert any(missing)
    assert_probabilities(probabilities, (N, 3))
    for absent, (train, test) in zip(missing, folds.split(TEXTS), strict=True):
        clf = make().fit([TEXTS[row] for row in train], [labels[row] for row in train])
        assert clf.classes_.tolist() == sorted(set(labels) - absent)
        columns = ["abc".index(label) for label in clf.classes_]
        expected = np.zeros((len(test), 3), dtype=np.float32)
        expected[:, columns] = clf.predict_proba([TEXTS[row] for row in test])
        assert_array_equal(probabilities[test], expected)


def test_row_26_ten_thousand_classes_are_fitted(make: Maker) -> None:
    labels = np.arange(10_000)
    texts = [f"film {label}" for label in labels]
    with pytest.warns(UserWarning, match="number of unique classes is greater than 50% of the number of samples"):
        clf = make(batch_size=2000).fit(texts, labels)

    assert len(clf.classes_) == 10_000
    assert_probabilities(clf.predict_proba(texts[:50]), (50, 10_000))
    assert clf.decision_function(texts[:2]).shape == (2, 10_000)
    assert np.isfinite(clf.loss_curve_).all()
    assert len(clf.truncation_["per_class"]) == 10_000


@pytest.mark.parametrize("n_labels", [0, 1, N - 1, N + 1])
def test_row_27_labels_of_another_number_than_texts_are_refused_with_both(make: Maker, n_labels: int) -> None:
    labels = (LABELS * 2)[:n_labels]
    for y in (labels, np.array(labels), pd.Series(labels, dtype=object)):
        with pytest.raises(
            ValueError,
            match=saying(f"X has {N} texts and y has {n_labels} labels", "inconsistent", "Pass one label a text"),
        ):
            make().fit(TEXTS, y)


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ([0.0] * N, ("All values of sample_weight are zero", "at least one text needs a positive weight")),
        (with_item([1.0] * N, 3, -1.0), ("sample_weight[3] is -1.0", "finite", "none may be negative", "Use 0")),
        (with_item([1.0] * N, 3, np.nan), ("sample_weight[3] is nan", "finite", "none may be negative", "Use 0")),
        (with_item([1.0] * N, 3, np.inf), ("sample_weight[3] is inf", "finite", "none may be negative", "Use 0")),
        ([1.0] * (N - 1), (f"sample_weight.shape == ({N - 1},)", f"expected ({N},)", "pass one weight a text")),
        ([1.0] * (N + 1), (f"sample_weight.shape == ({N + 1},)", f"expected ({N},)", "pass one weight a text")),
        ([[1.0]] * N, (f"sample_weight.shape == ({N}, 1)", f"expected ({N},)", "pass one weight a text")),
    ],
    ids=["zero", "negative", "nan", "infinite", "few", "many", "column"],
)
def test_row_28_bad_weights_are_refused(make: Maker, weights: list[Any], parts: tuple[str, ...]) -> None:
    for sample_weight in (weights, np.array(weights)):
        with pytest.raises(ValueError, match=saying(*parts)):
            make().fit(TEXTS, LABELS, sample_weight=sample_weight)


def test_row_28_weights_that_are_no_numbers_are_refused_by_name(make: Maker) -> None:
    with pytest.raises((ValueError, TypeError), match="sample_weight"):
        make().fit(TEXTS, LABELS, sample_weight=["heavy"] * N)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba", "decision_function", "score"])
def test_row_29_a_classifier_that_was_not_fitted_says_so(make: Maker, method: str) -> None:
    arguments = (TEXTS, LABELS) if method == "score" else (TEXTS,)
    with pytest.raises(NotFittedError, match=saying("BertSequenceClassifier", "not fitted yet", "Call 'fit'")):
        getattr(make(), method)(*arguments)


def test_row_29_a_first_fit_that_fails_leaves_the_classifier_unfitted(make: Maker) -> None:
    clf = make()
    before = dict(vars(clf))
    with pytest.raises(ValueError, match="X is empty"):
        clf.fit([], [])

    assert vars(clf) == before
    with pytest.raises(NotFittedError):
        clf.predict(TEXTS)


FAILURES = {
    "a parameter": ({"epochs": 0}, TEXTS, LABELS, {}, ValueError),
    "a text": ({}, [*TEXTS[:-1], None], LABELS, {}, ValueError),
    "a label": ({}, TEXTS, [*LABELS[:-1], None], {}, ValueError),
    "a weight": ({}, TEXTS, LABELS, {"sample_weight": [0] * N}, ValueError),
    "a validation label": ({}, TEXTS, LABELS, {"X_val": TEXTS[:1], "y_val": ["unknown"]}, ValueError),
    "the checkpoint": ({"model": "./no/such/folder"}, TEXTS, LABELS, {}, OSError),
    "the device": ({"device": "cuda:99"}, TEXTS, LABELS, {}, ValueError),
    "the length": ({"max_length": 65}, PAIRS, ["x", "y"] * (N // 2), {}, ValueError),
    "the training": (
        {"learning_rate": 1e30, "epochs": 3, "batch_size": 2, "max_grad_norm": None},
        pd.DataFrame({"text": TEXTS}),
        ["x", "y"] * (N // 2),
        {},
        FloatingPointError,
    ),
}


@pytest.mark.parametrize(("parameters", "texts", "labels", "more", "error"), FAILURES.values(), ids=FAILURES)
def test_row_29_a_refit_that_fails_leaves_the_old_model_as_it_was(
    make: Maker, parameters: dict[str, Any], texts: Any, labels: Any, more: dict[str, Any], error: type[Exception]
) -> None:
    clf = make().fit(TEXTS, LABELS)
    expected = clf.predict_proba(TEXTS)
    clf.set_params(**parameters)
    before = dict(vars(clf))
    with pytest.raises(error):
        clf.fit(texts, labels, **more)
    after = vars(clf)

    assert after.keys() == before.keys()
    assert all(after[name] is value for name, value in before.items())
    assert_array_equal(clf.predict_proba(TEXTS), expected)
    assert clf.classes_.tolist() == ["fresh", "rotten"]


def test_row_29_a_classifier_whose_refit_failed_can_be_cloned_and_fitted_again(
    make: Maker, fitted: BertSequenceClassifier
) -> None:
    clf = make().fit(TEXTS[:2], ["fresh", "rotten"])
    with pytest.raises(ValueError, match=saying("X[1] is NoneType")):
        clf.fit(["a film", None], LABELS[:2])

    assert_array_equal(clone(clf).fit(TEXTS, LABELS).predict_proba(TEXTS), fitted.predict_proba(TEXTS))
    assert_array_equal(clf.fit(TEXTS, LABELS).predict_proba(TEXTS), fitted.predict_proba(TEXTS))
