"""The room `_targets`: labels, class weights and sample weights, and what is wrong with them."""

from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from conftest import saying
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array, csr_matrix
from sklearn.exceptions import DataConversionWarning

from bertclf._inputs import read_texts
from bertclf._targets import (
    Classes,
    label_texts,
    mean_one,
    read_class_weight,
    read_classes,
    read_labels,
    read_validation,
    read_weights,
    split,
    weigh_classes,
    without_weightless,
)

STRING = np.dtypes.StringDType()


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


@pytest.mark.parametrize(
    ("labels", "row"),
    [
        ([Decimal(1), Decimal(2)], 0),
        ([1.0, Decimal(2)], 1),
        ([1, date(2020, 1, 1)], 1),
        ([1, {"a": 1}], 1),
        ([1, 2**70], 1),
        ([-1, 2**63], 1),
        (np.array([2**63, -1], dtype=object), 0),
        (np.array([1, np.datetime64("2020-01-01")], dtype=object), 1),
        (pd.Series(pd.period_range("2020", periods=2)), 0),
    ],
    ids=[
        "Decimal",
        "float and Decimal",
        "date",
        "dict",
        "large int",
        "both signs",
        "array",
        "datetime64 and int",
        "Period",
    ],
)
def test_labels_that_numpy_has_no_type_for_are_refused_with_row_and_remedy(labels: Any, row: int) -> None:
    rule = "but labels must be str, bool, int of up to 64 bits, float or datetime64, all of one type (Unknown label"
    start = f"y[{row}] is {type(labels[row]).__name__}"
    with pytest.raises(ValueError, match=saying(start, rule, "Convert them, to str for example")):
        read_labels(labels, n_texts=2)


@pytest.mark.parametrize(
    "labels", ["ab", 3, np.int64(3), {"a": 1, "b": 2}, {"a", "b"}, {1: "a"}.values(), map(str, "ab"), iter("ab")]
)
def test_what_is_no_array_of_labels_is_refused(labels: Any) -> None:
    kind = type(labels).__name__
    with pytest.raises(ValueError, match=f"y is a {kind}, but one label a text is needed. Pass a list or an array"):
        read_labels(labels, n_texts=2)


@pytest.mark.parametrize("labels", [np.array(["a", "b"]), np.array([[1, 0], [0, 1]])])
def test_what_can_only_be_made_an_array_is_read_as_that_array(labels: npt.NDArray[Any]) -> None:
    class ArrayLike:
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
            return labels

    assert_array_equal(read_labels(ArrayLike(), n_texts=2), labels)


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
    targets = Classes(classes).encode(np.array(labels), name="y_val")

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
    assert Classes(classes).encode(labels, name="y_val").tolist() == [1, 0]


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
    with pytest.raises(
        ValueError, match=saying("y_val[1] is ", offender, "not among the classes of the training", "Drop those rows")
    ):
        Classes(classes).encode(labels, name="y_val")


@pytest.mark.parametrize("labels", [["10", "2"], [10, 2]], ids=["str", "int"])
def test_digits_are_not_the_numbers_that_they_spell(labels: list[Any]) -> None:
    classes = np.unique([2, 10]) if isinstance(labels[0], str) else np.unique(["2", "10"])
    with pytest.raises(ValueError, match=saying("y_val[0] is ", "not among the classes")):
        Classes(classes).encode(np.array(labels), name="y_val")


INDICATORS = {
    "list of lists": ([[1, 0], [0, 1]], "int64"),
    "list of tuples": ([(1, 0), (0, 1)], "int64"),
    "int8 array": (np.array([[1, 0], [0, 1]], dtype=np.int8), "int8"),
    "bool array": (np.array([[True, False], [False, True]]), "bool"),
    "whole floats": ([[1.0, 0.0], [0.0, 1.0]], "float64"),
    "object array": (np.array([[1, 0], [0, 1]], dtype=object), "int64"),
    "sparse matrix": (csr_matrix([[1, 0], [0, 1]]), "int64"),
    "sparse array": (csr_array([[True, False], [False, True]]), "bool"),
    "pandas frame": (pd.DataFrame({"a": [1, 0], "b": [0, 1]}, dtype="int32"), "int32"),
    "polars frame": (pl.DataFrame({"a": [True, False], "b": [False, True]}), "bool"),
}


