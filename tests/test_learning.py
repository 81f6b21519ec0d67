"""What `fit` does beyond one pass over texts of one label each: validation, weights, many labels, going on."""

import copy
import pickle

import numpy as np
import pytest
import torch
from conftest import LABELS, TEXTS, measuring, texts_are_cut
from sklearn.base import clone
from sklearn.metrics import f1_score, log_loss, make_scorer, roc_auc_score
from sklearn.utils.class_weight import compute_sample_weight

from bertclf import BertSequenceClassifier, _classifier, _progress, _training
from bertclf._engine import Engine

# Texts enough for a stratified split, with some noise so that the loss goes up and down.
MANY = TEXTS * 3
NOISY = [LABELS[row % len(LABELS)] if row % 7 else "rotten" for row in range(len(MANY))]
MATRIX = np.array(
    [[label == "fresh", "film" in text, "very" in text] for text, label in zip(TEXTS, LABELS, strict=True)]
)
STEADY = {"epochs": 3, "batch_size": 64, "dropout": 0.0, "learning_rate": 1e-3, "precision": "float32"}


@pytest.fixture
def clf(checkpoint):
    return BertSequenceClassifier(checkpoint, epochs=2, batch_size=8, learning_rate=1e-2, random_state=0)


# Early stopping


def test_early_stopping_keeps_the_weights_of_the_epoch_with_the_lowest_loss(clf, monkeypatch):
    clf.set_params(epochs=10, early_stopping=True, n_iter_no_change=3)
    kept = []
    keep = _progress.BestWeights.see

    def see(self, network, row):
        keep(self, network, row)
        kept.append({name: weight.clone() for name, weight in network.state_dict().items()})

    monkeypatch.setattr(_progress.BestWeights, "see", see)
    measuring(monkeypatch, [(0.9, 0.1), (0.5, 0.3), (0.6, 0.9), (0.5, 0.2), (0.7, 0.4), (0.1, 1.0)])
    clf.fit(MANY, NOISY)

    assert clf.n_iter_ == len(clf.history_) == 5
    assert clf.validation_scores_ == [0.1, 0.3, 0.9, 0.2, 0.4]
    assert clf.best_validation_score_ == 0.3
    assert clf.best_loss_ is None
    for name, weight in clf.model_.state_dict().items():
        assert torch.equal(weight, kept[1][name])
    assert not torch.equal(clf.model_.classifier.weight, kept[4]["classifier.weight"])


def test_early_stopping_watches_the_score_where_one_is_named(clf, monkeypatch):
    clf.set_params(epochs=10, early_stopping=True, n_iter_no_change=2, scoring="f1_macro")
    measuring(monkeypatch, [(0.9, 0.1), (0.5, 0.3), (0.6, 0.9), (0.4, np.nan), (0.7, 0.9), (0.1, 1.0)])
    clf.fit(MANY, NOISY)

    assert clf.n_iter_ == 5
    assert clf.best_validation_score_ == 0.9


def test_early_stopping_without_a_stop_keeps_the_best_of_all_epochs(clf, monkeypatch):
    measuring(monkeypatch, [(0.5, 0.8), (0.9, 0.1)])
    assert clf.set_params(early_stopping=True).fit(MANY, NOISY).n_iter_ == 2
    assert clf.best_validation_score_ == 0.8


@pytest.mark.parametrize(
    ("scoring", "score"),
    [
        (None, lambda clf, texts, labels: clf.score(texts, labels)),
        ("neg_log_loss", lambda clf, texts, labels: -log_loss(labels, clf.predict_proba(texts))),
        ("roc_auc", lambda clf, texts, labels: roc_auc_score(labels, clf.decision_function(texts))),
        (
            make_scorer(f1_score, pos_label="rotten"),
            lambda clf, texts, labels: f1_score(labels, clf.predict(texts), pos_label="rotten"),
        ),
        (lambda clf, texts, labels: float(clf.predict_proba(texts[:5])[:, 0].sum()), None),
    ],
    ids=["loss", "log loss", "roc auc", "f1", "function"],
)
def test_the_best_score_is_that_of_the_fitted_classifier_on_the_held_out_texts(clf, scoring, score, monkeypatch):
    held_out = []
    split = _classifier.split

    def recording(*args, **kwargs):
        parts = split(*args, **kwargs)
        held_out.append(parts[1])
        return parts

    monkeypatch.setattr(_classifier, "split", recording)
    clf.set_params(epochs=6, early_stopping=True, validation_fraction=0.3, scoring=scoring).fit(MANY, NOISY)

    texts, labels = held_out[0].texts.as_list(), held_out[0].labels
    expected = scoring(clf, texts, labels) if score is None else score(clf, texts, labels)
    assert clf.best_validation_score_ == pytest.approx(expected, rel=1e-6)
    assert clf.history_[0]["validation_score"] == clf.validation_scores_[0]


