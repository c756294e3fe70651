"""Public or private, decided once at the start, with the limits that follow; and the address behind a request.

The operator changes each limit by an environment variable, never on the command line.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from lora_drop.errors import LoraDropError
from lora_drop.ui.serve import space as zero
from lora_drop.ui.serve.environment import in_space, positive_number, read_variable

MIB = 2**20
SMALL = 64 * 1024  # bytes of a body that is always accepted, so that Run and Stop work while others send traces
LOOPBACK = ("localhost", "127.0.0.1", "::1")
ANY_HOST = "*"
ENDING = threading.Event()  # the process ends: every run and sweep stops at its next step
Hops = Annotated[int, Field(ge=0, lt=1000)]


@dataclass(frozen=True)
class Limits:
    """Limits of the page and the API, each set by `LORA_DROP_MAX_` and its name. The defaults are a private server's.

    Args:
        tokens: new tokens of a run.
        prompt: characters of a prompt; the model's context is a further limit.
        seconds: time of a run or a sweep on the device.
        queue: runs that may wait.
        share: waiting runs of one address.
        trace: size of an opened or posted trace, in MiB.
        unread: unread answers of one session, in MiB.
        calls: requests a second from one address, without those that load the page.
        connections: open connections; one address may have half of them, a trusted proxy all.
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
        """Read the operator's limits. Raises LoraDropError if a variable is not a number above 0."""
        defaults: dict[str, Any] = dataclasses.asdict(PUBLIC if public else cls())
        return cls(**{n: positive_number(f"LORA_DROP_MAX_{n.upper()}", most) for n, most in defaults.items()})

    def check(self, prompt: Any, tokens: Any) -> None:
        """Check a run's prompt and number of tokens; a value of the wrong type is left to later checks.

        Raises:
            LoraDropError: a value is over the limits.
        """
        if isinstance(tokens, (int, float)) and tokens > self.tokens:
            raise LoraDropError(
                f"a run here may write at most {self.tokens:,} new tokens, got {tokens:,}: ask for fewer."
            )
        if isinstance(prompt, str) and len(prompt) > self.prompt:
            raise LoraDropError(
                f"a prompt here may have at most {self.prompt:,} characters, got {len(prompt):,}: shorten it."
            )

    @property
    def trace_bytes(self) -> int:
        """Largest trace in bytes."""
        return self.trace * MIB

    @property
    def body_bytes(self) -> int:
        """Largest body of a call without a trace. A character may take 12 bytes of JSON, as `\\ud83d\\ude00` does."""
        return SMALL + 12 * self.prompt

    @property
    def unread_bytes(self) -> int:
        """Most unread bytes of a session."""
        return self.unread * MIB

    def clock(self, stop: zero.Stop | None) -> Clock:
        """A stop flag that also stops a run when its time is up, counted from now."""
        return Clock(stop, time.monotonic() + self.seconds)


PUBLIC = Limits(
    tokens=512, prompt=8000, seconds=60.0, queue=16, share=4, trace=8, unread=16, calls=50, connections=500
)


@dataclass
class Clock:
    """A stop flag with a time limit. A run checks it after each step and keeps what it wrote."""

    stop: zero.Stop | None
    end: float  # on the monotonic clock, in seconds

    def restart(self, seconds: float) -> None:
        """Count the limit anew, from now."""
        self.end = time.monotonic() + seconds

    @property
    def is_up(self) -> bool:
        """True once the time is over."""
        return time.monotonic() > self.end

    def is_set(self) -> bool:
        """True once the visitor, the time limit or the end of the process stops the run."""
        return self.is_up or ENDING.is_set() or (self.stop is not None and self.stop.is_set())


@dataclass(frozen=True)
class Policy:
    """How the page treats its visitors.

    Args:
        public: strangers may come. The limits are `PUBLIC`, models come from an allow-list, and there is no monitoring
            page.
        hosts: allowed Host headers; `*.name` allows all subdomains, `*` any name.
        hops: trusted proxies in front of this server, each of which appends an address to X-Forwarded-For.
        token: the owner's secret; without one there are no metrics and no pause.
    """

    public: bool = False
    limits: Limits = field(default_factory=Limits)
    hosts: tuple[str, ...] = (ANY_HOST,)
    hops: int = 0
    token: str = ""

    @classmethod
    def from_environment(cls, public: bool | None = None, host: str | None = None, share: bool = False) -> Policy:
        """Read the operator's choice: `public`, else LORA_DROP_PUBLIC, else public if others can reach the page.

        Args:
            host: the address to listen on; None is Gradio's default, 127.0.0.1.
            share: the page also gets a public web address.

        Raises:
            LoraDropError: a variable has an invalid value.
        """
        local = not share and (host is None or is_loopback(host))
        if public is None:
            public = read_variable("LORA_DROP_PUBLIC", bool | None, None, "1 or 0")
        if public is None:
            public = in_space() or not local
        named = tuple(name.strip().lower() for name in os.environ.get("LORA_DROP_ALLOWED_HOSTS", "").split(","))
        named = tuple(filter(None, named))
        local_hosts = (*LOOPBACK, *((host.lower().strip("[]"),) if host else ()))
        return cls(
            public=public,
            limits=Limits.from_environment(public),
            hosts=(*local_hosts, *named) if local else named or (ANY_HOST,),
            hops=read_variable("LORA_DROP_TRUSTED_HOPS", Hops, 0, "a number of proxies, 0 or more"),
            token=os.environ.get("LORA_DROP_OWNER_TOKEN", "").strip(),
        )

    @property
    def tells_apart(self) -> bool:
        """Whether an address is its visitor's. The Hub has several proxies: a visitor comes through any of them."""
        return self.hops > 0 or not in_space()

    def allows_host(self, header: str) -> bool:
        """Whether the page answers to this Host header. Another name may be a DNS rebinding attack."""
        name = host_of(header)
        return any(
            pattern in (ANY_HOST, name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))
            for pattern in self.hosts
        )

    def address(self, peer: str | None, forwarded: Sequence[str]) -> str:
        """The client's address, for turns and shares: an IPv4 address, or the first 64 bits of an IPv6 one.

        Args:
            peer: the address that the connection comes from.
            forwarded: the lines of X-Forwarded-For. A client can forge them, so only the last `hops` entries, which
                the trusted proxies appended, count.
        """
        entries = [entry.strip() for line in forwarded for entry in line.split(",")]
        text = entries[-self.hops] if 0 < self.hops <= len(entries) else peer or ""
        return _network(text) or _network(peer or "") or "unknown"


def is_loopback(host: str) -> bool:
    """True if only this machine can reach the address."""
    name = host.lower().strip("[]")
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def host_of(header: str) -> str:
    """The name in a Host header without the port."""
    text = header.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _network(text: str) -> str:
    """An address, IPv6 cut to its /64; empty if the text is not an address."""
    name = text.strip()
    if name.startswith("[") or name.count(":") == 1:
        name = host_of(name)
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
