"""The Safe zone tab: what a grid of settings was measured to cost and to gain, and a sweep run from the page.

Two sweeps can be shown, never mixed: the stored one, if it was measured on the weights that are loaded, and the one
that the visitor runs here. The second lives in the visitor's session alone; nothing is written.
"""

from __future__ import annotations

import html
import math
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from lora_drop.adapters.find import config_fingerprint
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.point import (
    Point,
    Stopped,
    circumstances,
    describe_prompts,
    measure,
)
from lora_drop.evaluation.measure.texts import Answers, own_answers
from lora_drop.evaluation.sweep import check_grid, grid, with_row
from lora_drop.method.config import LoraDropConfig, default_range
from lora_drop.models.load import LoadedModel
from lora_drop.models.pool import ModelPool
from lora_drop.paths import SHIPPED_PRESETS, SHIPPED_SWEEPS
from lora_drop.run.results.dial import read_samples, stops_of
from lora_drop.run.results.files import SAMPLES, SWEEP
from lora_drop.run.results.preset_results import Measured, loss_of, measured_presets
from lora_drop.run.results.prompts import EXAMPLES
from lora_drop.run.results.rows import QUALITIES, Group, group_of, groups
from lora_drop.run.results.safe_zone import answer_of, judged, speed_of
from lora_drop.ui.safe_zone.figures import Sweep, pareto_of, progress_value
from lora_drop.ui.safe_zone.map import dial_of, map_of
from lora_drop.ui.serve import space as zero
from lora_drop.ui.serve.kept import Stops
from lora_drop.ui.serve.limits import Limits

SHIPPED_SWEEP = SHIPPED_SWEEPS / SWEEP.name
SHIPPED_SAMPLES = SHIPPED_PRESETS / SAMPLES.name
MAX_POINTS = 16
MAX_TEXT = 400  # characters of a field: more than any allowed list has
PROMPTS = tuple(EXAMPLES.values())[:3]  # that a point is measured on: some seconds a point on two cores
STORED, HERE = "stored", "here"
NOT_OF_THIS = "There is no stored sweep of this model: its weights are not those that the stored one measured."


def choices_of(stored: Sweep | None, here: Sweep | None) -> list[tuple[str, str]]:
    """(label, value) of every rule, part and adapters of both sweeps.

    A bank's name is long, and the figure has it: a label has it only where two banks of a rule must be distinguished.
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
    """The sweep that is stored with the app; None if it cannot be read, and why, in words."""
    path = path or SHIPPED_SWEEP
    if not path.exists():
        return None, "No sweep is stored with the app."
    try:
        return SWEEP.read(path), ""
    except LoraDropError as error:
        return None, f"The stored sweep is not shown: {error}"  # the page works without


def first_choice(stored: Sweep | None) -> int:
    """Which way of skipping is shown first: the one with the fastest safe cell, or with the nearest to one."""
    if not stored:
        return 0
    ways = groups(stored)
    answers = [answer_of(row for row in stored["rows"] if group_of(row) == way) for way in ways]

    def worth(i: int) -> tuple[bool, bool, float]:
        row = answers[i].row
        if row is None:
            return False, False, 0.0
        if answers[i].is_safe:
            return True, True, speed_of(row) or 0.0
        loss = loss_of(judged(row))
        return False, loss is not None, -(row["all_steps_kl"] if loss is None else loss)

    return max(range(len(ways)), key=worth, default=0)


def parse_numbers(name: str, text: Any, kind: type, example: str) -> list:
    """`0.25,0.5` as numbers, in order and each once.

    Raises:
        LoraDropError: it is not such a list; what a number may be, `LoraDropConfig` says.
    """
    wrong = LoraDropError(f"{name} must be numbers with commas, such as {example}; got {str(text)[:40]!r}.")
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT:
        raise wrong
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        raise wrong from None
    if not all(map(math.isfinite, numbers)):
        raise wrong
    return list(dict.fromkeys(numbers))


def points_of(loaded: LoadedModel, ratios: Any, periods: Any, reuse: Any, part: Any, adapters: Any) -> list[Point]:
    """The form's points, checked against the model.

    Raises:
        LoraDropError: a value is not allowed, or they are too many for the page.
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
    """A sweep with one more row, which takes the place of an older one of the same settings.

    What was measured before on other texts or another model is left behind: the two cannot be compared.
    """
    rows = before["rows"] if before and all(before[name] == now[name] for name in ("data", "model")) else []
    return now | {"rows": with_row(rows, row)}


