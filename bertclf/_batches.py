"""Which texts go together, and how the tokens of their windows become one batch."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from bertclf._tokens import TokenStore, places_of


def flat_batch(
    store: TokenStore, windows: npt.NDArray[np.int64], *, first_position: int, device: torch.device, n_idle: int = 0
) -> dict[str, torch.Tensor]:
    """Lay some windows one after the other, as a batch of one row, with `n_idle` copies of the first token behind them.

    Returns
    -------
    dict of str to Tensor of int64, shape (1, n_tokens)
        `input_ids`, `position_ids`, which begin at `first_position` in each window, and `token_type_ids` where the
        store has segments.
    """
    tokens = places_of(store.offsets, windows)
    positions = tokens - np.repeat(store.offsets[windows], store.lengths[windows])
    batch = {"input_ids": store.ids[tokens], "position_ids": positions + first_position}
    if store.segments is not None:
        batch["token_type_ids"] = store.segments[tokens]
    padded = {name: np.concatenate([values, np.full(n_idle, values[0])]) for name, values in batch.items()}
    return {name: to_device(values.astype(np.int64)[None], device) for name, values in padded.items()}


def padded_batch(
    store: TokenStore, windows: npt.NDArray[np.int64], *, pad_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Gather some windows into one batch, padded on the right up to the longest of them and no further.

    Returns
    -------
    dict of str to Tensor of int64, shape (len(windows), longest)
        `input_ids`, `attention_mask` (1 for tokens, 0 for padding), and `token_type_ids` where the store has segments.
    """
    lengths = store.lengths[windows]
    places = np.arange(lengths.max())
    mask = places < lengths[:, None]
    tokens = (store.offsets[windows][:, None] + places)[mask]
    batch = {"input_ids": np.full(mask.shape, pad_id, dtype=np.int64), "attention_mask": mask.astype(np.int64)}
    batch["input_ids"][mask] = store.ids[tokens]
    if store.segments is not None:
        batch["token_type_ids"] = np.zeros(mask.shape, dtype=np.int64)
        batch["token_type_ids"][mask] = store.segments[tokens]
    return {name: to_device(values, device) for name, values in batch.items()}


def to_device(values: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Copy an array to the device; to a GPU through pinned memory, so that the copy doesn't wait for the device."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def random_batches(n_texts: int, *, batch_size: int, generator: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the texts of one epoch in random batches: each text once, the last batch may hold fewer."""
    order = generator.permutation(n_texts)
    for start in range(0, n_texts, batch_size):
        yield order[start : start + batch_size]


def batches_by_length(
    lengths: npt.NDArray[np.int64], *, max_tokens: int, max_texts: int | None = None
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield all rows, the longest first, in batches of at most `max_tokens` tokens (padding included) or one text.

    There are at most `max_texts` rows in a batch, None for any number.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        n_texts = max(max_tokens // int(lengths[order[start]]), 1)
        stop = start + (n_texts if max_texts is None else min(n_texts, max_texts))
        yield order[start:stop]
        start = stop
