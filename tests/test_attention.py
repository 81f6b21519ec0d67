"""Attention over texts without padding, against a plain computation one text at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bertclf import _groups, _layout
from bertclf._attention import attend, unpadded_attention
from bertclf._dropout import KeepMasks
from bertclf._groups import Pattern
from bertclf._layout import Layout

CPU = torch.device("cpu")
SIZE = 4
SCALING = 0.5
MIXED = [7, 1, 12, 12, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 9, 2, 30, 1, 1, 5]

texts = st.lists(st.integers(1, 12), min_size=1, max_size=12) | st.lists(st.integers(1, 3), min_size=10, max_size=30)


def layout_of(lengths, masks=None, device=CPU, n_idle=0):
    return Layout(np.array(lengths, dtype=np.int64), device=device, masks=masks, n_idle=n_idle)


def states_of(lengths, *, heads=2, key_heads=None, dtype=torch.float32, seed=0):
    """Return queries, keys and values of all tokens, to be trained."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(sum(lengths), n_heads, SIZE) for n_heads in (heads, key_heads or heads, key_heads or heads)]
    return [(2 * torch.randn(shape, generator=generator)).to(dtype).requires_grad_() for shape in shapes]


def plain(query, key, value, lengths, *, causal=False, window=None, keep=None, dropout=0.0):
    """Attend by the formula: scores of all tokens of all texts, of which those between two texts are forbidden."""
    n_repeats = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(n_repeats, dim=1) for states in (key, value))
    text = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    distance = torch.arange(len(text))[:, None] - torch.arange(len(text))
    allowed = text[:, None] == text
    if causal:
        allowed &= distance >= 0
    if window is not None:
        allowed &= distance.abs() < window
    scores = torch.matmul(query.transpose(0, 1), key.permute(1, 2, 0)) * SCALING
    shares = scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1)
    if keep is not None:
        shares = shares * keep / (1 - dropout)
    return torch.matmul(shares, value.transpose(0, 1)).transpose(0, 1)


def assert_agrees(states, lengths, *, rtol=1e-4, **pattern):
    """Check output and gradients with autograd, and output without, against the plain computation."""
    expected = plain(*states, lengths, **pattern)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(expected.dtype)
    gradients = torch.autograd.grad(expected, states, upstream)

    attended = attend(*states, layout_of(lengths), scaling=SCALING, **pattern)
    torch.testing.assert_close(attended, expected, rtol=rtol, atol=rtol)
    for gradient, expected_gradient in zip(torch.autograd.grad(attended, states, upstream), gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=rtol, atol=10 * rtol)
    with torch.no_grad():
        torch.testing.assert_close(
            attend(*states, layout_of(lengths), scaling=SCALING, **pattern), expected, rtol=rtol, atol=rtol
        )


@settings(deadline=None, max_examples=50)
@given(lengths=texts, causal=st.booleans(), window=st.none() | st.integers(1, 14))
def test_each_text_is_attended_by_the_formula(lengths, causal, window):
    assert_agrees(states_of(lengths), lengths, causal=causal, window=window)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 2), (4, 1), (6, 3)])
@pytest.mark.parametrize("causal", [False, True])
def test_heads_of_queries_share_keys_and_values(heads, key_heads, causal):
    assert_agrees(states_of(MIXED, heads=heads, key_heads=key_heads), MIXED, causal=causal)


def test_lower_precision_agrees_loosely_and_is_kept():
    states = states_of(MIXED, dtype=torch.bfloat16)
    assert_agrees(states, MIXED, rtol=3e-2)
    assert attend(*states, layout_of(MIXED), scaling=SCALING).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("texts_per_group", "scores_per_group"), [(1, 1 << 18), (3, 1 << 18), (100, 1 << 18), (8, 100)]
)
def test_the_size_of_the_groups_changes_nothing(monkeypatch, texts_per_group, scores_per_group):
    monkeypatch.setattr(_layout, "TEXTS_PER_GROUP", texts_per_group)
    monkeypatch.setattr(_layout, "SCORES_PER_GROUP", scores_per_group)
    assert_agrees(states_of(MIXED), MIXED, window=5)


