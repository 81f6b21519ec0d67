"""`thresholds="f1"`: of many labels, the probability above which to say yes, as validation texts tell."""

import copy
import json

import numpy as np
import pytest
from conftest import LABELS, TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from test_learning import MANY

from bertclf import BertSequenceClassifier, _calibration
from bertclf._calibration import best_thresholds

RARE = np.stack([np.arange(len(MANY)) % 2, np.arange(len(MANY)) % 4 == 0], axis=1).astype(int)
GIVEN = {"X_val": MANY, "y_val": RARE}


@pytest.fixture
def clf(checkpoint):
    settings = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-4, "precision": "float32", "random_state": 0}
    return BertSequenceClassifier(checkpoint, thresholds="f1", **settings)


@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.integers(0, 3)), min_size=1, max_size=40),
)
@settings(max_examples=200, deadline=None)
def test_no_other_threshold_has_a_higher_f1(rows):
    eighths, has_label, weights = (np.array(column) for column in zip(*rows, strict=True))
    probabilities, targets = (eighths / 8).astype(np.float32)[:, None], has_label.astype(np.float32)[:, None]
    (found,) = best_thresholds(probabilities, targets, weights.astype(np.float32)[:, None])
    if (has_label & (weights > 0)).sum() < _calibration.FEWEST_POSITIVES:
        assert found == 0.5
        return

    def f1(threshold):
        return f1_score(has_label, probabilities[:, 0] > threshold, sample_weight=weights, zero_division=0)

    assert f1(found) >= max(f1(threshold) for threshold in np.arange(0, 17) / 16) - 1e-6


@pytest.mark.parametrize(
    ("probabilities", "best"),
    [([0.9, 0.8, 0.1], 0.5), ([0.9, 0.8, 0.6], 0.7), ([0.4, 0.3, 0.1], 0.2), ([0.0, 0.0, 0.0], 0.5)],
)
def test_among_equal_thresholds_a_half_is_taken_or_the_middle_of_the_gap(probabilities, best):
    repeated = np.repeat(probabilities, 10).astype(np.float32)[:, None]
    targets = np.repeat([1.0, 1.0, 0.0], 10).astype(np.float32)[:, None]
    assert best_thresholds(repeated, targets, np.ones_like(targets)) == pytest.approx([best])


def test_labels_that_too_few_held_out_texts_have_are_named(clf):
    with pytest.warns(UserWarning, match=r"thresholds of 2 of 2 labels stay at 0\.5.* columns 0, 1 of y\. Pass X_val"):
        clf.fit(TEXTS, np.eye(2, dtype=int)[np.arange(len(TEXTS)) % 2])
    assert clf.thresholds_ == [0.5, 0.5]


def test_predictions_follow_the_thresholds_and_probabilities_stay(clf):
    plain = copy.copy(clf).set_params(thresholds=None).fit(MANY, RARE, **GIVEN)
    fitted = clf.fit(MANY, RARE, **GIVEN)
    assert plain.thresholds_ is None
    assert len(fitted.thresholds_) == 2
    probabilities = fitted.predict_proba(MANY)
    assert np.array_equal(probabilities, plain.predict_proba(MANY))
    assert np.array_equal(fitted.predict(MANY), (probabilities > fitted.thresholds_).astype(int))
    scores = [f1_score(RARE, way.predict(MANY), average="macro", zero_division=0) for way in (plain, fitted)]
    assert scores[1] > scores[0]


def test_without_validation_texts_some_are_held_out(clf, monkeypatch):
    monkeypatch.setattr(_calibration, "FEWEST_POSITIVES", 1)
    clf.set_params(validation_fraction=0.5).fit(MANY, RARE)
    assert clf.history_[-1]["validation_loss"] is not None
    assert clf.thresholds_ != [0.5, 0.5]


def test_they_are_those_of_calibrated_probabilities(clf):
    clf.set_params(calibration="temperature").fit(MANY, RARE, **GIVEN)
    assert clf.temperature_ != 1.0
    probabilities = clf.predict_proba(MANY)
    weights = np.ones((len(MANY), 1), dtype=np.float32)
    assert clf.thresholds_ == pytest.approx(best_thresholds(probabilities, RARE.astype(np.float32), weights), abs=1e-5)


def test_a_saved_classifier_keeps_them(clf, tmp_path):
    clf.fit(MANY, RARE, **GIVEN).save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "bertclf.json").read_text())["oldest_reader"] == 2
    loaded = BertSequenceClassifier.from_pretrained(tmp_path / "saved")
    assert loaded.thresholds_ == clf.thresholds_
    assert np.array_equal(loaded.predict(MANY), clf.predict(MANY))


def test_a_fit_without_forgets_them(clf):
    clf.fit(MANY, RARE, **GIVEN).set_params(thresholds=None).partial_fit(MANY, RARE)
    assert clf.thresholds_ is None


def test_one_label_a_text_has_no_thresholds(clf):
    with pytest.raises(ValueError, match=r"thresholds='f1' needs an indicator matrix.*TunedThresholdClassifierCV"):
        clf.fit(TEXTS, LABELS)


def test_parts_have_no_texts_to_seek_them_on(clf):
    with pytest.raises(ValueError, match=r"partial_fit does not support thresholds='f1'.*thresholds=None"):
        clf.partial_fit(MANY, RARE, classes=[0, 1])
