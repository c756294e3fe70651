"""Kinds of argument that commands share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def parse_path(text: str) -> Path:
    """A path of the command line. There need not be such a file, but there could be one.

    Raises:
        argparse.ArgumentTypeError: the name is too long, or leads where this user may not look.
    """
    try:
        os.lstat(text)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a null byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(f"cannot use the path {text[:80]!r}: {reason}") from None
    return Path(text)
