"""Find the bank for a config on a model: a named folder or repository, or a shipped one."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_drop.adapters.bank import NEAR, AdapterBank, BankConfig, files_of, weights_apart
from lora_drop.adapters.hub import CONFIG_NAME, WEIGHTS_NAME, bank_name, local_folder
from lora_drop.adapters.preview import with_codes
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.schedule import KV_RULES, PARTS, REFRESHES, REUSE_RULES, Schedule
from lora_drop.models.load import LoadedModel, ModelInfo
from lora_drop.models.place import screens_heads
from lora_drop.paths import PRESETS_NAME, SHIPPED_ADAPTERS

NO_SCREEN = "On a GPU, and without kernels, the whole head is read: a screened one costs more there."


def find_bank(
    loaded: LoadedModel | ModelInfo, config: LoraDropConfig, schedule: Schedule, bank: AdapterBank | None = None
) -> tuple[AdapterBank | None, list[str]]:
    """The adapters that a config names, on the model's device, and notes for the user.

    `auto` takes the shipped bank that was trained for this model and these rules, if there is one.

    Args:
        bank: in place of the adapters that the config names.

    Raises:
        LoraDropError: named adapters cannot be read, or the adapters do not fit.
    """
    folder = None if bank else bank_folder(loaded, config, schedule)
    if folder is not None:
        bank, name = AdapterBank.load(folder), bank_name(folder)
    elif bank is not None:
        name = "of this call"
    else:
        if config.adapters == "none" or not schedule.has_lora_steps:
            return None, [] if config.head == "full" else ["without adapters there is no screened head."]
        return None, [
            f"no trained adapters are shipped for {loaded.id} with reuse {schedule.reuse}, part {schedule.part}: "
            "this is the untrained rule."
        ]
    rules = (schedule.reuse, schedule.part) if config.corrections else (bank.reuse, bank.part)
    warning = bank.check(loaded, name, *rules)
    notes = [warning] if warning else []
    for rule in ("kv", "refresh"):
        theirs, ours = getattr(bank, rule), getattr(schedule, rule)
        if theirs != ours and schedule.has_lora_steps:
            notes.append(f"adapters {name} were trained for {rule} {theirs}, this run has {rule} {ours}.")
    uncorrected = [i for i in schedule.dropped if i not in bank.a]
    if uncorrected and config.corrections:
        notes.append(f"adapters {name} have no correction for layers {', '.join(map(str, uncorrected))}.")
    if config.head == "screened" and not screens_heads(loaded.device):
        notes.append(NO_SCREEN)
        config = config.replace(head="full")
    if config.head == "screened" and bank.head is None:
        notes.append(f"adapters {name} have no screened head: the whole head is read.")
    bank = bank.only(config.corrections, head=config.head == "screened")
    if bank.head and isinstance(loaded, LoadedModel):  # the others only plan a run
        bank.head = with_codes(bank.head, loaded)
    if not schedule.has_lora_steps or not (bank.head or bank.a.keys() & schedule.dropped_set):
        return None, notes
    return bank.to(loaded.device, loaded.dtype), notes


def bank_folder(loaded: LoadedModel | ModelInfo, config: LoraDropConfig, schedule: Schedule) -> Path | None:
    """The adapter folder for a config on a model; None without adapters.

    Raises:
        LoraDropError: see `shipped_bank` and `hub.download`.
    """
    if config.adapters == "none" or (config.adapters == "auto" and not schedule.has_lora_steps):
        return None
    if config.adapters == "auto":
        rules = (schedule.reuse, schedule.part) if config.corrections else None
        return shipped_bank(loaded, rules, schedule.refresh, schedule.kv)
    return local_folder(config.adapters)


def shipped_bank(
    loaded: LoadedModel | ModelInfo, rules: tuple[str, str] | None, refresh: str = "single", kv: str = "skip"
) -> Path | None:
    """The folder of the bank that `auto` takes for a model's weights and these rules, by the folders' configs alone.

    A bank for the same refresh comes first, then one for the same K/V rule, then one of the nearest weights.

    Args:
        rules: reuse and part of its corrections; None if only its screened head is wanted.

    Raises:
        LoraDropError: a shipped folder's config is broken.
    """
    banks = [
        (config.refresh != refresh, config.kv != kv, apart, folder)
        for apart, config, folder in fitting_banks(loaded)
        if rules in (None, (config.reuse, config.part))
    ]
    return min(banks)[-1] if banks else None


def fitting_banks(loaded: LoadedModel | ModelInfo) -> Iterator[tuple[float, BankConfig, Path]]:
    """The shipped banks that were trained on a model's weights or near ones: distance, config, folder."""
    for folder in sorted(SHIPPED_ADAPTERS.glob("*/")):
        if (files_of(folder) / CONFIG_NAME).exists():
            config = BankConfig.read(folder)
            if (apart := weights_apart(config, loaded)) <= NEAR:
                yield apart, config, folder


