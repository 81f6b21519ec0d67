"""Texts that are too long: cut, cut to both ends, or spread over windows whose logits are averaged."""

import copy
import json
import pickle
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
import transformers
from conftest import LABELS, TEXTS, WORDS, texts_are_cut
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from tiny import POSITIONS, StandStill, build
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from bertclf import BertSequenceClassifier, _cuts, _encoding, _tokens
from bertclf._batches import random_batches
from bertclf._budget import TokenBudget
from bertclf._checkpoint import load_checkpoint
from bertclf._cuts import overlapping
from bertclf._device import Compute
from bertclf._encoding import Way
from bertclf._engine import Engine
from bertclf._frozen import FrozenStates
from bertclf._inference import predict_logits, prediction_budget
from bertclf._memory import TextMemory
from bertclf._network import output_layer, takes_segments
from bertclf._probe import head_inputs
from bertclf._steps import Descent, LabelledTokens
from bertclf._tokens import tokenize

CPU = Compute(torch.device("cpu"), torch.float32)
WAYS = ["truncate", "head_tail", "chunk"]
MAX_LENGTH = 12


def words(n_words, *, start=0):
    return " ".join(WORDS[(start + 3 * number) % len(WORDS)] for number in range(n_words))


# Of one window, of no token, of as many as fit and of one more, of several windows and of many.
LONG_TEXTS = [words(4), "", *(words(n, start=n) for n in (10, 11, 25, 40, 61)), "a fine film"]
LONG_LABELS = ["fresh", "rotten"] * 4
OTHERS = [words(n, start=n + 5) for n in (3, 20, 2, 8, 6, 30, 1, 5)]
PAIRS = list(zip(LONG_TEXTS, OTHERS, strict=True))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A function from an architecture to a network whose weights are spread, so that tokens differ, and a tokenizer."""
    found = {}

    def load(name, *, multilabel=False):
        if (name, multilabel) not in found:
            folder = tmp_path_factory.mktemp(name)
            build(name, folder, initializer_range=0.3)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                found[name, multilabel] = load_checkpoint(
                    folder,
                    revision=None,
                    labels=["a", "b", "c"],
                    multilabel=multilabel,
                    pooling="auto",
                    dropout=0.0,
                    verbose=False,
                )
        return found[name, multilabel]

    return load


@pytest.fixture
def make(checkpoint):
    """A function that makes an unfitted classifier of the tiny checkpoint, for texts of twelve tokens."""

    def make_classifier(**parameters):
        defaults = {
            "epochs": 2,
            "batch_size": 3,
            "learning_rate": 1e-3,
            "max_length": MAX_LENGTH,
            "long_text": "chunk",
            "precision": "float32",
            "random_state": 0,
        }
        return BertSequenceClassifier(**(defaults | {"model": checkpoint} | parameters))

    return make_classifier


def store_of(checkpoint, first=LONG_TEXTS, second=None, *, long_text="chunk", max_length=MAX_LENGTH, memory=None):
    return tokenize(
        first,
        second,
        way=Way(checkpoint.tokenizer, max_length, long_text),
        with_segments=takes_segments(checkpoint.network, checkpoint.tokenizer),
        memory=memory,
    )


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def windows_by_hand(tokenizer, first, second=None, max_length=MAX_LENGTH):
    """Return ids and segments of each window of a row, made from the tokens of the texts alone, for BERT and MPNet."""
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    if second is None:
        tokens = ids_of(tokenizer, first)
        return [
            ([cls, *tokens[part], sep], [0] * (part.stop - part.start + 2))
            for part in overlapping(len(tokens), fits=max_length - 2)
        ]
    texts = [ids_of(tokenizer, first), ids_of(tokenizer, second)]
    budget = max_length - 3
    shorter, longer = (0, 1) if len(texts[0]) <= len(texts[1]) else (1, 0)
    if sum(map(len, texts)) > budget:
        texts[shorter] = texts[shorter][: budget // 2]
    found = []
    for part in overlapping(len(texts[longer]), fits=budget - len(texts[shorter])):
        shown = list(texts)
        shown[longer] = texts[longer][part]
        segments = [0] * (len(shown[0]) + 2) + [1] * (len(shown[1]) + 1)
        found.append(([cls, *shown[0], sep, *shown[1], sep], segments))
    return found


def logits_by_hand(network, windows, *, segments):
    """Return the logits of windows from the network itself, each alone."""
    batches = [
        {"input_ids": torch.tensor([ids])} | ({"token_type_ids": torch.tensor([types])} if segments else {})
        for ids, types in windows
    ]
    return torch.cat([network(**batch, attention_mask=torch.ones_like(batch["input_ids"])).logits for batch in batches])


CASES = {
    "bert": ("bert", None, False),
    "a padded network": ("mpnet", None, False),
    "pairs": ("bert", OTHERS, False),
    "many labels": ("bert", None, True),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request, loaded):
    """A network and its tokenizer, labelled windows of long texts, and the same windows made by hand, of each text."""
    name, second, multilabel = request.param
    checkpoint = loaded(name, multilabel=multilabel)
    store = store_of(checkpoint, second=second)
    generator = np.random.default_rng(0)
    targets = generator.integers(3, size=len(store))
    if multilabel:
        targets = generator.integers(2, size=(len(store), 3)).astype(np.float32)
    weights = generator.uniform(0.5, 2, targets.shape).astype(np.float32)
    others = [None] * len(store) if second is None else second
    by_hand = [windows_by_hand(checkpoint.tokenizer, *row) for row in zip(LONG_TEXTS, others, strict=True)]
    assert max(map(len, by_hand)) > 3
    return checkpoint, LabelledTokens(store, targets, weights), by_hand


def loss_by_hand(network, training, by_hand, texts, *, smoothing):
    """Return the mean over some texts of weight times the mean loss of the windows of the text."""
    losses = []
    for text in texts:
        logits = logits_by_hand(network, by_hand[text], segments=training.tokens.segments is not None)
        target, weight = (
            torch.from_numpy(values[[text] * len(logits)]) for values in (training.targets, training.weights)
        )
        if target.ndim == 1:
            loss = cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
        else:
            smooth = torch.where(target == 1, 1 - smoothing / 2, smoothing / 2)
            loss = binary_cross_entropy_with_logits(logits, smooth, reduction="none")
        losses.append((weight * loss).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_losses_and_gradient_of_a_batch_are_those_of_windows_made_by_hand(case, smoothing):
    checkpoint, training, by_hand = case
    network, texts = copy.deepcopy(checkpoint.network), np.array([5, 0, 6, 3, 1])
    expected_loss = loss_by_hand(network, training, by_hand, texts, smoothing=smoothing)
    expected_loss.backward()
    plain_loss = loss_by_hand(network, training, by_hand, texts, smoothing=0.0)
    expected = {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
    largest = max(gradient.abs().max() for gradient in expected.values())
    for max_tokens in (10_000, 40, 1):  # in one part, in parts that cut texts in two, and window by window
        engine = Engine(checkpoint.network, device=CPU.device)
        still, budget = StandStill(engine, label_smoothing=smoothing), TokenBudget(max_tokens)
        losses = Descent(engine.train(), training, None, optimization=still, budget=budget, compute=CPU).step(texts)
        assert losses.tolist() == pytest.approx([expected_loss.item(), plain_loss.item()], rel=1e-5)
        assert still.gradients.keys() == expected.keys()
        for name, gradient in still.gradients.items():
            assert (gradient - expected[name]).abs().max() <= 1e-4 * largest, name
        if max_tokens == 1:
            assert budget.most_texts == 1


def test_the_gradient_is_the_same_where_memory_runs_out_between_windows_of_a_text(loaded, monkeypatch):
    checkpoint = loaded("bert")
    store = store_of(checkpoint)
    training = LabelledTokens(store, np.arange(len(store)) % 3, np.ones(len(store), dtype=np.float32))
    network, texts, logits = checkpoint.network, np.arange(len(store)), Engine.logits

    def step(most_windows):
        engine = Engine(network, device=CPU.device).train()
        calls = []

        def limited(self, store, windows, **more):
            calls.append(len(windows))
            if len(windows) > most_windows:
                raise torch.OutOfMemoryError
            return logits(self, store, windows, **more)

        monkeypatch.setattr(Engine, "logits", limited)
        still = StandStill(engine)
        Descent(engine, training, None, optimization=still, budget=TokenBudget(10_000), compute=CPU).step(texts)
        return still.gradients, calls

    expected, _ = step(1000)
    found, calls = step(3)
    assert calls[0] > 3
    assert max(calls[-3:]) <= 3
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_logits_are_the_mean_of_those_of_windows_made_by_hand(case):
    checkpoint, training, by_hand = case
    network, store = checkpoint.network, training.tokens
    engine, budget = Engine(network, device=CPU.device), prediction_budget(CPU)
    with torch.no_grad():
        expected = torch.stack(
            [logits_by_hand(network, windows, segments=store.segments is not None).mean(dim=0) for windows in by_hand]
        )
    found = predict_logits(engine, store, compute=CPU, budget=budget)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)
    texts = np.array([6, 2, 6, 0])
    some = predict_logits(engine, store, compute=CPU, budget=budget, rows=texts)
    np.testing.assert_allclose(some, expected.numpy()[texts], rtol=1e-5, atol=1e-5)


def test_what_the_output_layer_sees_is_averaged_to_the_same_logits(case):
    checkpoint, training, _ = case
    network, texts = checkpoint.network, np.array([6, 0, 4])
    reader = Engine(network, device=CPU.device)
    inputs = head_inputs(network, training, None, rows=texts, reader=reader, frozen=0, compute=CPU)
    with torch.no_grad():
        logits = output_layer(network)(torch.from_numpy(inputs))
    expected = predict_logits(reader, training.tokens, compute=CPU, budget=prediction_budget(CPU), rows=texts)
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [1, "encoder"])
def test_states_of_windows_lead_to_the_same_logits(loaded, frozen):
    checkpoint = loaded("bert")
    store = store_of(checkpoint)
    budget = prediction_budget(CPU)
    expected = predict_logits(Engine(checkpoint.network, device=CPU.device), store, compute=CPU, budget=budget)
    engine = Engine(checkpoint.network, device=CPU.device, frozen=frozen)
    states = FrozenStates(engine, store, memory=None, is_reused=True)
    for _ in range(2):
        found = predict_logits(engine, store, compute=CPU, budget=budget, states=states)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


# Tokens


def ragged(store, values=None):
    """Return the tokens of each window of each text."""
    values = store.ids if values is None else values
    windows = [values[start:stop].tolist() for start, stop in zip(store.offsets[:-1], store.offsets[1:], strict=True)]
    return [[windows[window] for window in store.windows_of(np.array([text]))] for text in range(len(store))]


def assert_counts_fit(store):
    """Check that what leads from texts to windows and back agrees."""
    texts = np.arange(len(store))
    counts = store.n_windows_of(texts)
    windows = store.windows_of(texts)
    assert counts.sum() == store.n_windows == len(store.lengths)
    assert windows.tolist() == list(range(store.n_windows))
    assert store.texts_of(windows).tolist() == np.repeat(texts, counts).tolist()
    assert (store.first_window is None) == (counts.max() == 1)


texts_of_words = st.lists(st.sampled_from([*WORDS, "naïve", "漢字", "😀", "  "]), max_size=40).map(" ".join)


@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "deberta-v2", "modernbert"])
@pytest.mark.parametrize("side", ["right", "left"])
@settings(deadline=None, max_examples=25)
@given(texts=st.lists(texts_of_words, min_size=1, max_size=6), max_length=st.integers(3, 30))
def test_single_texts_keep_both_ends_or_all_of_their_tokens_wherever_truncation_cuts(
    loaded, name, side, texts, max_length
):
    checkpoint = loaded(name)
    tokenizer = checkpoint.tokenizer
    whole = [tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"] for text in texts]
    fits = max_length - 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "truncation_side", side)
        both_ends = store_of(checkpoint, texts, long_text="head_tail", max_length=max_length)
        chunks = store_of(checkpoint, texts, max_length=max_length)
    n_head = 1 + (fits + 2) // 4
    n_tail = max_length - n_head
    cut = [ids if len(ids) <= max_length else ids[:n_head] + ids[-n_tail:] for ids in whole]
    assert ragged(both_ends) == [[ids] for ids in cut]
    assert both_ends.cut == {row: len(ids) - max_length for row, ids in enumerate(whole) if len(ids) > max_length}
    assert ragged(chunks) == [
        [ids[:1] + ids[1:-1][part] + ids[-1:] for part in overlapping(len(ids) - 2, fits=fits)] for ids in whole
    ]
    assert chunks.cut == {}
    assert chunks.lengths.max() <= max_length
    for store in (both_ends, chunks):
        assert_counts_fit(store)


def test_windows_of_pairs_are_those_made_by_hand(loaded):
    checkpoint = loaded("bert")
    store = store_of(checkpoint, second=OTHERS)
    by_hand = [windows_by_hand(checkpoint.tokenizer, *row) for row in PAIRS]
    assert ragged(store) == [[ids for ids, _ in windows] for windows in by_hand]
    assert ragged(store, store.segments) == [[types for _, types in windows] for windows in by_hand]
    lengths = [[len(ids_of(checkpoint.tokenizer, text)) for text in row] for row in PAIRS]
    assert store.cut == {
        row: min(pair) - 4 for row, pair in enumerate(lengths) if sum(pair) > MAX_LENGTH - 3 and min(pair) > 4
    }
    assert_counts_fit(store)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_shorter_text_of_a_pair_is_cut_where_truncation_cuts(loaded, side, monkeypatch):
    checkpoint = loaded("bert")
    monkeypatch.setattr(checkpoint.tokenizer, "truncation_side", side)
    short, long = ids_of(checkpoint.tokenizer, words(10)), ids_of(checkpoint.tokenizer, words(20, start=7))
    (windows,) = ragged(store_of(checkpoint, [words(10)], [words(20, start=7)], max_length=13))
    assert [window[1:6] for window in windows] == [short[:5] if side == "right" else short[-5:]] * len(windows)
    assert [window[7:-1] for window in windows] == [long[part] for part in overlapping(20, fits=5)]


def test_head_and_tail_of_both_texts_of_a_pair_are_kept(loaded):
    checkpoint = loaded("bert")
    first, second = (ids_of(checkpoint.tokenizer, words(n)) for n in (30, 40))
    store = store_of(checkpoint, [words(30)], [words(40)], long_text="head_tail", max_length=19)
    ((ids,),) = ragged(store)
    assert ids[1:-1] == [*first[:2], *first[-6:], checkpoint.tokenizer.sep_token_id, *second[:2], *second[-6:]]
    assert store.cut == {0: 70 - 16}


@pytest.mark.parametrize("long_text", WAYS)
def test_texts_that_fit_have_one_window_in_every_way(loaded, long_text):
    store = store_of(loaded("bert"), TEXTS, long_text=long_text)
    expected = store_of(loaded("bert"), TEXTS, long_text="truncate")
    assert store.first_window is None
    assert store.cut == {}
    assert store.ids.tobytes() == expected.ids.tobytes()
    assert store.offsets.tobytes() == expected.offsets.tobytes()


LETTERS = "abcdefghijklmnopqrstuvwxyz"
IN_PYTHON = {
    "truncate": ([LETTERS[:13]], 13, [("abcdef", "012345")], 24),
    "head_tail": ([LETTERS[:3] + LETTERS[-10:]], 13, [("ab" + "wxyz", "01" + "6789")], 24),
    "chunk": (
        [LETTERS[:10], LETTERS[8:18], LETTERS[16:]],
        0,
        [(LETTERS[n : n + 6], "012345") for n in range(0, 21, 5)],
        4,
    ),
}


@pytest.mark.parametrize(
    ("long_text", "single", "n_cut", "pairs", "n_cut_of_pair"), [(k, *v) for k, v in IN_PYTHON.items()]
)
def test_a_tokenizer_written_in_python_does_as_one_of_the_library(long_text, single, n_cut, pairs, n_cut_of_pair):
    tokenizer = transformers.ByT5Tokenizer(model_max_length=POSITIONS)
    how = {"way": Way(tokenizer, 14, long_text), "with_segments": True}
    store = tokenize(["short", LETTERS], None, **how)
    assert ragged(store) == [[tokenizer("short")["input_ids"]], [tokenizer(text)["input_ids"] for text in single]]
    assert store.cut == ({1: n_cut} if n_cut else {})
    store = tokenize(["a", LETTERS], ["b", "0123456789"], **how)
    assert ragged(store) == [[tokenizer("a", "b")["input_ids"]], [tokenizer(*pair)["input_ids"] for pair in pairs]]
    assert store.cut == {1: n_cut_of_pair}


def test_texts_stay_in_order_over_many_calls_of_the_tokenizer(loaded, monkeypatch):
    expected = store_of(loaded("bert"), LONG_TEXTS * 3)
    monkeypatch.setattr(_tokens, "TEXTS_PER_CALL", 5)
    by_number = store_of(loaded("bert"), LONG_TEXTS * 3)
    monkeypatch.setattr(_tokens, "CHARACTERS_PER_CALL", 200)
    calls, encode = [], _tokens.encode
    monkeypatch.setattr(_tokens, "encode", lambda rows, *more: calls.append(rows) or encode(rows, *more))
    by_characters = store_of(loaded("bert"), LONG_TEXTS * 3)
    for store in (by_number, by_characters):
        assert ragged(store) == ragged(expected)
    n_characters = [sum(len(text) for row in rows for text in row) for rows in calls]
    assert all(n <= 200 or len(rows) == 1 for n, rows in zip(n_characters, calls, strict=True))


# Very long texts


@pytest.mark.parametrize("name", ["bert", "gpt2", "xlm-roberta", "deberta-v2"])
@settings(deadline=None, max_examples=40)
@given(texts=st.lists(texts_of_words, min_size=1, max_size=6), max_length=st.integers(3, 12))
def test_excerpts_of_any_size_change_neither_head_nor_tail(loaded, name, texts, max_length):
    whole = store_of(loaded(name), texts, long_text="head_tail", max_length=max_length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cuts, "MIN_EXCERPT", 24)
        patch.setattr(_cuts, "CHARACTERS_PER_TOKEN", 1)
        store = store_of(loaded(name), texts, long_text="head_tail", max_length=max_length)
    assert ragged(store) == ragged(whole)


MEGABYTES = 10_000_000


@pytest.mark.parametrize("name", ["bert", "xlm-roberta"])
def test_of_ten_megabytes_head_and_tail_are_found_without_reading_the_middle(loaded, name, monkeypatch):
    checkpoint = loaded(name)
    beginning, end = "a fine film and the best story " * 40, " it was a waste of time , not good" * 40
    text = beginning + "long " * (MEGABYTES // 5) + end
    read, call = [], _encoding._call
    monkeypatch.setattr(
        _encoding, "_call", lambda tokenizer, rows, **more: read.extend(rows) or call(tokenizer, rows, **more)
    )
    ((ids,),) = ragged(store := store_of(checkpoint, [text], long_text="head_tail", max_length=POSITIONS))
    whole = checkpoint.tokenizer(beginning + end, split_special_tokens=True, verbose=False)["input_ids"]
    n_head = 1 + (POSITIONS - 2 + 2) // 4
    assert ids == whole[:n_head] + whole[-(POSITIONS - n_head) :]
    assert sum(len(text) for row in read for text in row) < 4 * 32_768
    assert store.cut[0] == pytest.approx(MEGABYTES // 5 + len(whole), rel=0.01)


@pytest.mark.parametrize("text", ["x" * 80_000, " " * 90_000 + "film", "film " + "y" * 90_000], ids=len)
def test_of_texts_with_few_spaces_head_and_tail_are_those_of_the_whole(loaded, text):
    checkpoint = loaded("xlm-roberta")
    whole = checkpoint.tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"]
    ((ids,),) = ragged(store_of(checkpoint, [text], long_text="head_tail"))
    n_head = 1 + (MAX_LENGTH - 2 + 2) // 4
    assert ids == (whole if len(whole) <= MAX_LENGTH else whole[:n_head] + whole[-(MAX_LENGTH - n_head) :])


def test_a_megabyte_is_spread_over_windows_and_tokenized_once(loaded, monkeypatch):
    checkpoint = loaded("bert")
    text = " ".join(WORDS[number % 37] for number in range(250_000))
    assert len(text) > 1_000_000
    read, call = [], _encoding._call
    monkeypatch.setattr(
        _encoding, "_call", lambda tokenizer, rows, **more: read.extend(rows) or call(tokenizer, rows, **more)
    )
    store = store_of(checkpoint, ["a film", text], max_length=POSITIONS)
    assert read == [("a film",), (text,)]
    windows = ragged(store)[1]
    assert len(windows) > 4000
    parts = overlapping(len(ids := ids_of(checkpoint.tokenizer, text)), fits=POSITIONS - 2)
    assert [window[1:-1] for window in windows] == [ids[part] for part in parts]


# The classifier


def test_decision_function_is_the_mean_over_windows_of_what_the_network_says(make):
    clf = make().fit(LONG_TEXTS, LONG_LABELS)
    with torch.no_grad():
        logits = torch.stack(
            [
                logits_by_hand(clf.model_, windows_by_hand(clf.tokenizer_, text), segments=False).mean(dim=0)
                for text in LONG_TEXTS
            ]
        )
    np.testing.assert_allclose(clf.decision_function(LONG_TEXTS), (logits[:, 1] - logits[:, 0]).numpy(), atol=1e-5)
    np.testing.assert_allclose(clf.predict_proba(LONG_TEXTS), torch.softmax(logits, dim=1).numpy(), atol=1e-5)


@pytest.mark.parametrize("parameters", [{}, {"freeze": 1}, {"early_stopping": True}], ids=str)
def test_short_texts_get_the_same_bits_in_every_way(make, parameters):
    fits = [make(long_text=long_text, **parameters).fit(TEXTS, LABELS) for long_text in WAYS]
    for clf in fits[1:]:
        for name, weight in clf.model_.state_dict().items():
            assert torch.equal(weight, fits[0].model_.state_dict()[name]), name
        assert clf.loss_curve_ == fits[0].loss_curve_
        np.testing.assert_array_equal(clf.predict_proba(TEXTS), fits[0].predict_proba(TEXTS))


def test_long_texts_get_other_logits_in_every_way(make):
    """What else would the tests above tell?"""
    answers = [make(long_text=way).fit(TEXTS, LABELS).decision_function([words(40)])[0] for way in WAYS]
    assert len(set(answers)) == 3


def test_each_text_counts_the_same_in_the_loss_of_an_epoch_whatever_its_windows(make):
    weights = np.linspace(0.5, 2, len(LONG_TEXTS))
    clf = make(epochs=1, learning_rate=1e-12, dropout=0.0, head_init="random", class_weight={"rotten": 3.0})
    clf.fit(LONG_TEXTS, LONG_LABELS, sample_weight=weights)
    weights = weights * np.where(np.array(LONG_LABELS) == "rotten", 3.0, 1.0)
    with torch.no_grad():
        losses = [
            -torch.log_softmax(
                logits_by_hand(clf.model_, windows_by_hand(clf.tokenizer_, text), segments=False), dim=1
            )[:, clf.classes_.tolist().index(label)].mean()
            for text, label in zip(LONG_TEXTS, LONG_LABELS, strict=True)
        ]
    assert clf.loss_curve_[0] == pytest.approx(np.average(losses, weights=weights), rel=1e-5)


def test_validation_looks_at_the_mean_logits(make):
    clf = make(early_stopping=True, calibration=None, epochs=3, n_iter_no_change=3)
    clf.fit(TEXTS, LABELS, X_val=LONG_TEXTS, y_val=LONG_LABELS)
    best = np.argmin([row["validation_loss"] for row in clf.history_])
    loss = log_loss(LONG_LABELS, clf.predict_proba(LONG_TEXTS))
    assert clf.history_[best]["validation_loss"] == pytest.approx(loss, rel=1e-5)
    assert clf.best_validation_score_ == clf.score(LONG_TEXTS, LONG_LABELS)


@texts_are_cut  # the shorter ones of pairs
@pytest.mark.parametrize(
    ("parameters", "X", "y"),
    [
        ({"early_stopping": True, "calibration": "temperature", "validation_fraction": 0.4}, LONG_TEXTS, LONG_LABELS),
        ({"scoring": "f1_macro", "early_stopping": True}, LONG_TEXTS * 2, LONG_LABELS * 2),
        ({"freeze": "encoder"}, LONG_TEXTS, LONG_LABELS),
        ({"pooling": "mean", "label_smoothing": 0.1}, PAIRS, LONG_LABELS),
        ({"class_weight": [{0: 1, 1: 3}, {}]}, LONG_TEXTS, np.array([[1, 0], [1, 1], [0, 1], [0, 0]] * 2)),
    ],
    ids=["calibration", "scoring", "frozen encoder", "pairs", "many labels"],
)
def test_windows_go_with_everything_else(make, parameters, X, y):
    clf = make(**parameters).fit(X, y)
    alone = np.concatenate([clf.predict_proba(X[row : row + 1]) for row in range(len(X))])
    np.testing.assert_allclose(clf.predict_proba(X), alone, atol=1e-5)
    again = clone(clf).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))


def test_partial_fit_and_warm_start_go_on_with_windows(make):
    clf = make()
    for part in (slice(0, 4), slice(4, 8)):
        clf.partial_fit(LONG_TEXTS[part], LONG_LABELS[part], classes=["fresh", "rotten"])
    before = clf.predict_proba(LONG_TEXTS)
    assert clf.truncation_["tokens"] == 0
    clf.set_params(warm_start=True).fit(LONG_TEXTS, LONG_LABELS)
    assert not np.allclose(clf.predict_proba(LONG_TEXTS), before)


@texts_are_cut
def test_a_search_over_long_text_finds_a_way(make):
    grid = {"long_text": np.array(WAYS)}
    search = GridSearchCV(make(epochs=1), grid, cv=2, scoring="neg_log_loss").fit(LONG_TEXTS, LONG_LABELS)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(set(search.cv_results_["mean_test_score"])) == 3
    assert search.best_estimator_._long_text == search.best_params_["long_text"]


def test_nothing_of_a_single_text_is_cut_into_windows(make):
    clf = make().fit(LONG_TEXTS, LONG_LABELS)  # a warning would be an error
    assert (clf.truncation_["texts"], clf.truncation_["tokens"]) == (0, 0)


def test_copies_of_tokens_do_not_dilute_the_share_that_is_cut(make, tmp_path):
    X = [(words(40), words(400))] * 2
    for memory in (None, tmp_path, tmp_path):
        with pytest.warns(UserWarning, match="2% of the tokens of X are cut: 20 in 2 texts"):
            make(max_length=POSITIONS - 1, epochs=1, memory=memory).fit(X, ["fresh", "rotten"])


@pytest.mark.parametrize(("long_text", "advises"), [("truncate", True), ("head_tail", True), ("chunk", False)])
def test_what_is_cut_is_told_with_what_would_help(make, long_text, advises):
    X = [(words(30), words(40))] * 2
    with pytest.warns(UserWarning, match="of the tokens of X are cut: .* than 12 tokens. Raise max_length") as caught:
        clf = make(long_text=long_text, epochs=1).fit(X, ["a", "b"])
    assert ("long_text='chunk'" in str(caught[0].message)) == advises
    assert clf.truncation_["tokens"] == 2 * (30 - 4 if long_text == "chunk" else 70 - 9)


def test_micro_batches_are_counted_in_windows(make):
    clf = make(epochs=1, batch_size=8).fit(LONG_TEXTS, LONG_LABELS)
    n_windows = sum(len(windows_by_hand(clf.tokenizer_, text)) for text in LONG_TEXTS)
    assert clf.micro_batch_size_ == n_windows > len(LONG_TEXTS)


def test_batches_hold_texts_whatever_their_windows(make, monkeypatch):
    batches = []
    step = Descent.step
    monkeypatch.setattr(Descent, "step", lambda descent, texts: batches.append(texts.tolist()) or step(descent, texts))
    clf = make(epochs=1).fit(LONG_TEXTS, LONG_LABELS)
    assert list(map(len, batches)) == [3, 3, 2]
    assert sorted(chain.from_iterable(batches)) == list(range(len(LONG_TEXTS)))
    assert clf.history_[0]["step"] == len(list(random_batches(8, batch_size=3, generator=np.random.default_rng(0))))


# Memory


@texts_are_cut
@pytest.mark.parametrize("frozen", [0, 1, "encoder"])
def test_a_memory_keeps_texts_and_windows_of_each_way_apart(make, tmp_path, monkeypatch, frozen):
    tokenized, encode = Counter(), _tokens.encode
    run, states = Counter(), Engine.states

    def counting_rows(rows, *more):
        tokenized.update(rows)
        return encode(rows, *more)

    def counting_windows(self, store, windows):
        run["windows"] += len(windows)
        return states(self, store, windows)

    expected = {
        way: make(long_text=way, freeze=frozen).fit(LONG_TEXTS, LONG_LABELS).predict_proba(LONG_TEXTS) for way in WAYS
    }
    monkeypatch.setattr(_tokens, "encode", counting_rows)
    monkeypatch.setattr(Engine, "states", counting_windows)
    for number_of_fit in range(2):
        for way in WAYS:
            clf = make(long_text=way, freeze=frozen, memory=tmp_path / "kept").fit(LONG_TEXTS, LONG_LABELS)
            np.testing.assert_allclose(clf.predict_proba(LONG_TEXTS), expected[way], atol=1e-6)
        assert set(tokenized.values()) == {3}, number_of_fit
        assert set(tokenized) == {(text,) for text in LONG_TEXTS}
    n_windows = sum(len(windows_by_hand(clf.tokenizer_, text)) for text in LONG_TEXTS)
    assert sum(run.values()) == (2 * len(LONG_TEXTS) + n_windows if frozen else 0)


def test_windows_come_from_a_memory_as_they_were_made(loaded, tmp_path):
    checkpoint, memory = loaded("bert"), TextMemory(tmp_path)
    made = store_of(checkpoint, second=OTHERS, memory=memory)
    found = store_of(checkpoint, second=OTHERS, memory=memory)
    for store in (made, found, store_of(checkpoint, second=OTHERS)):
        for name in ("ids", "offsets", "segments", "first_window"):
            np.testing.assert_array_equal(getattr(store, name), getattr(found, name), err_msg=name)
        assert store.cut == found.cut
    assert made.keys == found.keys
    assert len(set(found.keys)) == found.n_windows
    others = [store_of(checkpoint, second=OTHERS, memory=memory, long_text=way).keys for way in WAYS]
    assert sum(len(set(keys)) for keys in others) == len(set(chain.from_iterable(others)))


# Kept


def test_a_fitted_classifier_goes_on_as_it_was_fitted(make, tmp_path):
    clf = make().fit(LONG_TEXTS, LONG_LABELS)
    expected = clf.predict_proba(LONG_TEXTS)
    clf.set_params(long_text="truncate")
    np.testing.assert_array_equal(clf.predict_proba(LONG_TEXTS), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(clf)).predict_proba(LONG_TEXTS), expected)
    clf.save_pretrained(tmp_path)
    loaded = BertSequenceClassifier.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(LONG_TEXTS), expected)
    assert loaded.long_text == "truncate"
    with pytest.warns(UserWarning, match="of the tokens of X are cut"):
        clf.fit(LONG_TEXTS, LONG_LABELS)
    assert not np.allclose(clf.predict_proba(LONG_TEXTS), expected)


@pytest.mark.parametrize(("long_text", "oldest"), [("truncate", 1), ("head_tail", 2), ("chunk", 2)])
def test_versions_that_would_truncate_are_kept_from_reading_what_does_not(make, tmp_path, long_text, oldest):
    clf = make(long_text=long_text, epochs=1).fit(TEXTS, LABELS)
    clf.save_pretrained(tmp_path)
    manifest = json.loads((tmp_path / "bertclf.json").read_text())
    assert (manifest["long_text"], manifest["oldest_reader"]) == (long_text, oldest)
    np.testing.assert_array_equal(
        BertSequenceClassifier.from_pretrained(tmp_path).predict_proba([words(50)]), clf.predict_proba([words(50)])
    )
