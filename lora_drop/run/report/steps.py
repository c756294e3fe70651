"""The steps of a lane, from its trace alone: what each layer did, the likeliest tokens, the refresh after the step."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.run.trace.records import JudgeRecord, RewindRecord, StepRecord
from lora_drop.run.trace.trace import Trace, first_divergence

QUOTED = 80  # characters of a rejected text


def about_steps(trace: Trace, lane: str, first: int, count: int) -> list[dict[str, Any]]:
    """`count` steps from `first` on, as their records have them; fewer where the lane ends.

    Returns:
        Of each `{"lane", "step", "kind", "text", "prefix_of", "prefix_text", "layers": [{"did"}], "top": {lane:
        {"prefix_of", "text", "tokens"}}, "refresh"}`. `prefix_of` has the lanes that share the text before the step,
        of this lane and in `top` of each lane; `tokens` are five `[token text, probability]`, None where the trace has
        none; `refresh` is `LaneSteps.refresh_after`.

    Raises:
        LoraDropError: there is no such lane or first step.
    """
    if not isinstance(lane, str) or lane not in trace.steps:
        raise LoraDropError(f"this run has no lane {str(lane)[:40]!r}: its lanes are {', '.join(trace.steps)}.")
    check_step(lane, first, len(trace.steps[lane]))
    lanes = {name: LaneSteps(trace, name) for name in trace.steps}
    last = min(first + count, len(trace.steps[lane]))
    return [_about(lanes, lane, step) for step in range(first, last)]


def check_step(lane: str, step: int, count: int) -> None:
    """Raise LoraDropError if a lane of `count` steps has no such step."""
    if type(step) is not int or not 0 <= step < count:
        steps = f"its steps are 0 to {count - 1}" if count else "it has none"
        raise LoraDropError(f"lane {lane} has no step {str(step)[:40]}: {steps}.")


def _about(lanes: dict[str, LaneSteps], lane: str, step: int) -> dict[str, Any]:
    ours = lanes[lane]
    refresh = ours.refresh_after(step)
    return {
        "lane": lane,
        "step": step,
        "kind": ours.steps[step].kind,
        "text": ours.steps[step].text,
        "prefix_of": ours.prefix_of(step),
        "prefix_text": ours.prefix_text(step),
        "layers": [{"did": did} for did in ours.did(step)],
        "top": {
            name: {
                "prefix_of": other.prefix_of(step),
                "text": other.steps[step].text,
                "tokens": other.steps[step].top,
            }
            for name, other in lanes.items()
            if step < len(other.steps)
        },
        "refresh": refresh and {**refresh, "repaired": list(refresh["repaired"])},
    }


def inside(trace: Trace) -> dict[str, Any]:
    """`about_steps` of all lanes, for a page without a server; values that repeat are written once.

    Returns:
        `{"type": "inside", "words": [...], "lanes": {lane: [[did, prefix_of, prefix_text, refresh, top], ...]}}`, all
        but `top` as indices into `words`; `refresh` is the sentence alone, or None.
    """
    places: dict[str, int] = {}
    words: list[Any] = []

    def place(value: Any) -> int:
        key = repr(value)
        if key not in places:
            places[key] = len(words)
            words.append(value)
        return places[key]

    def row(lane: LaneSteps, step: int) -> list[Any]:
        refresh = (lane.refresh_after(step) or {}).get("text")
        values = (lane.did(step), lane.prefix_of(step), lane.prefix_text(step), refresh)
        return [*map(place, values), lane.steps[step].top]

    lanes = {}
    for name, steps in trace.steps.items():
        lane = LaneSteps(trace, name)
        lanes[name] = [row(lane, step) for step in range(len(steps))]
    return {"type": "inside", "words": words, "lanes": lanes}


class LaneSteps:
    """The steps of a lane of a trace."""

    def __init__(self, trace: Trace, lane: str):
        self.lane, self.steps = lane, trace.steps[lane]
        self._config: dict[str, Any] = dict(trace.header.config_of(lane))
        self._names = {entry["id"]: entry["label"].partition(":")[0] for entry in trace.header.lanes}
        ours = trace.token_ids(lane)
        self._shared: dict[str, int] = {}  # leading tokens that another lane has in common with this one
        for other in trace.steps:
            if other != lane:
                theirs = trace.token_ids(other)
                apart = first_divergence(ours, theirs)
                self._shared[other] = min(len(ours), len(theirs)) if apart is None else apart
        verifications = [record for record in trace.passes[lane] if isinstance(record, JudgeRecord)]
        self._last_verified = verifications[-1] if verifications else None
        self._rejected = _rejected_texts(trace, lane)
        self._full_steps = [0, *(step.step for step in self.steps[1:] if step.kind == "refresh")]

    def prefix_of(self, step: int) -> list[str]:
        """The lanes that share the text before a step, this one first."""
        return [self.lane, *(other for other, shared in self._shared.items() if shared >= step)]

    def prefix_text(self, step: int) -> str:
        """Whose text the figures of a step are for, in a sentence."""
        name, *others = (self._names[name] for name in self.prefix_of(step))
        if others:
            return f"On the text of {name}, which up to here is also that of {' and '.join(others)}."
        apart = ", which differs from the other lanes' before this token" if self._shared else ""
        return f"On the text of {name}{apart}."

    def did(self, step: int) -> list[str]:
        """By layer what it did at a step, in words."""
        config, record = self._config, self.steps[step]
        dropped = set(config["dropped"])
        writes = config.get("kv") == "write" and config.get("refresh") != "repair"
        skipped = "attention skipped" if config.get("part") == "attention" else "skipped"
        words = []
        for layer, ran in enumerate(record.active):
            if not ran:
                words.append(f"{skipped}, K/V written" if writes else skipped)
            else:
                words.append("refreshed" if layer in dropped and record.kind == "refresh" and self._skips else "ran")
        return words

    @property
    def _skips(self) -> bool:
        return bool(self._config["dropped"]) and self._config.get("period") != 1

    def refresh_after(self, step: int) -> dict[str, Any] | None:
        """The full step at or after a step; None where there is none, or the lane skips nothing.

        Returns:
            `{"step", "rows", "repaired", "taken_back", "trigger", "text"}`: its number (None for the last
            verification), its rows, the range of earlier steps that it ran again, the text that it rejected (None for
            none), what made it come early, and all this in a sentence.
        """
        if not self._skips or step == 0:
            return None
        following = bisect_left(self._full_steps, step)
        if following == len(self._full_steps):
            return _verification(self._last_verified, len(self.steps)) if self._last_verified else None
        before, at = self._full_steps[following - 1 : following + 1]
        full, rejected = self.steps[at], self._rejected.get(at)
        repaired = range(before + 1, at) if self._config.get("refresh") == "repair" else range(0)
        return {
            "step": at,
            "rows": full.rows,
            "repaired": repaired,
            "taken_back": rejected,
            "trigger": full.trigger,
            "text": _sentence(step, at, repaired, rejected, full.trigger),
        }


def _sentence(step: int, at: int, repaired: range, rejected: str | None, trigger: str | None) -> str:
    """A refresh in words."""
    early = f", early, as its {trigger} reached the limit," if trigger else ""
    head = f"This step{early} ran every layer" if at == step else f"Step {at}{early} then ran every layer"
    again = ""
    if len(repaired) == 1:
        again = f", and step {repaired[0]} again with it"
    elif repaired:
        joined = "and" if len(repaired) == 2 else "to"
        again = f", and steps {repaired[0]} {joined} {repaired[-1]} again with it"
    elif at != step:
        again = " for its own token only; the steps before it stay as they are"
    back = "" if rejected is None else f" The full model rejected {rejected[:QUOTED]!r} there."
    return f"{head}{again}.{back}"


def _verification(record: JudgeRecord, tokens: int) -> dict[str, Any]:
    """The pass over the last drafts of a lane with so many tokens."""
    drafts, them = (f"{record.rows} tokens", "them") if record.rows > 1 else ("token", "it")
    return {
        "step": None,
        "rows": record.rows,
        "repaired": range(max(0, tokens - record.rows), tokens),
        "taken_back": None,
        "trigger": None,
        "text": f"At the end the full model verified the last {drafts} and accepted {them}.",
    }


def _rejected_texts(trace: Trace, lane: str) -> dict[int, str]:
    """By the step that took its place: the text that was rejected."""
    texts: list[str] = []
    rejected: dict[int, str] = {}
    for record in trace.passes[lane]:
        if isinstance(record, StepRecord):
            texts.append(record.text)
        elif isinstance(record, RewindRecord):
            rejected[record.to + 1] = "".join(texts[record.to + 1 :])
            del texts[record.to + 1 :]
    return rejected
