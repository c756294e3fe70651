"""Hostile traces: small files whose reading would cost much, or that fit the schema and mean nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from lora_drop.run.trace.records import MAX_LAYERS

LANE = "lora_drop"
SHAPE = {
    **{"num_layers": 3, "hidden_size": 4, "num_heads": 2, "num_kv_heads": 1, "head_dim": 2, "intermediate_size": 8},
    **{"vocab_size": 16, "tied": True},
}


def header(config: dict[str, Any] | None = None, shape: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """The header of a run in two lanes on a model of three layers."""
    lanes = [("baseline", {"period": 1}), (LANE, {"period": 4, "dropped": [1], **(config or {})})]
    model = {"id": "m", "dtype": "float32", "layers": 3, "shape": SHAPE | (shape or {})}
    return {
        **{"type": "header", "format": "lora-drop-trace", "version": 2, "model": model, "device": {"name": "a CPU"}},
        "lanes": [{"id": name, "label": name, "config": own} for name, own in lanes],
        **{"prompt": "?", "prompt_tokens": 2, "seed": 0, "software": {}},
        **more,
    }


def step(number: int, lane: str = LANE, kind: str = "lora", **more: Any) -> dict[str, Any]:
    """A step: the prefill if it is the first."""
    kind = kind if number else "prefill"
    values = {"token_id": number % 7, "text": "x ", "active": [1, int(kind != "lora"), 1], "ms": 1.5, "kv_bytes": 64}
    return {"type": "step", "lane": lane, "step": number, "kind": kind, "entropy": None, **values, **more}


def audit(number: int, **more: Any) -> dict[str, Any]:
    """An audit of a step."""
    values = {"drift": [0.1], "cosine": [1.0], "kl": 0.1, "agrees": True, "argmax_text": "x"}
    return {"type": "audit", "lane": LANE, "step": number, **values, **more}


def text(*records: Any) -> str:
    """Records as a file."""
    return "".join(json.dumps(record) + "\n" for record in records)


def _baseline(count: int) -> Iterator[dict[str, Any]]:
    return (step(i, "baseline", "refresh") for i in range(count))


def giant_shape(size: int) -> str:
    """A shape that claims hundreds of millions of layers, at any size."""
    return text(header(shape={"num_layers": 3 * 10**8}), *_baseline(5), *map(step, range(5)))


def rewinds(size: int) -> str:
    """As many audits as rewinds, each of which keeps all audits but one."""
    count = size // 550
    again = {"type": "rewind", "lane": LANE, "to": count - 2}, step(count - 1, kind="refresh")
    return text(header(), *map(step, range(count)), *map(audit, range(count)), *again * count)


def repairs(size: int) -> str:
    """One long gap before a repair, each step of which asks for all the others."""
    count = size // 170
    config = {"refresh": "repair", "kv": "write", "period": 10**6}
    return text(header(config), *map(step, range(count)), step(count, kind="refresh"))


def verified(size: int) -> str:
    """Steps that each ask for the ten thousand rows of the last verification."""
    judge = {"type": "judge", "lane": LANE, "rows": 10_000, "ms": 1.0, "kept": 0}
    return text(header({"refresh": "repair", "kv": "write"}), *map(step, range(size // 170)), judge)


def long_label(size: int) -> str:
    """The longest label, which is repeated at each step."""
    long = header()
    long["lanes"][1]["label"] = "x" * 1000
    return text(long, *map(step, range(size // 170)))


def many_layers(size: int) -> str:
    """As many layers as there may be, all but one skipped, and all of these with corrections."""
    skipped = list(range(1, MAX_LAYERS))
    model = {"id": "m", "dtype": "float32", "layers": MAX_LAYERS, "shape": SHAPE | {"num_layers": MAX_LAYERS}}
    long = header({"dropped": skipped, "corrected": skipped, "rank": 8}, model=model)
    steps = (step(i, active=[1] + [int(not i)] * len(skipped)) for i in range(size // (3 * MAX_LAYERS)))
    return text(long, *steps)


def repeated_words(size: int) -> str:
    """Answers whose words differ in each place, and which a search for common runs goes through again and again."""
    draw = random.Random(0)
    count = size // 360
    words = [f"{i} " for i in range(count // 15 + 1)] * 15
    own, other = draw.sample(words, len(words)), draw.sample(words, len(words))
    both = [(i, name, word) for i in range(count) for name, word in (("baseline", own[i]), (LANE, other[i]))]
    return text(header(), *(step(i, name, "refresh", text=word) for i, name, word in both))


def blank_lines(size: int) -> str:
    """A short run in millions of empty lines."""
    return text(header(), step(0)) + "\n" * size


def cycles(size: int) -> str:
    """Nothing but full steps: each is a cycle of the speedup's interval."""
    count = size // 340
    return text(header(), *_baseline(count), *(step(i, kind="refresh") for i in range(count)))


# By name: such a file of about so many bytes.
COSTLY: dict[str, Callable[[int], str]] = {
    one.__name__: one
    for one in (rewinds, repairs, verified, long_label, many_layers, repeated_words, blank_lines, cycles)
}
