"""Facts about a model before a run: its shape and banks, its presets and their measured results, its menu entry."""

from __future__ import annotations

import dataclasses
import re
import shlex
from typing import Any

from lora_drop.adapters.find import NO_SCREEN, bank_facts
from lora_drop.method.config import default_range
from lora_drop.method.presets import COMPARISONS, Preset
from lora_drop.method.quality import CRITERION
from lora_drop.models.load import LoadedModel, ModelInfo
from lora_drop.models.named import NAMED, checked_file
from lora_drop.models.place import describe_device, free_memory, screens_heads
from lora_drop.models.pool import ModelPool
from lora_drop.paths import CHECKOUT, SHIPPED_SWEEPS
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.results.calibration import HEAD, gain_here, is_calibrated, no_gain_words, speeds_here
from lora_drop.run.results.files import SWEEP
from lora_drop.run.results.forecast import forecast_facts
from lora_drop.run.results.preset_results import (
    default_preset,
    figures,
    measured_presets,
    preset_words,
    row_reads,
)
from lora_drop.run.results.store import whole_setting
from lora_drop.ui.controls import control_values
from lora_drop.ui.serve.calibration import calibrates

SHIPPED_SWEEP = SHIPPED_SWEEPS / SWEEP.name
_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([mb])(?![a-z0-9])", re.IGNORECASE)  # as in Qwen2.5-0.5B-Instruct
_UNITS = {"m": 1e6, "b": 1e9}
ROOM = 1.25  # memory needed, as a multiple of the weights' bytes: loading, a run's caches and its audit


def model_facts(loaded: LoadedModel | ModelInfo) -> dict[str, Any]:
    """Facts that the page's scripts need: the model's shape, the bytes of a number, names, its adapters.

    Raises:
        LoraDropError: shipped adapters are broken.
    """
    low, high = default_range(loaded.num_layers)
    banks = bank_facts(loaded)
    return {
        "id": loaded.id,
        "device": describe_device(loaded.device)["name"],
        "decoder": loaded.decoder_name,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "itemsize": loaded.dtype.itemsize,
        "banks": banks,
        "train": None if banks else train_command(loaded.id),
        "shape": dataclasses.asdict(loaded.shape),
        "droppable": high - low + 1,
    }


def train_command(model: str) -> str:
    """Command that trains corrections for a model; in a checkout where `auto` finds them, else for `--adapters`."""
    folder = re.sub(r"\W+", "-", model.rpartition("/")[2]).strip("-").lower()
    return (
        f"python -m lora_drop train --model {shlex.quote(model)} --self-generate 500 "
        f"--out {'assets/adapters/' if CHECKOUT else ''}{folder}-residual-block"
    )


def page_facts(loaded: LoadedModel | ModelInfo) -> dict[str, Any]:
    """Everything that the page shows of a model before a run: `model_facts`, `preset_facts`, the presets' settings.

    Raises:
        LoraDropError: shipped adapters are broken.
    """
    return {
        "model": model_facts(loaded),
        "presets": preset_facts(loaded),
        "settings": {name: control_values(p.config, loaded.num_layers) for name, p in presets_of(loaded).items()},
    }


