"""The pip-installed MiniLM: a real network, a real tokenizer, real sentences."""

import copy
import pickle

import numpy as np
import pytest
import torch
from minilm import minilm_folder

from bertclf import BertSequenceClassifier
from bertclf._dropout import KeepMasks
from bertclf._encoding import Way
from bertclf._engine import Engine
from bertclf._network import PooledClassifier
from bertclf._tokens import tokenize

pytestmark = pytest.mark.real

GOOD = [
    "A moving, beautifully acted film that stays with you.",
    "One of the funniest comedies of the year.",
    "The director has made a small masterpiece.",
    "Warm, witty and wise; I loved every minute.",
    "A gripping story with superb performances.",
    "An absolute delight from start to finish.",
]
BAD = [
    "A tedious mess without a single good idea.",
    "The jokes fall flat and the plot makes no sense.",
    "Two hours of my life that I will never get back.",
    "Badly acted, badly written and badly filmed.",
    "A dull sequel that nobody asked for.",
    "I was bored from the first scene to the last.",
]
TEXTS, LABELS = GOOD + BAD, ["fresh"] * len(GOOD) + ["rotten"] * len(BAD)
UNSEEN = ["A wonderful film, superbly acted.", "A boring and stupid film."]


@pytest.fixture(scope="module", params=["auto", "cls"])
def clf(request):
    return BertSequenceClassifier(
        minilm_folder(), epochs=8, batch_size=4, pooling=request.param, precision="float32", random_state=0
    ).fit(TEXTS, LABELS)


def test_learns_sentiment_from_twelve_sentences(clf):
    assert clf.predict(UNSEEN).tolist() == ["fresh", "rotten"]


def test_auto_pooling_is_the_mean_that_the_checkpoint_was_trained_with(clf):
    if clf.pooling == "auto":
        assert isinstance(clf.model_, PooledClassifier)
        assert clf.model_.pooling == "mean"
    else:
        assert type(clf.model_).__name__ == "BertForSequenceClassification"


def test_probabilities_equal_the_plain_padded_network_alone_and_in_any_batch(clf):
    texts = [*TEXTS, *UNSEEN, "", "ünïcödé 🎬 影片", " ".join(TEXTS * 4)]
    batch = clf.tokenizer_(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
    with torch.no_grad():
        plain = clf.model_(**batch).logits.softmax(dim=1).numpy()
    np.testing.assert_allclose(clf.predict_proba(texts), plain, atol=1e-5)
    alone = np.concatenate([clf.predict_proba([text]) for text in texts])
    np.testing.assert_allclose(alone, plain, atol=1e-5)


def test_logits_and_gradients_of_training_equal_those_of_the_plain_padded_network(clf):
    network = copy.deepcopy(clf.model_)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    texts = [*TEXTS, "a", " ".join(TEXTS * 2)]
    batch = clf.tokenizer_(texts, padding=True, return_tensors="pt")
    upstream = torch.randn(len(texts), 2, generator=torch.Generator().manual_seed(0))
    plain = network.train()(**batch).logits
    plain.backward(upstream)
    expected = {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}
    network.zero_grad()

    store = tokenize(texts, None, way=Way(clf.tokenizer_, None, "truncate"), with_segments=True)
    used = np.unique(store.ids)
    engine = Engine(network.eval(), device=torch.device("cpu"), masks=KeepMasks(0), token_ids=used).train()
    assert engine.is_unpadded
    logits = engine.logits(store, np.arange(len(texts)))
    logits.backward(upstream)
    assert (logits - plain).abs().max() <= 1e-5 * plain.abs().max()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, weight in engine.named_parameters().items():
        if name in expected:
            whole = expected[name]
            reference = whole if whole.shape == weight.shape else whole[used]
            assert (weight.grad - reference).abs().max() <= 1e-4 * largest, name


def test_the_pickle_predicts_the_same_bits(clf):
    again = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(again.predict_proba(UNSEEN), clf.predict_proba(UNSEEN))
