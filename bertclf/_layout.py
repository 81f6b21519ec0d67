"""Where texts lie that stand one after the other without padding, and how some of them fill a padded array."""

import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from bertclf._batches import to_device
from bertclf._dropout import KeepMasks

# Texts of similar length whose scores are computed at once, padded to the longest of them. Fewer make too many small
# products, more make too much padding: with MiniLM and 32 sentences of 12 to 55 tokens, forward and backward took
# 16 ms in groups of equal length, 9.5 in groups of eight texts, 15.8 in one group (two cores of an AMD EPYC).
TEXTS_PER_GROUP = 8

# Scores of one head in a group: eight texts of 180 tokens, or one of 512.
SCORES_PER_GROUP = 1 << 18

# On other devices a product costs mostly its start, so groups hold this many times as much. Not measured.
TIMES_OFF_HOST = 16


@dataclass(frozen=True)
class Group:
    """Some neighbouring texts of a layout and how their tokens fill a padded array of shape (n_texts, longest).

    Attributes
    ----------
    texts, tokens : slice
        Which texts, and where their tokens lie.
    longest : int
        Tokens of the longest of them.
    gather : Tensor of int64, shape (n_texts * longest,), or None
        Token for each place of the padded array, the first one for padding; None if no text needs padding.
    scatter : Tensor of int64, shape (n_tokens,), or None
        Place in the padded array of each token; None if no text needs padding.
    is_token : Tensor of bool, shape (n_texts, longest), or None
        Which places hold tokens; None if all do.
    """

    texts: slice
    tokens: slice
    longest: int
    gather: torch.Tensor | None
    scatter: torch.Tensor | None
    is_token: torch.Tensor | None

    @property
    def n_texts(self) -> int:
        """Number of texts."""
        return int(self.texts.stop - self.texts.start)

    def padded(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the part of an array of shape (n_tokens, heads, size) as (n_texts, heads, longest, size)."""
        part = flat[self.tokens]
        if self.gather is not None:
            part = part.index_select(0, self.gather)
        return part.view(self.n_texts, self.longest, *flat.shape[1:]).transpose(1, 2)

    def padded_with_zeros(self, flat: torch.Tensor) -> torch.Tensor:
        """Return what `padded` does, with zeros in place of padding."""
        if self.scatter is None:
            return self.padded(flat)
        part = flat.new_zeros((self.n_texts * self.longest, *flat.shape[1:]))
        part.index_copy_(0, self.scatter, flat[self.tokens])
        return part.view(self.n_texts, self.longest, *flat.shape[1:]).transpose(1, 2)

    def flat(self, padded: torch.Tensor) -> torch.Tensor:
        """Return an array of shape (n_texts, heads, longest, size) as (n_tokens, heads, size)."""
        part = padded.transpose(1, 2).flatten(0, 1)
        return part if self.scatter is None else part.index_select(0, self.scatter)

    def one_token_each(self) -> "Group":
        """Return a group of the same texts with one token each."""
        return Group(self.texts, self.texts, 1, None, None, None)

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

    Attributes
    ----------
    states : Tensor of shape (n_tokens, width), or None
        Output of a lower part of the network, for the upper part to go on from.
    windows : list of int or None
        Sliding window of each attention layer that has followed this layout so far, None where it has none.
    keys_and_values : tuple of Tensor, or None
        Keys and values that take the place of those that a layer makes, see `seen_by_firsts`.
    """

    def __init__(self, lengths: npt.NDArray[np.int64], *, device: torch.device, masks: KeepMasks | None = None) -> None:
        self.lengths = lengths
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.device = device
        self.masks = masks
        self.states: torch.Tensor | None = None
        self.windows: list[int | None] = []
        self.keys_and_values: tuple[torch.Tensor, torch.Tensor] | None = None

    def seen_by_firsts(self, keys: torch.Tensor, values: torch.Tensor) -> "Layout":
        """Return a layout for queries of the first token of each text alone, which see these keys and values.

        Both are of shape (1, n_tokens, heads * size).
        """
        layout = copy.copy(self)
        layout.keys_and_values = keys, values
        return layout

    @cached_property
    def groups(self) -> list[Group]:
        """The texts in groups, in order."""
        groups, start = [], 0
        while start < len(self.lengths):
            stop = start + self._n_alike(start)
            groups.append(self._group(start, stop))
            start = stop
        return groups

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
    def shortest_and_longest(self) -> tuple[int, int]:
        """Tokens of the shortest and of the longest text."""
        return int(self.lengths.min()), int(self.lengths.max())

    def _group(self, start: int, stop: int) -> Group:
        lengths = self.lengths[start:stop]
        is_token = np.arange(lengths.max()) < lengths[:, None]
        gather = scatter = mask = None
        if not is_token.all():
            places = np.flatnonzero(is_token)
            source = np.zeros(is_token.size, dtype=np.int64)
            source[places] = np.arange(len(places))
            gather, scatter, mask = (to_device(values, self.device) for values in (source, places, is_token))
        tokens = slice(int(self.starts[start]), int(self.starts[stop]))
        return Group(slice(start, stop), tokens, int(lengths.max()), gather, scatter, mask)
