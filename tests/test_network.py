"""Every architecture: fitted, predicted, and equal to the plain padded network of transformers."""

import pickle

import numpy as np
import pytest
import torch
import transformers
from conftest import LABELS, TEXTS, texts_are_cut
from tiny import CONFIGS, LAYERS, POSITIONS, WIDTH, build
from torch import nn

from bertclf import BertSequenceClassifier
from bertclf._network import PooledClassifier, depths, freeze, length_limit, own_pooling, pool, takes_segments

PAIRS = list(zip(TEXTS, TEXTS[::-1], strict=True))
MIXED = ["", "a", "joy " * 200, "joy </s> [SEP] <pad> joy", *TEXTS]

OWN_CLASS = {
    "bert": "BertForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "electra": "ElectraForSequenceClassification",
    "mpnet": "MPNetForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "xlm-roberta": "XLMRobertaForSequenceClassification",
    "albert": "AlbertForSequenceClassification",
    "deberta-v2": "DebertaV2ForSequenceClassification",
    "modernbert": "ModernBertForSequenceClassification",
    "gpt2": "GPT2ForSequenceClassification",
    "openai-gpt": "OpenAIGPTForSequenceClassification",
}
DECODERS = {"gpt2", "openai-gpt"}
WITH_SEGMENTS = {"bert", "electra", "albert"}

every_architecture = pytest.mark.parametrize("architecture", CONFIGS)


@pytest.fixture(scope="module")
def fitted(checkpoints):
    """A function from architecture and kind of input to a fitted classifier."""
    made = {}

    def fit(architecture, X=TEXTS, **parameters):
        key = (architecture, X is PAIRS, *parameters.items())
        if key not in made:
            settings = {"epochs": 2, "precision": "float32", "random_state": 0, "long_text": "truncate"} | parameters
            made[key] = BertSequenceClassifier(checkpoints(architecture), **settings).fit(X, LABELS)
        return made[key]

    return fit


def plain_probabilities(clf, first, second=None):
    """Return what transformers alone computes: one padded batch through the network."""
    batch = clf.tokenizer_(
        first,
        second,
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=POSITIONS,
        split_special_tokens=True,
        return_tensors="pt",
        return_token_type_ids=takes_segments(clf.model_, clf.tokenizer_),
    )
    with torch.no_grad():
        return clf.model_(**batch).logits.softmax(dim=1).numpy()


@every_architecture
def test_fits_with_the_class_of_the_architecture_itself(fitted, architecture):
    clf = fitted(architecture)
    assert type(clf.model_).__name__ == OWN_CLASS[architecture]
    assert clf.model_.config.id2label == {0: "fresh", 1: "rotten"}
    assert clf.model_.config.label2id == {"fresh": 0, "rotten": 1}
    assert not clf.model_.training


@every_architecture
def test_single_texts_equal_the_plain_padded_network(fitted, architecture):
    clf = fitted(architecture)
    texts = [text for text in MIXED if text] if architecture in DECODERS else MIXED
    np.testing.assert_allclose(clf.predict_proba(texts), plain_probabilities(clf, texts), atol=1e-5)


@every_architecture
def test_pairs_equal_the_plain_padded_network(fitted, architecture):
    clf = fitted(architecture, PAIRS)
    first, second = [pair[0] for pair in PAIRS], [pair[1] for pair in PAIRS]
    np.testing.assert_allclose(clf.predict_proba(PAIRS), plain_probabilities(clf, first, second), atol=1e-5)


@every_architecture
@pytest.mark.parametrize("pooling", ["auto", "mean", "last"])
def test_a_text_alone_equals_the_text_in_a_batch(fitted, architecture, pooling):
    clf = fitted(architecture, pooling=pooling)
    alone = np.concatenate([clf.predict_proba([text]) for text in MIXED])
    assert np.isfinite(alone).all()
    np.testing.assert_allclose(clf.predict_proba(MIXED), alone, atol=1e-5)
    np.testing.assert_allclose(clf.predict_proba(MIXED[::-1])[::-1], alone, atol=1e-5)


@every_architecture
@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_the_pickled_network_and_tokenizer_come_back_the_same(fitted, architecture, pooling):
    clf = fitted(architecture, pooling=pooling)
    again = pickle.loads(pickle.dumps(clf))
    assert type(again.model_) is type(clf.model_)
    assert type(again.tokenizer_) is type(clf.tokenizer_)
    np.testing.assert_array_equal(again.predict_proba(MIXED), clf.predict_proba(MIXED))


@every_architecture
def test_training_changes_the_encoder_and_the_head(fitted, checkpoints, architecture):
    clf = fitted(architecture)
    before = transformers.AutoModel.from_pretrained(checkpoints(architecture), dtype=torch.float32).state_dict()
    after = clf.model_.base_model.state_dict()
    shared = [name for name in before.keys() & after.keys() if before[name].shape == after[name].shape]
    assert len(shared) > 10
    changed = [name for name in shared if not torch.equal(before[name], after[name])]
    assert len(changed) > len(shared) / 2


