"""What one visitor may ask of a server that many share; the operator sets it by environment variables."""

from __future__ import annotations

import dataclasses
import threading
import time
from dataclasses import dataclass
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.run.request import Request
from lora_drop.runtime import positive_number
from lora_drop.ui import space as zero


@dataclass(frozen=True)
class Limits:
    """The page's and the API's limits; the command line has none of them.

    Args:
        tokens: new tokens of a run, at most (`LORA_DROP_MAX_TOKENS`).
        prompt: characters of a prompt, at most (`LORA_DROP_MAX_PROMPT`); the model's context comes on top.
        queue: runs that may wait (`LORA_DROP_MAX_QUEUE`).
        seconds: of a run or a sweep on the device, at most (`LORA_DROP_MAX_SECONDS`).
    """

    tokens: int = 8192
    prompt: int = 100_000
    queue: int = 32
    seconds: float = 600.0

    @classmethod
    def from_environment(cls) -> Limits:
        """The operator's limits. Raises LoraDropError if a variable is no number above 0."""
        fields: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(cls)}
        return cls(**{n: positive_number(f"LORA_DROP_MAX_{n.upper()}", most) for n, most in fields.items()})

    def check(self, request: Request) -> None:
        """Refuse a request over the limits, before it waits for anything. Raises LoraDropError."""
        if request.max_new_tokens > self.tokens:
            raise LoraDropError(
                f"a run here may write at most {self.tokens:,} new tokens, {request.max_new_tokens:,} were asked for: "
                "ask for fewer."
            )
        if len(request.prompt) > self.prompt:
            raise LoraDropError(
                f"a prompt here may have at most {self.prompt:,} characters, this one has {len(request.prompt):,}: "
                "shorten it."
            )

    def clock(self, stop: threading.Event | zero.StopFlag | None) -> Clock:
        """A stop flag that also stops a run once its time is up; it starts now."""
        return Clock(stop, time.monotonic() + self.seconds)


@dataclass
class Clock:
    """A stop flag with an end of its own: a run that asks it after each step stops softly, and keeps what it has."""

    stop: threading.Event | zero.StopFlag | None
    end: float  # on the monotonic clock, in seconds

    @property
    def is_up(self) -> bool:
        """True once the time is over."""
        return time.monotonic() > self.end

    def is_set(self) -> bool:
        """True once the visitor or the clock stops the run."""
        return self.is_up or (self.stop is not None and self.stop.is_set())
