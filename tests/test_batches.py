"""Texts of a store to batches, padded or flat, and the batches of an epoch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from bertclf._batches import batches_by_length, flat_batch, padded_batch, random_batches
from bertclf._tokens import TokenStore

CPU = torch.device("cpu")


def store_of(rows: list[list[int]], segments: list[list[int]] | None = None) -> TokenStore:
    return TokenStore(
        ids=np.array([token for row in rows for token in row], dtype=np.uint16),
        offsets=np.cumsum([0] + [len(row) for row in rows]),
        segments=None if segments is None else np.array([s for row in segments for s in row], dtype=np.uint8),
    )


# The store to padded batches


rows_of_tokens = st.lists(st.lists(st.integers(0, 65_535), min_size=1, max_size=9), min_size=1, max_size=9)


@settings(deadline=None)
@given(rows=rows_of_tokens, pad_id=st.integers(0, 65_535), data=st.data())
def test_unpadding_a_batch_gives_back_the_store(rows: list[list[int]], pad_id: int, data: st.DataObject) -> None:
    segments = [[position % 2 for position in range(len(row))] for row in rows]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=12))
    batch = padded_batch(store_of(rows, segments), np.array(chosen), pad_id=pad_id, device=CPU)
    mask = batch["attention_mask"].bool()

    assert [row[kept].tolist() for row, kept in zip(batch["input_ids"], mask, strict=True)] == [rows[i] for i in chosen]
    assert [row[kept].tolist() for row, kept in zip(batch["token_type_ids"], mask, strict=True)] == [
        segments[i] for i in chosen
    ]
    assert (batch["input_ids"][~mask] == pad_id).all()
    assert (batch["token_type_ids"][~mask] == 0).all()
    assert mask.shape == (len(chosen), max(len(rows[i]) for i in chosen))


def test_a_batch_is_padded_on_the_right_up_to_its_longest_text() -> None:
    store = store_of([[5, 6, 7], [8], [1, 2, 3, 4, 5], [9, 10]])
    batch = padded_batch(store, np.array([3, 0, 1]), pad_id=99, device=CPU)

    assert batch.keys() == {"input_ids", "attention_mask"}
    assert batch["input_ids"].tolist() == [[9, 10, 99], [5, 6, 7], [8, 99, 99]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert {values.dtype for values in batch.values()} == {torch.int64}


def test_padding_is_of_the_first_segment() -> None:
    store = store_of([[5, 6, 7], [8, 9]], segments=[[0, 1, 1], [0, 1]])
    batch = padded_batch(store, np.array([0, 1]), pad_id=99, device=CPU)

    assert batch["token_type_ids"].tolist() == [[0, 1, 1], [0, 1, 0]]


def test_a_batch_shares_no_memory_with_the_store() -> None:
    store = store_of([[5, 6]], segments=[[0, 1]])
    for values in padded_batch(store, np.array([0]), pad_id=0, device=CPU).values():
        values.fill_(7)

    assert store.ids.tolist() == [5, 6]
    assert store.segments is not None
    assert store.segments.tolist() == [0, 1]


# The store to flat batches


@settings(deadline=None)
@given(rows=rows_of_tokens, first_position=st.integers(0, 3), data=st.data())
def test_a_flat_batch_is_one_text_after_the_other(
    rows: list[list[int]], first_position: int, data: st.DataObject
) -> None:
    segments = [[position % 2 for position in range(len(row))] for row in rows]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=12))
    batch = flat_batch(store_of(rows, segments), np.array(chosen), first_position=first_position, device=CPU)

    assert batch["input_ids"].tolist() == [[token for i in chosen for token in rows[i]]]
    assert batch["token_type_ids"].tolist() == [[segment for i in chosen for segment in segments[i]]]
    assert batch["position_ids"].tolist() == [[first_position + place for i in chosen for place in range(len(rows[i]))]]
    assert {values.dtype for values in batch.values()} == {torch.int64}


def test_idle_tokens_of_a_flat_batch_repeat_its_first() -> None:
    store = store_of([[5, 6], [7]], [[0, 1], [1]])
    batch = flat_batch(store, np.array([1, 0]), first_position=2, device=CPU, n_idle=2)

    assert batch["input_ids"].tolist() == [[7, 5, 6, 7, 7]]
    assert batch["position_ids"].tolist() == [[2, 2, 3, 2, 2]]
    assert batch["token_type_ids"].tolist() == [[1, 0, 1, 1, 1]]


def test_a_flat_batch_of_one_segment_tells_none() -> None:
    batch = flat_batch(store_of([[5, 6], [7]]), np.array([1, 0]), first_position=0, device=CPU)

    assert batch.keys() == {"input_ids", "position_ids"}


# Random batches of one epoch


def epoch(n_texts: int, batch_size: int, seed: int = 0) -> list[np.ndarray]:
    return list(random_batches(n_texts, batch_size=batch_size, generator=np.random.default_rng(seed)))


@settings(deadline=None)
@given(n_texts=st.integers(1, 300), batch_size=st.integers(1, 40))
def test_an_epoch_has_every_row_once_in_the_exact_number_of_batches(n_texts: int, batch_size: int) -> None:
    batches = epoch(n_texts, batch_size)
    n_full, n_left = divmod(n_texts, batch_size)

    assert sorted(np.concatenate(batches).tolist()) == list(range(n_texts))
    assert [len(rows) for rows in batches] == [batch_size] * n_full + [n_left] * (n_left > 0)


@pytest.mark.parametrize("n_texts", [20, 500])
def test_the_seed_alone_decides_the_batches(n_texts: int) -> None:
    first, again, other = (epoch(n_texts, 8, seed) for seed in (1, 1, 2))

    assert len(first) == len(again)
    for rows, same in zip(first, again, strict=True):
        assert_array_equal(rows, same)
    assert not np.array_equal(np.concatenate(first), np.concatenate(other))


@pytest.mark.parametrize("n_texts", [20, 64, 500])
def test_each_epoch_makes_other_batches(n_texts: int) -> None:
    generator = np.random.default_rng(0)
    epochs = [
        {frozenset(rows.tolist()) for rows in random_batches(n_texts, batch_size=8, generator=generator)}
        for _ in range(2)
    ]

    assert len(epochs[0] & epochs[1]) < len(epochs[0])


# Batches by length


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=200), max_tokens=st.integers(1, 500))
def test_batches_by_length_hold_every_row_once_within_the_budget(lengths: list[int], max_tokens: int) -> None:
    counts = np.array(lengths)
    batches = list(batches_by_length(counts, max_tokens=max_tokens))

    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert counts[np.concatenate(batches)].tolist() == sorted(lengths, reverse=True)
    assert all(len(rows) == 1 or len(rows) * counts[rows].max() <= max_tokens for rows in batches)


def test_batches_by_length_are_as_large_as_the_budget_allows() -> None:
    batches = list(batches_by_length(np.array([2, 9, 3, 3, 2, 2]), max_tokens=6))

    assert [rows.tolist() for rows in batches] == [[1], [2, 3], [0, 4, 5]]


def test_batches_by_length_keep_the_order_of_texts_of_one_length() -> None:
    batches = list(batches_by_length(np.full(5, 3), max_tokens=6))

    assert [rows.tolist() for rows in batches] == [[0, 1], [2, 3], [4]]


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=50), max_texts=st.integers(1, 10))
def test_batches_by_length_hold_no_more_than_the_most_texts(lengths: list[int], max_texts: int) -> None:
    batches = list(batches_by_length(np.array(lengths), max_tokens=10_000, max_texts=max_texts))

    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert [len(rows) for rows in batches[:-1]] == [max_texts] * (len(batches) - 1)
    assert len(batches[-1]) <= max_texts
