"""GGUF files: weights as numbers, packed blocks for the decoders, and the tokenizer of the bundled model's file."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from pydantic import TypeAdapter
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from lora_drop.decode.native.weights import BLOCK_KINDS, Packed
from lora_drop.errors import LoraDropError
from lora_drop.models.hub import check_architecture, unsupported
from lora_drop.models.place import Place, fitting, short_name

BLOCKS = "blocks.json"  # the index that `find_tensors` returns, stored beside the bundled model's GGUF
PARTS = {  # of each matrix of a layer
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "out": ("attn_output",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}
ROWS = 16  # of a panel; the C steps read whole panels
_INDEX = TypeAdapter(dict[str, tuple[int, int, int]])  # of BLOCKS


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


def load_gguf(path: Path, candidates: list[Place]) -> tuple[PreTrainedModel, Any, torch.device]:
    """The model of a GGUF file with its weights as numbers, its tokenizer, and its device.

    Raises:
        LoraDropError: the file cannot be read, or holds another architecture.
    """
    try:
        with silent_transformers():
            config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
            check_architecture(config, path.name)
            device, dtype = fitting(config, path.name, candidates)
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
            model = numbers_of(path, dtype, attn_implementation="sdpa")
    except LoraDropError:
        raise
    except Exception as error:  # transformers calls several libraries here, and each raises other exceptions
        if kind := re.search(r"architecture (\S+) (?:is )?not supported", str(error)):
            raise unsupported(path.name, kind[1]) from error
        raise LoraDropError(f"{path.name} cannot be read as a GGUF of a language model ({error}).") from error
    tokenizer.model_max_length = 10**9  # otherwise a long text is a warning, beside our one line
    return model.to(device), tokenizer, device


def own_blocks(path: Path, model: PreTrainedModel) -> Callable[[str], list[Packed | None]]:
    """A function that returns the parts of a matrix (see `gguf_rows`), each in the file's own blocks.

    It returns None for a part whose blocks the C steps cannot read; a line on stderr names those kinds.
    """
    from gguf import GGUFReader

    reader = GGUFReader(str(path))
    tensors = {tensor.name.removesuffix(".weight"): tensor for tensor in reader.tensors}
    field = reader.get_field("general.architecture")
    is_llama = field is not None and field.contents() == "llama"  # only there llama.cpp reorders queries and keys
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads} if is_llama else {}
    head = "output" if "output" in tensors else "token_embd"

    def kind(name: str) -> str:
        return tensors[name].tensor_type.name

    def has_panels(name: str) -> bool:
        return bool(tensors[name].shape[1] % ROWS == 0)  # (K, N)

    def parts(matrix: str) -> list[Packed | None]:
        names = _tensors_of(matrix, head)
        readable = all(map(has_panels, names))
        return [
            Packed(kind(name), half_split(np.asarray(tensors[name].data), heads.get(name.rpartition(".")[2])))
            if readable and kind(name) in BLOCK_KINDS
            else None
            for name in names
        ]

    matrices = [name for name, tensor in tensors.items() if name.startswith("blk.") and len(tensor.shape) == 2]
    wrong = {kind(name) for name in (head, *matrices) if kind(name) not in BLOCK_KINDS or not has_panels(name)}
    if wrong:
        kinds, numbers = " and ".join(sorted(wrong)), short_name(model.dtype)
        line = f"{path.name}: its {kinds} matrices are decoded as the numbers that they stand for, in {numbers}."
        print(line, file=sys.stderr, flush=True)
    return parts


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
    index = _INDEX.validate_json(gguf.with_name(BLOCKS).read_bytes())
    blocks = {name: content[at : at + n * size].reshape(n, size) for name, (at, n, size) in index.items()}
    interleaved = {"attn_q": heads, "attn_k": kv_heads}

    def parts(matrix: str) -> list[Packed]:
        kind = "Q8_0" if matrix == "head" else "Q4_1"
        names = _tensors_of(matrix, "token_embd")  # the head is tied
        return [
            Packed(kind, half_split(blocks[f"{name}.weight"], interleaved.get(name.rpartition(".")[2])))
            for name in names
        ]

    return parts


def _tensors_of(matrix: str, head: str) -> list[str]:
    """Names of a matrix's tensors in the file, without `.weight`."""
    layer, _, kind = matrix.partition(".")
    return [f"blk.{layer}.{part}" for part in PARTS[kind]] if kind else [head]


def half_split(rows: np.ndarray, heads: int | None) -> np.ndarray:
    """Query and key rows in llama.cpp's interleaved rotary order, put into transformers' half-split order.

    Args:
        heads: None for rows in another order.
    """
    return rows if heads is None else rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
