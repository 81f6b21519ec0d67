"""Compare test scores with `transformers.Trainer` under the same settings.

Both ways fine-tune MiniLM with the settings of the tutorial (4 epochs, 5e-5, batches of 32, 64 tokens, linear decay
without warm-up) on the same rows. Each run appends one JSON line to `--runs`; runs that stand there are not repeated.

    python examples/benchmarks/parity.py --data FOLDER --runs runs.jsonl
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import accuracy_score, matthews_corrcoef

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from minilm import minilm_folder

EPOCHS, LEARNING_RATE, BATCH_SIZE, MAX_LENGTH = 4, 5e-5, 32, 64
METRICS = {"trec": accuracy_score, "cola": matthews_corrcoef, "mr": accuracy_score}


def read(file):
    """Return the texts and the labels of a file of JSON lines."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def with_trainer(train, test, *, seed):
    """Fine-tune with `Trainer`, in padded batches of like length as ours are; return the predicted labels."""
    import torch
    import transformers
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    transformers.utils.logging.set_verbosity_error()
    texts, labels = train
    classes, targets = np.unique(labels, return_inverse=True)
    transformers.set_seed(seed)
    folder = minilm_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(classes), dtype=torch.float32)

    def rows(texts, targets):
        encoded = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": int(target)}
            for ids, mask, target in zip(encoded["input_ids"], encoded["attention_mask"], targets, strict=True)
        ]

    with tempfile.TemporaryDirectory() as scratch:
        settings = TrainingArguments(
            scratch,
            num_train_epochs=EPOCHS,
            learning_rate=LEARNING_RATE,
            per_device_train_batch_size=BATCH_SIZE,
            weight_decay=0.01,
            warmup_steps=0,
            save_strategy="no",
            report_to="none",
            seed=seed,
            train_sampling_strategy="group_by_length",
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = Trainer(network, settings, train_dataset=rows(texts, targets), processing_class=tokenizer)
        trainer.train()
        logits = trainer.predict(rows(test, np.zeros(len(test)))).predictions
    return classes[logits.argmax(axis=1)]


def with_ours(train, test, *, seed):
    """Fine-tune with `BertSequenceClassifier`, the architecture's own head; return the predicted labels."""
    from bertclf import BertSequenceClassifier

    classifier = BertSequenceClassifier(
        minilm_folder(),
        pooling="cls",
        epochs=EPOCHS,
        learning_rate=LEARNING_RATE,
        warmup_ratio=0.0,
        batch_size=BATCH_SIZE,
        max_length=MAX_LENGTH,
        precision="float32",
        random_state=seed,
    )
    return classifier.fit(*train).predict(test)


WAYS = {"trainer": with_trainer, "bertclf": with_ours}


def table(runs):
    """Return a Markdown table: mean and range of the test score by data set and way."""
    lines = ["| set | " + " | ".join(WAYS) + " | difference |", "|---|" + "---|" * (len(WAYS) + 1)]
    for name in METRICS:
        scores = {way: [run["score"] for run in runs if (run["set"], run["way"]) == (name, way)] for way in WAYS}
        if all(scores.values()):
            cells = [f"{np.mean(s):.4f} ({min(s):.4f} to {max(s):.4f}, n={len(s)})" for s in scores.values()]
            difference = np.mean(scores["bertclf"]) - np.mean(scores["trainer"])
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {difference:+.4f} |")
    return "\n".join(lines)


def main():
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with mr/, trec/, cola/ of JSON lines")
    parser.add_argument("--runs", type=Path, required=True, help="file of JSON lines, one a run")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()

    def done():
        lines = arguments.runs.read_text(encoding="utf-8").splitlines() if arguments.runs.exists() else []
        return [json.loads(line) for line in lines]

    for name, metric in METRICS.items():
        train = read(arguments.data / name / "train.jsonl")
        texts, labels = read(arguments.data / name / "test.jsonl")
        for seed in range(arguments.seeds):
            for way in arguments.ways:
                key = {"set": name, "way": way, "seed": seed}
                if any(key.items() <= run.items() for run in done()):
                    continue
                start = time.perf_counter()
                predicted = WAYS[way](train, texts, seed=seed)
                run = key | {"score": float(metric(labels, predicted)), "seconds": time.perf_counter() - start}
                with arguments.runs.open("a", encoding="utf-8") as stream:
                    print(json.dumps(run), file=stream)
                print(json.dumps(run), flush=True)
    print(table(done()))


if __name__ == "__main__":
    main()
