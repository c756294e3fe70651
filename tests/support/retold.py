"""The facts of a verdict once more, by plain code of their own, from the lines of a trace's file."""

from __future__ import annotations

import json
from typing import Any

CJK = [(0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF)]


def words(text: str) -> list[str]:
    """Words between white space; a character of Chinese or Japanese is one."""
    parts, word = [], ""
    for character in text:
        alone = any(low <= ord(character) <= high for low, high in CJK)
        if character.isspace() or alone:
            parts += [word] if word else []
            word = ""
            parts += [character] if alone else []
        else:
            word += character
    return parts + ([word] if word else [])


def same(a: list[str], b: list[str]) -> list[tuple[int, int, int]]:
    """The longest common runs, (place in a, place in b, length): the longest first, then left and right of it."""
    best = (0, 0, 0)
    for i in range(len(a)):
        for j in range(len(b)):
            n = 0
            while i + n < len(a) and j + n < len(b) and a[i + n] == b[j + n]:
                n += 1
            if n > best[2]:
                best = (i, j, n)
    i, j, n = best
    if not n:
        return []
    after = [(i + n + x, j + n + y, m) for x, y, m in same(a[i + n :], b[j + n :])]
    return [*same(a[:i], b[:j]), best, *after]


def beside(one: str, other: str) -> tuple[int | None, int, int]:
    """First word that differs, how many differ, and how many there are side by side."""
    a, b = words(one), words(other)
    first = next((i for i in range(max(len(a), len(b))) if a[i : i + 1] != b[i : i + 1]), None)
    differ, x, y = 0, 0, 0
    if first is not None:
        x = y = first
        runs = [(i + first, j + first, n) for i, j, n in same(a[first:], b[first:])]
        for i, j, n in [*runs, (len(a), len(b), 0)]:
            differ += max(i - x, j - y)
            x, y = i + n, j + n
    common = len(words(one)) if first is None else first + sum(n for _, _, n in same(a[first:], b[first:]))
    return first, differ, common + differ


class Retold:
    """A trace's lines, counted anew."""

    def __init__(self, lines: list[str]):
        records = [json.loads(line) for line in lines if line.strip()]
        self.header = records[0]
        self.summary = next((one for one in records if one["type"] == "summary"), None)
        self.lanes: dict[str, list[dict]] = {lane["id"]: [] for lane in self.header["lanes"]}
        self.passes: dict[str, list[dict]] = {name: [] for name in self.lanes}
        self.audits: dict[tuple[str, str, int], dict] = {}
        for one in records[1:]:
            kind, lane = one["type"], one.get("lane")
            if kind == "audit":
                self.audits[one.get("audit", "drift"), lane, one["step"]] = one
            elif kind == "step":
                self.lanes[lane] = [*self.lanes[lane][: one["step"]], one]
            elif kind == "rewind":
                self.lanes[lane] = self.lanes[lane][: one["to"] + 1]
                for step in range(one["to"] + 1, 10_000):
                    self.audits.pop(("drift", lane, step), None)
            if kind in ("step", "rewind", "judge"):
                self.passes[lane].append(one)

    def config(self, lane: str) -> dict:
        return next(one["config"] for one in self.header["lanes"] if one["id"] == lane)

    def text(self, lane: str) -> str:
        return "".join(one["text"] for one in self.lanes[lane])

    def rate(self, lane: str) -> float:
        return (len(self.lanes[lane]) - 1) / sum(one.get("ms", 0) for one in self.passes[lane] if one.get("step") != 0)

    def skipped(self, lane: str = "lora_drop") -> float | None:
        """Share of the layer runs that the full model would have made."""
        layers, ran = self.header["model"]["layers"], 0
        for one in self.passes[lane]:
            if one["type"] == "judge":
                ran += layers - self.config(lane)["dropped"][0]
            elif one["type"] == "step" and one["step"] > 0:
                ran += one["active"].count(1)
        steps = len(self.lanes[lane]) - 1
        return 1 - ran / (layers * steps) if steps > 0 else None

    def loss(self, lane: str) -> float | None:
        own = bool(self.config(lane).get("accept")) and self.config(lane)["refresh"] == "repair"
        if own and self.header["sampling"].get("temperature"):
            return None
        kind, name = ("drift", "regret") if own else ("quality", "kl")
        values = [one[name] for (k, of, _), one in self.audits.items() if (k, of) == (kind, lane) and name in one]
        return sum(values) / len(values) if values else None

    def saved(self, lane: str = "lora_drop") -> float:
        last = min(len(self.lanes["baseline"]), len(self.lanes[lane])) - 1
        return 1 - self.lanes[lane][last]["kv_bytes"] / self.lanes["baseline"][last]["kv_bytes"]

    def lane_facts(self, lane: str) -> dict[str, Any]:
        """Facts of a lane's text."""
        facts: dict[str, Any] = {"quality_loss": self.loss(lane)}
        if "baseline" in self.lanes:
            first, differ, both = beside(self.text("baseline"), self.text(lane))
            facts["words"] = {"first": first, "differ": differ, "all": both}
        return facts

    def facts(self) -> dict[str, Any]:
        """The facts that can be counted anew, of LoRA-Drop's lane."""
        facts = self.lane_facts("lora_drop") | {"skipped_share": self.skipped()}
        facts["tokens"] = {name: len(steps) for name, steps in self.lanes.items()}
        if "baseline" in self.lanes:
            facts["kv_saved"] = self.saved()
        if "third" in self.lanes:
            facts["third"] = self.lane_facts("third")
        return facts


def check(facts: dict[str, Any], retold: dict[str, Any]) -> None:
    """Each fact that was counted anew is what the verdict has."""
    for name, value in retold.items():
        if isinstance(value, dict):
            check(facts[name], value)
        else:
            assert facts[name] == value or abs(facts[name] - value) < 1e-4 * max(1.0, abs(value)), name
