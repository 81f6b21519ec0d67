"""Whether a training has come to nothing: the same answer to every text, at the loss that such an answer has."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import entr

from bertclf._defaults import automatic_learning_rate
from bertclf._device import Compute
from bertclf._engine import Engine
from bertclf._inference import predict_logits, prediction_budget
from bertclf._steps import LabelledTokens, TrainingSettings

# Measured with MiniLM on 640 texts: reviews, 2 to 150 classes, 2 % of one class, 10 and 20 rare labels, noise. After 60
# steps or more, networks that had collapsed (at learning rates of 0.003 to 1) gave all texts logits within 0.008, and
# the last epoch had 1.000 times the loss of the best constant answer or more. Where networks had learnt too little for
# another class to win (20 rare labels, rates of 1e-5 and 1e-6, a frozen encoder), logits were at least 0.19 apart; and
# those that had learnt anything had a loss of at most 0.986 times the constant one after 100 steps. Losses are without
# smoothing: with 0.05 of it, a network that had collapsed on 2 % of one class had 1.08 times the constant one.
MIN_STEPS = 100
LOWEST_LOSS = 0.99
NARROWEST = 0.05
TEXTS_ASKED = 256


def warn_if_collapsed(
    history: list[dict[str, Any]],
    training: LabelledTokens,
    *,
    reader: Engine,
    settings: TrainingSettings,
    compute: Compute,
) -> None:
    """Warn if a network gives all texts the same answer, at a loss no lower than such an answer can have.

    Parameters
    ----------
    history : list of dict
        One row an epoch.
    training : LabelledTokens
        What it was trained on.
    reader : Engine
        Runs the network; it must be in evaluation mode.
    settings : TrainingSettings
        How it was trained.
    compute : Compute
        Device and precision.
    """
    step, loss = history[-1]["step"], history[-1]["training_loss"]
    constant = constant_loss(training, n_classes=reader.n_classes)
    if step < MIN_STEPS or loss < LOWEST_LOSS * constant or not np.ptp(training.targets, axis=0).any():
        return
    rows = some_of_each(training.targets, TEXTS_ASKED)
    budget = prediction_budget(compute)
    logits = predict_logits(reader, training.tokens, rows=rows, compute=compute, budget=budget)
    if training.targets.ndim == 1:  # what is added to all logits of a text changes no probability
        logits -= logits.mean(axis=1, keepdims=True)
    if np.ptp(logits, axis=0).max() < NARROWEST:
        is_low = settings.learning_rate < automatic_learning_rate(reader.width)
        # A linear model does not collapse, but may hardly move.
        hardly_moves = is_low or settings.freeze == "encoder"
        remedy = "Raise learning_rate or epochs" if hardly_moves else "Lower learning_rate, raise warmup_ratio"
        warnings.warn(
            f"The training came to nothing: after {step} steps at rates of up to {settings.learning_rate:.3g} the "
            f"network gives the same answer to all of {len(rows)} training texts, and its loss of {loss:.4f} is no "
            f"lower than that of the best answer that does not look at the text, {constant:.4f}. {remedy}, "
            "try another random_state, or set class_weight. If nothing helps, labels may not follow from the texts.",
            UserWarning,
            stacklevel=2,
        )


def constant_loss(training: LabelledTokens, *, n_classes: int) -> float:
    """Return the lowest loss of an answer that is the same for all texts.

    It is the entropy of the shares that the classes have in the weights of the loss; of many labels the mean over these
    of the entropy of yes and no.
    """
    targets, weights = training.targets, training.weights.astype(np.float64)
    if targets.ndim == 1:
        shares = np.bincount(targets, weights=weights, minlength=n_classes) / weights.sum()
        return float(weights.mean() * entr(shares).sum())
    yes = (targets * weights).sum(axis=0)
    no = np.maximum(weights.sum(axis=0) - yes, 0)
    whole = np.maximum(yes + no, np.finfo(np.float64).tiny)
    return float((whole * (entr(yes / whole) + entr(no / whole))).sum() / weights.size)


def some_of_each(targets: npt.NDArray[Any], n_texts: int) -> npt.NDArray[np.int64]:
    """Return the rows of at most so many texts, of each class (or set of labels) as many as of any other, if it has."""
    _, kinds = np.unique(targets, axis=0, return_inverse=True)
    by_kind = np.argsort(kinds.ravel(), kind="stable")
    counts = np.bincount(kinds.ravel())
    rank = np.arange(len(targets)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen: npt.NDArray[np.int64] = by_kind[np.argsort(rank, kind="stable")[:n_texts]]
    return chosen
