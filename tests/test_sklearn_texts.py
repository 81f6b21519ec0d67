"""What scikit-learn checks with numbers, on raw texts: containers, columns, order, refits, and what must not change."""

import re
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from conftest import LABELS, TEXTS
from containers import CONTAINERS, PAIRS, SECOND, STRING
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError

from bertclf import BertSequenceClassifier

N = len(TEXTS)
INDICATOR = np.array([[row % 2, row % 3 == 0, 1] for row in range(N)], dtype=np.int8)
THREE = [f"class {row % 3}" for row in range(N)]
SINGLES = {name: container for name, container in CONTAINERS.items() if name != "two-column frame"}
PAIRED = {
    "list of pairs": PAIRS,
    "(n, 2) array": np.array(PAIRS, dtype=object),
    "(n, 2) StringDType array": np.array(PAIRS, dtype=STRING),
    "two-column frame": CONTAINERS["two-column frame"],
    "two-column polars frame": pl.DataFrame({"text": TEXTS, "reply": SECOND}),
}
METHODS = ["predict", "predict_proba", "predict_log_proba", "decision_function"]


@pytest.fixture(scope="module")
def make(spread_checkpoint: Path) -> Callable[..., BertSequenceClassifier]:
    """A function that makes an unfitted classifier that learns in few epochs."""
    defaults = {"epochs": 2, "learning_rate": 1e-2, "precision": "float32", "device": "cpu", "random_state": 0}
    return lambda **parameters: BertSequenceClassifier(spread_checkpoint, **(defaults | parameters))


@pytest.fixture(scope="module")
def fitted(make) -> BertSequenceClassifier:
    return make(epochs=20).fit(TEXTS, LABELS)


@pytest.fixture(scope="module")
def fitted_on_pairs(make) -> BertSequenceClassifier:
    return make().fit(PAIRS, LABELS)


@pytest.fixture(scope="module")
def fitted_on_columns(make) -> BertSequenceClassifier:
    return make().fit(CONTAINERS["two-column frame"], LABELS)


@pytest.fixture(scope="module")
def fitted_on_many_labels(make) -> BertSequenceClassifier:
    return make().fit(TEXTS, INDICATOR)


@pytest.mark.parametrize("container", SINGLES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_same_for_every_container(fitted, method, container):
    assert_array_equal(getattr(fitted, method)(SINGLES[container]), getattr(fitted, method)(TEXTS))


@pytest.mark.parametrize("container", SINGLES)
def test_the_score_is_the_same_for_every_container(fitted, container):
    assert fitted.score(SINGLES[container], LABELS) == fitted.score(TEXTS, LABELS) > 0.5


@pytest.mark.parametrize("container", PAIRED)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_same_for_every_container_of_pairs(
    fitted_on_pairs, fitted_on_columns, method, container
):
    clf = fitted_on_columns if "frame" in container else fitted_on_pairs
    assert_array_equal(getattr(clf, method)(PAIRED[container]), getattr(fitted_on_pairs, method)(PAIRS))


@pytest.mark.parametrize("container", SINGLES)
def test_many_labels_are_learnt_from_every_container(make, fitted_on_many_labels, container):
    clf = make().fit(SINGLES[container], INDICATOR)
    assert_array_equal(clf.predict_proba(TEXTS), fitted_on_many_labels.predict_proba(TEXTS))


@pytest.mark.parametrize("container", SINGLES)
def test_partial_fit_learns_the_same_from_every_container(make, container):
    clf, other = (make().partial_fit(X, LABELS, classes=["fresh", "rotten"]) for X in (SINGLES[container], TEXTS))
    clf, other = (one.partial_fit(X, LABELS) for one, X in ((clf, SINGLES[container]), (other, TEXTS)))
    assert_array_equal(clf.predict_proba(TEXTS), other.predict_proba(TEXTS))


@pytest.mark.parametrize("container", SINGLES)
def test_validation_texts_come_in_every_container(make, container):
    measured = make().fit(TEXTS, LABELS, X_val=SINGLES[container], y_val=LABELS).history_
    expected = make().fit(TEXTS, LABELS, X_val=TEXTS, y_val=LABELS).history_
    assert [row["validation_loss"] for row in measured] == [row["validation_loss"] for row in expected]


@pytest.mark.parametrize("container", PAIRED)
@pytest.mark.parametrize("method", METHODS)
def test_no_method_of_a_classifier_of_texts_takes_pairs(fitted, method, container):
    with pytest.raises(ValueError, match=r"X has 2 text\(s\) a row, but BertSequenceClassifier was fitted on 1"):
        getattr(fitted, method)(PAIRED[container])


@pytest.mark.parametrize("container", SINGLES)
@pytest.mark.parametrize("method", METHODS)
def test_no_method_of_a_classifier_of_pairs_takes_texts(fitted_on_pairs, method, container):
    with pytest.raises(ValueError, match=r"X has 1 text\(s\) a row, but BertSequenceClassifier was fitted on 2"):
        getattr(fitted_on_pairs, method)(SINGLES[container])


@pytest.mark.parametrize("container", SINGLES | PAIRED)
def test_what_a_fit_tells_of_the_columns(make, container):
    X = (SINGLES | PAIRED)[container]
    clf = make(epochs=1).fit(X, LABELS)
    columns = {"(n, 1) array": 1, "one-column frame": 1, "polars frame": 1} | dict.fromkeys(PAIRED, 2)
    names = ["text", "reply"][: columns.get(container, 0)] if "frame" in container else None
    assert getattr(clf, "n_features_in_", None) == columns.get(container)
    assert (clf.feature_names_in_.tolist() if hasattr(clf, "feature_names_in_") else None) == names


FRAMES = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "Arrow": pa.table}
WRONG_COLUMNS = {
    "reordered": ({"reply": SECOND, "text": TEXTS}, "Feature names must be in the same order as they were in fit"),
    "renamed": ({"text": TEXTS, "answer": SECOND}, "Feature names unseen at fit time:\n- answer\nFeature names seen"),
    "missing": ({"text": TEXTS}, r"X has 1 text\(s\) a row, but BertSequenceClassifier was fitted on 2"),
    "too many": ({"text": TEXTS, "reply": SECOND, "more": TEXTS}, "X has 3 columns, but a table of texts has one"),
}


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("wrong", WRONG_COLUMNS)
@pytest.mark.parametrize("method", [*METHODS, "score", "partial_fit"])
def test_columns_that_are_not_those_of_fit_are_refused(fitted_on_columns, frame, wrong, method):
    columns, message = WRONG_COLUMNS[wrong]
    arguments = (LABELS,) if method in ("score", "partial_fit") else ()
    with pytest.raises(ValueError, match=message):
        getattr(fitted_on_columns, method)(FRAMES[frame](columns), *arguments)


