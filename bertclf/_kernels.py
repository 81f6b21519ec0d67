"""Which kernel computes the attention of a ragged batch: the one that is made for it and works here."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from bertclf._groups import Pattern, in_groups
from bertclf._layout import Layout
from bertclf._random import seeded

# Kinds of devices that have kernels for ragged batches.
RAGGED_DEVICES = {"cuda"}
HALF_PRECISIONS = {torch.bfloat16, torch.float16}

# Those kernels read vectors in steps of eight numbers, flash attention up to this many a head.
MULTIPLE_OF_HEAD, LARGEST_HEAD = 8, 256

# One dimension of a grid on a CUDA card: what those kernels can number texts by.
MOST_TEXTS = 65_535

# Texts of a trial, of which the longest fill several tiles of a kernel, and its heads.
TRIED_LENGTHS = (150, 70, 5, 3, 1) * 4
TRIED_HEADS = 2

# Windows are tried up to this many tokens to each side, so that one token more or less makes a difference.
TRIED_REACH = 15

# How far a kernel may be from what is right, as a share of the norm: in bfloat16 the groups themselves are up to 0.004
# from what they are in float32, with heads of 8 to 256.
MOST_APART = 0.05


def _with_flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Attend with flash attention.

    Both `varlen_attn` and jagged tensors end in this operation, which torch keeps for itself. Forward and backward of
    32 texts of 128 tokens and 12 heads took the host 0.27 ms with it, 0.69 with the former, which knows no dropout, and
    9.6 with the latter, of which the device computed for 0.07 (bfloat16, H200, torch 2.11).
    """
    starts, n_queries, key_starts, n_keys = pattern.starts_and_longest()
    reach = pattern.reach
    attended: torch.Tensor = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        starts,
        key_starts,
        n_queries,
        n_keys,
        pattern.dropout,
        pattern.causal and reach is None,
        False,
        scale=pattern.scaling,
        window_size_left=reach,
        window_size_right=0 if pattern.causal and reach is not None else reach,
    )[0]
    return attended


def _flash_takes(query: torch.Tensor, pattern: Pattern) -> bool:
    """Tell whether flash attention is made for this."""
    return (
        query.dtype in HALF_PRECISIONS
        and query.shape[-1] % MULTIPLE_OF_HEAD == 0
        and query.shape[-1] <= LARGEST_HEAD
        and (not pattern.one_query or pattern.sees_whole_texts)
    )


