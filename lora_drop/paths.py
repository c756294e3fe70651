"""Every folder that the program reads or writes, the environment variables that name one, and how files are written.

No other module builds such a path: this file lists all that the program touches on a machine. Files are written whole
or not at all, by one program at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path

from filelock import Timeout
from platformdirs import user_cache_path

from lora_drop import system
from lora_drop.errors import LoraDropError

PACKAGE = Path(str(files("lora_drop")))
# The folder of the checkout, or of the Space, around the package; None for an installed wheel, which has the assets
# inside the package.
CHECKOUT = None if (PACKAGE / "assets").is_dir() else PACKAGE.parent
ASSETS = (CHECKOUT or PACKAGE) / "assets"
# README, requirements and the like, for the folder of a Space; an installed wheel has a copy inside the package.
SPACE_FILES = CHECKOUT or PACKAGE / "space"
BUILT_KERNELS = (CHECKOUT or PACKAGE) / "build" / "kernels"  # of `make wheels`
SHIPPED_ADAPTERS = ASSETS / "adapters"
SHIPPED_PRESETS = ASSETS / "presets"  # the texts that presets write
PRESETS_NAME = "presets.json"  # beside a bank: its model's presets, and what was measured of them
SHIPPED_SWEEPS = ASSETS / "sweeps"
SHIPPED_RECORDED = ASSETS / "recorded" / "show-me.jsonl"
SHIPPED_SHAPES = ASSETS / "shapes"
SHIPPED_METHODS = ASSETS / "methods"
REPORT_PROMPTS = ASSETS / "prompts" / "report.jsonl"
HELD_OUT_PROMPTS = ASSETS / "prompts" / "held-out.txt"
DRAFT = re.compile(r"\.[0-9a-f]{16}\.part")


def cache_dir() -> Path:
    """The cache folder, absolute (it may not exist): `LORA_DROP_CACHE`, or `lora-drop` in the user's cache.

    That is XDG's on Linux, as it once was everywhere: where another system has it, it stays.

    Raises:
        LoraDropError: the variable names the home of an unknown user, or this user has no home.
    """
    if named := os.environ.get("LORA_DROP_CACHE"):
        return _expanded("LORA_DROP_CACHE", named).absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "lora-drop"
    except RuntimeError:  # no HOME, and a user without an entry
        raise LoraDropError("this user has no home: set HOME or LORA_DROP_CACHE to a folder to write to.") from None
    if sys.platform.startswith("linux") or folder.is_dir():
        return folder
    return user_cache_path("lora-drop", appauthor=False)


def calibrations() -> Path:
    """The folder of the speeds that were measured on this machine (it may not exist). Raises: see `cache_dir`."""
    return cache_dir() / "calibrations"


def local_wheel() -> Path | None:
    """The file that `LORA_DROP_WHEEL` names in place of a download of the bundled model; None if it is unset.

    Raises:
        LoraDropError: the variable names the home of an unknown user.
    """
    named = os.environ.get("LORA_DROP_WHEEL")
    return _expanded("LORA_DROP_WHEEL", named) if named else None


def own_upload_folder() -> str | None:
    """A new folder for the page's uploads; None where Gradio's default, `gradio` among the temporary files, will do.

    On a machine of several users that folder may be somebody else's.
    """
    usual = Path(tempfile.gettempdir()) / "gradio"
    with contextlib.suppress(OSError):
        usual.mkdir(0o700, exist_ok=True)
        status = usual.lstat()  # a link could lead to somebody else's folder
        if stat.S_ISDIR(status.st_mode) and system.is_mine(status) and os.access(usual, os.W_OK | os.X_OK):
            return None
    return tempfile.mkdtemp(prefix="lora-drop-gradio-")


def new_temporary_file(prefix: str, suffix: str) -> Path:
    """A new, empty file among the temporary files, which stays. Raises LoraDropError: none can be made."""
    try:
        handle, name = tempfile.mkstemp(suffix, prefix)
    except OSError as error:
        raise LoraDropError(f"cannot write a temporary file: {error.strerror or error}. Name one instead.") from None
    os.close(handle)
    return Path(name)


@contextlib.contextmanager
def temporary_folder(prefix: str, seconds: float) -> Iterator[Path]:
    """A new folder among the temporary files, which nobody else can write to.

    Args:
        prefix: of its name. This user's folders of that name which a killed program has left are deleted.
        seconds: the age at which a folder counts as left.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            is_old = status.st_mtime < time.time() - seconds
            if stat.S_ISDIR(status.st_mode) and system.is_mine(status) and is_old:
                shutil.rmtree(path, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _expanded(variable: str, named: str) -> Path:
    try:
        return Path(named).expanduser()
    except RuntimeError:  # ~unknown
        raise LoraDropError(f"{variable} names {named}: no such user. Write the path in full.") from None


@contextlib.contextmanager
def drafted(*paths: Path) -> Iterator[list[Path]]:
    """Empty drafts beside the files to write; they replace the files once all of them are on the disk.

    After an exception every file is as before and no draft is left. A draft's name is random, so that nobody can have
    put a link there. Where a path is a link, the file that it leads to is replaced.

    Raises:
        OSError: a draft cannot be written, or cannot replace its file.
    """
    targets = [path.resolve() if path.is_symlink() else path for path in paths]
    drafts = [path.with_name(f".{secrets.token_hex(8)}.part") for path in targets]
    try:
        for draft, target in zip(drafts, targets, strict=True):
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            if target.exists():
                draft.chmod(stat.S_IMODE(target.stat().st_mode))
        yield drafts
        for draft in drafts:
            sync(draft)
        for draft, target in zip(drafts, targets, strict=True):
            os.replace(draft, target)
    finally:
        for draft in drafts:
            with contextlib.suppress(OSError):
                draft.unlink()
    for folder in {target.parent for target in targets}:
        with contextlib.suppress(OSError):  # some file systems sync no folders
            sync(folder)


def write_files(contents: Mapping[Path, str | bytes]) -> None:
    """Write files, all of them or none; text is UTF-8. Devices and pipes are written to directly.

    Raises:
        OSError: see `drafted`.
    """
    raw = {
        path: content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
        for path, content in contents.items()
    }
    special = [path for path in raw if path.exists() and not path.is_file()]
    for path in special:
        path.write_bytes(raw.pop(path))
    with drafted(*raw) as drafts:
        for draft, content in zip(drafts, raw.values(), strict=True):
            draft.write_bytes(content)


@contextlib.contextmanager
def only_writer(folder: Path, content: str) -> Iterator[None]:
    """Make a folder and lock it against this machine's other programs that call this. A killed program's lock is free.

    Drafts that a killed program left are removed, and so is a new folder that stays empty.

    Args:
        content: what is written there, for the message.

    Raises:
        LoraDropError: the folder cannot be written, or another program holds it.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LoraDropError(f"cannot write {content} to {folder.name}: {error.strerror or error}.") from None
    lock = system.lock_of(folder)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            name = folder.resolve().name
            raise LoraDropError(
                f"another command is writing {content} to {name}: wait for its end, or name another --out."
            ) from None
        except (OSError, NotImplementedError):
            pass  # the temporary files are on a file system without locks
        for path in folder.iterdir():
            if DRAFT.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):  # only an empty folder goes
                folder.rmdir()
        lock.release()


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A draft of a folder, which must be empty or missing; it takes the folder's place when the block ends.

    Raises:
        LoraDropError: the folder is in use, or cannot be written; then no draft is left.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise LoraDropError(f"{out} is in use: name an empty folder, or a new one.")
        place = out.resolve()
        draft = place.with_name(f".{secrets.token_hex(8)}.part")
        place.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        try:
            yield draft
            os.replace(draft, place)
        finally:
            remove(draft)
    except OSError as error:
        raise LoraDropError(f"cannot write the folder {out}: {error.strerror or error}.") from None


def sha256(path: Path) -> str:
    """The file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_on_disk(folder: Path) -> int:
    """Bytes of a folder's files so far: one that is being written may already have its full length."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it vanished meanwhile
                total += system.bytes_on_disk(os.stat(os.path.join(place, name)))
    return total


def remove(path: Path) -> None:
    """Delete a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk: a rename must not get there first."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
