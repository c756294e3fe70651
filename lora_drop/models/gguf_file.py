"""Any GGUF file of a supported architecture: its weights as numbers, and as blocks where the C steps read those."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from lora_drop.decode.native.weights import BLOCK_KINDS, Packed
from lora_drop.errors import LoraDropError
from lora_drop.models.gguf import PARTS, as_numbers, half_split
from lora_drop.models.hub import check_architecture
from lora_drop.models.place import Place, fitting, short_name

ROWS = 16  # of a panel: the C steps read whole ones


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
            check_architecture(config, path.name)
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


def own_blocks(path: Path, model: PreTrainedModel) -> Callable[[str], list[Packed | None]]:
    """A function from the name of a matrix (see `gguf.gguf_rows`) to its parts, each in the file's own blocks.

    It gives None for one that has no blocks that the C steps read, and says in a line which kinds these are.
    """
    from gguf import GGUFReader

    reader = GGUFReader(str(path))
    tensors = {tensor.name.removesuffix(".weight"): tensor for tensor in reader.tensors}
    field = reader.get_field("general.architecture")
    turned = field is not None and field.contents() == "llama"  # only there llama.cpp reorders queries and keys
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads} if turned else {}

    def packed(name: str) -> Packed | None:
        tensor, part = tensors[name], name.rpartition(".")[2]
        if tensor.tensor_type.name not in BLOCK_KINDS:
            return None
        rows = np.asarray(tensor.data)
        return Packed(tensor.tensor_type.name, half_split(rows, heads[part]) if part in heads else rows)

    def parts(name: str) -> list[Packed | None]:
        layer, _, which = name.partition(".")
        names = [f"blk.{layer}.{part}" for part in PARTS[which]] if which else [head]
        whole = all(tensors[one].shape[1] % ROWS == 0 for one in names)  # (K, N)
        return [packed(one) if whole else None for one in names]

    head = "output" if "output" in tensors else "token_embd"
    read = [tensor for name, tensor in tensors.items() if name.startswith("blk.") and len(tensor.shape) == 2]
    kept = {
        one.tensor_type.name
        for one in (tensors[head], *read)
        if one.tensor_type.name not in BLOCK_KINDS or one.shape[1] % ROWS
    }
    if kept:
        kinds, numbers = " and ".join(sorted(kept)), short_name(model.dtype)
        line = f"{path.name}: its {kinds} matrices are decoded as the numbers that they stand for, in {numbers}."
        print(line, file=sys.stderr, flush=True)
    return parts
