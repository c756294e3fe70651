"""The pass that trains for refreshes that repair equals decoding step by step."""

import dataclasses
import itertools

import pytest
import torch

from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.method.schedule import KV_RULES, PARTS, REUSE_RULES, Schedule
from lora_drop.training.exact import exact_states
from tests.support.decoding import logits_of, random_bank


@pytest.mark.products
@pytest.mark.parametrize(("reuse", "part", "kv"), itertools.product(REUSE_RULES, PARTS, KV_RULES))
@pytest.mark.parametrize("corrected", [False, True], ids=["bare", "corrected"])
def test_the_pass_equals_decoding(any_tiny, reuse, part, kv, corrected):
    schedule = Schedule(3, any_tiny.num_layers, (2, 4), reuse, part, kv, refresh="repair")
    bank = random_bank(any_tiny, reuse, part, [2, 4]) if corrected else None
    torch.manual_seed(0)
    tokens = torch.randint(0, 256, (2, 13))
    head, decoder = any_tiny.model.get_output_embeddings(), ReferenceDecoder(any_tiny.model)
    for prompt in (1, 3, 6):
        with torch.no_grad():
            ours, repaired, lora = exact_states(any_tiny.model, tokens, prompt, schedule, bank)
            teacher = any_tiny.model(tokens).logits
        assert lora.tolist() == [t >= prompt and (t - prompt + 1) % 3 > 0 for t in range(13)]
        if kv == "write":
            torch.testing.assert_close(head(repaired), teacher, rtol=1e-4, atol=1e-4)
        for row in range(2):
            text = tokens[row].tolist()
            steps = logits_of(decoder, schedule, bank, text[:prompt], text[prompt:])[0][1:]
            torch.testing.assert_close(head(ours)[row], steps[lora[prompt:]], rtol=1e-4, atol=2e-4)
            torch.testing.assert_close(
                head(repaired)[row, prompt:][~lora[prompt:]], steps[~lora[prompt:]], rtol=1e-4, atol=2e-4
            )


def test_gradients_reach_every_correction_and_no_weight(tiny):
    schedule = Schedule(3, tiny.num_layers, (2, 4), kv="write", refresh="repair")
    bank = random_bank(tiny, layers=[2, 4])
    bank = dataclasses.replace(bank, **bank.mapped(torch.Tensor.requires_grad_))
    exact_states(tiny.model, torch.randint(0, 256, (1, 12)), 1, schedule, bank)[0].sum().backward()
    assert all(t.grad is not None for store in (bank.a, bank.b, bank.gate) for t in store.values())
    assert all(p.grad is None for p in tiny.model.parameters())
