"""The callbacks of scikit-learn, alone and through meta-estimators."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import LABELS, TEXTS
from sklearn.base import clone
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from bertclf import BertSequenceClassifier, _steps

callback = pytest.importorskip("sklearn.callback", reason="callbacks came with scikit-learn 1.9")


class Recording:
    """Writes down the hooks that are called, and asks to stop after a task that `stops` names."""

    def __init__(self, stops=""):
        self.stops, self.hooks, self.fitted = stops, [], []

    def setup(self, estimator, context):
        self.hooks.append(("setup", context.task_name))

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None, metadata=None):
        self.hooks.append(("begin", context.task_name, context.max_subtasks, X, y, metadata))

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self.hooks.append(("end", context.task_name))
        if context.task_name == "epoch":
            self.fitted.append((fitted_estimator, fitted_estimator.predict_proba(TEXTS)))
        return context.task_name == self.stops

    def teardown(self, estimator, context):
        self.hooks.append(("teardown", context.task_name))

    def count(self, *hook):
        return sum(done[: len(hook)] == hook for done in self.hooks)


@pytest.fixture
def clf(checkpoint):
    return BertSequenceClassifier(checkpoint, epochs=3, batch_size=7, learning_rate=1e-2, random_state=0)


def test_a_callback_hears_of_the_fit_its_epochs_and_their_batches(clf):
    recording = Recording()
    weights = np.arange(1.0, 15)
    clf.set_callbacks(recording).fit(TEXTS, LABELS, sample_weight=weights)

    assert [recording.count("begin", name) for name in ("fit", "epoch", "batch")] == [1, 3, 6]
    assert [recording.count("end", name) for name in ("fit", "epoch", "batch")] == [1, 3, 6]
    assert recording.hooks[0] == ("setup", "fit")
    assert recording.hooks[1] == ("begin", "fit", 3, TEXTS, LABELS, {"sample_weight": weights})
    assert recording.hooks[2] == ("begin", "epoch", 2, TEXTS, LABELS, {"sample_weight": weights})
    assert recording.hooks[3] == ("begin", "batch", 0, None, None, None)
    assert recording.hooks[-2:] == [("end", "fit"), ("teardown", "fit")]


class Disturbing(Recording):
    """Draws from torch's generator wherever it is called."""

    def on_fit_task_begin(self, estimator, context):
        torch.manual_seed(1)

    def on_fit_task_end(self, estimator, context):
        torch.manual_seed(2)


@pytest.mark.parametrize("observer", [Recording, Disturbing])
def test_callbacks_do_not_change_the_training(clf, observer):
    plain = clone(clf).fit(TEXTS, LABELS).predict_proba(TEXTS)
    np.testing.assert_array_equal(clf.set_callbacks(observer()).fit(TEXTS, LABELS).predict_proba(TEXTS), plain)


class Keeping(Recording):
    """Keeps a pickle of the classifier of each epoch and of the fit."""

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if context.task_name != "batch":
            self.fitted.append(pickle.loads(pickle.dumps(fitted_estimator.set_callbacks())))


def test_the_classifier_of_an_epoch_is_whole(clf):
    keeping = Keeping()
    clf.set_params(early_stopping=True).fit(TEXTS, LABELS, X_val=TEXTS, y_val=LABELS)
    clf.set_callbacks(keeping).fit(TEXTS, LABELS, X_val=TEXTS, y_val=LABELS)

    epochs = [*range(1, clf.n_iter_ + 1), clf.n_iter_]
    assert [len(kept.history_) for kept in keeping.fitted] == [kept.n_iter_ for kept in keeping.fitted] == epochs
    last = keeping.fitted[-1]
    assert last.best_validation_score_ == clf.best_validation_score_
    np.testing.assert_array_equal(last.predict_proba(TEXTS), clf.predict_proba(TEXTS))


@pytest.mark.parametrize("columns", [["title"], ["title", "body"], None])
def test_the_classifier_of_an_epoch_knows_nothing_of_earlier_columns(clf, columns):
    import pandas as pd

    clf.fit(pd.DataFrame({"body": TEXTS}), LABELS)
    X = TEXTS if columns is None else pd.DataFrame(dict.fromkeys(columns, TEXTS))
    monitor = callback.ScoringMonitor(scoring="accuracy")
    clf.set_callbacks(monitor).fit(X, LABELS)
    assert len(monitor.get_logs().data) == 4


class Failing(Recording):
    """Fails at the end of the fit."""

    def on_fit_task_end(self, estimator, context):
        if context.task_name == "fit":
            raise RuntimeError("out of order")


def test_a_callback_that_fails_at_the_end_leaves_the_classifier_as_it_was(clf):
    before = clf.fit(TEXTS, LABELS).predict_proba(TEXTS)
    with pytest.raises(RuntimeError, match="out of order"):
        clf.set_callbacks(Failing()).fit(TEXTS, ["x", "y"] * 7)
    assert clf.classes_.tolist() == ["fresh", "rotten"]
    np.testing.assert_array_equal(clf.predict_proba(TEXTS), before)


def test_the_classifier_of_an_epoch_stays_as_it_was_after_that_epoch(clf):
    recording = Recording()
    clf.set_callbacks(recording).fit(TEXTS, LABELS)
    for fitted, probabilities in recording.fitted:
        np.testing.assert_array_equal(fitted.predict_proba(TEXTS), probabilities)
    np.testing.assert_array_equal(clf.predict_proba(TEXTS), recording.fitted[-1][1])
    assert np.abs(recording.fitted[0][1] - recording.fitted[-1][1]).max() > 1e-4


