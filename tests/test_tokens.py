"""Texts to a ragged store of tokens."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import WORDS
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import POSITIONS, TOKENIZERS

from bertclf import _cuts
from bertclf._checkpoint import load_checkpoint
from bertclf._encoding import Way
from bertclf._tokens import TokenStore, resolve_max_length, tokenize, truncation_report, warn_if_much_is_cut

Tokenizer = transformers.PreTrainedTokenizerBase
CPU = torch.device("cpu")

# One of each kind: word pieces, byte-level pairs, and two unigram models with different normalizers.
KINDS = ["bert", "gpt2", "xlm-roberta", "deberta-v2"]
TEXTS = ["a fine film", "", "dull", "naïve 漢字 😀 e\u0301", " \t\n", "long " * 25, "This isn't A joy, was it?"]
OTHERS = ["very good", "it was", "", "  spaces  ", "waste " * 25, "long " * 25, "!"]

snippets = st.sampled_from(
    [
        *WORDS,
        *" \n\t\u00a0\u3000\u200d\u0301\u2581\u0120\x00",
        "  ",
        "    ",
        "'s",
        " 've",
        "漢字",
        "é",
        "e\u0301",
        "😀",
    ]
)
texts_of_snippets = st.lists(snippets, max_size=40).map("".join)
texts_of_words = st.lists(st.sampled_from(WORDS) | snippets, max_size=20).map(" ".join)
parts_of_pairs = st.lists(snippets, max_size=12).map("".join)


@pytest.fixture(scope="module")
def tokenizers(checkpoints: Callable[[str], Path]) -> Callable[[str], Tokenizer]:
    """A function from the name of an architecture to its tokenizer, loaded as `fit` loads it."""
    loaded: dict[str, Tokenizer] = {}

    def tokenizer_of(name: str) -> Tokenizer:
        if name not in loaded:
            checkpoint = load_checkpoint(
                checkpoints(name),
                revision=None,
                labels=["a", "b"],
                multilabel=False,
                pooling="auto",
                dropout=None,
                verbose=False,
            )
            loaded[name] = checkpoint.tokenizer
        return loaded[name]

    return tokenizer_of


@pytest.fixture
def bert(tokenizers: Callable[[str], Tokenizer]) -> Tokenizer:
    return tokenizers("bert")


def own_output(
    tokenizer: Tokenizer, first: list[str], second: list[str] | None, max_length: int | None, name: str = "input_ids"
) -> list[list[int]]:
    """Return what the tokenizer says by itself."""
    encoded = tokenizer(
        first,
        second,
        truncation=max_length is not None,
        max_length=max_length,
        split_special_tokens=True,
        return_token_type_ids=True,
        verbose=False,
    )
    return [list(values) for values in encoded[name]]


def ragged(values: np.ndarray, store: TokenStore) -> list[list[int]]:
    return [values[start:end].tolist() for start, end in zip(store.offsets[:-1], store.offsets[1:], strict=True)]


def encode(
    tokenizer: Tokenizer, first: list[str], second: list[str] | None = None, max_length: int | None = None
) -> TokenStore:
    return tokenize(first, second, way=Way(tokenizer, max_length, "truncate"), with_segments=True)


def with_filler(tokenizer: Tokenizer, rows: list[list[int]]) -> list[list[int]]:
    """Return the rows, with the one token that stands for a text without any."""
    fillers = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return [row or [next(token for token in fillers if token is not None)] for row in rows]


# Texts to a ragged store


@pytest.mark.parametrize("max_length", [None, 5, 12, 64])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_single_texts_are_encoded_as_the_tokenizer_does(
    tokenizers: Callable[[str], Tokenizer], name: str, max_length: int | None
) -> None:
    store = encode(tokenizers(name), TEXTS, max_length=max_length)
    expected = own_output(tokenizers(name), TEXTS, None, max_length)

    assert ragged(store.ids, store) == with_filler(tokenizers(name), expected)
    assert store.segments is None
    assert len(store) == len(TEXTS)
    assert store.lengths.tolist() == [max(len(ids), 1) for ids in expected]


@pytest.mark.parametrize("max_length", [None, 6, 13, 64])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_pairs_are_encoded_as_the_tokenizer_does(
    tokenizers: Callable[[str], Tokenizer], name: str, max_length: int | None
) -> None:
    store = encode(tokenizers(name), TEXTS, OTHERS, max_length)

    assert ragged(store.ids, store) == own_output(tokenizers(name), TEXTS, OTHERS, max_length)
    segments = own_output(tokenizers(name), TEXTS, OTHERS, max_length, "token_type_ids")
    if any(map(any, segments)):
        assert store.segments is not None
        assert ragged(store.segments, store) == segments
    else:
        assert store.segments is None


def test_the_second_text_of_a_pair_is_the_second_segment(bert: Tokenizer) -> None:
    store = encode(bert, ["a fine film"], ["dull"])

    assert store.segments is not None
    assert store.segments.dtype == np.uint8
    assert store.segments.tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_segments_are_left_out_where_nobody_asks_for_them(bert: Tokenizer) -> None:
    store = tokenize(["a fine film"], ["dull"], way=Way(bert, None, "truncate"), with_segments=False)

    assert store.segments is None


@pytest.mark.parametrize(("size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.int32)])
def test_ids_take_two_bytes_where_the_vocabulary_allows(size: int, dtype: type) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *(f"w{number}" for number in range(size - len(special)))]
    tokenizer = transformers.BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    store = encode(tokenizer, [words[-1], words[5]])

    assert len(tokenizer) == size
    assert store.ids.dtype == dtype
    assert ragged(store.ids, store) == [[2, size - 1, 3], [2, 5, 3]]


@pytest.mark.parametrize("name", KINDS)
@settings(deadline=None, max_examples=40)
@given(texts=st.lists(texts_of_snippets, min_size=1, max_size=8), max_length=st.none() | st.integers(3, 30))
def test_every_single_text_is_encoded_as_the_tokenizer_does(
    tokenizers: Callable[[str], Tokenizer], name: str, texts: list[str], max_length: int | None
) -> None:
    tokenizer = tokenizers(name)
    store = encode(tokenizer, texts, max_length=max_length)
    expected = own_output(tokenizer, texts, None, max_length)
    whole = own_output(tokenizer, texts, None, None)

    assert ragged(store.ids, store) == with_filler(tokenizer, expected)
    assert store.cut == {
        row: len(ids) - len(kept)
        for row, (ids, kept) in enumerate(zip(whole, expected, strict=True))
        if len(ids) > len(kept)
    }


@pytest.mark.parametrize("name", KINDS)
@settings(deadline=None, max_examples=40)
@given(
    pairs=st.lists(st.tuples(parts_of_pairs, parts_of_pairs), min_size=1, max_size=8),
    max_length=st.none() | st.integers(6, 30),
)
def test_every_pair_is_encoded_as_the_tokenizer_does(
    tokenizers: Callable[[str], Tokenizer], name: str, pairs: list[tuple[str, str]], max_length: int | None
) -> None:
    tokenizer = tokenizers(name)
    first, second = map(list, zip(*pairs, strict=True))
    store = encode(tokenizer, first, second, max_length)
    expected = own_output(tokenizer, first, second, max_length)
    whole = own_output(tokenizer, first, second, None)

    assert ragged(store.ids, store) == with_filler(tokenizer, expected)
    assert sum(store.cut.values()) == sum(map(len, whole)) - sum(map(len, expected))


def test_texts_stay_in_order_over_many_calls_of_the_tokenizer(bert: Tokenizer) -> None:
    texts = [" ".join(["film"] * (row % 7)) for row in range(2500)]
    store = encode(bert, texts, max_length=6)

    assert store.lengths.tolist() == [min(row % 7 + 2, 6) for row in range(2500)]
    assert store.cut == {row: row % 7 - 4 for row in range(2500) if row % 7 > 4}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["", " ", "\n\t "], ids=["nothing", "space", "white space"])
def test_an_empty_text_has_at_least_one_token(tokenizers: Callable[[str], Tokenizer], name: str, text: str) -> None:
    store = encode(tokenizers(name), ["a film", text, "dull"])

    assert store.lengths[1] >= 1
    assert store.cut == {}
    assert max(store.ids) < len(tokenizers(name))


def test_a_text_without_tokens_is_the_begin_of_text_token(tokenizers: Callable[[str], Tokenizer]) -> None:
    tokenizer = tokenizers("gpt2")
    store = encode(tokenizer, ["", "a"], max_length=1)

    assert ragged(store.ids, store) == [[tokenizer.bos_token_id], tokenizer("a")["input_ids"]]


@pytest.mark.parametrize("with_pairs", [False, True], ids=["single", "pair"])
@pytest.mark.parametrize("max_length", [None, 20], ids=["whole", "truncated"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_names_of_control_tokens_in_a_text_stay_plain_text(
    tokenizers: Callable[[str], Tokenizer], name: str, max_length: int | None, with_pairs: bool
) -> None:
    tokenizer = tokenizers(name)
    roles = ("bos_token", "eos_token", "cls_token", "sep_token", "pad_token", "mask_token")
    names = sorted({getattr(tokenizer, role) for role in roles} - {None}) * 5
    control = set(tokenizer.convert_tokens_to_ids(names))
    literal = "a " + " film ".join(names) + " plot"
    plain = "a " + " film ".join(["dull"] * len(names)) + " plot"

    def n_control(text: str) -> int:
        store = encode(tokenizer, [text], ["good"] if with_pairs else None, max_length)
        return sum(token in control for token in store.ids.tolist())

    assert names
    assert n_control(literal) == n_control(plain)


def test_the_literal_separator_is_spelt_out(bert: Tokenizer) -> None:
    store = encode(bert, ["a [SEP] b"])

    assert bert.convert_ids_to_tokens(store.ids.tolist()) == (
        ["[CLS]", "a", "[UNK]", "s", "##e", "##p", "[UNK]", "b", "[SEP]"]
    )


# Truncation


def test_texts_that_fit_are_not_cut(bert: Tokenizer) -> None:
    store = encode(bert, ["a fine film", "dull"], max_length=5)

    assert store.cut == {}
    assert store.lengths.tolist() == [5, 3]


def test_cut_counts_the_tokens_that_truncation_took(bert: Tokenizer) -> None:
    store = encode(bert, ["dull", "film " * 10, "a fine film", "film " * 5], max_length=5)

    assert store.cut == {1: 7, 3: 2}
    assert store.lengths.tolist() == [3, 5, 5, 5]


@pytest.mark.parametrize(("first", "second"), [("", "film " * 10), ("film " * 10, "")])
def test_cut_counts_the_one_text_of_a_pair_that_is_not_empty(bert: Tokenizer, first: str, second: str) -> None:
    store = encode(bert, [first], [second], max_length=8)

    assert store.lengths.tolist() == [8]
    assert store.cut == {0: 5}


def test_cut_counts_both_texts_of_a_pair(bert: Tokenizer) -> None:
    store = encode(bert, ["film " * 10, "dull"], ["plot " * 8, "dull"], max_length=11)

    assert store.cut == {0: 10}
    assert store.lengths.tolist() == [11, 5]


@pytest.mark.parametrize("name", KINDS)
def test_texts_are_cut_on_the_side_that_the_tokenizer_says(
    tokenizers: Callable[[str], Tokenizer], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizers(name), "truncation_side", "left")
    texts = ["best " + "film " * 20 + "worst", "best " + "film " * 10_000 + "worst"]
    store = encode(tokenizers(name), texts, max_length=10)

    assert ragged(store.ids, store) == own_output(tokenizers(name), texts, None, 10)


def test_truncation_report_counts_texts_and_tokens_in_all_and_per_class() -> None:
    report = truncation_report({0: 7, 2: 1, 3: 2}, np.array([1, 0, 1, 0, 2]), np.array(["good", "bad", "mixed"]))

    assert report == {
        "texts": 3,
        "tokens": 10,
        "per_class": {
            "good": {"texts": 1, "tokens": 2},
            "bad": {"texts": 2, "tokens": 8},
            "mixed": {"texts": 0, "tokens": 0},
        },
    }


def test_truncation_report_of_nothing_cut_is_all_zero() -> None:
    report = truncation_report({}, np.array([1, 0]), np.array([False, True]))

    assert report == {
        "texts": 0,
        "tokens": 0,
        "per_class": {False: {"texts": 0, "tokens": 0}, True: {"texts": 0, "tokens": 0}},
    }


def test_truncation_report_holds_plain_python_alone() -> None:
    report = truncation_report({0: 7}, np.array([0, 1]), np.array([3, 5], dtype=np.int8))

    assert {type(value) for value in (report["texts"], report["tokens"], *report["per_class"])} == {int}
    assert {type(count) for counts in report["per_class"].values() for count in counts.values()} == {int}


# The excerpt of characters


@pytest.mark.parametrize("name", KINDS)
@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(texts_of_words | texts_of_snippets, min_size=1, max_size=8),
    max_length=st.integers(3, 12),
)
def test_an_excerpt_of_any_size_changes_no_token(
    tokenizers: Callable[[str], Tokenizer], name: str, texts: list[str], max_length: int
) -> None:
    tokenizer = tokenizers(name)
    expected = own_output(tokenizer, texts, None, max_length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cuts, "MIN_EXCERPT", 24)
        patch.setattr(_cuts, "CHARACTERS_PER_TOKEN", 1)
        store = encode(tokenizer, texts, max_length=max_length)

    assert ragged(store.ids, store) == with_filler(tokenizer, expected)


VERY_LONG = {
    "words": "a fine film was not dull , " * 1500,
    "accented words": "naïve e\u0301te\u0301 joy " * 2500,
    "emoji": "😀 a 👩\u200d👩\u200d👧 " * 4000,
    "two spaces": "best  story\n " * 3000,
    "one word in a sea of spaces": " " * 40_000 + "film",
    "words behind a sea of spaces": " " * 40_000 + "a fine film " * 10,
    "a word across the edge": " " * (_cuts.MIN_EXCERPT - 303) + "good " * 60 + "film " * 20,
    "a long word behind a space": "a " + "b" * 40_000,
    "a space behind a long word": "b" * 32_767 + " " + "film " * 100,
    "no space": "abcdefghij" * 4000,
    "lines": "a fine\nfilm\n" * 3500,
    "marks": "a" + "\u0301" * 40_000,
}


@pytest.mark.parametrize("text", VERY_LONG.values(), ids=VERY_LONG)
@pytest.mark.parametrize("name", KINDS)
def test_the_excerpt_of_a_very_long_text_changes_no_token(
    tokenizers: Callable[[str], Tokenizer], name: str, text: str
) -> None:
    tokenizer = tokenizers(name)
    texts = ["a film", text, "dull"]
    store = encode(tokenizer, texts, max_length=POSITIONS)

    assert len(text) > _cuts.MIN_EXCERPT
    assert ragged(store.ids, store) == with_filler(tokenizer, own_output(tokenizer, texts, None, POSITIONS))


@pytest.mark.parametrize("name", KINDS)
def test_a_very_long_text_without_a_limit_is_read_whole(tokenizers: Callable[[str], Tokenizer], name: str) -> None:
    text = "a fine film was not dull , " * 1500
    store = encode(tokenizers(name), [text])

    assert ragged(store.ids, store) == own_output(tokenizers(name), [text], None, None)
    assert store.cut == {}


def test_a_very_long_pair_is_encoded_as_the_tokenizer_does(bert: Tokenizer) -> None:
    first, second = ["film " * 8000], ["plot " * 9000]
    store = encode(bert, first, second, 512)

    assert ragged(store.ids, store) == own_output(bert, first, second, 512)
    assert store.cut == {0: 17_003 - 512}


@pytest.fixture
def characters_read(bert: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of each text that the tokenizer of BERT is given from now on."""
    read: list[int] = []
    call = type(bert).__call__

    def recording(tokenizer: Tokenizer, *texts: list[str] | None, **settings: Any) -> Any:
        read.extend(len(text) for column in texts for text in column or [])
        return call(tokenizer, *texts, **settings)

    monkeypatch.setattr(type(bert), "__call__", recording)
    return read


