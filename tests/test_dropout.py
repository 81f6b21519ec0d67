"""Dropout from numpy's bits: the right rate, independent decisions, and nobody else's generator."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertclf._dropout import LEVELS, Dropout, KeepMasks

N = 400_000


def share_is(mask, expected):
    """Tell whether as many elements are True as a binomial allows in all but one of a million draws."""
    sigma = np.sqrt(expected * (1 - expected) / mask.numel())
    return abs(mask.double().mean().item() - expected) < 5 * sigma + 1 / LEVELS


@pytest.mark.parametrize("probability", [0.001, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999])
def test_as_many_are_dropped_as_the_probability_says(probability):
    assert share_is(~KeepMasks(0).draw(torch.Size([N]), probability), probability)


def test_next_to_nothing_drops_nothing_and_next_to_all_keeps_a_few():
    masks = KeepMasks(0)
    assert masks.draw(torch.Size([N]), 1e-9).all()
    kept = masks.draw(torch.Size([10 * N]), 1 - 1e-9).sum().item()
    assert 0 < kept < 200


@settings(deadline=None)
@given(shape=st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_a_mask_has_any_shape(shape):
    mask = KeepMasks(0).draw(torch.Size(shape), 0.5)
    assert mask.shape == torch.Size(shape)
    assert mask.dtype == torch.bool


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 5, 64, 1024])
@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_decisions_of_a_mask_are_independent(probability, distance):
    mask = KeepMasks(1).draw(torch.Size([N]), probability)
    assert share_is(mask[distance:] & mask[:-distance], (1 - probability) ** 2)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_masks_are_independent_of_each_other(probability):
    masks = KeepMasks(2)
    first, second = (masks.draw(torch.Size([N]), probability) for _ in range(2))
    assert share_is(first & second, (1 - probability) ** 2)
    other = KeepMasks(3).draw(torch.Size([N]), probability)
    assert share_is(first & other, (1 - probability) ** 2)


def test_the_seed_alone_decides_the_masks():
    for shape in (torch.Size([17]), torch.Size([3, 5])):
        assert torch.equal(KeepMasks(7).draw(shape, 0.5), KeepMasks(7).draw(shape, 0.5))


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_what_is_kept_is_scaled_so_that_the_expectation_stays(probability):
    values = torch.rand(N) + 0.5
    dropped = Dropout(probability, KeepMasks(0))(values)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], values[kept] / (1 - probability))
    assert share_is(~kept, probability)
    assert dropped.mean().item() == pytest.approx(values.mean().item(), rel=0.01)


def test_the_gradient_passes_where_the_value_passed():
    values = (torch.rand(40, 50) + 0.5).requires_grad_()
    upstream = torch.randn(40, 50)
    dropped = Dropout(0.3, KeepMasks(0))(values)
    dropped.backward(upstream)
    torch.testing.assert_close(values.grad, torch.where(dropped == 0, 0.0, upstream / 0.7))


def test_the_gradient_is_that_of_the_function():
    values = torch.rand(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda states: Dropout(0.4, KeepMasks(0))(states), values)


@pytest.mark.parametrize(("probability", "training"), [(0.0, True), (0.5, False)])
def test_nothing_is_dropped_or_drawn_out_of_training_or_at_probability_zero(probability, training):
    masks, values = KeepMasks(0), torch.rand(100)
    assert Dropout(probability, masks).train(training)(values) is values
    assert torch.equal(masks.draw(torch.Size([100]), 0.5), KeepMasks(0).draw(torch.Size([100]), 0.5))


def test_generators_of_others_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    Dropout(0.5, KeepMasks(0))(torch.rand(0).new_ones(1000))
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_is_kept(dtype):
    values = torch.ones(1000, dtype=dtype, requires_grad=True)
    dropped = Dropout(0.5, KeepMasks(0))(values)
    dropped.sum().backward()
    assert dropped.dtype == values.grad.dtype == dtype
    assert set(dropped.tolist()) == {0.0, 2.0}
