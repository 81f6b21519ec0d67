"""The estimator as a scikit-learn user meets it."""

import inspect
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import LABELS, TEXTS, texts_are_cut
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils._param_validation import InvalidParameterError

from bertclf import BertSequenceClassifier, _inputs, _tokens
from bertclf._engine import Engine
from bertclf._training import Trained

PARAMETERS = list(inspect.signature(BertSequenceClassifier).parameters)


@pytest.fixture(scope="module")
def clf(checkpoint):
    return BertSequenceClassifier(checkpoint, epochs=30, learning_rate=1e-2, random_state=0).fit(TEXTS, LABELS)


def test_learns_what_separates_the_classes(clf):
    assert clf.score(TEXTS, LABELS) == 1.0
    assert clf.predict(["a great film", "an awful film"]).tolist() == ["fresh", "rotten"]


def test_the_score_is_the_accuracy_of_labels_in_any_form_that_fit_takes(clf, checkpoint):
    wrong = ["fresh"] * len(TEXTS)
    assert clf.score(TEXTS, wrong) == pytest.approx(np.mean(np.array(LABELS) == "fresh"))
    assert clf.score(TEXTS, wrong, sample_weight=np.array(LABELS) == "fresh") == 1.0
    topics = pd.DataFrame({"fresh": np.array(LABELS) == "fresh", "rotten": np.array(LABELS) == "rotten"})
    matrix = topics.astype("Int64")
    several = clone(clf).fit(TEXTS, matrix)
    assert several.score(TEXTS, matrix) == several.score(TEXTS, topics.to_numpy().astype(int)) == 1.0
    with pytest.raises(ValueError, match="y has 1 labels"):
        clf.score(TEXTS, ["fresh"])


def test_outputs_of_two_classes_agree_with_each_other(clf):
    probabilities, decision = clf.predict_proba(TEXTS), clf.decision_function(TEXTS)
    assert probabilities.shape == (len(TEXTS), 2)
    assert probabilities.dtype == decision.dtype == np.float32
    assert decision.shape == (len(TEXTS),)
    np.testing.assert_allclose(1 / (1 + np.exp(-decision)), probabilities[:, 1], rtol=1e-5)
    np.testing.assert_allclose(np.exp(clf.predict_log_proba(TEXTS)), probabilities, rtol=1e-5)
    np.testing.assert_array_equal(clf.classes_[(decision > 0).astype(int)], clf.predict(TEXTS))


