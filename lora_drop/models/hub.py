"""Models as transformers reads them, from a folder or the Hub, with one line for whatever is wrong."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lora_drop.errors import LoraDropError
from lora_drop.models import bundled
from lora_drop.models.place import Place, fitting, on_zero_gpu

SUPPORTED = ("llama", "qwen2", "qwen3", "mistral")  # config.model_type
READ = re.compile(r"[^/]+\.(json|jinja|model|txt)|model[^/]*\.safetensors")  # files at the top of a repository
UNREACHABLE = {"TransportError", "ConnectionError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"}  # exceptions


def locate(name: str) -> tuple[str, str, bool]:
    """(what `from_pretrained` takes, the id to show, whether it is a local folder). Raises LoraDropError."""
    try:
        path = Path(name).expanduser()
        is_dir = bool(name) and path.is_dir()
    except (OSError, RuntimeError) as error:  # a name too long for a file, a user that there is not
        raise LoraDropError(f"no model {name[:80]!r}: {getattr(error, 'strerror', None) or error}.") from None
    if is_dir:
        if not (path / "config.json").is_file():
            raise LoraDropError(f"the folder {name} has no config.json: give one that `save_pretrained` wrote.")
        return str(path), path.resolve().name, True
    if path.suffix.lower() == ".gguf":
        raise LoraDropError(f"there is no GGUF file {name}: give the path of one that is here.")
    if path.is_file():
        raise LoraDropError(f"{name} is a file: give the folder that holds config.json and the safetensors weights.")
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is None or name.startswith((".", "/")):
        raise LoraDropError(
            f"no model {name!r}: there is no such folder, and it is no Hub id (OWNER/NAME), bundled, or random:SHAPE."
        )
    return name, name, False


def from_pretrained_files(
    source: str, name: str, candidates: list[Place], local: bool
) -> tuple[PreTrainedModel, Any, torch.device]:
    """Config first, then tokenizer (small), then weights (large): what cannot work is refused before a download."""
    config, device, dtype, options = check_config(source, name, candidates, local)
    with _one_line(name, "its tokenizer cannot be loaded", local):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        # It would print a warning of its own for a long text, beside our one line.
        tokenizer.model_max_length = sys.maxsize
    # ZeroGPU's stand-in for CUDA holds in this thread alone, and transformers loads in others.
    first = torch.device("cpu") if on_zero_gpu() else device
    with _one_line(name, "its weights cannot be loaded", local), _quiet(local):
        # Any: its type has the model alone, and not the pair that output_loading_info gives.
        found: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            device_map={"": first},
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    model, report = found
    if missing := sorted(report["missing_keys"]):  # transformers fills these with random numbers, and goes on
        raise LoraDropError(
            f"{name} is incomplete: its files lack {len(missing)} weights, the first is {missing[0]}. "
            f"{_way_out(name, local)}"
        )
    return model.to(device), tokenizer, device


def check_config(
    source: str, name: str, candidates: list[Place], local: bool
) -> tuple[Any, torch.device, torch.dtype, dict[str, bool]]:
    """What a model's config says: (config, where it fits and in which type, options for what else is read).

    Raises:
        LoraDropError: it cannot be read, is of another architecture, or fits nowhere.
    """
    options = {"trust_remote_code": False, "local_files_only": local or not _hub_answers(name)}
    # transformers reads these files with half a dozen libraries, and each has its own exceptions for a bad file.
    with _one_line(name, "its config.json cannot be read", local):
        config = AutoConfig.from_pretrained(source, **options)
    if config.model_type not in SUPPORTED:
        raise LoraDropError(
            f"{name} is a {config.model_type!r} model; supported architectures are {', '.join(SUPPORTED)}."
        )
    if getattr(config, "quantization_config", None) is not None:
        raise LoraDropError(f"{name} is quantised, which is not supported: use the original weights (16 or 32 bits).")
    return config, *fitting(config, name, candidates), options


def hub_files(name: str) -> dict[str, int]:
    """The files that `from_pretrained_files` reads of a Hub model, with their bytes; none if the Hub is not reached.

    Raises:
        LoraDropError: the Hub refuses it, or it has no safetensors.
    """
    if not _hub_answers(name):
        return {}
    from huggingface_hub import HfApi

    with _one_line(name, "its files cannot be listed", local=False):
        listed = HfApi().model_info(name, files_metadata=True).siblings or []
    found = {one.rfilename: one.size or 0 for one in listed if READ.fullmatch(one.rfilename)}
    if not any(file.endswith(".safetensors") for file in found):
        raise LoraDropError(
            f"{name} has no safetensors weights (pickled ones are refused): convert them, or choose another model."
        )
    return found


def _hub_answers(name: str) -> bool:
    """Ask the Hub for the model's config, once: False if it cannot be reached; earlier downloads then have to do.

    transformers itself would try for 23 s, with a line for each attempt. Raises LoraDropError if the Hub says no.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    with _one_line(name, "the Hub refuses it", local=False):
        try:
            get_hf_file_metadata(hf_hub_url(name, "config.json"))
        except Exception as error:
            if _kinds(error) & UNREACHABLE:
                return False
            raise
    return True


@contextlib.contextmanager
def _quiet(active: bool) -> Iterator[None]:
    """No progress bars for what takes a second; a download keeps them."""
    from transformers.utils import logging

    if not (active and logging.is_progress_bar_enabled()):
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


@contextlib.contextmanager
def _one_line(name: str, what: str, local: bool) -> Iterator[None]:
    """Turn whatever transformers and the Hub raise into one line that says what to do."""
    try:
        yield
    except (LoraDropError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise LoraDropError(_explain(error, name, what, local)) from error


def _kinds(error: BaseException) -> set[str]:
    """Class names of the exception and of its causes: the Hub's own is often wrapped in one of transformers'."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return {kind.__name__ for link in chain for kind in type(link).__mro__}


def _explain(error: BaseException, name: str, what: str, local: bool) -> str:
    """The error's line."""
    kinds = _kinds(error)
    first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if re.search(r"(no file|a file) named .*safetensors", str(error)):
        return f"{name} has no safetensors weights (pickled ones are refused): convert them, or choose another model."
    if "trust_remote_code" in str(error):
        return f"{name} needs code from its own repository, which is never run here: choose another model."
    if not local:
        if "GatedRepoError" in kinds:
            return f"{name} is gated: accept its terms on its Hub page, then `hf auth login` or set HF_TOKEN."
        if "RepositoryNotFoundError" in kinds:
            return f"no model {name} on the Hub: check the spelling; if it is private, log in with `hf auth login`."
        if "RemoteEntryNotFoundError" in kinds:
            return f"{name} has no config.json on the Hub, so it is no transformers model: choose another."
        if kinds & UNREACHABLE:
            return (
                f"{name} is not on this machine and the Hub cannot be reached: check the network (or HF_HUB_OFFLINE), "
                f"or use bundled or a local folder."
            )
    return f"{name}: {what} ({first_line}). {_way_out(name, local)}"


def _way_out(name: str, local: bool) -> str:
    """What to do where a model's files are damaged."""
    if name.startswith("bundled:"):
        return f"If its files are damaged: {bundled.REPAIR}."
    if local:
        return "If its files are damaged: write or copy the folder again."
    return "If its files are damaged: delete its folder in the Hub's cache, and load it again."