@dataclass
class SafeZone:
    """The tab's functions over a pool of models. Nothing of a sweep lives here but its cancel flag, while it runs."""

    pool: ModelPool
    stored: Sweep | None
    stops: Stops
    missing: str = ""  # why nothing is stored
    limits: Limits = Limits()

    def open(self, *shown: Any) -> tuple[Any, ...]:
        """The tab is opened: what `use_model` gives, and that it is open."""
        return *self.use_model(*shown), True

    def follow(self, opened: bool, *shown: Any) -> tuple[Any, ...]:
        """Another model of the menu: what `use_model` gives, where the tab was opened."""
        return self.use_model(*shown) if opened else (gr.skip(),) * 5

    def use_model(self, model: str, quality: str, here: Sweep | None, curves: bool) -> tuple[Any, ...]:
        """What is known of a model, the choice of what is shown, map, figure and dial.

        Args:
            curves: the figure was unfolded.
        """
        info = self.pool.info(model)
        choices = self._choices(info.revision, here)
        first = self.first(choices, info.revision)
        return (
            gr.update(value=self.known(info.revision)),
            gr.update(choices=choices, value=first),
            *self.show(first, quality, here, curves),
            self.dial(model),
        )

    def first(self, choices: list[tuple[str, str]], revision: str) -> str | None:
        """Which of the choices is shown first."""
        best = f"{STORED}:{first_choice(self.stored_for(revision)[0])}"
        values = [value for _, value in choices]
        return best if best in values else next(iter(values), None)

    def dial(self, model: str | None) -> dict[str, Any] | str:
        """The break-it dial of a model, from what was measured of it: the presets, and the stored sweep."""
        info = self.pool.info(model)
        try:
            measured = measured_presets(info.id, info.revision, lambda config: config_fingerprint(info, config))
        except LoraDropError:
            measured = Measured()  # the Run tab says that the file is broken
        samples = read_samples(info.revision, SHIPPED_SAMPLES)
        return dial_of(stops_of(measured, samples, self.stored_for(info.revision)[0]))

    def known(self, revision: str) -> str:
        """What is stored of a model's weights, in words that are HTML."""
        stored, missing = self.stored_for(revision)
        words = (
            f"The stored sweep holds {len(stored['rows'])} measured points of this model."
            if stored
            else f"{html.escape(missing)} Run one here."
        )
        return f"<p class='ld-zone-known'>{words}</p>"

    def stored_for(self, revision: str) -> tuple[Sweep | None, str]:
        """The stored sweep, if it was measured on these weights; else None, and why there is none, in words."""
        if self.stored is None:
            return None, self.missing
        if self.stored.get("model", {}).get("revision") != revision:
            return None, NOT_OF_THIS
        return self.stored, ""

    def _choices(self, revision: str, here: Sweep | None) -> list[tuple[str, str]]:
        mine = here if here and here["model"]["revision"] == revision else None
        return choices_of(self.stored_for(revision)[0], mine)

    def show(self, choice: str | None, quality: str, here: Sweep | None, curves: bool = True) -> tuple[Any, Any]:
        """The map and, where it is unfolded, the figure, for a choice of `choices_of`."""
        sweep, group = self._find(choice, here)
        quality = quality if quality in QUALITIES else next(iter(QUALITIES))
        return map_of(sweep, group), pareto_of(sweep, quality) if curves else gr.skip()

    def _find(self, choice: str | None, here: Sweep | None) -> tuple[Sweep | None, Group | None]:
        source, _, number = (choice or "").partition(":")
        sweep = {HERE: here, STORED: self.stored}.get(source)
        found = groups(sweep) if sweep else []
        chosen = int(number) if number.isdecimal() and len(number) < 4 else len(found)
        return sweep, found[chosen] if chosen < len(found) else None

    @staticmethod
    def _answers(loaded: LoadedModel, should_stop: Callable[[], bool]) -> Iterator[str | Answers]:
        """What to measure on, which the model has to write: progress in words, and the answers last."""

        def check() -> None:
            if should_stop():
                raise Stopped

        found = Answers([], [])
        for number, prompt in enumerate(PROMPTS, start=1):
            yield f"First the full model answers the example prompts: {number} of {len(PROMPTS)}."
            try:
                one = own_answers(loaded, [prompt], after_step=check)
            except Stopped:
                break
            if one.texts().pairs:  # not empty, and not in circles
                found.prompts.extend(one.prompts)
                found.answers.extend(one.answers)
        yield found

    def run_sweep(
        self, ratios, periods, reuse, part, adapters, quality, before: Sweep | None, model, request: gr.Request
    ) -> Iterator[tuple]:
        """The Run sweep button.

        Yields the progress, map and figure, the choice of what is shown, the session's sweep, both buttons and the
        choice of quality.
        """
        on, off = gr.update(interactive=True), gr.update(interactive=False)
        # The lower plot grows with the quality chosen at the start: another one would be lost with the next point.
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
                shown: tuple[Any, ...] = skip
                for point in points:
                    if clock.is_set():
                        break
                    words = f"Point {done + 1} of {total}: drop ratio {point.config.drop_ratio:g}, period "
                    yield progress_value("running", f"{words}{point.config.period}.", done, total), *shown, *running
                    try:
                        row = measure(loaded, point, [], None, answers, True, PROMPTS[:1], should_stop=clock.is_set)
                    except Stopped:
                        break
                    before = sweep = merged(before, sweep, row)
                    done += 1
                    shown = self._shown(sweep, point, quality)
            ending = progress_value("done", self._ending(done, total, stop.is_set()), done, total)
            yield ending, *shown, *idle
            # Gradio repeats the last yield whole when a run completes: without the figures, they are not sent twice.
            yield ending, *skip, *idle
        except LoraDropError as error:
            yield progress_value("error", str(error), done, total), *skip, *idle
        except Exception:
            # The visitor gets a line, the operator the traceback; the app goes on.
            traceback.print_exc()
            failed = "The sweep failed inside the app. The server's log has the details."
            yield progress_value("error", failed, done, total), *skip, *idle
        finally:
            self.stops.end(session, stop)

    def _ending(self, done: int, total: int, cancelled: bool) -> str:
        if done == total:
            return f"Finished: {_points(total)} measured."
        limit = f"Stopped after {self.limits.seconds:g} s, the most that a sweep may take here"
        return f"{'Cancelled' if cancelled else limit}: {done} of {total} points were measured."

    def _shown(self, here: Sweep, point: Point, quality: str) -> tuple[Any, Any, Any, Sweep]:
        """Map and figure of a running sweep, the choice that they are, and the sweep for the session."""
        found = groups(here)
        group = group_of(point.config.to_dict() | {"adapters": point.adapters})
        choice = f"{HERE}:{found.index(group) if group in found else 0}"
        return (
            *self.show(choice, quality, here),
            gr.update(choices=self._choices(here["model"]["revision"], here), value=choice),
            here,
        )

    def cancel_page(self, request: gr.Request) -> None:
        """The Cancel button: the sweep ends after the point that it is at, and keeps what it has."""
        self.stops.stop(request.session_hash)


def _points(count: int) -> str:
    return "1 point" if count == 1 else f"{count} points"


def begun(loaded: LoadedModel, answers: Answers) -> Sweep:
    """A sweep of the page without rows."""
    data = describe_prompts(PROMPTS) | {"file": "the full model's own answers", "records": len(answers.answers)}
    settings = {"layers": list(default_range(loaded.num_layers))}
    return SWEEP.begin(circumstances(loaded), data=data, settings=settings, notes=[])


MEASURED_HERE = (
    f"<p class='ld-zone-note'>Measured on the full model's own answers to {len(PROMPTS)} example prompts, which it "
    "writes first, and on what each setting writes to them. A few hundred tokens give an impression, not a benchmark, "
    "and a busy machine can measure a speed above its bound. Nothing is saved.</p>"
)