def test_most_of_a_very_long_text_is_never_read(bert: Tokenizer, characters_read: list[int]) -> None:
    encode(bert, ["film " * 200_000], max_length=POSITIONS)

    assert 0 < sum(characters_read) <= 2 * _cuts.MIN_EXCERPT


def test_no_text_of_a_very_long_pair_is_read_beyond_the_excerpt(bert: Tokenizer, characters_read: list[int]) -> None:
    encode(bert, ["film " * 8000], ["plot " * 8000], max_length=512)

    assert 0 < max(characters_read) <= _cuts.MIN_EXCERPT


@pytest.mark.parametrize("name", KINDS)
def test_tokens_that_were_never_read_are_estimated_from_the_characters(
    tokenizers: Callable[[str], Tokenizer], name: str
) -> None:
    text = "a fine film was not dull , " * 8000
    exact = len(own_output(tokenizers(name), [text], None, None)[0])
    store = encode(tokenizers(name), [text], max_length=POSITIONS)

    assert store.cut == {0: pytest.approx(exact - POSITIONS, rel=1e-3)}


def test_the_cut_of_a_text_that_was_read_whole_is_exact(bert: Tokenizer) -> None:
    texts = ["film " * 6000, " " * 40_000 + "film " * 100]
    store = encode(bert, texts, max_length=POSITIONS)

    assert store.cut == {0: 6002 - POSITIONS, 1: 102 - POSITIONS}


