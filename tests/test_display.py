import sys

import matplotlib as mpl
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from bertclf import BertSequenceClassifier, TrainingDisplay

mpl.use("agg")

HISTORY = [
    {"epoch": 1, "training_loss": 0.7, "validation_loss": 0.6},
    {"epoch": 2, "training_loss": 0.4, "validation_loss": 0.5},
]


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def test_draws_both_curves_by_epoch():
    display = TrainingDisplay(history=HISTORY).plot()
    training, validation = display.lines_
    assert list(training.get_xdata()) == [1, 2]
    assert list(training.get_ydata()) == [0.7, 0.4]
    assert list(validation.get_ydata()) == [0.6, 0.5]
    assert display.ax_.get_xlabel() == "Epoch"
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == ["training", "validation"]


def test_without_validation_there_is_one_curve():
    history = [row | {"validation_loss": None} for row in HISTORY]
    assert [line.get_label() for line in TrainingDisplay(history=history).plot().lines_] == ["training"]


def test_rows_without_validation_are_left_out_of_its_curve():
    history = [*HISTORY, {"epoch": 3, "training_loss": 0.3, "validation_loss": None}]  # as after partial_fit
    training, validation = TrainingDisplay(history=history).plot().lines_
    assert list(training.get_xdata()) == [1, 2, 3]
    assert list(validation.get_xdata()) == [1, 2]


def test_draws_on_given_axes_with_given_style():
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    display = TrainingDisplay(history=HISTORY).plot(ax=axes, linestyle="--")
    assert display.ax_ is axes
    assert display.figure_ is figure
    assert {line.get_linestyle() for line in display.lines_} == {"--"}


def test_from_estimator_draws_the_history_of_a_fitted_classifier():
    clf = BertSequenceClassifier()
    with pytest.raises(NotFittedError):
        TrainingDisplay.from_estimator(clf)
    clf.model_, clf.history_ = object(), HISTORY
    assert len(TrainingDisplay.from_estimator(clf).lines_) == 2
    assert len(TrainingDisplay.from_estimator(make_pipeline("passthrough", clf)).lines_) == 2


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install bertclf\[plot\]"):
        TrainingDisplay(history=HISTORY).plot()
