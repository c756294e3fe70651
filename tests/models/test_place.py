"""Where a model goes and in which number type."""

import warnings

import pytest
import torch

from lora_drop.errors import LoraDropError
from lora_drop.method.cost import ModelShape
from lora_drop.models import place, random_weights


def test_auto_takes_what_the_machine_has(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert place.resolve_device("auto") == torch.device("cpu")
    with pytest.raises(LoraDropError, match="no CUDA device for cuda"):
        place.resolve_device("cuda")
    for has, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(place, "_cpu_has_bfloat16", lambda has=has: has)
        assert place.resolve_dtype("auto", torch.device("cpu")) == dtype
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert place.resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert place.resolve_dtype(torch.bfloat16, torch.device("cpu")) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert place.resolve_device("auto") == torch.device("cuda", 0)
    assert place.resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(LoraDropError, match="last one here is cuda:1"):
        place.resolve_device("cuda:2")


def test_a_model_goes_where_its_weights_fit(monkeypatch):
    """The GPU with the most room, else the CPU; there in bfloat16 only where float32 does not fit."""
    gpus, cpu = [torch.device("cuda", i) for i in range(2)], torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: ({0: 5, 1: 9}[card.index], 100))
    monkeypatch.setattr(place, "fault_of", lambda card: None)
    monkeypatch.setattr(place, "_cpu_has_bfloat16", lambda: False)
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    half, whole = torch.bfloat16, torch.float32
    candidates = place.places()
    assert candidates == [(gpus[1], half), (gpus[0], half), (cpu, whole), (cpu, half)]
    assert place.places("cuda:0", "float32") == [(gpus[0], whole)]
    config = random_weights.SHAPES["tiny-llama"]
    size = ModelShape.from_config(config).params
    for room, at in (((3, 3, 9), 0), ((1, 3, 9), 1), ((1, 1, 4), 2), ((1, 1, 3), 3)):
        free = dict(zip((gpus[1], gpus[0], cpu), (size * n for n in room), strict=True))
        monkeypatch.setattr(place, "free_memory", free.get)
        assert place.fitting(config, "m", candidates) == candidates[at]
    monkeypatch.setattr(place, "free_memory", lambda device: size)
    with pytest.raises(LoraDropError, match="in bfloat16, and cuda:1 has .* free and cuda:0 has .* free and cpu has"):
        place.fitting(config, "m", candidates)


def test_a_card_that_cannot_be_used_is_one_line_and_the_rest_goes_on(monkeypatch):
    """A card that torch was not built for, one in use by others, one without memory: the product tells."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (1, 1))
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    broken = {"cuda:0"}
    ones = torch.ones

    def made(*shape, device):
        if str(device) in broken:
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with")
        return ones(*shape)

    monkeypatch.setattr(torch, "ones", made)
    with pytest.warns(UserWarning) as caught:
        assert {device.type for device, _ in place.places()} == {"cuda", "cpu"}
    assert ["no kernel image" in str(one.message) and "\n" not in str(one.message) for one in caught] == [True]
    assert place.places("cuda:1", "float32") == [(torch.device("cuda", 1), torch.float32)]
    with pytest.raises(LoraDropError, match="cuda:0 cannot be used .*no kernel image"):
        place.places("cuda:0")
    broken.add("cuda:1")
    with pytest.warns(UserWarning):
        assert {device.type for device, _ in place.places()} == {"cpu"}


def test_why_there_is_no_card_is_one_line(monkeypatch):
    def too_old():
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old\nPlease update", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.warns(UserWarning, match="driver on your system is too old\\): the CPU goes on") as caught:
        assert place.resolve_device("auto") == torch.device("cpu")
    assert len(caught) == 1
    with pytest.raises(LoraDropError, match="too old"):
        place.resolve_device("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LoraDropError, match="CUDA_VISIBLE_DEVICES is empty"):
        place.resolve_device("cuda")
    assert place.resolve_device("cpu") == torch.device("cpu")


def test_a_gpu_s_free_memory_has_what_torch_holds_unused_and_a_margin(monkeypatch):
    size = 10 * place.CUDA_MARGIN
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (size, 2 * size))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert place.free_memory(torch.device("cuda", 1)) == size + 300 - place.CUDA_MARGIN
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 2 * size))
    assert place.free_memory(torch.device("cuda", 1)) == 0


def test_processor_s_bfloat16(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for avx512, amx in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=avx512: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=amx: has)
        assert place._cpu_has_bfloat16() is (avx512 or amx)
