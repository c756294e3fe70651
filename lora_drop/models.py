"""The one door to a model: the bundled one, a Hub id, a local folder, or random weights of a known shape.

load_model()                        the bundled SmolLM2-135M-Instruct
load_model("Qwen/Qwen2.5-0.5B")     the Hub (safetensors only, no code from the repository is ever run)
load_model("./my-model")            a folder as `save_pretrained` writes it
load_model("random:tiny-llama")     tiny random weights with a byte tokenizer, for tests
load_model("random:llama3-8b")      the real shape with random weights, for measuring speed and memory
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import platform
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import get_max_memory
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from lora_drop import bundled
from lora_drop.decoder import Decoder
from lora_drop.errors import LoraDropError
from lora_drop.fast import FastDecoder, is_supported
from lora_drop.graphs import GraphDecoder
from lora_drop.native import NativeDecoder, NativeWeights, lay_out, library
from lora_drop.schedule import ModelShape
from lora_drop.weights import StepWeights, fuse, pack

# Where a repository has only pickled weights, transformers would ask a service to convert them and then load the
# result from an unreviewed pull request. Here that is an error that says so.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

SUPPORTED = ("llama", "qwen2", "qwen3", "mistral")  # config.model_type
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Place = tuple[torch.device, torch.dtype]
BUNDLED_ID = f"bundled:{bundled.NAME}"
UNREACHABLE = {"TransportError", "ConnectionError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"}  # exceptions
SAMPLES = 1024  # elements of a tensor that go into the fingerprint


@dataclass(frozen=True)
class Outline:
    """What is known of a model without holding its weights: enough to plan a run and to draw the page."""

    tokenizer: Any  # as in LoadedModel, and so are the others
    id: str
    revision: str
    context: int
    device: torch.device
    dtype: torch.dtype
    shape: ModelShape
    num_layers: int
    decoder_name: str  # of the decoder that it decodes with


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to decode: eval mode, no gradients, on its device. Nothing of a request is kept in it."""

    model: PreTrainedModel
    tokenizer: Any  # a transformers tokenizer, or a ByteTokenizer
    id: str  # "bundled:SmolLM2-135M-Instruct", a Hub id, a folder's name (never its path), or "random:..."
    revision: str  # fingerprint of the weights, 16 hex digits; the same in float32 and bfloat16
    context: int  # the most tokens, prompt and answer together
    device: torch.device
    dtype: torch.dtype  # of activations and K/V
    weights: StepWeights | NativeWeights | None = None  # laid out for decode steps; None runs the reference decoder

    @property
    def shape(self) -> ModelShape:
        """The sizes that the bound and the memory formulas need."""
        shape = ModelShape.from_config(self.model.config)
        if self.weights is None:
            return shape
        sizes = self.weights.layer_bytes / self.dtype.itemsize, self.weights.head_bytes / self.dtype.itemsize
        return dataclasses.replace(shape, matrix_size=sizes[0], head_size=sizes[1])

    @property
    def decoder(self) -> Decoder:
        """The fastest decoder there is for it; it holds nothing of a request."""
        if self.weights is None:
            return Decoder(self.model)
        if isinstance(self.weights, NativeWeights):
            return NativeDecoder(self.model, self.weights)
        kind = GraphDecoder if self.device.type == "cuda" else FastDecoder
        return kind(self.model, self.weights)

    @property
    def num_layers(self) -> int:
        """Decoder layers, L."""
        return self.model.config.num_hidden_layers

    @property
    def decoder_name(self) -> str:
        """The name of its decoder."""
        return self.decoder.name

    @property
    def outline(self) -> Outline:
        """What can be kept of it when it is let go."""
        return Outline(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Outline)})

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a text: those of the generation config, and the tokenizer's own end token."""
        named = self.model.generation_config.eos_token_id
        ids = {named} if isinstance(named, int) else set(named or ())
        return frozenset(ids | {self.tokenizer.eos_token_id} - {None})


