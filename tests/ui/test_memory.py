"""Free memory goes back to the system, and threads share a heap."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory")


def test_freed_memory_goes_back_to_the_system():
    """Also what lies below a block that is still in use."""
    code = (
        "from lora_drop.ui.serve import memory\n"
        "def kb(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmRSS')).split()[1])\n"
        "blocks = [bytearray(b'x') * 100_000 for _ in range(500)]\n"
        "last, held = blocks.pop(), kb()\n"
        "blocks.clear(); memory.return_memory(); print(held - kb())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 40_000, "of 50 MB"


@pytest.mark.parametrize(("first", "heaps"), [("memory.share_heap()", 1), ("pass", 2)])
def test_threads_share_a_heap(first, heaps):
    code = (
        f"from lora_drop.ui.serve import memory; {first}\n"
        "import ctypes, threading\n"
        "keep = []; thread = threading.Thread(target=lambda: keep.append([b'x' * 400 for _ in range(9999)]))\n"
        "thread.start(); thread.join(); libc = ctypes.CDLL(None); libc.fopen.restype = ctypes.c_void_p\n"
        "file = ctypes.c_void_p(libc.fopen(b'/dev/stdout', b'w')); libc.malloc_info(0, file); libc.fclose(file)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("<heap ") == heaps
