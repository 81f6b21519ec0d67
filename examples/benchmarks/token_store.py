"""Measure the memory that the token store takes for many short texts, at its peak.

The texts are random words, 5 to 15 a text, the same in every run. The growth is the process's peak resident set after
the texts are encoded less its resident set before, so it holds everything that encoding needs.

    python examples/benchmarks/token_store.py --texts 1000000
"""

import argparse

from common import minilm_folder, peak_bytes, random_texts, resident_bytes
from transformers import AutoTokenizer

from bertclf._encoding import Way
from bertclf._tokens import tokenize

WARM_UP_TEXTS = 5_000
BYTES_PER_TOKEN, BYTES_PER_TEXT = 6, 40


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1_000_000, help="number of texts")
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())

    def encode(texts):
        return tokenize(texts, None, way=Way(tokenizer, 512, "truncate"), with_segments=True)

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
