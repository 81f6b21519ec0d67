"""Kernels for ragged batches: what each computes, which is chosen, and that nothing waits for the device.

There need be no such device: stand-ins of plain operations compute what torch's two kernels do.
"""

import numpy as np
import pytest
import torch
from conftest import LABELS, TEXTS
from torch.utils._python_dispatch import TorchDispatchMode

from bertclf import _device, _kernels
from bertclf._attention import attend
from bertclf._budget import TokenBudget
from bertclf._checkpoint import load_checkpoint
from bertclf._device import Compute
from bertclf._encoding import Way
from bertclf._engine import Engine
from bertclf._groups import Pattern, in_groups
from bertclf._kernels import _with_efficient, _with_flash, choose
from bertclf._layout import Layout
from bertclf._steps import Descent, LabelledTokens, Optimization, TrainingSettings, classification_loss
from bertclf._tokens import tokenize

CPU = torch.device("cpu")
LENGTHS = np.array([9, 7, 7, 3, 1])
HEADS, SIZE = 2, 8


def attended_text_by_text(query, key, value, starts, key_starts, dropout, scale, left, right, *, last_first=False):
    """Attend plainly; a token sees `left` tokens before it and `right` behind it, all where None.

    Where there are fewer queries than keys, the first query stands at the first key, or the last at the last.
    """
    assert starts.dtype == key_starts.dtype == torch.int32
    attended = []
    bounds = zip(starts.tolist(), starts.tolist()[1:], key_starts.tolist(), key_starts.tolist()[1:], strict=False)
    for start, stop, key_start, key_stop in bounds:
        queries, keys, values = query[start:stop], key[key_start:key_stop], value[key_start:key_stop]
        scores = torch.einsum("qhd,khd->hqk", queries.float(), keys.float()) * scale
        place = torch.arange(len(queries), device=query.device) + (len(keys) - len(queries) if last_first else 0)
        ahead = torch.arange(len(keys), device=query.device) - place[:, None]
        hidden = torch.zeros_like(ahead, dtype=torch.bool)
        if left is not None:
            hidden |= ahead < -left
        if right is not None:
            hidden |= ahead > right
        shares = torch.dropout(scores.masked_fill(hidden, -torch.inf).softmax(dim=-1), dropout, train=True)
        attended.append(torch.einsum("hqk,khd->qhd", shares, values.float()).to(query.dtype))
    return torch.cat(attended)


def plain_flash(
    query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *, scale,
    window_size_left, window_size_right,
):  # fmt: skip
    """Do what `_flash_attention_forward` of torch does."""
    assert max_q == int(cum_seq_q.diff().max())
    assert max_k == int(cum_seq_k.diff().max())
    assert query.dtype in (torch.bfloat16, torch.float16)
    inputs = query, key, value, cum_seq_q, cum_seq_k, dropout_p, scale
    bounds = window_size_left, 0 if is_causal else window_size_right
    return attended_text_by_text(*inputs, *bounds, last_first=True), None


def plain_efficient(
    query, key, value, bias, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, custom_mask_type,
    compute_log_sumexp, *, scale,
):  # fmt: skip
    """Do what `_efficient_attention_forward` of torch does."""
    assert bias is None
    assert max_seqlen_q == int(cu_seqlens_q.diff().max())
    assert max_seqlen_k == int(cu_seqlens_k.diff().max())
    assert compute_log_sumexp or not torch.is_grad_enabled()
    right = 0 if custom_mask_type == 1 else None
    states = query[0], key[0], value[0]
    attended = attended_text_by_text(*states, cu_seqlens_q, cu_seqlens_k, dropout_p, scale, None, right)
    return attended[None], None


@pytest.fixture(autouse=True)
def _tries_nothing_twice():
    _kernels._works.cache_clear()
    yield
    _kernels._works.cache_clear()


@pytest.fixture
def ragged(monkeypatch):
    """Let the CPU pass for a device with kernels for ragged batches."""
    monkeypatch.setattr(_kernels, "RAGGED_DEVICES", {"cpu"})
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", plain_flash)
    monkeypatch.setattr(torch.ops.aten, "_efficient_attention_forward", plain_efficient)
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


PATTERNS = {
    "all": {},
    "window": {"window": 3},
    "causal": {"causal": True},
    "causal window": {"causal": True, "window": 3},
    "one query": {"one_query": True},
}
TAKEN = [(_with_flash, name, torch.bfloat16) for name in PATTERNS] + [
    (_with_efficient, name, dtype)
    for name in ("all", "causal", "one query")
    for dtype in (torch.float32, torch.float16)
]