@pytest.mark.parametrize("scores_per_part", [1, 100, 1000])
@pytest.mark.parametrize("pattern", [{}, {"causal": True}, {"window": 5}])
def test_scores_that_pass_in_parts_change_nothing(monkeypatch, scores_per_part, pattern):
    monkeypatch.setattr(_layout, "SCORES_PER_GROUP", 100)
    monkeypatch.setattr(_groups, "SCORES_PER_PART", scores_per_part)
    assert_agrees(states_of(MIXED, heads=5), MIXED, **pattern)


def test_long_texts_in_bfloat16_agree_with_float32_and_keep_their_shares_in_it():
    lengths = [300, 40, 37]
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(sum(lengths), 4, 32, generator=generator).bfloat16().requires_grad_() for _ in range(3)]
    exact = [some.detach().float().requires_grad_() for some in states]
    attended, expected = (attend(*some, layout_of(lengths), scaling=32**-0.5) for some in (states, exact))
    _, _, _, signed = attended.grad_fn.saved_tensors
    assert (attended.dtype, signed.dtype) == (torch.bfloat16, torch.float32)
    upstream = torch.randn(expected.shape, generator=generator)
    gradients = (
        torch.autograd.grad(attended, states, upstream.bfloat16()),
        torch.autograd.grad(expected, exact, upstream),
    )
    for found, right in zip((attended, *gradients[0]), (expected, *gradients[1]), strict=True):
        assert (found.float() - right).norm() < 0.01 * right.norm()


def test_parts_hold_all_scores_once_and_no_more_than_allowed(monkeypatch):
    monkeypatch.setattr(_groups, "SCORES_PER_PART", 1000)
    pattern = Pattern(
        layout_of([20, 20, 5, 4, 3]), scaling=1.0, dropout=0.0, causal=False, window=None, one_query=False
    )
    monkeypatch.setattr(_layout, "TEXTS_PER_GROUP", 1)
    monkeypatch.setattr(_layout, "SCORES_PER_GROUP", 400)
    parts = pattern.parts(3, torch.float32)
    assert [[block.shape for block in part.blocks] for part in parts] == [
        [(1, 2, 20, 20)],
        [(1, 1, 20, 20)],
        [(1, 2, 20, 20)],
        [(1, 1, 20, 20), (1, 3, 5, 5), (1, 3, 4, 4), (1, 3, 3, 3)],
    ]
    assert [part.scores for part in parts] == [slice(0, 800), slice(800, 1200), slice(1200, 2000), slice(2000, 2550)]
    places = [place for part in parts for block in part.blocks for place in range(block.keys.start, block.keys.stop)]
    assert places == [*range(3 * 52)]


def test_heads_are_cut_into_equal_numbers_and_less_on_other_devices():
    pattern = {"scaling": 1.0, "dropout": 0.0, "causal": False, "window": None, "one_query": False}
    shapes = {
        device: [
            block.shape
            for part in Pattern(layout_of([300], device=torch.device(device)), **pattern).parts(12, torch.float32)
            for block in part.blocks
        ]
        for device in ("cpu", "meta")
    }
    assert shapes == {"cpu": [(1, 6, 300, 300)] * 2, "meta": [(1, 12, 300, 300)]}


@settings(deadline=None)
@given(lengths=texts)
def test_groups_hold_every_text_once_in_order_and_no_padding_where_lengths_are_equal(lengths):
    groups = layout_of(lengths).groups
    assert [place for group in groups for place in range(group.texts.start, group.texts.stop)] == [*range(len(lengths))]
    assert [group.places.start for group in groups] == [0, *(group.places.stop for group in groups[:-1])]
    for group in groups:
        assert group.longest == max(lengths[group.texts])
        assert group.places.stop - group.places.start == group.n_texts * group.longest
        assert (group.is_token is None) == (len(set(lengths[group.texts])) == 1)


def test_many_texts_of_one_length_are_one_group_and_others_few():
    sizes = [group.n_texts for group in layout_of([9] * 50 + list(range(8, 0, -1)) * 2).groups]
    assert sizes == [50, 8, 8]


def test_a_group_holds_no_more_scores_than_allowed():
    assert [group.n_texts for group in layout_of([512, 512, 512, 181, 181]).groups] == [1, 1, 1, 2]


