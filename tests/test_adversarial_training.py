"""Rows 30 and 41 to 43 of the table of bad input and bad days: what can go wrong in a training."""

import copy
import functools
import itertools
import logging
import math
import os
import random
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import LABELS, TEXTS, saying
from numpy.testing import assert_array_equal
from sklearn.base import clone
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from bertclf import (
    BertSequenceClassifier,
    _checkpoint,
    _classifier,
    _collapse,
    _device,
    _encoding,
    _network,
    _progress,
    _random,
    _resume,
    _steps,
    _training,
)
from bertclf._embeddings import UsedRows
from bertclf._engine import Engine
from bertclf._process import lock_for
from bertclf._tokens import TokenStore

Maker = Callable[..., BertSequenceClassifier]
MANY, MANY_LABELS = TEXTS * 2, LABELS * 2


@pytest.fixture(scope="module")
def make(spread_checkpoint: Path) -> Maker:
    """A function that makes an unfitted classifier of a tiny checkpoint that learns in few steps."""

    def make_classifier(**parameters: Any) -> BertSequenceClassifier:
        defaults = {"epochs": 2, "batch_size": 7, "learning_rate": 1e-3, "random_state": 0, "precision": "float32"}
        return BertSequenceClassifier(spread_checkpoint, **(defaults | parameters))

    return make_classifier


# Row 30: Ctrl-C. Each stage is a function that the fit calls, and which of the calls is interrupted.

STAGES: dict[str, tuple[Any, str, int]] = {
    "reading the texts": (_classifier, "read_texts", 1),
    "reading the labels": (_classifier, "read_labels", 1),
    "weighing": (_classifier, "label_texts", 1),
    "choosing the device": (_device, "choose_compute", 1),
    "drawing the seed": (_random, "draw_seed", 1),
    "opening the file of the fit": (_resume, "_read", 1),
    "holding out": (_classifier, "split", 1),
    "locating the checkpoint": (_checkpoint, "_locate", 1),
    "loading the tokenizer": (_checkpoint, "load_tokenizer", 1),
    "loading the network": (_checkpoint, "_load_network", 1),
    "drawing the head": (_checkpoint, "draw_new_head", 1),
    "trying padding": (_checkpoint, "padding_matters", 1),
    "placing the network": (_device.Compute, "place", 1),
    "freezing": (_network, "_weights_below", 1),
    "tokenizing": (PreTrainedTokenizerBase, "__call__", 4),
    "trying the engine": (Engine, "_layout", 1),
    "trying the scorer": (_classifier._WithKnownLogits, "predict", 1),
    "making the optimiser": (_steps, "make_optimizer", 1),
    "the first forward pass": (Engine, "logits", 1),
    "a loss": (_steps, "classification_loss", 3),
    "a backward pass": (torch.autograd, "backward", 2),
    "clipping": (_steps.Optimization, "_clip", 3),
    "a step of the optimiser": (torch.optim.AdamW, "step", 2),
    "putting embeddings back": (UsedRows, "put_back", 1),
    "validation": (_training._Watch, "measure", 2),
    "scoring": (_classifier._WithKnownLogits, "predict", 2),
    "keeping the best weights": (_progress.BestWeights, "see", 2),
    "keeping the state": (_resume, "_write_safetensors", 2),
    "restoring the best weights": (_progress.BestWeights, "restore", 1),
    "checking the weights": (_training, "_check_weights", 1),
    "taking on the fit": (BertSequenceClassifier, "_become", 1),
}
INTERRUPTED = {"early_stopping": True, "scoring": "accuracy", "freeze": 0}


def settings_of_the_process() -> list[Any]:
    """Return all that a fit sets for a moment, or could."""
    return [
        torch.get_rng_state().tolist(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        random.getstate(),
        (torch.get_default_dtype(), torch.get_default_device()),
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.are_deterministic_algorithms_enabled()),
        (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled(), torch.get_autocast_dtype("cpu")),
        (torch.get_num_threads(), torch.get_num_interop_threads()),
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        [list(logging.getLogger(name).filters) for name in ("", *_checkpoint.LOGS)],
        (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()),
        (dict(os.environ), list(warnings.filters)),
    ]


