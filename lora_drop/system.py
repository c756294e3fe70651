"""Calls that Windows lacks or has in another form, each with both forms.

Only the sandbox's launcher, which runs without this package and never on Windows, limits a program by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import psutil
from filelock import FileLock

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# Opens a file for reading that anybody may have put there: no link is followed, and a pipe is not waited for.
READ_STRANGERS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


def lock_of(folder: Path) -> FileLock:
    """A lock for a folder, free again when its holder is killed: a file among the temporary files, for all users.

    Windows cannot lock the folder itself, and a lock file inside it would be published with its content.
    """
    name = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"lora-drop-{name}.lock", mode=0o666)


def is_mine(status: os.stat_result) -> bool:
    """Whether a file is this user's; True on Windows, which reports no owner."""
    return not hasattr(os, "getuid") or status.st_uid == os.getuid()


def others_can_write(status: os.stat_result) -> bool:
    """Whether a user other than this one and root can change a file; False on Windows, which reports no rights."""
    return hasattr(os, "geteuid") and (status.st_uid not in (0, os.geteuid()) or bool(status.st_mode & 0o022))


def bytes_on_disk(status: os.stat_result) -> int:
    """A file's bytes on the disk so far; its length on Windows, which does not report them."""
    blocks = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else int(blocks) * 512


def limits_programs() -> bool:
    """Whether the system can limit a program's memory and time, and end it with all that it started."""
    return resource is not None and hasattr(os, "killpg")


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """Kill a program that leads its session, and what it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        child.kill()
    child.wait()


def limit_memory(spare: int) -> None:
    """Limit this process to its address space and `spare` bytes, where psutil can: on Linux and FreeBSD."""
    process = psutil.Process()
    if hasattr(process, "rlimit"):
        most = process.memory_info().vms + spare
        with contextlib.suppress(OSError, ValueError, psutil.Error):  # it has a lower limit
            process.rlimit(psutil.RLIMIT_AS, (most, most))


def descriptors(wanted: int) -> int | None:
    """The files that this process may open, raised to `wanted` where it may raise them; None without a limit."""
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = min(wanted, hard) if hard != resource.RLIM_INFINITY else wanted
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        except (OSError, ValueError):
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft


def step_back(steps: int) -> None:
    """Let other processes come first; on Windows in its one step."""
    process = psutil.Process()
    process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if psutil.WINDOWS else process.nice() + steps)
