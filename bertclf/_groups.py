"""Attention in padded groups of texts: any pattern, precision and device, with a gradient of its own."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from bertclf._device import in_own_precision
from bertclf._layout import TIMES_OFF_HOST, Group, Layout, Rows

# Scores that pass from the products of queries and keys to those of shares and values at once, to stay in the cache of
# a core: with 12 heads of 32, dropout, and 4 texts of 512 tokens, forward and backward took 64 ms with so many, 65 with
# half of it, 68 with a quarter, 86 with three times as many, 179 with all at once (bfloat16, one core of an EPYC).
SCORES_PER_PART = 1 << 20

# Of shorter rows, softmax computes the exponentials one by one on a CPU, as they don't fill a vector of AVX-512: 12 ns
# a score in rows of 8 to 15, 0.9 in rows of 16, 2.4 with the steps one after the other (float32, the same core).
SHORTEST_ROW = 16


@dataclass(frozen=True)
class _Block:
    """Queries and keys of one group, or of some heads of a single text, and their scores among those of a part.

    `queries` and `keys` are rows of one head of one token, in arrays that hold those of all groups one after the other;
    `shape` is (n_texts, heads, n_queries, n_keys); `bias` is added to the scores, broadcastable to `shape`: zero, or
    next to minus infinity where a query must not see a key; None if all see all.
    """

    queries: slice
    keys: slice
    scores: slice
    shape: tuple[int, int, int, int]
    bias: torch.Tensor | None

    def of_queries(self, rows: torch.Tensor) -> torch.Tensor:
        """Return those of all rows, of shape (n_texts * heads, n_queries, size)."""
        return rows[self.queries].view(-1, self.shape[2], rows.shape[1])

    def of_keys(self, rows: torch.Tensor) -> torch.Tensor:
        """Return those of all rows, of shape (n_texts * heads, n_keys, size)."""
        return rows[self.keys].view(-1, self.shape[3], rows.shape[1])

    def of_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """Return those of the scores of a part, of shape (n_texts * heads, n_queries, n_keys)."""
        return scores[self.scores].view(-1, *self.shape[2:])


@dataclass(frozen=True)
class _Part:
    """Neighbouring blocks whose scores pass at once, and where these lie among those of all parts.

    They are `SCORES_PER_PART` at most, or those of one block that has more: of several texts with many heads.
    """

    scores: slice
    blocks: list[_Block]


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
    def reach(self) -> int | None:
        """To how many tokens on either side a window reaches; None if all of a text."""
        return None if self.window is None or self.window >= self.layout.longest else self.window - 1

    @property
    def sees_whole_texts(self) -> bool:
        """Whether each query sees all of its text."""
        return not self.causal and self.reach is None

    def starts_and_longest(self) -> tuple[torch.Tensor, int, torch.Tensor, int]:
        """Return where texts start and the tokens of the longest, for queries and for keys."""
        keys = self.layout.offsets, self.layout.longest
        return (self.layout.offsets_of_firsts, 1, *keys) if self.one_query else (*keys, *keys)

    def rows_of_queries(self, heads: int) -> Rows:
        """Return how queries become rows; those of one token a text stand in order already."""
        return Rows.in_order() if self.one_query else self.layout.rows(heads)

    def parts(self, heads: int, dtype: torch.dtype) -> list[_Part]:
        """Return the blocks of all groups in parts, made once for all layers."""
        key = heads, dtype, self.causal, self.window, self.one_query
        if key not in self.layout.made:
            self.layout.made[key] = list(self._make_parts(heads, dtype))
        parts: list[_Part] = self.layout.made[key]
        return parts

    def _make_parts(self, heads: int, dtype: torch.dtype) -> Iterator[_Part]:
        most = SCORES_PER_PART * (1 if self.layout.device.type == "cpu" else TIMES_OFF_HOST)
        blocks: list[_Block] = []
        start = stop = 0
        for block in self._blocks(heads, dtype, most=most):
            n_scores = math.prod(block.shape)
            if blocks and stop + n_scores - start > most:
                yield _Part(slice(start, stop), blocks)
                start, blocks = stop, []
            blocks.append(replace(block, scores=_slice(stop - start, n_scores)))
            stop += n_scores
        yield _Part(slice(start, stop), blocks)

    def _blocks(self, heads: int, dtype: torch.dtype, *, most: int) -> Iterator[_Block]:
        """Yield the groups, those of a single text cut into equal numbers of heads with no more scores than `most`."""
        for group in self.layout.groups:
            places = group.texts if self.one_query else group.places
            n_queries, n_keys = 1 if self.one_query else group.longest, group.longest
            bias = self._bias(group, dtype)
            n_blocks = math.ceil(heads / max(most // (n_queries * n_keys), 1)) if group.n_texts == 1 else 1
            some = math.ceil(heads / n_blocks)
            for head in range(0, heads, some):
                n_heads = min(some, heads - head)
                n_rows = group.n_texts * n_heads
                queries = _slice(places.start * heads + head * n_queries, n_rows * n_queries)
                keys = _slice(group.places.start * heads + head * n_keys, n_rows * n_keys)
                shape = (group.n_texts, n_heads, n_queries, n_keys)
                yield _Block(queries, keys, slice(0, math.prod(shape)), shape, bias)

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
        heads, factor = query.shape[1], 1 / (1 - pattern.dropout)
        rows, rows_of_queries = pattern.layout.rows(heads), pattern.rows_of_queries(heads)
        queries, keys, values = rows_of_queries.taken(query), rows.taken(key), rows.taken(value)
        parts = pattern.parts(heads, query.dtype)
        attended = torch.empty_like(queries)
        signed = queries.new_empty(parts[-1].scores.stop, dtype=torch.promote_types(query.dtype, torch.float32))
        with in_own_precision(query.device):
            for part in parts:
                shares = signed[part.scores]
                scores = torch.empty_like(shares, dtype=query.dtype)
                for block in part.blocks:
                    some, keys_of_some = block.of_scores(scores), block.of_keys(keys).transpose(1, 2)
                    if block.bias is not None:
                        some.view(block.shape).copy_(block.bias)
                    some.baddbmm_(
                        block.of_queries(queries), keys_of_some, beta=int(block.bias is not None), alpha=pattern.scaling
                    )
                    _softmax(some, out=block.of_scores(shares))
                if pattern.dropout:
                    shares.mul_(pattern.draw_signs(shares))
                kept = _kept(shares, pattern).to(query.dtype)
                for block in part.blocks:
                    _multiply(block.of_scores(kept), block.of_keys(values), factor, out=block.of_queries(attended))
        ctx.save_for_backward(queries, keys, values, signed)
        ctx.pattern, ctx.heads = pattern, heads
        return rows_of_queries.put_back(attended, heads=heads)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of queries, keys and values."""
        queries, keys, values, signed = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        heads, factor = ctx.heads, 1 / (1 - pattern.dropout)
        rows, rows_of_queries = pattern.layout.rows(heads), pattern.rows_of_queries(heads)
        to_attended = rows_of_queries.taken(gradient, padding=0)
        to_queries, to_keys, to_values = (torch.empty_like(states) for states in (queries, keys, values))
        with in_own_precision(gradient.device):
            for part in pattern.parts(heads, queries.dtype):
                shares = signed[part.scores]
                kept, to_scores = _kept(shares, pattern), torch.empty_like(shares, dtype=queries.dtype)
                kept_of_products = kept.to(queries.dtype)
                for block in part.blocks:
                    to_some, values_of_some = block.of_queries(to_attended), block.of_keys(values).transpose(1, 2)
                    kept_of_some = block.of_scores(kept_of_products).transpose(1, 2)
                    _multiply(kept_of_some, to_some, factor, out=block.of_keys(to_values))
                    _multiply(to_some, values_of_some, factor, out=block.of_scores(to_scores))
                # Softmax: the gradient times the share, less the share times the sum of these over the keys.
                to_shares = to_scores.to(signed.dtype).mul_(kept)
                shares = shares.abs() if pattern.dropout else shares
                for block in part.blocks:
                    some = block.of_scores(to_shares)
                    some.addcmul_(block.of_scores(shares), some.sum(dim=-1, keepdim=True), value=-1)
                    some = some.to(queries.dtype)
                    _multiply(some, block.of_keys(keys), pattern.scaling, out=block.of_queries(to_queries))
                    queries_of_some = block.of_queries(queries)
                    _multiply(some.transpose(1, 2), queries_of_some, pattern.scaling, out=block.of_keys(to_keys))
        to_queries = rows_of_queries.put_back(to_queries, heads=heads)
        to_keys, to_values = (rows.put_back(states, heads=heads) for states in (to_keys, to_values))
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
    for block in chain.from_iterable(part.blocks for part in pattern.parts(heads, query.dtype)):
        states = scaled_dot_product_attention(
            _by_head(block.of_queries(queries), block),
            _by_head(block.of_keys(keys), block),
            _by_head(block.of_keys(values), block),
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
    bias = pattern.parts(query.shape[1], query.dtype)[0].blocks[0].bias
    attended = scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=pattern.scaling)
    attended = attended.transpose(1, 2).flatten(0, 1)
    n_idle = len(query) - n_queries
    return torch.cat([attended, attended.new_zeros((n_idle, *attended.shape[1:]))]) if n_idle else attended


def _kept(signed: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Return the shares that are kept, and zeros for the others."""
    return torch.relu(signed) if pattern.dropout else signed


def _by_head(states: torch.Tensor, block: _Block) -> torch.Tensor:
    """Return an array of shape (n_texts * heads, ...) as (n_texts, heads, ...)."""
    return states.view(*block.shape[:2], *states.shape[1:])


def _softmax(scores: torch.Tensor, *, out: torch.Tensor) -> None:
    """Write the shares of the keys into an array, computed in its precision."""
    if scores.device.type == "cpu" and scores.shape[-1] < SHORTEST_ROW:
        out.copy_(scores).sub_(out.amax(dim=-1, keepdim=True)).exp_()
        out.div_(out.sum(dim=-1, keepdim=True))
    else:
        torch.softmax(scores, dim=-1, dtype=out.dtype, out=out)


def _multiply(left: torch.Tensor, right: torch.Tensor, factor: float, *, out: torch.Tensor) -> None:
    """Write the products of matrices, times a factor, into an array."""
    out.baddbmm_(left, right, beta=0, alpha=factor)


def _slice(start: int, count: int) -> slice:
    return slice(start, start + count)
