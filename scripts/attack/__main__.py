"""The command: `python -m scripts.attack`."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_drop.models.load import load_model
from lora_drop.ui import inspector
from lora_drop.ui.serve import reader, runs, uploads
from lora_drop.ui.serve.policy import PUBLIC
from scripts.attack.rows import Attacker
from scripts.soak.app import MODEL, Soak, started
from scripts.soak.cases import PROMPTS, Case, make_case
from scripts.soak.measure import Held, Server
from scripts.soak.visitor import Visitor
from scripts.space_check import tail

WARM, IDLE, STUB, REST, STOP = 3.0, 15.0, 20.0, 30.0, 8.0  # seconds; the server stops within 5, and is busy
OVER, LEFT = 300_000, 50_000  # kB beyond the budgets: at any time, and after a rest
# Bytes that a public server may keep: traces, states of inspected steps, answers, bodies, unread messages.
BUDGETS = runs.MOST_BYTES + inspector.MOST_BYTES + reader.MOST_BYTES + 4 * PUBLIC.trace_bytes + 4 * PUBLIC.unread_bytes
BUSY = b'{"detail": "A stub: try again in a moment."}'


class Beside(Visitor):
    """The visitor who asks the same question all the time, and how long each answer took."""

    def case(self, long: bool = False) -> Case:
        return self.soak.cases[0]

    async def times(self, lasts: float) -> dict[str, list[float]]:
        """Visit for so long; seconds of each visit by its kind. One that was turned away is infinitely long."""
        seconds: dict[str, list[float]] = {"answer": [], "estimate": []}
        end = time.monotonic() + lasts
        async with self.come():
            while time.monotonic() < end:
                for kind in seconds:
                    began, turned_away = time.monotonic(), self.log.turned_away
                    await self.bounded(kind)
                    elapsed = time.monotonic() - began
                    seconds[kind].append(elapsed if self.log.turned_away == turned_away else float("inf"))
        return seconds


def spread(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """How often, the median, nine in ten and the longest, by kind."""
    return {
        kind: [len(times), *(round(sorted(times)[int(share * (len(times) - 1))], 2) for share in (0.5, 0.9, 1))]
        for kind, times in seconds.items()
    }


def make_soak(url: str, seed: int) -> Soak:
    """The app at an address, with the visitor's question."""
    options = {"prompt": PROMPTS[1], "max_new_tokens": 16, "ignore_eos": True}
    return Soak(url, [make_case(load_model(MODEL), "asked", options)], "", seed)


async def attackers(args: argparse.Namespace) -> dict[str, Any]:
    """Attack from so many addresses until the time is up; what was done."""
    soak = make_soak(args.app, args.seed)
    await soak.read_app()
    soak.url = args.against
    print("ready", flush=True)
    with suppress(TimeoutError):
        async with asyncio.timeout(60 * args.minutes):
            await asyncio.gather(*(attacker.stay(None, None) for attacker in Attacker.crowd(soak, args.addresses)))
    return {"attacks": soak.log.attacks, "failures": soak.log.failures}


async def beside(
    soak: Soak, minutes: float, args: argparse.Namespace, against: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The visitor's times while attackers in another process send to an address; and their attacks."""
    options = {"minutes": minutes, "addresses": args.addresses, "seed": args.seed, "app": soak.url, "against": against}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "scripts.attack", *words]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, limit=2**20)
    assert process.stdout and await process.stdout.readline() == b"ready\n"
    visitor = asyncio.create_task(Beside(soak, 0).times(60 * minutes))
    written, _ = await process.communicate()
    return spread(await visitor), json.loads(written.splitlines()[-1])


async def stub(stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read a request and answer that there is no room."""
    with suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, ValueError):
        head = (await stream.readuntil(b"\r\n\r\n")).lower()
        await stream.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0))
        writer.write(b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(BUSY), BUSY))
        await writer.drain()
    writer.close()


def faults(
    base: int, peak: int, now: int, held: Held, attacks: dict[str, int], stop: float, log: Path
) -> dict[str, Any]:
    """What must not happen, in words, and whether it did."""
    written, limit = log.read_bytes(), base + BUDGETS // 1024
    return {
        f"the memory rose from {base} to {peak} kB": peak > limit + OVER,
        f"{now} kB stay, {base} before": now > limit + LEFT,
        f"files stay: {held.temporary[:5]}, {held.uploads} uploads": held.temporary
        or held.uploads > min(attacks.get("accepted uploads", 0), uploads.FILES),
        f"a traceback: {tail(log)}": b"Traceback" in written,
        "a visitor's characters reach the terminal": b"\x1b" in written,
        f"it took {stop:.1f} s to stop": stop > STOP,
    }


async def stopped(soak: Soak, process: Any) -> float:
    """Seconds that the server takes to end while a run is on."""
    async with soak.client() as http:
        data = soak.app.call_data("/generate", {"prompt": "Go on", "max_new_tokens": 4000, "ignore_eos": True})
        await http.post("/call/generate", json={"data": data})
        await asyncio.sleep(1)
        began = time.monotonic()
        process.terminate()
        await asyncio.to_thread(process.wait)
    return time.monotonic() - began


async def attack(args: argparse.Namespace) -> dict[str, Any]:
    """Start the app, attack it, and measure; returns the figures, with `failures`."""
    with tempfile.TemporaryDirectory(prefix="lora-drop-attack-") as work:
        temporary, log = Path(work) / "tmp", Path(work) / "log.txt"
        temporary.mkdir()
        with started(temporary, log) as (process, url):
            soak, server = make_soak(url, args.seed), Server(process.pid, temporary)
            await soak.read_app()
            await Beside(soak, 0).times(WARM)
            idle, base = spread(await Beside(soak, 0).times(IDLE)), server.resident()
            async with await asyncio.start_server(stub, "127.0.0.1", 0) as listener:
                port = listener.sockets[0].getsockname()[1]
                generator, _ = await beside(soak, STUB / 60, args, f"http://127.0.0.1:{port}")
            watching = asyncio.create_task(server.watch())
            under_attack, done = await beside(soak, args.minutes, args, url)
            watching.cancel()
            await asyncio.sleep(REST)
            held, peak, now = await server.held(), max(kb for _, kb in server.memory), server.resident()
            idle_after = spread(await Beside(soak, 0).times(IDLE))
            stop = await stopped(soak, process)
            done["failures"] += soak.log.failures + [
                line for line, is_so in faults(base, peak, now, held, done["attacks"], stop, log).items() if is_so
            ]
    return {
        "visitor": {"idle": idle, "beside a stub": generator, "under attack": under_attack, "idle after": idle_after},
        "memory_kb": {"base": base, "peak": peak, "after": now, "budgets": BUDGETS // 1024},
        **{"held": dataclasses.asdict(held), "stop_seconds": round(stop, 1), **done},
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.attack", description="Attacks beside a visitor")
    parser.add_argument("--minutes", type=float, default=2, help="how long they attack (2)")
    parser.add_argument("--addresses", type=int, default=4, help="how many addresses attack (4)")
    parser.add_argument("--seed", type=int, default=0, help="of all that they send (0)")
    parser.add_argument("--against", help=argparse.SUPPRESS)  # of the attackers' process: the address they send to
    parser.add_argument("--app", help=argparse.SUPPRESS)  # whose functions they read first
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which also stops the app
    figures = asyncio.run(attackers(args) if args.against else attack(args))
    if not args.against:
        for name, value in figures.items():
            print(f"{name:16}{value}")
    print(json.dumps(figures))
    return 1 if figures["failures"] and not args.against else 0


if __name__ == "__main__":
    sys.exit(main())
