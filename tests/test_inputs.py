"""The room `_inputs`: containers of texts, and what is wrong with them."""

import re
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from conftest import saying
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.sparse import csr_matrix

from bertclf import _inputs
from bertclf._inputs import Texts, read_in_parts, read_texts

WORDS = ["a fine film", "dull", "", " two  spaces\n", "naïve 漢字 😀"]
OTHERS = ["one", "two", "three", "four", "five"]
PAIRS = list(zip(WORDS, OTHERS, strict=True))
STRING = np.dtypes.StringDType()


def object_array(items: list[Any]) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


ONE_DIMENSIONAL = {
    "list": WORDS,
    "tuple": tuple(WORDS),
    "deque": deque(WORDS),
    "fixed-width array": np.array(WORDS),
    "object array": np.array(WORDS, dtype=object),
    "StringDType array": np.array(WORDS, dtype=STRING),
    "object Series": pd.Series(WORDS, dtype=object),
    "string Series": pd.Series(WORDS, dtype="string"),
    "category Series": pd.Series(WORDS, dtype="category"),
    "Arrow-backed Series": pd.Series(WORDS, dtype=pd.ArrowDtype(pa.string())),
    "Series with a shuffled index": pd.Series(WORDS, index=[3, 1, 4, 0, 2]),
    "Series with a duplicated index": pd.Series(WORDS, index=[0] * len(WORDS)),
    "pandas Index": pd.Index(WORDS),
    "polars Series": pl.Series(WORDS),
    "polars categorical Series": pl.Series(WORDS, dtype=pl.Categorical),
    "Arrow array": pa.array(WORDS),
    "Arrow large strings": pa.array(WORDS, pa.large_string()),
    "Arrow dictionary": pa.array(WORDS).dictionary_encode(),
    "Arrow chunked array": pa.chunked_array([WORDS[:2], WORDS[2:]]),
    "Hugging Face column": Dataset.from_dict({"text": WORDS})["text"],
}
ONE_COLUMN = {
    "list of lists": [[text] for text in WORDS],
    "list of tuples": [(text,) for text in WORDS],
    "array": np.array(WORDS, dtype=object)[:, None],
    "fixed-width array": np.array(WORDS)[:, None],
    "StringDType array": np.array(WORDS, dtype=STRING)[:, None],
    "pandas frame": pd.DataFrame({"text": WORDS}),
    "polars frame": pl.DataFrame({"text": WORDS}),
    "Arrow table": pa.table({"text": WORDS}),
}
TWO_COLUMNS = {
    "list of tuples": PAIRS,
    "list of lists": [list(pair) for pair in PAIRS],
    "list of arrays": [np.array(pair, dtype=object) for pair in PAIRS],
    "tuple of tuples": tuple(PAIRS),
    "array": np.array(PAIRS, dtype=object),
    "fixed-width array": np.array(PAIRS),
    "array of tuples": object_array(PAIRS),
    "Series of tuples": pd.Series(PAIRS),
    "polars Series of lists": pl.Series([list(pair) for pair in PAIRS]),
    "Hugging Face column of lists": Dataset.from_dict({"pair": [list(pair) for pair in PAIRS]})["pair"],
    "pandas frame": pd.DataFrame(PAIRS, columns=["first", "second"]),
    "polars frame": pl.DataFrame({"first": WORDS, "second": OTHERS}),
    "Arrow table": pa.table({"first": WORDS, "second": OTHERS}),
}
MISSING = {"None": None, "nan": float("nan"), "numpy nan": np.float32("nan"), "NA": pd.NA, "NaT": pd.NaT}


@pytest.mark.parametrize("container", ONE_DIMENSIONAL.values(), ids=ONE_DIMENSIONAL)
def test_one_dimensional_containers_give_the_texts_by_position(container: Any) -> None:
    texts = read_texts(container)

    assert texts.first == WORDS
    assert texts.second is None
    assert texts.n_columns is None
    assert texts.column_names is None
    assert not texts.are_pairs
    assert len(texts) == len(WORDS)


@pytest.mark.parametrize("container", ONE_COLUMN.values(), ids=ONE_COLUMN)
def test_one_column_gives_single_texts_and_its_count(container: Any) -> None:
    texts = read_texts(container)

    assert texts.first == WORDS
    assert texts.second is None
    assert texts.n_columns == 1


