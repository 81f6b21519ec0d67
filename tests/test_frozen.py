"""`freeze` and the room `_frozen`: what is fixed stays as it was, and is run and tokenized once a text."""

import copy
import pickle
import re
import shutil
import sqlite3
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch
import transformers
from conftest import LABELS, TEXTS, texts_are_cut
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from tiny import CONFIGS, WIDTH
from torch.nn.functional import cross_entropy

from bertclf import BertSequenceClassifier, _frozen, _tokens
from bertclf._batches import padded_batch
from bertclf._checkpoint import load_checkpoint
from bertclf._encoding import Way
from bertclf._engine import Engine
from bertclf._memory import FILE_NAME
from bertclf._network import freeze
from bertclf._tokens import TokenStore, tokenize

CPU = torch.device("cpu")
PAIRS = list(zip(TEXTS, TEXTS[::-1], strict=True))
TARGETS = torch.tensor([label == "rotten" for label in LABELS]).long()

# Attention of these goes through no interface, so that they are padded and run whole.
PADDED = {"mpnet", "deberta-v2", "openai-gpt"}
WITH_STATES = sorted(set(CONFIGS) - PADDED - {"albert"})

# Embeddings of all kinds and the first layer, by their names in the encoders.
LOWER = re.compile(r"^(embed|encoder\.(rel_emb|relative|LayerNorm)|wte|wpe|tokens_emb|positions_emb)|(layers?|h)\.0\.")
SECOND_LAYER = re.compile(r"(layers?|h)\.1\.")

every_architecture = pytest.mark.parametrize(
    ("architecture", "frozen"),
    [(name, frozen) for name in CONFIGS for frozen in (1, 2, "encoder") if name != "albert" or frozen == "encoder"],
)


@pytest.fixture
def clf(checkpoint):
    return BertSequenceClassifier(
        checkpoint, epochs=2, batch_size=4, learning_rate=1e-3, freeze=1, precision="float32", random_state=0
    )


@pytest.fixture
def folder(tmp_path):
    """A folder that is not there yet."""
    return tmp_path / "kept"


@pytest.fixture
def encoded(monkeypatch):
    """How often the frozen part was run on each text, by its tokens."""
    counts = Counter()
    states = Engine.states

    def counting(self, store, rows):
        counts.update(store.ids[store.offsets[row] : store.offsets[row + 1]].tobytes() for row in rows)
        return states(self, store, rows)

    monkeypatch.setattr(Engine, "states", counting)
    return counts


@pytest.fixture
def tokenized(monkeypatch):
    """How often each row was tokenized."""
    counts = Counter()
    encode = _tokens.encode

    def counting(rows, *args):
        counts.update(rows)
        return encode(rows, *args)

    monkeypatch.setattr(_tokens, "encode", counting)
    return counts


def load(folder, *, pooling="auto", dropout=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_checkpoint(
            folder,
            revision=None,
            labels=["fresh", "rotten"],
            multilabel=False,
            pooling=pooling,
            dropout=dropout,
            verbose=False,
        )


def store_of(checkpoint, texts=TEXTS):
    return tokenize(texts, None, way=Way(checkpoint.tokenizer, 64, "truncate"), with_segments=False)


def fixed_by(what, network):
    """Return the names of the weights that `freeze` fixes."""
    network = copy.deepcopy(network)
    freeze(network, what)
    return {name for name, weight in network.named_parameters() if not weight.requires_grad}


def close(first, second, *, atol=1e-6):
    np.testing.assert_allclose(first.predict_proba(TEXTS), second.predict_proba(TEXTS), atol=atol)


# What is fixed


@every_architecture
def test_what_is_frozen_keeps_its_bits_and_the_rest_moves(checkpoints, architecture, frozen):
    folder = checkpoints(architecture)
    clf = BertSequenceClassifier(folder, epochs=1, warmup_ratio=0.0, weight_decay=0.5, freeze=frozen, random_state=0)
    clf.fit(TEXTS, LABELS)
    before = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).state_dict()
    after = dict(clf.model_.base_model.named_parameters())
    expected = {
        name
        for name in after
        if frozen == "encoder" or LOWER.search(name) or (frozen == 2 and SECOND_LAYER.search(name))
    }
    assert len(expected) > 5
    assert all(weight.requires_grad for weight in clf.model_.parameters())
    fixed = copy.deepcopy(clf.model_)
    freeze(fixed, frozen)
    assert {name for name, weight in fixed.base_model.named_parameters() if not weight.requires_grad} == expected
    head = [weight for name, weight in fixed.named_parameters() if name.startswith(("classifier.", "score."))]
    assert all(weight.requires_grad for weight in head)
    # A table may have grown by a padding token.
    assert not [name for name in expected if not torch.equal(before[name], after[name][: len(before[name])])]
    matrices = {name for name in (after.keys() & before.keys()) - expected if after[name].ndim > 1}
    assert bool(matrices) == (frozen == 1 or (frozen == 2 and architecture == "bert"))
    assert not [name for name in matrices if torch.equal(before[name], after[name])]


