"""The attacks that go on: the short form of `python -m scripts.attack`, and that it sees what must not happen."""

import asyncio
import json
import os
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest

from scripts.attack.__main__ import BUDGETS, LEFT, OVER, STOP, faults
from scripts.attack.rows import Attacker, chunks, varied
from scripts.soak.measure import Held
from tests.support import ROOT

pytestmark = pytest.mark.full
CLEAN = Held(8, 10, 2, [])


@pytest.mark.parametrize(
    ("peak", "now", "held", "stop", "written", "broken"),
    [
        (OVER, LEFT, CLEAN, STOP, b"ready", 0),
        (OVER + 1, 0, CLEAN, 1.0, b"", 1),
        (0, LEFT + 1, CLEAN, 1.0, b"", 1),
        (0, 0, Held(8, 10, 3, []), 1.0, b"", 1),
        (0, 0, Held(8, 10, 0, ["a draft"]), STOP + 1, b"Traceback\x1b[2J", 4),
    ],
)
def test_it_sees_what_must_not_happen(tmp_path, peak, now, held, stop, written, broken):
    (tmp_path / "log").write_bytes(written)
    limit = 500 + BUDGETS // 1024
    lines = faults(500, limit + peak, limit + now, held, {"accepted uploads": 2}, stop, tmp_path / "log")
    assert sum(map(bool, lines.values())) == broken


def test_a_varied_request_is_another_one_and_json_has_it():
    body = {"data": ["Hello", 2, None, {"a": [1]}], "session_hash": "x"}
    drawn = [json.dumps(varied(body, random.Random(seed))) for seed in range(50)]
    assert len(set(drawn)) > 30 and max(map(len, drawn)) > 1000
    assert drawn[0] == json.dumps(varied(body, random.Random(0)))


def test_the_rows_requests_vary():
    """Before: each row sent the same bytes for ever."""
    one = Attacker(SimpleNamespace(log=None, app=None, seed=0), 0)
    drawn = [one.some(1000) for _ in range(50)]
    assert drawn.count(1000) > 15 and min(drawn) < 10 and len(set(drawn)) > 10

    async def sent() -> list[bytes]:
        return [part async for part in chunks(b"x" * 1000, 300)]

    assert list(map(len, asyncio.run(sent()))) == [300, 300, 300, 100]


@pytest.mark.timeout(1500)  # it ends by itself, in some 3 minutes; where others have the cores, in more
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")
def test_a_minute_of_attacks():
    command = [sys.executable, "-m", "scripts.attack", "--minutes", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["attacks"].keys() >= Attacker.kinds.keys() and figures["visitor"]["under attack"]["answer"][0]
