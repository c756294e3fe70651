"""Models that transformers reads, from a folder or the Hub, with one line for each mistake."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from lora_drop.errors import LoraDropError
from lora_drop.models.download import POLL, client
from lora_drop.models.place import Place, fitting, on_zero_gpu
from lora_drop.paths import bytes_on_disk

DOWNLOAD = (
    "import sys; from huggingface_hub import snapshot_download as get; get(sys.argv[1], allow_patterns=sys.argv[2:])"
)
SUPPORTED = ("llama", "qwen2", "qwen3", "mistral")  # config.model_type
HUB_GGUF = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)/([\w-][\w./-]*\.gguf)", re.IGNORECASE)  # OWNER/NAME/FILE.gguf
READ = re.compile(r"[^/]+\.(json|jinja|model|txt)|model[^/]*\.safetensors")  # files at the top of a repository
# Names of the exceptions that say that the Hub cannot be reached.
UNREACHABLE = {"TransportError", "ConnectionError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"}
NO_HUB = "the Hub cannot be reached: check the network (or HF_HUB_OFFLINE)"
REPAIR = "run `python -m lora_drop fetch --verify`, which repairs them"  # the bundled model's damaged files
NO_SAFETENSORS = "has no safetensors weights (pickled ones are refused): convert them, or choose another model."


def locate(name: str) -> tuple[str, str, bool]:
    """(the argument of `from_pretrained`, the id to show, whether it is a local folder). Raises LoraDropError."""
    try:
        path = Path(name).expanduser()
        is_dir = bool(name) and path.is_dir()
    except (OSError, RuntimeError) as error:  # a name too long for a file, an unknown user
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise LoraDropError(f"no model {name[:80]!r}: {reason}.") from None
    if is_dir:
        if not (path / "config.json").is_file():
            raise LoraDropError(f"the folder {name} has no config.json: name one that `save_pretrained` wrote.")
        return str(path), path.resolve().name, True
    if path.suffix.lower() == ".gguf":
        raise LoraDropError(f"no such GGUF file: {name}. Check the path; one of the Hub is OWNER/NAME/FILE.gguf.")
    if path.is_file():
        raise LoraDropError(f"{name} is a file: name the folder that holds config.json and the safetensors weights.")
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is None or name.startswith((".", "/")):
        raise LoraDropError(
            f"no model {name!r}: there is no such folder, and it is not a Hub id (OWNER/NAME), bundled, or "
            "random:SHAPE."
        )
    return name, name, False


def from_pretrained_files(
    source: str, name: str, candidates: list[Place], local: bool
) -> tuple[PreTrainedModel, Any, torch.device]:
    """Read config, tokenizer (small), then weights (large): a model that cannot work is refused before a download."""
    config, device, dtype, options = check_config(source, name, candidates, local)
    with _one_line(name, "its tokenizer cannot be loaded", local):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        # Otherwise it prints a warning for a long text, beside our one line.
        tokenizer.model_max_length = sys.maxsize
    # ZeroGPU's stand-in for CUDA works in this thread alone, and transformers loads in others.
    first = torch.device("cpu") if on_zero_gpu() else device
    with _one_line(name, "its weights cannot be loaded", local), _quiet(local):
        # Any: its type is the model alone, not the pair that output_loading_info returns.
        pair: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            device_map={"": first},
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    model, report = pair
    if missing := sorted(report["missing_keys"]):  # transformers fills these with random numbers, and goes on
        raise LoraDropError(
            f"{name} is incomplete: its files lack {len(missing)} weights, the first is {missing[0]}. "
            f"{_way_out(name, local)}"
        )
    return model.to(device), tokenizer, device


def check_config(
    source: str, name: str, candidates: list[Place], local: bool
) -> tuple[Any, torch.device, torch.dtype, dict[str, bool]]:
    """Read a model's config: (config, device and number type where it fits, options for reading its other files).

    Raises:
        LoraDropError: it cannot be read, is of another architecture, or fits nowhere.
    """
    options = {"trust_remote_code": False, "local_files_only": local or not _hub_answers(name)}
    # transformers reads these files with half a dozen libraries, and each has its own exceptions for a bad file.
    with _one_line(name, "its config.json cannot be read", local):
        config = AutoConfig.from_pretrained(source, **options)
    check_architecture(config, name)
    if getattr(config, "quantization_config", None) is not None:
        raise LoraDropError(f"{name} is quantised, which is not supported: use the original weights (16 or 32 bits).")
    return config, *fitting(config, name, candidates), options


def check_architecture(config: Any, name: str) -> None:
    """Raise LoraDropError for an architecture that the decoders do not know."""
    if config.model_type not in SUPPORTED:
        raise unsupported(name, config.model_type)


def unsupported(name: str, kind: str) -> LoraDropError:
    """The error for a model of another architecture."""
    return LoraDropError(f"{name} is a {kind!r} model; supported architectures are {', '.join(SUPPORTED)}.")


def hub_gguf(name: str) -> Path:
    """The local file of OWNER/NAME/FILE.gguf, downloaded where it is missing.

    Raises:
        LoraDropError: the Hub refuses it, or cannot be reached and the file is not here.
    """
    from huggingface_hub import hf_hub_download

    repository, file = _hub_place(name)
    with _one_line(name, "it cannot be fetched", local=False):
        return Path(hf_hub_download(repository, file, local_files_only=not _hub_answers(name, file)))


def _hub_place(name: str) -> tuple[str, str]:
    """(repository, file) of OWNER/NAME/FILE.gguf; of another name itself and its config."""
    match = HUB_GGUF.fullmatch(name)
    return (match[1], match[2]) if match else (name, "config.json")


def hub_files(name: str) -> dict[str, int]:
    """The files that `from_pretrained_files` reads of a Hub model, with their bytes; empty without a connection.

    Raises:
        LoraDropError: the Hub refuses it, or it has no safetensors.
    """
    repository, path = _hub_place(name)
    if not _hub_answers(name, path):
        return {}
    from huggingface_hub import HfApi

    with _one_line(name, "its files cannot be listed", local=False):
        siblings = HfApi().model_info(repository, files_metadata=True).siblings or []
    if HUB_GGUF.fullmatch(name):
        return {file.rfilename: file.size or 0 for file in siblings if file.rfilename == path}
    files = {file.rfilename: file.size or 0 for file in siblings if READ.fullmatch(file.rfilename)}
    if not any(file.endswith(".safetensors") for file in files):
        raise LoraDropError(f"{name} {NO_SAFETENSORS}")
    return files


def download(name: str, files: dict[str, int], should_stop: Callable[[], bool]) -> Iterator[str]:
    """Download a Hub model's files, by name with their sizes in bytes; yields the progress in words.

    The download is a separate process: only that can be ended at any moment. The next download goes on from its
    files.

    Raises:
        LoraDropError: it fails, or `should_stop` returned true.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = _hub_place(name)[0]
    folder = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"
    total = sum(files.values())
    command = [sys.executable, "-c", DOWNLOAD, repository, *files]
    with client(command) as (process, printed):
        while process.poll() is None:
            if should_stop():
                raise LoraDropError(f"Stopped: {name} was not fetched; the next download goes on from here.")
            yield f"Fetching {name}: {min(bytes_on_disk(folder), total) / 1e6:,.0f} of {total / 1e6:,.0f} MB."
            time.sleep(POLL)
        if process.returncode:
            reason = [f"code {process.returncode}", *filter(str.strip, printed())][-1].strip()
            raise LoraDropError(f"{name} could not be fetched ({reason}): try again.")


