"""A few facts of a verdict, counted again by plain code from the lines of a trace's file."""

import json
from collections import Counter
from statistics import fmean
from typing import Any

import pytest


def recount(lines: list[str]) -> dict[str, Any]:
    """Tokens, skipped layer runs, losses, first differing words, speedup and saved cache of a run."""
    header, *records = [json.loads(line) for line in lines if line.strip()]
    layers, configs = header["model"]["layers"], {lane["id"]: lane["config"] for lane in header["lanes"]}
    kept: dict[str, list[dict]] = {name: [] for name in configs}  # the steps that no rewind took back
    ms, ran = Counter(), Counter()  # of all passes after prefill
    audits: dict[tuple[str, str, int], dict] = {}
    for record in records:
        kind, lane = record["type"], record.get("lane")
        if kind == "audit":
            audits[record.get("audit", "drift"), lane, record["step"]] = record
        elif kind == "rewind":
            del kept[lane][record["to"] + 1 :]
            audits = {key: one for key, one in audits.items() if key[:2] != ("drift", lane) or key[2] <= record["to"]}
        elif kind == "step":
            kept[lane].append(record)
            ran[lane] += record["active"].count(1) if record["step"] else 0
        elif kind == "judge":
            ran[lane] += layers - configs[lane]["dropped"][0]
        if kind in ("step", "rewind", "judge") and record.get("step") != 0:
            ms[lane] += record.get("ms", 0)

    def text_facts(lane: str) -> dict[str, Any]:
        drifts = [one for (kind, where, _), one in audits.items() if (kind, where) == ("drift", lane)]
        losses = [one["regret"] for one in drifts if one.get("regret") is not None]
        is_sampled = header["sampling"].get("temperature")
        # The prefill's token is the full model's favourite.
        facts: dict[str, Any] = {"quality_loss": fmean([0.0, *losses]) if losses and not is_sampled else None}
        if "baseline" in kept:
            one, other = ("".join(step["text"] for step in kept[name]).split() for name in ("baseline", lane))
            ends = range(max(len(one), len(other)))
            facts["words"] = {"first": next((i for i in ends if one[i : i + 1] != other[i : i + 1]), None)}
        return facts

    steps = {name: len(of) - 1 for name, of in kept.items()}
    own = steps["lora_drop"]
    facts = text_facts("lora_drop") | {"tokens": {name: count + 1 for name, count in steps.items()}}
    facts["skipped_share"] = 1 - ran["lora_drop"] / (layers * own) if own > 0 else None
    if "third" in kept:
        facts["third"] = text_facts("third")
    if "baseline" in kept:
        last = min(own, steps["baseline"])
        facts["kv_saved"] = 1 - kept["lora_drop"][last]["kv_bytes"] / kept["baseline"][last]["kv_bytes"]
        if 0 < own == steps["baseline"]:  # else only the whole cycles that both have count
            facts["speedup"] = (own / ms["lora_drop"]) / (steps["baseline"] / ms["baseline"])
    return facts


def check(facts: dict[str, Any], expected: dict[str, Any]) -> None:
    """Each fact that was counted again is what the verdict has."""
    for name, value in expected.items():
        if isinstance(value, dict):
            check(facts[name], value)
        else:
            assert facts[name] == (value if value is None else pytest.approx(value, rel=1e-3, abs=1e-4)), name
