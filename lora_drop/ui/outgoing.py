"""The page's server asks no other host: Gradio would fetch any public address of the web that a visitor names."""

from __future__ import annotations

import safehttpx


async def _refuse(hostname: str) -> str:
    raise ValueError(f"this app asks no other host, and not {hostname[:80]!r}")


def refuse() -> None:
    """Refuse them all, for the whole process: Gradio checks each such address here first (read in 6.31).

    These are its file route and the files that a call names; what loads models has ways of its own.
    """
    safehttpx.async_validate_url = _refuse
