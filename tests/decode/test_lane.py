"""The lane over a decoder that is written down: every token, time and count of it follows by hand."""

import contextlib
import math

import pytest
import torch

from lora_drop.adapters.bank import AdapterBank
from lora_drop.decode import lane as module
from lora_drop.decode.cache import KVCache
from lora_drop.decode.lane import Lane, not_finite
from lora_drop.decode.logits import likeliest
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.decode.sampling import Sampling
from lora_drop.decode.step import DecoderOutput, DecodeState, Prefilled, Rewind, StepResult, Verified
from lora_drop.errors import LoraDropError
from lora_drop.method.schedule import Schedule, baseline_schedule

VOCABULARY, LAYERS, PROMPT = 16, 4, 5
LOG_HALF = math.log(0.5)


class Scripted(ReferenceDecoder):
    """At position p the full model picks token `full[p - PROMPT]`, and a LoRA step token `draft[p - PROMPT]`.

    The pick has logit 0, at position p of the full model token `near[p]` has `near_logit`, and all others have -9.
    """

    name, kernels, dtype, device, num_layers = "scripted", None, torch.float32, torch.device("cpu"), LAYERS

    def __init__(self, full, draft=(), near=(), runs_ahead=False, entropy=None):
        self.full, self.draft, self.near, self.runs_ahead, self.nats = full, draft, dict(near), runs_ahead, entropy
        self.calls, self.near_logit = [], LOG_HALF

    def new_state(self, schedule, bank=None, tokens=0, watch=False, prompt=0):
        self.calls.append(("new_state", tokens, watch, prompt))
        return DecodeState(schedule, bank, watch)

    def read_prompt(self, input_ids, pruned=()):
        self.calls.append("read_prompt")
        one = torch.zeros(1)
        return Prefilled(input_ids, KVCache(LAYERS), one, one, one, ms=7.0)

    def _row(self, picks, position):
        row = torch.full((1, VOCABULARY), -9.0)
        if picks is self.full and position in self.near:
            row[0, self.near[position]] = self.near_logit
        row[0, picks[position - PROMPT]] = 0.0
        return row

    def _write(self, state, tokens):
        for i in range(LAYERS):
            state.kv.update(torch.zeros(1, 1, tokens, 2), torch.zeros(1, 1, tokens, 2), i)

    def _output(self, state, logits, rows=1):
        state.refresher.end(logits[-1:])
        watched = torch.arange(len(logits) * 2.0).view(2, len(logits), 1) if state.watch else None
        return DecoderOutput(logits, watched, self.nats, rows)

    def start(self, prompt, state):
        state.position = prompt.tokens.shape[1]
        self._write(state, state.position)
        return self._output(state, self._row(self.full, state.position))

    def step(self, token, state):
        lora = not state.refresher.begin()
        if not lora and state.schedule.repairs:
            return self.repair(token, state)
        if state.schedule.repairs:
            state.pending.append(token)
        self.calls.append(int(token))
        state.position += 1
        self._write(state, 1)
        return self._output(state, self._row(self.draft if lora else self.full, state.position))

    def repair(self, token, state):
        rows, state.pending = len(state.pending) + (token is not None), []
        if token is not None:
            self.calls.append(int(token))
            state.position += 1
            self._write(state, 1)
        first = state.position - rows + 1
        logits = torch.cat([self._row(self.full, first + row) for row in range(rows)])
        return self._output(state, logits if state.schedule.verifies else logits[-1:], rows)

    def entropy(self, logits):
        return float(logits.amax()) + 0.25


class Ticks:
    """A clock on which a pass takes 3 ms to its mark, and 1 ms more to a second one: the wait for the token."""

    def start(self):
        self.marks = 0

    def __init__(self, device):
        self.marks = None

    def mark(self):
        self.marks += 1

    def read(self):
        assert self.marks
        return 2.0 + self.marks

    def stop(self):
        self.mark()
        return self.read()

    def more(self):
        return contextlib.nullcontext()


@pytest.fixture(autouse=True)
def ticks(monkeypatch):
    monkeypatch.setattr(module, "Clock", Ticks)


def lane(decoder, schedule=None, count=8, stop=(), prompt=None, sampling=None, **options):
    schedule = schedule or baseline_schedule(LAYERS)
    prompt = torch.zeros(1, PROMPT, dtype=torch.long) if prompt is None else prompt
    return Lane(decoder, prompt, schedule, None, sampling or Sampling(), count, frozenset(stop), **options)


def verifying(accept=1.0, period=4):
    return Schedule(period, LAYERS, (2,), kv="write", refresh="repair", accept=accept)


