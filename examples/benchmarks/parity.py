"""Compare test scores with `transformers.Trainer`, and with the engine of bertclf turned off, under the same settings.

All ways fine-tune MiniLM with the settings of the tutorial (4 epochs, 5e-5, batches of 32, 64 tokens, linear decay
without warm-up) on the same rows. Each run appends one JSON line to `--runs`; runs that stand there are not repeated.

    python examples/benchmarks/parity.py --data FOLDER --runs runs.jsonl
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
from common import minilm_folder, read
from sklearn.metrics import accuracy_score, matthews_corrcoef
from train_speed import ours, with_trainer

from bertclf import _training
from bertclf._engine import Engine

EPOCHS, OURS = 4, "bertclf"
METRICS = {
    "trec": accuracy_score,
    "cola": matthews_corrcoef,
    "mr": accuracy_score,
    "banking77": accuracy_score,
}


def without_engine(texts, labels, **settings):
    """Train as `ours` does, with padding, the dropout of torch and the whole table of embeddings."""

    def plain(network, _training, *, settings, compute, **_):
        return Engine(network, device=compute.device, frozen=settings.freeze, unpadded=False)

    with patch.object(_training, "_make_engine", plain):
        return ours(texts, labels, **settings)


# Trainer, too, makes its batches of texts of like length: it is quicker, and closer to what is compared.
WAYS = {
    "trainer": partial(with_trainer, train_sampling_strategy="group_by_length", weight_decay=0.01),
    "bertclf without its engine": without_engine,
    OURS: ours,
    "bertclf in bfloat16": partial(ours, precision="bfloat16"),
}


def table(runs):
    """Return a Markdown table: mean and range of the test score by data set and way, beside the mean of ours."""
    lines = ["| set | way | mean | range | runs | bertclf less this |", "|---|---|---|---|---|---|"]
    scores = {}
    for run in runs:
        scores.setdefault(run["set"], {}).setdefault(run["way"], []).append(run["score"])
    for name, by_way in scores.items():
        for way, found in by_way.items():
            less = f"{np.mean(by_way[OURS]) - np.mean(found):+.4f}" if OURS in by_way and way != OURS else ""
            cells = [f"{np.mean(found):.4f}", f"{min(found):.4f} to {max(found):.4f}", len(found), less]
            lines.append(f"| {name} | {way} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main():
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with mr/, trec/, ... of JSON lines")
    parser.add_argument("--runs", type=Path, required=True, help="file of JSON lines, one a run")
    parser.add_argument("--sets", nargs="+", default=list(METRICS), choices=METRICS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()

    def done():
        lines = arguments.runs.read_text(encoding="utf-8").splitlines() if arguments.runs.exists() else []
        return [json.loads(line) for line in lines]

    for name in arguments.sets:
        train = read(arguments.data / name / "train.jsonl")
        texts, labels = read(arguments.data / name / "test.jsonl")
        for seed in range(arguments.seeds):
            for way in arguments.ways:
                key = {"set": name, "way": way, "seed": seed}
                if any(key.items() <= run.items() for run in done()):
                    continue
                start = time.perf_counter()
                predict = WAYS[way](*train, model=minilm_folder(), epochs=EPOCHS, seed=seed)
                seconds = time.perf_counter() - start
                run = key | {"score": float(METRICS[name](labels, predict(texts))), "seconds": seconds}
                with arguments.runs.open("a", encoding="utf-8") as stream:
                    print(json.dumps(run), file=stream)
                print(json.dumps(run), flush=True)
    print(table(done()))


if __name__ == "__main__":
    main()