def _with_efficient(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Attend with memory-efficient attention, in which jagged tensors end where flash attention is not to be had."""
    starts, n_queries, key_starts, n_keys = pattern.starts_and_longest()
    attended: torch.Tensor = torch.ops.aten._efficient_attention_forward(
        *(states.contiguous()[None] for states in (query, key, value)),
        None,
        starts,
        key_starts,
        n_queries,
        n_keys,
        pattern.dropout,
        int(pattern.causal),
        torch.is_grad_enabled(),  # whether what the backward pass needs is kept
        scale=pattern.scaling,
    )[0]
    return attended[0]


def _efficient_takes(query: torch.Tensor, pattern: Pattern) -> bool:
    """Tell whether memory-efficient attention is made for this: it knows no window to both sides."""
    sees_all_before = pattern.causal and pattern.reach is None and not pattern.one_query
    return (
        (query.dtype in HALF_PRECISIONS or query.dtype == torch.float32)
        and query.shape[-1] % MULTIPLE_OF_HEAD == 0
        and (pattern.sees_whole_texts or sees_all_before)
    )


_Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Pattern], torch.Tensor]

# Kernels for ragged batches and what they take, the best first.
_RAGGED: list[tuple[_Kernel, Callable[[torch.Tensor, Pattern], bool]]] = [
    (_with_flash, _flash_takes),
    (_with_efficient, _efficient_takes),
]


def choose(query: torch.Tensor, pattern: Pattern) -> _Kernel:
    """Return what is to compute the attention: the first kernel that is made for it and works here, else the groups."""
    if query.device.type in RAGGED_DEVICES and len(pattern.layout.lengths) <= MOST_TEXTS:
        for kernel, takes in _RAGGED:
            if not takes(query, pattern):
                continue
            if _works(
                kernel,
                query.device,
                query.dtype,
                query.shape[-1],
                drops=pattern.dropout > 0,
                causal=pattern.causal,
                reach=None if pattern.reach is None else min(pattern.reach, TRIED_REACH),
                one_query=pattern.one_query,
            ):
                return kernel
    return in_groups


@cache
def _works(
    kernel: _Kernel,
    device: torch.device,
    dtype: torch.dtype,
    size: int,
    *,
    drops: bool,
    causal: bool,
    reach: int | None,
    one_query: bool,
) -> bool:
    """Tell whether a kernel computes on this device what the groups do, and gradients of just that.

    It depends on the card, on the release of torch and on how that was built, so it is tried, once, on a few texts: a
    kernel that only training uses can't fail later.
    """
    pattern = Pattern(
        Layout(np.array(TRIED_LENGTHS), device=device),
        scaling=0.7 * size**-0.5,  # not what a kernel takes if it isn't told
        dropout=0.0,
        causal=causal,
        window=None if reach is None else reach + 1,
        one_query=one_query,
    )
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            states = _drawn_states(pattern, dtype, size)
            works = _is_that_of_the_groups(kernel, pattern, states)
            if works and drops:
                with seeded(0, device):
                    works = _drops_alike(kernel, replace(pattern, dropout=0.25), states)
            return works
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a kernel may raise that the card or the build doesn't have
        return False


def _drawn_states(pattern: Pattern, dtype: torch.dtype, size: int) -> list[torch.Tensor]:
    """Return queries, keys, values and a gradient of what is attended, as views of one array, always the same."""
    shape = (pattern.layout.n_tokens, 4, TRIED_HEADS, size)
    drawn = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    query, key, value, gradient = drawn.to(pattern.layout.device, dtype).unbind(1)
    if pattern.one_query:
        query, gradient = (states[: len(TRIED_LENGTHS)] for states in (query, gradient))
    return [query, key, value, gradient]


def _is_that_of_the_groups(kernel: _Kernel, pattern: Pattern, states: list[torch.Tensor]) -> bool:
    """Tell whether a kernel has the outputs and the gradients that the groups have in float32, each up to rounding."""
    found = _outputs_and_gradients(kernel, pattern, states)
    expected = _outputs_and_gradients(in_groups, pattern, [each.float() for each in states])
    return all(map(_is_near, found, expected))


def _outputs_and_gradients(kernel: _Kernel, pattern: Pattern, states: list[torch.Tensor]) -> list[torch.Tensor]:
    query, key, value = inputs = [each.detach().requires_grad_() for each in states[:3]]
    attended = kernel(query, key, value, pattern)
    return [attended.detach(), *torch.autograd.grad(attended, inputs, states[3])]


def _drops_alike(kernel: _Kernel, pattern: Pattern, states: list[torch.Tensor]) -> bool:
    """Tell whether a kernel drops scores and makes up for it, and its gradient sees the same scores dropped.

    A kernel draws them twice; memory-efficient attention of ragged batches doesn't draw them alike (torch 2.11). What
    is attended is linear in the values, so its products with a gradient are those of the values with theirs.
    """
    query, key, value, gradient = states
    attended, *_, gradient_of_value = _outputs_and_gradients(kernel, pattern, states)
    kept = kernel(query, key, torch.ones_like(value), pattern).float()  # of the shares, which sum up to one
    return (
        _is_near((value.float() * gradient_of_value).sum(0), (attended * gradient.float()).sum(0))
        and bool((kept.mean() - 1).abs() < 0.2)
        and bool((kept - 1).abs().max() > 0.05)
    )


def _is_near(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Tell whether what was computed, in any precision, is what it should be up to rounding."""
    return bool((actual.float() - expected).norm() < MOST_APART * expected.norm())
