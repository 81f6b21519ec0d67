"""Steps down the gradient: the loss, its gradient in as many parts as memory asks for, clipping, AdamW, schedule."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.utils import clip_grad_norm_, get_total_norm
from transformers import SchedulerType, get_scheduler

from bertclf._batches import to_device
from bertclf._budget import TokenBudget
from bertclf._device import Compute, forget_casts
from bertclf._engine import Engine
from bertclf._frozen import FrozenStates
from bertclf._tokens import TokenStore

# Schedules that look at the loss, once an epoch; all others count steps.
LOSS_SCHEDULES = {"reduce_lr_on_plateau", "greedy"}

# The schedule whose warm-up doesn't begin with a step of rate zero.
ABOVE_ZERO = "cosine_warmup_with_min_lr"

# What transformers asks for and has no default of: a floor of a tenth of the peak, and the last tenth for the decay
# (Hägele et al. (2024), "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations": 10 to 20 %).
FLOOR, DECAY_SHARE = 0.1, 0.1

# Where the polynomial of transformers ends, which refuses a peak that is lower.
LOWEST_RATE = 1e-7

# State of an optimiser by name of weight and quantity, such as "classifier.bias:exp_avg".
OptimizerState = dict[str, torch.Tensor]
SCALER = "gradient scaler"


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; the names are those of the classifier's parameters, all resolved to numbers.

    `probes` tells whether the head begins with a logistic regression, `calibrates` whether the logits are scaled in the
    end, `seeks_thresholds` whether the thresholds of many labels are sought then. `n_iter_no_change` is None without
    early stopping; `watches_loss` tells whether early stopping looks at the validation loss or at the validation score.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    lr_schedule: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float | None
    label_smoothing: float
    layer_decay: float = 1.0
    freeze: int | str = 0
    probes: bool = False
    n_iter_no_change: int | None = None
    watches_loss: bool = True
    calibrates: bool = False
    seeks_thresholds: bool = False


@dataclass(frozen=True)
class LabelledTokens:
    """Tokens with the targets of each text and its weight in the loss, which is one in the mean.

    Targets are the positions of classes, int64 of shape (n_texts,), or of many labels a float32 matrix of zeros and
    ones, of shape (n_texts, n_labels). Weights are float32, of the same shape.
    """

    tokens: TokenStore
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]

    def of_windows(
        self, windows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64] | npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return targets and weights of some windows: each has an equal share in the weight of its text."""
        texts = self.tokens.texts_of(windows)
        n_windows = self.tokens.n_windows_of(texts).astype(np.float32)
        return self.targets[texts], self.weights[texts] / n_windows.reshape(-1, *[1] * (self.weights.ndim - 1))