def _hub_answers(name: str, file: str = "config.json") -> bool:
    """Ask the Hub for a model's file, once; False without a connection, where earlier downloads have to do.

    transformers itself would try for 23 s, with a line for each attempt.

    Raises:
        LoraDropError: the Hub refuses the model.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    with _one_line(name, "the Hub refuses it", local=False):
        try:
            get_hf_file_metadata(hf_hub_url(_hub_place(name)[0], file))
        except Exception as error:
            if _kinds(error) & UNREACHABLE:
                return False
            raise
    return True


@contextlib.contextmanager
def _quiet(local: bool) -> Iterator[None]:
    """Keep transformers' tables of wrong weights off stderr, and bars for a folder's files, which take a second."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if local:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _one_line(name: str, failure: str, local: bool) -> Iterator[None]:
    """Turn any exception of transformers and the Hub into one line that says what to do."""
    try:
        yield
    except (LoraDropError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise LoraDropError(_explain(error, name, failure, local)) from error


def _kinds(error: BaseException) -> set[str]:
    """Class names of the exception and of its causes: transformers often wraps the Hub's exception in its own."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return {kind.__name__ for link in chain for kind in type(link).__mro__}


def hub_line(error: BaseException, name: str, noun: str, offline: str) -> str | None:
    """The line for a repository that the Hub refuses, or for no connection; None for another exception.

    Args:
        name: of the repository; `@REVISION` may follow.
        noun: what it holds.
        offline: the line where the Hub cannot be reached.
    """
    kinds = _kinds(error)
    if "GatedRepoError" in kinds:
        return f"{name} is gated: accept its terms on its Hub page, then `hf auth login` or set HF_TOKEN."
    if "RepositoryNotFoundError" in kinds:
        return f"no {noun} {name} on the Hub: check the spelling; if it is private, log in with `hf auth login`."
    if "RevisionNotFoundError" in kinds:
        return f"{name} is no revision on the Hub: check the branch, tag or commit."
    return offline if kinds & UNREACHABLE else None


def _explain(error: BaseException, name: str, failure: str, local: bool) -> str:
    """The line for an exception."""
    kinds, text = _kinds(error), str(error)
    if re.search(r"(no file|a file) named .*safetensors", text):
        return f"{name} {NO_SAFETENSORS}"
    if "trust_remote_code" in text:
        return (
            f"{name} needs code from its own repository, which is never run here: choose another model. Supported "
            f"architectures are {', '.join(SUPPORTED)}."
        )
    if kind := re.search(
        r"model type `(\S+)` but Transformers does not recognize|architecture (\S+) is not supp", text
    ):
        return str(unsupported(name, kind[1] or kind[2]))
    if not local:
        if "RemoteEntryNotFoundError" in kinds and HUB_GGUF.fullmatch(name):
            return f"no file {name} on the Hub: check the spelling on the repository's page."
        if "RemoteEntryNotFoundError" in kinds:
            return f"{name} has no config.json on the Hub, so it is not a transformers model: choose another."
        offline = f"{name} is not on this machine and {NO_HUB}, or use bundled or a local folder."
        if line := hub_line(error, name, "model", offline):
            return line
    reason = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    if "ignore_mismatched_sizes" in text:  # refers to a table that is not printed here
        reason = "they have other sizes than its config.json says"
    return f"{name}: {failure} ({reason}). {_way_out(name, local)}"


def _way_out(name: str, local: bool) -> str:
    """How to replace a model's damaged files."""
    if name.startswith("bundled:"):
        return f"If its files are damaged: {REPAIR}."
    if local:
        return "If its files are damaged: write or copy the folder again."
    return "If its files are damaged: delete its folder in the Hub's cache, and load it again."
