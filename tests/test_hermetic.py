"""What using the classifier must never do to the world around it."""

import gc
import logging
import os
import pickle
import random
import sys
import threading
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import LABELS, TEXTS

from bertclf import BertSequenceClassifier, _training

WATCHED = {
    "open",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.putenv",
    "os.unsetenv",
    "os.fork",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_events = None


def _record(event, arguments):
    if _events is not None and event in WATCHED:
        writes = event != "open" or arguments[2] & WRITING
        if writes:
            _events.append((event, *arguments))


sys.addaudithook(_record)


@contextmanager
def watched():
    """Collect what the process does to files, sockets, processes and the environment."""
    global _events
    _events = events = []
    try:
        yield events
    finally:
        _events = None


@pytest.fixture(scope="module")
def clf(checkpoint):
    return BertSequenceClassifier(checkpoint, epochs=1, random_state=0).fit(TEXTS, LABELS)


def test_the_watch_itself_sees_a_written_file(tmp_path):
    with watched() as events:
        (tmp_path / "file").write_text("seen", encoding="utf-8")
        (tmp_path / "other").touch()
    assert [event[0] for event in events] == ["open", "open"]


def test_fit_and_predict_write_no_file_open_no_socket_and_start_no_process(clf, checkpoint):
    with watched() as events:
        BertSequenceClassifier(checkpoint, epochs=1, random_state=0).fit(TEXTS, LABELS).predict(TEXTS)
    assert events == []


def test_nothing_is_read_with_torch_load(checkpoint, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *given, **named: pytest.fail("torch.load was called"))
    clf = BertSequenceClassifier(checkpoint, epochs=1, random_state=0).partial_fit(TEXTS, LABELS, classes=set(LABELS))
    assert pickle.loads(pickle.dumps(clf)).predict(TEXTS).shape == (len(TEXTS),)


def test_fit_and_predict_are_silent(checkpoint, capfd, caplog):
    BertSequenceClassifier(checkpoint, epochs=1, random_state=0).fit(TEXTS, LABELS).score(TEXTS, LABELS)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_verbose_shows_how_it_trains_a_bar_and_a_line_per_epoch(checkpoint, capfd, precision):
    clf = BertSequenceClassifier(checkpoint, epochs=2, random_state=0, verbose=1, device="cpu", precision=precision)
    clf.fit(TEXTS, LABELS, X_val=TEXTS, y_val=LABELS)
    out, err = capfd.readouterr()
    summary, *lines = out.splitlines()
    assert summary == (
        f"trains on {len(TEXTS)} texts  cpu in {precision}  epochs 2  steps per epoch 1  learning rate 0.0001  "
        "label smoothing 0"
    )
    assert [line[:9] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert all("training loss" in line and "validation loss" in line and "validation score" in line for line in lines)
    assert "2/2" in err


def test_verbose_tells_how_it_trains_before_the_head_begins(checkpoint, capfd, monkeypatch):
    told = []
    begin = _training._start_head

    def noting(*args, **kwargs):
        told.append(capfd.readouterr().out)
        return begin(*args, **kwargs)

    monkeypatch.setattr(_training, "_start_head", noting)
    BertSequenceClassifier(checkpoint, epochs=1, verbose=1).fit(TEXTS, LABELS)
    assert len(told) == 1
    assert told[0].startswith("trains on")


def test_verbose_tells_what_auto_takes_where_there_are_many_texts(checkpoint, capfd):
    n_classes = len(set(LABELS))
    texts, labels = TEXTS * 100 * n_classes, LABELS * 100 * n_classes
    settings = {"batch_size": len(texts), "freeze": "encoder", "device": "cpu", "precision": "float32"}
    BertSequenceClassifier(checkpoint, **settings, verbose=1).fit(texts, labels)
    summary = capfd.readouterr().out.splitlines()[0]
    assert summary == (
        f"trains on {len(texts)} texts  cpu in float32  epochs 20  steps per epoch 1  learning rate 0.0001  "
        "label smoothing 0.05"
    )


def test_the_random_state_of_torch_numpy_and_python_is_untouched(checkpoint):
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for seed in (0, None, np.random.RandomState(0)):
        BertSequenceClassifier(checkpoint, epochs=1, random_state=seed).fit(TEXTS, LABELS).predict(TEXTS)
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_the_random_state_comes_back_from_an_interrupted_fit(checkpoint, monkeypatch):
    def interrupt(*args, **kwargs):
        torch.rand(1)
        raise KeyboardInterrupt

    state = torch.get_rng_state()
    monkeypatch.setattr("bertclf._steps.classification_loss", interrupt)
    clf = BertSequenceClassifier(checkpoint, epochs=1, random_state=0)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(TEXTS, LABELS)
    assert torch.equal(torch.get_rng_state(), state)
    assert not hasattr(clf, "model_")


def test_logging_environment_and_threads_are_untouched(checkpoint):
    def settings():
        root = logging.getLogger()
        return (
            (root.level, list(root.handlers), list(root.filters)),
            dict(os.environ),
            (torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()),
            (torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()),
        )

    before = settings()
    BertSequenceClassifier(checkpoint, epochs=1, random_state=0).fit(TEXTS, LABELS).predict(TEXTS)
    assert settings() == before


def test_the_callers_arrays_are_never_written(checkpoint):
    X, y, weights = np.array(TEXTS, dtype=object), np.array(LABELS), np.ones(len(TEXTS))
    for array in (X, y, weights):
        array.setflags(write=False)
    BertSequenceClassifier(checkpoint, epochs=1, random_state=0).fit(X, y, weights).predict(X)
    assert X.tolist() == TEXTS


def test_the_caller_may_change_the_arrays_after_fit(checkpoint):
    X, y = list(TEXTS), np.array(LABELS)
    clf = BertSequenceClassifier(checkpoint, epochs=1, random_state=0).fit(X, y)
    before = clf.predict(TEXTS)
    X.clear()
    y[:] = "gone"
    np.testing.assert_array_equal(clf.predict(TEXTS), before)


def test_only_fit_changes_the_attributes(clf):
    before = dict(vars(clf))
    for method in (clf.predict, clf.predict_proba, clf.predict_log_proba, clf.decision_function):
        method(TEXTS)
    assert vars(clf).keys() == before.keys()
    assert all(vars(clf)[name] is value for name, value in before.items())


def test_the_network_is_freed_with_the_classifier(checkpoint):
    clf = BertSequenceClassifier(checkpoint, epochs=1, random_state=0).fit(TEXTS, LABELS)
    network = weakref.ref(clf.model_)
    assert all(weight.grad is None for weight in clf.model_.parameters())
    del clf
    gc.collect()
    assert network() is None