@pytest.mark.parametrize("frame", FRAMES)
def test_columns_of_another_library_under_the_same_names_are_taken(fitted_on_columns, frame):
    X = FRAMES[frame]({"text": TEXTS, "reply": SECOND})
    expected = fitted_on_columns.predict_proba(CONTAINERS["two-column frame"])
    assert_array_equal(fitted_on_columns.predict_proba(X), expected)


def test_a_table_without_names_where_there_were_names_warns_as_in_scikit_learn(fitted_on_columns):
    with pytest.warns(UserWarning, match="X does not have valid feature names, but BertSequenceClassifier was fitted"):
        fitted_on_columns.predict(PAIRED["(n, 2) array"])


def test_names_where_there_were_none_warn_as_in_scikit_learn(fitted_on_pairs):
    with pytest.warns(UserWarning, match="X has feature names, but BertSequenceClassifier was fitted without"):
        fitted_on_pairs.predict(PAIRED["two-column frame"])


def test_texts_without_columns_need_no_names(make):
    clf = make(epochs=1).fit(pd.DataFrame({"text": TEXTS}), LABELS)
    assert_array_equal(clf.predict_proba(pd.Series(TEXTS, name="other")), clf.predict_proba(pl.Series(TEXTS)))


@pytest.mark.parametrize("method", METHODS)
def test_a_text_gives_the_same_in_any_company(fitted, method):
    long, strange = "a good film " * 30, ["", "joy", "?" * 200, "漢字 😀"]
    company = [*TEXTS, long, *strange, *TEXTS]
    together = getattr(fitted, method)(company)
    alone = np.concatenate([getattr(fitted, method)([text]) for text in company])
    order = np.random.default_rng(0).permutation(len(company))
    shuffled = getattr(fitted, method)([company[row] for row in order])
    subset = getattr(fitted, method)(company[5:9])
    for given_, expected in ((alone, together), (shuffled, together[order]), (subset, together[5:9])):
        if method == "predict":
            assert_array_equal(given_, expected)
        else:
            assert_allclose(given_, expected, rtol=1e-4, atol=1e-6)


FITS = {
    "texts": lambda clf: clf.fit(TEXTS, LABELS),
    "a frame": lambda clf: clf.fit(CONTAINERS["one-column frame"], LABELS),
    "an array": lambda clf: clf.fit(CONTAINERS["(n, 1) array"], LABELS),
    "pairs": lambda clf: clf.fit(CONTAINERS["two-column frame"], LABELS),
    "three classes": lambda clf: clf.fit(TEXTS, THREE),
    "many labels": lambda clf: clf.fit(TEXTS, INDICATOR),
    "early stopping": lambda clf: clf.set_params(early_stopping=True, validation_fraction=0.3).fit(TEXTS, LABELS),
}


