"""Figures of a soak: as parts of one JSON object, and as a table."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from scripts.soak.app import Log
from scripts.soak.measure import AHEAD, PEAK, Held, slope


def of_visitors(log: Log, repeated: list[str]) -> dict[str, Any]:
    """Figures of what the visitors did and saw.

    Args:
        repeated: names of the repeated questions.
    """
    return {
        "visits": dict(log.visits),
        "requests": log.requests,
        "turned_away": log.turned_away,
        "compared": dict(log.compared),
        "compared_answers": sum(log.compared.values()),
        "compared_starts": log.starts,
        # The single user asked each of them once.
        "repeated": sum(log.compared[name] for name in repeated) - len(repeated),
        "attacks": dict(log.attacks),
        "repelled": dict(log.repelled),
        "waited": log.waited,
        "addresses": len({run.address for run in log.runs.values()}),
        "waited_seconds": waits(log),
        "moved_up": log.moved,
        "worst_place": log.worst_place,
        "stopped_too_late": log.late,
        "no_longer_kept": log.unkept,
    }


def of_server(memory: list[tuple[float, int]], base: int, before: Held, after: Held) -> dict[str, Any]:
    """Figures of the server's resources.

    Args:
        memory: minutes and kB.
        base: memory of the warm server in kB.
    """
    rise, error = slope(memory)
    peak = max((kb for _, kb in memory), default=0)
    return {
        "memory_kb": [kb for _, kb in memory[:1] + memory[-1:]],
        "memory_base_kb": base,
        "memory_peak_kb": peak,
        "memory_over_base_mb": round((peak - base) / 1000, 1),
        "memory_kb_a_minute": [round(rise, 1), round(error, 1)],
        "before": dataclasses.asdict(before),
        "after": dataclasses.asdict(after),
    }


def waits(log: Log) -> list[float]:
    """Seconds from the queue to the start of a run: the median, nine in ten, and the longest."""
    seconds = sorted(run.began - run.joined for run in log.runs.values() if run.began < math.inf)
    return [round(seconds[int(share * (len(seconds) - 1))], 1) for share in (0.5, 0.9, 1)] if seconds else []


def table(figures: dict[str, Any]) -> str:
    """The figures as a table."""
    repelled = figures["repelled"]
    attacks = [f"{kind} {count} ({repelled.get(kind, 0)})" for kind, count in sorted(figures["attacks"].items())]
    rows = [
        ("visitors, seconds", f"{figures['visitors']}, {figures['seconds']}"),
        ("visits", ", ".join(f"{kind} {count}" for kind, count in sorted(figures["visits"].items()))),
        ("requests, turned away", f"{figures['requests']}, {figures['turned_away']}"),
        ("whole answers compared", f"{figures['compared_answers']}, {figures['repeated']} to the repeated question"),
        ("answers cut short, compared", figures["compared_starts"]),
        ("waited, moved up, worst place", f"{figures['waited']}, {figures['moved_up']}, {figures['worst_place']}"),
        ("attacks (repelled)", ", ".join(attacks) or "none"),
        ("waited s: half, 9 in 10, most", ", ".join(map(str, figures["waited_seconds"]))),
        ("addresses, runs of one ahead", f"{figures['addresses']}, {figures['runs_ahead']} of {AHEAD} allowed"),
        ("the server counted", ", ".join(f"{name} {count}" for name, count in figures["counters"].items())),
        ("memory, kB", " -> ".join(map(str, figures["memory_kb"])) + f", at most {figures['memory_peak_kb']}"),
        ("memory over its warm state, MB", f"{figures['memory_over_base_mb']}, of {PEAK / 1000:g} allowed"),
        ("memory, kB a minute", "{} +- {}".format(*figures["memory_kb_a_minute"])),
        *(
            (name, f"{figures['before'][name]} -> {figures['after'][name]}")
            for name in ("threads", "files", "uploads", "temporary")
        ),
        ("failures", len(figures["failures"])),
    ]
    return "\n".join(f"{name:32}{value}" for name, value in rows)
