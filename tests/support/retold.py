"""The figures of a verdict's sentence once more, by plain code of their own, from the lines of a trace's file."""

from __future__ import annotations

import json
import random
import re

CJK = [(0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF)]


def words(text: str) -> list[str]:
    """Words between white space; a sign of Chinese or Japanese is one."""
    found, word = [], ""
    for sign in text:
        alone = any(low <= ord(sign) <= high for low, high in CJK)
        if sign.isspace() or alone:
            found += [word] if word else []
            word = ""
            found += [sign] if alone else []
        else:
            word += sign
    return found + ([word] if word else [])


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


def loop(ids: list[int]) -> int | None:
    """Where the loop begins that fills the last 32 tokens."""
    if len(ids) < 32:
        return None
    for n in range(1, 17):
        if all(ids[k] == ids[k - n] for k in range(len(ids) - 32 + n, len(ids))):
            at = len(ids) - 32
            while at > 0 and ids[at - 1] == ids[at - 1 + n]:
                at -= 1
            return at
    return None


class Retold:
    """A trace's lines, counted anew."""

    def __init__(self, lines: list[str]):
        found = [json.loads(line) for line in lines if line.strip()]
        self.header = found[0]
        self.summary = next((one for one in found if one["type"] == "summary"), None)
        self.lanes: dict[str, list[dict]] = {lane["id"]: [] for lane in self.header["lanes"]}
        self.passes: dict[str, list[dict]] = {name: [] for name in self.lanes}
        self.audits: dict[tuple[str, str, int], dict] = {}
        for one in found[1:]:
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

    def words_before(self, lane: str, token: int) -> int:
        """Words that are whole before the one that a token is in."""
        texts = [one["text"] for one in self.lanes[lane]]
        before, own = "".join(texts[:token]), texts[token]
        if not own.strip():
            return len(words(before))
        sign = own.strip()[0]
        return len(words(before + own[: own.index(sign)] + sign)) - 1

    def decode_ms(self, lane: str) -> float:
        return sum(one.get("ms", 0) for one in self.passes[lane] if one.get("step") != 0)

    def speedup(self) -> float:
        rates = [(len(self.lanes[lane]) - 1) / self.decode_ms(lane) for lane in ("lora_drop", "baseline")]
        return rates[0] / rates[1]

    def cycles(self, lane: str) -> list[tuple[int, float]]:
        """(tokens that stand, ms) from one full step to the next."""
        found, tokens, ms, stands = [], 0, 0.0, 0
        for one in self.passes[lane]:
            if one["type"] == "rewind":
                tokens -= stands - one["to"]
                stands = one["to"]
                continue
            if one["type"] == "judge":
                found.append((tokens, ms + one["ms"]))
                tokens, ms = 0, 0.0
                continue
            if one["step"] == 0:
                continue
            tokens, ms, stands = tokens + 1, ms + one["ms"], one["step"]
            if one["kind"] == "refresh":
                found.append((tokens, ms))
                tokens, ms = 0, 0.0
        return found + ([(tokens, ms)] if tokens else [])

    def interval(self) -> tuple[float, float] | None:
        base, own = self.cycles("baseline"), self.cycles("lora_drop")
        if len(base) < 4 or len(own) < 4:
            return None
        dice, ratios = random.Random(0), []
        for _ in range(2000):
            rates = []
            for lane in (own, base):
                drawn = dice.choices(lane, k=len(lane))
                rates.append(sum(t for t, _ in drawn) / sum(ms for _, ms in drawn))
            ratios.append(rates[0] / rates[1])
        ratios.sort()
        return ratios[50], ratios[1949]

    def skipped(self, lane: str = "lora_drop") -> float:
        """Share of the layer runs that the full model would have made."""
        layers, ran = self.header["model"]["layers"], 0
        for one in self.passes[lane]:
            if one["type"] == "judge":
                ran += layers - self.config(lane)["dropped"][0]
            elif one["type"] == "step" and one["step"] > 0:
                ran += one["active"].count(1)
        return 1 - ran / (layers * (len(self.lanes[lane]) - 1))

    def loss(self, lane: str) -> float | None:
        own = bool(self.config(lane).get("accept")) and self.config(lane)["refresh"] == "repair"
        if own and self.header["sampling"].get("temperature"):
            return None
        kind, name = ("drift", "regret") if own else ("quality", "kl")
        found = [one[name] for (k, of, _), one in self.audits.items() if (k, of) == (kind, lane) and name in one]
        return sum(found) / len(found) if found else None

    def saved(self, lane: str = "lora_drop") -> float:
        last = min(len(self.lanes["baseline"]), len(self.lanes[lane])) - 1
        return 1 - self.lanes[lane][last]["kv_bytes"] / self.lanes["baseline"][last]["kv_bytes"]

    def loop_word(self, lane: str) -> int | None:
        ids = [one["token_id"] for one in self.lanes[lane]]
        ended = self.summary["lanes"][lane]["ended"] if self.summary else None
        at = loop(ids[:-1] if ended == "stop" else ids)
        return None if at is None else self.words_before(lane, at)

    def absurd_word(self, lane: str) -> int | None:
        """The first word that the full model finds absurd; of a greedy answer."""
        if self.header["sampling"].get("temperature"):
            return None
        steps = [
            step for (k, of, step), one in self.audits.items() if k == "drift" and of == lane and one["regret"] > 5
        ]
        return self.words_before(lane, min(steps)) if steps else None


