"""Every command on a tiny model with little to do, in a folder that holds what it reads."""

import json
import re
import shutil

import pytest

from lora_drop.cli.main import main
from lora_drop.models import hub
from lora_drop.paths import ASSETS
from tests.support.fuzzing import CORPUS, TRIED, one_line

TINY = ["--model", "random:tiny-llama", "--device", "cpu", "--dtype", "float32"]
DATA = ["--data", "pairs.jsonl", "--prompt-field", "q", "--target-field", "a", "--limit", "1"]
# Of each command, the least that it can be asked to do; an option given once more takes the place of the first.
COMMANDS = {
    "run": ["--prompt", "Hi", *TINY, "--max-new-tokens", "2"],
    "evaluate": [*DATA, *TINY],
    "sweep": [*DATA, *TINY, "--drop-ratios", "0.5", "--periods", "2", "--out", "swept"],
    "presets": [*DATA, *TINY, "--prompts", "asked.jsonl", "--out", "measured"],
    "compare": [*TINY, "--methods", "prune:2", "--limit", "1", "--max-new-tokens", "2", "--out", "methods"],
    "sweep-figures": ["swept", "--out", "drawn"],
    "calibrate": [*TINY, "--seconds", "0.001"],
    "bench": [*TINY, "--prompt-tokens", "2", "--new-tokens", "3", "--rounds", "1", "--no-hf"],
    "benchmark": ["--data-dir", "tasks", "--out", "scores", *TINY, "--limit", "1", "--max-new-tokens", "2"],
    "drop-order": ["--data", "text.txt", *TINY, "--windows", "1", "--count", "1"],
    "train": [
        *("--data", "text.txt", *TINY, "--out", "bank", "--max-tokens", "1", "--length", "16"),
        *("--batch-size", "1", "--rank", "1", "--fit-batches", "0"),
    ],
    "replay": ["run.jsonl"],
    "diff": ["run.jsonl", "run.jsonl"],
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with what the commands read; the only one that they may write to."""
    folder = tmp_path_factory.mktemp("outer") / "workplace"
    folder.mkdir()
    pairs = [{"q": "Why is the sky blue?", "a": "It scatters light."}, {"q": "Why?", "a": "So."}]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "asked.jsonl").write_text('{"prompt": "Why is the sky blue?"}\n')
    (folder / "text.txt").write_text("The sky is blue because the air scatters light. " * 40)
    (folder / "tasks" / "hellaswag").mkdir(parents=True)
    (folder / "swept").mkdir()
    shutil.copy(ASSETS / "sweeps" / "sweep.json", folder / "swept")
    shutil.copy(CORPUS / "traces" / "good_three_lanes.jsonl", folder / "run.jsonl")
    return folder


def ends_well(argv: list[str], capsys) -> int:
    """The exit code: 0, or 2 with one line on stderr and nothing on stdout."""
    TRIED["command line"] += 1
    code = main(argv)
    captured = capsys.readouterr()
    if code:
        assert code == 2 and captured.out == "", (argv, captured)
        last = [line for line in captured.err.splitlines() if not PROGRESS.match(line)]
        assert len(last) == 1 and last[0].startswith("lora-drop: "), (argv, captured)
        one_line(last[0])
    assert "Traceback" not in captured.err
    return code


PROGRESS = re.compile(r"\d+ of \d+ |note: |warm-up|round \d|bandwidth|\r|\d+ \(KL |memory: |time: |$")


@pytest.fixture
def offline(monkeypatch, workplace):
    """In the workplace; a model that is named after nothing is looked for on this machine alone."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(hub, "_hub_answers", lambda *asked: False)
