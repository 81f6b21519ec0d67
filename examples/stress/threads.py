"""Predict with one classifier in many threads at once and compare each answer, bit for bit, with that of one thread.

Texts are of mixed lengths, and so are the calls. It needs no network: the checkpoint is a small one with random
weights, unless --model names another. The exit status is 1 if an answer differs.

    python examples/stress/threads.py
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from small_bert import WORDS, build

from bertclf import BertSequenceClassifier

DIFFERENT_CALLS = 500


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint, a folder or a name on the Hub")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        clf = BertSequenceClassifier(
            options.model or build(Path(folder)), epochs=1, precision=options.precision, random_state=0
        )
        clf.fit(["a fine film", "a dull film"], [0, 1])
    source = random.Random(0)
    batches = [batch(source) for _ in range(min(DIFFERENT_CALLS, options.calls))]
    expected = [clf.predict_proba(texts) for texts in batches]
    drawn = [source.randrange(len(batches)) for _ in range(options.calls)]

    begun = time.perf_counter()
    with ThreadPoolExecutor(options.threads) as pool:
        found = list(pool.map(lambda number: clf.predict_proba(batches[number]), drawn))
    seconds = time.perf_counter() - begun

    same = sum(np.array_equal(each, expected[number]) for each, number in zip(found, drawn, strict=True))
    n_texts = sum(len(batches[number]) for number in drawn)
    print(
        f"{same:,} of {options.calls:,} calls in {options.threads} threads gave the bits of one thread: {n_texts:,} "
        f"texts in {seconds:.0f} s."
    )
    sys.exit(same != options.calls)


def batch(source: random.Random) -> list[str]:
    """Return 1 to 8 texts of 0 to 80 words: some too long for the network."""
    return [" ".join(source.choices(WORDS, k=source.randrange(81))) for _ in range(source.randrange(1, 9))]


if __name__ == "__main__":
    main()