def check(text: str, lines: list[str]) -> str:
    """Every number of a verdict's sentence is what the lines say; returns the text without them."""
    trace = Retold(lines)
    idle = trace.header.get("idle")

    def near(said: str, value: float | None, digits: int = 2) -> bool:
        return value is not None and abs(float(said) - value) <= 0.5 * 10**-digits + 1e-4 * max(1.0, abs(value))

    def differ(first, count, places):
        one, two, three = beside(trace.text("baseline"), trace.text("lora_drop"))
        return (int(first) - 1, int(count), int(places)) == (one, two, three)

    def third(verb, count):
        looped, absurd = trace.loop_word("third"), trace.absurd_word("third")
        first = min(at for at in (looped, absurd) if at is not None)
        return int(count) == first and (verb == "breaks" or first == looped)

    def wide(low, high):
        one, two = trace.interval()  # other draws: within a tenth of its width
        return max(abs(float(low) - one), abs(float(high) - two)) < 0.1 * (two - one) + 0.01

    rules = [
        (r"\(measured idle: ([\d.]+)x on (.+?)\)", lambda x, of: near(x, idle["speedup"]) and of == idle["device"]),
        (r"(?:faster|slower) \(([\d.]+)x to ([\d.]+)x\)", wide),
        (r"above the bound of ([\d.]+)x", lambda x: near(x, trace.summary["bound"])),
        (r"slower \(([\d.]+)x\)|([\d.]+)x faster|full model \(([\d.]+)x\)",
         lambda *x: abs(float(next(filter(None, x))) / trace.speedup() - 1) < 0.02),  # of ms with three decimals
        (r"(\d+)% of (?:layer|attention) runs skipped", lambda x: near(x, 100 * trace.skipped(), 0)),
        (r"the answers differ from word (\d+) on \((\d+) of (\d+) words\)", differ),
        (r"the answers differ from word (\d+) on",
         lambda x: int(x) - 1 == beside(trace.text("baseline"), trace.text("lora_drop"))[0]),
        (r"without corrections the text [a-z ]+ \(quality loss ([\d.]+) nats per token\)",
         lambda x: near(x, trace.loss("third"))),
        (r"in the lane “.+?” the text [a-z ]+ \(quality loss ([\d.]+) nats per token\)",
         lambda x: near(x, trace.loss("third"))),
        (r"the text (breaks|goes in circles) after (\d+) words?", third),
        (r"the text differs from word (\d+) on",
         lambda x: int(x) - 1 == beside(trace.text("baseline"), trace.text("third"))[0]),
        (r"\(quality loss ([\d.]+) nats per token\)", lambda x: near(x, trace.loss("lora_drop"))),
        (r"(\d+)% (?:of the K/V memory saved)", lambda x: near(x, 100 * trace.saved(), 0)),
        (r"(\d+)% more K/V memory", lambda x: near(x, -100 * trace.saved(), 0)),
        (r"LoRA-Drop's answer goes in circles from word (\d+) on",
         lambda x: int(x) - 1 == trace.loop_word("lora_drop")),
        (r"full model's own answer goes in circles from word (\d+) on",
         lambda x: int(x) - 1 == trace.loop_word("baseline")),
        (r"after (\d+) tokens? of the answer", lambda x: int(x) == len(trace.lanes["lora_drop"])),
        (r"at period (1) ", lambda x: trace.config("lora_drop")["period"] == 1),
    ]  # fmt: skip
    rest = text
    for pattern, holds in rules:
        for found in re.finditer(pattern, rest, re.IGNORECASE):
            assert holds(*found.groups()), (found[0], text)
        rest = re.sub(pattern, "", rest, flags=re.IGNORECASE)
    assert not re.search(r"\d", rest), f"a number that nothing recomputes: {rest!r}"
    return rest
