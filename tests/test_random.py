import random
import threading

import numpy as np
import pytest
import torch

from bertclf._random import draw_seed, seeded

CPU = torch.device("cpu")


def test_an_int_always_gives_the_same_seed():
    assert draw_seed(3) == draw_seed(3)
    assert draw_seed(3) != draw_seed(4)


def test_a_generator_gives_a_new_seed_at_each_draw():
    generator = np.random.RandomState(0)
    assert draw_seed(generator) != draw_seed(generator)


def test_none_gives_new_seeds_without_touching_numpys_global_generator():
    before = np.random.get_state()[1].copy()
    assert draw_seed(None) != draw_seed(None)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_seeded_draws_repeat_and_the_global_state_comes_back():
    state, python_state = torch.get_rng_state(), random.getstate()
    with seeded(7, CPU):
        first = torch.rand(3)
    with seeded(7, CPU):
        second = torch.rand(3)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state


def draw_and_fail(error):
    with seeded(7, CPU):
        torch.rand(3)
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_global_state_comes_back_after_an_error(error):
    state = torch.get_rng_state()
    with pytest.raises(error):
        draw_and_fail(error)
    assert torch.equal(torch.get_rng_state(), state)


def test_threads_hold_the_generator_one_after_the_other():
    drawn = []

    def draw():
        with seeded(7, CPU):
            drawn.append(torch.cat([torch.rand(1) for _ in range(2_000)]))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(values, drawn[0]) for values in drawn)


class FakeAccelerator:
    """Stands for torch.cuda or torch.mps: one generator whose state is a number."""

    def __init__(self):
        self.state = torch.tensor([1])

    def device(self, device):
        import contextlib

        return contextlib.nullcontext()

    def get_rng_state(self, *device):
        return self.state.clone()

    def set_rng_state(self, state, *device):
        self.state = state

    def manual_seed(self, seed):
        self.state = torch.tensor([seed])


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_the_generator_of_the_device_is_seeded_and_comes_back(monkeypatch, kind):
    fake = FakeAccelerator()
    monkeypatch.setattr(torch, kind, fake)
    with seeded(7, torch.device(kind)):
        assert fake.state.item() == 7
    assert fake.state.item() == 1
