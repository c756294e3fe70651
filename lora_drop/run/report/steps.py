"""What a trace alone says of the steps of a lane: what layers did, the likeliest tokens, the refresh after each."""

from __future__ import annotations

from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.run.trace.records import JudgeRecord, RewindRecord, StepRecord
from lora_drop.run.trace.trace import Trace, first_divergence

SHOWN = 80  # characters of what was taken back


def about_step(trace: Trace, lane: str, step: int) -> dict[str, Any]:
    """What the records say of a step.

    Returns:
        `{"lane", "step", "kind", "text", "prefix_of", "prefix_text", "layers": [{"did"}], "top": {lane: {"prefix_of",
        "text", "tokens"}}, "refresh"}`. `prefix_of` names the lanes whose text before the step is this lane's, and in
        `top` each lane's own; `tokens` are five `[token text, probability]`, None where the trace has none; `refresh`
        is `LaneSteps.refresh_after`.

    Raises:
        LoraDropError: there is no such lane or step.
    """
    if not isinstance(lane, str) or lane not in trace.steps:
        raise LoraDropError(f"this run has no lane {str(lane)[:40]!r}: its lanes are {', '.join(trace.steps)}.")
    count = len(trace.steps[lane])
    if type(step) is not int or not 0 <= step < count:
        said = f"its steps are 0 to {count - 1}" if count else "it has none"
        raise LoraDropError(f"lane {lane} has no step {str(step)[:40]}: {said}.")
    told = {name: LaneSteps(trace, name) for name, steps in trace.steps.items() if step < len(steps)}
    own = told[lane]
    return {
        "lane": lane,
        "step": step,
        "kind": own.steps[step].kind,
        "text": own.steps[step].text,
        "prefix_of": own.prefix_of(step),
        "prefix_text": own.prefix_text(step),
        "layers": [{"did": did} for did in own.did(step)],
        "top": {
            name: {
                "prefix_of": other.prefix_of(step),
                "text": other.steps[step].text,
                "tokens": other.steps[step].top,
            }
            for name, other in told.items()
        },
        "refresh": own.refresh_after(step),
    }


def inside(trace: Trace) -> dict[str, Any]:
    """What `about_step` says of all steps, for a page without a server; what repeats itself stands there once.

    Returns:
        `{"type": "inside", "words": [...], "lanes": {lane: [[did, prefix_of, prefix_text, refresh, top], ...]}}`, all
        but `top` as places in `words`; `refresh` is the sentence alone, or None.
    """
    places: dict[str, int] = {}
    words: list[Any] = []

    def place(value: Any) -> int:
        key = repr(value)
        if key not in places:
            places[key] = len(words)
            words.append(value)
        return places[key]

    lanes = {}
    for name, steps in trace.steps.items():
        told = LaneSteps(trace, name)
        lanes[name] = [
            [
                *(place(value) for value in (told.did(step), told.prefix_of(step), told.prefix_text(step))),
                place((told.refresh_after(step) or {}).get("text")),
                steps[step].top,
            ]
            for step in range(len(steps))
        ]
    return {"type": "inside", "words": words, "lanes": lanes}


