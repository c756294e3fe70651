"""The presets of a model: those of the `presets.json` beside its bank, else the generic ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from lora_drop.adapters.bank import BankConfig
from lora_drop.adapters.find import fitting_banks, presets_folder
from lora_drop.adapters.hub import bank_name, hub_name
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import PRESETS, UNTRAINED, Preset, Presets, preset_named
from lora_drop.models.load import LoadedModel, ModelInfo
from lora_drop.run.results.files import PRESETS_FILE
from lora_drop.run.results.store import Content


def presets_of(loaded: LoadedModel | ModelInfo, adapters: str | None = None) -> Presets:
    """The presets of a model; see `read_presets`."""
    return read_presets(loaded, adapters)[0]


def read_presets(loaded: LoadedModel | ModelInfo, adapters: str | None = None) -> tuple[Presets, Content]:
    """The presets of a model, and the content of the file that brings them; it is empty without one.

    Named adapters bring their own presets. Else they are those of the shipped bank of the nearest weights that has
    some. What its file does not name is generic.

    Args:
        adapters: as a config names them; presets run with those that are named.

    Raises:
        LoraDropError: the file or a bank is broken, or the file is of another model.
    """
    bank = None if adapters in ("auto", "none") else adapters
    presets, order, content = [*PRESETS.values()], [], {}
    if folder := presets_folder(loaded, bank):
        content, config = PRESETS_FILE.read(folder / PRESETS_FILE.name), BankConfig.read(folder)
        order = content.get("order", [])
        try:
            _check_model(content, config, loaded)
            presets = [*(PRESETS | {preset.name: preset for preset in _presets_in(content, loaded)}).values()]
        except LoraDropError as error:
            raise LoraDropError(f"{PRESETS_FILE.name} of adapters {bank_name(folder)}: {error}") from None
    elif bank is None and not any(fitting_banks(loaded)):
        presets = [dataclasses.replace(preset, note=f"{preset.note} {UNTRAINED}") for preset in presets]
    if bank is not None:
        presets = [_with_bank(preset, bank) for preset in presets]
    return Presets(presets, order, bank), content


def _check_model(content: Content, bank: BankConfig, loaded: LoadedModel | ModelInfo) -> None:
    """Raise LoraDropError if a file is of another model than its bank and the loaded one, or has layers beyond it."""
    model = content["model"]["id"], content["model"]["revision"]
    if not {bank.base_model_name_or_path, bank.revision, loaded.id, loaded.revision}.intersection(model):
        raise LoraDropError(f"they are of another model, {model[0]}: put that file beside its own bank.")
    LoraDropConfig(drop_layers=tuple(content.get("order", ()))).schedule_for(loaded.num_layers)


def _presets_in(content: Content, loaded: LoadedModel | ModelInfo) -> Iterator[Preset]:
    """The presets that a file names. Raises LoraDropError: no such preset, or settings that do not fit the model."""
    for name, entry in content.get("presets", {}).items():
        preset, config = preset_named(name, PRESETS), LoraDropConfig(**entry["config"])
        config.schedule_for(loaded.num_layers)
        if config.adapters not in ("auto", "none") and not hub_name(config.adapters):
            raise LoraDropError(f"adapters of {name} must be auto, none or a repository USER/REPO.")
        yield dataclasses.replace(preset, note=entry["note"], config=config)


def _with_bank(preset: Preset, bank: str) -> Preset:
    """A preset that takes a named bank, unless it names another."""
    config = preset.config
    return preset if config.adapters != "auto" else dataclasses.replace(preset, config=config.replace(adapters=bank))
