"""The room `_inputs`: containers of texts, labels and weights, and what is wrong with them."""

import re
from collections import OrderedDict, deque
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_matrix
from sklearn.exceptions import DataConversionWarning

from bertclf._inputs import read_labels, read_texts, read_weights, targets_of

WORDS = ["a fine film", "dull", "", " two  spaces\n", "naïve 漢字 😀"]
OTHERS = ["one", "two", "three", "four", "five"]
PAIRS = list(zip(WORDS, OTHERS, strict=True))
STRING = np.dtypes.StringDType()


def saying(*parts: str) -> str:
    """Return a pattern that finds these parts in this order."""
    return "(?s)" + ".*".join(re.escape(part) for part in parts)


def object_array(items: list[Any]) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


ONE_DIMENSIONAL = {
    "list": WORDS,
    "tuple": tuple(WORDS),
    "deque": deque(WORDS),
    "fixed-width array": np.array(WORDS),
    "object array": np.array(WORDS, dtype=object),
    "StringDType array": np.array(WORDS, dtype=STRING),
    "object Series": pd.Series(WORDS, dtype=object),
    "string Series": pd.Series(WORDS, dtype="string"),
    "category Series": pd.Series(WORDS, dtype="category"),
    "Arrow-backed Series": pd.Series(WORDS, dtype=pd.ArrowDtype(pa.string())),
    "Series with a shuffled index": pd.Series(WORDS, index=[3, 1, 4, 0, 2]),
    "Series with a duplicated index": pd.Series(WORDS, index=[0] * len(WORDS)),
    "pandas Index": pd.Index(WORDS),
    "polars Series": pl.Series(WORDS),
    "polars categorical Series": pl.Series(WORDS, dtype=pl.Categorical),
    "Arrow array": pa.array(WORDS),
    "Arrow large strings": pa.array(WORDS, pa.large_string()),
    "Arrow dictionary": pa.array(WORDS).dictionary_encode(),
    "Arrow chunked array": pa.chunked_array([WORDS[:2], WORDS[2:]]),
    "Hugging Face column": Dataset.from_dict({"text": WORDS})["text"],
}
ONE_COLUMN = {
    "list of lists": [[text] for text in WORDS],
    "list of tuples": [(text,) for text in WORDS],
    "array": np.array(WORDS, dtype=object)[:, None],
    "fixed-width array": np.array(WORDS)[:, None],
    "StringDType array": np.array(WORDS, dtype=STRING)[:, None],
    "pandas frame": pd.DataFrame({"text": WORDS}),
    "polars frame": pl.DataFrame({"text": WORDS}),
    "Arrow table": pa.table({"text": WORDS}),
}
TWO_COLUMNS = {
    "list of tuples": PAIRS,
    "list of lists": [list(pair) for pair in PAIRS],
    "list of arrays": [np.array(pair, dtype=object) for pair in PAIRS],
    "tuple of tuples": tuple(PAIRS),
    "array": np.array(PAIRS, dtype=object),
    "fixed-width array": np.array(PAIRS),
    "array of tuples": object_array(PAIRS),
    "Series of tuples": pd.Series(PAIRS),
    "polars Series of lists": pl.Series([list(pair) for pair in PAIRS]),
    "Hugging Face column of lists": Dataset.from_dict({"pair": [list(pair) for pair in PAIRS]})["pair"],
    "pandas frame": pd.DataFrame(PAIRS, columns=["first", "second"]),
    "polars frame": pl.DataFrame({"first": WORDS, "second": OTHERS}),
    "Arrow table": pa.table({"first": WORDS, "second": OTHERS}),
}
MISSING = {"None": None, "nan": float("nan"), "numpy nan": np.float32("nan"), "NA": pd.NA, "NaT": pd.NaT}


