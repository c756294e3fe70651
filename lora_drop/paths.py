"""Every folder that the program reads or writes, and the environment variables that name one.

Nothing else in the package builds such a path, so that what the program touches on a machine can be read here.
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from lora_drop.errors import LoraDropError

PACKAGE = Path(str(files("lora_drop")))
# The folder of the checkout, or of the Space, that the package lies in; None where it was installed from a wheel:
# there the package has the assets.
CHECKOUT = None if (PACKAGE / "assets").is_dir() else PACKAGE.parent
ASSETS = (CHECKOUT or PACKAGE) / "assets"
SHIPPED_ADAPTERS = ASSETS / "adapters"
SHIPPED_PRESETS = ASSETS / "presets"
SHIPPED_SWEEPS = ASSETS / "sweeps"
SHIPPED_RECORDED = ASSETS / "recorded" / "show-me.jsonl"


def cache_dir() -> Path:
    """The cache folder, absolute (it may not exist): `LORA_DROP_CACHE`, or `lora-drop` in the user's cache (XDG).

    Raises:
        LoraDropError: the variable names the home of a user that there is not.
    """
    if named := os.environ.get("LORA_DROP_CACHE"):
        return _expanded("LORA_DROP_CACHE", named).absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "lora-drop"


def local_wheel() -> Path | None:
    """The file that `LORA_DROP_WHEEL` names in place of a download of the bundled model; None if it is unset.

    Raises:
        LoraDropError: the variable names the home of a user that there is not.
    """
    named = os.environ.get("LORA_DROP_WHEEL")
    return _expanded("LORA_DROP_WHEEL", named) if named else None


def _expanded(variable: str, named: str) -> Path:
    try:
        return Path(named).expanduser()
    except RuntimeError as error:  # ~somebody who is not there
        raise LoraDropError(f"{variable} names {named}: {error}") from None
