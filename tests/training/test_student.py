"""The parallel pass that training runs equals decoding step by step."""

import dataclasses
import itertools

import pytest
import torch

from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.method.schedule import KV_RULES, PARTS, REUSE_RULES, Schedule
from lora_drop.training.student import Layout, student_states
from tests.support.decoding import logits_of, random_bank


@pytest.mark.products
@pytest.mark.parametrize(("reuse", "part", "kv"), itertools.product(REUSE_RULES, PARTS, KV_RULES))
@pytest.mark.parametrize("corrected", [False, True], ids=["bare", "corrected"])
def test_parallel_equals_step_by_step(any_tiny, reuse, part, kv, corrected):
    schedule = Schedule(3, any_tiny.num_layers, (1, 3) if corrected else (2, 3, 4), reuse, part, kv)
    bank = random_bank(any_tiny, reuse, part, [1, 3]) if corrected else None
    torch.manual_seed(0)
    tokens = torch.randint(0, 256, (2, 17))
    decoder = ReferenceDecoder(any_tiny.model)
    for prompt in (1, 4, 9, 17):
        with torch.no_grad():
            hidden, lora = student_states(any_tiny.model, tokens, prompt, schedule, bank)
            logits = any_tiny.model.get_output_embeddings()(hidden)
        for row in range(2):
            text = tokens[row].tolist()
            ours, _ = logits_of(decoder, schedule, bank, text[:prompt], text[prompt:])
            torch.testing.assert_close(logits[row, prompt - 1 :], ours, rtol=1e-4, atol=2e-4)
        assert lora[prompt:].tolist() == [schedule.kind(s) == "lora" for s in range(1, 18 - prompt)]
        assert not lora[:prompt].any()


@pytest.mark.parametrize("kv", KV_RULES)
def test_gradients_reach_every_correction_through_full_steps_and_no_weight(tiny, kv):
    """A refresh reads what the other layers wrote at LoRA steps; its loss alone trains the corrections."""
    schedule = Schedule(3, tiny.num_layers, (2, 4), kv=kv)
    bank = random_bank(tiny, layers=[2, 4])
    bank = dataclasses.replace(bank, **bank.mapped(torch.Tensor.requires_grad_))
    hidden, lora = student_states(tiny.model, torch.randint(0, 256, (1, 12)), 4, schedule, bank)
    hidden[:, ~lora].sum().backward()
    assert all(t.grad is not None for store in (bank.a, bank.b, bank.gate) for t in store.values())
    assert all(p.grad is None for p in tiny.model.parameters())


def test_a_period_of_1_has_no_lora_positions():
    assert not Layout.of(5, 9, 1, torch.device("cpu")).lora.any()