@pytest.mark.parametrize("container", ONE_DIMENSIONAL.values(), ids=ONE_DIMENSIONAL)
def test_one_dimensional_containers_give_the_texts_by_position(container: Any) -> None:
    texts = read_texts(container)

    assert texts.first == WORDS
    assert texts.second is None
    assert texts.n_columns is None
    assert texts.column_names is None
    assert not texts.are_pairs
    assert len(texts) == len(WORDS)


@pytest.mark.parametrize("container", ONE_COLUMN.values(), ids=ONE_COLUMN)
def test_one_column_gives_single_texts_and_its_count(container: Any) -> None:
    texts = read_texts(container)

    assert texts.first == WORDS
    assert texts.second is None
    assert texts.n_columns == 1


@pytest.mark.parametrize("container", TWO_COLUMNS.values(), ids=TWO_COLUMNS)
def test_two_columns_give_pairs(container: Any) -> None:
    texts = read_texts(container)

    assert texts.first == WORDS
    assert texts.second == OTHERS
    assert texts.n_columns == 2
    assert texts.are_pairs
    assert len(texts) == len(WORDS)


@pytest.mark.parametrize("name", ["pandas frame", "polars frame", "Arrow table"])
def test_frames_give_the_names_of_their_columns(name: str) -> None:
    assert_array_equal(read_texts(ONE_COLUMN[name]).column_names, ["text"])
    assert_array_equal(read_texts(TWO_COLUMNS[name]).column_names, ["first", "second"])


@pytest.mark.parametrize("names", [[0, 1], ["text", 1], [("a", "b"), ("a", "c")]])
def test_names_that_are_not_all_strings_are_no_names(names: list[Any]) -> None:
    texts = read_texts(pd.DataFrame(PAIRS, columns=pd.Index(names, tupleize_cols=False)))

    assert texts.second == OTHERS
    assert texts.column_names is None


def test_texts_of_a_list_are_not_copied() -> None:
    texts = ["a text that is long enough not to be interned", "b" * 1000]

    assert all(read is given for read, given in zip(read_texts(texts).first, texts, strict=True))


@settings(deadline=None)
@given(st.lists(st.text(), min_size=1))
def test_every_valid_text_passes_unchanged(texts: list[str]) -> None:
    assert read_texts(texts).first == texts
    assert read_texts(object_array(texts)).first == texts


@settings(deadline=None)
@given(st.text(max_size=50), st.characters(categories=["Cs"]), st.text(max_size=50))
def test_every_lone_surrogate_is_found_where_it_stands(before: str, surrogate: str, after: str) -> None:
    with pytest.raises(ValueError, match=rf"^X\[1\] is .*a lone surrogate at character {len(before)}, .*must be valid"):
        read_texts(["fine", before + surrogate + after])


@pytest.mark.parametrize("text", ["one text", "", np.str_("one text")])
def test_one_str_is_refused_in_the_words_of_the_vectorizers(text: str) -> None:
    rule = "Iterable over raw text documents expected, string object received."
    with pytest.raises(ValueError, match=saying(rule, "X is one str", "Pass [text]")):
        read_texts(text)


@pytest.mark.parametrize(
    "container",
    [
        [],
        (),
        np.array([], dtype=object),
        np.empty((0, 2), dtype=object),
        pd.Series([], dtype=object),
        pd.DataFrame({"text": []}),
        pl.Series([], dtype=pl.String),
        pl.DataFrame({"text": []}),
        pa.array([], pa.string()),
    ],
    ids=lambda container: f"{type(container).__module__}.{type(container).__name__}",
)
def test_an_empty_container_is_refused(container: Any) -> None:
    with pytest.raises(ValueError, match=saying("0 sample(s)", "X is empty", "at least one text is required")):
        read_texts(container)


@pytest.mark.parametrize("row", [0, 2, 4])
@pytest.mark.parametrize("missing", MISSING.values(), ids=MISSING)
def test_a_missing_text_is_refused_with_its_row(missing: Any, row: int) -> None:
    texts: list[Any] = list(WORDS)
    texts[row] = missing
    for container in (texts, tuple(texts), object_array(texts), pd.Series(texts, dtype=object)):
        with pytest.raises(
            ValueError,
            match=saying(f"X[{row}] is {type(missing).__name__}", "must be a str", "Replace missing texts by ''"),
        ):
            read_texts(container)


