"""Compare the speed of training with the usual tutorial's loop and with `transformers.Trainer`.

All ways fine-tune the same checkpoint on the same rows with the same settings (64 tokens at most, batches of 32,
AdamW at 5e-5, linear decay without warm-up). A run is timed whole, from the loading of the checkpoint to the last step;
predicting the test rows is not timed. The ways take turns, so that a change in the machine's speed meets all of them.

    python examples/benchmarks/train_speed.py --data train.jsonl --test test.jsonl
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from minilm import minilm_folder

from bertclf import BertSequenceClassifier

BATCH_SIZE, LEARNING_RATE, MAX_LENGTH = 32, 5e-5, 64
WARM_UP_ROWS = 2 * BATCH_SIZE


def device():
    """Return the device that every way trains on."""
    name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(name)


def has_bfloat16():
    """Tell whether the hardware multiplies bfloat16 matrices itself."""
    if device().type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device().type == "cpu" and any(getattr(torch.cpu, probe, bool)() for probe in probes)


def read(file):
    """Return the texts and the labels of a file of JSON lines."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def load(model, *, n_classes):
    """Return tokenizer and network of a checkpoint, as tutorials load them."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=n_classes, dtype=torch.float32)
    return tokenizer, network


def predictor(tokenizer, network, classes):
    """Return a function from texts to labels."""

    def predict(texts):
        network.eval()
        logits = []
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH_SIZE):
                chunk = texts[start : start + BATCH_SIZE]
                batch = tokenizer(chunk, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
                logits.append(network(**batch.to(network.device)).logits.float().cpu())
        return classes[torch.cat(logits).argmax(dim=1).numpy()]

    return predict


def tutorial_loop(texts, labels, *, model, epochs, seed):
    """Train with the tutorial's loop: every text padded to 64 tokens, plain AdamW."""
    transformers.set_seed(seed)
    classes, targets = np.unique(labels, return_inverse=True)
    tokenizer, network = load(model, n_classes=len(classes))
    network.to(device())
    encoded = tokenizer(texts, truncation=True, max_length=MAX_LENGTH, padding="max_length", return_tensors="pt")
    rows = TensorDataset(encoded["input_ids"], encoded["attention_mask"], torch.from_numpy(targets))
    loader = DataLoader(rows, sampler=RandomSampler(rows), batch_size=BATCH_SIZE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, eps=1e-8)
    schedule = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=0, num_training_steps=epochs * len(loader))
    for _ in range(epochs):
        network.train()
        total_loss = 0.0
        for batch in loader:
            input_ids, mask, batch_targets = (tensor.to(device()) for tensor in batch)
            network.zero_grad()
            loss = network(input_ids, attention_mask=mask, labels=batch_targets).loss
            total_loss += loss.item()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return predictor(tokenizer, network, classes)


