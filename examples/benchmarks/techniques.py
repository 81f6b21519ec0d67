"""Measure what each technique of the engine saves: training steps with all of them, with each left out, with none.

Every way trains a copy of the same network, with pooling by the first token, on the same random batches of 32 texts and
in turn. A step is forward, backward, clipping and AdamW. `--parts` measures how many tokens go through the network at
once instead, on the rows and on texts of 256 tokens; `--freeze` whole fits of three epochs with layers frozen.

    python examples/benchmarks/techniques.py --data train.jsonl
    python examples/benchmarks/techniques.py --data train.jsonl --parts
    python examples/benchmarks/techniques.py --data train.jsonl --freeze
"""

import copy
import sys
import tempfile
import time
from functools import partial
from unittest.mock import patch

import numpy as np
from common import (
    BATCH_SIZE,
    LEARNING_RATE,
    MAX_LENGTH,
    classifier_of,
    device,
    in_turn,
    long_texts,
    medians,
    parsed,
    parser_of,
    read,
    report,
)
from torch.nn.utils import clip_grad_norm_
from transformers import AutoConfig

from bertclf._batches import random_batches
from bertclf._budget import TokenBudget
from bertclf._checkpoint import load_checkpoint
from bertclf._device import PRECISIONS, Compute
from bertclf._dropout import KeepMasks
from bertclf._encoding import Way
from bertclf._engine import Engine
from bertclf._network import takes_segments
from bertclf._steps import Descent, LabelledTokens, Optimization, TrainingSettings
from bertclf._tokens import tokenize
from bertclf._training import MAX_PADDED_TEXTS

ALL, NONE = "nothing", "everything"
FITS = {"nothing": 0, "half of the layers": "half", "the encoder": "encoder"}


def tokenized(texts, labels, *, model, max_length):
    """Return a network of a checkpoint with a new head, and the texts as it takes them."""
    classes, targets = np.unique(labels, return_inverse=True)
    names = [str(name) for name in classes]
    checkpoint = load_checkpoint(
        model, revision=None, labels=names, multilabel=False, pooling="cls", dropout=None, verbose=False
    )
    network, tokenizer = checkpoint.network.to(device()), checkpoint.tokenizer
    tokens = tokenize(
        texts,
        None,
        way=Way(tokenizer, max_length, "truncate"),
        with_segments=takes_segments(network, tokenizer),
        memory=None,
    )
    return network, LabelledTokens(tokens, targets, np.ones(len(texts), dtype=np.float32))


def clip_apart(optimization, max_norm):
    """Clip the gradients in a pass of its own."""
    clip_grad_norm_(optimization.weights.values(), max_norm)


def stepper(network, training, *, dtype, max_tokens=sys.maxsize, max_texts=None, clips_apart=False, **choices):
    """Return a function that takes a training step of a copy of a network on some rows, and waits for its loss."""
    network = copy.deepcopy(network)
    compute = Compute(device(), dtype)
    settings = TrainingSettings(
        epochs=1,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        lr_schedule="constant",
        warmup_ratio=0.0,
        weight_decay=0.01,
        max_grad_norm=1.0,
        label_smoothing=0.0,
    )
    engine = Engine(network, device=compute.device, **choices).train()
    optimization = Optimization(engine, settings, n_steps=1, compute=compute, state=None)
    budget = TokenBudget(max_tokens, max_texts=max_texts)
    descent = Descent(engine, training, None, optimization=optimization, budget=budget, compute=compute)

    def step(rows):
        if clips_apart:
            with patch.object(Optimization, "_clip", clip_apart):
                return float(descent.step(rows)[0])
        return float(descent.step(rows)[0])

    return step


def step_seconds(ways, training, *, n_steps):
    """Time steps of all ways on the same random batches, after one step untimed, each turn in another order.

    Returns
    -------
    dict of str to (float, float)
        Median seconds of a step, and the median over the turns of the times that the first way took in the same turn.
    """
    batches = list(random_batches(len(training.tokens), batch_size=BATCH_SIZE, generator=np.random.default_rng(0)))
    names, order = list(ways), np.random.default_rng(0)
    seconds = np.empty((n_steps, len(names)))
    for step in ways.values():
        step(batches[-1])
    for turn in range(n_steps):
        for number in order.permutation(len(names)):
            start = time.perf_counter()
            ways[names[number]](batches[turn % len(batches)])
            seconds[turn, number] = time.perf_counter() - start
    times = np.median(seconds / seconds[:, :1], axis=0)
    return dict(zip(names, zip(np.median(seconds, axis=0), times, strict=True), strict=True))


