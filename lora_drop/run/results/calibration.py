"""Speeds of the presets on this machine: the file of `calibrate` in the user's cache, and what may be said of them.

A calibration holds for one processor with its threads, one decoder with its kernels, and one model; a row of it for
one setting with its adapters. Everything else is ignored, and so is a broken file: then no speed is claimed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

from lora_drop.adapters.find import config_fingerprint
from lora_drop.decode.native.loader import library
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import COMPARISONS
from lora_drop.models.load import LoadedModel, ModelInfo
from lora_drop.models.place import describe_device, short_name
from lora_drop.paths import REPORT_PROMPTS, calibrations
from lora_drop.run.report.speed import is_by_chance, lacks_kernels, no_gain_reason, speed_of
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.results.files import CALIBRATION
from lora_drop.run.results.store import Content, Row, is_setting
from lora_drop.runtime import VERSION

HEAD = "screened-head"  # the row of the full model with the screened head: its name in `COMPARISONS`
HEAD_PERIODS = (4, 8)  # its row has the faster of them
# Of a device: where these are equal, a stored file's speeds are this machine's.
PLACE = ("type", "name", "cores", "threads")
SPEEDS = ("speedup", "speedup_low", "speedup_high")
Gain = Literal["faster", "slower", "same"]


def head_config(period: int) -> LoraDropConfig:
    """The full model with the screened head, by itself."""
    return COMPARISONS[HEAD].applied_to(LoraDropConfig()).replace(period=period)


def settings_here(loaded: LoadedModel | ModelInfo) -> dict[str, list[LoraDropConfig]]:
    """What a model's calibration measures: by the name of its row, the settings that the row is the best of."""
    presets = {name: [preset.config] for name, preset in presets_of(loaded).items()}
    return presets | {HEAD: [head_config(period) for period in HEAD_PERIODS]}


def speeds_here(loaded: LoadedModel | ModelInfo, names: Container[str] | None = None) -> dict[str, Row]:
    """The rows that hold on this machine for a model's presets and adapters as they are now, by preset and `HEAD`.

    Args:
        names: of the rows wanted; by default all.
    """
    if lacks_kernels({"type": loaded.device.type, "decoder": loaded.decoder_name}):
        return {}
    content = _read(loaded)
    rows = [row for row in content["rows"] if names is None or row["lane"] in names] if content else []
    with suppress(LoraDropError):  # broken adapters
        settings = settings_here(loaded)
        return {
            row["lane"]: row
            for row in rows
            if any(_is_of(row, loaded, config) for config in settings.get(row["lane"], ()))
        }
    return {}


def is_calibrated(loaded: LoadedModel | ModelInfo) -> bool:
    """Whether there is a calibration of a model on this machine; `speeds_here` has the rows of it that hold."""
    return _read(loaded) is not None


def write_calibration(loaded: LoadedModel | ModelInfo, rows: list[Row]) -> Content:
    """Write the rows of a calibration, in place of earlier ones; returns the file's content.

    Raises:
        LoraDropError: the cache folder cannot be written.
    """
    content = CALIBRATION.begin(_key(loaded), date=datetime.now(UTC).isoformat(timespec="seconds")) | {"rows": rows}
    CALIBRATION.write(_folder(loaded), content)
    return content


def gain_here(row: Row | None) -> Gain | None:
    """What a row's speed says; None where it says nothing: too noisy, too short, or beyond what the bytes allow."""
    if row is None or row["speedup"] is None or is_by_chance(row["speedup"], row["bound"]):
        return None
    gain = speed_of(row["speedup"], row["speedup_interval"])
    return None if gain == "noisy" else gain


def timed_here(rows: Iterable[Row], about: Content, loaded: LoadedModel | ModelInfo) -> list[Row]:
    """Rows of a stored file; without their speeds if another processor measured them, or another decoder.

    Args:
        about: has the device that the file names.
    """
    here, there = describe_device(loaded.device), about.get("device", {})
    is_here = all(there.get(name) == here.get(name) for name in PLACE)
    decoder = loaded.decoder_name.partition(" ")[0]

    def holds(row: Row) -> bool:
        return is_here and (row.get("decoder") or decoder).partition(" ")[0] == decoder

    return [row if holds(row) else row | dict.fromkeys(SPEEDS) for row in rows]


def with_speed(row: Row, here: Row | None) -> Row:
    """A stored row with the speed that a calibration measured on this machine, where that is clear."""
    if here is None or not gain_here(here):
        return row
    return row | dict(zip(SPEEDS, (here["speedup"], *here["speedup_interval"]), strict=True))


def no_gain_words(row: Row) -> str:
    """Why a setting that was measured here does not gain, in a sentence."""
    return f"No gain in speed here ({row['speedup']:.2f}×): {no_gain_reason(row['bound'], row['accepted'])}."


def _read(loaded: LoadedModel | ModelInfo) -> Content | None:
    with suppress(LoraDropError):  # no file, or a broken one
        content = CALIBRATION.read(_folder(loaded) / CALIBRATION.name)
        if all(content[name] == value for name, value in _key(loaded).items()):
            return content
    return None


def _key(loaded: LoadedModel | ModelInfo) -> Content:
    native = library() if loaded.decoder_name.startswith("native") else None
    return {
        "model": {"id": loaded.id, "revision": loaded.revision, "dtype": short_name(loaded.dtype)},
        "device": describe_device(loaded.device),
        "decoder": loaded.decoder_name,
        "kernels": native and native.checksum,
        "software": {"torch": metadata.version("torch"), "lora_drop": VERSION},
        "data": {"file": REPORT_PROMPTS.name, "sha256": hashlib.sha256(REPORT_PROMPTS.read_bytes()).hexdigest()},
    }


def _folder(loaded: LoadedModel | ModelInfo) -> Path:
    digest = hashlib.sha256(json.dumps(_key(loaded), sort_keys=True).encode()).hexdigest()
    return calibrations() / digest[:16]


def _is_of(row: Row, loaded: LoadedModel | ModelInfo, config: LoraDropConfig) -> bool:
    return is_setting(row["config"], config) and row["adapters_fingerprint"] == config_fingerprint(loaded, config)
