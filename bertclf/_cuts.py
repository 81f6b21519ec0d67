"""What is kept of texts that are too long: which of their tokens, in one window or several, and what is read for it."""

from itertools import chain
from typing import NamedTuple

# Of what is kept of a text at both of its ends, the beginning is a quarter: 128 of 510 tokens in Sun et al. (2019).
HEAD = 4

# A window has at least an eighth of its tokens in common with the one before.
OVERLAP = 8

# Characters that are read at one end of a text, at least and for each token that fits.
MIN_EXCERPT = 32_768
CHARACTERS_PER_TOKEN = 64


class Excerpt(NamedTuple):
    """What is read of a text: all of it, its beginning, its end, or its beginning and right behind it its end.

    Attributes
    ----------
    text : str
        The characters.
    seam : int or None
        Where in `text` others were left out; None if none were.
    """

    text: str
    seam: int | None = None


def is_very_long(row: tuple[str, ...]) -> bool:
    """Tell whether a row has a text of which not all may have to be read."""
    return max(map(len, row)) > MIN_EXCERPT


def excerpt(text: str, max_length: int | None, *, long_text: str, side: str) -> Excerpt:
    """Cut a very long text at spaces: what stands beyond can't change the tokens of the words before or behind them.

    Parameters
    ----------
    text : str
        The text.
    max_length : int or None
        Most tokens of a window; None for no limit.
    long_text : {"truncate", "head_tail", "chunk"}
        What becomes of texts that are too long.
    side : {"right", "left"}
        Where truncation cuts: "right" keeps the beginning of a text, "left" its end.
    """
    if max_length is None or long_text == "chunk":
        return Excerpt(text)
    reads_beginning = long_text == "head_tail" or side == "right"
    reads_end = long_text == "head_tail" or side == "left"
    n_characters = max(MIN_EXCERPT, CHARACTERS_PER_TOKEN * max_length)
    if len(text) <= n_characters * (reads_beginning + reads_end):
        return Excerpt(text)
    marks = " \n\t"
    end, start = 0, len(text)
    if reads_beginning:
        end = max(text.rfind(mark, 0, n_characters) for mark in marks)
    if reads_end:
        start = min((found for mark in marks if (found := text.find(mark, len(text) - n_characters)) >= 0), default=0)
    if (reads_beginning and end <= 0) or (reads_end and start == 0):
        return Excerpt(text)
    return Excerpt(text[:end] + text[start:], seam=end)


def windows_of_row(lengths: list[int], budget: int, *, long_text: str, side: str) -> list[list[list[slice]]]:
    """Return which tokens of a row of X that is too long are kept, in one window or several.

    Parameters
    ----------
    lengths : list of int
        Tokens of the one text of the row, or of each of two.
    budget : int
        Tokens that fit into a window beside the special tokens, fewer than there are.
    long_text : {"truncate", "head_tail", "chunk"}
        What becomes of them.
    side : {"right", "left"}
        Where texts are cut, but for those that keep both ends or are spread over windows.

    Returns
    -------
    list of list of list of slice
        Of each window, for each text of the row, the parts of it that stand there one after the other.
    """
    kept = longest_first(lengths, budget)
    if long_text == "head_tail":
        return [[_both_ends(length, n_kept) for length, n_kept in zip(lengths, kept, strict=True)]]
    window = [
        [slice(0, n_kept) if side == "right" else slice(length - n_kept, length)]
        for length, n_kept in zip(lengths, kept, strict=True)
    ]
    if long_text == "truncate":
        return [window]
    longer = len(lengths) - 1 if lengths[0] <= lengths[-1] else 0
    return [
        [*window[:longer], [part], *window[longer + 1 :]] for part in overlapping(lengths[longer], fits=kept[longer])
    ]


def n_different(windows: list[list[list[slice]]]) -> int:
    """Return how many tokens stand in windows of a row, those in several counted once."""
    n_tokens = 0
    for parts in zip(*windows, strict=True):
        stop = 0
        for part in chain.from_iterable(parts):
            n_tokens += max(part.stop - max(part.start, stop), 0)
            stop = max(part.stop, stop)
    return n_tokens


def longest_first(lengths: list[int], budget: int) -> list[int]:
    """Return how many tokens of each text of a row fit together: the longer text of a pair is cut first.

    The rule, with the odd token to the longer text, is that of `longest_first` in the library tokenizers.
    """
    if len(lengths) == 1:
        return [min(lengths[0], budget)]
    shorter, longer = (0, 1) if lengths[0] <= lengths[1] else (1, 0)
    kept = [0, 0]
    kept[shorter] = min(lengths[shorter], budget // 2)
    kept[longer] = min(lengths[longer], budget - kept[shorter])
    return kept


def overlapping(length: int, *, fits: int) -> list[slice]:
    """Return windows that cover a text, all of the same length.

    Neighbours have an eighth of `fits` in common, rounded up, or a little more. There are as few windows as that
    allows, and they are as short as so many windows can be: in all they have at most about 8/7 of the tokens of the
    text.
    """
    if length <= fits:
        return [slice(0, length)]
    overlap = min(-(-fits // OVERLAP), fits - 1)
    n_windows = -(-(length - overlap) // (fits - overlap))
    size = -(-(length + (n_windows - 1) * overlap) // n_windows)
    starts = [number * (length - size) // (n_windows - 1) for number in range(n_windows)]
    return [slice(start, start + size) for start in starts]


def _both_ends(length: int, n_kept: int) -> list[slice]:
    """Return the beginning and the end of a text, of which so many tokens are kept; or all of it."""
    if n_kept == length:
        return [slice(0, length)]
    n_head = (n_kept + HEAD // 2) // HEAD
    return [slice(0, n_head), slice(length - n_kept + n_head, length)]
