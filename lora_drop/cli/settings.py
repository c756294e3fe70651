"""Flags made from the table of settings."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from lora_drop.method.settings import SCHEDULE, Setting
from lora_drop.method.values import Choice, Flag, LayerList

ORDER = Setting("drop_order", SCHEDULE, LayerList(), None, "layers, the cheapest to skip first")


def add_settings(parser: argparse.ArgumentParser, settings: Iterable[Setting], unset: bool = False) -> None:
    """A flag for each setting. With `unset` one that is not given is None: a preset, or the config, has its value.

    What argparse cannot check (a word, a range, bounds) the config checks, with one line for every way in.
    """
    for setting in settings:
        default = None if unset else setting.default
        help_ = f"{setting.help}{_default(setting)}".replace("%", "%%")
        if isinstance(setting.kind, Flag):
            parser.add_argument(setting.flag, action=argparse.BooleanOptionalAction, default=default, help=help_)
        else:
            parser.add_argument(
                setting.flag, type=setting.kind.python, default=default, metavar=setting.metavar, help=help_
            )


def read_settings(args: argparse.Namespace, settings: Iterable[Setting]) -> dict[str, Any]:
    """What the flags of these settings hold, as values.

    Raises:
        LoraDropError: a text that cannot be read.
    """
    return {setting.name: setting.read(getattr(args, setting.name)) for setting in settings}


def _default(setting: Setting) -> str:
    words = f": {', '.join(setting.kind.words)}" if isinstance(setting.kind, Choice) else ""
    return words if setting.default is None else f"{words} (default {setting.kind.write(setting.default)})"