def test_the_held_out_texts_are_not_trained_on(clf, monkeypatch):
    seen = set()
    logits = Engine.logits

    def recording(engine, store, rows, **known):
        seen.add((torch.is_grad_enabled(), len(store)))
        return logits(engine, store, rows, **known)

    monkeypatch.setattr(Engine, "logits", recording)
    clf.set_params(early_stopping=True, validation_fraction=0.25).fit(MANY, NOISY)
    assert seen == {(True, len(MANY) - 11), (False, 11), (False, len(MANY) - 11)}  # the last for the start of the head


def test_given_validation_texts_take_the_place_of_the_split(clf, monkeypatch):
    monkeypatch.setattr(_classifier, "split", None)
    clf.set_params(early_stopping=True).fit(MANY, NOISY, X_val=TEXTS, y_val=LABELS)
    assert clf.best_validation_score_ == pytest.approx(clf.score(TEXTS, LABELS))


def test_without_early_stopping_validation_texts_change_nothing_but_the_history(clf):
    plain = clone(clf).fit(MANY, NOISY)
    measured = clf.set_params(scoring="f1_macro").fit(MANY, NOISY, X_val=TEXTS, y_val=LABELS)

    np.testing.assert_array_equal(plain.predict_proba(TEXTS), measured.predict_proba(TEXTS))
    assert plain.validation_scores_ is measured.validation_scores_ is None
    assert plain.best_validation_score_ is measured.best_validation_score_ is None
    assert plain.best_loss_ == measured.best_loss_ == min(plain.loss_curve_)
    last = measured.history_[-1]["validation_score"]
    assert last == pytest.approx(f1_score(LABELS, measured.predict(TEXTS), average="macro"))


def test_a_scorer_that_draws_random_numbers_does_not_disturb_the_training(clf):
    def disturbing(estimator, texts, labels):
        torch.manual_seed(7)
        return float(torch.rand(()) + estimator.score(["a film"], ["fresh"]))

    held_out = {"X_val": TEXTS, "y_val": LABELS}
    plain = clone(clf).fit(MANY, NOISY, **held_out).predict_proba(TEXTS)
    np.testing.assert_array_equal(
        clf.set_params(scoring=disturbing).fit(MANY, NOISY, **held_out).predict_proba(TEXTS), plain
    )


def test_a_scorer_meets_an_estimator_like_the_fitted_one(clf):
    met = []

    def scorer(estimator, texts, labels):
        met.append(
            (estimator.get_params(), estimator.classes_.tolist(), texts, list(labels), estimator.model_.training)
        )
        if len(met) > 1:  # the first call is a rehearsal, on logits of zero
            known, computed = estimator.predict_proba(texts), estimator.predict_proba(list(texts))
            np.testing.assert_allclose(known, computed, atol=1e-6)
        return 0.5

    clf.set_params(scoring=scorer).fit(MANY, NOISY, X_val=TEXTS[:3], y_val=LABELS[:3])
    assert met[-1] == (clf.get_params(), ["fresh", "rotten"], TEXTS[:3], LABELS[:3], False)


@pytest.mark.parametrize(
    ("scoring", "message"),
    [
        ("f1", "scoring='f1' can't score the validation texts: ValueError: pos_label=1 is not a valid label"),
        (lambda *args: "good", "can't score the validation texts: ValueError: could not convert"),
        (lambda *args: None, "can't score the validation texts: TypeError"),
    ],
)
def test_a_scorer_that_can_not_work_is_told_before_the_training(clf, monkeypatch, scoring, message):
    monkeypatch.setattr(_training, "_train_epoch", None)
    with pytest.raises(ValueError, match=message):
        clf.set_params(early_stopping=True, scoring=scoring).fit(MANY, NOISY)


def test_a_misspelt_scorer_is_told_before_anything_is_read(clf):
    with pytest.raises(ValueError, match="'f1_makro' is not a valid scoring value"):
        clf.set_params(scoring="f1_makro").fit(None, None)


