"""Metadata routing: weights and validation texts reach `fit` and `score` through meta-estimators."""

import numpy as np
import pytest
from conftest import LABELS, TEXTS
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from bertclf import BertSequenceClassifier, _classifier

WEIGHTS = np.linspace(0.5, 2, len(TEXTS))
HELD_OUT = (["A GREAT JOY", "AN AWFUL BORE", "A FINE FILM"], ["fresh", "rotten", "fresh"])


@pytest.fixture(autouse=True)
def routing():
    with config_context(enable_metadata_routing=True):
        yield


@pytest.fixture
def clf(checkpoint):
    return BertSequenceClassifier(checkpoint, epochs=2, learning_rate=1e-2, random_state=0)


def lowered(texts):
    return [text.lower() for text in texts]


class Lowering(FunctionTransformer):
    """Puts texts in lower case, and remembers what it saw."""

    def __init__(self):
        super().__init__(lowered)

    def transform(self, X):
        self.seen_ = list(X)
        return super().transform(X)


def test_a_pipeline_transforms_the_validation_texts_too(clf):
    clf.set_params(early_stopping=True).set_fit_request(X_val=True, y_val=True)
    pipeline = make_pipeline(Lowering(), clf, transform_input=["X_val"])
    X_val, y_val = HELD_OUT
    pipeline.fit(TEXTS, LABELS, X_val=X_val, y_val=y_val)

    alone = clone(clf).fit(TEXTS, LABELS, X_val=lowered(X_val), y_val=y_val)
    assert pipeline[0].seen_ == X_val
    assert pipeline[-1].validation_scores_ == alone.validation_scores_
    assert [row["validation_loss"] for row in pipeline[-1].history_] == [
        row["validation_loss"] for row in alone.history_
    ]


def test_weights_and_validation_texts_reach_every_fit_of_a_search(clf):
    clf.set_fit_request(sample_weight=True, X_val=True, y_val=True, sample_weight_val=True)
    clf.set_score_request(sample_weight=True)
    pipeline = make_pipeline(Lowering(), clf, transform_input=["X_val"])
    search = GridSearchCV(pipeline, {"bertsequenceclassifier__learning_rate": [1e-3, 1e-2]}, cv=2, error_score="raise")
    X_val, y_val = HELD_OUT
    search.fit(TEXTS, LABELS, sample_weight=WEIGHTS, X_val=X_val, y_val=y_val, sample_weight_val=[1, 2, 3])

    best = search.best_estimator_[-1]
    assert best.history_[-1]["validation_score"] == pytest.approx(
        accuracy_score(y_val, best.predict(lowered(X_val)), sample_weight=[1, 2, 3])
    )
    alone = clone(best).fit(TEXTS, LABELS, sample_weight=WEIGHTS)
    np.testing.assert_allclose(search.predict_proba(TEXTS), alone.predict_proba(TEXTS), atol=1e-6)


def test_weights_reach_fit_and_score_of_a_cross_validation(clf):
    clf.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
    cv = StratifiedKFold(2)
    answer = cross_validate(clf, TEXTS, LABELS, cv=cv, params={"sample_weight": WEIGHTS}, return_estimator=True)

    texts, labels = np.array(TEXTS), np.array(LABELS)
    for (train, test), score, fitted in zip(
        cv.split(texts, labels), answer["test_score"], answer["estimator"], strict=True
    ):
        expected = accuracy_score(labels[test], fitted.predict(texts[test]), sample_weight=WEIGHTS[test])
        assert score == pytest.approx(expected)
        alone = clone(clf).fit(texts[train], labels[train], sample_weight=WEIGHTS[train])
        np.testing.assert_allclose(fitted.predict_proba(texts), alone.predict_proba(texts), atol=1e-6)


@pytest.mark.parametrize(("n_given", "n_received"), [(len(TEXTS), len(TEXTS) // 2), (3, 3)])
def test_only_validation_texts_as_long_as_the_texts_are_cut_into_folds(clf, monkeypatch, n_given, n_received):
    """scikit-learn takes what is as long as X for data of its rows, as the docstring of `fit` warns."""
    received = []
    read = _classifier.read_validation

    def recording(X_val, *args, **kwargs):
        received.append(len(X_val))
        return read(X_val, *args, **kwargs)

    monkeypatch.setattr(_classifier, "read_validation", recording)
    clf.set_fit_request(X_val=True, y_val=True)
    held_out = {"X_val": TEXTS[:n_given], "y_val": LABELS[:n_given]}
    cross_validate(clf, TEXTS, LABELS, cv=2, params=held_out, error_score="raise")
    assert received == [n_received] * 2


def test_requests_survive_a_clone(clf):
    cloned = clone(clf.set_fit_request(sample_weight=True, X_val=True).set_score_request(sample_weight="other"))
    requests = cloned.get_metadata_routing()
    assert requests.fit.requests == {"sample_weight": True, "X_val": True, "y_val": None, "sample_weight_val": None}
    assert requests.score.requests == {"sample_weight": "other"}
    assert requests.partial_fit.requests == {"classes": None, "sample_weight": None}


@pytest.mark.parametrize("name", ["sample_weight", "X_val", "y_val", "sample_weight_val"])
def test_what_nobody_asked_for_is_refused(clf, name):
    with pytest.raises(UnsetMetadataPassedError, match=f"\\['?{name}'?\\] are passed but are not explicitly set"):
        make_pipeline(Lowering(), clf).fit(TEXTS, LABELS, **{name: WEIGHTS})
