"""The owner's own addresses: figures of the server, and a switch that lets no further run begin.

They are there only where `LORA_DROP_OWNER_TOKEN` is set, and answer to that token alone:

    curl -H "Authorization: Bearer $TOKEN" https://.../metrics
    curl -X POST -H "Authorization: Bearer $TOKEN" https://.../pause    (or /resume)
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from lora_drop.ui.serve.counters import Counters
from lora_drop.ui.serve.policy import Policy

PAUSED = "Paused: runs that wait or are on go on, no further one is taken.\n"


def routes(policy: Policy, counters: Counters, now: Callable[[], dict[str, float]]) -> list[Route]:
    """The addresses; none without a token.

    Args:
        now: values of this moment, by the names of their metrics.
    """
    if not policy.token:
        return []

    def owners(answer: Callable[[], str]) -> Callable[[Request], Response]:
        def checked(request: Request) -> Response:
            asked = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(asked, f"Bearer {policy.token}".encode()):
                return PlainTextResponse("This address is the owner's.\n", 401, {"WWW-Authenticate": "Bearer"})
            return PlainTextResponse(answer())

        return checked

    def pause(paused: bool) -> Callable[[], str]:
        def switch() -> str:
            counters.paused = paused
            return (
                "Paused: runs that wait or are on go on, no further one begins.\n" if paused else "Runs begin again.\n"
            )

        return switch

    return [
        Route("/metrics", owners(lambda: counters.text(**now()))),
        Route("/pause", owners(pause(True)), methods=["POST"]),
        Route("/resume", owners(pause(False)), methods=["POST"]),
    ]
