"""Which kernel computes the attention of a ragged batch: the one that is made for it and works here."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch.nested import nested_tensor_from_jagged
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from bertclf._groups import Pattern, in_groups
from bertclf._layout import Layout
from bertclf._process import lock_for
from bertclf._random import undisturbed
from bertclf._silence import quiet

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None  # type: ignore[assignment]

# Kinds of devices that have kernels for ragged batches, and the two that jagged tensors may end in: the third, for any
# device, works text by text and reads the lengths back.
RAGGED_DEVICES = {"cuda"}
FUSED_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
HALF_PRECISIONS = {torch.bfloat16, torch.float16}

# Those kernels read vectors in steps of eight numbers, flash attention up to this many a head.
MULTIPLE_OF_HEAD, LARGEST_HEAD = 8, 256

# One dimension of a grid on a CUDA card: what those kernels can number texts by.
MOST_TEXTS = 65_535

# A trial sets switches of the whole process.
TRYING = "trying kernels"

# torch tells there, at the first jagged tensor, of a function that it calls itself.
LOGS = ("torch.fx._symbolic_trace",)


def _with_varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: Pattern) -> torch.Tensor:
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


def _varlen_takes(query: torch.Tensor, pattern: Pattern) -> bool:
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


def _with_jagged(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: Pattern) -> torch.Tensor:
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


def _jagged_takes(query: torch.Tensor, pattern: Pattern) -> bool:
    """Tell whether jagged tensors are made for this: they know no window."""
    sees_all_before = pattern.causal and pattern.window is None and not pattern.one_query
    return (
        (query.dtype in HALF_PRECISIONS or query.dtype == torch.float32)
        and query.shape[-1] % MULTIPLE_OF_HEAD == 0
        and (pattern.sees_whole_texts or sees_all_before)
    )


_Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Pattern], torch.Tensor]

# Kernels for ragged batches and what they take, the best first.
_RAGGED: list[tuple[_Kernel, Callable[[torch.Tensor, Pattern], bool]]] = [
    (_with_varlen, _varlen_takes),
    (_with_jagged, _jagged_takes),
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
    """Tell whether a kernel computes on this device what the groups do, and a gradient.

    It depends on the card, on the release of torch and on how that was built, so it is tried, once, on two short texts:
    a kernel that only training uses can't fail later. No random numbers of the caller are drawn.
    """
    layout = Layout(np.array([5, 3]), device=device)
    pattern = Pattern(layout, scaling=size**-0.5, dropout=dropout, causal=causal, window=window, one_query=one_query)
    without_dropout = replace(pattern, dropout=0.0)
    try:
        with (
            quiet(LOGS),
            warnings.catch_warnings(action="ignore"),
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
            difference = kernel(*states, without_dropout) - in_groups(*states, without_dropout)
            return bool(difference.abs().max() < 0.02)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a kernel may raise that the card or the build doesn't have
        return False
