"""Run generated programs in a process of their own, where they can do no harm.

There are two ways; `protection` tells which one this machine allows.

`namespaces` (Linux with user namespaces): strong, as the kernel enforces it. There is no network, not even loopback;
the file system is read-only except for the program's own folder, a RAM disk of `disk_bytes`; `/proc` is empty; other
processes can be neither seen nor signalled, and all that the program started dies with it; CPU time, address space and
the number of processes are limited, also for root, who drops its rights first.

`limits` (elsewhere): the kernel still limits CPU time, address space, the size of each file and the wall clock. A
Python audit hook refuses sockets, new processes and writing outside the program's folder, and the folder's bytes are
counted a few times a second. The hook stops accidents, not an attacker: ctypes gets around it. For root the number of
processes is not limited.

In both the environment is empty, the temporary folder is the working folder and HOME, and the Python is the one below
the virtual environment, started with `-I`. Neither hides files that this user may read: without a network a program
can only print them, and only the last printed line is kept.
"""

from __future__ import annotations

import functools
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lora_drop.errors import LoraDropError
from lora_drop.system import kill_group, limits_programs

POLL_SECONDS = 0.05
REASON_LENGTH = 200
PROGRAM = "program.py"
WALLS = (  # reasons of a limit or the sandbox, not of an error in the program or its tests
    r"took longer|used more|wrote more|ended by|MemoryError|BlockingIOError|PermissionError|ProcessLookupError"
    r"|RuntimeError: can't start new thread|OSError: \[Errno|urllib\.error\.URLError"
)
LAUNCHER = Path(__file__).with_name("sandbox_launcher.py")


@dataclass(frozen=True)
class Limits:
    """Limits of a program.

    Args:
        seconds: of wall-clock time.
        cpu_seconds: of each process.
        memory_bytes: address space of each process.
        disk_bytes: all its files together.
        processes: threads and its own process included.
    """

    seconds: float = 10.0
    cpu_seconds: int = 8
    memory_bytes: int = 1 << 30
    disk_bytes: int = 16 << 20
    processes: int = 8


@dataclass(frozen=True)
class Outcome:
    """How a program ended; `reason` is one line, empty if it passed."""

    passed: bool
    reason: str = ""


@functools.cache
def protection() -> str:
    """`namespaces` if this machine allows them, else `limits`; determined by running a program.

    Raises:
        LoraDropError: this system has no limits on processes, or an empty program fails even with `limits`.
    """
    if sys.platform.startswith("linux") and run_program("pass", way="namespaces").passed:
        return "namespaces"
    outcome = run_program("pass", way="limits")
    if not outcome.passed:
        raise LoraDropError(f"generated programs cannot be run on this machine: {outcome.reason}.")
    return "limits"


def run_program(code: str, limits: Limits | None = None, way: str | None = None) -> Outcome:
    """Run a Python program; it passes if it reaches its end without an error, within the limits.

    This always returns an `Outcome`, also of a program that fails, loops, forks or fills memory or disk.

    Args:
        way: `namespaces` or `limits`; None takes `protection()`.

    Raises:
        LoraDropError: this system cannot limit a program.
    """
    if not limits_programs():
        raise LoraDropError(
            "generated programs are not run on this system, which cannot limit them: run this task on Linux or macOS "
            "(on Windows in WSL)."
        )
    limits = limits or Limits()
    way = way or protection()
    mark = secrets.token_hex(16)  # written last: a program that exits before its end has failed
    ending = f"\nimport os as _os\n_os.write(1, b'{mark}')\n"
    with tempfile.TemporaryDirectory(prefix="lora-drop-program-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o777)  # the program may run as another user; the name of the folder is random
        Path(folder, PROGRAM).write_text(code + ending, encoding="utf-8", errors="replace")
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            # The launcher drops its rights and becomes the program; it runs without this package.
            command = [os.path.realpath(sys.executable), "-I", "-S", str(LAUNCHER), way, folder]
            numbers = (limits.cpu_seconds, limits.memory_bytes, limits.disk_bytes, limits.processes)
            try:
                child = subprocess.Popen(
                    [*command, *map(str, numbers)],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env={},
                    cwd=folder,
                    start_new_session=True,
                )
            except OSError as error:
                return Outcome(False, f"could not be started: {error.strerror or error}")
            try:
                cut_short = _watch(child, Path(folder), limits)
            finally:
                kill_group(child)  # in a namespace of its own all children die with the launcher
            return _judge(child.returncode, cut_short, _holds(out, mark), _tail(err), limits)


def _watch(child: subprocess.Popen[bytes], folder: Path, limits: Limits) -> str:
    """Wait for a program to end. Returns the reason to kill it, or an empty text if it ended by itself."""
    deadline = time.monotonic() + limits.seconds
    while True:
        left = deadline - time.monotonic()
        try:
            child.wait(min(POLL_SECONDS, max(left, 0)))
            return ""
        except subprocess.TimeoutExpired:
            if left <= 0:
                return f"took longer than {limits.seconds:g} s"
        if _bytes_in(folder) > limits.disk_bytes:
            return f"wrote more than {limits.disk_bytes / 1e6:.0f} MB"


def _bytes_in(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:  # gone again
                continue
    return total


def _holds(file: IO[bytes], mark: str) -> bool:
    file.seek(0)  # the program's buffered output may come after the mark
    return mark.encode() in file.read()


def _tail(file: IO[bytes]) -> str:
    file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
    return file.read().decode("utf-8", errors="replace")


def _judge(code: int, cut_short: str, reached_end: bool, err: str, limits: Limits) -> Outcome:
    if cut_short:
        return Outcome(False, cut_short)
    if code == 0:
        return Outcome(True) if reached_end else Outcome(False, "ended before its last line")
    number = -code if code < 0 else code - 128  # the launcher passes a signal on as a shell would
    if number == signal.SIGXCPU:
        return Outcome(False, f"used more than {limits.cpu_seconds} s of CPU time")
    if number > 0:
        name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
        return Outcome(False, f"ended by {name}")
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    text = lines[-1] if lines else f"exit code {code}"
    return Outcome(False, "".join(c if c.isprintable() else " " for c in text)[:REASON_LENGTH])
