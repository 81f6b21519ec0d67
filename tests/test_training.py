"""The loop: what is optimised, how the rate moves, what the history holds, and how it fails."""

import copy
import math

import numpy as np
import pytest
import torch
import transformers
from conftest import LABELS, TEXTS, measuring
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from bertclf import BertSequenceClassifier, _steps, _training
from bertclf._callbacks import Silence
from bertclf._checkpoint import load_checkpoint
from bertclf._classifier import BertSequenceClassifier as Classifier
from bertclf._device import Compute
from bertclf._encoding import Way
from bertclf._engine import Engine
from bertclf._steps import LabelledTokens, TrainingSettings, classification_loss, make_optimizer
from bertclf._tasks import Task
from bertclf._tokens import tokenize
from bertclf._training import Validation, train

CPU = Compute(torch.device("cpu"), torch.float32)
SCHEDULES = sorted(next(iter(Classifier._parameter_constraints["lr_schedule"])).options)
TARGETS = np.array([label == "rotten" for label in LABELS], dtype=np.int64)

# All schedules, and those without warm-up or with one that doesn't begin at zero.
ALL = {schedule.value for schedule in transformers.SchedulerType}
NOT_FROM_ZERO = {"constant", "reduce_lr_on_plateau", "greedy", "cosine_warmup_with_min_lr"}


@pytest.fixture
def loaded(checkpoint):
    return load(checkpoint)


@pytest.fixture
def spread(spread_checkpoint):
    return load(spread_checkpoint)


def load(checkpoint):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_checkpoint(
            checkpoint,
            revision=None,
            labels=["fresh", "rotten"],
            multilabel=False,
            pooling="auto",
            dropout=0.0,
            verbose=False,
        )


def labelled(loaded, *, weights=None, targets=TARGETS):
    store = tokenize(TEXTS, None, way=Way(loaded.tokenizer, 64, "truncate"), with_segments=True)
    return LabelledTokens(store, targets, np.ones(len(TEXTS), np.float32) if weights is None else weights)


def settings(**changes):
    defaults = {
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "lr_schedule": "linear",
        "warmup_ratio": 0.0,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "label_smoothing": 0.0,
    }
    return TrainingSettings(**(defaults | changes))


def run(loaded, training=None, **changes):
    return trained(loaded, training, **changes).history


def trained(loaded, training=None, *, validation=None, compute=CPU, goes_on=False, state=None, task=None, **changes):
    return train(
        loaded.network,
        training or labelled(loaded),
        validation=validation,
        reader=Engine(loaded.network, device=compute.device),
        settings=settings(**changes),
        compute=compute,
        generator=np.random.default_rng(0),
        task=task or Task(Silence(), {}, device=compute.device),
        snapshot=lambda so_far: {},
        goes_on=goes_on,
        optimizer_state=state,
        verbose=False,
    )


def watched(loaded):
    texts = labelled(loaded)
    return Validation(texts, texts.weights, lambda logits: 0.5)


def with_score_watched(loaded, **changes):
    return trained(loaded, validation=watched(loaded), watches_loss=False, **changes)


@pytest.fixture
def rates(monkeypatch):
    """The learning rate of each step taken."""
    taken = []
    step = torch.optim.AdamW.step

    def recording_step(self, *args, **kwargs):
        taken.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording_step)
    return taken


def test_the_number_of_steps_is_exact_with_an_incomplete_last_batch(loaded, rates):
    history = run(loaded, epochs=3, batch_size=4)
    assert len(TEXTS) % 4 != 0
    assert len(rates) == 3 * math.ceil(len(TEXTS) / 4)
    assert [row["step"] for row in history] == [4, 8, 12]


def test_the_linear_schedule_warms_up_and_ends_one_step_above_zero(loaded, rates):
    run(loaded, epochs=5, batch_size=7, warmup_ratio=0.4, learning_rate=1.0e-3)
    np.testing.assert_allclose(rates, 1e-3 * np.array([0, 0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]))


