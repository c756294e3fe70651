"""The command line: `python -m lora_drop COMMAND`; `_parser` has the commands.

Results go to stdout, everything else to stderr. Bad input is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from lora_drop.cli import benchmark as benchmark_options
from lora_drop.cli.arguments import parse_path
from lora_drop.cli.train import add_arguments, add_reading_options
from lora_drop.errors import LoraDropError, is_out_of_memory
from lora_drop.method.config import KV_RULES, PARTS, REUSE_RULES
from lora_drop.method.cost import human_bytes
from lora_drop.method.options import config_from
from lora_drop.method.presets import COMPARISONS, PRESETS, presets_for
from lora_drop.run.records import TOGETHER, Record, StepRecord, write_line
from lora_drop.run.trace import Trace, gather, read_trace, refresh_counts

if TYPE_CHECKING:
    from lora_drop.models.load import LoadedModel

BAD_INPUT = 2
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for every other mistake: argparse would print the whole usage before it."""
        raise LoraDropError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    try:
        # Text may hold what the terminal's encoding has no sign for.
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        args = _parser().parse_args(argv)
        code = args.command(args)
        sys.stdout.flush()
        return code
    except LoraDropError as error:
        print(f"lora_drop: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("lora_drop: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        # Commands tell of their files themselves, so this is stdout. Python would flush it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # a reader that has gone (`| head`) has seen enough
            print(f"lora_drop: cannot write the result: {error.strerror or error}.", file=sys.stderr)
        return 1
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        line = "the memory ran out: take shorter texts, smaller batches, a smaller model or another device."
        print(f"lora_drop: {line}", file=sys.stderr)
        return BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lora_drop", description="LoRA-Drop decoding: run it, measure it.", allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="generate with baseline and LoRA-Drop, side by side", allow_abbrev=False)
    run.add_argument("--prompt", required=True)
    add_model_options(run)
    add_config_options(run)
    run.add_argument("--max-new-tokens", type=int, default=128)
    run.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    run.add_argument("--top-p", type=float, default=1.0)
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--lanes", default="both", help="both (default), baseline or lora-drop")
    run.add_argument("--compare", help="a third lane: " + ", ".join(COMPARISONS))
    run.add_argument("--audit", action=argparse.BooleanOptionalAction, default=True, help="true drift, KL, agreement")
    run.add_argument("--ignore-eos", action="store_true", help="go on after a stop token")
    run.add_argument("--trace", type=parse_path, metavar="FILE.jsonl", help="record the run here, line by line")
    run.add_argument("--json", action="store_true", help="one JSON object on stdout")
    run.set_defaults(command=_run)

    evaluate = commands.add_parser(
        "evaluate", help="teacher-forced quality through the real decode schedule", allow_abbrev=False
    )
    add_data_options(evaluate)
    add_model_options(evaluate)
    add_config_options(evaluate)
    evaluate.add_argument("--json", action="store_true", help="one JSON object on stdout")
    evaluate.set_defaults(command=_evaluate)

    adaptive = commands.add_parser(
        "adaptive", help="do early refreshes beat fixed schedules of the same average period?", allow_abbrev=False
    )
    add_data_options(adaptive)
    add_model_options(adaptive)
    add_config_options(adaptive)
    adaptive.add_argument("--triggers", default="entropy,norm", metavar="NAME,NAME")
    adaptive.add_argument("--quantiles", default="0.5,0.7,0.85,0.95", metavar="Q,Q,...", help="thresholds to scan")
    adaptive.add_argument("--json", action="store_true", help="one JSON object on stdout")
    adaptive.set_defaults(command=_adaptive)

    sweep = commands.add_parser(
        "sweep",
        help="measure a grid of drop ratios, periods, rules and parts",
        description="--reuse, --part and --adapters take lists too: --reuse residual,state --adapters auto,none.",
        allow_abbrev=False,
    )
    add_data_options(sweep)
    add_model_options(sweep)
    add_config_options(sweep)
    sweep.add_argument("--drop-ratios", metavar="P,P,...", help="default 0.25,0.5,0.75")
    sweep.add_argument("--periods", metavar="W,W,...", help="default 2,4,8")
    sweep.add_argument(
        "--out",
        type=parse_path,
        required=True,
        metavar="DIR",
        help="gets sweep.csv and sweep.json; goes on where it ended",
    )
    sweep.add_argument("--json", action="store_true", help="one JSON object on stdout")
    sweep.set_defaults(command=_sweep)

    presets = commands.add_parser(
        "presets", help="measure every preset, and store texts that it writes", allow_abbrev=False
    )
    add_data_options(presets)
    add_model_options(presets)
    presets.add_argument(
        "--out",
        type=parse_path,
        required=True,
        metavar="DIR",
        help="gets presets.json, samples.json and samples.md; goes on where it ended",
    )
    presets.add_argument("--json", action="store_true", help="one JSON object on stdout")
    presets.set_defaults(command=_presets)

    figures = commands.add_parser("sweep-figures", help="a sweep as self-contained HTML", allow_abbrev=False)
    figures.add_argument("folder", type=parse_path, metavar="DIR", help="where sweep wrote sweep.json")
    figures.add_argument(
        "--out", type=parse_path, required=True, metavar="DIR", help="gets heatmaps.html and pareto.html"
    )
    figures.add_argument("--theme", default="light", help="light (default) or dark")
    figures.add_argument("--json", action="store_true", help="one JSON object on stdout")
    figures.set_defaults(command=_sweep_figures)

    choose = commands.add_parser("recommend", help="the fastest setting of a sweep within a limit", allow_abbrev=False)
    choose.add_argument("sweep", type=parse_path, metavar="SWEEP.json")
    choose.add_argument("--min-agreement", type=float, help="least same-top-token share at LoRA steps, e.g. 0.9")
    choose.add_argument("--max-nll-gap", type=float, help="most nats lost over all steps, e.g. 0.1")
    choose.add_argument("--json", action="store_true", help="one JSON object on stdout")
    choose.set_defaults(command=_recommend)

    bench = commands.add_parser(
        "bench",
        help="tokens a second of both lanes, interleaved, with the bound and transformers beside them",
        allow_abbrev=False,
    )
    add_model_options(bench)
    add_config_options(bench)
    bench.add_argument("--prompt-tokens", type=int, default=64, metavar="N")
    bench.add_argument("--new-tokens", type=int, default=129, metavar="N", help="one more than decode steps")
    bench.add_argument("--rounds", type=int, default=5, metavar="N", help="after a warm-up; figures are medians")
    bench.add_argument("--hf", action=argparse.BooleanOptionalAction, default=True, help="transformers' generate too")
    bench.add_argument("--json", action="store_true", help="one JSON object on stdout")
    bench.set_defaults(command=_bench)

    tasks = commands.add_parser(
        "benchmark", help="the paper's benchmarks from local files, full model and LoRA-Drop", allow_abbrev=False
    )
    benchmark_options.add_options(tasks)
    add_model_options(tasks)
    add_config_options(tasks)
    tasks.add_argument("--json", action="store_true", help="one JSON object on stdout")
    tasks.set_defaults(command=_benchmark)

    order = commands.add_parser(
        "drop-order", help="which layers to drop first: a greedy order by measured KL", allow_abbrev=False
    )
    order.add_argument(
        "--data", type=parse_path, nargs="+", required=True, metavar="FILE", help="txt, json or jsonl files"
    )
    add_reading_options(order)
    order.add_argument("--windows", type=int, default=10, metavar="N", help="windows of 256 tokens to measure on")
    order.add_argument("--count", type=int, default=12, metavar="N", help="layers to choose")
    add_model_options(order)
    add_config_options(order)
    order.add_argument("--json", action="store_true", help="one JSON object on stdout")
    order.set_defaults(command=_drop_order)

    training = commands.add_parser("train", help="distil adapters from the full model", allow_abbrev=False)
    add_arguments(training)
    training.set_defaults(command=_train)

    replay = commands.add_parser("replay", help="read a recorded run and show its figures", allow_abbrev=False)
    replay.add_argument("trace", type=parse_path, metavar="TRACE.jsonl")
    replay.add_argument("--html", type=parse_path, metavar="OUT.html", help="the run as a page that opens offline")
    replay.add_argument(
        "--chrome", type=parse_path, metavar="OUT.json", help="the run for Perfetto and chrome://tracing"
    )
    replay.add_argument("--json", action="store_true", help="one JSON object on stdout")
    replay.set_defaults(command=_replay)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The model, device and dtype options that commands share."""
    parser.add_argument("--model", default="bundled", help="bundled (default), a hub id, a folder, random:SHAPE")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda")
    parser.add_argument("--dtype", default="auto", help="auto (default), float32, bfloat16")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """The options that name prompt and target pairs."""
    parser.add_argument("--data", type=parse_path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--prompt-field", required=True)
    parser.add_argument("--target-field", required=True)
    parser.add_argument("--limit", type=int, help="only the first N records")
    parser.add_argument("--context-tokens", type=int, help="keep only the prompt's last N tokens")


def read_data(args: argparse.Namespace) -> list[tuple[str, str]]:
    """The pairs that the data options name.

    Raises:
        LoraDropError: a limit below 1, or see `metrics.read_pairs`.
    """
    for name in ("limit", "context_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise LoraDropError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
    from lora_drop.evaluation.metrics import read_pairs

    return list(read_pairs(args.data, args.prompt_field, args.target_field, args.limit))


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """The options of `LoraDropConfig`. Unset ones are left to the preset, or to the config's defaults."""
    parser.add_argument("--preset", help=f"start from one of: {', '.join(PRESETS)}")
    parser.add_argument("--period", type=int, help="a full step every PERIOD steps; 1 is the baseline (default 4)")
    parser.add_argument("--layers", metavar="LOW-HIGH", help="the droppable range, e.g. 3-28")
    parser.add_argument("--drop-ratio", type=float, help="share of the range that is dropped (default 0.5)")
    parser.add_argument("--drop-layers", metavar="4,6,8", help="the dropped layers by number, instead of a ratio")
    parser.add_argument("--reuse", help=f"{', '.join(REUSE_RULES)} (default residual)")
    parser.add_argument("--part", help=f"{', '.join(PARTS)} (default block)")
    parser.add_argument("--kv", help=f"{', '.join(KV_RULES)} (default skip)")
    parser.add_argument("--adapters", help="auto (default), none, or an adapter folder")
    parser.add_argument(
        "--refresh-entropy", type=float, metavar="NATS", help="refresh early at this entropy of the last logits"
    )
    parser.add_argument(
        "--refresh-norm", type=float, metavar="SHARE", help="refresh early at this ||correction|| / ||cached state||"
    )


def _load(args: argparse.Namespace):
    from lora_drop.models.load import load_model  # torch and transformers load only when a model is needed

    return load_model(args.model, args.device, args.dtype)


def _run(args: argparse.Namespace) -> int:
    config = config_from(args, args.model)
    from lora_drop.run.request import Request
    from lora_drop.run.run import run

    request = Request(
        args.prompt,
        config,
        args.max_new_tokens,
        args.temperature,
        args.top_p,
        args.seed,
        audit=args.audit,
        ignore_eos=args.ignore_eos,
        lanes=args.lanes,
        compare=args.compare,
    )
    loaded = _load(args)
    records = run(loaded, request)
    first = next(records)  # what does not fit the model is told before a trace file is begun
    trace = gather(_recorded(_chain(first, records), args.trace))
    _show_run(trace, args.json)
    if args.preset is not None and config == presets_for(args.model)[args.preset].config and not args.json:
        _show_preset(args.preset, loaded)
    return 0


def _show_preset(name: str, loaded: LoadedModel) -> None:
    """The measured quality of a preset, if it was measured on this model with these adapters."""
    from lora_drop.adapters.find import config_fingerprint
    from lora_drop.evaluation.preset_results import in_words, measured_presets

    try:
        measured = measured_presets(loaded.id, loaded.revision, lambda config: config_fingerprint(loaded, config))
    except LoraDropError as error:
        print(f"note: {error}", file=sys.stderr)  # the run is done and shown; this would only have been beside it
        return
    if name in measured.rows:
        print(f"preset {name}, as measured: {in_words(measured.rows[name], measured.about)}")


def _chain(first: Record, rest: Iterator[Record]) -> Iterator[Record]:
    yield first
    yield from rest


def _recorded(records: Iterator[Record], path: Path | None) -> Iterator[Record]:
    """Pass records on; write each to the trace file as it comes, and count steps on a terminal's stderr."""
    try:
        target = path.open("w", encoding="utf-8") if path else nullcontext()
    except OSError as error:
        raise LoraDropError(f"cannot write the trace {path.name}: {error.strerror or error}.") from None
    steps = 0
    try:
        with target as file:
            for record in records:
                if file:
                    _write(file, record)
                if isinstance(record, StepRecord) and sys.stderr.isatty():
                    steps += 1
                    print(f"\r{steps} steps", end="", file=sys.stderr, flush=True)
                yield record
    finally:
        if steps:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _write(file: TextIO, record: Record) -> None:
    try:
        file.write(write_line(record))
        file.flush()
    except OSError as error:
        with suppress(OSError):
            file.close()  # what the buffer still holds cannot be written either
        raise LoraDropError(f"the trace could not be written to the end: {error.strerror or error}.") from None


def run_object(trace: Trace) -> dict[str, Any]:
    """The `run` object of the contract, from a trace: what `run` printed is what `replay` prints."""
    summary = trace.summary
    lanes: dict[str, Any] = {"baseline": None, "lora_drop": None}
    main = _main_lane(trace)
    for name in trace.steps:
        figures = summary.lanes[name] if summary else {}
        beside = {key: figures.get(key) for key in TOGETHER} if name not in lanes else {}
        lanes[name] = {
            "text": trace.text(name),
            "token_ids": trace.token_ids(name),
            "tokens_per_second": figures.get("tokens_per_second"),
            "kv_bytes": figures.get("kv_bytes", trace.steps[name][-1].kv_bytes if trace.steps[name] else 0),
            "kv_allocated_bytes": figures.get("kv_allocated_bytes"),
            **beside,
        }
    return {
        **lanes,
        **{name: getattr(summary, name) if summary else None for name in TOGETHER},
        "config": {
            **main["config"],
            **trace.header.sampling,
            **refresh_counts(trace, main["id"]),
            "seed": trace.header.seed,
            "model": trace.header.model,
        },
        "device": trace.header.device,
    }


def _main_lane(trace: Trace) -> dict[str, Any]:
    """The lane that a run is about: LoRA-Drop's, or the only one."""
    return next((lane for lane in trace.header.lanes if lane["id"] == "lora_drop"), trace.header.lanes[-1])


def _show_run(trace: Trace, as_json: bool) -> None:
    result = run_object(trace)
    if as_json:
        print(json.dumps(result, allow_nan=False))
        return
    header = trace.header
    model, device = header.model, header.device
    print(_plain(f"{model['id']} ({model['dtype']}) on {device['name']}, {header.prompt_tokens} tokens in"))
    for note in header.sampling.get("notes", []):
        print(_plain(f"note: {note}"))
    for lane in header.lanes:
        figures = result[lane["id"]]
        rate = figures["tokens_per_second"]
        print(_plain(f"\n--- {lane['label']}\n{figures['text']}"))
        print(
            f"    {len(figures['token_ids'])} tokens, {f'{rate:.1f} tokens/s' if rate else 'no decode step'}, "
            f"KV {human_bytes(figures['kv_bytes'])}"
        )
    if trace.summary is None:
        print("\nThe trace was cut short: it has no summary.")
        return
    early = sum(step.trigger is not None for step in trace.steps[_main_lane(trace)["id"]])
    if early:
        config = result["config"]
        print(
            f"\n{early} of {config['refreshes']} full steps came early: "
            f"one decode step in {config['average_period']:.2f} was full"
        )
    print()
    for label, value, form in (
        ("speedup", result["speedup"], "{:.2f}x"),
        ("its physical bound", result["bound"], "{:.2f}x"),
        ("KV saved", result["kv_saved"], "{:.1%}"),
        ("same next token as the full model, LoRA steps", result["top1_agreement"], "{:.1%}"),
        ("first differing token", result["first_divergence"], "{}"),
    ):
        print(f"{label}: {'-' if value is None else form.format(value)}")


def _plain(text: str) -> str:
    """A text for people to read, without the controls by which it could write elsewhere on their terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)


def _evaluate(args: argparse.Namespace) -> int:
    config = config_from(args, args.model)
    pairs = read_data(args)  # its mistakes are told before a model is loaded
    from lora_drop.evaluation.metrics import evaluate

    def show(tokens: int) -> None:
        print(f"\r{tokens} tokens", end="", file=sys.stderr, flush=True)

    result = evaluate(
        _load(args), config, iter(pairs), args.context_tokens, show if sys.stderr.isatty() else lambda tokens: None
    )
    if args.json:
        print(json.dumps(result, allow_nan=False))
        return 0
    print(f"{result['tokens']} tokens   NLL full -> LoRA-Drop   KL      same top token")
    for label, key in (("LoRA steps", "lora_steps"), ("all steps", "all_steps")):
        row = result[key]
        if not row["count"]:
            print(f"{label:<12} none")
            continue
        print(
            f"{label:<12} {row['nll_baseline']:.4f} -> {row['nll_lora_drop']:.4f}      "
            f"{row['kl']:.4f}  {row['top1_agreement']:.1%}"
        )
    if every := result["config"]["average_period"]:
        print(f"one decode step in {every:.2f} was full")
    return 0


def _adaptive(args: argparse.Namespace) -> int:
    config, pairs = config_from(args, args.model), read_data(args)
    try:
        quantiles = [float(text) for text in args.quantiles.split(",")]
    except ValueError:
        raise LoraDropError("--quantiles must be numbers with commas, such as 0.5,0.9.") from None
    from lora_drop.evaluation.adaptive import compare

    def show(points: int) -> None:
        print(f"\r{points} points", end="", file=sys.stderr, flush=True)

    triggers = args.triggers.split(",")
    result = compare(
        _load(args),
        config,
        pairs,
        triggers,
        quantiles,
        args.context_tokens,
        show if sys.stderr.isatty() else lambda points: None,
    )
    if args.json:
        print(json.dumps(result, allow_nan=False))
    else:
        _show_adaptive(result)
    return 0


def _show_adaptive(result: dict[str, Any]) -> None:
    for note in result["config"]["notes"]:
        print(f"note: {note}")
    for part, title in (("choosing", "Choosing a threshold"), ("judging", "Judging it on other records")):
        if result[part] is None:
            continue
        print(f"\n{title}, {result[part]['fixed'][0]['tokens']} tokens")
        print("schedule                  one full in   NLL gap  same top   at that period, fixed   gain, nats")
        for row in [*result[part]["fixed"], *result[part]["adaptive"]]:
            name = f"period {row['period']}" if "period" in row else f"{row['trigger']} >= {row['threshold']:.4g}"
            every = "-" if row["average_period"] is None else f"{row['average_period']:.2f}"
            print(f"{name:<26}{every:>11}  {row['nll_gap']:8.4f}  {row['agreement']:8.1%}", end="")
            if "nll_gain" in row:
                print(
                    f"   {row['fixed_nll_gap']:8.4f}  {row['fixed_agreement']:8.1%}   {row['nll_gain']:+10.4f}", end=""
                )
            print()
    chosen, judging = result["chosen"], result["judging"]
    if chosen is None:
        print("\nNo trigger saw anything to set a threshold by.")
        return
    option = f"--refresh-{chosen['trigger']} {chosen['threshold']:.6g}"
    if judging is None:
        print(f"\nBest here: {option}. One record cannot judge what was chosen on it: give more.")
        return
    gain = judging["adaptive"][0]
    verdict = "wins against" if result["wins"] else "does not win against"
    print(
        f"\n{option} {verdict} a fixed schedule of the same average period: {gain['nll_gain']:+.4f} nats a token, "
        f"{gain['agreement_gain']:+.1%} agreement."
    )


def _sweep(args: argparse.Namespace) -> int:
    if args.drop_layers is not None:
        raise LoraDropError("a sweep chooses the layers by --drop-ratios, within --layers; not by --drop-layers.")
    lists = {name: getattr(args, name) for name in ("reuse", "part", "adapters")}
    base = config_from(argparse.Namespace(**vars(args) | dict.fromkeys(lists)), args.model)
    rules = {
        name: [getattr(base, name)] if text is None else [part.strip() for part in text.split(",")]
        for name, text in lists.items()
    }
    ratios = _axis(args, "drop_ratio", float, "0.25,0.5,0.75")
    periods = _axis(args, "period", int, "2,4,8")
    pairs = read_data(args)
    from lora_drop.evaluation.sweep import grid, sweep

    def show(done: int, total: int) -> None:
        print(f"{done} of {total} points", file=sys.stderr, flush=True)

    configs = grid(base, ratios, periods, rules["reuse"], rules["part"], rules["adapters"])
    source = {
        "file": args.data.name,
        "prompt_field": args.prompt_field,
        "target_field": args.target_field,
        "limit": args.limit,
    }
    result = sweep(_load(args), configs, pairs, source, args.out, args.context_tokens, show)
    for note in result["notes"]:
        print(f"note: {note}", file=sys.stderr)
    if args.json:
        print(json.dumps(result, allow_nan=False))
        return 0
    print("reuse     part       ratio  period  agreement   NLL gap  speedup   bound  KV saved  adapters")
    for row in result["rows"]:
        print(
            f"{row['reuse']:<8}  {row['part']:<9}  {row['drop_ratio']:5.2f}  {row['period']:6}  "
            f"{_cell(row['lora_steps_top1_agreement'], '.1%'):>9}  {_cell(row['all_steps_nll_gap'], '.3f'):>8}  "
            f"{_cell(row['speedup'], '.2f'):>6}x  {_cell(row['bound'], '.2f'):>5}x  "
            f"{_cell(row['kv_saved'], '.1%'):>8}  {row['adapters']}"
        )
    return 0


def _presets(args: argparse.Namespace) -> int:
    pairs = read_data(args)
    from lora_drop.evaluation.presets import measure_presets, sample_presets

    def show(what: str) -> Callable[[int, int], None]:
        return lambda done, total: print(f"{done} of {total} {what}", file=sys.stderr, flush=True)

    source = {
        "file": args.data.name,
        "file_sha256": hashlib.sha256(args.data.read_bytes()).hexdigest(),
        "prompt_field": args.prompt_field,
        "target_field": args.target_field,
        "limit": args.limit,
    }
    loaded = _load(args)
    result = measure_presets(loaded, pairs, source, args.out, args.context_tokens, show("rows"))
    samples = sample_presets(loaded, args.out, show("texts"))
    for note in result["notes"]:
        print(f"note: {note}", file=sys.stderr)
    if args.json:
        print(json.dumps({"presets": result, "samples": samples}, allow_nan=False))
        return 0
    from lora_drop.evaluation.preset_results import reads_well

    print("preset    agreement   NLL gap  speedup   bound  KV saved  reads well  adapters")
    for row in result["rows"]:
        print(
            f"{row['preset']:<8}  {_cell(row['lora_steps_top1_agreement'], '.1%'):>9}  "
            f"{_cell(row['all_steps_nll_gap'], '.3f'):>8}  {_cell(row['speedup'], '.2f'):>6}x  "
            f"{_cell(row['bound'], '.2f'):>5}x  {_cell(row['kv_saved'], '.1%'):>8}  "
            f"{'yes' if reads_well(row) else 'no':<10}  {row['adapters']}"
        )
    return 0


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _axis(args: argparse.Namespace, name: str, kind: type, default: str) -> list:
    """The values of a grid's axis: its list, else the single option's value, else the default."""
    many, one = getattr(args, f"{name}s"), getattr(args, name)
    if many is not None and one is not None:
        option = name.replace("_", "-")
        raise LoraDropError(f"give --{option}s or --{option}, not both.")
    if one is not None:
        return [one]
    try:
        return [kind(text) for text in (many or default).split(",")]
    except ValueError:
        raise LoraDropError("--drop-ratios and --periods must be numbers with commas, such as 0.25,0.5.") from None


def _sweep_figures(args: argparse.Namespace) -> int:
    from lora_drop.evaluation.sweep import JSON_NAME, read_sweep
    from lora_drop.run.exports.figures import write_figures

    paths = [str(path) for path in write_figures(read_sweep(args.folder / JSON_NAME), args.out, args.theme)]
    print(json.dumps({"files": paths}) if args.json else "\n".join(paths))
    return 0


def _recommend(args: argparse.Namespace) -> int:
    from lora_drop.evaluation.sweep import recommend

    if args.min_agreement is None and args.max_nll_gap is None:
        raise LoraDropError("name a limit: --min-agreement, --max-nll-gap, or both.")
    row = recommend(args.sweep, args.min_agreement, args.max_nll_gap)
    if row is None:
        raise LoraDropError(f"no setting in {args.sweep.name} stays within that limit: relax it, or train adapters.")
    if args.json:
        print(json.dumps(row, allow_nan=False))
        return 0
    print(
        f"--period {row['period']} --drop-ratio {row['drop_ratio']} --reuse {row['reuse']} --part {row['part']} "
        f"--kv {row['kv']}   (adapters {row.get('adapters', 'not recorded')}, {_cell(row['speedup'], '.2f')}x, "
        f"bound {_cell(row['bound'], '.2f')}x, KV saved {_cell(row['kv_saved'], '.1%')})"
    )
    return 0


def _bench(args: argparse.Namespace) -> int:
    config = config_from(args, args.model)
    from lora_drop.evaluation.bench import bench, hf_reference

    def show(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    loaded = _load(args)
    result = bench(loaded, config, args.prompt_tokens, args.new_tokens, args.rounds, show)
    del loaded  # the reference loads a model of its own
    reference = None
    if args.hf:
        show("transformers' generate")
        reference = hf_reference(args.model, args.device, args.dtype, args.prompt_tokens, args.new_tokens)
        if reference is None:
            show("note: transformers' generate failed, so there is no reference.")
    result["hf_generate_tokens_per_second"] = reference and reference["tokens_per_second"]
    result["hf_generate_dtype"] = reference and reference["dtype"]
    if args.json:
        print(json.dumps(result, allow_nan=False))
        return 0
    device, config = result["device"], result["config"]
    for note in config["notes"]:
        show(f"note: {note}")
    print(f"{result['model']['id']} ({result['dtype']}), {device['decoder']}, {device['name']}")
    print(f"{config['prompt_tokens']} + {config['new_tokens']} tokens, medians of {config['rounds']} rounds\n")
    print("lane         tokens/s   first token       KV held   KV allocated")
    for lane, name in (("baseline", "baseline"), ("LoRA-Drop", "lora_drop")):
        print(
            f"{lane:<11}  {result[f'{name}_tokens_per_second']:8.1f}   {result[f'{name}_first_token_ms']:8.1f} ms  "
            f"{human_bytes(result[f'kv_bytes_{name}']):>12}   {human_bytes(result[f'kv_allocated_bytes_{name}']):>12}"
        )
    if reference:
        rate = reference["tokens_per_second"]
        print(
            f"transformers {rate:8.1f}   generate, {reference['dtype']}: the baseline is "
            f"{result['baseline_tokens_per_second'] / rate:.2f} times as fast"
        )
    print(
        f"\nspeedup {result['speedup']:.3f}x, bound {result['bound']:.3f}x: {result['speedup_over_bound']:.1%} of it\n"
        f"the baseline reads {result['baseline_bytes_per_step'] / 1e6:.1f} MB a step, "
        f"{result['baseline_gb_per_second']:.1f} GB/s: {result['baseline_share_of_read_bandwidth']:.0%} of the "
        f"{result['read_gb_per_second']:.1f} GB/s that this device reads "
        f"({result['copy_gb_per_second']:.1f} GB/s copying)"
    )
    return 0


def _benchmark(args: argparse.Namespace) -> int:
    config, options = config_from(args, args.model), benchmark_options.options_from(args)
    from tqdm import tqdm

    from lora_drop.evaluation.tasks.tasks import read_tasks

    def tell(line: str) -> None:
        tqdm.write(f"note: {line}", file=sys.stderr)

    work = read_tasks(options.data_dir, options.names, options.limit, tell)
    from lora_drop.evaluation.tasks.benchmark import benchmark, markdown

    loaded = _load(args)
    with tqdm(unit="record", file=sys.stderr, mininterval=0.5 if sys.stderr.isatty() else 30) as bar:

        def show(done: int, total: int) -> None:
            if bar.total is None:  # the records that are there already are no part of the pace
                bar.total, bar.initial, bar.n = total, done, done
            bar.update(done - bar.n)

        result = benchmark(loaded, config, work, options, tell, show)
    for note in result["notes"]:
        tell(note)
    print(json.dumps(result, allow_nan=False) if args.json else markdown(result).rstrip("\n"))
    return 0


def _drop_order(args: argparse.Namespace) -> int:
    config = config_from(args, args.model)
    if args.windows < 1:
        raise LoraDropError("--windows must be at least 1.")
    from lora_drop.adapters.find import find_bank
    from lora_drop.evaluation.order import drop_order
    from lora_drop.training.data import Turn, read_texts, to_windows
    from lora_drop.training.settings import TrainSettings

    turns = [Turn.parse(text) for text in args.chat]
    loaded = _load(args)
    windows = to_windows(read_texts(loaded, args.data, turns, args.file_tokens), TrainSettings.length)
    every = max(1, len(windows) // args.windows)
    bank, notes = find_bank(loaded, config, config.schedule_for(loaded.num_layers))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)

    def show(layer: int, kl: float) -> None:
        print(f"{layer} (KL {kl:.3f})", file=sys.stderr, flush=True)

    windows = windows[::every][: args.windows].to(loaded.device)
    rows = drop_order(loaded, windows, config, bank, args.count, progress=show)
    if args.json:
        print(json.dumps({"order": [row["layer"] for row in rows], "rows": rows, "tokens": windows.numel()}))
        return 0
    print("layer   KL with all before it   alone")
    for row in rows:
        print(f"{row['layer']:5}   {row['kl']:21.3f}   {row['alone']:5.3f}")
    print(f"--drop-order {','.join(str(row['layer']) for row in rows)}")
    return 0


def _train(args: argparse.Namespace) -> int:
    from lora_drop.training.train import train

    return train(args)


def _replay(args: argparse.Namespace) -> int:
    trace = read_trace(args.trace)
    if args.html:
        from lora_drop.run.exports.html import replay_html

        _write_export(args, args.html, replay_html(trace))
    if args.chrome:
        from lora_drop.run.exports.chrome import chrome_trace

        _write_export(args, args.chrome, json.dumps(chrome_trace(trace), allow_nan=False))
    _show_run(trace, args.json)
    return 0


def _write_export(args: argparse.Namespace, path: Path, text: str) -> None:
    if path.exists() and path.samefile(args.trace):
        raise LoraDropError(f"{path} is the trace itself: name another file.")
    if not path.parent.is_dir():
        raise LoraDropError(f"cannot write {path.name}: there is no folder {path.parent}.")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LoraDropError(f"cannot write {path}: {error.strerror or error}.") from None
