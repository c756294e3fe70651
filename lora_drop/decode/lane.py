"""Prefill and the decode loop of one lane. Tokens in, steps out: it knows no text and no page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lora_drop.decode.ahead import Before, Fetched, Launched
from lora_drop.decode.clock import Clock
from lora_drop.decode.correction import Correction
from lora_drop.decode.prompt import Prefilled
from lora_drop.decode.sampling import Sampling, draw
from lora_drop.decode.step import Decoder, DecoderOutput, DecodeState, Rewind, StepResult, Verified
from lora_drop.errors import LoraDropError
from lora_drop.method.schedule import Schedule


class Lane:
    """One generation: an iterator of steps whose clock counts prefill, decode passes and the drawing of tokens.

    In a schedule that verifies, the tokens of LoRA steps are drafts until the next full pass. Where the full model
    takes some back, the iterator gives a `Rewind` and then the first of these steps again, as a refresh; where the
    last tokens are drafts, a pass over them ends the lane, and a `Verified` if it keeps them all.

    On a decoder that `runs_ahead` a greedy lane with a fixed schedule asks for its next pass before it reads a token,
    which the device has drawn already: the device never waits for the host. Where that token ends the text, the pass
    was one too many and is taken back.

    Whatever happens between two `next()` calls (the other lane, the audit, the page) is outside its clock. So is the
    copy of the prompt's K/V that it starts from; what counts of the prompt is the time that reading it took
    (`Prefilled.ms`), in each lane that starts from it.

    Args:
        decoder: the model's layers; shared by lanes, it holds nothing of a request.
        prompt: (1, P), on the decoder's device, for this lane to read; or read already, for several lanes.
        schedule, bank: what is dropped when, and the corrections (or None).
        stop_ids: tokens that end the text; an empty set runs to `max_new_tokens`.
        watch: keep the skipped layers' outputs of each step for the audit.
        choose: draws tokens (rows, 1) from logits (rows, V), row r of which belongs to step `step` + r; None draws as
            `sampling` says. Asked twice of one step, it has to answer the same in a schedule that verifies.

    Attributes:
        tokens: those written so far, the stop token included; once the lane has ended all are accepted.
        drafts, accepted: tokens of LoRA steps that were verified, and how many of them the full model accepted.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompt: Tensor | Prefilled,
        schedule: Schedule,
        bank: Correction | None,
        sampling: Sampling,
        max_new_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
        watch: bool = False,
        choose: Callable[[Tensor, int], Tensor] | None = None,
    ):
        self.schedule, self.sampling, self.stop_ids = schedule, sampling, stop_ids
        length = (prompt if isinstance(prompt, Tensor) else prompt.tokens).shape[1]
        self.state: DecodeState = decoder.new_state(schedule, bank, length + max_new_tokens - 1, watch, length)
        self.prefill_ms = self.decode_ms = 0.0
        self.ended: str | None = None  # "stop" or "length" once there is no next step
        self.tokens: list[int] = []
        self.drafts = self.accepted = 0
        self._decoder, self._prompt = decoder, prompt
        self._max_new_tokens = max_new_tokens
        self._greedy = choose is None and sampling.temperature == 0
        self._choose = choose or (lambda logits, step: draw(logits, sampling, step))
        self._token: Tensor | None = None  # (B, 1), the last one drawn
        self._looks_ahead = decoder.runs_ahead and self._greedy and not (schedule.verifies or schedule.is_adaptive)
        self._ahead: tuple[Before, Launched] | None = None  # the next step's pass, and what the state was before it
        self._next: list[StepResult] = []  # what a `Rewind` is followed by

    @property
    def clock_ms(self) -> float:
        """All that this lane has spent."""
        return self.prefill_ms + self.decode_ms

    @property
    def kv_bytes(self) -> int:
        """Bytes that the caches hold after the last step that it gave."""
        return self._ahead[0].kv_bytes if self._ahead else self.state.kv.nbytes

    @property
    def decode_steps(self) -> int:
        """Decode steps whose tokens stand."""
        return max(0, len(self.tokens) - 1)

    @property
    def verified(self) -> int:
        """How many of `tokens` cannot be taken back any more."""
        return len(self.tokens) - len(self.state.pending) if self.schedule.verifies else len(self.tokens)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens that stand per second of decoding, prefill left out; None before the first decode step."""
        return 1000 * self.decode_steps / self.decode_ms if self.decode_steps else None

    def __iter__(self) -> Iterator[LaneEvent]:
        return self

    @torch.inference_mode()
    def __next__(self) -> LaneEvent:
        """The next step. Raises LoraDropError: its logits are NaN or infinite, so its token would mean nothing."""
        if self._next:
            return self._take(self._next.pop())
        if self.ended:
            raise StopIteration
        return self._verify_pending() if self._is_over() else self._step()

    def _is_over(self) -> bool:
        """True after the stop token, or the last one that was asked for."""
        return len(self.tokens) == self._max_new_tokens or (bool(self.tokens) and self.tokens[-1] in self.stop_ids)

    def _step(self) -> LaneEvent:
        """Prefill or a decode step."""
        now, self._ahead = self._ahead[1] if self._ahead else self._launch(self._token), None
        if self._looks_ahead and len(self.tokens) + 1 < self._max_new_tokens:
            self._ahead = Before.of(self.state), self._launch(now.choices)
        found = now.found
        token_ids, *nats = now.numbers.read()  # waits for the device
        rows = len(token_ids)
        accepted = self._accept(found, token_ids[:-1]) if rows > 1 else 0
        if accepted < rows - 1:
            return self._rewind(found, accepted, now.choices, now.clock)
        if self._ahead and token_ids[-1] in self.stop_ids:
            self._ahead[0].restore(self.state)
            self._ahead = None
        # Where nothing is asked for meanwhile, the clock holds the wait: the caller shows the token.
        ms = now.read_ms + (now.clock.read() if self._looks_ahead else now.clock.stop())
        if self._token is None:
            self.prefill_ms = ms
        else:
            self.decode_ms += ms
        self._token = now.choices[-1:]
        known = nats[0][-1] if nats else found.entropy
        last = dataclasses.replace(found, logits=found.logits[-1:], watched=_last_row(found), entropy=known)
        return self._take(self._result(last, token_ids[-1], ms, now.about))

    def _launch(self, token: Tensor | None) -> Launched:
        """Ask for prefill, or for the decode step that reads a token. It waits for the device in a trigger alone."""
        clock, read_ms = Clock(self._decoder.device), 0.0
        if token is None:
            prompt = self._prompt
            prompt = prompt if isinstance(prompt, Prefilled) else self._decoder.read_prompt(prompt)
            read_ms, found = prompt.ms, self._decoder.start(prompt, self.state)
            clock.start()
        else:
            clock.start()
            found = self._decoder.step(token, self.state)
        rows = found.logits.shape[0] if self.schedule.verifies else 1
        number = self.state.refresher.step - rows + 1  # of the first step that the logits are of
        choices = self._choices(found, number)
        numbers = Fetched([choices, found.entropy] if isinstance(found.entropy, Tensor) else [choices])
        clock.mark()
        return Launched(found, choices, numbers, clock, read_ms, self._about())

    def _choices(self, found: DecoderOutput, step: int) -> Tensor:
        """A token (rows, 1) for each row of logits, the first of which is of step `step`."""
        if self._greedy and found.choice is not None:
            return found.choice
        return self._choose(found.logits, step)

    def _verify_pending(self) -> LaneEvent:
        """The pass over the last drafts, which begins no step."""
        clock = Clock(self._decoder.device)
        clock.start()
        found = self._decoder.repair(None, self.state)
        choices = self._choices(found, self.state.refresher.step - found.rows + 1)
        accepted = self._accept(found, choices[:, 0].tolist())
        if accepted < found.rows:
            return self._rewind(found, accepted, choices, clock)
        ms = clock.stop()
        self.decode_ms += ms
        self.ended = "stop" if self.tokens[-1] in self.stop_ids else "length"
        return Verified(found.rows, ms, accepted)

    def _accept(self, found: DecoderOutput, choices: list[int]) -> int:
        """How many of the last tokens, drafts, the full model keeps: up to the first that it does not.

        Args:
            found: of the pass.
            choices: what the full model draws in the place of each.
        """
        count, accept = len(choices), self.schedule.accept
        drafts = self.tokens[-count:]
        stays = [draft == choice for draft, choice in zip(drafts, choices, strict=True)]
        if accept < 1 and not all(stays):
            rows, best = found.logits[:count].float(), found.choice
            theirs = rows.gather(-1, torch.tensor(drafts, device=rows.device)[:, None])[:, 0]
            tops = rows.gather(-1, best[:count])[:, 0] if best is not None else rows.amax(-1)
            likely = (theirs >= tops + math.log(accept)).tolist()
            stays = [same or fits for same, fits in zip(stays, likely, strict=True)]
        accepted = stays.index(False) if False in stays else count
        self.drafts += count
        self.accepted += accepted
        return accepted

    def _rewind(self, found: DecoderOutput, accepted: int, choices: Tensor, clock: Clock) -> Rewind:
        """Take back the drafts after the first `accepted`; the full model's own choice stands there."""
        taken = self._decoder.rewind(found, accepted + 1, self.state)
        self._token = choices[accepted : accepted + 1]
        ms = clock.stop()
        self.decode_ms += ms
        del self.tokens[self.state.refresher.step :]
        self._next = [self._result(taken, int(self._token), ms, self._about())]
        return Rewind(self.state.refresher.step - 1)

    def _about(self) -> dict[str, Any]:
        """What a step's record has of the state that it leaves."""
        refresher = self.state.refresher
        return {
            "step": refresher.step,
            "kind": refresher.kind,
            "active": self.schedule.active(refresher.kind),
            "kv_bytes": self.state.kv.nbytes,
            "trigger": refresher.trigger,
        }

    def _result(self, found: DecoderOutput, token_id: int, ms: float, about: dict[str, Any]) -> StepResult:
        nats = self._decoder.entropy(found.logits) if found.entropy is None else float(found.entropy)
        if not math.isfinite(nats):  # then a logit is not either; the entropy is fetched anyway, so this costs nothing
            raise not_finite(about["step"], self.schedule, self.state.bank)
        shown: dict[str, Any] = {"logits": found.logits, "watched": found.watched, "rows": found.rows}
        return StepResult(token_id=token_id, ms=ms, entropy=nats, **shown, **about)

    def _take(self, step: StepResult) -> StepResult:
        """Count a step's token, and see whether the lane ends with it."""
        self.tokens.append(step.token_id)
        if self._is_over() and not (self.schedule.verifies and self.state.pending):
            self.ended = "stop" if step.token_id in self.stop_ids else "length"
        return step


LaneEvent = StepResult | Rewind | Verified


def _last_row(found: DecoderOutput) -> Tensor | None:
    return None if found.watched is None else found.watched[:, -1:]


def not_finite(step: int, schedule: Schedule, bank: Correction | None) -> LoraDropError:
    """The line for a step's logits that are NaN or infinite: what can be the cause, and what to do."""
    if schedule.is_baseline or step == 0:  # every layer has run so far
        cause = (
            "the model's weights are damaged or overflow. Try dtype float32, or get its files again (`python -m "
            "lora_drop fetch --verify` checks and repairs the bundled model's)"
        )
    elif bank is not None:
        cause = "the adapters do not fit or overflow. Take adapters none, or try dtype float32"
    else:
        cause = f"rule {schedule.reuse}, or the model itself, overflows. Take another rule, or try dtype float32"
    return LoraDropError(f"the logits of step {step} are NaN or infinite, which makes no token: {cause}.")
