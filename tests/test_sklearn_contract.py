"""scikit-learn's own checks of an estimator: the few that the classifier itself can take, and the battery for numbers.

With the honest tag `two_d_array=False` scikit-learn checks next to nothing. So the battery runs through an adapter,
for tests alone, that writes rows of numbers as texts and leaves everything else to the classifier.
"""

import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import sklearn
from scipy.sparse import issparse
from sklearn.base import clone
from sklearn.exceptions import SkipTestWarning
from sklearn.utils import Tags, estimator_checks
from sklearn.utils._testing import assert_allclose_dense_sparse
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.utils.fixes import parse_version
from sklearn.utils.validation import check_array, validate_data

from bertclf import BertSequenceClassifier


class Words(list):
    """Texts that the adapter wrote: a method that hands them to another method must not have them written again."""


class NumbersAsText(BertSequenceClassifier):
    """A classifier of rows of numbers: each number becomes a letter, in steps of a half.

    What concerns numbers alone is left to scikit-learn's `check_array` and `validate_data`: shape, dtype, NaN, and the
    number and names of the columns. Labels, weights, validation labels, parameters and sparse matrices reach the
    classifier as they came, and so does the lack of rows.
    """

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Self:
        held_out = {"X_val": None if X_val is None else _written(X_val), "y_val": y_val}
        super().fit(_written(X), y, sample_weight, **held_out, sample_weight_val=sample_weight_val)
        validate_data(self, X, skip_check_array=True)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        is_first = not hasattr(self, "n_features_in_")
        super().partial_fit(self._read(X), y, classes, sample_weight)
        if is_first:
            validate_data(self, X, skip_check_array=True)
        return self

    def predict(self, X: Any) -> Any:
        return super().predict(self._read(X))

    def predict_proba(self, X: Any) -> Any:
        return super().predict_proba(self._read(X))

    def predict_log_proba(self, X: Any) -> Any:
        return super().predict_log_proba(self._read(X))

    def decision_function(self, X: Any) -> Any:
        return super().decision_function(self._read(X))

    def _read(self, X: Any) -> Any:
        if hasattr(self, "n_features_in_") and not (isinstance(X, Words) or issparse(X)):
            validate_data(self, X, reset=False, ensure_min_samples=0)
        return _written(X)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = False
        tags.input_tags.one_d_array = False
        tags.input_tags.two_d_array = True
        return tags


def _written(X: Any) -> Any:
    if isinstance(X, Words) or issparse(X):
        return X
    steps = np.floor(check_array(X, ensure_min_samples=0) * 2).astype(int) % 26
    return Words(" ".join(chr(ord("a") + step) for step in row) for row in steps)


NUMBERS = NumbersAsText(epochs=15, batch_size=64, learning_rate=1e-2, dropout=0.0, precision="float32", device="cpu")
ARRAY_API_IS_ON = os.environ.get("SCIPY_ARRAY_API") == "1"
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": "the check allows a relative error of 1e-7, and float32 resolves "
    "1.2e-7: a sum of weighted losses and one of repeated losses round differently (it passes at 1e-4, tested here)"
}
with warnings.catch_warnings():
    warnings.simplefilter("ignore", SkipTestWarning)  # that of `two_d_array=False`
    CHECKS_FOR_TEXTS = list(estimator_checks_generator(BertSequenceClassifier()))
# Not strict: on another machine the two sums may happen to round alike.
CHECKS_FOR_NUMBERS = list(
    estimator_checks_generator(NUMBERS, expected_failed_checks=EXPECTED_FAILURES, mark="xfail", xfail_strict=False)
)


def name_of(value: Any) -> str:
    """Return the name of an estimator, or of a check with the arguments that tell it from others."""
    if not isinstance(value, partial):
        return type(value).__name__
    arguments = ",".join(f"{name}={argument}" for name, argument in value.keywords.items())
    return f"{value.func.__name__}({arguments})" if arguments else value.func.__name__


@pytest.mark.parametrize(("estimator", "check"), CHECKS_FOR_TEXTS, ids=name_of)
def test_the_checks_that_scikit_learn_has_for_texts_pass(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_mixin_order,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_param_validation,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_set_params,
        estimator_checks.check_valid_tag_types,
    ],
)
def test_the_checks_that_fit_nothing_pass_without_the_adapter(check):
    check("BertSequenceClassifier", BertSequenceClassifier())


@pytest.mark.parametrize(("estimator", "check"), CHECKS_FOR_NUMBERS, ids=name_of)
def test_the_checks_for_numbers_pass(estimator, check, spread_checkpoint, request):
    if check.func.__name__ == "check_array_api_input" and not ARRAY_API_IS_ON:
        run_with_the_array_api(request.node.nodeid)
    else:
        check(clone(estimator).set_params(model=spread_checkpoint))


def run_with_the_array_api(nodeid: str) -> None:
    """Run one test in a process with scipy's switch for other arrays than numpy's, which is read at its import."""
    folder = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", nodeid]
    done = subprocess.run(
        command, env=os.environ | {"SCIPY_ARRAY_API": "1"}, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize(
    "check", [estimator_checks.check_dataframe_column_names_consistency, estimator_checks.check_param_validation]
)
def test_the_checks_that_the_battery_leaves_out_pass(check, spread_checkpoint):
    check("NumbersAsText", clone(NUMBERS).set_params(model=spread_checkpoint))


def test_weights_equal_repetition_to_the_resolution_of_float32(spread_checkpoint, monkeypatch):
    """But for the start of the head, whose regression is held back the less the more texts there are."""
    monkeypatch.setattr(
        estimator_checks, "assert_allclose_dense_sparse", partial(assert_allclose_dense_sparse, rtol=1e-4, atol=1e-5)
    )
    estimator_checks.check_sample_weight_equivalence_on_dense_data(
        "NumbersAsText", clone(NUMBERS).set_params(model=spread_checkpoint, head_init="random")
    )


def test_the_battery_is_whole_and_at_most_one_failure_is_expected():
    names = {name_of(check) for _, check in estimator_checks_generator(NUMBERS)}
    assert len(names) >= (67 if parse_version(sklearn.__version__) >= parse_version("1.9") else 65)
    assert EXPECTED_FAILURES.keys() <= names
    assert len(EXPECTED_FAILURES) <= 1
