"""Gradio's queue with turns, shares and a bound on what is not read (read in Gradio 6.31).

Who waits in Gradio's queue holds no thread; who waits in a generator does. So the turns are made here, where Gradio
takes the next event. `tests/ui/test_gradio_private.py` fails where a version of Gradio no longer works as said here.

- **Turns.** Gradio serves in the order of asking, and anyone may ask as often as the queue holds. Here a session has
  one run that waits, an address its share of the places, and addresses take turns (`turns.py`). A refusal is a
  sentence, sent as the end of the call: an HTTP status would reach neither the page nor a client in words.
- **Unread messages.** Gradio keeps all that a run says until it is fetched, and the whole text of the API's answers in
  each message: one stream that nobody read was 6.7 GB. Here a session's unread messages have a bound; where it is
  reached they are dropped, the run stops, and one line is left in their place. It keeps them for 2,000 sessions, and
  drops the session that came first, not the one that was silent for longest; a message for a session that was dropped
  while it waits ends the whole queue with a KeyError. Here `Unread` keeps them.
"""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio import route_utils
from gradio.queueing import Event, Queue
from gradio.server_messages import EventMessage, ProcessCompletedMessage

from lora_drop.errors import LoraDropError
from lora_drop.ui.serve.counters import Counters
from lora_drop.ui.serve.policy import Policy
from lora_drop.ui.serve.turns import Turns

RUNS = "gpu"  # the concurrency id of what runs on the device
KEPT_SESSIONS = 200  # 0.2 MB each, and the sweep that a visitor ran; many more than can wait in the queue
LIGHT_PLACES = 32  # calls that may wait beside the runs: a replay, an opened trace, a choice of what is shown
TOTAL = 4  # all sessions together may leave so many times unread what one may
Check = Callable[[str, list[Any]], None]  # (the function's API name, its values): raises LoraDropError


