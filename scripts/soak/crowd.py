"""Run a soak: start the app, let a single user come and then all others, and measure before and after."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_drop.models.load import load_model
from lora_drop.models.place import describe_device
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import write_line
from scripts.attack.rows import Attacker
from scripts.soak import report
from scripts.soak.app import MODEL, OTHER_MODEL, Soak, started
from scripts.soak.cases import BAD_CALLS, BAD_PAGES, make_cases
from scripts.soak.hostile import ATTACKS, COUNTED, Hostile
from scripts.soak.measure import AHEAD, REST, Held, Server, hold_still, most_ahead, within_peak
from scripts.soak.visitor import KINDS, Visitor
from scripts.space_check import tail


def came(attacks: Counter[str], counted: Counter[str]) -> list[str]:
    """A line for each attack that never came, or that the server's counters missed."""
    never = [kind for kind in ATTACKS if not attacks[kind]]
    unseen = [kind for kind, name in COUNTED.items() if attacks[kind] and not counted[name]]
    return [f"attack {kind} never came" for kind in never] + [f"the server counted no {kind}" for kind in unseen]


async def alone(soak: Soak) -> None:
    """Let a single user ask every question once and make every kind of visit, before the others come."""
    visitor = Visitor(soak, -2)
    async with visitor.come():
        for case in soak.cases:
            await visitor.bounded("answer", case)
        for kind in KINDS:
            await visitor.bounded(kind)
        for number in range(max(len(BAD_CALLS), len(BAD_PAGES))):
            await visitor.bounded("mistake", number)


async def crowd(
    soak: Soak, visitors: int, hostile: int, visits: int | None, seconds: float | None, first: int = 0
) -> None:
    """Let visitors come at once, some of them hostile, each for a number of visits or all until the time is up."""
    until = None if seconds is None else time.monotonic() + seconds
    attackers = (Hostile, Attacker if soak.rows else Hostile)
    kinds = (attackers[i % 2] if i < hostile else Visitor for i in range(visitors))
    await asyncio.gather(*(kind(soak, first + i).stay(visits, until) for i, kind in enumerate(kinds)))


async def counted_crowd(
    soak: Soak, server: Server, visitors: int, hostile: int, visits: int | None, seconds: float | None
) -> tuple[float, Counter[str]]:
    """Let the measured crowd come. Returns its seconds, and the server's counts meanwhile."""
    before, begun = await soak.counters(), time.monotonic()
    soak.log.runs, soak.log.attacks, soak.log.repelled = {}, Counter(), Counter()
    watching = asyncio.create_task(server.watch())
    await crowd(soak, visitors, hostile, visits, seconds)
    watching.cancel()
    return time.monotonic() - begun, await soak.counters() - before


async def rested(soak: Soak, server: Server, rest: float) -> Held:
    """Measure the idle server, after a few calls that let its idle threads end."""
    await asyncio.sleep(rest)
    visitor = Visitor(soak, -1)
    async with visitor.come():
        for _ in range(3):
            await visitor.bounded("answer")
    return await server.held()


async def soak(
    visitors: int,
    seed: int = 0,
    seconds: float | None = None,
    visits: int | None = None,
    warm_up: float = 0,
    long: int = 1500,
    hostile: int = 0,
    rows: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Start the app, let the visitors come, and stop it; returns the figures, with `failures`.

    Args:
        seconds, visits: how long they come, or how often each of them comes.
        warm_up: seconds of the same crowd before anything is counted; 0 leaves it at the single user's visits.
        long: tokens of the questions whose visitors stop or leave.
        hostile: number of visitors that attack the app.
        rows: every second one of these makes the attacks of `scripts.attack`.
        say: called with a line of progress.
    """
    loaded = load_model(MODEL)
    cases = make_cases(loaded, long, load_model(OTHER_MODEL))
    recorded = "".join(map(write_line, run(loaded, Request("A recorded run.", max_new_tokens=24))))
    with tempfile.TemporaryDirectory(prefix="lora-drop-soak-") as work:
        temporary, log = Path(work) / "tmp", Path(work) / "log.txt"
        temporary.mkdir()
        with started(temporary, log) as (process, url):
            this, server = Soak(url, cases, recorded, seed, rows), Server(process.pid, temporary)
            await this.read_app()
            say(f"the app answers on {url}, pid {process.pid}; {len(cases)} questions")
            await alone(this)
            if warm_up:
                await crowd(this, visitors, hostile, None, warm_up, first=10_000)
            before = await rested(this, server, REST if warm_up else 0)
            base = server.resident()
            say(f"warm: {before}, {base} kB")
            took, counted = await counted_crowd(this, server, visitors, hostile, visits, seconds)
            after = await rested(this, server, REST)
            say(f"afterwards: {after}, {server.resident()} kB")
            this.log.failures += hold_still(before, after) + within_peak(base, server.memory)
            if (ahead := most_ahead(list(this.log.runs.values()))) > AHEAD:
                this.log.failures.append(f"{ahead} runs of one address came before one of another")
            if hostile:
                this.log.failures += came(this.log.attacks, counted)
            if process.poll() is not None:
                this.log.failures.append(f"the app ended with {process.poll()}")
        written = log.read_text(encoding="utf-8", errors="replace").splitlines()
        if broken := sum("Traceback" in line for line in written):
            this.log.failures.append(f"{broken} tracebacks in the app's log: {tail(log)}")
    return {
        "visitors": visitors,
        "seed": seed,
        "seconds": round(took, 1),
        **report.of_visitors(this.log, [case.name for case in cases[:2]]),
        **report.of_server(server.memory, base, before, after),
        "runs_ahead": ahead,
        "counters": dict(sorted(counted.items())),
        "device": describe_device(loaded.device),
        "failures": this.log.failures,
    }
