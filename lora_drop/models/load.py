"""Load a model: the bundled one, a Hub id, a local folder, a GGUF file, or random weights of a real shape.

load_model()                        the bundled SmolLM2-135M-Instruct
load_model("Qwen/Qwen2.5-0.5B")     the Hub (safetensors only; code from the repository is never run)
load_model("qwen2.5-coder-1.5b")    a larger one by name, see `named.NAMED`
load_model("./my-model")            a folder that `save_pretrained` wrote
load_model("./model.gguf")          a GGUF file of llama.cpp; of the Hub: "OWNER/NAME/FILE.gguf"
load_model("random:tiny-llama")     tiny random weights with a byte tokenizer, for tests
load_model("random:llama3-8b")      the real shape with random weights, for measuring speed and memory
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from lora_drop.decode.head import CODE_BYTES
from lora_drop.decode.layer import is_supported
from lora_drop.decode.native.decoder import NativeDecoder
from lora_drop.decode.native.loader import library
from lora_drop.decode.native.weights import Blocks, NativeWeights, Packed, lay_out
from lora_drop.decode.reference import Decoder, ReferenceDecoder
from lora_drop.decode.static.decoder import StaticDecoder, StaticWeights
from lora_drop.errors import LoraDropError
from lora_drop.method.cost import ModelShape
from lora_drop.models import bundled
from lora_drop.models.download import GGUF
from lora_drop.models.gguf import GgufFile, gguf_rows, load_gguf, own_blocks, to_numbers
from lora_drop.models.hub import (
    HUB_GGUF,
    REPAIR,
    check_config,
    download,
    from_pretrained_files,
    hub_files,
    hub_gguf,
    locate,
)
from lora_drop.models.named import NAMED, fetch_named, fetch_shown
from lora_drop.models.place import on_zero_gpu, places, short_name
from lora_drop.models.random_weights import random_model
from lora_drop.paths import cache_dir

# Where a repository has only pickled weights, transformers would ask a service to convert them and then load the
# result from an unreviewed pull request. Here that is an error.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
BUNDLED_ID = f"bundled:{bundled.NAME}"
BUNDLED_REVISION = "137132c2ffa119db"  # its weights' fingerprint
SAMPLES = 1024  # elements of a tensor that go into the fingerprint
SKETCHED = 128  # elements of each of the four matrices of a sketch


@dataclass(frozen=True)
class ModelInfo:
    """A model without its weights: enough to plan a run and to draw the page."""

    tokenizer: Any  # as in LoadedModel, and so are the others
    id: str
    revision: str
    context: int
    device: torch.device
    dtype: torch.dtype
    shape: ModelShape
    num_layers: int
    decoder_name: str
    sketch: str


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A model that is ready to decode: eval mode, no gradients, on its device. It holds nothing of a request."""

    model: PreTrainedModel
    tokenizer: Any  # a transformers tokenizer, or a ByteTokenizer
    id: str  # "bundled:SmolLM2-135M-Instruct", a Hub id, a folder's name (never its path), or "random:..."
    revision: str  # fingerprint of the weights, 16 hex digits; the same in float32 and bfloat16
    context: int  # the most tokens, prompt and answer together
    device: torch.device
    dtype: torch.dtype  # of activations and K/V
    weights: StaticWeights | NativeWeights | None = None  # laid out for decode steps; None for the reference decoder
    sketch: str = ""  # of the weights, see `sketch`

    def __repr__(self) -> str:
        place = f"{str(self.dtype).removeprefix('torch.')} on {self.device}, {self.decoder_name} decoder"
        return f"LoadedModel({self.id}: {self.num_layers} layers, {self.shape.params / 1e6:,.0f}M parameters, {place})"

    @property
    def shape(self) -> ModelShape:
        """The sizes of the model, and of its weights in its decoder's layout, for the bound and memory formulas."""
        weights, itemsize = self.weights, self.model.dtype.itemsize
        shape = dataclasses.replace(ModelShape.from_config(self.model.config), code_size=CODE_BYTES / itemsize)
        if not isinstance(weights, NativeWeights):
            return shape
        layers = tuple(tuple(size / itemsize for size in sizes) for sizes in weights.layer_bytes)
        is_even = len({size for sizes in layers for size in sizes}) == 1
        return dataclasses.replace(
            shape,
            **({"matrix_size": layers[0][0]} if is_even else {"layer_sizes": layers}),
            head_size=weights.head_bytes / itemsize,
            part_size=weights.part_bytes / itemsize,
            code_size=weights.code_bytes / itemsize,
        )

    @property
    def num_layers(self) -> int:
        """Decoder layers, L."""
        return int(self.model.config.num_hidden_layers)

    @property
    def decoder_name(self) -> str:
        """The name of the decoder that `new_decoder` returns."""
        return ReferenceDecoder.name if self.weights is None else self.weights.decoder_name

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a text: those of the generation config, and the tokenizer's end token."""
        named = self.model.generation_config.eos_token_id
        ids = {named} if isinstance(named, int) else set(named or ())
        return frozenset(ids | {self.tokenizer.eos_token_id} - {None})

    def head_rows(self, count: int) -> Iterator[Tensor]:
        """The head's rows as numbers, `count` at a time, (count, D)."""
        head = self.model.get_output_embeddings().weight
        if not head.is_meta:
            yield from head.split(count)
            return
        assert isinstance(self.weights, NativeWeights) and self.weights.head_blocks is not None
        kind, rows = self.weights.head_blocks
        for at in range(0, len(rows), count):
            yield to_numbers(Packed(kind, rows[at : at + count]))

    def new_decoder(self) -> Decoder:
        """The fastest decoder for the model; it holds nothing of a request."""
        if isinstance(self.weights, NativeWeights):
            return NativeDecoder(self.model, self.weights)
        if isinstance(self.weights, StaticWeights):
            return StaticDecoder(self.model, self.weights)
        return ReferenceDecoder(self.model)

    def info(self) -> ModelInfo:
        """The facts that stay when the weights are freed."""
        return ModelInfo(**{field.name: getattr(self, field.name) for field in dataclasses.fields(ModelInfo)})