def test_every_schedule_of_transformers_is_offered():
    assert set(SCHEDULES) >= {schedule.value for schedule in transformers.SchedulerType}


def test_a_schedule_that_an_older_transformers_lacks_is_named(checkpoint, monkeypatch):
    monkeypatch.setattr(_steps, "SchedulerType", [transformers.SchedulerType.LINEAR])
    with pytest.raises(ValueError, match=r"lr_schedule='cosine' is not in the installed transformers, .*\['linear'\]"):
        BertSequenceClassifier(checkpoint, lr_schedule="cosine").fit(TEXTS, LABELS)


@pytest.mark.parametrize("schedule", sorted(ALL))
def test_every_schedule_trains(spread, rates, schedule):
    history = run(spread, lr_schedule=schedule, warmup_ratio=0.25, epochs=4)
    assert all(0 <= rate <= 1.1e-3 for rate in rates)
    assert max(rates) == pytest.approx(1e-3, rel=0.2)
    assert history[-1]["training_loss"] < history[0]["training_loss"] - 0.03


@pytest.mark.parametrize("epochs", [1, 3, 20])
@pytest.mark.parametrize("schedule", sorted(ALL - NOT_FROM_ZERO))
def test_the_last_step_trains_whatever_the_share_of_warm_up(loaded, rates, schedule, epochs):
    run(loaded, lr_schedule=schedule, warmup_ratio=1.0, epochs=epochs, batch_size=len(TEXTS))
    assert rates == pytest.approx([1e-3 * step / (epochs - 1) for step in range(epochs)] if epochs > 1 else [1e-3])


@pytest.mark.parametrize(("epochs", "expected"), [(1, [1e-3]), (2, [5e-4, 1e-3])])
def test_a_warm_up_that_begins_above_zero_may_take_all_steps(loaded, rates, epochs, expected):
    schedule = "cosine_warmup_with_min_lr"
    run(loaded, lr_schedule=schedule, warmup_ratio=1.0, epochs=epochs, batch_size=len(TEXTS))
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("peak", [1e-8, 1e-3])
def test_a_polynomial_falls_to_its_end_below_the_peak(loaded, rates, peak):
    run(loaded, lr_schedule="polynomial", learning_rate=peak, epochs=4, batch_size=len(TEXTS))
    end = min(1e-7, 0.1 * peak)
    assert rates == pytest.approx([end + (peak - end) * (1 - step / 4) for step in range(4)])


def test_the_rate_falls_on_a_plateau_of_the_validation_loss(loaded, rates, monkeypatch):
    measuring(monkeypatch, [(1.0, 0.5)] * 13)
    run(
        loaded,
        validation=watched(loaded),
        lr_schedule="reduce_lr_on_plateau",
        epochs=13,
        batch_size=len(TEXTS),
    )
    assert rates[:12] == [1e-3] * 12
    assert rates[12] == pytest.approx(1e-4)


def test_schedules_that_ask_for_the_common_rate_get_the_largest(loaded):
    weights = dict(loaded.network.named_parameters())
    rates = {name: 1e-5 if "embeddings" in name else 2e-5 for name in weights}
    assert make_optimizer(weights, rates=rates, weight_decay=0.1).defaults["lr"] == 2e-5


