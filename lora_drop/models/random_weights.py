"""Models with random weights: tiny shapes for tests, real ones for measuring speed and memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from lora_drop.errors import LoraDropError
from lora_drop.models.place import Place, fitting
from lora_drop.models.tokens import ByteTokenizer

_SPECIAL: dict[str, Any] = {"bos_token_id": ByteTokenizer.bos_token_id, "eos_token_id": ByteTokenizer.eos_token_id}
_SIZES = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "max_position_embeddings"
).split()
_TINY: dict[str, Any] = {
    **dict(zip(_SIZES, (ByteTokenizer.vocab_size, 64, 128, 6, 4, 2, 2048), strict=True)),
    "head_dim": 16,
    **_SPECIAL,
}
# With tied and untied heads, and a sliding window, so that the tests cover each.
TINY_SHAPES = {
    "tiny-llama": LlamaConfig(**_TINY | {"max_position_embeddings": 4096}),
    "tiny-qwen2": Qwen2Config(**_TINY, tie_word_embeddings=True),
    "tiny-qwen3": Qwen3Config(**_TINY, tie_word_embeddings=True),
    "tiny-mistral": MistralConfig(**_TINY | {"max_position_embeddings": 4096}, sliding_window=2048),
}


def _large(
    kind: Callable[..., PreTrainedConfig], sizes: tuple[int, ...], eps: float, theta: float
) -> PreTrainedConfig:
    """A config of the sizes in `_SIZES`' order."""
    settings: dict[str, Any] = dict(zip(_SIZES, sizes, strict=True))
    rope = {"rope_type": "default", "rope_theta": theta}
    return kind(**settings, rms_norm_eps=eps, rope_parameters=rope, **_SPECIAL)


LARGE_SHAPES = {
    "llama2-7b": _large(LlamaConfig, (32_000, 4096, 11_008, 32, 32, 32, 4096), 1e-5, 1e4),
    "llama3-8b": _large(LlamaConfig, (128_256, 4096, 14_336, 32, 32, 8, 8192), 1e-5, 5e5),
    "qwen2.5-7b": _large(Qwen2Config, (152_064, 3584, 18_944, 28, 28, 4, 32_768), 1e-6, 1e6),
    "qwen2.5-14b": _large(Qwen2Config, (152_064, 5120, 13_824, 48, 40, 8, 32_768), 1e-6, 1e6),
}
SHAPES = TINY_SHAPES | LARGE_SHAPES


def random_model(shape: str, candidates: list[Place]) -> tuple[PreTrainedModel, ByteTokenizer, torch.device]:
    """Random weights of a shape: the same values each time, on each device and in each number type."""
    if shape not in SHAPES:
        raise LoraDropError(f"no random shape {shape!r}: use one of {', '.join(SHAPES)}.")
    config = type(SHAPES[shape]).from_dict(SHAPES[shape].to_dict())  # a copy, as loading writes into it
    device, dtype = fitting(config, f"random:{shape}", candidates)
    with torch.device("meta"):  # no storage, and no initialisation parameter by parameter
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.to_empty(device=device)
    model.tie_weights()
    # The one buffer that is computed instead of loaded; `to_empty` left it undefined.
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    fill = _fill_tiny if shape in TINY_SHAPES else _fill_large
    with torch.no_grad():
        fill(dict(model.named_parameters()), torch.Generator().manual_seed(zlib.crc32(shape.encode())))
    return model, ByteTokenizer(), device


def _fill_tiny(weights: dict[str, torch.Tensor], generator: torch.Generator) -> None:
    """Weights whose greedy text neither gets stuck nor repeats its input.

    The layers add much more than the embedding has, so that with a tied head the likeliest token is not the last one,
    and attention is sharp enough to matter. The head's row of the end token is zero, so that a text goes on to its
    limit, in float32 and in bfloat16.
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
    """Normal numbers, std 0.02, from one block that is repeated: billions of draws would take minutes on a CPU.

    The block's prime length keeps a matrix from having equal rows.
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
