"""The room `_cuts`: which tokens of texts that are too long are kept, and what is read for it."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertclf._cuts import (
    CHARACTERS_PER_TOKEN,
    MIN_EXCERPT,
    excerpt,
    longest_first,
    n_different,
    overlapping,
    windows_of_row,
)

sides = st.sampled_from(["right", "left"])


@st.composite
def rows_too_long(draw):
    """Draw the lengths of one text, or of two, and fewer tokens than they have, though one for each."""
    lengths = draw(st.lists(st.integers(0, 400), min_size=1, max_size=2).filter(lambda some: sum(some) > len(some)))
    return lengths, draw(st.integers(len(lengths), sum(lengths) - 1))


def places(slices):
    """Return the tokens that stand in some slices, one after the other."""
    return [place for part in slices for place in range(part.start, part.stop)]


@given(length=st.integers(1, 5000), fits=st.integers(1, 600))
def test_windows_cover_a_text_overlap_and_are_alike_few_and_short(length, fits):
    windows = overlapping(length, fits=fits)
    sizes = {window.stop - window.start for window in windows}
    overlap = min(-(-fits // 8), fits - 1)

    assert len(sizes) == 1
    assert max(sizes) <= fits
    assert windows[0].start == 0
    assert windows[-1].stop == length
    common = [before.stop - after.start for before, after in pairwise(windows)]
    assert all(tokens >= overlap for tokens in common)
    assert all(before.start < after.start for before, after in pairwise(windows))
    if len(windows) > 1:
        fewer, shorter = len(windows) - 1, max(sizes) - 1
        assert fewer * fits - (fewer - 1) * overlap < length
        assert len(windows) * shorter - fewer * overlap < length


def test_windows_of_a_text_as_long_as_fits_and_one_token_longer():
    assert overlapping(510, fits=510) == [slice(0, 510)]
    assert overlapping(511, fits=510) == [slice(0, 288), slice(223, 511)]


def test_windows_have_about_eight_sevenths_of_the_tokens_of_a_long_text():
    windows = overlapping(100_000, fits=510)
    assert len(places(windows)) == pytest.approx(100_000 * 8 / 7, rel=0.01)


@pytest.mark.parametrize(
    ("budget", "n_head", "n_tail"), [(510, 128, 382), (1, 0, 1), (2, 1, 1), (3, 1, 2), (4, 1, 3), (8, 2, 6)]
)
def test_of_what_fits_a_quarter_is_the_head(budget, n_head, n_tail):
    ((parts,),) = windows_of_row([1000], budget, long_text="head_tail", side="right")
    assert parts == [slice(0, n_head), slice(1000 - n_tail, 1000)]


@given(row=rows_too_long(), side=sides)
def test_head_and_tail_are_the_ends_of_what_truncation_would_leave_of_each_text(row, side):
    lengths, budget = row
    (window,) = windows_of_row(lengths, budget, long_text="head_tail", side=side)
    (truncated,) = windows_of_row(lengths, budget, long_text="truncate", side=side)
    for length, parts, cut in zip(lengths, window, truncated, strict=True):
        kept, n_kept = places(parts), len(places(cut))
        assert len(kept) == n_kept
        n_head = n_kept if n_kept == length else (n_kept + 2) // 4
        assert kept == [*range(n_head), *range(length - n_kept + n_head, length)]


@given(row=rows_too_long(), side=sides)
def test_truncation_keeps_one_end_of_each_text(row, side):
    lengths, budget = row
    (window,) = windows_of_row(lengths, budget, long_text="truncate", side=side)
    for length, n_kept, parts in zip(lengths, longest_first(lengths, budget), window, strict=True):
        assert places(parts) == list(range(length))[slice(n_kept) if side == "right" else slice(length - n_kept, None)]


@given(row=rows_too_long(), side=sides)
def test_windows_of_a_row_hold_all_of_its_longer_text_and_the_shorter_one_in_each(row, side):
    lengths, budget = row
    windows = windows_of_row(lengths, budget, long_text="chunk", side=side)
    longer = max(range(len(lengths)), key=lambda part: (lengths[part], part))
    kept = longest_first(lengths, budget)

    assert [window[longer] for window in windows] == [
        [part] for part in overlapping(lengths[longer], fits=kept[longer])
    ]
    assert all(sum(len(places(parts)) for parts in window) <= budget for window in windows)
    assert {place for window in windows for place in places(window[longer])} == set(range(lengths[longer]))
    if len(lengths) == 2:
        shorter = 1 - longer
        assert all(window[shorter] == windows[0][shorter] for window in windows)
        assert len(places(windows[0][shorter])) == min(lengths[shorter], budget // 2)


@given(row=rows_too_long(), side=sides, long_text=st.sampled_from(["truncate", "head_tail", "chunk"]))
def test_tokens_in_several_windows_are_counted_once(row, side, long_text):
    lengths, budget = row
    windows = windows_of_row(lengths, budget, long_text=long_text, side=side)
    different = {(part, place) for window in windows for part, some in enumerate(window) for place in places(some)}
    assert n_different(windows) == len(different)


WORDS = "word " * 40_000


def test_a_text_is_read_whole_if_it_is_short_has_no_limit_or_goes_into_windows():
    edge = MIN_EXCERPT
    assert excerpt(WORDS[:edge], 8, long_text="truncate", side="right").seam is None
    assert excerpt(WORDS[: 2 * edge], 8, long_text="head_tail", side="right").seam is None
    assert excerpt(WORDS, None, long_text="truncate", side="right").seam is None
    assert excerpt(WORDS, 8, long_text="chunk", side="left").text is WORDS


@pytest.mark.parametrize("max_length", [8, 1024])
@pytest.mark.parametrize(
    ("long_text", "side", "ends"),
    [("truncate", "right", "b"), ("truncate", "left", "e"), ("head_tail", "right", "be"), ("head_tail", "left", "be")],
)
def test_the_ends_of_a_very_long_text_are_read_up_to_a_space(long_text, side, ends, max_length):
    read = excerpt(WORDS, max_length, long_text=long_text, side=side)
    n_characters = max(MIN_EXCERPT, CHARACTERS_PER_TOKEN * max_length)
    beginning, end = read.text[: read.seam], read.text[read.seam :]
    assert (len(beginning) > n_characters - 6) == ("b" in ends)
    assert (len(end) > n_characters - 6) == ("e" in ends)
    assert max(len(beginning), len(end)) <= n_characters
    assert WORDS.startswith(beginning)
    assert WORDS.endswith(end)
    assert not beginning or WORDS[len(beginning)] == " "
    assert end[:1] in ("", " ")


@pytest.mark.parametrize("long_text", ["truncate", "head_tail"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_text_without_a_space_is_read_whole(long_text, side):
    assert excerpt("w" * 200_000, 8, long_text=long_text, side=side).seam is None
