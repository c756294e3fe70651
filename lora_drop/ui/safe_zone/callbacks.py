"""Functions behind the Safe zone tab: show the measured quality and speed of a grid of settings, and run a sweep.

There are two sweeps, which never mix: the stored one, if it was measured on the loaded weights, and the one that the
visitor runs here. The second exists in the visitor's session alone; nothing is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from lora_drop.adapters.find import bank_facts
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.point import Point, Stopped, circumstances, describe_prompts, measure
from lora_drop.evaluation.measure.texts import Answers, own_answers
from lora_drop.evaluation.sweep import check_grid, grid, with_row
from lora_drop.method.config import LoraDropConfig, default_range
from lora_drop.models.load import LoadedModel, ModelInfo
from lora_drop.models.pool import ModelPool
from lora_drop.paths import SHIPPED_PRESETS
from lora_drop.run.race import by_owner
from lora_drop.run.results.calibration import HEAD, HEAD_PERIODS, head_config, speeds_here, timed_here
from lora_drop.run.results.files import SAMPLES, SWEEP
from lora_drop.run.results.preset_results import measured_presets, regret_of
from lora_drop.run.results.prompts import EXAMPLES
from lora_drop.run.results.rows import QUALITIES, Group, group_of, groups
from lora_drop.run.results.safe_zone import answer_of, are_timed, rank_of, stops_of
from lora_drop.ui.components import error_line
from lora_drop.ui.facts import SHIPPED_SWEEP
from lora_drop.ui.safe_zone.views import Sweep, dial_of, map_of, pareto_of, progress_value
from lora_drop.ui.serve import space as zero
from lora_drop.ui.serve.policy import Limits
from lora_drop.ui.serve.runs import Stops

SHIPPED_SAMPLES = SHIPPED_PRESETS / SAMPLES.name
MAX_POINTS = 16
MAX_TEXT = 400  # characters of a field; no allowed list is as long
PROMPTS = tuple(EXAMPLES.values())[:3]  # the prompts of a point: some seconds a point on two cores
STORED, HERE = "stored", "here"
N = TypeVar("N", int, float)
OTHER_WEIGHTS = "There is no stored sweep of this model: the stored one was measured on other weights."


def choices_of(stored: Sweep | None, here: Sweep | None) -> list[tuple[str, str]]:
    """Label and value of every way of skipping in both sweeps.

    A bank's name is long, so a label has it only to distinguish two banks of a rule.
    """

    def label(group: Group, among: list[Group]) -> str:
        alike = [other for other in among if (other[:2], other[3]) == (group[:2], group[3]) and other[2] != "none"]
        words = ", ".join(group.words)
        return words if group[2] == "none" or len(alike) > 1 else words.replace(f"adapters {group[2]}", "adapters")

    return [
        (f"{word}: {label(group, groups(sweep))}", f"{source}:{i}")
        for source, word, sweep in ((STORED, "Stored", stored), (HERE, "Run here", here))
        if sweep
        for i, group in enumerate(groups(sweep))
    ]


def stored_sweep(path: Path | None = None) -> tuple[Sweep | None, str]:
    """The sweep stored with the app; or None, and the reason in words."""
    path = path or SHIPPED_SWEEP
    if not path.exists():
        return None, "No sweep is stored with the app."
    try:
        return SWEEP.read(path), ""
    except LoraDropError as error:
        return None, f"The stored sweep is not shown: {error}"  # the page works without it


def first_choice(stored: Sweep | None) -> int:
    """Index of the way of skipping to show first: that of the fastest safe cell, or of the cell nearest to safe."""
    if not stored:
        return 0
    ways = groups(stored)
    answers = [answer_of(row for row in stored["rows"] if group_of(row) == way) for way in ways]
    by_speed = are_timed(stored["rows"])

    def worth(i: int) -> tuple[bool, bool, float]:
        row = answers[i].row
        if row is None:
            return False, False, 0.0
        if answers[i].is_safe:
            return True, True, rank_of(row, by_speed) or 0.0
        regret = regret_of(row)
        return False, regret is not None, -(row["all_steps_kl"] if regret is None else regret)

    return max(range(len(ways)), key=worth, default=0)


def parse_numbers(name: str, text: Any, kind: type[N], example: str) -> list[N]:
    """Parse a list such as `0.25,0.5`: its numbers in order, each once. `LoraDropConfig` checks their range.

    Raises:
        LoraDropError: the text is not such a list.
    """
    numbers: list[N] = []
    with contextlib.suppress(ValueError):
        if isinstance(text, str) and len(text) <= MAX_TEXT:
            numbers = [kind(part) for part in text.split(",")]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise LoraDropError(f"{name} must be numbers with commas, such as {example}; got {str(text)[:40]!r}.")
    return list(dict.fromkeys(numbers))


def points_of(loaded: LoadedModel, ratios: Any, periods: Any, reuse: Any, part: Any, adapters: Any) -> list[Point]:
    """Points of the form, checked against the model.

    Raises:
        LoraDropError: a value is not allowed, or there are too many points for the page.
    """
    if adapters not in ("auto", "none"):  # no visitor names a folder of the server
        raise LoraDropError("adapters must be auto or none.")
    ratios = parse_numbers("drop ratios", ratios, float, "0.25,0.5")
    periods = parse_numbers("periods", periods, int, "2,4")
    count = len(ratios) * len(periods)
    if count > MAX_POINTS:
        raise LoraDropError(
            f"{len(ratios)} drop ratios x {len(periods)} periods are {count} points; the page measures at most "
            f"{MAX_POINTS} at a time. The sweep command has no such limit."
        )
    prompt = next(iter(EXAMPLES.values()))
    configs = grid(LoraDropConfig(), ratios, periods, [reuse], [part], [adapters])
    return check_grid(loaded, configs, prompt)


def merged(before: Sweep | None, now: Sweep, row: dict[str, Any]) -> Sweep:
    """Add a row to a sweep, in place of an older row with the same settings.

    Args:
        before: the sweep so far; its rows are dropped if they are of other texts or another model.
        now: the current sweep without rows.
    """
    rows = before["rows"] if before and all(before[name] == now[name] for name in ("data", "model")) else []
    return now | {"rows": with_row(rows, row)}


@dataclass
class SafeZone:
    """The tab's functions over a pool of models. The only state of a sweep here is its stop flag while it runs.

    Args:
        stored: the sweep stored with the app.
        missing: the reason why there is none.
    """

    pool: ModelPool
    stored: Sweep | None
    stops: Stops
    missing: str = ""
    limits: Limits = Limits()  # noqa: RUF009  frozen

    @property
    def _timed(self) -> Sweep | None:
        """The stored sweep with the speeds that hold on this machine."""
        if self.stored is None:
            return None
        return self.stored | {"rows": timed_here(self.stored["rows"], self.stored, self.pool.info(None))}

    def open(self, *values: Any) -> tuple[Any, ...]:
        """Fill the tab when it is first opened: the values of `use_model`, and that it is open."""
        return *self.use_model(*values), True

    def follow(self, opened: bool, *values: Any) -> tuple[Any, ...]:
        """Fill the tab for another model, if it was opened: the values of `use_model`."""
        return self.use_model(*values) if opened else (gr.skip(),) * 5

    def use_model(self, model: str, quality: str, here: Sweep | None, curves: bool) -> tuple[Any, ...]:
        """Note, choices, map, figure and dial for a model.

        Args:
            curves: the figure is unfolded.
        """
        info = self.pool.info(model)
        stored, _ = self.stored_for(info.revision)
        choices = self._choices(info.revision, here)
        values = [value for _, value in choices]
        best = f"{STORED}:{first_choice(stored)}"
        first = best if best in values else next(iter(values), None)
        return (
            gr.update(value=self.note(info.revision)),
            gr.update(choices=choices, value=first),
            *self.show(first, quality, here, curves),
            self.dial(model),
        )

    def dial(self, model: str | None) -> dict[str, Any] | str:
        """Value of the break-it dial for a model, from the measured presets and the stored sweep."""
        info = self.pool.info(model)
        measured = measured_presets(info)
        timed = timed_here(measured.rows.values(), measured.about, info)
        measured = dataclasses.replace(measured, rows=dict(zip(measured.rows, timed, strict=True)))
        samples, (stored, _) = SAMPLES.rows_of(info.revision, SHIPPED_SAMPLES), self.stored_for(info.revision)
        return dial_of(stops_of(measured, samples, stored, speeds_here(info), _has_head(info)))

    def note(self, revision: str) -> str:
        """HTML note on the stored sweep of a model's weights."""
        stored, missing = self.stored_for(revision)
        words = (
            f"The stored sweep holds {len(stored['rows'])} measured points of this model."
            if stored
            else f"{html.escape(missing)} Run one here."
        )
        return f"<p class='ld-zone-known'>{words}</p>"

    def stored_for(self, revision: str) -> tuple[Sweep | None, str]:
        """The stored sweep, if it was measured on these weights; or None, and the reason in words."""
        if self.stored is None:
            return None, self.missing
        if self.stored.get("model", {}).get("revision") != revision:
            return None, OTHER_WEIGHTS
        return self._timed, ""

    def _choices(self, revision: str, here: Sweep | None) -> list[tuple[str, str]]:
        mine = here if here and here["model"]["revision"] == revision else None
        return choices_of(self.stored_for(revision)[0], mine)

    def show(self, choice: str | None, quality: str, here: Sweep | None, curves: bool = True) -> tuple[Any, Any]:
        """Map and, if it is unfolded, figure for a choice of `choices_of`."""
        sweep, group = self._find(choice, here)
        quality = quality if quality in QUALITIES else next(iter(QUALITIES))
        is_screened = sweep is not None and any(row.get("head") == "screened" for row in sweep["rows"])
        head = speeds_here(self.pool.info(None), {HEAD}).get(HEAD) if is_screened else None
        return map_of(sweep, group, head), pareto_of(sweep, quality) if curves else gr.skip()

    def _find(self, choice: str | None, here: Sweep | None) -> tuple[Sweep | None, Group | None]:
        source, _, number = (choice or "").partition(":")
        sweep = here if source == HERE else self._timed if source == STORED else None
        ways = groups(sweep) if sweep else []
        chosen = int(number) if number.isdecimal() and len(number) < 4 else len(ways)
        return sweep, ways[chosen] if chosen < len(ways) else None

    @staticmethod
    def _answers(loaded: LoadedModel, should_stop: Callable[[], bool]) -> Iterator[str | Answers]:
        """Have the model write the answers to measure on. Yields its progress in words, and the answers last."""

        def check() -> None:
            if should_stop():
                raise Stopped

        answers = Answers([], [])
        for number, prompt in enumerate(PROMPTS, start=1):
            yield f"First the full model answers the example prompts: {number} of {len(PROMPTS)}."
            try:
                answer = by_owner(loaded.device, partial(own_answers, loaded, [prompt], after_step=check))
            except Stopped:
                break
            if answer.texts().pairs:  # not empty, and not in circles
                answers.prompts.extend(answer.prompts)
                answers.answers.extend(answer.answers)
        yield answers

    def run_sweep(
        self,
        ratios: Any,
        periods: Any,
        reuse: Any,
        part: Any,
        adapters: Any,
        quality: Any,
        before: Sweep | None,
        model: Any,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Run a sweep, for the Run sweep button.

        Yields the progress, map, figure, choices, the session's sweep, both buttons and the choice of quality.
        """
        on, off = gr.update(interactive=True), gr.update(interactive=False)
        # The lower plot keeps the quality chosen at the start: another choice would be lost with the next point.
        running, idle = (off, on, off), (on, off, on)
        session = request.session_hash
        stop = self.stops.start(session)
        clock = self.limits.clock(stop)
        skip = (gr.skip(),) * 4
        done, total = 0, 1
        try:
            zero.refuse_sweeps()
            if not self.pool.is_at_hand(model):
                yield progress_value("running", f"Loading {model}.", 0, total), *skip, *running
            with self.pool.lend(model, clock.is_set) as loaded:
                points = points_of(loaded, ratios, periods, reuse, part, adapters)
                total = len(points)
                answers = Answers([], [])
                for made in self._answers(loaded, clock.is_set):
                    if isinstance(made, str):
                        yield progress_value("running", made, 0, total), *skip, *running
                    else:
                        answers = made
                if not answers.answers and not clock.is_set():
                    raise LoraDropError(
                        "the model's answers are empty or go in circles: there is nothing to measure on."
                    )
                sweep = begun(loaded, answers)
                views: tuple[Any, ...] = skip
                for point in points:
                    if clock.is_set():
                        break
                    words = f"Point {done + 1} of {total}: drop ratio {point.config.drop_ratio:g}, period "
                    yield progress_value("running", f"{words}{point.config.period}.", done, total), *views, *running
                    try:
                        work = partial(measure, loaded, point, [], None, answers, True, PROMPTS[:1])
                        row = by_owner(loaded.device, partial(work, should_stop=clock.is_set))
                    except Stopped:
                        break
                    before = sweep = merged(before, sweep, row)
                    done += 1
                    views = self._views(sweep, point, quality)
            ending = progress_value("done", self._ending(done, total, stop.is_set()), done, total)
            yield ending, *views, *idle
            # Gradio sends the last yield again when a run completes: without the figures, they are not sent twice.
            yield ending, *skip, *idle
        except Exception as error:
            line = error_line(error, "The sweep failed inside the app.")
            yield progress_value("error", line, done, total), *skip, *idle
        finally:
            self.stops.end(session, stop)

    def _ending(self, done: int, total: int, cancelled: bool) -> str:
        if done == total:
            return f"Finished: {total} point{'s' * (total != 1)} measured."
        limit = f"Stopped after {self.limits.seconds:g} s, the limit of this server"
        return f"{'Cancelled' if cancelled else limit}: {done} of {total} points were measured."

    def _views(self, here: Sweep, point: Point, quality: str) -> tuple[Any, Any, Any, Sweep]:
        """Map and figure of a running sweep, the choices with theirs, and the sweep for the session."""
        ways = groups(here)
        group = group_of(point.config.to_dict() | {"adapters": point.adapters})
        choice = f"{HERE}:{ways.index(group) if group in ways else 0}"
        return (
            *self.show(choice, quality, here),
            gr.update(choices=self._choices(here["model"]["revision"], here), value=choice),
            here,
        )

    def cancel_page(self, request: gr.Request) -> None:
        """End the session's sweep after its current point; the points measured so far stay."""
        self.stops.stop(request.session_hash)


def begun(loaded: LoadedModel, answers: Answers) -> Sweep:
    """Start a sweep of the page, without rows."""
    data = describe_prompts(PROMPTS) | {"file": "the full model's own answers", "records": len(answers.answers)}
    settings = {"layers": list(default_range(loaded.num_layers))}
    return SWEEP.begin(circumstances(loaded), data=data, settings=settings, notes=[])


def _has_head(info: ModelInfo) -> bool:
    """Whether the adapters for the screened head alone have a screened head."""
    config = head_config(HEAD_PERIODS[0])
    try:
        bank = bank_facts(info).get("/".join((config.reuse, config.part, config.refresh, config.kv)))
    except LoraDropError:  # broken
        return False
    return bank is not None and bank["head_rank"] > 0


MEASURED_HERE = (
    f"<p class='ld-zone-note'>Measured on the full model's own answers to {len(PROMPTS)} example prompts, which it "
    "writes first, and on each setting's own answers to them. A few hundred tokens give an impression, not a "
    "benchmark, and a busy machine can measure a speed above its bound. Nothing is saved.</p>"
)