@pytest.mark.parametrize(("matrix", "dtype"), INDICATORS.values(), ids=INDICATORS)
def test_a_matrix_of_zeros_and_ones_is_multilabel_and_keeps_its_dtype(matrix: Any, dtype: str) -> None:
    labels = read_labels(matrix, n_texts=2)
    classes = Classes.of(labels)

    assert labels.dtype == dtype
    assert classes.are_multilabel
    assert classes.values.tolist() == [0, 1]
    assert classes.encode(labels).dtype == np.float32
    assert classes.encode(labels).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    decoded = classes.decode(np.array([[0.5, 0.500001]], dtype=np.float32))
    assert decoded.dtype == dtype
    assert decoded.tolist() == [[0, 1]]


@pytest.mark.parametrize("matrix", [[[0, 0], [0, 0]], [[1, 1], [1, 1]]])
def test_labels_that_no_text_or_every_text_has_are_multilabel(matrix: Any) -> None:
    assert Classes.of(read_labels(matrix, n_texts=2)).are_multilabel


@pytest.mark.parametrize(
    ("matrix", "offender"),
    [
        ([[1, 0], [0, 2]], "y[1, 1] is int (2)"),
        ([[1, 0], [0, -1]], "y[1, 1] is int (-1)"),
        ([[1.0, 0.5], [0.0, 1.0]], "y[0, 1] is float (0.5)"),
        (np.array([["a", "b"], ["b", "a"]]), "y[0, 0] is str ('a')"),
        (np.array([["a", 1], ["b", 0]], dtype=object), "y[0, 0] is str ('a')"),
        (csr_matrix([[1, 0], [0, 3]]), "y[1, 1] is int (3)"),
    ],
)
def test_a_matrix_of_anything_else_is_refused_with_its_place(matrix: Any, offender: str) -> None:
    with pytest.raises(ValueError, match=saying(offender, "holds 0 and 1 alone", "multiclass-multioutput")):
        read_labels(matrix, n_texts=2)


@pytest.mark.parametrize(
    ("matrix", "missing"),
    [
        ([[1.0, np.nan], [0.0, 1.0]], "float (nan)"),
        ([[1, None], [0, 1]], "NoneType (None)"),
        (np.array([[1, None], [0, 1]], dtype=object), "NoneType (None)"),
        (pd.DataFrame({"a": [1, 0], "b": [pd.NA, 1]}, dtype="Int64"), "NAType (<NA>)"),
    ],
    ids=["nan", "list", "object array", "frame"],
)
def test_a_gap_in_a_matrix_is_refused_with_its_place(matrix: Any, missing: str) -> None:
    with pytest.raises(ValueError, match=saying(f"y[0, 1] is {missing}", "Fill the gaps")):
        read_labels(matrix, n_texts=2)


@pytest.mark.parametrize(
    "labels",
    [
        pd.Series([["a", "b"], ["a"]]),
        pd.Series([["a", "b"], ["b", "a"]]),
        pd.Series([{"a"}, {"b"}]),
        pl.Series([["a", "b"], ["a"]]),
    ],
    ids=["ragged", "even", "sets", "polars"],
)
def test_a_column_of_lists_is_refused_with_the_way_to_a_matrix(labels: Any) -> None:
    with pytest.raises(ValueError, match=saying("y[0] is ", "MultiLabelBinarizer")):
        read_labels(labels, n_texts=2)


@pytest.mark.parametrize("labels", [[["a", "b"], ["b", "a"]], [["a"], ["a", "b"]], [[], ["a"]], [{"a"}, {"a", "b"}]])
def test_lists_of_labels_are_refused_with_the_way_to_a_matrix(labels: Any) -> None:
    with pytest.raises(ValueError, match=saying("y[0] is ", "MultiLabelBinarizer")):
        read_labels(labels, n_texts=2)


