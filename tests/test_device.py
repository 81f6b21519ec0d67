import pytest
import torch

from bertclf._device import Compute, choose_compute, compute_after_loading

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """A function that makes torch report other hardware than this machine has."""

    def pretend(*, n_cuda=0, mps=False, cuda_bfloat16=True, amx=False, avx512_bfloat16=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n_cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n_cuda)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: cuda_bfloat16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bfloat16)

    return pretend


@pytest.mark.parametrize(
    ("hardware", "device", "dtype"),
    [
        ({}, "cpu", torch.float32),
        ({"amx": True}, "cpu", torch.bfloat16),
        ({"avx512_bfloat16": True}, "cpu", torch.bfloat16),
        ({"mps": True}, "mps", torch.float32),
        ({"n_cuda": 1, "mps": True}, "cuda:0", torch.bfloat16),
        ({"n_cuda": 1, "cuda_bfloat16": False}, "cuda:0", torch.float16),
    ],
)
def test_auto_takes_the_best_device_and_the_precision_that_it_is_built_for(machine, hardware, device, dtype):
    machine(**hardware)
    assert choose_compute(device="auto", precision="auto") == Compute(torch.device(device), dtype)


def test_a_named_precision_is_taken_as_it_is(machine):
    machine(amx=True)
    assert choose_compute(device="cpu", precision="float32").dtype == torch.float32


def test_a_named_cuda_device_keeps_its_number(machine):
    machine(n_cuda=2)
    assert choose_compute(device="cuda:1", precision="auto").device == torch.device("cuda", 1)
    assert choose_compute(device="cuda", precision="auto").device == torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "device='gpu' is not a device that torch knows"),
        ("meta", "device='meta' is not supported"),
        ("cuda", r"device='cuda' is not available: torch sees 0 device\(s\) of type 'cuda' here"),
        ("mps", "device='mps' is not available"),
    ],
)
def test_a_device_that_is_not_here_is_refused_with_a_remedy(machine, name, message):
    machine()
    with pytest.raises(ValueError, match=message):
        choose_compute(device=name, precision="auto")


def test_more_gpus_than_there_are_is_refused(machine):
    machine(n_cuda=1)
    with pytest.raises(ValueError, match=r"device='cuda:1' is not available: torch sees 1 device"):
        choose_compute(device="cuda:1", precision="auto")


def test_loading_without_the_device_falls_back_to_the_cpu_and_says_so(machine):
    machine()
    with pytest.warns(UserWarning, match="device='cuda' of the classifier is not on this machine"):
        assert compute_after_loading(device="cuda", precision="auto").device == CPU


def test_loading_with_auto_is_silent(machine):
    machine()
    assert compute_after_loading(device="auto", precision="auto").device == CPU


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_runs_matrix_products_in_the_precision(dtype):
    left = torch.ones(2, 2)
    with Compute(CPU, dtype).autocast():
        assert (left @ left).dtype == dtype


def test_gradients_are_scaled_in_float16_alone():
    assert Compute(CPU, torch.float16).gradient_scaler().is_enabled()
    assert not Compute(CPU, torch.bfloat16).gradient_scaler().is_enabled()