@pytest.mark.parametrize(
    "container",
    [
        pd.Series(["a", None], dtype="string"),
        pd.Series(["a", None], dtype="category"),
        pd.Series(["a", None]),
        pl.Series(["a", None]),
        pa.array(["a", None]),
        pa.chunked_array([["a"], [None]]),
        np.array(["a", np.nan], dtype=np.dtypes.StringDType(na_object=np.nan)),
        pd.DataFrame({"text": ["a", None]}),
        pl.DataFrame({"text": ["a", None]}),
    ],
    ids=["string", "category", "default", "polars", "Arrow", "chunked", "StringDType", "frame", "polars frame"],
)
def test_a_missing_text_is_found_in_every_container(container: Any) -> None:
    with pytest.raises(ValueError, match=saying("X[1] is ", "Replace missing texts by ''")):
        read_texts(container)


@pytest.mark.parametrize("column", [0, 1])
def test_a_missing_text_of_a_pair_is_refused_with_row_and_column(column: int) -> None:
    frame = pd.DataFrame(PAIRS, columns=["first", "second"])
    frame.iloc[3, column] = None
    for container in (frame, frame.to_numpy(), frame.to_numpy().tolist()):
        with pytest.raises(ValueError, match=saying(f"X[3, {column}] is ", "Replace missing texts by ''")):
            read_texts(container)


@pytest.mark.parametrize("row", [0, 2, 4])
@pytest.mark.parametrize("missing", MISSING.values(), ids=MISSING)
def test_a_missing_pair_is_refused_with_its_row(missing: Any, row: int) -> None:
    pairs: list[Any] = list(PAIRS)
    pairs[row] = missing
    with pytest.raises(ValueError, match=saying(f"X[{row}] is {type(missing).__name__}", "Replace missing")):
        read_texts(pairs)


@pytest.mark.parametrize(
    "item", [1, 2.5, True, ["nested"], {"text": "a"}, object], ids=lambda item: type(item).__name__
)
def test_an_item_that_is_no_text_is_refused_with_its_row_and_type(item: Any) -> None:
    with pytest.raises(
        TypeError, match=saying(f"X[1] is {type(item).__name__}", "every text must be a str", "Convert")
    ):
        read_texts(["text", item])


@pytest.mark.parametrize("container", [[1, 2], np.array([[1.5], [2.5]]), pd.Series([1, 2]), pl.Series([True, False])])
def test_numbers_are_never_turned_into_texts(container: Any) -> None:
    with pytest.raises(TypeError, match=saying("X[0] is ", "every text must be a str", "Convert it yourself")):
        read_texts(container)


@pytest.mark.parametrize("item", [b"raw", bytearray(b"raw"), np.bytes_(b"raw")], ids=["bytes", "bytearray", "numpy"])
def test_bytes_are_refused_with_the_advice_to_decode(item: Any) -> None:
    with pytest.raises(TypeError, match=saying("X[1] is ", "raw", "every text must be a str", "Decode it first")):
        read_texts(["text", item])


def test_an_array_of_bytes_is_refused_with_the_advice_to_decode() -> None:
    with pytest.raises(TypeError, match=saying("X[0] is bytes (b'raw')", "Decode it first")):
        read_texts(np.array([b"raw", b"more"]))


def test_a_long_offender_is_quoted_in_at_most_forty_characters() -> None:
    with pytest.raises(TypeError) as caught:
        read_texts([10**100])
    quote = re.search(r"\((.*?)\)", str(caught.value))

    assert quote is not None
    assert len(quote[1]) == 40
    assert quote[1].endswith("...")


