"""A start for the head: logistic regression on what the untouched network makes of the training texts."""

import warnings

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import nn

from bertclf._device import Compute
from bertclf._engine import Engine
from bertclf._frozen import FrozenStates
from bertclf._inference import prediction_budget, run_network
from bertclf._network import Network, output_layer
from bertclf._steps import LabelledTokens
from bertclf._trees import with_same_weights

# Many more tell the head little more, while each costs a pass through the network and longer regressions.
MAX_TEXTS = 8192

MAX_ITERATIONS = 200
C = 1.0


def head_inputs(
    network: Network,
    training: LabelledTokens,
    states: FrozenStates | None,
    *,
    rows: npt.NDArray[np.int64],
    reader: Engine,
    frozen: int | str,
    compute: Compute,
) -> npt.NDArray[np.float32]:
    """Return what the output layer of a network sees of some texts, without dropout.

    Parameters
    ----------
    network : Network
        The network, in evaluation mode.
    training : LabelledTokens
        The texts.
    states : FrozenStates or None
        What the frozen part of the network makes of the texts; None if nothing is frozen or can't be run apart.
    rows : ndarray of int64
        Which texts.
    reader : Engine
        An engine of the network.
    frozen : int or "encoder"
        What is frozen, as the engine was told.
    compute : Compute
        Device and precision.

    Returns
    -------
    ndarray of float32, shape (len(rows), width)
        Row `i` belongs to text `rows[i]`.
    """
    layer = output_layer(network)
    headless = with_same_weights(network, {layer: nn.Identity()})
    return run_network(
        Engine(headless, device=compute.device, frozen=frozen, like=reader),
        training.tokens,
        n_outputs=layer.in_features,
        compute=compute,
        budget=prediction_budget(compute),
        rows=rows,
        states=states,
    )


def rows_to_probe(n_texts: int, *, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return which texts the head is fitted to: all, or 8,192 drawn at random."""
    if n_texts <= MAX_TEXTS:
        return np.arange(n_texts)
    return np.sort(generator.choice(n_texts, MAX_TEXTS, replace=False))


@torch.no_grad()
def start_head(
    network: Network,
    inputs: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
) -> None:
    """Add a logistic regression on its inputs to the output layer of a network, in place.

    A head drawn at random sends gradients into the encoder that have more to do with the draw than with the texts, and
    on few texts it never catches up. What was drawn stays below, tiny beside a regression that tells anything: it lets
    the encoder begin to learn where the regression finds nothing, such as of a label that all texts have.

    Parameters
    ----------
    network : Network
        The network.
    inputs : ndarray of float32, shape (n_texts, width)
        What the output layer sees of each text.
    targets, weights : ndarray
        As those of `LabelledTokens`.

    References
    ----------
    Kumar et al. (2022), "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution": linear
    probing, then fine-tuning.
    """
    layer = output_layer(network)
    if targets.ndim == 1:
        _take_on(layer, _regression(layer, inputs, targets, weights))
        return
    for label in range(targets.shape[1]):
        _take_on(layer, _regression(layer, inputs, targets[:, label], weights[:, label]), row=label)


def _regression(
    layer: nn.Linear,
    inputs: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
) -> LogisticRegression | None:
    """Return a logistic regression; None if there is nothing to tell apart."""
    counted = weights > 0
    if len(np.unique(targets[counted])) < 2:
        return None
    regression = LogisticRegression(C=C, fit_intercept=layer.bias is not None, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a start need not be the optimum
        return regression.fit(inputs[counted], targets[counted], weights[counted])


def _take_on(layer: nn.Linear, regression: LogisticRegression | None, *, row: int | None = None) -> None:
    """Add the coefficients of a regression to rows of a layer: to one row that of "yes", or to each that of a class."""
    if regression is None:
        return
    coefficients, intercepts = regression.coef_, regression.intercept_
    if row is not None:
        rows = np.array([row])
    else:
        rows = regression.classes_
        if len(rows) == 2:  # one row for the difference of two logits
            coefficients, intercepts = np.outer([-0.5, 0.5], coefficients[0]), intercepts * [-0.5, 0.5]
    layer.weight[rows] += torch.from_numpy(coefficients).to(layer.weight)
    if layer.bias is not None:
        layer.bias[rows] += torch.from_numpy(intercepts).to(layer.bias)
