"""Temperature scaling: one number that makes a network as sure as it is right on texts that it hasn't learnt from."""

import math

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar

from bertclf._network import Network, output_layer
from bertclf._steps import LabelledTokens, classification_loss

# Far beyond what networks need: those in Guo et al. (2017) needed from 1 to 3.
COLDEST, HOTTEST = 0.05, 20.0


def best_temperature(logits: npt.NDArray[np.float32], labelled: LabelledTokens) -> float:
    """Return the number by which logits must be divided for the lowest cross-entropy.

    Parameters
    ----------
    logits : ndarray of float32, shape (n_texts, n_classes)
        What the network gives for some texts.
    labelled : LabelledTokens
        The targets of these texts, and their weights in the loss.

    References
    ----------
    Guo et al. (2017), "On Calibration of Modern Neural Networks".
    """
    given = torch.from_numpy(logits).double()
    targets, weights = torch.from_numpy(labelled.targets), torch.from_numpy(labelled.weights)

    def loss(logarithm: float) -> float:
        """Return the loss at a temperature, given by its logarithm."""
        scaled = given / math.exp(logarithm)
        return float(classification_loss(scaled, targets, weights, label_smoothing=0.0))

    bounds = math.log(COLDEST), math.log(HOTTEST)
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x)


@torch.no_grad()
def cool_down(network: Network, temperature: float) -> None:
    """Divide the logits of a network by a number, in place and for good: in the weights that make them."""
    layer = output_layer(network)
    layer.weight.div_(temperature)
    if layer.bias is not None:
        layer.bias.div_(temperature)