@pytest.mark.parametrize(
    ("container", "kind"),
    [
        ((text for text in WORDS), "generator"),
        (map(str, WORDS), "map"),
        (iter(WORDS), "list_iterator"),
        (set(WORDS), "set"),
        (frozenset(WORDS), "frozenset"),
        (dict.fromkeys(WORDS), "dict"),
        (OrderedDict(text="a").values(), "odict_values"),
        (b"bytes", "bytes"),
        (None, "NoneType"),
        (5, "int"),
        (float("nan"), "float"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_sequence_is_refused_with_its_type(container: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=saying(f"X is a {kind}", "sequence of texts with a length", "Pass list(X)")):
        read_texts(container)


def test_a_sparse_matrix_is_refused() -> None:
    with pytest.raises(TypeError, match=saying("X is a sparse csr_matrix", "texts are needed", "Pass the raw texts")):
        read_texts(csr_matrix([[1.0], [2.0]]))


@pytest.mark.parametrize(
    "container",
    [
        [("a", "b", "c")],
        np.array([["a", "b", "c"]]),
        pd.DataFrame([["a", "b", "c"]]),
        pl.DataFrame({"a": ["a"], "b": ["b"], "c": ["c"]}),
    ],
    ids=["tuples", "array", "pandas", "polars"],
)
def test_three_columns_are_refused(container: Any) -> None:
    with pytest.raises(ValueError, match=saying("X has 3 columns", "one, or two for pairs", "Select the columns")):
        read_texts(container)


def test_no_column_is_refused() -> None:
    with pytest.raises(ValueError, match=saying("X has 0 columns", "one, or two for pairs")):
        read_texts(pd.DataFrame(index=[0, 1]))


@pytest.mark.parametrize("array", [np.array("a"), np.array([[["a"]]])], ids=["no dimension", "three dimensions"])
def test_arrays_of_other_than_one_or_two_dimensions_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=saying(f"X has {array.ndim} dimensions", "1 or 2", "Pass X.ravel()")):
        read_texts(array)


def test_rows_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match=saying("X[1] has 1 items", "X[0] has 2", "same length")):
        read_texts([("a", "b"), ("c",)])


def test_a_single_text_among_pairs_is_refused() -> None:
    with pytest.raises(TypeError, match=saying("X[1] is str ('c')", "X[0] is a row of 2", "not both")):
        read_texts([("a", "b"), "c"])


def test_a_pair_among_single_texts_is_refused() -> None:
    with pytest.raises(TypeError, match=saying("X[1] is tuple", "every text must be a str")):
        read_texts(["c", ("a", "b")])


@pytest.mark.parametrize("container", ["text", [], ["a", None], [1], [("a", "b", "c")], None, ["\ud800"]])
def test_errors_call_the_container_by_its_name(container: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="X_val"):
        read_texts(container, name="X_val")


def test_the_container_of_texts_is_left_as_it_was() -> None:
    pairs = [list(pair) for pair in PAIRS]
    array = np.array(PAIRS, dtype=object)
    array.flags.writeable = False
    read_texts(pairs)
    read_texts(array)

    assert pairs == [list(pair) for pair in PAIRS]
    assert array.tolist() == pairs


LABELS = {
    "str": (["b", "a"], ["b", "a"], "<U1"),
    "int": ((2, 1), [2, 1], "int64"),
    "bool": ([True, False], [True, False], "bool"),
    "whole floats": ([1.0, 2.0], [1.0, 2.0], "float64"),
    "int8 array": (np.array([2, 1], dtype=np.int8), [2, 1], "int8"),
    "list of numpy ints": ([np.int8(2), np.int8(1)], [2, 1], "int8"),
    "object array": (np.array(["b", "a"], dtype=object), ["b", "a"], "object"),
    "StringDType array": (np.array(["b", "a"], dtype=STRING), ["b", "a"], STRING),
    "Series": (pd.Series(["b", "a"], index=[7, 7]), ["b", "a"], "object"),
    "string Series": (pd.Series(["b", "a"], dtype="string"), ["b", "a"], "object"),
    "category Series": (pd.Series(["b", "a"], dtype="category"), ["b", "a"], "object"),
    "category Series of ints": (pd.Series([2, 1], dtype="int8").astype("category"), [2, 1], "int8"),
    "polars Series": (pl.Series([True, False]), [True, False], "bool"),
    "Arrow array": (pa.array(["b", "a"]), ["b", "a"], "object"),
    "Arrow chunked array": (pa.chunked_array([["b"], ["a"]]), ["b", "a"], "object"),
}


@pytest.mark.parametrize(("given_labels", "expected", "dtype"), LABELS.values(), ids=LABELS)
def test_labels_keep_their_values_and_dtype(given_labels: Any, expected: list[Any], dtype: Any) -> None:
    labels = read_labels(given_labels, n_texts=2)

    assert labels.dtype == np.dtype(dtype)
    assert labels.tolist() == expected


@pytest.mark.parametrize(
    "column",
    [
        [["a"], ["b"]],
        np.array([["a"], ["b"]]),
        pd.DataFrame({"label": ["a", "b"]}),
        pl.DataFrame({"label": ["a", "b"]}),
    ],
    ids=["list", "array", "pandas", "polars"],
)
def test_a_column_of_labels_is_flattened_with_a_warning(column: Any) -> None:
    with pytest.warns(DataConversionWarning, match="column-vector y"):
        labels = read_labels(column, n_texts=2)

    assert labels.tolist() == ["a", "b"]


def test_no_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=saying("requires y to be passed")):
        read_labels(None, n_texts=2)


