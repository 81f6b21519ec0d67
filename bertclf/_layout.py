"""Where texts lie that stand one after the other without padding, and how some of them fill a padded array."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bertclf._batches import to_device
from bertclf._dropout import KeepMasks

# Texts of similar length whose scores are computed at once, padded to the longest of them. Fewer make too many small
# products, more make too much padding: with 12 heads of 32 and 32 sentences of 6 to 55 tokens, forward and backward
# took 4.7 ms one by one, 3.9 in groups of four and of eight, 4.2 of sixteen, 5.3 in one (two cores of a Xeon with AMX).
TEXTS_PER_GROUP = 8

# Scores of one head in a group: eight texts of 90 tokens, or one of 256. Sixteen heads of it fill a part that passes at
# once, see `_groups`.
SCORES_PER_GROUP = 1 << 16

# On other devices a product costs mostly its start, so groups hold this many times as much. Not measured.
TIMES_OFF_HOST = 16


@dataclass(frozen=True)
class Group:
    """Some neighbouring texts of a layout, whose tokens fill a padded array of shape (n_texts, longest).

    Attributes
    ----------
    texts : slice
        Which texts.
    places : slice
        Where the places of the padded array lie among those of all groups.
    longest : int
        Tokens of the longest of them.
    is_token : Tensor of bool, shape (n_texts, longest), or None
        Which places hold tokens; None if all do.
    """

    texts: slice
    places: slice
    longest: int
    is_token: torch.Tensor | None

    @property
    def n_texts(self) -> int:
        """Number of texts."""
        return int(self.texts.stop - self.texts.start)

    def allowed(self, *, causal: bool, window: int | None, device: torch.device) -> torch.Tensor | None:
        """Return which tokens a token may see, broadcastable to (n_texts, heads, longest, longest); None if all."""
        keys = None if self.is_token is None else self.is_token[:, None, None, :]
        if not causal and (window is None or window >= self.longest):
            return keys
        position = torch.arange(self.longest, device=device)
        distance = position[:, None] - position
        near = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
        if window is not None:
            near = near & (distance.abs() < window)
        return near if keys is None else near & keys


@dataclass(frozen=True)
class Rows:
    """How vectors of one head of one token fill the padded arrays of all groups, by text, head and token.

    Attributes
    ----------
    source : Tensor of int64, shape (n_rows,), or None
        Position of each row in an array of shape (n_tokens, heads), the first for padding; None if all are in order.
    padding : Tensor of int64 or None
        Which rows are padding; None if none is.
    target : Tensor of int64, shape (n_tokens * heads,), or None
        Row of each token and head; None if all are in order.
    n_idle : int
        Number of tokens at the end of the batch that belong to no text.
    """

    source: torch.Tensor | None
    padding: torch.Tensor | None
    target: torch.Tensor | None
    n_idle: int

    @classmethod
    def in_order(cls) -> "Rows":
        """Return what changes no order."""
        return cls(None, None, None, 0)

    def taken(self, flat: torch.Tensor, *, padding: float | None = None) -> torch.Tensor:
        """Return an array of shape (n_tokens, heads, size) as (n_rows, size), with a number in all that is padding."""
        rows = flat.reshape(-1, flat.shape[-1])
        if self.source is not None:
            rows = rows.index_select(0, self.source)
        if padding is not None and self.padding is not None:
            rows.index_fill_(0, self.padding, padding)
        return rows

    def put_back(self, rows: torch.Tensor, *, heads: int) -> torch.Tensor:
        """Return an array of shape (n_rows, size) as (n_tokens, heads, size), with zeros in tokens of no text."""
        flat = rows if self.target is None else rows.index_select(0, self.target)
        flat = flat.view(-1, heads, rows.shape[1])
        return torch.cat([flat, flat.new_zeros((self.n_idle, *flat.shape[1:]))]) if self.n_idle else flat


class Layout:
    """Where each text of a flat batch lies.

    Parameters
    ----------
    lengths : ndarray of int64, shape (n_texts,)
        Tokens of each text; the nearer the lengths of neighbours, the less is padded.
    device : torch.device
        Where the batch is.
    masks : KeepMasks or None
        Source of dropout masks; None leaves them to torch.
    n_idle : int, default=0
        Number of tokens at the end of the batch that belong to no text.

    Attributes
    ----------
    states : Tensor of shape (n_tokens, width), or None
        Output of a lower part of the network, for the upper part to go on from.
    made : dict
        What others make of this layout once for all layers, by what it depends on.
    sliding_windows : list of int or None
        Sliding window of each attention layer that has followed this layout so far, None where it has none.
    keys_and_values : tuple of Tensor, or None
        Keys and values that take the place of those that a layer makes, see `seen_by_firsts`.
    """

    def __init__(
        self,
        lengths: npt.NDArray[np.int64],
        *,
        device: torch.device,
        masks: KeepMasks | None = None,
        n_idle: int = 0,
    ) -> None:
        self.lengths = lengths
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.device = device
        self.masks = masks
        self.n_idle = n_idle
        self.made: dict[Any, Any] = {}
        self.states: torch.Tensor | None = None
        self.sliding_windows: list[int | None] = []
        self.keys_and_values: tuple[torch.Tensor, torch.Tensor] | None = None

    def seen_by_firsts(self, keys: torch.Tensor, values: torch.Tensor) -> "Layout":
        """Return a layout for queries of the first token of each text alone, which see these keys and values.

        Both are of shape (1, n_tokens, heads * size).
        """
        layout = copy.copy(self)
        layout.keys_and_values = keys, values
        return layout

    @property
    def n_tokens(self) -> int:
        """Number of tokens of all texts."""
        return int(self.starts[-1])

    def with_idle(self, states: torch.Tensor) -> torch.Tensor:
        """Return states of all tokens with zeros for those of no text, if those are missing."""
        n_missing = self.n_tokens + self.n_idle - len(states)
        return torch.cat([states, states.new_zeros((n_missing, *states.shape[1:]))]) if n_missing else states

    @cached_property
    def groups(self) -> list[Group]:
        """The texts in groups, in order."""
        groups, start, n_places = [], 0, 0
        while start < len(self.lengths):
            group = self._group(start, start + self._n_alike(start), first_place=n_places)
            groups.append(group)
            start, n_places = group.texts.stop, group.places.stop
        return groups

    def rows(self, heads: int) -> Rows:
        """Return how vectors of so many heads fill the groups."""
        if heads not in self.made:
            self.made[heads] = self._make_rows(heads)
        rows: Rows = self.made[heads]
        return rows

    def _n_alike(self, start: int) -> int:
        """Return how many texts from `start` on form a group: any number of one length, some of similar lengths."""
        longest = int(self.lengths[start])
        times = 1 if self.device.type == "cpu" else TIMES_OFF_HOST
        rest = self.lengths[start : start + max(times * SCORES_PER_GROUP // longest**2, 1)]
        n_equal = len(rest) if (rest == longest).all() else int((rest != longest).argmax())
        return max(n_equal, min(len(rest), times * TEXTS_PER_GROUP))

    @cached_property
    def text_of_token(self) -> torch.Tensor:
        """Number of the text that each token belongs to, int64 on the device."""
        return to_device(np.repeat(np.arange(len(self.lengths)), self.lengths), self.device)

    @cached_property
    def offsets(self) -> torch.Tensor:
        """Start of each text and end of the last, int32 on the device, as kernels for ragged batches take them."""
        return to_device(self.starts.astype(np.int32), self.device)

    @cached_property
    def offsets_of_firsts(self) -> torch.Tensor:
        """What `offsets` would be if each text had one token."""
        return torch.arange(len(self.lengths) + 1, dtype=torch.int32, device=self.device)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int(self.lengths.max())

    def _group(self, start: int, stop: int, *, first_place: int) -> Group:
        lengths = self.lengths[start:stop]
        longest = int(lengths.max())
        is_token = None
        if (lengths != longest).any():
            is_token = to_device(np.arange(longest) < lengths[:, None], self.device)
        places = slice(first_place, first_place + longest * (stop - start))
        return Group(slice(start, stop), places, longest, is_token)

    def _make_rows(self, heads: int) -> Rows:
        head = np.arange(heads)[:, None]
        sources = []
        for group in self.groups:
            position = np.arange(group.longest)
            token = np.where(
                position < self.lengths[group.texts, None], self.starts[:-1][group.texts, None] + position, -heads
            )
            sources.append((token[:, None] * heads + head).ravel())  # texts, heads, places
        source = np.concatenate(sources)
        is_token = source >= 0
        target = np.empty(self.n_tokens * heads, dtype=np.int64)
        target[source[is_token]] = np.flatnonzero(is_token)
        padding = None if is_token.all() else to_device(np.flatnonzero(~is_token), self.device)
        source = np.where(is_token, source, 0)
        return Rows(to_device(source, self.device), padding, to_device(target, self.device), self.n_idle)
