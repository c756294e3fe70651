"""Exact refreshes and verification: after a repair every cache and anchor is the full model's, in each decoder."""

import functools
import itertools
import math

import pytest
import torch

from lora_drop.decode.lane import Lane
from lora_drop.decode.sampling import Sampling, draw
from lora_drop.decode.static.decoder import StaticDecoder
from lora_drop.decode.step import Rewind, StepResult
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.schedule import Schedule, baseline_schedule
from tests.support.decoding import DECODERS, PROMPT, TARGET, decoder_of, logits_of, random_bank
from tests.support.parts import full_bank

EXACT = {"refresh": "repair", "kv": "write"}


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request, tiny):
    return decoder_of(tiny.model, request.param)


def same(one, other, decoder):
    """Equal to the bit, but for the decoder whose passes of several rows are other kernels."""
    if isinstance(decoder, StaticDecoder):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-4)
    else:
        assert torch.equal(one, other)


def held(state, layer):
    """The K/V of a layer."""
    return torch.stack(state.kv.filled(layer))


def anchors(state):
    """The anchors of the skipped layers, (n, 1, D)."""
    if len(vectors := getattr(state, "vectors", ())):  # NativeDecoder keeps (n, rows, D)
        return vectors[:, state.held : state.held + 1]
    return torch.stack([state.anchors[i] for i in state.schedule.dropped])


def same_state(state, full, decoder):
    """The caches and anchors are those of the full model."""
    assert state.kv.lengths == full.kv.lengths
    for layer in range(decoder.num_layers):
        same(held(state, layer), held(full, layer), decoder)
    if state.schedule.reuse != "skip":
        same(anchors(state), anchors(full), decoder)


def full_after(decoder, schedule, tokens):
    """The state and last logits of the full model that was fed the same tokens, a step at a time."""
    rules = (schedule.reuse, schedule.part, "write")
    every = Schedule(2, decoder.num_layers, schedule.dropped, *rules, refresh_entropy=0)
    logits, state = logits_of(decoder, every, target=tokens)
    assert state.refresher.refreshes == len(tokens)
    return state, logits[-1:]


def forced(decoder, schedule, bank=None, target=TARGET):
    """A state after each step of teacher-forced decoding: the state, the tokens fed, what the step gave."""
    state = decoder.new_state(schedule, bank, len(PROMPT) + len(target), watch=True)
    decoder.prefill(torch.tensor([PROMPT]), state)
    for count, token in enumerate(target, start=1):
        yield state, target[:count], decoder.step(torch.tensor([[token]]), state)


@pytest.mark.parametrize("reuse", ["residual", "state", "skip"])
@pytest.mark.parametrize("period", [2, 3, 5])
def test_after_a_repair_caches_and_anchors_are_the_full_model_s(decoder, tiny, period, reuse):
    schedule = Schedule(period, tiny.num_layers, (2, 4), reuse, **EXACT)
    seen = 0
    for state, fed, output in forced(decoder, schedule, random_bank(tiny, reuse)):
        assert state.kv.lengths[1] == state.kv.lengths[3] == len(PROMPT) + len(fed)
        assert state.kv.lengths[2] == schedule.kv_length(2, len(PROMPT), len(fed))
        if state.refresher.kind != "refresh":
            continue
        seen += 1
        full, logits = full_after(decoder, schedule, fed)
        assert output.rows == period
        same(output.logits, logits, decoder)
        same_state(state, full, decoder)
    assert seen == len(TARGET) // period


@pytest.mark.parametrize("reuse", ["residual", "state"])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_after_a_rewind_caches_and_anchors_are_the_full_model_s(decoder, tiny, rows, reuse):
    schedule = Schedule(4, tiny.num_layers, (2, 4), reuse, **EXACT, accept=1.0)
    *_, (state, _, output) = forced(decoder, schedule, random_bank(tiny, reuse), TARGET[:4])
    taken = decoder.rewind(output, rows, state)
    full, logits = full_after(decoder, schedule, TARGET[:rows])
    assert state.refresher.step == state.refresher.last_refresh == rows
    same(taken.logits, logits, decoder)
    same_state(state, full, decoder)
    token = torch.tensor([[TARGET[rows]]])  # and it goes on from there
    assert decoder.step(token, state).rows == 1 and state.kv.lengths[1] == len(PROMPT) + rows + 1


