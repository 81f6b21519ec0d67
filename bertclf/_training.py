"""The training loop: epochs of steps, early stopping, and what each epoch leaves in the history."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

from bertclf._batches import random_batches
from bertclf._budget import TokenBudget
from bertclf._calibration import best_temperature, best_thresholds, cool_down, warn_about_few_positives
from bertclf._collapse import warn_if_collapsed
from bertclf._device import Compute
from bertclf._dropout import KeepMasks
from bertclf._engine import Engine
from bertclf._frozen import FrozenMemory, FrozenStates
from bertclf._inference import predict_logits, prediction_budget, probabilities
from bertclf._network import Network
from bertclf._probe import head_inputs, rows_to_probe, start_head
from bertclf._progress import Progress, Trained, take_up_weights
from bertclf._resume import FitFile
from bertclf._steps import Descent, LabelledTokens, Optimization, OptimizerState, TrainingSettings, classification_loss
from bertclf._tasks import Task

# Reading a loss makes the host wait for a GPU, so losses are looked at this rarely.
STEPS_BETWEEN_CHECKS = 50

# Tokens of one forward and backward pass: what bounds the memory of training.
MAX_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 65_536}

# Texts of one pass where texts are padded: a random batch in parts of similar length needs little padding, but on a GPU
# more, smaller passes cost more than padding.
MAX_PADDED_TEXTS = {"cpu": 8}


@dataclass(frozen=True)
class Validation:
    """What to measure after each epoch: the loss on some texts, and the score that their logits get.

    `weights` are those of the texts alone, without those of their classes, float32 of a mean of one, of a shape that
    broadcasts to that of the targets.
    """

    labelled: LabelledTokens
    weights: npt.NDArray[np.float32]
    score: Callable[[npt.NDArray[np.float32]], float]


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
    fit_file: FitFile | None = None,
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
        What to measure after each epoch; None measures nothing. Early stopping, calibration and thresholds need
        it.
    reader : Engine
        Runs the network in evaluation.
    settings : TrainingSettings
        How to train.
    compute : Compute
        Device and precision.
    generator : numpy.random.Generator
        Source of the order of the texts, and of the texts that the head begins with.
    task : Task
        The fit, as callbacks follow it; they may end an epoch or the training.
    fit_file : FitFile or None, default=None
        Where the state after each epoch is kept, and whence the training goes on if it was begun before.
    snapshot : callable
        Returns what a callback can ask for after an epoch, see `Task`, from what training has left by then.
    frozen_memory : FrozenMemory or None, default=None
        Where the output of the frozen part is looked up before it is computed.
    goes_on : bool, default=False
        Whether another training is to go on from here, and needs to know what AdamW remembers.
    optimizer_state : dict or None
        What AdamW remembers from an earlier training of this network; None begins anew.
    verbose : bool
        Whether to show how it trains, a progress bar, and a line per epoch.

    Returns
    -------
    Trained
        History, best epoch, the state of the optimiser, temperature and thresholds. With early stopping the network has
        the weights of the best epoch.

    Raises
    ------
    FloatingPointError
        If the loss or a weight becomes NaN or infinite.
    """
    steps_per_epoch = math.ceil(len(training.tokens) / settings.batch_size)
    n_steps = settings.epochs * steps_per_epoch
    seed_of_masks = int(generator.integers(1 << 32))  # drawn on any device: the order of the texts is the same on all
    masks = KeepMasks(seed_of_masks) if compute.is_host else None
    found = None if fit_file is None else fit_file.read()
    if found is not None:
        take_up_weights(network, found)
    engine = _make_engine(
        network, training, reader=reader, settings=settings, compute=compute, masks=masks, whole_table=goes_on
    )
    states = _frozen_states(engine, training, frozen_memory, is_reused=settings.epochs > 1 or settings.probes)
    optimization = Optimization(engine, settings, n_steps=n_steps, compute=compute, state=optimizer_state)
    budget = _make_budget(engine, compute, tell=tqdm.write if verbose else None)
    descent = Descent(engine, training, states, optimization=optimization, budget=budget, compute=compute)
    watch = None
    if validation is not None:
        is_reused = settings.epochs > 1 or settings.calibrates or settings.seeks_thresholds
        known = _frozen_states(reader, validation.labelled, frozen_memory, is_reused=is_reused)
        watch = _Watch(reader, validation, known, compute=compute, verbose=verbose)
        if settings.seeks_thresholds:
            warn_about_few_positives(validation.labelled.targets, validation.weights)
    so_far = Progress(
        network, settings=settings, optimization=optimization, budget=budget, masks=masks, compute=compute
    )
    if found is not None:
        so_far.take_up(found)
    if verbose and not so_far.is_over:
        tqdm.write(_summary(settings, compute, n_texts=len(training.tokens), steps_per_epoch=steps_per_epoch))
    if settings.probes and not so_far.is_over:
        _start_head(
            network, training, states, is_new=found is None, reader=reader, settings=settings, compute=compute,
            generator=generator,
        )  # fmt: skip
    if found is not None:
        if not so_far.is_over:
            _repeat(descent, so_far.history, batch_size=settings.batch_size, generator=generator)
        del found  # large
    with tqdm(total=n_steps, initial=so_far.step, unit="step", disable=not verbose) as bar:
        if verbose and so_far.epoch and fit_file is not None:
            was = "was over" if so_far.is_over else "goes on"
            bar.write(f"{was} after epoch {so_far.epoch}, which is kept in {fit_file.path}")
        if verbose and engine.why_padded is not None:
            bar.write(f"texts are padded: {engine.why_padded}")
        while not so_far.is_over:
            with task.epoch(
                n_batches=steps_per_epoch, snapshot=lambda: snapshot(so_far.trained(goes_on=goes_on))
            ) as epoch_task:
                begun = time.perf_counter()
                epoch = so_far.epoch + 1
                batches = random_batches(len(training.tokens), batch_size=settings.batch_size, generator=generator)
                objective, loss, steps = _train_epoch(descent, batches, epoch=epoch, task=epoch_task, bar=bar)
                optimization.put_back()
                seconds = time.perf_counter() - begun
                held_out = None if watch is None else watch.measure()
                so_far.end_epoch(_row(epoch, so_far.step + steps, loss, seconds, held_out), objective=objective)
                if verbose:
                    bar.write(_line(so_far.history[-1], settings.epochs))
            so_far.is_stopped = epoch_task.is_last
            if fit_file is not None:
                fit_file.write(so_far.state())
        if so_far.best is not None:
            so_far.best.restore(network)
            if verbose:
                bar.write(f"kept the weights of epoch {so_far.best.epoch}")
    _check_weights(network)
    warn_if_collapsed(so_far.history, training, reader=reader, settings=settings, compute=compute)
    trained = so_far.trained(goes_on=goes_on)
    if watch is not None and (settings.calibrates or settings.seeks_thresholds):
        trained = _adjusted(trained, network, watch, settings=settings)
    return trained


