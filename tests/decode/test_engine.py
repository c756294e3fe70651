"""The decode loop: greedy equals transformers, sampling repeats, stops stop, clocks are a lane's own."""

import itertools
import time

import pytest
import torch

from lora_drop.decode.lane import Lane
from lora_drop.decode.logits import entropy
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.decode.sampling import Sampling, draw
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.schedule import REUSE_RULES, Schedule, baseline_schedule
from lora_drop.run.race import take_turns
from tests.support.decoding import PROMPT


def lane(loaded, schedule=None, prompt=PROMPT, tokens=24, sampling=None, **options):
    schedule = schedule or baseline_schedule(loaded.num_layers)
    return Lane(
        ReferenceDecoder(loaded.model),
        torch.tensor([prompt]),
        schedule,
        None,
        sampling or Sampling(),
        tokens,
        **options,
    )


def ids(steps):
    return [step.token_id for step in steps]


def hf_greedy(loaded, prompt, tokens):
    """transformers' own greedy search, without logits processors and without a stop token."""
    out = loaded.model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0, repetition_penalty=1.0,
    )  # fmt: skip
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
    assert ids(lane(bundled, schedule, prompt, 48)) == hf_greedy(bundled, prompt, 48)


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


def test_steps_say_their_kind_layers_and_bytes(tiny):
    schedule = Schedule(3, tiny.num_layers, (2, 3))
    steps = list(lane(tiny, schedule, tokens=8))
    assert [s.step for s in steps] == list(range(8))
    assert [s.kind for s in steps] == ["prefill", "lora", "lora", "refresh", "lora", "lora", "refresh", "lora"]
    assert [sum(s.active) for s in steps] == [6, 4, 4, 6, 4, 4, 6, 4]
    growth = [b.kv_bytes - a.kv_bytes for a, b in itertools.pairwise(steps)]
    one_layer = tiny.shape.kv_per_token * 4
    assert growth == [one_layer * n for n in (4, 4, 6, 4, 4, 6, 4)]


def test_sampling_repeats_with_its_seed_and_only_then(tiny):
    schedule = Schedule(3, tiny.num_layers, (2, 3))
    runs = [ids(lane(tiny, schedule, sampling=Sampling(1.0, 0.9, seed))) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_top_p_keeps_the_nucleus_only():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    def drawn(top_p, temperature=1.0):
        return {int(draw(logits, Sampling(temperature, top_p), step)) for step in range(400)}

    assert drawn(1.0) == {0, 1, 2, 3}
    assert drawn(0.8) == {0, 1}
    assert drawn(0.81) == {0, 1, 2}
    assert drawn(1e-9) == {0}
    assert drawn(1.0, temperature=0.0) == {0}
    assert drawn(1.0, temperature=0.01) == {0}
    for tiny_number in (1e-38, 1e-45, 1e-320):
        assert drawn(1.0, temperature=tiny_number) == drawn(tiny_number) == {0}


def test_draws_follow_the_probabilities():
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    counts = [0, 0, 0]
    for step in range(3000):
        counts[int(draw(logits, Sampling(2.0, 1.0), step))] += 1
    expected = (torch.tensor([0.6, 0.3, 0.1]).sqrt() / torch.tensor([0.6, 0.3, 0.1]).sqrt().sum()).tolist()
    assert [c / 3000 for c in counts] == pytest.approx(expected, abs=0.03)


def test_entropy_in_nats():
    assert entropy(torch.zeros(1, 8)) == pytest.approx(2.0794, abs=1e-4)
    assert entropy(torch.tensor([[0.0, -1e9]])) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("reuse", REUSE_RULES)
def test_interleaved_lanes_give_what_each_gives_alone(tiny, reuse):
    schedule = Schedule(3, tiny.num_layers, (2, 3), reuse)
    alone = [ids(lane(tiny)), ids(lane(tiny, schedule))]
    for view in ("race", "lock-step"):
        got = {"baseline": [], "lora_drop": []}
        lanes = {"baseline": lane(tiny), "lora_drop": lane(tiny, schedule)}
        for name, step in take_turns(lanes, view):
            got[name].append(step.token_id)
        assert list(got.values()) == alone


def test_the_clock_is_stopped_between_steps(tiny):
    one = lane(tiny, tokens=6)
    total = 0.0
    for step in one:
        total += step.ms
        time.sleep(0.05)
    assert one.clock_ms == pytest.approx(total)
    assert one.clock_ms < 5 * 50  # the sleeps alone are 300 ms: none of them is in the lane's clock


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
