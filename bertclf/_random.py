"""A seed that stays inside: torch's global generators are borrowed and given back as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.utils import check_random_state

from bertclf._process import lock_for

BORROWING = "borrowing torch's generators"


def draw_seed(random_state: int | np.random.RandomState | None) -> int:
    """Turn scikit-learn's `random_state` into one seed.

    None draws from the operating system, not from numpy's global generator, which stays untouched.
    """
    source = np.random.RandomState() if random_state is None else check_random_state(random_state)
    return int(source.randint(np.iinfo(np.int32).max))


def seed_of_part(seed: int, *, part: int) -> int:
    """Return the seed of one of several trainings that go on from each other; the first has the seed itself.

    Otherwise an int as `random_state` would give each of them the same order and the same dropout.
    """
    return seed if part == 0 else int(np.random.default_rng([seed, part]).integers(np.iinfo(np.int32).max))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators of the CPU and of `device`, and restore their states on the way out.

    Dropout and initialisation draw from torch's global generators, so one fit at a time may hold them: fits started in
    several threads of one process run one after the other, each with its own reproducible stream.
    """
    with lock_for(BORROWING), undisturbed(device):
        torch.default_generator.manual_seed(seed)
        _seed_device(seed, device)
        yield


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Restore the states of torch's generators of the CPU and of `device` on the way out."""
    states = generator_states(device)
    try:
        yield
    finally:
        set_generator_states(states, device)


def generator_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of torch's generators of the CPU and of `device`, by the types of these."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_generator_states(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Give torch's generators of the CPU and of `device` the states that `generator_states` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states["mps"])


def _seed_device(seed: int, device: torch.device) -> None:
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