@pytest.mark.parametrize(("stops", "epochs", "steps"), [("epoch", 1, 2), ("batch", 3, 3)])
def test_a_callback_can_stop_the_training(clf, stops, epochs, steps):
    clf.set_callbacks(Recording(stops)).fit(TEXTS, LABELS)
    assert clf.n_iter_ == epochs
    assert clf.history_[-1]["step"] == steps


def test_callbacks_are_torn_down_when_the_fit_fails(clf, monkeypatch):
    recording = Recording()
    monkeypatch.setattr(_steps, "classification_loss", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        clf.set_callbacks(recording).fit(TEXTS, LABELS)
    assert recording.hooks[-1] == ("teardown", "fit")
    assert recording.count("end") == 0
    assert set(vars(clf)) == {*clf.get_params(), "_skl_callbacks"}


def test_a_fit_that_refuses_its_input_sets_up_no_callback(clf):
    recording = Recording()
    with pytest.raises(ValueError, match="empty"):
        clf.set_callbacks(recording).fit([], [])
    assert recording.hooks == []


def test_no_network_is_copied_unless_a_callback_asks_for_the_classifier(clf, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "__deepcopy__", None, raising=False)
    assert clf.set_callbacks(callback.ProgressBar()).fit(TEXTS, LABELS).n_iter_ == 3


def test_the_scoring_monitor_scores_every_epoch(clf):
    monitor = callback.ScoringMonitor(scoring=["accuracy", "neg_log_loss"])
    clf.set_callbacks(monitor).fit(TEXTS, LABELS)

    rows = monitor.get_logs().data
    assert [row["task_name"] for row in rows] == ["fit", "epoch", "epoch", "epoch"]
    fitted = rows[0]
    assert fitted["accuracy"] == rows[-1]["accuracy"] == clf.score(TEXTS, LABELS)
    assert fitted["neg_log_loss"] == pytest.approx(get_scorer("neg_log_loss")(clf, TEXTS, LABELS), rel=1e-6)
    assert rows[1]["neg_log_loss"] != rows[3]["neg_log_loss"]


def test_the_scoring_monitor_weighs_the_texts(clf):
    monitor = callback.ScoringMonitor(scoring="accuracy")
    weights = np.arange(1.0, 15)
    clf.set_callbacks(monitor).fit(TEXTS, LABELS, sample_weight=weights)
    assert monitor.get_logs().data[0]["accuracy"] == pytest.approx(clf.score(TEXTS, LABELS, sample_weight=weights))


def test_an_epoch_is_scored_without_a_pickle(clf, monkeypatch):
    monkeypatch.setattr(BertSequenceClassifier, "__getstate__", None)
    clf.set_callbacks(callback.ScoringMonitor(scoring="accuracy")).fit(TEXTS, LABELS)
    assert clf.n_iter_ == 3


# FunctionTransformer has no callbacks, as scikit-learn tells whoever sets a progress bar.
without_callbacks = pytest.mark.filterwarnings("ignore:The estimator FunctionTransformer does not support callbacks")


def lowered(texts):
    return [text.lower() for text in texts]


@without_callbacks
def test_callbacks_work_in_a_pipeline(clf, capsys):
    monitor = callback.ScoringMonitor(scoring="accuracy")
    pipeline = make_pipeline(FunctionTransformer(lowered), clf.set_callbacks(monitor))
    pipeline.set_callbacks(callback.ProgressBar()).fit(TEXTS, LABELS)

    assert [row["task_name"] for row in monitor.get_logs().data] == ["fit", "epoch", "epoch", "epoch"]
    assert "BertSequenceClassifier" in capsys.readouterr().out


@without_callbacks
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_callbacks_work_in_a_search_over_a_pipeline(clf, n_jobs, capsys):
    monitor = callback.ScoringMonitor(scoring="accuracy")
    pipeline = make_pipeline(FunctionTransformer(lowered), clf.set_callbacks(monitor))
    search = GridSearchCV(pipeline, {"bertsequenceclassifier__learning_rate": [1e-3, 1e-2]}, cv=2, n_jobs=n_jobs)
    search.set_callbacks(callback.ProgressBar(max_propagation_depth=2)).fit(TEXTS, LABELS)

    rows = monitor.get_logs().data
    assert sum(row["task_name"] == "epoch" for row in rows) == 3 * (2 * 2 + 1)
    assert len({row["parent_task_id_path"] for row in rows if row["task_name"] == "epoch"}) == 5
    assert "GridSearchCV" in capsys.readouterr().out


def test_a_classifier_with_callbacks_can_be_pickled(clf):
    clf.set_callbacks(callback.ScoringMonitor(scoring="accuracy")).fit(TEXTS, LABELS)
    loaded = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), clf.predict_proba(TEXTS))


def test_without_the_callbacks_of_scikit_learn_the_classifier_fits_in_silence(checkpoint):
    code = f"""
import sys
import sklearn.linear_model  # of a release that needs them
sys.modules["sklearn.callback"] = None
from bertclf import BertSequenceClassifier
clf = BertSequenceClassifier({str(checkpoint)!r}, epochs=1, random_state=0).fit({TEXTS!r}, {LABELS!r})
print(clf.n_iter_, hasattr(clf, "set_callbacks"))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["1", "False"]
