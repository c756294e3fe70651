"""Real decodes through a library that was built with sanitizers: `python sanitized_decode.py LIBRARY`, by a test.

They end the process at the first access outside its memory. Every rule, part and kv rule, triggers, biases, norms of
heads, both number types, several threads, packed panels; repairs of several rows, corrections, the
screened head.
"""

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lora_drop.adapters.bank import AdapterBank
from lora_drop.decode.cache import KVCache
from lora_drop.decode.head import screen
from lora_drop.decode.native import loader, weights
from lora_drop.decode.native.decoder import NativeDecoder
from lora_drop.decode.native.weights import Packed, lay_out
from lora_drop.method.schedule import KV_RULES, PARTS, REUSE_RULES, Schedule
from lora_drop.models.load import load_model
from tests.support.decoding import random_bank
from tests.support.parts import full_bank

PROMPT, STEPS = [5, 99, 17], 7
HEADS, HEAD_DIM = 32, 64  # heads wider together than the rest: rows of `out` are the longest of all


def decode(native, schedule, bank=None, prompt=PROMPT):
    """Run steps on a fixed text, watched."""
    state = native.new_state(schedule, bank, watch=True)
    logits = [native.prefill(torch.tensor([prompt]), state).logits]
    logits += [native.step(torch.tensor([[token]]), state).logits for token in range(STEPS)]
    assert torch.cat(logits).isfinite().all()


def judge(native, schedule, bank):
    """Steps with a repair; where it verifies, some of its rows are taken back, and it goes on from there."""
    state = native.new_state(schedule, bank, watch=True)
    native.prefill(torch.tensor([PROMPT]), state)
    for token in range(2 * schedule.period + 3):
        output = native.step(torch.tensor([[token]]), state)
        if schedule.verifies and output.rows > 1:
            assert native.rewind(output, output.rows // 2, state).logits.isfinite().all()
    assert output.logits.isfinite().all() and native.repair(None, state).logits.isfinite().all()


def blocks(name):
    """Random rows of a matrix of the packed model, each part in another kind of blocks, or in none."""
    width = HEADS * HEAD_DIM
    kinds, n, k = {
        "qkv": (("Q4_K", None, "Q6_K"), width, 256),
        "out": (("Q4_0",), 256, width),
        "gate_up": (("Q4_1", "Q8_0"), 512, 256),
        "down": (("Q4_K",), 256, 512),
    }.get(name.partition(".")[2], (("Q6_K",), 256, 256))
    return [kind and _packed(kind, n, k) for kind in kinds]


def _packed(kind, n, k):
    weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rows = np.random.default_rng(0).integers(0, 256, (n, k // weights, size), dtype=np.uint8)
    for at in {"Q4_0": [0], "Q4_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q6_K": [208]}[kind]:
        rows[..., at : at + 2] = np.array([1e-4], np.float16).view(np.uint8)
    return Packed(kind, rows.reshape(n, -1))


def main():
    library = loader.bind(Path(sys.argv[1]))
    weights.library = lambda: library
    torch.set_num_threads(1)  # its own threads are not what is tested
    library.ld_threads(3)

    tiny = load_model("random:tiny-llama", "cpu", "float32")
    native = NativeDecoder(tiny.model, lay_out(tiny.model, None))
    for reuse, part, kv in itertools.product(REUSE_RULES, PARTS, KV_RULES):
        schedule = Schedule(3, tiny.num_layers, (2, 3, 4), reuse, part, kv)
        decode(native, schedule)
        decode(native, schedule, random_bank(tiny, reuse, part, layers=[2, 4]))
        repairs = {"refresh": "repair", "accept": 0.5 if kv == "write" else 0.0, "head": "screened"}
        whole = full_bank(tiny, reuse, part, layers=[2, 4])
        judge(native, Schedule(5, tiny.num_layers, (2, 3, 4), reuse, part, kv, **repairs), whole)
    triggered = Schedule(8, tiny.num_layers, (2, 3), refresh_entropy=5.2)
    decode(native, triggered, random_bank(tiny, "residual"), prompt=[7] * 60)  # the caches grow
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda schedule: decode(native, schedule), [triggered] * 3))

    kv = KVCache(tiny.num_layers)
    native.read(torch.tensor([PROMPT * 20]), kv, 0, (2, 3), 5)  # many rows, and the caches grow

    for name, dtype in itertools.product(("tiny-qwen2", "tiny-qwen3"), ("float32", "bfloat16")):
        other = load_model(f"random:{name}", "cpu", dtype)
        native = NativeDecoder(other.model, lay_out(other.model, None))
        decode(native, Schedule(3, 6, (2, 3), kv="write"))
        bank = full_bank(other, "residual", dtype=getattr(torch, dtype))
        judge(native, Schedule(5, 6, (2, 3), kv="write", refresh="repair", accept=0.5, head="screened"), bank)

    shape = {"vocab_size": 256, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": HEAD_DIM}
    packed = LlamaForCausalLM(LlamaConfig(**shape, **heads))
    native = NativeDecoder(packed, lay_out(packed, blocks))
    bank = AdapterBank.new([1], 256)
    bank.head = screen(packed.lm_head.weight.detach(), torch.eye(256), 13, 37)
    for kv in KV_RULES:
        decode(native, Schedule(3, 3, (1,), part="attention", kv=kv))
        judge(native, Schedule(5, 3, (1,), kv="write", refresh="repair", accept=0.5, head="screened"), bank)
    print("decoded")


if __name__ == "__main__":
    main()
