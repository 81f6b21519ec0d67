"""The head begins with a logistic regression on what the untouched network makes of the texts."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from conftest import LABELS, TEXTS
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from tiny import build

from bertclf import BertSequenceClassifier, _probe, _training
from bertclf._network import output_layer
from bertclf._probe import start_head

TOPICS = [("film" in text) + 2 * ("very" in text) for text in TEXTS]
MATRIX = np.array([["film" in text, "very" in text, True] for text in TEXTS], dtype=int)
PAIRS = list(zip(TEXTS, TEXTS[::-1], strict=True))

# A step so small that the head stays where it began.
STILL = {"epochs": 1, "learning_rate": 1e-12, "precision": "float32", "device": "cpu", "random_state": 0}


def inputs_of_head(clf, texts):
    """Return what the output layer sees of each text, by a hook on the network itself."""
    seen = []
    handle = output_layer(clf.model_).register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    for text in texts:
        encoded = clf.tokenizer_(*([text] if isinstance(text, str) else text), return_tensors="pt")
        with torch.no_grad():
            clf.model_(**encoded)
    handle.remove()
    return np.concatenate([tensor.reshape(-1, tensor.shape[-1])[-1:].numpy() for tensor in seen])


def regression(clf, texts, targets, weights=None):
    """Return the logits of a regression of scikit-learn for the texts that it is fitted to, at one norm.

    An intercept that is a coefficient of tens has a hundredth of the penalty. Of two classes in one column, where our
    two have half of the coefficients each, and half of their penalty.
    """
    layer, inputs = output_layer(clf.model_), inputs_of_head(clf, texts)
    norms = np.linalg.norm(inputs, axis=1, keepdims=True)
    tens = np.full((len(inputs), int(layer.bias is not None)), 10.0)
    C = 2.0 if layer.out_features == 2 else 1.0
    fitted = LogisticRegression(C=C, fit_intercept=False, max_iter=10_000, tol=1e-6)
    fitted.fit(np.concatenate([inputs / norms * norms.mean(), tens], axis=1), targets, weights)
    return fitted.decision_function(np.concatenate([inputs, tens], axis=1))


@pytest.fixture
def at_full_strength(monkeypatch):
    """Regressions are not held back, whatever holds for other texts."""
    monkeypatch.setattr(_probe, "_strength", lambda *_: 1.0)


def assert_begins_with(expected, clf, texts, labels, *weights, columns=None):
    """See that the logits of a fit are those of the drawn head and a regression."""
    drawn = clone(clf).set_params(head_init="random").fit(texts, labels, *weights)
    begun = clf.decision_function(texts) - drawn.decision_function(texts)
    np.testing.assert_allclose(begun if columns is None else begun[:, columns], expected, atol=3e-2)
    assert np.ptp(expected) > 0.1


@pytest.mark.usefixtures("at_full_strength")
@pytest.mark.parametrize("pooling", ["auto", "mean"])
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "mpnet", "modernbert", "albert", "gpt2"])
def test_a_logistic_regression_on_the_pooled_texts_is_added_to_what_was_drawn(tmp_path, name, pooling):
    build(name, tmp_path, initializer_range=0.2)  # wide, so that texts differ
    clf = BertSequenceClassifier(tmp_path, pooling=pooling, **STILL).fit(TEXTS, LABELS)
    assert_begins_with(regression(clf, TEXTS, LABELS), clf, TEXTS, LABELS)


@pytest.mark.usefixtures("at_full_strength")
def test_of_several_classes_each_gets_its_row(spread_checkpoint):
    clf = BertSequenceClassifier(spread_checkpoint, **STILL).fit(TEXTS, TOPICS)
    assert_begins_with(regression(clf, TEXTS, TOPICS), clf, TEXTS, TOPICS)


@pytest.mark.usefixtures("at_full_strength")
def test_each_of_many_labels_is_told_from_its_absence_and_one_that_all_have_is_probable(spread_checkpoint):
    clf = BertSequenceClassifier(spread_checkpoint, **STILL).fit(TEXTS, MATRIX)
    regressions = [regression(clf, TEXTS, MATRIX[:, label]) for label in range(2)]
    assert_begins_with(np.stack(regressions, axis=1), clf, TEXTS, MATRIX, columns=slice(2))
    assert (clf.predict_proba(TEXTS)[:, 2] > 0.9).all()


@pytest.mark.usefixtures("at_full_strength")
def test_weights_of_texts_and_classes_count(spread_checkpoint):
    sample_weight = np.arange(1, len(TEXTS) + 1)
    clf = BertSequenceClassifier(spread_checkpoint, class_weight={"fresh": 3.0}, **STILL)
    clf.fit(TEXTS, LABELS, sample_weight)
    products = sample_weight * np.where(np.array(LABELS) == "fresh", 3.0, 1.0)
    expected = regression(clf, TEXTS, LABELS, products / products.mean())
    assert_begins_with(expected, clf, TEXTS, LABELS, sample_weight)


@pytest.mark.usefixtures("at_full_strength")
def test_pairs_are_probed_as_pairs(spread_checkpoint):
    clf = BertSequenceClassifier(spread_checkpoint, **STILL).fit(PAIRS, LABELS)
    assert_begins_with(regression(clf, PAIRS, LABELS), clf, PAIRS, LABELS)


@pytest.mark.usefixtures("at_full_strength")
@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("freeze", [1, "encoder"])
def test_frozen_layers_are_run_once_a_text_for_probe_and_training(spread_checkpoint, freeze, epochs, monkeypatch):
    from bertclf import _frozen

    made, make = [], _frozen._made
    monkeypatch.setattr(_frozen, "_made", lambda engine, store, rows: made.extend(rows) or make(engine, store, rows))
    clf = BertSequenceClassifier(spread_checkpoint, freeze=freeze, **STILL | {"epochs": epochs}).fit(TEXTS, LABELS)
    assert sorted(made) == list(range(len(TEXTS)))
    assert_begins_with(regression(clf, TEXTS, LABELS), clf, TEXTS, LABELS)


def test_of_many_texts_some_are_drawn(spread_checkpoint, monkeypatch):
    seen, start = [], _training.start_head
    monkeypatch.setattr(_probe, "MAX_TEXTS", 10)
    monkeypatch.setattr(
        _training, "start_head", lambda *given, **named: seen.append(len(given[1])) or start(*given, **named)
    )
    fits = [BertSequenceClassifier(spread_checkpoint, **STILL).fit(TEXTS, LABELS) for _ in range(2)]
    assert seen == [10, 10]
    assert np.array_equal(*(fit.predict_proba(TEXTS) for fit in fits))


@pytest.mark.parametrize("labels", [["one"] * len(TEXTS), [0, *[1] * (len(TEXTS) - 1)]])
def test_one_class_and_one_text_of_a_class_are_no_trouble(spread_checkpoint, labels):
    clf = BertSequenceClassifier(spread_checkpoint, **STILL).fit(TEXTS, labels)
    assert np.isfinite(clf.predict_proba(TEXTS)).all()


def test_a_head_that_is_known_is_not_begun_anew(spread_checkpoint, monkeypatch):
    clf = BertSequenceClassifier(spread_checkpoint, warm_start=True, **STILL).fit(TEXTS, LABELS)
    before = clf.predict_proba(TEXTS)

    def never(*_, **__):
        raise AssertionError("probed again")

    monkeypatch.setattr(_probe, "_regression", never)
    assert np.allclose(clf.fit(TEXTS, LABELS[::-1]).predict_proba(TEXTS), before, atol=1e-5)
    assert np.allclose(clf.partial_fit(TEXTS, LABELS[::-1]).predict_proba(TEXTS), before, atol=1e-5)
    BertSequenceClassifier(spread_checkpoint, **STILL).partial_fit(TEXTS, LABELS, classes=["fresh", "rotten"])
    BertSequenceClassifier(spread_checkpoint, head_init="random", **STILL).fit(TEXTS, LABELS)


def test_another_start_is_refused(spread_checkpoint):
    with pytest.raises(ValueError, match="head_init"):
        BertSequenceClassifier(spread_checkpoint, head_init="zero").fit(TEXTS, LABELS)


def test_a_class_without_a_text_begins_improbable(spread_checkpoint):
    clf = BertSequenceClassifier(spread_checkpoint, **STILL).set_params(class_weight={"rotten": 0.0})
    clf.fit([*TEXTS, "a story"], [*LABELS, "middling"])
    assert (clf.predict_proba(TEXTS)[:, 2] < 0.2).all()


def test_what_is_not_finite_is_told_by_the_first_step(spread_checkpoint, monkeypatch):
    inputs = _training.head_inputs
    monkeypatch.setattr(_training, "head_inputs", lambda *given, **named: inputs(*given, **named) * np.nan)
    clf = BertSequenceClassifier(spread_checkpoint, **STILL).fit(TEXTS, LABELS)
    drawn = clone(clf).set_params(head_init="random").fit(TEXTS, LABELS)
    assert np.array_equal(clf.predict_proba(TEXTS), drawn.predict_proba(TEXTS))


@pytest.fixture
def as_others_say(monkeypatch):
    """Regressions are held back as other texts say, be they few."""
    monkeypatch.setattr(_probe, "UNSEEN_BEFOREHAND", 0)


@pytest.fixture
def begun():
    """A function that returns what is added to an output layer drawn at random, for texts given as its inputs."""

    def added(inputs, targets, n_classes, *, weights=None, copies=None, bias=True):
        network = torch.nn.Module()
        network.config = transformers.PretrainedConfig(num_labels=n_classes)
        network.classifier = torch.nn.Linear(inputs.shape[1], n_classes, bias=bias)
        drawn = copy.deepcopy(network.classifier)
        if weights is None:
            weights = np.ones(targets.shape, dtype=np.float32)
        start_head(network, inputs, targets, weights, copies=np.arange(len(inputs)) if copies is None else copies)
        given = torch.from_numpy(inputs)
        with torch.no_grad():
            return (network.classifier(given) - drawn(given)).numpy()

    return added


def told(logits):
    """Return what logits tell of each text: how they differ from the mean over all texts."""
    return logits - logits.mean(axis=0)


def loss_of(logits, targets):
    """Return the mean cross-entropy."""
    return float(torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets)))


@pytest.mark.usefixtures("as_others_say")
@pytest.mark.parametrize("n_texts", [60, 400])
@pytest.mark.parametrize("n_classes", [2, 5])
def test_where_nothing_holds_for_other_texts_hardly_anything_is_added(begun, n_classes, n_texts):
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(n_texts, 64)).astype(np.float32)
    noise, signal = generator.integers(n_classes, size=n_texts), inputs[:, :n_classes].argmax(axis=1)
    as_matrix = np.eye(n_classes, dtype=np.float32)
    for found, real in ((noise, signal), (as_matrix[noise], as_matrix[signal])):
        noisy, telling = begun(inputs, found, n_classes), begun(inputs, real, n_classes)
        assert told(noisy).std() < 0.1
        assert told(telling).std() > 3 * told(noisy).std()
        shares = np.bincount(noise, minlength=n_classes) / n_texts
        if found.ndim == 1:
            expected = np.log(shares) - np.log(shares).mean()
        else:
            expected = np.log(shares / (1 - shares))
        np.testing.assert_allclose(noisy.mean(axis=0), expected, atol=0.3)  # held back a little


@pytest.mark.usefixtures("as_others_say")
@pytest.mark.parametrize(("n_texts", "spread", "tolerance"), [(100, 0.0, 0.2), (2000, 0.0, 0.06), (2000, 0.8, 0.065)])
def test_a_head_begins_no_surer_of_what_it_has_seen_than_it_is_right_about_others(begun, n_texts, spread, tolerance):
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(2 * n_texts, 200)).astype(np.float32)
    targets = (inputs[:, :3] + generator.normal(scale=0.5, size=(2 * n_texts, 3))).argmax(axis=1)
    inputs *= np.exp(generator.normal(scale=spread, size=(2 * n_texts, 1))).astype(np.float32)
    seen, others = slice(n_texts), slice(n_texts, None)
    added = begun(inputs[seen], targets[seen], 3)
    norms = np.linalg.norm(inputs[seen], axis=1, keepdims=True)
    regression = LogisticRegression(fit_intercept=False, max_iter=1000)
    regression.fit(inputs[seen] / norms * norms.mean(), targets[seen])
    whole = regression.decision_function(inputs).astype(np.float32)
    strengths = np.linspace(0, 1, 101, dtype=np.float32)
    lowest = min(loss_of(whole[others] * strength, targets[others]) for strength in strengths)
    assert loss_of(whole[seen], targets[seen]) < lowest - 0.03
    assert loss_of(added, targets[seen]) == pytest.approx(lowest, abs=tolerance)
    assert np.corrcoef(told(added).ravel(), told(whole[seen]).ravel())[0, 1] > 0.99


def test_how_long_an_input_is_changes_no_direction(begun):
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(200, 32)).astype(np.float32)
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    targets = (inputs[:, 0] > 0).astype(np.int64)
    lengths = np.where(targets == 1, 8.0, 2.0).astype(np.float32)[:, None]  # all that a regression would look at
    added, alike = (
        begun(inputs * lengths, targets, 2, bias=False),
        begun(inputs * lengths.mean(), targets, 2, bias=False),
    )
    np.testing.assert_allclose(told_of_direction(added, lengths), told_of_direction(alike, lengths.mean()), atol=1e-3)
    assert np.isfinite(begun(inputs * (lengths > 5), targets, 2)).all()  # some are zeros


def told_of_direction(logits, lengths):
    """Return by how much the logits of inputs of length one differ, as a multiple of the largest difference."""
    difference = (logits[:, 1:] - logits[:, :1]) / lengths
    return difference / np.abs(difference).max()


def noise(n_texts, shares):
    """Return inputs and labels that have nothing to do with each other."""
    generator = np.random.default_rng(0)
    labels = np.concatenate([[label] * round(share * n_texts) for label, share in enumerate(shares)])
    return generator.normal(size=(len(labels), 64)).astype(np.float32), generator.permutation(labels)


@pytest.mark.usefixtures("as_others_say")
def test_classes_of_one_text_tell_nothing_of_the_rest(begun):
    inputs, labels = noise(100, [0.5, *[0.01] * 50])
    assert told(begun(inputs, labels, 51)).std() < 0.1


@pytest.mark.usefixtures("as_others_say")
def test_copies_of_a_text_are_no_other_texts(begun):
    inputs, labels = (np.repeat(rows, 4, axis=0) for rows in noise(100, [0.5, 0.5]))
    assert told(begun(inputs, labels, 2, copies=np.repeat(np.arange(100), 4))).std() < 0.1
    assert told(begun(inputs, labels, 2)).std() > 0.5


def test_weights_count_in_what_holds_for_others(begun):
    inputs, labels = noise(400, [0.5, 0.5])
    signal = np.where(np.arange(400) < 200, inputs[:, 0] > 0, labels).astype(np.int64)
    of_signal = np.where(np.arange(400) < 200, 2.0, 1e-6).astype(np.float32)
    assert told(begun(inputs, signal, 2, weights=of_signal)).std() > 0.3
    assert told(begun(inputs, signal, 2, weights=of_signal[::-1].copy())).std() < 0.1


def test_each_fifth_has_its_share_of_each_class_and_all_copies_of_a_text():
    _, labels = noise(400, [0.1, 0.3, 0.6])
    ones = np.ones((400, 1), dtype=np.float32)
    texts = _probe._Texts(ones, labels, ones[:, 0], np.arange(400), n_outputs=3, has_intercept=True)
    fold = _probe._folds(texts)
    counts = np.stack([np.bincount(labels[fold == part]) for part in range(5)])
    assert np.ptp(counts, axis=0).max() <= 1
    copied = np.arange(400) // 2
    fold = _probe._folds(replace(texts, copies=copied))
    assert np.array_equal(fold[::2], fold[1::2])
    assert np.ptp(np.bincount(fold)) <= 2
    in_turn = _probe._folds(replace(texts, targets=np.eye(5, dtype=np.float32)[np.arange(400) % 5]))
    assert all(len(set((np.arange(400) % 5)[in_turn == part])) == 5 for part in range(5))


def test_a_head_without_intercepts_gets_the_regression_alone(begun):
    inputs, labels = noise(400, [0.5, 0.5])
    assert begun(inputs, labels, 2, bias=False).std() < 0.1
    assert begun(inputs, (inputs[:, 0] > 0).astype(np.int64), 2, bias=False).std() > 0.3


@pytest.mark.filterwarnings("ignore:.* of the tokens of X are cut:UserWarning")
def test_copies_of_texts_are_numbered_alike_in_windows_too(checkpoint):
    tokens = []
    inputs = _training.head_inputs

    def spy(network, training, *given, **named):
        tokens.append(training.tokens)
        return inputs(network, training, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_training, "head_inputs", spy)
        texts = ["a film", "a dull film and " * 20, "a film", "a dull film and " * 20]
        for way in ("truncate", "chunk"):
            BertSequenceClassifier(checkpoint, max_length=16, long_text=way, **STILL).fit(texts, [0, 1, 0, 1])
    assert tokens[1].n_windows > 4
    for store in tokens:
        assert store.numbers_of(np.arange(4)).tolist() == [0, 1, 0, 1]
        assert store.numbers_of(np.array([1, 2, 3])).tolist() == [0, 1, 0]


def strength_of(begun, monkeypatch, inputs, targets, n_classes, **named):
    """Return by how much a regression is held back."""
    held_back = told(begun(inputs, targets, n_classes, **named)).std()
    with monkeypatch.context() as patch:
        patch.setattr(_probe, "_strength", lambda *_: 1.0)
        return held_back / told(begun(inputs, targets, n_classes, **named)).std()


@pytest.mark.parametrize("n_labels", [None, 2])
@pytest.mark.parametrize("n_texts", [5, 50, 200])
def test_the_fewer_other_texts_the_nearer_is_a_regression_to_what_it_is(begun, monkeypatch, n_texts, n_labels):
    inputs, labels = noise(n_texts, [0.4, 0.6])
    targets = labels if n_labels is None else np.stack([labels, 1 - labels], axis=1).astype(np.float32)
    strength = strength_of(begun, monkeypatch, inputs, targets, 2)
    assert strength == pytest.approx(5 / (n_texts + 5), abs=0.03)


def test_copies_and_texts_of_hardly_any_weight_are_no_more_other_texts(begun, monkeypatch):
    inputs, labels = noise(20, [0.5, 0.5])
    many, copies = (np.repeat(rows, 10, axis=0) for rows in (inputs, np.arange(20)))
    copied = strength_of(begun, monkeypatch, many, np.repeat(labels, 10), 2, copies=copies)
    weights = np.concatenate([np.ones(20), np.full(180, 1e-4)]).astype(np.float32)
    more, more_labels = noise(180, [0.5, 0.5])
    light = strength_of(
        begun,
        monkeypatch,
        np.concatenate([inputs, more]),
        np.concatenate([labels, more_labels]),
        2,
        weights=weights / weights.mean(),
    )
    assert [copied, light] == pytest.approx([5 / 25] * 2, abs=0.03)


@pytest.mark.parametrize("n_copies", [1, 3])
def test_a_matrix_of_one_text_is_taken_as_it_is(begun, monkeypatch, n_copies):
    inputs, targets = np.ones((n_copies, 4), dtype=np.float32), np.tile(np.float32([1, 0]), (n_copies, 1))
    added = begun(inputs, targets, 2, copies=np.zeros(n_copies, dtype=np.int64))
    monkeypatch.setattr(_probe, "_strength", lambda *_: 1.0)
    whole = begun(inputs, targets, 2, copies=np.zeros(n_copies, dtype=np.int64))
    np.testing.assert_allclose(added, whole, rtol=1e-5)


def test_where_no_text_can_be_judged_the_regression_is_taken_as_it_is(begun, monkeypatch):
    inputs = np.random.default_rng(0).normal(size=(400, 64)).astype(np.float32)
    added = begun(inputs, np.arange(400), 400)
    monkeypatch.setattr(_probe, "_strength", lambda *_: 1.0)
    np.testing.assert_allclose(added, begun(inputs, np.arange(400), 400), atol=1e-4)


def test_with_classes_in_turn_noise_is_noise(begun):
    inputs = np.random.default_rng(0).normal(size=(400, 64)).astype(np.float32)
    assert told(begun(inputs, np.arange(400) % 5, 5)).std() < 0.1
    assert np.isfinite(begun(inputs * 1e30, np.arange(400) % 5, 5)).all()


def test_a_fit_whose_regression_does_not_hold_begins_with_the_shares_of_the_classes(spread_checkpoint, monkeypatch):
    monkeypatch.setattr(_probe, "_strength", lambda *_: 0.0)
    labels = [1, 1, 1, 1, *[0] * (len(TEXTS) - 4)]
    clf = BertSequenceClassifier(spread_checkpoint, **STILL).fit(TEXTS, labels)
    drawn = clone(clf).set_params(head_init="random").fit(TEXTS, labels)
    added = clf.decision_function(TEXTS) - drawn.decision_function(TEXTS)
    np.testing.assert_allclose(added, added[0], atol=1e-5)
    assert np.log(4 / (len(TEXTS) - 4)) < added[0] < -0.2  # held back by the penalty