def test_decay_spares_biases_and_norms(loaded):
    weights = dict(loaded.network.named_parameters())
    decayed, spared = make_optimizer(weights, rates=dict.fromkeys(weights, 1e-3), weight_decay=0.1).param_groups
    names = {id(weight): name for name, weight in loaded.network.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0
    assert all(names[id(weight)].endswith("weight") for weight in decayed["params"])
    assert not any("LayerNorm" in names[id(weight)] or "bias" in names[id(weight)] for weight in decayed["params"])
    assert all("LayerNorm" in names[id(weight)] or "bias" in names[id(weight)] for weight in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_with_layer_decay_each_layer_takes_smaller_steps_than_the_layer_above(spread):
    """The first step of AdamW moves each weight that has a gradient by its learning rate."""
    before = {name: weight.detach().clone() for name, weight in spread.network.named_parameters()}
    run(spread, epochs=1, batch_size=len(TEXTS), lr_schedule="constant", weight_decay=0.0, layer_decay=0.5)
    factors = {"classifier": 1, "pooler": 1, "layer.1.": 0.5, "layer.0.": 0.25, "embeddings": 0.125}
    for part, factor in factors.items():
        moved = [(w - before[n]).abs().max().item() for n, w in spread.network.named_parameters() if part in n]
        assert max(moved) == pytest.approx(1e-3 * factor, rel=1e-2), part


def test_weight_decay_of_tokens_that_do_not_occur_follows_layer_decay(spread):
    table = spread.network.get_input_embeddings().weight
    unused = sorted(set(range(len(table))) - set(labelled(spread).tokens.ids.tolist()))
    before = table.detach().clone()
    run(spread, epochs=1, batch_size=len(TEXTS), lr_schedule="constant", weight_decay=0.5, layer_decay=0.5)
    torch.testing.assert_close(table.detach()[unused], before[unused] * (1 - 1e-3 * 0.125 * 0.5))


def test_one_full_batch_takes_the_step_of_a_plain_padded_loop(loaded):
    """The same loss, gradients, clipping and AdamW step as written by hand on one padded batch."""
    plain = {name: weight.detach().clone() for name, weight in loaded.network.named_parameters()}
    batch = loaded.tokenizer(TEXTS, padding=True, return_tensors="pt")
    network = loaded.network.train()
    loss = cross_entropy(network(**batch).logits, torch.from_numpy(TARGETS))
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}
    norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients.values()))
    network.zero_grad()
    assert norm > 0.001

    history = run(loaded, epochs=1, batch_size=len(TEXTS), max_grad_norm=0.001, lr_schedule="constant")
    assert history[0]["training_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, weight in network.named_parameters():
        if name in gradients:
            decay = 0.01 if weight.ndim > 1 else 0.0
            gradient = gradients[name] * 0.001 / norm
            expected = plain[name] * (1 - 1e-3 * decay) - 1e-3 * gradient / (gradient.abs() + 1e-8)
            clear = gradient.abs() > 1e-6
            torch.testing.assert_close(weight.detach()[clear], expected[clear], rtol=1e-3, atol=1e-5)


def test_another_device_takes_the_steps_of_the_host(spread_checkpoint, monkeypatch):
    """The same order of the texts and start of the head, though the host has embeddings and dropout of its own."""
    clf = BertSequenceClassifier(
        spread_checkpoint, epochs=3, batch_size=3, learning_rate=1e-3, weight_decay=0.1, dropout=0.0, device="cpu",
        precision="float32", random_state=0,
    )  # fmt: skip
    texts = [*TEXTS, "a film that none has seen"]
    on_host = clf.fit(TEXTS, LABELS).decision_function(texts)
    monkeypatch.setattr(Compute, "is_host", False)
    elsewhere = clf.fit(TEXTS, LABELS).decision_function(texts)
    np.testing.assert_allclose(elsewhere, on_host, rtol=1e-4, atol=1e-5)
    assert np.ptp(on_host) > 0.01


@pytest.mark.parametrize("max_grad_norm", [None, 1.5])
def test_steps_are_those_of_adamw_on_gradients_that_are_clipped_only_when_asked(spread, max_grad_norm):
    network = copy.deepcopy(spread.network).train()
    batch = spread.tokenizer(TEXTS, padding=True, return_tensors="pt")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0, fused=False)
    norms = []
    for _ in range(6):
        cross_entropy(network(**batch).logits, torch.from_numpy(TARGETS)).backward()
        norms.append(clip_grad_norm_(network.parameters(), max_grad_norm or math.inf).item())
        optimizer.step()
        optimizer.zero_grad()
    assert min(norms) < 1.5 < max(norms)

    constant = {"lr_schedule": "constant", "learning_rate": 1e-2, "weight_decay": 0.0}
    run(spread, epochs=6, batch_size=len(TEXTS), max_grad_norm=max_grad_norm, **constant)
    for (name, weight), expected in zip(spread.network.named_parameters(), network.parameters(), strict=True):
        if not name.endswith("key.bias"):  # its gradient is zero but for rounding, and AdamW divides that by its size
            torch.testing.assert_close(weight, expected, rtol=1e-3, atol=1e-4, msg=name)


