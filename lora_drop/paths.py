"""Every folder that the program reads or writes, and the environment variables that name one.

Nothing else in the package builds such a path, so that what the program touches on a machine can be read here.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from stat import S_ISDIR

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


def own_upload_folder() -> str | None:
    """A new folder for the page's uploads where Gradio's own, `gradio` among the temporary files, is somebody else's.

    Returns:
        None where that one is this user's, as it is on most machines.
    """
    usual = Path(tempfile.gettempdir()) / "gradio"
    with suppress(OSError):
        usual.mkdir(0o700, exist_ok=True)
        found = usual.lstat()  # a link leads to somebody's folder
        mine = not hasattr(os, "getuid") or found.st_uid == os.getuid()
        if S_ISDIR(found.st_mode) and mine and os.access(usual, os.W_OK | os.X_OK):
            return None
    return tempfile.mkdtemp(prefix="lora-drop-gradio-")


def _expanded(variable: str, named: str) -> Path:
    try:
        return Path(named).expanduser()
    except RuntimeError as error:  # ~somebody who is not there
        raise LoraDropError(f"{variable} names {named}: {error}") from None
