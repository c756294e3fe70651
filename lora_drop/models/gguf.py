"""GGUF files: weights as numbers, packed blocks for the decoders, and the tokenizer of the bundled model's file.

On a CPU with kernels a file is decoded from its blocks alone: the model that `load_gguf` returns then has its large
matrices on torch's device `meta`, without numbers. Training and transformers' own `generate` ask for the numbers.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import mmap
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from pydantic import TypeAdapter
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from lora_drop.decode.layer import is_supported
from lora_drop.decode.native.loader import library
from lora_drop.decode.native.weights import BLOCK_KINDS, Blocks, Packed
from lora_drop.errors import LoraDropError
from lora_drop.models.hub import check_architecture, unsupported
from lora_drop.models.place import Place, fitting, short_name
from lora_drop.paths import cache_dir, new_folder, temporary_folder

BLOCKS = "blocks.json"  # the index that `find_tensors` returns, stored beside the bundled model's GGUF
INDEX = "tensors.json"  # the index of any other file
EMBEDDING = "token_embd.weight"
HOUR = 3600  # seconds; an older temporary folder is a killed program's
# Bytes at a file's start that, with its size, tell it from others: settings, vocabulary, some weights.
HEADER = 1 << 24
PARTS = {  # of each matrix of a layer
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "out": ("attn_output",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}
ROWS = 16  # of a panel; the C steps read whole panels
_BLOCKS = TypeAdapter(dict[str, tuple[int, int, int]])
_INDEX = TypeAdapter(dict[str, tuple[str, int, int, int]])  # a tensor's kind, offset, rows and bytes a row


@contextlib.contextmanager
def silent_transformers() -> Iterator[None]:
    """Keep transformers' warnings and bars off stderr; it has no switch for all of them."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def numbers_of(path: Path, dtype: torch.dtype, **options: Any) -> Any:
    """The model of a GGUF file, its blocks dequantised: newer versions of transformers may keep them otherwise."""
    if kind := getattr(transformers, "GgufConfig", None):
        options["quantization_config"] = kind(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=dtype, **options)


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, mapped.

    Args:
        name: the file's.
        content: its bytes.
        architecture: as the file names it.
        layers: L.
        tensors: by name; `kind` is any that the package `gguf` knows.
        interleaved: heads of the query and of the key rows where llama.cpp has reordered them.
    """

    name: str
    content: Any  # `np.memmap`, whose type lacks `_mmap`
    architecture: str
    layers: int
    tensors: dict[str, Packed]
    interleaved: dict[str, int]

    @classmethod
    def open(cls, path: Path, folder: Path, config: Any) -> GgufFile:
        """Map a file, by what `_prepared` has written to a folder."""
        content = np.memmap(path, dtype=np.uint8, mode="r")
        tensors = {
            name: Packed(kind, content[at : at + n * size].reshape(n, size))
            for name, (kind, at, n, size) in _INDEX.validate_json((folder / INDEX).read_bytes()).items()
        }
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        architecture = "llama" if config.model_type == "mistral" else config.model_type
        # Only files of Llama's architecture have the order of llama.cpp.
        interleaved = heads if architecture == "llama" else {}
        return cls(path.name, content, architecture, config.num_hidden_layers, tensors, interleaved)

    @property
    def head(self) -> str:
        """The tensor of the head, which may be the embedding."""
        return "output.weight" if "output.weight" in self.tensors else EMBEDDING

    def named(self, parameter: str) -> str:
        """The tensor of one of transformers' parameters."""
        stem, _, end = parameter.rpartition(".")
        return f"{_tensor_names(self.architecture, self.layers).get_name(stem)}.{end}"

    def heads_of(self, name: str) -> int | None:
        """Heads of a tensor whose rows have to be put into transformers' order."""
        return self.interleaved.get(name.split(".")[-2])

    def rows(self, name: str) -> Packed:
        """A tensor with its rows in transformers' order."""
        kind, rows = self.tensors[name]
        return Packed(kind, half_split(rows, self.heads_of(name)))

    def elements(self, name: str, every: int) -> Tensor:
        """Each `every`-th number of a tensor, in transformers' order, float32."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        kind, rows = self.tensors[name]
        weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]  # of a block
        blocks = rows.reshape(len(rows), -1, size)
        k = blocks.shape[1] * weights
        row, column = np.divmod(np.arange(0, len(rows) * k, every), k)
        row = half_split(np.arange(len(rows))[:, None], self.heads_of(name))[row, 0]
        numbers = to_numbers(Packed(kind, blocks[row, column // weights].reshape(1, -1))).view(-1, weights)
        return numbers[torch.arange(len(row)), torch.from_numpy(column % weights)]

    @functools.cached_property
    def in_blocks(self) -> dict[str, bool]:
        """Whether the C steps read a tensor's blocks, for each part of each matrix."""
        layers = [_tensors_of(f"{i}.{matrix}", self.head) for i in range(self.layers) for matrix in PARTS]
        return {
            name: self.tensors[name].kind in BLOCK_KINDS and not any(len(self.tensors[n].rows) % ROWS for n in parts)
            for parts in ([self.head], *layers)
            for name in parts
        }

    def blocks(self, matrix: str) -> list[Packed | None]:
        """The parts of a matrix (see `gguf_rows`), each in the file's blocks; None for those that C cannot read.

        The pages of earlier matrices are released: without that, file and panels would be in memory at once.
        """
        self.release()
        return [self.rows(name) if self.in_blocks[name] else None for name in _tensors_of(matrix, self.head)]

    def release(self) -> None:
        """Let the system take back the pages that were read; they are mapped again where needed."""
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self.content._mmap.madvise(mmap.MADV_DONTNEED)