class Messages(asyncio.Queue):
    """A session's unread messages, which knows their size."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def _put(self, item: Any) -> None:
        size = weight(getattr(item, "output", None))
        self.nbytes += size
        super()._put((size, item))

    def _get(self) -> Any:
        size, item = super()._get()
        self.nbytes -= size
        return item

    def drop(self) -> None:
        """Forget them all."""
        while not self.empty():
            self.get_nowait()


class Unread(OrderedDict):
    """The unread messages of so many sessions; the one that was not read or written for longest makes room.

    A session with a run that waits or is on makes room for none. What is sent to one that is not kept is lost, and
    nothing else.
    """

    def __init__(self, most: int, is_live: Callable[[str], bool] = lambda session: False):
        super().__init__()
        self.most, self._is_live = most, is_live

    def __getitem__(self, session: str) -> asyncio.Queue:
        if session not in self:
            return Messages()
        self.move_to_end(session)
        return super().__getitem__(session)

    def __setitem__(self, session: str, messages: asyncio.Queue) -> None:
        super().__setitem__(session, Messages())  # in place of Gradio's own, which is empty
        self.move_to_end(session)
        spare = [old for old in self if not self._is_live(old) and old != session]
        for old in spare[: max(0, len(self) - self.most)]:
            del self[old]

    def __delitem__(self, session: str) -> None:
        if session in self:
            super().__delitem__(session)

    @property
    def nbytes(self) -> int:
        """Bytes of them all."""
        return sum(messages.nbytes for messages in self.values())

    def fullest(self) -> str:
        """The session with the most of them."""
        return max(self.items(), key=lambda item: item[1].nbytes)[0]


def weight(value: Any) -> int:
    """About the bytes that plain data take in memory."""
    if isinstance(value, str):
        return sys.getsizeof(value)
    if isinstance(value, dict):
        return 200 + sum(weight(key) + weight(inner) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return 60 + sum(8 + weight(inner) for inner in value)
    return 32


class FairQueue(Queue):
    """Gradio's queue, as the module says."""

    def __init__(self, blocks: gr.Blocks, policy: Policy, counters: Counters, check: Check):
        super().__init__(True, blocks.max_threads, 1, None, blocks)
        self.policy, self.counters, self.check = policy, counters, check
        self.turns = Turns()
        self.sessions = KEPT_SESSIONS
        self.pending_messages_per_session = Unread(self.sessions, self._is_live)  # type: ignore[assignment]

    def _is_live(self, session: str) -> bool:
        return any(event.session_hash == session for event in self.event_ids_to_events.values())

    def waiting(self, runs: bool = True) -> list[Event]:
        """What waits for the device, or beside it."""
        queues = self.event_queue_per_concurrency_id.items()
        return [event for name, queue in queues if (name == RUNS) == runs for event in queue.queue]

    async def push(self, body: Any, request: Any, username: str | None) -> Any:
        """Put a call in the queue, or send its visitor away with a sentence, before it takes a place."""
        self._forget()
        if body.fn_index is None:
            return await super().push(body, request, username)
        fn = route_utils.get_fn(self.blocks, None, body)
        refused = self._refusal(fn, body, _address(request))
        if refused is None:
            return await super().push(body, request, username)
        reason, line = refused
        self.counters.refuse(reason)
        event = Event(body.session_hash, fn, request, username)
        async with self.pending_message_lock:
            if event.session_hash not in self.pending_messages_per_session:
                self.pending_messages_per_session[event.session_hash] = asyncio.Queue()
            self.pending_event_ids_session.setdefault(event.session_hash, set()).add(event._id)
        self.send_message(event, _ending(line))
        return True, event._id, "success"

    def _forget(self) -> None:
        """Forget the calls of sessions whose messages are gone: Gradio keeps their names for ever."""
        known: Any = self.pending_event_ids_session
        if len(known) > 2 * self.sessions:
            for session in [name for name in known if name not in self.pending_messages_per_session]:
                del known[session]

    def _refusal(self, fn: Any, body: Any, address: str) -> tuple[str, str] | None:
        """(reason, sentence) where a call may not wait."""
        limits, runs = self.policy.limits, fn.concurrency_id == RUNS
        waiting = self.waiting(runs)
        light = LIGHT_PLACES, LIGHT_PLACES // (2 if self.policy.public else 1)
        places, share = (limits.queue, limits.share) if runs else light
        if runs and self.counters.paused:
            return "paused", "This app is paused by its owner: come back later."
        if runs and body.session_hash and any(event.session_hash == body.session_hash for event in waiting):
            return "session", "A run of yours waits already: wait for it, or stop it, and ask again."
        if len(waiting) >= places:
            return "queue", f"This app's queue is full (it holds {places}): try again in a moment."
        if sum(_address(event.request) == address for event in waiting) >= share:
            return "share", f"{share} calls from your address wait already, the most at a time: try again in a moment."
        try:
            self.check(fn.api_name, body.data or [])
        except LoraDropError as error:
            return "limits", str(error)
        return None

    def _sort(self) -> None:
        """Put the runs that wait into the order of their turns, which is also the place that each is told."""
        if runs := self.event_queue_per_concurrency_id.get(RUNS):
            runs.queue[:] = [runs.queue[i] for i in self.turns.order([_address(e.request) for e in runs.queue])]

    def get_events(self) -> Any:
        """The next events, a run in its turn."""
        self._sort()
        found = super().get_events()
        if found is not None and found[2] == RUNS:
            self.turns.serve(_address(found[0][0].request))
        return found

    def broadcast_estimations(self, concurrency_id: str, after: int | None = None) -> None:
        """Tell who waits their place; all of them, as a newcomer may come before others."""
        self._sort()
        super().broadcast_estimations(concurrency_id, None)

    def send_message(self, event: Event, event_message: EventMessage) -> None:
        """Keep a message until it is read; where too many are kept, drop the fullest session's and end its runs."""
        super().send_message(event, event_message)
        unread: Any = self.pending_messages_per_session
        limit = self.policy.limits.unread_bytes
        if event.session_hash in unread and unread[event.session_hash].nbytes > limit:
            self._cut(event.session_hash)
        elif unread.nbytes > TOTAL * limit:
            self._cut(unread.fullest())

    def _cut(self, session: str) -> None:
        messages: Any = self.pending_messages_per_session[session]
        messages.drop()
        self.counters.refuse("unread")
        line = f"Stopped: more than {self.policy.limits.unread} MiB of its answer were not read in time."
        for event in list(self.event_ids_to_events.values()):
            if event.session_hash == session:
                event.alive = False  # Gradio ends its generator before the next step
                ending = _ending(line)
                ending.event_id = event._id
                messages.put_nowait(ending)


def _ending(line: str) -> ProcessCompletedMessage:
    """The end of a call that did not run, as Gradio ends one that raised an error."""
    return ProcessCompletedMessage(
        output={"error": line, "visible": True, "duration": 10, "title": "Not now"}, title="Not now", success=False
    )


def _address(request: Any) -> str:
    """Whose request it is, as the guard found it."""
    return request.scope.get("lora_drop.address", "unknown")


def use_fair_queue(demo: gr.Blocks, policy: Policy, counters: Counters, check: Check) -> FairQueue:
    """Give the page this queue; call it in place of `demo.queue`, before `demo.launch`.

    The routes that would run a queued function at once (`/run/...`) are closed for them.
    """
    demo.queue(api_open=False)
    demo._queue = queue = FairQueue(demo, policy, counters, check)
    return queue