@pytest.mark.parametrize("second", FITS)
@pytest.mark.parametrize("first", [*FITS, "in parts"])
def test_a_fit_forgets_the_fit_before(make, first, second):
    first_fit = {"in parts": lambda clf: clf.partial_fit(TEXTS, LABELS, classes=["fresh", "other", "rotten"])} | FITS
    refitted, fresh = make(epochs=1), make(epochs=1)
    first_fit[first](refitted)
    refitted.set_params(**fresh.get_params())
    FITS[second](refitted)
    FITS[second](fresh)
    X = PAIRS if second == "pairs" else TEXTS
    assert vars(refitted).keys() == vars(fresh).keys()
    assert refitted.loss_curve_ == fresh.loss_curve_
    assert refitted.best_loss_ == fresh.best_loss_
    assert refitted.validation_scores_ == fresh.validation_scores_
    assert_array_equal(refitted.classes_, fresh.classes_)
    assert_array_equal(refitted.predict_proba(X), fresh.predict_proba(X))
    assert_array_equal(refitted.predict(X), fresh.predict(X))


BAD_PARTS = {
    "a missing text": (["a film", None], ["fresh", "rotten"], {}, "X[1] is NoneType"),
    "an unknown label": (["a film", "joy"], ["fresh", "new"], {}, "y[1] is 'new'"),
    "a weight": (["a film", "joy"], ["fresh", "rotten"], {"sample_weight": [1, -1]}, "sample_weight[1] is -1"),
    "other classes": (["a film", "joy"], ["fresh", "rotten"], {"classes": ["fresh", "new"]}, "classes"),
    "pairs": ([("a", "b"), ("c", "d")], ["fresh", "rotten"], {}, "X has 2 text(s) a row"),
}


@pytest.mark.parametrize(("X", "y", "more", "message"), BAD_PARTS.values(), ids=BAD_PARTS)
def test_a_partial_fit_that_fails_leaves_the_classifier_as_it_was(fitted, X, y, more, message):
    clf = fitted.__copy__()
    before, expected = dict(vars(clf)), clf.predict_proba(TEXTS)
    with pytest.raises(ValueError, match=re.escape(message)):
        clf.partial_fit(X, y, **more)
    assert vars(clf).keys() == before.keys()
    assert all(vars(clf)[name] is value for name, value in before.items())
    assert_array_equal(clf.predict_proba(TEXTS), expected)


@pytest.mark.parametrize(
    ("X", "y", "more"),
    [(["a", None], ["x", "y"], {"classes": ["x", "y"]}), (["a", "b"], ["x", "y"], {}), ([], [], {"classes": ["x"]})],
    ids=["missing text", "no classes", "no texts"],
)
def test_a_first_partial_fit_that_fails_leaves_the_classifier_unfitted(make, X, y, more):
    clf = make()
    before = dict(vars(clf))
    with pytest.raises(ValueError, match=r"None|classes must be passed on the first call|X is empty"):
        clf.partial_fit(X, y, **more)
    assert vars(clf) == before
    with pytest.raises(NotFittedError):
        clf.predict(TEXTS)


def _read_only(array: np.ndarray, file: Path) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def _memory_mapped(array: np.ndarray, file: Path) -> np.ndarray:
    joblib.dump(array, file)
    return joblib.load(file, mmap_mode="r")


@pytest.mark.parametrize("protect", [_read_only, _memory_mapped])
@pytest.mark.parametrize(
    "X", [np.array(TEXTS), np.array(TEXTS)[:, None], np.array(PAIRS)], ids=["(n,)", "(n, 1)", "(n, 2)"]
)
def test_protected_memory_is_enough_for_all_that_is_passed(make, protect, X, tmp_path):
    arrays = {"X": X, "y": np.array(LABELS), "w": np.linspace(1, 2, N), "y_many": INDICATOR}
    p = {name: protect(array, tmp_path / name) for name, array in arrays.items()}
    held_out = {"X_val": p["X"], "y_val": p["y"], "sample_weight_val": p["w"]}
    clf = make(early_stopping=True).fit(p["X"], p["y"], p["w"], **held_out)
    parts = make().partial_fit(p["X"], p["y"], classes=np.unique(p["y"]), sample_weight=p["w"])
    many = make().fit(p["X"], p["y_many"], p["w"])
    for fitted_, y in ((clf, p["y"]), (parts, p["y"]), (many, p["y_many"])):
        for method in METHODS:
            assert_array_equal(getattr(fitted_, method)(p["X"]), getattr(fitted_, method)(X.tolist()))
        assert fitted_.score(p["X"], y, sample_weight=p["w"]) >= 0
    for name, array in arrays.items():
        assert_array_equal(p[name], array)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("method", [*METHODS, "score"])
