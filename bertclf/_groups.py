"""Attention in padded groups of texts: any pattern, precision and device, with a gradient of its own."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from bertclf._device import in_own_precision
from bertclf._layout import Group, Layout, Rows


@dataclass(frozen=True)
class _Block:
    """Queries, keys and scores of one group, in arrays that hold those of all groups one after the other.

    `queries` and `keys` are rows of one head of one token; `shape` is (n_texts * heads, n_queries, n_keys); `bias` is
    added to the scores, broadcastable to (n_texts, heads, n_queries, n_keys): zero, or next to minus infinity where a
    query must not see a key; None if all see all.
    """

    queries: slice
    keys: slice
    scores: slice
    shape: tuple[int, int, int]
    bias: torch.Tensor | None

    def of_queries(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the part of all rows, of shape (n_texts * heads, n_queries, size)."""
        return rows[self.queries].view(*self.shape[:2], rows.shape[1])

    def of_keys(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the part of all rows, of shape (n_texts * heads, n_keys, size)."""
        return rows[self.keys].view(self.shape[0], self.shape[2], rows.shape[1])

    def of_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the part of all scores, of `shape`."""
        return scores[self.scores].view(self.shape)


@dataclass(frozen=True)
class Pattern:
    """Which tokens see which others, and how the scores are made."""

    layout: Layout
    scaling: float
    dropout: float
    causal: bool
    window: int | None
    one_query: bool

    @property
    def sees_whole_texts(self) -> bool:
        """Whether each query sees all of its text."""
        return not self.causal and (self.window is None or self.window >= self.layout.shortest_and_longest[1])

    def offsets_and_lengths(self) -> list[tuple[torch.Tensor, tuple[int, int]]]:
        """Return for queries, keys and values where texts lie, and the tokens of the shortest and the longest."""
        keys = self.layout.offsets, self.layout.shortest_and_longest
        return [(self.layout.offsets_of_firsts, (1, 1)) if self.one_query else keys, keys, keys]

    def rows_of_queries(self, heads: int) -> Rows:
        """Return how queries become rows; those of one token a text stand in order already."""
        return Rows.in_order() if self.one_query else self.layout.rows(heads)

    def blocks(self, heads: int, dtype: torch.dtype) -> list[_Block]:
        """Return where each group lies in arrays of all groups, made once for all layers."""
        key = heads, dtype, self.causal, self.window, self.one_query
        if key not in self.layout.made:
            self.layout.made[key] = list(self._make_blocks(heads, dtype))
        blocks: list[_Block] = self.layout.made[key]
        return blocks

    def _make_blocks(self, heads: int, dtype: torch.dtype) -> Iterator[_Block]:
        n_scores = 0
        for group in self.layout.groups:
            places = group.texts if self.one_query else group.places
            shape = (group.n_texts * heads, 1 if self.one_query else group.longest, group.longest)
            scores = slice(n_scores, n_scores := n_scores + math.prod(shape))
            bias = self._bias(group, dtype)
            yield _Block(_times(places, heads), _times(group.places, heads), scores, shape, bias)

    def _bias(self, group: Group, dtype: torch.dtype) -> torch.Tensor | None:
        """Return what is added to the scores of a group."""
        allowed = group.allowed(causal=self.causal, window=self.window, device=self.layout.device)
        if allowed is None:
            return None
        allowed = allowed[..., :1, :] if self.one_query else allowed
        # Half of the least number, so that a score beside it is no infinity.
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
            ~allowed, torch.finfo(dtype).min / 2
        )

    def draw_signs(self, like: torch.Tensor) -> torch.Tensor:
        """Return one for each score that is kept, and minus one for each that is dropped."""
        if self.layout.masks is None:
            keep = (torch.rand(like.shape, device=like.device) >= self.dropout).to(like.dtype)
        else:
            keep = self.layout.masks.draw(like.shape, self.dropout, dtype=like.dtype)
        return keep.mul_(2).sub_(1)