@pytest.mark.parametrize("matrix", [np.zeros((2, 2, 2)), np.zeros((2, 0))])
def test_labels_of_other_shapes_are_refused(matrix: Any) -> None:
    with pytest.raises(ValueError, match=saying(f"y.shape == {matrix.shape}", "Reshape it")):
        read_labels(matrix, n_texts=2)


def test_one_label_a_text_and_many_can_not_be_exchanged() -> None:
    with pytest.raises(ValueError, match=saying("y_val is one label a text", "come from an indicator matrix")):
        Classes(np.arange(2), np.dtype(int)).encode(np.array([0, 1]), name="y_val")
    with pytest.raises(ValueError, match=saying("y_val is an indicator matrix", "come from one label a text")):
        Classes(np.arange(2)).encode(np.eye(2), name="y_val")
    with pytest.raises(ValueError, match=saying("y_val has 3 columns, but there are 2 labels")):
        Classes(np.arange(2), np.dtype(int)).encode(np.eye(3), name="y_val")


def test_classes_are_equal_whatever_the_type_of_the_matrix() -> None:
    assert Classes(np.arange(2), np.dtype(int)) == Classes(np.arange(2), np.dtype(bool))
    assert Classes(np.arange(2), np.dtype(int)) != Classes(np.arange(2))
    assert Classes(np.array(["a", "b"])) == Classes(np.array(["a", "b"], dtype=object))
    assert Classes(np.array(["a", "b"])) != Classes(np.array(["a", "c"]))
    assert Classes(np.arange(2)) != "ab"


def weights_of(class_weight: Any, labels: Any, sample_weight: Any = None) -> Any:
    array = np.asarray(labels)
    classes = Classes.of(array)
    weights = read_weights(sample_weight, n_texts=len(array))
    return read_class_weight(class_weight, classes=classes, targets=classes.encode(array), weights=weights)


def test_class_weights_of_single_labels() -> None:
    labels = ["a", "b", "b", "b"]

    assert weights_of(None, labels).tolist() == [1, 1]
    assert_allclose(weights_of("balanced", labels), [2, 2 / 3])
    assert weights_of({"a": 3, "b": 0.5}, labels).tolist() == [3, 0.5]
    assert weights_of({"b": 5}, labels).tolist() == [1, 5]
    assert weights_of({True: 2}, [True, False]).tolist() == [1, 2]
    assert weights_of({"1": 2}, ["1", "0"]).tolist() == [1, 2]


def test_class_weights_of_many_labels_are_those_of_absence_and_presence() -> None:
    labels = [[0, 1], [0, 1], [0, 1], [1, 1]]

    assert weights_of(None, labels).tolist() == [[1, 1], [1, 1]]
    assert weights_of([{1: 3}, {0: 0, 1: 2}], labels).tolist() == [[1, 0], [3, 2]]
    assert_allclose(weights_of("balanced", labels), [[2 / 3, 1], [2, 1]])


def test_balanced_weights_count_an_integer_weight_as_repetition_and_zero_as_absence() -> None:
    labels = np.array(["a", "b", "b", "b", "c"])
    repeats = np.array([3, 1, 2, 1, 0])

    weighted = weights_of("balanced", labels, repeats)
    assert_allclose(weighted[:2], weights_of("balanced", np.repeat(labels, repeats)))
    assert weighted[2] == 1