@dataclass(frozen=True)
class _Measured:
    """What validation found after an epoch, and how long it took."""

    loss: float
    score: float
    seconds: float


class _Watch:
    """Measures a network, as `reader` runs it, on the validation texts."""

    def __init__(
        self, reader: Engine, validation: Validation, states: FrozenStates | None, *, compute: Compute, verbose: bool
    ) -> None:
        self.labelled = validation.labelled
        self.weights = validation.weights
        self._reader = reader
        self._score = validation.score
        self._states = states
        self._compute = compute
        self._budget = prediction_budget(compute, verbose=verbose)

    def logits(self) -> npt.NDArray[np.float32]:
        """Return the logits of the validation texts."""
        tokens, states = self.labelled.tokens, self._states
        return predict_logits(self._reader, tokens, compute=self._compute, budget=self._budget, states=states)

    def measure(self) -> _Measured:
        """Return the weighted mean of the cross-entropy, without smoothing, and the score."""
        begun = time.perf_counter()
        logits, labelled = self.logits(), self.labelled
        loss = classification_loss(
            torch.from_numpy(logits),
            torch.from_numpy(labelled.targets),
            torch.from_numpy(labelled.weights),
            label_smoothing=0.0,
        )
        score = self._score(logits)
        return _Measured(float(loss), score, time.perf_counter() - begun)


def _adjusted(trained: Trained, network: Network, watch: _Watch, *, settings: TrainingSettings) -> Trained:
    """Scale the logits of a network, and seek thresholds for them, as the validation texts tell."""
    logits, targets = watch.logits(), watch.labelled.targets
    if settings.calibrates:
        temperature = best_temperature(logits, targets, watch.weights)
        cool_down(network, temperature)
        logits, trained = logits / np.float32(temperature), replace(trained, temperature=temperature)
    if settings.seeks_thresholds:
        found = best_thresholds(probabilities(logits, multilabel=True), targets, watch.weights)
        trained = replace(trained, thresholds=found)
    return trained


def _make_engine(
    network: Network,
    training: LabelledTokens,
    *,
    reader: Engine,
    settings: TrainingSettings,
    compute: Compute,
    masks: KeepMasks | None,
    whole_table: bool,
) -> Engine:
    """Return what runs the network in training; on a CPU with cheap dropout, and only the embeddings that are used."""
    if not compute.is_host:
        return Engine(network, device=compute.device, frozen=settings.freeze, like=reader)
    # float16 leaves out steps, and with them weight decay, which the rest of the table would not hear of.
    whole_table = whole_table or compute.dtype == torch.float16
    return Engine(
        network,
        device=compute.device,
        masks=masks,
        token_ids=None if whole_table else np.unique(training.tokens.ids),
        frozen=settings.freeze,
        like=reader,
    )


