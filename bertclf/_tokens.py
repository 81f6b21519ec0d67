"""Texts turned into a ragged store of token ids: flat, never padded."""

import warnings
from array import array
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
import transformers
from transformers import BatchEncoding, PreTrainedTokenizerBase

from bertclf._memory import TextMemory, key_of
from bertclf._process import lock_for
from bertclf._version import __version__

# Share of the tokens of which a user would want to know that they are cut.
MUCH_CUT = 0.01

TEXTS_PER_CALL = 1024
MIN_WINDOW = 32_768
CHARACTERS_PER_TOKEN = 64

# A tokenizer is not thread-safe: each call sets truncation on the shared object.
TOKENIZING = "tokenizing"


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
    keys : list of bytes or None
        What stands for each text and the way in which it was tokenized; None if nothing is kept in a memory.
    """

    ids: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    segments: npt.NDArray[np.uint8] | None
    cut: dict[int, int] = field(default_factory=dict)
    keys: list[bytes] | None = None

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.offsets) - 1

    @cached_property
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
    memory: TextMemory | None = None,
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
    memory : TextMemory or None, default=None
        Where tokens are looked up before they are made, and kept; None makes them all.

    Returns
    -------
    TokenStore
        Ids take two bytes a token where the vocabulary allows it, else four.
    """
    ids = array("H" if len(tokenizer) <= 1 << 16 else "i")
    segments = array("B")
    offsets = array("q", [0])
    cut: dict[int, int] = {}
    # A tokenizer written in Python doesn't tell all that it does, and so can't be recognised.
    remembered = None if memory is None or not tokenizer.is_fast else _Remembered(memory, tokenizer, max_length)
    for start in range(0, len(first), TEXTS_PER_CALL):
        chunk = slice(start, start + TEXTS_PER_CALL)
        rows = list(zip(first[chunk]) if second is None else zip(first[chunk], second[chunk], strict=True))
        encodings = _encode(rows, tokenizer, max_length) if remembered is None else remembered.encode(rows)
        for encoding in encodings:
            if encoding.n_cut:
                cut[len(offsets) - 1] = encoding.n_cut
            ids.extend(encoding.ids or [_filler(tokenizer)])
            offsets.append(len(ids))
            if with_segments:
                segments.extend(encoding.segments or [0])
    flat_segments = np.frombuffer(segments, dtype=np.uint8)
    return TokenStore(
        ids=np.frombuffer(ids, dtype=np.uint16 if ids.typecode == "H" else np.int32),
        offsets=np.frombuffer(offsets, dtype=np.int64),
        segments=flat_segments if flat_segments.any() else None,
        cut=cut,
        keys=None if remembered is None else remembered.keys,
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


def warn_if_much_is_cut(store: TokenStore, *, max_length: int | None) -> None:
    """Warn if truncation cut more than a hundredth of the tokens of the texts of a store to `max_length` of them."""
    n_cut = sum(store.cut.values())
    share = n_cut / (n_cut + len(store.ids))
    if share > MUCH_CUT:
        warnings.warn(
            f"{share:.0%} of the tokens of X are cut: {n_cut:,} of {len(store.cut):,} texts that are "
            f"longer than {max_length} tokens. Raise max_length if the checkpoint takes more, or take one for longer "
            "texts; truncation_ tells what each class loses.",
            UserWarning,
            stacklevel=2,
        )


@dataclass(frozen=True)
class _Encoding:
    """The tokens of one row that are kept, and how many were cut."""

    ids: list[int]
    segments: list[int]
    n_cut: int

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads."""
        segments = bytes(self.segments or [0] * len(self.ids))
        return self.n_cut.to_bytes(8, "little") + np.array(self.ids, dtype="<i4").tobytes() + segments

    @classmethod
    def from_bytes(cls, content: bytes) -> "_Encoding":
        """Return what `to_bytes` was called on: of each token four bytes of id, then one of segment."""
        n_tokens = (len(content) - 8) // 5
        ids = np.frombuffer(content, dtype="<i4", count=n_tokens, offset=8)
        return cls(ids.tolist(), list(content[8 + 4 * n_tokens :]), int.from_bytes(content[:8], "little"))


class _Remembered:
    """Tokens by content, tokenizer and length, in a memory."""

    def __init__(self, memory: TextMemory, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
        self.keys: list[bytes] = []
        self._memory = memory
        self._tokenizer = tokenizer
        self._max_length = max_length
        versions = (__version__, tokenizers.__version__, transformers.__version__)
        with lock_for(TOKENIZING):
            # What the last call asked for is told as well, but each call asks anew.
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
            content = tokenizer.backend_tokenizer.to_str()
        self._way = key_of(content, tokenizer.truncation_side, repr(max_length), *versions)

    def encode(self, rows: list[tuple[str, ...]]) -> list[_Encoding]:
        """Return the tokens of some rows, and make those that are missing."""
        keys = [key_of(self._way, *row) for row in rows]
        self.keys += keys

        def make(positions: list[int]) -> list[bytes]:
            """Encode what is missing."""
            encodings = _encode([rows[position] for position in positions], self._tokenizer, self._max_length)
            return [encoding.to_bytes() for encoding in encodings]

        return [_Encoding.from_bytes(content) for content in self._memory.get_or_make(keys, make)]


def _encode(rows: list[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[_Encoding]:
    """Encode some rows whole, and keep of each what fits."""
    if not tokenizer.is_fast:
        return _encode_in_python(rows, tokenizer, max_length)
    side = tokenizer.truncation_side
    windows = [tuple(_window(text, max_length, side) for text in row) for row in rows]
    kept = []
    for row, window, encoding in zip(rows, windows, _encodings(tokenizer, windows), strict=True):
        if window != row and not _proves_enough(encoding, row, window, max_length):
            window, encoding = row, _encodings(tokenizer, [row])[0]
        kept.append(_truncated(encoding, row, window, max_length, side))
    return kept


def _encode_in_python(
    rows: list[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> list[_Encoding]:
    """Encode with a tokenizer written in Python, which truncates for itself and tells nothing of what it cut."""
    whole = _call(tokenizer, rows)
    kept = whole if max_length is None else _call(tokenizer, rows, truncation=True, max_length=max_length)
    return [
        _Encoding(ids, segments, len(uncut) - len(ids))
        for ids, segments, uncut in zip(kept["input_ids"], kept["token_type_ids"], whole["input_ids"], strict=True)
    ]


def _encodings(tokenizer: PreTrainedTokenizerBase, rows: list[tuple[str, ...]]) -> list[Any]:
    """Encode rows whole and return an `Encoding` of the library tokenizers for each."""
    return list(_call(tokenizer, rows).encodings or [])


def _call(tokenizer: PreTrainedTokenizerBase, rows: list[tuple[str, ...]], **truncation: Any) -> BatchEncoding:
    with lock_for(TOKENIZING):
        encoded: BatchEncoding = tokenizer(
            *(list(column) for column in zip(*rows, strict=True)),
            split_special_tokens=True,
            return_token_type_ids=True,
            return_attention_mask=False,
            verbose=False,
            **truncation,
        )
    return encoded


def _truncated(
    encoding: Any, row: tuple[str, ...], window: tuple[str, ...], max_length: int | None, side: str
) -> _Encoding:
    """Keep the special tokens of an encoding and as many tokens of its texts as fit beside them.

    Of a text that was read through a window, the tokens outside are estimated in proportion to the characters.
    """
    if max_length is None or len(encoding.ids) <= max_length:
        return _Encoding(encoding.ids, encoding.type_ids, 0)
    parts = encoding.sequence_ids
    read = [parts.count(part) for part in range(len(row))]
    kept = _longest_first(read, max_length - parts.count(None))
    start = [0 if side == "right" else n_read - n_kept for n_read, n_kept in zip(read, kept, strict=True)]
    position_in_part = [0] * len(row)
    positions = []
    for position, part in enumerate(parts):
        if part is None:
            positions.append(position)
        else:
            if start[part] <= position_in_part[part] < start[part] + kept[part]:
                positions.append(position)
            position_in_part[part] += 1
    in_all = [
        n_read if text is seen else round(n_read * len(text) / len(seen))
        for n_read, text, seen in zip(read, row, window, strict=True)
    ]
    ids, segments = encoding.ids, encoding.type_ids
    return _Encoding([ids[i] for i in positions], [segments[i] for i in positions], sum(in_all) - sum(kept))


def _longest_first(lengths: list[int], budget: int) -> list[int]:
    """Return how many tokens of each text of a row are kept: the longer text of a pair is cut first.

    The rule, with the odd token to the longer text, is that of `longest_first` in the library tokenizers.
    """
    if len(lengths) == 1:
        return [min(lengths[0], budget)]
    shorter, longer = (0, 1) if lengths[0] <= lengths[1] else (1, 0)
    kept = [0, 0]
    kept[shorter] = min(lengths[shorter], budget // 2)
    kept[longer] = min(lengths[longer], budget - kept[shorter])
    return kept


def _window(text: str, max_length: int | None, side: str) -> str:
    """Cut a very long text at a space: what stands beyond can't change the tokens of the words before it.

    `side` is that on which truncation cuts: "right" keeps the beginning of a text, "left" its end.
    """
    if max_length is None:
        return text
    n_characters = max(MIN_WINDOW, CHARACTERS_PER_TOKEN * max_length)
    if len(text) <= n_characters:
        return text
    if side == "left":
        start = min((found for mark in " \n\t" if (found := text.find(mark, len(text) - n_characters)) >= 0), default=0)
        return text[start:] if start else text
    end = max(text.rfind(mark, 0, n_characters) for mark in " \n\t")
    return text[:end] if end > 0 else text


def _proves_enough(encoding: Any, row: tuple[str, ...], window: tuple[str, ...], max_length: int | None) -> bool:
    """Tell whether the windows of a row hold so many tokens that reading on could change none that is kept.

    Twice the tokens that can be kept, since the last ones before the cut may be others than in the whole text.
    """
    parts = encoding.sequence_ids
    cut = [part for part, (text, seen) in enumerate(zip(row, window, strict=True)) if text is not seen]
    return all(parts.count(part) >= 2 * (max_length or 0) for part in cut)


def _filler(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that stands for a text without any, where the tokenizer adds no special tokens."""
    candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return next(int(token_id) for token_id in candidates if token_id is not None)