def test_clipping_changes_the_steps(spread):
    other = copy.deepcopy(spread)
    for loaded, max_grad_norm in ((spread, None), (other, 1.5)):
        run(loaded, epochs=6, batch_size=len(TEXTS), max_grad_norm=max_grad_norm, learning_rate=1e-2)
    difference = spread.network.classifier.weight - other.network.classifier.weight
    assert difference.abs().max() > 1e-3


def test_label_smoothing_and_weights_enter_the_loss():
    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0])
    loss = classification_loss(logits, targets, weights, label_smoothing=0.3)
    probabilities = logits.log_softmax(1)
    spread = 0.3 / 3 + 0.7 * torch.nn.functional.one_hot(targets, 3)
    assert loss == pytest.approx((-(spread * probabilities).sum(1) * weights).sum().item() / 5, rel=1e-5)


def test_the_history_has_the_loss_without_smoothing_and_a_schedule_hears_that_with_it(spread, monkeypatch):
    heard = []
    monkeypatch.setattr(_steps.Optimization, "end_epoch", lambda self, loss: heard.append(loss))
    logits = spread.network(**spread.tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    texts = labelled(spread)
    given = torch.from_numpy(texts.targets), torch.from_numpy(texts.weights)
    smooth, plain = (classification_loss(logits, *given, label_smoothing=share).item() for share in (0.3, 0.0))
    history = run(spread, epochs=1, batch_size=len(TEXTS), label_smoothing=0.3, lr_schedule="reduce_lr_on_plateau")
    assert heard == [pytest.approx(smooth, rel=1e-5)]
    assert history[0]["training_loss"] == pytest.approx(plain, rel=1e-5)
    assert smooth != pytest.approx(plain, rel=1e-3)


def test_the_loss_is_computed_in_float32():
    logits = torch.full((2, 2), 3e4, dtype=torch.float16)
    assert classification_loss(logits, torch.tensor([0, 1]), torch.ones(2), label_smoothing=0.0).dtype == torch.float32


def test_the_history_weighs_the_incomplete_batch_by_its_texts(loaded, monkeypatch):
    values = iter([1.0, 1.0, 1.0, 8.0])

    def constant_loss(logits, targets, weights, *, label_smoothing):
        value = next(values)
        sizes.append(len(targets))
        return logits.sum() * 0 + value

    sizes = []
    monkeypatch.setattr(_steps, "classification_loss", constant_loss)
    history = run(loaded, epochs=1, batch_size=4)
    expected = sum(size * value for size, value in zip(sizes, [1.0, 1.0, 1.0, 8.0], strict=True)) / len(TEXTS)
    assert history[0]["training_loss"] == pytest.approx(expected)


def test_a_long_epoch_is_stopped_at_the_next_check(loaded, monkeypatch):
    monkeypatch.setattr(_training, "STEPS_BETWEEN_CHECKS", 2)
    calls = []

    def failing(logits, targets, weights, *, label_smoothing):
        calls.append(len(calls) + 1)
        return logits.sum() * (math.inf if len(calls) == 3 else 1.0)

    monkeypatch.setattr(_steps, "classification_loss", failing)
    with pytest.raises(FloatingPointError, match="in step 3 of epoch 1"):
        run(loaded, batch_size=2)
    assert calls == [1, 2, 3, 4]


def test_weights_ruined_by_the_last_step_are_told(loaded):
    with pytest.raises(FloatingPointError, match="is not finite after the last step"):
        run(loaded, epochs=1, batch_size=len(TEXTS), learning_rate=1e38, max_grad_norm=None, lr_schedule="constant")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_learns_with_float32_weights(spread, dtype):
    compute = Compute(torch.device("cpu"), dtype)
    history = run(spread, compute=compute, epochs=8)
    assert history[-1]["training_loss"] < history[0]["training_loss"] - 0.1
    assert {weight.dtype for weight in spread.network.parameters()} == {torch.float32}


def test_validation_measures_plain_loss_and_accuracy_without_changing_the_training(checkpoint):
    def fit(**held_out):
        clf = BertSequenceClassifier(checkpoint, epochs=2, random_state=0, label_smoothing=0.2)
        return clf.fit(TEXTS, LABELS, **held_out)

    plain, measured = fit(), fit(X_val=TEXTS[:5], y_val=LABELS[:5])
    np.testing.assert_array_equal(plain.predict_proba(TEXTS), measured.predict_proba(TEXTS))
    last = measured.history_[-1]
    chosen = measured.predict_proba(TEXTS[:5])[:, measured.classes_.tolist().index("fresh")]
    assert last["validation_loss"] == pytest.approx(-np.log(chosen).mean(), rel=1e-5)
    assert last["validation_score"] == measured.score(TEXTS[:5], LABELS[:5])
    assert last["validation_seconds"] > 0
    assert {plain.history_[-1][key] for key in ("validation_loss", "validation_score", "validation_seconds")} == {None}


def test_the_loss_of_many_labels_is_the_mean_of_their_cross_entropies():
    logits, targets = torch.randn(5, 3), torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0.0]])
    weights = torch.rand(5, 3)
    loss = classification_loss(logits, targets, weights, label_smoothing=0.3)
    yes, no = logits.sigmoid().log(), (-logits).sigmoid().log()
    smooth = 0.7 * targets + 0.15
    expected = -(weights * (smooth * yes + (1 - smooth) * no)).sum() / 15
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_training_goes_on_from_the_state_of_the_optimiser(loaded):
    whole = copy.deepcopy(loaded)
    run(whole, epochs=2, batch_size=len(TEXTS), lr_schedule="constant")
    once = {"epochs": 1, "batch_size": len(TEXTS), "lr_schedule": "constant", "goes_on": True}
    first = trained(loaded, **once)
    kept = {name: value.clone() for name, value in first.optimizer_state.items()}
    trained(loaded, **once, state=first.optimizer_state)
    for (name, weight), other in zip(loaded.network.named_parameters(), whole.network.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-4, atol=1e-5, msg=name)
    assert all(torch.equal(value, kept[name]) for name, value in first.optimizer_state.items())
    assert {name.rsplit(":")[1] for name in kept} == {"step", "exp_avg", "exp_avg_sq"}


