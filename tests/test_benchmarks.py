"""The benchmarks run from end to end on tiny data, whichever of their rivals are installed."""

import json
import math
from functools import partial
from pathlib import Path

import accuracy
import common
import few_texts
import gpu
import grid_search
import growth
import latency
import load_time
import long_texts
import numpy as np
import parity
import peak_memory
import predict_speed
import pytest
import skewed
import techniques
import torch
import train_speed
import transformers
from conftest import LABELS, TEXTS

from bertclf import BertSequenceClassifier
from bertclf._engine import Engine

# What other libraries warn of in their own ways of training is not for us to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch):
    """Products for a moment only, and transformers as talkative afterwards as it was."""
    rate = common.MatrixWork.rate
    monkeypatch.setattr(common.MatrixWork, "rate", lambda *given, **named: rate(*given, **named, seconds=0.0))
    verbosity = transformers.utils.logging.get_verbosity()
    yield
    transformers.utils.logging.set_verbosity(verbosity)
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture
def options(checkpoint: Path, tmp_path: Path) -> list[str]:
    """The options that all benchmarks have."""
    data = tmp_path / "rows.jsonl"
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return [f"--data={data}", f"--model={checkpoint}", "--repeats=1"]


def tables(output: str) -> list[list[list[str]]]:
    """Return the cells of each Markdown table, header and rule left out."""
    blocks = [[line for line in block.splitlines() if line.startswith("|")] for block in output.split("\n\n")]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in block[2:]] for block in blocks if block]


def test_training_is_held_against_the_tutorial_and_the_limit(options: list[str], capsys: pytest.CaptureFixture[str]):
    train_speed.main([*options, f"--test={options[0].removeprefix('--data=')}"])
    (table,) = tables(capsys.readouterr().out)
    by_way = {way: cells for way, *cells in table}
    assert by_way.keys() == train_speed.all_ways().keys()
    assert by_way[train_speed.TUTORIAL][3] == "1.00"
    assert all(cells[4].endswith("%") and 0 <= float(cells[5]) <= 1 for cells in by_way.values())


def test_ways_of_one_network_predict_the_same(options: list[str], capsys: pytest.CaptureFixture[str]):
    predict_speed.main([*options, f"--test={options[0].removeprefix('--data=')}"])
    (table,) = tables(capsys.readouterr().out)
    differences = {way: cells[5] for way, *cells in table}
    assert {predict_speed.OURS, predict_speed.PIPELINE, predict_speed.SORTED} <= differences.keys()
    exact = [way for way in differences if "embeddings" not in way and "auto" not in way and "16" not in way]
    assert all(float(differences[way]) < 1e-5 for way in exact)


def test_latency_is_held_against_the_bare_pass(options: list[str], capsys: pytest.CaptureFixture[str]):
    latency.main([*options, "--calls=3"])
    (table,) = tables(capsys.readouterr().out)
    assert [row[0] for row in table] == [latency.OURS, latency.BARE, latency.TOKENIZATION]
    assert table[1][2] == "1.00"


def test_loading_is_held_against_transformers(options: list[str], capsys: pytest.CaptureFixture[str]):
    load_time.main([options[1], "--repeats=1", "--processes=0"])
    (table,) = tables(capsys.readouterr().out)
    by_way = {way: cells for way, *cells in table}
    assert {load_time.OURS, load_time.OURS_PREDICTS, load_time.PREDICTS, load_time.HASH} <= by_way.keys()
    assert by_way[load_time.NETWORK][1] == by_way[load_time.TOKENIZER][2] == "1.00"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[tuple[Path, int | None]]:
    """The scripts, and their numbers of threads, that were to run in new processes; they run in this one."""
    scripts: list[tuple[Path, int | None]] = []

    def in_this_process(script: Path, *given: str, threads: int | None = None) -> dict[str, float]:
        scripts.append((script, threads))
        {"peak_memory": peak_memory, "growth": growth}[script.stem].main(list(given))
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    for module in (peak_memory, growth):
        monkeypatch.setattr(module, "in_fresh_process", in_this_process)
    return scripts


def test_peak_memory_is_that_of_fresh_processes(
    options: list[str], started: list[tuple[Path, int | None]], capsys: pytest.CaptureFixture[str]
):
    peak_memory.main([*options, "--tokens=32"])
    (table,) = tables(capsys.readouterr().out)
    assert [row[:2] for row in table] == [
        [texts, way] for texts in ("short (64 tokens at most)", "32 tokens") for way in ("padded", "bertclf")
    ]
    assert started == [(Path(peak_memory.__file__), None)] * 4


