"""A fit that is stopped goes on from its last epoch, and ends as if it had never been stopped; or says why it can't."""

import copy
import errno
import itertools
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import LABELS, TEXTS, saying, texts_are_cut
from safetensors import safe_open
from safetensors.torch import load_file, save
from sklearn.metrics import f1_score, make_scorer
from sklearn.model_selection import GridSearchCV

from bertclf import BertSequenceClassifier, _checkpoint, _probe, _progress, _resume, _steps, _training
from bertclf._engine import Engine
from bertclf._files import ModelFileError
from bertclf._resume import FILE_NAME, FitFile

MATRIX = np.array([["film" in text, "very" in text, "story" in text] for text in TEXTS], dtype=int)
PAIRS = list(zip(TEXTS, TEXTS[::-1], strict=True))
MANY, MANY_LABELS = TEXTS * 3, LABELS * 3
STEPS = 4  # of an epoch: 14 texts in batches of 4


@pytest.fixture
def make(checkpoint, tmp_path):
    """A function that makes an unfitted classifier of the tiny checkpoint, which keeps its state in a folder."""

    def make_classifier(**parameters):
        defaults = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-2, "random_state": 0}
        return BertSequenceClassifier(**(defaults | {"model": checkpoint, "checkpoint": tmp_path / "fit"} | parameters))

    return make_classifier


@pytest.fixture
def stop(monkeypatch):
    """A function that lets the fit be interrupted at its n-th step from now on, None for never; and counts steps."""
    step = _steps.Descent.step
    counts = {"steps": 0, "last": None}

    def counted(descent, rows):
        counts["steps"] += 1
        if counts["steps"] == counts["last"]:
            raise KeyboardInterrupt
        return step(descent, rows)

    def stop_at(last):
        counts.update(steps=0, last=last)
        return counts

    monkeypatch.setattr(_steps.Descent, "step", counted)
    return stop_at


def interrupted(clf, stop, step, *arguments, **named):
    """Fit until a step, at which the fit is interrupted."""
    stop(step)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(*arguments, **named)


def without_seconds(history):
    return [{name: value for name, value in row.items() if not name.endswith("seconds")} for row in history]


def assert_same_bits(clf, other, texts=TEXTS):
    for name, weight in clf.model_.state_dict().items():
        assert torch.equal(weight, other.model_.state_dict()[name]), name
    assert without_seconds(clf.history_) == without_seconds(other.history_)
    for name in ("n_iter_", "loss_curve_", "best_loss_", "best_validation_score_", "validation_scores_"):
        assert getattr(clf, name) == getattr(other, name), name
    assert clf.temperature_ == other.temperature_
    assert clf.thresholds_ == other.thresholds_
    assert clf.micro_batch_size_ == other.micro_batch_size_
    assert clf.truncation_ == other.truncation_
    np.testing.assert_array_equal(clf.predict_proba(texts), other.predict_proba(texts))


KINDS = {
    "defaults": ({}, TEXTS, LABELS, {}),
    "pairs": ({}, PAIRS, LABELS, {}),
    "many labels": ({"class_weight": [{0: 1, 1: 3}, {}, {1: 2}]}, TEXTS, MATRIX, {}),
    "weights": ({"class_weight": "balanced"}, TEXTS[3:], LABELS[3:], {"sample_weight": np.arange(11.0)}),
    "validation": ({}, TEXTS, LABELS, {"X_val": TEXTS[::3], "y_val": LABELS[::3]}),
    "early stopping": ({"early_stopping": True, "epochs": 5, "n_iter_no_change": 4}, TEXTS * 2, LABELS * 2, {}),
    "a score": ({"early_stopping": True, "scoring": "f1_macro", "epochs": 4}, TEXTS * 2, LABELS * 2, {}),
    "a frozen layer": ({"freeze": 1}, TEXTS, LABELS, {}),
    "a frozen encoder": ({"freeze": "encoder", "early_stopping": True}, TEXTS * 2, LABELS * 2, {}),
    "bfloat16": ({"precision": "bfloat16", "freeze": 1}, TEXTS, LABELS, {}),
    "float16": ({"precision": "float16"}, TEXTS, LABELS, {}),
    "a temperature": ({"calibration": "temperature"}, TEXTS * 2, LABELS * 2, {}),
    "thresholds": (
        {"thresholds": "f1", "calibration": "temperature"},
        TEXTS,
        MATRIX,
        {"X_val": TEXTS * 12, "y_val": np.tile(MATRIX, (12, 1))},
    ),
    "layer decay": ({"layer_decay": 0.5, "max_grad_norm": 0.1}, TEXTS, LABELS, {}),
    "a drawn head": ({"head_init": "random", "freeze": 1}, TEXTS, LABELS, {}),
    "no clipping": ({"max_grad_norm": None, "label_smoothing": 0.1, "dropout": 0.3}, TEXTS, LABELS, {}),
    "mean": ({"pooling": "mean", "max_length": 5}, TEXTS, LABELS, {}),
    "windows": (
        {"long_text": "chunk", "max_length": 4, "freeze": 1, "early_stopping": True},
        TEXTS * 2,
        LABELS * 2,
        {},
    ),
    "plateau": (
        {"lr_schedule": "reduce_lr_on_plateau", "learning_rate": 1e-4, "epochs": 14},
        ["a"] * 8,
        [0, 1] * 4,
        {},
    ),
    "cosine": ({"lr_schedule": "cosine_with_restarts", "warmup_ratio": 0.5}, TEXTS, LABELS, {}),
    "stable decay": ({"lr_schedule": "warmup_stable_decay"}, TEXTS, LABELS, {}),
}