def test_outputs_of_many_classes_have_a_column_each(checkpoint):
    labels = [position % 3 for position in range(len(TEXTS))]
    clf = BertSequenceClassifier(checkpoint, epochs=1, random_state=0).fit(TEXTS, labels)
    assert clf.decision_function(TEXTS).shape == clf.predict_proba(TEXTS).shape == (len(TEXTS), 3)
    np.testing.assert_allclose(clf.predict_proba(TEXTS).sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(clf.classes_[clf.decision_function(TEXTS).argmax(axis=1)], clf.predict(TEXTS))


def test_fitted_attributes(clf):
    assert clf.classes_.tolist() == ["fresh", "rotten"]
    assert clf.n_iter_ == len(clf.history_) == len(clf.loss_curve_) == 30
    assert [row["epoch"] for row in clf.history_] == list(range(1, 31))
    assert clf.loss_curve_ == [row["training_loss"] for row in clf.history_]
    assert all(row["training_seconds"] > 0 for row in clf.history_)
    assert clf.truncation_ == {
        "texts": 0,
        "tokens": 0,
        "per_class": {"fresh": {"texts": 0, "tokens": 0}, "rotten": {"texts": 0, "tokens": 0}},
    }
    assert not hasattr(clf, "n_features_in_")
    assert not hasattr(clf, "feature_names_in_")


def test_every_public_fitted_attribute_is_documented(clf):
    section = BertSequenceClassifier.__doc__.split("Attributes\n")[1].split("See Also")[0]
    documented = set(re.findall(r"^    (\w+_) :", section, flags=re.MULTILINE))
    assert documented - {"n_features_in_", "feature_names_in_"} == {
        name for name in vars(clf) if name.endswith("_") and not name.startswith("_")
    }


def test_truncation_is_counted_per_class(checkpoint):
    texts = ["joy " * 10, "joy", "dull " * 6, "dull"]
    clf = BertSequenceClassifier(checkpoint, epochs=1, max_length=6, random_state=0)
    with pytest.warns(UserWarning, match=r"31% of the tokens of X are cut: 8 in 2 texts .* 6 tokens"):
        clf.fit(texts, [1, 1, 0, 0])
    assert clf.truncation_ == {
        "texts": 2,
        "tokens": 8,
        "per_class": {0: {"texts": 1, "tokens": 2}, 1: {"texts": 1, "tokens": 6}},
    }


@texts_are_cut
def test_of_a_text_that_is_too_long_both_ends_are_read_by_default(checkpoint):
    clf = BertSequenceClassifier(checkpoint, epochs=1, max_length=6, random_state=0).fit(TEXTS, LABELS)
    whole, middle, beginning, end = clf.decision_function(
        ["joy dull dull fine", "joy bore bore dull dull fine", "fine dull dull fine", "joy dull dull joy"]
    )
    assert middle == pytest.approx(whole, abs=1e-6)
    assert beginning != pytest.approx(whole, abs=1e-5)
    assert end != pytest.approx(whole, abs=1e-5)


def test_the_same_seed_gives_the_same_bits(checkpoint):
    def fit(seed):
        return BertSequenceClassifier(checkpoint, epochs=2, batch_size=4, random_state=seed).fit(TEXTS, LABELS)

    first, second, other = fit(0), fit(0), fit(1)
    np.testing.assert_array_equal(first.predict_proba(TEXTS), second.predict_proba(TEXTS))
    assert first.loss_curve_ == second.loss_curve_
    assert not np.array_equal(first.predict_proba(TEXTS), other.predict_proba(TEXTS))


def test_a_second_fit_forgets_the_first(checkpoint):
    import pandas as pd

    clf = BertSequenceClassifier(checkpoint, epochs=1, random_state=0)
    frame = pd.DataFrame({"question": TEXTS, "answer": TEXTS[::-1]})
    clf.fit(frame, LABELS)
    assert clf.n_features_in_ == 2
    assert clf.feature_names_in_.tolist() == ["question", "answer"]
    again = clf.fit(TEXTS, LABELS).predict_proba(TEXTS)
    assert not hasattr(clf, "n_features_in_")
    assert not hasattr(clf, "feature_names_in_")
    np.testing.assert_array_equal(again, clone(clf).fit(TEXTS, LABELS).predict_proba(TEXTS))


def test_pairs_and_single_texts_can_not_be_exchanged(checkpoint):
    pairs = list(zip(TEXTS, TEXTS, strict=True))
    single = BertSequenceClassifier(checkpoint, epochs=1, precision="float32", random_state=0).fit(TEXTS, LABELS)
    paired = clone(single).fit(pairs, LABELS)
    with pytest.raises(ValueError, match=r"X has 2 text\(s\) a row, but BertSequenceClassifier was fitted on 1"):
        single.predict(pairs)
    with pytest.raises(ValueError, match=r"X has 1 text\(s\) a row, but BertSequenceClassifier was fitted on 2"):
        paired.predict(TEXTS)


def test_one_column_and_one_dimension_can_be_exchanged(checkpoint):
    column = [[text] for text in TEXTS]
    flat = BertSequenceClassifier(checkpoint, epochs=1, random_state=0).fit(TEXTS, LABELS)
    tall = clone(flat).fit(column, LABELS)
    assert tall.n_features_in_ == 1
    np.testing.assert_array_equal(flat.predict_proba(column), tall.predict_proba(TEXTS))


def test_columns_under_other_names_are_refused(checkpoint):
    import pandas as pd

    frame = pd.DataFrame({"question": TEXTS, "answer": TEXTS})
    clf = BertSequenceClassifier(checkpoint, epochs=1, random_state=0).fit(frame, LABELS)
    with pytest.raises(ValueError, match="Feature names must be in the same order"):
        clf.predict(frame[["answer", "question"]])


OUT_OF_RANGE = {
    "model": [None, 3],
    "revision": [3],
    "epochs": [0, 1.5, "many"],
    "batch_size": [0, 2.5, None],
    "learning_rate": [0.0, -1e-5, "fast"],
    "lr_schedule": ["lineal", None],
    "warmup_ratio": [-0.1, 1.1],
    "weight_decay": [-0.1, None],
    "max_grad_norm": [0.0, -1.0],
    "layer_decay": [0.0, 1.1, None],
    "label_smoothing": [-0.1, 1.0, "Auto", None],
    "dropout": [-0.1, 1.0],
    "head_init": ["zero", None],
    "freeze": [-1, 1.5, "embeddings", None, True, False],
    "pooling": ["max", None],
    "max_length": [0, 12.5],
    "long_text": ["split", None],
    "class_weight": ["balance", 3],
    "early_stopping": [1, None],
    "validation_fraction": [0.0, 1.0, None],
    "n_iter_no_change": [0, 1.5],
    "scoring": [3, ["accuracy"]],
    "calibration": ["isotonic", True],
    "thresholds": ["f2", 0.5],
    "precision": ["float64", None],
    "device": [None, 0],
    "memory": [3, ["folder"]],
    "checkpoint": [3, True],
    "warm_start": [1, None],
    "random_state": ["seed", -1],
    "verbose": [-1, "yes"],
}


def test_every_parameter_is_tested_out_of_range():
    assert list(OUT_OF_RANGE) == PARAMETERS == list(BertSequenceClassifier._parameter_constraints)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in OUT_OF_RANGE for value in OUT_OF_RANGE[name]])