@functools.cache
def _tensor_names(architecture: str, layers: int) -> Any:
    """The package's map from transformers' names."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    return get_tensor_name_map(next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture), layers)


def to_numbers(packed: Packed) -> Tensor:
    """Dequantise rows of blocks, (N, bytes) to (N, K) float32."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    numbers = dequantize(packed.rows, GGMLQuantizationType[packed.kind])
    return torch.from_numpy(np.array(numbers, np.float32))  # a copy: float32 would stay in the mapped file


@contextlib.contextmanager
def _prepared(path: Path) -> Iterator[Path]:
    """A folder with config, tokenizer and index of a file, made once: a large vocabulary takes half a minute.

    Raises whatever transformers and the package `gguf` raise for a file that they cannot read.
    """
    with path.open("rb") as file:
        name = hashlib.sha256(file.read(HEADER) + str(path.stat().st_size).encode()).hexdigest()[:16]
    folder = cache_dir() / "gguf" / name
    if not (folder / INDEX).is_file():
        with contextlib.suppress(LoraDropError), new_folder(folder) as draft:
            _prepare(path, draft)
    if (folder / INDEX).is_file():  # made here, or by another process meanwhile
        yield folder
        return
    with temporary_folder("lora-drop-gguf-", HOUR) as folder:  # the cache cannot be written
        _prepare(path, folder)
        yield folder