@pytest.mark.parametrize("freeze", [0, 1])
def test_where_the_head_begins_with_some_of_the_texts_the_order_of_all_is_the_same(make, stop, freeze, monkeypatch):
    monkeypatch.setattr(_probe, "MAX_TEXTS", 10)
    whole = make(checkpoint=None, freeze=freeze).fit(TEXTS, LABELS)
    interrupted(make(freeze=freeze), stop, STEPS + 2, TEXTS, LABELS)
    stop(None)
    assert_same_bits(make(freeze=freeze).fit(TEXTS, LABELS), whole)


def test_the_type_of_a_number_does_not_hinder_keeping_it(make):
    names = ["layer_decay", "learning_rate", "dropout", "weight_decay", "warmup_ratio", "label_smoothing"]
    settings = dict.fromkeys(names, np.float32(0.25))
    clf = make(**settings, max_grad_norm=np.float32(1.0)).fit(TEXTS, LABELS)
    assert_same_bits(clf, make(**dict.fromkeys(settings, 0.25), max_grad_norm=1.0, checkpoint=None).fit(TEXTS, LABELS))


@texts_are_cut
@pytest.mark.parametrize(("parameters", "texts", "labels", "more"), KINDS.values(), ids=KINDS)
def test_a_fit_that_is_stopped_twice_ends_with_the_bits_of_one_that_is_not(make, stop, parameters, texts, labels, more):
    whole = make(**parameters, checkpoint=None)
    per_epoch = stop(None)
    whole.fit(texts, labels, **more)
    assert "thresholds" not in parameters or set(whole.thresholds_) != {0.5}
    per_epoch = per_epoch["steps"] // whole.n_iter_
    clf = make(**parameters)

    interrupted(clf, stop, per_epoch + 2, texts, labels, **more)  # in the second epoch
    assert not hasattr(clf, "model_")
    clf = make(**parameters)
    interrupted(clf, stop, per_epoch + 1, texts, labels, **more)  # right after it
    clf = make(**parameters)
    steps = stop(None)
    clf.fit(texts, labels, **more)
    assert steps["steps"] == (whole.n_iter_ - 2) * per_epoch
    assert_same_bits(clf, whole, texts)

    again = make(**parameters)
    steps = stop(None)
    again.fit(texts, labels, **more)
    assert steps["steps"] == 0
    assert_same_bits(again, whole, texts)


@pytest.mark.parametrize("name", ["albert", "deberta-v2", "gpt2", "modernbert", "mpnet"])
def test_every_kind_of_network_goes_on_to_the_same_bits(make, checkpoints, stop, name):
    """Some share weights between layers, some have dropout of their own, which torch draws."""
    whole = make(model=checkpoints(name), checkpoint=None).fit(TEXTS, LABELS)
    clf = make(model=checkpoints(name))
    interrupted(clf, stop, STEPS + 2, TEXTS, LABELS)
    stop(None)
    assert_same_bits(clf.fit(TEXTS, LABELS), whole)


