"""Prepare the process before torch is imported: how OpenMP's threads wait, and which package versions will do.

A thread that spins while it waits is a little faster on an idle machine and much slower on a busy one: a decode step
is hundreds of small parallel regions, and with a browser or a server beside it each spinning thread burns the time
slice that the other side of the region is waiting for. `docs/openmp.md` has the measurement.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_drop.errors import LoraDropError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

VERSION = "0.1.0"  # as in pyproject.toml
CGROUPS = Path("/sys/fs/cgroup")


def configure() -> None:
    """Choose passive waiting, and no more threads than a container's share of the cores; a user's choice stays.

    Call it before the first `import torch`. Later it would only change what the trace reports, so then it leaves the
    variables alone.
    """
    if "torch" not in sys.modules:
        if set(waiting().values()) == {"default"}:
            os.environ["OMP_WAIT_POLICY"] = "passive"
        share = core_share()
        if share is not None and share < (os.cpu_count() or 1):
            # torch counts the host's cores; threads beyond the share are stopped in the middle of a step.
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(share))))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Gradio reads these two when it is imported. After each call it makes a table of its last 10,000, in a thread
    # beside the decoding: 15 ms.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "200")


def one_line_warnings() -> None:
    """Have this process print a warning as one line, without the place in the code that gave it."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"


def waiting() -> dict[str, str]:
    """How OpenMP's threads wait for work, by the environment: for headers and reports."""
    return {
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "gomp_spincount": os.environ.get("GOMP_SPINCOUNT", "default"),
    }


def core_share(cgroups: Path = CGROUPS) -> float | None:
    """The cores that a container may use by its quota (cgroups 2 or 1); None without one."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = " ".join((cgroups / name).read_text() for name in names).split()
            if float(quota) > 0:
                return float(quota) / float(period)
    return None


@cache
def check_versions(extra: str | None = None) -> None:
    """Refuse installed packages that are older than this program needs, and `-OO`. Imports none of them: 50 ms, once.

    Programs call it when they start (a command, the page, a library's first use), `import lora_drop` does not. An old
    version does not always fail by itself: transformers 5.20 to 5.23 read the bundled model without an error, and
    wrong.

    Args:
        extra: the wheel's extra whose packages are checked too. In a checkout, all are.

    Raises:
        LoraDropError: a package is too old.
    """
    if sys.flags.optimize > 1:
        raise LoraDropError("transformers reads docstrings, which -OO (PYTHONOPTIMIZE=2) removes: use -O, or neither")
    if old := [package for package in package_versions(extra) if package["is_old"]]:
        line = "{name} {installed} is installed, and {floor} or newer is needed"
        reasons = (line.format(**package) for package in old)
        needed = " ".join(f"'{package['name']}{package['bounds']}'" for package in old)
        raise LoraDropError(f"{'; '.join(reasons)}: pip install {needed}")


def package_versions(extra: str | None = None) -> Iterator[dict[str, Any]]:
    """Each package that `check_versions` looks at: its name, `installed` (None if it is not), `floor` and `bounds`,
    `is_old` (below the floor) and `is_untested` (above what is allowed)."""
    from importlib.metadata import PackageNotFoundError, version

    from packaging.version import InvalidVersion, Version

    for requirement in _requirements(extra):
        floor = next((spec.version for spec in requirement.specifier if spec.operator == ">="), "0")
        installed, is_old, is_untested = None, False, False
        with contextlib.suppress(PackageNotFoundError, InvalidVersion):  # its import will fail, where it is needed
            installed = version(requirement.name)
            base = Version(Version(installed).base_version)  # a nightly 2.9.0.dev has what 2.9 has
            is_old = base < Version(floor)
            is_untested = not is_old and base not in requirement.specifier
        bounds = ",".join(sorted(map(str, requirement.specifier), reverse=True))
        yield {
            "name": requirement.name,
            "installed": installed,
            "floor": floor,
            "bounds": bounds,
            "is_old": is_old,
            "is_untested": is_untested,
        }


def _requirements(extra: str | None) -> Iterator[Requirement]:
    """What the wheel's metadata, or in a checkout requirements.txt, asks for."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    from lora_drop.paths import CHECKOUT

    lines: list[str] = []
    with contextlib.suppress(OSError, PackageNotFoundError):  # a package that was copied somewhere alone
        if CHECKOUT:
            lines = (CHECKOUT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        else:
            lines = requires("lora-drop") or []
    for line in lines:
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra or ""}):
                yield requirement
