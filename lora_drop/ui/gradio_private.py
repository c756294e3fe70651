"""What is changed inside of Gradio, where it has no setting for it. All of it is here (read in 6.31).

`tests/ui/test_gradio_private.py` fails where a version of Gradio no longer works as is said here.

- **Values of components.** For each of 10,000 sessions Gradio keeps the last value of every component, for links that
  this page does not make: the whole text of a run, and 10 MB after /replay. Here no value is kept.
- **Unread messages.** For each of 2,000 sessions it keeps the messages that were not fetched, and drops the session
  that came first, not the one that was silent for longest: a page left open could lose its run that way, and a message
  for a session that was dropped while it waits ends Gradio's whole queue with a KeyError. Here `Unread` keeps them.
- **Other hosts.** Gradio fetches any public address of the web that a visitor names, by its file route and for the
  files that a call names. Here the server asks no other host; what loads models has ways of its own.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import gradio as gr
import safehttpx
from gradio.state_holder import SessionState

KEPT_SESSIONS = 200  # 0.2 MB each, and the sweep that a visitor ran; many more than can wait in the queue


class Unread(OrderedDict):
    """The unread messages of so many sessions; the one that was not read or written for longest makes room.

    What is sent to a session that is not kept is lost, and nothing else.
    """

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def __getitem__(self, session: str) -> asyncio.Queue:
        if session not in self:
            return asyncio.Queue()
        self.move_to_end(session)
        return super().__getitem__(session)

    def __setitem__(self, session: str, messages: asyncio.Queue) -> None:
        super().__setitem__(session, messages)
        self.move_to_end(session)
        while len(self) > self.most:
            del self[next(iter(self))]

    def __delitem__(self, session: str) -> None:
        if session in self:
            super().__delitem__(session)


def keep_few_sessions(demo: gr.Blocks) -> int:
    """Bound what is kept; call it after `demo.queue`. Returns the capacity that `demo.launch` is to be given."""
    SessionState._update_value_in_config = lambda self, key, value: None  # type: ignore[method-assign]
    demo._queue.pending_messages_per_session = Unread(KEPT_SESSIONS)  # type: ignore[assignment]
    return KEPT_SESSIONS


def ask_no_other_host() -> None:
    """Refuse every address of the web that a visitor names, for the whole process."""
    safehttpx.async_validate_url = _refuse  # Gradio checks each such address with it first


async def _refuse(hostname: str) -> str:
    raise ValueError(f"this app asks no other host, and not {hostname[:80]!r}")
