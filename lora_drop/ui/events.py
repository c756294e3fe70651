"""What the page and the API do: check the input, run, batch the records into few small updates, release everything."""

from __future__ import annotations

import json
import re
import shlex
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import gradio as gr

from lora_drop import runtime
from lora_drop.adapters.find import bank_facts, config_fingerprint
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.preset_results import (
    READS_WELL_GAP,
    Measured,
    default_preset,
    figures,
    measured_presets,
    reads_well,
)
from lora_drop.evaluation.sweep import JSON_NAME, read_sweep
from lora_drop.method.config import LoraDropConfig, default_range
from lora_drop.method.cost import kv_bytes, kv_saved, speed_bound
from lora_drop.method.options import config_from, parse_list, parse_threshold
from lora_drop.method.presets import presets_for
from lora_drop.method.schedule import baseline_schedule
from lora_drop.models.load import LoadedModel, ModelInfo
from lora_drop.models.place import describe_device
from lora_drop.models.pool import ModelPool
from lora_drop.models.tokens import encode_prompt
from lora_drop.paths import SHIPPED_SWEEPS
from lora_drop.run.exports.chrome import chrome_trace
from lora_drop.run.exports.html import replay_html, wire_text
from lora_drop.run.records import Header, Record, StepRecord, Summary, wire_line, write_line
from lora_drop.run.request import LORA_DROP, Plan, Request, plan
from lora_drop.run.run import run
from lora_drop.run.trace import MAX_TRACE_BYTES, parse_trace, read_trace
from lora_drop.ui import space as zero
from lora_drop.ui.limits import Limits

MIN_INTERVAL, MAX_INTERVAL = 0.1, 0.4  # seconds between two updates of the page
FIRST_STEPS = 8  # the first words should come at once
HELD = 7  # steps that an update which has fallen due may wait, where they come fast
ENVELOPE = 330  # bytes that Gradio wraps around an update (measured)
STEP_BUDGET = 400  # bytes a step that the page may cost on the wire, with its share of the envelope
COUNTABLE = 200_000  # characters of a prompt that are counted while it is typed
FAILED = "The run failed inside the app. The server's log has the details."
KEPT_TRACES = 64  # of the last runs, whoever's, for their downloads
KEPT_BYTES = 256 * 2**20  # and no more of them than this
SWEEP = SHIPPED_SWEEPS / JSON_NAME


def model_facts(loaded: LoadedModel | ModelInfo) -> dict[str, Any]:
    """What the page's scripts need to know of the model: its shape, the bytes of a number, names, its adapters.

    Raises:
        LoraDropError: shipped adapters are broken.
    """
    shape = loaded.shape
    names = ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "intermediate_size", "vocab_size")
    low, high = default_range(loaded.num_layers)
    flags = ("tied", "qkv_bias", "qk_norm", "matrix_size", "head_size")
    banks = bank_facts(loaded.revision)
    return {
        "id": loaded.id,
        "device": describe_device(loaded.device)["name"],
        "decoder": loaded.decoder_name,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "itemsize": loaded.dtype.itemsize,
        "banks": banks,
        "train": None if banks else train_command(loaded.id),
        "shape": {name: getattr(shape, name) for name in (*names, *flags)},
        "droppable": high - low + 1,
        "sweep": sweep_facts(loaded.revision),
    }


def train_command(model: str) -> str:
    """What trains corrections for a model where `auto` will find them."""
    folder = re.sub(r"\W+", "-", model.rpartition("/")[2]).strip("-").lower()
    return (
        f"python -m lora_drop train --model {shlex.quote(model)} --self-generate 500 "
        f"--out assets/adapters/{folder}-residual-block"
    )


def sweep_facts(revision: str) -> list[dict[str, Any]]:
    """The stored sweep's quality, a row a setting; none if it was measured on other weights, or cannot be read."""
    try:
        result = read_sweep(SWEEP)
    except LoraDropError:
        return []
    if result["model"].get("revision") != revision:
        return []
    return [
        {
            **{name: row[name] for name in ("drop_ratio", "period", "reuse", "part")},
            "corrected": row["adapters"] not in (None, "none"),
            "agreement": row["lora_steps_top1_agreement"],
            "gap": row["all_steps_nll_gap"],
        }
        for row in result["rows"]
    ]


