"""A recorded run as a command and as Python, made from the table of settings: what to type to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from lora_drop.method.fields import RUN, SCHEDULE, Setting
from lora_drop.method.kinds import Layers
from lora_drop.method.settings import BY_NAME, settings_of

COMMAND = "python -m lora_drop run"


def commands_of(header: Any) -> dict[str, str]:
    """`{"command", "python"}`: the run of a header, for a shell and for Python.

    Settings at their defaults are left out. The number type is named unless `auto` chose it, which it does for the
    packed blocks of the bundled model.
    """
    schedule = dict(_changed(SCHEDULE, header.main["config"]))
    if schedule.get("drop_layers") is not None:  # a list of layers takes the place of range and ratio
        schedule = {name: value for name, value in schedule.items() if name not in ("layers", "drop_ratio")}
    lanes = "both" if len(header.lanes) > 1 else header.lanes[0]["id"].replace("_", "-")
    lanes = ",".join(lane["method"] for lane in header.lanes if "method" in lane) or lanes
    # Those that a header keeps outside `sampling` are settings of the run too.
    run = dict(_changed(RUN, {**header.sampling, "seed": header.seed, "lanes": lanes}))
    model = "bundled" if header.model["id"].startswith("bundled:") else header.model["id"]
    # None where `auto` chose packed blocks.
    dtype = None if "blocks" in str(header.device.get("decoder", "")) else header.model["dtype"]
    return {
        "command": _command(header.prompt, model, dtype, schedule, run),
        "python": _python(header.prompt, model, dtype, schedule, run),
    }


def link_of(header: Any) -> str:
    """A link, relative to the page, that sets prompt and settings as in the run of a header: as the page's link
    (assets/js/export/link.js), without the hashes of the texts."""
    values = {**header.main["config"], **dict(_changed(RUN, {**header.sampling, "seed": header.seed}))}
    settings = [BY_NAME["compare"], *(setting for setting in settings_of(SCHEDULE, RUN) if setting.label)]
    written = {
        setting.name: setting.kind.write(values.get(setting.name))
        for setting in settings
        if setting.of == SCHEDULE or setting.name in values
    }
    written = {name: text for name, text in written.items() if text or BY_NAME[name].kind.name != Layers.name}
    return f"?{urlencode({'prompt': header.prompt, 'compare': '', **written}, errors='replace')}"


def _changed(owner: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings that are not at their defaults."""
    for setting in settings_of(owner):
        value = values.get(setting.name, setting.default)
        value = tuple(value) if isinstance(value, list) else value
        if value != setting.default and setting.fits(value):
            yield setting.name, value


def _command(prompt: str, model: str, dtype: str | None, schedule: dict[str, Any], run: dict[str, Any]) -> str:
    words = [COMMAND, shlex.quote(f"--prompt={prompt}")]
    words += [f"--model {shlex.quote(model)}"] if model != "bundled" else []
    words += [f"--dtype {shlex.quote(dtype)}"] if dtype else []
    values = schedule | run
    words += [_flag(setting, values[setting.name]) for setting in settings_of(SCHEDULE, RUN) if setting.name in values]
    return " ".join(words)


def _flag(setting: Setting, value: Any) -> str:
    if isinstance(value, bool):
        return setting.flag if value else setting.flag.replace("--", "--no-", 1)
    written = setting.kind.write(value)
    return f"{setting.flag}{'=' if written.startswith('-') else ' '}{shlex.quote(written)}"


def _python(prompt: str, model: str, dtype: str | None, schedule: dict[str, Any], run: dict[str, Any]) -> str:
    arguments = f"{model!r}, dtype={dtype!r}" if dtype else repr(model)
    config = ", ".join(f"{name}={value!r}" for name, value in schedule.items())
    settings = "".join(f", {name}={value!r}" for name, value in run.items())
    return (
        "from lora_drop import LoraDropConfig, load_model, stream\n\n"
        f"loaded = load_model({arguments})\n"
        f"config = LoraDropConfig({config})\n"
        "texts = {}\n"
        f"for record in stream(loaded, {prompt!r}, config{settings}):\n"
        '    if record.type == "step":\n'
        "        texts.setdefault(record.lane, []).append(record.text)\n"
        '    elif record.type == "rewind":\n'
        "        del texts[record.lane][record.to + 1 :]\n"
        "for lane, words in texts.items():\n"
        "    print(f\"{lane}: {''.join(words)}\")\n"
    )
