"""Hostile traces: whose reading would cost more than their bytes, or that fit a schema and mean nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from lora_drop.run.trace.records import MAX_LAYERS

LANE = "lora_drop"
SHAPE = {
    **{"num_layers": 3, "hidden_size": 4, "num_heads": 2, "num_kv_heads": 1, "head_dim": 2, "intermediate_size": 8},
    **{"vocab_size": 16, "tied": True},
}
REPAIR = {"refresh": "repair", "kv": "write", "period": 10**6}
SKIPPED = list(range(1, MAX_LAYERS))


def header(config: dict[str, Any] | None = None, layers: int = 3, label: str = LANE, **shape: Any) -> dict[str, Any]:
    """The header of a run in two lanes."""
    lanes = [("baseline", "full", {"period": 1}), (LANE, label, {"period": 4, "dropped": [1], **(config or {})})]
    model = {"id": "m", "dtype": "float32", "layers": layers, "shape": {**SHAPE, "num_layers": layers, **shape}}
    return {
        **{"type": "header", "format": "lora-drop-trace", "version": 4, "model": model, "device": {"name": "a CPU"}},
        "lanes": [{"id": name, "label": words, "config": settings} for name, words, settings in lanes],
        **{"prompt": "?", "prompt_tokens": 2, "seed": 0, "software": {}},
    }


def step(number: int, lane: str = LANE, kind: str = "lora", **more: Any) -> dict[str, Any]:
    """A step: the prefill if it is the first."""
    kind = kind if number else "prefill"
    values = {"token_id": number % 7, "text": "x ", "active": [1, int(kind != "lora"), 1], "ms": 1.5, "kv_bytes": 64}
    return {"type": "step", "lane": lane, "step": number, "kind": kind, "entropy": None, **values, **more}


def text(*records: Any) -> str:
    """Records as a file."""
    return "".join(json.dumps(record) + "\n" for record in records)


def _rewinds(count: int) -> Iterator[Any]:
    yield from map(step, range(count))
    values = {"drift": [0.1], "cosine": [1.0], "kl": 0.1, "agrees": True, "argmax_text": "x"}
    yield from ({"type": "audit", "lane": LANE, "step": i, **values} for i in range(count))
    for _ in range(count):
        yield {"type": "rewind", "lane": LANE, "to": count - 2}
        yield step(count - 1, kind="refresh")


def _words(count: int) -> Iterator[Any]:
    """Answers whose words differ in each place: a search for common runs goes through them again and again."""
    words = [f"{i // 15} " for i in range(count)]
    orders = {lane: random.Random(lane).sample(words, count) for lane in ("baseline", LANE)}
    return (step(i, lane, "refresh", text=order[i]) for lane, order in orders.items() for i in range(count))


def _full_steps(count: int) -> Iterator[Any]:
    return (step(i, lane, "refresh") for lane in ("baseline", LANE) for i in range(count))


# By name: such a file of about so many bytes.
COSTLY: dict[str, Callable[[int], str]] = {
    "as many audits as rewinds": lambda size: text(header(), *_rewinds(size // 550)),
    "one gap": lambda size: text(header(REPAIR), *map(step, range(size // 170)), step(size // 170, kind="refresh")),
    "a label": lambda size: text(header(label="x" * 1000), *map(step, range(size // 170))),
    "all layers": lambda size: text(
        header({"dropped": SKIPPED, "corrected": SKIPPED, "rank": 8}, MAX_LAYERS),
        *(step(i, active=[1] + [int(not i)] * len(SKIPPED)) for i in range(size // (3 * MAX_LAYERS))),
    ),
    "words": lambda size: text(header(), *_words(size // 360)),
    "full steps": lambda size: text(header(), *_full_steps(size // 340)),
    "empty lines": lambda size: text(header(), step(0)) + "\n" * size,
}
_SCREENED = {"head": "screened", "extras": {"head_rank": 4, "head_best": 2, "code_size": 1}}
_SHAPES: list[dict[str, Any]] = [
    *({"num_layers": 3.5}, {"num_layers": 3 * 10**8}, {"vocab_size": 1e300, "hidden_size": 1e300}),
    *({"vocab_size": 1e300, "hidden_size": 1e10}, {"layer_sizes": [[1.0]] * 3}),
]
# Each kind of size without a meaning was once read, and raised in another place.
MEANINGLESS = [text(header(_SCREENED, **shape), *_full_steps(5), step(5)) for shape in _SHAPES]
_made = cache(lambda name, size: COSTLY[name](size))


def another(name: str, size: int, prompt: object) -> str:
    """A costly file that was not sent before; making it anew would cost the attacker as much as its victim."""
    return _made(name, size).replace('"prompt": "?"', f'"prompt": "{prompt}"', 1)
