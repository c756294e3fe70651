"""Public or private: decided once when the page starts, with what follows from it, and whose request a request is."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from lora_drop.errors import LoraDropError
from lora_drop.ui.serve.environment import in_space
from lora_drop.ui.serve.limits import Limits

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ANY_HOST = "*"


@dataclass(frozen=True)
class Policy:
    """How the page treats those who reach it.

    Args:
        public: strangers may come. The limits are `PUBLIC`, models are an allow-list, there is no monitoring page.
        hosts: names that a request's Host header may have, `*.name` for all below it; `*` is any.
        hops: proxies before this server that can be trusted, each of which adds an address to X-Forwarded-For.
        token: what the owner's requests carry; without one there are no metrics and no pause.
    """

    public: bool = False
    limits: Limits = field(default_factory=Limits)
    hosts: tuple[str, ...] = (ANY_HOST,)
    hops: int = 0
    token: str = ""

    @classmethod
    def from_environment(cls, public: bool | None = None, host: str | None = None, share: bool = False) -> Policy:
        """The operator's choice: `public`, else LORA_DROP_PUBLIC, else by where the page can be reached from.

        Args:
            host: the address to listen on; None is Gradio's default, 127.0.0.1.
            share: the page is also given an address of the web.

        Raises:
            LoraDropError: a variable is none of what it may be.
        """
        local = not share and (host is None or is_loopback(host))
        if public is None:
            public = _flag("LORA_DROP_PUBLIC", os.environ.get("LORA_DROP_PUBLIC", ""))
        if public is None:
            public = in_space() or not local
        named = tuple(name.strip().lower() for name in os.environ.get("LORA_DROP_ALLOWED_HOSTS", "").split(","))
        named = tuple(filter(None, named))
        own = (*LOOPBACK, *((host.lower().strip("[]"),) if host else ()))
        return cls(
            public=public,
            limits=Limits.from_environment(public),
            hosts=(*own, *named) if local else named or (ANY_HOST,),
            hops=_count("LORA_DROP_TRUSTED_HOPS", os.environ.get("LORA_DROP_TRUSTED_HOPS", "")),
            token=os.environ.get("LORA_DROP_OWNER_TOKEN", "").strip(),
        )

    def allows_host(self, header: str) -> bool:
        """Whether the page answers to this name. Another one is a page elsewhere that had its own name led here."""
        name = host_of(header)
        return any(
            known == ANY_HOST or name == known or (known.startswith("*.") and name.endswith(known[1:]))
            for known in self.hosts
        )

    def address(self, peer: str | None, forwarded: Sequence[str]) -> str:
        """Whose request it is, for turns and shares: an IPv4 address, or the first 64 bits of an IPv6 one.

        Args:
            peer: the address that the connection comes from.
            forwarded: the lines of X-Forwarded-For. Whoever asks can write them: only the last `hops` entries, which
                the trusted proxies added, are looked at.
        """
        entries = [entry.strip() for line in forwarded for entry in line.split(",")]
        text = entries[-self.hops] if 0 < self.hops <= len(entries) else peer or ""
        return _network(text) or _network(peer or "") or "unknown"


def is_loopback(host: str) -> bool:
    """True if only this machine can reach what listens there."""
    name = host.lower().strip("[]")
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def host_of(header: str) -> str:
    """The name in a Host header, without its port."""
    text = header.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _network(text: str) -> str:
    """The address, an IPv6 one cut to its /64; empty if it is none."""
    name = text.strip()
    if name.startswith("[") or name.count(":") == 1:
        name = host_of(name)
    try:
        found = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


def _flag(variable: str, text: str) -> bool | None:
    known = {"": None, "1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.strip().lower() not in known:
        raise LoraDropError(f"the variable {variable} must be 1 or 0, not {text[:40]!r}.")
    return known[text.strip().lower()]


def _count(variable: str, text: str) -> int:
    if text.strip() and not (text.strip().isdecimal() and len(text) < 4):
        raise LoraDropError(f"the variable {variable} must be a number of proxies, 0 or more, not {text[:40]!r}.")
    return int(text.strip() or 0)
