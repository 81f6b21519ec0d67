"""Rows 39, 40 and 44 to 48 of the table of bad input and bad days: forks, threads, processes, other machines."""

import gc
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
import transformers
from conftest import LABELS, TEXTS, saying, texts_are_cut
from joblib.externals.loky.process_executor import TerminatedWorkerError
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from bertclf import BertSequenceClassifier
from bertclf._engine import Engine
from bertclf._inference import predict_logits
from bertclf._process import lock_for

Maker = Callable[..., BertSequenceClassifier]

PAIRS = list(zip(TEXTS, TEXTS[::-1], strict=True))
THREE = ["bad", "good", "ugly"]
LABELS_OF_THREE = [THREE[row % 3] for row in range(len(TEXTS))]


@pytest.fixture(scope="module")
def make(checkpoint: Path) -> Maker:
    """A function that makes an unfitted classifier of the tiny checkpoint."""

    def make_classifier(**parameters: Any) -> BertSequenceClassifier:
        return BertSequenceClassifier(**({"model": checkpoint, "epochs": 1, "random_state": 0} | parameters))

    return make_classifier


@pytest.fixture(scope="session")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a BERT of two layers that is wide enough for torch to share its products among threads."""
    folder = tmp_path_factory.mktemp("wide")
    from tiny import build

    build("bert", folder, hidden_size=128, intermediate_size=512)
    return folder


FORKS = """
    import os, pickle, signal, threading
    import numpy as np
    import torch
    from bertclf import BertSequenceClassifier

    texts, labels, model = {texts!r}, {labels!r}, {model!r}
    long = [" ".join(texts)] * 32
    clf = BertSequenceClassifier(model, epochs=1, precision="float32", random_state=0).fit(texts, labels)
    expected = clf.predict_proba(long)
    assert torch.get_num_threads() == 2

    def refit(clf):
        return clf.fit(texts, labels)

    def wait_for_the_fork(y_true, y_pred):
        inside.set()
        done.wait()
        return 0.0

    def in_child(name, use):
        child = os.fork()
        if child == 0:
            signal.alarm(40)  # ends a child that hangs
            np.testing.assert_allclose(use(clf).predict_proba(long), expected, atol=1e-5)
            os._exit(0)
        print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

    in_child("predict", lambda clf: clf)
    in_child("pickle", lambda clf: pickle.loads(pickle.dumps(clf)))
    in_child("fit", refit)

    # Another thread is in the middle of a fit, which is one thread's at a time.
    inside, done = threading.Event(), threading.Event()
    scoring = lambda *given: wait_for_the_fork(*given[:2])
    other = BertSequenceClassifier(model, epochs=1, early_stopping=True, scoring=scoring)
    fitting = threading.Thread(target=refit, args=(other,))
    fitting.start()
    inside.wait()
    in_child("fit beside a thread", refit)
    done.set()
    fitting.join()
    assert torch.get_num_threads() == 2
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_row_39_a_forked_child_predicts_pickles_and_fits_and_never_hangs(wide_checkpoint: Path) -> None:
    code = textwrap.dedent(FORKS).format(texts=TEXTS, labels=LABELS, model=str(wide_checkpoint))
    answer = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split("\n")[:-1] == ["predict 0", "pickle 0", "fit 0", "fit beside a thread 0"]


def test_row_39_a_forked_child_has_locks_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = lock_for("a test")
    assert lock_for("a test") is ours
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert lock_for("a test") is not ours


def test_row_40_a_worker_that_is_killed_ends_the_search_and_leaves_the_parent_usable(make: Maker) -> None:
    parent = os.getpid()

    def kill_in_worker(*given: Any) -> float:
        """A score that the fit asks for in vain; nested, so that workers need not import this file."""
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.0

    clf = make(early_stopping=True, validation_fraction=0.3, scoring=kill_in_worker)
    search = GridSearchCV(clf, {"learning_rate": [1e-3, 1e-2]}, cv=2, n_jobs=2, scoring="accuracy")
    with pytest.raises(TerminatedWorkerError, match="unexpectedly terminated"):
        search.fit(TEXTS, LABELS)

    assert joblib.Parallel(n_jobs=2)(joblib.delayed(len)(text) for text in TEXTS) == [*map(len, TEXTS)]
    assert search.set_params(n_jobs=1).fit(TEXTS, LABELS).predict(TEXTS).shape == (len(TEXTS),)


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torch report one GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.usefixtures("one_gpu")
def test_row_40_jobs_on_more_gpus_than_there_are_are_refused_with_their_number(make: Maker) -> None:
    search = GridSearchCV(make(), {"device": ["cuda:1", "cuda:2"]}, cv=2, n_jobs=4, error_score="raise")
    with (
        joblib.parallel_config("threading"),
        pytest.raises(ValueError, match=saying("device='cuda:", "torch sees 1 device(s)", "Use device='auto'")),
    ):
        search.fit(TEXTS, LABELS)