def test_labels_of_stringdtype_are_scored_too(clf):
    labels = np.array(NOISY, dtype=np.dtypes.StringDType())
    clf.set_params(early_stopping=True, scoring="f1_macro").fit(MANY, labels)
    assert clf.classes_.dtype == labels.dtype
    assert clf.fit(MANY, labels, X_val=TEXTS, y_val=LABELS).best_validation_score_ > 0


def pickling_scorer(estimator, texts, labels):
    pickle.dumps(estimator)
    return float(len(estimator.history_) + estimator.n_iter_)


def test_a_scorer_may_pickle_what_it_gets_and_read_all_that_a_fit_leaves(clf):
    clf.set_params(scoring=pickling_scorer).fit(MANY, NOISY, X_val=TEXTS, y_val=LABELS)
    assert clf.history_[-1]["validation_score"] == 0


def test_too_few_texts_of_a_class_to_hold_some_out_are_told(clf):
    message = r"early_stopping, calibration or thresholds can't hold out validation_fraction=0.1 of 15 texts.*X_val"
    with pytest.raises(ValueError, match=message):
        clf.set_params(early_stopping=True).fit([*TEXTS, "a film"], [*LABELS, "middling"])
    with pytest.raises(ValueError, match=r"one text of each of \['middling'\], and a class needs two\. Pass X_val"):
        clf.fit([*TEXTS, "a film"], [*LABELS, "middling"])
    with pytest.raises(ValueError, match=r"each of \[0, 1, 2, .*, \.\.\.\] \(25 labels\), and a class"):
        clf.fit([f"film {number}" for number in range(100)], [*range(25), *[99] * 75])
    with pytest.raises(ValueError, match=r"number of classes = 150\. Pass X_val"):
        clf.fit([f"film {number}" for number in range(300)], list(range(150)) * 2)


