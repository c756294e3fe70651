"""Gradio's queue with fair turns, shares and a limit on unread messages.

A call that waits in Gradio's queue holds no thread; a call that waits in a generator does. So turns are decided here,
where Gradio takes the next event (see `gradio_private.refuse_untested`).

- **Turns.** Gradio serves first come, first served, and a client may fill the whole queue. Here a session has one
  waiting run, an address its share of the places, and addresses take turns (`Turns`), for runs as for light work. A
  refusal is a sentence, sent as the end of the call, because neither the page nor a client would show the words of an
  HTTP status.
- **Bodies.** Gradio keeps a call's body, raw and parsed, for as long as the call waits. Here only the values stay,
  and those of the waiting calls are bounded.
- **Unread messages.** Gradio keeps all messages of a run until they are fetched, and each message of the API holds the
  whole text so far: one unread stream took 6.7 GB. Here a session's unread messages have a limit. Beyond it they are
  dropped, the run stops, and one line takes their place. Gradio keeps messages for 2,000 sessions and drops the oldest
  session, not the longest silent session; a message for a session dropped while it waits ends the whole queue with a
  KeyError. Here `Unread` stores the messages.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio import route_utils
from gradio.queueing import Event, Queue
from gradio.server_messages import EventMessage, ProcessCompletedMessage

from lora_drop.errors import LoraDropError
from lora_drop.ui.serve.guard import TRACES, Refused, too_large
from lora_drop.ui.serve.owner import Counters
from lora_drop.ui.serve.policy import SMALL, Policy
from lora_drop.ui.serve.turns import Turns, too_late
from lora_drop.ui.serve.visits import Visits

RUNS = "gpu"  # the concurrency id of calls that use the device
KEPT_SESSIONS = 200  # 0.2 MB each and a visitor's sweep; many more than can wait in the queue
LIGHT_PLACES = 32  # calls that may wait beside the runs: a replay, an opened trace, a choice in the Safe zone
WAITING = 4  # bytes of the large waiting calls, in multiples of the largest trace; an address may have half of that
LIGHT_SECONDS = 60.0  # the longest wait beside the runs
EVENTS = 100  # calls of one session whose ends have not been read
TOTAL = 4  # unread bytes of all sessions together, in multiples of one session's limit
Check = Callable[[str, list[Any]], None]


class Messages(asyncio.Queue[Any]):
    """A session's unread messages with their size in bytes."""

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
        """Drop all messages."""
        while not self.empty():
            self.get_nowait()


class Unread(OrderedDict[str, Messages]):
    """Unread messages of `most` sessions. The address with most of them makes room, with its longest silent session.

    A session with a run, waiting or under way, is never dropped. A message to a dropped session is lost.
    """

    def __init__(self, most: int, visits: Visits, is_live: Callable[[str], bool] = lambda session: False):
        super().__init__()
        self.most, self._visits, self._is_live = most, visits, is_live

    def __getitem__(self, session: str) -> Messages:
        if session not in self:
            return Messages()
        self.move_to_end(session)
        return super().__getitem__(session)

    def __setitem__(self, session: str, messages: asyncio.Queue[Any]) -> None:
        super().__setitem__(session, Messages())  # replaces Gradio's queue, which is empty
        self.move_to_end(session)
        while len(self) > self.most and (spare := [old for old in self if not self._is_live(old) and old != session]):
            del self[self._visits.crowded(spare)]

    def __delitem__(self, session: str) -> None:
        if session in self:
            super().__delitem__(session)

    @property
    def nbytes(self) -> int:
        """Bytes of all messages."""
        return sum(messages.nbytes for messages in self.values())

    def fullest(self) -> str:
        """The session with the most bytes."""
        return max(self.items(), key=lambda item: item[1].nbytes)[0]