def test_row_40_more_jobs_than_a_gpu_has_memory_for_take_smaller_parts(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = {"learning_rate": [1e-3, 1e-2]}
    search = GridSearchCV(make(precision="float32", dropout=0.0), grid, cv=2, scoring="neg_log_loss")
    expected = search.fit(TEXTS, LABELS).cv_results_["mean_test_score"]
    whole = Engine.logits

    def short_of_memory(engine: Engine, store: Any, rows: Any, **named: Any) -> torch.Tensor:
        if len(rows) > 3:
            raise torch.OutOfMemoryError
        return whole(engine, store, rows, **named)

    monkeypatch.setattr(Engine, "logits", short_of_memory)
    with joblib.parallel_config("threading"):
        search.set_params(n_jobs=4).fit(TEXTS, LABELS)
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], expected, rtol=1e-4)
    assert search.best_estimator_.micro_batch_size_ <= 3


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba", "decision_function"])
def test_row_44_a_fit_that_ends_within_a_prediction_does_not_mix_with_it(
    make: Maker, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    clf = make().fit(TEXTS, LABELS)
    expected, logits_of = getattr(clf, method)(TEXTS), predict_logits

    def refit_and_predict(*given: Any, **named: Any) -> Any:
        monkeypatch.setattr("bertclf._inference.predict_logits", logits_of)
        fitting = threading.Thread(target=clf.fit, args=(PAIRS, LABELS_OF_THREE))
        fitting.start()
        fitting.join()
        return logits_of(*given, **named)

    monkeypatch.setattr("bertclf._inference.predict_logits", refit_and_predict)
    assert_array_equal(getattr(clf, method)(TEXTS), expected)
    assert clf.classes_.tolist() == sorted(THREE)


@texts_are_cut
def test_row_44_threads_fit_and_predict_and_set_parameters_at_once(make: Maker) -> None:
    clf, other = make().fit(TEXTS, LABELS), make(max_length=5).fit(TEXTS, LABELS_OF_THREE)
    expected = [clf.predict_proba(TEXTS).tolist(), other.predict_proba(TEXTS).tolist()]
    is_over = threading.Event()

    def predict() -> list[Any]:
        found = []
        while not is_over.is_set():
            found.append(clf.predict_proba(TEXTS).tolist())
        return found

    with ThreadPoolExecutor(4) as pool:
        predicting = [pool.submit(predict) for _ in range(3)]
        try:
            for _ in range(3):
                clf.set_params(max_length=5).fit(TEXTS, LABELS_OF_THREE)
                clf.set_params(max_length=None).fit(TEXTS, LABELS)
        finally:
            is_over.set()
    assert all(found in expected for thread in predicting for found in thread.result())
    assert clf.predict_proba(TEXTS).tolist() == expected[0]


def test_row_44_threads_may_fit_one_classifier(make: Maker) -> None:
    clf = make()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: clf.fit(TEXTS, LABELS), range(8)))
    assert_array_equal(clf.predict_proba(TEXTS), make().fit(TEXTS, LABELS).predict_proba(TEXTS))


def test_row_45_threads_load_checkpoints_of_either_precision_in_float32(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: dict[Path, dict[str, torch.Tensor]] = {}
    folders = {dtype: tmp_path / str(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32)}
    for dtype, folder in folders.items():
        shutil.copytree(checkpoint, folder)
        network = transformers.AutoModel.from_pretrained(checkpoint, dtype=dtype)
        network.save_pretrained(folder)
        stored[folder] = network.state_dict()
    work = [*folders.values()] * 4
    defaults = {torch.get_default_dtype()}
    set_default_dtype = torch.set_default_dtype

    def note(dtype: torch.dtype) -> None:
        defaults.add(dtype)
        set_default_dtype(dtype)

    monkeypatch.setattr(torch, "set_default_dtype", note)

    def load(folder: Path) -> set[torch.dtype]:
        clf = BertSequenceClassifier(folder, freeze="encoder", epochs=1, precision="float32", random_state=0)
        weights = clf.fit(TEXTS, LABELS).model_.bert.state_dict()
        assert all(torch.equal(weight, stored[folder][name].float()) for name, weight in weights.items())
        return {weight.dtype for weight in weights.values() if weight.is_floating_point()}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(load, work)) == [{torch.float32}] * len(work)
    assert defaults == {torch.get_default_dtype()} == {torch.float32}