@pytest.mark.parametrize("window", [None, 4, 100])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("scores_per_part", "texts_per_group"), [(1 << 20, 8), (30, 1)])
def test_first_tokens_alone_get_what_they_get_among_all(monkeypatch, causal, window, scores_per_part, texts_per_group):
    monkeypatch.setattr(_groups, "SCORES_PER_PART", scores_per_part)
    monkeypatch.setattr(_layout, "TEXTS_PER_GROUP", texts_per_group)
    monkeypatch.setattr(_layout, "SCORES_PER_GROUP", 9)
    states = states_of(MIXED, heads=4)
    firsts = np.cumsum(MIXED) - MIXED
    pattern = {"causal": causal, "window": window}
    expected = plain(*states, MIXED, **pattern)[firsts]
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(expected, states, upstream)

    def alone():
        return attend(states[0][firsts], *states[1:], layout_of(MIXED), scaling=SCALING, one_query=True, **pattern)

    attended = alone()
    torch.testing.assert_close(attended, expected, rtol=1e-4, atol=1e-4)
    for gradient, expected_gradient in zip(torch.autograd.grad(attended, states, upstream), gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(alone(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("one_query", [False, True])
def test_tokens_of_no_text_get_zeros_and_no_gradient_and_change_nothing(one_query, dropout):
    states, n_idle = states_of(MIXED), 9
    if one_query:
        states[0] = states[0].detach()[np.cumsum(MIXED) - MIXED].requires_grad_()
    more = [torch.cat([some.detach(), torch.full((n_idle, 2, SIZE), torch.pi)]).requires_grad_() for some in states]
    if one_query:
        more[0] = states[0].detach().requires_grad_()

    def attended(states, n_idle):
        layout = layout_of(MIXED, KeepMasks(5), n_idle=n_idle)
        return attend(*states, layout, scaling=SCALING, dropout=dropout, one_query=one_query)

    expected, found = attended(states, 0), attended(more, n_idle)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(expected, states, upstream)
    upstream = torch.cat([upstream, torch.zeros(len(found) - len(expected), 2, SIZE)])
    for some, same in zip([found, *torch.autograd.grad(found, more, upstream)], [expected, *gradients], strict=True):
        assert torch.equal(some[: len(same)], same)
        assert not some[len(same) :].any()


@pytest.mark.parametrize("lengths", [[7], [5, 5, 5]])
@pytest.mark.parametrize("n_idle", [0, 4])
@pytest.mark.parametrize("pattern", [{}, {"causal": True}, {"window": 3}, {"one_query": True}])
def test_texts_of_one_length_need_no_rows_in_prediction(lengths, n_idle, pattern, monkeypatch):
    states = states_of([*lengths, n_idle] if n_idle else lengths)
    if "one_query" in pattern:
        states[0] = states[0].detach()[np.cumsum(lengths) - lengths].requires_grad_()
    layout = layout_of(lengths, n_idle=n_idle)
    expected = attend(*states, layout, scaling=SCALING, **pattern)
    monkeypatch.setattr(layout, "rows", None)
    with torch.no_grad():
        found = attend(*states, layout, scaling=SCALING, **pattern)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def mask_again(lengths, *, heads, dropout, seed):
    """Return the mask that a source of this seed draws, of shape (heads, n_tokens, n_tokens)."""
    masks, blocks = KeepMasks(seed), []
    for group in layout_of(lengths).groups:
        keep = masks.draw(torch.Size([group.n_texts, heads, group.longest, group.longest]), dropout)
        blocks += [part[:, :n, :n] for part, n in zip(keep, lengths[group.texts], strict=True)]
    return torch.stack([torch.block_diag(*(block[head] for block in blocks)) for head in range(heads)])


@pytest.mark.parametrize(
    ("lengths", "texts_per_group", "scores_per_part"), [(MIXED, 8, 1 << 20), ([8, 20, 2, 6, 10], 1, 1)]
)
def test_values_and_gradients_drop_the_same_scores(monkeypatch, lengths, texts_per_group, scores_per_part):
    monkeypatch.setattr(_layout, "TEXTS_PER_GROUP", texts_per_group)
    monkeypatch.setattr(_groups, "SCORES_PER_PART", scores_per_part)
    states = states_of(lengths)
    keep = mask_again(lengths, heads=2, dropout=0.4, seed=5)
    expected = plain(*states, lengths, keep=keep, dropout=0.4)
    attended = attend(*states, layout_of(lengths, KeepMasks(5)), scaling=SCALING, dropout=0.4)
    torch.testing.assert_close(attended, expected, rtol=1e-4, atol=1e-4)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    pairs = zip(*(torch.autograd.grad(values, states, upstream) for values in (attended, expected)), strict=True)
    for gradient, expected_gradient in pairs:
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("trained", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("source", ["numpy", "torch"])
@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_as_many_scores_are_dropped_as_the_probability_says(dropout, source, trained):
    """Scores are equal and values the unit vectors, so what a token attends to is its row of the mask."""
    length, n_texts, heads = 32, 12, 2
    states = [torch.zeros(n_texts * length, heads, length) for _ in range(3)]
    states[2] += torch.eye(length).repeat(n_texts, 1)[:, None]
    states[trained].requires_grad_()
    layout = layout_of([length] * n_texts, KeepMasks(0) if source == "numpy" else None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attended = attend(*states, layout, scaling=1.0, dropout=dropout)

    kept = attended > 0
    torch.testing.assert_close(attended[kept], torch.full((), 1 / length / (1 - dropout)).expand(int(kept.sum())))
    sigma = np.sqrt(dropout * (1 - dropout) / kept.numel())
    assert abs(kept.double().mean().item() - (1 - dropout)) < 5 * sigma
    per_text = kept.unflatten(0, (n_texts, length))
    agree = (per_text[0] == per_text[1]).double().mean().item()
    assert abs(agree - (dropout**2 + (1 - dropout) ** 2)) < 5 * np.sqrt(0.25 / per_text[0].numel())


def test_masks_of_numpy_leave_the_generator_of_torch_alone():
    states, before = states_of(MIXED), torch.get_rng_state()
    attend(*states, layout_of(MIXED, KeepMasks(0)), scaling=SCALING, dropout=0.5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("lengths", [[5, 5], [5, 3]], ids=["equal", "unequal"])
@pytest.mark.parametrize("pattern", [{"causal": True, "window": None}, {"causal": False, "window": 2}])
def test_masks_are_made_on_the_device_of_the_batch(lengths, pattern):
    device = torch.device("meta")
    (group,) = layout_of(lengths, device=device).groups
    assert group.allowed(**pattern, device=device).device == device


# What transformers calls


class CausalLayer(nn.Module):
    is_causal = True


def called(module, states, lengths, **others):
    rows = [part.transpose(0, 1)[None] for part in states]
    attended, scores = unpadded_attention(module, *rows, None, layout=layout_of(lengths), **others)
    assert scores is None
    return attended


@pytest.mark.parametrize(
    ("module", "others", "causal"),
    [
        (nn.Module(), {}, False),
        (CausalLayer(), {}, True),
        (CausalLayer(), {"is_causal": False}, False),
        (nn.Module(), {"is_causal": True, "use_cache": False, "position_ids": 1, "head_mask": None}, True),
    ],
)
def test_a_layer_is_causal_if_it_or_the_caller_says_so(module, others, causal):
    states = states_of(MIXED)
    expected = plain(*states, MIXED, causal=causal)
    attended = called(module, states, MIXED, scaling=SCALING, **others)
    torch.testing.assert_close(attended, expected[None], rtol=1e-4, atol=1e-4)


def test_scores_are_scaled_by_the_size_of_a_head_where_nothing_is_said():
    states = states_of(MIXED)
    assert SIZE**-0.5 == SCALING
    torch.testing.assert_close(called(nn.Module(), states, MIXED), plain(*states, MIXED)[None], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("others", [{"position_bias": torch.zeros(1)}, {"softcap": 30.0}, {"s_aux": torch.zeros(2)}])
def test_what_a_layer_wants_beyond_plain_attention_is_refused_by_name(others):
    with pytest.raises(NotImplementedError, match=rf"Module wants \['{next(iter(others))}'\]"):
        called(nn.Module(), states_of([3]), [3], **others)


def test_a_mask_is_refused():
    rows = [part.transpose(0, 1)[None] for part in states_of([3])]
    with pytest.raises(NotImplementedError, match="wants an attention mask"):
        unpadded_attention(nn.Module(), *rows, torch.zeros(3, 3), layout=layout_of([3]))