@pytest.mark.parametrize("container", TWO_COLUMNS.values(), ids=TWO_COLUMNS)
def test_two_columns_give_pairs(container: Any) -> None:
    texts = read_texts(container)

    assert texts.first == WORDS
    assert texts.second == OTHERS
    assert texts.n_columns == 2
    assert texts.are_pairs
    assert len(texts) == len(WORDS)


@pytest.mark.parametrize("name", ["pandas frame", "polars frame", "Arrow table"])
def test_frames_give_the_names_of_their_columns(name: str) -> None:
    assert_array_equal(read_texts(ONE_COLUMN[name]).column_names, ["text"])
    assert_array_equal(read_texts(TWO_COLUMNS[name]).column_names, ["first", "second"])


def test_names_of_which_only_some_are_strings_are_refused_with_the_remedy() -> None:
    message = saying("X has the columns ['text', 1]", "only supported if all of them are str", "X.columns.astype(str)")
    with pytest.raises(TypeError, match=message):
        read_texts(pd.DataFrame(PAIRS, columns=["text", 1]))


@pytest.mark.parametrize("names", [[0, 1], [("a", "b"), ("a", "c")]])
def test_names_that_are_no_strings_are_no_names(names: list[Any]) -> None:
    texts = read_texts(pd.DataFrame(PAIRS, columns=pd.Index(names, tupleize_cols=False)))

    assert texts.second == OTHERS
    assert texts.column_names is None


def test_texts_of_a_list_are_not_copied() -> None:
    texts = ["a text that is long enough not to be interned", "b" * 1000]

    assert all(read is given for read, given in zip(read_texts(texts).first, texts, strict=True))


@settings(deadline=None)
@given(st.lists(st.text(), min_size=1))
def test_every_valid_text_passes_unchanged(texts: list[str]) -> None:
    assert read_texts(texts).first == texts
    assert read_texts(object_array(texts)).first == texts


@settings(deadline=None)
@given(st.text(max_size=50), st.characters(categories=["Cs"]), st.text(max_size=50))
def test_every_lone_surrogate_is_found_where_it_stands(before: str, surrogate: str, after: str) -> None:
    with pytest.raises(ValueError, match=rf"^X\[1\] is .*a lone surrogate at character {len(before)}, .*must be valid"):
        read_texts(["fine", before + surrogate + after])


@pytest.mark.parametrize("text", ["one text", "", np.str_("one text")])
def test_one_str_is_refused_in_the_words_of_the_vectorizers(text: str) -> None:
    rule = "Iterable over raw text documents expected, string object received."
    with pytest.raises(ValueError, match=saying(rule, "X is one str", "Pass [text]")):
        read_texts(text)


@pytest.mark.parametrize(
    "container",
    [
        [],
        (),
        np.array([], dtype=object),
        np.empty((0, 2), dtype=object),
        pd.Series([], dtype=object),
        pd.DataFrame({"text": []}),
        pl.Series([], dtype=pl.String),
        pl.DataFrame({"text": []}),
        pa.array([], pa.string()),
    ],
    ids=lambda container: f"{type(container).__module__}.{type(container).__name__}",
)
def test_an_empty_container_is_refused(container: Any) -> None:
    with pytest.raises(ValueError, match=saying("0 sample(s)", "X is empty", "at least one text is required")):
        read_texts(container)


@pytest.mark.parametrize("row", [0, 2, 4])
@pytest.mark.parametrize("missing", MISSING.values(), ids=MISSING)
def test_a_missing_text_is_refused_with_its_row(missing: Any, row: int) -> None:
    texts: list[Any] = list(WORDS)
    texts[row] = missing
    for container in (texts, tuple(texts), object_array(texts), pd.Series(texts, dtype=object)):
        with pytest.raises(
            ValueError,
            match=saying(f"X[{row}] is {type(missing).__name__}", "must be a str", "Replace missing texts by ''"),
        ):
            read_texts(container)


@pytest.mark.parametrize(
    "container",
    [
        pd.Series(["a", None], dtype="string"),
        pd.Series(["a", None], dtype="category"),
        pd.Series(["a", None]),
        pl.Series(["a", None]),
        pa.array(["a", None]),
        pa.chunked_array([["a"], [None]]),
        np.array(["a", np.nan], dtype=np.dtypes.StringDType(na_object=np.nan)),
        pd.DataFrame({"text": ["a", None]}),
        pl.DataFrame({"text": ["a", None]}),
    ],
    ids=["string", "category", "default", "polars", "Arrow", "chunked", "StringDType", "frame", "polars frame"],
)
def test_a_missing_text_is_found_in_every_container(container: Any) -> None:
    with pytest.raises(ValueError, match=saying("X[1] is ", "Replace missing texts by ''")):
        read_texts(container)