def brief(event):
    """An event in a few numbers: a step with its kind, token and rows; a rewind; a last pass."""
    if isinstance(event, StepResult):
        return event.step, event.kind, event.token_id, event.rows
    return ("rewind", event.to) if isinstance(event, Rewind) else ("verified", event.rows, event.accepted)


COUNT = list(range(1, 9))  # the full model's tokens


def test_a_plain_lane():
    decoder = Scripted(COUNT)
    one = lane(decoder, count=4)
    assert one.decode_steps == 0 and one.verified == 0
    steps = list(one)
    assert [brief(step) for step in steps] == [
        (0, "prefill", 1, 1), (1, "refresh", 2, 1), (2, "refresh", 3, 1), (3, "refresh", 4, 1),
    ]  # fmt: skip
    assert decoder.calls == [("new_state", PROMPT + 3, False, PROMPT), "read_prompt", 1, 2, 3]
    assert one.tokens == [1, 2, 3, 4] and one.ended == "length" and one.verified == 4
    assert [step.ms for step in steps] == [11.0, 4.0, 4.0, 4.0]  # prefill: 7 for the prompt, 4 for its own
    assert (one.prefill_ms, one.decode_ms, one.clock_ms) == (11.0, 12.0, 23.0)
    assert one.decode_steps == 3
    assert [step.entropy for step in steps] == [0.25] * 4  # the decoder's own
    token = 2 * LAYERS * 2 * 4  # bytes of a token's K/V
    assert [step.kv_bytes for step in steps] == [token * n for n in (5, 6, 7, 8)] and one.kv_bytes == token * 8
    assert all(step.active == [1] * LAYERS and step.trigger is None for step in steps)


def test_a_prompt_that_has_been_read_counts_in_each_lane():
    decoder = Scripted(COUNT)
    prompt = decoder.read_prompt(torch.zeros(1, PROMPT, dtype=torch.long))
    assert [next(lane(decoder, prompt=prompt)).ms for _ in range(2)] == [11.0, 11.0]
    assert decoder.calls.count("read_prompt") == 1


@pytest.mark.parametrize("runs_ahead", [False, True])
@pytest.mark.parametrize(("stop", "count", "written", "ended"), [
    ((3,), 8, [1, 2, 3], "stop"), ((1,), 8, [1], "stop"), ((8,), 8, COUNT, "stop"), ((), 3, [1, 2, 3], "length"),
    ((9,), 1, [1], "length"), ((9,), 2, [1, 2], "length"),
])  # fmt: skip
def test_where_it_ends(runs_ahead, stop, count, written, ended):
    decoder = Scripted(COUNT, runs_ahead=runs_ahead)
    one = lane(decoder, count=count, stop=stop)
    steps = list(one)
    assert one.tokens == written and one.ended == ended and list(one) == []
    assert one.state.position == one.state.kv.lengths[0] == PROMPT + len(written) - 1
    assert one.state.refresher.step == len(written) - 1 and one.kv_bytes == steps[-1].kv_bytes
    launched = [call for call in decoder.calls if isinstance(call, int)]
    extra = runs_ahead and ended == "stop" and len(written) < count  # the pass that is undone
    assert launched == written[:-1] + written[-1:] * extra


def test_a_pass_in_flight_is_not_in_its_figures():
    one = lane(Scripted(COUNT, runs_ahead=True), count=4)
    token = 2 * LAYERS * 2 * 4
    for n, step in enumerate(one):
        assert one.kv_bytes == step.kv_bytes == token * (PROMPT + n)
        assert step.ms == (3.0 if n else 10.0), "without the wait, in which the next pass runs"
        assert one.state.kv.nbytes == token * (PROMPT + min(n + 1, 3)), "the next pass has run, but for the last"


def test_where_the_device_runs_ahead_all_lanes_are_timed_alike():
    """By the device alone: a lane whose host has to judge waits too, off its clock."""
    for schedule in (baseline_schedule(LAYERS), verifying()):
        one = lane(Scripted(COUNT, COUNT, runs_ahead=True), schedule, count=7)
        assert {event.ms for event in list(one)[1:]} == {3.0}


def test_the_likeliest_tokens_come_with_a_step_off_the_clock():
    """Of the row that stands, also after a rejection, and only where the device runs ahead."""
    drafts = [*COUNT[:2], 15, *COUNT[3:]]
    steps = [
        s for s in lane(Scripted(COUNT, drafts, runs_ahead=True), verifying(), top=2) if isinstance(s, StepResult)
    ]
    for step in steps:
        ids, chances = likeliest(step.logits, 2)
        assert step.top == list(zip(ids[0].tolist(), chances[0].tolist(), strict=True))
        assert step.top[0][0] == step.token_id
    assert next(lane(Scripted(COUNT), top=2)).top is None


