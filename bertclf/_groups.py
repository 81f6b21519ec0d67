"""Attention in padded groups of texts: any pattern, precision and device, with a gradient of its own."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from bertclf._layout import Group, Layout


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
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: Pattern
    ) -> torch.Tensor:
        """Return what each query attends to."""
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
        """Return the gradients of queries, keys and values."""
        query, key, value, *remembered = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
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


def in_groups(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: Pattern) -> torch.Tensor:
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
