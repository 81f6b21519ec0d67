"""Put texts that hypothesis makes up through fit and predict, where nothing may be run, sent, written or read.

The texts are drawn from all of Unicode: lone surrogates (which must be refused with their row), control characters,
marks and unassigned points, long repeats, spellings of special tokens, film reviews; half of them in pairs. Each chunk
of texts is predicted and, labelled in turn, fitted. Probabilities must be finite and sum to one, rows must come in
order, and a text by itself must get what it gets among the others. Meanwhile an audit hook refuses processes, sockets,
foreign code and files, but for those of the checkpoint and the source of transformers, which fit may read.

It needs hypothesis, and no network: the checkpoint is a small one with random weights, unless --model names another.
The exit status is 1 if anything was wrong.

    python examples/stress/fuzz_texts.py
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import transformers
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from small_bert import SPECIAL, WORDS, build

from bertclf import BertSequenceClassifier

TEXTS_IN_BATCH, TEXTS_AT_ONCE, ALONE = 50, 2000, 40
TOLERANCE = 1e-5
SPELLINGS = [*SPECIAL, "<s>", "</s>", "<pad>", "<|endoftext|>", "##a", "[unused1]", " ", "\t", "a film"]
REFUSED = (
    "compile", "ctypes", "exec", "import", "os.exec", "os.fork", "os.forkpty", "os.kill", "os.mkdir", "os.posix_spawn",
    "os.putenv", "os.remove", "os.rename", "os.rmdir", "os.spawn", "os.startfile", "os.symlink", "os.system",
    "os.unsetenv", "pickle", "pty", "shutil", "signal", "socket", "subprocess", "urllib",
)  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What transformers reads beside a checkpoint: whether that lies on a mounted Hub, and its own source.
MOUNTS, LIBRARY = "/proc/mounts", Path(transformers.__file__).resolve().parent

PLAIN = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)
ODD = st.characters(categories=["Cc", "Cf", "Cn", "Co", "Mn", "Me", "Zl", "Zp", "Zs"])
KINDS = {
    "words": PLAIN,
    "any characters": st.text(max_size=40),
    "controls and marks": st.text(ODD, max_size=40),
    "long repeats": st.builds(
        lambda piece, length: (piece * length)[:length],
        st.text(min_size=1, max_size=3),
        st.integers(100, 2000) | st.just(40_000),
    ),
    "special tokens": st.lists(st.sampled_from(SPELLINGS), max_size=12).map("".join),
    "lone surrogates": st.builds(
        lambda before, mark, after: f"{before}{mark}{after}",
        st.text(max_size=5),
        st.characters(categories=["Cs"]),
        st.text(max_size=5),
    ),
}
# Of a batch one text in a hundred or so is refused, and one in twenty is long.
WEIGHTS = {"words": 5, "any characters": 8, "controls and marks": 4, "long repeats": 1, "special tokens": 3}
COMMON = st.sampled_from([name for name, weight in WEIGHTS.items() for _ in range(weight)]).flatmap(
    lambda name: st.tuples(st.just(name), KINDS[name])
)
BATCHES = st.tuples(
    st.lists(COMMON, min_size=TEXTS_IN_BATCH, max_size=TEXTS_IN_BATCH),
    st.none() | st.tuples(st.integers(0, TEXTS_IN_BATCH - 1), KINDS["lone surrogates"]),
)

_readable: Path | None = None
_is_watched = False


class Refused(BaseException):
    """What the classifier did that it must not do; no handler of an `Exception` may swallow it."""


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if not _is_watched:
        return
    if event == "open":
        path, _, flags = arguments
        is_read = _readable is not None and isinstance(path, str | os.PathLike) and not int(str(flags)) & WRITING
        if not (is_read and (path == MOUNTS or set(Path(path).resolve().parents) & {_readable, LIBRARY})):
            raise Refused(f"{event}{arguments}")
    elif event.startswith(REFUSED):
        raise Refused(f"{event}{arguments}")


sys.addaudithook(_refuse)


@contextmanager
def watched(*, readable: Path | None = None) -> Iterator[None]:
    """Let nothing be run, sent or written, and nothing be read but files of one folder."""
    global _is_watched, _readable
    _is_watched, _readable = True, readable
    try:
        yield
    finally:
        _is_watched = False


class Fuzzed:
    """Texts as they come from hypothesis, put through the classifier in chunks, and what was counted."""

    def __init__(self, model: Path) -> None:
        self.model = model.resolve()
        self.counts: Counter[str] = Counter()
        self.waiting: list[str] = []
        self.source = np.random.default_rng(0)
        settled = {"epochs": 1, "batch_size": 256, "precision": "float32", "random_state": 0}
        self.classifiers = {pairs: BertSequenceClassifier(self.model, **settled) for pairs in (False, True)}
        for pairs, clf in self.classifiers.items():  # what is imported late is imported now
            X = rows(["a fine film", "a dull film"] * 2, pairs=pairs)
            clf.fit(X, [0, 1] * (len(X) // 2)).predict(X)

    def take(self, texts: list[str], refused: tuple[int, str] | None) -> None:
        """Take a batch of texts; at one row a text may come that must be refused."""
        if refused is not None:
            row, text = refused
            self.refuse([*texts[:row], text, *texts[row:]], row)
        self.waiting += texts
        if len(self.waiting) >= TEXTS_AT_ONCE:
            self.put_through()

    def refuse(self, texts: list[str], row: int) -> None:
        """See that fit and predict refuse texts for one row, by its number."""
        clf = self.classifiers[False]
        for use in (clf.predict_proba, lambda texts: clf.fit(texts, [0] * len(texts))):
            message = f"{texts[row]!a} was taken"
            try:
                with watched():
                    use(texts)
            except ValueError as error:
                message = str(error)
            assert f"X[{row}] is " in message, message
            assert "lone surrogate" in message, message
        self.counts["refused"] += 1

    def put_through(self) -> None:
        """Predict and fit all that waits, by turns as single texts and as pairs."""
        texts, self.waiting = self.waiting, []
        pairs = self.counts["chunks"] % 2 == 1
        X, clf = rows(texts, pairs=pairs), self.classifiers[pairs]
        with watched():
            found = clf.predict_proba(X)
            reverse = clf.predict_proba(X[::-1])[::-1]
            some = self.source.choice(len(X), min(ALONE, len(X)), replace=False)
            alone = np.concatenate([clf.predict_proba([X[row]]) for row in some])
        assert found.shape == (len(X), 2)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=TOLERANCE)
        np.testing.assert_allclose(reverse, found, atol=TOLERANCE)
        np.testing.assert_allclose(alone, found[some], atol=TOLERANCE)
        with watched(readable=self.model):
            clf.fit(X, [row % 2 for row in range(len(X))])
        assert np.isfinite(clf.loss_curve_).all()
        self.counts.update({"chunks": 1, "texts": len(texts), "pairs": len(X) * pairs, "alone": len(some)})


def rows(texts: list[str], *, pairs: bool) -> list[str] | list[tuple[str, str]]:
    """Return texts as they are, or two by two."""
    return list(zip(texts[::2], texts[1::2], strict=False)) if pairs else texts


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a checkpoint")
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    n_batches = -(-options.texts // TEXTS_IN_BATCH)
    kinds: Counter[str] = Counter()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "[0-9]+% of the tokens of X are cut")  # they are meant to be
        fuzzed = Fuzzed(options.model or build(Path(folder)))

        @seed(options.seed)
        @settings(max_examples=n_batches, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(BATCHES)
        def fuzz(batch: tuple[list[tuple[str, str]], tuple[int, str] | None]) -> None:
            """Take a batch."""
            drawn, refused = batch
            kinds.update(kind for kind, _ in drawn)
            fuzzed.take([text for _, text in drawn], refused)

        fuzz()
        if fuzzed.waiting:
            fuzzed.put_through()
    counts = fuzzed.counts
    print(f"{counts['texts']:,} texts in {time.perf_counter() - begun:.0f} s, all predicted and fitted: {dict(kinds)}.")
    print(f"{counts['pairs']:,} pairs; {counts['alone']:,} rows compared with the same row alone.")
    print(f"{counts['refused']:,} batches with a lone surrogate, each refused by fit and predict with its row.")


if __name__ == "__main__":
    main()
