"""Measure the memory that the token store takes for many short texts, at its peak.

The texts are random words, 5 to 15 a text, the same in every run. The growth is the process's peak resident set after
the texts are encoded less its resident set before, so it holds everything that encoding needs.

    python examples/benchmarks/token_store.py --texts 1000000
"""

import argparse
import os
import random
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from minilm import minilm_folder
from transformers import AutoTokenizer

from bertclf._tokens import tokenize

WORDS = (
    "a an and the it is was were not very this that of in on with for film story plot scene actor actress director "
    "music ending joke hour evening city family love friend war summer winter dull fine long slow quick bright dark "
    "warm cold brilliant charming tedious forgettable unforgettable melodramatic cinematography see watch like hate "
    "remember forget laugh cry leave stay nothing everything always never"
).split()
WARM_UP_TEXTS = 5_000
BYTES_PER_TOKEN, BYTES_PER_TEXT = 6, 40


def random_texts(n_texts):
    """Return texts of 5 to 15 words; each is made alone, so that nothing large is freed before the measurement."""
    generator = random.Random(0)
    return [" ".join(generator.choices(WORDS, k=generator.randint(5, 15))) for _ in range(n_texts)]


def peak_bytes():
    """Return the largest resident set that the process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes():
    """Return the resident set of the process; where the system doesn't tell, its peak, which equals it here."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_bytes()
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1_000_000, help="number of texts")
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())

    def encode(texts):
        return tokenize(texts, None, tokenizer=tokenizer, max_length=512, with_segments=True)

    encode(random_texts(WARM_UP_TEXTS))  # the tokenizer's threads keep buffers, which are not the store's
    texts = random_texts(arguments.texts)
    before, peak_before = resident_bytes(), peak_bytes()
    store = encode(texts)
    growth = peak_bytes() - before

    n_texts, n_tokens = len(store), len(store.ids)
    arrays = {"ids": store.ids.nbytes, "offsets": store.offsets.nbytes}
    if store.segments is not None:
        arrays["segments"] = store.segments.nbytes
    allowed = BYTES_PER_TOKEN * n_tokens + BYTES_PER_TEXT * n_texts
    print(f"{n_texts:,} texts, {n_tokens:,} tokens ({n_tokens / n_texts:.1f} a text)")
    print(f"arrays kept: {sum(arrays.values()):,} bytes ({', '.join(f'{k} {v:,}' for k, v in arrays.items())})")
    print(f"  ids {store.ids.nbytes / n_tokens:.2f} bytes a token, offsets {store.offsets.nbytes / n_texts:.2f} a text")
    print(f"resident before: {before:,} bytes (peak until then {peak_before:,})")
    print(f"peak growth: {growth:,} bytes ({growth / n_tokens:.2f} a token, or {growth / n_texts:.1f} a text)")
    verdict = "within" if growth <= allowed else "NOT within"
    print(f"{verdict} {BYTES_PER_TOKEN} bytes a token and {BYTES_PER_TEXT} a text: {allowed:,} bytes")


if __name__ == "__main__":
    main()
