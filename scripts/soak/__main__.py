"""The command: `python -m scripts.soak`."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections import Counter

from scripts.soak.crowd import soak
from scripts.soak.report import table

FLAT = 1000  # kB per minute, beyond the slope's error, that count as no growth
LEAST_MINUTES = 5  # for a verdict on the slope: over fewer it is that of a few strings of 10 MB


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.soak", description="Many visitors at once")
    parser.add_argument("--minutes", type=float, default=10, help="how long they come, after the warm-up (10)")
    parser.add_argument("--visitors", type=int, default=50, help="how many at once (50)")
    parser.add_argument("--hostile", type=float, default=0.2, help="the share of them that attacks the app (0.2)")
    parser.add_argument("--seed", type=int, default=0, help="of all that they do (0)")
    parser.add_argument("--warm-up", type=float, default=90, metavar="SECONDS", help="before anything is counted (90)")
    parser.add_argument("--rows", action="store_true", help="half of these make the attacks of scripts.attack")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which also stops the app
    figures = asyncio.run(
        soak(
            args.visitors,
            args.seed,
            hostile=round(args.hostile * args.visitors),
            seconds=60 * args.minutes,
            warm_up=args.warm_up,
            rows=args.rows,
            say=lambda line: print(line, flush=True),
        )
    )
    rise, error = figures["memory_kb_a_minute"]
    if args.minutes >= LEAST_MINUTES and rise - 2 * error > FLAT:
        figures["failures"].append(f"the memory grows by {rise} +- {error} kB a minute")
    print(table(figures))
    for line, times in Counter(figures["failures"]).most_common(20):
        print(f"FAILED {times} times: {line}")
    print(json.dumps(figures))
    return 1 if figures["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