def make_optimizer(
    weights: dict[str, nn.Parameter], *, rates: dict[str, float], weight_decay: float
) -> torch.optim.AdamW:
    """Return AdamW in one fused kernel, with decay on matrices alone: biases and norms are vectors.

    `rates` has the peak step size of each weight; the first group is one of those with the largest.
    """
    groups = []
    for rate in sorted(set(rates.values()), reverse=True):
        alike = [weight for name, weight in weights.items() if rates[name] == rate]
        matrices = [weight for weight in alike if weight.ndim > 1]
        vectors = [weight for weight in alike if weight.ndim <= 1]
        groups.append({"params": matrices, "lr": rate, "weight_decay": weight_decay})
        groups.append({"params": vectors, "lr": rate, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=max(rates.values()), fused=True)  # schedules may ask for the common rate


def classification_loss(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, *, label_smoothing: float
) -> torch.Tensor:
    """Return the mean of weight times cross-entropy, in float32.

    Of targets in one dimension it is the cross-entropy of the softmax, a mean over the texts; of an indicator matrix
    that of the sigmoid of each logit, a mean over texts and labels, where smoothing spreads over yes and no.
    """
    logits = logits.float()
    if targets.ndim == 2:
        smooth = targets * (1 - label_smoothing) + label_smoothing / 2
        losses = binary_cross_entropy_with_logits(logits, smooth, reduction="none")
    else:
        losses = cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    return (losses * weights).mean()


class Optimization:
    """AdamW, the course of its learning rate, and the clipping and scaling of gradients."""

    def __init__(
        self,
        engine: Engine,
        settings: TrainingSettings,
        *,
        n_steps: int,
        compute: Compute,
        state: OptimizerState | None,
    ) -> None:
        self.engine = engine
        self.weights = engine.named_parameters()
        self.label_smoothing = settings.label_smoothing
        self.max_grad_norm = settings.max_grad_norm
        self.looks_at_loss = settings.lr_schedule in LOSS_SCHEDULES
        is_flat = settings.layer_decay == 1 or settings.freeze == "encoder"
        depths = dict.fromkeys(self.weights, 0) if is_flat else engine.depths()
        rates = {name: settings.learning_rate * settings.layer_decay ** depths[name] for name in self.weights}
        self.optimizer = make_optimizer(self.weights, rates=rates, weight_decay=settings.weight_decay)
        self.shrinkage = 1.0
        self.scaler = compute.gradient_scaler()
        self.remember(state or {})
        self.schedule = _make_schedule(self.optimizer, settings, n_steps=n_steps)

    @property
    def state(self) -> OptimizerState:
        """What AdamW remembers, by name of weight and quantity, and with float16 the scale of the loss."""
        remembered = {
            f"{name}:{quantity}": value
            for name, weight in self.weights.items()
            for quantity, value in self.optimizer.state.get(weight, {}).items()
        }
        return remembered | {
            f"{SCALER}:{name}": torch.tensor(value, dtype=torch.float64)
            for name, value in self.scaler.state_dict().items()
        }

    def remember(self, state: OptimizerState) -> None:
        """Take up a copy of what AdamW and the scaler remembered."""
        weights = self.weights
        scaler = self.scaler.state_dict()
        for key, value in state.items():
            name, quantity = key.rsplit(":", 1)
            if name == SCALER:
                scaler |= {quantity: type(scaler[quantity])(value.item())} if quantity in scaler else {}
            elif name in weights:  # others were frozen since
                self.optimizer.state[weights[name]][quantity] = value.to(weights[name].device, copy=True)
        if scaler:
            self.scaler.load_state_dict(scaler)

    @property
    def course(self) -> dict[str, Any]:
        """How far the schedule is, and the rates of the next step."""
        return {"schedule": self.schedule.state_dict(), "rates": [group["lr"] for group in self.optimizer.param_groups]}

    @course.setter
    def course(self, course: dict[str, Any]) -> None:
        self.schedule.load_state_dict(course["schedule"])
        for group, rate in zip(self.optimizer.param_groups, course["rates"], strict=True):
            group["lr"] = rate

    @property
    def learning_rate(self) -> float:
        """The rate of the next step, in the head."""
        return float(self.optimizer.param_groups[0]["lr"])

    def add_gradient(self, loss: torch.Tensor) -> None:
        """Add the gradient of a loss to that of the step to come."""
        torch.autograd.backward(self.scaler.scale(loss))

    def forget_gradient(self) -> None:
        """Drop the gradient that was added up."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Move the weights down the gradient."""
        self.scaler.unscale_(self.optimizer)
        if self.max_grad_norm is not None:
            self._clip(self.max_grad_norm)
        # Weight decay of AdamW, which also meets weights that are stood in for: those of the lowest matrices.
        lowest = self.optimizer.param_groups[-2]
        self.shrinkage *= 1 - lowest["lr"] * lowest["weight_decay"]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.forget_gradient()
        if not self.looks_at_loss:
            self.schedule.step()

    def _clip(self, max_norm: float) -> None:
        """Have gradients scaled down to the largest norm allowed.

        The fused step divides gradients by `grad_scale` as it reads them, which saves a pass over all of them. With
        float16 that place is taken by the scale of the loss.
        """
        if self.scaler.is_enabled():
            clip_grad_norm_(self.weights.values(), max_norm)
            return
        norm = get_total_norm([weight.grad for weight in self.weights.values() if weight.grad is not None])
        self.optimizer.grad_scale = (norm / max_norm).clamp(min=1)  # type: ignore[attr-defined]

    def put_back(self) -> None:
        """Write weights that others stand in for into the network."""
        self.engine.put_back(shrinkage=self.shrinkage)
        self.shrinkage = 1.0

    def end_epoch(self, loss: float) -> None:
        """Tell a schedule that looks at the loss what it was."""
        if self.looks_at_loss:
            self.schedule.step(loss)


class Descent:
    """Steps down the gradient of the mean loss of a batch, computed in as many parts as memory asks for."""

    def __init__(
        self,
        engine: Engine,
        training: LabelledTokens,
        states: FrozenStates | None,
        *,
        optimization: Optimization,
        budget: TokenBudget,
        compute: Compute,
    ) -> None:
        self.engine = engine
        self.training = training
        self.states = states
        self.optimization = optimization
        self.budget = budget
        self.compute = compute

    def step(self, texts: npt.NDArray[np.int64]) -> torch.Tensor:
        """Take a step on one batch of texts; return its losses before the step, see `_losses`, on the device."""
        windows = self.training.tokens.windows_of(texts)
        losses: list[torch.Tensor] = []

        def add_part(positions: npt.NDArray[np.int64]) -> None:
            """Add the share that some of the windows have in the gradient."""
            part = self._losses(windows[positions]) * (len(positions) / len(texts))
            with self.compute.autocast(enabled=False):
                self.optimization.add_gradient(part[0])
            losses.append(part.detach())

        def start_over() -> None:
            """Forget the parts."""
            self.optimization.forget_gradient()
            losses.clear()

        forget_casts()
        with self.compute.autocast():  # around all parts, so that each weight is cast once
            self.budget.run(self.training.tokens.lengths[windows], add_part, start_over=start_over)
        self.optimization.step()
        return torch.stack(losses).sum(dim=0)

    def keep_states(self, texts: npt.NDArray[np.int64]) -> None:
        """Have what the frozen part makes of a batch computed in the parts that a step would take, for their bits."""
        if self.states is not None:
            keep, windows = self.states.keep, self.training.tokens.windows_of(texts)
            forget_casts()
            with self.compute.autocast():
                self.budget.run(self.training.tokens.lengths[windows], lambda positions: keep(windows[positions]))

    def _losses(self, windows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the mean loss of some windows, as it is to fall and without smoothing, of shape (2,)."""
        states = None if self.states is None else self.states.of(windows)
        targets, weights = (to_device(each, self.compute.device) for each in self.training.of_windows(windows))
        logits = self.engine.logits(self.training.tokens, windows, states=states)
        smoothing = self.optimization.label_smoothing
        objective = classification_loss(logits, targets, weights, label_smoothing=smoothing)
        plain = classification_loss(logits.detach(), targets, weights, label_smoothing=0.0) if smoothing else objective
        return torch.stack([objective, plain])


def check_schedule(name: str) -> None:
    """Raise a ValueError if the installed transformers doesn't have a schedule: the newest ones came after 5.3."""
    known = sorted(schedule.value for schedule in SchedulerType)
    if name not in known:
        raise ValueError(
            f"lr_schedule={name!r} is not in the installed transformers, which has {known}. Choose one of these, or "
            "update transformers."
        )


def _make_schedule(optimizer: torch.optim.Optimizer, settings: TrainingSettings, *, n_steps: int) -> Any:
    """Return the learning-rate schedule over exactly `n_steps` steps.

    Warm-up is rounded up, as in `Trainer`, but where it begins at zero the last step is none of it.
    """
    n_warmup = math.ceil(n_steps * settings.warmup_ratio)
    if settings.lr_schedule != ABOVE_ZERO:
        n_warmup = min(n_warmup, n_steps - 1)
    needed: dict[str, dict[str, Any]] = {
        "polynomial": {"lr_end": min(LOWEST_RATE, FLOOR * settings.learning_rate)},
        "cosine_with_min_lr": {"min_lr_rate": FLOOR},
        "cosine_warmup_with_min_lr": {"min_lr_rate": FLOOR},
        "warmup_stable_decay": {"num_decay_steps": min(math.ceil(n_steps * DECAY_SHARE), n_steps - n_warmup)},
    }
    return get_scheduler(
        settings.lr_schedule,
        optimizer,
        num_warmup_steps=n_warmup,
        num_training_steps=n_steps,
        scheduler_specific_kwargs=needed.get(settings.lr_schedule),
    )