class Recorder:
    """A callback context that writes down what it is told, and asks to stop where it is told to."""

    def __init__(self, stops=(), place="fit", record=None):
        self.stops, self.place, self.record, self.children = stops, place, [] if record is None else record, 0

    def subcontext(self, task_name, max_subtasks=0):
        self.children += 1
        place = f"{self.place} {task_name} {self.children}"
        self.record.append(f"{place} of {max_subtasks}")
        return Recorder(self.stops, place, self.record)

    def call_on_fit_task_begin(self, **told):
        self.record.append(f"begin {self.place} {sorted(told)}")

    def call_on_fit_task_end(self, **told):
        self.record.append(f"end {self.place} {sorted(name for name, value in told.items() if value is not None)}")
        return self.place in self.stops


def test_callbacks_hear_of_every_epoch_and_batch(loaded):
    context = Recorder()
    with Task(context, {"owner": 1}, data={"X": 2}, device=CPU.device, snapshot=dict) as task:
        trained(loaded, task=task, epochs=2, batch_size=7)
    epoch = [
        "fit epoch 1 of 2",
        "begin fit epoch 1 ['X', 'owner']",
        "fit epoch 1 batch 1 of 0",
        "begin fit epoch 1 batch 1 ['owner']",
        "end fit epoch 1 batch 1 ['owner']",
        "fit epoch 1 batch 2 of 0",
        "begin fit epoch 1 batch 2 ['owner']",
        "end fit epoch 1 batch 2 ['owner']",
        "end fit epoch 1 ['X', 'owner', 'reconstruction_attributes']",
    ]
    second = [line.replace("epoch 1", "epoch 2") for line in epoch]
    first_and_last = ["begin fit ['X', 'owner']"], ["end fit ['X', 'owner', 'reconstruction_attributes']"]
    assert context.record == [*first_and_last[0], *epoch, *second, *first_and_last[1]]


