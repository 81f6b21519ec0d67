"""Passes of as many tokens as memory takes: what running out of it changes, and what it doesn't."""

import itertools

import numpy as np
import pytest
import torch
from conftest import LABELS, TEXTS

from bertclf import BertSequenceClassifier, _training
from bertclf._budget import TokenBudget
from bertclf._engine import Engine

LENGTHS = np.array([4, 9, 2, 9, 3, 5, 1, 8])
STEADY = {"epochs": 3, "batch_size": 7, "dropout": 0.0, "precision": "float32", "random_state": 0}


class Memory:
    """Work that fails on passes of more than so many tokens, or on calls of these numbers, counted from one."""

    def __init__(self, most_tokens=10**9, failing_calls=()):
        self.most_tokens, self.failing_calls, self.calls, self.done = most_tokens, failing_calls, 0, []

    def __call__(self, rows):
        self.calls += 1
        if LENGTHS[rows].max() * len(rows) > self.most_tokens or self.calls in self.failing_calls:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.done += rows.tolist()


def test_all_texts_go_through_at_once_where_there_is_room():
    work, budget = Memory(), TokenBudget(1000)
    budget.run(LENGTHS, work)
    assert (sorted(work.done), work.calls, budget.most_texts) == ([*range(8)], 1, 8)


@pytest.mark.parametrize("most_tokens", [9, 10, 20, 40, 71])
def test_passes_shrink_until_they_fit_and_stay_as_small(most_tokens):
    work, budget = Memory(most_tokens), TokenBudget(1000)
    budget.run(LENGTHS, work, start_over=lambda: work.done.clear())
    assert sorted(work.done) == [*range(8)]
    assert budget.max_tokens <= most_tokens
    again = Memory(most_tokens)
    budget.run(LENGTHS, again)
    assert len(again.done) == len(LENGTHS)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_failure_at_any_pass_starts_all_over(call):
    work, budget = Memory(failing_calls=[call]), TokenBudget(18)
    undone = []

    def start_over():
        undone.extend(work.done)
        work.done.clear()

    budget.run(LENGTHS, work, start_over=start_over)
    assert sorted(work.done) == [*range(8)]
    assert len(undone) == [0, 2, 4][call - 1]
    assert budget.max_tokens < 18


def test_without_starting_over_what_was_done_is_kept():
    work, budget = Memory(failing_calls=[3]), TokenBudget(18)
    budget.run(LENGTHS, work)
    assert sorted(work.done) == [*range(8)]


def test_what_went_through_before_memory_ran_out_is_no_size_that_works():
    budget = TokenBudget(1000)
    budget.run(np.array([2] * 8), lambda rows: None)
    assert budget.most_texts == 8
    budget.run(LENGTHS, Memory(most_tokens=20))
    assert budget.most_texts < 8


def test_shrinking_is_told():
    told = []
    TokenBudget(1000, tell=told.append).run(LENGTHS, Memory(40))
    assert told == ["out of memory: from here on at most 36 tokens at once"]


def test_no_room_for_one_text_is_told_with_its_length():
    with pytest.raises(torch.OutOfMemoryError) as caught:
        TokenBudget(1000).run(LENGTHS, Memory(most_tokens=8))
    assert "no memory for one text of 9 tokens. Lower max_length" in caught.value.__notes__[0]


def test_other_errors_pass_through():
    def fail(rows):
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        TokenBudget(1000).run(LENGTHS, fail)


# Training and prediction


@pytest.fixture
def short_of_memory(monkeypatch):
    """A function that lets calls of the engine of these numbers fail, in training or out of it; the others are listed.

    What it returns are the numbers of texts of the calls that succeeded.
    """
    logits = Engine.logits

    def make_short(failing_calls, *, in_training):
        numbers, succeeded = itertools.count(1), []

        def short(engine, store, rows, **known):
            if torch.is_grad_enabled() == in_training:
                if next(numbers) in failing_calls:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                succeeded.append(len(rows))
            return logits(engine, store, rows, **known)

        monkeypatch.setattr(Engine, "logits", short)
        return succeeded

    return make_short


def fitted(checkpoint, **changes):
    return BertSequenceClassifier(checkpoint, learning_rate=1e-3, **(STEADY | changes)).fit(TEXTS, LABELS)


def assert_same_weights(clf, other):
    for (name, weight), expected in zip(clf.model_.named_parameters(), other.model_.parameters(), strict=True):
        if not name.endswith("key.bias"):  # its gradient is zero but for rounding, and AdamW divides that by its size
            torch.testing.assert_close(weight, expected, rtol=1e-3, atol=1e-4, msg=name)


def test_a_batch_in_parts_takes_the_same_steps(spread_checkpoint, monkeypatch):
    whole = fitted(spread_checkpoint)
    monkeypatch.setitem(_training.MAX_TOKENS, "cpu", 12)
    in_parts = fitted(spread_checkpoint)
    assert whole.micro_batch_size_ == 7
    assert in_parts.micro_batch_size_ == 3
    assert_same_weights(in_parts, whole)
    assert in_parts.loss_curve_ == pytest.approx(whole.loss_curve_, rel=1e-4)


@pytest.mark.parametrize("failing", [[1], [1, 3], [2], [6, 7]])
def test_training_that_runs_out_of_memory_takes_the_same_steps(spread_checkpoint, short_of_memory, failing):
    whole = fitted(spread_checkpoint)
    succeeded = short_of_memory(failing, in_training=True)
    clf = fitted(spread_checkpoint)
    assert_same_weights(clf, whole)
    assert clf.loss_curve_ == pytest.approx(whole.loss_curve_, rel=1e-4)
    since_the_last_failure = succeeded[failing[-1] - len(failing) :]
    assert clf.micro_batch_size_ == max(since_the_last_failure) < whole.micro_batch_size_ == 7


def test_memory_that_runs_out_on_the_way_back_leaves_no_gradient(spread_checkpoint, monkeypatch):
    whole = fitted(spread_checkpoint)
    calls, backward = itertools.count(1), torch.autograd.backward

    def short(loss):
        backward(loss)
        if next(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.autograd, "backward", short)
    clf = fitted(spread_checkpoint)
    assert_same_weights(clf, whole)
    assert clf.micro_batch_size_ < whole.micro_batch_size_


def test_training_on_a_text_that_never_fits_fails_with_a_remedy(spread_checkpoint, short_of_memory):
    short_of_memory(range(1, 100), in_training=True)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        fitted(spread_checkpoint)
    assert "There is no memory for one text" in caught.value.__notes__[0]


def test_prediction_that_runs_out_of_memory_gives_the_same(spread_checkpoint, short_of_memory):
    clf = fitted(spread_checkpoint)
    expected = clf.predict_proba(TEXTS)
    succeeded = short_of_memory([1, 3], in_training=False)
    np.testing.assert_allclose(clf.predict_proba(TEXTS), expected, atol=1e-6)
    assert max(succeeded) == len(TEXTS) // 2
