"""Decode steps in C: `step.c`, compiled once for the processor at hand and kept in the cache folder.

Where there is no C compiler, or `LORA_DROP_NATIVE=0` says so, `library` gives None and decoding goes through torch's
own kernels.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from lora_drop.paths import cache_dir

SOURCE = Path(__file__).with_name("step.c")
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread")
COMPILE_SECONDS = 60
F32, BF16, Q4_1, Q8_0 = range(4)  # kinds of a matrix, as in step.c

_pointer, _int64 = ctypes.c_void_p, ctypes.c_int64


class Matrix(ctypes.Structure):
    """`Matrix` of step.c. It borrows its memory: whoever makes one keeps the tensors."""

    _fields_ = [("data", _pointer), ("bias", _pointer), ("n", _int64), ("k", _int64), ("kind", _int64)]


class Layer(ctypes.Structure):
    """`Layer` of step.c."""

    _fields_ = [
        *((name, _pointer) for name in ("attention_norm", "mlp_norm", "qk_norm")),
        *((name, Matrix) for name in ("qkv", "out", "gate_up", "down")),
        *((name, _int64) for name in ("hidden", "heads", "kv_heads", "head_dim", "inner")),
        ("eps", ctypes.c_float),
    ]


class Store(ctypes.Structure):
    """`Store` of step.c: a layer's K/V, and the tokens in it; whoever writes one there counts it."""

    _fields_ = [("data", _pointer), ("capacity", _int64), ("length", _int64), ("kind", _int64)]


class Plan(ctypes.Structure):
    """`Plan` of step.c: what the schedule does with a layer."""

    _fields_ = [("drops", _int64), ("gate", _pointer), ("a", Matrix), ("bt", Matrix), ("hidden", _pointer)]


class Step(ctypes.Structure):
    """`Step` of step.c."""

    _fields_ = [
        *((name, _int64) for name in ("lora", "rule", "attention_only", "write_kv")),
        ("scale", ctypes.c_float),
        *((name, _pointer) for name in ("watched", "ratios")),
    ]


_SIGNATURES = {
    "ld_threads": (_int64,),
    "ld_pack": (_pointer, _pointer, _int64, _int64, _int64),
    "ld_step": (_pointer, _pointer, _int64, *(_pointer,) * 5),
    "ld_head": (_pointer, _pointer, ctypes.c_float, _pointer, _pointer),
    "ld_entropy": (_pointer, _int64),
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled steps; None where they cannot be had. Compiles for about a second, once a machine."""
    if os.environ.get("LORA_DROP_NATIVE", "1") == "0":
        return None
    return build(_compiler(), cache_dir() / "native")


def build(compiler: str | None, folder: Path) -> ctypes.CDLL | None:
    """Load the library that `compiler` makes of the source, from `folder` if it is there already.

    The name tells source, flags, compiler and processor, so that a cache folder moved to another machine is safe.
    """
    if compiler is None:
        return None
    flags = (*FLAGS, *_native_flag())
    told = (SOURCE.read_bytes(), repr(flags).encode(), _version(compiler), _processor())
    target = folder / f"step-{hashlib.sha256(b'|'.join(told)).hexdigest()[:16]}.so"
    found = _load(target)
    if found is None:  # not there yet, or damaged
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as work:
                draft = Path(work) / target.name
                command = [compiler, *flags, "-o", str(draft), str(SOURCE), "-lm"]
                subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
                os.replace(draft, target)  # two processes that compile at once: either result will do
        except (OSError, subprocess.SubprocessError):
            return None
        found = _load(target)
        if found is None:
            return None
    for name, arguments in _SIGNATURES.items():
        function: Callable = getattr(found, name)
        function.argtypes, function.restype = arguments, None
    found.ld_entropy.restype = ctypes.c_float
    return found


def _load(path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(path)) if path.exists() else None
    except OSError:
        return None


def _compiler() -> str | None:
    return next(
        (found for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (found := shutil.which(name))),
        None,
    )


def _native_flag() -> tuple[str, ...]:
    return ("-mcpu=native",) if platform.machine().lower() in ("aarch64", "arm64") else ("-march=native",)


def _version(compiler: str) -> bytes:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, timeout=COMPILE_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return b""


def _processor() -> bytes:
    """What tells processors apart as far as `-march=native` does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    kept = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join(sorted(kept)).encode()