@every_architecture
def test_gradients_equal_those_of_the_plain_padded_network(checkpoints, architecture, frozen):
    checkpoint = load(checkpoints(architecture), dropout=0.0)
    store, rows = store_of(checkpoint), np.arange(len(TEXTS))
    freeze(checkpoint.network, frozen)
    plain = copy.deepcopy(checkpoint.network).train()
    batch = padded_batch(store, rows, pad_id=plain.config.pad_token_id, device=CPU)
    expected = cross_entropy(plain(**batch).logits, TARGETS)
    expected.backward()
    engine = Engine(checkpoint.network, device=CPU, frozen=frozen).train()
    assert engine.has_states == (architecture not in PADDED or frozen == "encoder")
    for states in [None, engine.states(store, rows)] if engine.has_states else [None]:
        loss = cross_entropy(engine.logits(store, rows, states=states), TARGETS)
        loss.backward()
        torch.testing.assert_close(loss, expected)
        for name, weight in checkpoint.network.named_parameters():
            gradient = plain.get_parameter(name).grad
            assert (weight.grad is None) == (gradient is None), name
            if gradient is not None:
                torch.testing.assert_close(weight.grad, gradient, atol=1e-6, rtol=1e-3)
        checkpoint.network.zero_grad()


@every_architecture
def test_what_is_frozen_drops_nothing_in_training(checkpoints, architecture, frozen):
    checkpoint = load(checkpoints(architecture), dropout=0.5)
    network, store, rows = checkpoint.network, store_of(checkpoint), np.arange(len(TEXTS))
    upper = [part for name, part in network.named_modules() if frozen == 1 and SECOND_LAYER.search(f"{name}.")]
    inside = {id(part) for part in network.base_model.modules()} - {id(part) for part in upper}
    freeze(network, frozen)
    for part in network.modules():
        if id(part) not in inside:
            for name in [name for name in vars(part) if name == "p" or "dropout" in name]:
                setattr(part, name, 0.0)
    engine = Engine(network, device=CPU, frozen=frozen)
    expected = engine.logits(store, rows)
    torch.testing.assert_close(engine.train().logits(store, rows), expected, atol=1e-6, rtol=1e-5)
    if engine.has_states:
        assert torch.equal(engine.states(store, rows), engine.train(False).states(store, rows))


@pytest.mark.parametrize("frozen", [1, 2, 3, 4])
def test_layers_above_what_is_frozen_keep_their_numbers(frozen):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    config = transformers.Gemma3TextConfig(
        **sizes, vocab_size=50, num_hidden_layers=4, intermediate_size=32, sliding_window=6, sliding_window_pattern=2
    )
    network = transformers.Gemma3TextForSequenceClassification(config).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    freeze(network, frozen)
    store = TokenStore(np.arange(3, 43, dtype=np.int32), np.array([0, 25, 40]), None)
    engine = Engine(network, device=CPU, frozen=frozen)
    whole = Engine(network, device=CPU, unpadded=False)
    assert engine.has_states
    torch.testing.assert_close(engine.logits(store, np.arange(2)), whole.logits(store, np.arange(2)))