@pytest.mark.parametrize(
    "labels",
    [
        ["a", None],
        ["a", float("nan")],
        [1, float("nan")],
        [1, pd.NA],
        [1, pd.NaT],
        (1, None),
        np.array([1.0, np.nan]),
        np.array(["a", None], dtype=object),
        np.array(["2020", "NaT"], dtype="datetime64[D]"),
        pd.Series(["a", None]),
        pd.Series(["a", None], dtype="string"),
        pd.Series(["a", None], dtype="category"),
        pd.Series([1, None], dtype="Int64"),
        pl.Series(["a", None]),
        pl.Series([1, None]),
        pa.array(["a", None]),
    ],
    ids=lambda labels: f"{type(labels).__module__}.{type(labels).__name__} {getattr(labels, 'dtype', labels)}",
)
def test_a_missing_label_is_refused_with_its_row(labels: Any) -> None:
    with pytest.raises(ValueError, match=saying("y[1] is ", "every text needs a label", "Drop the texts without one")):
        read_labels(labels, n_texts=2)


def test_an_infinite_label_is_refused_with_its_row() -> None:
    with pytest.raises(ValueError, match=saying("y[1] is inf")):
        read_labels(np.array([1.0, np.inf]), n_texts=2)


@pytest.mark.parametrize(
    "labels",
    [
        [b"a", b"b"],
        np.array([b"a", b"b"]),
        np.array([b"a", b"b"], dtype=object),
        pd.Series([b"a", b"b"]),
        ["a", b"b"],
    ],
    ids=["list", "array", "object array", "Series", "mixed"],
)
def test_bytes_as_labels_are_refused_with_the_advice_to_decode(labels: Any) -> None:
    with pytest.raises(TypeError, match=saying("y", "bytes", "Decode")):
        read_labels(labels, n_texts=2)


@pytest.mark.parametrize(
    "labels",
    [
        [1, "a"],
        ["a", 1],
        [True, "a"],
        ("a", 1.5),
        np.array([1, "a"], dtype=object),
        pd.Series(["a", 1]),
    ],
    ids=["list", "str first", "bool", "tuple", "object array", "Series"],
)
def test_labels_of_mixed_types_are_refused_with_row_and_types(labels: Any) -> None:
    with pytest.raises(ValueError, match=saying("y[1] is ", "but y[0] is ", "one type that sorts", "Convert them all")):
        read_labels(labels, n_texts=2)


