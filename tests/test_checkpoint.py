"""From a folder to a network, and folders that are not right."""

import json
import logging
import os
import pickle
import shutil
import tempfile
import threading

import pytest
import torch
import transformers
from conftest import LABELS, TEXTS
from transformers.utils import logging as transformers_logging

from bertclf import BertSequenceClassifier, ModelFileError
from bertclf._checkpoint import _quiet, load_checkpoint
from bertclf._network import PooledClassifier, output_layer

DEFAULTS = {
    "multilabel": False,
    "revision": None,
    "labels": ["a", "b"],
    "pooling": "auto",
    "dropout": None,
    "verbose": False,
}


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of the tiny checkpoint that a test may damage."""
    return shutil.copytree(checkpoint, tmp_path / "checkpoint")


def edit(file, **settings):
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(content | settings), encoding="utf-8")


def write_pooling(folder, **settings):
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    edit(folder / "1_Pooling" / "config.json", **settings)


def test_the_network_is_in_float32_in_evaluation_mode_with_a_new_head(checkpoint):
    network = load_checkpoint(checkpoint, **DEFAULTS).network
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert not network.training
    assert network.classifier.weight.std().item() == pytest.approx(0.02, rel=0.5)
    assert network.classifier.bias.abs().max() == 0


def test_half_precision_weights_are_cast_up(checkpoint, folder):
    transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float16).save_pretrained(folder)
    network = load_checkpoint(folder, **DEFAULTS).network
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_head_of_a_checkpoint_fine_tuned_for_other_labels_is_not_kept(checkpoint, folder, n_classes, capfd):
    tuned = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=2)
    torch.nn.init.constant_(tuned.classifier.weight, 5.0)
    tuned.save_pretrained(folder)
    capfd.readouterr()
    labels = [str(label) for label in range(n_classes)]
    head = output_layer(load_checkpoint(folder, **(DEFAULTS | {"labels": labels})).network)
    assert head.weight.shape[0] == n_classes
    assert head.weight.abs().max() < 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode_cls_token": True}, None),
    ],
)
def test_auto_follows_the_pooling_of_a_sentence_embedding_checkpoint(folder, settings, pooling):
    write_pooling(folder, **settings)
    network = load_checkpoint(folder, **DEFAULTS).network
    assert getattr(network, "pooling", None) == pooling
    assert isinstance(network, PooledClassifier) == (pooling is not None)


def test_a_pooling_of_the_checkpoint_that_is_not_offered_is_told(folder):
    write_pooling(folder, pooling_mode_max_tokens=True)
    with pytest.warns(UserWarning, match=r"asks for a pooling other than 'cls', 'mean' and 'last'"):
        network = load_checkpoint(folder, **DEFAULTS).network
    assert type(network).__name__ == "BertForSequenceClassification"


def test_a_named_pooling_wins_over_the_checkpoint(folder):
    write_pooling(folder, pooling_mode_mean_tokens=True)
    network = load_checkpoint(folder, **(DEFAULTS | {"pooling": "cls"})).network
    assert type(network).__name__ == "BertForSequenceClassification"


def test_an_encoder_decoder_pools_in_its_own_way_alone(tmp_path):
    config = transformers.BartConfig(
        vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_attention_heads=2, decoder_ffn_dim=16, max_position_embeddings=64, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    vocab = {token: position for position, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b"])}
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    transformers.RobertaTokenizer(vocab=vocab, merges=[], model_max_length=64).save_pretrained(tmp_path)
    write_pooling(tmp_path, pooling_mode_mean_tokens=True)
    clf = BertSequenceClassifier(tmp_path, epochs=1, random_state=0).fit(["a", "b b"], [0, 1])
    assert type(clf.model_).__name__ == "BartForSequenceClassification"
    assert clf.predict_proba(["a", "a b b"]).shape == (2, 2)
    with pytest.raises(ValueError, match="pooling='mean' does not apply to bart"):
        clf.set_params(pooling="mean").fit(["a", "b b"], [0, 1])


def test_a_lacking_padding_token_gets_a_row_in_the_embedding_table(checkpoints):
    loaded = load_checkpoint(checkpoints("openai-gpt"), **DEFAULTS)
    assert loaded.tokenizer.pad_token == "[PAD]"
    assert loaded.network.get_input_embeddings().num_embeddings == len(loaded.tokenizer)
    assert loaded.network.config.pad_token_id == loaded.tokenizer.pad_token_id == len(loaded.tokenizer) - 1


def test_a_decoder_with_an_end_of_text_token_pads_with_it(checkpoints):
    loaded = load_checkpoint(checkpoints("gpt2"), **DEFAULTS)
    assert loaded.tokenizer.pad_token == loaded.tokenizer.eos_token


def test_a_revision_of_a_local_folder_is_refused(checkpoint):
    with pytest.raises(ValueError, match=r"revision='main' chooses a version on the Hub.*Pass revision=None"):
        load_checkpoint(checkpoint, **(DEFAULTS | {"revision": "main"}))


def test_a_folder_without_config_is_no_checkpoint(tmp_path):
    with pytest.raises(OSError, match=r"holds no config.json"):
        load_checkpoint(tmp_path, **DEFAULTS)


def test_a_broken_config_names_the_file(folder):
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelFileError, match=r"config.json is not valid JSON"):
        load_checkpoint(folder, **DEFAULTS)


def test_an_unknown_architecture_is_named(folder):
    edit(folder / "config.json", model_type="perceptron9000")
    with pytest.raises(ModelFileError, match=r"config.json has model_type 'perceptron9000', which this version of"):
        load_checkpoint(folder, **DEFAULTS)


def test_a_configuration_of_no_architecture_says_what_to_add(folder):
    edit(folder / "config.json", model_type=None)
    with pytest.raises(ModelFileError, match=r'config.json has no model_type, .* Add it, such as "model_type": "bert"'):
        load_checkpoint(folder, **DEFAULTS)


def test_an_architecture_that_classifies_nothing_is_named(folder):
    edit(folder / "config.json", model_type="vit")
    with pytest.raises(ModelFileError, match=r"config.json is of a vit, an architecture that transformers has no"):
        load_checkpoint(folder, **DEFAULTS)


def test_a_configuration_that_would_fetch_another_is_not_made(folder, monkeypatch):
    """CVE-2026-5241: that of LightGlue asks the Hub for another one, and before transformers 5.5 could run its code."""
    detector = {"model_type": "theirs", "_name_or_path": "someone/evil"}
    edit(folder / "config.json", model_type="lightglue", trust_remote_code=True, keypoint_detector_config=detector)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *given, **named: pytest.fail("it was made"))
    with pytest.raises(ValueError, match=r"lightglue|trust_remote_code"):
        load_checkpoint(folder, **DEFAULTS)


@pytest.mark.parametrize("name", ["{}/outside", "../../../outside"])
def test_a_chat_template_is_dropped_wherever_it_would_be_saved(folder, tmp_path, monkeypatch, name):
    """CVE-2026-9856: before transformers 5.10 its name could lead out of the folder in which pickling puts files."""
    template = {"name": name.format(tmp_path), "template": "evil"}
    edit(folder / "tokenizer_config.json", chat_template=[{"name": "default", "template": "x"}, template])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a" / "b"))
    (tmp_path / "a" / "b").mkdir(parents=True)
    clf = BertSequenceClassifier(folder, epochs=1, random_state=0).fit(TEXTS, LABELS)
    assert pickle.loads(pickle.dumps(clf)).predict(TEXTS).shape == (len(TEXTS),)
    assert not [file for file in tmp_path.rglob("*") if "outside" in file.name]


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_checkpoint_is_refused(folder, file):
    edit(folder / file, auto_map={"AutoModel": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('executed')", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{file} asks for code of its own \(auto_map\), which is never run"):
        load_checkpoint(folder, **DEFAULTS)


def test_weights_in_a_format_that_can_run_code_are_not_read(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelFileError, match=r"holds no model.safetensors"):
        load_checkpoint(folder, **DEFAULTS)


def test_missing_weights_of_the_encoder_are_told(checkpoint, folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    del weights["encoder.layer.0.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"lacks 1 of the \d+ weights of the encoder .*layer.0.output.dense.weight"):
        load_checkpoint(folder, **DEFAULTS)


def test_loading_leaves_logging_and_progress_bars_as_they_were(checkpoint, capfd):
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    filters = {name: list(logging.getLogger(name).filters) for name in logging.root.manager.loggerDict}
    load_checkpoint(checkpoint, **DEFAULTS)
    assert transformers_logging.is_progress_bar_enabled() == bars
    assert transformers_logging.get_verbosity() == verbosity
    assert {name: list(logging.getLogger(name).filters) for name in filters} == filters
    assert capfd.readouterr() == ("", "")


def test_another_thread_may_still_log_while_a_checkpoint_loads():
    logger = logging.getLogger("transformers.modeling_utils")
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    try:
        with _quiet():
            logger.warning("from the loading thread")
            other = threading.Thread(target=logger.warning, args=("from another thread",))
            other.start()
            other.join()
    finally:
        logger.removeHandler(handler)
    assert messages == ["from another thread"]


@pytest.mark.parametrize("pooling", ["auto", "mean"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "mpnet", "albert"])
def test_a_network_outlives_the_file_of_its_weights(checkpoints, tmp_path, architecture, pooling):
    folder = shutil.copytree(checkpoints(architecture), tmp_path / "checkpoint")
    clf = BertSequenceClassifier(folder, epochs=1, freeze="encoder", pooling=pooling, random_state=0).fit(TEXTS, LABELS)
    before = {name: value.clone() for name, value in clf.model_.state_dict().items()}
    expected = clf.predict_proba(TEXTS)
    file = folder / "model.safetensors"
    with file.open("r+b") as weights:
        weights.write(b"x" * file.stat().st_size)
    after = clf.model_.state_dict()
    assert not [name for name in before if not torch.equal(before[name], after[name])]
    os.truncate(file, 0)
    assert (clf.predict_proba(TEXTS) == expected).all()
