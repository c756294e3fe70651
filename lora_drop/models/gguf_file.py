"""Any GGUF file of a supported architecture: its weights as numbers, and as blocks where the C steps read those.

The C steps know Q4_1 and Q8_0. Q4_0 is the same as Q4_1 with the minimum -8 d, to the bit. Q4_K and Q6_K scale 32 or
16 weights by the product of two numbers, which no float16 holds exactly: such matrices are kept as the numbers that
they stand for.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from lora_drop.errors import LoraDropError
from lora_drop.models.gguf import as_numbers, half_split
from lora_drop.models.hub import SUPPORTED
from lora_drop.models.place import Place, fitting, short_name
from lora_drop.models.progress import say

ROWS = 16  # of a panel: the C steps read whole ones
PARTS = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "out": ("attn_output",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}


def load_gguf(path: Path, candidates: list[Place]) -> tuple[PreTrainedModel, Any, torch.device]:
    """The model of a GGUF file with its weights as numbers, its tokenizer, and where it is.

    Raises:
        LoraDropError: the file cannot be read, or holds another architecture.
    """
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars of transformers, which has no switch for all of them
            config = AutoConfig.from_pretrained(**where)
            if config.model_type not in SUPPORTED:
                raise LoraDropError(
                    f"{path.name} is a {config.model_type!r} model; supported architectures are "
                    f"{', '.join(SUPPORTED)}."
                )
            device, dtype = fitting(config, path.name, candidates)
            tokenizer = AutoTokenizer.from_pretrained(**where)
            model: Any = AutoModelForCausalLM.from_pretrained(
                **where, **as_numbers(), dtype=dtype, attn_implementation="sdpa"
            )
    except LoraDropError:
        raise
    except Exception as error:  # it reads the file with several libraries, each of which has its own for a bad one
        raise LoraDropError(f"{path.name} cannot be read as a GGUF of a language model ({error}).") from error
    finally:
        logging.set_verbosity(verbosity)
    tokenizer.model_max_length = 10**9  # else a warning for a long text, beside our one line
    return model.to(device), tokenizer, device


def exact_blocks(path: Path, model: PreTrainedModel) -> Callable[[str], np.ndarray | None]:
    """A function from the name of a matrix (see `gguf.gguf_rows`) to its rows of Q4_1 or Q8_0 blocks.

    It gives None for one that has no such blocks, and says in a line which kinds are kept as numbers.
    """
    from gguf import GGMLQuantizationType as Kind
    from gguf import GGUFReader

    reader = GGUFReader(str(path))
    tensors = {tensor.name.removesuffix(".weight"): tensor for tensor in reader.tensors}
    field = reader.get_field("general.architecture")
    turned = field is not None and field.contents() == "llama"  # only there llama.cpp reorders queries and keys
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}

    def blocks(name: str, part: str) -> np.ndarray | None:
        tensor = tensors[name]
        rows = np.asarray(tensor.data)
        if tensor.tensor_type == Kind.Q4_0:
            rows = with_minimum(rows)
        elif tensor.tensor_type not in (Kind.Q4_1, Kind.Q8_0):
            return None
        return half_split(rows, heads[part]) if turned and part in heads else rows

    def matrix(name: str) -> np.ndarray | None:
        layer, _, which = name.partition(".")
        names = ["output" if "output" in tensors else "token_embd"]
        if which:
            names = [f"blk.{layer}.{part}" for part in PARTS[which]]
        found = [blocks(one, one.rpartition(".")[2]) for one in names]
        same = {None if rows is None else rows.shape[1] for rows in found}
        if None in same or len(same) > 1 or sum(map(len, found)) % ROWS:  # type: ignore[arg-type]
            return None
        return np.concatenate(found)  # type: ignore[arg-type]

    kept = {t.tensor_type.name for t in tensors.values() if len(t.shape) == 2} - {"Q4_0", "Q4_1", "Q8_0"}
    if kept:
        kinds, numbers = " and ".join(sorted(kept)), short_name(model.dtype)
        say(f"{path.name}: its {kinds} matrices are decoded as the numbers that they stand for, in {numbers}.")
    return matrix


def with_minimum(rows: np.ndarray) -> np.ndarray:
    """Rows of Q4_0 blocks, d (q - 8), as Q4_1, d q + m with m = -8 d, which a float16 holds exactly."""
    old = rows.reshape(len(rows), -1, 18)
    scale = np.ascontiguousarray(old[..., :2]).view(np.float16)
    minimum = (scale * np.float16(-8)).view(np.uint8)
    return np.concatenate((old[..., :2], minimum, old[..., 2:]), -1).reshape(len(rows), -1)