def load_model(
    model: str = "bundled",
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> LoadedModel:
    """Load a model by name.

    Args:
        model: `bundled`, `random:SHAPE`, a local folder, or a Hub id (a folder of that name comes first).
        device: `auto` (see `places`), `cpu`, `cuda` or `cuda:N`.
        dtype: `auto` (bfloat16 on CUDA and on processors that compute it in hardware), `float32` or `bfloat16`.

    Raises:
        LoraDropError: in one line, whatever is wrong with the name, the files, the network, the device or the memory.
    """
    name = str(model).strip()
    candidates = places(device, dtype)
    try:
        if name.startswith("random:"):
            network, tokenizer, target = _random_model(name.removeprefix("random:"), candidates)
        elif name in ("bundled", BUNDLED_ID):
            name = BUNDLED_ID
            network, tokenizer, target = _from_pretrained(str(bundled.ensure()), name, candidates, local=True)
        else:
            source, name, local = _locate(name)
            network, tokenizer, target = _from_pretrained(source, name, candidates, local)
    except torch.OutOfMemoryError as error:
        where = " or ".join(dict.fromkeys(f"{place} in {_short(kind)}" for place, kind in candidates))
        raise LoraDropError(f"{name} does not fit into the memory of {where}.") from error
    network.eval().requires_grad_(False)
    revision = fingerprint(network)
    return LoadedModel(
        model=network,
        tokenizer=tokenizer,
        id=name,
        revision=revision,
        context=usable_context(network.config),
        device=target,
        dtype=network.dtype,
        weights=_step_weights(network, target, packed=name == BUNDLED_ID and str(dtype).lower() == "auto"),
    )


def _step_weights(model: PreTrainedModel, device: torch.device, packed: bool) -> StepWeights | NativeWeights | None:
    """The weights as the fastest decoder at hand wants them; None where that is the reference.

    Args:
        packed: take the bundled model's own blocks instead of the numbers that they stand for.
    """
    if not is_supported(model):
        return None
    if device.type == "cuda":
        # On ZeroGPU the card comes and goes with each call, in a process of its own: a graph would not live to pay.
        return None if os.environ.get("SPACES_ZERO_GPU") else fuse(model)
    gguf = bundled.ensure() / bundled.GGUF.name if packed else None
    if library() is not None:
        return lay_out(model, gguf)
    # torch's packed kernel wants bfloat16 activations, which are slow where the processor does not compute them.
    return pack(model, gguf) if gguf and model.dtype == torch.bfloat16 else fuse(model)


# ---- device, number type, memory ------------------------------------------------------------------------------------


def resolve_device(device: str | torch.device) -> torch.device:
    """The torch device for `auto`, `cpu`, `cuda` or `cuda:N`. Raises LoraDropError if this machine lacks it."""
    name = str(device).strip().lower()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise LoraDropError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:N.")
    if not torch.cuda.is_available():
        raise LoraDropError(f"device {name} was asked for, but torch finds no CUDA device here: use auto or cpu.")
    index, count = int(match[1] or 0), torch.cuda.device_count()
    if index >= count:
        raise LoraDropError(f"device {name} was asked for, but the last one here is cuda:{count - 1}.")
    return torch.device("cuda", index)


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """float32 or bfloat16; `auto` takes bfloat16 where the device computes it in hardware."""
    name = _short(dtype) if isinstance(dtype, torch.dtype) else str(dtype).strip().lower()
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" or _cpu_has_bfloat16() else torch.float32
    if name not in DTYPES:
        raise LoraDropError(f"unknown dtype {name!r}: use auto, {' or '.join(DTYPES)}.")
    return DTYPES[name]


def _cpu_has_bfloat16() -> bool:
    """True if the processor multiplies bfloat16 itself; emulated, it is slower than float32."""
    if platform.machine().lower() in ("aarch64", "arm64"):  # oneDNN answers for the hardware on ARM only
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be had on the device, as far as it says; None where it does not."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = []
    with contextlib.suppress(OSError, AttributeError, TypeError):  # Linux: what can be had without swapping
        found.append(1024 * int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]))
    with contextlib.suppress(OSError, ValueError):  # a container's limit, which /proc/meminfo does not know
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found, default=None)