def test_validation_weights_weigh_in_loss_and_score(clf):
    weights = np.arange(len(TEXTS))
    clf.fit(MANY, NOISY, X_val=TEXTS, y_val=LABELS, sample_weight_val=weights)

    last = clf.history_[-1]
    assert last["validation_score"] == pytest.approx(clf.score(TEXTS, LABELS, sample_weight=weights))
    expected = log_loss(LABELS, clf.predict_proba(TEXTS), sample_weight=weights)
    assert last["validation_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_weights_of_held_out_texts_come_along(clf):
    weights = np.linspace(0.1, 3, len(MANY))
    seen = []

    def scorer(estimator, texts, labels, sample_weight):
        seen.append((texts, sample_weight))
        return 0.5

    clf.set_params(early_stopping=True, scoring=scorer).fit(MANY, NOISY, sample_weight=weights)
    texts, of_texts = seen[-1]
    assert len(texts) == len(of_texts) == 5
    np.testing.assert_allclose(np.isin(of_texts, weights / 3), True)


def test_validation_weights_without_validation_texts_are_refused(clf):
    with pytest.raises(ValueError, match="sample_weight_val was passed without X_val"):
        clf.fit(TEXTS, LABELS, sample_weight_val=[1.0] * 14)


# Weights


def test_class_weights_are_the_weights_of_their_texts(checkpoint):
    labels = ["rare" if row < 3 else "common" for row in range(len(TEXTS))]
    clf = BertSequenceClassifier(checkpoint, random_state=0, **STEADY)

    def probabilities(class_weight, sample_weight=None):
        return clone(clf).set_params(class_weight=class_weight).fit(TEXTS, labels, sample_weight).predict_proba(TEXTS)

    balanced = probabilities(None, compute_sample_weight("balanced", labels))
    np.testing.assert_allclose(probabilities("balanced"), balanced, atol=1e-5)
    np.testing.assert_allclose(
        probabilities({"rare": 3}), probabilities(None, [3 if label == "rare" else 1 for label in labels]), atol=1e-5
    )
    assert np.abs(balanced - probabilities(None)).max() > 1e-3


def test_class_weights_enter_the_validation_loss_but_not_the_score(clf):
    clf.set_params(class_weight={"fresh": 5}).fit(MANY, NOISY, X_val=TEXTS, y_val=LABELS)

    weights = [5 if label == "fresh" else 1 for label in LABELS]
    last = clf.history_[-1]
    assert last["validation_loss"] == pytest.approx(
        log_loss(LABELS, clf.predict_proba(TEXTS), sample_weight=weights), rel=1e-5
    )
    assert last["validation_score"] == pytest.approx(clf.score(TEXTS, LABELS))


def test_a_text_of_weight_zero_is_as_good_as_absent(checkpoint):
    clf = BertSequenceClassifier(checkpoint, epochs=2, batch_size=4, random_state=0, early_stopping=True)
    weights = [1.0, 0.0] * len(TEXTS) + [1.0] * len(TEXTS)
    some = [row for row, weight in enumerate(weights) if weight]
    absent = clone(clf).fit([MANY[row] for row in some], [NOISY[row] for row in some])
    np.testing.assert_array_equal(
        clf.fit(MANY, NOISY, sample_weight=weights).predict_proba(TEXTS), absent.predict_proba(TEXTS)
    )


# Many labels


def test_a_matrix_of_zeros_and_ones_is_learnt_label_by_label(checkpoint):
    matrix = np.array([[label == "fresh", label == "rotten", label == "fresh"] for label in LABELS])
    clf = BertSequenceClassifier(checkpoint, epochs=30, learning_rate=1e-2, random_state=0).fit(TEXTS, matrix)

    probabilities, predicted = clf.predict_proba(TEXTS), clf.predict(TEXTS)
    assert clf.classes_.tolist() == [0, 1, 2]
    assert probabilities.shape == predicted.shape == clf.decision_function(TEXTS).shape == matrix.shape
    assert predicted.dtype == bool
    np.testing.assert_array_equal(predicted, matrix)
    assert clf.score(TEXTS, matrix) == 1
    np.testing.assert_allclose(1 / (1 + np.exp(-clf.decision_function(TEXTS))), probabilities, rtol=1e-5)
    np.testing.assert_allclose(np.exp(clf.predict_log_proba(TEXTS)), probabilities, rtol=1e-5)
    assert clf.truncation_["per_class"].keys() == {0, 1, 2}
    assert clf.model_.config.problem_type == "multi_label_classification"


def test_two_labels_keep_two_columns(clf):
    clf.fit(TEXTS, MATRIX[:, :2].astype(int))
    assert clf.decision_function(TEXTS).shape == clf.predict_proba(TEXTS).shape == (len(TEXTS), 2)
    assert clf.predict(TEXTS).dtype == int


@texts_are_cut
def test_early_stopping_and_truncation_count_labels_one_by_one(clf):
    texts = ["film " * 9, "joy", "film " * 9, "joy"] * 6
    matrix = np.array([[1, 0], [0, 0], [1, 1], [0, 1]] * 6)
    clf.set_params(early_stopping=True, max_length=6).fit(texts, matrix)

    assert clf.best_validation_score_ in (0.0, 1 / 3, 2 / 3, 1.0)
    report = clf.truncation_
    assert report["per_class"][0]["texts"] == report["texts"] > report["per_class"][1]["texts"] > 0
    assert report["tokens"] == 5 * report["texts"]


def test_many_labels_are_weighted_each_for_itself(checkpoint):
    clf = BertSequenceClassifier(checkpoint, random_state=0, **STEADY)
    plain = clone(clf).fit(TEXTS, MATRIX).predict_proba(TEXTS)
    weighted = clone(clf).set_params(class_weight=[{0: 1, 1: 1}, {1: 9}, {0: 1, 1: 1}]).fit(TEXTS, MATRIX)
    raised = weighted.predict_proba(TEXTS) - plain
    assert (raised[:, 1] > 0).all()
    assert raised[:, 1].min() > np.abs(raised[:, [0, 2]]).max()


def test_an_integer_weight_is_repetition_for_many_labels_too(checkpoint):
    clf = BertSequenceClassifier(checkpoint, random_state=0, class_weight="balanced", **STEADY)
    weights = 1 + np.arange(len(TEXTS)) % 3
    weighted = clone(clf).fit(TEXTS, MATRIX, sample_weight=weights).predict_proba(TEXTS)
    repeated = clone(clf).fit(np.repeat(TEXTS, weights), np.repeat(MATRIX, weights, axis=0)).predict_proba(TEXTS)
    np.testing.assert_allclose(weighted, repeated, atol=1e-4)


# Going on


def test_a_warm_start_goes_on_from_the_fitted_weights(clf):
    clf.set_params(warm_start=True, learning_rate=1e-9).fit(TEXTS, LABELS)
    first = clf.predict_proba(TEXTS)
    clf.set_params(random_state=1).fit(TEXTS, LABELS)
    np.testing.assert_allclose(clf.predict_proba(TEXTS), first, atol=1e-5)
    assert np.abs(clf.set_params(warm_start=False).fit(TEXTS, LABELS).predict_proba(TEXTS) - first).max() > 1e-3


def test_a_warm_start_counts_its_own_epochs(clf):
    clf.set_params(warm_start=True).fit(TEXTS, LABELS)
    clf.set_params(epochs=3).fit(TEXTS, LABELS)
    assert clf.n_iter_ == len(clf.history_) == 3
    assert clf.history_[0]["epoch"] == 1


def test_a_warm_start_with_other_classes_is_refused(clf):
    clf.set_params(warm_start=True).fit(TEXTS, LABELS)
    with pytest.raises(ValueError, match=r"The classes are \['a', 'b'\], but were \['fresh', 'rotten'\]"):
        clf.fit(TEXTS, ["a", "b"] * 7)
    with pytest.raises(ValueError, match=r"are 3 columns of an indicator matrix, but were \['fresh', 'rotten'\]"):
        clf.fit(TEXTS, MATRIX)
    with pytest.raises(ValueError, match=r"single texts and pairs can't be exchanged"):
        clf.fit([(text, text) for text in TEXTS], LABELS)
    assert clf.score(TEXTS, LABELS) >= 0


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_going_on_that_fails_leaves_the_classifier_as_it_was(clf, method, monkeypatch):
    clf.set_params(warm_start=True).partial_fit(TEXTS, LABELS, classes=["fresh", "rotten"])
    before, optimizer = clf.predict_proba(TEXTS), copy.deepcopy(clf._optimizer_state)

    def interrupted(network):
        raise KeyboardInterrupt

    monkeypatch.setattr(_training, "_check_weights", interrupted)
    with pytest.raises(KeyboardInterrupt):
        getattr(clf, method)(TEXTS, LABELS)
    np.testing.assert_array_equal(clf.predict_proba(TEXTS), before)
    assert all(torch.equal(value, optimizer[name]) for name, value in clf._optimizer_state.items())
    assert len(clf.history_) == 1


def test_partial_fit_in_parts_takes_the_steps_of_one_run(checkpoint):
    """Two calls with one full batch each are two steps of AdamW at a constant rate: the moments must come along."""
    steady = STEADY | {"lr_schedule": "constant", "epochs": 2, "head_init": "random"}
    clf = BertSequenceClassifier(checkpoint, random_state=0, **steady)
    whole = clone(clf).fit(TEXTS, LABELS)
    parts = clone(clf).partial_fit(TEXTS, LABELS, classes=["rotten", "fresh"]).partial_fit(TEXTS, LABELS)
    np.testing.assert_allclose(parts.predict_proba(TEXTS), whole.predict_proba(TEXTS), atol=1e-5)
    np.testing.assert_allclose(parts.loss_curve_, whole.loss_curve_, rtol=1e-5)

    forgetful = clone(clf).partial_fit(TEXTS, LABELS, classes=["rotten", "fresh"])
    forgetful._optimizer_state = None
    assert np.abs(forgetful.partial_fit(TEXTS, LABELS).predict_proba(TEXTS) - whole.predict_proba(TEXTS)).max() > 1e-4


def test_partial_fit_goes_on_after_a_pickle_as_if_nothing_had_been(clf):
    clf.partial_fit(TEXTS, LABELS, classes=["fresh", "rotten"])
    loaded = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(
        loaded.partial_fit(TEXTS, LABELS).predict_proba(TEXTS), clf.partial_fit(TEXTS, LABELS).predict_proba(TEXTS)
    )


def test_only_partial_fit_keeps_the_state_of_the_optimiser(clf):
    small = len(pickle.dumps(clf.fit(TEXTS, LABELS)))
    large = len(pickle.dumps(clf.partial_fit(TEXTS, LABELS)))
    weights = sum(weight.nbytes for weight in clf.model_.parameters())
    assert large - small > 1.9 * weights
    assert len(pickle.dumps(clf.fit(TEXTS, LABELS))) < small + 1000


def test_partial_fit_adds_a_row_to_the_history_at_each_call(clf):
    for _ in range(3):
        clf.partial_fit(TEXTS, LABELS, classes=["fresh", "rotten"])
    assert [(row["epoch"], row["step"]) for row in clf.history_] == [(1, 2), (2, 4), (3, 6)]
    assert clf.n_iter_ == 1
    assert clf.best_loss_ == min(clf.loss_curve_)
    assert clf.loss_curve_ == [row["training_loss"] for row in clf.history_]


def test_partial_fit_goes_on_after_fit(clf):
    clf.fit(TEXTS, LABELS).partial_fit(TEXTS, LABELS)
    assert [row["epoch"] for row in clf.history_] == [1, 2, 3]


def test_partial_fit_meets_classes_that_come_later(clf):
    clf.partial_fit(TEXTS[:3], LABELS[:3], classes=["fresh", "rotten"])
    assert clf.classes_.tolist() == ["fresh", "rotten"]
    clf.partial_fit(TEXTS[-3:], LABELS[-3:])
    assert clf.predict_proba(TEXTS).shape == (len(TEXTS), 2)


def test_going_on_keeps_the_type_of_the_labels(clf):
    labels = (np.array(LABELS) == "fresh").astype(np.int8)
    clf.partial_fit(TEXTS, labels, classes=np.array([0, 1], dtype=np.int8))
    assert clf.partial_fit(TEXTS, labels, classes=[0, 1]).classes_.dtype == np.int8
    assert clf.set_params(warm_start=True).fit(TEXTS, labels.astype(int)).classes_.dtype == np.int8


def test_partial_fit_takes_an_indicator_matrix(clf):
    clf.partial_fit(TEXTS, MATRIX, classes=[0, 1, 2]).partial_fit(TEXTS[:2], MATRIX[:2])
    assert clf.predict(TEXTS).shape == MATRIX.shape
    with pytest.raises(ValueError, match="y has 2 columns, but there are 3 labels"):
        clf.partial_fit(TEXTS, MATRIX[:, :2])


def test_each_call_of_partial_fit_draws_its_own_order_and_dropout(clf, monkeypatch):
    orders = []
    batches = _training.random_batches

    def recording(*args, **kwargs):
        made = list(batches(*args, **kwargs))
        orders.append(np.concatenate(made).tolist())
        return made

    monkeypatch.setattr(_training, "random_batches", recording)
    for _ in range(2):
        clone(clf).partial_fit(TEXTS, LABELS, classes=["fresh", "rotten"]).partial_fit(TEXTS, LABELS)
    assert orders[0] != orders[1]
    assert orders[:2] == orders[2:]


def test_the_first_call_of_partial_fit_needs_the_classes(clf):
    with pytest.raises(ValueError, match=r"classes must be passed on the first call to partial_fit"):
        clf.partial_fit(TEXTS, LABELS)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"early_stopping": True}, "partial_fit does not support early_stopping=True"),
        ({"class_weight": "balanced"}, "class_weight='balanced' is not supported for partial_fit"),
    ],
)
def test_partial_fit_refuses_what_needs_all_texts_at_once(clf, parameters, message):
    with pytest.raises(ValueError, match=message):
        clf.set_params(**parameters).partial_fit(TEXTS, LABELS, classes=["fresh", "rotten"])


