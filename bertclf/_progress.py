"""What a training has come to after an epoch: history, best weights, when it is over, and how to go on from there."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch

from bertclf._budget import TokenBudget
from bertclf._device import Compute
from bertclf._dropout import KeepMasks
from bertclf._files import ModelFileError
from bertclf._network import Network, trained_weights
from bertclf._random import generator_states, set_generator_states
from bertclf._resume import State
from bertclf._steps import Optimization, OptimizerState, TrainingSettings

# Kind of the tensors of a state that are weights of the network.
WEIGHTS = "weights"


@dataclass(frozen=True)
class Trained:
    """What training leaves beside the weights of the network.

    Attributes
    ----------
    history : list of dict
        One row an epoch, see `BertSequenceClassifier.history_`.
    best_epoch : int or None
        Epoch, counted from 1, whose weights the network has after early stopping; None without it.
    optimizer_state : dict of str to Tensor
        What AdamW remembers of the gradients, to train on from here; empty if that was not asked for.
    micro_batch_size : int
        Most texts that went through the network at once.
    temperature : float
        Number by which the logits of the network have been divided since.
    thresholds : list of float or None
        Probability above which a text has each of many labels; None for 0.5.
    """

    history: list[dict[str, Any]]
    best_epoch: int | None
    optimizer_state: OptimizerState
    micro_batch_size: int
    temperature: float = 1.0
    thresholds: list[float] | None = None


class BestWeights:
    """The weights of the best epoch so far, kept in the memory of the host.

    The best epoch is the one with the lowest validation loss; or where a score is watched, the one with the highest
    score, and among equals the one with the lowest loss: on few texts scores such as the accuracy stand still while
    the loss still falls. A NaN is as bad as can be.
    """

    def __init__(self, *, watches_loss: bool) -> None:
        self.epoch = 0
        self._watches_loss = watches_loss
        self._value = (-math.inf, -math.inf)
        self.weights: dict[str, torch.Tensor] = {}

    def see(self, network: Network, row: dict[str, Any]) -> None:
        """Keep the weights of an epoch, given with its row of the history, if no earlier one was as good."""
        if self._is_best(row):
            self.weights = {name: weight.to("cpu", copy=True) for name, weight in trained_weights(network).items()}

    def take_up(self, history: list[dict[str, Any]], weights: dict[str, torch.Tensor]) -> None:
        """Take up the weights of the best of some epochs."""
        for row in history:
            self._is_best(row)
        self.weights = {name: weight.clone() for name, weight in weights.items()}

    def _is_best(self, row: dict[str, Any]) -> bool:
        """Take note of an epoch, and tell whether no earlier one was as good."""
        watched, loss = 0.0 if self._watches_loss else row["validation_score"], row["validation_loss"]
        value = (-math.inf if math.isnan(watched) else watched, -math.inf if math.isnan(loss) else -loss)
        if self.epoch and value <= self._value:
            return False
        self.epoch, self._value = row["epoch"], value
        return True

    def restore(self, network: Network) -> None:
        """Give the network the weights of the best epoch."""
        network.load_state_dict(self.weights, strict=False)
        if self._value[0] == -math.inf:
            warnings.warn(
                "scoring gave NaN after every epoch, so early stopping kept the epoch with the lowest validation loss, "
                f"{self.epoch}. Pass a scorer that is defined on the validation texts.",
                UserWarning,
                stacklevel=2,
            )


class Progress:
    """The epochs of a training so far.

    Parameters
    ----------
    network : Network
        What is trained.
    settings : TrainingSettings
        How it is trained.
    optimization : Optimization
        What steps down the gradient.
    budget : TokenBudget
        How much of a batch goes through the network at once.
    masks : KeepMasks or None
        Source of the dropout masks; None where torch draws them.
    compute : Compute
        Device and precision.

    Attributes
    ----------
    history : list of dict
        One row an epoch.
    best : BestWeights or None
        Weights of the best epoch; None without early stopping.
    is_stopped : bool
        Whether a callback asked for the end.
    """

    def __init__(
        self,
        network: Network,
        *,
        settings: TrainingSettings,
        optimization: Optimization,
        budget: TokenBudget,
        masks: KeepMasks | None,
        compute: Compute,
    ) -> None:
        self.history: list[dict[str, Any]] = []
        self.best = None if settings.n_iter_no_change is None else BestWeights(watches_loss=settings.watches_loss)
        self.is_stopped = False
        self._network = network
        self._settings = settings
        self._optimization = optimization
        self._budget = budget
        self._masks = masks
        self._compute = compute

    @property
    def epoch(self) -> int:
        """Number of epochs that are done."""
        return len(self.history)

    @property
    def step(self) -> int:
        """Number of steps that are done."""
        return self.history[-1]["step"] if self.history else 0

    @property
    def is_over(self) -> bool:
        """Whether no other epoch follows."""
        has_no_gain = self.best is not None and self.epoch - self.best.epoch == self._settings.n_iter_no_change
        return self.is_stopped or has_no_gain or self.epoch == self._settings.epochs

    def end_epoch(self, row: dict[str, Any], *, objective: float) -> None:
        """Take note of an epoch that is done, given with its row of the history and the training loss with smoothing.

        A schedule that looks at the training loss looks at what the steps make fall.
        """
        self.history.append(row)
        self._optimization.end_epoch(objective if row["validation_loss"] is None else row["validation_loss"])
        if self.best is not None:
            self.best.see(self._network, row)

    def trained(self, *, goes_on: bool) -> Trained:
        """Return what the epochs so far have left; with what AdamW remembers if another training is to go on."""
        return Trained(
            history=list(self.history),
            best_epoch=None if self.best is None else self.best.epoch,
            optimizer_state=self._optimization.state if goes_on else {},
            micro_batch_size=self._budget.most_texts,
        )

    def state(self) -> State:
        """Return all that the epochs to come depend on, but for the order of the texts, which is drawn again."""
        values = {
            "history": self.history,
            "is_stopped": self.is_stopped,
            "course": self._optimization.course,
            "masks": None if self._masks is None else self._masks.state,
            "max_tokens": self._budget.max_tokens,
            "most_texts": self._budget.most_texts,
        }
        parts = {
            WEIGHTS: trained_weights(self._network),
            "optimizer": self._optimization.state,
            "generators": generator_states(self._compute.device),
            "best": {} if self.best is None or self.best.epoch == self.epoch else self.best.weights,
        }
        return State(values, {f"{kind}/{name}": value for kind, part in parts.items() for name, value in part.items()})

    def take_up(self, state: State) -> None:
        """Go on from a state. The network must have its weights already, see `take_up_weights`."""
        self.history = list(state.values["history"])
        self.is_stopped = state.values["is_stopped"]
        self._optimization.course = state.values["course"]
        self._optimization.remember(state.part("optimizer"))
        self._budget.max_tokens = state.values["max_tokens"]
        self._budget.most_texts = state.values["most_texts"]
        if self._masks is not None:
            self._masks.state = state.values["masks"]
        if self.best is not None:
            self.best.take_up(self.history, state.part("best") or state.part(WEIGHTS))
        set_generator_states(state.part("generators"), self._compute.device)


def take_up_weights(network: Network, state: State) -> None:
    """Give a network the weights of a state.

    Raises
    ------
    ModelFileError
        If they are not those of such a network.
    """
    weights, own = state.part(WEIGHTS), trained_weights(network)
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in own.items()}:
        raise ModelFileError(
            "checkpoint keeps the weights of another network, perhaps since another version of transformers wrote "
            "them. Pass another folder, or delete its file to begin the fit anew."
        )
    network.load_state_dict(weights, strict=False)