def _prepare(path: Path, folder: Path) -> None:
    import gguf

    with mock.patch.object(gguf, "GGUFReader", functools.cache(gguf.GGUFReader)):  # transformers parses at each call
        AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(folder)
        AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(folder)
        reader = gguf.GGUFReader(os.path.join(path.parent, path.name))
    tensors = {
        t.name: (t.tensor_type.name, int(t.data_offset), len(t.data), t.data.nbytes // len(t.data))
        for t in reader.tensors
    }
    (folder / INDEX).write_bytes(_INDEX.dump_json(tensors))


def load_gguf(
    path: Path, candidates: list[Place], with_numbers: bool
) -> tuple[PreTrainedModel, Any, torch.device, GgufFile]:
    """The model of a GGUF file, its tokenizer, its device, and the file.

    Args:
        with_numbers: give every matrix its numbers. Else, on a CPU with kernels, those that these read in blocks have
            none.

    Raises:
        LoraDropError: the file cannot be read, holds another architecture, or does not fit.
    """
    try:
        with silent_transformers(), _prepared(path) as folder:
            config = AutoConfig.from_pretrained(folder)
            check_architecture(config, path.name)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
            file = GgufFile.open(path, folder, config)
            (device, dtype), model = candidates[0], None
            if not with_numbers and device.type == "cpu" and library() is not None:
                fitting(config, path.name, candidates[:1], path.stat().st_size)
                model = without_numbers(file, config, dtype)
            if model is None:
                device, dtype = fitting(config, path.name, candidates)
                model = numbers_of(path, dtype, attn_implementation="sdpa").to(device)
    except LoraDropError:
        raise
    except Exception as error:  # transformers calls several libraries here, and each raises other exceptions
        if kind := re.search(r"architecture (\S+) (?:is )?not supported", str(error)):
            raise unsupported(path.name, kind[1]) from error
        raise LoraDropError(f"{path.name} cannot be read as a GGUF of a language model ({error}).") from error
    tokenizer.model_max_length = 10**9  # otherwise a long text is a warning, beside our one line
    return model, tokenizer, device, file


class BlockEmbedding(nn.Module):
    """The embedding of a model without numbers: the rows asked for are dequantised.

    Args:
        packed: (V, bytes).
        weight: the parameter in its place, (V, D) without numbers.
    """

    def __init__(self, packed: Packed, weight: nn.Parameter):
        super().__init__()
        self._packed, self.weight, self.embedding_dim = packed, weight, weight.shape[1]

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings (B, T, D) of tokens (B, T) in float32, rounded to the weight's number type."""
        kind, rows = self._packed
        numbers = to_numbers(Packed(kind, rows[tokens.flatten().numpy()]))
        return numbers.to(self.weight.dtype).float().view(*tokens.shape, -1)


def without_numbers(file: GgufFile, config: Any, dtype: torch.dtype) -> Any:
    """The model with norms, biases, and those matrices as numbers whose blocks the C steps cannot read.

    Returns:
        None if its architecture or its head has to be computed from numbers.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers are computed
    model.tie_weights()
    if not is_supported(model) or not file.in_blocks[file.head]:
        return None
    embedding = model.get_input_embeddings()
    for name, weight in list(model.named_parameters()):
        tensor = file.named(name)
        if weight is embedding.weight or file.in_blocks.get(tensor):
            continue
        numbers = to_numbers(file.rows(tensor)).to(dtype).view(weight.shape)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(numbers, requires_grad=False))
    model.set_input_embeddings(BlockEmbedding(file.tensors[EMBEDDING], embedding.weight))
    model.register_forward_pre_hook(refuse)
    return model


def refuse(*_: Any) -> None:
    """Stands in front of the modules of a model without numbers."""
    raise LoraDropError(
        "this model decodes from its file's blocks and has no numbers: load_model(..., with_numbers=True)."
    )


def own_blocks(file: GgufFile, model: PreTrainedModel) -> Blocks:
    """`file.blocks`; a line on stderr names the kinds that are decoded as the model's numbers."""
    if wrong := {file.tensors[name].kind for name, is_packed in file.in_blocks.items() if not is_packed}:
        kinds = " and ".join(sorted(wrong))
        line = f"{file.name}: its {kinds} matrices are decoded as the numbers that they stand for, in "
        print(line + f"{short_name(model.dtype)}.", file=sys.stderr, flush=True)
    return file.blocks


def find_tensors(gguf: Path) -> dict[str, list[int]]:
    """Index of the tensors, `{name: [offset, rows, bytes a row]}`.

    It is stored beside the GGUF (`BLOCKS`): reading the header at each start would take seconds for the vocabulary.
    """
    from gguf import GGUFReader

    tensors = GGUFReader(str(gguf)).tensors
    return {t.name: [int(t.data_offset), len(t.data), t.data.nbytes // len(t.data)] for t in tensors}


def read_tokenizer(gguf: Path, context: int) -> PreTrainedTokenizerFast:
    """The tokenizer of the GGUF, with the pre-tokenizer that the conversion loses.

    A GGUF only names its pre-tokenizer ("smollm"), and transformers does not know that name. Digits would stick to the
    space before them, and `"a  12"` would become other tokens than the model was trained on: SmolLM2 splits off each
    digit.
    """
    from tokenizers import pre_tokenizers

    read = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    backend = read.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=read.bos_token,
        eos_token=read.eos_token,
        unk_token=read.unk_token,
        pad_token=read.pad_token,
        chat_template=read.chat_template,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def gguf_rows(gguf: Path, heads: int, kv_heads: int) -> Callable[[str], list[Packed]]:
    """A function that returns the parts of a matrix by name: `0.qkv`, `0.out`, `0.gate_up`, `0.down`, ..., `head`.

    Args:
        gguf: the bundled model's file, with `BLOCKS` beside it.
        heads: nh, for the order of query rows.
        kv_heads: nkv, for that of key rows.

    Raises:
        ValueError: the GGUF or `BLOCKS` is damaged.
    """
    content = np.memmap(gguf, dtype=np.uint8, mode="r")
    index = _BLOCKS.validate_json(gguf.with_name(BLOCKS).read_bytes())
    blocks = {name: content[at : at + n * size].reshape(n, size) for name, (at, n, size) in index.items()}
    interleaved = {"attn_q": heads, "attn_k": kv_heads}

    def parts(matrix: str) -> list[Packed]:
        kind = "Q8_0" if matrix == "head" else "Q4_1"
        names = _tensors_of(matrix, EMBEDDING)  # the head is tied
        return [Packed(kind, half_split(blocks[name], interleaved.get(name.split(".")[-2]))) for name in names]

    return parts


def _tensors_of(matrix: str, head: str) -> list[str]:
    """Names of a matrix's tensors in the file."""
    layer, _, kind = matrix.partition(".")
    return [f"blk.{layer}.{part}.weight" for part in PARTS[kind]] if kind else [head]


def half_split(rows: np.ndarray, heads: int | None) -> np.ndarray:
    """Query and key rows in llama.cpp's interleaved rotary order, put into transformers' half-split order.

    Args:
        heads: None for rows in another order.
    """
    return rows if heads is None else rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
