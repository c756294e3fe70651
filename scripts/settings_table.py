"""docs/settings.md, from the table of settings: `python -m scripts.settings_table` writes it anew."""

from __future__ import annotations

from pathlib import Path

from lora_drop.method.config import LoraDropConfig
from lora_drop.method.fields import settings_in
from lora_drop.method.settings import CallSettings, RunSettings
from lora_drop.training.settings import TrainSettings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
PARTS = {
    CallSettings: ("What a call names", "The command line and the API have these; a config does not."),
    LoraDropConfig: (
        "The schedule",
        "Fields of `LoraDropConfig`, of a lane's `config` in a trace, and of a sweep's rows.",
    ),
    RunSettings: ("A run", "Further arguments of `stream` and `Request`; a trace has them under `sampling`."),
    TrainSettings: ("Training", "Flags of `train`, and fields of `TrainSettings`."),
}


def page() -> str:
    """The page's Markdown."""
    lines = [
        "# Settings",
        "",
        "Written by `python -m scripts.settings_table` from the fields of `LoraDropConfig`, `RunSettings` and",
        "`TrainSettings`. A setting has one name everywhere: in Python, JSON, links, the trace and the API; the flag",
        "is the same with dashes.",
    ]
    for owner, (title, where) in PARTS.items():
        lines += [
            "",
            f"## {title}",
            "",
            where,
            "",
            "| setting | values | default | what it does |",
            "|---|---|---|---|",
        ]
        for setting in settings_in(owner):
            default = "unset" if setting.default is None else f"`{setting.kind.write(setting.default)}`"
            values = setting.kind.must_be.replace("|", "\\|")
            lines.append(f"| `{setting.flag}` | {values} | {default} | {setting.help.replace('||', '‖')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