def settings_of(config: LoraDropConfig, num_layers: int) -> dict[str, Any]:
    """A config in the words of the page's controls, for a model of so many layers."""
    return {
        "period": config.period,
        "layers": list(config.layers or default_range(num_layers)),
        "drop_ratio": config.drop_ratio,
        "drop_layers": ",".join(str(layer) for layer in config.drop_layers or ()),
        "reuse": config.reuse,
        "part": config.part,
        "kv": config.kv,
        **{
            name: "" if (value := getattr(config, name)) is None else str(value)
            for name in ("refresh_entropy", "refresh_norm")
        },
        "adapters": config.adapters,
    }


def page_facts(loaded: LoadedModel | ModelInfo) -> dict[str, Any]:
    """All that the page shows of a model before a run: `model_facts`, `preset_facts`, and the presets' settings.

    Raises:
        LoraDropError: shipped adapters are broken.
    """
    named = presets_for(loaded.id)
    return {
        "model": model_facts(loaded),
        "presets": preset_facts(loaded),
        "settings": {name: settings_of(preset.config, loaded.num_layers) for name, preset in named.items()},
    }


def preset_facts(loaded: LoadedModel | ModelInfo) -> dict[str, Any]:
    """What the page tells of the presets: all figures are those of the measurements' file.

    Returns:
        `{"default", "missing", "about", "gap", "presets"}`: the preset to open on; why nothing was measured (empty if
        something was); on what it was; the limit of "reads well"; and of each preset, in order, `{"name", "label",
        "note", "measured", "bare", "reads_well"}`, the measured figures with its adapters and without, or None.
    """
    try:
        measured = measured_presets(loaded.id, loaded.revision, lambda config: config_fingerprint(loaded, config))
    except LoraDropError as error:
        measured = Measured(missing=str(error))  # the page works without
    about = measured.about
    return {
        "default": default_preset(measured),
        "missing": measured.missing,
        "about": about
        and {
            "device": about["device"]["name"],
            "dtype": about["model"]["dtype"],
            "file": about["data"]["file"],
            "tokens": next(iter(measured.rows.values()))["tokens"],
            "date": about["date"][:10],
        },
        "gap": READS_WELL_GAP,
        "presets": [
            {
                "name": preset.name,
                "label": preset.label,
                "note": preset.note,
                "measured": figures(measured.rows[name]) if name in measured.rows else None,
                "bare": figures(measured.bare[name]) if name in measured.bare else None,
                "reads_well": reads_well(measured.rows[name]) if name in measured.rows else None,
            }
            for name, preset in presets_for(loaded.id).items()
        ],
    }


class Stops:
    """Soft stop flags, one a session while it runs: the run asks after each step and still delivers its summary."""

    def __init__(self):
        self._flags: dict[str | None, threading.Event | zero.StopFlag] = {}
        self._lock = threading.Lock()

    def start(self, session: str | None) -> threading.Event | zero.StopFlag:
        """A flag for a new run, in the place of one that a dropped connection may have left behind."""
        with self._lock:
            self._flags[session] = flag = zero.stop_flag()
            return flag

    def end(self, session: str | None, flag: threading.Event | zero.StopFlag) -> None:
        """The run with this flag is over. The session's next one may have started already: its flag stays."""
        with self._lock:
            if self._flags.get(session) is flag:
                del self._flags[session]
            if isinstance(flag, zero.StopFlag):
                flag.end()

    def stop(self, session: str | None) -> None:
        with self._lock:
            if session in self._flags:
                self._flags[session].set()

    def __len__(self) -> int:
        return len(self._flags)


class RecentTraces:
    """The lines of the last runs by their ids, also of one that still streams or was cut off, for downloads.

    An id is a visitor's own secret of 128 bits. The oldest runs make room where there are too many, or their lines
    together are too long; the newest is always kept.
    """

    def __init__(self, most: int = KEPT_TRACES, most_bytes: int = KEPT_BYTES):
        self._lines: OrderedDict[str, list[str]] = OrderedDict()
        self._bytes: dict[str, int] = {}
        self._lock = threading.Lock()
        self._most, self._most_bytes = most, most_bytes

    def begin(self) -> str:
        """A new run; returns its id."""
        run_id = uuid4().hex
        with self._lock:
            self._lines[run_id], self._bytes[run_id] = [], 0
            self._make_room()
        return run_id

    def add(self, run_id: str, line: str) -> None:
        """Append a line to a run; nothing if it has made room for others."""
        with self._lock:
            if run_id in self._lines:
                self._lines[run_id].append(line)
                self._bytes[run_id] += sys.getsizeof(line)
                self._make_room()

    def _make_room(self) -> None:
        while len(self._lines) > 1 and (len(self._lines) > self._most or self.nbytes > self._most_bytes):
            oldest, _ = self._lines.popitem(last=False)
            del self._bytes[oldest]

    @property
    def nbytes(self) -> int:
        """Bytes that the lines take in memory."""
        return sum(self._bytes.values())

    def text(self, run_id: str) -> str | None:
        """The trace so far, as the file has it; None if it is not kept (any more)."""
        with self._lock:
            lines = self._lines.get(run_id)
            return None if lines is None else "".join(lines)

    def __len__(self) -> int:
        return len(self._lines)


