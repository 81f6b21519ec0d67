"""The training loop: optimiser, schedule, steps, early stopping, and what each epoch leaves in the history."""

import math
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.utils import clip_grad_norm_, get_total_norm
from tqdm.auto import tqdm
from transformers import SchedulerType, get_scheduler

from bertclf._batches import random_batches, to_device
from bertclf._budget import TokenBudget
from bertclf._device import Compute
from bertclf._dropout import KeepMasks
from bertclf._engine import Engine
from bertclf._frozen import FrozenMemory, FrozenStates
from bertclf._inference import predict_logits
from bertclf._network import Network
from bertclf._tasks import Task
from bertclf._tokens import TokenStore

# Reading a loss makes the host wait for a GPU, so losses are looked at this rarely.
STEPS_BETWEEN_CHECKS = 50

# Tokens of one forward and backward pass: what bounds the memory of training.
MAX_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 65_536}

# Texts of one pass where texts are padded: a random batch in parts of similar length needs little padding, but on a GPU
# more, smaller passes cost more than padding.
MAX_PADDED_TEXTS = {"cpu": 8}

# Schedules that look at the loss, once an epoch; all others count steps.
LOSS_SCHEDULES = {"reduce_lr_on_plateau", "greedy"}

# What transformers asks for and has no default of: a floor of a tenth of the peak, and the last tenth for the decay
# (Hägele et al. (2024), "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations": 10 to 20 %).
FLOOR, DECAY_SHARE = 0.1, 0.1

# State of an optimiser by name of weight and quantity, such as "classifier.bias:exp_avg".
OptimizerState = dict[str, torch.Tensor]
SCALER = "gradient scaler"


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; the names are those of the classifier's parameters, all resolved to numbers.

    `n_iter_no_change` is None without early stopping; `watches_loss` tells whether early stopping looks at the
    validation loss or at the validation score.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    lr_schedule: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float | None
    label_smoothing: float
    freeze: int | str = 0
    n_iter_no_change: int | None = None
    watches_loss: bool = True


