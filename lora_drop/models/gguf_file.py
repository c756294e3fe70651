"""GGUF files of the supported architectures: weights as numbers, and as blocks where the C steps can read them."""

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

ROWS = 16  # of a panel; the C steps read whole panels


def load_gguf(path: Path, candidates: list[Place]) -> tuple[PreTrainedModel, Any, torch.device]:
    """The model of a GGUF file with its weights as numbers, its tokenizer, and its device.

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
    except Exception as error:  # transformers uses several libraries here, with exceptions of their own
        raise LoraDropError(f"{path.name} cannot be read as a GGUF of a language model ({error}).") from error
    finally:
        logging.set_verbosity(verbosity)
    tokenizer.model_max_length = 10**9  # otherwise a long text is a warning, beside our one line
    return model.to(device), tokenizer, device


def own_blocks(path: Path, model: PreTrainedModel) -> Callable[[str], list[Packed | None]]:
    """A function that returns the parts of a matrix (see `gguf.gguf_rows`), each in the file's own blocks.

    It returns None for a part whose blocks the C steps cannot read; a line on stderr names those kinds.
    """
    from gguf import GGUFReader

    reader = GGUFReader(str(path))
    tensors = {tensor.name.removesuffix(".weight"): tensor for tensor in reader.tensors}
    field = reader.get_field("general.architecture")
    is_llama = field is not None and field.contents() == "llama"  # only there llama.cpp reorders queries and keys
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads} if is_llama else {}

    def packed(name: str) -> Packed | None:
        tensor, part = tensors[name], name.rpartition(".")[2]
        if tensor.tensor_type.name not in BLOCK_KINDS:
            return None
        rows = np.asarray(tensor.data)
        return Packed(tensor.tensor_type.name, half_split(rows, heads[part]) if part in heads else rows)

    def parts(name: str) -> list[Packed | None]:
        layer, _, which = name.partition(".")
        names = [f"blk.{layer}.{part}" for part in PARTS[which]] if which else [head]
        has_panels = all(tensors[each].shape[1] % ROWS == 0 for each in names)  # (K, N)
        return [packed(each) if has_panels else None for each in names]

    head = "output" if "output" in tensors else "token_embd"
    matrices = [tensor for name, tensor in tensors.items() if name.startswith("blk.") and len(tensor.shape) == 2]
    unreadable = {
        tensor.tensor_type.name
        for tensor in (tensors[head], *matrices)
        if tensor.tensor_type.name not in BLOCK_KINDS or tensor.shape[1] % ROWS
    }
    if unreadable:
        kinds, numbers = " and ".join(sorted(unreadable)), short_name(model.dtype)
        line = f"{path.name}: its {kinds} matrices are decoded as the numbers that they stand for, in {numbers}."
        print(line, file=sys.stderr, flush=True)
    return parts