def test_a_class_that_a_fold_lacks_may_have_a_weight() -> None:
    assert weights_of({"a": 1, "b": 2, "c": 3}, ["a", "b"]).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("class_weight", "labels", "parts"),
    [
        ({"a": 2, "z": 3}, ["a", "b"], ("class_weight names 'z'", "not among the classes ['a', 'b']")),
        ({"a": "2"}, ["a", "b"], ("class_weight['a'] is str ('2')", "must be a finite number")),
        ({"a": -1}, ["a", "b"], ("class_weight['a'] is int (-1)", "zero or more")),
        ({"a": np.nan}, ["a", "b"], ("class_weight['a'] is float (nan)", "finite")),
        ({"a": 0, "b": 0}, ["a", "b"], ("class_weight is zero for all of ['a', 'b']", "at least one")),
        ([{0: 1}], [0, 1], ("class_weight is a list", "Pass a dict")),
        ({0: 1}, np.eye(2), ("class_weight is a dict, but y is a matrix of 2 columns", "one dict for each")),
        ([{0: 1}], np.eye(2), ("class_weight is a list of 1, but y is a matrix of 2 columns", "one dict for each")),
        ([{0: 1}, 3], np.eye(2), ("class_weight[1] is int (3)", "must be a dict")),
        ([{0: 1}, {2: 5}], np.eye(2), ("class_weight[1] names 2", "not among the classes [0, 1]")),
    ],
)
def test_class_weights_that_do_not_fit_are_refused(class_weight: Any, labels: Any, parts: Any) -> None:
    with pytest.raises(ValueError, match=saying(*parts)):
        weights_of(class_weight, labels)


def labelled(labels: Any, sample_weight: Any = None, class_weight: Any = None) -> Any:
    array = np.asarray(labels)
    texts = read_texts([f"text {row}" for row in range(len(array))])
    plain = label_texts(texts, array, sample_weight, classes=Classes.of(array))
    return weigh_classes(plain, weights_of(class_weight, array, sample_weight), name="X_val")


def test_the_loss_weighs_a_text_by_itself_and_by_its_class() -> None:
    assert labelled(["b", "a"], [1.0, 0.5], {"a": 2, "b": 4}).loss_weights.tolist() == [1, 0.25]
    assert labelled(["b", "a"], None, {"a": 1e308, "b": 1e308}).loss_weights.tolist() == [1, 1]

    many = labelled([[1, 0], [0, 0]], [1.0, 0.5], [{0: 1, 1: 3}, {0: 2, 1: 4}])
    assert many.loss_weights.tolist() == [[0.75, 0.5], [0.125, 0.25]]


def test_weights_that_cancel_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=saying("Every text of X_val weighs zero", "At least one text")):
        labelled(["a", "b"], [0, 1], {"a": 1, "b": 0})


def test_texts_that_weigh_nothing_are_left_out() -> None:
    some = without_weightless(labelled(["a", "b", "c", "a"], [1, 0, 2, 3], {"a": 1, "b": 1, "c": 0}))
    assert some.texts.first == ["text 0", "text 3"]
    assert some.targets.tolist() == [0, 0]
    assert some.labels.tolist() == ["a", "a"]
    assert_allclose(some.loss_weights, [1 / 3, 1])
    assert_allclose(some.weights, [1 / 3, 1])

    one_label_counts = labelled([[1, 0], [0, 0]], None, [{0: 0, 1: 1}, {0: 1, 1: 1}])
    assert without_weightless(one_label_counts) is one_label_counts


def test_texts_are_held_out_in_the_proportion_of_the_classes() -> None:
    labels = ["a"] * 80 + ["b"] * 20
    kept, held_out = split(labelled(labels, np.arange(100)), fraction=0.1, seed=0)

    assert sorted([*kept.texts.first, *held_out.texts.first]) == sorted(f"text {row}" for row in range(100))
    assert np.bincount(held_out.targets).tolist() == [8, 2]
    assert held_out.labels.tolist() == ["a"] * 8 + ["b"] * 2
    assert held_out.weights is not None
    assert [f"text {weight:.0f}" for weight in held_out.weights * 99] == held_out.texts.first


def test_pairs_stay_together_when_held_out() -> None:
    texts = read_texts([(f"first {row}", f"second {row}") for row in range(10)])
    array = np.arange(10) % 2
    _, held_out = split(label_texts(texts, array, None, classes=Classes.of(array)), fraction=0.4, seed=0)
    assert held_out.texts.as_list() == [(first, first.replace("first", "second")) for first in held_out.texts.first]
    assert held_out.weights is None


def test_texts_of_many_labels_are_held_out_at_random() -> None:
    kept, held_out = split(labelled(np.eye(10, dtype=int)), fraction=0.3, seed=0)
    assert (len(kept), len(held_out)) == (7, 3)


