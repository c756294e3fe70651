"""The bundled model's GGUF: its tensors' offsets, its packed blocks for the decoders, its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from lora_drop.decode.native.weights import Packed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BLOCKS = "blocks.json"  # the index that `find_tensors` returns, kept beside the GGUF
PARTS = {  # of each matrix of a layer
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "out": ("attn_output",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}
_INDEX = TypeAdapter(dict[str, tuple[int, int, int]])  # of BLOCKS


def find_tensors(gguf: Path) -> dict[str, list[int]]:
    """Index of the tensors, `{name: [offset, rows, bytes a row]}`.

    It is kept beside the GGUF (`BLOCKS`): reading the header at each start would take seconds for the vocabulary.
    """
    from gguf import GGUFReader

    tensors = GGUFReader(str(gguf)).tensors
    return {t.name: [int(t.data_offset), len(t.data), t.data.nbytes // len(t.data)] for t in tensors}


def as_numbers() -> dict[str, Any]:
    """Arguments that make transformers dequantise a GGUF: newer versions may keep its blocks otherwise."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def read_tokenizer(gguf: Path, context: int) -> PreTrainedTokenizerFast:
    """The tokenizer of the GGUF, with the pre-tokenizer that the conversion loses.

    A GGUF only names its pre-tokenizer ("smollm"), and transformers does not know that name. Digits would stick to the
    space before them, and `"a  12"` would become other tokens than the model was trained on: SmolLM2 splits off each
    digit.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

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
        heads, kv_heads: nh and nkv, for the order of query and key rows.

    Raises:
        ValueError: the GGUF or `BLOCKS` is damaged.
    """
    content = np.memmap(gguf, dtype=np.uint8, mode="r")
    index = _INDEX.validate_json(gguf.with_name(BLOCKS).read_bytes())
    blocks = {name: content[at : at + n * size].reshape(n, size) for name, (at, n, size) in index.items()}
    interleaved = {"attn_q": heads, "attn_k": kv_heads}

    def parts(name: str) -> list[Packed]:
        if name == "head":
            return [Packed("Q8_0", blocks["token_embd.weight"])]  # tied
        layer, _, matrix = name.partition(".")
        packed = []
        for part in PARTS[matrix]:
            rows = blocks[f"blk.{layer}.{part}.weight"]
            packed.append(Packed("Q4_1", half_split(rows, interleaved[part]) if part in interleaved else rows))
        return packed

    return parts


def half_split(rows: np.ndarray, heads: int) -> np.ndarray:
    """Query and key rows in llama.cpp's interleaved rotary order, put into transformers' half-split order."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