def test_dropout_that_torch_draws_goes_on_where_it_was(make, stop, monkeypatch):
    monkeypatch.setattr(_training, "KeepMasks", lambda seed: None)
    whole = make(checkpoint=None).fit(TEXTS, LABELS)
    clf = make()
    interrupted(clf, stop, STEPS + 2, TEXTS, LABELS)
    stop(None)
    assert_same_bits(clf.fit(TEXTS, LABELS), whole)


def test_what_the_frozen_part_makes_is_computed_of_the_same_texts_together(make, stop, monkeypatch):
    """Its bits depend on that: a matrix product may add in another order if there are more rows."""
    states, together = Engine.states, []

    def recording(engine, store, rows):
        together.append(rows.tolist())
        return states(engine, store, rows)

    monkeypatch.setattr(Engine, "states", recording)
    make(checkpoint=None, freeze=1).fit(TEXTS, LABELS)
    expected = list(together)
    clf = make(freeze=1)
    interrupted(clf, stop, STEPS + 2, TEXTS, LABELS)
    stop(None)
    together.clear()
    clf.fit(TEXTS, LABELS)
    assert together == expected


def test_the_seed_is_taken_from_the_folder_where_none_is_given(make, stop):
    clf = make(random_state=None, early_stopping=True, n_iter_no_change=3)
    interrupted(clf, stop, 8, MANY, MANY_LABELS)
    stop(None)
    np.testing.assert_array_equal(
        clf.fit(MANY, MANY_LABELS).predict_proba(TEXTS), clf.fit(MANY, MANY_LABELS).predict_proba(TEXTS)
    )
    other = make(random_state=None, early_stopping=True, n_iter_no_change=3, checkpoint=None).fit(MANY, MANY_LABELS)
    assert other.loss_curve_ != clf.loss_curve_


def test_what_changes_no_bit_may_be_another(make, stop, checkpoint, tmp_path, capsys):
    """The pretrained checkpoint may have moved."""
    whole = make(checkpoint=None).fit(TEXTS, LABELS)
    interrupted(make(), stop, STEPS + 1, TEXTS, LABELS)
    stop(None)
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint, moved)
    other = make(model=moved, device="cpu", memory=tmp_path / "memory", verbose=1, learning_rate=np.float64(1e-2))
    assert_same_bits(other.fit(np.array(TEXTS), np.array(LABELS)), whole)
    assert f"goes on after epoch 1, which is kept in {tmp_path / 'fit' / FILE_NAME}" in capsys.readouterr().out


def test_a_fit_that_was_over_says_so_and_not_how_it_trains(make, tmp_path, capsys):
    make(epochs=2).fit(TEXTS, LABELS)
    make(epochs=2, verbose=1).fit(TEXTS, LABELS)
    out = capsys.readouterr().out
    assert out == f"was over after epoch 2, which is kept in {tmp_path / 'fit' / FILE_NAME}\n"


def test_nothing_is_left_but_the_file(make, tmp_path):
    make().fit(TEXTS, LABELS)
    assert [file.name for file in (tmp_path / "fit").iterdir()] == [FILE_NAME]


def test_a_fit_that_fails_before_its_first_epoch_ends_begins_anew(make, stop):
    whole = make(checkpoint=None).fit(TEXTS, LABELS)
    interrupted(make(), stop, 2, TEXTS, LABELS)
    stop(None)
    assert_same_bits(make().fit(TEXTS, LABELS), whole)


# What is not the same


