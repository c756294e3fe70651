"""Generated programs that misbehave: each ends as one line, and what is around them stays as it was."""

import contextlib
import os
import sys
from pathlib import Path

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.tasks import sandbox
from lora_drop.evaluation.tasks.sandbox import Limits, protection, run_program
from tests.support.page import wait_until

LIMITS = Limits(seconds=20, cpu_seconds=1, memory_bytes=256 << 20, disk_bytes=4 << 20, processes=4)
WAYS = ("namespaces", "limits")
HOG = "held = []\nwhile True: held.append(bytearray(10_000_000))"


@pytest.fixture(params=WAYS)
def way(request):
    """Each way that this machine allows."""
    if request.param == "namespaces" and protection() != "namespaces":
        pytest.skip("this machine allows no namespaces")
    return request.param


def fails(code, way, limits=LIMITS):
    outcome = run_program(code, limits, way)
    assert not outcome.passed
    assert outcome.reason and outcome.reason.isprintable() and "could not be set up" not in outcome.reason
    return outcome.reason


def test_a_program_that_reaches_its_end_passes(way):
    code = (
        "import tempfile\nopen('x', 'w').write('ä')\nassert open('x').read() == 'ä' and tempfile.mkdtemp()\nprint(1)"
    )
    assert run_program(code, LIMITS, way).passed
    assert run_program("def f():\n    return 1\n\nassert f() == 1", LIMITS, way).reason == ""


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("raise SystemExit(0)", "ended before its last line"),
        ("import os; os._exit(0)", "ended before its last line"),
        ("raise ValueError('\\x1b[31m two\\n\\u202elines' + 'x' * 150)", "linesxxx"),
        ("import ctypes; ctypes.string_at(0)", "ended by SIGSEGV"),
        ("while True: pass", "used more than 1 s of CPU time"),
        (HOG, "MemoryError"),
        ("while True: print('x' * 10_000)", "File too large"),
    ],
)
def test_a_program_that_fails_is_one_line(way, code, says):
    assert says in fails(code, way)


def test_a_program_that_sleeps_is_ended(way):
    assert fails("import signal; signal.pause()", way, Limits(seconds=1)) == "took longer than 1 s"


def test_a_fork_bomb_is_bounded(way):
    assert any(text in fails("import os\nwhile True: os.fork()", way) for text in ("unavailable", "not allowed"))
    stubborn = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    fails(stubborn, way, Limits(seconds=1, processes=4))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_nothing_outlives_its_program():
    if protection() != "namespaces":
        pytest.skip("this machine allows no namespaces")
    child = "import os, time\nif os.fork() == 0:\n    os.setsid()\ntime.sleep(600)"
    before = set(os.listdir("/proc"))
    fails(child, "namespaces", Limits(seconds=1))

    def is_program(pid):
        with contextlib.suppress(OSError):  # it ended meanwhile
            return pid.isdecimal() and b"program.py" in Path(f"/proc/{pid}/cmdline").read_bytes()

    wait_until(lambda: not any(map(is_program, set(os.listdir("/proc")) - before)), "the children ended", 30)


@pytest.mark.parametrize(
    "code",
    [
        "while True: open('f', 'ab').write(b'x' * 100_000)",
        "i = 0\nwhile True:\n    i += 1\n    open(f'{i}', 'wb').write(b'x' * 100_000)",
    ],
)
def test_filling_the_disk_is_stopped(way, code):
    reason = fails(code, way)
    assert any(text in reason for text in ("No space left", "File too large", "wrote more than 4 MB"))


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9), 2)",
        "import socket; socket.create_connection(('192.0.2.1', 80), 2)",
        "import urllib.request; urllib.request.urlopen('http://example.com', timeout=2)",
    ],
)
def test_there_is_no_network(way, code):
    assert any(text in fails(code, way) for text in ("unreachable", "not allowed", "resolution", "not known"))


def test_the_parent_s_environment_is_out_of_reach(way, monkeypatch):
    monkeypatch.setenv("LORA_DROP_TEST_SECRET", "hush")
    assert run_program("import os\nassert 'LORA_DROP_TEST_SECRET' not in os.environ", LIMITS, way).passed
    fails(f"text = open('/proc/{os.getpid()}/environ').read()\nassert 'hush' not in text", way)


def test_the_file_system_is_read_only(way, tmp_path):
    os.chmod(tmp_path, 0o777)
    kept = tmp_path / "kept.txt"
    kept.write_text("as it was")
    os.chmod(kept, 0o666)
    fails(f"open({str(kept)!r}, 'w').write('gone')", way)
    fails(f"import os; os.remove({str(kept)!r})", way)
    fails(f"import os; os.mkdir({str(tmp_path / 'new')!r})", way)
    assert kept.read_text() == "as it was" and [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_a_machine_where_no_program_passes_is_reported(monkeypatch):
    monkeypatch.setattr(sandbox, "run_program", lambda code, limits=None, way=None: sandbox.Outcome(False, "no fork"))
    with pytest.raises(LoraDropError, match="cannot be run on this machine: no fork"):
        protection.__wrapped__()


def test_without_namespaces_the_limits_remain(monkeypatch):
    passes = {"namespaces": sandbox.Outcome(False, "no"), "limits": sandbox.Outcome(True)}
    monkeypatch.setattr(sandbox, "run_program", lambda code, limits=None, way=None: passes[way])
    assert protection.__wrapped__() == "limits"


def test_programs_do_not_see_or_signal_others(way):
    fails(f"import os; os.kill({os.getpid()}, 0)", way)
