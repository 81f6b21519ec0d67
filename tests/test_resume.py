"""A fit that is stopped goes on from its last epoch, and ends as if it had never been stopped; or says why it can't."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LABELS, TEXTS, saying
from safetensors.torch import load_file, safe_open, save_file
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from bertclf import BertSequenceClassifier, _progress, _resume, _steps, _training
from bertclf._files import ModelFileError
from bertclf._resume import FILE_NAME

MATRIX = np.array([["film" in text, "very" in text, "story" in text] for text in TEXTS], dtype=int)
PAIRS = list(zip(TEXTS, TEXTS[::-1], strict=True))
MANY, MANY_LABELS = TEXTS * 3, LABELS * 3
STEPS = 4  # of an epoch: 14 texts in batches of 4


@pytest.fixture
def make(checkpoint, tmp_path):
    """A function that makes an unfitted classifier of the tiny checkpoint, which keeps its state in a folder."""

    def make_classifier(**parameters):
        defaults = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-2, "random_state": 0}
        return BertSequenceClassifier(checkpoint, **(defaults | {"checkpoint": tmp_path / "fit"} | parameters))

    return make_classifier


@pytest.fixture
def stop(monkeypatch):
    """A function that lets the fit be interrupted at its n-th step from now on, None for never; and counts steps."""
    step = _steps.Descent.step
    counts = {"steps": 0, "last": None}

    def counted(descent, rows):
        counts["steps"] += 1
        if counts["steps"] == counts["last"]:
            raise KeyboardInterrupt
        return step(descent, rows)

    def stop_at(last):
        counts.update(steps=0, last=last)
        return counts

    monkeypatch.setattr(_steps.Descent, "step", counted)
    return stop_at


def interrupted(clf, stop, step, *arguments, **named):
    """Fit until a step, at which the fit is interrupted."""
    stop(step)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(*arguments, **named)


def without_seconds(history):
    return [{name: value for name, value in row.items() if not name.endswith("seconds")} for row in history]


def assert_same_bits(clf, other, texts=TEXTS):
    for name, weight in clf.model_.state_dict().items():
        assert torch.equal(weight, other.model_.state_dict()[name]), name
    assert without_seconds(clf.history_) == without_seconds(other.history_)
    for name in ("n_iter_", "loss_curve_", "best_loss_", "best_validation_score_", "validation_scores_"):
        assert getattr(clf, name) == getattr(other, name), name
    assert clf.micro_batch_size_ == other.micro_batch_size_
    assert clf.truncation_ == other.truncation_
    np.testing.assert_array_equal(clf.predict_proba(texts), other.predict_proba(texts))


KINDS = {
    "defaults": ({}, TEXTS, LABELS, {}),
    "pairs": ({}, PAIRS, LABELS, {}),
    "many labels": ({"class_weight": [{0: 1, 1: 3}, {}, {1: 2}]}, TEXTS, MATRIX, {}),
    "weights": ({"class_weight": "balanced"}, TEXTS[3:], LABELS[3:], {"sample_weight": np.arange(11.0)}),
    "validation": ({}, TEXTS, LABELS, {"X_val": TEXTS[::3], "y_val": LABELS[::3]}),
    "early stopping": ({"early_stopping": True, "epochs": 5, "n_iter_no_change": 4}, TEXTS * 2, LABELS * 2, {}),
    "a score": ({"early_stopping": True, "scoring": "f1_macro", "epochs": 4}, TEXTS * 2, LABELS * 2, {}),
    "a frozen layer": ({"freeze": 1}, TEXTS, LABELS, {}),
    "a frozen encoder": ({"freeze": "encoder", "early_stopping": True}, TEXTS * 2, LABELS * 2, {}),
    "bfloat16": ({"precision": "bfloat16", "freeze": 1}, TEXTS, LABELS, {}),
    "float16": ({"precision": "float16"}, TEXTS, LABELS, {}),
    "no clipping": ({"max_grad_norm": None, "label_smoothing": 0.1, "dropout": 0.3}, TEXTS, LABELS, {}),
    "mean": ({"pooling": "mean", "max_length": 5}, TEXTS, LABELS, {}),
    "plateau": ({"lr_schedule": "reduce_lr_on_plateau", "learning_rate": 0.3, "epochs": 14}, TEXTS, LABELS, {}),
    "cosine": ({"lr_schedule": "cosine_with_restarts", "warmup_ratio": 0.5}, TEXTS, LABELS, {}),
    "stable decay": ({"lr_schedule": "warmup_stable_decay"}, TEXTS, LABELS, {}),
}


@pytest.mark.parametrize(("parameters", "texts", "labels", "more"), KINDS.values(), ids=KINDS)
def test_a_fit_that_is_stopped_twice_ends_with_the_bits_of_one_that_is_not(
    make, stop, parameters, texts, labels, more
):
    whole = make(**parameters, checkpoint=None)
    per_epoch = stop(None)
    whole.fit(texts, labels, **more)
    per_epoch = per_epoch["steps"] // whole.n_iter_
    clf = make(**parameters)

    interrupted(clf, stop, per_epoch + 2, texts, labels, **more)  # in the second epoch
    assert not hasattr(clf, "model_")
    clf = make(**parameters)
    interrupted(clf, stop, per_epoch + 1, texts, labels, **more)  # right after it
    clf = make(**parameters)
    steps = stop(None)
    clf.fit(texts, labels, **more)
    assert steps["steps"] == (whole.n_iter_ - 2) * per_epoch
    assert_same_bits(clf, whole, texts)

    again = make(**parameters)
    steps = stop(None)
    again.fit(texts, labels, **more)
    assert steps["steps"] == 0
    assert_same_bits(again, whole, texts)