def test_partial_fit_refuses_other_classes_labels_and_columns(clf):
    clf.partial_fit(TEXTS, LABELS, classes=["fresh", "rotten"])
    with pytest.raises(ValueError, match=r"The classes are \['a', 'fresh', 'rotten'\], but were"):
        clf.partial_fit(TEXTS, LABELS, classes=["fresh", "rotten", "a"])
    with pytest.raises(ValueError, match=r"y\[0\] is 'new', a class that is not among the classes"):
        clf.partial_fit(["a film"], ["new"])
    with pytest.raises(ValueError, match=r"X has 2 text\(s\) a row"):
        clf.partial_fit([("a", "film")], ["fresh"])


def test_partial_fit_keeps_the_columns_of_the_first_call(checkpoint):
    import pandas as pd

    frame = pd.DataFrame({"body": TEXTS})
    clf = BertSequenceClassifier(checkpoint, random_state=0).partial_fit(frame, LABELS, classes=["fresh", "rotten"])
    clf.partial_fit(TEXTS, LABELS)
    assert clf.feature_names_in_.tolist() == ["body"]
    with pytest.raises(ValueError, match="The feature names should match"):
        clf.partial_fit(frame.rename(columns={"body": "title"}), LABELS)


def test_a_shallow_copy_shares_the_network_and_nothing_that_training_changes(clf):
    clf.fit(TEXTS, LABELS)
    copied, before = copy.copy(clf), clf.predict_proba(TEXTS)
    assert copied.model_ is clf.model_
    clf.set_params(warm_start=True).fit(TEXTS, LABELS).partial_fit(TEXTS, LABELS)
    np.testing.assert_array_equal(copied.predict_proba(TEXTS), before)
    assert copied.warm_start is False