class LaneSteps:
    """A lane of a trace, for what is asked of its steps."""

    def __init__(self, trace: Trace, lane: str):
        self.lane, self.steps = lane, trace.steps[lane]
        self._config: dict[str, Any] = next(one["config"] for one in trace.header.lanes if one["id"] == lane)
        self._names = {one["id"]: one["label"].partition(":")[0] for one in trace.header.lanes}
        own = trace.token_ids(lane)
        self._shared: dict[str, int] = {}  # how many tokens another lane's text has in common with this one, at most
        for other in trace.steps:
            if other != lane:
                theirs = trace.token_ids(other)
                apart = first_divergence(own, theirs)
                self._shared[other] = min(len(own), len(theirs)) if apart is None else apart
        judged = [one for one in trace.passes[lane] if isinstance(one, JudgeRecord)]
        self._judged = judged[-1] if judged else None
        self._taken = _taken_back(trace, lane)
        self._next: list[int | None] = []  # the full step at or after each step, prefill left out
        self._last: list[int] = []  # the full step before each step
        last, following = 0, None
        for one in self.steps:
            self._last.append(last)
            last = one.step if one.kind != "lora" else last
        for one in reversed(self.steps):
            following = one.step if one.kind == "refresh" else following
            self._next.append(following)
        self._next.reverse()

    def prefix_of(self, step: int) -> list[str]:
        """The lanes whose text before a step is this lane's, itself first."""
        return [self.lane, *(other for other, shared in self._shared.items() if shared >= step)]

    def prefix_text(self, step: int) -> str:
        """On whose text the figures of a step stand."""
        own, *others = (self._names[name] for name in self.prefix_of(step))
        if others:
            return f"On the text of {own}, which up to here is also that of {' and '.join(others)}."
        apart = ", which differs from the other lanes' before this token" if self._shared else ""
        return f"On the text of {own}{apart}."

    def did(self, step: int) -> list[str]:
        """What each layer did at a step, in words."""
        config, record = self._config, self.steps[step]
        dropped, kept = set(config["dropped"]), config.get("extras", {}).get("kept", 0)
        first = min(dropped, default=len(record.active))
        writes = config.get("kv") == "write" and config.get("refresh") != "repair"
        skipped = "attention skipped" if config.get("part") == "attention" else "skipped"
        words = []
        for layer, ran in enumerate(record.active):
            if not ran:
                words.append(f"{skipped}, K/V written" if writes else skipped)
            elif record.kind == "lora":
                words.append("ran, adapted" if kept and layer > first else "ran")
            else:
                words.append("refreshed" if layer in dropped and record.kind == "refresh" and self._skips else "ran")
        return words

    @property
    def _skips(self) -> bool:
        return bool(self._config["dropped"]) and self._config.get("period") != 1

    def refresh_after(self, step: int) -> dict[str, Any] | None:
        """The full pass that a step is, or that followed it; None where none did, or the lane skips nothing.

        Returns:
            `{"step", "rows", "repaired", "taken_back", "trigger", "text"}`: the step of the pass (None for the last
            judging), its tokens, the steps before it that it ran again, the text that it took back (None for none),
            what made it come early, and all this in a sentence.
        """
        if not self._skips or step == 0:
            return None
        at = self._next[step]
        if at is None:
            return _judging(self._judged, len(self.steps)) if self._judged else None
        found, taken = self.steps[at], self._taken.get(at)
        repaired = list(range(self._last[at] + 1, at)) if self._config.get("refresh") == "repair" else []
        return {
            "step": at,
            "rows": found.rows,
            "repaired": repaired,
            "taken_back": taken,
            "trigger": found.trigger,
            "text": _sentence(step, at, repaired, taken, found.trigger),
        }


def _sentence(step: int, at: int, repaired: list[int], taken: str | None, trigger: str | None) -> str:
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
        again = " for its own token alone; what the steps before it wrote stays as it is"
    back = "" if taken is None else f" The full model took back {taken[:SHOWN]!r} there."
    return f"{head}{again}.{back}"


def _judging(record: JudgeRecord, tokens: int) -> dict[str, Any]:
    """The last pass over drafts, of the tokens at the lane's end."""
    count = f"{record.rows} tokens" if record.rows > 1 else "token"
    return {
        "step": None,
        "rows": record.rows,
        "repaired": list(range(max(0, tokens - record.rows), tokens)),
        "taken_back": None,
        "trigger": None,
        "text": f"At the end the full model read the last {count} once more, and let them stand.",
    }


def _taken_back(trace: Trace, lane: str) -> dict[int, str]:
    """By the step that stands there now: the text that was taken back from it on."""
    texts: list[str] = []
    found: dict[int, str] = {}
    for one in trace.passes[lane]:
        if isinstance(one, StepRecord):
            texts.append(one.text)
        elif isinstance(one, RewindRecord):
            found[one.to + 1] = "".join(texts[one.to + 1 :])
            del texts[one.to + 1 :]
    return found
