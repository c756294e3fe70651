"""LoRA-Drop with prompt lookup written down a second time, over `naive`: a text token by token, without the engine."""

import itertools
import math

import torch
from torch import Tensor

from tests.support.naive import Naive

WORD = 2**64


def hashed(seed: int, step: int, count: int) -> list[float]:
    """Noise in (0, 1) of each token id at a step, by the documented hash."""
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    key = z ^ (z >> 31)
    noise = []
    for token in range(count):
        x = ((token + (key & 0x7FFFFFFF)) ^ (key >> 31 & 0x7FFFFFFF)) % 2**32
        for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
            x = (x ^ x >> shift) * factor % 2**32
        x ^= x >> 15
        noise.append(((x & 0x7FFFFFFF) + 0.5) / 2**31)
    return noise


def choice(logits: Tensor, step: int, temperature: float, top_p: float, seed: int) -> int:
    """The token that is drawn from logits (V,)."""
    if not temperature:
        return int(logits.argmax())
    probabilities = ((logits - logits.max()) / temperature).softmax(-1)
    likeliest = probabilities.sort(descending=True, stable=True)
    nucleus: list[int] = []
    total = 0.0
    for token, share in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True):
        if total >= top_p:
            break
        nucleus.append(token)
        total += share
    noise = hashed(seed, step, len(logits))
    return min(nucleus, key=lambda token: -math.log1p(-noise[token]) / float(probabilities[token]))


def looked_up(verified: list[int], drafts: list[int], config: dict, stops: frozenset[int], room: int) -> list[int]:
    """What followed the first place of the text's last n-gram, the longest n-gram first."""
    text = verified + drafts
    for n in range(config["lookup_longest"], config["lookup_least"] - 1, -1):
        for end in range(n, len(verified)):
            if len(text) >= n and verified[end - n : end] == text[-n:]:
                copied = verified[end : end + min(config["lookup"], room)]
                return copied[: next((i for i, token in enumerate(copied) if token in stops), len(copied))]
    return []


def stays(draft: int, logits: Tensor, preferred: int, accept: float, no_repeats: bool, text: list[int]) -> bool:
    """Whether a draft, the last token of `text` (the reply so far), is accepted after the full model's logits (V,)."""
    if draft == preferred:
        return True
    probabilities = logits.softmax(-1)
    if accept == 1 or probabilities[draft] < accept * probabilities.max():
        return False
    pairs = list(itertools.pairwise(text))
    return not (no_repeats and len(pairs) > 1 and pairs[-1] in pairs[:-1])


@torch.no_grad()
def hybrid(
    model, prompt: list[int], schedule, bank, count: int, stops: frozenset[int] = frozenset(),
    temperature: float = 0.0, top_p: float = 1.0, seed: int = 0,
) -> tuple[list[int], dict[str, list[int]]]:  # fmt: skip
    """The reply, and by `lora` and `draft` how many each drafted and how many of these were accepted.

    Args:
        schedule: any object with the settings as attributes, and the skipped layers as `dropped`.
    """
    config, sampling = vars(schedule), (temperature, top_p, seed)
    drafts_by_layers = schedule.period > 1 and (schedule.dropped or schedule.head == "screened")
    naive, reply, counts = Naive(model, schedule, bank), [], {"lora": [0, 0], "draft": [0, 0]}

    def ended(tokens: list[int]) -> bool:
        return len(tokens) >= count or tokens[-1] in stops

    for position, token in enumerate(prompt):
        logits = naive.read(token, position, lora=False)
    reply.append(choice(logits, 0, *sampling))
    while not ended(reply):
        last = len(prompt) + len(reply) - 2  # position of the last token that was read in full
        drafts, kinds = [], []
        while not ended(reply + drafts):
            room = count - len(reply) - len(drafts) - 1
            if schedule.lookup and (copied := looked_up(prompt + reply, drafts, config, stops, room)):
                drafts, kinds = drafts + copied, kinds + ["draft"] * len(copied)
                break
            if not drafts_by_layers or len(drafts) + 1 >= schedule.period:
                break
            logits = naive.read((reply + drafts)[-1], last + 1 + len(drafts), lora=True)
            drafts, kinds = [*drafts, choice(logits, len(reply) + len(drafts), *sampling)], [*kinds, "lora"]
        rows = naive_rows(naive, prompt + reply + drafts, last)
        for kind in kinds:
            counts[kind][0] += 1
        for draft, kind, row in zip(drafts, kinds, rows, strict=False):
            preferred = choice(row, len(reply), *sampling)
            if not stays(draft, row, preferred, schedule.accept, schedule.own_repeats, [*reply, draft]):
                reply.append(preferred)
                naive.repair(prompt + reply[:-1], last)  # the anchors are those of the last token that stays
                break
            counts[kind][1] += 1
            reply.append(draft)
        else:
            if not ended(reply):
                reply.append(choice(rows[-1], len(reply), *sampling))
    return reply, counts


def naive_rows(naive: Naive, text: list[int], last: int) -> list[Tensor]:
    """The full model's logits (V,) after each token beyond position `last`, in a pass that repairs."""
    naive.forget(last)
    return [naive.read(text[position], position, lora=False) for position in range(last + 1, len(text))]
