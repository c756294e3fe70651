"""A checkpoint that someone else wrote: numbers are read from it, nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lora_drop.cli.main import main
from tests.support.commands import COMMANDS, ends_well

pytestmark = pytest.mark.full


class Touch:
    """What a pickle of this would do when it is opened."""

    def __reduce__(self):
        return os.mkdir, ("hacked",)


@pytest.mark.parametrize("state", [Touch(), [], {}, {"revision": 1}, {"revision": Touch()}, b"x", "cut"])
def test_a_checkpoint_of_someone_else_is_refused(state, tmp_path, monkeypatch, capsys):
    """Training goes on from a file of torch's: numbers are read from it, and nothing else."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The sky is blue because the air scatters light. " * 40)
    train = ["train", *COMMANDS["train"]]
    assert main(train) == 0
    capsys.readouterr()
    path = next(Path("bank").rglob("state.pt"))
    if state == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        torch.save(state, path)
    assert ends_well([*train, "--resume"], capsys) == 2
    assert not Path("hacked").exists()


@pytest.mark.parametrize("missing", ["settings", "parameters", "scales", "optimizer", "step"])
def test_a_checkpoint_without_a_part_is_refused(missing, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The sky is blue because the air scatters light. " * 40)
    train = ["train", *COMMANDS["train"]]
    assert main(train) == 0
    capsys.readouterr()
    path = next(Path("bank").rglob("state.pt"))
    state = torch.load(path, weights_only=True)
    for value in ([], None, "x"):
        torch.save(state | {missing: value}, path)
        assert ends_well([*train, "--resume"], capsys) == 2
    torch.save({name: value for name, value in state.items() if name != missing}, path)
    assert ends_well([*train, "--resume"], capsys) == 2