@pytest.mark.parametrize(("kernel", "name", "dtype"), TAKEN)
def test_a_kernel_gives_outputs_and_gradients_of_the_groups(ragged, kernel, name, dtype):
    which = pattern(**PATTERNS[name])
    found = outputs_and_gradients(kernel, which, dtype=dtype)
    expected = outputs_and_gradients(in_groups, which, dtype=dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    for actual, wanted in zip(found, expected, strict=True):
        assert (actual - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.parametrize("kernel", [_with_flash, _with_efficient, in_groups])
def test_dropout_drops_its_share_and_scales_up_the_rest(ragged, kernel):
    lengths = np.ones(2000, dtype=np.int64)
    which = Pattern(Layout(lengths, device=CPU), scaling=1.0, dropout=0.5, causal=False, window=None, one_query=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attended = kernel(*(torch.ones(2000, 1, 8, dtype=torch.bfloat16) for _ in range(3)), which)
    assert set(attended.unique().tolist()) == {0.0, 2.0}
    assert (attended == 0).float().mean() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(
    ("dtype", "changes", "kernel"),
    [
        (torch.bfloat16, {}, _with_flash),
        (torch.float16, {}, _with_flash),
        (torch.bfloat16, {"window": 3}, _with_flash),
        (torch.bfloat16, {"causal": True}, _with_flash),
        (torch.bfloat16, {"one_query": True}, _with_flash),
        (torch.bfloat16, {"dropout": 0.1}, _with_flash),
        (torch.bfloat16, {"dropout": 0.1, "window": 3}, _with_flash),
        (torch.float32, {}, _with_efficient),
        (torch.float32, {"one_query": True}, _with_efficient),
        (torch.float32, {"causal": True}, _with_efficient),
        (torch.float32, {"window": 9}, _with_efficient),
        (torch.float32, {"window": 8}, in_groups),
        (torch.float32, {"causal": True, "window": 3}, in_groups),
        (torch.bfloat16, {"one_query": True, "causal": True}, in_groups),
        (torch.bfloat16, {"one_query": True, "window": 3}, in_groups),
        (torch.float64, {}, in_groups),
    ],
)
def test_the_first_kernel_made_for_it_is_chosen(ragged, dtype, changes, kernel):
    which = pattern(**changes)
    query = states(one_query=which.one_query, dtype=dtype)[0]
    assert choose(query, which) is kernel


@pytest.mark.parametrize(("size", "kernel"), [(12, in_groups), (256, _with_flash), (264, _with_efficient)])
def test_kernels_are_left_out_where_they_take_no_heads_of_this_size(ragged, size, kernel):
    assert choose(states(dtype=torch.bfloat16, size=size)[0], pattern()) is kernel


def test_more_texts_than_a_grid_has_places_go_in_groups(ragged, monkeypatch):
    monkeypatch.setattr(_kernels, "MOST_TEXTS", len(LENGTHS) - 1)
    assert choose(states(dtype=torch.bfloat16)[0], pattern()) is in_groups


def test_a_cpu_keeps_to_the_groups():
    assert choose(states(dtype=torch.bfloat16)[0], pattern()) is in_groups


def refusing(*_, **__):
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


def refusing_gradients(*inputs, **named):
    attended, *others = plain_flash(*inputs, **named)
    attended.register_hook(refusing)
    return attended, *others


def wrong(*inputs, **named):
    attended, *others = plain_flash(*inputs, **named)
    return attended + 1, *others


def wrong_for_keys(query, key, *inputs, **named):
    return plain_flash(query, key.detach() + 0 * key, *inputs, **named)


def of_no_scale(*inputs, **named):
    return plain_flash(*inputs, **(named | {"scale": SIZE**-0.5}))


def of_one_head(query, key, *inputs, **named):
    return plain_flash(query, key[:, :1].expand_as(key), *inputs, **named)


def of_an_older_release(*inputs, scale):
    return plain_flash(*inputs, scale=scale, window_size_left=None, window_size_right=None)


BROKEN = [refusing, refusing_gradients, wrong, wrong_for_keys, of_no_scale, of_one_head, of_an_older_release]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_kernel_that_refuses_or_differs_is_passed_over(ragged, monkeypatch, broken):
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", broken)
    inputs = states(dtype=torch.bfloat16)
    for dropout in (0.1, 0.0):
        assert choose(inputs[0], pattern(dropout=dropout)) is _with_efficient
    layout = Layout(LENGTHS, device=CPU)
    torch.testing.assert_close(
        attend(*inputs, layout, scaling=0.3).float(),
        in_groups(*states(), pattern()),
        atol=0.02,
        rtol=0.02,
    )


@pytest.mark.parametrize("window", [2, 7, 65, 129])
@pytest.mark.parametrize("further", [None, 1])
def test_a_kernel_whose_windows_end_elsewhere_is_passed_over(ragged, monkeypatch, window, further):
    def flash(*inputs, window_size_left, window_size_right, **named):
        sizes = (None if further is None else size + further for size in (window_size_left, window_size_right))
        return plain_flash(*inputs, **named, **dict(zip(("window_size_left", "window_size_right"), sizes, strict=True)))

    layout = Layout(np.array([200, 3]), device=CPU)
    which = Pattern(layout, scaling=0.3, dropout=0.0, causal=False, window=window, one_query=False)
    query = torch.zeros(203, HEADS, SIZE, dtype=torch.bfloat16)
    assert choose(query, which) is _with_flash
    _kernels._works.cache_clear()
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    assert choose(query, which) is in_groups


class DrawsAnew(torch.autograd.Function):
    """Attention whose backward pass draws another mask than its forward pass."""

    @staticmethod
    def forward(context, query, key, value, offsets, dropout, scale):
        context.save_for_backward(query, key, value)
        context.others = offsets, offsets, dropout, scale, None, None
        return attended_text_by_text(query, key, value, *context.others)

    @staticmethod
    def backward(context, gradient):
        states = [each.detach().requires_grad_() for each in context.saved_tensors]
        with torch.enable_grad():
            attended = attended_text_by_text(*states, *context.others)
        return *torch.autograd.grad(attended, states, gradient), None, None, None


@pytest.mark.parametrize("dropout", [0.001, 0.1, 0.9])
def test_a_kernel_that_drops_other_scores_in_the_gradient_is_passed_over(ragged, monkeypatch, dropout):
    """As memory-efficient attention of ragged batches does (torch 2.11, H200)."""

    def efficient(query, key, value, bias, offsets, key_offsets, longest, longest_key, dropout, *_, scale):
        return DrawsAnew.apply(query[0], key[0], value[0], offsets, dropout, scale)[None], None

    monkeypatch.setattr(torch.ops.aten, "_efficient_attention_forward", efficient)
    query = states()[0]
    assert choose(query, pattern()) is _with_efficient
    assert choose(query, pattern(dropout=dropout)) is in_groups


@pytest.mark.parametrize("factor", [1.0, 4 / 3])
def test_a_kernel_that_drops_nothing_is_passed_over(ragged, monkeypatch, factor):
    def flash(*inputs, **named):
        *states, share, is_causal, debug = inputs
        attended, *others = plain_flash(*states, 0.0, is_causal, debug, **named)
        return attended * (factor if share else 1), *others

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    query = states(dtype=torch.bfloat16)[0]
    assert choose(query, pattern()) is _with_flash
    assert choose(query, pattern(dropout=0.1)) is _with_efficient


def test_a_kernel_is_tried_once(ragged, monkeypatch):
    calls = []

    def flash(*inputs, **named):
        calls.append(named["scale"])
        return plain_flash(*inputs, **named)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    query = states(dtype=torch.bfloat16)[0]
    for dropout in (0.0, 0.1):
        choose(query, pattern(dropout=dropout))
    n_tries = len(calls)
    for dropout in (0.0, 0.1, 0.2):
        choose(query, pattern(dropout=dropout))
    assert n_tries == len(calls) > 0


def test_a_want_of_memory_while_trying_is_told_and_not_remembered(ragged, monkeypatch):
    def exhausted(*_, **__):
        raise torch.OutOfMemoryError("no memory")

    query = states(dtype=torch.bfloat16)[0]
    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.aten, "_flash_attention_forward", exhausted)
        with pytest.raises(torch.OutOfMemoryError):
            choose(query, pattern())
    assert choose(query, pattern()) is _with_flash


def test_trying_works_within_inference_and_autocast_and_draws_nothing(ragged):
    state = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        query = states(dtype=torch.bfloat16)[0]
        assert choose(query, pattern()) is _with_flash
        assert choose(query, pattern(dropout=0.5)) is _with_flash
    assert torch.equal(torch.get_rng_state(), state)


def test_trying_takes_no_heed_of_the_default_device(ragged):
    query, which = states(dtype=torch.bfloat16)[0], pattern(dropout=0.1)
    with torch.device("meta"):
        assert choose(query, which) is _with_flash


def test_trying_is_silent(monkeypatch, recwarn, capfd):
    """Where torch has no such kernel, as on a CPU."""
    monkeypatch.setattr(_kernels, "RAGGED_DEVICES", {"cpu"})
    for dtype in (torch.float32, torch.bfloat16):
        assert choose(states(dtype=dtype)[0], pattern()) is in_groups
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