def with_trainer(texts, labels, *, model, epochs, seed, **tuned):
    """Train with `Trainer`, its defaults changed by `tuned`, without saving and reporting."""
    transformers.set_seed(seed)
    classes, targets = np.unique(labels, return_inverse=True)
    tokenizer, network = load(model, n_classes=len(classes))
    encoded = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": int(target)}
        for ids, mask, target in zip(encoded["input_ids"], encoded["attention_mask"], targets, strict=True)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        settings = TrainingArguments(
            scratch,
            num_train_epochs=epochs,
            learning_rate=LEARNING_RATE,
            per_device_train_batch_size=BATCH_SIZE,
            use_cpu=device().type == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            **tuned,
        )
        trainer = Trainer(network, settings, train_dataset=rows, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return predictor(tokenizer, network, classes)


def tuned_trainer(texts, labels, **settings):
    """Train with `Trainer` and all that makes it faster here: batches by length, fused AdamW, bfloat16."""
    return with_trainer(
        texts,
        labels,
        train_sampling_strategy="group_by_length",
        optim="adamw_torch_fused",
        bf16=has_bfloat16(),
        **settings,
    )


def ours(texts, labels, *, model, epochs, seed, precision="float32"):
    """Train with `BertSequenceClassifier`; `pooling="cls"` makes the network that of the other ways."""
    classifier = BertSequenceClassifier(
        model,
        pooling="cls",
        epochs=epochs,
        learning_rate=LEARNING_RATE,
        warmup_ratio=0.0,
        batch_size=BATCH_SIZE,
        max_length=MAX_LENGTH,
        precision=precision,
        random_state=seed,
    )
    return classifier.fit(texts, labels).predict


def ours_auto(texts, labels, **settings):
    """Train with `BertSequenceClassifier` in the precision that the hardware is built for."""
    return ours(texts, labels, precision="auto", **settings)


TUTORIAL, TRAINER = "tutorial's loop", "Trainer, defaults"


def ways():
    """Return the function of each way, by its name in the table."""
    precision = "bfloat16" if has_bfloat16() else "float32"
    functions = {
        TUTORIAL: tutorial_loop,
        TRAINER: with_trainer,
        f"Trainer, tuned ({precision}, by length, fused)": tuned_trainer,
        "bertclf, float32": ours,
    }
    if has_bfloat16() or device().type == "cuda":
        functions['bertclf, precision="auto"'] = ours_auto
    return functions


def timed(way, texts, labels, **settings):
    """Return the predictor that a way trains, and the seconds it took."""
    start = time.perf_counter()
    predict = way(texts, labels, **settings)
    if device().type == "cuda":
        torch.cuda.synchronize()
    return predict, time.perf_counter() - start


def table(seconds, accuracies, *, n_texts):
    """Return a Markdown table with one line a way."""
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    lines = [
        "| way | median seconds | texts/s | times Trainer's speed | times the tutorial's speed | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for way, median in medians.items():
        cells = [
            way,
            f"{median:.1f}",
            f"{n_texts / median:.0f}",
            f"{medians[TRAINER] / median:.2f}",
            f"{medians[TUTORIAL] / median:.2f}",
            f"{statistics.mean(accuracies[way]):.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    """Run every way in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="training rows: JSON lines with text and label")
    parser.add_argument("--test", type=Path, required=True, help="test rows, in the same form")
    parser.add_argument("--model", help="name on the Hugging Face Hub, or folder; default: the installed MiniLM")
    parser.add_argument("--rows", type=int, default=1600, help="training rows, drawn at random, always the same")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    texts, labels = read(arguments.data)
    chosen = random.Random(0).sample(range(len(texts)), min(arguments.rows, len(texts)))
    texts, labels = [texts[row] for row in chosen], [labels[row] for row in chosen]
    test_texts, test_labels = read(arguments.test)
    model = arguments.model or minilm_folder()

    # One short run of each way: what is imported, compiled or cached on first use is charged to none.
    for way in ways().values():
        way(texts[:WARM_UP_ROWS], labels[:WARM_UP_ROWS], model=model, epochs=1, seed=0)

    seconds = {name: [] for name in ways()}
    accuracies = {name: [] for name in ways()}
    for repeat in range(arguments.repeats):
        for name, way in ways().items():
            predict, elapsed = timed(way, texts, labels, model=model, epochs=arguments.epochs, seed=repeat)
            seconds[name].append(elapsed)
            accuracies[name].append(float(np.mean(predict(test_texts) == np.asarray(test_labels))))
            print(f"{name}: {elapsed:.1f} s, accuracy {accuracies[name][-1]:.3f}", file=sys.stderr, flush=True)

    print(
        f"{len(texts)} texts, {arguments.epochs} epoch(s), batches of {BATCH_SIZE}, {device().type}, "
        f"{torch.get_num_threads()} thread(s), medians of {arguments.repeats}\n"
    )
    print(table(seconds, accuracies, n_texts=len(texts) * arguments.epochs))


if __name__ == "__main__":
    main()
