"""A visitor who comes again and again, asks, waits, presses Stop, reloads or vanishes, and checks every answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx

from lora_drop.run.exports.chrome import chrome_trace
from lora_drop.run.exports.html import replay_html
from lora_drop.run.trace.trace import Trace
from lora_drop.run.wire import FIGURES
from scripts.soak.app import Guest, Session, TurnedAway, let_in, one_line
from scripts.soak.cases import (
    BAD_CALLS,
    BAD_PAGES,
    FIELDS,
    Answer,
    Case,
    Wrong,
    by_lane,
    hold,
    read_trace,
    same_fields,
    timeless,
)

MISTAKES = len(BAD_CALLS) * len(BAD_PAGES)


class Visitor(Guest):
    """A visitor: asks, waits and checks."""

    pause = 0.5

    def deck(self) -> list[str]:
        """See `Guest.deck`."""
        kinds = [kind for kind, (often, _) in KINDS.items() for _ in range(often)]
        return self.draw.sample(kinds, len(kinds))

    async def visit(self, kind: str, *args: Any) -> None:
        """See `Guest.visit`."""
        self.log.visits[kind] += 1
        try:
            await KINDS[kind][1](self, *args)
        except TurnedAway:
            self.log.turned_away += 1
            await asyncio.sleep(6 * self.draw.random())
        except Wrong as wrong:
            self.log.failures.append(f"{kind}: {wrong}")
        except (httpx.HTTPError, OSError, KeyError, ValueError, TypeError) as error:
            self.log.failures.append(f"{kind}: {type(error).__name__}: {error}")

    @asynccontextmanager
    async def page(self) -> AsyncIterator[Session]:
        """Load the page: as in a browser, a connection stays open that tells the server of the visitor."""
        session = self.session()
        async with self.http.stream("GET", f"/heartbeat/{session.name}"):
            yield session

    def case(self, long: bool = False) -> Case:
        """Draw a question; the repeated ones a third of the time."""
        cases = self.soak.cases
        if long:
            return self.draw.choice(cases[-2:])
        return self.draw.choice(cases[:2] if self.draw.random() < 1 / 3 else cases[2:-2])

    def compare(self, answer: Answer, case: Case, expected: Answer) -> None:
        """Compare a whole answer."""
        answer.same_as(expected)
        self.log.compared[case.name] += 1

    def check_wire(self, wire: str, case: Case) -> tuple[str, dict[str, Any] | None]:
        """Compare the page's lines with the answer's start; returns the run's id, and the summary if it is there."""
        lines = [json.loads(line) for line in wire.splitlines()]
        lines = [line for line in lines if isinstance(line, dict) or line[0] != FIGURES]  # figures hold times
        hold(lines and lines[0].get("type") == "run", "the page's text does not start with the run's id")
        summary = lines.pop() if isinstance(lines[-1], dict) and lines[-1]["type"] == "summary" else None
        if len(lines) > 1:
            same_fields("page's header", lines[1], case.wire[0])
        whole = by_lane(case.wire[1:])
        for lane, part in by_lane(lines[2:]).items():
            hold(part == whole[lane][: len(part)], f"the page was sent other records, lane {lane}")
        return lines[0]["id"], summary

    # The visits.

    async def answer(self, case: Case | None = None) -> None:
        """Ask /generate, and read to the end."""
        case = case or self.case()
        session = self.session()
        outputs, last = await session.ask(self.app.generate, self.app.call_data("/generate", case.options))
        hold(last["success"], f"/generate failed: {last['output']}")
        self.compare(Answer(read_trace(next(iter(outputs or ())))), case, case.answer)

    async def vanish(self) -> None:
        """Ask /generate, and drop the connection in the middle."""
        case = self.case(long=True)
        updates, text = self.draw.randint(0, 3), ""
        call = self.session().call(self.app.generate, self.app.call_data("/generate", case.options))
        async with aclosing(call):
            async for done, outputs in call:
                if done or updates == 0:
                    break
                text, updates = outputs[0], updates - 1
        if text:
            Answer(read_trace(text)).begins(case.answer)
            self.log.starts += 1

    async def run_page(
        self, session: Session, case: Case, stop_after: int | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Press Run, and Stop after some updates (0: while it still waits); returns the run's id and its summary."""
        wire = ""
        status: dict[str, str] = {}
        if stop_after == 0:
            await session.press_stop()
        async with aclosing(session.call(self.app.page, self.app.page_data(case.page))) as updates:
            async for done, message in updates:
                if done:
                    hold(message["success"], f"the page's run failed: {message['output']}")
                    break
                outputs = dict(zip(self.app.outputs, message, strict=True))
                # The last update leaves the live view alone.
                wire = outputs["ld-live"] if isinstance(outputs["ld-live"], str) else wire
                status = outputs["ld-status"]
                if stop_after is not None:
                    stop_after -= 1
                    if stop_after == 0:
                        await session.press_stop()
        if stop_after is not None and status.get("text", "").endswith("was not loaded."):
            raise TurnedAway  # stopped while its model was loaded, which others had put out
        hold(status.get("kind") == "done", f"the page's run ended with {status}")
        run_id, summary = self.check_wire(wire, case)
        if summary is None:
            raise Wrong("the page's run ended without a summary")
        stopped = any(lane["ended"] == "stopped" for lane in summary["lanes"].values())
        hold(status["text"].startswith("Stopped" if stopped else "Finished"), f"the status says {status['text']!r}")
        if not stopped:
            hold(timeless(summary) == case.page_answer.summary, "another answer: the summary differs")
            self.log.compared[case.name] += 1
        return run_id, summary

    async def run(self) -> None:
        """Press Run and wait for the end; Stop, pressed before the run has started, does nothing."""
        async with self.page() as session:
            _, summary = await self.run_page(session, self.case(), self.draw.choice((None, None, 0)))
            hold(all(lane["ended"] == "length" for lane in summary["lanes"].values()), "stopped by somebody else")

    async def stop(self) -> None:
        """Press Run, and Stop while it runs."""
        case = self.case(long=True)
        async with self.page() as session:
            run_id, summary = await self.run_page(session, case, self.draw.randint(1, 3))
            if all(lane["ended"] == "length" for lane in summary["lanes"].values()):
                self.log.late += 1
                return
            for name, lane in summary["lanes"].items():
                ran = case.answer.steps[name][: lane["tokens"]]
                held = ran[-1][FIELDS.index("kv_bytes")] if ran else 0
                hold(lane["kv_bytes"] == held, f"the stopped lane {name} holds other K/V than its last step")
            if trace := await self.fetch_trace(session, run_id):
                answer = Answer(trace)
                answer.begins(case.page_answer)
                hold(answer.summary == timeless(summary), "the file has another summary than the page")
                hold(answer.steps != case.answer.steps, "stopped, but it went on to the end")
                self.log.starts += 1

    async def fetch_trace(self, session: Session, run_id: str) -> Trace | None:
        """The trace of a run; None if newer ones have replaced it."""
        file = await session.export(run_id, "trace")
        if "error" in file:
            one_line(file["error"], "no longer keeps")
            self.log.unkept += 1
            return None
        return read_trace(file["text"])

    async def leave(self) -> None:
        """Press Run, and close the page while waiting or in the middle: the run on the server must end with it."""
        case, updates, wire = self.case(long=True), self.draw.randint(0, 2), ""
        data = self.app.page_data(case.page)
        async with self.page() as session, aclosing(session.call(self.app.page, data)) as call:
            async for done, outputs in call:
                if done or updates == 0:
                    break
                wire, updates = outputs[self.app.outputs.index("ld-live")], updates - 1
        if not isinstance(wire, str) or not wire:
            return
        run_id, summary = self.check_wire(wire, case)
        self.log.starts += 1
        # Runs are one at a time, so once another has been answered this one is over.
        await self.answer()
        if summary is None and (trace := await self.fetch_trace(session, run_id)):
            answer = Answer(trace)
            answer.begins(case.page_answer)
            hold(answer.summary is None, "the run went on to its end after its visitor had left")

    async def reload(self) -> None:
        """Press Run, reload the page, and press Run once more."""
        await self.leave()
        await self.run()

    async def deaf(self) -> None:
        """Queue a run, and leave before the stream is opened."""
        await self.session().join(self.app.page, self.app.page_data(self.case().page))

    async def estimate(self) -> None:
        """Ask /estimate, which needs no queue."""
        case = self.case()
        body = {"data": self.app.call_data("/estimate", case.options), "fn_index": self.app.estimate}
        session = self.session()
        answer = await session.post("/run/estimate", {**body, "session_hash": session.name})
        hold(answer.status_code == 200, f"/estimate answers {answer.status_code}: {answer.text[:200]}")
        estimate = answer.json()["data"][0]
        dropped = case.answer.header["lanes"][1]["config"]["dropped"]
        hold(estimate["dropped"] == dropped and estimate["bound"] >= 1, f"/estimate says {estimate}")
        hold(estimate["prompt_tokens"] == case.answer.header["prompt_tokens"], "/estimate counts other tokens")

    async def replay(self) -> None:
        """Send /replay a trace."""
        text = self.soak.recorded
        _, last = await self.session().ask(self.app.replay, [text])
        hold(last["success"], f"/replay failed: {last['output']}")
        hold(last["output"]["data"][0] == replay_html(read_trace(text)), "/replay gives another page")

    async def export(self) -> None:
        """Press Run, and export every file."""
        case = self.case()
        async with self.page() as session:
            run_id, _ = await self.run_page(session, case)
            if trace := await self.fetch_trace(session, run_id):
                self.compare(Answer(trace), case, case.page_answer)
                for kind, made in (("chrome", json.dumps(chrome_trace(trace))), ("html", replay_html(trace))):
                    file = await session.export(run_id, kind)
                    hold(file.get("text") == made, f"another {kind} file: {file.get('error')}")

    async def open(self) -> None:
        """Open a recorded run."""
        async with self.page() as session:
            name = f"run-{self.number}.jsonl"
            self.log.requests += 1
            sent = let_in(await self.http.post("/upload", files={"files": (name, self.soak.recorded.encode())}))
            hold(sent.status_code == 200, f"upload answers {sent.status_code}: {sent.text[:200]}")
            file = {"path": sent.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}
            _, last = await session.ask(self.app.open, [file])
            hold(last["success"], f"opening a trace failed: {last['output']}")
            wire, status = last["output"]["data"]
            hold(status["text"].startswith(f"Opened {name}"), f"opening a trace says {status}")
            run_id = json.loads(wire.splitlines()[0])["id"]
            if trace := await self.fetch_trace(session, run_id):
                Answer(trace).same_as(Answer(read_trace(self.soak.recorded)))

    async def mistake(self, number: int | None = None) -> None:
        """Make a wrong request, drawn or by its number: each gets its one line."""
        number = self.draw.randrange(MISTAKES) if number is None else number
        options, word = BAD_CALLS[number % len(BAD_CALLS)]
        session = self.session()
        data = self.app.call_data("/generate", {"prompt": "Hello", **options})
        _, last = await session.ask(self.app.generate, data)
        hold(not last["success"], f"/generate took {options}")
        one_line(last["output"].get("error"), word)
        controls, word = BAD_PAGES[number % len(BAD_PAGES)]
        _, last = await session.ask(self.app.page, self.app.page_data(controls))
        if last["success"]:
            status = last["output"]["data"][self.app.outputs.index("ld-status")]
            hold(status["kind"] == "error", f"the page took {controls}: {status}")
            one_line(status["text"], word)
        else:  # Gradio refuses it when it reads the control
            one_line(last["output"].get("error"), word)
        for wanted in (["0" * 32, "trace"], [None, "html"], "junk"):
            body = {"data": wanted, "component_id": self.app.live, "fn_name": "export_run"}
            answer = await session.post("/component_server", {**body, "session_hash": session.name})
            one_line(answer.json().get("error"), "no longer keeps")
        _, last = await session.ask(self.app.replay, ["{}"])
        hold(not last["success"], "/replay took a broken trace")
        one_line(last["output"].get("error"), "line 1")


# The kinds of visits, and how often of 100 times each comes.
KINDS = {
    "answer": (24, Visitor.answer),
    "vanish": (10, Visitor.vanish),
    "run": (18, Visitor.run),
    "stop": (12, Visitor.stop),
    "leave": (8, Visitor.leave),
    "reload": (6, Visitor.reload),
    "deaf": (2, Visitor.deaf),
    "estimate": (6, Visitor.estimate),
    "replay": (2, Visitor.replay),
    "export": (4, Visitor.export),
    "open": (3, Visitor.open),
    "mistake": (5, Visitor.mistake),
}
