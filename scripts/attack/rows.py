"""What the attackers send: each row of issue 27's table, its lengths and counts drawn anew and its bodies varied.

A refusal is fine, and so is a closed connection. What must not happen is checked elsewhere, but for what answers say.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Coroutine
from typing import Any
from urllib.parse import quote, urlsplit

from scripts.attack import traces
from scripts.soak.app import Soak, one_line
from scripts.soak.cases import Wrong, hold
from scripts.soak.hostile import Hostile

EACH = 3  # attackers of an address
BODY, TRACE = 1_900_000, 4 * 2**20  # characters of a large body, and of a costly trace
MULTIPART = "multipart/form-data; boundary=attack"
FROM_ELSEWHERE = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}


def varied(value: Any, draw: random.Random) -> Any:
    """The value with something in it longer, deeper, in another order, under another name, or something else."""
    if isinstance(value, (dict, list)) and value and draw.random() < 0.7:
        copy: Any = value.copy()
        key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
        copy[key] = varied(copy[key], draw)
        return copy
    count = int(10 ** draw.uniform(0, 5))
    if isinstance(value, dict) and draw.random() < 0.5:
        return dict(draw.sample(list(value.items()), len(value))[draw.randrange(2) :]) | {"x" * count: count}
    deep: Any = value
    for _ in range(min(count, 500)):
        deep = [deep]
    values: tuple[Any, ...] = (
        None,
        True,
        -1,
        2**63,
        1e308,
        "",
        "x" * count,
        "\ud800" * (count // 10),
        [0] * count,
        [[]] * count,
        {},
    )
    return draw.choice((*values, deep))


async def chunks(content: bytes, size: int) -> AsyncIterator[bytes]:
    """A body in chunks, whose length no header tells; at most 100, as an attacker's time counts, too."""
    size = max(size, len(content) // 100)
    for at in range(0, len(content), size):
        yield content[at : at + size]


class Attacker(Hostile):
    """An attacker of the rows."""

    pause = 0.2

    @classmethod
    def crowd(cls, soak: Soak, addresses: int) -> list[Attacker]:
        """Attackers of so many addresses, `EACH` of each."""
        crowd = [cls(soak, number) for number in range(EACH * addresses)]
        for attacker in crowd:
            attacker.address = f"10.2.0.{attacker.number % addresses}"
        return crowd

    async def row1_8(self) -> None:
        """Traces that cost much."""
        size = self.draw.choice((TRACE, TRACE // 4, TRACE // 64))  # each is made once
        await self.replayed(traces.another(self.draw.choice(list(traces.COSTLY)), size, self.draw.random()))

    async def row2(self) -> None:
        """Long session hashes."""
        await self.all(self.sent("/queue/join", self.joining(session_hash=f"{i}" * self.some(BODY))) for i in range(3))

    async def row3(self) -> None:
        """Uploads without an end, or without a name."""
        parts, last = self.some(20), "\r\n--attack--\r\n"
        for name, end in (("x.jsonl", ""), ("..", last), ("é" * self.some(300), last), ("x", "\r\n--attack" * parts)):
            head = f'--attack\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
            await self.sent("/upload", f"{head}{'x' * self.some(BODY)}{end}", MULTIPART)

    async def row4(self) -> None:
        """Many tiny uploads within a visit, which then ends."""
        async with self.http.stream("GET", f"/heartbeat/{self.session().name}"):
            await self.all(self.uploaded(f"{self.draw.random()}") for _ in range(self.some(100)))

    async def row5(self) -> None:
        """Bodies of nothing but brackets."""
        inner = "[" * self.some(30)
        nested = "[" + (inner + "]" * len(inner) + ",") * (self.some(BODY) // (2 * len(inner) + 1)) + "[]]"
        body = json.dumps(self.joining(event_data=0)).replace('"event_data": 0', f'"event_data": {nested}')
        await self.all(
            self.sent(*request) for request in [("/queue/join", body), *[("/cancel", nested[:140_000])] * 3]
        )

    async def row6(self) -> None:
        """Opened traces, compared again and again."""
        ids = []
        for _ in range(3):
            size = 400_000 // 2 ** self.draw.randrange(4)
            path = await self.uploaded(traces.another("full steps", size, self.draw.random()))
            file = {"path": path, "orig_name": "x.jsonl", "meta": {"_type": "gradio.FileData"}}
            _, last = await self.session().ask(self.app.open, [file])
            wire = last["output"]["data"][0] if last["success"] else None
            ids += [json.loads(wire.splitlines()[0])["id"]] if isinstance(wire, str) else []
        await self.all(self.component("compare_runs", self.draw.sample(ids, len(ids))) for _ in range(self.some(12)))

    async def row7(self) -> None:
        """Files that nobody reads, from two addresses of one network."""
        page = (await self.http.get(self.soak.url)).text.split('"')
        path = next((part.lstrip("./") for part in page if part.endswith(".js")), "")
        writers = []
        for i in range(self.some(60)):
            _, writer = await asyncio.open_connection("127.0.0.1", urlsplit(self.soak.url).port, limit=1024)
            source = f"X-Forwarded-For: 2001:db8:0:{self.number}::{i % 2}"
            writer.write(f"GET /{path} HTTP/1.1\r\nHost: {self.host}\r\n{source}\r\n\r\n".encode())
            writers.append(writer)
        await asyncio.sleep(5)
        for writer in writers:
            writer.transport.abort()

    async def row9(self) -> None:
        """The page, loaded again and again."""
        await self.all(self.http.get(self.soak.url + path) for path in ["/", "/config"] * self.some(33))

    async def row10(self) -> None:
        """The visitor's question, to learn whether it was asked before."""
        outputs, last = await self.session().ask(self.app.generate, self.app.call_data("/generate", self.asked))
        cached = (
            json.loads(outputs[0].splitlines()[-1]).get("prefill_cached") if last["success"] and outputs else False
        )
        hold(not cached, "row 10: an answer says that another has asked this prompt")

    async def row11(self) -> None:
        """Traces that once were read and then ended in a traceback."""
        for text in traces.MEANINGLESS:
            hold(not await self.replayed(text), "row 11: /replay took a trace that means nothing")

    async def row12(self) -> None:
        """Calls of a component in the names of new sessions."""
        await self.all(self.component(("compare_runs", "align_answers")[i % 2], []) for i in range(self.some(40)))

    async def row13(self) -> None:
        """Characters that move a terminal's cursor, in a path."""
        await self.http.get("/custom_component/%1b%5b2J%0aforged/client/component/x")

    async def row14(self) -> None:
        """Another site's page sends a form."""
        status = await self.sent("/queue/join", json.dumps(self.joining()), "text/plain", **FROM_ELSEWHERE)
        hold(status >= 400, f"row 14: another site's page is answered with {status}")

    async def generated(self) -> None:
        """Requests that are nearly right."""
        for _ in range(5):
            bodies: dict[str, Any] = {
                "/queue/join": self.joining(),
                "/call/generate": {"data": self.joining()["data"]},
                "/call/replay": {"data": [traces.COSTLY["full steps"](2000)]},
                "/run/estimate": {"data": self.app.call_data("/estimate", {}), "session_hash": "x"},
                "/component_server": {"data": [], "component_id": self.app.live, "fn_name": "compare_runs"},
                "/cancel": {"session_hash": "x", "event_id": "x", "fn_index": self.app.generate},
                "/reset": {"event_id": "x"},
            }
            path = self.draw.choice(list(bodies))
            await self.sent(path, json.dumps(varied(bodies[path], self.draw)))
            name = quote(json.dumps(varied("x", self.draw))[:2000])
            path = self.draw.choice(("/heartbeat/{}", "/call/generate/{}", "/queue/data?session_hash={}", "/file={}"))
            async with self.http.stream("GET", path.format(name)) as answer:
                self.checked(answer.status_code, path)

    # What they use.

    @property
    def asked(self) -> dict[str, Any]:
        """What the visitor asks."""
        return self.soak.cases[0].options

    def joining(self, **more: Any) -> Any:
        """The body of a short call of /generate, with some of it changed."""
        data = self.app.call_data("/generate", {**self.asked, "max_new_tokens": 2})
        names = {"fn_index": self.app.generate, "session_hash": self.session().name}
        return {"data": data, "event_data": None, "trigger_id": None, **names, **more}

    def some(self, most: int) -> int:
        """Half of the time `most`, else a number from 1 to it, as often small as large."""
        return most if self.draw.random() < 0.5 else round(most ** self.draw.random())

    async def all(self, calls: Any) -> None:
        """Make calls at once. Refusals and closed connections are fine; raises Wrong for a wrong answer."""
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(outcome, Wrong):
                raise outcome

    async def sent(self, path: str, body: Any, kind: str = "application/json", **headers: str) -> int:
        """Send a body, sometimes varied and in chunks; the status of the answer, which is not read."""
        if not isinstance(body, str):
            body = json.dumps(varied(body, self.draw) if self.draw.random() < 0.3 else body)
        content: Any = body.encode() if self.draw.random() < 0.7 else chunks(body.encode(), self.some(2**20))
        async with self.http.stream(
            "POST", path, content=content, headers={"Content-Type": kind, **headers}
        ) as answer:
            self.log.attacks["accepted uploads"] += path == "/upload" and answer.status_code == 200
            return self.checked(answer.status_code, path)

    def checked(self, status: int, path: str) -> int:
        """A status, which is a refusal or a success. Raises Wrong for a failure of the server."""
        hold(status < 500 or status == 503, f"a request to {path} is answered with {status}")
        return status

    def component(self, function: str, data: Any) -> Coroutine[Any, Any, int]:
        """Call a component's function in the name of a new session."""
        body = {"data": data, "component_id": self.app.live, "fn_name": function}
        return self.sent("/component_server", {**body, "session_hash": self.session().name})

    async def uploaded(self, text: str) -> str:
        """Upload a file; its path on the server, empty if it was refused."""
        answer = await self.http.post("/upload", files={"files": ("x.jsonl", text.encode())})
        self.log.attacks["accepted uploads"] += answer.status_code == 200
        return answer.json()[0] if answer.status_code == 200 else ""

    async def replayed(self, text: str) -> bool:
        """Send a trace to /replay; true if it became a page, else the answer is one line."""
        _, last = await self.session().ask(self.app.replay, [text])
        if not last["success"]:
            one_line(last["output"].get("error"), "")
        return bool(last["success"])


Attacker.kinds = {name: row for name, row in vars(Attacker).items() if name.startswith("row") or name == "generated"}