@pytest.mark.parametrize("labels", [[0.5, 1.2], np.array([0.5, 1.2]), pd.Series([0.5, 1.2])])
def test_continuous_labels_are_refused_in_the_words_of_scikit_learn(labels: Any) -> None:
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        read_labels(labels, n_texts=2)


@pytest.mark.parametrize("labels", ["ab", 3, {"a": 1, "b": 2}, {"a", "b"}])
def test_what_is_no_array_of_labels_is_refused(labels: Any) -> None:
    kind = type(labels).__name__
    with pytest.raises(ValueError, match=f"y is a {kind}, but one label a text is needed. Pass a list or an array"):
        read_labels(labels, n_texts=2)


def test_a_generator_of_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="y should be a 1d array"):
        read_labels((label for label in "ab"), n_texts=2)


def test_sparse_labels_are_refused() -> None:
    with pytest.raises(TypeError, match="Sparse data was passed for y"):
        read_labels(csr_matrix([[1], [2]]), n_texts=2)


@pytest.mark.parametrize("n_labels", [0, 1, 3])
def test_labels_of_another_number_than_the_texts_are_refused_with_both_numbers(n_labels: int) -> None:
    with pytest.raises(ValueError, match=saying("X has 2 texts", f"y has {n_labels} labels", "Pass one label a text")):
        read_labels(["a"] * n_labels, n_texts=2)


def test_errors_call_labels_and_texts_by_their_names() -> None:
    with pytest.raises(ValueError, match=saying("X_val has 2 texts", "y_val has 1 labels")):
        read_labels(["a"], n_texts=2, name="y_val", texts_name="X_val")
    with pytest.raises(ValueError, match=saying("y_val[0] is NoneType")):
        read_labels([None, "a"], n_texts=2, name="y_val", texts_name="X_val")


@settings(deadline=None)
@given(st.lists(st.sampled_from(["b", "a", "cc", "d", ""]), min_size=1))
def test_targets_are_positions_among_the_sorted_classes(labels: list[str]) -> None:
    classes = np.array(["", "a", "b", "cc", "d"])
    targets = targets_of(np.array(labels), classes, name="y_val")

    assert targets.dtype == np.int64
    assert classes[targets].tolist() == labels


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.array(["b", "a"], dtype=object), np.array(["a", "b"])),
        (np.array(["b", "a"]), np.array(["a", "b"], dtype=object)),
        (np.array([2.0, 1.0]), np.array([1, 2], dtype=np.int8)),
        (np.array([1, 0]), np.array([False, True])),
    ],
    ids=["object labels", "object classes", "floats", "bools"],
)
def test_targets_are_found_across_dtypes_of_equal_labels(labels: np.ndarray, classes: np.ndarray) -> None:
    assert targets_of(labels, classes, name="y_val").tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "classes", "offender"),
    [
        (np.array(["a", "c"]), np.array(["a", "b"]), "'c'"),
        (np.array([2, 3]), np.array([1, 2]), "3"),
        (np.array(["a", "2"], dtype=object), np.array(["a", "b"], dtype=object), "'2'"),
    ],
    ids=["str", "int", "object"],
)
def test_a_label_of_no_class_is_refused_with_its_row(labels: np.ndarray, classes: np.ndarray, offender: str) -> None:
    with pytest.raises(ValueError, match=saying("y_val[1] is ", offender, "y does not hold", "Drop those rows")):
        targets_of(labels, classes, name="y_val")


@pytest.mark.parametrize("labels", [["10", "2"], [10, 2]], ids=["str", "int"])
def test_digits_are_not_the_numbers_that_they_spell(labels: list[Any]) -> None:
    classes = np.unique([2, 10]) if isinstance(labels[0], str) else np.unique(["2", "10"])
    with pytest.raises(ValueError, match=saying("y_val[0] is ", "y does not hold")):
        targets_of(np.array(labels), classes, name="y_val")