MEGABYTES = {
    "words": "a fine film was not dull " * 42_000,
    "no space": "abcdefghij" * 105_000,
    "combining marks": "a" + "\u0301" * 525_000,
}


@pytest.mark.parametrize("text", MEGABYTES.values(), ids=MEGABYTES)
@pytest.mark.parametrize("name", ["bert", "gpt2", "xlm-roberta"])
def test_a_megabyte_of_any_kind_has_the_tokens_of_its_beginning(
    tokenizers: Callable[[str], Tokenizer], name: str, text: str
) -> None:
    assert len(text.encode()) > 1_000_000
    store = encode(tokenizers(name), [text], max_length=POSITIONS)

    assert ragged(store.ids, store) == own_output(tokenizers(name), [text[:4000]], None, POSITIONS)


# The longest input


@pytest.mark.parametrize(
    ("max_length", "limit", "expected"),
    [(None, 64, 64), (None, None, None), (64, 64, 64), (3, 64, 3), (999, None, 999)],
)
def test_the_longest_input_is_what_was_asked_for_or_the_limit(
    bert: Tokenizer, max_length: int | None, limit: int | None, expected: int | None
) -> None:
    assert resolve_max_length(max_length, limit, bert, pairs=False) == expected


def test_more_than_the_limit_is_refused_with_the_limit(bert: Tokenizer) -> None:
    pattern = "max_length=65 .* limit is 64 tokens.* Lower max_length, or pass None"
    with pytest.raises(ValueError, match=pattern):
        resolve_max_length(65, 64, bert, pairs=False)