def test_no_method_but_the_fits_changes_anything(fitted, fitted_on_columns, method, container):
    clf = fitted_on_columns if container == "two-column frame" else fitted
    before = dict(vars(clf))
    weights = {name: weight.clone() for name, weight in clf.model_.state_dict().items()}
    arguments = (LABELS,) if method == "score" else ()
    getattr(clf, method)(CONTAINERS[container], *arguments)
    assert vars(clf).keys() == before.keys()
    assert all(vars(clf)[name] is value for name, value in before.items())
    assert not clf.model_.training
    for name, weight in clf.model_.state_dict().items():
        assert weight.equal(weights[name])


texts = st.text(max_size=80)


@settings(deadline=None, max_examples=60)
@given(st.lists(texts, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_every_text_gets_probabilities_that_agree_with_all_else(fitted, items, random):
    probabilities, logits = fitted.predict_proba(items), fitted.decision_function(items)
    assert probabilities.dtype == logits.dtype == np.float32
    assert probabilities.shape == (len(items), 2)
    assert np.isfinite(probabilities).all()
    assert np.isfinite(fitted.predict_log_proba(items)).all()
    assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert_array_equal(fitted.classes_[probabilities.argmax(axis=1)], fitted.predict(items))
    assert_array_equal(fitted.classes_[(logits > 0).astype(int)], fitted.predict(items))
    order = random.sample(range(len(items)), len(items))
    assert_allclose(fitted.predict_proba([items[row] for row in order]), probabilities[order], rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_every_pair_gets_probabilities_whatever_its_row(fitted_on_pairs, items, random):
    probabilities = fitted_on_pairs.predict_proba(items)
    assert np.isfinite(probabilities).all()
    assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    order = random.sample(range(len(items)), len(items))
    shuffled = fitted_on_pairs.predict_proba([items[row] for row in order])
    assert_allclose(shuffled, probabilities[order], rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.lists(texts, min_size=1, max_size=8))
def test_every_text_gets_a_probability_of_each_of_many_labels(fitted_on_many_labels, items):
    probabilities = fitted_on_many_labels.predict_proba(items)
    predicted = fitted_on_many_labels.predict(items)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    assert predicted.dtype == np.int8
    assert_array_equal(predicted, probabilities > 0.5)
    assert_array_equal(predicted, fitted_on_many_labels.decision_function(items) > 0)


LABEL_TYPES = {
    "str": (lambda labels: [str(label) for label in labels], np.dtype("<U21")),
    "int": (list, np.dtype("int64")),
    "int8": (lambda labels: np.array(labels, dtype=np.int8), np.dtype("int8")),
    "uint16": (lambda labels: np.array(labels, dtype=np.uint16), np.dtype("uint16")),
    "float32": (lambda labels: np.array(labels, dtype=np.float32), np.dtype("float32")),
    "bool": (lambda labels: [label > 1 for label in labels], np.dtype("bool")),
    "object": (lambda labels: np.array([f"class {label}" for label in labels], dtype=object), np.dtype(object)),
    "StringDType": (lambda labels: np.array([str(label) for label in labels], dtype=STRING), STRING),
    "category": (lambda labels: pd.Series([f"{label}" for label in labels], dtype="category"), np.dtype(object)),
    "polars": (lambda labels: pl.Series(labels, dtype=pl.Int16), np.dtype("int16")),
}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(texts, st.integers(0, 3)), min_size=1, max_size=10),
    st.sampled_from(sorted(LABEL_TYPES)),
    st.integers(1, 12),
)
def test_labels_of_every_type_are_learnt_in_batches_of_every_size(make, rows, label_type, batch_size):
    convert, dtype = LABEL_TYPES[label_type]
    items, labels = [text for text, _ in rows], convert([label for _, label in rows])
    clf = make(epochs=1, batch_size=batch_size).fit(items, labels)
    probabilities, predicted = clf.predict_proba(items), clf.predict(items)
    assert probabilities.shape == (len(items), len(set(labels)))
    assert np.isfinite(probabilities).all()
    assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert clf.classes_.tolist() == sorted(set(labels))
    assert_array_equal(clf.classes_[probabilities.argmax(axis=1)], predicted)
    assert predicted.dtype == clf.classes_.dtype
    assert clf.classes_.dtype == dtype or (dtype.kind == clf.classes_.dtype.kind == "U")