def test_an_early_refresh_repairs_a_shorter_window(decoder, tiny):
    probe = [float(step.entropy) for step in lane(decoder, baseline_schedule(tiny.num_layers)) if step.step]
    schedule = Schedule(6, tiny.num_layers, (2, 3), **EXACT, refresh_entropy=sorted(probe)[len(probe) // 2])
    gaps = set()
    for state, fed, output in forced(decoder, schedule, target=TARGET * 3):
        if state.refresher.kind == "refresh":
            gaps.add(output.rows)
            same(held(state, 5), held(full_after(decoder, schedule, fed)[0], 5), decoder)
    assert len(gaps) > 1 and min(gaps) >= 1 and max(gaps) <= 6


def lane(decoder, schedule, tokens=24, sampling=None, bank=None, **options):
    return Lane(decoder, torch.tensor([PROMPT]), schedule, bank, sampling or Sampling(), tokens, **options)


def events_of(decoder, schedule, **options):
    running = lane(decoder, schedule, **options)
    return running, list(running)


@functools.cache
def plain(decoder, tokens, sampling):
    """The baseline lane's tokens."""
    return events_of(decoder, baseline_schedule(decoder.num_layers), tokens=tokens, sampling=sampling)[0].tokens


SAMPLINGS = [Sampling(), Sampling(0.8, 1.0, 3), Sampling(1.3, 0.9, 11)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "top-p"])
@pytest.mark.parametrize("period", [2, 4, 7])
def test_accept_1_is_the_baseline_s_text(decoder, tiny, period, sampling):
    expected = plain(decoder, 40, sampling)
    for dropped in ((2, 4), (1, 2, 3, 4)):
        schedule = Schedule(period, tiny.num_layers, dropped, **EXACT, accept=1.0)
        ours, _ = events_of(decoder, schedule, tokens=40, sampling=sampling)
        assert ours.tokens == expected and ours.ended == "length"
        assert ours.drafts > 0 and 0 <= ours.accepted <= ours.drafts


@pytest.mark.parametrize("accept", [0.05, 0.3, 1.0])
def test_every_draft_that_stays_meets_its_rule(decoder, tiny, accept):
    schedule = Schedule(5, tiny.num_layers, (1, 2, 3), **EXACT, accept=accept)
    ours, events = events_of(decoder, schedule, tokens=80, bank=random_bank(tiny, "residual"))
    logits, _ = logits_of(decoder, baseline_schedule(tiny.num_layers), target=ours.tokens[:-1])
    kinds = {event.step: event.kind for event in events if isinstance(event, StepResult)}
    kept, own = 0, 0
    for step, (token, row) in enumerate(zip(ours.tokens, logits, strict=True)):
        if kinds[step] == "lora":
            kept += 1
            assert token == int(row.argmax()) or float(row[token]) >= float(row.max()) + math.log(accept)
        else:
            own += 1
            assert token == int(row.argmax())
    assert kept and own and any(isinstance(event, Rewind) for event in events)


def stays(row, text):
    """The rule of `own_repeats` by other code: whether the last token of a text stays after logits (V,)."""
    grams = [tuple(text[i : i + 2]) for i in range(len(text) - 1)]
    return text[-1] == int(row[:3].argmax()) or not grams or grams[-1] not in grams[:-1]


@pytest.mark.parametrize("own_repeats", [True, False])
def test_a_repeat_stays_only_if_it_is_the_full_model_s_own_choice(decoder, tiny, own_repeats):
    """Drafts are judged in order, up to the first that does not stay. Texts of three tokens repeat themselves."""
    rules = EXACT | {"accept": 1e-30, "own_repeats": own_repeats}
    schedule = Schedule(5, tiny.num_layers, (1, 2, 3), **rules)
    options = {"sampling": lambda logits, step: logits[:, :3].argmax(1)[:, None]}
    ours, events = events_of(decoder, schedule, tokens=40, **options)
    text, judged = [], 0  # what is written, and how much of it no pass can reject
    by_rule = []
    for event in events:
        if isinstance(event, StepResult) and event.kind == "lora":
            text.append(event.token_id)
            continue
        rows, _ = logits_of(decoder, baseline_schedule(tiny.num_layers), target=text) if text else ([], None)
        stay = [stays(rows[i], text[: i + 1]) for i in range(judged, len(text))]
        if isinstance(event, Rewind):
            by_rule.append(stay.index(False) == event.to + 1 - judged if False in stay else False)
            del text[event.to + 1 :]
        else:
            by_rule.append(all(stay))
            text += [event.token_id] if isinstance(event, StepResult) else []
        judged = len(text) if isinstance(event, StepResult) else judged
    assert text == ours.tokens and any(isinstance(event, Rewind) for event in events) == own_repeats
    assert all(by_rule) == own_repeats, "without the setting some repeats stay"


def test_the_head_alone_redone_is_lossless(decoder, tiny):
    """No layer skipped, the head screened at LoRA steps, `accept` 1: only logits are computed again."""
    bank = full_bank(tiny, "residual", rank=8, best=16)
    schedule = Schedule(4, tiny.num_layers, (), **EXACT, head="screened", accept=1.0)
    ours, events = events_of(decoder, schedule, tokens=40, bank=bank)
    assert ours.tokens == plain(decoder, 40, Sampling())
    assert {event.kind for event in events if isinstance(event, StepResult)} == {"prefill", "lora", "refresh"}


def test_drawing_is_by_seed_and_step_alone():
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(0.9, 0.8, 7)
    together = draw(logits, sampling, 10)
    one_by_one = torch.cat([draw(logits[row : row + 1], sampling, 10 + row) for row in range(5)])
    assert torch.equal(together, one_by_one)
    assert len({int(draw(logits[:1], Sampling(2.0, 1.0, seed), 3)) for seed in range(40)}) > 5


def test_two_at_once_do_not_mix(decoder, tiny):
    schedule = LoraDropConfig(period=4, drop_ratio=1.0, **EXACT, accept=0.5).schedule_for(tiny.num_layers)
    alone = [events_of(decoder, schedule, tokens=30, sampling=Sampling(0.9, 1.0, seed))[0].tokens for seed in (1, 2)]
    lanes = [lane(decoder, schedule, 30, Sampling(0.9, 1.0, seed)) for seed in (1, 2)]
    for _ in itertools.zip_longest(*lanes):
        pass
    assert [one.tokens for one in lanes] == alone
