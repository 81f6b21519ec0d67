"""A start for the head: a regression on what the untouched network makes of the training texts."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import brentq, minimize, minimize_scalar
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

# Times the penalty of the other coefficients: hardly any, as a regression tells other texts apart better than with one
# (docs/accuracy.md), but enough for the intercept of a class without texts to stay finite.
PENALTY_OF_INTERCEPTS = 0.01

# A start need not be the optimum.
MAX_ITERATIONS = 100

# Parts that the texts are dealt into: of each, a regression on the others tells what holds for texts it has not seen.
# Once so many texts have been looked at, more tell little more.
FOLDS = 5
ENOUGH_UNSEEN = 1000

# Nothing being known of other texts, a regression is taken as it is, and that counts as much as so many of them: from
# 12 to 24 texts the training led 1 to 3 points further from a strength of 0.1 to 1 than from what others said, often 0,
# from 32 to 100 no further from more than that (docs/accuracy.md).
UNSEEN_BEFOREHAND = 5

# More than a regression needs, whose penalty keeps it small, where all texts of a class are alike.
STRONGEST = 10.0


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
    *,
    copies: npt.NDArray[np.int64],
) -> None:
    """Add a logistic regression on its inputs to the output layer of a network, in place.

    It minimises the sum of the losses of the texts and half of the squared 2-norm of what is added, of intercepts
    hardly any, over inputs that are scaled to one norm, the mean of theirs: the norm of an input tells little of its
    class and, where texts are few, is taken for much. A head drawn at random sends gradients into the encoder that have
    more to do with the draw than with the texts, and on few texts it never catches up. A regression that knows its
    texts by heart sends none: so it is added at a strength with which it is no surer of them than one can be of others,
    as far as there are enough to tell, see `_strength`. What was drawn stays below: it lets the encoder begin to learn
    where the regression finds nothing. Nothing is added where inputs are not finite, of which the first step will tell.

    Parameters
    ----------
    network : Network
        The network.
    inputs : ndarray of float32, shape (n_texts, width)
        What the output layer sees of each text.
    targets, weights : ndarray
        As those of `LabelledTokens`.
    copies : ndarray of int64, shape (n_texts,)
        A number for each text, the same for copies of a text, counted from 0 as they come.

    References
    ----------
    Kumar et al. (2022), "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution": linear
    probing, then fine-tuning.
    Ren et al. (2023), "How to Prepare Your Task Head for Finetuning": the better the head fits before the fine-tuning,
    the less the encoder adapts.
    """
    if not np.isfinite(inputs).all():
        return
    layer = output_layer(network)
    has_intercept = layer.bias is not None
    texts = _Texts(inputs, targets, weights, copies, n_outputs=layer.out_features, has_intercept=has_intercept)
    regression = _regression(texts)
    added = torch.from_numpy(_at(_strength(regression, texts), regression))
    with torch.no_grad():
        layer.weight.add_(added[:, : layer.in_features].to(layer.weight))
        if layer.bias is not None:
            layer.bias.add_(added[:, -1].to(layer.bias))


@dataclass(frozen=True)
class _Texts:
    """What a regression is fitted to: inputs, targets, weights and copies as in `start_head`."""

    inputs: npt.NDArray[np.float32]
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    copies: npt.NDArray[np.int64]
    n_outputs: int
    has_intercept: bool

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> Self:
        """Return some of the texts."""
        names = ("inputs", "targets", "weights", "copies")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    @property
    def columns(self) -> npt.NDArray[np.float32]:
        """The inputs, and a column of ones behind them if there is an intercept."""
        return self._with_ones(self.inputs)

    @property
    def columns_of_one_norm(self) -> npt.NDArray[np.float32]:
        """The columns, with inputs scaled to the mean of their norms but for zeros, which stay and don't count."""
        norms = np.sqrt(np.einsum("ij,ij->i", self.inputs, self.inputs, dtype=np.float64))
        above_zero = norms[norms > 0]
        mean = above_zero.mean() if len(above_zero) else 0.0
        factors = mean / np.where(norms > 0, norms, 1.0)
        return self._with_ones((self.inputs * factors[:, None]).astype(np.float32))

    def _with_ones(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        ones = np.ones((len(inputs), int(self.has_intercept)), dtype=np.float32)
        return np.concatenate([inputs, ones], axis=1)

    @property
    def effective_number(self) -> float:
        """How many texts of equal weight, none a copy of another, tell as much: Kish (1965), "Survey Sampling"."""
        weights = np.bincount(self.copies, self.weights.reshape(len(self.copies), -1).mean(axis=1))
        squares = float(np.square(weights).sum())
        return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0

    def loss(self, strength: float, logits: npt.NDArray[np.float32]) -> float:
        """Return the loss of logits in two parts, see `_at`, as if the mean of the weights were one."""
        weights = self.weights / self.weights.mean()
        given = (torch.from_numpy(values) for values in (_at(strength, logits), self.targets, weights))
        return float(classification_loss(*given, label_smoothing=0.0))


def _at(strength: float, parts: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the coefficients or logits of a regression at a strength, from two parts: the first plus so much of it.

    The first is the intercepts alone that the shares of the classes have, zero without intercepts, and the second what
    is to be added for the whole regression: at strength 0 all texts are the same.
    """
    at_strength: npt.NDArray[np.float32] = parts[0] + np.float32(strength) * parts[1]
    return at_strength


def _strength(regression: npt.NDArray[np.float32], texts: _Texts) -> float:
    """Return the strength, from 0 to 1, to add a regression at: what other texts say, and 1 as far as they are few.

    It is the mean of both, weighted by the number of other texts and by 5: a regression tells few texts apart even
    where it is so much surer of them than right that others seem to speak against it. The draw of the fifths is always
    the same, and no other depends on it.
    """
    judged, others = _unseen(texts)
    n_unseen = texts[judged].effective_number if len(judged) else 0.0
    if n_unseen == 0:
        return 1.0
    of_others = _strength_of_others(regression, texts[judged], others)
    return (n_unseen * of_others + UNSEEN_BEFOREHAND) / (n_unseen + UNSEEN_BEFOREHAND)


def _strength_of_others(regression: npt.NDArray[np.float32], seen: _Texts, others: npt.NDArray[np.float32]) -> float:
    """Return the strength, from 0 to 1, at which a regression is no surer of its texts than one can be of others.

    Regressions on four fifths of the texts judge the rest, at the strength at which their loss there is lowest: that is
    the loss that the whole regression should have on the same texts, which it has seen. These are all texts, of many as
    many fifths as make 1,000. If all regressions tell nothing of other texts, the strength is 0.

    Parameters
    ----------
    regression : ndarray
        The coefficients of the whole regression, see `_at`.
    seen : _Texts
        The texts that are judged.
    others : ndarray
        Their logits of regressions that have not seen them, see `_at`.
    """
    own = seen.columns @ regression.swapaxes(1, 2)
    bounds, options = (0.0, STRONGEST), {"xatol": 1e-4}
    lowest = minimize_scalar(seen.loss, args=(others,), bounds=bounds, method="bounded", options=options).fun
    if not seen.loss(0.0, own) > lowest:  # or not finite
        return 0.0
    if not seen.loss(1.0, own) < lowest:
        return 1.0 if seen.loss(1.0, own) < seen.loss(0.0, own) else 0.0
    return float(brentq(lambda strength: seen.loss(strength, own) - lowest, 0.0, 1.0, xtol=1e-4))


def _unseen(texts: _Texts) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return rows of texts, and the logits, in two parts, of regressions on the four fifths that they are not in.

    Copies of a text are in the same fifth. Where a text has one label, each fifth has its share of each class, or the
    draw of the classes would count more than what is known of the texts; those whose label the four fifths don't have
    are left out.
    """
    fold = _folds(texts)
    rows = np.empty(0, dtype=np.int64)
    logits = np.empty((2, 0, texts.n_outputs), dtype=np.float32)
    for part in range(FOLDS):
        known, others = np.flatnonzero(fold != part), np.flatnonzero(fold == part)
        if texts.targets.ndim == 1:
            others = others[np.isin(texts.targets[others], texts.targets[known])]
        if len(known) and len(others) and len(rows) < ENOUGH_UNSEEN:
            found = texts[others].columns @ _regression(texts[known]).swapaxes(1, 2)
            rows, logits = np.concatenate([rows, others]), np.concatenate([logits, found], axis=1)
    return rows, logits


def _folds(texts: _Texts) -> npt.NDArray[np.int64]:
    """Return the fifth that each text is in."""
    _, originals = np.unique(texts.copies, return_index=True)
    order = np.random.default_rng(0).permutation(len(originals))
    if texts.targets.ndim == 1:
        order = order[np.argsort(texts.targets[originals[order]], kind="stable")]
    fold = np.empty_like(order)
    fold[order] = np.arange(len(order)) % FOLDS
    return fold[texts.copies]


def _regression(texts: _Texts) -> npt.NDArray[np.float32]:
    """Return the coefficients of a regression, a row an output, in two parts, see `_at`."""
    columns = texts.columns_of_one_norm
    of_shares = np.zeros((texts.n_outputs, columns.shape[1]), dtype=np.float32)
    if texts.has_intercept:
        of_shares[:, -1:] = _minimum(columns[:, -1:], texts)
    return np.stack([of_shares, _minimum(columns, texts) - of_shares])


def _minimum(columns: npt.NDArray[np.float32], texts: _Texts) -> npt.NDArray[np.float32]:
    """Return the coefficients of these columns with the lowest penalised loss, a row an output."""
    penalty = np.ones(columns.shape[1], dtype=np.float32)
    if texts.has_intercept:
        penalty[-1] = PENALTY_OF_INTERCEPTS
    # Not made by torch, whose default device may be another.
    given, known, weighed, penalties = map(torch.from_numpy, (columns, texts.targets, texts.weights, penalty))
    n_losses = texts.targets.size

    def loss_and_gradient(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        """Return the penalised loss and its gradient."""
        coefficients = torch.from_numpy(flat).float().view(texts.n_outputs, -1).requires_grad_()
        losses = classification_loss(given @ coefficients.T, known, weighed, label_smoothing=0.0)
        loss = n_losses * losses + (penalties * coefficients.square()).sum() / 2
        (gradient,) = torch.autograd.grad(loss, coefficients)
        return loss.item(), gradient.double().numpy().ravel()

    start = np.zeros(texts.n_outputs * columns.shape[1])
    with in_own_precision(given.device):  # the caller may be in autocast
        found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS})
    coefficients: npt.NDArray[np.float32] = found.x.reshape(texts.n_outputs, -1).astype(np.float32)
    return coefficients
