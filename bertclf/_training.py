"""The training loop: optimiser, schedule, steps, and what each epoch leaves in the history."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import SchedulerType, get_scheduler

from bertclf._batches import padded_batch, random_batches, to_device
from bertclf._device import Compute
from bertclf._inference import predict_logits
from bertclf._network import Network
from bertclf._tokens import TokenStore

# Reading a loss makes the host wait for a GPU, so losses are looked at this rarely.
STEPS_BETWEEN_CHECKS = 50

# Schedules that look at the loss, once an epoch; all others count steps.
LOSS_SCHEDULES = {"reduce_lr_on_plateau", "greedy"}

# What transformers asks for and has no default of: a floor of a tenth of the peak, and the last tenth for the decay
# (Hägele et al. (2024), "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations": 10 to 20 %).
FLOOR, DECAY_SHARE = 0.1, 0.1


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; the names are those of the classifier's parameters, all resolved to numbers."""

    epochs: int
    batch_size: int
    learning_rate: float
    lr_schedule: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float | None
    label_smoothing: float


@dataclass(frozen=True)
class LabelledTokens:
    """Tokens with the class (position among the classes) and the weight (mean one) of each text."""

    tokens: TokenStore
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


def train(
    network: Network,
    training: LabelledTokens,
    *,
    validation: LabelledTokens | None,
    settings: TrainingSettings,
    compute: Compute,
    generator: np.random.Generator,
    verbose: bool,
) -> list[dict[str, Any]]:
    """Fine-tune a network in place and leave it in evaluation mode.

    Parameters
    ----------
    network : Network
        Called like a sequence-classification model of transformers; it must be on the device of `compute`.
    training, validation : LabelledTokens
        What to learn from, and what to measure on after each epoch; None measures nothing.
    settings : TrainingSettings
        How to train.
    compute : Compute
        Device and precision.
    generator : numpy.random.Generator
        Source of the order of the texts.
    verbose : bool
        Whether to show a progress bar and a line per epoch.

    Returns
    -------
    list of dict
        One row an epoch, see `BertSequenceClassifier.history_`.

    Raises
    ------
    FloatingPointError
        If the loss or a weight becomes NaN or infinite.
    """
    steps_per_epoch = math.ceil(len(training.tokens) / settings.batch_size)
    n_steps = settings.epochs * steps_per_epoch
    optimization = _Optimization(network, settings, n_steps=n_steps, compute=compute)
    history: list[dict[str, Any]] = []
    with tqdm(total=n_steps, unit="step", disable=not verbose) as bar:
        for epoch in range(1, settings.epochs + 1):
            start = time.perf_counter()
            loss = _train_epoch(
                network,
                training,
                optimization=optimization,
                batches=random_batches(training.tokens.lengths, batch_size=settings.batch_size, generator=generator),
                compute=compute,
                epoch=epoch,
                bar=bar,
            )
            trained = time.perf_counter()
            network.eval()
            validation_loss, validation_score = _measure(network, validation, compute=compute)
            row = {
                "epoch": epoch,
                "step": epoch * steps_per_epoch,
                "training_loss": loss,
                "validation_loss": validation_loss,
                "validation_score": validation_score,
                "training_seconds": trained - start,
                "validation_seconds": None if validation is None else time.perf_counter() - trained,
            }
            optimization.end_epoch(loss if validation_loss is None else validation_loss)
            if verbose:
                bar.write(_line(row, settings.epochs))
            history.append(row)
    _check_weights(network)
    return history


