"""`sweep` and `sweep-figures`: measure a grid of drop ratios, periods, rules and parts, and draw it."""

from __future__ import annotations

import argparse
from typing import Any, TypeVar

from lora_drop.cli.arguments import Commands, add_command, data_source, load, read_data
from lora_drop.cli.output import Column, Row, cell, note, print_result, print_table, progress, say, spread
from lora_drop.errors import LoraDropError
from lora_drop.method.fields import read_layer_order
from lora_drop.method.presets import Presets, config_from
from lora_drop.run.report.speed import NOISY, speedup_words

N = TypeVar("N", int, float)


def _speedup(row: Row) -> str:
    """A measured speedup; `noisy` where its spread is too wide for a number."""
    low, high = row.get("speedup_low"), row.get("speedup_high")
    interval = None if low is None or high is None else (low, high)
    return "noisy" if speedup_words(row["speedup"], interval) == NOISY else cell(row["speedup"], ".2f", "x")


COLUMNS: dict[str, Column] = {
    "reuse": ("reuse",),
    "part": ("part",),
    "ratio": ("drop_ratio", ".2f"),
    "period": ("period",),
    "given loss": ("all_steps_kl", ".3f"),
    "own loss": ("own_all_steps_kl", ".3f"),
    "speedup": _speedup,
    "spread": spread,
    "bound": ("bound", ".2f", "x"),
    "KV saved": ("kv_saved", ".1%"),
    "adapters": ("adapters",),
}


def add(commands: Commands) -> None:
    """Add the options of both commands."""
    parser = add_command(
        commands,
        "sweep",
        run,
        "measure a grid of drop ratios, periods, rules and parts",
        description="--reuse, --part and --adapters take lists too: --reuse residual,state --adapters auto,none.",
    )
    parser.add_data_options()
    parser.add_model_options()
    parser.add_config_options()
    parser.add_argument("--drop-ratios", metavar="P,P,...", help="default 0.25,0.5,0.75")
    parser.add_argument("--periods", metavar="W,W,...", help="default 2,4,8")
    parser.add_argument(
        "--drop-order",
        metavar="L,L,...",
        help="layers, the cheapest to skip first: a ratio skips the first ones, not evenly spaced ones",
    )
    parser.add_out("gets sweep.csv and sweep.json; goes on where it ended")
    figures = add_command(commands, "sweep-figures", run_figures, "a sweep as drawings (SVG)")
    figures.add_path("folder", "DIR", "where sweep wrote sweep.json")
    figures.add_out("gets a map for each rule, and speed against each quality")
    figures.add_argument("--theme", default="light", help="light (default) or dark")


def run(args: argparse.Namespace) -> None:
    """Run the command `sweep`."""
    axes = _axes(args, None)
    pairs = read_data(args)
    order = read_layer_order(args.drop_order)
    from lora_drop.evaluation.sweep import grid, in_order, sweep
    from lora_drop.run.results.bank_presets import presets_of
    from lora_drop.run.results.files import SWEEP

    grid(*axes)  # a mistake in the options is reported at once
    with SWEEP.writing(args.out), progress("answers", 30) as answered, progress("points") as show:
        loaded = load(args)
        configs = grid(*_axes(args, presets_of(loaded)))
        if order:
            configs = in_order(configs, order, loaded.num_layers)
        try:
            source = data_source(args)
            result = sweep(loaded, configs, pairs, source, args.out, args.context_tokens, show, answered)
        except KeyboardInterrupt:
            say("stopped: the same command goes on, with the texts that the point under way has not read.")
            raise
    note(*result["notes"])
    print_result(args, result, lambda: print_table(result["rows"], COLUMNS))


def _axes(args: argparse.Namespace, presets: Presets | None) -> tuple[Any, ...]:
    """What `grid` takes; `presets` as in `config_from`."""
    if args.drop_layers is not None:
        raise LoraDropError("a sweep chooses the layers by --drop-ratios, within --layers; not by --drop-layers.")
    lists = {name: getattr(args, name) for name in ("reuse", "part", "adapters")}
    # A list is no value of a config: the base has the defaults in these three.
    base = config_from(vars(args) | dict.fromkeys(lists), presets)
    rules = [
        [getattr(base, name)] if text is None else [part.strip() for part in text.split(",")]
        for name, text in lists.items()
    ]
    return base, _axis(args, "drop_ratio", float, "0.25,0.5,0.75"), _axis(args, "period", int, "2,4,8"), *rules


def run_figures(args: argparse.Namespace) -> None:
    """Run the command `sweep-figures`."""
    from lora_drop.run.exports.figures.sweep import write_figures
    from lora_drop.run.results.files import SWEEP

    paths = [str(path) for path in write_figures(SWEEP.read(args.folder / SWEEP.name), args.out, args.theme)]
    print_result(args, {"files": paths}, lambda: print("\n".join(paths)))


def _axis(args: argparse.Namespace, name: str, kind: type[N], default: str) -> list[N]:
    """The grid's values of a setting: from its list option, its single option, or the default."""
    many, single = getattr(args, f"{name}s"), getattr(args, name)
    if many is not None and single is not None:
        option = name.replace("_", "-")
        raise LoraDropError(f"give --{option}s or --{option}, not both.")
    if single is not None:
        return [single]
    try:
        return [kind(text) for text in (many or default).split(",")]
    except ValueError:
        raise LoraDropError("--drop-ratios and --periods must be numbers with commas, such as 0.25,0.5.") from None
