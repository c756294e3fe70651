"""Settings of a run in words, the same on the page, the command line, in a replay and in figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_drop.method.fields import RUN, SCHEDULE
from lora_drop.method.settings import settings_of
from lora_drop.run.trace.records import Header


def setting_words(header: Header) -> list[str]:
    """Settings of a run in words: of its main lane, then of all lanes."""
    return [*lane_words(header, header.main["id"]), *run_words(header)]


def lane_words(header: Header, lane: str) -> list[str]:
    """Settings of a lane in words. Defaults are left out, except the period and the reuse rule."""
    config: dict[str, Any] = dict(header.config_of(lane))
    if config.get("prunes"):
        return [f"{len(config['dropped'])} of {header.model['layers']} layers never run"]
    if config.get("lookup") and not config["dropped"] and config.get("head") != "screened":
        looked_up = ("lookup", "lookup_least", "lookup_longest")
        return list(_in_words(SCHEDULE, {name: config[name] for name in looked_up}, looked_up))
    has_lora_steps = config.get("period", 1) != 1
    if not has_lora_steps or not config["dropped"]:
        is_screened = has_lora_steps and config.get("head") == "screened"
        return ["no layer skipped", *(["screened head"] if is_screened else [])]
    skipped = f"{len(config['dropped'])} of {header.model['layers']} layers skipped"
    rank = config.get("rank")
    corrections = f"corrections of rank {rank}" if rank else "no corrections"
    return list(dict.fromkeys([skipped, *rule_words(config), corrections]))


def rule_words(config: Mapping[str, Any]) -> list[str]:
    """Settings of a schedule in words, from a config or a row of results; defaults are left out as in `lane_words`."""
    if config.get("drop_layers"):  # a list of layers takes the place of ratio and range
        config = {**config, "drop_ratio": None, "layers": None}
    return list(_in_words(SCHEDULE, config, ("period", "reuse")))


def run_words(header: Header) -> list[str]:
    """Settings of all lanes of a run in words."""
    sampled = header.sampling.get("temperature")
    seed = [f"seed {header.seed}"] if sampled else ["greedy"]
    return [*_in_words(RUN, header.sampling, ("max_new_tokens",)), *seed]


def loop_words(lanes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A note for each lane whose text ends in a loop, by lane, from the lanes' figures in the summary."""
    loops = {name: lane.get("collapsed") for name, lane in lanes.items()}
    return {name: f"Goes in circles from token {at + 1:g} on." for name, at in loops.items() if at is not None}


def counted(number: int, noun: str) -> str:
    """`1 word`, `2 words`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _in_words(owner: str, values: Mapping[str, Any], always: Sequence[str]) -> Iterator[str]:
    """Words for the settings that are not at their defaults, and for those that are `always` named."""
    for setting in settings_of(owner):
        value = values.get(setting.name)
        if setting.words and value is not None and (value != setting.default or setting.name in always):
            yield setting.words.format(f"{value:g}" if isinstance(value, float) else setting.kind.write(value))