def test_no_weights_weigh_all_texts_alike() -> None:
    weights = read_weights(None, n_texts=3)

    assert weights.dtype == np.float32
    assert weights.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "given_weights",
    [
        [1, 2, 3],
        (2.0, 4.0, 6.0),
        np.array([1, 2, 3], dtype=np.int8),
        np.array([1, 2, 3], dtype=np.float16),
        pd.Series([1, 2, 3], index=[2, 0, 1]),
        pd.Series([1, 2, 3], dtype="Int64"),
        pl.Series([1, 2, 3]),
        pa.array([1, 2, 3]),
    ],
    ids=["list", "tuple", "int8", "float16", "Series", "Int64", "polars", "Arrow"],
)
def test_weights_are_scaled_to_a_mean_of_one(given_weights: Any) -> None:
    weights = read_weights(given_weights, n_texts=3)

    assert weights.dtype == np.float32
    assert weights.tolist() == [0.5, 1.0, 1.5]


def test_one_number_weighs_all_texts_alike() -> None:
    assert read_weights(2.5, n_texts=3).tolist() == [1.0, 1.0, 1.0]


def test_zero_leaves_a_text_out() -> None:
    assert read_weights([True, False, True], n_texts=3).tolist() == [1.5, 0.0, 1.5]


@settings(deadline=None)
@given(
    st.lists(st.floats(min_value=1e-3, max_value=1e3), min_size=1), st.sampled_from([1e-307, 1e-30, 1.0, 1e30, 1e305])
)
def test_scaling_all_weights_changes_nothing(weights: list[float], scale: float) -> None:
    read = read_weights(np.array(weights) * scale, n_texts=len(weights))

    assert_allclose(read.mean(), 1.0, rtol=1e-5)
    assert_allclose(read, read_weights(weights, n_texts=len(weights)), rtol=1e-5)


@pytest.mark.parametrize("weights", [[0, 0, 0], [0.0, -0.0, 0.0], 0, [False] * 3])
def test_weights_that_are_all_zero_are_refused(weights: Any) -> None:
    with pytest.raises(ValueError, match=saying("sample_weight", "zero", "at least one text needs a positive weight")):
        read_weights(weights, n_texts=3)


@pytest.mark.parametrize("bad", [-1.0, -1e-9, np.nan, np.inf, -np.inf, None, pd.NA])
def test_a_weight_that_is_negative_or_not_finite_is_refused_with_its_row(bad: Any) -> None:
    weights = pd.Series([1.0, bad, 1.0], dtype="Float64") if bad is pd.NA else [1.0, bad, 1.0]
    with pytest.raises(ValueError, match=saying("sample_weight[1] is ", "finite", "negative", "Use 0 to leave")):
        read_weights(weights, n_texts=3)


@pytest.mark.parametrize("weights", [[1, 2], [1, 2, 3, 4], [[1], [2], [3]], []], ids=["few", "many", "column", "none"])
def test_weights_of_another_shape_than_the_texts_are_refused_with_both_shapes(weights: Any) -> None:
    shape = np.asarray(weights).shape
    with pytest.raises(ValueError, match=saying(f"sample_weight.shape == {shape}, expected (3,)", "one weight a text")):
        read_weights(weights, n_texts=3)


@pytest.mark.parametrize("weights", [["a", "b", "c"], "abc", [1, "b", 2]], ids=["list", "str", "mixed"])
def test_weights_that_are_no_numbers_are_refused_by_name(weights: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="sample_weight"):
        read_weights(weights, n_texts=3)


def test_weights_are_left_as_they_were() -> None:
    given_weights = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    weights = read_weights(given_weights, n_texts=3)

    assert given_weights.tolist() == [1.0, 2.0, 3.0]
    assert not np.shares_memory(weights, given_weights)
