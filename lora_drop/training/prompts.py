"""Seed prompts of self-generated text, made from `prompts.json`.

The file is a list of families: templates, and values for their fields. A template is filled with every combination of
the values of the fields that it names.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from functools import cache
from importlib.resources import files


def seed_prompts(count: int, seed: int = 0) -> list[str]:
    """Return `count` prompts in an order drawn from the seed; a higher count begins with the same ones.

    Every prompt comes once before any comes again; then all come again, in another order.
    """
    prompts: list[str] = []
    for cycle in range(math.ceil(count / len(all_prompts()))):
        prompts += random.Random(f"{seed} prompts {cycle}").sample(all_prompts(), len(all_prompts()))
    return prompts[:count]


@cache
def all_prompts() -> tuple[str, ...]:
    """All seed prompts once each, in a fixed order."""
    families = json.loads(files("lora_drop.training").joinpath("prompts.json").read_text(encoding="utf-8"))
    return tuple(dict.fromkeys(prompt for family in families for prompt in _filled(**family)))


def _filled(templates: list[str], fields: dict[str, list[str]]) -> Iterator[str]:
    for template in templates:
        named = [name for name in fields if f"{{{name}}}" in template]
        for combination in itertools.product(*(fields[name] for name in named)):
            yield template.format(**dict(zip(named, combination, strict=True)))