@pytest.mark.parametrize(
    ("stop", "steps"),
    [("fit epoch 2", [2, 4]), ("fit epoch 1 batch 1", [1, 3, 5]), ("fit", [2, 4, 6])],
)
def test_a_callback_that_asks_to_stop_ends_the_tasks_of_its_kind(loaded, rates, stop, steps):
    history = run(loaded, task=Task(Recorder(stops=[stop]), {}, device=CPU.device), epochs=3, batch_size=7)
    assert [row["step"] for row in history] == steps
    assert len(rates) == steps[-1]


def test_a_failed_batch_is_not_told_as_ended(loaded, monkeypatch):
    context = Recorder()
    monkeypatch.setattr(_steps, "classification_loss", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(loaded, task=Task(context, {}, device=CPU.device))
    assert not [line for line in context.record if line.startswith("end")]


def test_a_score_that_is_no_number_is_as_bad_as_can_be(loaded, monkeypatch):
    measuring(monkeypatch, [(0.5, math.nan), (0.9, 0.1), (0.4, math.nan)])
    assert with_score_watched(loaded, epochs=3, n_iter_no_change=3).best_epoch == 2


def test_scores_that_are_never_a_number_are_told_and_the_loss_is_watched(loaded, monkeypatch):
    measuring(monkeypatch, [(0.5, math.nan), (0.4, math.nan), (0.6, math.nan)])
    with pytest.warns(UserWarning, match=r"scoring gave NaN after every epoch.*lowest validation loss, 2"):
        assert with_score_watched(loaded, epochs=3, n_iter_no_change=3).best_epoch == 2


def test_among_equal_scores_the_lowest_loss_is_the_best(loaded, monkeypatch):
    """Accuracy stands still on few texts while the network still learns: that is no reason to stop."""
    measuring(monkeypatch, [(0.9, 0.5), (0.8, 0.5), (0.7, 0.5), (0.75, 0.5), (0.6, 0.4)])
    answer = with_score_watched(loaded, epochs=9, n_iter_no_change=2)
    assert (len(answer.history), answer.best_epoch) == (5, 3)


def test_the_scale_of_float16_gradients_goes_on_with_the_optimiser(loaded):
    """A scale that overflows is halved and its step skipped: forgotten, it would skip the next step as well."""
    compute = Compute(torch.device("cpu"), torch.float16)
    first = trained(loaded, compute=compute, epochs=1, goes_on=True)
    state = {name: value.clone() for name, value in first.optimizer_state.items()}
    scale = f"{_steps.SCALER}:scale"
    assert state[scale] == 65536
    state[scale] /= 1024
    second = trained(loaded, compute=compute, epochs=1, goes_on=True, state=state)
    assert second.optimizer_state[scale] == 64
    assert scale not in trained(loaded, epochs=1, goes_on=True, state=state).optimizer_state
