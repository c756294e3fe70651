"""The readers of files that others wrote, given files that are not what they say: traces and adapter folders.

`tests/corpus/` has a file for each kind of input that was thought of or found; each is tried as it is, then changed at
random with a fixed seed. A file is read, or refused in one line; what was read can be shown in every way there is.
"""

import json
import random
import re
import shutil
from pathlib import Path

import pytest

from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.hub import CONFIG_NAME, WEIGHTS_NAME
from lora_drop.cli.main import main
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.run.exports.chrome import chrome_trace
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace import trace as t
from lora_drop.run.trace.records import write_line
from lora_drop.ui.callbacks import Callbacks
from tests.support.fuzzing import (
    CORPUS,
    SEED,
    TRIED,
    budget,
    mutated_bytes,
    mutated_json,
    mutated_lines,
    one_line,
    strict_json,
)

TRACES = sorted((CORPUS / "traces").glob("*.jsonl"))
BANKS = sorted(path for path in (CORPUS / "adapters").iterdir() if path.is_dir())
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def shown(raw: bytes, calls: Callbacks, folder: Path, capsys) -> bool:
    """Read a trace and show it in every way; True if it was read.

    All that a reader of traces calls is called: nothing may raise but the one exception, with one line.
    """
    TRIED["traces"] += 1
    path = folder / "a trace.jsonl"
    path.write_bytes(raw)
    wire, status = calls.open_trace(path)
    one_line(status["text"])
    try:
        trace = t.read_trace(path)
    except LoraDropError as error:
        assert status == {"kind": "error", "text": one_line(error).replace(path.name, "the trace", 1)}
        assert main(["replay", str(path)]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err == f"lora-drop: {error}\n"
        return False
    assert status["kind"] == "done"
    lines = [strict_json(line) for line in wire.splitlines()]
    is_cut = trace.summary is None  # what is told of it has a line of its own then
    assert len(lines) == 2 + is_cut + sum(1 for _ in trace.records()) and wire.isascii()
    again = t.parse_trace("".join(map(write_line, trace.records())).encode())
    assert list(again.records()) == list(trace.records()), "what was read is written as it was"
    kinds = {"trace": t.parse_trace, "chrome": strict_json, "html": bytes.decode}
    for kind, read in kinds.items():
        answer = calls.export_run(lines[0]["id"], kind)
        if "error" in answer:
            one_line(answer["error"])
            assert kind == "chrome"  # times that no clock shows
            continue
        read(answer["text"].encode() if kind != "chrome" else answer["text"])
    try:
        json.dumps(chrome_trace(trace), allow_nan=False).encode()
    except LoraDropError as error:
        one_line(error)
    for option in (["--json"], []):
        assert main(["replay", str(path), *option]) == 0
        captured = capsys.readouterr()
        assert captured.err == "" and not CONTROLS.search(captured.out)
        assert not option or strict_json(captured.out)
    return True


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_a_trace_of_the_corpus(path, calls, tmp_path, capsys):
    assert path.stat().st_size < 20_000
    assert shown(path.read_bytes(), calls, tmp_path, capsys) == path.stem.startswith("good_")


@pytest.mark.full
@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_a_mutated_trace_is_read_or_refused(path, calls, tmp_path, capsys):
    raw, others = path.read_bytes(), [other.read_bytes() for other in TRACES]
    rng = random.Random(f"{path.stem} {SEED}")
    for _ in range(budget(60 if path.stem.startswith("good_") else 12)):
        shown(mutated_lines(raw, rng, others), calls, tmp_path, capsys)


def taken(folder: Path, loaded) -> bool:
    """Read an adapter folder and run with it; False if it was refused. What runs gives a trace that reads."""
    TRIED["adapters"] += 1
    config = LoraDropConfig(period=3, drop_layers=(2, 4), adapters=str(folder))
    request = Request("Why?", config, max_new_tokens=3, temperature=1.0, ignore_eos=True)
    try:
        AdapterBank.load(folder)
        records = list(run(loaded, request))
    except LoraDropError as error:
        assert str(folder.parent) not in one_line(error)
        return False
    lines = "".join(map(write_line, records))
    for line in lines.splitlines():
        strict_json(line)
    assert len(t.parse_trace(lines.encode()).steps["lora_drop"]) == 3
    return True


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory of its own: a pickle of the corpus that is opened leaves a file in it."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "hacked").exists(), "code of a file was executed"


@pytest.mark.parametrize("path", BANKS, ids=lambda path: path.name)
def test_an_adapter_folder_of_the_corpus(path, tiny, here, capsys):
    assert all(file.stat().st_size < 20_000 for file in path.iterdir())
    is_good = path.name.startswith("good")
    assert taken(path, tiny) == is_good
    argv = ["run", "--prompt", "Why?", "--model", "random:tiny-llama", "--dtype", "float32", "--device", "cpu"]
    code = main([*argv, "--drop-layers", "2,4", "--max-new-tokens", "3", "--adapters", str(path), "--json"])
    captured = capsys.readouterr()
    if is_good:
        assert code == 0 and strict_json(captured.out) and captured.err == ""
    else:
        assert code == 2 and captured.out == ""
        assert captured.err.startswith("lora-drop: ") and one_line(captured.err.removesuffix("\n"))


@pytest.mark.full
@pytest.mark.parametrize("path", BANKS, ids=lambda path: path.name)
def test_a_mutated_adapter_folder_is_taken_or_refused(path, tiny, here):
    rng = random.Random(f"{path.name} {SEED}")
    others = [file.read_bytes() for bank in BANKS for file in sorted(bank.iterdir())]
    for _ in range(budget(25 if path.name.startswith("good") else 6)):
        shutil.rmtree(here / "bank", ignore_errors=True)
        folder = Path(shutil.copytree(path, here / "bank"))
        file = folder / rng.choice([CONFIG_NAME, CONFIG_NAME, WEIGHTS_NAME])
        if file.exists() and not (file.name == CONFIG_NAME and mutate_config(file, rng)):
            file.write_bytes(mutated_bytes(file.read_bytes(), rng, others))
        taken(folder, tiny)


def mutate_config(file: Path, rng: random.Random) -> bool:
    """Change a config as JSON; False if it is none, or the lot falls on its bytes."""
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return False
    if rng.random() < 0.2:
        return False
    for _ in range(rng.choice([1, 1, 3])):
        value = mutated_json(value, rng)
    file.write_text(json.dumps(value))
    return True