@dataclass
class UpdateInterval:
    """How long to gather records before an update: at most ten a second, fewer where an envelope a step would cost
    more than the budget of bytes."""

    started: float
    steps: int = 0
    sent: int = 0

    def seconds(self, now: float) -> float:
        if self.steps < FIRST_STEPS:
            return MIN_INTERVAL
        rate = self.steps / max(now - self.started, 1e-3)
        room = max(STEP_BUDGET - self.sent / self.steps, 1)
        return min(max(ENVELOPE / (rate * room), MIN_INTERVAL), MAX_INTERVAL)

    def hold(self, updates: int, now: float) -> int:
        """Steps that the next update waits once it is due: in turn 0, 1, 2, ... up to what the least interval has."""
        fast = int(MIN_INTERVAL * self.steps / max(now - self.started, 1e-3))
        return updates % (min(HELD, fast) + 1) if self.steps >= FIRST_STEPS else 0


def batches(records: Iterator[Record], line: Callable[[Record], str], first: str = "") -> Iterator[tuple[str, Record]]:
    """The text of a run so far, each time it is worth an update, with the last record it holds.

    A reader who draws on the decoding machine slows the steps right after an update. An audit takes long, so updates
    would mostly fall due at its end, before the same lane's step each time: some wait for a few steps more.
    """
    text, last_sent, interval, record = first, 0.0, UpdateInterval(time.monotonic()), None
    updates, hold = 0, None  # steps that a due update still waits; None while none is due
    for record in records:
        new = line(record)
        text += new
        interval.sent += len(new)
        if isinstance(record, StepRecord):
            interval.steps = max(interval.steps, record.step)
            hold = hold and hold - 1
        now = time.monotonic()
        if isinstance(record, Summary) or now - last_sent < interval.seconds(now):
            continue
        if hold is None:
            hold = interval.hold(updates, now)
        if hold == 0:
            last_sent, hold = now, None
            updates += 1
            yield text, record
    if record is not None:
        yield text, record


def run_line(run_id: str) -> str:
    """The first line of a run's wire text: the page tells a new run from a longer text by it."""
    return f'{{"type":"run","id":"{run_id}"}}\n'


