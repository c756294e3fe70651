"""Training on a full disk and with losses that are no numbers: the last checkpoint stays whole."""

import math
from collections.abc import Callable

import pytest
import torch

from lora_drop.adapters.hub import WEIGHTS_NAME
from lora_drop.errors import LoraDropError
from lora_drop.training import trainer as module
from lora_drop.training.checkpoint import CHECKPOINT
from lora_drop.training.settings import TrainJob, TrainSettings
from lora_drop.training.trainer import LOG, Trainer
from tests.support.faults import files_of_at_most, fresh, on_a_full_disk

pytestmark = pytest.mark.full


@pytest.fixture
def training(tmp_path) -> Callable[[str], Trainer]:
    """A trainer into a folder; all of them train the same."""
    loaded = fresh("reference")
    settings = TrainSettings(rank=8, alpha=8.0, length=48, batch_size=4, max_tokens=48 * 4 * 6, fit_batches=0)
    words = torch.randint(0, 256, (40, 48), generator=torch.Generator().manual_seed(0))

    def trainer(name: str) -> Trainer:
        (tmp_path / name).mkdir(exist_ok=True)
        return Trainer(loaded, settings, TrainJob(tmp_path / name), words)

    return trainer


def weights(trainer: Trainer) -> bytes:
    return (trainer.out / CHECKPOINT / "adapter" / WEIGHTS_NAME).read_bytes()


def goes_on(training, name: str) -> None:
    """A training resumes from its one checkpoint, after step 1, and ends with the bank of one in peace."""
    again, whole = training(name), training("whole")
    again.resume()
    assert again.step == 1
    for one in (again, whole):
        one.run(100, 100)
    assert weights(again) == weights(whole)


@pytest.mark.parametrize("size", [2_000, 20_000], ids=["safetensors", "torch"])
def test_a_checkpoint_that_meets_a_full_disk(training, size):
    """Each of the two libraries that write it has an exception of its own. The last good one is gone on from."""
    trainer = training("cut")
    trainer.train_step()
    trainer.save(None)
    adapter = weights(trainer)
    assert 2_000 < len(adapter) < 20_000 < (trainer.out / CHECKPOINT / "state.pt").stat().st_size
    trainer.train_step()
    with files_of_at_most(size), pytest.raises(LoraDropError, match="checkpoint could not be written.*--resume"):
        trainer.save(None)
    assert sorted(path.name for path in trainer.out.iterdir()) == [CHECKPOINT], "the draft would keep the disk full"
    assert weights(trainer) == adapter
    goes_on(training, "cut")


def test_a_training_log_that_meets_a_full_disk(training):
    trainer = training("out")
    trainer.train_step()
    trainer.save(None)
    on_a_full_disk(trainer.out / LOG)
    with pytest.raises(LoraDropError, match=f"cannot write {LOG} .No space left on device.: make room, then --resume"):
        trainer.run(100, 100)
    (trainer.out / LOG).unlink()
    goes_on(training, "out")


def test_nan_in_training_stops_before_it_reaches_parameters_or_a_checkpoint(training, monkeypatch):
    trainer = training("out")
    trainer.train_step()
    trainer.save(None)
    adapter, before = weights(trainer), [tensor.detach().clone() for tensor in trainer.parameters]
    real = module.distillation
    for broken in (
        lambda loss: loss * math.nan,
        lambda loss: (loss - loss.detach()).sqrt(),  # zero, whose gradient is none
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, "distillation", lambda *args, broken=broken: (broken((f := real(*args))[0]), f[1]))
            with pytest.raises(LoraDropError, match="loss of batch 2 is .*nan.*--learning-rate, or --dtype float32"):
                trainer.run(100, 1)
        assert all(map(torch.equal, before, trainer.parameters)) and weights(trainer) == adapter
    goes_on(training, "out")
