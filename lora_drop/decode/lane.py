"""Prefill and the decode loop of one lane. Tokens in, steps out: it knows no text and no page."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from lora_drop.decode.correction import Correction
from lora_drop.decode.logits import entropy
from lora_drop.decode.sampling import Sampling, draw
from lora_drop.decode.step import Decoder, DecodeState, StepResult
from lora_drop.errors import LoraDropError
from lora_drop.method.schedule import Schedule


class Clock:
    """Milliseconds between `start` and `stop` of one lane: CUDA events on a GPU, perf_counter on a CPU."""

    def __init__(self, device: torch.device):
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else None
        self._started = 0.0

    def start(self) -> None:
        if self._events:
            self._events[0].record()
        self._started = time.perf_counter()

    def stop(self) -> float:
        if self._events:
            self._events[1].record()
            self._events[1].synchronize()
            return self._events[0].elapsed_time(self._events[1])
        return 1000 * (time.perf_counter() - self._started)


class Lane:
    """One generation: an iterator of steps whose clock counts prefill, decode steps and the drawing of tokens.

    Whatever happens between two `next()` calls (the other lane, the audit, the page) is outside its clock.

    Args:
        decoder: the model's layers; shared by lanes, it holds nothing of a request.
        input_ids: the prompt, (1, P), on the decoder's device.
        schedule, bank: what is dropped when, and the corrections (or None).
        stop_ids: tokens that end the text; an empty set runs to `max_new_tokens`.
        watch: keep the skipped layers' outputs of each step for the audit.
    """

    def __init__(
        self,
        decoder: Decoder,
        input_ids: Tensor,
        schedule: Schedule,
        bank: Correction | None,
        sampling: Sampling,
        max_new_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
        watch: bool = False,
    ):
        self.schedule, self.sampling, self.stop_ids = schedule, sampling, stop_ids
        self.state: DecodeState = decoder.new_state(schedule, bank, input_ids.shape[1] + max_new_tokens - 1, watch)
        self.prefill_ms = self.decode_ms = 0.0
        self.decode_steps = 0
        self.ended: str | None = None  # "stop" or "length" once there is no next step
        self._decoder, self._input_ids = decoder, input_ids
        self._remaining = max_new_tokens
        self._generator = torch.Generator(device=decoder.device).manual_seed(sampling.seed)
        self._clock = Clock(decoder.device)
        self._token: Tensor | None = None  # (B, 1), the last one drawn

    @property
    def clock_ms(self) -> float:
        """All that this lane has spent."""
        return self.prefill_ms + self.decode_ms

    @property
    def tokens_per_second(self) -> float | None:
        """Decode steps per second of decoding, prefill left out; None before the first decode step."""
        return 1000 * self.decode_steps / self.decode_ms if self.decode_steps else None

    def __iter__(self) -> Iterator[StepResult]:
        return self

    @torch.inference_mode()
    def __next__(self) -> StepResult:
        """The next step. Raises LoraDropError: its logits are NaN or infinite, so its token would mean nothing."""
        if self.ended:
            raise StopIteration
        prefill = self._token is None
        self._clock.start()
        if self._token is None:
            found = self._decoder.prefill(self._input_ids, self.state)
        else:
            found = self._decoder.step(self._token, self.state)
        self._token = draw(found.logits, self.sampling, self._generator)
        token_id = int(self._token)  # waits for the device: the caller shows the token, and the clock must hold it
        ms = self._clock.stop()
        if prefill:
            self.prefill_ms = ms
        else:
            self.decode_ms += ms
            self.decode_steps += 1
        self._remaining -= 1
        if token_id in self.stop_ids:
            self.ended = "stop"
        elif self._remaining == 0:
            self.ended = "length"
        refresher = self.state.refresher
        nats = entropy(found.logits) if found.entropy is None else found.entropy
        if not math.isfinite(nats):  # then a logit is not either; the entropy is fetched anyway, so this costs nothing
            raise not_finite(refresher.step, self.schedule, self.state.bank)
        return StepResult(
            step=refresher.step,
            token_id=token_id,
            kind=refresher.kind,
            active=self.schedule.active_in(refresher.kind),
            ms=ms,
            kv_bytes=self.state.kv.nbytes,
            entropy=nats,
            logits=found.logits,
            watched=found.watched,
            trigger=refresher.trigger,
        )


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