def whole(value: Any) -> Any:
    """A number field's 64.0 as 64; everything else is left for the check that names the setting."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Callbacks:
    """The page's functions over a pool of models. Nothing of a run lives here but its stop flag, while it runs.

    Raises:
        LoraDropError: a limit in the environment is no number.
    """

    def __init__(self, pool: ModelPool):
        self.pool = pool
        self.limits = Limits.from_environment()
        self.stops = Stops()
        self.traces = RecentTraces()
        # ZeroGPU wants its work wrapped before the page is launched, and there the pool holds one model alone.
        with pool.lend() as loaded:
            self._borrowed = self._runner(loaded) if zero.active() else None

    @staticmethod
    def _runner(loaded: LoadedModel) -> Callable[..., Iterator[Record]]:
        # `run` is looked up when it is called: tests put runs of their own there.
        return zero.runner(loaded, lambda *args: run(*args))

    def run(
        self, request: Request, stop: threading.Event | zero.StopFlag | None = None, model: str | None = None
    ) -> Iterator[Record]:
        """`session.run` on a model of the pool's list, None being the first; on ZeroGPU in a process of its own.

        Raises:
            LoraDropError: before the first record, if the request is over the limits or does not fit the model.
        """
        self.limits.check(request)
        with self.pool.lend(model) as loaded:
            # ZeroGPU has a clock of its own, and a flag that crosses to another process.
            start, flag = (self._borrowed, stop) if self._borrowed else (self._runner(loaded), self.limits.clock(stop))
            with closing(start(request, flag)) as records:
                yield from records

    def count_tokens(self, prompt: str, model: str | None = None) -> int | None:
        """Tokens of a prompt, for the what-if strip; None if there is nothing to count."""
        if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > COUNTABLE:
            return None
        return len(encode_prompt(self.pool.info(model).tokenizer, prompt))

    def use_model(self, model: str, shown: str) -> Iterator[tuple[Any, dict[str, str], Any, str]]:
        """The models menu: load a model of the list, once, and show what there is to know of it.

        Args:
            shown: the model that the page is about so far; it stays where the other one cannot be had.

        Yields the page's facts, the status line, the menu, and the model that is shown.
        """
        if model == shown:  # the menu was put back
            yield (gr.skip(),) * 4
            return
        try:
            if not self.pool.is_known(model):
                said = f"Loading {model}: this takes a moment, and longer where it is fetched first."
                yield gr.skip(), _status("running", said), gr.skip(), gr.skip()
                with self.pool.lend(model):
                    pass
            facts = page_facts(self.pool.info(model))
            yield facts, _status("idle", f"{model} is ready. Press Run."), gr.skip(), model
        except LoraDropError as error:
            yield gr.skip(), _status("error", str(error)), gr.update(value=shown), gr.skip()
        except Exception:
            traceback.print_exc()  # as in run_page
            failed = f"{model} could not be loaded. The server's log has the details."
            yield gr.skip(), _status("error", failed), gr.update(value=shown), gr.skip()

    def run_page(
        self,
        compare,
        prompt,
        period,
        layers,
        drop_ratio,
        drop_layers,
        reuse,
        part,
        kv,
        refresh_entropy,
        refresh_norm,
        adapters,
        max_new_tokens,
        temperature,
        top_p,
        seed,
        view,
        audit,
        ignore_eos,
        model,
        request: gr.Request,
    ) -> Iterator[tuple[Any, dict[str, str], Any]]:
        """The Run button; `compare` names what a third lane changes, if there is to be one.

        Yields the live view's text, the status line and the Stop button.
        """
        on, off = gr.update(interactive=True), gr.update(interactive=False)
        session = request.session_hash
        runtime.return_memory()
        stop = self.stops.start(session)
        try:
            _refuse_folder(adapters)
            chosen = parse_list(drop_layers or "") or None  # an empty field means the range and the ratio
            config = LoraDropConfig(
                period=whole(period),
                layers=tuple(layers),
                drop_ratio=drop_ratio,
                drop_layers=chosen,
                reuse=reuse,
                part=part,
                kv=kv,
                adapters=adapters,
                refresh_entropy=parse_threshold("refresh_entropy", refresh_entropy or ""),
                refresh_norm=parse_threshold("refresh_norm", refresh_norm or ""),
            )
            wanted = Request(
                prompt=prompt,
                config=config,
                max_new_tokens=whole(max_new_tokens),
                temperature=temperature,
                top_p=top_p,
                seed=whole(seed),
                view=view,
                audit=bool(audit),
                ignore_eos=bool(ignore_eos),
                compare=compare or None,
            )
            if not self.pool.is_at_hand(model):
                yield gr.skip(), _status("running", f"Loading {model}: this takes a moment."), on
            with closing(self.run(wanted, stop, model)) as records:
                lane_ids: list[str] = []
                run_id = self.traces.begin()

                def line(record: Record) -> str:
                    if isinstance(record, Header):
                        lane_ids.extend(lane["id"] for lane in record.lanes)
                    self.traces.add(run_id, write_line(record))
                    return wire_line(record, lane_ids)

                status = _status("running", "Running: a step of each lane in turn.")
                first = run_line(run_id)
                ending = ""
                for text, record in batches(records, line, first):
                    yield text, status, on
                    if isinstance(record, Summary):
                        out_of_time = self._borrowed is None and not stop.is_set()
                        ending = _ending(record, self.limits.seconds if out_of_time else None)
            # Gradio repeats the last yield whole when a run completes: one without the text saves sending it twice.
            yield gr.skip(), _status("done", ending), off
        except LoraDropError as error:
            yield gr.skip(), _status("error", str(error)), off
        except Exception:
            # The visitor gets a line, the operator the traceback; the app and other visitors' runs go on.
            traceback.print_exc()
            yield gr.skip(), _status("error", FAILED), off
        finally:
            self.stops.end(session, stop)

    def export_run(self, run_id: str, kind: str) -> dict[str, str]:
        """A run's file for the page's Take away menu: `trace`, `chrome` or `html`.

        Returns:
            `{"name", "text"}`, or `{"error"}` in one line.
        """
        text = self.traces.text(run_id) if isinstance(run_id, str) else None
        if not text:
            return {"error": "This run is no longer kept on the server: run it again, then take it away."}
        if kind == "trace":
            return {"name": "lora-drop-run.jsonl", "text": text}
        trace = parse_trace(text.encode())
        if kind == "chrome":
            try:
                events = chrome_trace(trace)
            except LoraDropError as error:  # an opened trace with times that no clock shows
                return {"error": str(error)}
            return {"name": "lora-drop-run.chrome.json", "text": json.dumps(events, allow_nan=False)}
        if kind == "html":
            return {"name": "lora-drop-run.html", "text": replay_html(trace)}
        return {"error": "There is no such file: ask for trace, chrome or html."}

    def open_trace(self, path: str | None) -> tuple[Any, dict[str, str]]:
        """The Open trace button: a recorded run in the live view, as if it had just ended."""
        if not path:
            return gr.skip(), gr.skip()
        try:
            trace = read_trace(path)
        except LoraDropError as error:
            return gr.skip(), _status("error", str(error))
        run_id = self.traces.begin()
        for record in trace.records():
            self.traces.add(run_id, write_line(record))
        cut = "" if trace.summary else " It was cut short: it has no summary."
        steps = ", ".join(f"{len(steps)} tokens" for steps in trace.steps.values())
        wire = run_line(run_id) + wire_text(trace).partition("\n")[2]
        return wire, _status("done", f"Opened {Path(path).name}: {steps}.{cut}")

    def stop_page(self, request: gr.Request) -> None:
        """The Stop button: the run ends after the step it is in, and delivers what it has."""
        self.stops.stop(request.session_hash)

    def generate(
        self,
        prompt: str,
        preset: str | None = None,
        period: int | None = None,
        layers: str | None = None,
        drop_ratio: float | None = None,
        reuse: str | None = None,
        part: str | None = None,
        kv: str | None = None,
        drop_layers: str | None = None,
        adapters: str | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        view: str = "race",
        audit: bool = True,
        ignore_eos: bool = False,
        lanes: str = "both",
        refresh_entropy: float | None = None,
        refresh_norm: float | None = None,
        compare: str | None = None,
        model: str | None = None,
    ) -> Iterator[str]:
        """Run baseline and LoRA-Drop on a prompt; streams the growing trace (JSON Lines, the format of the file).

        Unset schedule options are the preset's, or without a preset the command line's defaults: period 4, drop_ratio
        0.5, reuse residual, part block, kv skip, adapters auto, no early refresh. layers is a range such as 3-28,
        drop_layers a list such as 4,6,8. compare adds a third lane: adapters-off, skip, state or residual. model is
        one of the page's menu; unset, the one that the app started with.
        """
        runtime.return_memory()
        try:
            model = self.pool.check(model)
            wanted = Request(
                prompt=prompt,
                config=_config(
                    model,
                    preset=preset,
                    period=period,
                    layers=layers,
                    drop_ratio=drop_ratio,
                    reuse=reuse,
                    part=part,
                    kv=kv,
                    drop_layers=drop_layers,
                    adapters=adapters,
                    refresh_entropy=refresh_entropy,
                    refresh_norm=refresh_norm,
                ),
                max_new_tokens=whole(max_new_tokens),
                temperature=temperature,
                top_p=top_p,
                seed=whole(seed),
                view=view,
                audit=bool(audit),
                ignore_eos=bool(ignore_eos),
                lanes=lanes,
                compare=compare,
            )
            with closing(self.run(wanted, model=model)) as records:
                for text, _ in batches(records, write_line):
                    yield text
        except LoraDropError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception as error:
            raise gr.Error(FAILED) from error  # Gradio prints the traceback

    def estimate(
        self,
        prompt: str | None = None,
        preset: str | None = None,
        period: int | None = None,
        layers: str | None = None,
        drop_ratio: float | None = None,
        reuse: str | None = None,
        part: str | None = None,
        kv: str | None = None,
        drop_layers: str | None = None,
        adapters: str | None = None,
        max_new_tokens: int = 128,
        refresh_entropy: float | None = None,
        refresh_norm: float | None = None,
        model: str | None = None,
    ) -> dict:
        """What the settings would do, with no model run: the dropped layers, the speed bound, the KV bytes.

        The prompt only gives its number of tokens; without one, it counts 0. With early refreshes (`at_most` is true)
        bound and saving are those of the longest gaps: the most that a run can reach. model is one of the page's menu
        that was loaded before; unset, the one that the app started with.
        """
        try:
            info = self.pool.info(model)
            config = _config(
                info.id,
                preset=preset,
                period=period,
                layers=layers,
                drop_ratio=drop_ratio,
                reuse=reuse,
                part=part,
                kv=kv,
                drop_layers=drop_layers,
                adapters=adapters,
                refresh_entropy=refresh_entropy,
                refresh_norm=refresh_norm,
            )
            wanted = Request(prompt=prompt or "-", config=config, max_new_tokens=whole(max_new_tokens))
            checked = plan(zero.planning(info), wanted)
        except LoraDropError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return estimate(info, checked, len(checked.prompt_ids) if prompt else 0, wanted)

    def replay(self, trace: str) -> str:
        """A recorded run as one self-contained HTML page that opens offline.

        trace is the text of a trace file (JSON Lines), as generate streams it or the command line writes it.
        """
        runtime.return_memory()
        try:
            if not isinstance(trace, str) or len(trace) > MAX_TRACE_BYTES:
                raise LoraDropError(f"trace must be a text of at most {MAX_TRACE_BYTES // 2**20} MiB.")
            return replay_html(parse_trace(trace.encode("utf-8", "replace")))
        except LoraDropError as error:
            raise gr.Error(str(error), print_exception=False) from None


def _config(model: str, **options: Any) -> LoraDropConfig:
    """The config of an API call: its options are the command line's, and read in the same way."""
    if options["adapters"] is not None:
        _refuse_folder(options["adapters"])
    if options["layers"] is not None:
        options["layers"] = str(options["layers"])
    if options["drop_layers"] is not None:
        options["drop_layers"] = str(options["drop_layers"])
    return config_from(SimpleNamespace(**options | {"period": whole(options["period"])}), model)


