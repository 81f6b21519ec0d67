"""Rows 31 to 37 of the table of bad input and bad days: saves that are cut short, and files that can't be trusted."""

import errno
import hashlib
import json
import os
import pickle
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fuzz_models
import kill_saves
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import LABELS, TEXTS, saying

from bertclf import BertSequenceClassifier, ModelFileError
from bertclf._manifest import _hash_of

WEIGHTS = "model.safetensors"


class Evil:
    """Writes a file where somebody unpickles it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.file}",)


@pytest.fixture(scope="module")
def clf(checkpoint: Path) -> BertSequenceClassifier:
    return BertSequenceClassifier(checkpoint, epochs=1, random_state=0).fit(TEXTS, LABELS)


@pytest.fixture(scope="module")
def other(checkpoint: Path) -> BertSequenceClassifier:
    return BertSequenceClassifier(checkpoint, epochs=1, random_state=1).fit(TEXTS, LABELS)


@pytest.fixture
def folder(clf: BertSequenceClassifier, tmp_path: Path) -> Path:
    """A saved classifier that a test may damage."""
    clf.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def from_pretrained(folder: Path) -> object:
    return BertSequenceClassifier.from_pretrained(folder)


def fit(folder: Path) -> object:
    return BertSequenceClassifier(folder, epochs=1).fit(TEXTS, LABELS)


def assert_refuses(use: Callable[[Path], object], folder: Path, file: str, *reasons: str) -> None:
    """Check that a folder is refused, and that the message names the file and the reason."""
    with pytest.raises(ModelFileError, match=saying(str(folder / file), *reasons)):
        use(folder)


def assert_holds(folder: Path, clf: BertSequenceClassifier) -> None:
    loaded = BertSequenceClassifier.from_pretrained(folder)
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), clf.predict_proba(TEXTS))
    assert os.listdir(folder.parent) == [folder.name]


def edit(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | settings), encoding="utf-8")


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest and make its own hash anew, as somebody would who means harm."""
    file = folder / "bertclf.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    del content["sha256"]
    change(content)
    file.write_text(json.dumps(content | {"sha256": _hash_of(content)}), encoding="utf-8")


def hash_anew(folder: Path) -> None:
    """Make sizes and hashes in the manifest anew."""

    def change(content: dict[str, Any]) -> None:
        for name, entry in content["files"].items():
            stored = (folder / name).read_bytes()
            entry |= {"size": len(stored), "sha256": hashlib.sha256(stored).hexdigest()}

    edit_manifest(folder, change)


# 31: SIGKILL