def places(device: str | torch.device = "auto", dtype: str | torch.dtype = "auto") -> list[Place]:
    """Where a model may go and in which number type, the best first; the first one that holds its weights is taken.

    Device `auto`: the GPUs, the one with the most free memory first, then the CPU. Dtype `auto`: on a processor that
    does not compute bfloat16 itself it is float32, and bfloat16 only where that does not fit.

    Raises:
        LoraDropError: an unknown name, or a device that this machine lacks.
    """
    targets = [resolve_device(device)]
    is_auto = str(device).strip().lower() == "auto"
    # On ZeroGPU the card is not to be asked from here.
    if is_auto and targets[0].type == "cuda" and not os.environ.get("SPACES_ZERO_GPU"):
        free = {index: size for index, size in get_max_memory().items() if isinstance(index, int)}
        targets = [torch.device("cuda", index) for index in sorted(free, key=free.get, reverse=True)]
        targets.append(torch.device("cpu"))
    found = []
    for target in targets:
        best = resolve_dtype(dtype, target)
        found.append((target, best))
        if str(dtype).strip().lower() == "auto" and best == torch.float32:
            found.append((target, torch.bfloat16))
    return found


def _fitting(config: PreTrainedConfig, name: str, candidates: list[Place]) -> Place:
    """The first place that holds the weights, known before they are downloaded and before the machine swaps.

    Raises:
        LoraDropError: none does.
    """
    params = ModelShape.from_config(config).params
    free = {device: free_memory(device) for device, _ in candidates}
    for device, dtype in candidates:
        if free[device] is None or params * dtype.itemsize <= free[device]:
            return device, dtype
    smallest = min((dtype for _, dtype in candidates), key=lambda dtype: dtype.itemsize)
    has = " and ".join(f"{device} has {size / 1e9:.1f} GB free" for device, size in free.items())
    raise LoraDropError(
        f"{name} needs {params * smallest.itemsize / 1e9:.1f} GB for its weights in {_short(smallest)}, and {has}: "
        "use a smaller model, or another device or dtype."
    )


# ---- what a model is ------------------------------------------------------------------------------------------------


