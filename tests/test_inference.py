import numpy as np
import pytest
import torch
from conftest import LABELS, TEXTS

from bertclf import BertSequenceClassifier, _inference
from bertclf._inference import joined, log_probabilities, probabilities


@pytest.fixture(scope="module")
def clf(checkpoint):
    return BertSequenceClassifier(checkpoint, epochs=2, precision="float32", random_state=0).fit(TEXTS, LABELS)


@pytest.mark.parametrize("max_tokens", [1, 8, 40, 100_000])
def test_the_size_of_the_batches_changes_nothing(clf, monkeypatch, max_tokens):
    expected = clf.predict_proba(TEXTS)
    monkeypatch.setitem(_inference.MAX_TOKENS, "cpu", max_tokens)
    np.testing.assert_allclose(clf.predict_proba(TEXTS), expected, atol=1e-6)


def test_the_order_of_the_texts_comes_back(clf):
    order = np.random.default_rng(0).permutation(len(TEXTS))
    shuffled = clf.predict_proba([TEXTS[position] for position in order])
    np.testing.assert_allclose(shuffled, clf.predict_proba(TEXTS)[order], atol=1e-6)


def test_a_subset_gives_the_same_probabilities(clf):
    np.testing.assert_allclose(clf.predict_proba(TEXTS[3:6]), clf.predict_proba(TEXTS)[3:6], atol=1e-6)


def test_nothing_but_the_tokens_of_the_texts_is_computed(clf):
    seen = []
    table = clf.model_.get_input_embeddings()
    handle = table.register_forward_pre_hook(lambda module, args: seen.extend(args[0].flatten().tolist()))
    clf.predict(TEXTS)
    handle.remove()
    tokens = [token for row in clf.tokenizer_(TEXTS)["input_ids"] for token in row]
    assert sorted(seen) == sorted(tokens)


def test_no_batch_is_padded_beyond_its_longest_text(checkpoints, monkeypatch):
    """MPNet adds a bias to its scores, so its texts are padded."""
    clf = BertSequenceClassifier(checkpoints("mpnet"), epochs=1, precision="float32", random_state=0).fit(TEXTS, LABELS)
    monkeypatch.setitem(_inference.MAX_TOKENS, "cpu", 20)
    seen = []
    handle = clf.model_.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(inputs["attention_mask"]), with_kwargs=True
    )
    clf.predict(TEXTS)
    handle.remove()
    assert sum(len(mask) for mask in seen) == len(TEXTS)
    assert all(mask.sum(dim=1).max() == mask.shape[1] for mask in seen)


def test_no_gradient_is_kept(clf):
    recorded = []
    layers = [module for module in clf.model_.modules() if isinstance(module, torch.nn.Linear)]
    handles = [
        layer.register_forward_hook(lambda module, args, output: recorded.append(output.requires_grad))
        for layer in layers
    ]
    clf.predict(TEXTS)
    for handle in handles:
        handle.remove()
    assert len(recorded) >= len(layers)
    assert not any(recorded)


def test_softmax_stays_in_float32_and_survives_large_logits():
    logits = np.array([[1000.0, -1000.0], [0.0, 0.0]], dtype=np.float32)
    assert probabilities(logits.copy(), multilabel=False).dtype == np.float32
    np.testing.assert_allclose(probabilities(logits.copy(), multilabel=False), [[1, 0], [0.5, 0.5]])
    np.testing.assert_allclose(
        log_probabilities(logits.copy(), multilabel=False), [[0, -2000], [np.log(0.5)] * 2], rtol=1e-6
    )


def test_a_lower_precision_network_still_answers_in_float32(checkpoint):
    clf = BertSequenceClassifier(checkpoint, epochs=1, random_state=0, precision="bfloat16").fit(TEXTS, LABELS)
    assert clf.predict_proba(TEXTS).dtype == np.float32
    assert clf._compute.dtype == torch.bfloat16
    np.testing.assert_allclose(clf.predict_proba(TEXTS).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("sizes", [[5], [3, 3], [3, 3, 1]])
def test_logits_of_parts_are_joined_in_order(sizes):
    logits = np.arange(2.0 * sum(sizes), dtype=np.float32).reshape(-1, 2)
    asked = []
    parts = np.split(logits, np.cumsum(sizes)[:-1])
    found = joined(iter(parts), n_texts=lambda: asked.append(True) or len(logits))
    np.testing.assert_array_equal(found, logits)
    assert len(asked) == (len(sizes) > 1)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("to_probabilities", [probabilities, log_probabilities])
def test_logits_become_probabilities_in_place_some_rows_at_a_time(to_probabilities, multilabel, monkeypatch):
    logits = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    expected = to_probabilities(logits.copy(), multilabel=multilabel)
    monkeypatch.setattr(_inference, "TEXTS_AT_ONCE", 3)
    found = to_probabilities(logits, multilabel=multilabel)
    np.testing.assert_array_equal(found, expected)
    assert found is logits
