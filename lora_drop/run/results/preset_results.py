"""Measured figures of the presets: the file of the `presets` command, read for the page and for `run`.

A row counts only if a run of the preset would be the same now: same weights, same settings, same adapters. No figure
here is set by hand. The file was written on another processor: of a preset's speed only this machine's calibration
is shown (`calibration.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from lora_drop.adapters.find import config_fingerprint
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import READABLE
from lora_drop.method.quality import WORDS, Reads, reads
from lora_drop.models.load import LoadedModel, ModelInfo
from lora_drop.models.place import describe_device
from lora_drop.run.report.speed import BY_CHANCE
from lora_drop.run.results.bank_presets import presets_of, read_presets
from lora_drop.run.results.calibration import HEAD, gain_here, speeds_here
from lora_drop.run.results.files import REPEATS
from lora_drop.run.results.store import is_setting, whole_setting
from lora_drop.run.trace.records import PresetFigures

LEAST_SAVED = 0.05  # of the K/V memory: a smaller share is not mentioned


@dataclass(frozen=True)
class Measured:
    """The rows of a file that hold for a model and its adapters as they are now.

    Args:
        rows: by preset, measured with the adapters that a run of the preset takes.
        bare: by preset, the same without corrections, with the screened head; none where a preset has no adapters.
        about: model, device and data of the measurement; empty without rows.
        missing: why there are no rows; empty if there are some.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    bare: dict[str, dict[str, Any]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    missing: str = ""


def regret_of(row: dict[str, Any]) -> float | None:
    """Quality loss of a row's text in nats per token: how much less likely each token is than the full model's
    favourite. It says how a text reads, with `accept` and without; None if the row has no free text."""
    return row.get("free_regret")


def figures(row: dict[str, Any] | None, here: dict[str, Any] | None = None) -> dict[str, float | None] | None:
    """The figures of a preset for the page: regret, speed, the memory saved, and the drafts accepted; None if nothing
    was measured.

    Args:
        row: of a presets file.
        here: of this machine's calibration, which has the speed.
    """
    if row is None and here is None:
        return None
    speedup = here["speedup"] if here and gain_here(here) else None
    row = row or {}
    return {
        "regret": regret_of(row),
        "kv_saved": row.get("kv_saved"),
        "accepted": row.get("accepted"),
        "speedup": speedup,
    }


def row_reads(row: dict[str, Any]) -> Reads | None:
    """How a text of such a row reads, by the measured figures; None if one is missing."""
    texts = row.get("free_texts") or math.inf  # an old row does not say
    loops = (row.get("free_collapsed") or 0) / texts
    repeats, usual = (row.get(name) for name in REPEATS)
    return reads(regret_of(row), repeats, usual, loops)


def reads_well(row: dict[str, Any]) -> bool:
    """True if a text of such a row reads well."""
    return row_reads(row) == "well"


def verdict_of(row: dict[str, Any]) -> str:
    """`row_reads` in words, those of a run's verdict."""
    how = row_reads(row)
    return WORDS[how] if how else "not measured"


def measured_presets(
    loaded: LoadedModel | ModelInfo,
    adapters: str | None = None,
    fingerprint_of: Callable[[LoraDropConfig], str | None] | None = None,
) -> Measured:
    """Read the measured figures of a model's presets.

    Args:
        adapters: as `read_presets` takes them.
        fingerprint_of: gives the fingerprint of the bank that a config takes; None is `config_fingerprint`.

    Raises:
        LoraDropError: see `read_presets`.
    """
    presets, content = read_presets(loaded, adapters)
    about = {name: content.get(name) for name in ("model", "device", "data", "date")}
    if None in about.values() or content["model"]["revision"] != loaded.revision:
        return Measured(missing="not measured on this model")
    rows: dict[str, dict[str, Any]] = {}
    bare: dict[str, dict[str, Any]] = {}
    for name, preset in presets.items():
        taken = fingerprint_of(preset.config) if fingerprint_of else config_fingerprint(loaded, preset.config)
        for row in content["rows"]:
            if row["preset"] != name or not is_setting(row["config"], presets.stored(preset)):
                continue
            if row["adapters_fingerprint"] == taken:
                (rows if row.get("corrections", True) else bare)[name] = row
    if not rows:
        return Measured(missing="not measured with these presets and adapters")
    return Measured(rows, bare, about)


def preset_figures(loaded: LoadedModel | ModelInfo, config: LoraDropConfig) -> PresetFigures | None:
    """What was measured of a setting that is a preset; None of other settings, and if nothing was.

    `preset`; `speedup`, `device`, and `head_speedup` of the full model with the screened head, as far as they were
    calibrated on this machine; and, if the presets file has them for this model and these adapters, the shares of its
    drafts that are accepted: `accepted_without` corrections, and with them by how much an answer repeats itself.
    """

    def resolved(settings: LoraDropConfig) -> Any:
        return settings.schedule_for(loaded.num_layers), settings.adapters, settings.corrections

    try:  # the run itself refuses settings that do not fit
        wanted, presets = resolved(config), presets_of(loaded, config.adapters)
        same = [p for p in presets.values() if resolved(p.config) == wanted]
        if not same:
            return None
        taken = config_fingerprint(loaded, config)  # only of this config: a fingerprint reads the whole bank
        measured = measured_presets(loaded, config.adapters, lambda other: taken if other == same[0].config else None)
    except LoraDropError:
        return None
    name = same[0].name
    gains: PresetFigures = {"preset": name}
    here = {} if presets.bank else speeds_here(loaded, {name, HEAD})  # named adapters are not calibrated
    keys: tuple[tuple[str, Literal["speedup", "head_speedup"]], ...] = (name, "speedup"), (HEAD, "head_speedup")
    for row, key in keys:
        if gain_here(here.get(row)):
            gains[key] = here[row]["speedup"]
            gains["device"] = describe_device(loaded.device)["name"]
    if (accepted := measured.bare.get(name, {}).get("accepted")) is not None:
        gains["accepted_without"] = accepted
    groups = measured.rows.get(name, {}).get("by_repeats", {})
    if shares := {group: row["accepted"] for group, row in groups.items() if row["accepted"] is not None}:
        gains["accepted_by_repeats"] = shares
    return gains if len(gains) > 1 else None


def preset_words(row: dict[str, Any] | None, here: dict[str, Any] | None = None) -> str:
    """A preset in a few words: how its text reads, and the larger of its gains, in time on this machine or in memory.

    Args:
        row: of a presets file.
        here: of this machine's calibration; without one, or if it is too noisy, no speed is claimed.
    """
    how, saved = None, None
    if row is not None:
        is_same = whole_setting(row["config"])["accept"] == 1
        how = "same text" if is_same else verdict_of(row) if row_reads(row) else None
        saved = row["kv_saved"]
    gain = gain_here(here)
    gains, faster = None if gain is None else "no gain here", 1.0
    if here and gain == "faster":
        faster = here["speedup"]
        gains = _times(faster)
    if saved is not None and saved >= LEAST_SAVED and saved > faster - 1:
        gains = f"{saved:.0%} less K/V"
    if gains is None:
        return how or "not measured"
    return f"{how or 'quality not measured'}, {gains}"


def _times(speedup: float) -> str:
    """A speedup with one decimal, with two if it would be 1."""
    short = f"{speedup:.1f}x"
    return f"{speedup:.2f}x" if short == "1.0x" else short


def default_preset(measured: Measured) -> str:
    """The preset that the page opens on: of those that skip layers and read well the one with the highest bound.

    One that copies from its text too is left out: what it gains is not the method's alone. If none reads well, it is
    the one with the smallest regret; if none was measured, `READABLE`.
    """
    skip = {
        name: row for name, row in measured.rows.items() if row.get("layers_dropped") != 0 and not row.get("lookup")
    }
    regrets = {name: regret_of(row) for name, row in skip.items()}
    good = [name for name in regrets if reads_well(measured.rows[name])]
    if good:
        return max(good, key=lambda name: measured.rows[name]["bound"])
    measured_regrets = {name: regret for name, regret in regrets.items() if regret is not None}
    return min(measured_regrets, key=measured_regrets.__getitem__, default=READABLE)


def in_words(row: dict[str, Any], about: dict[str, Any]) -> str:
    """A row's quality in a line, with the texts and the device."""
    regret = regret_of(row)
    if regret is None:
        return "its own text was not measured"
    return (
        f"regret {regret:.3f} nats per token: {verdict_of(row)} (answers to "
        f"{about['data']['own']['prompts']} prompts, {about['model']['dtype']} on {about['device']['name']})"
    )


def credible_speed(row: dict[str, Any]) -> float:
    """The speedup that a row is chosen by: beyond the bound it is noise, and counts only up to there."""
    return float(min(row["speedup"], BY_CHANCE * row["bound"]))
