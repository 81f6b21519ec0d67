"""Rows 39, 40 and 44 to 48 of the table of bad input and bad days: forks, threads, processes, other machines."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import LABELS, TEXTS


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
