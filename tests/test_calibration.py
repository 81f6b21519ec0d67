"""With calibration the network is as sure as it is right on texts that were held out."""

import copy

import numpy as np
import pytest
import torch
from conftest import LABELS, TEXTS
from sklearn.metrics import log_loss
from test_learning import MANY, MATRIX, NOISY

from bertclf import BertSequenceClassifier
from bertclf._calibration import best_temperature
from bertclf._steps import LabelledTokens
from bertclf._tokens import TokenStore

GIVEN = {"X_val": MANY[::2], "y_val": NOISY[::2]}


@pytest.fixture
def clf(checkpoint):
    settings = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "precision": "float32", "random_state": 0}
    return BertSequenceClassifier(checkpoint, **settings)


def labelled(targets, weights=None):
    """Return targets as texts of no tokens have them."""
    store = TokenStore(np.zeros(0, dtype=np.int32), np.zeros(len(targets) + 1, dtype=np.int64), None)
    weights = np.ones(targets.shape) if weights is None else weights
    return LabelledTokens(store, targets, weights.astype(np.float32))


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_that_logits_were_heated_by_is_found(factor):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 3)).astype(np.float32)
    odds = np.exp(logits)
    targets = (odds.cumsum(axis=1) / odds.sum(axis=1, keepdims=True) < generator.random((len(logits), 1))).sum(axis=1)
    assert best_temperature(logits * factor, labelled(targets)) == pytest.approx(factor, rel=0.05)


def test_texts_of_no_weight_are_not_asked():
    logits = np.tile(np.array([[2.0, 0.0]], dtype=np.float32), (40, 1))
    targets = np.arange(40) % 4 == 0  # three of four are right
    wrong = labelled(np.concatenate([targets, np.ones(40, dtype=bool)]).astype(int), np.repeat([2.0, 0.0], 40))
    found = best_temperature(np.concatenate([logits, logits]), wrong)
    assert found == pytest.approx(best_temperature(logits, labelled(targets.astype(int))), rel=5e-3)
    assert found == pytest.approx(2 / np.log(3), rel=5e-3)


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
    monkeypatch.setattr(
        _training, "best_temperature", lambda logits, given: seen.append(given) or temperature(logits, given)
    )
    clf.set_params(calibration="temperature", validation_fraction=0.25).fit(MANY, NOISY)
    assert [len(given.targets) for given in seen] == [11]
    assert clf.history_[-1]["validation_loss"] is not None
    assert clf.validation_scores_ is None
    clf.set_params(early_stopping=True).fit(MANY, NOISY)
    assert [len(given.targets) for given in seen] == [11, 11]


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
    assert clf.temperature_ > 2  # it is wrong wherever it is sure


def test_a_fit_that_is_taken_up_again_is_calibrated_once(clf, tmp_path):
    clf.set_params(calibration="temperature", checkpoint=tmp_path / "fit").fit(MANY, NOISY)
    expected, temperature = clf.predict_proba(TEXTS), clf.temperature_
    clf.fit(MANY, NOISY)
    assert clf.temperature_ == temperature
    assert np.array_equal(clf.predict_proba(TEXTS), expected)


def test_parts_can_not_be_calibrated(clf):
    with pytest.raises(ValueError, match=r"partial_fit does not support calibration='temperature'.*calibration=None"):
        clf.set_params(calibration="temperature").partial_fit(TEXTS, LABELS, classes=["fresh", "rotten"])


def test_another_calibration_is_refused(clf):
    with pytest.raises(ValueError, match="calibration"):
        clf.set_params(calibration="isotonic").fit(TEXTS, LABELS)
