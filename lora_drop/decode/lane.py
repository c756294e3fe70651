"""Prefill and the decode loop of one lane: tokens in, steps out. It knows no text and no page."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_drop.decode.clock import Clock, Fetched
from lora_drop.decode.correction import Correction
from lora_drop.decode.logits import likeliest
from lora_drop.decode.lookup import PromptLookup
from lora_drop.decode.reference import Decoder
from lora_drop.decode.refresh import Refresher
from lora_drop.decode.sampling import Sampling, draw
from lora_drop.decode.step import DecoderOutput, DecodeState, Prefilled, Rewind, StepResult, Verified
from lora_drop.errors import LoraDropError
from lora_drop.method.quality import repeats_at
from lora_drop.method.schedule import Schedule

LaneEvent = StepResult | Rewind | Verified


class Lane:
    """One generation: an iterator of steps, with a clock.

    If the schedule verifies, the tokens of LoRA steps are drafts until the next full pass. Where the full model
    rejects one, the iterator yields a `Rewind`, then the first rejected step again, as a refresh. Drafts at the end of
    the text get an extra pass: if the full model accepts them all, the lane ends with a `Verified`.

    If the decoder `runs_ahead`, a lane with a fixed schedule launches its next pass before it reads the last token,
    which the device has already drawn, so the device never waits for the host. When that token ends the text, the
    launched pass is undone. There every lane's clock has the device's time, also of lanes whose host has to wait.

    The clock counts prefill, decode passes and drawing tokens. It leaves out what happens between two `next()` calls
    (the other lane, the audit, the page) and copying the prompt's K/V. A prompt that several lanes share counts in
    each of them, with the time that reading it took (`Prefilled.ms`).

    Where the schedule has a `lookup`, drafts come from the text so far and take no pass.

    Args:
        decoder: the model's layers, which lanes may share.
        prompt: tokens (1, P) on the decoder's device, or a prompt that has been read already.
        schedule: what is skipped when.
        bank: the corrections, or None.
        sampling: how tokens are drawn, or a function that draws tokens (rows, 1) from logits (rows, V), row r for step
            `step` + r. If the schedule verifies, it must draw the same token when asked twice for a step.
        stop_ids: tokens that end the text; if empty, the lane runs to `max_new_tokens`.
        watch: return the skipped layers' outputs with each step, for the audit.
        top: how many of each step's likeliest tokens to fetch where the decoder `runs_ahead`, off the clock.

    Attributes:
        state: of the decoder.
        tokens: those written so far, with the stop token; drafts among them may still be rejected.
        drafts: how many were verified so far.
        accepted: how many of these the full model accepted.
        prefill_ms: time spent on the prompt.
        decode_ms: time spent on the steps.
        ended: "stop" or "length" once there is no next step, else None.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompt: Tensor | Prefilled,
        schedule: Schedule,
        bank: Correction | None,
        sampling: Sampling | Callable[[Tensor, int], Tensor],
        max_new_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
        *,
        watch: bool = False,
        top: int = 0,
    ):
        self.schedule, self.stop_ids = schedule, stop_ids
        tokens = prompt if isinstance(prompt, Tensor) else prompt.tokens
        length = tokens.shape[1]
        self.state: DecodeState = decoder.new_state(schedule, bank, length + max_new_tokens - 1, watch, length)
        self.prefill_ms = self.decode_ms = 0.0
        self.ended: str | None = None
        self.tokens: list[int] = []
        self.drafts = self.accepted = 0
        self._decoder, self._prompt = decoder, prompt
        self._max_new_tokens = max_new_tokens
        # Whether the next pass is launched before the host reads the last token: only if nothing depends on its value.
        self._looks_ahead = decoder.runs_ahead and not (schedule.verifies or schedule.is_adaptive)
        if isinstance(sampling, Sampling):
            self._is_greedy = sampling.temperature == 0
            self._draw: Callable[[Tensor, int], Tensor] = lambda logits, step: draw(logits, sampling, step)
        else:
            self._is_greedy = self._looks_ahead = False
            self._draw = sampling
        self._token: Tensor | None = None  # (1, 1), the last one drawn
        self._top = top if decoder.runs_ahead else 0
        self._ahead: tuple[Snapshot, LaunchedPass] | None = None  # the state before the next pass, and that pass
        self._after_rewind: StepResult | None = None  # the step that follows a `Rewind`
        self._lookup: PromptLookup | None = None
        if schedule.lookup:
            self._lookup = PromptLookup(tokens[0].tolist(), schedule.lookup, schedule.period - 1, stop_ids)
        self._next_drafts: list[int] = []  # looked up, not appended yet
        self._lookup_ms = 0.0  # of a look-up without a draft: the next step counts it

    @property
    def clock_ms(self) -> float:
        """Milliseconds spent by this lane."""
        return self.prefill_ms + self.decode_ms

    @property
    def kv_bytes(self) -> int:
        """Bytes of K/V after the last step that the lane returned."""
        return self._ahead[0].kv_bytes if self._ahead else self.state.kv.nbytes

    @property
    def decode_steps(self) -> int:
        """Decode steps that were not taken back."""
        return max(0, len(self.tokens) - 1)

    @property
    def verified(self) -> int:
        """How many of `tokens` can no longer be rejected."""
        return len(self.tokens) - len(self.state.pending) if self.schedule.verifies else len(self.tokens)

    def __iter__(self) -> Iterator[LaneEvent]:
        return self

    @torch.inference_mode()
    def __next__(self) -> LaneEvent:
        """Make the next step.

        Raises:
            LoraDropError: its logits are NaN or infinite.
        """
        if self._after_rewind is not None:
            step, self._after_rewind = self._after_rewind, None
            return self._append(step)
        if self.ended:
            raise StopIteration
        if self._is_over():
            return self._verify_pending()
        return self._draft() or self._step()

    def _is_over(self) -> bool:
        """True after the stop token or the last token asked for."""
        return len(self.tokens) == self._max_new_tokens or (bool(self.tokens) and self.tokens[-1] in self.stop_ids)

    def _draft(self) -> StepResult | None:
        """Take a draft from the text so far; None where there is none."""
        if self._lookup is None or self._token is None:
            return None
        clock = Clock(self._decoder.device)
        clock.start()
        if not self.state.pending:  # the pass yields one token more than it verifies
            self._next_drafts = self._lookup.drafts(self.tokens, self._max_new_tokens - len(self.tokens) - 1)
        if not self._next_drafts:
            self._lookup_ms = 0.0 if self.state.pending else clock.stop()
            return None
        draft = self._next_drafts.pop(0)
        self._decoder.draft(self._token, self.state)
        self._token = torch.tensor([[draft]], device=self._decoder.device)
        ms = clock.stop()
        self.decode_ms += ms
        return self._append(
            StepResult(token_id=draft, ms=ms, entropy=None, logits=None, watched=None, **self._state_fields())
        )

    def _step(self) -> LaneEvent:
        """Run prefill or a decode step."""
        if self._ahead:
            launched, self._ahead = self._ahead[1], None
        else:
            launched = self._prefill() if self._token is None else self._launch(self._token)
        if self._looks_ahead and len(self.tokens) + 1 < self._max_new_tokens:
            self._ahead = Snapshot.of(self.state), self._launch(launched.choices)
        output = launched.output
        token_ids, *entropies = launched.numbers.read()  # waits for the device
        drafts = len(token_ids) - 1
        accepted = self._accept(output, token_ids[:-1], launched.clock) if drafts else 0
        if accepted < drafts:
            return self._rewind(output, accepted, launched)
        if self._ahead and token_ids[-1] in self.stop_ids:
            self._ahead[0].restore(self.state)
            self._ahead = None
        ms = launched.before_ms + self._read(launched.clock)
        if self._token is None:
            self.prefill_ms = ms
        else:
            self.decode_ms += ms
        self._token = launched.choices[-1:]
        watched = None if output.watched is None else output.watched[:, -1:]
        entropy = entropies[0][-1] if entropies else output.entropy
        last = dataclasses.replace(output, logits=output.logits[-1:], watched=watched, entropy=entropy)
        fields = (launched.state_fields or self._state_fields()) | {"outside_ms": self._outside(ms, launched)}
        return self._append(self._result(last, token_ids[-1], ms, fields, launched.top_at(-1)))

    def _prefill(self) -> LaunchedPass:
        """Read the prompt, unless another lane has, and launch the pass that draws the first token."""
        prompt = self._prompt
        if not isinstance(prompt, Prefilled):
            pruned = self.schedule.dropped if self.schedule.prunes else ()
            prompt = self._decoder.read_prompt(prompt, pruned=pruned)
        output, clock = self._decoder.start(prompt, self.state), Clock(self._decoder.device)
        clock.start()
        return self._fetch(output, clock, before_ms=prompt.ms)

    def _launch(self, token: Tensor) -> LaunchedPass:
        """Launch the decode step that reads `token` (1, 1). Only a trigger waits for the device here."""
        clock, kernel_ms = Clock(self._decoder.device), self._decoder.kernel_ms
        before_ms, self._lookup_ms = self._lookup_ms, 0.0
        clock.start()
        return self._fetch(self._decoder.step(token, self.state), clock, kernel_ms, before_ms)

    def _fetch(
        self, output: DecoderOutput, clock: Clock, kernel_ms: float | None = None, before_ms: float = 0.0
    ) -> LaunchedPass:
        """Launch the drawing of tokens from a pass's output, and their copies to the host."""
        choices = self._choices(output)
        numbers = Fetched([choices, output.entropy] if isinstance(output.entropy, Tensor) else [choices])
        clock.mark()
        top = Fetched(likeliest(output.logits, self._top)) if self._top else None
        # The next pass, launched before this one is read, changes the state. Without it they are read off the clock.
        state_fields = self._state_fields() if self._looks_ahead else None
        return LaunchedPass(output, choices, numbers, clock, before_ms, kernel_ms, state_fields, top)

    def _read(self, clock: Clock) -> float:
        """Milliseconds of a pass: on a CPU to this moment, and of the device's time where it runs ahead."""
        return clock.read() if self._decoder.runs_ahead else clock.stop()

    def _choices(self, output: DecoderOutput) -> Tensor:
        """Draw a token (rows, 1) for each row of logits, the last of which belongs to the current step."""
        if self._is_greedy and output.choice is not None:
            return output.choice
        return self._draw(output.logits, self.state.refresher.step - len(output.logits) + 1)

    def _verify_pending(self) -> LaneEvent:
        """Run the pass over the last drafts, which begins no step."""
        clock, kernel_ms = Clock(self._decoder.device), self._decoder.kernel_ms
        clock.start()
        output = self._decoder.repair(None, self.state)
        launched = self._fetch(output, clock, kernel_ms)
        accepted = self._accept(output, launched.numbers.read()[0], clock)
        if accepted < output.rows:
            return self._rewind(output, accepted, launched)
        ms = self._read(clock)
        self.decode_ms += ms
        self.ended = "stop" if self.tokens[-1] in self.stop_ids else "length"
        return Verified(output.rows, ms, accepted, self._outside(ms, launched))

    def _accept(self, output: DecoderOutput, choices: list[int], clock: Clock) -> int:
        """Count the drafts that the full model accepts: those before the first one that it rejects.

        It accepts a draft that equals its choice. With `accept` below 1 it also accepts a draft that it rates at least
        `accept` times as likely as its likeliest token; with `own_repeats` not if that draft repeats a 2-gram. These
        probabilities are the model's own, at temperature 1 and before top-p, whatever the sampling, so that the regret
        of such a draft is at most ln(1 / `accept`).

        Args:
            output: of the pass over the drafts, row r of its logits in the place of draft r.
            choices: the full model's token in the place of each draft, the last tokens of the lane.
            clock: of the pass.
        """
        count, accept = len(choices), self.schedule.accept
        drafts = self.tokens[-count:]
        accepts = [draft == choice for draft, choice in zip(drafts, choices, strict=True)]
        if accept < 1 and not all(accepts):
            with clock.more():
                logits = output.logits[:count].float()
                draft_logits = logits.gather(1, torch.tensor(drafts, device=logits.device)[:, None])[:, 0]
                likely = draft_logits >= logits.amax(1) + math.log(accept)
            ends = range(len(self.tokens) - count + 1, len(self.tokens) + 1)
            accepts = [
                is_choice or (is_likely and not (self.schedule.own_repeats and repeats_at(self.tokens, end)))
                for is_choice, is_likely, end in zip(accepts, likely.tolist(), ends, strict=True)
            ]
        accepted = accepts.index(False) if False in accepts else count
        self.drafts += count
        self.accepted += accepted
        return accepted

    def _outside(self, ms: float, launched: LaunchedPass) -> float | None:
        """How many of a pass's `ms` went by outside the decoder's kernels; None if it does not count these."""
        before, now = launched.kernel_ms, self._decoder.kernel_ms
        return None if now is None or before is None else ms - (now - before)

    def _rewind(self, output: DecoderOutput, accepted: int, launched: LaunchedPass) -> Rewind:
        """Take back the drafts after the first `accepted`; the full model's own token replaces the first of these."""
        with launched.clock.more():
            last = self._decoder.rewind(output, accepted + 1, self.state)
        self._token = launched.choices[accepted : accepted + 1]
        ms = self._read(launched.clock)
        outside_ms = self._outside(ms, launched)
        self.decode_ms += ms
        step = self.state.refresher.step
        del self.tokens[step:]
        fields, top = self._state_fields() | {"outside_ms": outside_ms}, launched.top_at(accepted)
        self._after_rewind = self._result(last, int(self._token), ms, fields, top)
        return Rewind(step - 1)

    def _state_fields(self) -> dict[str, Any]:
        """The fields of a step's result that describe the state after it."""
        refresher = self.state.refresher
        return {
            "step": refresher.step,
            "kind": refresher.kind,
            "active": self.schedule.active(refresher.kind),
            "kv_bytes": self.state.kv.nbytes,
            "trigger": refresher.trigger,
        }

    def _result(
        self, output: DecoderOutput, token: int, ms: float, fields: dict[str, Any], top: list[tuple[int, float]] | None
    ) -> StepResult:
        """The result of a step from the output of its one row and the other fields."""
        nats = self._decoder.entropy(output.logits) if output.entropy is None else float(output.entropy)
        if not math.isfinite(nats):  # then some logit is not finite; the entropy is needed anyway, so checking is free
            raise not_finite(fields["step"], self.schedule, self.state.bank)
        return StepResult(
            token_id=token,
            ms=ms,
            entropy=nats,
            logits=output.logits,
            watched=output.watched,
            rows=output.rows,
            top=top,
            **fields,
        )

    def _append(self, step: StepResult) -> StepResult:
        """Append a step's token, and end the lane if it is the last one and no draft is pending."""
        self.tokens.append(step.token_id)
        if self._is_over() and not (self.schedule.verifies and self.state.pending):
            self.ended = "stop" if step.token_id in self.stop_ids else "length"
        return step