def test_state_is_weights_gradients_and_two_moments():
    layer, other = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
    layer(torch.ones(1, 3)).sum().backward()
    with peak_memory.StateBytes() as state:
        torch.optim.AdamW(layer.parameters(), fused=True).step()
    n_counters = 2  # AdamW keeps a float for each tensor, in which it counts the steps
    assert state.of(layer) == 4 * (4 * 8 + n_counters)
    assert state.of(torch.nn.Sequential(layer, other)) == state.of(layer) + 4 * 3


def test_growth_has_a_row_for_each_length_and_number_of_rows(options: list[str], capsys: pytest.CaptureFixture[str]):
    growth.main([*options, "--parts", "length", "rows", "--lengths", "8", "16", "--tokens=16", "--rows", "10", "100"])
    lengths, rows = tables(capsys.readouterr().out)
    assert [row[:2] for row in lengths] == [["8", "32"], ["16", "32"]]
    assert [row[0] for row in rows] == ["10", "100"]


def test_growth_with_cores_is_measured_in_fresh_processes(
    options: list[str], started: list[tuple[Path, int | None]], capsys: pytest.CaptureFixture[str]
):
    growth.main([*options, "--parts=cores", "--cores", "1", "2", "--texts=14"])
    (table,) = tables(capsys.readouterr().out)
    assert [row[0] for row in table] == ["1", "2"]
    assert table[0][2] == table[0][4] == "1.00"
    assert started == [(Path(growth.__file__), 1), (Path(growth.__file__), 2)]


