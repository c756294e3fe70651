"""The presets of a model: those of the `presets.json` beside its bank, else the generic ones."""

from __future__ import annotations

from dataclasses import replace

from lora_drop.adapters.bank import BankConfig
from lora_drop.adapters.find import fitting_banks, presets_folder
from lora_drop.adapters.hub import bank_name
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
    presets: dict[str, Preset] = dict(PRESETS)
    content: Content = {}
    if folder := presets_folder(loaded, bank):
        content, trained = PRESETS_FILE.read(folder / PRESETS_FILE.name), BankConfig.read(folder)
        try:
            presets |= _presets_in(content, trained, loaded)
        except LoraDropError as error:
            raise LoraDropError(f"{PRESETS_FILE.name} of adapters {bank_name(folder)}: {error}") from None
    elif bank is None and not any(fitting_banks(loaded)):
        presets = {name: replace(preset, note=f"{preset.note} {UNTRAINED}") for name, preset in presets.items()}
    if bank is not None:
        for name, preset in presets.items():
            if preset.config.adapters == "auto":
                presets[name] = replace(preset, config=preset.config.replace(adapters=bank))
    return Presets(presets.values(), content.get("order", ()), bank), content


def _presets_in(content: Content, bank: BankConfig, loaded: LoadedModel | ModelInfo) -> dict[str, Preset]:
    """The presets that a file names. Raises LoraDropError: it is of another model, or does not fit this one."""
    model = content["model"]["id"], content["model"]["revision"]
    if not {bank.base_model_name_or_path, bank.revision, loaded.id, loaded.revision}.intersection(model):
        raise LoraDropError(f"they are of another model, {model[0]}: put that file beside its own bank.")
    LoraDropConfig(drop_layers=tuple(content.get("order", ()))).schedule_for(loaded.num_layers)
    presets = {}
    for name, entry in content.get("presets", {}).items():
        config = LoraDropConfig(**entry["config"])
        config.schedule_for(loaded.num_layers)
        if config.adapters not in ("auto", "none"):
            raise LoraDropError(f"adapters of {name} must be auto or none: a run chooses another bank.")
        presets[name] = replace(preset_named(name, PRESETS), note=entry["note"], config=config)
    return presets