def test_row_45_a_spawned_process_predicts_with_a_fitted_classifier(make: Maker) -> None:
    clf = make(precision="float32").fit(TEXTS, LABELS)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert_array_equal(pool.submit(clf.predict_proba, TEXTS).result(), clf.predict_proba(TEXTS))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torch report a machine with a CPU alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
@pytest.mark.usefixtures("no_gpu")
def test_row_46_what_was_fitted_on_a_gpu_predicts_where_there_is_none(make: Maker, device: str) -> None:
    clf = make(precision="float32").fit(TEXTS, LABELS)
    expected = clf.predict_proba(TEXTS)
    pickled = pickle.dumps(clf.set_params(device=device))
    with pytest.warns(UserWarning, match=saying(f"device='{device}'", "not on this machine", "runs on the CPU")):
        again = pickle.loads(pickled)

    assert_array_equal(again.predict_proba(TEXTS), expected)
    assert again.device == device
    with pytest.raises(ValueError, match=saying(f"device='{device}' is not available", "Use device='auto'")):
        again.fit(TEXTS, LABELS)
    assert_array_equal(again.set_params(device="auto").fit(TEXTS, LABELS).predict_proba(TEXTS), expected)


@pytest.mark.usefixtures("no_gpu")
def test_row_46_with_the_device_left_open_nothing_is_said(make: Maker) -> None:
    clf = make().fit(TEXTS, LABELS)
    assert b"cuda" not in pickle.dumps(clf)
    assert_array_equal(pickle.loads(pickle.dumps(clf)).predict(TEXTS), clf.predict(TEXTS))


def test_row_47_ten_rounds_of_cloning_and_fitting_leave_no_tensor_behind(make: Maker) -> None:
    def tensors() -> list[int]:
        gc.collect()
        return sorted(value.numel() for value in gc.get_objects() if issubclass(type(value), torch.Tensor))

    clf = make().fit(TEXTS, LABELS)
    clf.predict(TEXTS)
    before = tensors()
    for _ in range(10):
        clf = clone(clf).fit(TEXTS, LABELS)
        clf.predict(TEXTS)
    assert tensors() == before


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory that is gone: nobody can write there, not even root, or ask for its path."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()


@pytest.mark.usefixtures("nowhere")
def test_row_48_without_a_working_directory_all_but_saving_works(make: Maker) -> None:
    with pytest.raises(FileNotFoundError):
        Path("file").touch()
    clf = make(early_stopping=True, freeze=1).fit(TEXTS, LABELS)
    expected = clf.predict_proba(TEXTS)

    assert_array_equal(pickle.loads(pickle.dumps(clf)).predict_proba(TEXTS), expected)
    assert_array_equal(clone(clf).fit(TEXTS, LABELS).predict_proba(TEXTS), expected)
    assert clf.set_params(early_stopping=False).partial_fit(TEXTS, LABELS).score(TEXTS, LABELS) >= 0
    assert GridSearchCV(make(), {"epochs": [1]}, cv=2).fit(TEXTS, LABELS).predict(TEXTS).shape == (len(TEXTS),)
    assert "BertSequenceClassifier" in repr(clf)


@pytest.mark.usefixtures("nowhere")
def test_row_48_a_memory_that_can_not_be_written_is_told_and_done_without(make: Maker) -> None:
    with pytest.warns(UserWarning, match=saying("memory='kept'", "can't be used", "Pass a folder")):
        clf = make(memory="kept").fit(TEXTS, LABELS)
    with pytest.warns(UserWarning, match=saying("memory='kept'", "can't be used", "Pass a folder")):
        found = clf.predict_proba(TEXTS)
    assert_array_equal(found, make().fit(TEXTS, LABELS).predict_proba(TEXTS))