@pytest.mark.parametrize("column", [0, 1])
def test_a_missing_text_of_a_pair_is_refused_with_row_and_column(column: int) -> None:
    frame = pd.DataFrame(PAIRS, columns=["first", "second"])
    frame.iloc[3, column] = None
    for container in (frame, frame.to_numpy(), frame.to_numpy().tolist()):
        with pytest.raises(ValueError, match=saying(f"X[3, {column}] is ", "Replace missing texts by ''")):
            read_texts(container)


@pytest.mark.parametrize("row", [0, 2, 4])
@pytest.mark.parametrize("missing", MISSING.values(), ids=MISSING)
def test_a_missing_pair_is_refused_with_its_row(missing: Any, row: int) -> None:
    pairs: list[Any] = list(PAIRS)
    pairs[row] = missing
    with pytest.raises(ValueError, match=saying(f"X[{row}] is {type(missing).__name__}", "Replace missing")):
        read_texts(pairs)


@pytest.mark.parametrize(
    "item", [1, 2.5, True, ["nested"], {"text": "a"}, object], ids=lambda item: type(item).__name__
)
def test_an_item_that_is_no_text_is_refused_with_its_row_and_type(item: Any) -> None:
    with pytest.raises(
        TypeError, match=saying(f"X[1] is {type(item).__name__}", "every text must be a str", "Convert")
    ):
        read_texts(["text", item])


@pytest.mark.parametrize("container", [[1, 2], np.array([[1.5], [2.5]]), pd.Series([1, 2]), pl.Series([True, False])])
def test_numbers_are_never_turned_into_texts(container: Any) -> None:
    with pytest.raises(TypeError, match=saying("X[0] is ", "every text must be a str", "Convert it yourself")):
        read_texts(container)


@pytest.mark.parametrize("item", [b"raw", bytearray(b"raw"), np.bytes_(b"raw")], ids=["bytes", "bytearray", "numpy"])
def test_bytes_are_refused_with_the_advice_to_decode(item: Any) -> None:
    with pytest.raises(TypeError, match=saying("X[1] is ", "raw", "every text must be a str", "Decode it first")):
        read_texts(["text", item])


def test_an_array_of_bytes_is_refused_with_the_advice_to_decode() -> None:
    with pytest.raises(TypeError, match=saying("X[0] is bytes (b'raw')", "Decode it first")):
        read_texts(np.array([b"raw", b"more"]))


def test_a_long_offender_is_quoted_in_at_most_forty_characters() -> None:
    with pytest.raises(TypeError) as caught:
        read_texts([10**100])
    quote = re.search(r"\((.*?)\)", str(caught.value))

    assert quote is not None
    assert len(quote[1]) == 40
    assert quote[1].endswith("...")