@pytest.mark.parametrize(
    ("architecture", "frozen", "message"),
    [
        ("bert", 3, "^freeze=3 is more than this checkpoint has, a bert with 2 layers.*pass 'encoder'"),
        ("gpt2", 99, "^freeze=99 is more than this checkpoint has, a gpt2 with 2 layers.*pass 'encoder'"),
        (
            "albert",
            1,
            "^freeze=1 is not possible: the layers of this albert can't be told apart.*Pass 'encoder'",
        ),
    ],
)
def test_more_layers_than_there_are_can_not_be_frozen(checkpoints, architecture, frozen, message):
    clf = BertSequenceClassifier(checkpoints(architecture), freeze=frozen)
    with pytest.raises(ValueError, match=message):
        clf.fit(TEXTS, LABELS)
    assert not hasattr(clf, "model_")


@pytest.mark.parametrize("value", [np.int64(1), np.str_("encoder")])
def test_values_of_numpy_freeze_as_those_of_python_do(clf, value, folder, encoded):
    expected = clone(clf).set_params(freeze=value.item(), memory=folder).fit(TEXTS, LABELS)
    encoded.clear()
    close(clone(expected).set_params(freeze=value).fit(TEXTS, LABELS), expected)
    assert not encoded


# What is kept


@pytest.mark.parametrize(
    ("architecture", "frozen"),
    [("bert", 1), ("gpt2", 1), ("bert", "encoder"), ("gpt2", "encoder"), ("mpnet", "encoder"), ("albert", "encoder")],
)
def test_states_may_be_kept_computed_anew_or_looked_up(checkpoints, architecture, frozen, folder, monkeypatch, encoded):
    model = checkpoints(architecture)
    clf = BertSequenceClassifier(
        model, epochs=3, batch_size=4, learning_rate=1e-3, freeze=frozen, precision="float32", random_state=0
    )
    kept = clone(clf).fit(TEXTS, LABELS)
    assert set(encoded.values()) == {1}
    monkeypatch.setattr(_frozen, "MAX_KEPT_BYTES", 0)
    encoded.clear()
    anew = clone(clf).fit(TEXTS, LABELS)
    assert set(encoded.values()) == {1 + 3}  # for the start of the head, and in each epoch
    encoded.clear()
    looked_up = clone(clf).set_params(memory=folder).fit(TEXTS, LABELS)
    assert set(encoded.values()) == {1}
    from_folder = clone(looked_up).fit(TEXTS, LABELS)
    assert set(encoded.values()) == {1}
    for other in (anew, looked_up, from_folder):
        close(other, kept)


def test_only_as_many_bytes_are_kept_as_may_be(clf, monkeypatch, encoded):
    n_bytes = 4 * WIDTH * store_of(load(clf.model)).offsets[-1]
    monkeypatch.setattr(_frozen, "MAX_KEPT_BYTES", n_bytes)
    clone(clf).fit(TEXTS, LABELS)
    assert set(encoded.values()) == {1}
    encoded.clear()
    monkeypatch.setattr(_frozen, "MAX_KEPT_BYTES", n_bytes - 1)
    clone(clf).fit(TEXTS, LABELS)
    assert set(encoded.values()) == {1 + 2}


@pytest.mark.parametrize(("frozen", "X"), [(1, TEXTS), ("encoder", PAIRS)], ids=["texts", "pairs"])
def test_a_search_tokenizes_and_encodes_each_text_once(clf, frozen, X, folder, encoded, tokenized):
    clf.set_params(freeze=frozen, memory=folder)
    search = GridSearchCV(clf, {"learning_rate": [1e-3, 1e-2], "label_smoothing": [0.0, 0.1]}, cv=2).fit(X, LABELS)
    search.predict(X)
    assert tokenized == Counter((row,) if isinstance(row, str) else row for row in X)
    assert len(encoded) == len(X)
    assert set(encoded.values()) == {1}
    search.predict(X[:2])
    assert sum(tokenized.values()) == len(X)
    alone = clone(search.best_estimator_).set_params(memory=None).fit(X, LABELS)
    np.testing.assert_allclose(search.predict_proba(X), alone.predict_proba(X), atol=1e-6)


def test_a_search_over_what_is_frozen_tokenizes_each_text_once(clf, folder, tokenized):
    search = GridSearchCV(clf.set_params(memory=folder), {"freeze": [0, 1, "encoder"]}, cv=2, refit=False)
    search.fit(TEXTS, LABELS)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert set(tokenized.values()) == {1}