@dataclass(frozen=True)
class LaunchedPass:
    """A pass that the device may still run, and what the host will read of it.

    Attributes:
        output: of the decoder; its logits may have several rows.
        choices: a token (rows, 1) for each row of logits.
        numbers: these tokens, and the entropy if the decoder returns it as a tensor.
        clock: started before the pass and marked after it.
        before_ms: time that the clock does not have: of reading the prompt, or of a look-up without a draft.
        kernel_ms: the decoder's count of its kernels' time before the pass; None for prefill.
        state_fields: the fields of the step's result that describe the state after it; None if no other pass is
            launched before this one is read.
        top: ids and probabilities of the likeliest tokens of each row, copied after the clock's mark.
    """

    output: DecoderOutput
    choices: Tensor
    numbers: Fetched
    clock: Clock
    before_ms: float
    kernel_ms: float | None
    state_fields: dict[str, Any] | None
    top: Fetched | None = None

    def top_at(self, row: int) -> list[tuple[int, float]] | None:
        """The likeliest tokens of a row with their probabilities; waits for them."""
        if self.top is None:
            return None
        ids, probabilities = self.top.read()
        rows = len(self.choices)
        count = len(ids) // rows
        start = row % rows * count
        return list(zip(ids[start : start + count], probabilities[start : start + count], strict=True))


