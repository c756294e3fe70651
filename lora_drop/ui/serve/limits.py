"""What one visitor may ask of a server that many share: one set for a private server, one for a public one.

The operator changes each by an environment variable; the command line has none of them.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from dataclasses import dataclass
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.run.request import Request
from lora_drop.ui.serve import space as zero
from lora_drop.ui.serve.environment import positive_number

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """The page's and the API's limits, each set by `LORA_DROP_MAX_` and its name. The defaults are a private server's.

    Args:
        tokens: new tokens of a run, at most.
        prompt: characters of a prompt, at most; the model's context comes on top.
        seconds: of a run or a sweep on the device, at most.
        queue: runs that may wait.
        share: of these, the runs of one address.
        trace: MiB of an opened or posted trace.
        unread: MiB of answers that wait for one session to read them.
        calls: requests a second of one address, those that load the page left out.
        connections: open ones, half of them of one address, all of them of a trusted proxy.
    """

    tokens: int = 8192
    prompt: int = 100_000
    seconds: float = 600.0
    queue: int = 32
    share: int = 32
    trace: int = 64
    unread: int = 64
    calls: int = 200
    connections: int = 1000

    @classmethod
    def from_environment(cls, public: bool = False) -> Limits:
        """The operator's limits. Raises LoraDropError if a variable is no number above 0."""
        defaults: dict[str, Any] = dataclasses.asdict(PUBLIC if public else cls())
        return cls(**{n: positive_number(f"LORA_DROP_MAX_{n.upper()}", most) for n, most in defaults.items()})

    def check(self, request: Request) -> None:
        """Refuse a request over the limits. Raises LoraDropError."""
        self.check_sizes(request.prompt, request.max_new_tokens)

    def check_sizes(self, prompt: Any, tokens: Any) -> None:
        """The same of what a visitor sent, before it waits for anything; what is of no right type is not judged here.

        Raises:
            LoraDropError: it is over the limits.
        """
        if isinstance(tokens, (int, float)) and tokens > self.tokens:
            raise LoraDropError(
                f"a run here may write at most {self.tokens:,} new tokens, {tokens:,} were asked for: ask for fewer."
            )
        if isinstance(prompt, str) and len(prompt) > self.prompt:
            raise LoraDropError(
                f"a prompt here may have at most {self.prompt:,} characters, this one has {len(prompt):,}: shorten it."
            )

    @property
    def trace_bytes(self) -> int:
        """Bytes of a trace, at most."""
        return self.trace * MIB

    @property
    def unread_bytes(self) -> int:
        """Bytes of a session's unread answers, at most."""
        return self.unread * MIB

    def clock(self, stop: threading.Event | zero.StopFlag | None) -> Clock:
        """A stop flag that also stops a run once its time is up; it starts now."""
        return Clock(stop, time.monotonic() + self.seconds)


PUBLIC = Limits(
    tokens=512, prompt=8000, seconds=60.0, queue=16, share=4, trace=8, unread=16, calls=50, connections=500
)


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