def fitted_in_a_thread(clf: BertSequenceClassifier) -> BertSequenceClassifier:
    """Fit where a lock that was left behind would keep the thread from ending."""
    thread = threading.Thread(target=clf.fit, args=(MANY, MANY_LABELS), daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    return clf


@pytest.fixture(scope="module")
def old(make: Maker) -> BertSequenceClassifier:
    return make(**INTERRUPTED).fit(TEXTS * 2, LABELS[::-1] * 2)


@pytest.fixture(scope="module")
def expected(make: Maker) -> np.ndarray:
    return make(**INTERRUPTED).fit(MANY, MANY_LABELS).predict_proba(TEXTS)


@pytest.mark.parametrize(("owner", "name", "call"), STAGES.values(), ids=STAGES)
def test_row_30_an_interrupted_fit_leaves_everything_as_it_was(
    old: BertSequenceClassifier,
    expected: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    owner: Any,
    name: str,
    call: int,
) -> None:
    clf = copy.copy(old).set_params(checkpoint=tmp_path)
    if name == "_weights_below":
        clf.set_params(freeze=1)
    calls, original = itertools.count(1), getattr(owner, name)

    @functools.wraps(original)
    def interrupt(*arguments: Any, **named: Any) -> Any:
        if next(calls) == call:
            assert name != "__call__" or lock_for(_encoding.TOKENIZING)._is_owned()
            raise KeyboardInterrupt
        return original(*arguments, **named)

    fitted, predicted, before = dict(vars(clf)), clf.predict_proba(TEXTS), settings_of_the_process()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            clf.fit(MANY, MANY_LABELS)

    assert settings_of_the_process() == before
    assert vars(clf).keys() == fitted.keys()
    assert all(vars(clf)[attribute] is value for attribute, value in fitted.items())
    assert_array_equal(clf.predict_proba(TEXTS), predicted)
    again = fitted_in_a_thread(clone(clf).set_params(freeze=0, checkpoint=None if clf.freeze else tmp_path))
    assert_array_equal(again.predict_proba(TEXTS), expected)


def test_row_30_a_classifier_that_was_never_fitted_can_be_fitted_after_an_interruption(
    make: Maker, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = make(**INTERRUPTED)
    before = dict(vars(clf))
    with monkeypatch.context() as patch:
        patch.setattr(_training, "_check_weights", _raise_keyboard_interrupt)
        with pytest.raises(KeyboardInterrupt):
            clf.fit(MANY, MANY_LABELS)

    assert vars(clf) == before
    assert_array_equal(clf.fit(MANY, MANY_LABELS).predict_proba(TEXTS), expected)


def _raise_keyboard_interrupt(network: Any) -> None:
    raise KeyboardInterrupt


def test_row_30_ctrl_c_ends_a_fit(make: Maker, old: BertSequenceClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal itself, which arrives in the middle of a backward pass."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    calls, backward = itertools.count(1), torch.autograd.backward

    def press(loss: torch.Tensor) -> None:
        if next(calls) == 3:
            loss.register_hook(lambda gradient: os.kill(os.getpid(), signal.SIGINT))
        backward(loss)

    clf = copy.copy(old)
    try:
        predicted, before = clf.predict_proba(TEXTS), settings_of_the_process()
        with monkeypatch.context() as patch:
            patch.setattr(torch.autograd, "backward", press)
            with pytest.raises(KeyboardInterrupt):
                clf.fit(MANY, MANY_LABELS)
        assert next(calls) == 4
        assert settings_of_the_process() == before
        assert_array_equal(clf.predict_proba(TEXTS), predicted)
    finally:
        signal.signal(signal.SIGINT, handler)


# Row 41: a loss that is not finite.


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("call", "epoch", "step"), [(1, 1, 1), (2, 1, 2), (3, 2, 1), (4, 2, 2)])
def test_row_41_a_loss_that_is_not_finite_is_told_with_its_step_and_the_old_model_stays(
    make: Maker, monkeypatch: pytest.MonkeyPatch, value: float, call: int, epoch: int, step: int
) -> None:
    clf = make(lr_schedule="constant").fit(TEXTS, LABELS)
    predicted, before = clf.predict_proba(TEXTS), dict(vars(clf))
    calls, compute_loss = itertools.count(1), _steps.classification_loss

    def fail(*arguments: Any, **named: Any) -> torch.Tensor:
        loss = compute_loss(*arguments, **named)
        return loss * value if next(calls) == call else loss

    monkeypatch.setattr(_steps, "classification_loss", fail)
    where = f"training loss is {value} in step {step} of epoch {epoch}", "at a learning rate of 0.001"
    with pytest.raises(
        FloatingPointError, match=saying(*where, "Lower learning_rate", "max_grad_norm", "warmup_ratio", "precision")
    ):
        clf.fit(TEXTS, LABELS)

    assert all(vars(clf)[name] is kept for name, kept in before.items())
    assert_array_equal(clf.predict_proba(TEXTS), predicted)


def test_row_41_weights_that_are_not_finite_in_the_end_are_told_and_the_old_model_stays(make: Maker) -> None:
    clf = make().fit(TEXTS, LABELS)
    predicted = clf.predict_proba(TEXTS)
    clf.set_params(epochs=1, batch_size=14, learning_rate=1e38, max_grad_norm=None, lr_schedule="constant")
    with pytest.raises(FloatingPointError, match=saying("is not finite after the last step", "Lower learning_rate")):
        clf.fit(TEXTS, LABELS)

    assert_array_equal(clf.predict_proba(TEXTS), predicted)


# Row 42: no memory left on the device.


class ShortOfMemory:
    """Lets forward passes of these numbers fail, in training or out of it, and keeps the gradient of each step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, failing: list[int], in_training: bool) -> None:
        self.sizes: list[int] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        numbers, logits, step = itertools.count(1), Engine.logits, _steps.Optimization.step

        def short(engine: Engine, store: Any, rows: Any, **known: Any) -> torch.Tensor:
            if torch.is_grad_enabled() == in_training:
                if next(numbers) in failing:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                self.sizes.append(len(rows))
            return logits(engine, store, rows, **known)

        def keeping(optimization: _steps.Optimization) -> None:
            weights = optimization.weights.items()
            self.gradients.append({name: weight.grad.clone() for name, weight in weights if weight.grad is not None})
            step(optimization)

        monkeypatch.setattr(Engine, "logits", short)
        monkeypatch.setattr(_steps.Optimization, "step", keeping)


@pytest.mark.parametrize("failing", [[1], [2], [1, 2], [2, 3]], ids=str)
def test_row_42_a_step_that_runs_out_of_memory_has_the_same_gradient_in_parts(
    make: Maker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failing: list[int]
) -> None:
    clf = make(dropout=0.0, epochs=1, verbose=1)
    with monkeypatch.context() as patch:
        enough = ShortOfMemory(patch, failing=[], in_training=True)
        clf.fit(TEXTS, LABELS)
    assert (enough.sizes, clf.micro_batch_size_) == ([7, 7], 7)
    assert "out of memory" not in capsys.readouterr().out
    with monkeypatch.context() as patch:
        short = ShortOfMemory(patch, failing=failing, in_training=True)
        clf.fit(TEXTS, LABELS)

    failed = failing[0] - 1  # the step; those before are whole
    assert short.sizes[:failed] == [7] * failed
    assert sum(short.sizes[failed:]) == 7 * (2 - failed)
    assert clf.micro_batch_size_ == max(short.sizes[failed:]) < 7
    assert short.gradients[failed].keys() == enough.gradients[failed].keys()
    for name, gradient in short.gradients[failed].items():
        torch.testing.assert_close(gradient, enough.gradients[failed][name], rtol=1e-6, atol=1e-6, msg=name)
    assert capsys.readouterr().out.count("out of memory: from here on at most") == len(failing)


def test_row_42_validation_that_runs_out_of_memory_finds_the_same(
    make: Maker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clf = make(verbose=1).fit(TEXTS, LABELS, X_val=TEXTS, y_val=LABELS)
    losses = [row["validation_loss"] for row in clf.history_]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        short = ShortOfMemory(patch, failing=[2], in_training=False)
        clf.fit(TEXTS, LABELS, X_val=TEXTS, y_val=LABELS)

    assert [row["validation_loss"] for row in clf.history_] == pytest.approx(losses, rel=1e-6)
    assert len(short.sizes) > 2
    assert "out of memory: from here on at most" in capsys.readouterr().out


@pytest.mark.parametrize("verbose", [0, 1])
def test_row_42_prediction_that_runs_out_of_memory_gives_the_same(
    make: Maker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verbose: int
) -> None:
    clf = make().fit(TEXTS, LABELS).set_params(verbose=verbose)
    expected = clf.predict_proba(TEXTS)
    short = ShortOfMemory(monkeypatch, failing=[1, 3], in_training=False)

    np.testing.assert_allclose(clf.predict_proba(TEXTS), expected, atol=1e-6)
    assert sum(short.sizes) == len(TEXTS)
    assert capsys.readouterr().out.count("out of memory: from here on at most") == 2 * verbose


@pytest.mark.parametrize("method", ["fit", "predict_proba"])
def test_row_42_no_memory_for_one_text_is_told_with_what_to_do(
    make: Maker, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    clf = make().fit(TEXTS, LABELS)
    with monkeypatch.context() as patch:
        ShortOfMemory(patch, failing=list(range(100)), in_training=method == "fit")
        with pytest.raises(torch.OutOfMemoryError) as caught:
            clf.fit(TEXTS, LABELS) if method == "fit" else clf.predict_proba(TEXTS)

    assert "There is no memory for one text" in caught.value.__notes__[0]
    assert "Lower max_length" in caught.value.__notes__[0]
    assert clf.predict(TEXTS).shape == (len(TEXTS),)


# Row 43: a training that ends with the same answer to all texts.

FILMS, FILM_LABELS = TEXTS * 4, LABELS * 4  # 14 steps an epoch in batches of 4
TOPICS = np.array(
    [["film" in text, "very" in text, label == "fresh"] for text, label in zip(FILMS, FILM_LABELS, strict=True)],
    dtype=int,
)
RARE = ["rare" if row % 14 == 0 else "usual" for row in range(len(FILMS))]
TARGETS = {"two classes": FILM_LABELS, "a rare class": RARE, "many labels": TOPICS}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many texts the answers were looked at after each training."""
    numbers: list[int] = []
    predict_logits = _collapse.predict_logits

    def counting(engine: Engine, store: Any, *, rows: Any, **more: Any) -> np.ndarray:
        numbers.append(len(rows))
        return predict_logits(engine, store, rows=rows, **more)

    monkeypatch.setattr(_collapse, "predict_logits", counting)
    return numbers


@pytest.mark.parametrize(
    "more", [{}, {"early_stopping": True, "n_iter_no_change": 8}, {"label_smoothing": 0.2}], ids=str
)
@pytest.mark.parametrize("y", TARGETS.values(), ids=TARGETS)
def test_row_43_a_training_that_collapses_is_told_with_what_to_try(make: Maker, y: Any, more: dict[str, Any]) -> None:
    clf = make(batch_size=4, epochs=9, learning_rate=0.5, **more)
    with pytest.warns(
        UserWarning, match=saying("came to nothing", "same answer", "Lower learning_rate", "class_weight")
    ):
        clf.fit(FILMS, y)

    assert len(np.unique(clf.predict(FILMS), axis=0)) == 1


def test_row_43_where_the_rate_was_low_a_higher_one_is_advised(make: Maker) -> None:
    with pytest.warns(UserWarning, match=saying("came to nothing", "Raise learning_rate or epochs")):
        make(batch_size=4, epochs=8, learning_rate=1e-9).fit(["film"] * 60, [0, 1] * 30)


@pytest.mark.parametrize("y", TARGETS.values(), ids=TARGETS)
def test_row_43_a_training_that_learns_something_is_not_and_costs_nothing(
    make: Maker, asked: list[int], y: Any
) -> None:
    """Warnings are errors here."""
    clf = make(batch_size=4, epochs=9, learning_rate=5e-3).fit(FILMS, y)

    assert clf.history_[-1]["step"] > _collapse.MIN_STEPS
    assert asked == []


def test_row_43_rare_classes_that_never_win_are_no_collapse(make: Maker) -> None:
    clf = make(batch_size=4, epochs=8, learning_rate=1e-4).fit(FILMS, RARE)

    assert set(clf.predict(FILMS)) == {"usual"}


def test_row_43_nothing_is_said_of_few_steps_of_one_class_or_of_labels_that_never_change(
    make: Maker, asked: list[int]
) -> None:
    make(batch_size=4, epochs=7, learning_rate=0.5).fit(FILMS, FILM_LABELS)
    clf = make(batch_size=4, epochs=8, learning_rate=0.5, label_smoothing=0.2)
    clf.fit(FILMS, ["fresh"] * len(FILMS))
    clf.fit(FILMS, np.array([[1, 0]] * len(FILMS)))

    assert asked == []


@pytest.mark.parametrize("more", [{}, {"freeze": "encoder"}], ids=str)
def test_row_43_a_network_that_has_not_begun_to_learn_is_not_taken_for_a_collapsed_one(
    make: Maker, asked: list[int], more: dict[str, Any]
) -> None:
    make(batch_size=4, epochs=8, learning_rate=1e-6, **more).fit(FILMS, FILM_LABELS)

    assert asked == [len(FILMS)]


def test_row_43_at_most_256_texts_are_looked_at_each_class_as_often_as_the_others() -> None:
    targets = np.array([0] * 1000 + [1] * 7 + [2] * 200)
    rows = _collapse.some_of_each(targets, 256)

    assert len(set(rows.tolist())) == 256
    assert np.bincount(targets[rows]).tolist() == [125, 7, 124]
    assert sorted(_collapse.some_of_each(np.eye(3, dtype=np.float32), 256)) == [0, 1, 2]
    assert len(_collapse.some_of_each(np.arange(1000), 256)) == 256


@pytest.mark.parametrize("shape", [(40,), (40, 3)], ids=["classes", "labels"])
def test_row_43_the_loss_of_the_best_constant_answer_is_the_lowest_that_descent_finds(
    shape: tuple[int, ...],
) -> None:
    drawn = np.random.default_rng(0)
    targets = drawn.integers(0, 3, shape) if len(shape) == 1 else (drawn.random(shape) < 0.2).astype(np.float32)
    weights = drawn.random(shape).astype(np.float32)
    tokens = TokenStore(np.zeros(40, np.int32), np.arange(41), None)
    training = _steps.LabelledTokens(tokens, targets, weights)
    constant = _collapse.constant_loss(training, n_classes=3)
    answer = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([answer], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        tensors = torch.from_numpy(targets), torch.from_numpy(weights)
        value = _steps.classification_loss(answer.expand(40, 3), *tensors, label_smoothing=0.0)
        value.backward()
        return value

    optimizer.step(loss)
    assert constant == pytest.approx(loss().item(), rel=1e-5)
