"""Which texts go together, and how their tokens become one padded batch."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from bertclf._tokens import TokenStore

MAX_POOL = 50


def padded_batch(
    store: TokenStore, rows: npt.NDArray[np.int64], *, pad_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Gather some texts into one batch, padded on the right up to the longest of them and no further.

    Returns
    -------
    dict of str to Tensor of int64, shape (len(rows), longest)
        `input_ids`, `attention_mask` (1 for tokens, 0 for padding), and `token_type_ids` where the store has segments.
    """
    lengths = store.lengths[rows]
    mask = np.arange(lengths.max()) < lengths[:, None]
    batch = {"input_ids": np.full(mask.shape, pad_id, dtype=np.int64), "attention_mask": mask.astype(np.int64)}
    spans = [slice(start, end) for start, end in zip(store.offsets[rows], store.offsets[rows + 1], strict=True)]
    batch["input_ids"][mask] = np.concatenate([store.ids[span] for span in spans])
    if store.segments is not None:
        batch["token_type_ids"] = np.zeros(mask.shape, dtype=np.int64)
        batch["token_type_ids"][mask] = np.concatenate([store.segments[span] for span in spans])
    return {name: to_device(values, device) for name, values in batch.items()}


def to_device(values: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Copy an array to the device; to a GPU through pinned memory, so that the copy doesn't wait for the device."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def random_batches(
    lengths: npt.NDArray[np.int64], *, batch_size: int, generator: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the rows of one epoch in random batches of texts of similar length.

    All rows are shuffled and cut into pools of at most 50 batches; within a pool texts are sorted by length, so that a
    batch needs little padding; then all batches are shuffled, so that lengths come in no order. Every row comes once;
    the rows of an incomplete batch are of any length. Fewer than `8 * batch_size` rows are left in plain random order,
    since sorting would make the same batches of them in every epoch.

    References
    ----------
    The size of the pools is that of `get_length_grouped_indices` in transformers' `trainer_pt_utils.py`.
    """
    order = generator.permutation(len(lengths))
    n_whole = len(lengths) // batch_size * batch_size
    order, rest = order[:n_whole], order[n_whole:]
    pool_size = batch_size * min(max(len(lengths) // (batch_size * 4), 1), MAX_POOL)
    if pool_size > batch_size:
        pools = [order[start : start + pool_size] for start in range(0, n_whole, pool_size)]
        order = np.concatenate([pool[np.argsort(-lengths[pool], kind="stable")] for pool in pools])
    batches = [order[start : start + batch_size] for start in range(0, n_whole, batch_size)]
    if len(rest):
        batches.append(rest)
    for position in generator.permutation(len(batches)):
        yield batches[position]


def batches_by_length(lengths: npt.NDArray[np.int64], *, max_tokens: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield all rows, the longest first, in batches of at most `max_tokens` tokens (padding included) or one text."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        n_texts = max(max_tokens // int(lengths[order[start]]), 1)
        yield order[start : start + n_texts]
        start += n_texts
