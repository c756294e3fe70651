"""README.md of an adapter folder: the bank, its training text, its quality, and the command that makes it again.

It is not in `adapters`, because that command needs the settings of a training run.
"""

from __future__ import annotations

import dataclasses
import shlex
from importlib.resources import files
from typing import Any

from lora_drop.adapters.bank import AdapterBank
from lora_drop.training.settings import TrainJob, TrainSettings

CARD_NAME = "README.md"


def reproduce(settings: TrainSettings, job: TrainJob, model: str) -> str:
    """The `train` command that makes a bank: its data, how they are read, and settings other than the defaults."""
    defaults = TrainSettings()
    words = ["python", "-m", "lora_drop", "train", "--model", model]
    words += ["--data", *(path.name for path in job.data)] if job.data else []
    words += ["--chat", *job.chat] if job.chat else []
    words += ["--file-tokens", str(job.file_tokens)] if job.file_tokens else []
    words += ["--self-generate", str(job.self_generate)] if job.self_generate else []
    words += ["--start", job.start.name] if job.start else []
    for name, value in dataclasses.asdict(settings).items():
        if value != getattr(defaults, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, "--out", "OUT"])


def card(bank: AdapterBank) -> str:
    """Markdown of the card, `card.md` filled from the bank's config."""
    meta, schedules = bank.meta, bank.meta["trained_schedules"]
    quality = meta.get("quality") or {"tokens": 0, "schedules": []}
    order = schedules.get("drop_order")
    training = [
        f"- Loss: KL to the full model over the vocabulary, {_where(schedules)}; kv `{bank.kv}`.",
        f"- Parts: {', '.join(sorted(bank.parts))}." if len(bank.parts) > 1 else "",
        f"- Periods {_join(schedules['periods'])}; drop ratios {_join(schedules['drop_ratios'])}: one bank for every "
        "slider position.",
        f"- {_share(schedules)} of {_join(order)}." if order else "",
        f"- Tokens: {meta['tokens']:,} read by gradient steps, after a regression over {meta['fit_tokens']:,}.",
        f"- Text: {', '.join(meta['data'])}.",
    ]
    rows = [
        f"| {row['period']} | {dropped_in(row)} | {row['top1_agreement']:.1%} | {row['kl']:.3f} |"
        for row in quality["schedules"]
    ]
    template = files("lora_drop.training").joinpath("card.md").read_text(encoding="utf-8")
    return template.format(
        bank=bank,
        layers=f"{bank.layers[0]}-{bank.layers[-1]}",
        training="\n".join(filter(None, training)),
        tokens=quality["tokens"],
        rows="\n".join(rows),
    )


def _where(schedules: dict[str, Any]) -> str:
    """The steps that the loss counts; banks from before exact refreshes do not name them."""
    if "refresh" not in schedules:
        return "at LoRA steps only"
    where = "LoRA steps" if schedules["refresh"] == "repair" else "all decode steps"
    return f"at {where}, with refresh `{schedules['refresh']}`"


def _share(schedules: dict[str, Any]) -> str:
    count = schedules.get("drop_count")
    if count:
        return f"Two of three batches skip the first {count}, the others a number drawn around it,"
    return "Half of the batches skip the first layers, how many is drawn,"


def dropped_in(row: dict[str, Any]) -> str:
    """Layers that an evaluated schedule skips, in words."""
    listed = row.get("drop_layers")
    return f"layers {_join(listed)}" if listed else f"ratio {row['drop_ratio']}"


def _join(values: list) -> str:
    return ", ".join(map(str, values))
