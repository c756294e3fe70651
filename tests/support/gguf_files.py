"""Tiny GGUF files of each kind of blocks, as llama.cpp's tools write them."""

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from tokenizers.pre_tokenizers import ByteLevel

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS, VOCABULARY = 256, 512, 4, 2, 4, 288
SIZES = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (KV_HEADS * 64, HIDDEN),
    "attn_v": (KV_HEADS * 64, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (INNER, HIDDEN),
    "ffn_up": (INNER, HIDDEN),
    "ffn_down": (HIDDEN, INNER),
}


def write(path, kinds, architecture="llama", head=None):
    """A model with random weights.

    Args:
        kinds: of the matrices, by the end of their names, such as `attn_v`; `""` is of all others.
        head: the kind of a head of its own; None is the embedding, in Q8_0.
    """
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    _add_tokenizer(writer)
    _add(writer, "token_embd.weight", (VOCABULARY, HIDDEN), Kind.Q8_0, rng)
    if head is not None:
        _add(writer, "output.weight", (VOCABULARY, HIDDEN), head, rng)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", 1 + 0.1 * rng.standard_normal(HIDDEN).astype(np.float32))
        for name, shape in SIZES.items():
            _add(writer, f"blk.{layer}.{name}.weight", shape, kinds.get(name, kinds[""]), rng)
            if architecture == "qwen2" and name in ("attn_q", "attn_k", "attn_v"):
                bias = rng.standard_normal(shape[0]).astype(np.float32)
                writer.add_tensor(f"blk.{layer}.{name}.bias", bias)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer, name, shape, kind, rng):
    if kind in (Kind.Q4_K, Kind.Q6_K):  # the package reads these, and does not make them
        size = gguf.GGML_QUANT_SIZES[kind][1]
        rows = rng.integers(0, 256, (shape[0], shape[1] // 256, size), dtype=np.uint8)
        scale = np.array([2e-4 if kind == Kind.Q4_K else 1e-5], np.float16).view(np.uint8)
        at = slice(0, 2) if kind == Kind.Q4_K else slice(208, 210)
        rows[..., at] = scale
        if kind == Kind.Q4_K:
            rows[..., 2:4] = scale
        writer.add_tensor(name, rows.reshape(shape[0], -1), raw_dtype=kind)
        return
    weights = (1.5 * rng.standard_normal(shape) / shape[1] ** 0.5).astype(np.float32)
    writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)


def _add_tokenizer(writer):
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, "<|end|>", "ab", *(f"<|{i}|>" for i in range(VOCABULARY - 258))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 1] + [3] * (VOCABULARY - 258))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
