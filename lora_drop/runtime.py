"""What must be set before torch is imported: how OpenMP's threads wait for work.

A thread that spins while it waits is a little faster on an idle machine and a disaster on a busy one: a decode step is
hundreds of small parallel regions, and with a browser or a server beside it each spinning thread burns the time slice
that the other side of the region is waiting for. `docs/openmp.md` has the measurement.
"""

from __future__ import annotations

import os
import sys


def configure() -> None:
    """Choose passive waiting unless the user chose otherwise. Call it before the first `import torch`.

    Later it would change nothing but what the trace says of it, so then it leaves the variable alone.
    """
    chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ)
    if not chosen and "torch" not in sys.modules:
        os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
