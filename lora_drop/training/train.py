"""The `train` command's work: text in, a trained adapter folder out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import parse_flag_from_env

from lora_drop.adapters.find import presets_folder
from lora_drop.decode.lane import not_finite
from lora_drop.errors import LoraDropError
from lora_drop.method.presets import PRESETS, READABLE, config_from
from lora_drop.method.schedule import baseline_schedule
from lora_drop.models import load
from lora_drop.models.load import LoadedModel
from lora_drop.models.place import free_memory
from lora_drop.run.results.files import PRESETS_FILE
from lora_drop.training.checkpoint import last_checkpoint
from lora_drop.training.data import Turn, read_texts, to_rows
from lora_drop.training.estimate import check_room, memory, memory_words, time_words
from lora_drop.training.self_generate import Text, read_replies, read_self_generated, self_generate
from lora_drop.training.settings import TrainJob, TrainSettings, run_settings
from lora_drop.training.trainer import Progress, Trainer

SELF_GENERATED = "self_generated.jsonl"


def _silent(stage: str) -> AbstractContextManager[Progress]:
    return nullcontext(lambda done, total, words: None)


def train(
    settings: TrainSettings,
    job: TrainJob,
    tell: Callable[[str], None] = lambda text: None,
    progress: Callable[[str], AbstractContextManager[Progress]] = _silent,
) -> dict[str, Any] | None:
    """Train adapters; write checkpoints and the adapter folder to `job.out`.

    Args:
        tell: called with a line about the memory and one about the time, before the first step.
        progress: called in the main process with `texts`, `batches of the regression`, then `steps`: the block's
            callback gets their number so far, of texts with a fraction.

    Returns:
        `{"adapters": `job.out`, "steps", "evaluation", "estimate": {"memory", "seconds"}}`; None in all processes of
        a launch but the main one.

    Raises:
        LoraDropError: text, settings or model are unsuitable, `job.out` holds a checkpoint but `job.resume` is off, or
            its checkpoint cannot be resumed.
    """
    if not job.resume and last_checkpoint(job.out):
        raise LoraDropError(f"{job.out.name} holds a checkpoint: go on with --resume, or name another --out.")
    if not job.data and not job.self_generate:
        raise LoraDropError("there is no text to train on: give --data FILES, --self-generate N, or both.")
    if job.report_to and job.report_to not in get_available_trackers():  # accelerate would go on without
        raise LoraDropError(f"{job.report_to} is not installed: pip install {job.report_to}.")
    turns = [Turn.parse(text) for text in job.chat]
    # Accelerate's variable for a launch on CPUs; it reads it in `Accelerator` alone, and there too late.
    processes, device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")), job.device
    if processes.num_processes > 1 and device in ("auto", "cuda"):
        # A card for each: by itself every process would take the emptiest. Accelerate numbers CPUs too.
        device = str(processes.device) if processes.device.type == "cuda" else processes.device.type
    progress_here = progress if processes.is_main_process else _silent
    loaded = load.load_model(job.model, device, job.dtype, with_numbers=True)
    _check_weights(loaded)
    needs, free = memory(loaded.shape, loaded.dtype.itemsize, settings, job), free_memory(loaded.device)
    check_room(needs, settings, free, loaded.device)
    texts = read_texts(loaded, job.data, turns, job.file_tokens)
    job.out.mkdir(parents=True, exist_ok=True)  # one that cannot be made was refused with its lock
    if job.self_generate:
        # One process writes, the others read what it wrote.
        with processes.main_process_first(), progress_here("texts") as show:
            texts += _self_generated(loaded, job.self_generate, job.out / SELF_GENERATED, show)
    windows, counted = to_rows(texts, settings.length)
    held_out = read_replies(job.held_out, loaded) if job.held_out else None
    brings_presets = settings.exact and presets_folder(loaded, str(job.out)) is None  # else the model has some
    trainer = Trainer(loaded, settings, job, windows, counted, held_out)
    if processes.is_main_process:
        tell(f"memory: about {memory_words(needs, settings)}")
    if job.resume:
        trainer.resume()
    else:
        with progress_here("batches of the regression") as show:
            trainer.prepare(show)
    rate = trainer.probe()
    left = (trainer.steps - trainer.step) * trainer.tokens_per_step
    if processes.is_main_process:
        tell(f"time: about {time_words(left / rate)} for {left:,} tokens at {rate:.0f} tokens/s, evaluations left out")
    with progress_here("steps") as show:
        evaluation = trainer.run(job.evaluate_every, job.checkpoint_every, show)
    if not processes.is_main_process:
        return None
    if brings_presets:
        _write_presets(loaded, settings, job.out)
    estimate = {"memory": asdict(needs) | {"needed": needs.needed, "free": free}, "seconds": left / rate}
    return {"adapters": str(job.out), "steps": trainer.step, "evaluation": evaluation, "estimate": estimate}


@torch.no_grad()
def _check_weights(loaded: LoadedModel) -> None:
    """Run one token, to catch damaged weights before text is sampled from them."""
    if not loaded.model(torch.zeros(1, 1, dtype=torch.long, device=loaded.device)).logits.isfinite().all():
        raise not_finite(0, baseline_schedule(loaded.num_layers), None)


def _write_presets(loaded: LoadedModel, settings: TrainSettings, out: Path) -> None:
    """Write what a bank was trained for as its model's first preset."""
    config = config_from(run_settings(settings, loaded.num_layers, PRESETS), PRESETS)
    preset = {"note": "The settings that these corrections were trained for.", "config": config.differences()}
    model = {"id": loaded.id, "revision": loaded.revision, "dtype": str(loaded.dtype).removeprefix("torch.")}
    content = PRESETS_FILE.begin({"model": model}, order=list(settings.order), presets={READABLE: preset})
    PRESETS_FILE.write(out, content)


def _self_generated(loaded: LoadedModel, count: int, path: Path, show: Progress) -> list[Text]:
    """Texts of the model itself; those that `path` lacks are written to it first."""
    self_generate(loaded, count, path, progress=lambda done, tokens: show(done, count, ""))
    return read_self_generated(path, loaded, count)
