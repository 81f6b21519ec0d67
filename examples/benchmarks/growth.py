"""Measure how the time of training, prediction and tokenization grows: with length, with rows, with cores.

- length: texts of 16 to 512 tokens, as many as make the same number of tokens, and 32 at least; one epoch of training
  (without loading) and prediction. Tokens per second would stay the same but for attention, which compares all tokens
  of a text, and the size of the batches.
- rows: random words, 5 to 15 a text, tokenized as `fit` does it; time and kept bytes a text should stay the same.
- cores: training and prediction of the rows, in fresh processes with so many threads.

    python examples/benchmarks/growth.py --data train.jsonl
    python examples/benchmarks/growth.py --data train.jsonl --parts rows --rows 1000 1000000
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

from common import (
    BATCH_SIZE,
    MAX_LENGTH,
    classifier_of,
    in_fresh_process,
    in_turn,
    long_texts,
    medians,
    parsed,
    parser_of,
    random_texts,
    read,
    report,
)
from transformers import AutoTokenizer

from bertclf._encoding import Way
from bertclf._tokens import tokenize


def train_and_predict(texts, labels, *, model, max_length):
    """Return the seconds of one epoch of training without loading, and of predicting the same texts."""
    classifier = classifier_of(model, max_length=max_length).fit(texts, labels)
    start = time.perf_counter()
    classifier.predict_proba(texts)
    return {
        "training": classifier.history_[0]["training_seconds"],
        "prediction": time.perf_counter() - start,
    }


def medians_of_turns(turns, *, repeats):
    """Return the medians of the seconds that functions of the number of the turn measure, by their name and what."""
    measured = in_turn(turns, repeats=repeats)
    return medians(((name, what), value) for name, result, _ in measured for what, value in result.items())


def by_length(arguments):
    """Print tokens per second by length."""
    texts, _ = read(arguments.data)
    turns, n_texts = {}, {}
    for length in arguments.lengths:
        n_texts[length] = max(arguments.tokens // length, BATCH_SIZE)
        chosen = long_texts(texts, n_texts=n_texts[length], n_words=length)
        labels = [row % 2 for row in range(len(chosen))]
        measure = partial(train_and_predict, chosen, labels, model=arguments.model, max_length=length)
        turns[length] = lambda _, measure=measure: measure()
    turns[arguments.lengths[0]](0)  # once untimed: what is made on first use is charged to none
    seconds = medians_of_turns(turns, repeats=arguments.repeats)
    report(
        f"{arguments.tokens} tokens in texts of one length, float32, medians of {arguments.repeats}.",
        ["tokens a text", "texts", "training, texts/s", "tokens/s", "prediction, texts/s", "tokens/s"],
        [
            [length, n_texts[length]]
            + [
                f"{n / seconds[length, what]:,.0f}"
                for what in ("training", "prediction")
                for n in (n_texts[length], n_texts[length] * length)
            ]
            for length in arguments.lengths
        ],
    )


def by_rows(arguments):
    """Print time and bytes of tokenization by the number of rows."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    encode = partial(tokenize, second=None, way=Way(tokenizer, 512, "truncate"), with_segments=True)
    texts = random_texts(max(arguments.rows))
    encode(texts[:1000])

    def measure(n_rows, _):
        chosen = texts[:n_rows]
        start = time.perf_counter()
        store = encode(chosen)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": len(store.ids), "bytes": store.ids.nbytes + store.offsets.nbytes}

    turns = {n_rows: partial(measure, n_rows) for n_rows in arguments.rows}
    found = medians_of_turns(turns, repeats=arguments.repeats)
    report(
        f"Tokenization of random words, medians of {arguments.repeats}.",
        ["texts", "seconds", "microseconds a text", "tokens", "bytes kept", "bytes a text"],
        [
            [
                f"{n_rows:,}",
                f"{found[n_rows, 'seconds']:.2f}",
                f"{found[n_rows, 'seconds'] / n_rows * 1e6:.1f}",
                f"{found[n_rows, 'tokens']:,}",
                f"{found[n_rows, 'bytes']:,}",
                f"{found[n_rows, 'bytes'] / n_rows:.1f}",
            ]
            for n_rows in arguments.rows
        ],
    )


def alone(arguments):
    """Print the seconds of training and prediction of the rows in this process, as JSON."""
    texts, labels = read(arguments.data, arguments.texts)
    measure = partial(train_and_predict, model=arguments.model, max_length=MAX_LENGTH)
    measure(texts[:BATCH_SIZE], labels[:BATCH_SIZE])
    print(json.dumps(measure(texts, labels)))


def by_cores(arguments):
    """Print texts per second by the number of threads, each in a fresh process."""
    options = [f"--data={arguments.data}", f"--model={arguments.model}", f"--texts={arguments.texts}", "--alone"]

    def measure(n_cores, _):
        run = in_fresh_process(Path(__file__), *options, threads=n_cores)
        print(n_cores, run, file=sys.stderr)
        return run

    turns = {n_cores: partial(measure, n_cores) for n_cores in arguments.cores}
    seconds = medians_of_turns(turns, repeats=arguments.repeats)
    first = arguments.cores[0]
    report(
        f"{arguments.texts} texts, {MAX_LENGTH} tokens at most, float32, medians of {arguments.repeats} processes.",
        ["cores", "training, texts/s", f"times that of {first}", "prediction, texts/s", f"times that of {first}"],
        [
            [n_cores]
            + [
                cell
                for what in ("training", "prediction")
                for cell in (
                    f"{arguments.texts / seconds[n_cores, what]:.0f}",
                    f"{seconds[first, what] / seconds[n_cores, what]:.2f}",
                )
            ]
            for n_cores in arguments.cores
        ],
    )


PARTS = {"length": by_length, "rows": by_rows, "cores": by_cores}


def main(argv=None):
    """Measure each part and print its table."""
    parser = parser_of(__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--lengths", nargs="+", type=int, default=[16, 32, 64, 128, 256, 512])
    parser.add_argument("--tokens", type=int, default=16_384, help="tokens of each length")
    parser.add_argument("--rows", nargs="+", type=int, default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--cores", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--texts", type=int, default=320, help="rows that are trained on and predicted by cores")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # what a fresh process is to measure
    arguments = parsed(parser, argv)
    if arguments.alone:
        alone(arguments)
        return
    for part in arguments.parts:
        print(f"\n## By {part}\n")
        PARTS[part](arguments)


if __name__ == "__main__":
    main()
