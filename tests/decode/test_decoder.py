"""The reference decoder: each rule against the formulas, and the plain model at period 1."""

import copy
import itertools

import pytest
import torch

from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import kv_bytes
from lora_drop.method.schedule import KV_RULES, PARTS, REUSE_RULES, Schedule, baseline_schedule
from tests.support.decoding import PROMPT, TARGET, logits_of, random_bank
from tests.support.naive import naive_logits
from tests.support.parts import full_bank


def decode(loaded, schedule, bank=None, prompt=PROMPT, target=TARGET):
    """Logits (1 + G, V) of teacher-forced decoding, and the state after it."""
    return logits_of(ReferenceDecoder(loaded.model), schedule, bank, prompt, target)


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-4)


@pytest.mark.products
@pytest.mark.parametrize(("reuse", "part", "kv"), itertools.product(REUSE_RULES, PARTS, KV_RULES))
@pytest.mark.parametrize("variant", ["bare", "corrected", "repaired"])
def test_each_rule_is_its_formula(any_tiny, reuse, part, kv, variant):
    """A repair is reading the tokens again; its bank has a screened head too."""
    schedule, bank = Schedule(3, any_tiny.num_layers, (2, 3, 4), reuse, part, kv), None
    if variant == "corrected":
        bank = random_bank(any_tiny, reuse, part, layers=[2, 4])  # layer 3 has the bare rule
    elif variant == "repaired":
        schedule = Schedule(4, any_tiny.num_layers, (1, 3), reuse, part, kv, refresh="repair")
        bank = full_bank(any_tiny, reuse, part, layers=[1, 3])
    ours, _ = decode(any_tiny, schedule, bank)
    assert_same(ours, naive_logits(any_tiny.model, PROMPT + TARGET, len(PROMPT), schedule, bank))


@pytest.mark.products
@pytest.mark.parametrize(("reuse", "part", "kv"), [("residual", "block", "write"), ("state", "attention", "skip")])
def test_the_screened_head_is_its_formula(any_tiny, reuse, part, kv):
    schedule = Schedule(3, any_tiny.num_layers, (1, 3), reuse, part, kv, head="screened")
    bank = full_bank(any_tiny, reuse, part, layers=[1, 3])
    ours, _ = decode(any_tiny, schedule, bank)
    assert_same(ours, naive_logits(any_tiny.model, PROMPT + TARGET, len(PROMPT), schedule, bank))
    bare, _ = decode(any_tiny, schedule, bank.only(corrections=True, head=False))
    assert (bare - ours)[1:].abs().max() > 1e-3, "the screen does something"
    assert torch.equal(bare[0], ours[0])


def test_the_rules_differ(tiny):
    """A rule that quietly fell back on another would pass the test above if the formulas had the same slip."""
    outputs = [
        decode(tiny, Schedule(3, tiny.num_layers, (2, 3), reuse, part), random_bank(tiny, reuse, part))[0]
        for reuse in REUSE_RULES
        for part in PARTS
    ]
    for one, other in itertools.combinations(outputs, 2):
        assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("period", [1, 4])
def test_period_1_or_nothing_dropped_is_the_plain_model(any_tiny, period):
    schedule = Schedule(period, any_tiny.num_layers, (2, 3) if period == 1 else ())
    ours, _ = decode(any_tiny, schedule)
    with torch.inference_mode():
        full = any_tiny.model(torch.tensor([PROMPT + TARGET])).logits[0, len(PROMPT) - 1 :]
    assert_same(ours, full)


@pytest.mark.parametrize("reuse", REUSE_RULES)
def test_the_prompts_length_does_not_shift_the_schedule(tiny, reuse):
    """Steps are counted from prefill: prompts of any length modulo the period refresh at the same steps."""
    for length in range(1, 7):
        prompt = list(range(10, 10 + length))
        schedule = Schedule(3, tiny.num_layers, (2, 3), reuse)
        ours, state = decode(tiny, schedule, prompt=prompt)
        assert_same(ours, naive_logits(tiny.model, prompt + TARGET, length, schedule))
        assert state.kv.lengths[2] == length + len(TARGET) // 3


