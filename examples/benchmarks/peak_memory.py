"""Compare the memory that training takes at its peak with that of plain padded steps, each in a fresh process.

Both ways fine-tune the same network in float32, 32 texts a step, on short texts (the rows, 64 tokens at most) and on
texts of a given length (made of their words). Measured is by how much the process, or on a GPU what torch holds, grows
from before the checkpoint is loaded to its peak, after a network of no size was trained so that all code is in memory.
Taken off are the bytes of weights, gradients and the state of the optimizer, which each way is asked for as it steps.

    python examples/benchmarks/peak_memory.py --data train.jsonl
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import (
    BATCH_SIZE,
    LEARNING_RATE,
    MAX_LENGTH,
    MEBIBYTE,
    classifier_of,
    device,
    in_fresh_process,
    load,
    long_texts,
    medians,
    parsed,
    parser_of,
    peak_bytes,
    read,
    report,
    resident_bytes,
)
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoTokenizer, BertConfig, BertModel

PADDED, OURS = "padded", "bertclf"


def padded_steps(texts, labels, *, model, max_length):
    """Train for one epoch on random batches, padded to the longest text in each; return the network."""
    torch.manual_seed(0)
    classes, targets = np.unique(labels, return_inverse=True)
    tokenizer, network = load(model, n_classes=len(classes))
    network.to(device()).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, fused=True)
    for rows in torch.randperm(len(texts)).split(BATCH_SIZE):
        chunk = [texts[row] for row in rows]
        batch = tokenizer(chunk, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
        loss = network(**batch.to(device()), labels=torch.from_numpy(targets)[rows].to(device())).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return network


def ours(texts, labels, *, model, max_length):
    """Train for one epoch with `BertSequenceClassifier`; return the network."""
    return classifier_of(model, max_length=max_length).fit(texts, labels).model_


WAYS = {PADDED: padded_steps, OURS: ours}


def train_a_tiny_network(train, texts, labels, *, model):
    """Train a network of no size with the tokenizer of a checkpoint."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        pad_token_id=tokenizer.pad_token_id,
    )
    with tempfile.TemporaryDirectory() as folder:
        BertModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        train(texts, labels, model=folder, max_length=MAX_LENGTH)


class StateBytes:
    """Counts what weights, gradients and optimizer take, whenever an optimizer of torch steps inside."""

    def __enter__(self):
        """Begin to count."""
        self._trained = {}
        self._beside = 0
        self._hook = register_optimizer_step_post_hook(self._count)
        return self

    def __exit__(self, *_):
        """Count no longer, and keep what the last step took."""
        self._hook.remove()

    def _count(self, optimizer, _arguments, _named):
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        remembered = [value for state in optimizer.state.values() for value in state.values()]
        self._trained = {weight.data_ptr(): weight.nbytes for weight in weights}
        self._beside = sum(value.nbytes for value in gradients + remembered if torch.is_tensor(value))

    def of(self, network):
        """Return the bytes in all; weights that a network trained in the place of its own are counted beside those."""
        own = {weight.data_ptr(): weight.nbytes for weight in network.parameters()}
        return sum((self._trained | own).values()) + self._beside


def measure(way, texts, labels, *, model, max_length):
    """Return the bytes by which this process grows in training, and what of it are weights, gradients and optimizer."""
    n_tiny = 2 * BATCH_SIZE
    train_a_tiny_network(WAYS[way], texts[:n_tiny], labels[:n_tiny], model=model)
    before = resident_bytes()
    with StateBytes() as state:
        network = WAYS[way](texts, labels, model=model, max_length=max_length)
    return {"growth": peak_bytes() - before, "state": state.of(network)}


def main(argv=None):
    """Start the processes in turn and print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=8 * BATCH_SIZE, help="texts to train on, always the same")
    parser.add_argument("--tokens", type=int, default=256, help="length of the long texts")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # what a fresh process is to measure
    parser.add_argument("--long", action="store_true", help=argparse.SUPPRESS)
    arguments = parsed(parser, argv)
    if arguments.way:
        texts, labels = read(arguments.data, arguments.rows)
        if arguments.long:
            texts = long_texts(texts, n_texts=len(texts), n_words=arguments.tokens)
        max_length = arguments.tokens if arguments.long else MAX_LENGTH
        print(json.dumps(measure(arguments.way, texts, labels, model=arguments.model, max_length=max_length)))
        return

    sets = {f"short ({MAX_LENGTH} tokens at most)": [], f"{arguments.tokens} tokens": ["--long"]}
    options = [f"--{name}={getattr(arguments, name)}" for name in ("data", "model", "rows", "tokens")]
    runs = []
    for _ in range(arguments.repeats):
        for name, more in sets.items():
            for way in WAYS:
                run = in_fresh_process(Path(__file__), *options, *more, f"--way={way}")
                print(name, way, run, file=sys.stderr)
                runs.append((name, way, run["growth"], run["state"]))
    growth = medians(((name, way), growth) for name, way, growth, _ in runs)
    state = medians(((name, way), state) for name, way, _, state in runs)
    beyond = {key: growth[key] - state[key] for key in growth}
    report(
        f"{arguments.rows} texts, batches of {BATCH_SIZE}, float32, medians of {arguments.repeats} processes; MiB.",
        ["texts", "way", "growth at the peak", "weights, gradients, optimizer", "beyond these", "share of padded"],
        [
            [
                name,
                way,
                f"{growth[name, way] / MEBIBYTE:.0f}",
                f"{state[name, way] / MEBIBYTE:.0f}",
                f"{beyond[name, way] / MEBIBYTE:.0f}",
                f"{beyond[name, way] / beyond[name, PADDED]:.0%}",
            ]
            for name, way in growth
        ],
    )


if __name__ == "__main__":
    main()