@pytest.mark.parametrize("labels", [[0, 0, 0, 1], [0, 1]])
def test_too_few_texts_to_hold_some_out_are_told_with_the_remedy(labels: Any) -> None:
    parts = ("validation_fraction=0.1 of ", "Pass X_val and y_val", "early_stopping=False")
    with pytest.raises(ValueError, match=saying(*parts)):
        split(labelled(labels), fraction=0.1, seed=0)


def test_no_weights_weigh_all_texts_alike() -> None:
    weights = read_weights(None, n_texts=3)

    assert weights.dtype == np.float64
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
def test_weights_come_in_every_container_of_numbers(given_weights: Any) -> None:
    weights = read_weights(given_weights, n_texts=3)

    assert weights.dtype == np.float64
    assert_allclose(weights, np.array([1, 2, 3]) / 3)


def test_one_number_weighs_all_texts_alike() -> None:
    assert read_weights(2.5, n_texts=3).tolist() == [1.0, 1.0, 1.0]


def test_zero_leaves_a_text_out() -> None:
    assert read_weights([True, False, True], n_texts=3).tolist() == [1.0, 0.0, 1.0]


@settings(deadline=None)
@given(
    st.lists(st.floats(min_value=1e-3, max_value=1e3), min_size=1), st.sampled_from([1e-307, 1e-30, 1.0, 1e30, 1e305])
)
def test_scaling_all_weights_changes_nothing(weights: list[float], scale: float) -> None:
    scaled = mean_one(read_weights(np.array(weights) * scale, n_texts=len(weights)))

    assert scaled.dtype == np.float32
    assert_allclose(scaled.mean(), 1.0, rtol=1e-5)
    assert_allclose(scaled, mean_one(read_weights(weights, n_texts=len(weights))), rtol=1e-5)


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


def test_announced_classes_are_sorted_and_checked() -> None:
    assert read_classes(["b", "a", "b"], labels=np.array(["a"])).values.tolist() == ["a", "b"]
    assert read_classes(range(2), labels=np.eye(2, dtype=bool)) == Classes(np.arange(2), np.dtype(bool))
    assert read_classes({"b", "a"}, labels=np.array(["a"])).values.tolist() == ["a", "b"]
    for wrong in (2, "ab", [], (label for label in "ab")):
        with pytest.raises(ValueError, match=saying("classes is ", "all labels are needed. Pass a list")):
            read_classes(wrong, labels=np.array(["a"]))
    with pytest.raises(ValueError, match=saying("classes[1] is NoneType")):
        read_classes(["a", None], labels=np.array(["a"]))
    with pytest.raises(ValueError, match=saying("classes is [0, 1, 2], but y is a matrix of 2 columns", "range(2)")):
        read_classes([0, 1, 2], labels=np.eye(2))


@pytest.mark.parametrize(("given_classes", "given_labels"), [(STRING, "<U3"), ("<U3", STRING), (STRING, object)])
def test_string_labels_are_found_whatever_type_of_string_they_are(given_classes: Any, given_labels: Any) -> None:
    classes = Classes(np.array(["bad", "fine"], dtype=given_classes))
    assert classes.encode(np.array(["bad"], dtype=given_labels)).tolist() == [0]
    with pytest.raises(ValueError, match=saying("y[0] is 'no', a class that is not among", "['bad', ")):
        classes.encode(np.array(["no"], dtype=given_labels))


def test_many_classes_are_quoted_in_part() -> None:
    assert Classes(np.arange(10_000)).described() == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...] (10000 labels)"
    assert Classes(np.arange(2), np.dtype(int)).described() == "2 columns of an indicator matrix"


def test_validation_texts_in_other_columns_are_refused() -> None:
    frame = pd.DataFrame({"question": ["a"], "answer": ["b"]})
    like, classes = read_texts(frame), Classes(np.array(["yes"]))
    with pytest.raises(ValueError, match=saying("X_val has the columns ['answer', 'question'], but X has ['question'")):
        read_validation(
            frame[["answer", "question"]], ["yes"], None, like=like, classes=classes, class_weights=np.ones(1)
        )