@pytest.mark.parametrize(("kv", "part"), itertools.product(KV_RULES, PARTS))
def test_kv_lengths_and_bytes_follow_the_formula(any_tiny, kv, part):
    for period, steps in itertools.product((1, 2, 4, 100), (0, 1, 3, 8, 11)):
        config = LoraDropConfig(period=period, drop_ratio=1.0, kv=kv, part=part)
        schedule = config.schedule_for(any_tiny.num_layers)
        _, state = decode(any_tiny, schedule, target=TARGET[:steps])
        assert state.kv.lengths == [schedule.kv_length(i, len(PROMPT), steps) for i in range(any_tiny.num_layers)]
        assert state.kv.nbytes == kv_bytes(any_tiny.shape, schedule, len(PROMPT), steps, 4)


def test_nothing_of_a_request_stays_on_the_model(tiny):
    def attributes():
        modules = tiny.model.named_modules()
        return {(name, key): value for name, module in modules for key, value in vars(module).items()}

    before = attributes()
    decode(tiny, Schedule(3, tiny.num_layers, (2, 3), "state"))
    after = attributes()
    assert before.keys() == after.keys() and all(value is after[key] for key, value in before.items())


def test_a_dropped_layer_keeps_one_vector_and_no_more(tiny):
    for reuse in REUSE_RULES:
        _, state = decode(tiny, Schedule(100, tiny.num_layers, (2, 3), reuse), target=TARGET[:2])
        stores = [v.untyped_storage().nbytes() for v in state.anchors if v is not None]
        assert stores == [] if reuse == "skip" else stores == [tiny.shape.hidden_size * 4] * 2


def test_attention_other_than_sdpa_is_refused(tiny):
    model = copy.deepcopy(tiny.model)
    model.set_attn_implementation("eager")
    with pytest.raises(LoraDropError, match="sdpa"):
        ReferenceDecoder(model)


def test_shapes_have_a_batch(tiny):
    """Two prompts of one length in one batch give what each gives alone."""
    schedule = Schedule(3, tiny.num_layers, (2, 3))
    decoder = ReferenceDecoder(tiny.model)
    state = decoder.new_state(schedule)
    prompts = torch.tensor([PROMPT, TARGET[:5]])
    logits = [decoder.prefill(prompts, state).logits]
    targets = torch.tensor([TARGET[:5], PROMPT])
    logits += [decoder.step(targets[:, t : t + 1], state).logits for t in range(5)]
    together = torch.stack(logits)  # (steps, B, V)
    assert_same(together[:, 0], decode(tiny, schedule, target=TARGET[:5])[0])
    assert_same(together[:, 1], decode(tiny, schedule, prompt=TARGET[:5], target=PROMPT)[0])


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_reading_in_chunks_is_reading_at_once(any_tiny, chunk):
    decoder = ReferenceDecoder(any_tiny.model)
    state = decoder.new_state(baseline_schedule(any_tiny.num_layers))
    decoder.prefill(torch.tensor([PROMPT]), state)
    outputs, logits = [], []
    for start in range(0, 10, chunk):
        tokens = torch.tensor([TARGET[start : start + chunk]])
        output = decoder.read(tokens, state.kv, len(PROMPT) + start, (2, 3))
        outputs.append(output.watched), logits.append(output.logits)
    with torch.inference_mode():
        full = any_tiny.model(torch.tensor([PROMPT + TARGET[:10]]), output_hidden_states=True)
    assert_same(torch.cat(logits, 1), full.logits[:, len(PROMPT) :])
    assert_same(torch.cat(outputs, 2), torch.stack(full.hidden_states[3:5])[:, :, len(PROMPT) :])