def make_optimizer(network: Network, *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW in one fused kernel, with decay on matrices alone: biases and norms are vectors."""
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    vectors = [weight for weight in network.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def classification_loss(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, *, label_smoothing: float
) -> torch.Tensor:
    """Return the mean over the texts of weight times cross-entropy, in float32."""
    losses = cross_entropy(logits.float(), targets, reduction="none", label_smoothing=label_smoothing)
    return (losses * weights).mean()


class _Optimization:
    """AdamW, the course of its learning rate, and the clipping and scaling of gradients."""

    def __init__(self, network: Network, settings: TrainingSettings, *, n_steps: int, compute: Compute) -> None:
        self.network = network
        self.label_smoothing = settings.label_smoothing
        self.max_grad_norm = settings.max_grad_norm
        self.looks_at_loss = settings.lr_schedule in LOSS_SCHEDULES
        self.optimizer = make_optimizer(
            network, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.schedule = _make_schedule(self.optimizer, settings, n_steps=n_steps)
        self.scaler = compute.gradient_scaler()

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, loss: torch.Tensor) -> None:
        """Move the weights down the gradient of the loss of one batch."""
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.unscale_(self.optimizer)
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if not self.looks_at_loss:
            self.schedule.step()

    def end_epoch(self, loss: float) -> None:
        """Tell a schedule that looks at the loss what it was."""
        if self.looks_at_loss:
            self.schedule.step(loss)


def _train_epoch(
    network: Network,
    training: LabelledTokens,
    *,
    optimization: _Optimization,
    batches: Iterable[npt.NDArray[np.int64]],
    compute: Compute,
    epoch: int,
    bar: Any,
) -> float:
    """Take one step for each batch of an epoch and return the mean training loss over its texts."""
    network.train()
    summed = torch.zeros((), device=compute.device)
    unchecked: list[tuple[torch.Tensor, float]] = []
    step = 0
    for step, rows in enumerate(batches, start=1):
        batch = padded_batch(training.tokens, rows, pad_id=network.config.pad_token_id, device=compute.device)
        targets = to_device(training.targets[rows], compute.device)
        weights = to_device(training.weights[rows], compute.device)
        with compute.autocast():
            logits = network(**batch).logits
        loss = classification_loss(logits, targets, weights, label_smoothing=optimization.label_smoothing)
        unchecked.append((loss.detach(), optimization.learning_rate))
        summed += loss.detach() * len(rows)
        optimization.step(loss)
        if len(unchecked) == STEPS_BETWEEN_CHECKS:
            _check_losses(unchecked, epoch=epoch, last_step=step)
            unchecked.clear()
        bar.update()
    _check_losses(unchecked, epoch=epoch, last_step=step)
    return float(summed) / len(training.tokens)


def check_schedule(name: str) -> None:
    """Raise a ValueError if the installed transformers doesn't have a schedule: the newest ones came after 5.3."""
    known = sorted(schedule.value for schedule in SchedulerType)
    if name not in known:
        raise ValueError(
            f"lr_schedule={name!r} is not in the installed transformers, which has {known}. Choose one of these, or "
            "update transformers."
        )


def _make_schedule(optimizer: torch.optim.Optimizer, settings: TrainingSettings, *, n_steps: int) -> Any:
    """Return the learning-rate schedule over exactly `n_steps` steps; warm-up is rounded up, as in `Trainer`."""
    needed: dict[str, dict[str, Any]] = {
        "cosine_with_min_lr": {"min_lr_rate": FLOOR},
        "cosine_warmup_with_min_lr": {"min_lr_rate": FLOOR},
        "warmup_stable_decay": {"num_decay_steps": math.ceil(n_steps * DECAY_SHARE)},
    }
    return get_scheduler(
        settings.lr_schedule,
        optimizer,
        num_warmup_steps=math.ceil(n_steps * settings.warmup_ratio),
        num_training_steps=n_steps,
        scheduler_specific_kwargs=needed.get(settings.lr_schedule),
    )


def _measure(
    network: Network, validation: LabelledTokens | None, *, compute: Compute
) -> tuple[float, float] | tuple[None, None]:
    """Return the mean cross-entropy, without smoothing, and the accuracy on the validation texts."""
    if validation is None:
        return None, None
    logits = predict_logits(network, validation.tokens, compute=compute)
    loss = classification_loss(
        torch.from_numpy(logits),
        torch.from_numpy(validation.targets),
        torch.from_numpy(validation.weights),
        label_smoothing=0.0,
    )
    return float(loss), float(np.mean(logits.argmax(axis=1) == validation.targets))


def _check_losses(losses: list[tuple[torch.Tensor, float]], *, epoch: int, last_step: int) -> None:
    """Raise if a loss of the last steps, given with its learning rate, is not finite."""
    finite = torch.isfinite(torch.stack([loss for loss, _ in losses])).tolist() if losses else []
    if not all(finite):
        position = finite.index(False)
        loss, learning_rate = losses[position]
        raise FloatingPointError(
            f"The training loss is {float(loss)} in step {last_step - len(losses) + 1 + position} of epoch {epoch}, "
            f"at a learning rate of {learning_rate:.3g}. Lower learning_rate, set max_grad_norm=1.0, raise "
            "warmup_ratio, or use precision='float32'."
        )


def _check_weights(network: Network) -> None:
    """Raise if the last steps, which no later loss shows, left a weight that is not finite."""
    for name, weight in network.named_parameters():
        if not torch.isfinite(weight).all():
            raise FloatingPointError(
                f"The weight {name} is not finite after the last step. Lower learning_rate, set max_grad_norm=1.0, "
                "or use precision='float32'."
            )


def _line(row: dict[str, Any], epochs: int) -> str:
    """Return what is shown after an epoch."""
    line = f"epoch {row['epoch']}/{epochs}  training loss {row['training_loss']:.4f}"
    if row["validation_loss"] is not None:
        line += f"  validation loss {row['validation_loss']:.4f}  accuracy {row['validation_score']:.4f}"
    return f"{line}  {row['training_seconds']:.1f} s"
