"""What must be set before torch is imported: how OpenMP's threads wait for work.

A thread that spins while it waits is a little faster on an idle machine and a disaster on a busy one: a decode step is
hundreds of small parallel regions, and with a browser or a server beside it each spinning thread burns the time slice
that the other side of the region is waiting for. See `docs` in the README ("OpenMP") for the measurement.
"""

from __future__ import annotations

import os


def configure() -> None:
    """Choose passive waiting unless the user chose otherwise. Call it before the first `import torch`."""
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
