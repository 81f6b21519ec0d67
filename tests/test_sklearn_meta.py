"""What scikit-learn's meta-estimators and tools make of each container of texts: a matrix with every cell asserted."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import polars as pl
import pytest
from conftest import LABELS, TEXTS
from containers import CONTAINERS, OBJECTS, ONE_DIMENSIONAL, PAIRS, SECOND, TWO_DIMENSIONAL
from numpy.testing import assert_array_equal
from sklearn.base import BaseEstimator, clone
from sklearn.calibration import CalibratedClassifierCV, CalibrationDisplay
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay, DetCurveDisplay, PrecisionRecallDisplay, RocCurveDisplay
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    GroupKFold,
    HalvingGridSearchCV,
    HalvingRandomSearchCV,
    LearningCurveDisplay,
    RandomizedSearchCV,
    StratifiedShuffleSplit,
    TunedThresholdClassifierCV,
    ValidationCurveDisplay,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
    train_test_split,
    validation_curve,
)
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier, OutputCodeClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.semi_supervised import SelfTrainingClassifier

from bertclf import BertSequenceClassifier

mpl.use("agg")

N = len(TEXTS)
# What each container must give the results of: a list of texts, or of pairs.
SAME_AS = {name: "pairs" if name == "two-column frame" else "texts" for name in CONTAINERS}
REFERENCES = {"texts": TEXTS, "pairs": PAIRS}

THREE = [f"class {row % 3}" for row in range(N)]
TWO_TASKS = np.column_stack([LABELS, THREE])
INDICATOR = np.array([[0, 1], [1, 0]] * (N // 2))
PARTLY_LABELLED = np.array([1, 1, 1, 1, 1, -1, -1, 0, 0, 0, 0, 0, -1, -1])
RATES = {"learning_rate": [1e-3, 1e-2]}
HALF = StratifiedShuffleSplit(n_splits=1, test_size=0.5, random_state=0)
SCORED = {"cv": HALF, "scoring": "neg_log_loss", "error_score": "raise"}
HALVING = SCORED | {"resource": "epochs", "min_resources": 1, "max_resources": 2, "factor": 2, "random_state": 0}

Use = Callable[[BertSequenceClassifier, Any], Any]


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture
def clf(spread_checkpoint) -> BertSequenceClassifier:
    return BertSequenceClassifier(spread_checkpoint, epochs=2, learning_rate=1e-2, device="cpu", random_state=0)


def probabilities(estimator: BaseEstimator, X: Any, y: Any = LABELS) -> Any:
    return estimator.fit(X, y).predict_proba(X)


def train_and_test(clf: BertSequenceClassifier, X: Any) -> Any:
    train, test, y_train, _ = train_test_split(X, LABELS, random_state=0, stratify=LABELS)
    return clf.fit(train, y_train).predict_proba(test)


def group_k_fold(clf: BertSequenceClassifier, X: Any) -> Any:
    return cross_val_score(clf, X, LABELS, groups=np.arange(N) % 4, **(SCORED | {"cv": GroupKFold(2)}))


def searched(search: BaseEstimator, X: Any) -> Any:
    search.fit(X, LABELS)
    return [*search.cv_results_["mean_test_score"], *search.predict_proba(X).ravel()]


def output_code(clf: BertSequenceClassifier, X: Any) -> Any:
    coded = OutputCodeClassifier(clf, random_state=0).fit(X, THREE)
    binary = [binary.predict_proba(X) for binary in coded.estimators_]
    return [*(coded.predict(X) == THREE), *np.ravel(binary)]


def tuned_threshold(clf: BertSequenceClassifier, X: Any) -> Any:
    tuned = TunedThresholdClassifierCV(clf, cv=HALF, thresholds=5, scoring="accuracy", random_state=0).fit(X, LABELS)
    return [tuned.best_threshold_, *tuned.predict_proba(X).ravel()]


TAKE_EVERY_CONTAINER: dict[str, Use] = {
    "Pipeline": lambda clf, X: probabilities(make_pipeline(FunctionTransformer(), clf), X),
    "train_test_split": train_and_test,
    "cross_validate": lambda clf, X: cross_validate(clf, X, LABELS, **SCORED)["test_score"],
    "cross_val_predict": lambda clf, X: cross_val_predict(clf, X, LABELS, cv=2, method="predict_proba"),
    "GroupKFold": group_k_fold,
    "learning_curve": lambda clf, X: learning_curve(clf, X, LABELS, train_sizes=[1.0], **SCORED)[2],
    "LearningCurveDisplay": lambda clf, X: (
        LearningCurveDisplay.from_estimator(clf, X, LABELS, train_sizes=[0.8, 1.0], **SCORED).test_scores
    ),
    "validation_curve": lambda clf, X: validation_curve(
        clf, X, LABELS, param_name="epochs", param_range=[1, 2], **SCORED
    )[1],
    "ValidationCurveDisplay": lambda clf, X: (
        ValidationCurveDisplay.from_estimator(
            clf, X, LABELS, param_name="epochs", param_range=[1, 2], **SCORED
        ).test_scores
    ),
    "permutation_test_score": lambda clf, X: permutation_test_score(
        clf, X, LABELS, cv=HALF, n_permutations=1, scoring="neg_log_loss", random_state=0
    )[0],
    "GridSearchCV": lambda clf, X: searched(GridSearchCV(clf, RATES, **SCORED), X),
    "RandomizedSearchCV": lambda clf, X: searched(
        RandomizedSearchCV(clf, RATES, n_iter=1, random_state=0, **SCORED), X
    ),
    "HalvingGridSearchCV": lambda clf, X: searched(HalvingGridSearchCV(clf, RATES, **HALVING), X),
    "HalvingRandomSearchCV": lambda clf, X: searched(HalvingRandomSearchCV(clf, RATES, **HALVING), X),
    "CalibratedClassifierCV, sigmoid": lambda clf, X: probabilities(CalibratedClassifierCV(clf, cv=HALF), X),
    "CalibratedClassifierCV, isotonic": lambda clf, X: probabilities(
        CalibratedClassifierCV(clf, method="isotonic", cv=HALF), X
    ),
    "CalibratedClassifierCV, temperature": lambda clf, X: probabilities(
        CalibratedClassifierCV(clf, method="temperature", cv=HALF), X
    ),
    "CalibratedClassifierCV, frozen": lambda clf, X: probabilities(
        CalibratedClassifierCV(FrozenEstimator(clf.fit(X, LABELS))), X
    ),
    "FrozenEstimator": lambda clf, X: probabilities(FrozenEstimator(clf.fit(X, LABELS)), X, THREE),
    "FixedThresholdClassifier": lambda clf, X: probabilities(FixedThresholdClassifier(clf, threshold=0.4), X),
    "TunedThresholdClassifierCV": tuned_threshold,
    "VotingClassifier": lambda clf, X: probabilities(
        VotingClassifier([("one", clf), ("other", clone(clf).set_params(random_state=1))], voting="soft"), X
    ),
    "StackingClassifier": lambda clf, X: probabilities(
        StackingClassifier([("texts", clf)], final_estimator=LogisticRegression(), cv=2), X
    ),
    "OneVsRestClassifier": lambda clf, X: probabilities(OneVsRestClassifier(clf), X, THREE),
    "OutputCodeClassifier": output_code,
    "MultiOutputClassifier": lambda clf, X: np.hstack(probabilities(MultiOutputClassifier(clf), X, TWO_TASKS)),
    "ConfusionMatrixDisplay": lambda clf, X: (
        ConfusionMatrixDisplay.from_estimator(clf.fit(X, LABELS), X, LABELS).confusion_matrix
    ),
    "RocCurveDisplay": lambda clf, X: RocCurveDisplay.from_estimator(clf.fit(X, LABELS), X, LABELS).tpr,
    "PrecisionRecallDisplay": lambda clf, X: (
        PrecisionRecallDisplay.from_estimator(clf.fit(X, LABELS), X, LABELS).recall
    ),
    "DetCurveDisplay": lambda clf, X: DetCurveDisplay.from_estimator(clf.fit(X, LABELS), X, LABELS).fnr,
    "CalibrationDisplay": lambda clf, X: CalibrationDisplay.from_estimator(clf.fit(X, LABELS), X, LABELS).y_prob,
}
NEED_TWO_DIMENSIONS: dict[str, Use] = {
    "BaggingClassifier": lambda clf, X: probabilities(BaggingClassifier(clf, n_estimators=2, random_state=0), X),
    "AdaBoostClassifier": lambda clf, X: probabilities(
        AdaBoostClassifier(clf.set_params(epochs=30), n_estimators=2, random_state=0), X
    ),
    "permutation_importance": lambda clf, X: (
        permutation_importance(
            clf.fit(X, LABELS), X, LABELS, n_repeats=2, random_state=0, scoring="neg_log_loss"
        ).importances
    ),
}
APPEND_NUMBERS: dict[str, Use] = {
    "ClassifierChain": lambda clf, X: ClassifierChain(clf).fit(X, INDICATOR),
    "StackingClassifier, passthrough": lambda clf, X: StackingClassifier(
        [("texts", clf)], final_estimator=LogisticRegression(), cv=2, passthrough=True
    ).fit(X, LABELS),
}
WANT_NUMBERS: dict[str, Use] = {
    "OneVsOneClassifier": lambda clf, X: OneVsOneClassifier(clf).fit(X, THREE).decision_function(X),
    "SelfTrainingClassifier": lambda clf, X: probabilities(SelfTrainingClassifier(clf), X, PARTLY_LABELLED),
}

_references: dict[tuple[str, str], Any] = {}


def reference(use: str, container: str, clf: BertSequenceClassifier) -> Any:
    """Return what a list gives, computed once."""
    key = use, SAME_AS[container]
    if key not in _references:
        _references[key] = (TAKE_EVERY_CONTAINER | NEED_TWO_DIMENSIONS)[use](clone(clf), REFERENCES[key[1]])
    return _references[key]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("use", TAKE_EVERY_CONTAINER)
def test_a_tool_that_takes_every_container_gives_the_results_of_a_list(clf, use, container):
    result = TAKE_EVERY_CONTAINER[use](clf, CONTAINERS[container])
    assert np.isfinite(result).all()
    assert_array_equal(result, reference(use, container, clf))


@pytest.mark.parametrize("container", ONE_DIMENSIONAL)
@pytest.mark.parametrize("use", NEED_TWO_DIMENSIONS)
def test_a_tool_for_tables_refuses_one_dimension(clf, use, container):
    errors = {("permutation_importance", "Series"): (IndexError, "tuple index out of range")}
    error, message = errors.get((use, container), (ValueError, "Expected 2D array|Expected a 2-dimensional container"))
    with pytest.raises(error, match=message):
        NEED_TWO_DIMENSIONS[use](clf, ONE_DIMENSIONAL[container])


@pytest.mark.parametrize("container", TWO_DIMENSIONAL)
@pytest.mark.parametrize("use", NEED_TWO_DIMENSIONS)
def test_a_tool_for_tables_takes_columns_of_texts(clf, use, container):
    as_array = {"two-column frame": np.array([TEXTS, SECOND], dtype=object).T}.get(container, OBJECTS[:, None])
    expected = NEED_TWO_DIMENSIONS[use](clone(clf), as_array)
    with _expected_warning(use, container):
        result = NEED_TWO_DIMENSIONS[use](clf, TWO_DIMENSIONAL[container])
    assert np.isfinite(result).all()
    assert_array_equal(result, expected)


def _expected_warning(use: str, container: str) -> AbstractContextManager[Any]:
    """permutation_importance keeps a frame of pandas and turns one of polars into an array, without the names."""
    if (use, container) == ("permutation_importance", "polars frame"):
        return pytest.warns(UserWarning, match="X does not have valid feature names")
    return nullcontext()


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("use", APPEND_NUMBERS)
def test_a_tool_that_appends_numbers_to_the_texts_fails(clf, use, container):
    message = "Expected 2D array|could not convert string to float|same number of dimensions|every text must be a str"
    with pytest.raises((ValueError, TypeError), match=message):
        APPEND_NUMBERS[use](clf, CONTAINERS[container])


@pytest.mark.parametrize("container", [name for name in CONTAINERS if name != "polars frame"])
@pytest.mark.parametrize("use", WANT_NUMBERS)
def test_a_tool_that_turns_texts_into_numbers_fails(clf, use, container):
    with pytest.raises(ValueError, match=r"Expected 2D array|could not convert string to float"):
        WANT_NUMBERS[use](clf, CONTAINERS[container])


@pytest.mark.parametrize("container", ["polars frame"])
@pytest.mark.parametrize("use", WANT_NUMBERS)
def test_a_tool_that_turns_texts_into_numbers_overlooks_those_of_polars(clf, use, container):
    # scikit-learn 1.9 looks for strings in the dtype of a container, and a frame of polars has none.
    assert_array_equal(WANT_NUMBERS[use](clone(clf), CONTAINERS[container]), by_identifiers(use, clf))


@pytest.mark.parametrize("use", WANT_NUMBERS)
def test_identifiers_that_are_looked_up_take_texts_through_a_tool_for_numbers(clf, use):
    result = by_identifiers(use, clf)
    assert len(result) == N
    assert np.isfinite(result).all()
    assert len(np.unique(result)) > 2


def by_identifiers(use: str, clf: BertSequenceClassifier) -> Any:
    """Return what a tool makes of row numbers, which a transformer in front of the classifier turns into texts."""
    look_up = FunctionTransformer(lambda rows: OBJECTS[np.asarray(rows)[:, 0].astype(int)])
    return WANT_NUMBERS[use](make_pipeline(look_up, clf), np.arange(N)[:, None])


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_a_column_transformer_picks_the_column_of_the_texts(clf, frame):
    table = frame({"number": range(N), "body": TEXTS})
    pick = ColumnTransformer([("texts", "passthrough", ["body"])])
    assert_array_equal(probabilities(make_pipeline(pick, clone(clf)), table), probabilities(clf, TEXTS))


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_samplers_of_imbalanced_learn_need_a_table_that_they_can_rebuild(clf, container):
    sampler = pytest.importorskip("imblearn.over_sampling").RandomOverSampler(random_state=0)
    X, y = CONTAINERS[container], ["rare"] * 4 + ["frequent"] * (N - 4)
    if container in ONE_DIMENSIONAL:
        with pytest.raises(ValueError, match=r"Expected 2D array|Expected a 2-dimensional container"):
            sampler.fit_resample(X, y)
    elif container == "polars frame":
        with pytest.raises(TypeError, match="Field elements must be 2- or 3-tuples"):
            sampler.fit_resample(X, y)
    else:
        more, labels = sampler.fit_resample(X, y)
        assert clf.fit(more, labels).predict_proba(X).shape == (N, 2)
        assert len(more) == 2 * (N - 4)


@pytest.mark.xfail(raises=KeyError, strict=False, reason="scikit-learn 1.9.1 reads y[0], a label of the index, in fit")
def test_temperature_scaling_takes_labels_in_a_series_without_the_index_0(clf):
    labels = pd.Series(LABELS, index=range(1, N + 1))
    assert probabilities(CalibratedClassifierCV(clf, method="temperature", cv=2), TEXTS, labels).shape == (N, 2)


def test_the_matrix_has_every_cell():
    assert len(CONTAINERS) == 11
    tools = [*TAKE_EVERY_CONTAINER, *NEED_TWO_DIMENSIONS, *APPEND_NUMBERS, *WANT_NUMBERS]
    assert len(tools) == len(set(tools)) == 38