def test_workers_share_a_memory(clf, folder):
    memory = joblib.Memory(folder, verbose=0)
    grid = {"learning_rate": [1e-3, 1e-2]}
    alone, together = (
        GridSearchCV(clone(clf).set_params(memory=kept), grid, cv=2, n_jobs=n_jobs, scoring="neg_log_loss")
        for kept, n_jobs in ((None, None), (memory, 2))
    )
    scores = [search.fit(TEXTS, LABELS).cv_results_["mean_test_score"] for search in (alone, together)]
    np.testing.assert_allclose(*scores, atol=1e-5)
    with sqlite3.connect(next(folder.rglob(FILE_NAME))) as file:
        tokens_and_states = 2 * len(TEXTS)
        assert file.execute("SELECT count(*) FROM kept").fetchone() == (tokens_and_states,)
    file.close()


OTHER_WAYS = {
    "another checkpoint": lambda checkpoints: {"model": checkpoints("electra")},
    "the same architecture": lambda checkpoints: {"model": checkpoints("other bert")},
    "one layer more": lambda checkpoints: {"freeze": 2},
    "all but the head": lambda checkpoints: {"freeze": "encoder"},
    "max_length": lambda checkpoints: {"max_length": 4},
    "pooling": lambda checkpoints: {"freeze": "encoder", "pooling": "mean"},
    "precision": lambda checkpoints: {"precision": "bfloat16"},
}


@pytest.fixture
def two_checkpoints(checkpoints, tmp_path):
    """The tiny checkpoints, and another BERT, with other weights and the same tokenizer."""

    def folder_of(name):
        if name != "other bert":
            return checkpoints(name)
        folder = shutil.copytree(checkpoints("bert"), tmp_path / "other")
        network = transformers.AutoModel.from_pretrained(folder)
        network.embeddings.LayerNorm.bias.data += torch.linspace(-1, 1, 16)
        network.save_pretrained(folder)
        return folder

    return folder_of


@texts_are_cut
@pytest.mark.parametrize("way", OTHER_WAYS)
def test_what_is_made_in_other_ways_is_not_mixed_up(clf, way, two_checkpoints, folder, encoded):
    other = clone(clf).set_params(**OTHER_WAYS[way](two_checkpoints))
    expected = clone(other).fit(TEXTS, LABELS)
    for earlier in (clf, clone(clf).set_params(freeze="encoder")):
        earlier.set_params(memory=folder).fit(TEXTS, LABELS)
    encoded.clear()
    shared = other.set_params(memory=folder).fit(TEXTS, LABELS)
    n_encoded = 0 if way == "all but the head" else len(TEXTS)
    assert sum(encoded.values()) == n_encoded
    assert np.abs(shared.predict_proba(TEXTS) - clf.predict_proba(TEXTS)).max() > 1e-6
    close(shared, expected, atol=1e-2 if way == "precision" else 1e-6)


def test_what_changes_nothing_in_the_frozen_part_shares_it(clf, folder, encoded, tokenized):
    clf.set_params(memory=folder).fit(TEXTS, LABELS)
    for changes in ({"dropout": 0.3}, {"epochs": 3, "random_state": 1}, {"early_stopping": True}):
        clone(clf).set_params(**changes).fit(TEXTS, [f"is {label}" for label in LABELS])
    clone(clf).fit(TEXTS, np.arange(len(TEXTS)) % 3)
    assert set(encoded.values()) == set(tokenized.values()) == {1}


def test_the_tokenizer_of_a_fit_may_be_used_and_pickled(clf, folder, tokenized):
    clf.set_params(memory=folder).fit(TEXTS, LABELS)
    clf.tokenizer_(TEXTS, truncation=True, max_length=5, padding=True)
    clf.predict(TEXTS)
    pickle.loads(pickle.dumps(clf)).predict(TEXTS)
    assert set(tokenized.values()) == {1}


@texts_are_cut
@pytest.mark.parametrize("X", [["joy " * 90, "joy", "", "dull " * 6, "dull"], [("joy " * 90, "joy"), ("", "a " * 9)]])
def test_truncation_is_the_same_with_a_memory(clf, X, folder):
    clf.set_params(max_length=6)
    labels = np.arange(len(X)) % 2
    expected = clone(clf).fit(X, labels)
    assert expected.truncation_["tokens"] > 80
    for _ in range(2):
        kept = clone(clf).set_params(memory=folder).fit(X, labels)
        assert kept.truncation_ == expected.truncation_
        np.testing.assert_allclose(kept.predict_proba(X), expected.predict_proba(X), atol=1e-6)