class _GroupedAttention(torch.autograd.Function):
    """Attention in groups of texts, with dropout.

    All that backward needs of a score is one number: its share, and as the sign of that, whether it was kept.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: Pattern
    ) -> torch.Tensor:
        """Return what each query attends to."""
        heads = query.shape[1]
        rows, rows_of_queries = pattern.layout.rows(heads), pattern.rows_of_queries(heads)
        dtype = _dtype_of_products(query)
        blocks = pattern.blocks(heads, dtype)
        queries = rows_of_queries.taken(query).to(dtype)
        keys, values = (rows.taken(states).to(dtype) for states in (key, value))
        with in_own_precision(query.device):
            scores = queries.new_empty(blocks[-1].scores.stop)
            signed = torch.empty_like(scores, dtype=torch.promote_types(dtype, torch.float32))
            for block in blocks:
                some, keys_of_some = block.of_scores(scores), block.of_keys(keys).transpose(1, 2)
                if block.bias is not None:
                    _by_text(some, heads).copy_(block.bias)
                some.baddbmm_(
                    block.of_queries(queries), keys_of_some, beta=int(block.bias is not None), alpha=pattern.scaling
                )
                torch.softmax(some, dim=-1, dtype=signed.dtype, out=block.of_scores(signed))
            if pattern.dropout:
                signed.mul_(pattern.draw_signs(signed))
            kept, factor = _kept(signed, pattern).to(dtype), 1 / (1 - pattern.dropout)
            attended = torch.empty_like(queries)
            for block in blocks:
                _multiply(block.of_scores(kept), block.of_keys(values), factor, out=block.of_queries(attended))
        ctx.save_for_backward(queries, keys, values, signed)
        ctx.pattern, ctx.heads, ctx.dtype = pattern, heads, value.dtype
        return rows_of_queries.put_back(attended.to(value.dtype), heads=heads)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of queries, keys and values."""
        queries, keys, values, signed = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        heads, factor = ctx.heads, 1 / (1 - pattern.dropout)
        rows, rows_of_queries = pattern.layout.rows(heads), pattern.rows_of_queries(heads)
        blocks = pattern.blocks(heads, queries.dtype)
        to_attended = rows_of_queries.taken(gradient, padding=0).to(queries.dtype)
        to_queries, to_keys, to_values = (torch.empty_like(states) for states in (queries, keys, values))
        with in_own_precision(gradient.device):
            kept, to_scores = _kept(signed, pattern).to(queries.dtype), torch.empty_like(signed, dtype=queries.dtype)
            for block in blocks:
                to_some = block.of_queries(to_attended)
                _multiply(block.of_scores(kept).transpose(1, 2), to_some, factor, out=block.of_keys(to_values))
                values_of_some = block.of_keys(values).transpose(1, 2)
                _multiply(to_some, values_of_some, factor, out=block.of_scores(to_scores))
            # Softmax: the gradient times the share, less the share times the sum of these over the keys.
            to_shares = to_scores.to(signed.dtype).mul_(kept)
            shares = signed.abs() if pattern.dropout else signed
            for block in blocks:
                some = block.of_scores(to_shares)
                some.addcmul_(block.of_scores(shares), some.sum(dim=-1, keepdim=True), value=-1)
                some = some.to(queries.dtype)
                _multiply(some, block.of_keys(keys), pattern.scaling, out=block.of_queries(to_queries))
                queries_of_some = block.of_queries(queries)
                _multiply(some.transpose(1, 2), queries_of_some, pattern.scaling, out=block.of_keys(to_keys))
        to_queries = rows_of_queries.put_back(to_queries.to(ctx.dtype), heads=heads)
        to_keys, to_values = (rows.put_back(states.to(ctx.dtype), heads=heads) for states in (to_keys, to_values))
        return to_queries, to_keys, to_values, None


def in_groups(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Attend in padded groups of texts: any pattern, precision and device."""
    needs_gradient = query.requires_grad or key.requires_grad or value.requires_grad
    if pattern.dropout or (needs_gradient and torch.is_grad_enabled()):
        attended: torch.Tensor = _GroupedAttention.apply(query, key, value, pattern)  # type: ignore[no-untyped-call]
        return attended
    if len(pattern.layout.groups) == 1 and pattern.layout.groups[0].is_token is None:
        return _in_one_group(query, key, value, pattern)
    heads = query.shape[1]
    rows, rows_of_queries = pattern.layout.rows(heads), pattern.rows_of_queries(heads)
    queries, keys, values = rows_of_queries.taken(query), rows.taken(key), rows.taken(value)
    attended = torch.empty_like(queries)
    for block in pattern.blocks(heads, query.dtype):
        states = scaled_dot_product_attention(
            _by_text(block.of_queries(queries), heads),
            _by_text(block.of_keys(keys), heads),
            _by_text(block.of_keys(values), heads),
            attn_mask=block.bias,
            scale=pattern.scaling,
        )
        block.of_queries(attended).copy_(states.flatten(0, 1))
    return rows_of_queries.put_back(attended, heads=heads)


def _in_one_group(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Attend within texts of one length, or within a single one: they are a batch as they lie."""
    n_texts, n_tokens = len(pattern.layout.lengths), pattern.layout.n_tokens
    n_queries = n_texts if pattern.one_query else n_tokens
    queries, keys, values = (
        states[:count].view(n_texts, -1, *states.shape[1:]).transpose(1, 2)
        for states, count in zip((query, key, value), (n_queries, n_tokens, n_tokens), strict=True)
    )
    bias = pattern.blocks(query.shape[1], query.dtype)[0].bias
    attended = scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=pattern.scaling)
    attended = attended.transpose(1, 2).flatten(0, 1)
    n_idle = len(query) - n_queries
    return torch.cat([attended, attended.new_zeros((n_idle, *attended.shape[1:]))]) if n_idle else attended


def _dtype_of_products(query: torch.Tensor) -> torch.dtype:
    """Return the precision of the products: on a CPU at least float32, which is as quick in such small ones."""
    return torch.promote_types(query.dtype, torch.float32) if query.device.type == "cpu" else query.dtype


def _kept(signed: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Return the shares that are kept, and zeros for the others."""
    return torch.relu(signed) if pattern.dropout else signed


def _by_text(part: torch.Tensor, heads: int) -> torch.Tensor:
    """Return an array of shape (n_texts * heads, ...) as (n_texts, heads, ...)."""
    return part.view(-1, heads, *part.shape[1:])


def _multiply(left: torch.Tensor, right: torch.Tensor, factor: float, *, out: torch.Tensor) -> None:
    """Write the products of matrices, times a factor, into an array."""
    out.baddbmm_(left, right, beta=0, alpha=factor)


def _times(places: slice, number: int) -> slice:
    return slice(places.start * number, places.stop * number)
