"""A start for the head: a regression on what the untouched network makes of the training texts."""

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import nn

from bertclf._device import Compute, in_own_precision
from bertclf._engine import Engine
from bertclf._frozen import FrozenStates
from bertclf._inference import prediction_budget, run_network
from bertclf._network import Network, output_layer
from bertclf._steps import LabelledTokens, classification_loss
from bertclf._trees import with_same_weights

# Many more tell the head little more, while each costs a pass through the network and a longer regression.
MAX_TEXTS = 8192

# A start need not be the optimum.
MAX_ITERATIONS = 100

# A fifth of the texts, drawn at random, tells whether the regression holds for others, if that is enough to tell: its
# loss on these must be a hundredth lower than that of the shares of the classes, or the draw would decide.
FOLDS = 5
FEWEST_HELD_OUT = 50
LOW_ENOUGH = 0.99


def rows_to_probe(n_texts: int, *, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return which texts the head is fitted to: all, or 8,192 drawn at random."""
    if n_texts <= MAX_TEXTS:
        return np.arange(n_texts)
    return np.sort(generator.choice(n_texts, MAX_TEXTS, replace=False))


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
    """Return what the output layer of a network sees of some texts, without dropout: the mean over their windows.

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


def start_head(
    network: Network,
    inputs: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
) -> None:
    """Add a logistic regression on its inputs to the output layer of a network, in place.

    It minimises the sum of the losses of the texts and half of the squared 2-norm of what is added, intercepts
    included. A head drawn at random sends gradients into the encoder that have more to do with the draw than with the
    texts, and on few texts it never catches up. What was drawn stays below, tiny beside a regression that tells
    anything: it lets the encoder begin to learn where the regression finds nothing. A regression that is further from
    the labels of other texts than the shares of the classes are, be it wrong or too sure, is not added: the training
    would begin with texts learnt by heart. Nor is it where inputs are not finite, of which the first step will tell.

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
    if not np.isfinite(inputs).all():
        return
    layer = output_layer(network)
    if layer.bias is not None:
        inputs = np.concatenate([inputs, np.ones_like(inputs[:, :1])], axis=1)
    if not _holds_for_others(inputs, targets, weights, n_outputs=layer.out_features):
        return
    added = _regression(inputs, targets, weights, n_outputs=layer.out_features)
    with torch.no_grad():
        layer.weight.add_(torch.from_numpy(added[:, : layer.in_features]).to(layer.weight))
        if layer.bias is not None:
            layer.bias.add_(torch.from_numpy(added[:, -1]).to(layer.bias))


def _holds_for_others(
    inputs: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
    *,
    n_outputs: int,
) -> bool:
    """Tell whether a regression on four fifths of the texts is closer to the rest than the shares of the classes are.

    Of few texts nobody can tell: then it is taken to be. Where a text has one label, those that the four fifths don't
    have are left out. The draw is always the same, and no other depends on it.
    """
    is_held_out = np.random.default_rng(0).permutation(len(inputs)) % FOLDS == 0
    is_known = ~is_held_out
    if targets.ndim == 1:
        is_held_out &= np.isin(targets, targets[is_known])
    if is_held_out.sum() < FEWEST_HELD_OUT:
        return True

    def loss_from(columns: npt.NDArray[np.float32]) -> float:
        """Return the loss of the texts that are held out, where a regression sees these columns."""
        found = _regression(columns[is_known], targets[is_known], weights[is_known], n_outputs=n_outputs)
        given, known, weighed = (torch.from_numpy(values[is_held_out]) for values in (columns, targets, weights))
        with in_own_precision(given.device):
            logits = given @ torch.from_numpy(found.T).float()
        return float(classification_loss(logits, known, weighed, label_smoothing=0.0))

    return loss_from(inputs) < LOW_ENOUGH * loss_from(np.ones_like(inputs[:, :1]))


def _regression(
    inputs: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
    *,
    n_outputs: int,
) -> npt.NDArray[np.float64]:
    """Return the coefficients, a row an output."""
    given, known, weighed = (torch.from_numpy(values) for values in (inputs, targets, weights))
    n_losses = targets.size

    def loss_and_gradient(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        """Return the penalised loss and its gradient."""
        coefficients = torch.from_numpy(flat).float().view(n_outputs, -1).requires_grad_()
        losses = classification_loss(given @ coefficients.T, known, weighed, label_smoothing=0.0)
        loss = n_losses * losses + coefficients.square().sum() / 2
        (gradient,) = torch.autograd.grad(loss, coefficients)
        return loss.item(), gradient.double().numpy().ravel()

    start = np.zeros(n_outputs * inputs.shape[1])
    with in_own_precision(given.device):  # the caller may be in autocast
        found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS})
    coefficients: npt.NDArray[np.float64] = found.x.reshape(n_outputs, -1)
    return coefficients