def _frozen_states(
    engine: Engine, labelled: LabelledTokens, memory: FrozenMemory | None, *, is_reused: bool
) -> FrozenStates | None:
    """Return what the frozen part of the network makes of texts; None if nothing is frozen, or can't be run apart."""
    return FrozenStates(engine, labelled.tokens, memory=memory, is_reused=is_reused) if engine.has_states else None


def _start_head(
    network: Network,
    training: LabelledTokens,
    states: FrozenStates | None,
    *,
    is_new: bool,
    reader: Engine,
    settings: TrainingSettings,
    compute: Compute,
    generator: np.random.Generator,
) -> None:
    """Begin with a regression in a head that is new; of one that is known, do all again that later draws depend on.

    What is kept of frozen layers, too, depends on which texts are run together.
    """
    rows = rows_to_probe(len(training.tokens), generator=generator)
    if is_new or states is not None:
        frozen = settings.freeze
        inputs = head_inputs(network, training, states, rows=rows, reader=reader, frozen=frozen, compute=compute)
        if is_new:
            copies = training.tokens.numbers_of(rows)
            start_head(network, inputs, training.targets[rows], training.weights[rows], copies=copies)


def _make_budget(engine: Engine, compute: Compute, *, tell: Callable[[str], object] | None) -> TokenBudget:
    """Return how much of a batch goes through the network at once."""
    device = compute.device.type
    max_texts = None if engine.is_unpadded else MAX_PADDED_TEXTS.get(device)
    return TokenBudget(MAX_TOKENS[device], max_texts=max_texts, tell=tell)


def _repeat(
    descent: Descent, history: list[dict[str, Any]], *, batch_size: int, generator: np.random.Generator
) -> None:
    """Draw the batches of some epochs once more, and keep what the frozen part makes of them.

    Then the next epoch draws what it would have drawn, and finds states that have the same bits: these depend on which
    texts are run together.
    """
    n_texts, step = len(descent.training.tokens), 0
    for row in history:
        batches = random_batches(n_texts, batch_size=batch_size, generator=generator)
        for rows in islice(batches, row["step"] - step):
            descent.keep_states(rows)
        step = row["step"]


def _train_epoch(
    descent: Descent, batches: Iterable[npt.NDArray[np.int64]], *, epoch: int, task: Task, bar: Any
) -> tuple[float, float, int]:
    """Take one step for each batch of an epoch.

    Returns
    -------
    objective, loss : float
        The mean training loss over the texts, as it is to fall and without smoothing.
    n_steps : int
        Steps taken.
    """
    descent.engine.train()
    summed, n_texts = torch.zeros(2, device=descent.compute.device), 0
    unchecked: list[tuple[torch.Tensor, float]] = []
    step = 0
    for step, rows in enumerate(batches, start=1):
        with task.batch() as batch_task:
            learning_rate = descent.optimization.learning_rate
            losses = descent.step(rows)
            unchecked.append((losses[0], learning_rate))
            summed += losses * len(rows)
            n_texts += len(rows)
        if len(unchecked) == STEPS_BETWEEN_CHECKS:
            _check_losses(unchecked, epoch=epoch, last_step=step)
            unchecked.clear()
        bar.update()
        if batch_task.is_last:
            break
    _check_losses(unchecked, epoch=epoch, last_step=step)
    objective, loss = (summed / n_texts).tolist()
    return objective, loss, step


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


def _row(epoch: int, step: int, loss: float, seconds: float, held_out: _Measured | None) -> dict[str, Any]:
    """Return what the history tells of an epoch."""
    return {
        "epoch": epoch,
        "step": step,
        "training_loss": loss,
        "validation_loss": None if held_out is None else held_out.loss,
        "validation_score": None if held_out is None else held_out.score,
        "training_seconds": seconds,
        "validation_seconds": None if held_out is None else held_out.seconds,
    }


def _summary(settings: TrainingSettings, compute: Compute, *, n_texts: int, steps_per_epoch: int) -> str:
    """Return what is shown before all else: how it trains, under "auto" too."""
    return (
        f"trains on {n_texts} texts  {compute.device} in {str(compute.dtype).removeprefix('torch.')}  "
        f"epochs {settings.epochs}  steps per epoch {steps_per_epoch}  learning rate {settings.learning_rate:g}  "
        f"label smoothing {settings.label_smoothing:g}"
    )


def _line(row: dict[str, Any], epochs: int) -> str:
    """Return what is shown after an epoch."""
    line = f"epoch {row['epoch']}/{epochs}  training loss {row['training_loss']:.4f}"
    if row["validation_loss"] is not None:
        line += f"  validation loss {row['validation_loss']:.4f}  validation score {row['validation_score']:.4f}"
    return f"{line}  {row['training_seconds']:.1f} s"
