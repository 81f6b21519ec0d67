"""What a tokenizer makes of texts, and what is kept of it: in one window, or in several."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
import transformers
from transformers import BatchEncoding, PreTrainedTokenizerBase

from bertclf._cuts import Excerpt, excerpt, is_very_long, n_different, windows_of_row
from bertclf._memory import key_of
from bertclf._process import lock_for
from bertclf._version import __version__

# Tokens that were cut, tokens that are repeated, windows.
COUNTS = struct.Struct("<QQI")

# A tokenizer is not thread-safe: each call sets truncation on the shared object.
TOKENIZING = "tokenizing"


@dataclass(frozen=True)
class Way:
    """How texts become tokens.

    Attributes
    ----------
    tokenizer : PreTrainedTokenizerBase
        Tokenizer of the checkpoint.
    max_length : int or None
        Most tokens of a window, special tokens included; None for no limit.
    long_text : {"truncate", "head_tail", "chunk"}
        What becomes of texts that are longer, see `BertSequenceClassifier`.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    long_text: str

    def key(self) -> bytes:
        """Return what stands for it, and for the libraries that do it."""
        versions = (__version__, tokenizers.__version__, transformers.__version__)
        backend = self.tokenizer.backend_tokenizer
        with lock_for(TOKENIZING):
            # What the last call asked for is told as well, but each call asks anew.
            backend.no_truncation()
            backend.no_padding()
            content = backend.to_str()
        return key_of(
            content, self.tokenizer.truncation_side, repr(self.max_length), self.long_text, COUNTS.format, *versions
        )


