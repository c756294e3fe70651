"""Adapters in repositories of the Hub: their names, download and upload.

A name is `USER/REPO` or `USER/REPO@REVISION`; a local folder of that name comes first. The files lie in the Hub's
cache (`HF_HOME`), so a second run needs no network.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from lora_drop.errors import LoraDropError
from lora_drop.models.hub import NO_HUB, hub_line
from lora_drop.paths import PRESETS_NAME

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "lora_drop_config.json"
SUMS_NAME = "SHA256SUMS"  # of the two, as `sha256sum -c` reads them; an older folder has none
CARD_NAME = "README.md"
FILES = (WEIGHTS_NAME, CONFIG_NAME, SUMS_NAME, CARD_NAME, PRESETS_NAME)  # of a repository no other file is fetched
REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
HUB_NAME = rf"({REPOSITORY})(?:@(?!.*\.\.)(\w[\w./-]*))?"  # (repository, revision)


def hub_name(name: str) -> tuple[str, str | None] | None:
    """(repository, revision) of a name; None for another text, and where there is a file or folder of that name."""
    return None if os.path.lexists(name) else _parsed(name)


def _parsed(name: str) -> tuple[str, str | None] | None:
    match = re.fullmatch(HUB_NAME, name, re.ASCII)
    return match and (match[1], match[2])


def bank_name(folder: Path) -> str:
    """A bank's name in messages and results: `USER/REPO@COMMIT` in the Hub's cache, else the folder's."""
    repository = folder.parents[1].name if folder.parent.name == "snapshots" else ""
    if not repository.startswith("models--"):
        return folder.name
    return f"{repository.removeprefix('models--').replace('--', '/')}@{folder.name[:12]}"


def download(name: str, revision: str | None = None, offline: bool = False) -> Path:
    """Fetch the newest files of a repository's branch, tag or commit; returns their folder in the Hub's cache.

    Args:
        name: `USER/REPO` or `USER/REPO@REVISION`; no local folder is looked for.
        revision: in place of the name's.
        offline: take what earlier downloads have left.

    Raises:
        LoraDropError: there is no such repository, revision or file, the download breaks off, or neither the Hub nor
            an earlier download is there.
    """
    if (parsed := _parsed(name)) is None:
        raise LoraDropError(
            f"{name[:80]!r} is no repository of adapters on the Hub: name USER/REPO or USER/REPO@REVISION."
        )
    repository, revision = parsed[0], revision or parsed[1]
    at = f"{repository}@{revision}" if revision else repository
    with _one_line(at, f"{at} is not on this machine and {NO_HUB}, or name a local folder."):
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(FILES),
                local_files_only=offline,
            )
        )
    for file in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / file).is_file():
            raise LoraDropError(
                f"{name} has no {file}, so it holds no LoRA-Drop adapters (pickled weights are never read): name "
                "another repository."
            )
    return folder


@functools.lru_cache
def _resolved(name: str) -> Path:
    """The folder of a repository, looked up once a process, so that a run or a sweep uses one commit."""
    return download(name)


def local_folder(name: str) -> Path:
    """The folder of adapters by their name. Raises LoraDropError: see `download`."""
    return _resolved(name) if hub_name(name) else Path(name)


def listed_adapters() -> tuple[str, ...]:
    """The repositories that `LORA_DROP_ADAPTERS` lists for the page's visitors; each is fetched.

    Raises:
        LoraDropError: see `download`; or the list has another name.
    """
    names = [name.strip() for name in os.environ.get("LORA_DROP_ADAPTERS", "").split(",") if name.strip()]
    for name in names:
        if _parsed(name) is None:
            raise LoraDropError(f"LORA_DROP_ADAPTERS lists repositories, USER/REPO[@REVISION], got {name!r}.")
        local_folder(name)
    return tuple(names)


def upload(files: Mapping[str, Path | bytes], name: str, private: bool | None = None) -> str:
    """Commit a bank's files to a repository, which is made if it is missing; returns the commit's address.

    Args:
        files: by their names there.
        name: `USER/REPO`, or with `@BRANCH`.
        private: of a new repository; None is the account's default.

    Raises:
        LoraDropError: it is no such name, or the Hub refuses.
    """
    if (parsed := _parsed(name)) is None:
        raise LoraDropError(f"adapters are pushed to a repository USER/REPO or USER/REPO@BRANCH, got {name[:80]!r}.")
    api = HfApi()
    with _one_line(name, f"{name} was not pushed, as {NO_HUB}."):
        repository, branch = parsed
        api.create_repo(repository, private=private, exist_ok=True)
        added = [CommitOperationAdd(place, content) for place, content in files.items()]
        info = api.create_commit(repository, added, commit_message="LoRA-Drop adapters", revision=branch)
    return info.commit_url


@contextmanager
def _one_line(name: str, offline: str) -> Iterator[None]:
    """Turn the client's exceptions into one line that says what to do; show its progress bars only on a terminal."""
    quiet = not (sys.stderr.isatty() or are_progress_bars_disabled())
    if quiet:
        disable_progress_bars()
    try:
        yield
    except Exception as error:  # httpx's, the Hub's, OSError of the cache, ValueError of a name or a card
        status = getattr(getattr(error, "response", None), "status_code", None)
        broke = type(error).__name__ in ("RemoteProtocolError", "ReadError", "ReadTimeout")
        if broke or "Consistency check" in str(error):
            line = f"the download of {name} broke off: try again."
        elif refusal := hub_line(error, name, "adapters", offline):
            line = refusal
        elif status in (401, 403):
            line = f"the Hub refuses access to {name}: log in with `hf auth login`, with a token that has this right."
        else:
            line = f"the Hub's client fails on {name} ({error or type(error).__name__}): check the name, or try again."
        raise LoraDropError(line) from error
    finally:
        if quiet:
            enable_progress_bars()