def by_technique(texts, labels, arguments):
    """Print the seconds of a step with each technique left out."""
    network, training = tokenized(texts, labels, model=arguments.model, max_length=MAX_LENGTH)
    on = {"masks": KeepMasks(0), "token_ids": np.unique(training.tokens.ids)}
    padded_parts = {"unpadded": False, "max_texts": MAX_PADDED_TEXTS["cpu"]}
    left_out = {
        ALL: on,
        "tokens without padding": on | {"unpadded": False},
        "tokens without padding, but parts of 8 texts by length": on | padded_parts,
        "cheap dropout": on | {"masks": None},
        "embeddings of the tokens that occur": on | {"token_ids": None},
        "first token alone in the last layer": on | {"first_tokens_alone": False},
        "clipping inside the step of AdamW": on | {"clips_apart": True},
        NONE: {"unpadded": False, "clips_apart": True},
    }
    dtype = PRECISIONS[arguments.precision]
    ways = {name: stepper(network, training, dtype=dtype, **choices) for name, choices in left_out.items()}
    seconds = step_seconds(ways, training, n_steps=arguments.steps)
    n_tokens = len(training.tokens.ids) / len(texts)
    report(
        f"Batches of {BATCH_SIZE} texts, {n_tokens:.1f} tokens a text, {arguments.precision}, medians of "
        f"{arguments.steps} steps.",
        ["left out", "milliseconds a step", "times that of all"],
        [[name, f"{median * 1e3:.0f}", f"{times:.3f}"] for name, (median, times) in seconds.items()],
    )


def by_part(texts, labels, arguments):
    """Print the seconds of a step by the most tokens that go through the network at once."""
    sets = {"rows": (texts, MAX_LENGTH), f"{arguments.long} tokens": (None, arguments.long)}
    rows, budgets, dtype = [], arguments.tokens, PRECISIONS[arguments.precision]
    for name, (chosen, max_length) in sets.items():
        chosen = chosen or long_texts(texts, n_texts=2 * BATCH_SIZE, n_words=arguments.long)
        targets = labels if len(chosen) == len(labels) else [row % 2 for row in range(len(chosen))]
        network, training = tokenized(chosen, targets, model=arguments.model, max_length=max_length)
        choices = {"masks": KeepMasks(0), "token_ids": np.unique(training.tokens.ids)}
        ways = {budget: stepper(network, training, dtype=dtype, max_tokens=budget, **choices) for budget in budgets}
        seconds = step_seconds(ways, training, n_steps=arguments.steps)
        rows += [[name, budget, f"{median * 1e3:.0f}"] for budget, (median, _) in seconds.items()]
    report(
        f"Batches of {BATCH_SIZE} texts, {arguments.precision}, medians of {arguments.steps} steps.",
        ["texts", "most tokens at once", "milliseconds a step"],
        rows,
    )


def by_freezing(texts, labels, arguments):
    """Print the seconds of whole fits by what is frozen, without and with a memory that knows the texts."""
    n_layers = AutoConfig.from_pretrained(arguments.model).num_hidden_layers

    def fit(frozen, memory, _):
        frozen = n_layers // 2 if frozen == "half" else frozen
        settings = {"epochs": 3, "freeze": frozen, "memory": memory, "precision": arguments.precision}
        return classifier_of(arguments.model, **settings).fit(texts, labels).history_

    with tempfile.TemporaryDirectory() as memory:
        turns = {name: partial(fit, frozen, None) for name, frozen in FITS.items()}
        turns |= {f"{name}, seen before": partial(fit, FITS[name], memory) for name in list(FITS)[1:]}
        for name in list(FITS)[1:]:
            fit(FITS[name], memory, 0)
        measured = list(in_turn(turns, repeats=arguments.repeats))
    seconds = medians((name, elapsed) for name, _, elapsed in measured)
    epochs = medians(((name, row["epoch"]), row["training_seconds"]) for name, rows, _ in measured for row in rows)
    first = seconds["nothing"]
    report(
        f"{len(texts)} texts, 3 epochs, {arguments.precision}, medians of {arguments.repeats} fits.",
        ["frozen", "seconds, loading included", "times as quick", "first epoch", "last epoch"],
        [
            [name, f"{median:.1f}", f"{first / median:.2f}", f"{epochs[name, 1]:.1f}", f"{epochs[name, 3]:.1f}"]
            for name, median in seconds.items()
        ],
    )


def main(argv=None):
    """Measure and print a table."""
    parser = parser_of(__doc__)
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--rows", type=int, default=320, help="texts to train on, always the same")
    parser.add_argument("--steps", type=int, default=20, help="timed turns of all ways, a step each")
    parser.add_argument("--tokens", nargs="+", type=int, default=[256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--long", type=int, default=256, help="tokens of the long texts of --parts")
    parser.add_argument("--parts", action="store_true", help="by the most tokens that go through the network at once")
    parser.add_argument("--freeze", action="store_true", help="by the layers that are frozen")
    arguments = parsed(parser, argv)
    texts, labels = read(arguments.data, arguments.rows)
    measure = by_part if arguments.parts else by_freezing if arguments.freeze else by_technique
    measure(texts, labels, arguments)


if __name__ == "__main__":
    main()
