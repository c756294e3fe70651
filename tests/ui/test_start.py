"""The start of the page where the temporary files are not its own."""

import importlib.util
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from lora_drop.errors import LoraDropError
from lora_drop.paths import cache_dir, own_upload_folder, temporary_folder
from lora_drop.ui import page, start
from scripts.space_check import free_port, server
from tests.support import ROOT
from tests.support.page import wait_until
from tests.support.server import api_client


def test_mcp_without_its_package_is_one_line(monkeypatch):
    monkeypatch.setattr(start, "find_spec", lambda name: None if name == "mcp" else importlib.util.find_spec(name))
    with pytest.raises(LoraDropError, match=r"pip install 'gradio\[mcp\]'"), ExitStack() as ending:
        start._serve(start._parser("app.py").parse_args(["--mcp"]), ending)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_gradio_s_own_folder_is_used_where_it_is_this_user_s(temporary):
    assert own_upload_folder() is None and (temporary / "gradio").stat().st_mode & 0o777 == 0o700
    assert own_upload_folder() is None and [path.name for path in temporary.iterdir()] == ["gradio"]


@pytest.mark.parametrize("whose", ["somebody's", "link", "file"])
def test_another_s_folder_is_left_alone(temporary, whose):
    usual, other = temporary / "gradio", temporary / "other"
    other.mkdir()
    if whose == "link":
        usual.symlink_to(other)
    elif whose == "file":
        usual.touch()
    elif os.geteuid() == 0:
        usual.mkdir()
        os.chown(usual, 65534, 65534)
    else:
        pytest.skip("only root can give a folder away")
    own = own_upload_folder()
    assert os.stat(own).st_mode & 0o777 == 0o700 and os.path.dirname(own) == str(temporary)
    assert not list(other.iterdir())


@pytest.mark.full
def test_the_page_starts_and_takes_a_trace_there(tmp_path):
    """Before: a traceback in place of a page."""
    (tmp_path / "gradio").touch()
    own = {"TMPDIR": str(tmp_path), "LORA_DROP_MODEL": "random:tiny-llama", "GRADIO_SERVER_NAME": "127.0.0.1"}
    env = {**os.environ, **own, "GRADIO_SERVER_PORT": str(free_port())}
    env.pop("GRADIO_TEMP_DIR", None)
    with server(sys.executable, ROOT, tmp_path / "log", env) as (_, url):
        sent = httpx.post(f"{url}/gradio_api/upload", files={"files": ("run.jsonl", b"{}")}, timeout=60)
        assert sent.status_code == 200 and sent.json()[0].startswith(f"{tmp_path}/lora-drop-gradio-")
    assert "Traceback" not in (tmp_path / "log").read_text()


# The app with runs of a minute or more, however fast the machine is.
SLOW_APP = """
import time
from lora_drop.ui import callbacks, main

run = callbacks.run

def slow(*args):
    for record in run(*args):
        time.sleep(0.02)
        yield record

callbacks.run = slow
main()
"""


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_ends_a_run_at_a_step_and_the_process_at_once(tmp_path):
    """Before: the run's stream broke off, and uploads stayed."""
    env = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path / "uploads"), "LORA_DROP_MODEL": "random:tiny-llama"}
    env |= {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(free_port())}
    (tmp_path / "app.py").write_text(SLOW_APP)
    with server(sys.executable, tmp_path, tmp_path / "log", env | {"PYTHONPATH": str(ROOT)}) as (process, url):
        sent = httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.jsonl", b"x")}, timeout=60)
        assert sent.status_code == 200
        client = api_client(url)
        run = client.submit("Count", max_new_tokens=1500, ignore_eos=True, api_name="/generate")
        wait_until(lambda: bool(run.outputs()), "the run is on")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert '"stopped"' in run.outputs()[-1]
    assert not [path for path in (tmp_path / "uploads").rglob("*") if path.is_file()]
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    def nobody() -> None:
        raise RuntimeError("Could not determine home directory.")

    for name in ("LORA_DROP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(LoraDropError, match="no home: set HOME or LORA_DROP_CACHE"):
        cache_dir()


def test_an_address_of_ipv6_is_written_as_gradio_reads_it(monkeypatch, tmp_path):
    hosts = []
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(page, "build_app", lambda pool, policy: policy)
    monkeypatch.setattr(page, "launch", lambda policy, host, *_, **__: hosts.append(host))
    for host in ("::", "[::1]", "0.0.0.0"):
        args = start._parser("app.py").parse_args(["--model", "random:tiny-llama", "--device", "cpu", "--host", host])
        start._serve(args, ExitStack())
    assert hosts == ["[::]", "[::1]", "0.0.0.0"]


def test_temporary_folders_of_a_killed_program_go(temporary):
    left, other = temporary / "lora-drop-build-left", temporary / "lora-drop-build-new"
    for folder in (left, other):
        (folder / "in it").mkdir(parents=True)
    os.utime(left, (1, 1))
    with temporary_folder("lora-drop-build-", 60) as folder:
        assert folder.is_dir() and not left.exists() and other.exists()
    assert not folder.exists()