def test_a_tokenizer_written_in_python_is_asked_each_time(tmp_path, folder, tokenized):
    tokenizer = transformers.ByT5Tokenizer(model_max_length=64)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=0, **sizes)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    clf = BertSequenceClassifier(tmp_path, epochs=1, freeze=1, random_state=0)
    for n_fits in (1, 2):
        kept = clone(clf).set_params(memory=folder).fit(TEXTS, LABELS)
        assert set(tokenized.values()) == {n_fits}
    close(kept, clone(clf).fit(TEXTS, LABELS))


# In company


def test_early_stopping_runs_what_is_frozen_once_on_validation_texts_too(clf, encoded):
    clf.set_params(early_stopping=True, validation_fraction=0.3, epochs=4, n_iter_no_change=4, scoring="accuracy")
    clf.fit(TEXTS, LABELS)
    assert len(encoded) == len(TEXTS)
    assert set(encoded.values()) == {1}
    assert len(clf.validation_scores_) == 4


@pytest.mark.parametrize("memory", [False, True])
def test_what_is_frozen_may_change_from_part_to_part(clf, folder, memory):
    clf.set_params(memory=folder if memory else None)
    classes = ["fresh", "rotten"]
    clf.set_params(freeze=0).partial_fit(TEXTS, LABELS, classes)
    for frozen in (2, 1, "encoder", 0, "encoder"):
        before = clf.model_
        clf.set_params(freeze=frozen).partial_fit(TEXTS, LABELS)
        after = dict(clf.model_.named_parameters())
        moved = {name for name, weight in before.named_parameters() if not torch.equal(weight, after[name])}
        assert {"classifier.weight", "classifier.bias"} <= moved
        assert moved.isdisjoint(fixed_by(frozen, before))
    assert [row["epoch"] for row in clf.history_] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("memory", [False, True])
def test_a_warm_start_freezes_the_weights_as_they_are(clf, folder, memory):
    clf.set_params(freeze=0, warm_start=True, memory=folder if memory else None).fit(TEXTS, LABELS)
    trained = copy.deepcopy(clf.model_)
    clf.set_params(freeze=1).fit(TEXTS, LABELS)
    frozen = fixed_by(1, trained)
    assert frozen
    assert all(torch.equal(trained.get_parameter(name), clf.model_.get_parameter(name)) for name in frozen)
    again = pickle.loads(pickle.dumps(clf)).set_params(freeze=0).fit(TEXTS, LABELS)
    assert not [name for name in frozen if torch.equal(trained.get_parameter(name), again.model_.get_parameter(name))]