@every_architecture
def test_the_length_limit_counts_special_tokens_and_reserved_positions(fitted, architecture):
    clf = fitted(architecture)
    assert length_limit(clf.model_, clf.tokenizer_) == POSITIONS
    assert np.isfinite(clf.predict_proba(["joy " * 1000])).all()


@every_architecture
def test_segments_go_to_the_networks_that_have_them(fitted, architecture):
    clf = fitted(architecture)
    assert takes_segments(clf.model_, clf.tokenizer_) == (architecture in WITH_SEGMENTS)


@pytest.mark.parametrize("architecture", sorted(WITH_SEGMENTS))
def test_the_second_text_of_a_pair_is_in_the_second_segment(fitted, architecture):
    clf = fitted(architecture, PAIRS)
    seen = []
    table = clf.model_.base_model.embeddings.token_type_embeddings
    handle = table.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    clf.predict_proba([("joy", "plot")])
    handle.remove()
    first_of_second = 1 + 1 + 1
    assert seen[0][0].tolist()[:first_of_second] == [0] * first_of_second
    assert set(seen[0][0].tolist()[first_of_second:]) == {1}


@every_architecture
def test_dropout_overrides_every_probability_of_the_checkpoint(fitted, architecture):
    clf = fitted(architecture, dropout=0.25)
    layers = [module for module in clf.model_.modules() if isinstance(module, nn.Dropout)]
    assert layers
    assert {layer.p for layer in layers} == {0.25}


@every_architecture
def test_dropout_none_keeps_the_checkpoint(fitted, checkpoints, architecture):
    kept = fitted(architecture).model_.config.to_dict()
    original = transformers.AutoConfig.from_pretrained(checkpoints(architecture)).to_dict()
    names = [name for name in original if "dropout" in name or name.endswith("pdrop")]
    assert names
    assert {name: kept[name] for name in names} == {name: original[name] for name in names}


@every_architecture
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_pooling_that_is_not_the_architectures_gets_a_module_called_in_the_same_way(fitted, architecture, pooling):
    clf = fitted(architecture, pooling=pooling)
    is_own = pooling == own_pooling(clf.model_.config)
    assert isinstance(clf.model_, PooledClassifier) != is_own
    batch = clf.tokenizer_(["a fine film", "dull"], padding=True, return_tensors="pt")
    logits = clf.model_(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert logits.shape == (2, 2)


@pytest.mark.parametrize("architecture", sorted(DECODERS))
def test_a_decoder_pools_the_last_token_and_has_a_padding_token(fitted, architecture):
    clf = fitted(architecture)
    assert own_pooling(clf.model_.config) == "last"
    assert clf.model_.config.pad_token_id == clf.tokenizer_.pad_token_id
    seen = []
    handle = clf.model_.base_model.register_forward_hook(lambda module, args, output: seen.append(output[0].clone()))
    logits = clf.decision_function(["a fine film"])
    handle.remove()
    with torch.inference_mode():
        score = clf.model_.score(seen[0][0, -1])
    assert logits[0] == pytest.approx(float(score[1] - score[0]), abs=1e-6)


@pytest.mark.parametrize("architecture", sorted(DECODERS))
def test_pooling_the_first_token_of_a_decoder_is_refused(checkpoints, architecture):
    clf = BertSequenceClassifier(checkpoints(architecture), pooling="cls")
    with pytest.raises(ValueError, match=r"that token sees no other. Use pooling='last' or 'mean'"):
        clf.fit(TEXTS, LABELS)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modernbert_has_two_poolings_of_its_own(fitted, pooling):
    clf = fitted("modernbert", pooling=pooling)
    assert type(clf.model_).__name__ == OWN_CLASS["modernbert"]
    assert clf.model_.config.classifier_pooling == pooling


def test_pooling_reduces_padded_hidden_states():
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool(hidden, mask, "cls").tolist() == [[0, 1], [6, 7]]
    assert pool(hidden, mask, "mean").tolist() == [[1, 2], [8, 9]]
    assert pool(hidden, mask, "last").tolist() == [[2, 3], [10, 11]]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_pooling_keeps_float32_and_its_range_under_autocast(pooling):
    hidden, mask = torch.full((1, 4000, 2), 20.0), torch.ones(1, 4000, dtype=torch.int64)
    with torch.autocast("cpu", torch.float16):
        assert pool(hidden, mask, pooling).tolist() == [[20.0, 20.0]]


def test_an_architecture_whose_answer_depends_on_padding_is_refused(tmp_path, checkpoints):
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoints("bert"))
    tokenizer.save_pretrained(tmp_path)
    sizes = {"vocab_size": len(tokenizer), "d_model": WIDTH, "n_layer": 1, "n_head": 2, "d_inner": WIDTH}
    transformers.AutoModel.from_config(transformers.XLNetConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a xlnet, whose answer with pooling='auto' depends on the padding"):
        BertSequenceClassifier(tmp_path, epochs=1).fit(TEXTS, LABELS)
    clf = BertSequenceClassifier(tmp_path, epochs=1, pooling="last", precision="float32", random_state=0)
    clf.fit(TEXTS, LABELS)
    alone = np.concatenate([clf.predict_proba([text]) for text in TEXTS])
    np.testing.assert_allclose(clf.predict_proba(TEXTS), alone, atol=1e-5)


def test_the_last_token_is_pooled_even_if_it_is_the_padding_token(checkpoints, tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoints("gpt2"))
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", pair=f"$A $B {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    backend = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token=end, pad_token=end, model_max_length=POSITIONS
    )
    transformers.AutoModel.from_pretrained(checkpoints("gpt2")).save_pretrained(tmp_path)
    backend.save_pretrained(tmp_path)
    clf = BertSequenceClassifier(tmp_path, epochs=1, precision="float32", random_state=0).fit(TEXTS, LABELS)
    assert isinstance(clf.model_, PooledClassifier)
    assert clf.model_.pooling == "last"
    alone = np.concatenate([clf.predict_proba([text]) for text in TEXTS])
    np.testing.assert_allclose(clf.predict_proba(TEXTS), alone, atol=1e-5)


def test_the_pooled_network_takes_all_tokens_when_there_is_no_mask(fitted):
    network = fitted("bert", pooling="mean").model_
    ids = torch.tensor([[2, 7, 8, 3]])
    assert torch.equal(network(ids).logits, network(ids, torch.ones_like(ids)).logits)


def test_the_head_is_as_wide_as_the_network(fitted):
    assert fitted("bert", pooling="mean").model_.classifier.weight.shape == (2, WIDTH)


@texts_are_cut
def test_a_tokenizer_written_in_python_works_as_well(tmp_path):
    tokenizer = transformers.ByT5Tokenizer(model_max_length=POSITIONS)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": WIDTH}
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, pad_token_id=tokenizer.pad_token_id, **sizes
    )
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = [*TEXTS, "joy " * 30]
    clf = BertSequenceClassifier(tmp_path, epochs=1, precision="float32", random_state=0).fit(texts, [*LABELS, "fresh"])
    assert not clf.tokenizer_.is_fast
    assert clf.truncation_["texts"] == 1
    assert clf.truncation_["tokens"] == len("joy " * 30) + 1 - POSITIONS
    np.testing.assert_allclose(clf.predict_proba(texts), plain_probabilities(clf, texts), atol=1e-5)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(clf)).predict_proba(texts), clf.predict_proba(texts))