def fetch(
    name: str,
    should_stop: Callable[[], bool] = lambda: False,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> Iterator[str]:
    """Download and check a model's files before any weights are read; yields the progress in words.

    Raises:
        LoraDropError: the model cannot be downloaded, does not fit, or `should_stop` returned true.
    """
    if name.startswith("random:") or is_gguf(name):
        return
    if name in ("bundled", BUNDLED_ID):
        bundled.ensure()
        return
    if name in NAMED:
        yield from fetch_named(NAMED[name], should_stop)
        return
    local = False
    if not HUB_GGUF.fullmatch(name):
        source, name, local = locate(name)
        check_config(source, name, places(device, dtype), local)
    # Where the Hub cannot be reached there are no files: earlier downloads have to do.
    if not local and (files := hub_files(name)):
        yield from download(name, files, should_stop)


def load_model(
    model: str = "bundled",
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    with_numbers: bool = False,
) -> LoadedModel:
    """Load a model by name.

    Args:
        model: `bundled`, a name of `NAMED`, `random:SHAPE`, a local folder or GGUF file, a Hub id, or a GGUF file of
            the Hub as OWNER/NAME/FILE.gguf (a folder or file of that name comes first).
        device: `auto` (see `places`), `cpu`, `cuda` or `cuda:N`.
        dtype: `auto` (bfloat16 on CUDA and on processors that compute it in hardware), `float32` or `bfloat16`.
        with_numbers: give each matrix its numbers, for training and for transformers' own `generate`. The matrices of
            a GGUF file have none by default where they are decoded from its blocks; any other model has all.

    Raises:
        LoraDropError: the name, the files, the network, the device or the memory is at fault.
    """
    name = str(model).strip()
    candidates = places(device, dtype)
    blocks: Callable[[PreTrainedModel], Blocks] | None = None
    gguf, is_auto = None, str(dtype).lower() == "auto"
    try:
        if name.startswith("random:"):
            network, tokenizer, target = random_model(name.removeprefix("random:"), candidates)
        elif name in ("bundled", BUNDLED_ID):
            name, blocks = BUNDLED_ID, bundled_blocks
            folder = str(bundled.ensure(verify=True))  # a wrong byte would silently be a wrong number
            network, tokenizer, target = from_pretrained_files(folder, name, candidates, local=True)
        elif name in NAMED or is_gguf(name) or HUB_GGUF.fullmatch(name):
            if name in NAMED:
                file = fetch_shown(NAMED[name])
            else:
                file = Path(name).expanduser() if is_gguf(name) else hub_gguf(name)
            network, tokenizer, target, gguf = load_gguf(file, candidates, with_numbers or not is_auto)
            name = file.name if is_gguf(name) else name
        else:
            source, name, local = locate(name)
            network, tokenizer, target = from_pretrained_files(source, name, candidates, local)
    except torch.OutOfMemoryError as error:
        where = " or ".join(dict.fromkeys(f"{place} in {short_name(kind)}" for place, kind in candidates))
        raise LoraDropError(f"{name} does not fit into the memory of {where}.") from error
    network.eval().requires_grad_(False)
    revision, samples = fingerprint(network, gguf), sketch(network, gguf)
    if gguf is not None:
        blocks = partial(own_blocks, gguf)
    blocks = blocks or blocks_of(revision)
    weights = step_weights(network, target, blocks if is_auto else None)
    if gguf is not None:
        gguf.release()
    return LoadedModel(
        model=network,
        tokenizer=tokenizer,
        id=name,
        revision=revision,
        context=usable_context(network.config),
        device=target,
        dtype=network.dtype,
        weights=weights,
        sketch=samples,
    )


def step_weights(
    model: PreTrainedModel, device: torch.device, blocks: Callable[[PreTrainedModel], Blocks] | None = None
) -> StaticWeights | NativeWeights | None:
    """The weights in the layout of the fastest decoder here; None where that is the reference.

    Args:
        blocks: returns the packed blocks that the model's numbers come from, to be read in place of the numbers.
    """
    if not is_supported(model):
        return None
    if device.type == "cuda":
        return None if on_zero_gpu() else StaticWeights.of(model)  # there see `with_eager_steps`
    if library() is None:
        return StaticWeights.of(model)
    return lay_out(model, blocks and blocks(model))


def with_eager_steps(loaded: LoadedModel) -> LoadedModel:
    """The model with its weights laid out for passes that are neither captured nor compiled.

    For ZeroGPU, in the process that has the card: graphs would not live long enough to pay, but fused projections and
    repairs in one pass do. Not before: `spaces` moves each tensor by itself, a fused one and its views twice.
    """
    weights = StaticWeights.of(loaded.model, is_eager=True) if is_supported(loaded.model) else None
    return dataclasses.replace(loaded, weights=weights)


def bundled_blocks(model: PreTrainedModel) -> Blocks:
    """The bundled model's own blocks. Raises LoraDropError where its files are damaged."""
    config, gguf = model.config, bundled.ensure() / GGUF.name
    try:
        return gguf_rows(gguf, config.num_attention_heads, config.num_key_value_heads)
    except ValueError as error:
        raise LoraDropError(f"the files of {BUNDLED_ID} are damaged ({error}): {REPAIR}.") from error


def blocks_of(revision: str) -> Callable[[PreTrainedModel], Blocks] | None:
    """`bundled_blocks` for the bundled model's weights, whatever they were loaded from, if its files are here."""
    is_here = revision == BUNDLED_REVISION and bundled.is_ready(cache_dir() / bundled.NAME)
    return bundled_blocks if is_here else None


def is_gguf(name: str) -> bool:
    """Whether a model's name is the path of an existing GGUF file."""
    try:
        return name.lower().endswith(".gguf") and Path(name).expanduser().is_file()
    except (OSError, RuntimeError):  # a name too long for a file, an unknown user
        return False


def usable_context(config: PreTrainedConfig) -> int:
    """The most tokens of a run: the model's positions, within the sliding window if any layer has one.

    Beyond the window those layers would forget tokens, which the caches and memory formulas here do not model.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        return int(config.max_position_embeddings)
    return int(min(config.max_position_embeddings, window))


@torch.no_grad()
def fingerprint(model: PreTrainedModel, gguf: GgufFile | None = None) -> str:
    """16 hex digits that identify the weights; equal for float32 and bfloat16 runs of the same weights.

    sha256 over name, shape and up to 1024 evenly spaced elements, as bfloat16, of each parameter in order of its name.
    `named_parameters` has a tied head once, as the embedding.

    Args:
        gguf: the file that parameters without numbers are read from.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        every = -(-weight.numel() // SAMPLES)  # rounded up, so that the end is sampled too
        digest.update(_sample(name, weight, every, gguf))
    return digest.hexdigest()[:16]


@torch.no_grad()
def sketch(model: PreTrainedModel, gguf: GgufFile | None = None) -> str:
    """The model's type, its number of parameters, and some elements of four matrices as bfloat16: for `distance`."""
    weights = sorted(model.named_parameters())
    matrices = [(name, weight) for name, weight in weights if weight.dim() == 2]
    samples = [
        _sample(name, weight, max(1, weight.numel() // SKETCHED), gguf)[: 2 * SKETCHED]
        for name, weight in (matrices[len(matrices) * quarter // 4] for quarter in range(4))
    ]
    values = base64.b64encode(b"".join(samples)).decode()
    return f"{model.config.model_type} {sum(weight.numel() for _, weight in weights)} {values}"


def _sample(name: str, weight: Tensor, every: int, gguf: GgufFile | None) -> bytes:
    """Each `every`-th element of a parameter as bfloat16."""
    if gguf is not None and weight.is_meta:
        elements = gguf.elements(gguf.named(name), every)
    else:
        elements = weight.reshape(-1)[::every]
    return elements.to(torch.bfloat16).view(torch.int16).cpu().numpy().astype("<i2").tobytes()


def distance(first: str, second: str) -> float:
    """The mean relative distance of the matrices of two sketches; infinity for models of another type or size."""
    (kind, values), (other_kind, other_values) = (text.rpartition(" ")[::2] for text in (first, second))
    if kind != other_kind:
        return math.inf
    try:
        ours, theirs = (
            torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.bfloat16).float().view(4, -1)
            for text in (values, other_values)
        )
        apart = float(((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).mean())
    except (ValueError, RuntimeError):  # no sketch, or a broken one
        return math.inf
    return apart if math.isfinite(apart) else math.inf
