"""The examples run from end to end on tiny data."""

import csv
import json
import re
from pathlib import Path

import cola_tutorial
import matplotlib.pyplot as plt
import model_selection
import pytest
import quickstart
from conftest import BAD, GOOD


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def write_csv(file: Path, columns: list[str], n_rotten: int = 14) -> Path:
    rows = [(text, "fresh") for text in GOOD * 2] + [(text, "rotten") for text in (BAD * 2)[:n_rotten]]
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return file


def test_quickstart_reports_epochs_both_accuracies_and_three_predictions(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data, plot = write_csv(tmp_path / "texts.csv", ["text", "label"]), tmp_path / "curve.png"
    quickstart.main(["--model", str(checkpoint), "--data", str(data), "--plot", str(plot), "--epochs", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "23 texts to train on, 2 to validate, 3 to test"
    header = next(number for number, line in enumerate(lines) if line.startswith("epoch"))
    assert [line.split()[0] for line in lines[header + 1 : header + 3]] == ["1", "2"]
    accuracies = lines.index("Accuracy on the test texts")
    assert [line.split(maxsplit=1)[1] for line in lines[accuracies + 1 : accuracies + 3]] == [
        "TF-IDF with logistic regression",
        "BertSequenceClassifier",
    ]
    predictions = lines[lines.index("Predictions") + 1 :]
    assert [line.split()[0] in {"fresh", "rotten"} for line in predictions] == [True] * 3
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_quickstart_holds_out_the_same_texts_each_time_and_none_twice():
    texts = [f"{label} {number}" for label in "ab" for number in range(50)]
    labels = [text[0] for text in texts]
    (kept, kept_labels), (held_out, held_out_labels) = quickstart.hold_out(texts, labels, 0.1)
    assert quickstart.hold_out(texts, labels, 0.1)[1] == (held_out, held_out_labels)
    assert sorted(kept + held_out) == sorted(texts)
    assert sorted(held_out_labels) == ["a"] * 5 + ["b"] * 5
    assert [text[0] for text in kept] == kept_labels


@pytest.mark.parametrize(
    ("columns", "n_rotten", "message"),
    [(["review", "label"], 14, "text and label are needed"), (["text", "label"], 3, "3 text.s. with the label")],
)
def test_quickstart_says_what_own_texts_lack(tmp_path: Path, columns: list[str], n_rotten: int, message: str):
    data = write_csv(tmp_path / "texts.csv", columns, n_rotten)
    with pytest.raises(SystemExit, match=message):
        quickstart.own_texts(data)


def test_cola_tutorial_reports_epochs_and_out_of_domain_correlation(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [("src", 1, "", text) for text in GOOD] + [("src", 0, "*", f'"{text}') for text in BAD]
    content = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    for name in ("in_domain_train", "in_domain_dev", "out_of_domain_dev"):
        (tmp_path / f"{name}.tsv").write_text(content, encoding="utf-8")
    plot = tmp_path / "curve.png"
    cola_tutorial.main(["--data", str(tmp_path), "--model", str(checkpoint), "--plot", str(plot), "--epochs", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["epoch", "1", "2"]
    assert lines[-1].startswith(f"Matthews correlation on {len(rows)} out-of-domain sentences: ")
    assert -1 <= float(lines[-1].split()[-1]) <= 1
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_model_selection_runs_every_tool(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = tmp_path / "texts.jsonl"
    rows = [
        {"text": f"{text} {n}", "label": label}
        for n in range(4)
        for label, texts in (("fresh", GOOD), ("rotten", BAD))
        for text in texts
    ]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    model_selection.main(["--model", str(checkpoint), "--data", str(data), "--texts", "40", "--epochs", "1"])
    output = capsys.readouterr().out
    sections = output.strip().split("\n\n")
    assert [section.split(":")[0] for section in sections] == list(model_selection.TOOLS)
    kept, again = re.search(r"kept ([\d.]+), measured again ([\d.]+)", output).groups()
    assert kept == again