def test_a_fresh_process_has_its_own_number_of_threads(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text("import os, sys\nprint('first')\nprint([int(os.environ['OMP_NUM_THREADS']), len(sys.argv)])\n")
    assert common.in_fresh_process(script, "--given", threads=2) == [2, 2]


def test_each_technique_is_left_out(options: list[str], capsys: pytest.CaptureFixture[str]):
    techniques.main([*options, "--steps=2"])
    (table,) = tables(capsys.readouterr().out)
    assert [table[0][0], table[-1][0]] == [techniques.ALL, techniques.NONE]
    assert table[0][2] == "1.000"
    assert len({row[0] for row in table}) == len(table) == 8


def test_parts_of_batches_are_timed_on_rows_and_on_long_texts(options: list[str], capsys: pytest.CaptureFixture[str]):
    techniques.main([*options, "--parts", "--steps=1", "--tokens", "30", "300", "--long=40"])
    (table,) = tables(capsys.readouterr().out)
    assert [row[:2] for row in table] == [[name, n] for name in ("rows", "40 tokens") for n in ("30", "300")]


def test_fits_with_frozen_layers_are_timed_as_a_whole(options: list[str], capsys: pytest.CaptureFixture[str]):
    techniques.main([*options, "--freeze"])
    (table,) = tables(capsys.readouterr().out)
    _, *frozen = techniques.FITS
    assert [row[0] for row in table] == [*techniques.FITS, *(f"{name}, seen before" for name in frozen)]
    assert table[0][2] == "1.00"


def test_parity_shows_the_mean_of_each_way_less_ours():
    runs = [("trec", "trainer", 0.9), ("trec", "trainer", 1.0), ("trec", "bertclf", 0.97), ("mr", "trainer", 0.8)]
    keys = ("set", "way", "score")
    lines = parity.table([dict(zip(keys, run, strict=True)) for run in runs]).splitlines()
    assert lines[2:] == [
        "| trec | trainer | 0.9500 | 0.9000 to 1.0000 | 2 | +0.0200 |",
        "| trec | bertclf | 0.9700 | 0.9700 to 0.9700 | 1 |  |",
        "| mr | trainer | 0.8000 | 0.8000 to 0.8000 | 1 |  |",
    ]


def test_without_its_engine_the_classifier_learns_the_same(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    made = []

    class Noted(Engine):
        """An engine that is listed."""

        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            made.append(self)

    monkeypatch.setattr(parity, "Engine", Noted)
    for way in (parity.without_engine, parity.WAYS["bertclf"]):
        predict = way(TEXTS, LABELS, model=checkpoint, epochs=3, seed=0)
        assert predict(TEXTS).shape == (len(TEXTS),)
    assert [engine.is_unpadded for engine in made] == [False]


def test_checks_of_a_card_hold_on_the_cpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(gpu.CHECKS, "pickles_travel")  # pickles go through other processes in their own tests
    with pytest.raises(SystemExit) as end:
        gpu.main(["--device=cpu", "--quick", "--only=checks"])
    output = capsys.readouterr().out
    assert "FAILED" not in output
    assert f"{len(gpu.CHECKS)} of {len(gpu.CHECKS)} checks passed." in output
    assert end.value.code == 0


def test_grid_search_scores_as_by_hand(options: list[str], capsys: pytest.CaptureFixture[str]):
    grid_search.main(options)
    (table,) = tables(capsys.readouterr().out)
    assert [row[0] for row in table] == [grid_search.BARE, grid_search.SEARCH]
    for row in table:
        assert float(row[3].split()[0]) >= 30  # each fold of each candidate meets each text once, in fit or predict
        assert row[5] == "100%"


def test_matrix_work_counts_the_last_layer_where_it_is_needed(checkpoint: Path):
    _, network = common.load(checkpoint, n_classes=2)
    every_token = common.MatrixWork.of(network, first_token_alone=False)
    first_alone = common.MatrixWork.of(network, first_token_alone=True)
    layer = 4 * 16 * 16 + 2 * 16 * 32
    head = 16 * 16 + 2 * 16
    assert (every_token.per_token, every_token.per_text) == (2 * layer, head)
    assert (first_alone.per_token, first_alone.per_text) == (layer + 2 * 16 * 16, layer - 2 * 16 * 16 + head)
    assert sum(map(math.prod, first_alone.shapes)) == 2 * layer
    assert first_alone.operations(n_tokens=5, n_texts=2, training=True) == 6 * (
        5 * first_alone.per_token + 2 * first_alone.per_text
    )
    assert first_alone.rate(torch.float32, training=True) > 0


def test_long_texts_have_so_many_words_and_run_on():
    assert common.long_texts(["a b", "c"], n_texts=2, n_words=4) == ["a b c a", "b c a b"]


def test_a_rival_that_is_not_installed_is_left_out(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(common.importlib.util, "find_spec", lambda _: None)
    assert set(train_speed.all_ways()) >= {train_speed.TUTORIAL, "bertclf, float32"}
    assert train_speed.TRAINER not in train_speed.all_ways()
    assert "skorch is left out: skorch is not installed." in capsys.readouterr().err


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """A folder with sets of one label a text, of pairs, of two labels, and of many, each with training and test."""
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    contents = {
        "trec": rows,
        "emotion6": [row | {"label": ("joy", "fear", "anger")[number % 3]} for number, row in enumerate(rows)],
        "sms_spam": rows,
        "movie_reviews_long": [row | {"text": f"{row['text']} " * 40} for row in rows],
        "rte": [row | {"text_pair": text} for row, text in zip(rows, TEXTS[::-1], strict=True)],
        "goemotions_ekman": [
            {"text": row["text"], "labels": [row["label"]] * (number % 2)} for number, row in enumerate(rows)
        ],
    }
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        for part in ("train", "valid", "test"):
            lines = "\n".join(map(json.dumps, content))
            (tmp_path / name / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["trec", "rte", "goemotions_ekman"])
def test_each_way_is_scored_on_each_kind_of_set_once(
    name, sets: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
):
    runs = sets / "runs.jsonl"
    ways = [way for way in accuracy.WAYS if way != accuracy.EMBEDDINGS]
    options = [f"--data={sets}", f"--runs={runs}", f"--model={checkpoint}", "--sets", name, "--ways", *ways]
    for _ in range(2):
        accuracy.main([*options, "--seeds", "0", "1"])
    rows = [json.loads(line) for line in runs.read_text().splitlines()]
    ran = [(row["way"], row["seed"]) for row in rows]
    assert len(set(ran)) == len(ran)
    assert (accuracy.OURS, 1) in ran
    assert (accuracy.TFIDF, 0) in ran
    assert (accuracy.TFIDF, 1) not in ran
    assert all(0 <= row["calibration_error"] <= 1 and math.isfinite(row["log_loss"]) for row in rows)
    first, probabilities, calibration = tables(capsys.readouterr().out)[:3]
    assert [row[0].split(",")[0] for row in first] == [row[0] for row in probabilities] == [name]
    assert [row[:2] for row in calibration] == [[name, str(len(TEXTS))]]
    assert all(all(row) for row in calibration)


def test_rare_labels_get_weights_or_thresholds_where_there_are_any(
    sets: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    quick = partial(BertSequenceClassifier, epochs=3, learning_rate=0.01, precision="float32")
    monkeypatch.setattr(skewed, "BertSequenceClassifier", quick)
    names = ["emotion6", "sms_spam", "goemotions_ekman"]
    options = [f"--data={sets}", f"--runs={sets / 'runs.jsonl'}", f"--model={checkpoint}", "--sets", *names]
    for _ in range(2):
        skewed.main([*options, "--seeds", "0"])
    rows = [json.loads(line) for line in (sets / "runs.jsonl").read_text().splitlines()]
    tuned = {row["set"] for row in rows if row["way"] == skewed.TUNED}
    assert (len(rows), tuned) == (8, {"sms_spam", "goemotions_ekman"})
    assert all(0 <= row["lowest_recall"] <= row["micro_f1"] <= 1 for row in rows if row["set"] != "goemotions_ekman")
    table, _ = tables(capsys.readouterr().out)
    assert [row[0] for row in table] == [row["set"] for row in rows]


@pytest.mark.filterwarnings("ignore:.* of the tokens of X are cut:UserWarning")
def test_long_texts_are_cut_or_read_in_windows(sets: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    for _ in range(2):
        long_texts.main(
            [f"--data={sets}", f"--runs={sets / 'runs.jsonl'}", f"--model={checkpoint}", "--seeds", "0", "1"]
        )
    rows = [json.loads(line) for line in (sets / "runs.jsonl").read_text().splitlines()]
    cut = {row["way"]: row["tokens_cut"] for row in rows}
    assert len(rows) == 2 * len(long_texts.WAYS)
    assert cut["truncate"] == cut["head_tail"] > cut["chunk"] == 0
    table, _ = tables(capsys.readouterr().out)
    assert [row[1] for row in table] == [f'`"{way}"`' for way in long_texts.WAYS]


def test_few_texts_of_each_class_are_drawn_and_more_hold_the_fewer(
    sets: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    train, _ = accuracy.read_set(sets, accuracy.SETS["emotion6"])
    fewer, more = (few_texts.drawn(train, n_texts, seed=0) for n_texts in (1, 2))
    assert sorted(fewer.labels) == ["anger", "fear", "joy"]
    assert set(fewer.texts) < set(more.texts)

    monkeypatch.setattr(few_texts, "TEXTS_A_CLASS", (1, 2))
    ways = [accuracy.OURS, accuracy.TFIDF]
    options = [f"--data={sets}", f"--runs={sets / 'runs.jsonl'}", f"--model={checkpoint}", "--sets", "trec", "emotion6"]
    for _ in range(2):
        few_texts.main([*options, "--seeds", "0", "1", "--ways", *ways])
    assert len((sets / "runs.jsonl").read_text().splitlines()) == 2 * 2 * 2 * len(ways)
    table, _ = tables(capsys.readouterr().out)
    assert [row[:2] for row in table] == [["trec", "1"], ["trec", "2"], ["emotion6", "1"], ["emotion6", "2"]]


@pytest.mark.parametrize(
    ("table_of", "file"),
    [
        (accuracy.table, "accuracy"),
        (accuracy.table_of_probabilities, "accuracy"),
        (accuracy.table_of_calibration, "accuracy"),
        (long_texts.table, "long_texts"),
        (few_texts.table, "few_texts"),
    ],
)
def test_tables_of_the_documentation_are_those_of_their_runs(table_of, file: str):
    docs = Path(__file__).parents[1] / "docs"
    runs = [json.loads(line) for line in (docs / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()]
    assert table_of(runs).partition("\n\n")[0] in (docs / "accuracy.md").read_text(encoding="utf-8")


def test_scores_are_those_of_the_predictions():
    labels, classes = np.array(["a", "b", "b", "b"]), np.array(["a", "b"])
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    scores = accuracy.measures(labels, probabilities, classes)
    assert scores["accuracy"] == 0.75
    assert scores["calibration_error"] == pytest.approx(0.15)
    assert scores["log_loss"] == pytest.approx(-(3 * math.log(0.9) + math.log(0.1)) / 4)
    indicators = accuracy.measures(np.array([[1, 0], [0, 0]]), np.array([[0.8, 0.2], [0.6, 0.4]]), classes)
    assert indicators["accuracy"] == 0.5
    assert indicators["micro_f1"] == pytest.approx(2 / 3)