def test_a_parameter_out_of_range_is_refused_in_the_words_of_scikit_learn(name, value):
    message = rf"The '{name}' parameter of BertSequenceClassifier must be .* Got {re.escape(repr(value))} instead"
    with pytest.raises(InvalidParameterError, match=message):
        BertSequenceClassifier(**{name: value}).fit(TEXTS, LABELS)


def test_every_parameter_is_documented_with_its_default():
    section = BertSequenceClassifier.__doc__.split("Parameters\n")[1].split("Attributes\n")[0]
    documented = dict(re.findall(r"^    (\w+) : .*default=(.*)$", section, flags=re.MULTILINE))
    signature = inspect.signature(BertSequenceClassifier).parameters
    assert {name: repr(parameter.default) for name, parameter in signature.items()} == {
        name: value.replace('"', "'") for name, value in documented.items()
    }


def test_the_constructor_only_stores(checkpoint):
    given = {"model": Path(checkpoint), "epochs": 7, "random_state": np.random.RandomState(0)}
    clf = BertSequenceClassifier(**given)
    assert all(vars(clf)[name] is value for name, value in given.items())
    assert set(vars(clf)) == set(PARAMETERS)


def test_no_method_changes_a_parameter(clf, checkpoint):
    assert (
        clf.get_params()
        == BertSequenceClassifier(checkpoint, epochs=30, learning_rate=1e-2, random_state=0).get_params()
    )


def test_max_length_must_fit_the_checkpoint_and_leave_room_for_the_text(checkpoint):
    with pytest.raises(ValueError, match=r"max_length=65 is more than this checkpoint can take: its limit is 64"):
        BertSequenceClassifier(checkpoint, max_length=65).fit(TEXTS, LABELS)
    with pytest.raises(ValueError, match=r"max_length=2 leaves no token for the text.*Pass at least 3"):
        BertSequenceClassifier(checkpoint, max_length=2).fit(TEXTS, LABELS)


@pytest.fixture
def chosen(monkeypatch):
    """The settings of each training, of which none takes place."""
    settings_of_each = []
    row = {"epoch": 1, "step": 1, "training_loss": 0.0, "validation_score": None}

    def train(*args, settings, **kwargs):
        settings_of_each.append(settings)
        return Trained(history=[row], best_epoch=None, optimizer_state={}, micro_batch_size=14)

    monkeypatch.setattr("bertclf._training.train", train)
    return settings_of_each


def test_auto_epochs_and_rate_follow_data_and_network(checkpoint, chosen):
    BertSequenceClassifier(checkpoint, random_state=0).fit(TEXTS, LABELS)
    BertSequenceClassifier(checkpoint, random_state=0, epochs=5, learning_rate=3e-4).fit(TEXTS, LABELS)
    assert [(settings.epochs, settings.learning_rate) for settings in chosen] == [(20, 1e-4), (5, 3e-4)]


