"""Place a model: device, number type, and the memory that is free there."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedConfig

from lora_drop.decode.native.loader import library
from lora_drop.errors import LoraDropError, first_line
from lora_drop.method.cost import ModelShape
from lora_drop.runtime import waiting

BFLOAT16 = (8, 0)  # compute capability from which a GPU computes bfloat16 in hardware
# Kept free on a GPU beside weights and caches: cuBLAS' workspaces (32 MiB a stream on Hopper), graphs, two matrices
# that are laid side by side while a model loads, and fragments.
CUDA_MARGIN = 768 * 2**20
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Place = tuple[torch.device, torch.dtype]


def on_zero_gpu() -> bool:
    """True in a Space on ZeroGPU, by the variable that the package `spaces` reads (`spaces.config`, 0.51)."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def screens_heads(device: torch.device) -> bool:
    """Whether a screened head gains anything: on a GPU, and by torch on a CPU, it costs more than the whole head."""
    return device.type == "cpu" and library() is not None and not on_zero_gpu()


def resolve_device(device: str | torch.device) -> torch.device:
    """The torch device for `auto`, `cpu`, `cuda` or `cuda:N`. Raises LoraDropError if this machine lacks it."""
    name = str(device).strip().lower()
    available, why = _has_cuda() if name != "cpu" else (False, "")
    if name == "auto":
        name = "cuda" if available else "cpu"
        if why and not available:
            warnings.warn(f"no GPU can be used ({why}): the CPU goes on.", stacklevel=2)
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        raise LoraDropError("Apple's GPU (mps) is not supported: use auto or cpu.")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise LoraDropError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:N.")
    if not available:
        raise LoraDropError(f"no CUDA device for {name}: torch has none here{why and f' ({why})'}. Use auto or cpu.")
    index, count = int(match[1] or 0), torch.cuda.device_count()
    if index >= count:
        raise LoraDropError(f"no such device: {name}. The last one here is cuda:{count - 1}.")
    return torch.device("cuda", index)


def _has_cuda() -> tuple[bool, str]:
    """Whether torch has a GPU here; and what it says of one that it cannot use, such as a driver that is too old."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return available, "CUDA_VISIBLE_DEVICES is empty"
    return available, first_line(caught[-1].message) if caught else ""


def fault_of(card: torch.device) -> str | None:
    """Why a GPU cannot be used, in one line: a driver, this torch's build, its memory or its mode. None if it can.

    Run one small product to see. The architectures that torch was built for do not decide it: sm_89 runs sm_80's code.
    """
    try:
        ones = torch.ones(16, 16, device=card)
        (ones @ ones).tolist()
    except Exception as error:  # anything, also of libraries
        return first_line(error)
    return None


def _usable(cards: list[torch.device], is_auto: bool) -> list[torch.device]:
    """The cards that can be used, the one with the most free memory first.

    Raises:
        LoraDropError: the card that was named cannot.
    """
    faults = {card: fault_of(card) for card in cards}
    for card, fault in faults.items():
        if fault and not is_auto:
            raise LoraDropError(f"{card} cannot be used ({fault}): take another device, or cpu.")
        if fault:
            warnings.warn(f"{card} cannot be used ({fault}): the work goes on without it.", stacklevel=3)
    usable = [card for card, fault in faults.items() if fault is None]
    return sorted(usable, key=lambda card: torch.cuda.mem_get_info(card)[0], reverse=True)


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """float32 or bfloat16; `auto` takes bfloat16 where the device computes it in hardware."""
    name = short_name(dtype) if isinstance(dtype, torch.dtype) else str(dtype).strip().lower()
    if name == "auto":
        has = _gpu_has_bfloat16(device) if device.type == "cuda" else _cpu_has_bfloat16()
        return torch.bfloat16 if has else torch.float32
    if name not in DTYPES:
        raise LoraDropError(f"unknown dtype {name!r}: use auto, {' or '.join(DTYPES)}.")
    return DTYPES[name]


def _gpu_has_bfloat16(device: torch.device) -> bool:
    """True from Ampere on, and on ZeroGPU, whose card this process must not query; older cards emulate it."""
    return on_zero_gpu() or torch.cuda.get_device_capability(device) >= BFLOAT16


def _cpu_has_bfloat16() -> bool:
    """True if the processor multiplies bfloat16 in hardware; emulation is slower than float32."""
    if platform.machine().lower() in ("aarch64", "arm64"):  # only on ARM does oneDNN report the hardware
        return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def short_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def free_memory(device: torch.device) -> int | None:
    """Free bytes on the device; None if it does not report them."""
    if device.type == "cuda":
        # Memory that torch has reserved and does not use now is free too.
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return max(0, torch.cuda.mem_get_info(device)[0] + spare - CUDA_MARGIN)
    sizes: list[int] = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError, ValueError):  # a container's limit, which psutil does not report
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes)


def places(device: str | torch.device = "auto", dtype: str | torch.dtype = "auto") -> list[Place]:
    """Candidates of device and number type for a model, the best first; `fitting` takes the first with enough memory.

    Device `auto`: the GPUs, the one with the most free memory first, then the CPU. Dtype `auto` on a processor without
    bfloat16 in hardware: float32, and bfloat16 only where float32 does not fit.

    Raises:
        LoraDropError: an unknown name, or a device that this machine lacks or that cannot be used.
    """
    targets = [resolve_device(device)]
    is_auto = str(device).strip().lower() == "auto"
    # On ZeroGPU this process must not query the card.
    if targets[0].type == "cuda" and not on_zero_gpu():
        cards = [torch.device("cuda", index) for index in range(torch.cuda.device_count())] if is_auto else targets
        targets = [*_usable(cards, is_auto), *([torch.device("cpu")] if is_auto else [])]
    candidates = []
    for target in targets:
        best = resolve_dtype(dtype, target)
        candidates.append((target, best))
        if str(dtype).strip().lower() == "auto" and best == torch.float32:
            candidates.append((target, torch.bfloat16))
    return candidates


def fitting(config: PreTrainedConfig, name: str, candidates: list[Place], packed: int | None = None) -> Place:
    """The first candidate with enough memory for the weights, decided before a download and before the machine swaps.

    Args:
        packed: bytes of weights that stay in the blocks of their file; None is of weights as numbers.

    Raises:
        LoraDropError: none has.
    """
    params = ModelShape.from_config(config).params
    free = {device: free_memory(device) for device, _ in candidates}
    for device, dtype in candidates:
        size = free[device]
        if size is None or (packed or params * dtype.itemsize) <= size:
            return device, dtype
    smallest = min((dtype for _, dtype in candidates), key=lambda dtype: dtype.itemsize)
    rooms = " and ".join(f"{device} has {size / 1e9:.1f} GB free" for device, size in free.items() if size is not None)
    raise LoraDropError(
        f"{name} needs {(packed or params * smallest.itemsize) / 1e9:.1f} GB for its weights in "
        f"{'their blocks' if packed else short_name(smallest)}, "
        f"and {rooms}: use a smaller model, or another device or dtype."
    )


def describe_device(device: torch.device) -> dict[str, Any]:
    """The device by type and name, for headers and reports."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device)}
    return {
        "type": device.type,
        "name": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **waiting(),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        if match := re.search(r"model name\s*:(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8")):
            return match[1].strip()
    return platform.processor() or platform.machine()