def test_row_31_a_save_that_is_killed_leaves_the_old_model_or_the_new() -> None:
    """Every step of it in test_files.py; fifty times in examples/stress/kill_saves.py."""
    script = [sys.executable, kill_saves.__file__, "--kills=3", "--seed=1"]
    answer = subprocess.run(script, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    kills, full_disk = answer.stdout.splitlines()
    assert kills.startswith("3 kills: ")
    assert "0 LOST" in kills
    assert full_disk.startswith(("full disk: OSError with the path", "full disk: left out"))


# 32: no room, no right to write


@pytest.fixture
def only_small_files():
    """A disk on which no file can be longer than 20 kB, which is less than the weights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_row_32_a_file_that_cannot_be_written_whole_leaves_the_old_model(
    folder: Path, clf: BertSequenceClassifier, other: BertSequenceClassifier, only_small_files: None
) -> None:
    with pytest.raises(OSError, match=saying("File too large", str(folder))) as raised:
        other.save_pretrained(folder)
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(folder))
    assert_holds(folder, clf)


@pytest.mark.parametrize("function", ["os.fsync", "os.rename", "pathlib.Path.mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_row_32_whatever_fails_of_a_save_leaves_the_old_model(
    folder: Path,
    clf: BertSequenceClassifier,
    other: BertSequenceClassifier,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    number: int,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(function, fail)
        with pytest.raises(OSError, match=saying(os.strerror(number), str(folder))):
            other.save_pretrained(folder)
    assert_holds(folder, clf)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into every folder")
def test_row_32_a_folder_that_may_not_be_written(folder: Path, clf: BertSequenceClassifier) -> None:
    folder.parent.chmod(0o500)
    try:
        for place in (folder, folder.parent / "new"):
            with pytest.raises(PermissionError, match=str(place)):
                clf.save_pretrained(place)
        assert_holds(folder, clf)
    finally:
        folder.parent.chmod(0o700)


def test_row_32_a_folder_below_a_file(tmp_path: Path, clf: BertSequenceClassifier) -> None:
    (tmp_path / "file").write_text("dear", encoding="utf-8")
    for place in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(OSError, match=str(place)):
            clf.save_pretrained(place)
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text(encoding="utf-8") == "dear"


# 33: broken weights, through from_pretrained and as a checkpoint through fit

USES = pytest.mark.parametrize("use", [from_pretrained, fit])


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def cut_in_header(content: bytes) -> bytes:
    return content[:100]


def empty(content: bytes) -> bytes:
    return b""


def giant_header(content: bytes) -> bytes:
    return (1 << 62).to_bytes(8, "little") + content[8:]


def header_of_nothing(content: bytes) -> bytes:
    return (8).to_bytes(8, "little") + b"[[[[[[[["


def a_pickle(content: bytes) -> bytes:
    return pickle.dumps({"weights": [1.0] * 1000})


def longer(content: bytes) -> bytes:
    return content + b"more"


@USES
@pytest.mark.parametrize("is_hashed", [False, True])
@pytest.mark.parametrize("damage", [cut, cut_in_header, empty, giant_header, header_of_nothing, longer])
def test_row_33_broken_weights(folder: Path, use: Any, damage: Callable[[bytes], bytes], is_hashed: bool) -> None:
    file = folder / WEIGHTS
    file.write_bytes(damage(file.read_bytes()))
    if is_hashed:
        hash_anew(folder)
    assert_refuses(use, folder, WEIGHTS)


def test_row_33_weights_are_compared_before_they_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    safetensors.torch.save_file(weights | {"extra": torch.zeros(2)}, folder / WEIGHTS, metadata={"format": "pt"})
    hash_anew(folder)
    monkeypatch.setattr("bertclf._saving.read_tensors", lambda *_, **__: pytest.fail("the weights were read"))
    assert_refuses(from_pretrained, folder, WEIGHTS, "'extra' is not known")


def test_row_33_weights_for_which_there_is_no_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("bertclf._weights.np", SimpleNamespace(empty=fail, uint8=np.uint8))
    assert_refuses(from_pretrained, folder, WEIGHTS, "bytes of memory, more than there are")


@USES
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("depth", [101, 5_000, 200_000])
def test_row_33_json_of_any_depth(folder: Path, use: Any, file: str, depth: int) -> None:
    content = (folder / file).read_text(encoding="utf-8").rstrip().removesuffix("}")
    (folder / file).write_text(f'{content}, "deep": {"[" * depth}{"]" * depth}}}', encoding="utf-8")
    hash_anew(folder)
    assert_refuses(use, folder, file)


def test_row_33_weights_that_are_missing(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert_refuses(from_pretrained, folder, WEIGHTS, "is missing")
    assert_refuses(fit, folder, "", "holds no model.safetensors")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weights: weights.pop("classifier.bias"), "'classifier.bias' is missing"),
        (lambda weights: weights.update(extra=torch.zeros(2)), "'extra' is not known"),
        (
            lambda weights: weights.update({"classifier.bias": torch.zeros(3)}),
            "'classifier.bias' is torch.float32 of shape [3], but must be torch.float32 of shape [2]",
        ),
        (lambda weights: weights.update({"classifier.bias": torch.zeros(2, dtype=torch.int64)}), "is torch.int64"),
        (lambda weights: weights.update({"classifier.bias": torch.zeros(2, dtype=torch.float16)}), "of type F16"),
        (lambda weights: weights.update({"classifier.bias": torch.tensor([0.0, float("inf")])}), "not finite"),
    ],
    ids=["missing", "extra", "shape", "type", "half", "infinite"],
)
def test_row_33_other_weights_than_the_network_has(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], reason: str
) -> None:
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    change(weights)
    safetensors.torch.save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    hash_anew(folder)
    assert_refuses(from_pretrained, folder, WEIGHTS, reason)


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 10**9},
        {"vocab_size": 10**12},
        {"num_hidden_layers": 10**7},
        {"num_hidden_layers": 9_000},
        {"max_position_embeddings": 1 << 30},
        {"num_labels": 10**9},
        {"num_attention_heads": 0},
    ],
    ids=str,
)
def test_row_33_a_network_of_absurd_size_takes_no_memory(folder: Path, sizes: dict[str, int]) -> None:
    edit(folder / "config.json", **sizes)
    hash_anew(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelFileError, match=str(folder)):
        from_pretrained(folder)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 200e6


@USES
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", '{"a": NaN}', "[" * 200_000, "\x00", '{"a": 1' + "0" * 5000 + "}"])
def test_row_33_broken_json(folder: Path, use: Any, file: str, content: str) -> None:
    (folder / file).write_text(content, encoding="utf-8")
    hash_anew(folder)
    assert_refuses(use, folder, file)


@USES
def test_row_33_a_broken_tokenizer(folder: Path, use: Any) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}', encoding="utf-8")
    hash_anew(folder)
    assert_refuses(use, folder, "tokenizer_config.json", "can't be used")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content.pop("labels"), "it has no 'labels'"),
        (lambda content: content["labels"].update(values=["fresh", "fresh"]), "not different, sorted"),
        (lambda content: content["labels"].update(values=["rotten", "fresh"]), "not different, sorted"),
        (lambda content: content["labels"].update(values=["fresh", 1]), "a label is 1, which is no str"),
        (lambda content: content["labels"].update(values=["fresh", "other"]), "labels are others than those of"),
        (lambda content: content["labels"].update(dtype="<U99999999"), "would fill the memory"),
        (lambda content: content["labels"].update(dtype="O"), "is 'O', which is not known"),
        (lambda content: content.update(pairs=1), "its 'pairs' is 1"),
        (lambda content: content.update(max_length=65), "max_length"),
        (lambda content: content.update(max_length=None), "takes no more than 64 tokens"),
        (lambda content: content.update(long_text="whole"), "its 'long_text' is 'whole'"),
        (lambda content: content.update(pooling="max"), "its 'pooling' is 'max'"),
        (lambda content: content["parameters"].update(precision="int1"), "The 'precision' parameter"),
        (lambda content: content["fitted"].update(history_=[{"epoch": 1}]), "its 'history_' is"),
        (lambda content: content["fitted"].update(temperature_=0.0), "its 'temperature_' is"),
        (lambda content: content["fitted"].update(thresholds_=[0.5, 2.0]), "its 'thresholds_' is"),
        (lambda content: content["fitted"].update(thresholds_=[0.5] * 7), "its 'thresholds_' are not one a label"),
        (lambda content: content["files"].pop("config.json"), "does not list config.json"),
        (lambda content: content.update(oldest_reader=3, format_version=4), "format 4, which this version of bertclf"),
        (lambda content: content.update(format="other"), "was not written by save_pretrained"),
    ],
)
def test_row_33_a_manifest_that_says_what_cannot_be(
    folder: Path, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    edit_manifest(folder, change)
    with pytest.raises(ModelFileError, match=saying(str(folder), ".json", reason)):
        from_pretrained(folder)


def test_row_33_what_later_versions_add_is_passed_over(folder: Path, clf: BertSequenceClassifier) -> None:
    def change(content: dict[str, Any]) -> None:
        content.update(format_version=3, new="more")
        content["parameters"].update(new_parameter=1)

    edit_manifest(folder, change)
    assert_holds(folder, clf)


# 34: one bit


def is_same_json(first: bytes, second: bytes) -> bool:
    try:
        return bool(json.loads(first) == json.loads(second))
    except ValueError:
        return False


def test_row_34_a_bit_flipped_anywhere_is_found(folder: Path, clf: BertSequenceClassifier) -> None:
    generator = np.random.default_rng(0)
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for place in generator.integers(len(content), size=20):
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(generator.integers(8))
            file.write_bytes(flipped)
            if file.name == "bertclf.json" and is_same_json(bytes(flipped), content):
                continue  # white space
            assert_refuses(from_pretrained, folder, file.name)
        file.write_bytes(content)
    assert_holds(folder, clf)


def test_row_34_a_bit_flipped_in_the_weights_is_told_as_damage(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1000] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    assert_refuses(from_pretrained, folder, WEIGHTS, "has another SHA-256 than bertclf.json says: it is damaged")


# 35: pickles


@USES
@pytest.mark.parametrize("is_hashed", [False, True])
def test_row_35_a_pickle_by_the_name_of_safetensors_is_not_opened(
    folder: Path, tmp_path: Path, use: Any, is_hashed: bool
) -> None:
    torch.save(Evil(tmp_path / "run"), folder / WEIGHTS)
    if is_hashed:
        hash_anew(folder)
    assert_refuses(use, folder, WEIGHTS)
    assert not (tmp_path / "run").exists()


@USES
def test_row_35_a_folder_with_pickled_weights_alone_is_refused(folder: Path, tmp_path: Path, use: Any) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(Evil(tmp_path / "run"), folder / "pytorch_model.bin")
    with pytest.raises(ModelFileError, match=saying(str(folder))):
        use(folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pkl", "modeling.py", "x.PT", "x.joblib"])
def test_row_35_nothing_that_runs_may_lie_beside_a_saved_model(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    assert_refuses(from_pretrained, folder, name, "can run code")


def test_row_35_what_is_not_listed_is_not_read(folder: Path, clf: BertSequenceClassifier) -> None:
    for name in ("README.md", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "generation_config.json"):
        (folder / name).write_bytes(b"nonsense")
    assert_holds(folder, clf)


# 36: paths and links


@pytest.mark.parametrize(
    "path", ["../model.safetensors", "/etc/passwd", "sub/config.json", "..", "", "config.json\x00", "C:\\x", "evil.py"]
)
def test_row_36_a_path_in_the_manifest(folder: Path, path: str) -> None:
    entry = {"size": 1, "sha256": "0" * 64}
    edit_manifest(folder, lambda content: content["files"].update({path: entry}))
    assert_refuses(
        from_pretrained, folder, "bertclf.json", f"it lists {path!r}, which is no file of a saved classifier"
    )


@pytest.mark.parametrize("name", ["bertclf.json", "config.json", WEIGHTS, "tokenizer.json"])
@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("symlink", "is a link, which is not followed"),
        ("hard link", "is a hard link"),
        ("folder", "is no regular file"),
        ("pipe", "is no regular file"),
        ("nothing", "is missing"),
    ],
)
def test_row_36_links_and_what_is_no_file(folder: Path, tmp_path: Path, name: str, way: str, reason: str) -> None:
    file, elsewhere = folder / name, tmp_path / "elsewhere"
    file.rename(elsewhere)
    if way == "symlink":
        file.symlink_to(elsewhere)
    elif way == "hard link":
        file.hardlink_to(elsewhere)
    elif way == "folder":
        file.mkdir()
    elif way == "pipe":
        os.mkfifo(file)
    if (name, way) == ("bertclf.json", "nothing"):
        assert_refuses(from_pretrained, folder, "", "holds no bertclf.json")
    else:
        assert_refuses(from_pretrained, folder, name, reason)


def test_row_36_a_checkpoint_in_pieces_and_a_pooling_from_elsewhere(folder: Path, checkpoint: Path) -> None:
    (folder / WEIGHTS).unlink()
    index = {"weight_map": {"classifier.bias": f"../{checkpoint.name}/{WEIGHTS}"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert_refuses(fit, folder, f"{WEIGHTS}.index.json", "which is no file of safetensors in the folder")
    shutil.copy(checkpoint / WEIGHTS, folder)
    modules = [{"path": "../elsewhere", "type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    assert_refuses(fit, folder, "modules.json", "'../elsewhere', which is no folder")


# 37: code


@USES
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoModel": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]}),
        ("_attn_implementation_internal", "someone/kernel"),
        ("_attn_implementation", "someone/kernel"),
        ("attn_implementation", {"": "someone/kernel"}),
        ("trust_remote_code", True),
    ],
)
@pytest.mark.parametrize("is_nested", [False, True])
def test_row_37_a_key_that_asks_for_code(
    folder: Path, use: Any, file: str, key: str, value: Any, is_nested: bool
) -> None:
    edit(folder / file, **({"text_config": {"a": [{key: value}]}} if is_nested else {key: value}))
    (folder / "evil.py.txt").write_text("raise SystemExit", encoding="utf-8")
    hash_anew(folder)
    assert_refuses(use, folder, file, f"asks for code of its own ({key}), which is never run")


@USES
def test_row_37_an_adapter(folder: Path, use: Any) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/model"}', encoding="utf-8")
    assert_refuses(use, folder, "adapter_config.json", "an adapter for another network")


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("tokenizer_config.json", "tokenizer_file", "/etc/passwd"),
        ("tokenizer_config.json", "init_inputs", ["/etc/passwd"]),
        ("tokenizer_config.json", "gguf_file", "x.gguf"),
        ("tokenizer_config.json", "name_or_path", "someone/model"),
        ("tokenizer_config.json", "tokenizer_class", "AutoModelForCausalLM"),
        ("tokenizer_config.json", "sp_model_kwargs", {"model_file": "/etc/passwd"}),
        ("tokenizer_config.json", "mecab_kwargs", {"mecab_option": "-d /etc"}),
        ("tokenizer_config.json", "extra", {"inner": [{"vocab_file": "/etc/passwd"}]}),
        ("config.json", "quantization_config", {"quant_method": "bitsandbytes"}),
        ("config.json", "_name_or_path", "someone/model"),
        ("config.json", "model_type", "perceptron9000"),
    ],
)
def test_row_37_keys_that_lead_elsewhere(folder: Path, file: str, key: str, value: Any) -> None:
    edit(folder / file, **{key: value})
    hash_anew(folder)
    assert_refuses(from_pretrained, folder, file, "vocab_file" if key == "extra" else key)


@USES
def test_row_37_arguments_for_a_library_that_name_a_file(folder: Path, use: Any) -> None:
    """sentencepiece would open what `model_file` names, and wait for ever at a pipe."""
    os.mkfifo(folder.parent / "pipe")
    arguments = {"model_file": str(folder.parent / "pipe")}
    edit(folder / "tokenizer_config.json", tokenizer_class="BertGenerationTokenizer", sp_model_kwargs=arguments)
    hash_anew(folder)
    assert_refuses(use, folder, "tokenizer_config.json", "other files (sp_model_kwargs")


def test_row_37_an_architecture_whose_configuration_fetches_another(folder: Path) -> None:
    """CVE-2026-5241."""
    edit(folder / "config.json", model_type="lightglue", keypoint_detector_config={"model_type": "superpoint"})
    hash_anew(folder)
    assert_refuses(from_pretrained, folder, "config.json", "is of a lightglue, an architecture that")


def test_row_37_trust_remote_code_is_never_passed(
    folder: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    asked = []
    for loader in (
        transformers.AutoTokenizer,
        transformers.AutoConfig,
        transformers.AutoModelForSequenceClassification,
    ):
        original = loader.from_pretrained

        def listening(*given: Any, original: Any = original, **named: Any) -> Any:
            asked.append(named.get("trust_remote_code"))
            return original(*given, **named)

        monkeypatch.setattr(loader, "from_pretrained", listening)
    from_pretrained(folder)
    fit(checkpoint)
    assert len(asked) >= 4
    assert not any(asked)


def test_rows_33_to_37_the_watch_itself_hears_what_must_not_happen(tmp_path: Path) -> None:
    watch = fuzz_models.Watch(tmp_path)
    (tmp_path / "evil.py").write_text("x = 1", encoding="utf-8")
    pickled = pickle.dumps(Path)
    deeds: list[Callable[[], object]] = [
        lambda: open(__file__, "a").close(),
        lambda: Path("/etc/passwd").read_bytes(),
        lambda: os.system("true"),
        lambda: subprocess.run(["true"], check=True),
        lambda: pickle.loads(pickled),
        lambda: exec(compile("x = 1", str(tmp_path / "evil.py"), "exec")),
        lambda: eval(f"'{fuzz_models.CANARY}'"),
        lambda: socket.socket().close(),
    ]
    for deed in deeds:
        watch.heard.clear()
        watch.listens = True
        deed()
        watch.listens = False
        assert watch.heard
    watch.listens = True
    (tmp_path / "file").write_bytes((tmp_path / "evil.py").read_bytes())
    watch.listens = False
    assert len(watch.heard) == 1


def test_rows_33_to_37_mutants_are_refused_or_do_no_harm(capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty thousand of them: examples/stress/fuzz_models.py."""
    assert fuzz_models.main(["--mutants=200", "--seed=12345"]) == 0, capsys.readouterr().out
    counted = capsys.readouterr().out.splitlines()[-1]
    assert counted.startswith("seed 12345: 200 mutants")
    assert "loaded, predicts the same" in counted
