"""Attention over texts that lie one after the other without padding: each token sees the tokens of its own text."""

import copy
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nested import nested_tensor_from_jagged
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from bertclf._batches import to_device
from bertclf._dropout import KeepMasks
from bertclf._random import undisturbed

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None  # type: ignore[assignment]

UNPADDED = "bertclf_unpadded"

# Kinds of devices that have kernels for ragged batches, and the two that jagged tensors may end in: the third, for any
# device, works text by text and reads the lengths back.
RAGGED_DEVICES = {"cuda"}
FUSED_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
HALF_PRECISIONS = {torch.bfloat16, torch.float16}

# Those kernels read vectors in steps of eight numbers, flash attention up to this many a head.
MULTIPLE_OF_HEAD, LARGEST_HEAD = 8, 256

# One dimension of a grid on a CUDA card: what those kernels can number texts by.
MOST_TEXTS = 65_535

# Texts of similar length whose scores are computed at once, padded to the longest of them. Fewer make too many small
# products, more make too much padding: with MiniLM and 32 sentences of 12 to 55 tokens, forward and backward took
# 16 ms in groups of equal length, 9.5 in groups of eight texts, 15.8 in one group (two cores of an AMD EPYC).
TEXTS_PER_GROUP = 8

# What layers pass along that changes nothing here.
HARMLESS = {"deterministic", "layer_idx", "output_attentions", "position_ids", "use_cache", "cache_position"}

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
    seen_by : list of Module
        The attention layers that have followed this layout so far.
    keys_and_values : tuple of Tensor, or None
        Keys and values that take the place of those that a layer makes, see `seen_by_firsts`.
    """

    def __init__(self, lengths: npt.NDArray[np.int64], *, device: torch.device, masks: KeepMasks | None = None) -> None:
        self.lengths = lengths
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.device = device
        self.masks = masks
        self.states: torch.Tensor | None = None
        self.seen_by: list[torch.nn.Module] = []
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


def unpadded_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each text of a flat batch, as the attention interface of transformers calls it.

    Parameters
    ----------
    module : Module
        The attention layer; `is_causal` is its own where not given.
    query, key, value : Tensor, shape (1, heads, n_tokens, size)
        One batch of one row: all texts, one after the other. There may be fewer heads of keys and values.
    attention_mask : None
        A flat batch has none.
    layout : Layout
        Where each text lies.
    scaling : float, default=None
        Factor on the scores; None is one over the square root of `size`.
    dropout : float, default=0.0
        Probability of a dropped score.
    is_causal : bool, default=None
        Whether a token sees only itself and the tokens before it.
    sliding_window : int, default=None
        Tokens see each other at distances less than this; None for all distances.

    Returns
    -------
    Tensor, shape (1, n_tokens, heads, size)
        What each token attends to; and None in place of the scores.

    Raises
    ------
    NotImplementedError
        If a layer wants anything else, such as a bias on the scores.
    """
    unknown = sorted(name for name in others if name not in HARMLESS and others[name] is not None)
    if attention_mask is not None or unknown:
        raise NotImplementedError(f"{type(module).__name__} wants {unknown or 'an attention mask'}.")
    layout.seen_by.append(module)
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    if layout.keys_and_values is not None:
        key, value = (states[0].view(-1, *key.shape[1:]) for states in layout.keys_and_values)
    # In autocast, rotary positions can leave queries and keys in float32.
    query, key = (states.to(value.dtype) for states in (query, key))
    attended = attend(
        query,
        key,
        value,
        layout,
        scaling=scaling,
        dropout=dropout,
        causal=causal,
        window=sliding_window,
        one_query=layout.keys_and_values is not None,
    )
    return attended[None], None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    *,
    scaling: float,
    dropout: float = 0.0,
    causal: bool = False,
    window: int | None = None,
    one_query: bool = False,
) -> torch.Tensor:
    """Attend within each text.

    Arrays are of shape (n_tokens, heads, size); with `one_query`, that of the queries is (n_texts, heads, size): the
    first token of each text alone.
    """
    n_repeats = query.shape[1] // key.shape[1]
    if n_repeats > 1:
        key, value = (states.repeat_interleave(n_repeats, dim=1) for states in (key, value))
    pattern = _Pattern(layout, scaling=scaling, dropout=dropout, causal=causal, window=window, one_query=one_query)
    return _chosen(query, pattern)(query, key, value, pattern)


