"""Texts turned into a ragged store of token ids: flat, never padded."""

import threading
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

TEXTS_PER_CALL = 1024
MIN_WINDOW = 32_768
CHARACTERS_PER_TOKEN = 64

# A tokenizer is not thread-safe: each call sets truncation on the shared object.
_TOKENIZING = threading.Lock()


@dataclass(frozen=True)
class TokenStore:
    """The token ids of many texts, one after the other.

    Attributes
    ----------
    ids : ndarray of uint16 or int32, shape (n_tokens,)
        Token ids, special tokens included.
    offsets : ndarray of int64, shape (n_texts + 1,)
        Text `i` is `ids[offsets[i]:offsets[i + 1]]`.
    segments : ndarray of uint8, shape (n_tokens,), or None
        Segment id of each token, None if the network takes none or all are zero.
    cut : dict of int to int
        Number of tokens that truncation cut, for each text that it cut.
    """

    ids: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    segments: npt.NDArray[np.uint8] | None
    cut: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text."""
        return np.diff(self.offsets)


def tokenize(
    first: list[str],
    second: list[str] | None,
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    with_segments: bool,
) -> TokenStore:
    """Encode texts, or pairs of texts, with their special tokens.

    Parameters
    ----------
    first, second : list of str
        The texts; `second` is None for single texts.
    tokenizer : PreTrainedTokenizerBase
        Tokenizer of the checkpoint.
    max_length : int or None
        Longest encoding in tokens, special tokens included; None for no limit.
    with_segments : bool
        Whether to keep the segment ids.

    Returns
    -------
    TokenStore
        Ids take two bytes a token where the vocabulary allows it, else four.
    """
    ids = array("H" if len(tokenizer) <= 1 << 16 else "i")
    segments = array("B")
    offsets = array("q", [0])
    cut: dict[int, int] = {}
    for start in range(0, len(first), TEXTS_PER_CALL):
        chunk = slice(start, start + TEXTS_PER_CALL)
        pairs = None if second is None else second[chunk]
        for encoding in _encode(first[chunk], pairs, tokenizer=tokenizer, max_length=max_length):
            if encoding.n_cut:
                cut[len(offsets) - 1] = encoding.n_cut
            ids.extend(encoding.ids)
            offsets.append(len(ids))
            if with_segments:
                segments.extend(encoding.segments)
    flat_segments = np.frombuffer(segments, dtype=np.uint8)
    return TokenStore(
        ids=np.frombuffer(ids, dtype=np.uint16 if ids.typecode == "H" else np.int32),
        offsets=np.frombuffer(offsets, dtype=np.int64),
        segments=flat_segments if flat_segments.any() else None,
        cut=cut,
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


def truncation_report(cut: dict[int, int], targets: npt.NDArray[np.int64], classes: npt.NDArray[Any]) -> dict[str, Any]:
    """Count the texts and the tokens that truncation cut, in all and per class.

    Returns
    -------
    dict
        `texts` and `tokens` are counts; `per_class` maps each class to a dict with the same two keys.
    """
    rows = np.fromiter(cut.keys(), dtype=np.int64, count=len(cut))
    tokens = np.fromiter(cut.values(), dtype=np.int64, count=len(cut))
    texts_by_class = np.bincount(targets[rows], minlength=len(classes))
    tokens_by_class = np.zeros(len(classes), dtype=np.int64)
    np.add.at(tokens_by_class, targets[rows], tokens)
    per_class = {
        label: {"texts": n_texts, "tokens": n_tokens}
        for label, n_texts, n_tokens in zip(
            classes.tolist(), texts_by_class.tolist(), tokens_by_class.tolist(), strict=True
        )
    }
    return {"texts": len(cut), "tokens": int(tokens.sum()), "per_class": per_class}


@dataclass(frozen=True)
class _Encoding:
    ids: list[int]
    segments: list[int]
    n_cut: int


def _encode(
    first: list[str], second: list[str] | None, *, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> list[_Encoding]:
    """Encode some texts: whole to count their tokens, and once more, truncated, those that are too long."""
    windows = first if max_length is None or second is not None else [_window(text, max_length) for text in first]
    with _TOKENIZING:
        whole = _call(tokenizer, windows, second, max_length=None)
        lengths = [len(ids) for ids in whole["input_ids"]]
        # A window that turned out to hold too few tokens proves nothing about the text: encode all of it.
        short = [
            row
            for row, (window, text) in enumerate(zip(windows, first, strict=True))
            if len(window) < len(text) and max_length is not None and lengths[row] <= max_length
        ]
        if short:
            windows = list(windows)
            for row in short:
                windows[row] = first[row]
            _replace(whole, short, _call(tokenizer, [first[row] for row in short], None, max_length=None))
            lengths = [len(ids) for ids in whole["input_ids"]]
        long = [row for row, length in enumerate(lengths) if max_length is not None and length > max_length]
        if long:
            seconds = None if second is None else [second[row] for row in long]
            _replace(whole, long, _call(tokenizer, [windows[row] for row in long], seconds, max_length=max_length))
    unread = [len(text) / max(len(window), 1) for window, text in zip(windows, first, strict=True)]
    return [
        _Encoding(ids or [_filler(tokenizer)], segments or [0], max(round(length * scale) - len(ids), 0))
        for ids, segments, length, scale in zip(
            whole["input_ids"], whole["token_type_ids"], lengths, unread, strict=True
        )
    ]


def _call(
    tokenizer: PreTrainedTokenizerBase, first: list[str], second: list[str] | None, *, max_length: int | None
) -> dict[str, list[list[int]]]:
    encoded = tokenizer(
        first,
        second,
        truncation=max_length is not None,
        max_length=max_length,
        split_special_tokens=True,
        return_token_type_ids=True,
        return_attention_mask=False,
        verbose=False,
    )
    return {name: list(encoded[name]) for name in ("input_ids", "token_type_ids")}


def _replace(encoded: dict[str, list[list[int]]], rows: list[int], replacement: dict[str, list[list[int]]]) -> None:
    for name, lists in replacement.items():
        for row, values in zip(rows, lists, strict=True):
            encoded[name][row] = values


def _window(text: str, max_length: int) -> str:
    """Cut a very long text before a space: what stands behind can't change the tokens of the words before it."""
    n_characters = max(MIN_WINDOW, CHARACTERS_PER_TOKEN * max_length)
    if len(text) <= n_characters:
        return text
    end = text.rfind(" ", 0, n_characters)
    return text[:end] if end > 0 else text


def _filler(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that stands for a text without any, where the tokenizer adds no special tokens."""
    candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return next(int(token_id) for token_id in candidates if token_id is not None)