def test_all_drafts_accepted():
    one = lane(Scripted(COUNT, COUNT), verifying(), count=7)
    events = list(one)
    assert [brief(event) for event in events] == [
        (0, "prefill", 1, 1),
        *((n, "lora", n + 1, 1) for n in (1, 2, 3)),
        (4, "refresh", 5, 4),
        (5, "lora", 6, 1), (6, "lora", 7, 1),
        ("verified", 2, 2),
    ]  # fmt: skip
    assert one.tokens == COUNT[:7] and (one.drafts, one.accepted) == (5, 5) and one.ended == "length"
    assert [event.ms for event in events] == [11.0] + [4.0] * 7 and one.decode_ms == 28.0
    assert one.decode_steps == 6


@pytest.mark.parametrize(("accept", "verified"), [(1.0, [1, 1, 1, 1, 5, 5, 5, 7]), (0.0, [1, 2, 3, 4, 5, 6, 7])])
def test_how_many_tokens_are_verified_at_each_step(accept, verified):
    """Where nothing is rejected, all at once."""
    one = lane(Scripted(COUNT, COUNT), verifying(accept), count=7)
    assert [one.verified for _ in one] == verified and one.ended == "length"


@pytest.mark.parametrize("wrong", [1, 2, 3])
def test_a_rejected_draft_comes_again(wrong):
    """The draft of step `wrong` is 15: the pass of step 4 rejects it, and those after it."""
    drafts = [15 if n == wrong else token for n, token in enumerate(COUNT)]
    decoder = Scripted(COUNT, drafts)
    one = lane(decoder, verifying(), count=6)
    events = list(one)
    assert [brief(event) for event in events[:6]] == [
        (0, "prefill", 1, 1),
        *((n, "lora", drafts[n], 1) for n in (1, 2, 3)),
        ("rewind", wrong - 1),
        (wrong, "refresh", COUNT[wrong], 4),
    ]
    assert one.tokens == COUNT[:6] and one.drafts - one.accepted == 4 - wrong
    assert all(isinstance(event, StepResult | Verified) for event in events[6:])
    assert one.state.position == PROMPT + 5
    steps = [event for event in events if not isinstance(event, Rewind)]
    assert one.decode_ms == pytest.approx(4.0 * (len(steps) - 1)), "the rejected pass counts once"


def test_the_last_drafts_are_verified_by_a_pass_of_their_own():
    """The second of two is wrong: the pass rejects it, and the full model's token ends the lane."""
    drafts = [*COUNT[:2], 15, *COUNT[3:]]
    one = lane(Scripted(COUNT, drafts), verifying(), count=3)
    events = list(one)
    assert [brief(event) for event in events] == [
        (0, "prefill", 1, 1), (1, "lora", 2, 1), (2, "lora", 15, 1), ("rewind", 1), (2, "refresh", 3, 2),
    ]  # fmt: skip
    assert one.tokens == [1, 2, 3] and one.ended == "length" and (one.drafts, one.accepted) == (2, 1)
    assert one.decode_ms == 3 * 4.0 and one.state.refresher.refreshes == 1 and one.verified == 3


@pytest.mark.parametrize("wrong", [False, True])
def test_a_stop_token_among_the_drafts(wrong):
    """9 ends the text: accepted, the lane ends with it; rejected, the text goes on."""
    full = [1, 2, *([4] if wrong else [9]), 5, 6, 7]
    one = lane(Scripted(full, [1, 2, 9, 5, 6, 7]), verifying(), count=5, stop=(9,))
    events = [brief(event) for event in one]
    if wrong:
        assert ("rewind", 1) in events and one.tokens == full[:5] and one.ended == "length"
    else:
        assert events[-1] == ("verified", 2, 2) and one.tokens == [1, 2, 9] and one.ended == "stop"


@pytest.mark.parametrize(
    ("accept", "logit", "accepted"),
    [(1.0, LOG_HALF, 1), (0.51, LOG_HALF, 1), (0.5, LOG_HALF, 3), (0.1, LOG_HALF, 3), (0.99, 0.0, 3), (1.0, 0.0, 1)],
)
def test_accept_is_a_ratio_of_probabilities(accept, logit, accepted):
    """Of the draft of step 2 to the full model's own token; at 1 no other token is accepted, be it as likely."""
    drafts = [*COUNT[:2], 15, *COUNT[3:]]
    decoder = Scripted(COUNT, drafts, near={PROMPT + 2: 15})
    decoder.near_logit = logit
    one = lane(decoder, verifying(accept), count=5)
    list(one)
    assert one.tokens == (COUNT[:5] if accepted == 1 else [1, 2, 15, 4, 5])
    assert one.drafts == 3 + (2 if accepted == 1 else 0), "after a rewind two drafts more"