@pytest.mark.parametrize("architecture", ["bert", "mpnet", "deberta-v2", "modernbert", "gpt2"])
def test_what_the_lowest_layer_depends_on_lies_deepest(fitted, architecture):
    network = fitted(architecture).model_
    by_depth = {}
    for name, depth in depths(network).items():
        by_depth.setdefault(depth, []).append(name)
    assert sorted(by_depth) == [0, 1, 2, 3]
    assert any("word" in name or "wte" in name or "tok" in name for name in by_depth[3])
    assert not any(".layer.0." in name or ".h.0." in name for depth in (0, 1, 3) for name in by_depth[depth])
    assert len(by_depth[1]) == len(by_depth[2]) >= 10 or architecture == "modernbert"  # whose first layer has no norm


def test_what_stands_between_two_layers_is_as_deep_as_the_higher_one(tmp_path):
    build("deberta-v2", tmp_path, conv_kernel_size=3)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    found = {depth for name, depth in depths(network).items() if ".conv." in name}
    assert found == {LAYERS - 1}


def test_layers_that_are_not_called_one_by_one_are_told_from_a_bare_error():
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": WIDTH}
    config = transformers.SqueezeBertConfig(vocab_size=50, embedding_size=WIDTH, **sizes)
    network = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with pytest.raises(ValueError, match=r"layers of this squeezebert can't be told apart.*Pass 0 or 'encoder'"):
        depths(network)
    with pytest.raises(ValueError, match="layers of this squeezebert can't be told apart"):
        freeze(network, 1)


def test_a_head_that_is_trained_alone_needs_no_layers(checkpoints):
    settings = {"freeze": "encoder", "epochs": 1, "precision": "float32", "random_state": 0}
    fits = [
        BertSequenceClassifier(checkpoints("albert"), layer_decay=factor, **settings).fit(TEXTS, LABELS)
        for factor in (0.9, 1.0)
    ]
    assert np.array_equal(*(clf.predict_proba(TEXTS) for clf in fits))


def test_layers_that_share_weights_have_no_decay(checkpoints):
    clf = BertSequenceClassifier(checkpoints("albert"), layer_decay=0.9)
    with pytest.raises(ValueError, match=r"^layer_decay is not possible: the layers of this albert.*Pass 1\.0"):
        clf.fit(TEXTS, LABELS)
