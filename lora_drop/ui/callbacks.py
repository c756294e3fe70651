"""Functions behind the page's events: run, stop, export, open a trace, change the model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import gradio as gr

from lora_drop.adapters.hub import HUB_NAME, listed_adapters
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.fields import CALL, RUN, SCHEDULE, Setting
from lora_drop.method.settings import settings_of
from lora_drop.models.load import LoadedModel
from lora_drop.models.place import on_zero_gpu
from lora_drop.models.pool import ModelPool
from lora_drop.paths import SHIPPED_RECORDED
from lora_drop.run.exports.html import wire_text
from lora_drop.run.prompts import PromptCache
from lora_drop.run.report.report import Report
from lora_drop.run.request import Request, prompt_ids_of
from lora_drop.run.results.calibration import is_calibrated
from lora_drop.run.results.pays import where_it_pays
from lora_drop.run.run import run
from lora_drop.run.trace.records import Header, Record, StepRecord, Summary, write_line
from lora_drop.run.trace.trace import read_file, read_trace
from lora_drop.run.warm import SECONDS
from lora_drop.run.wire import figures_line, wire_line
from lora_drop.ui.components import error_line, status_value
from lora_drop.ui.controls import SHOWN, read_controls, shown_with
from lora_drop.ui.facts import page_facts, preset_facts
from lora_drop.ui.inspector import Inspector
from lora_drop.ui.serve import space as zero
from lora_drop.ui.serve.gpu import watched
from lora_drop.ui.serve.gradio_private import address_of_call
from lora_drop.ui.serve.memory import return_memory
from lora_drop.ui.serve.owner import Counters
from lora_drop.ui.serve.policy import Limits
from lora_drop.ui.serve.reader import Reader
from lora_drop.ui.serve.runs import RecentTraces, Stops, is_opened
from lora_drop.ui.serve.uploads import PLACES, Shelf
from lora_drop.ui.serve.visits import Visits
from lora_drop.ui.stream import batches, run_line

COUNTABLE = 200_000  # longest prompt whose tokens are counted while it is typed, in characters
# Options of the API's `compare`.
_FEW = ("preset", "model", "max_new_tokens", "temperature", "top_p", "seed", "system", "thinking", "plain")
COMPARED = [setting for setting in settings_of(CALL, RUN) if setting.name in _FEW]
# Names of the values of the Run button, and of the API's functions.
SENT = {
    "run_page": ("compare", "prompt", "model", *(setting.name for setting in SHOWN)),
    "generate": ("prompt", *(setting.name for setting in settings_of(CALL, SCHEDULE, RUN))),
    "compare": ("prompt", *(setting.name for setting in COMPARED)),
}
FAILURE = "The run failed inside the app."


def requested(prompt: Any, compare: Any, settings: Sequence[Setting], values: Sequence[Any]) -> Request:
    """Make a request from the controls' values, in the order of `settings`.

    Raises:
        LoraDropError: a value is not allowed.
    """
    read = read_controls(settings, values)
    of = {
        owner: {setting.name: read[setting.name] for setting in settings if setting.of == owner}
        for owner in (SCHEDULE, RUN)
    }
    return Request(prompt, LoraDropConfig(**of[SCHEDULE]), compare=compare or None, **of[RUN])


class Callbacks:
    """The page's functions over a pool of models.

    The only state of a run here is its stop flag while it runs, and the cache of prompts.

    Args:
        limits: by default a private server's limits, from the environment.
        public: strangers come: no session sees another's cached prompts, and only listed adapters are fetched.

    Raises:
        LoraDropError: a limit in the environment is not a number, or listed adapters cannot be fetched.
    """

    def __init__(self, pool: ModelPool, limits: Limits | None = None, public: bool = False):
        self.pool, self.public = pool, public
        self.limits = limits or Limits.from_environment()
        # Settings with a control, with the adapters that a visitor may choose.
        self.settings = shown_with(listed_adapters(), "" if public else HUB_NAME)
        self.counters = Counters()
        self.visits = Visits()
        self.uploads = Shelf(self.visits, PLACES * self.limits.trace_bytes)
        self.stops = Stops()
        self.traces = RecentTraces(self.visits)
        self.prompts = PromptCache()
        self.visits.ends.append(self.prompts.end)
        self.reader = Reader(self.limits.trace_bytes)
        self.inspector = Inspector(pool, self.traces, self.reader)
        self._calibrated: dict[str, Any] | None = None  # facts of the presets, once speeds were measured
        # ZeroGPU requires its work to be wrapped before the page is launched. The pool has only one model there.
        with pool.lend() as loaded:
            self._borrowed = self._runner(loaded, None) if on_zero_gpu() else None

    def _runner(
        self, loaded: LoadedModel, prompts: PromptCache | None
    ) -> Callable[..., Generator[Record, None, None]]:
        # `run` is looked up at each call, so that tests can replace it.
        return zero.runner(loaded, lambda loaded, request, stop: run(loaded, request, stop, prompts))

    def _prompts(self, session: str | None) -> PromptCache | None:
        """The cached prompts that a session may see."""
        address = self.visits.address(session)
        if not self.public:
            return self.prompts
        return self.prompts.part(session, address) if session and address else None

    def run(
        self,
        request: Request,
        stop: zero.Stop | None = None,
        model: str | None = None,
        session: str | None = None,
        config_of: Callable[[LoadedModel], LoraDropConfig] | None = None,
    ) -> Generator[Record, None, None]:
        """Run a request on a model of the pool, by default the first; on ZeroGPU in another process.

        Args:
            session: the visitor's, whose cached prompts it may use.
            config_of: the request's settings for the model, which may have to be loaded first.

        Raises:
            LoraDropError: before the first record, if the request is over the limits or does not fit the model.
        """
        self.limits.check(request.prompt, request.max_new_tokens)
        self.limits.check(request.system, None)
        clock = self.limits.clock(stop)
        with self.pool.lend(model, clock.is_set) as loaded:
            request = dataclasses.replace(request, config=config_of(loaded)) if config_of else request
            sets_up = loaded.device.type == "cuda"  # before the first token; then its time begins
            if sets_up:
                clock.restart(SECONDS)
            # ZeroGPU limits the time itself, and its flag crosses to another process.
            here = self._runner(loaded, self._prompts(session)), clock
            start, flag = (self._borrowed, stop) if self._borrowed else here
            with watched(loaded.device), closing(start(request, flag)) as records:
                for record in records:
                    if sets_up and isinstance(record, StepRecord) and not clock.is_up:
                        sets_up = False
                        clock.restart(self.limits.seconds)
                    if isinstance(record, Summary):
                        self._count(record)
                    yield record

    def _count(self, summary: Summary) -> None:
        """Add a run's figures to the owner's metrics."""
        self.counters.add("runs")
        for lane in summary.lanes.values():
            tokens, rate = lane.get("tokens"), lane.get("tokens_per_second")
            if isinstance(tokens, int) and isinstance(rate, float) and rate > 0:
                self.counters.add("tokens", tokens)
                self.counters.add("decode_seconds", tokens / rate)

    def check_early(self, name: str, values: Sequence[Any]) -> None:
        """Refuse a run over the limits before it waits in the queue; other errors appear when it starts.

        Args:
            name: the function's name in Gradio's API.
            values: its arguments as they were sent.

        Raises:
            LoraDropError: prompt or tokens are over the limits, or the model is not on the list.
        """
        sent = dict(zip(SENT.get(name, ()), values, strict=False))
        self.limits.check(sent.get("prompt"), sent.get("max_new_tokens"))
        self.limits.check(sent.get("system"), None)
        self.pool.check(sent.get("model"))

    def count_tokens(self, prompt: str, model: str | None = None, settings: Any = None) -> int | None:
        """Number of tokens of a prompt, for the forecast; None if there is nothing to count.

        Args:
            settings: the controls' values, by name.
        """
        if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > COUNTABLE:
            return None
        values = settings if isinstance(settings, dict) else {}
        texts = {name: str(values.get(name) or "")[:COUNTABLE] or None for name in ("system", "thinking")}
        try:
            return len(prompt_ids_of(self.pool.info(model), prompt, {**texts, "plain": values.get("plain") is True}))
        except LoraDropError:  # a template without a system message: the run says so
            return None

    def fetch_model(self, model: str, current: str, request: gr.Request) -> Iterator[tuple[Any, Any, Any]]:
        """Fetch the files of a model chosen from the menu, while others run; `use_model` comes next. Stop ends it.

        Yields the status line, the menu and the Stop button. On failure the menu goes back to the current model.
        """
        if model == current:  # the menu went back
            yield (gr.skip(),) * 3
            return
        name = _fetching(request.session_hash)  # a run of the same visitor has another flag
        stop = self.stops.start(name)
        status, menu = gr.skip(), gr.skip()
        try:
            for words in self.pool.fetch(model, stop.is_set):
                yield status_value("running", words), gr.skip(), gr.update(interactive=True)
        except Exception as error:
            line = error_line(error, f"{model} could not be fetched.")
            status, menu = status_value("error", line), gr.update(value=current)
        finally:
            self.stops.end(name, stop)
        yield status, menu, gr.update(interactive=request.session_hash in self.stops)

    def use_model(self, model: str, current: str) -> Iterator[tuple[Any, dict[str, str], Any, str]]:
        """Load a model chosen from the menu, once, and show its facts.

        Args:
            current: the model that the page shows so far; it stays if the other one cannot be loaded.

        Yields the page's facts, the status line, the menu, and the current model.
        """
        if model == current:  # the menu went back
            yield (gr.skip(),) * 4
            return
        try:
            if not self.pool.is_known(model):
                words = f"Loading {model}: this takes a moment, longer if it is fetched first."
                yield gr.skip(), status_value("running", words), gr.skip(), gr.skip()
                with self.pool.lend(model):
                    pass
            facts = page_facts(self.pool.info(model))
            yield facts, status_value("idle", f"{model} is ready."), gr.skip(), model
        except Exception as error:
            line = error_line(error, f"{model} could not be loaded.")
            yield gr.skip(), status_value("error", line), gr.update(value=current), gr.skip()

    def run_page(
        self, request: gr.Request, compare: Any, prompt: Any, model: Any, *values: Any
    ) -> Iterator[tuple[Any, dict[str, str], Any]]:
        """Run the prompt, for the Run button.

        Args:
            compare: name of the third lane's comparison, or an empty text.
            values: the controls' values, in the order of `SHOWN`.

        Yields the live view's text, the status line and the Stop button.
        """
        on, off = gr.update(interactive=True), gr.update(interactive=False)
        session = request.session_hash
        return_memory()
        stop = self.stops.start(session)
        try:
            wanted = requested(prompt, compare, self.settings, values)
            if not self.pool.is_at_hand(model):
                yield gr.skip(), status_value("running", f"Loading {model}: this takes a moment."), on
            status, ending = status_value("running", "The lanes are writing."), ""
            with closing(self.run(wanted, stop, model, session)) as records:
                header = next(records)
                assert isinstance(header, Header)
                for text, record in self._streamed(header, records, session):
                    yield text, status, on
                    if isinstance(record, Summary):
                        out_of_time = self._borrowed is None and not stop.is_set()
                        ending = _ending(header, record, self.limits.seconds if out_of_time else None)
            # Gradio sends the last yield again when a run completes: without the text, it is not sent twice.
            yield gr.skip(), status_value("done", ending), off
        except Exception as error:  # the app and other visitors' runs go on
            if isinstance(error, LoraDropError):
                self.counters.refuse("input")
            yield gr.skip(), status_value("error", error_line(error, FAILURE)), off
        finally:
            self.stops.end(session, stop)

    def _streamed(
        self, header: Header, records: Iterator[Record], session: str | None
    ) -> Iterator[tuple[str, Record]]:
        """Yield a run's wire text as it grows, and keep its lines for downloads."""
        lane_ids, report = [lane["id"] for lane in header.lanes], Report(header)
        run_id = self.traces.begin(session)

        def line(record: Record) -> str:
            if record is not header:
                report.add(record)
            self.traces.add(run_id, write_line(record))
            return wire_line(record, lane_ids)

        yield from batches(chain([header], records), line, run_line(run_id), lambda: figures_line(report))

    def export_run(self, run_id: str, kind: str) -> dict[str, str]:
        """Export a run for the page's menu.

        Args:
            kind: `trace`, `chrome` or `html`.

        Returns:
            `name` and `text` of the file, or `error` in one line.
        """
        text = self.traces.text(run_id) if isinstance(run_id, str) else None
        if not text:
            return {"error": "The server no longer keeps this run: run it again, then export it."}
        if kind == "trace":
            return {"name": "lora-drop-run.jsonl", "text": text}
        if kind not in ("chrome", "html"):
            return {"error": "There is no such file: ask for trace, chrome or html."}
        try:
            file = self.reader.ask(kind, text.encode(), trusted=not is_opened(run_id))
        except LoraDropError as error:  # an opened trace with impossible times
            return {"error": str(error)}
        if kind == "chrome":
            return {"name": "lora-drop-run.chrome.json", "text": json.dumps(file)}
        return {"name": "lora-drop-run.html", "text": file}

    def calibrated_presets(self) -> dict[str, Any] | None:
        """`preset_facts` of the first model with the speeds of this machine; None until they were measured."""
        info = self.pool.info(None)
        if self._calibrated is None and is_calibrated(info):
            self._calibrated = preset_facts(info)
        return self._calibrated

    def where_it_pays(self, model: str | None, values: Any = None) -> dict[str, Any]:
        """See `results.pays`; `values` are the calculator's, by name."""
        return where_it_pays(self.pool.info(model), values if isinstance(values, dict) else None)

    def recorded_run(self) -> str:
        """Wire text of the recorded run that the page plays while a visitor waits; empty if it cannot be read."""
        try:
            return wire_text(read_trace(SHIPPED_RECORDED))
        except LoraDropError:
            return ""  # no visitor asked for it

    def open_trace(self, path: str | None, visitor: gr.Request | None = None) -> tuple[Any, dict[str, str]]:
        """Show an uploaded trace in the live view, as if its run had just ended."""
        if not path:
            return gr.skip(), gr.skip()
        if not self.uploads.is_open_to(address_of_call(), path):
            return gr.skip(), status_value("error", "Another address uploaded this file: choose it again.")
        try:
            raw = read_file(Path(path))
            run = self.reader.ask("open", raw)
        except LoraDropError as error:
            return gr.skip(), status_value("error", str(error))
        finally:
            self.uploads.done(path)
        run_id = self.traces.begin(visitor.session_hash if visitor else None, opened=True)
        self.traces.add(run_id, raw.decode("utf-8", "replace"))  # the last line may be cut within a character
        cut = " It was cut short: it has no summary." if run["is_cut"] else ""
        wire = run_line(run_id, whole=True) + run["wire"].partition("\n")[2]
        return wire, status_value("done", f"Opened {Path(path).name}: {_lengths(run['lanes'])}.{cut}")

    def stop_page(self, request: gr.Request) -> None:
        """End the session's run after its current step, and its fetch of a model."""
        self.stops.stop(request.session_hash)
        self.stops.stop(_fetching(request.session_hash))


def _fetching(session: str | None) -> str:
    """Name of a session's stop flag for fetching a model."""
    return f"fetch {session}"


def _lengths(lanes: Mapping[str, Sequence[Any]]) -> str:
    """Lengths of a run's answers in words, once if they are equal; by lane its label and its tokens."""
    counts = {count for _, count in lanes.values()}
    if len(counts) == 1:
        count = counts.pop()
        length = f"{count:,} token{'s' * (count != 1)}"
        return length if len(lanes) == 1 else f"{length} in each answer"
    return ", ".join(f"{label.partition(':')[0]} {count:,}" for label, count in lanes.values()) + " tokens"


def _ending(header: Header, summary: Summary, limit: float | None) -> str:
    """Status of a run that ended; `limit` is the time limit in seconds, unless the visitor stopped the run."""
    lanes = {lane["id"]: lane for lane in header.lanes}
    tokens = _lengths({name: (lanes[name]["label"], figures.get("tokens")) for name, figures in summary.lanes.items()})
    if any(lane["ended"] == "stopped" for lane in summary.lanes.values()):
        why = f" after {limit:g} s, the limit of this server" if limit else ""
        return f"Stopped{why}: {tokens}. The text so far is below."
    return f"Finished: {tokens}."