def preset_facts(loaded: LoadedModel | ModelInfo) -> dict[str, Any]:
    """The presets with their measured results: quality from the stored measurements, speed from this machine alone.

    Returns:
        A dictionary:

        - default: the preset to open on;
        - show_me: the preset and the third lane that "Show me" runs;
        - missing: why there are no measurements, or an empty text;
        - about: device, dtype, number of prompts and date of the measurements;
        - criterion: what "reads well", "slips" and "reads badly" mean;
        - is_calibrated: whether the speeds were measured on this machine; `is_calibrating`: whether they will be;
        - presets: for each, in order, its name, label, note and `short` words; `measured` and `bare`, its figures with
          corrections and without, or None; and `reads` (well, slips, badly);
        - head: label, period, speedup and bound of the full model with the screened head, or None. Speeds are None
          where they are not clear;
        - forecast: `forecast_facts`.

    Raises:
        LoraDropError: shipped adapters or their presets are broken.
    """
    measured = measured_presets(loaded)
    about, default, speeds = measured.about, default_preset(measured), speeds_here(loaded)
    return {
        "default": default,
        "show_me": {"preset": default, "compare": "corrections-off"},
        "missing": measured.missing,
        "about": about
        and {
            "device": about["device"]["name"],
            "dtype": about["model"]["dtype"],
            "prompts": about["data"]["own"]["prompts"],
            "date": about["date"][:10],
        },
        "criterion": CRITERION,
        "is_calibrated": bool(speeds),
        "is_calibrating": not is_calibrated(loaded) and calibrates(),
        "presets": [
            {
                "name": preset.name,
                "label": preset.label,
                "note": _note(preset, speeds.get(name), screens_heads(loaded.device)),
                "short": preset_words(measured.rows.get(name), speeds.get(name)),
                "measured": figures(measured.rows.get(name), speeds.get(name)),
                "bare": figures(measured.bare.get(name)),
                "reads": row_reads(measured.rows[name]) if name in measured.rows else None,
            }
            for name, preset in presets_of(loaded).items()
        ],
        "head": _head(speeds.get(HEAD)),
        "forecast": forecast_facts(measured, SWEEP.rows_of(loaded.revision, SHIPPED_SWEEP), loaded.num_layers),
    }


def _note(preset: Preset, here: dict[str, Any] | None, screens: bool) -> str:
    """A preset's note, why it does not gain on this machine, and that its head is not screened here."""
    notes = [preset.note]
    if here and gain_here(here) in ("same", "slower"):
        notes.append(no_gain_words(here))
    if preset.config.head == "screened" and not screens:
        notes.append(NO_SCREEN)
    return " ".join(notes)


def _head(here: dict[str, Any] | None) -> dict[str, Any] | None:
    """The row of the full model with the screened head."""
    if here is None:
        return None
    speedup = here["speedup"] if gain_here(here) else None
    period = whole_setting(here["config"])["period"]
    return {"label": COMPARISONS[HEAD].lane, "period": period, "speedup": speedup, "bound": here["bound"]}


def menu_choices(pool: ModelPool) -> list[tuple[str, str]]:
    """Entries of the models menu: the text and the label of each model."""
    first = pool.info(None)
    free = free_memory(first.device)
    # The loaded model makes way for another.
    room = None if free is None else free + first.shape.params * first.dtype.itemsize
    return [(f"{label} · {_about(pool, label, first, room)}", label) for label in pool.labels]


def _about(pool: ModelPool, label: str, first: ModelInfo, room: float | None) -> str:
    """Size and corrections of a model in words. Before it was loaded, its size is estimated from its name."""
    info = pool.info(label) if pool.is_known(label) else None
    params = info.shape.params if info else parameters(label)
    size = "size unknown"
    if info is None and label in NAMED:
        size = f"{NAMED[label].size_words}, {'here' if checked_file(NAMED[label]) else 'fetched when chosen'}"
    elif params is not None:
        taken = params * first.dtype.itemsize
        size = f"about {taken / 1e9:.1f} GB"
        if info is None and room is not None:
            size += ", fits here (estimated)" if ROOM * taken <= room else ", too large for this machine (estimated)"
    # Banks are looked up by a fingerprint of the weights, which needs the model loaded once.
    has_bank = info is not None and bool(bank_facts(info))
    bank = "trained corrections" if has_bank else "no corrections ship for it: runs the untrained rule"
    return f"{size}; {bank}"


def parameters(name: str) -> float | None:
    """Number of parameters in a model's name, such as 0.5e9 for Qwen2.5-0.5B-Instruct; None if it has none."""
    sizes = _SIZE.findall(name)
    return float(sizes[-1][0]) * _UNITS[sizes[-1][1].lower()] if sizes else None