def usable_context(config: PreTrainedConfig) -> int:
    """The most tokens a run may have: the positions of the model, within the sliding window if any layer has one.

    Beyond the window those layers would forget, which the caches and the memory formulas here do not model.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        return config.max_position_embeddings
    return min(config.max_position_embeddings, window)


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> str:
    """16 hex digits that tell these weights from others; equal for float32 and bfloat16 runs of the same weights.

    sha256 over name, shape and up to 1024 evenly spaced elements, as bfloat16, of each parameter in order of its name.
    `named_parameters` gives a tied head once, as the embedding.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        flat = weight.reshape(-1)
        sample = flat[:: -(-flat.numel() // SAMPLES)].to(torch.bfloat16)  # rounded up, so that the end counts too
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(sample.view(torch.int16).cpu().numpy().astype("<i2").tobytes())
    return digest.hexdigest()[:16]


# ---- folders and the Hub --------------------------------------------------------------------------------------------


def _locate(name: str) -> tuple[str, str, bool]:
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
        raise LoraDropError(
            f"{name}: GGUF files are not loaded directly. Give a folder or Hub id with safetensors weights; a copy of "
            f"{bundled.GGUF.name} for the bundled model is named by LORA_DROP_WHEEL."
        )
    if path.is_file():
        raise LoraDropError(f"{name} is a file: give the folder that holds config.json and the safetensors weights.")
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is None or name.startswith((".", "/")):
        raise LoraDropError(
            f"no model {name!r}: there is no such folder, and it is no Hub id (OWNER/NAME), bundled, or random:SHAPE."
        )
    return name, name, False


def _from_pretrained(
    source: str, name: str, candidates: list[Place], local: bool
) -> tuple[PreTrainedModel, Any, torch.device]:
    """Config first, then tokenizer (small), then weights (large): what cannot work is refused before a download."""
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
    device, dtype = _fitting(config, name, candidates)
    with _one_line(name, "its tokenizer cannot be loaded", local):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        # It would print a warning of its own for a long text, beside our one line.
        tokenizer.model_max_length = sys.maxsize
    # ZeroGPU's stand-in for CUDA holds in this thread alone, and transformers loads in others.
    first = torch.device("cpu") if os.environ.get("SPACES_ZERO_GPU") else device
    with _one_line(name, "its weights cannot be loaded", local), _quiet(local):
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            device_map={"": first},
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(report["missing_keys"]):  # transformers fills these with random numbers, and goes on
        raise LoraDropError(f"{name} is incomplete: its files lack {len(missing)} weights, the first is {missing[0]}.")
    return model.to(device), tokenizer, device


def _hub_answers(name: str) -> bool:
    """Ask the Hub for the model's config, once: False if it cannot be reached; earlier downloads then have to do.

    transformers itself would try for 23 s, telling about each attempt. Raises LoraDropError if the Hub says no.
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
    """What to tell the user."""
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
    return f"{name}: {what} ({first_line})."


# ---- prompts --------------------------------------------------------------------------------------------------------


def encode_prompt(tokenizer: Any, prompt: str, chat: bool = True) -> list[int]:
    """The prompt as token ids, through the chat template where there is one (and `chat` is true).

    What the visitor types is text: `<|im_end|>` in a prompt becomes ordinary tokens and cannot end the turn. Other
    prompts give exactly the tokens of `apply_chat_template` (or of `encode`).

    Args:
        tokenizer: a transformers tokenizer or a ByteTokenizer.
        prompt: one user message.
        chat: False for plain text, with the tokenizer's own start token.

    Raises:
        LoraDropError: an empty prompt, or a chat template that cannot carry this one.
    """
    if not prompt.strip():
        raise LoraDropError("the prompt is empty: write something.")
    prompt = prompt.encode("utf-8", errors="replace").decode("utf-8")  # lone surrogates are no text
    if isinstance(tokenizer, ByteTokenizer):
        return tokenizer.encode(prompt)
    markers = _marker_pattern(tokenizer)
    if not (chat and tokenizer.chat_template):
        if not markers.search(prompt):
            return list(tokenizer.encode(prompt))
        before, after = _frame(tokenizer)
        return [*before, *_encode_as_text(tokenizer, prompt), *after]
    text = _render(tokenizer, prompt)
    if not markers.search(prompt):
        return list(tokenizer.encode(text, add_special_tokens=False))
    # Where the visitor's text lies: a stand-in without special meaning shows what the template writes around it.
    stand_in = "x7Qz" * 8
    around = _render(tokenizer, stand_in).split(stand_in)
    if len(around) != 2 or not (text.startswith(around[0]) and text.endswith(around[1])):
        raise LoraDropError(
            f"the model's chat template cannot carry {markers.search(prompt)[0]!r} as plain text: leave it out."
        )
    # The tokenizer cuts a text at its markers and works on each part alone. So the part to take as plain text reaches
    # from the template's last marker before the visitor's words to its first one after them: merges across the
    # borders come out as they always do.
    start = max((match.end() for match in markers.finditer(around[0])), default=0)
    end = len(text) - len(around[1])
    end = match.start() if (match := markers.search(text, end)) else len(text)
    head, tail = text[:start], text[end:]
    ids = tokenizer.encode(head, add_special_tokens=False) if head else []
    ids = [*ids, *_encode_as_text(tokenizer, text[start:end], head)]
    return ids + (tokenizer.encode(tail, add_special_tokens=False) if tail else [])


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Plain text as token ids: no template, no start or end token, and no marker in it counts as one."""
    text = text.encode("utf-8", errors="replace").decode("utf-8")  # lone surrogates are no text
    if isinstance(tokenizer, ByteTokenizer) or not _marker_pattern(tokenizer).search(text):
        return list(tokenizer.encode(text, add_special_tokens=False))
    return _encode_as_text(tokenizer, text)


def _render(tokenizer: Any, content: str) -> str:
    """The chat template around one user message, as text."""
    import jinja2

    try:
        messages = [{"role": "user", "content": content}]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError as error:
        raise LoraDropError(f"the model's chat template does not take a single user message ({error}).") from error


def _marker_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches each string that the tokenizer turns into one token of its own, the longest first."""
    added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, added)) or r"(?!)")


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that `encode` puts before and after a text (a start token, say)."""
    whole, inner = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    at = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
    return whole[:at], whole[at + len(inner) :]


def _encode_as_text(tokenizer: Any, text: str, head: str = "") -> list[int]:
    """Token ids of text in which no marker counts. `head`: what comes before it, up to and with a marker.

    The steps of the backend without its added tokens. (`split_special_tokens=True` would set a switch on the shared
    tokenizer, under the feet of another visitor's thread, and leave the added tokens that are not special.)
    """
    if not tokenizer.is_fast:
        return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def plain(part: str) -> list[int]:
        backend = tokenizer.backend_tokenizer
        if backend.normalizer is not None:
            part = backend.normalizer.normalize_str(part)
        pieces = [part]
        if backend.pre_tokenizer is not None:
            pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(part)]
        return [token.id for piece in pieces for token in backend.model.tokenize(piece)]

    # Some SentencePiece tokenizers put a space before the first word of a whole text but not after a marker. There the
    # space goes before a newline, and both come off again.
    known = tokenizer.encode(head, add_special_tokens=False) if head else []
    if head and tokenizer.encode(head + "a", add_special_tokens=False)[len(known) :] != plain("a"):
        newline, ids = plain("\n"), plain("\n" + text)
        if ids[: len(newline)] == newline:
            return ids[len(newline) :]
    return plain(text)


class ByteTokenizer:
    """Offline tokenizer of the random models: ids 0..255 are the bytes of UTF-8, then a start and an end token."""

    bos_token_id = 256
    eos_token_id = 257
    pad_token_id = 257
    vocab_size = 258
    chat_template = None
    all_special_ids = (bos_token_id, eos_token_id)

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The start token (if special tokens are added), then the bytes. No text gives a special token."""
        ids = list(text.encode("utf-8", errors="replace"))
        return [self.bos_token_id, *ids] if add_special_tokens else ids

    def decode(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text; broken UTF-8 and ids beyond the vocabulary (large random models have them) give U+FFFD."""
        names = {} if skip_special_tokens else {self.bos_token_id: b"<bos>", self.eos_token_id: b"<eos>"}
        numbers = [int(i) for i in ([ids] if isinstance(ids, int) else ids)]
        parts = (bytes([i]) if i < 256 else names.get(i, b"") if i < self.vocab_size else b"\xff" for i in numbers)
        return b"".join(parts).decode("utf-8", errors="replace")


# ---- random weights -------------------------------------------------------------------------------------------------

_SPECIAL = {"bos_token_id": ByteTokenizer.bos_token_id, "eos_token_id": ByteTokenizer.eos_token_id}
_TINY = {
    "vocab_size": ByteTokenizer.vocab_size,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    **_SPECIAL,
}


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


# Tied and untied heads, and a sliding window, so that the tests meet each.
TINY_SHAPES = {
    "tiny-llama": LlamaConfig(**_TINY | {"max_position_embeddings": 4096}),
    "tiny-qwen2": Qwen2Config(**_TINY, tie_word_embeddings=True),
    "tiny-qwen3": Qwen3Config(**_TINY, tie_word_embeddings=True),
    "tiny-mistral": MistralConfig(**_TINY | {"max_position_embeddings": 4096}, sliding_window=2048),
}
LARGE_SHAPES = {
    "llama2-7b": LlamaConfig(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_parameters=_rope(1e4),
        **_SPECIAL,
    ),
    "llama3-8b": LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters=_rope(5e5),
        **_SPECIAL,
    ),
    "qwen2.5-7b": Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32_768,
        rms_norm_eps=1e-6,
        rope_parameters=_rope(1e6),
        **_SPECIAL,
    ),
    "qwen2.5-14b": Qwen2Config(
        vocab_size=152_064,
        hidden_size=5120,
        intermediate_size=13_824,
        num_hidden_layers=48,
        num_attention_heads=40,
        num_key_value_heads=8,
        max_position_embeddings=32_768,
        rms_norm_eps=1e-6,
        rope_parameters=_rope(1e6),
        **_SPECIAL,
    ),
}
SHAPES = TINY_SHAPES | LARGE_SHAPES


