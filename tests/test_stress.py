"""The stress scripts run from end to end with tiny numbers, and notice what they are there to notice."""

import re
import subprocess
from pathlib import Path

import fuzz_texts
import kill_fits
import many_texts
import numpy as np
import pytest
import small_bert
import soak
import threads

from bertclf import BertSequenceClassifier


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint that the scripts build."""
    return small_bert.build(tmp_path_factory.mktemp("small"))


def status(script, *arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        script.main([*arguments])
    return int(end.value.code or 0)


def test_calls_in_threads_give_the_bits_of_one_thread(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(threads, f"--model={model}", "--calls=100") == 0
    assert "100 of 100 calls in 16 threads gave the bits of one thread" in capsys.readouterr().out


def test_an_answer_that_differs_in_a_thread_is_noticed(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(range(1000))
    monkeypatch.setattr(BertSequenceClassifier, "predict_proba", lambda clf, texts: np.full(2, next(answers) % 7))
    assert status(threads, f"--model={model}", "--calls=100") == 1
    assert int(re.search(r"(\d+) of 100 calls", capsys.readouterr().out)[1]) < 100


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts as Linux does")
def test_rounds_of_fits_are_counted_and_flat(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(soak, f"--model={model}", "--rounds=4", "--first=2") == 0
    output = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in output.splitlines()[2:5]] == ["start", "after 2 rounds", "end"]
    assert output.endswith("Flat.\n")


@pytest.mark.parametrize("place", [0, 1, 2], ids=["memory", "files", "tensors"])
def test_what_grows_is_noticed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    counts = [[10, 10, 10] for _ in range(11)]
    counts[-1][place] += 100 * soak.MEGABYTE
    monkeypatch.setattr(soak, "soak", lambda model, *, n_rounds: counts)
    assert status(soak, "--model=none", "--rounds=10", "--first=2") == 1
    assert capsys.readouterr().out.endswith("NOT FLAT.\n")


def test_made_up_texts_are_predicted_and_fitted(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fuzz_texts.main([f"--model={model}", "--texts=500"])
    output = capsys.readouterr().out
    assert output.startswith("500 texts in ")
    assert "each refused by fit and predict" in output


def test_what_the_fuzzing_must_not_see_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for use in (
        file.touch,
        lambda: file.write_text("x"),
        lambda: subprocess.run(["true"]),
        lambda: compile("1", "", "eval"),
    ):
        with pytest.raises(fuzz_texts.Refused), fuzz_texts.watched(readable=tmp_path):
            use()
    file.write_text("read", encoding="utf-8")
    with fuzz_texts.watched(readable=tmp_path):
        assert file.read_text(encoding="utf-8") == "read"
    with pytest.raises(fuzz_texts.Refused), fuzz_texts.watched():
        file.read_text(encoding="utf-8")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts as Linux does")
def test_memory_of_many_texts_is_counted_beside_the_result(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_texts, "FEW", 100)
    monkeypatch.setattr(many_texts, "TEXTS_AT_ONCE", 130)
    assert status(many_texts, f"--model={model}", "--texts=300") == 0
    assert capsys.readouterr().out.startswith("300 texts in ")
    sizes = iter([0, 0, 200 * many_texts.MEGABYTE])
    monkeypatch.setattr(many_texts, "own_bytes", lambda: next(sizes, 200 * many_texts.MEGABYTE))
    monkeypatch.setattr(many_texts, "SECONDS_BETWEEN_LOOKS", 0.0)
    assert status(many_texts, f"--model={model}", "--texts=300") == 1


def test_killed_fits_go_on(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kill_fits.main([f"--model={model}", "--kills=1", "--epochs=3", "--texts=20"]) == 0
    assert re.search(r"1 kills, .* 0 with other bits .* 0 epochs lost .* 0 files left over", capsys.readouterr().out)
