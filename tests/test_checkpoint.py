"""From a name to a network: local folders, the Hub's cache, a fake Hub, and folders that are not right."""

import http.server
import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import threading

import huggingface_hub
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


def test_a_folder_that_is_not_there_is_told_from_a_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a folder on this machine. Pass a folder with config.json"):
        load_checkpoint(str(tmp_path / "nowhere"), **DEFAULTS)
    with pytest.raises(FileNotFoundError, match="is not a folder on this machine"):
        load_checkpoint(tmp_path / "nowhere", **DEFAULTS)


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
    with pytest.raises(ValueError, match=r"model_type 'perceptron9000', which this version of transformers"):
        load_checkpoint(folder, **DEFAULTS)


def test_an_architecture_that_classifies_nothing_is_named(folder):
    edit(folder / "config.json", model_type="vit")
    with pytest.raises(ValueError, match=r"is a vit, an architecture that transformers has no"):
        load_checkpoint(folder, **DEFAULTS)


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


def lay_out_cache(cache, checkpoint, *, commit="0123456789abcdef0123456789abcdef01234567"):
    """Lay a checkpoint out as the Hub's local cache does, under the name `someone/tiny`."""
    repository = cache / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    shutil.copytree(checkpoint, repository / "snapshots" / commit)
    return commit


def fit_in_a_new_process(model, **environment):
    """Fit by name as a user would, configured by environment variables alone; return what it prints."""
    code = f"""
        from bertclf import BertSequenceClassifier, ModelFileError
        clf = BertSequenceClassifier({model!r}, epochs=1, random_state=0)
        print(clf.fit({TEXTS!r}, {LABELS!r}).predict_proba(["a fine film"]).shape)
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        env=kept | environment,
    )
    assert answer.stderr == ""
    return answer.stdout


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub, which is used offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_hub_name_is_loaded_from_the_local_cache_without_network(checkpoint, cache):
    commit = lay_out_cache(cache, checkpoint)
    for revision in (None, "main", commit):
        assert load_checkpoint("someone/tiny", **(DEFAULTS | {"revision": revision})).network.config.num_labels == 2


def test_an_unreachable_hub_is_told(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(OSError, match=r"is not in the local cache, and the Hugging Face Hub can't be reached"):
        load_checkpoint("someone/other", **DEFAULTS)


def test_a_full_disk_is_not_taken_for_an_unreachable_hub(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bertclf._checkpoint.snapshot_download", fail)
    with pytest.raises(OSError, match="No space left on device"):
        load_checkpoint("someone/other", **DEFAULTS)


def test_a_hub_name_that_is_not_in_the_cache_is_told_offline(cache):
    with pytest.raises(OSError, match=r"model='someone/other' is not in the local cache, and HF_HUB_OFFLINE is set"):
        load_checkpoint("someone/other", **DEFAULTS)


class FakeHub(http.server.BaseHTTPRequestHandler):
    """A Hub with one public repository and one gated one, on the loopback address."""

    commit = "89abcdef0123456789abcdef0123456789abcdef"
    folder = None

    def log_message(self, *args):
        """Stay silent."""

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, *, with_body):
        path = self.path.split("?")[0]
        if "gated" in path:
            return self.send(403, b"{}", {"X-Error-Code": "GatedRepo"}, with_body)
        if "someone/tiny" not in path:
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
        if "nowhere" in path:
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body)
        files = sorted(file.name for file in self.folder.iterdir())
        if path.startswith("/api/models/someone/tiny/revision/"):
            info = {"id": "someone/tiny", "sha": self.commit, "siblings": [{"rfilename": name} for name in files]}
            return self.send(200, json.dumps(info).encode(), {}, with_body)
        if path.startswith("/api/models/someone/tiny/tree/"):
            tree = [
                {"type": "file", "path": name, "size": (self.folder / name).stat().st_size, "oid": name}
                for name in files
            ]
            return self.send(200, json.dumps(tree).encode(), {}, with_body)
        content = (self.folder / path.rsplit("/", 1)[1]).read_bytes()
        etag = f'"{path.rsplit("/", 1)[1]}"'
        return self.send(200, content, {"ETag": etag, "X-Repo-Commit": self.commit}, with_body)

    def send(self, status, body, headers, with_body):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body)), "Content-Type": "application/json"}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def fake_hub(checkpoint):
    """The address of a fake Hub that serves the tiny checkpoint."""
    handler = type("Handler", (FakeHub,), {"folder": checkpoint})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_hub_name_is_downloaded_silently(fake_hub, tmp_path):
    settings = {"HF_ENDPOINT": fake_hub, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    assert fit_in_a_new_process("someone/tiny", **settings) == "(1, 2)\n"
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / FakeHub.commit
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in snapshot.iterdir()}


@pytest.mark.parametrize(
    ("model", "revision", "message"),
    [
        ("someone/misspelt", None, "is neither a folder on this machine nor a repository"),
        ("someone/gated", None, "is a gated repository"),
        ("someone/tiny", "nowhere", "the repository has no such branch, tag or commit"),
        ("not a name", None, "is neither a folder on this machine nor a repository"),
    ],
)
def test_each_refusal_of_the_hub_has_a_message_of_its_own(fake_hub, cache, monkeypatch, model, revision, message):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", fake_hub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(OSError, match=message):
        load_checkpoint(model, **(DEFAULTS | {"revision": revision}))


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
