"""Tiny checkpoints of every architecture, built in temporary folders, and the texts that the tests share."""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

# The tests run in a process for each core. Before torch is imported, which reads it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

WORDS = (
    "a an and the it is was film plot joy dull fine long bore waste of time good bad great awful not very story actor "
    "scene love hate best worst i you we they what why how this that . , ! ?"
).split()

GOOD = ["a fine film", "great joy", "the best story", "love this good film", "a great scene", "very good", "best actor"]
BAD = [
    "a dull film",
    "awful bore",
    "the worst plot",
    "hate this bad film",
    "a waste of time",
    "very bad",
    "worst scene",
]
TEXTS = GOOD + BAD
LABELS = ["fresh"] * len(GOOD) + ["rotten"] * len(BAD)


# Of tests whose point is that much of their texts is cut.
texts_are_cut = pytest.mark.filterwarnings("ignore:[0-9]+% of the tokens of X are cut:UserWarning")


def saying(*parts: str) -> str:
    """Return a pattern that finds these parts in this order."""
    return "(?s)" + ".*".join(re.escape(part) for part in parts)


def measuring(monkeypatch: pytest.MonkeyPatch, values: list[tuple[float, float]]) -> None:
    """Make the validation loss and the validation score of each epoch what `values` say."""
    from bertclf import _training

    rows = iter(values)
    monkeypatch.setattr(_training._Watch, "measure", lambda watch: _training._Measured(*next(rows), seconds=0.0))


@pytest.fixture(scope="session", autouse=True)
def _threads_are_not_traced() -> None:
    """Let coverage follow the main thread alone: Python 3.11 may fail to begin a thread while another begins.

    Both would install a trace function, and where tests listen to audit events, they can meet within that.
    """
    threading.settrace(None)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from the name of an architecture to the folder of a tiny random checkpoint of it."""
    built: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in built:
            folder = tmp_path_factory.mktemp(name)
            from tiny import build

            build(name, folder)
            built[name] = folder
        return built[name]

    return folder_of


@pytest.fixture(scope="session")
def checkpoint(checkpoints: Callable[[str], Path]) -> Path:
    """The folder of a tiny BERT: two layers, 16 wide, 64 positions."""
    return checkpoints("bert")


@pytest.fixture(scope="session")
def spread_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny BERT whose weights are spread ten times as wide as usual, so that it learns in few steps."""
    folder = tmp_path_factory.mktemp("spread")
    from tiny import build

    build("bert", folder, initializer_range=0.2)
    return folder