@dataclass(frozen=True)
class Encoding:
    """The tokens of one row that are kept, how many were cut, and how many stand there more than once.

    Of a row in several windows, all of them are of the same length and stand one after the other. What stands in each,
    such as the special tokens, and what neighbours have in common is repeated.
    """

    ids: list[int]
    segments: list[int]
    n_cut: int
    n_repeated: int = 0
    n_windows: int = 1

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads."""
        segments = bytes(self.segments or [0] * len(self.ids))
        counts = COUNTS.pack(self.n_cut, self.n_repeated, self.n_windows)
        return counts + np.array(self.ids, dtype="<i4").tobytes() + segments

    @classmethod
    def from_bytes(cls, content: bytes) -> "Encoding":
        """Return what `to_bytes` was called on.

        There are the counts, and of each token four bytes of id, then one of segment.
        """
        n_cut, n_repeated, n_windows = COUNTS.unpack_from(content)
        n_tokens = (len(content) - COUNTS.size) // 5
        ids = np.frombuffer(content, dtype="<i4", count=n_tokens, offset=COUNTS.size)
        return cls(ids.tolist(), list(content[COUNTS.size + 4 * n_tokens :]), n_cut, n_repeated, n_windows)


def encode(rows: list[tuple[str, ...]], way: Way) -> list[Encoding]:
    """Encode some rows whole, and keep of each what fits."""
    if not way.tokenizer.is_fast:
        return _encode_in_python(rows, way)
    side = way.tokenizer.truncation_side
    excerpts = {
        number: tuple(excerpt(text, way.max_length, long_text=way.long_text, side=side) for text in row)
        for number, row in enumerate(rows)
        if is_very_long(row)
    }
    read = [
        tuple(some.text for some in excerpts[number]) if number in excerpts else row for number, row in enumerate(rows)
    ]
    encodings = _encodings(way.tokenizer, read)
    for number, some in list(excerpts.items()):
        if not _proves_enough(encodings[number], some, way.max_length):
            del excerpts[number]
            (encodings[number],) = _encodings(way.tokenizer, [rows[number]])
    return [
        _cut(encoding, row, excerpts.get(number), way)
        for number, (row, encoding) in enumerate(zip(rows, encodings, strict=True))
    ]


def _encode_in_python(rows: list[tuple[str, ...]], way: Way) -> list[Encoding]:
    """Encode with a tokenizer written in Python, which truncates for itself and tells nothing of what it cut."""
    limit = way.max_length
    whole = _call(way.tokenizer, rows)
    if limit is not None and way.long_text == "truncate":
        kept = _call(way.tokenizer, rows, truncation=True, max_length=limit)
        columns = zip(kept["input_ids"], kept["token_type_ids"], whole["input_ids"], strict=True)
        return [Encoding(ids, segments, n_cut=len(uncut) - len(ids)) for ids, segments, uncut in columns]
    return [
        Encoding(ids, segments, n_cut=0) if limit is None or len(ids) <= limit else _rebuilt(row, way)
        for row, ids, segments in zip(rows, whole["input_ids"], whole["token_type_ids"], strict=True)
    ]


def _rebuilt(row: tuple[str, ...], way: Way) -> Encoding:
    """Encode the texts of a row alone, and put special tokens around what is kept of them, in each window."""
    tokenizer = way.tokenizer
    texts = [_call(tokenizer, [(text,)], add_special_tokens=False)["input_ids"][0] for text in row]
    n_special = tokenizer.num_special_tokens_to_add(len(row) == 2)
    windows = _windows(list(map(len, texts)), n_special=n_special, way=way)
    ids, segments = [], []
    for window in windows:
        parts = [[token for some in slices for token in text[some]] for text, slices in zip(texts, window, strict=True)]
        ids += tokenizer.build_inputs_with_special_tokens(*parts)
        segments += tokenizer.create_token_type_ids_from_sequences(*parts)
    return _encoding(ids, segments, windows, n_special=n_special, n_tokens=sum(map(len, texts)))


def _encodings(tokenizer: PreTrainedTokenizerBase, rows: list[tuple[str, ...]]) -> list[Any]:
    """Encode rows whole and return an `Encoding` of the library tokenizers for each."""
    return list(_call(tokenizer, rows).encodings or [])


def _call(tokenizer: PreTrainedTokenizerBase, rows: list[tuple[str, ...]], **settings: Any) -> BatchEncoding:
    with lock_for(TOKENIZING):
        encoded: BatchEncoding = tokenizer(
            *(list(column) for column in zip(*rows, strict=True)),
            split_special_tokens=True,
            return_token_type_ids=True,
            return_attention_mask=False,
            verbose=False,
            **settings,
        )
    return encoded


def _cut(encoding: Any, row: tuple[str, ...], excerpts: tuple[Excerpt, ...] | None, way: Way) -> Encoding:
    """Keep the special tokens of an encoding and as many tokens of its texts as fit beside them, in each window.

    Of a text of which an excerpt was read, the tokens outside are estimated in proportion to the characters.
    """
    if way.max_length is None or len(encoding) <= way.max_length:
        return Encoding(encoding.ids, encoding.type_ids, 0)
    parts = np.array([-1 if part is None else part for part in encoding.sequence_ids])
    special, *texts = (np.flatnonzero(parts == part) for part in range(-1, len(row)))
    windows = _windows(list(map(len, texts)), n_special=len(special), way=way)
    kept = np.concatenate([_positions(special, texts, window) for window in windows])
    n_tokens = [
        len(read) if some.seam is None else round(len(read) * len(text) / len(some.text))
        for read, text, some in zip(texts, row, excerpts or map(Excerpt, row), strict=True)
    ]
    ids, segments = (np.array(values)[kept].tolist() for values in (encoding.ids, encoding.type_ids))
    return _encoding(ids, segments, windows, n_special=len(special), n_tokens=sum(n_tokens))


def _encoding(
    ids: list[int], segments: list[int], windows: list[list[list[slice]]], *, n_special: int, n_tokens: int
) -> Encoding:
    """Return the encoding of a row whose texts have so many tokens."""
    n_kept = n_different(windows)
    return Encoding(
        ids,
        segments,
        n_cut=n_tokens - n_kept,
        n_repeated=len(ids) - n_special - n_kept,
        n_windows=len(windows),
    )


def _positions(
    special: npt.NDArray[np.int64], texts: list[npt.NDArray[np.int64]], window: list[list[slice]]
) -> npt.NDArray[np.int64]:
    """Return where a window has its tokens from in an encoding, given where special tokens and those of texts stand."""
    parts = [places[some] for places, slices in zip(texts, window, strict=True) for some in slices]
    return np.sort(np.concatenate([special, *parts]))


def _windows(lengths: list[int], *, n_special: int, way: Way) -> list[list[list[slice]]]:
    """Return which tokens of the texts of a row stand in each window, beside so many special tokens."""
    budget, side = (way.max_length or 0) - n_special, way.tokenizer.truncation_side
    return windows_of_row(lengths, budget, long_text=way.long_text, side=side)


def _proves_enough(encoding: Any, excerpts: tuple[Excerpt, ...], max_length: int | None) -> bool:
    """Tell whether the excerpts of a row hold so many tokens that reading on could change none that is kept.

    Twice the tokens that can be kept, at each end that was read, since those next to the seam may be others than in the
    whole text.
    """
    for part, some in enumerate(excerpts):
        if some.seam is not None:
            spans = zip(encoding.offsets, encoding.sequence_ids, strict=True)
            is_before = [begin < some.seam for (begin, _), part_of_token in spans if part_of_token == part]
            n_before, n_behind = sum(is_before), len(is_before) - sum(is_before)
            reads_beginning, reads_end = some.seam > 0, some.seam < len(some.text)
            enough = 2 * (max_length or 0)
            if (reads_beginning and n_before < enough) or (reads_end and n_behind < enough):
                return False
    return True
