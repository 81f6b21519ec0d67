"""Kernels for ragged batches: what each computes, which is chosen, and that nothing waits for the device.

There need be no such device: jagged tensors run on a CPU as well, and a stand-in of plain operations computes what
`varlen_attn` does.
"""

import numpy as np
import pytest
import torch
from conftest import LABELS, TEXTS
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode

from bertclf import _device, _kernels
from bertclf._attention import attend
from bertclf._budget import TokenBudget
from bertclf._checkpoint import load_checkpoint
from bertclf._device import Compute
from bertclf._encoding import Way
from bertclf._engine import Engine
from bertclf._groups import Pattern, in_groups
from bertclf._kernels import _with_jagged, _with_varlen, choose
from bertclf._layout import Layout
from bertclf._steps import Descent, LabelledTokens, Optimization, TrainingSettings, classification_loss
from bertclf._tokens import tokenize

CPU = torch.device("cpu")
LENGTHS = np.array([9, 7, 7, 3, 1])
HEADS, SIZE = 2, 8

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")


def plain_varlen_attn(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    """Do what torch's `varlen_attn` does, text by text; a window counts from the last query and the last key."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == int(cu_seq_q.diff().max())
    assert max_k == int(cu_seq_k.diff().max())
    attended = []
    bounds = zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], cu_seq_k.tolist(), cu_seq_k.tolist()[1:], strict=False)
    for start, stop, key_start, key_stop in bounds:
        queries, keys, values = query[start:stop], key[key_start:key_stop], value[key_start:key_stop]
        scores = torch.einsum("qhd,khd->hqk", queries.float(), keys.float()) * scale
        ahead = torch.arange(len(keys)) - (torch.arange(len(queries))[:, None] + len(keys) - len(queries))
        left, right = window_size
        hidden = (ahead < -left if left >= 0 else ahead < -len(keys)) | (
            ahead > right if right >= 0 else ahead > len(keys)
        )
        shares = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
        attended.append(torch.einsum("hqk,khd->qhd", shares, values.float()).to(query.dtype))
    return torch.cat(attended)


@pytest.fixture(autouse=True)
def _tries_nothing_twice():
    _kernels._works.cache_clear()
    yield
    _kernels._works.cache_clear()


@pytest.fixture
def ragged(monkeypatch):
    """Let the CPU pass for a device with kernels for ragged batches."""
    monkeypatch.setattr(_kernels, "RAGGED_DEVICES", {"cpu"})
    monkeypatch.setattr(_kernels, "FUSED_BACKENDS", [SDPBackend.MATH])
    monkeypatch.setattr(_kernels, "varlen_attn", plain_varlen_attn)
    monkeypatch.setattr(_device, "TOKENS_AT_ONCE", 1)  # idle tokens are for a CPU


def pattern(**changes):
    defaults = {"scaling": 0.3, "dropout": 0.0, "causal": False, "window": None, "one_query": False}
    return Pattern(Layout(LENGTHS, device=CPU), **(defaults | changes))


def states(*, one_query=False, dtype=torch.float32, size=SIZE):
    generator = torch.Generator().manual_seed(0)
    rows = [len(LENGTHS) if one_query else LENGTHS.sum(), LENGTHS.sum(), LENGTHS.sum()]
    return [torch.randn(n, HEADS, size, generator=generator).to(dtype).requires_grad_() for n in rows]


def outputs_and_gradients(kernel, which, **settings):
    inputs = states(one_query=which.one_query, **settings)
    attended = kernel(*inputs, which)
    gradients = torch.autograd.grad((attended * torch.arange(1, attended.numel() + 1).view_as(attended)).sum(), inputs)
    return [attended, *gradients]


@pytest.mark.parametrize("one_query", [False, True])
def test_jagged_tensors_give_outputs_and_gradients_of_the_groups(one_query):
    which = pattern(one_query=one_query)
    for actual, expected in zip(
        outputs_and_gradients(_with_jagged, which), outputs_and_gradients(in_groups, which), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{}, {"window": 3}, {"causal": True}, {"causal": True, "window": 3}, {"one_query": True}],
    ids=["all", "window", "causal", "causal window", "one query"],
)
def test_varlen_gives_outputs_and_gradients_of_the_groups(ragged, changes):
    which = pattern(**changes)
    for actual, expected in zip(
        outputs_and_gradients(_with_varlen, which), outputs_and_gradients(in_groups, which), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [_with_jagged, in_groups])
def test_dropout_drops_its_share_and_scales_up_the_rest(kernel):
    lengths = np.ones(4000, dtype=np.int64)
    which = Pattern(Layout(lengths, device=CPU), scaling=1.0, dropout=0.25, causal=False, window=None, one_query=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attended = kernel(*(torch.ones(4000, 1, 8) for _ in range(3)), which)
    assert set(attended.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (attended == 0).float().mean() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("dtype", "changes", "kernel"),
    [
        (torch.bfloat16, {}, _with_varlen),
        (torch.float16, {}, _with_varlen),
        (torch.bfloat16, {"window": 3}, _with_varlen),
        (torch.bfloat16, {"causal": True}, _with_varlen),
        (torch.bfloat16, {"one_query": True}, _with_varlen),
        (torch.float32, {}, _with_jagged),
        (torch.float32, {"one_query": True}, _with_jagged),
        (torch.float32, {"window": 9}, _with_jagged),
        (torch.float32, {"window": 8}, in_groups),
        (torch.bfloat16, {"dropout": 0.1}, _with_jagged),
        (torch.bfloat16, {"dropout": 0.1, "window": 3}, in_groups),
        (torch.bfloat16, {"one_query": True, "causal": True}, in_groups),
        (torch.bfloat16, {"one_query": True, "window": 3}, in_groups),
        (torch.float64, {}, in_groups),
    ],
)
def test_the_first_kernel_made_for_it_is_chosen(ragged, dtype, changes, kernel):
    which = pattern(**changes)
    query = states(one_query=which.one_query, dtype=dtype)[0]
    assert choose(query, which) is kernel


@pytest.mark.parametrize(("size", "kernel"), [(12, in_groups), (256, _with_varlen), (264, _with_jagged)])
def test_kernels_are_left_out_where_they_take_no_heads_of_this_size(ragged, size, kernel):
    assert choose(states(dtype=torch.bfloat16, size=size)[0], pattern()) is kernel


def test_more_texts_than_a_grid_has_places_go_in_groups(ragged, monkeypatch):
    monkeypatch.setattr(_kernels, "MOST_TEXTS", len(LENGTHS) - 1)
    assert choose(states(dtype=torch.bfloat16)[0], pattern()) is in_groups


def test_a_cpu_keeps_to_the_groups():
    assert choose(states(dtype=torch.bfloat16)[0], pattern()) is in_groups


def test_releases_without_varlen_or_with_one_that_knows_no_window_take_jagged_tensors(ragged, monkeypatch):
    query = states(dtype=torch.bfloat16)[0]
    for older in (None, lambda query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False: query):
        monkeypatch.setattr(_kernels, "varlen_attn", older)
        assert choose(query, pattern()) is _with_jagged


def refusing(*_, **__):
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


def refusing_gradients(query, *others, **named):
    attended = plain_varlen_attn(query, *others, **named)
    attended.register_hook(refusing)
    return attended


def wrong(*inputs, **named):
    return plain_varlen_attn(*inputs, **named) + 1


@pytest.mark.parametrize("broken", [refusing, refusing_gradients, wrong])
def test_a_kernel_that_refuses_or_differs_is_passed_over(ragged, monkeypatch, broken):
    def varlen_attn(query, *inputs, scale, window_size):
        return broken(query, *inputs, scale=scale, window_size=window_size)

    monkeypatch.setattr(_kernels, "varlen_attn", varlen_attn)
    inputs = states(dtype=torch.bfloat16)
    assert choose(inputs[0], pattern()) is _with_jagged
    layout = Layout(LENGTHS, device=CPU)
    torch.testing.assert_close(
        attend(*inputs, layout, scaling=0.3).float(),
        in_groups(*states(), pattern()),
        atol=0.02,
        rtol=0.02,
    )


def test_a_kernel_is_tried_once(ragged, monkeypatch):
    calls = []

    def varlen_attn(*inputs, scale, window_size):
        calls.append(scale)
        return plain_varlen_attn(*inputs, scale=scale, window_size=window_size)

    monkeypatch.setattr(_kernels, "varlen_attn", varlen_attn)
    query = states(dtype=torch.bfloat16)[0]
    choose(query, pattern())
    n_tries = len(calls)
    choose(query, pattern())
    assert n_tries == len(calls) > 0


def test_a_want_of_memory_while_trying_is_told_and_not_remembered(ragged, monkeypatch):
    def exhausted(*inputs, scale, window_size):
        raise torch.OutOfMemoryError("no memory")

    query = states(dtype=torch.bfloat16)[0]
    with monkeypatch.context() as patch:
        patch.setattr(_kernels, "varlen_attn", exhausted)
        with pytest.raises(torch.OutOfMemoryError):
            choose(query, pattern())
    assert choose(query, pattern()) is _with_varlen


def test_trying_works_within_inference_and_autocast_and_draws_nothing(ragged):
    state = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        query = states(dtype=torch.bfloat16)[0]
        assert choose(query, pattern()) is _with_varlen
        assert choose(query, pattern(dropout=0.5)) is _with_jagged
    assert torch.equal(torch.get_rng_state(), state)


def test_trying_is_silent(ragged, monkeypatch, recwarn, capfd):
    monkeypatch.setattr(_kernels, "FUSED_BACKENDS", [SDPBackend.FLASH_ATTENTION])
    assert choose(states()[0], pattern()) is in_groups
    assert not recwarn
    assert capfd.readouterr() == ("", "")


def test_a_first_token_sees_its_window_alone():
    which = pattern(one_query=True, window=3)
    query, key, value = states(one_query=True)
    kept = np.concatenate(
        [np.arange(min(length, 3)) + start for start, length in zip(which.layout.starts, LENGTHS, strict=False)]
    )
    cut = Pattern(
        Layout(LENGTHS.clip(max=3), device=CPU), scaling=0.3, dropout=0.0, causal=False, window=None, one_query=True
    )
    torch.testing.assert_close(in_groups(query, key, value, which), in_groups(query, key[kept], value[kept], cut))


def test_masks_of_texts_of_one_length_are_made_on_the_device():
    device = torch.device("meta")
    (group,) = Layout(np.array([4, 4]), device=device).groups
    assert group.allowed(causal=True, window=2, device=device).device == device


def test_groups_are_larger_where_a_product_costs_mostly_its_start():
    lengths = np.arange(100, 10, -1)
    assert len(Layout(lengths, device=torch.device("meta")).groups) == 1
    assert len(Layout(lengths, device=CPU).groups) > 8


def test_dropout_meets_states_that_need_no_gradient():
    query, key, value = (inputs.detach() for inputs in states())
    which = pattern(dropout=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(in_groups(query, key, value, which), in_groups(query, key, value, pattern()))


@pytest.fixture
def trained_parts(checkpoints):
    """A function that returns network and labelled tokens of a tiny checkpoint."""

    def load(name, *, dropout):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loaded = load_checkpoint(
                checkpoints(name),
                revision=None,
                labels=["fresh", "rotten"],
                multilabel=False,
                pooling="auto",
                dropout=dropout,
                verbose=False,
            )
        store = tokenize(TEXTS, None, way=Way(loaded.tokenizer, 64, "truncate"), with_segments=False)
        targets = np.array([label == "rotten" for label in LABELS], dtype=np.int64)
        return loaded.network, LabelledTokens(store, targets, np.ones(len(TEXTS), np.float32))

    return load


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "modernbert"])
def test_ragged_kernels_give_logits_and_gradients_of_the_padded_network(ragged, trained_parts, name, dtype):
    network, labelled = trained_parts(name, dropout=0.0)
    compute = Compute(CPU, dtype)
    rows = np.argsort(-labelled.tokens.lengths, kind="stable")
    found = []
    for unpadded in (True, False):
        engine = Engine(network, device=CPU, unpadded=unpadded).train()
        assert engine.is_unpadded == unpadded
        network.zero_grad()
        with compute.autocast():
            logits = engine.logits(labelled.tokens, rows)
        targets = torch.from_numpy(labelled.targets[rows])
        classification_loss(logits, targets, torch.ones(len(rows)), label_smoothing=0.0).backward()
        gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
        found.append(torch.cat([logits.detach().float().flatten(), *(g.flatten() for g in gradients)]))
    difference = (found[0] - found[1]).norm() / found[1].norm()
    assert difference < (1e-5 if dtype == torch.float32 else 0.05)


class ReadsNothing(TorchDispatchMode):
    """Fails where the host would have to wait for a device: at a value, or at a shape that depends on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "repeat_interleave.Tensor", "item")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removeprefix("aten.")
        assert not name.startswith(self.WAITS), name
        if name.startswith("index"):
            indices = args[1] if isinstance(args[1], (list, tuple)) else []
            assert all(index is None or index.dtype != torch.bool for index in indices), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_training_step_reads_nothing_back(trained_parts, name, dropout):
    """The groups stand for the kernels, whose stand-ins do read lengths."""
    network, labelled = trained_parts(name, dropout=dropout)
    compute = Compute(CPU, torch.bfloat16)
    engine = Engine(network, device=CPU).train()
    assert engine.is_unpadded
    settings = TrainingSettings(
        epochs=1, batch_size=4, learning_rate=1e-3, lr_schedule="linear", warmup_ratio=0.0, weight_decay=0.01,
        max_grad_norm=1.0, label_smoothing=0.1,
    )  # fmt: skip
    optimization = Optimization(engine, settings, n_steps=3, compute=compute, state=None)
    descent = Descent(engine, labelled, None, optimization=optimization, budget=TokenBudget(1 << 16), compute=compute)
    for rows in (np.arange(4), np.arange(4, 8)):
        with ReadsNothing(), torch.random.fork_rng():
            descent.step(rows)
