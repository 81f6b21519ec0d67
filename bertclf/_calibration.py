"""What texts that a network hasn't learnt from tell of its answers: how sure they should be, where yes begins."""

import math
import warnings

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar

from bertclf._network import Network, output_layer
from bertclf._steps import classification_loss

# Far beyond what networks need: those in Guo et al. (2017) needed from 1 to 3.
COLDEST, HOTTEST = 0.05, 20.0

# How far from 1 temperatures are expected, as the standard deviation of their logarithm: two thirds of them from 0.6 to
# 1.6. It matters where there are few texts: if all of them are right, no temperature is low enough for the loss alone.
EXPECTED_SPREAD = 0.5

# Held-out texts with a label that it takes to tell a threshold; with fewer, F1 is mostly noise.
FEWEST_POSITIVES = 10


def best_temperature(
    logits: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
) -> float:
    """Return the number by which logits must be divided for the lowest cross-entropy, if few texts tell it near 1.

    What is lowest is the sum of the losses of the texts, and half of the squared logarithm of the number, in units of
    its expected spread: the most probable number, if a normal distribution is expected of its logarithm.

    Parameters
    ----------
    logits : ndarray of float32, shape (n_texts, n_classes)
        What the network gives for some texts.
    targets, weights : ndarray
        The targets of these texts, as those of `LabelledTokens`, and the weights of the texts, of a mean of one.

    References
    ----------
    Guo et al. (2017), "On Calibration of Modern Neural Networks", without what is expected.
    """
    given, known, weighed = (torch.from_numpy(values) for values in (logits, targets, weights))

    def loss(logarithm: float) -> float:
        """Return what is to be low at a temperature, given by its logarithm."""
        losses = classification_loss(given / math.exp(logarithm), known, weighed, label_smoothing=0.0)
        return float(losses) + (logarithm / EXPECTED_SPREAD) ** 2 / 2 / len(logits)

    bounds = math.log(COLDEST), math.log(HOTTEST)
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x)


def best_thresholds(
    probabilities: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
) -> list[float]:
    """Return for each of many labels the threshold with the highest F1, 0.5 where few texts have the label.

    Candidates are 0.5, and what lies halfway between neighbouring probabilities; among the best, the one nearest to 0.5
    is taken.

    Parameters
    ----------
    probabilities : ndarray of float32, shape (n_texts, n_labels)
        What the network gives for some texts.
    targets : ndarray, shape (n_texts, n_labels)
        Which labels these texts have: zeros and ones.
    weights : ndarray of float32, shape (n_texts, 1)
        Weights of the texts.
    """
    columns = zip(probabilities.T.astype(np.float64), targets.T > 0, strict=True)
    return [_best_threshold(column, has_label, weights.ravel().astype(np.float64)) for column, has_label in columns]


def warn_about_few_positives(
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32], weights: npt.NDArray[np.float32]
) -> None:
    """Warn of labels that too few texts have to tell their threshold; arguments as those of `best_thresholds`."""
    few = np.flatnonzero(((targets > 0) & (weights > 0)).sum(axis=0) < FEWEST_POSITIVES)
    if len(few):
        warnings.warn(
            f"The thresholds of {len(few)} of {targets.shape[1]} labels stay at 0.5, since fewer than "
            f"{FEWEST_POSITIVES} validation texts have these: columns {', '.join(map(str, few[:10]))}"
            f"{', ...' if len(few) > 10 else ''} of y. Pass X_val and y_val with more of them, or, "
            "without these, raise validation_fraction.",
            UserWarning,
            stacklevel=2,
        )


def _best_threshold(
    probabilities: npt.NDArray[np.float64], has_label: npt.NDArray[np.bool_], weights: npt.NDArray[np.float64]
) -> float:
    """Return the threshold of one label."""
    if (has_label & (weights > 0)).sum() < FEWEST_POSITIVES or not probabilities.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    sorted_down = probabilities[order]
    hits = np.cumsum(weights[order] * has_label[order])
    f1 = 2 * hits / (np.cumsum(weights[order]) + hits[-1])
    below = np.append(sorted_down[1:], 0.0)
    is_possible = below < sorted_down  # texts of one probability stay together
    thresholds = np.where((below <= 0.5) & (sorted_down > 0.5), 0.5, (sorted_down + below) / 2)
    best = is_possible & (f1 >= f1[is_possible].max() - 1e-9)
    candidates = thresholds[best]
    return float(candidates[np.abs(candidates - 0.5).argmin()])


@torch.no_grad()
def cool_down(network: Network, temperature: float) -> None:
    """Divide the logits of a network by a number, in place and for good: in the weights that make them."""
    layer = output_layer(network)
    layer.weight.div_(temperature)
    if layer.bias is not None:
        layer.bias.div_(temperature)