OTHER_FITS = {
    "a parameter": ({"weight_decay": 0.5}, TEXTS, LABELS, {}, "weight_decay=0.5 here and 0.01 there"),
    "epochs": ({"epochs": 4}, TEXTS, LABELS, {}, "epochs=4 here and 3 there"),
    "precision": ({"precision": "float16"}, TEXTS, LABELS, {}, "precision='float16' here and 'float32' there"),
    "class weights": ({"class_weight": "balanced"}, TEXTS, LABELS, {}, "class_weight='balanced' here and None there"),
    "a scorer": ({"scoring": make_scorer(f1_score)}, TEXTS, LABELS, {}, "scoring=make_scorer(f1_score"),
    "the seed": ({"random_state": 1}, TEXTS, LABELS, {}, "another random_state"),
    "texts": ({}, [*TEXTS[:-1], "bad"], LABELS, {}, "another X."),
    "their order": ({}, TEXTS[::-1], LABELS, {}, "another X."),
    "pairs": ({}, PAIRS, LABELS, {}, "another X."),
    "labels": ({}, TEXTS, LABELS[::-1], {}, "another y."),
    "names of labels": ({}, TEXTS, [label == "fresh" for label in LABELS], {}, "another y."),
    "weights": ({}, TEXTS, LABELS, {"sample_weight": range(1, 15)}, "another sample_weight."),
    "validation": (
        {},
        TEXTS,
        LABELS,
        {"X_val": TEXTS, "y_val": LABELS},
        "another X_val, another y_val, another sample_weight_val.",
    ),
}


@pytest.fixture(scope="module")
def kept(checkpoint, tmp_path_factory):
    """A folder with the state of a fit."""
    folder = tmp_path_factory.mktemp("kept")
    clf = BertSequenceClassifier(
        checkpoint, epochs=3, batch_size=4, learning_rate=1e-2, random_state=0, precision="float32", checkpoint=folder
    )
    clf.fit(TEXTS, LABELS)
    return folder


@pytest.mark.parametrize(("parameters", "texts", "labels", "more", "difference"), OTHER_FITS.values(), ids=OTHER_FITS)
def test_another_fit_is_told_what_differs_before_a_network_is_loaded(
    make, kept, monkeypatch, parameters, texts, labels, more, difference
):
    monkeypatch.setattr(_checkpoint, "load_checkpoint", None)
    clf = make(**({"precision": "float32", "checkpoint": kept} | parameters))
    message = saying(
        f"checkpoint={str(kept)!r} keeps the state of another fit: ", difference, "Pass another folder", "or delete"
    )
    with pytest.raises(ValueError, match=message):
        clf.fit(texts, labels, **more)


def test_equal_parameters_may_be_spelt_in_other_ways(make, tmp_path):
    ways = [{"fresh": 2, "rotten": 1.5}, {"rotten": np.float32(1.5), "fresh": 2.0}]
    first, second = (make(class_weight=way).fit(TEXTS, LABELS) for way in ways)
    assert_same_bits(second, first)
    with pytest.raises(ValueError, match="another fit: class_weight="):
        make(class_weight={"fresh": 2, "rotten": 1}).fit(TEXTS, LABELS)


def test_another_network_to_start_from_is_told(make, kept, checkpoints, spread_checkpoint):
    for model in (spread_checkpoint, checkpoints("distilbert")):
        with pytest.raises(ValueError, match="keeps the state of another fit: another model to start from"):
            make(model=model, precision="float32", checkpoint=kept).fit(TEXTS, LABELS)


def test_a_warm_start_needs_a_folder_of_its_own_for_each_fit(make, tmp_path, stop):
    clf = make(warm_start=True).fit(TEXTS, LABELS)
    with pytest.raises(ValueError, match="keeps the state of another fit: another model to start from"):
        clf.fit(TEXTS, LABELS)
    whole = copy.deepcopy(clf).set_params(checkpoint=None).fit(TEXTS, LABELS)
    clf.set_params(checkpoint=tmp_path / "second")
    interrupted(clf, stop, STEPS + 3, TEXTS, LABELS)
    stop(None)
    assert_same_bits(clf.fit(TEXTS, LABELS), whole)


def test_the_second_fit_of_a_search_is_told_that_the_folder_is_taken(make):
    search = GridSearchCV(make(), {"learning_rate": [1e-3, 1e-2]}, cv=2, error_score="raise")
    with pytest.raises(ValueError, match=saying("keeps the state of another fit", "another X")):
        search.fit(TEXTS, LABELS)


def test_a_fit_does_not_overwrite_what_another_has_written_meanwhile(make, tmp_path, monkeypatch):
    """Two processes that begin on an empty folder: the second to end an epoch is told, and nothing is mixed."""
    write, file = FitFile.write, tmp_path / "fit" / FILE_NAME

    def overtaken(fit_file, state):
        monkeypatch.setattr(FitFile, "write", write)
        make().fit(TEXTS, LABELS)
        contents.append(file.read_bytes())
        write(fit_file, state)

    contents = []
    monkeypatch.setattr(FitFile, "write", overtaken)
    with pytest.raises(ValueError, match="another fit: epochs=4 here and 3 there"):
        make(epochs=4).fit(TEXTS, LABELS)
    assert file.read_bytes() == contents[0]