@pytest.mark.parametrize(("pairs", "n_special", "shortest"), [(False, 2, 3), (True, 3, 5)], ids=["single", "pair"])
def test_no_room_for_a_token_of_each_text_is_refused_with_the_least_that_works(
    bert: Tokenizer, pairs: bool, n_special: int, shortest: int
) -> None:
    pattern = f"max_length={shortest - 1} leaves no token.*{n_special} special tokens.*Pass at least {shortest}"
    with pytest.raises(ValueError, match=pattern):
        resolve_max_length(shortest - 1, 64, bert, pairs=pairs)

    assert resolve_max_length(shortest, 64, bert, pairs=pairs) == shortest


def test_a_tokenizer_without_special_tokens_takes_one_token(tokenizers: Callable[[str], Tokenizer]) -> None:
    assert resolve_max_length(1, 64, tokenizers("gpt2"), pairs=False) == 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_shortest_pair_keeps_a_token_of_each_text(tokenizers: Callable[[str], Tokenizer], name: str) -> None:
    tokenizer = tokenizers(name)
    shortest = tokenizer.num_special_tokens_to_add(pair=True) + 2
    store = encode(tokenizer, ["a film"], ["was dull"], resolve_max_length(shortest, 64, tokenizer, pairs=True))

    assert store.lengths.tolist() == [shortest]


@pytest.mark.parametrize(("n_cut", "is_much"), [(0, False), (1, False), (2, True)])
def test_more_than_a_hundredth_that_is_cut_is_told(bert, n_cut: int, is_much: bool) -> None:
    store = TokenStore(np.zeros(100, dtype=np.int32), np.array([0, 60, 100]), None, cut={0: n_cut} if n_cut else {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_much_is_cut(store, Way(bert, 60, "truncate"))
    assert [str(warning.message)[:30] for warning in caught] == ["2% of the tokens of X are cut:"] * is_much
    assert all("longer than 60 tokens. Raise max_length" in str(warning.message) for warning in caught)