def test_auto_smoothing_follows_the_texts_a_class_that_fit_learns_from(checkpoint, chosen):
    many, labels = TEXTS * 15, LABELS * 15  # 105 a class
    clf = BertSequenceClassifier(checkpoint, random_state=0)
    clf.fit(many, labels)
    clf.fit(TEXTS, LABELS)
    clf.fit(many, [[int(label == "fresh"), 1] for label in labels])
    holding_out = {"calibration": "temperature", "validation_fraction": 0.6}  # learns from 42 a class
    BertSequenceClassifier(checkpoint, random_state=0, **holding_out).fit(many, labels)
    BertSequenceClassifier(checkpoint, random_state=0).partial_fit(many, labels, np.unique(labels))
    BertSequenceClassifier(checkpoint, random_state=0, label_smoothing=0.3).partial_fit(
        TEXTS, LABELS, np.unique(labels)
    )
    assert [settings.label_smoothing for settings in chosen] == [0.05, 0.0, 0.0, 0.0, 0.0, 0.3]


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ({"X_val": TEXTS}, "X_val was passed without y_val"),
        ({"y_val": LABELS}, "y_val was passed without X_val"),
        ({"X_val": TEXTS, "y_val": LABELS[:-1]}, "X_val has 14 texts and y_val has 13 labels"),
        ({"X_val": ["a", None], "y_val": LABELS[:2]}, r"X_val\[1\] is NoneType"),
        (
            {"X_val": ["a"], "y_val": ["new"]},
            r"y_val\[0\] is 'new', a class that is not among the classes of the training",
        ),
        ({"X_val": [("a", "b")], "y_val": ["fresh"]}, "X_val holds pairs, but X holds single texts"),
    ],
)
def test_validation_data_that_do_not_fit_are_refused(checkpoint, held_out, message):
    with pytest.raises(ValueError, match=message):
        BertSequenceClassifier(checkpoint, epochs=1).fit(TEXTS, LABELS, **held_out)


def test_an_integer_weight_equals_repetition_and_zero_equals_absence(checkpoint):
    settings = {"epochs": 3, "batch_size": 64, "dropout": 0.0, "learning_rate": 1e-3, "precision": "float32"}
    clf = BertSequenceClassifier(checkpoint, head_init="random", random_state=0, **settings)
    weights = np.arange(len(TEXTS)) % 3
    weighted = clone(clf).fit(TEXTS, LABELS, sample_weight=weights).predict_proba(TEXTS)
    repeated = clone(clf).fit(np.repeat(TEXTS, weights), np.repeat(LABELS, weights)).predict_proba(TEXTS)
    plain = clone(clf).fit(TEXTS, LABELS).predict_proba(TEXTS)
    np.testing.assert_allclose(weighted, repeated, atol=1e-4)
    assert np.abs(weighted - plain).max() > 5e-3


def test_works_in_a_grid_search_over_a_pipeline(checkpoint):
    cleaner = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    pipeline = make_pipeline(cleaner, BertSequenceClassifier(checkpoint, epochs=1, random_state=0))
    search = GridSearchCV(pipeline, {"bertsequenceclassifier__learning_rate": [1e-3, 1e-2]}, cv=2)
    search.fit(TEXTS, LABELS)
    assert len(search.cv_results_["mean_test_score"]) == 2
    assert search.predict(["A FINE FILM"]).shape == (1,)


def test_works_in_cross_validation_with_two_workers(checkpoint):
    clf = BertSequenceClassifier(checkpoint, epochs=1, random_state=0)
    one = cross_val_score(clf, TEXTS, LABELS, cv=2, scoring="neg_log_loss")
    two = cross_val_score(clf, TEXTS, LABELS, cv=2, scoring="neg_log_loss", n_jobs=2)
    np.testing.assert_allclose(one, two, rtol=1e-5)
    assert cross_val_predict(clf, TEXTS, LABELS, cv=2, method="predict_proba").shape == (len(TEXTS), 2)


def test_validation_of_parameters_can_be_switched_off_as_in_scikit_learn(checkpoint):
    with config_context(skip_parameter_validation=True):
        clf = BertSequenceClassifier(checkpoint, epochs=1, verbose=None, random_state=0).fit(TEXTS, LABELS)
    assert clf.n_iter_ == 1


@pytest.mark.parametrize("dtype", ["Int64", "boolean", "int8", "float64"])
def test_labels_of_pandas_keep_their_kind(checkpoint, dtype):
    import pandas as pd

    labels = pd.Series([label == "fresh" for label in LABELS]).astype(dtype)
    clf = BertSequenceClassifier(checkpoint, epochs=1, random_state=0).fit(TEXTS, labels)
    expected = {"Int64": "int64", "boolean": "bool"}.get(dtype, dtype)
    assert clf.classes_.dtype == clf.predict(TEXTS).dtype == expected


