"""A recorded run as a command and as Python, made from the table of settings: what to type to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from lora_drop.method.fields import RUN, SCHEDULE, Setting
from lora_drop.method.settings import settings_of

COMMAND = "python -m lora_drop run"


def commands_of(header: Any) -> dict[str, str]:
    """`{"command", "python"}`: the run of a header, for a shell and for Python.

    Settings at their defaults are left out. The number type is named unless `auto` chose it, which it does for the
    packed blocks of the bundled model.
    """
    lane, others = header.main["config"], _others(header)
    schedule = dict(_changed(SCHEDULE, lane))
    if schedule.get("drop_layers") is not None:  # a list of layers takes the place of range and ratio
        schedule = {name: value for name, value in schedule.items() if name not in ("layers", "drop_ratio")}
    run = dict(_changed(RUN, others))
    return {
        "command": _command(header, schedule, run),
        "python": _python(header, schedule, run),
    }


def _others(header: Any) -> dict[str, Any]:
    """The run's settings, with those that a header keeps outside `sampling`."""
    ids = [lane["id"] for lane in header.lanes]
    lanes = "both" if len(ids) > 1 else ids[0].replace("_", "-")
    return {**header.sampling, "seed": header.seed, "lanes": lanes}


def _changed(owner: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings that are not at their defaults."""
    for setting in settings_of(owner):
        value = values.get(setting.name, setting.default)
        value = tuple(value) if isinstance(value, list) else value
        if value != setting.default and setting.fits(value):
            yield setting.name, value


def _dtype(header: Any) -> str | None:
    """The number type to ask for; None where `auto` chose packed blocks."""
    return None if "blocks" in str(header.device.get("decoder", "")) else header.model["dtype"]


def _model(header: Any) -> str:
    return "bundled" if header.model["id"].startswith("bundled:") else header.model["id"]


def _command(header: Any, schedule: dict[str, Any], run: dict[str, Any]) -> str:
    dtype = _dtype(header)
    words = [COMMAND, shlex.quote(f"--prompt={header.prompt}")]
    words += [f"--model {shlex.quote(_model(header))}"] if _model(header) != "bundled" else []
    words += [f"--dtype {shlex.quote(dtype)}"] if dtype else []
    for setting in settings_of(SCHEDULE, RUN):
        values = schedule if setting.of == SCHEDULE else run
        if setting.name in values:
            words.append(_flag(setting, values[setting.name]))
    return " ".join(words)


def _flag(setting: Setting, value: Any) -> str:
    if isinstance(value, bool):
        return setting.flag if value else setting.flag.replace("--", "--no-", 1)
    return f"{setting.flag} {shlex.quote(setting.kind.write(value))}"


def _python(header: Any, schedule: dict[str, Any], run: dict[str, Any]) -> str:
    dtype = _dtype(header)
    model = ", ".join([repr(_model(header)), *([f"dtype={dtype!r}"] if dtype else [])])
    config = ", ".join(f"{name}={value!r}" for name, value in schedule.items())
    settings = "".join(f", {name}={value!r}" for name, value in run.items())
    return (
        "from lora_drop import LoraDropConfig, load_model, stream\n\n"
        f"loaded = load_model({model})\n"
        f"config = LoraDropConfig({config})\n"
        "texts = {}\n"
        f"for record in stream(loaded, {header.prompt!r}, config{settings}):\n"
        '    if record.type == "step":\n'
        "        texts.setdefault(record.lane, []).append(record.text)\n"
        '    elif record.type == "rewind":\n'
        "        del texts[record.lane][record.to + 1 :]\n"
        "for lane, words in texts.items():\n"
        "    print(f\"{lane}: {''.join(words)}\")\n"
    )
