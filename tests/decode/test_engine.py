"""The decode loop: greedy equals transformers, sampling repeats, stops stop, clocks are a lane's own."""

import pytest
import torch

from lora_drop.decode.lane import Lane
from lora_drop.decode.logits import entropy
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.decode.sampling import Sampling, draw
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.schedule import Schedule, baseline_schedule
from lora_drop.run.race import take_turns
from tests.support.decoding import PROMPT


def lane(loaded, schedule=None, prompt=PROMPT, tokens=24):
    schedule = schedule or baseline_schedule(loaded.num_layers)
    decoder = ReferenceDecoder(loaded.model)
    return Lane(decoder, torch.tensor([prompt]), schedule, None, Sampling(), tokens)


def ids(steps):
    return [step.token_id for step in steps]


def hf_greedy(loaded, prompt, tokens):
    """transformers' own greedy search, without logits processors and without a stop token."""
    greedy = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "repetition_penalty": 1.0}
    ids = torch.tensor([prompt])
    out = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **greedy)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("prompt", [PROMPT, [9], list(range(70))], ids=["5", "1", "70 tokens"])
def test_period_1_equals_greedy_generate(any_tiny, prompt):
    schedule = Schedule(1, any_tiny.num_layers, (2, 3))
    assert ids(lane(any_tiny, schedule, prompt, 80)) == hf_greedy(any_tiny, prompt, 80)


def test_period_1_equals_greedy_generate_on_the_bundled_model(bundled):
    prompt = bundled.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Explain why the sky is blue."}], add_generation_prompt=True, return_dict=False
    )
    schedule = LoraDropConfig(period=1).schedule_for(bundled.num_layers)
    assert ids(lane(bundled, schedule, prompt, 24)) == hf_greedy(bundled, prompt, 24)


def test_in_bfloat16_only_a_near_tie_may_differ():
    """A first mismatch is allowed only where the two best logits lie within 2^-6 of their size."""
    from lora_drop.models.load import load_model

    loaded = load_model("random:tiny-llama", device="cpu", dtype="bfloat16")
    expected = hf_greedy(loaded, PROMPT, 60)
    for step, token in zip(lane(loaded, tokens=60), expected, strict=True):
        if step.token_id != token:
            best, second = step.logits[0].float().topk(2).values.tolist()
            assert best - second <= 2**-6 * abs(best)
            break


def test_top_p_keeps_the_nucleus_only():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    def drawn(top_p, temperature=1.0):
        return {int(draw(logits, Sampling(temperature, top_p), step)) for step in range(400)}

    assert [len(drawn(top_p)) for top_p in (1.0, 0.8, 0.81)] == [4, 2, 3]
    for least in (1e-9, 1e-38, 1e-45, 1e-320):
        assert drawn(1.0, temperature=least) == drawn(least) == {0}
    assert drawn(1.0, temperature=0.0) == drawn(1.0, temperature=0.01) == {0}


def test_draws_follow_the_probabilities():
    probs = torch.tensor([0.6, 0.3, 0.1])
    drawn = [int(draw(probs.log()[None], Sampling(2.0, 1.0), step)) for step in range(3000)]
    expected = probs.sqrt() / probs.sqrt().sum()
    torch.testing.assert_close(torch.tensor(drawn).bincount() / 3000, expected, rtol=0, atol=0.03)


def test_entropy_in_nats():
    assert entropy(torch.zeros(1, 8)) == pytest.approx(2.0794, abs=1e-4)
    assert entropy(torch.tensor([[0.0, -1e9]])) == pytest.approx(0.0, abs=1e-6)


class FakeLane:
    """A lane whose steps take a known time."""

    def __init__(self, ms, steps):
        self.ms, self.left, self.ended = ms, steps, None
        self.clock_ms = self.prefill_ms = 0.0
        self.decode_steps = -1

    def __next__(self):
        self.clock_ms += self.ms
        self.prefill_ms = self.prefill_ms or self.ms
        self.decode_steps += 1
        self.left -= 1
        self.ended = "length" if not self.left else None
        return self.decode_steps


def test_race_goes_by_the_clocks_and_lock_step_by_the_steps():
    def order(view):
        lanes = {"slow": FakeLane(20, 4), "fast": FakeLane(10, 8)}
        return [name for name, _ in take_turns(lanes, view)]

    race = order("race")
    for cut in range(3, len(race)):
        clocks = 20 * race[:cut].count("slow"), 10 * race[:cut].count("fast")
        assert abs(clocks[0] - clocks[1]) <= 20
    lock = order("lock-step")
    assert lock[:8] == ["slow", "fast"] * 4 and lock[8:] == ["fast"] * 4
