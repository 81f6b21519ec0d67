"""With calibration the network is as sure as it is right on texts that were held out."""

import copy

import numpy as np
import pytest
import torch
from conftest import LABELS, TEXTS
from sklearn.metrics import log_loss
from test_learning import MANY, MATRIX, NOISY

from bertclf import BertSequenceClassifier, _training
from bertclf._calibration import best_temperature

GIVEN = {"X_val": MANY[::2], "y_val": NOISY[::2]}


@pytest.fixture
def clf(checkpoint):
    settings = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "precision": "float32", "random_state": 0}
    return BertSequenceClassifier(checkpoint, **settings)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_that_logits_were_heated_by_is_found(factor):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 3)).astype(np.float32)
    odds = np.exp(logits)
    targets = (odds.cumsum(axis=1) / odds.sum(axis=1, keepdims=True) < generator.random((len(logits), 1))).sum(axis=1)
    weights = np.ones(len(targets), dtype=np.float32)
    assert best_temperature(logits * factor, targets, weights) == pytest.approx(factor, rel=0.05)


def test_texts_of_no_weight_are_not_asked():
    logits = np.tile(np.array([[2.0, 0.0]], dtype=np.float32), (4000, 1))
    targets = (np.arange(4000) % 4 == 0).astype(int)  # three of four are right
    more = np.concatenate([targets, np.ones(4000, dtype=int)])
    found = best_temperature(np.concatenate([logits, logits]), more, np.repeat([2.0, 0.0], 4000).astype(np.float32))
    assert found == pytest.approx(2 / np.log(3), rel=1e-2)


@pytest.mark.parametrize("right", [True, False])
def test_few_texts_that_are_all_right_or_all_wrong_do_not_make_the_network_sure_or_blind(right):
    logits = np.tile(np.array([[3.0, 0.0]], dtype=np.float32), (6, 1))
    found = best_temperature(logits, np.full(6, int(not right)), np.ones(6, dtype=np.float32))
    assert 0.6 < found < 1 if right else 1 < found < 3


def test_a_single_class_tells_nothing_of_temperature():
    ones = np.ones(5, dtype=np.float32)
    assert best_temperature(ones[:, None], np.zeros(5, dtype=int), ones) == pytest.approx(1.0, abs=1e-3)


def test_the_loss_of_validation_falls_and_no_prediction_changes(clf):
    before = copy.copy(clf).fit(MANY, NOISY, **GIVEN)
    after = clf.set_params(calibration="temperature").fit(MANY, NOISY, **GIVEN)
    assert before.temperature_ == 1.0 != after.temperature_
    assert np.allclose(before.decision_function(MANY) / after.temperature_, after.decision_function(MANY), atol=1e-5)
    assert np.array_equal(before.predict(MANY), after.predict(MANY))
    losses = [log_loss(GIVEN["y_val"], fitted.predict_proba(GIVEN["X_val"])) for fitted in (before, after)]
    assert losses[1] < losses[0] == pytest.approx(before.history_[-1]["validation_loss"], rel=1e-4)


def test_without_validation_texts_some_are_held_out_as_for_early_stopping(clf, monkeypatch):
    from bertclf import _training

    seen, temperature = [], _training.best_temperature
    monkeypatch.setattr(_training, "best_temperature", lambda *given: seen.append(given[1]) or temperature(*given))
    clf.set_params(calibration="temperature", validation_fraction=0.25).fit(MANY, NOISY)
    assert [len(targets) for targets in seen] == [11]
    assert clf.history_[-1]["validation_loss"] is not None
    assert clf.validation_scores_ is None
    clf.set_params(early_stopping=True).fit(MANY, NOISY)
    assert [len(targets) for targets in seen] == [11, 11]


def test_the_temperature_is_in_the_weights_that_are_saved(clf, tmp_path):
    clf.set_params(calibration="temperature").fit(MANY, NOISY, **GIVEN)
    clf.save_pretrained(tmp_path / "saved")
    loaded = BertSequenceClassifier.from_pretrained(tmp_path / "saved")
    assert loaded.temperature_ == clf.temperature_
    assert loaded.calibration == "temperature"
    assert np.array_equal(loaded.predict_proba(MANY), clf.predict_proba(MANY))
    encoded = clf.tokenizer_(TEXTS[:1], return_tensors="pt")
    with torch.no_grad():
        probabilities = clf.model_(**encoded).logits.softmax(dim=1).numpy()
    assert np.allclose(probabilities, clf.predict_proba(TEXTS[:1]), atol=1e-6)


def test_many_labels_have_one_temperature(clf):
    clf.set_params(calibration="temperature").fit(TEXTS, MATRIX, X_val=TEXTS, y_val=1 - MATRIX)
    assert clf.temperature_ > 1.5  # it is wrong wherever it is sure


def test_a_fit_that_is_taken_up_again_is_calibrated_once(clf, tmp_path):
    clf.set_params(calibration="temperature", checkpoint=tmp_path / "fit").fit(MANY, NOISY)
    expected, temperature = clf.predict_proba(TEXTS), clf.temperature_
    clf.fit(MANY, NOISY)
    assert clf.temperature_ == temperature
    assert np.array_equal(clf.predict_proba(TEXTS), expected)


def test_weights_of_classes_have_no_part_in_it_those_of_texts_have(clf):
    clf.set_params(calibration="temperature", epochs=1, learning_rate=1e-12)
    plain = copy.copy(clf).fit(MANY, NOISY, **GIVEN).temperature_
    weighted = copy.copy(clf).fit(MANY, NOISY, **GIVEN, sample_weight_val=np.arange(len(GIVEN["y_val"]))).temperature_
    assert abs(plain - weighted) > 1e-3
    clf.set_params(head_init="random")
    plain = copy.copy(clf).fit(MANY, NOISY, **GIVEN).temperature_
    assert clf.set_params(class_weight={"fresh": 5.0}).fit(MANY, NOISY, **GIVEN).temperature_ == pytest.approx(plain)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_going_on_begins_without_the_temperature(clf, spread_checkpoint, method, monkeypatch):
    monkeypatch.setattr(_training, "best_temperature", lambda *_: 2.0)
    clf.set_params(model=spread_checkpoint, warm_start=True).fit(MANY, NOISY, **GIVEN)
    expected = clf.predict_proba(MANY)
    clf = copy.copy(clf).set_params(warm_start=False, calibration="temperature").fit(MANY, NOISY, **GIVEN)
    assert clf.temperature_ == 2.0
    clf.set_params(warm_start=True, calibration=None, epochs=1, learning_rate=1e-12)
    getattr(clf, method)(MANY, NOISY)
    assert clf.temperature_ == 1.0
    np.testing.assert_allclose(clf.predict_proba(MANY), expected, atol=1e-5)


def test_parts_can_not_be_calibrated(clf):
    with pytest.raises(ValueError, match=r"partial_fit does not support calibration='temperature'.*calibration=None"):
        clf.set_params(calibration="temperature").partial_fit(TEXTS, LABELS, classes=["fresh", "rotten"])


def test_another_calibration_is_refused(clf):
    with pytest.raises(ValueError, match="calibration"):
        clf.set_params(calibration="isotonic").fit(TEXTS, LABELS)
