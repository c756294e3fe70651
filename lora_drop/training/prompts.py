"""The seed prompts of self-generated text: `prompts.json`, filled in.

The file is a list of families: templates, and the values that go into their fields. A template is filled with every
combination of the values that it names.
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
    """`count` prompts in an order of the seed; a higher count begins with the same ones.

    No prompt comes twice before each has come once; after that all come again, in another order.
    """
    prompts: list[str] = []
    for cycle in range(math.ceil(count / len(all_prompts()))):
        prompts += random.Random(f"{seed} prompts {cycle}").sample(all_prompts(), len(all_prompts()))
    return prompts[:count]


@cache
def all_prompts() -> tuple[str, ...]:
    """Every seed prompt once, in a fixed order."""
    families = json.loads(files("lora_drop.training").joinpath("prompts.json").read_text(encoding="utf-8"))
    return tuple(dict.fromkeys(prompt for family in families for prompt in _filled(**family)))


def _filled(templates: list[str], fields: dict[str, list[str]]) -> Iterator[str]:
    for template in templates:
        named = [name for name in fields if f"{{{name}}}" in template]
        for combination in itertools.product(*(fields[name] for name in named)):
            yield template.format(**dict(zip(named, combination, strict=True)))
