"""The codes of a screened head that its bank leaves out: made from the model's head, and cached.

For 151,936 tokens at rank 192 they take 16 MB, the two matrices that make them 2.4 MB.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib

from safetensors.torch import load, save

from lora_drop.decode.head import ROWS, ScreenedHead
from lora_drop.models.load import LoadedModel
from lora_drop.paths import cache_dir, write_files

_LATEST: dict[str, ScreenedHead] = {}  # by key, one alone


def with_codes(head: ScreenedHead, loaded: LoadedModel) -> ScreenedHead:
    """The screened head with the codes of a model's head: those in the cache folder, or made in some seconds.

    The file's name is of the model and of the bank's matrices; it begins with the checksum of what follows, so that a
    damaged one is made again.
    """
    if head.lift is None or len(head.codes):
        return head
    digest = hashlib.sha256(f"{loaded.revision} {head.best}".encode())
    for matrix in (head.project, head.lift):
        digest.update(matrix.float().contiguous().numpy().tobytes())
    key = digest.hexdigest()[:32]
    if key in _LATEST:
        return _LATEST[key]
    path = cache_dir() / "previews" / f"{key}.bin"
    try:
        raw = path.read_bytes()
        if hashlib.sha256(raw[32:]).digest() != raw[:32]:
            raise ValueError("damaged")
        parts = load(raw[32:])
        coded = ScreenedHead.unpacked(head.project, parts["codes"], parts["scale"].float(), head.best)
        coded = dataclasses.replace(coded, lift=head.lift)
    except (OSError, ValueError):
        coded = head.coded(loaded.head_rows(ROWS))
        content = save({"codes": coded.packed(), "scale": coded.scale.half()})
        with contextlib.suppress(OSError):  # the cache cannot be written
            path.parent.mkdir(parents=True, exist_ok=True)
            write_files({path: hashlib.sha256(content).digest() + content})
    _LATEST.clear()
    _LATEST[key] = coded
    return coded
