"""OpenMP's waiting is chosen before torch is there, a user's own choice is left alone; freed memory goes back."""

import os
import platform
import subprocess
import sys

import pytest

from lora_drop.runtime import core_share


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, "passive"),
        ({"OMP_WAIT_POLICY": "active"}, "active"),
        ({"GOMP_SPINCOUNT": "1000"}, "None"),
    ],
)
def test_waiting(chosen, expected):
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | chosen
    code = "import sys, os, lora_drop; print('torch' in sys.modules, os.environ.get('OMP_WAIT_POLICY'))"
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", expected]


def test_after_torch_nothing_is_claimed():
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    code = "import torch, lora_drop, os; print(os.environ.get('OMP_WAIT_POLICY'))"
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "None"


@pytest.mark.parametrize(
    ("files", "share"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "broken"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.5),
    ],
)
def test_a_containers_share_of_the_cores(tmp_path, files, share):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert core_share(tmp_path) == share


@pytest.mark.parametrize(("chosen", "expected"), [({}, "1"), ({"OMP_NUM_THREADS": "3"}, "3")])
def test_no_more_threads_than_the_share(chosen, expected):
    """Also where torch would count more cores; the user's own choice is left alone."""
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | chosen
    code = (
        "from lora_drop import runtime\n"
        "runtime.core_share, runtime.os.cpu_count = lambda: 1.5, lambda: 16\n"
        "runtime.configure()\n"
        "import torch; print(runtime.os.environ['OMP_NUM_THREADS'], torch.get_num_threads())"
    )
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    asked, used = run.stdout.split()
    assert asked == expected and int(used) <= int(asked)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own habit")
def test_freed_memory_goes_back_to_the_system():
    """Also what lies below a block that is still in use."""
    code = (
        "from lora_drop import runtime\n"
        "def kb(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmRSS')).split()[1])\n"
        "blocks = [bytearray(b'x') * 100_000 for _ in range(500)]\n"
        "last, held = blocks.pop(), kb()\n"
        "blocks.clear(); runtime.return_memory(); print(held - kb())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 40_000, "of 50 MB"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own habit")
@pytest.mark.parametrize(("first", "heaps"), [("runtime.share_heap()", 1), ("pass", 2)])
def test_threads_share_a_heap(first, heaps):
    code = (
        f"from lora_drop import runtime; {first}\n"
        "import ctypes, threading\n"
        "keep = []; thread = threading.Thread(target=lambda: keep.append([b'x' * 400 for _ in range(9999)]))\n"
        "thread.start(); thread.join(); libc = ctypes.CDLL(None); libc.fopen.restype = ctypes.c_void_p\n"
        "file = ctypes.c_void_p(libc.fopen(b'/dev/stdout', b'w')); libc.malloc_info(0, file); libc.fclose(file)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("<heap ") == heaps
