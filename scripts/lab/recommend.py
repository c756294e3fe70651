"""Measure settings and name the fastest within a limit.

    python -m scripts.lab.recommend --max-loss 0.15 --out my-search

Writes recommend.json and frontier.svg, and goes on where it ended.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from lora_drop.cli.arguments import Parser, load, read_data_prompts
from lora_drop.cli.output import cell, note, print_table, progress, spread
from lora_drop.errors import LoraDropError
from lora_drop.method.fields import SCHEDULE, Setting, read_layer_order
from lora_drop.method.kinds import Whole
from lora_drop.method.presets import PRESETS, config_from
from lora_drop.method.settings import BY_NAME, settings_of
from lora_drop.paths import write_files
from lora_drop.run.results.files import PRESETS_FILE
from lora_drop.run.results.preset_results import credible_speed
from scripts.lab import exit_code
from scripts.lab.frontier import frontier_figure
from scripts.lab.search import SEARCH, Axes, Limits, Search, loss_of, search

COMMON = ("layers", "reuse", "part", "adapters", "corrections")  # settings that all candidates share
COUNTS = Setting("counts", SCHEDULE, Whole(1, 100_000), None, "how many layers are skipped")
# Options that are lists: the setting whose values they hold, and words for the help.
LISTS = {
    "counts": (COUNTS, "N,N,...", "how many layers to skip, the first of the drop order"),
    "periods": (BY_NAME["period"], "W,W,...", "default 2,3,4,6"),
    "refreshes": (BY_NAME["refresh"], "RULE,...", "single, repair (default repair)"),
    "accepts": (BY_NAME["accept"], "A,A,...", "default 0,0.1,0.3; above 0 with repair only"),
    "heads": (BY_NAME["head"], "HEAD,...", "full, screened (default full, and screened if the adapters have it)"),
    "entropies": (BY_NAME["refresh_entropy"], "H,H,...", "refresh early at so many nats (default off,1)"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = Parser(prog="python -m scripts.lab.recommend", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--max-loss", type=float, required=True, metavar="NATS", help="most loss on the full model's own answers"
    )
    parser.add_argument(
        "--max-regret", type=float, metavar="NATS", help="most regret of a setting with accept (default --max-loss)"
    )
    for name, (_, metavar, help_) in LISTS.items():
        parser.add_argument(f"--{name}", metavar=metavar, help=help_)
    parser.add_argument(
        "--drop-order", metavar="14,9,12", help="layers, the cheapest to skip first (default evenly spaced ones)"
    )
    parser.add_model_options()
    parser.add_settings([setting for setting in settings_of(SCHEDULE) if setting.name in COMMON], unset=True)
    parser.add_path("--data", "FILE.jsonl", "prompts (default those that settings are chosen on)")
    parser.add_argument("--prompt-field", metavar="NAME", help="default prompt")
    parser.add_argument("--limit", type=int, help="only the first N prompts")
    parser.add_argument("--context-tokens", type=int, help="keep only the prompt's last N tokens")
    parser.add_path("--before", "PRESETS.json", "presets to show beside, in grey")
    parser.add_out("gets recommend.json and frontier.svg; goes on where it ended")
    return exit_code(parser, run, argv)


def run(args: argparse.Namespace) -> None:
    """Search, draw the frontier and print it."""
    base = config_from({name: getattr(args, name) for name in COMMON}, PRESETS)
    prompts = read_data_prompts(args)
    limits = Limits(args.max_loss, args.max_loss if args.max_regret is None else args.max_regret)
    axes, order = _axes(args), read_layer_order(args.drop_order)
    before = PRESETS_FILE.read(args.before)["rows"] if args.before else []
    source = {"file": args.data.name if args.data else "held-out prompts", "limit": args.limit}
    with SEARCH.writing(args.out), progress("answers", 30) as answered, progress("settings") as show:
        places = args.out, order, args.context_tokens, show, answered
        state = search(load(args), base, axes, limits, prompts, source, *places)
        presets = [row | {"loss": loss_of(row)} for row in before]
        write_files({args.out / "frontier.svg": frontier_figure(state.figures() | {"before": presets})})
    note(*state.content["notes"])
    if state.recommended is None:
        raise LoraDropError("no setting stays within that limit: relax it, or train adapters.")
    _show(state)


def _axes(args: argparse.Namespace) -> Axes:
    """The values of the list options. Raises LoraDropError: one cannot be read."""
    values: dict[str, list[Any]] = {}
    for name, (setting, *_) in LISTS.items():
        if (text := getattr(args, name)) is not None:
            words = [word.strip() for word in text.split(",")]
            values[name] = [setting.read("" if word == "off" else word) for word in words]
    return Axes(**values)


def _show(state: Search) -> None:
    best = state.recommended
    assert best is not None
    print_table(
        state.frontier,
        {
            "skipped": ("layers_dropped",),
            "period": ("period",),
            "refresh": ("refresh",),
            "accept": ("accept", "g"),
            "head": ("head",),
            "entropy": ("refresh_entropy", "g"),
            "loss": lambda row: cell(loss_of(row), ".3f"),
            "speedup": ("speedup", ".2f", "x"),
            "spread": spread,
            "bound": ("bound", ".2f", "x"),
            "KV saved": ("kv_saved", ".1%"),
            "": lambda row: "<- the fastest within the limit" if row is best else "",
        },
    )
    flags = [
        f"{setting.flag} {shlex.quote(setting.kind.write(best['config'][setting.name]))}"
        for setting in settings_of(SCHEDULE)
        if setting.name in best["config"]
    ]
    print(" ".join(flags))
    kind = "regret" if best["accept"] else "quality loss"
    print(
        f"{best['speedup']:.2f}x for a {kind} of {loss_of(best):.3f} nats a token, KV saved {best['kv_saved']:.1%}; "
        f"adapters {best['adapters']}, {best['decoder']} on {state.content['device']['name']}; "
        f"{len(state.rows)} settings measured, {len(state.content['left_out'])} left out by their bound"
    )
    if state.head_only:
        alone = state.head_only["speedup"]
        print(f"the screened head alone: {alone:.2f}x, loss {loss_of(state.head_only):.3f}", end="")
        print(f"; LoRA-Drop beyond it {best['speedup'] / alone:.2f}x" if best["head"] == "screened" else "")
    if best["speedup"] <= 1:
        print("it gains no time")
    if noisy := sum(credible_speed(row) < row["speedup"] for row in state.rows):
        note(f"{noisy} of {len(state.rows)} speeds lie beyond their bounds, by chance: measure on an idle machine.")


if __name__ == "__main__":
    sys.exit(main())