@pytest.mark.parametrize(("accept", "tokens"), [(0.5, [1, 2, 15, 4, 5]), (0.51, COUNT[:5])])
def test_accept_compares_at_temperature_1_whatever_the_sampling(accept, tokens):
    """Half as likely in the model's own probabilities; as sampled, e^-14 as likely and outside the nucleus."""
    decoder = Scripted(COUNT, [*COUNT[:2], 15, *COUNT[3:]], near={PROMPT + 2: 15})
    one = lane(decoder, verifying(accept), count=5, sampling=Sampling(temperature=0.05, top_p=0.9))
    list(one)
    assert one.tokens == tokens


def test_the_decoders_own_choice_and_entropy_are_taken():
    """Of several rows those of the last."""

    class Choosing(Scripted):
        def _output(self, state, logits, rows=1):
            output = super()._output(state, logits, rows)
            nats = torch.arange(len(logits)) + 0.5
            return DecoderOutput(output.logits, output.watched, nats, rows, output.logits.argmax(-1, keepdim=True))

    one = lane(Choosing(COUNT, COUNT), verifying(), count=5, watch=True)
    steps = list(one)
    assert [step.token_id for step in steps] == COUNT[:5]
    assert [step.entropy for step in steps] == [0.5, 0.5, 0.5, 0.5, 3.5]
    assert steps[4].logits.shape == (1, VOCABULARY) and int(steps[4].logits.argmax()) == 5
    assert steps[4].watched.flatten().tolist() == [3.0, 7.0], "of four rows the last"


def test_a_choice_of_the_callers_gets_each_row_with_its_step():
    asked = []

    def choose(logits, step):
        asked.append((step, len(logits)))
        return logits.argmax(-1, keepdim=True)

    decoder = Scripted(COUNT, COUNT, runs_ahead=True)
    one = lane(decoder, verifying(), count=7, sampling=choose)
    assert len(list(one)) == 8 and one.tokens == COUNT[:7]
    assert asked == [(0, 1), (1, 1), (2, 1), (3, 1), (1, 4), (5, 1), (6, 1), (5, 2)]


@pytest.mark.parametrize("nats", [math.nan, math.inf])
def test_broken_logits_are_an_error(nats):
    with pytest.raises(LoraDropError, match="step 0"):
        next(lane(Scripted(COUNT, entropy=nats)))


def test_the_cause_of_broken_logits():
    skipping, bank = Schedule(4, LAYERS, (2,), reuse="anchor"), AdapterBank.new([2], 8, 2)
    assert "weights" in str(not_finite(0, skipping, bank)) and "weights" in str(not_finite(0, skipping, None))
    assert "weights" in str(not_finite(3, baseline_schedule(LAYERS), bank))
    assert "adapters" in str(not_finite(3, skipping, bank))
    assert "anchor" in str(not_finite(3, skipping, None)) and "step 3" in str(not_finite(3, skipping, None))


@pytest.mark.parametrize(
    ("schedule", "options", "ahead"),
    [
        (baseline_schedule(LAYERS), {}, True),
        (Schedule(4, LAYERS, (2,)), {}, True),
        (verifying(), {}, False),
        (Schedule(4, LAYERS, (2,), refresh_entropy=1.0), {}, False),
        (baseline_schedule(LAYERS), {"sampling": lambda logits, step: logits.argmax(-1, keepdim=True)}, False),
    ],
)
def test_when_it_looks_ahead(schedule, options, ahead):
    decoder = Scripted(COUNT, COUNT, runs_ahead=True)
    one = lane(decoder, schedule, **options)
    next(one)
    assert (decoder.calls[-1] == 1) is ahead
    decoder.runs_ahead = False
    quiet = lane(decoder, schedule, **options)
    decoder.calls.clear()
    next(quiet)
    assert decoder.calls == ["read_prompt"]


class Counted(Scripted):
    """Each pass spends 2.5 ms in kernels."""

    passes = 0

    @property
    def kernel_ms(self):
        return 2.5 * self.passes

    def _output(self, state, logits, rows=1):
        self.passes += 1
        return super()._output(state, logits, rows)


def test_what_a_pass_spends_outside_the_kernels():
    """Of 4 ms a pass; nothing is counted of prefill."""
    prefill, *passes = lane(Counted(COUNT, [1, 2, 9, *COUNT[3:]]), verifying(), count=8)
    assert prefill.outside_ms is None
    assert any(isinstance(one, Rewind) for one in passes) and isinstance(passes[-1], Verified)
    assert {one.outside_ms for one in passes if not isinstance(one, Rewind)} == {1.5}
    assert [one.outside_ms for one in lane(Scripted(COUNT), count=3)] == [None] * 3