def test_partial_fit_refuses_a_checkpoint(make):
    with pytest.raises(ValueError, match=saying("partial_fit does not support checkpoint", "Pickle the classifier")):
        make().partial_fit(TEXTS, LABELS, classes=["fresh", "rotten"])


def test_other_versions_are_told_and_gone_on_with(make, stop, monkeypatch):
    whole = make(checkpoint=None).fit(TEXTS, LABELS)
    monkeypatch.setitem(_resume.VERSIONS, "torch", "2.6.0")
    interrupted(make(), stop, STEPS + 1, TEXTS, LABELS)
    monkeypatch.undo()
    with pytest.warns(UserWarning, match=r"was written with torch 2\.6\.0, and goes on with .*may not have the bits"):
        clf = make().fit(TEXTS, LABELS)
    assert_same_bits(clf, whole)


# The folder and the file


def test_a_folder_that_can_not_be_written_is_told_before_the_training(make, tmp_path, monkeypatch):
    monkeypatch.setattr(_training, "train", None)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(
        OSError, match=saying("checkpoint can't be written: it is a file", "Pass a folder that can", "taken")
    ):
        make(checkpoint=tmp_path / "taken").fit(TEXTS, LABELS)

    def refuse(**where):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(_resume.tempfile, "TemporaryFile", refuse)
    with pytest.raises(PermissionError, match=saying("checkpoint can't be written: Permission denied", "fit")):
        make().fit(TEXTS, LABELS)


def test_an_empty_name_is_refused(make):
    with pytest.raises(ValueError, match=saying("checkpoint='' names no folder", "Pass '.'")):
        make(checkpoint="").fit(TEXTS, LABELS)


def test_a_disk_that_fills_up_costs_the_epochs_since_the_last_one_kept(make, stop, tmp_path, monkeypatch):
    whole = make(checkpoint=None).fit(TEXTS, LABELS)
    write, calls = _resume._write_safetensors, itertools.count(1)

    def fill_up(file, tensors, metadata):
        write(file, tensors, metadata)
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_resume, "_write_safetensors", fill_up)
    with pytest.raises(OSError, match=saying("No space left on device", FILE_NAME)):
        make().fit(TEXTS, LABELS)
    assert [file.name for file in (tmp_path / "fit").iterdir()] == [FILE_NAME]
    steps = stop(None)
    assert_same_bits(make().fit(TEXTS, LABELS), whole)
    assert steps["steps"] == 2 * STEPS


def test_the_file_is_read_by_safetensors_and_holds_json_beside_tensors(kept):
    tensors = load_file(kept / FILE_NAME)
    with safe_open(kept / FILE_NAME, framework="pt") as file:
        told = json.loads(file.metadata()["bertclf"])
    assert {name.split("/")[0] for name in tensors} == {"weights", "optimizer", "generators"}
    assert [row["epoch"] for row in told["values"]["history"]] == [1, 2, 3]
    assert told["versions"]["torch"] == torch.__version__


def test_tensors_of_every_type_and_shape_come_back(tmp_path):
    tensors = {
        str(dtype): torch.arange(12).reshape(3, 4).to(dtype)[:, ::2].T.contiguous() for dtype in _resume.DTYPES
    } | {"none": torch.empty((0, 3)), "one": torch.tensor(3.0, dtype=torch.float64), "odd": torch.ones(5).bool()}
    with (tmp_path / "file").open("wb") as file:
        _resume._write_safetensors(file, tensors, {"told": "ü"})
    found = load_file(tmp_path / "file")
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )


def test_any_flipped_bit_is_found(make, kept, tmp_path):
    """At places all over the header and all over the tensors."""
    whole = (kept / FILE_NAME).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    drawn = random.Random(0)
    file = tmp_path / FILE_NAME
    places = [*range(0, header, 101), *range(8), header - 1, header, len(whole) - 1]
    for place in places + [drawn.randrange(header, len(whole)) for _ in range(100)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << drawn.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(ModelFileError, match=re.escape(str(file))):
            _resume._read(file)


def test_a_damaged_file_is_refused_by_name_and_left_as_it_is(make, kept, tmp_path):
    whole = (kept / FILE_NAME).read_bytes()
    (tmp_path / "fit").mkdir()
    file = tmp_path / "fit" / FILE_NAME
    damages = {
        "empty": b"",
        "cut": whole[:-1],
        "a huge header": (2**62).to_bytes(8, "little") + whole[8:],
        "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
        "a pickle": pickle.dumps({"weights": 1}),
        "other tensors": save({"weights": torch.ones(3)}),
    }
    for damaged in damages.values():
        file.write_bytes(damaged)
        with pytest.raises(ModelFileError, match=saying(f"{file} is damaged: ", "Delete the file")):
            make().fit(TEXTS, LABELS)
        assert file.read_bytes() == damaged


def test_a_file_of_a_format_to_come_is_refused(make, monkeypatch, stop):
    interrupted(make(), stop, STEPS + 1, TEXTS, LABELS)
    monkeypatch.setattr(_resume, "FORMAT", 0)
    with pytest.raises(ModelFileError, match=saying("has format 1, but this version of bertclf has 0", "Use the ver")):
        make().fit(TEXTS, LABELS)


def test_weights_of_another_network_are_refused(make, kept, tmp_path):
    """Versions of transformers may name weights in other ways."""
    _, tensors = _resume._read(kept / FILE_NAME)
    network = make(checkpoint=None).fit(TEXTS, LABELS).model_
    del tensors["weights/classifier.bias"]
    with pytest.raises(ModelFileError, match="keeps the weights of another network"):
        _progress.take_up_weights(network, _resume.State({}, tensors))


# Callbacks


class Counting:
    """Counts the epochs that it hears of, and asks to stop after one of them."""

    def __init__(self, last=None):
        self.last, self.epochs = last, 0

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        self.epochs += context.task_name == "epoch"
        return context.task_name == "epoch" and self.epochs == self.last

    def teardown(self, estimator, context):
        pass


def test_callbacks_hear_of_the_epochs_that_are_run(make, stop):
    pytest.importorskip("sklearn.callback", reason="callbacks came with scikit-learn 1.9")
    interrupted(make(), stop, STEPS + 2, TEXTS, LABELS)
    stop(None)
    counting = Counting()
    make().set_callbacks(counting).fit(TEXTS, LABELS)
    assert counting.epochs == 2


def test_a_fit_that_a_callback_ended_is_over(make, stop):
    pytest.importorskip("sklearn.callback", reason="callbacks came with scikit-learn 1.9")
    whole = make(checkpoint=None).set_callbacks(Counting(last=2)).fit(TEXTS, LABELS)
    make().set_callbacks(Counting(last=2)).fit(TEXTS, LABELS)
    steps = stop(None)
    clf = make().fit(TEXTS, LABELS)
    assert steps["steps"] == 0
    assert_same_bits(clf, whole)


# Killing


KILLED = """
import sys
from bertclf import BertSequenceClassifier, _steps
from conftest import LABELS, TEXTS

step = _steps.Descent.step

def told(descent, rows):
    print("step", flush=True)
    return step(descent, rows)

_steps.Descent.step = told
clf = BertSequenceClassifier(sys.argv[1], epochs=20, batch_size=4, random_state=0, checkpoint=sys.argv[2])
clf.fit(TEXTS, LABELS)
"""


def test_a_killed_process_loses_no_more_than_an_epoch(make, checkpoint, tmp_path, stop):
    parameters = {"epochs": 20, "learning_rate": "auto"}
    whole = make(**parameters, checkpoint=None).fit(TEXTS, LABELS)
    command = [sys.executable, "-c", KILLED, str(checkpoint), str(tmp_path / "fit")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    last = random.Random().randrange(STEPS + 1, 6 * STEPS)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert [process.stdout.readline() for _ in range(last)] == ["step\n"] * last
        process.kill()
    assert process.returncode == -signal.SIGKILL
    steps = stop(None)
    assert_same_bits(make(**parameters).fit(TEXTS, LABELS), whole)
    assert steps["steps"] <= 20 * STEPS - STEPS * ((last - 1) // STEPS)
    assert [file.name for file in (tmp_path / "fit").iterdir()] == [FILE_NAME]
