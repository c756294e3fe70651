"""A prompt, a forced continuation, random corrections and each decoder, for the tests of the decoders."""

import copy
from typing import Any

import pytest
import torch

from lora_drop.adapters.bank import AdapterBank
from lora_drop.decode.native.decoder import NativeDecoder
from lora_drop.decode.native.loader import library
from lora_drop.decode.native.weights import lay_out
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.decode.static.decoder import StaticDecoder, StaticWeights

PROMPT = [5, 99, 17, 42, 200]
TARGET = [7, 7, 130, 61, 255, 3, 88, 19, 54, 20, 11]
needs_compiler = pytest.mark.skipif(library() is None, reason="there is no C compiler here")
FAST = ["static", pytest.param("native", marks=needs_compiler)]
DECODERS = ["reference", *FAST]


def random_bank(loaded, reuse="residual", part="block", layers=None, seed=1):
    """Corrections of rank 4 in some layers (all but the first by default), large enough to change the text."""
    torch.manual_seed(seed)
    bank = AdapterBank.new(layers or list(range(1, loaded.num_layers)), loaded.shape.hidden_size, 4, 8.0)
    bank.reuse, bank.part = reuse, part
    for i in bank.layers:
        bank.b[i] = 0.3 * torch.randn_like(bank.b[i])
        bank.gate[i] = torch.rand_like(bank.gate[i])
    return bank


def decoder_of(model, kind) -> Any:
    """A decoder of a copy of the model: fusing lays the modules' weights out anew."""
    model = copy.deepcopy(model)
    if kind == "native":
        return NativeDecoder(model, lay_out(model, None))
    return StaticDecoder(model, StaticWeights.of(model)) if kind == "static" else ReferenceDecoder(model)


def outputs_of(decoder, schedule, bank=None, prompt=PROMPT, target=TARGET, **options):
    """Teacher-forced decoding: the outputs of prefill and of each step, and the state after them."""
    state = decoder.new_state(schedule, bank, **options)
    outputs = [decoder.prefill(torch.tensor([prompt], device=decoder.device), state)]
    outputs += [decoder.step(torch.tensor([[token]], device=decoder.device), state) for token in target]
    return outputs, state


def logits_of(decoder, schedule, bank=None, prompt=PROMPT, target=TARGET, **options):
    """The logits of the same, and the state."""
    outputs, state = outputs_of(decoder, schedule, bank, prompt, target, **options)
    return torch.cat([output.logits for output in outputs]), state