def presets_folder(loaded: LoadedModel | ModelInfo, adapters: str | None) -> Path | None:
    """The folder whose `presets.json` has a model's presets: that of the named adapters, or of a shipped bank.

    Raises:
        LoraDropError: see `shipped_bank` and `hub.download`.
    """
    if adapters is not None and ((folder := local_folder(adapters)) / PRESETS_NAME).exists():
        return folder
    folders = [(apart, folder) for apart, _, folder in fitting_banks(loaded) if (folder / PRESETS_NAME).exists()]
    return min(folders)[1] if folders else None


def bank_settings(adapters: Any) -> dict[str, str]:
    """The settings that a named bank was trained for, as texts by name; empty of a bank that has none.

    Raises:
        LoraDropError: see `hub.local_folder` and `BankConfig.read`.
    """
    if adapters in (None, "auto", "none"):
        return {}
    settings = (BankConfig.read(local_folder(str(adapters))).model_extra or {}).get("run_settings")
    return {str(name): str(text) for name, text in settings.items()} if isinstance(settings, dict) else {}


def bank_facts(loaded: LoadedModel | ModelInfo) -> dict[str, dict[str, Any]]:
    """The banks that `auto` takes on these weights, by rule: `{"residual/block/single/skip": facts}`.

    The key is reuse, part, refresh and kv; rules without a shipped bank have no entry. Facts are name, rank,
    `corrected` (the layers with a correction), `tokens` (of its training, None if the bank does not say) and the sizes
    of its screened head, head_rank and head_best, 0 without one and on a device that does not screen.

    Raises:
        LoraDropError: see `shipped_bank`.
    """
    facts, screens = {}, screens_heads(loaded.device)
    for rules in itertools.product(REUSE_RULES, PARTS, REFRESHES, KV_RULES):
        if folder := shipped_bank(loaded, rules[:2], *rules[2:]):
            config = BankConfig.read(folder)
            facts["/".join(rules)] = {
                "name": folder.name,
                "rank": config.r,
                "corrected": config.layers,
                "tokens": (config.model_extra or {}).get("tokens"),
                "head_rank": config.head.rank if config.head and screens else 0,
                "head_best": config.head.best if config.head and screens else 0,
            }
    return facts


def bank_fingerprint(folder: Path) -> str:
    """16 hex digits of a bank's files."""
    content = b"".join((files_of(folder) / name).read_bytes() for name in (CONFIG_NAME, WEIGHTS_NAME))
    return hashlib.sha256(content).hexdigest()[:16]


def config_fingerprint(loaded: LoadedModel | ModelInfo, config: LoraDropConfig) -> str | None:
    """The fingerprint of the bank for a config on a model; None without adapters.

    Raises:
        LoraDropError: the settings do not fit the model, or see `shipped_bank`.
    """
    folder = bank_folder(loaded, config, config.schedule_for(loaded.num_layers))
    return None if folder is None else bank_fingerprint(folder)