def test_a_pickle_predicts_the_same_without_the_folder(clf, folder):
    clf.set_params(memory=folder).fit(TEXTS, LABELS)
    expected = clf.predict_proba(TEXTS)
    content = pickle.dumps(clf)
    shutil.rmtree(folder)
    np.testing.assert_allclose(pickle.loads(content).predict_proba(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(clf.predict_proba(TEXTS), expected, atol=1e-6)
    shutil.rmtree(folder)
    folder.write_text("a file")
    again = pickle.loads(content)
    with pytest.warns(UserWarning, match="can't be used, so nothing is kept there.*Pass a folder that can be written"):
        np.testing.assert_allclose(again.predict_proba(TEXTS), expected, atol=1e-6)


def test_a_fit_without_a_folder_warns_and_learns_the_same(clf, folder):
    expected = clone(clf).fit(TEXTS, LABELS)
    folder.write_text("a file")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clf.set_params(memory=folder).fit(TEXTS, LABELS)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="can't be used"):
        close(clf, expected)


def test_another_memory_after_the_fit_changes_no_answer_and_the_first_is_left_alone(clf, folder, tmp_path):
    expected = clf.set_params(memory=folder).fit(TEXTS, LABELS).predict_proba(TEXTS)
    size = (folder / FILE_NAME).stat().st_size
    another = tmp_path / "another"
    for memory in (None, another):
        clf.set_params(memory=memory, freeze=0)
        np.testing.assert_allclose(clf.predict_proba(TEXTS), expected, atol=1e-6)
        clf.predict_proba([text * 20 for text in TEXTS])
    assert (folder / FILE_NAME).stat().st_size == size
    with sqlite3.connect(another / FILE_NAME) as file:  # tokens, and states of one layer
        assert file.execute("SELECT count(*) FROM kept").fetchone() == (4 * len(TEXTS),)


def test_another_network_after_the_fit_is_not_taken_for_the_frozen_one(clf, folder):
    clf.set_params(memory=folder).fit(TEXTS, LABELS)
    other = clone(clf).set_params(freeze=0, learning_rate=0.1).fit(TEXTS, LABELS)
    clf.model_ = other.model_
    close(clf, other)


@pytest.mark.parametrize(("name", "layers"), [("Bart", (2, 2)), ("Bart", (3, 1)), ("T5", (2, 2))])
def test_layers_of_two_stacks_can_not_be_counted(name, layers):
    encoder_layers, decoder_layers = layers
    sizes = {"vocab_size": 40, "d_model": 16, "d_ff": 32, "num_heads": 2, "d_kv": 8, "num_labels": 2}
    sizes |= {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers, "eos_token_id": 2}
    sizes |= {"num_layers": encoder_layers, "num_decoder_layers": decoder_layers, "decoder_start_token_id": 2}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = getattr(transformers, f"{name}Config")(**sizes)
    network = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    if layers[0] == layers[1]:
        with pytest.raises(ValueError, match=r"not possible: the layers of this .* in two stacks.*Pass 'encoder'"):
            freeze(network, 1)
    else:
        freeze(network, 1)
        assert {name.split(".")[3] for name, _ in network.named_parameters() if "layers" in name} == {"0", "1", "2"}
        assert not any(weight.requires_grad for weight in network.model.encoder.layers[0].parameters())
        assert all(weight.requires_grad for weight in network.model.encoder.layers[1].parameters())
    freeze(network, "encoder")
    assert all(weight.requires_grad == ("classification_head" in name) for name, weight in network.named_parameters())


@pytest.mark.parametrize(("architecture", "frozen"), [("bert", 0), ("bert", 1), ("bert", "encoder"), ("mpnet", 0)])
def test_threads_that_predict_at_once_get_what_one_gets(checkpoints, folder, architecture, frozen):
    clf = BertSequenceClassifier(checkpoints(architecture), epochs=1, freeze=frozen, memory=folder, random_state=0)
    clf.fit(TEXTS, LABELS)
    batches = [[f"{text} " * (1 + (row + shift) % 5) for row, text in enumerate(TEXTS)] for shift in range(5)]
    expected = [clone(clf).fit(TEXTS, LABELS).set_params(memory=None).predict_proba(texts) for texts in batches]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(clf.predict_proba, batches * 4))
    for number, answer in enumerate(answers):
        np.testing.assert_allclose(answer, expected[number % len(batches)], atol=1e-6)


@pytest.mark.parametrize("frozen", [1, "encoder"])
def test_fixed_weights_that_were_changed_by_hand_are_not_remembered(clf, folder, frozen):
    clf.set_params(freeze=frozen, memory=folder).fit(TEXTS, LABELS)
    others = [f"{text} again" for text in TEXTS]
    with torch.no_grad():
        for weight in clf.model_.base_model.parameters():
            weight.data.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    for texts in (TEXTS, others):
        remembering = clf.set_params(memory=folder).predict_proba(texts)
        np.testing.assert_allclose(remembering, clf.set_params(memory=None).predict_proba(texts), atol=1e-6)
    fresh = BertSequenceClassifier(**clf.get_params()).fit(others, LABELS)
    again = clone(fresh).set_params(memory=folder).fit(others, LABELS)
    close(again, fresh)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "mpnet"])
@pytest.mark.parametrize("frozen", [0, 1, "encoder"])
def test_nothing_is_said_without_being_asked(checkpoints, architecture, frozen, capfd):
    BertSequenceClassifier(checkpoints(architecture), epochs=1, freeze=frozen, random_state=0).fit(TEXTS, LABELS)
    assert capfd.readouterr() == ("", "")