@pytest.mark.parametrize("y", ["fresh", {"a": 1}, {1, 2}, 3])
def test_labels_that_are_no_list_are_told(y):
    with pytest.raises(ValueError, match=r"but one label a text is needed. Pass a list or an array"):
        BertSequenceClassifier().fit(TEXTS, y)


def test_a_failed_fit_leaves_a_new_classifier_unfitted(checkpoint):
    clf = BertSequenceClassifier(checkpoint, epochs=1)
    with pytest.raises(ValueError, match="empty"):
        clf.fit([], [])
    with pytest.raises(NotFittedError):
        clf.predict(TEXTS)


def containers_of(texts, folder):
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    np.save(folder / "texts.npy", np.array(texts))
    frame = {"first": texts, "second": texts[::-1]}
    return {
        "list": texts,
        "tuple": tuple(texts),
        "memory-mapped array": np.load(folder / "texts.npy", mmap_mode="r"),
        "Arrow array": pa.array(texts),
        "Arrow chunked array": pa.chunked_array([texts[:4], texts[4:]]),
        "Series": pd.Series(texts, index=range(len(texts), 0, -1)),
        "polars Series": pl.Series(texts),
        "column": [[text] for text in texts],
        "sequence": SequenceOfTexts(texts),
        "pairs": list(zip(*frame.values(), strict=True)),
        "array of pairs": np.array(list(frame.values())).T,
        "pandas frame": pd.DataFrame(frame, index=[0] * len(texts)),
        "polars frame": pl.DataFrame(frame),
        "Arrow table": pa.table(frame),
    }


class SequenceOfTexts:
    """What knows no slices."""

    def __init__(self, texts):
        self._texts = texts

    def __len__(self):
        return len(self._texts)

    def __getitem__(self, position):
        if not isinstance(position, int):
            raise TypeError(position)
        return self._texts[position]


@pytest.mark.filterwarnings("ignore:X has feature names")
def test_predictions_in_parts_are_those_of_the_whole(checkpoint, tmp_path, monkeypatch):
    texts = [*TEXTS, "joy " * 30, "", "naïve 漢字"]
    single = BertSequenceClassifier(checkpoint, epochs=1, precision="float32", random_state=0).fit(TEXTS, LABELS)
    paired = clone(single).fit(list(zip(TEXTS, TEXTS[::-1], strict=True)), LABELS)
    n_texts = []
    monkeypatch.setattr(
        "bertclf._tokens.tokenize",
        lambda first, *args, tokenize=_tokens.tokenize, **options: (
            n_texts.append(len(first)) or tokenize(first, *args, **options)
        ),
    )
    containers = containers_of(texts, tmp_path)
    expected = {single: single.predict_proba(texts), paired: paired.predict_proba(containers["pairs"])}
    monkeypatch.setattr(_inputs, "TEXTS_PER_PART", 3)
    for name, container in containers.items():
        clf = paired if {"pairs", "frame", "table"} & set(name.split()) else single
        n_texts.clear()
        np.testing.assert_allclose(clf.predict_proba(container), expected[clf], atol=1e-6, err_msg=name)
        assert n_texts == ([len(texts)] if name == "sequence" else [3, 3, 3, 3, 3, 2]), name


def test_errors_of_any_part_come_before_any_work(checkpoint, monkeypatch):
    import pandas as pd

    clf = BertSequenceClassifier(checkpoint, epochs=1, random_state=0).fit(TEXTS, LABELS)
    paired = clone(clf).fit(pd.DataFrame({"a": TEXTS, "b": TEXTS}), LABELS)
    monkeypatch.setattr(_inputs, "TEXTS_PER_PART", 3)
    monkeypatch.setattr(Engine, "logits", None)
    with pytest.raises(ValueError, match=r"X\[13\] is NoneType"):
        clf.predict([*TEXTS[:-1], None])
    with pytest.raises(ValueError, match=r"X has 2 text\(s\) a row"):
        clf.predict([(text, text) for text in TEXTS])
    with pytest.raises(ValueError, match="feature names should match"):
        paired.predict(pd.DataFrame({"a": TEXTS, "c": TEXTS}))
