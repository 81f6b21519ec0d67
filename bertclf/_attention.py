"""Attention within each text of a batch without padding, as networks of transformers ask for it."""

from typing import Any

import torch
from transformers import AttentionInterface

from bertclf._groups import Pattern
from bertclf._kernels import choose
from bertclf._layout import Layout

UNPADDED = "bertclf_unpadded"

# What layers pass along that changes nothing here.
HARMLESS = {"deterministic", "layer_idx", "output_attentions", "position_ids", "use_cache", "cache_position"}


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
    layout.sliding_windows.append(sliding_window)
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
    if layout.keys_and_values is not None:
        key, value = (states.view(-1, *key.shape[1:]) for states in layout.keys_and_values)
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
    pattern = Pattern(layout, scaling=scaling, dropout=dropout, causal=causal, window=window, one_query=one_query)
    return choose(query, pattern)(query, key, value, pattern)


AttentionInterface.register(UNPADDED, unpadded_attention)
