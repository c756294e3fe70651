"""`run`: generate with baseline and LoRA-Drop, side by side."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lora_drop.cli.arguments import Commands, add_command, load_with_config, read_settings
from lora_drop.cli.output import note, progress, say
from lora_drop.cli.run_report import show_run
from lora_drop.errors import LoraDropError, one_line
from lora_drop.method.fields import RUN
from lora_drop.method.presets import config_from, preset_named
from lora_drop.method.settings import settings_of
from lora_drop.run.report.report import Report
from lora_drop.run.trace.records import Header, Record, write_line

if TYPE_CHECKING:
    from lora_drop.cli.stream import Stream
    from lora_drop.method.config import LoraDropConfig
    from lora_drop.models.load import LoadedModel

MAX_PROMPT_BYTES = 16 * 2**20  # of stdin, which may have no end


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = add_command(commands, "run", run, "generate with baseline and LoRA-Drop, side by side")
    parser.add_argument("--prompt", required=True, help="the text to answer; - reads it from stdin")
    parser.add_model_options()
    parser.add_config_options()
    parser.add_settings(settings_of(RUN))
    parser.add_path("--trace", "FILE.jsonl", "record the run here, line by line")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    config = config_from(vars(args), None)
    if sys.stderr.isatty() and not args.json:
        say("Loading the model.")  # 7 s with torch's import, before anything can be drawn
    from lora_drop.run.request import Request
    from lora_drop.run.run import run as run_lanes

    prompt = _read_stdin() if args.prompt == "-" else args.prompt
    request = Request(prompt, config, **read_settings(args, settings_of(RUN)))
    loaded, config = load_with_config(args)
    request = dataclasses.replace(request, config=config)
    records = run_lanes(loaded, request)
    first = next(records)  # settings that do not fit the model are reported before the trace file is opened
    assert isinstance(first, Header)
    report = Report(first)
    stream = _stream(report) if sys.stdout.isatty() and not args.json else None
    with _opened(args.trace) as file, stream or progress("steps", quiet=args.json) as show:
        for record in chain([first], records):
            if file:
                _write(file, record)
            if record is not first:
                report.add(record)
            show(sum(len(lane.steps) for lane in report.lanes.values()))
    show_run(report.trace, args.json, drawn=stream is not None)
    if args.preset is not None and not args.json:
        _show_preset(args, config, loaded)


def _read_stdin() -> str:
    """The text on stdin, without the line end that `echo` adds. Raises LoraDropError: too long, or not UTF-8."""
    raw = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(raw) > MAX_PROMPT_BYTES:
        raise LoraDropError(f"stdin holds more than {MAX_PROMPT_BYTES >> 20} MiB: no model reads so long a prompt.")
    try:
        return raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise LoraDropError("stdin is not UTF-8 text: convert it first, for example with iconv.") from None


def _show_preset(args: argparse.Namespace, config: LoraDropConfig, loaded: LoadedModel) -> None:
    """Print a preset's measured quality, if the run had its settings and it was measured with these adapters."""
    from lora_drop.run.results.bank_presets import presets_of
    from lora_drop.run.results.preset_results import in_words, measured_presets

    if config != preset_named(args.preset, presets_of(loaded, args.adapters)).config:
        return
    measured = measured_presets(loaded, args.adapters)
    if row := measured.rows.get(args.preset):
        print(f"preset {args.preset}, as measured: {in_words(row, measured.about)}")


def _stream(report: Report) -> Stream | None:
    """What draws the run on stdout's terminal; None where that is too narrow, with a note."""
    from lora_drop.cli.stream import LEAST, Stream

    if (stream := Stream(report)).fits:
        return stream
    note(f"the terminal has fewer than {LEAST} columns: the answers come at the end.")
    return None


def _opened(path: Path | None) -> AbstractContextManager[TextIO | None]:
    """The trace file; None without a path."""
    if path is None:
        return nullcontext()
    with one_line(f"cannot write the trace {path.name}"):
        return path.open("w", encoding="utf-8")


def _write(file: TextIO, record: Record) -> None:
    try:
        file.write(write_line(record))
        file.flush()
    except OSError as error:
        with suppress(OSError):
            file.close()  # flushing its buffer would fail again
        raise LoraDropError(f"the trace could not be written to the end: {error.strerror or error}.") from None