@dataclass(frozen=True)
class Snapshot:
    """What a step that reads one token changes in a state.

    The contents of its buffers are left out: K/V beyond the caches' lengths is never read, and no step follows that
    would read the anchors.
    """

    position: int
    lengths: list[int]
    refresher: Refresher
    pending: list[Tensor]
    kv_bytes: int

    @classmethod
    def of(cls, state: DecodeState) -> Snapshot:
        kv = state.kv
        return cls(state.position, list(kv.lengths), copy.copy(state.refresher), list(state.pending), kv.nbytes)

    def restore(self, state: DecodeState) -> None:
        """Undo the step after this snapshot, the last one of the lane."""
        state.position, state.kv.lengths[:] = self.position, self.lengths
        state.refresher, state.pending = self.refresher, self.pending


def not_finite(step: int, schedule: Schedule, bank: Correction | None) -> LoraDropError:
    """The error for a step whose logits are NaN or infinite, with the likely cause and what to do."""
    if schedule.is_baseline or step == 0:  # every layer has run so far
        cause = (
            "the model's weights are damaged or overflow. Try dtype float32, or get its files again (`python -m "
            "lora_drop fetch --verify` checks and repairs the bundled model's)"
        )
    elif bank is not None:
        cause = "the adapters do not fit or overflow. Take adapters none, or try dtype float32"
    else:
        cause = f"rule {schedule.reuse}, or the model itself, overflows. Take another rule, or try dtype float32"
    return LoraDropError(f"the logits of step {step} are NaN or infinite, so no token can be sampled: {cause}.")