def _random_model(shape: str, candidates: list[Place]) -> tuple[PreTrainedModel, ByteTokenizer, torch.device]:
    """Random weights of a known shape: the same values each time, on each device and in each number type."""
    if shape not in SHAPES:
        raise LoraDropError(f"no shape {shape!r}: random: knows {', '.join(SHAPES)}.")
    config = type(SHAPES[shape]).from_dict(SHAPES[shape].to_dict())  # a copy: loading writes into it
    device, dtype = _fitting(config, f"random:{shape}", candidates)
    with torch.device("meta"):  # no storage, and no initialisation parameter by parameter
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.to_empty(device=device)
    model.tie_weights()
    # The one buffer that is computed, not loaded; `to_empty` left it undefined.
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    fill = _fill_tiny if shape in TINY_SHAPES else _fill_large
    with torch.no_grad():
        fill(dict(model.named_parameters()), torch.Generator().manual_seed(zlib.crc32(shape.encode())))
    return model, ByteTokenizer(), device


def _fill_tiny(weights: dict[str, torch.Tensor], generator: torch.Generator) -> None:
    """Weights whose greedy text neither stands still nor repeats its input.

    The layers add much more than the embedding brings, so that with a tied head the likeliest token is not the last
    one, and attention is sharp enough to matter. The head's row of the end token is zero: a text goes on as long as it
    may, in float32 and in bfloat16.
    """
    for name, weight in sorted(weights.items()):
        if name.endswith("norm.weight"):
            values = 1 + 0.1 * torch.randn(weight.shape, generator=generator)
        elif weight.ndim == 1:
            values = 0.5 * torch.randn(weight.shape, generator=generator)  # Qwen2's biases
        else:
            values = 1.5 * torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5
        if "lm_head" in name or ("embed_tokens" in name and "lm_head.weight" not in weights):
            values[ByteTokenizer.eos_token_id] = 0
        weight.copy_(values.to(torch.bfloat16))  # rounded, so that float32 runs have the same weights


def _fill_large(weights: dict[str, torch.Tensor], generator: torch.Generator) -> None:
    """Normal numbers, std 0.02, from one block used over and over: billions of draws would take minutes on a CPU.

    The block's prime length keeps the rows of a matrix from being alike.
    """
    block = (0.02 * torch.randn(1_048_583, generator=generator)).to(torch.bfloat16)
    for name, weight in weights.items():
        if name.endswith("norm.weight"):
            weight.fill_(1.0)
            continue
        block = block.to(weight.device, weight.dtype)
        flat = weight.view(-1)
        whole = flat.numel() // len(block) * len(block)
        flat[:whole].view(-1, len(block)).copy_(block.expand(whole // len(block), -1))
        flat[whole:].copy_(block[: flat.numel() - whole])