@dataclass(frozen=True)
class _Pattern:
    """Which tokens see which others, and how the scores are made."""

    layout: Layout
    scaling: float
    dropout: float
    causal: bool
    window: int | None
    one_query: bool

    @property
    def groups(self) -> list[tuple[Group, Group]]:
        """Groups of the queries and of the keys."""
        return [(keys.one_token_each() if self.one_query else keys, keys) for keys in self.layout.groups]

    @property
    def sees_whole_texts(self) -> bool:
        """Whether each query sees all of its text."""
        return not self.causal and (self.window is None or self.window >= self.layout.shortest_and_longest[1])

    def offsets_and_lengths(self) -> list[tuple[torch.Tensor, tuple[int, int]]]:
        """Return for queries, keys and values where texts lie, and the tokens of the shortest and the longest."""
        keys = self.layout.offsets, self.layout.shortest_and_longest
        return [(self.layout.offsets_of_firsts, (1, 1)) if self.one_query else keys, keys, keys]

    def allowed(self, group: Group) -> torch.Tensor | None:
        """Return which keys the queries of a group may see."""
        allowed = group.allowed(causal=self.causal, window=self.window, device=self.layout.device)
        return allowed[..., :1, :] if self.one_query and allowed is not None else allowed

    def draw_mask(self, shape: torch.Size) -> torch.Tensor | None:
        """Return which scores are kept, None if all are."""
        if not self.dropout:
            return None
        if self.layout.masks is None:
            return torch.rand(shape, device=self.layout.device) >= self.dropout
        return self.layout.masks.draw(shape, self.dropout)

    def dropped(self, shares: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
        """Zero what is not kept and scale up the rest."""
        return shares if keep is None else (shares * keep).mul_(1 / (1 - self.dropout))


class _GroupedAttention(torch.autograd.Function):
    """Attention in groups of texts, with dropout, that remembers the shares and no padded copy of its input."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: _Pattern
    ) -> torch.Tensor:
        attended = torch.empty_like(query)
        remembered = []
        for queries, keys in pattern.groups:
            scores = torch.matmul(queries.padded(query), keys.padded(key).transpose(2, 3)).float().mul_(pattern.scaling)
            allowed = pattern.allowed(keys)
            if allowed is not None:
                scores.masked_fill_(~allowed, torch.finfo(scores.dtype).min)
            shares = torch.softmax(scores, dim=-1)
            keep = pattern.draw_mask(shares.shape)
            dropped = pattern.dropped(shares, keep).to(value.dtype)
            attended[queries.tokens] = queries.flat(torch.matmul(dropped, keys.padded(value)))
            remembered += [shares, keep]
        ctx.save_for_backward(query, key, value, *remembered)
        ctx.pattern = pattern
        return attended

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *remembered = ctx.saved_tensors
        pattern: _Pattern = ctx.pattern
        to_query, to_key, to_value = (torch.empty_like(states) for states in (query, key, value))
        for (queries, keys), shares, keep in zip(pattern.groups, remembered[::2], remembered[1::2], strict=True):
            to_attended = queries.padded_with_zeros(gradient)
            dropped = pattern.dropped(shares, keep).to(value.dtype)
            to_value[keys.tokens] = keys.flat(torch.matmul(dropped.transpose(2, 3), to_attended))
            to_shares = torch.matmul(to_attended, keys.padded(value).transpose(2, 3)).float()
            to_scores = pattern.dropped(to_shares, keep).mul_(shares)
            to_scores.addcmul_(shares, to_scores.sum(dim=-1, keepdim=True), value=-1)
            to_scores = to_scores.mul_(pattern.scaling).to(query.dtype)
            to_query[queries.tokens] = queries.flat(torch.matmul(to_scores, keys.padded(key)))
            to_key[keys.tokens] = keys.flat(torch.matmul(to_scores.transpose(2, 3), queries.padded(query)))
        return to_query, to_key, to_value, None


def _in_groups(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: _Pattern) -> torch.Tensor:
    """Attend in padded groups of texts: any pattern, precision and device."""
    needs_gradient = query.requires_grad or key.requires_grad or value.requires_grad
    if pattern.dropout or (needs_gradient and torch.is_grad_enabled()):
        attended: torch.Tensor = _GroupedAttention.apply(query, key, value, pattern)  # type: ignore[no-untyped-call]
        return attended
    attended = torch.empty_like(query)
    for queries, keys in pattern.groups:
        states = scaled_dot_product_attention(
            queries.padded(query),
            keys.padded(key),
            keys.padded(value),
            attn_mask=pattern.allowed(keys),
            scale=pattern.scaling,
        )
        attended[queries.tokens] = queries.flat(states)
    return attended


def _with_varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: _Pattern) -> torch.Tensor:
    """Attend with the flash attention for ragged batches that newer releases of torch have."""
    (starts, (_, n_queries)), (key_starts, (_, n_keys)), _ = pattern.offsets_and_lengths()
    reach = -1 if pattern.window is None else pattern.window - 1
    attended = varlen_attn(
        query,
        key,
        value,
        starts,
        key_starts,
        n_queries,
        n_keys,
        scale=pattern.scaling,
        window_size=(reach, 0 if pattern.causal else reach),
    )
    assert isinstance(attended, torch.Tensor)
    return attended


def _varlen_takes(query: torch.Tensor, pattern: _Pattern) -> bool:
    """Tell whether `varlen_attn` is there and made for this; its first releases knew no window and no scale."""
    return (
        varlen_attn is not None
        and "window_size" in inspect.signature(varlen_attn).parameters
        and query.dtype in HALF_PRECISIONS
        and query.shape[-1] % MULTIPLE_OF_HEAD == 0
        and query.shape[-1] <= LARGEST_HEAD
        and not pattern.dropout
        and (not pattern.one_query or pattern.sees_whole_texts)
    )


def _with_jagged(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: _Pattern) -> torch.Tensor:
    """Attend with jagged tensors, for which torch takes flash or memory-efficient attention."""
    query, key, value = (
        nested_tensor_from_jagged(states.contiguous(), offsets, min_seqlen=shortest, max_seqlen=longest).transpose(1, 2)
        for states, (offsets, (shortest, longest)) in zip(
            (query, key, value), pattern.offsets_and_lengths(), strict=True
        )
    )
    attended = scaled_dot_product_attention(
        query, key, value, dropout_p=pattern.dropout, is_causal=pattern.causal, scale=pattern.scaling
    )
    return attended.transpose(1, 2).values()


def _jagged_takes(query: torch.Tensor, pattern: _Pattern) -> bool:
    """Tell whether jagged tensors are made for this: they know no window."""
    sees_all_before = pattern.causal and pattern.window is None and not pattern.one_query
    return (
        (query.dtype in HALF_PRECISIONS or query.dtype == torch.float32)
        and query.shape[-1] % MULTIPLE_OF_HEAD == 0
        and (pattern.sees_whole_texts or sees_all_before)
    )


_Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, _Pattern], torch.Tensor]

# Kernels for ragged batches and what they take, the best first.
_RAGGED: list[tuple[_Kernel, Callable[[torch.Tensor, _Pattern], bool]]] = [
    (_with_varlen, _varlen_takes),
    (_with_jagged, _jagged_takes),
]


def _chosen(query: torch.Tensor, pattern: _Pattern) -> _Kernel:
    """Return what is to compute the attention: the first kernel that is made for it and works here, else the groups."""
    if query.device.type in RAGGED_DEVICES and len(pattern.layout.lengths) <= MOST_TEXTS:
        for kernel, takes in _RAGGED:
            if takes(query, pattern) and _works(
                kernel,
                query.device,
                query.dtype,
                query.shape[-1],
                dropout=pattern.dropout,
                causal=pattern.causal,
                window=pattern.window,
                one_query=pattern.one_query,
            ):
                return kernel
    return _in_groups


@cache
def _works(
    kernel: _Kernel,
    device: torch.device,
    dtype: torch.dtype,
    size: int,
    *,
    dropout: float,
    causal: bool,
    window: int | None,
    one_query: bool,
) -> bool:
    """Tell whether a kernel computes on this device what the groups do, and a gradient.

    It depends on the card, on the release of torch and on how that was built, so it is tried, once, on two short texts:
    a kernel that only training uses can't fail later. No random numbers of the caller are drawn.
    """
    layout = Layout(np.array([5, 3]), device=device)
    pattern = _Pattern(layout, scaling=size**-0.5, dropout=dropout, causal=causal, window=window, one_query=one_query)
    without_dropout = replace(pattern, dropout=0.0)
    try:
        with (
            _quiet(),
            undisturbed(device),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
            sdpa_kernel(FUSED_BACKENDS),
        ):
            numbers = torch.linspace(-2, 2, steps=8 * size, device=device).to(dtype).view(8, 1, size)
            query, key, value = ((numbers * factor).sin().requires_grad_() for factor in (1, 2, 3))
            states = query[:2] if one_query else query, key, value
            torch.autograd.backward(kernel(*states, pattern).square().sum())
            difference = kernel(*states, without_dropout) - _in_groups(*states, without_dropout)
            return bool(difference.abs().max() < 0.02)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a kernel may raise that the card or the build doesn't have
        return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what torch warns of when a kernel is tried: that it is new, or why it is none for this device."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


AttentionInterface.register(UNPADDED, unpadded_attention)
