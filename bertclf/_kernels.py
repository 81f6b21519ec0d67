"""Which kernel computes the attention of a ragged batch: the one that is made for it and works here."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from bertclf._groups import Pattern, in_groups
from bertclf._layout import Layout
from bertclf._process import lock_for
from bertclf._random import undisturbed

# Kinds of devices that have kernels for ragged batches.
RAGGED_DEVICES = {"cuda"}
HALF_PRECISIONS = {torch.bfloat16, torch.float16}

# Those kernels read vectors in steps of eight numbers, flash attention up to this many a head.
MULTIPLE_OF_HEAD, LARGEST_HEAD = 8, 256

# One dimension of a grid on a CUDA card: what those kernels can number texts by.
MOST_TEXTS = 65_535

# A trial sets torch's generators, which are those of the whole process.
TRYING = "trying kernels"

# Texts of a trial, and how far a kernel may be from the groups in float32, as a share of the norm: in bfloat16 the
# groups themselves are up to 0.011 from that, with heads of 8 to 256.
TRIED_LENGTHS = (5, 3) * 16
MOST_APART = 0.1


def _with_flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Attend with flash attention.

    Both `varlen_attn` and jagged tensors end in this operation, which torch keeps for itself. Forward and backward of
    32 texts of 128 tokens and 12 heads took the host 0.27 ms with it, 0.69 with the former, which knows no dropout, and
    9.6 with the latter, of which the device computed for 0.07 (bfloat16, H200, torch 2.11).
    """
    starts, n_queries, key_starts, n_keys = pattern.starts_and_longest()
    reach = None if pattern.window is None else pattern.window - 1
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
    sees_all_before = pattern.causal and pattern.window is None and not pattern.one_query
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
            with lock_for(TRYING):
                works = _works(
                    kernel,
                    query.device,
                    query.dtype,
                    query.shape[-1],
                    dropout=pattern.dropout,
                    causal=pattern.causal,
                    window=pattern.window,
                    one_query=pattern.one_query,
                )
            if works:
                return kernel
    return in_groups


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
    """Tell whether a kernel computes on this device what the groups do, and gradients of just that.

    It depends on the card, on the release of torch and on how that was built, so it is tried, once, on short texts: a
    kernel that only training uses can't fail later. No random numbers of the caller are drawn.
    """
    layout = Layout(np.array(TRIED_LENGTHS), device=device)
    pattern = Pattern(layout, scaling=size**-0.5, dropout=dropout, causal=causal, window=window, one_query=one_query)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            undisturbed(device),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            return _is_that_of_the_groups(kernel, pattern, dtype, size) and (
                not dropout or _drops_alike(kernel, pattern, dtype, size)
            )
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a kernel may raise that the card or the build doesn't have
        return False


def _is_that_of_the_groups(kernel: _Kernel, pattern: Pattern, dtype: torch.dtype, size: int) -> bool:
    """Tell whether a kernel has outputs and gradients of the groups in float32, each up to rounding."""
    pattern = replace(pattern, dropout=0.0)
    n_tokens, n_texts = pattern.layout.n_tokens, len(TRIED_LENGTHS)
    numbers = torch.linspace(-99, 99, steps=n_tokens * size, device=pattern.layout.device).view(n_tokens, 1, size)
    drawn = [(numbers * factor).sin() for factor in (1, 2, 3)]
    if pattern.one_query:
        drawn[0] = drawn[0][:n_texts]
    found = []
    for way, precision in ((kernel, dtype), (in_groups, torch.float32)):
        query, key, value = states = [each.to(dtype).to(precision).requires_grad_() for each in drawn]
        attended = way(query, key, value, pattern)
        gradients = torch.autograd.grad((attended * drawn[0].to(precision)).sum(), states)
        found.append([each.detach().float() for each in (attended, *gradients)])
    return all(_is_near(*pair) for pair in zip(*found, strict=True))


def _drops_alike(kernel: _Kernel, pattern: Pattern, dtype: torch.dtype, size: int) -> bool:
    """Tell whether the gradient sees the scores dropped that the output saw dropped: a kernel draws them twice.

    Memory-efficient attention of ragged batches doesn't (torch 2.11). Where the values of a text are rows of the
    identity, what is attended are the shares of its tokens, and their sum over the queries is the gradient of each
    value from a gradient of ones.
    """
    pattern = replace(pattern, dropout=0.5)  # so that another mask is far off, however few are to be dropped
    layout, n_texts, heads = pattern.layout, len(TRIED_LENGTHS), 2
    text_of_query = torch.arange(n_texts, device=layout.device) if pattern.one_query else layout.text_of_token
    place = torch.cat([torch.arange(length, device=layout.device) for length in TRIED_LENGTHS])
    query, key = (
        torch.zeros(len(texts), heads, size, dtype=dtype, device=layout.device)
        for texts in (text_of_query, layout.text_of_token)
    )
    identity = torch.eye(size, dtype=dtype, device=layout.device)
    value = identity[place][:, None].repeat(1, heads, 1).requires_grad_()
    attended = kernel(query, key, value, pattern)
    (gradient,) = torch.autograd.grad(attended.sum(), value)
    shares = torch.zeros(n_texts, heads, size, device=layout.device)
    shares.index_add_(0, text_of_query, attended.detach().float())
    return _is_near(gradient[:, :, 0].float(), shares[layout.text_of_token, :, place])


def _is_near(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((actual - expected).norm() < MOST_APART * expected.norm())