@pytest.mark.parametrize(
    ("container", "kind"),
    [
        ((text for text in WORDS), "generator"),
        (map(str, WORDS), "map"),
        (iter(WORDS), "list_iterator"),
        (set(WORDS), "set"),
        (frozenset(WORDS), "frozenset"),
        (dict.fromkeys(WORDS), "dict"),
        (OrderedDict(text="a").values(), "odict_values"),
        (b"bytes", "bytes"),
        (None, "NoneType"),
        (5, "int"),
        (float("nan"), "float"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_sequence_is_refused_with_its_type(container: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=saying(f"X is a {kind}", "sequence of texts with a length", "Pass list(X)")):
        read_texts(container)


def test_a_sparse_matrix_is_refused() -> None:
    with pytest.raises(TypeError, match=saying("X is a sparse csr_matrix", "texts are needed", "Pass the raw texts")):
        read_texts(csr_matrix([[1.0], [2.0]]))


@pytest.mark.parametrize(
    "container",
    [
        [("a", "b", "c")],
        np.array([["a", "b", "c"]]),
        pd.DataFrame([["a", "b", "c"]]),
        pl.DataFrame({"a": ["a"], "b": ["b"], "c": ["c"]}),
    ],
    ids=["tuples", "array", "pandas", "polars"],
)
def test_three_columns_are_refused(container: Any) -> None:
    with pytest.raises(ValueError, match=saying("X has 3 columns", "one, or two for pairs", "Select the columns")):
        read_texts(container)


def test_no_column_is_refused() -> None:
    with pytest.raises(ValueError, match=saying("X has 0 columns", "one, or two for pairs")):
        read_texts(pd.DataFrame(index=[0, 1]))


@pytest.mark.parametrize("array", [np.array("a"), np.array([[["a"]]])], ids=["no dimension", "three dimensions"])
def test_arrays_of_other_than_one_or_two_dimensions_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=saying(f"X has {array.ndim} dimensions", "1 or 2", "Pass X.ravel()")):
        read_texts(array)


def test_rows_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match=saying("X[1] has 1 items", "X[0] has 2", "same length")):
        read_texts([("a", "b"), ("c",)])


def test_a_single_text_among_pairs_is_refused() -> None:
    with pytest.raises(TypeError, match=saying("X[1] is str ('c')", "X[0] is a row of 2", "not both")):
        read_texts([("a", "b"), "c"])


def test_a_pair_among_single_texts_is_refused() -> None:
    with pytest.raises(TypeError, match=saying("X[1] is tuple", "every text must be a str")):
        read_texts(["c", ("a", "b")])


@pytest.mark.parametrize("container", ["text", [], ["a", None], [1], [("a", "b", "c")], None, ["\ud800"]])
def test_errors_call_the_container_by_its_name(container: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="X_val"):
        read_texts(container, name="X_val")


def test_the_container_of_texts_is_left_as_it_was() -> None:
    pairs = [list(pair) for pair in PAIRS]
    array = np.array(PAIRS, dtype=object)
    array.flags.writeable = False
    read_texts(pairs)
    read_texts(array)

    assert pairs == [list(pair) for pair in PAIRS]
    assert array.tolist() == pairs


# In parts

MANY = [f"{text} {number}" for number, text in enumerate(WORDS * 2)]
SLICED = {
    "list": list,
    "tuple": tuple,
    "fixed-width array": np.array,
    "object array": object_array,
    "StringDType array": lambda texts: np.array(texts, dtype=STRING),
    "Series with a shuffled index": lambda texts: pd.Series(texts, index=[3, 1, 4, 0, 2, 9, 8, 7, 6, 5]),
    "string Series": lambda texts: pd.Series(texts, dtype="string"),
    "polars Series": pl.Series,
    "Arrow array": pa.array,
    "Arrow chunked array": lambda texts: pa.chunked_array([texts[:2], texts[2:]]),
    "column": lambda texts: [[text] for text in texts],
    "pandas frame": lambda texts: pd.DataFrame({"text": texts}, index=[0] * len(texts)),
    "polars frame": lambda texts: pl.DataFrame({"text": texts}),
    "Arrow table": lambda texts: pa.table({"text": texts}),
    "column of datasets": lambda texts: Dataset.from_dict({"text": texts})["text"],
}
SLICED_PAIRS = {
    "list": list,
    "array": lambda pairs: np.array(pairs, dtype=object),
    "array of tuples": object_array,
    "Series of tuples": pd.Series,
    "polars Series of lists": lambda pairs: pl.Series([list(pair) for pair in pairs]),
    "Arrow array of lists": lambda pairs: pa.array([list(pair) for pair in pairs]),
    "pandas frame": lambda pairs: pd.DataFrame(pairs, columns=["first", "second"]),
    "polars frame": lambda pairs: pl.DataFrame(pairs, schema=["first", "second"], orient="row"),
}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Parts of three texts; how many texts were read at once."""
    read: list[int] = []

    def reading(X: Any, **options: Any) -> Texts:
        read.append(len(X))
        return read_texts(X, **options)

    monkeypatch.setattr(_inputs, "read_texts", reading)
    monkeypatch.setattr(_inputs, "TEXTS_PER_PART", 3)
    return read


@pytest.mark.parametrize("make", SLICED.values(), ids=SLICED)
def test_parts_are_those_of_the_whole(parts: list[int], make: Callable[[list[str]], Any]) -> None:
    read = list(read_in_parts(make(MANY)))
    whole = read_texts(make(MANY))

    assert [part.first for part in read] == [MANY[:3], MANY[3:6], MANY[6:9], MANY[9:]]
    assert {part.n_columns for part in read} == {whole.n_columns}
    for part in read:
        assert_array_equal(part.column_names, whole.column_names)
    assert max(parts) == 3


@pytest.mark.parametrize("make", SLICED_PAIRS.values(), ids=SLICED_PAIRS)
def test_parts_of_pairs_are_those_of_the_whole(parts: list[int], make: Callable[[list[Any]], Any]) -> None:
    read = list(read_in_parts(make(list(zip(MANY, MANY[::-1], strict=True)))))

    assert [text for part in read for text in part.first] == MANY
    assert [text for part in read for text in part.second or []] == MANY[::-1]
    assert {part.n_columns for part in read} == {2}
    assert max(parts) == 3


@pytest.mark.parametrize(
    "container",
    [deque(MANY), pd.Index(MANY)],
    ids=lambda container: type(container).__name__,
)
def test_what_has_no_slices_of_its_kind_is_read_whole(parts: list[int], container: Any) -> None:
    assert [part.first for part in read_in_parts(container)] == [MANY]


def test_what_is_no_container_is_refused_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_inputs, "TEXTS_PER_PART", 3)
    for container in ("one long text", iter(MANY), csr_matrix([[1.0]] * 9), np.array("text"), None):
        with pytest.raises((TypeError, ValueError)) as expected:
            read_texts(container)
        with pytest.raises(expected.type, match=f"^{re.escape(str(expected.value))}$"):
            list(read_in_parts(container))


@pytest.mark.parametrize("row", range(len(MANY)))
def test_an_error_in_parts_names_the_row_of_the_whole(parts: list[int], row: int) -> None:
    texts: list[Any] = [*MANY[:row], None, *MANY[row + 1 :]]
    pairs: list[Any] = [(text, text) for text in MANY]
    pairs[row] = None
    halves = list(zip(MANY, texts, strict=True))
    kinds: list[tuple[str, list[Any], list[Callable[[list[Any]], Any]]]] = [
        (f"X[{row}] ", texts, [list, object_array, pd.Series, pl.Series, pa.array]),
        (f"X[{row}] ", pairs, [list, object_array, pd.Series]),
        (f"X[{row}, 1] ", halves, [list, object_array, pd.DataFrame]),
    ]
    for where, rows, makers in kinds:
        for make in makers:
            with pytest.raises(ValueError, match=f"^{re.escape(where)}.*Replace missing texts"):
                next(read_in_parts(make(rows)))
    assert max(parts) == 3


@pytest.mark.parametrize("first_of_the_others", [1, 2, 3, 4, 6, 9])
def test_texts_and_rows_are_not_mixed_across_parts(parts: list[int], first_of_the_others: int) -> None:
    kinds: list[list[Any]] = [MANY, [(text,) for text in MANY], [(text, text) for text in MANY]]
    for one in kinds:
        for other in kinds:
            if one is not other:
                with pytest.raises((TypeError, ValueError), match=rf"^X\[{first_of_the_others}\] "):
                    next(read_in_parts(one[:first_of_the_others] + other[first_of_the_others:]))


def test_a_memory_mapped_array_is_never_held_whole(parts: list[int], tmp_path: Path) -> None:
    np.save(tmp_path / "texts.npy", np.array(MANY * 30))
    texts = [text for part in read_in_parts(np.load(tmp_path / "texts.npy", mmap_mode="r")) for text in part.first]

    assert texts == MANY * 30
    assert max(parts) == 3
    assert sum(parts) == 2 * len(texts)


def test_masked_texts_are_missing() -> None:
    array = np.ma.array(MANY, mask=[row == 7 for row in range(len(MANY))])
    with pytest.raises(ValueError, match=r"X\[7\] is NoneType.*Replace missing texts by '' or drop them"):
        read_texts(array)
    assert read_texts(array[:5]).first == MANY[:5]


def test_a_frame_that_is_lazy_is_to_be_collected() -> None:
    with pytest.raises(TypeError, match=r"X is a lazy frame.*Pass X.collect\(\)"):
        read_texts(pl.LazyFrame({"text": MANY}))


def test_a_whole_dataset_is_no_column() -> None:
    with pytest.raises(TypeError, match=r"X\[0\] is dict.*pass the column that holds the texts"):
        read_texts(Dataset.from_dict({"text": MANY}))
