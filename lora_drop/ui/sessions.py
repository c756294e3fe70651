"""What Gradio keeps of each session in memory, kept small: it has no setting for most of it (read in 6.31).

For each of 10,000 sessions it keeps the last value of every component, for links that this page does not make: the
whole text of a run, and 10 MB after /replay. For each of 2,000 it keeps the messages that were not fetched, and drops
the session that came first, not the one that was silent for longest: a page left open could lose its run that way.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import gradio as gr
from gradio.state_holder import SessionState

KEPT_SESSIONS = 200  # 0.2 MB each, and the sweep that a visitor ran; many more than can wait in the queue


class LastUsed(OrderedDict):
    """A dict of so many entries; the one that was not read for longest makes room."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        self.move_to_end(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while len(self) > self.most:
            del self[next(iter(self))]


def keep_few(demo: gr.Blocks) -> int:
    """Bound what is kept; call it after `demo.queue`. Returns the capacity that `demo.launch` is to be told."""
    SessionState._update_value_in_config = lambda self, key, value: None
    demo._queue.pending_messages_per_session = LastUsed(KEPT_SESSIONS)
    return KEPT_SESSIONS
