"""Texts turned into a ragged store of token ids: flat, never padded."""

import warnings
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from bertclf._encoding import Encoding, Way, encode
from bertclf._memory import TextMemory, key_of

# Share of the tokens of which a user would want to know that they are cut.
MUCH_CUT = 0.01

# What goes to the tokenizer at once: its own encodings take some 100 bytes a token.
TEXTS_PER_CALL = 1024
CHARACTERS_PER_CALL = 1 << 23


@dataclass(frozen=True)
class TokenStore:
    """The token ids of many texts, one after the other, each in one window or several.

    A window is what goes through the network by itself. Where a text is more than one, texts and windows are counted
    apart: the methods lead from the one to the other.

    Attributes
    ----------
    ids : ndarray of uint16 or int32, shape (n_tokens,)
        Token ids, special tokens included.
    offsets : ndarray of int64, shape (n_windows + 1,)
        Window `i` is `ids[offsets[i]:offsets[i + 1]]`.
    segments : ndarray of uint8, shape (n_tokens,), or None
        Segment id of each token, None if the network takes none or all are zero.
    cut : dict of int to int
        Number of tokens that were cut, for each text of which some were.
    n_repeated : int
        How many of the tokens are copies of others, since they stand in more than one window of a text.
    keys : list of bytes or None
        What stands for each window and the way in which it was made; None if nothing is kept in a memory.
    first_window : ndarray of int64, shape (n_texts + 1,), or None
        The windows of text `i` are those from `first_window[i]` up to, not with, `first_window[i + 1]`; None if window
        `i` is text `i`.
    """

    ids: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    segments: npt.NDArray[np.uint8] | None
    cut: dict[int, int] = field(default_factory=dict)
    n_repeated: int = 0
    keys: list[bytes] | None = None
    first_window: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Return the number of texts."""
        return self.n_windows if self.first_window is None else len(self.first_window) - 1

    @property
    def n_windows(self) -> int:
        """Number of windows of all texts."""
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each window."""
        return np.diff(self.offsets)

    def windows_of(self, texts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the windows of some texts, those of one text after those of the other."""
        return texts if self.first_window is None else places_of(self.first_window, texts)

    def n_windows_of(self, texts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return how many windows each of some texts has."""
        return (
            np.ones_like(texts)
            if self.first_window is None
            else self.first_window[texts + 1] - self.first_window[texts]
        )

    def texts_of(self, windows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the text of each of some windows."""
        if self.first_window is None:
            return windows
        return np.searchsorted(self.first_window, windows, side="right") - 1

    def numbers_of(self, texts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return a number for each of some texts, the same for copies of a text, counted from 0 as they come."""
        first, last = (texts, texts + 1) if self.first_window is None else self.first_window[[texts, texts + 1]]
        spans = zip(self.offsets[first].tolist(), self.offsets[last].tolist(), strict=True)
        numbers: dict[bytes, int] = {}
        return np.array([numbers.setdefault(self.ids[start:end].tobytes(), len(numbers)) for start, end in spans])

    def means(self, values: npt.NDArray[np.float32], texts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return for each of some texts the mean over its windows of `values`, which has a row for each of these."""
        if self.first_window is None:
            return values
        counts = self.n_windows_of(texts)
        means = np.add.reduceat(values, np.cumsum(counts) - counts, axis=0)
        means /= counts[:, None]
        return means


def places_of(offsets: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where the items of some rows stand in a flat array, whose row `i` is `[offsets[i]:offsets[i + 1]]`."""
    lengths = offsets[rows + 1] - offsets[rows]
    starts = np.cumsum(lengths) - lengths
    places: npt.NDArray[np.int64] = np.arange(lengths.sum()) + np.repeat(offsets[rows] - starts, lengths)
    return places


def tokenize(
    first: list[str],
    second: list[str] | None,
    *,
    way: Way,
    with_segments: bool,
    memory: TextMemory | None = None,
) -> TokenStore:
    """Encode texts, or pairs of texts, with their special tokens.

    Parameters
    ----------
    first, second : list of str
        The texts; `second` is None for single texts.
    way : Way
        How: the tokenizer, the length of a window, and what becomes of texts that are longer.
    with_segments : bool
        Whether to keep the segment ids.
    memory : TextMemory or None, default=None
        Where tokens are looked up before they are made, and kept; None makes them all.

    Returns
    -------
    TokenStore
        Ids take two bytes a token where the vocabulary allows it, else four.
    """
    tokenizer = way.tokenizer
    ids = array("H" if len(tokenizer) <= 1 << 16 else "i")
    segments = array("B")
    offsets = array("q", [0])
    cut: dict[int, int] = {}
    n_windows: dict[int, int] = {}
    n_repeated = 0
    # A tokenizer written in Python doesn't tell all that it does, and so can't be recognised.
    remembered = None if memory is None or not tokenizer.is_fast else _Remembered(memory, way)
    for part in _parts(first, second):
        rows = list(zip(first[part]) if second is None else zip(first[part], second[part], strict=True))
        encodings = encode(rows, way) if remembered is None else remembered.encode(rows)
        for text, encoding in enumerate(encodings, start=part.start):
            n_repeated += encoding.n_repeated
            if encoding.n_cut:
                cut[text] = encoding.n_cut
            if encoding.n_windows > 1:
                n_windows[text] = encoding.n_windows
            begin = len(ids)
            ids.extend(encoding.ids or [_filler(tokenizer)])
            length = (len(ids) - begin) // encoding.n_windows
            offsets.extend(range(begin + length, len(ids) + 1, length))
            if with_segments:
                segments.extend(encoding.segments or [0])
    flat_segments = np.frombuffer(segments, dtype=np.uint8)
    return TokenStore(
        ids=np.frombuffer(ids, dtype=np.uint16 if ids.typecode == "H" else np.int32),
        offsets=np.frombuffer(offsets, dtype=np.int64),
        segments=flat_segments if flat_segments.any() else None,
        cut=cut,
        n_repeated=n_repeated,
        keys=None if remembered is None else remembered.keys,
        first_window=_first_windows(n_windows, n_texts=len(first)) if n_windows else None,
    )


def resolve_max_length(
    max_length: int | None, limit: int | None, tokenizer: PreTrainedTokenizerBase, *, pairs: bool
) -> int | None:
    """Return the longest input in tokens, None for no limit.

    Parameters
    ----------
    max_length : int or None
        What the user asked for; None asks for the limit of the checkpoint.
    limit : int or None
        Limit of the checkpoint, None if it has none.
    tokenizer : PreTrainedTokenizerBase
        Tokenizer of the checkpoint.
    pairs : bool
        Whether a row holds two texts.

    Raises
    ------
    ValueError
        If the checkpoint takes no inputs as long, or no token of a text would be left beside the special tokens.
    """
    if max_length is None:
        return limit
    if limit is not None and max_length > limit:
        raise ValueError(
            f"max_length={max_length} is more than this checkpoint can take: its limit is {limit} tokens. Lower "
            "max_length, or pass None to use the limit."
        )
    n_special = tokenizer.num_special_tokens_to_add(pair=pairs)
    shortest = n_special + (2 if pairs else 1)
    if max_length < shortest:
        raise ValueError(
            f"max_length={max_length} leaves no token for the text, since {n_special} special tokens are added. "
            f"Pass at least {shortest}."
        )
    return max_length


def truncation_report(cut: dict[int, int], targets: npt.NDArray[Any], classes: npt.NDArray[Any]) -> dict[str, Any]:
    """Count the texts and the tokens that truncation cut, in all and per class.

    Parameters
    ----------
    cut : dict of int to int
        Number of tokens that were cut, for each text that was.
    targets : ndarray of shape (n_texts,) or (n_texts, n_classes)
        Position of the class of each text; or where a text can have any number of labels, one for those that it has.
    classes : ndarray of shape (n_classes,)
        The labels.

    Returns
    -------
    dict
        `texts` and `tokens` are counts; `per_class` maps each class to a dict with the same two keys.
    """
    rows = np.fromiter(cut.keys(), dtype=np.int64, count=len(cut))
    tokens = np.fromiter(cut.values(), dtype=np.int64, count=len(cut))
    if targets.ndim == 1:
        texts_by_class = np.bincount(targets[rows], minlength=len(classes))
        tokens_by_class = np.zeros(len(classes), dtype=np.int64)
        np.add.at(tokens_by_class, targets[rows], tokens)
    else:
        members = targets[rows].astype(np.int64)
        texts_by_class, tokens_by_class = members.sum(axis=0), tokens @ members
    per_class = {
        label: {"texts": n_texts, "tokens": n_tokens}
        for label, n_texts, n_tokens in zip(
            classes.tolist(), texts_by_class.tolist(), tokens_by_class.tolist(), strict=True
        )
    }
    return {"texts": len(cut), "tokens": int(tokens.sum()), "per_class": per_class}


def warn_if_much_is_cut(store: TokenStore, way: Way) -> None:
    """Warn if more than a hundredth of the tokens of texts were cut, which became a store in this way."""
    n_cut = sum(store.cut.values())
    share = n_cut / (n_cut + len(store.ids) - store.n_repeated)
    if share > MUCH_CUT:
        other = "" if way.long_text == "chunk" else ", or pass long_text='chunk', which reads them in windows"
        warnings.warn(
            f"{share:.0%} of the tokens of X are cut: {n_cut:,} in {len(store.cut):,} texts that are "
            f"longer than {way.max_length} tokens. Raise max_length if the checkpoint takes more, take one for longer "
            f"texts{other}; truncation_ tells what each class loses.",
            UserWarning,
            stacklevel=2,
        )


class _Remembered:
    """Tokens by content, tokenizer, length and what becomes of longer texts, in a memory.

    `keys` are those of the windows so far.
    """

    def __init__(self, memory: TextMemory, way: Way) -> None:
        self.keys: list[bytes] = []
        self._memory = memory
        self._way = way
        self._key = way.key()

    def encode(self, rows: list[tuple[str, ...]]) -> list[Encoding]:
        """Return the tokens of some rows, and make those that are missing."""
        keys = [key_of(self._key, *row) for row in rows]

        def make(positions: list[int]) -> list[bytes]:
            """Encode what is missing."""
            encodings = encode([rows[position] for position in positions], self._way)
            return [encoding.to_bytes() for encoding in encodings]

        found = [Encoding.from_bytes(content) for content in self._memory.get_or_make(keys, make)]
        for key, encoding in zip(keys, found, strict=True):
            n = encoding.n_windows
            self.keys += [key] if n == 1 else [key_of(key, str(number)) for number in range(n)]
        return found


def _parts(first: list[str], second: list[str] | None) -> Iterator[slice]:
    """Yield which texts go to the tokenizer together."""
    start = n_characters = 0
    for row, text in enumerate(first):
        n_more = len(text) + (0 if second is None else len(second[row]))
        if row > start and (row == start + TEXTS_PER_CALL or n_characters + n_more > CHARACTERS_PER_CALL):
            yield slice(start, row)
            start, n_characters = row, 0
        n_characters += n_more
    if first:
        yield slice(start, len(first))


def _first_windows(n_windows: dict[int, int], *, n_texts: int) -> npt.NDArray[np.int64]:
    """Return the first window of each text, and the number of all, from the numbers of windows that are not one."""
    counts = np.ones(n_texts, dtype=np.int64)
    counts[list(n_windows)] = list(n_windows.values())
    return np.concatenate([[0], np.cumsum(counts)])


def _filler(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that stands for a text without any, where the tokenizer adds no special tokens."""
    candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return next(int(token_id) for token_id in candidates if token_id is not None)