def weight(value: Any) -> int:
    """Estimate the bytes of plain data in memory."""
    if isinstance(value, str):
        return sys.getsizeof(value)
    if isinstance(value, dict):
        return 200 + sum(weight(key) + weight(inner) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return 60 + sum(8 + weight(inner) for inner in value)
    return 32


class FairQueue(Queue):
    """Gradio's queue with the changes that the module describes.

    Args:
        check: called with a function's API name and values; raises LoraDropError for a call that may not wait.
    """

    def __init__(self, blocks: gr.Blocks, policy: Policy, counters: Counters, check: Check, visits: Visits):
        super().__init__(True, blocks.max_threads, 1, None, blocks)
        self.policy, self.counters, self.check, self.visits = policy, counters, check, visits
        self.turns: defaultdict[str, Turns] = defaultdict(Turns)  # by concurrency id
        self.sessions = KEPT_SESSIONS
        unread = Unread(self.sessions, visits, self._is_live)
        self.pending_messages_per_session = unread  # type: ignore[assignment]

    def _is_live(self, session: str) -> bool:
        return any(event.session_hash == session for event in self.event_ids_to_events.values())

    @property
    def is_busy(self) -> bool:
        """Whether any call is under way."""
        return any(self.active_jobs)

    def waiting(self, runs: bool = True) -> list[Event]:
        """Calls waiting for the device, or the other waiting calls."""
        queues = self.event_queue_per_concurrency_id.items()
        return [event for name, queue in queues if (name == RUNS) == runs for event in queue.queue]

    async def push(self, body: Any, request: Any, username: str | None) -> Any:
        """Put a call in the queue, or refuse it with a sentence before it takes a place.

        Raises:
            Refused: the body is too large for its function, or nobody reads the session's answers.
        """
        self._forget()
        request._body, request._json = b"", None
        if body.fn_index is None:
            return await super().push(body, request, username)
        fn = route_utils.get_fn(self.blocks, None, body)
        most = self.policy.limits.body_bytes
        if fn.api_name not in TRACES and _size(request) > most:
            self.counters.refuse("body")
            raise too_large(most)
        if len(self.pending_event_ids_session.get(body.session_hash or "", ())) >= EVENTS:
            self.counters.refuse("unread")
            raise Refused("unread", 429, "Read the answers to your calls first: too many wait for you.")
        refused = self._refusal(fn, body, _address(request), _size(request))
        if refused is None:
            pushed = await super().push(body, request, username)
            self.visits.seen(body.session_hash, _address(request))  # the queue names a session that has no name
            return pushed
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
        """Drop the event ids of sessions whose messages are gone: Gradio keeps them for ever."""
        events: Any = self.pending_event_ids_session
        if len(events) > 2 * self.sessions:
            for session in [name for name in events if name not in self.pending_messages_per_session]:
                del events[session]

    def _refusal(self, fn: Any, body: Any, address: str, size: int) -> tuple[str, str] | None:
        """Reason and sentence of a refusal; None if the call, a body of `size` bytes, may wait."""
        limits, runs = self.policy.limits, fn.concurrency_id == RUNS
        waiting = self.waiting(runs)
        light = LIGHT_PLACES, LIGHT_PLACES // (2 if self.policy.public else 1)
        places, share = (limits.queue, limits.share) if runs else light
        if runs and self.counters.paused:
            return "paused", "This app is paused by its owner: come back later."
        mine = [event for event in waiting if _address(event.request) == address]
        if runs and body.session_hash and any(event.session_hash == body.session_hash for event in mine):
            return "session", "You already have a run in the queue: wait for it, or stop it, and try again."
        if len(waiting) >= places:
            return "queue", f"This app's queue is full (it holds {places}): try again in a moment."
        if len(mine) >= share:
            return "share", f"{share} calls from your address are waiting, the most allowed: try again in a moment."
        if size > SMALL and not runs:  # waiting calls are held in memory; small calls wait for nobody's traces
            if sum(_size(event.request) for event in mine) + size > 2 * limits.trace_bytes:
                return "share", "Large traces from your address are waiting to be read: try again in a moment."
            if sum(_size(event.request) for event in waiting) + size > WAITING * limits.trace_bytes:
                return "queue", "Large traces are waiting to be read: try again in a moment."
        try:
            self.check(fn.api_name, body.data or [])
        except LoraDropError as error:
            return "limits", str(error)
        return None

    def _sort(self, concurrency_id: str) -> None:
        """Sort the waiting calls of one kind by turn, which is also the place that each one sees."""
        if (events := self.event_queue_per_concurrency_id.get(concurrency_id)) and events.queue:
            order = self.turns[concurrency_id].order([_address(event.request) for event in events.queue])
            events.queue[:] = [events.queue[i] for i in order]

    def get_events(self) -> Any:
        """Next events to process; a call comes in its turn. Light work whose turn came too late is ended."""
        late = time.monotonic() - LIGHT_SECONDS
        for event in [event for event in self.waiting(runs=False) if event.enqueue_time < late]:
            self.event_queue_per_concurrency_id[event.concurrency_id].queue.remove(event)
            self.event_ids_to_events.pop(event._id, None)
            self.counters.refuse("light")
            self.send_message(event, _ending(too_late(LIGHT_SECONDS)))
        for concurrency_id in self.event_queue_per_concurrency_id:
            self._sort(concurrency_id)
        events = super().get_events()
        if events is not None:
            self.turns[events[2]].serve(_address(events[0][0].request))
        return events

    def broadcast_estimations(self, concurrency_id: str, after: int | None = None) -> None:
        """Send every waiting call its place: a newcomer may go before others."""
        self._sort(concurrency_id)
        super().broadcast_estimations(concurrency_id, None)

    def send_message(self, event: Event, event_message: EventMessage) -> None:
        """Keep a message until it is read. Beyond the limit, drop the fullest session's messages and end its runs."""
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
        line = f"Stopped: more than {self.policy.limits.unread} MiB of the answer were not read in time."
        for event in list(self.event_ids_to_events.values()):
            if event.session_hash == session:
                event.alive = False  # Gradio then ends its generator before the next step
                ending = _ending(line)
                ending.event_id = event._id
                messages.put_nowait(ending)


def _ending(line: str) -> ProcessCompletedMessage:
    """End a call that did not run as Gradio ends one that raised an error."""
    return ProcessCompletedMessage(
        output={"error": line, "visible": True, "duration": 10, "title": "Not now"}, title="Not now", success=False
    )


def _address(request: Any) -> str:
    """The client's address, which the guard put into the request's scope."""
    return str(request.scope.get("lora_drop.address", "unknown"))


def _size(request: Any) -> int:
    """Bytes of a call's body, which the guard counted."""
    return int(request.scope.get("lora_drop.bytes", 0))


def use_fair_queue(demo: gr.Blocks, policy: Policy, counters: Counters, check: Check, visits: Visits) -> FairQueue:
    """Give the page this queue; call it instead of `demo.queue`, before `demo.launch`.

    It closes the routes that would run a queued function without the queue (`/run/...`).
    """
    demo.queue(api_open=False)
    demo._queue = queue = FairQueue(demo, policy, counters, check, visits)
    return queue
