"""Predict many texts from a memory-mapped array, and see how much memory that takes beside the result.

The texts lie in a file, a fixed number of characters each; the classifier reads them a part at a time. Memory is what
the process has allocated for itself, on Linux: pages of the file, which the system can drop at any time, are not
counted. It needs no network: the checkpoint is a small one with random weights, unless --model names another. The exit
status is 1 if more than --allowed was needed.

    python examples/stress/many_texts.py --texts 10000000
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from small_bert import build

from bertclf import BertSequenceClassifier

MEGABYTE = 1 << 20
TEXTS_AT_ONCE = 100_000
FEW = 40_000  # of these the memory is not counted: they fill what is reused
SECONDS_BETWEEN_LOOKS = 0.02


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint, a folder or a name on the Hub")
    parser.add_argument("--texts", type=int, default=10_000_000)
    parser.add_argument("--allowed", type=float, default=100.0, help="MB beside the result (default: 100)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clf = BertSequenceClassifier(options.model or build(folder / "model"), epochs=1, random_state=0)
        clf.fit(["a fine film", "a dull film"] * 4, [1, 0] * 4)
        texts = written(folder / "texts.npy", n_texts=options.texts)
        clf.predict_proba(texts[:FEW])
        before, begun = own_bytes(), time.perf_counter()
        with Peak() as peak:
            probabilities = clf.predict_proba(texts)
        seconds, beside = time.perf_counter() - begun, peak.n_bytes - before - probabilities.nbytes
        np.testing.assert_allclose(probabilities[-FEW:], clf.predict_proba(texts[-FEW:].tolist()), atol=2e-2)
    print(
        f"{len(probabilities):,} texts in {seconds:.0f} s: {beside / MEGABYTE:.1f} MB at the peak beside the result of "
        f"{probabilities.nbytes / MEGABYTE:.1f} MB; texts of {texts.nbytes / MEGABYTE:,.1f} MB."
    )
    sys.exit(beside > options.allowed * MEGABYTE)


def written(file: Path, *, n_texts: int) -> np.memmap:
    """Write numbered texts to a file and return them, mapped."""
    texts = np.lib.format.open_memmap(file, mode="w+", dtype="<U24", shape=(n_texts,))
    for start in range(0, n_texts, TEXTS_AT_ONCE):
        stop = min(start + TEXTS_AT_ONCE, n_texts)
        texts[start:stop] = [f"a fine film {number}" for number in range(start, stop)]
    texts.flush()
    return np.load(file, mmap_mode="r")


class Peak:
    """The most memory of its own that the process has within a context.

    Attributes
    ----------
    n_bytes : int
        Bytes.
    """

    def __enter__(self) -> "Peak":
        """Begin to look."""
        self.n_bytes = own_bytes()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Look no more."""
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(SECONDS_BETWEEN_LOOKS):
            self.n_bytes = max(self.n_bytes, own_bytes())


def own_bytes() -> int:
    """Return the bytes that the process has in memory and that are of no file."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    main()
