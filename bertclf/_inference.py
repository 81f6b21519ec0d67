"""From a token store to logits, in the caller's order."""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import logsigmoid
from tqdm.auto import tqdm

from bertclf._budget import TokenBudget
from bertclf._device import Compute, forget_casts
from bertclf._engine import Engine
from bertclf._frozen import FrozenStates
from bertclf._tokens import TokenStore

# Tokens of one forward pass. On a CPU more is slower, since intermediate results leave its caches: with MiniLM, 400
# sentences took 5.2 s at 256 tokens, 4.7 at 1,024, 5.3 at 4,096 and 8.5 at 16,384 (one core of an AMD EPYC). The
# numbers of the other devices are not measured; they keep the hidden states of BERT-large within a few GB.
MAX_TOKENS = {"cpu": 1024, "mps": 16_384, "cuda": 65_536}

# In a lower precision they are half as large, and products cost mostly their start: 1,000 sentences took 1.40 s at 512
# tokens, 1.01 at 1,024, 0.91 at 2,048 and 0.99 at 4,096 (bfloat16, two cores of a Xeon with AMX).
MAX_TOKENS_IN_LOWER_PRECISION = MAX_TOKENS | {"cpu": 2048}


# Rows of logits that are turned into probabilities at once, so that of ten million there is no second copy.
TEXTS_AT_ONCE = 1 << 16


def prediction_budget(compute: Compute, *, verbose: bool = False) -> TokenBudget:
    """Return how much goes through the network at once in prediction."""
    limits = MAX_TOKENS if compute.dtype == torch.float32 else MAX_TOKENS_IN_LOWER_PRECISION
    return TokenBudget(limits[compute.device.type], tell=tqdm.write if verbose else None)


def predict_logits(
    engine: Engine,
    store: TokenStore,
    *,
    compute: Compute,
    budget: TokenBudget,
    rows: npt.NDArray[np.int64] | None = None,
    states: FrozenStates | None = None,
) -> npt.NDArray[np.float32]:
    """Run the network over all texts, or over some; see `run_network`.

    Returns
    -------
    ndarray of float32, shape (n_texts, n_classes)
        Row `i` belongs to text `i`, or to that of `rows[i]`.
    """
    n_outputs = engine.n_classes
    return run_network(engine, store, n_outputs=n_outputs, compute=compute, budget=budget, rows=rows, states=states)


def run_network(
    engine: Engine,
    store: TokenStore,
    *,
    n_outputs: int,
    compute: Compute,
    budget: TokenBudget,
    rows: npt.NDArray[np.int64] | None = None,
    states: FrozenStates | None = None,
) -> npt.NDArray[np.float32]:
    """Run a network, whole or without its output layer, over all texts, or over some: of each the mean of its windows.

    Parameters
    ----------
    engine : Engine
        Runs the network; it must be in evaluation mode.
    store : TokenStore
        The texts.
    n_outputs : int
        How many numbers the network gives a text.
    compute : Compute
        Device and precision; the engine must be made for that device.
    budget : TokenBudget
        How much goes through the network at once; it shrinks where memory runs out.
    rows : ndarray of int64 or None, default=None
        Which texts; None for all.
    states : FrozenStates or None, default=None
        What the frozen part of the network makes of the texts; None runs all of it.

    Returns
    -------
    ndarray of float32, shape (n_texts, n_outputs)
        Row `i` belongs to text `i`, or to that of `rows[i]`. Each batch leaves the device as soon as it is done.
    """
    texts = np.arange(len(store)) if rows is None else rows
    wanted = store.windows_of(texts)
    outputs = np.empty((len(wanted), n_outputs), dtype=np.float32)

    def fill_in(places: npt.NDArray[np.int64]) -> None:
        """Fill in the outputs of some windows."""
        known = None if states is None else states.of(wanted[places])
        found = engine.logits(store, wanted[places], states=known).float().cpu().numpy()
        if found.shape[1] != n_outputs:
            raise ValueError(
                f"model_ gives {found.shape[1]} logits a text, but there are {n_outputs} classes: its head was "
                "exchanged. Put one with as many outputs in its place, or fit again."
            )
        outputs[places] = found

    forget_casts()
    with torch.inference_mode(), compute.autocast():
        budget.run(store.lengths[wanted], fill_in)
    return store.means(outputs, texts)


def joined(parts: Iterable[npt.NDArray[np.float32]], *, n_texts: Callable[[], int]) -> npt.NDArray[np.float32]:
    """Return the logits of all texts from those of some after the other: beside them there is never more than a part.

    `n_texts` tells how many texts there are, and is asked only if there is more than one part.
    """
    whole = np.empty((0, 0), dtype=np.float32)
    n_done = 0
    for part in parts:
        if n_done == 0:
            whole = part
        else:
            if n_done == len(whole):
                first, whole = whole, np.empty((n_texts(), part.shape[1]), dtype=np.float32)
                whole[:n_done] = first
            whole[n_done : n_done + len(part)] = part
        n_done += len(part)
    return whole


def probabilities(logits: npt.NDArray[np.float32], *, multilabel: bool) -> npt.NDArray[np.float32]:
    """Turn logits, in place, into the softmax of each row, or of many labels the sigmoid of each, and return them."""
    return _turned(logits, torch.sigmoid if multilabel else partial(torch.softmax, dim=1))


def log_probabilities(logits: npt.NDArray[np.float32], *, multilabel: bool) -> npt.NDArray[np.float32]:
    """Turn logits, in place, into the logarithms of `probabilities`, without passing through these."""
    return _turned(logits, logsigmoid if multilabel else partial(torch.log_softmax, dim=1))


def _turned(
    logits: npt.NDArray[np.float32], function: Callable[[torch.Tensor], torch.Tensor]
) -> npt.NDArray[np.float32]:
    """Write what a function makes of logits in their place, some texts at a time, and return them."""
    for start in range(0, len(logits), TEXTS_AT_ONCE):
        values = torch.from_numpy(logits[start : start + TEXTS_AT_ONCE])
        values.copy_(function(values))
    return logits
