"""Real decodes through a library that was built with sanitizers: `python sanitized_decode.py LIBRARY`, by a test.

They end the process at the first access outside its memory. Every rule, part and kv rule, triggers, biases, norms of
heads, both number types, several threads, and packed panels.
"""

import itertools
import sys
import threading
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lora_drop.decode.native import NativeDecoder, decoder, lay_out, loader
from lora_drop.method.schedule import Schedule
from lora_drop.method.settings import KV_RULES, PARTS, REUSE_RULES
from lora_drop.models.load import load_model
from tests.support.decoding import random_bank

PROMPT, STEPS = [5, 99, 17], 7
HEADS, HEAD_DIM = 32, 64  # heads wider together than the rest: rows of `out` are the longest of all


def decode(native, schedule, bank=None, prompt=PROMPT):
    """Run steps on a fixed text, watched."""
    state = native.new_state(schedule, bank, watch=True)
    logits = [native.prefill(torch.tensor([prompt]), state).logits]
    logits += [native.step(torch.tensor([[token]]), state).logits for token in range(STEPS)]
    assert torch.cat(logits).isfinite().all()


def blocks(name):
    """Random rows of a matrix of the packed model, in Q4_1 or Q8_0 blocks."""
    n, k = {
        "qkv": (3 * HEADS * HEAD_DIM, 64),
        "out": (64, HEADS * HEAD_DIM),
        "gate_up": (256, 64),
        "down": (64, 128),
    }.get(name.partition(".")[2], (256, 64))
    scales, size = (1, 34) if name == "head" else (2, 20)
    rows = np.random.default_rng(0).integers(0, 256, (n, k // 32, size), dtype=np.uint8)
    rows[..., : 2 * scales] = np.full(scales, 0.001, np.float16).view(np.uint8)
    return rows.reshape(n, -1)


def main():
    library = loader.bind(Path(sys.argv[1]))
    decoder.library = lambda: library
    torch.set_num_threads(1)  # its own threads are not what is tested
    library.ld_threads(3)

    tiny = load_model("random:tiny-llama", "cpu", "float32")
    native = NativeDecoder(tiny.model, lay_out(tiny.model, None))
    for reuse, part, kv in itertools.product(REUSE_RULES, PARTS, KV_RULES):
        schedule = Schedule(3, tiny.num_layers, (2, 3, 4), reuse, part, kv)
        decode(native, schedule)
        decode(native, schedule, random_bank(tiny, reuse, part, layers=[2, 4]))
    triggered = Schedule(8, tiny.num_layers, (2, 3), refresh_norm=0.4, refresh_entropy=5.2)
    decode(native, triggered, random_bank(tiny, "residual"), prompt=[7] * 60)  # the caches grow
    threads = [threading.Thread(target=decode, args=(native, triggered)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for name, dtype in itertools.product(("tiny-qwen2", "tiny-qwen3"), ("float32", "bfloat16")):
        other = load_model(f"random:{name}", "cpu", dtype)
        decode(NativeDecoder(other.model, lay_out(other.model, None)), Schedule(3, 6, (2, 3), kv="write"))

    shape = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": HEAD_DIM}
    packed = LlamaForCausalLM(LlamaConfig(**shape, **heads))
    for kv in KV_RULES:
        decode(NativeDecoder(packed, lay_out(packed, blocks)), Schedule(3, 3, (1,), part="attention", kv=kv))
    print("decoded")


if __name__ == "__main__":
    main()
