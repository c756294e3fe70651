"""What the page knows of a model before a run: its shape, its banks, its presets and what they were measured to do."""

from __future__ import annotations

import re
import shlex
from typing import Any

from lora_drop.adapters.find import bank_facts, config_fingerprint
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig, default_range
from lora_drop.method.fields import SCHEDULE
from lora_drop.method.presets import presets_for
from lora_drop.method.quality import READS_WELL_LOSS
from lora_drop.method.settings import settings_of
from lora_drop.models.load import LoadedModel, ModelInfo
from lora_drop.models.place import describe_device
from lora_drop.paths import SHIPPED_SWEEPS
from lora_drop.run.results.files import SWEEP
from lora_drop.run.results.preset_results import (
    Measured,
    default_preset,
    figures,
    measured_presets,
    preset_words,
    reads_well,
)
from lora_drop.run.results.rows import sets_only_refresh
from lora_drop.ui.controls import control_value


def model_facts(loaded: LoadedModel | ModelInfo) -> dict[str, Any]:
    """What the page's scripts need to know of the model: its shape, the bytes of a number, names, its adapters.

    Raises:
        LoraDropError: shipped adapters are broken.
    """
    shape = loaded.shape
    names = ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "intermediate_size", "vocab_size")
    low, high = default_range(loaded.num_layers)
    flags = ("tied", "qkv_bias", "qk_norm", "matrix_size", "head_size", "part_size", "code_size", "layer_sizes")
    banks = bank_facts(loaded.revision)
    return {
        "id": loaded.id,
        "device": describe_device(loaded.device)["name"],
        "decoder": loaded.decoder_name,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "itemsize": loaded.dtype.itemsize,
        "banks": banks,
        "train": None if banks else train_command(loaded.id),
        "shape": {name: getattr(shape, name) for name in (*names, *flags)},
        "droppable": high - low + 1,
        "sweep": sweep_facts(loaded.revision),
    }


def train_command(model: str) -> str:
    """What trains corrections for a model where `auto` will find them."""
    folder = re.sub(r"\W+", "-", model.rpartition("/")[2]).strip("-").lower()
    return (
        f"python -m lora_drop train --model {shlex.quote(model)} --self-generate 500 "
        f"--out assets/adapters/{folder}-residual-block"
    )


def sweep_facts(revision: str) -> list[dict[str, Any]]:
    """The stored sweep's quality, a row a setting; none if it was measured on other weights, or cannot be read.

    Only rows that are told apart by what the page compares: evenly spaced layers, a full head, no token taken back.
    """
    try:
        result = SWEEP.read(SHIPPED_SWEEPS / SWEEP.name)
    except LoraDropError:
        return []
    if result["model"].get("revision") != revision:
        return []
    return [
        {
            **{name: row[name] for name in ("drop_ratio", "period", "reuse", "part")},
            "refresh": row.get("refresh", "single"),
            "corrected": row["adapters"] not in (None, "none"),
            "loss": row.get("own_all_steps_kl", row["all_steps_kl"]),  # an older sweep has given texts only
        }
        for row in result["rows"]
        if sets_only_refresh(row)
    ]


def page_facts(loaded: LoadedModel | ModelInfo) -> dict[str, Any]:
    """All that the page shows of a model before a run: `model_facts`, `preset_facts`, and the presets' settings.

    Raises:
        LoraDropError: shipped adapters are broken.
    """
    named = presets_for(loaded.id)
    return {
        "model": model_facts(loaded),
        "presets": preset_facts(loaded),
        "settings": {name: control_values(preset.config, loaded.num_layers) for name, preset in named.items()},
    }


def preset_facts(loaded: LoadedModel | ModelInfo) -> dict[str, Any]:
    """What the page says of the presets: all figures are those of the measurements' file.

    Returns:
        `{"default", "show_me", "missing", "about", "limit", "presets"}`: the preset to open on; what "Show me" runs, a
        preset and a third lane; why nothing was measured (empty if something was); on what it was; the limit of "reads
        well"; and of each preset, in order, `{"name", "label", "note", "short", "measured", "bare", "reads_well"}`: it
        in three words and one figure, the measured figures with its adapters and without, or None.
    """
    try:
        measured = measured_presets(loaded.id, loaded.revision, lambda config: config_fingerprint(loaded, config))
    except LoraDropError as error:
        measured = Measured(missing=str(error))  # the page works without
    about, default = measured.about, default_preset(measured)
    return {
        "default": default,
        "show_me": {"preset": default, "compare": "bare"},
        "missing": measured.missing,
        "about": about
        and {
            "device": about["device"]["name"],
            "dtype": about["model"]["dtype"],
            "prompts": about["data"]["own"]["prompts"],
            "date": about["date"][:10],
        },
        "limit": READS_WELL_LOSS,
        "presets": [
            {
                "name": preset.name,
                "label": preset.label,
                "note": preset.note,
                "short": preset_words(measured.rows.get(name)),
                "measured": figures(measured.rows[name]) if name in measured.rows else None,
                "bare": figures(measured.bare[name]) if name in measured.bare else None,
                "reads_well": reads_well(measured.rows[name]) if name in measured.rows else None,
            }
            for name, preset in presets_for(loaded.id).items()
        ],
    }


def control_values(config: LoraDropConfig, num_layers: int) -> dict[str, Any]:
    """A config as the page's controls hold it, for a model of so many layers."""
    values = {one.name: control_value(one, getattr(config, one.name)) for one in settings_of(SCHEDULE)}
    return values | {"layers": list(config.layers or default_range(num_layers))}