def _refuse_folder(adapters: Any) -> None:
    """No visitor names a folder of the server."""
    if adapters not in ("auto", "none"):
        raise LoraDropError("adapters must be auto or none.")


def estimate(loaded: LoadedModel | ModelInfo, checked: Plan, prompt_tokens: int, wanted: Request) -> dict[str, Any]:
    """The figures of the what-if strip, by the formulas of `lora_drop.method.schedule`."""
    lane = checked.lanes[LORA_DROP]
    schedule, rank, corrected = lane.schedule, lane.rank, lane.bank.layers if lane.bank else None
    steps, size = wanted.max_new_tokens - 1, loaded.dtype.itemsize
    full = baseline_schedule(loaded.num_layers)
    return {
        "dropped": list(schedule.dropped),
        "is_baseline": schedule.is_baseline,
        "at_most": schedule.is_adaptive,
        "prompt_tokens": prompt_tokens,
        "decode_steps": steps,
        "bound": speed_bound(loaded.shape, schedule, steps, prompt_tokens, rank, corrected),
        "kv_bytes_baseline": kv_bytes(loaded.shape, full, prompt_tokens, steps, size),
        "kv_bytes": kv_bytes(loaded.shape, schedule, prompt_tokens, steps, size),
        "kv_saved": kv_saved(loaded.shape, schedule, prompt_tokens, steps),
        "config": wanted.config.to_dict(),
    }


def _status(kind: str, text: str) -> dict[str, str]:
    return {"kind": kind, "text": text}


def _ending(summary: Summary, limit: float | None) -> str:
    """`limit`: the seconds that a run may take, where it is not the visitor who stopped it."""
    tokens = ", ".join(f"{lane['tokens']} tokens" for lane in summary.lanes.values())
    if any(lane["ended"] == "stopped" for lane in summary.lanes.values()):
        why = f" after {limit:g} s, the most that a run may take here" if limit else ""
        return f"Stopped{why}: {tokens}. What ran is kept below."
    return f"Finished: {tokens}."
