"""Clone, fit, predict, pickle and load a classifier, again and again, and see that nothing is left behind.

After each round it counts what is in memory and what is open, on Linux. The first rounds fill caches; from then on both
must stay where they are. It needs no network: the checkpoint is a small one with random weights, unless --model names
another. The exit status is 1 if either grew, or a prediction changed.

    python examples/stress/soak.py
"""

import argparse
import gc
import os
import pickle
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.base import clone
from small_bert import WORDS, build

from bertclf import BertSequenceClassifier

TEXTS = [" ".join(np.roll(WORDS, -start)[: 1 + 3 * start]) for start in range(20)]
LABELS = [("even", "odd")[row % 2] for row in range(len(TEXTS))]
MEGABYTE = 1 << 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint, a folder or a name on the Hub")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--first", type=int, default=20, help="rounds that may fill caches (default: 20)")
    parser.add_argument("--allowed", type=float, default=8.0, help="growth that counts as none, in MB (default: 8)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        seen = soak(options.model or build(Path(folder)), n_rounds=options.rounds)
    told = {"start": 0, f"after {options.first} rounds": options.first, "end": options.rounds}
    print("| | resident MB | open files | tensors |\n|---|---|---|---|")
    for when, number in told.items():
        print(f"| {when} | {seen[number][0] / MEGABYTE:.1f} | {seen[number][1]} | {seen[number][2]} |")
    later = np.array(seen[options.first :])
    slope = np.polyfit(np.arange(len(later)), later[:, 0], deg=1)[0]
    grown = later[-1] - later[0]
    print(f"\nSlope after the first rounds: {slope / 1024:+.1f} KB of memory a round.")
    is_flat = grown[0] <= options.allowed * MEGABYTE and grown[1] <= 0 and grown[2] <= 0
    print("Flat." if is_flat else "NOT FLAT.")
    sys.exit(not is_flat)


def soak(model: str | Path, *, n_rounds: int) -> list[tuple[int, int, int]]:
    """Return what is in memory and what is open before the first round and after each."""
    clf = BertSequenceClassifier(model, epochs=1, random_state=0)
    expected = clf.fit(TEXTS, LABELS).predict_proba(TEXTS)
    seen = [in_use()]
    begun = time.perf_counter()
    for number in range(1, n_rounds + 1):
        clf = pickle.loads(pickle.dumps(clone(clf).fit(TEXTS, LABELS)))
        np.testing.assert_array_equal(clf.predict_proba(TEXTS), expected)
        seen.append(in_use())
        if number % 20 == 0:
            print(f"round {number}, {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    return seen


def in_use() -> tuple[int, int, int]:
    """Return the bytes in memory, the number of open files, and the number of tensors."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    n_tensors = sum(issubclass(type(value), torch.Tensor) for value in gc.get_objects())
    return pages * resource.getpagesize(), len(os.listdir("/proc/self/fd")), n_tensors


if __name__ == "__main__":
    main()