@dataclass(frozen=True)
class LabelledTokens:
    """Tokens with the targets of each text and its weight in the loss, which is one in the mean.

    Targets are the positions of classes, int64 of shape (n_texts,), or of many labels a float32 matrix of zeros and
    ones, of shape (n_texts, n_labels). Weights are float32, of the same shape.
    """

    tokens: TokenStore
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Validation:
    """What to measure after each epoch: the loss on some texts, and the score that their logits get."""

    labelled: LabelledTokens
    score: Callable[[npt.NDArray[np.float32]], float]


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
    """

    history: list[dict[str, Any]]
    best_epoch: int | None
    optimizer_state: OptimizerState
    micro_batch_size: int


def train(
    network: Network,
    training: LabelledTokens,
    *,
    validation: Validation | None,
    reader: Engine,
    settings: TrainingSettings,
    compute: Compute,
    generator: np.random.Generator,
    task: Task,
    snapshot: Callable[[Trained], dict[str, Any]],
    frozen_memory: FrozenMemory | None = None,
    goes_on: bool = False,
    optimizer_state: OptimizerState | None = None,
    verbose: bool,
) -> Trained:
    """Fine-tune a network in place and leave it in evaluation mode.

    Parameters
    ----------
    network : Network
        Called like a sequence-classification model of transformers, in evaluation mode; it must be on the device of
        `compute`.
    training : LabelledTokens
        What to learn from.
    validation : Validation or None
        What to measure after each epoch; None measures nothing. Early stopping needs it.
    reader : Engine
        Runs the network in evaluation.
    settings : TrainingSettings
        How to train.
    compute : Compute
        Device and precision.
    generator : numpy.random.Generator
        Source of the order of the texts.
    task : Task
        The fit, as callbacks follow it; they may end an epoch or the training.
    snapshot : callable
        Returns what a callback can ask for after an epoch, see `Task`, from what training has left by then.
    frozen_memory : FrozenMemory or None, default=None
        Where the output of the frozen part is looked up before it is computed.
    goes_on : bool, default=False
        Whether another training is to go on from here, and needs to know what AdamW remembers.
    optimizer_state : dict or None
        What AdamW remembers from an earlier training of this network; None begins anew.
    verbose : bool
        Whether to show a progress bar and a line per epoch.

    Returns
    -------
    Trained
        History, best epoch, and the state of the optimiser. With early stopping the network has the weights of the
        best epoch.

    Raises
    ------
    FloatingPointError
        If the loss or a weight becomes NaN or infinite.
    """
    steps_per_epoch = math.ceil(len(training.tokens) / settings.batch_size)
    n_steps = settings.epochs * steps_per_epoch
    engine = _make_engine(
        network,
        training,
        reader=reader,
        compute=compute,
        generator=generator,
        whole_table=goes_on,
        frozen=settings.freeze,
    )
    states, states_held_out = (
        _frozen_states(runs, labelled, frozen_memory, is_reused=settings.epochs > 1)
        for runs, labelled in ((engine, training), (reader, None if validation is None else validation.labelled))
    )
    optimization = _Optimization(engine, settings, n_steps=n_steps, compute=compute, state=optimizer_state)
    best = None if settings.n_iter_no_change is None else _BestWeights(watches_loss=settings.watches_loss)
    history: list[dict[str, Any]] = []
    step = 0

    def so_far() -> Trained:
        """Return what training has left by now."""
        state = optimization.state if goes_on else {}
        return Trained(list(history), None if best is None else best.epoch, state, budget.most_texts)

    with tqdm(total=n_steps, unit="step", disable=not verbose) as bar:
        budget = _make_budget(engine, compute, tell=bar.write if verbose else None)
        descent = _Descent(engine, training, states, optimization=optimization, budget=budget, compute=compute)
        for epoch in range(1, settings.epochs + 1):
            with task.epoch(n_batches=steps_per_epoch, snapshot=lambda: snapshot(so_far())) as epoch_task:
                start = time.perf_counter()
                batches = random_batches(len(training.tokens), batch_size=settings.batch_size, generator=generator)
                loss, steps = _train_epoch(descent, batches, epoch=epoch, task=epoch_task, bar=bar)
                step += steps
                optimization.put_back()
                trained = time.perf_counter()
                validation_loss, validation_score = _measure(
                    reader, validation, states=states_held_out, compute=compute
                )
                history.append(
                    {
                        "epoch": epoch,
                        "step": step,
                        "training_loss": loss,
                        "validation_loss": validation_loss,
                        "validation_score": validation_score,
                        "training_seconds": trained - start,
                        "validation_seconds": None if validation is None else time.perf_counter() - trained,
                    }
                )
                optimization.end_epoch(loss if validation_loss is None else validation_loss)
                if verbose:
                    bar.write(_line(history[-1], settings.epochs))
                if best is not None and validation_loss is not None and validation_score is not None:
                    best.see(network, epoch, loss=validation_loss, score=validation_score)
            if epoch_task.is_last or (best is not None and epoch - best.epoch == settings.n_iter_no_change):
                break
        if best is not None:
            best.restore(network)
            if verbose:
                bar.write(f"kept the weights of epoch {best.epoch}")
    _check_weights(network)
    return so_far()


def make_optimizer(weights: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW in one fused kernel, with decay on matrices alone: biases and norms are vectors."""
    weights = list(weights)
    matrices = [weight for weight in weights if weight.ndim > 1]
    vectors = [weight for weight in weights if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


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


class _BestWeights:
    """The weights of the best epoch so far, kept in the memory of the host.

    The best epoch is the one with the lowest validation loss; or where a score is watched, the one with the highest
    score, and among equals the one with the lowest loss: on few texts scores such as the accuracy stand still while
    the loss still falls. A NaN is as bad as can be.
    """

    def __init__(self, *, watches_loss: bool) -> None:
        self.epoch = 0
        self._watches_loss = watches_loss
        self._value = (-math.inf, -math.inf)
        self._weights: dict[str, torch.Tensor] = {}

    def see(self, network: Network, epoch: int, *, loss: float, score: float) -> None:
        """Keep the weights of an epoch if no earlier one was as good."""
        watched = 0.0 if self._watches_loss else score
        value = (-math.inf if math.isnan(watched) else watched, -math.inf if math.isnan(loss) else -loss)
        if not self.epoch or value > self._value:
            self.epoch, self._value = epoch, value
            self._weights = {name: weight.to("cpu", copy=True) for name, weight in network.state_dict().items()}

    def restore(self, network: Network) -> None:
        """Give the network the weights of the best epoch."""
        network.load_state_dict(self._weights)
        if self._value[0] == -math.inf:
            warnings.warn(
                "scoring gave NaN after every epoch, so early stopping kept the epoch with the lowest validation loss, "
                f"{self.epoch}. Pass a scorer that is defined on the validation texts.",
                UserWarning,
                stacklevel=2,
            )


class _Optimization:
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
        self.optimizer = make_optimizer(
            self.weights.values(), learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.shrinkage = 1.0
        self.scaler = compute.gradient_scaler()
        self._remember(state or {})
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

    def _remember(self, state: OptimizerState) -> None:
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
    def learning_rate(self) -> float:
        """The rate of the next step."""
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
        # Weight decay of AdamW, which also meets weights that are stood in for.
        self.shrinkage *= 1 - self.learning_rate * self.optimizer.param_groups[0]["weight_decay"]
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


def _make_engine(
    network: Network,
    training: LabelledTokens,
    *,
    reader: Engine,
    compute: Compute,
    generator: np.random.Generator,
    whole_table: bool,
    frozen: int | str,
) -> Engine:
    """Return what runs the network in training; on a CPU with cheap dropout, and only the embeddings that are used."""
    if not compute.is_host:
        return Engine(network, device=compute.device, frozen=frozen, like=reader)
    # float16 leaves out steps, and with them weight decay, which the rest of the table would not hear of.
    whole_table = whole_table or compute.dtype == torch.float16
    return Engine(
        network,
        device=compute.device,
        masks=KeepMasks(int(generator.integers(1 << 32))),
        token_ids=None if whole_table else np.unique(training.tokens.ids),
        frozen=frozen,
        like=reader,
    )


def _frozen_states(
    engine: Engine, labelled: LabelledTokens | None, memory: FrozenMemory | None, *, is_reused: bool
) -> FrozenStates | None:
    """Return what the frozen part of the network makes of texts; None if nothing is frozen, or can't be run apart."""
    if labelled is None or not engine.has_states:
        return None
    return FrozenStates(engine, labelled.tokens, memory=memory, is_reused=is_reused)


def _make_budget(engine: Engine, compute: Compute, *, tell: Callable[[str], object] | None) -> TokenBudget:
    """Return how much of a batch goes through the network at once."""
    device = compute.device.type
    max_texts = None if engine.is_unpadded else MAX_PADDED_TEXTS.get(device)
    return TokenBudget(MAX_TOKENS[device], max_texts=max_texts, tell=tell)


class _Descent:
    """Steps down the gradient of the mean loss of a batch, computed in as many parts as memory asks for."""

    def __init__(
        self,
        engine: Engine,
        training: LabelledTokens,
        states: FrozenStates | None,
        *,
        optimization: _Optimization,
        budget: TokenBudget,
        compute: Compute,
    ) -> None:
        self.engine = engine
        self.training = training
        self.states = states
        self.optimization = optimization
        self.budget = budget
        self.compute = compute

    def step(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Take a step on one batch of texts; return its loss before the step, on the device."""
        losses: list[torch.Tensor] = []

        def add_part(positions: npt.NDArray[np.int64]) -> None:
            """Add the share that some of the texts have in the gradient."""
            loss = self._loss(rows[positions]) * (len(positions) / len(rows))
            with self.compute.autocast(enabled=False):
                self.optimization.add_gradient(loss)
            losses.append(loss.detach())

        def start_over() -> None:
            """Forget the parts."""
            self.optimization.forget_gradient()
            losses.clear()

        with self.compute.autocast():  # around all parts, so that each weight is cast once
            self.budget.run(self.training.tokens.lengths[rows], add_part, start_over=start_over)
        self.optimization.step()
        return torch.stack(losses).sum()

    def _loss(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the mean loss of some texts."""
        return classification_loss(
            self.engine.logits(
                self.training.tokens, rows, states=None if self.states is None else self.states.of(rows)
            ),
            to_device(self.training.targets[rows], self.compute.device),
            to_device(self.training.weights[rows], self.compute.device),
            label_smoothing=self.optimization.label_smoothing,
        )


def _train_epoch(
    descent: _Descent, batches: Iterable[npt.NDArray[np.int64]], *, epoch: int, task: Task, bar: Any
) -> tuple[float, int]:
    """Take one step for each batch of an epoch; return the mean training loss over its texts, and the steps taken."""
    descent.engine.train()
    summed, n_texts = torch.zeros((), device=descent.compute.device), 0
    unchecked: list[tuple[torch.Tensor, float]] = []
    step = 0
    for step, rows in enumerate(batches, start=1):
        with task.batch() as batch_task:
            learning_rate = descent.optimization.learning_rate
            loss = descent.step(rows)
            unchecked.append((loss, learning_rate))
            summed += loss * len(rows)
            n_texts += len(rows)
        if len(unchecked) == STEPS_BETWEEN_CHECKS:
            _check_losses(unchecked, epoch=epoch, last_step=step)
            unchecked.clear()
        bar.update()
        if batch_task.is_last:
            break
    _check_losses(unchecked, epoch=epoch, last_step=step)
    return float(summed) / n_texts, step


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
    engine: Engine, validation: Validation | None, *, states: FrozenStates | None, compute: Compute
) -> tuple[float, float] | tuple[None, None]:
    """Return the weighted mean of the cross-entropy, without smoothing, and the score on the validation texts."""
    if validation is None:
        return None, None
    labelled = validation.labelled
    logits = predict_logits(engine, labelled.tokens, compute=compute, states=states)
    loss = classification_loss(
        torch.from_numpy(logits),
        torch.from_numpy(labelled.targets),
        torch.from_numpy(labelled.weights),
        label_smoothing=0.0,
    )
    return float(loss), validation.score(logits)


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
        line += f"  validation loss {row['validation_loss']:.4f}  validation score {row['validation_score']:.4f}"
    return f"{line}  {row['training_seconds']:.1f} s"
