"""The start of the page where the temporary files are not its own."""

import os
import sys
import tempfile

import httpx
import pytest

from lora_drop.paths import own_upload_folder
from scripts.space_check import free_port, server
from tests.support import ROOT


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
        sent = httpx.post(f"{url}/gradio_api/upload", files={"files": ("run.jsonl", b"{}")})
        assert sent.status_code == 200 and sent.json()[0].startswith(f"{tmp_path}/lora-drop-gradio-")
    assert "Traceback" not in (tmp_path / "log").read_text()
