"""A checkpoint that someone else wrote: numbers are read from it, nothing else."""

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


@pytest.fixture
def train(tmp_path, monkeypatch, capsys) -> list[str]:
    """The command of a training that has ended."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The sky is blue because the air scatters light. " * 40)
    assert main(["train", *COMMANDS["train"]]) == 0
    capsys.readouterr()
    return ["train", *COMMANDS["train"], "--resume"]


@pytest.mark.parametrize("state", [Touch(), [], {}, {"revision": 1}, {"revision": Touch()}, b"x", "cut"])
def test_a_checkpoint_of_someone_else_is_refused(train, state, capsys):
    """Training goes on from a file of torch's: numbers are read from it, and nothing else."""
    path = next(Path("bank").rglob("state.pt"))
    if state == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        torch.save(state, path)
    assert ends_well(train, capsys) == 2
    assert not Path("hacked").exists()


@pytest.mark.parametrize("missing", ["settings", "parameters", "scales", "optimizer", "step"])
def test_a_checkpoint_without_a_part_is_refused(train, missing, capsys):
    path = next(Path("bank").rglob("state.pt"))
    state = torch.load(path, weights_only=True)
    del state[missing]
    for changed in (state, *(state | {missing: wrong} for wrong in ([], None, "x"))):
        torch.save(changed, path)
        assert ends_well(train, capsys) == 2
