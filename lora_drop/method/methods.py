"""The table of methods that can be a lane: the full model, LoRA-Drop, and what it is compared with.

A lane is named `method`, or `method:value:value` with the method's parameters in their order: `layerskip:12:4`. All
run on one engine, so each is a schedule (`schedule.Schedule`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_drop.errors import LoraDropError, did_you_mean
from lora_drop.method.config import MAX_NGRAM, MAX_PERIOD, MAX_REPAIR, LoraDropConfig, default_range
from lora_drop.method.presets import COMPARISONS, EXACT, PRESETS, READABLE, Presets
from lora_drop.method.schedule import dropped_layers

FULL, CONFIGURED = "full", "lora-drop"  # the full model, and LoRA-Drop with the run's settings
LISTS = {"both": (FULL, CONFIGURED), "baseline": (FULL,), "lora-drop": (CONFIGURED,)}  # words for lists of lanes
MOST_LANES = 4
PAPER = "arXiv 2601.02569"

Layers = tuple[int, ...]


@dataclass(frozen=True)
class Parameter:
    """A whole number that a method takes, from `low` to `high`; `high` and `default` are of the number of layers.

    One with `words` is left out of a lane's name at its default; elsewhere they are added to the lane's label.
    """

    name: str
    low: int
    high: Callable[[int], int]
    default: Callable[[int], int]
    words: str = ""


@dataclass(frozen=True)
class Method:
    """A method of decoding.

    Args:
        label: of its lane; `{}` are the parameters.
        note: what it does, in one sentence.
        source: where it comes from.
        is_trained: True if it uses weights that were trained for it.
        is_lossless: True if every token is the full model's choice.
        parameters: in the order of a lane's name.
        searched: values that `lora-drop compare` tries, of the number of layers: 40 for each method that drafts,
            ours too, and fewer where a model has few layers.
        published: values that its source uses, of the number of layers.
        schedule: config, and fields of the schedule that are no settings, from the number of layers, a function that
            chooses layers by their count, and the values; None for LoRA-Drop's own configs.
    """

    label: str
    note: str
    source: str
    is_trained: bool = False
    is_lossless: bool = False
    parameters: tuple[Parameter, ...] = ()
    searched: Callable[[int], list[tuple[int, ...]]] = lambda layers: [()]
    published: Callable[[int], tuple[int, ...]] | None = None
    schedule: Callable[..., tuple[LoraDropConfig, dict[str, Any]]] | None = None


@dataclass(frozen=True)
class MethodLane:
    """A method on a model: its name with all values, and its config and further fields of the schedule."""

    name: str
    config: LoraDropConfig
    more: dict[str, Any]


def _pruned(layers: Layers) -> tuple[LoraDropConfig, dict[str, Any]]:
    return LoraDropConfig(MAX_PERIOD, drop_layers=layers, reuse="skip", adapters="none"), {"prunes": True}


def _verified(layers: Layers, drafts: int, is_screened: int) -> tuple[LoraDropConfig, dict[str, Any]]:
    head: dict[str, Any] = {"head": "screened", "corrections": False} if is_screened else {"adapters": "none"}
    return LoraDropConfig(drafts + 1, drop_layers=layers, reuse="skip", accept=1.0, **EXACT, **head), {}


def _looking_up(drafts: int, longest: int, shortest: int) -> dict[str, Any]:
    return {"lookup": drafts, "lookup_longest": max(shortest, longest), "lookup_least": shortest}


COUNT = Parameter("number of layers", 1, lambda layers: layers - 2, lambda layers: max(1, layers // 7))
EXIT = Parameter("exit layer", 1, lambda layers: layers - 1, lambda layers: layers - max(1, layers // 7))
DRAFTS = Parameter("draft length", 1, lambda layers: MAX_REPAIR - 1, lambda layers: 2)
LOOKED_UP = Parameter("draft length", 1, lambda layers: MAX_REPAIR // 2 - 1, lambda layers: 2)
LONGEST = Parameter("longest n-gram", 1, lambda layers: MAX_NGRAM, lambda layers: 2)
SHORTEST = Parameter("shortest n-gram", 1, lambda layers: MAX_NGRAM, lambda layers: 1, ", at least {}")
SCREENED = Parameter("screened head (0 or 1)", 0, lambda layers: 1, lambda layers: 0, ", screened head")


def _counts(layers: int, *shares: float) -> list[int]:
    """Shares of the layers, each as a whole number of at least 1."""
    return list(dict.fromkeys(max(1, round(layers * share)) for share in shares))


def _look_ups(layers: int) -> list[tuple[int, ...]]:
    """Draft lengths with the longest and the shortest n-gram."""
    lengths = ((1, 1), (2, 1), (3, 1), (4, 1), (2, 2), (3, 2), (4, 2), (3, 3))
    return [(drafts, *n_grams) for drafts in (1, 2, 3, 4, 6) for n_grams in lengths]


RIVALS = {
    "prune": Method(
        "Static pruning: {} layers",
        "The same layers never run, on the prompt neither; nothing was trained to make up for them.",
        "LLM-Pruner arXiv 2305.11627, ShortGPT arXiv 2403.03853; the layers are those that LoRA-Drop skips first",
        parameters=(COUNT,),
        searched=lambda layers: [(n,) for n in _counts(layers, 0.07, 0.13, 0.27)],
        schedule=lambda layers, order, count: _pruned(order(count)),
    ),
    "exit": Method(
        "Early exit: after {} layers",
        "The last layers never run, on the prompt neither; the model was not trained to exit early.",
        "the untrained baseline of LayerSkip, arXiv 2404.16710",
        parameters=(EXIT,),
        searched=lambda layers: [(layers - n,) for n in _counts(layers, 0.03, 0.07, 0.13)],
        schedule=lambda layers, order, at: _pruned(tuple(range(at, layers))),
    ),
    "layerskip": Method(
        "LayerSkip: exit {}, draft length {}",
        "Drafts by the first layers, which the full model verifies; the model was not trained for it.",
        "LayerSkip, arXiv 2404.16710",
        is_lossless=True,
        parameters=(EXIT, DRAFTS, SCREENED),
        searched=lambda layers: list(
            itertools.product(_counts(layers, 0.3, 0.5, 0.7, 0.8, 0.9), (1, 2, 3, 5), (0, 1))
        ),
        published=lambda layers: (max(1, layers // 4), 6),  # Llama 2 7B: exit 8 of 32
        schedule=lambda layers, order, at, *values: _verified(tuple(range(at, layers)), *values),
    ),
    "draft-verify": Method(
        "Draft & Verify: {} layers, draft length {}",
        "Drafts without chosen layers, which the full model verifies; whole layers, and a fixed number of drafts.",
        "Draft & Verify, arXiv 2309.08168",
        is_lossless=True,
        parameters=(COUNT, DRAFTS, SCREENED),
        searched=lambda layers: list(
            itertools.product(_counts(layers, 0.07, 0.13, 0.2, 0.33, 0.47), (1, 2, 3, 5), (0, 1))
        ),
        # Llama 2 13B chat: 24 of 40 attentions and 10 of 40 MLPs, 37% of the layers' weights.
        published=lambda layers: (max(1, round(0.37 * layers)), 8),
        schedule=lambda layers, order, count, *values: _verified(order(count), *values),
    ),
    "prompt-lookup": Method(
        "Prompt lookup: draft length {}, n-gram {}",
        "Drafts are what followed the text's last n-gram earlier in prompt and answer; one full pass verifies them.",
        "A. Saxena, github.com/apoorvumang/prompt-lookup-decoding; transformers' prompt_lookup_num_tokens",
        is_lossless=True,
        parameters=(LOOKED_UP, LONGEST, SHORTEST),
        searched=_look_ups,
        published=lambda layers: (10, 3),
        schedule=lambda layers, order, *values: (
            LoraDropConfig(2, drop_layers=(), adapters="none", accept=1.0, **EXACT, **_looking_up(*values)),
            {},
        ),
    ),
}
HYBRIDS = {"hybrid": READABLE, "hybrid-lossless": "lossless"}  # and the preset that each adds prompt lookup to
METHODS = {
    FULL: Method("Full model", "Every layer, every token.", "the model itself", is_lossless=True),
    CONFIGURED: Method("LoRA-Drop", "LoRA-Drop with the settings of the run.", PAPER, is_trained=True),
    **{
        name: Method(
            f"LoRA-Drop, {preset.label}", preset.note, PAPER, is_trained=True, is_lossless=preset.config.accept == 1
        )
        for name, preset in PRESETS.items()
    },
    "screened-head": Method(
        "Full model, screened head",
        "Every layer runs; a preview chooses which logits of a draft are computed, and one full head verifies them.",
        "this project; fitted to the model's last states",
        is_trained=True,
        is_lossless=True,
    ),
    **RIVALS,
    "lossless-tuned": Method(
        "LoRA-Drop, lossless: {} layers, draft length {}",
        "LoRA-Drop with accept 1: as many chosen layers are skipped, and drafts made, as was fastest.",
        PAPER,
        is_trained=True,
        is_lossless=True,
        parameters=(COUNT, DRAFTS),
        searched=lambda layers: list(
            itertools.product(_counts(layers, 0.03, 0.07, 0.13, 0.2, 0.27, 0.33, 0.4, 0.47), (1, 2, 3, 4, 5))
        ),
        schedule=lambda layers, order, count, drafts: (
            LoraDropConfig(drafts + 1, drop_layers=order(count), head="screened", accept=1.0, **EXACT),
            {},
        ),
    ),
    **{
        name: Method(
            f"LoRA-Drop, {PRESETS[preset].label}, with prompt lookup: draft length {{}}, n-gram {{}}",
            "Drafts are what followed the text's last n-gram earlier, where it stood there, else LoRA-Drop's.",
            f"{PAPER}; github.com/apoorvumang/prompt-lookup-decoding",
            is_trained=True,
            is_lossless=PRESETS[preset].config.accept == 1,
            parameters=(LOOKED_UP, LONGEST, SHORTEST),
            searched=_look_ups,
        )
        for name, preset in HYBRIDS.items()
    },
}


def lanes_of(text: str, compare: str | None = None) -> tuple[str, ...]:
    """The lanes that a setting `lanes` names, each as the table's name with its values.

    Args:
        compare: a third lane beside them, which counts.

    Raises:
        LoraDropError: a method that is not in the table, one lane twice, or too many lanes.
    """
    names = LISTS.get(text) or tuple(part.strip() for part in text.split(","))
    for name in names:
        plain = name.partition(":")[0]
        if plain not in METHODS:
            hint = did_you_mean(plain, METHODS)
            raise LoraDropError(f"there is no method {plain!r}; the methods are {', '.join(METHODS)}.{hint}")
    if len(set(names)) != len(names):
        raise LoraDropError(f"lanes names a lane twice: {text}.")
    if len(names) + (compare is not None) > MOST_LANES:
        raise LoraDropError(f"a run has at most {MOST_LANES} lanes, got {len(names) + (compare is not None)}.")
    if compare is not None and not {FULL, CONFIGURED} <= set(names):
        raise LoraDropError("compare adds a lane to full and lora-drop: lanes must name both.")
    return names


def method_of(name: str) -> tuple[Method, str]:
    """The method of a lane's whole name, with all its values, and the lane's label."""
    plain, *values = name.split(":")
    method = METHODS[plain]
    label = method.label.format(*values, "?", "?")  # a file may hold too few
    pairs = zip(method.parameters, values, strict=False)
    return method, label + "".join(parameter.words.format(value) for parameter, value in pairs)


def method_lane(name: str, num_layers: int, presets: Presets, settings: LoraDropConfig | None = None) -> MethodLane:
    """A lane of a model by the name that `lanes_of` returns.

    Args:
        presets: those of the model.
        settings: those of the run, for the lane `lora-drop`.

    Raises:
        LoraDropError: a parameter is missing a value that this model allows.
    """
    plain, *texts = name.split(":")
    method = METHODS[plain]
    if len(texts) > len(method.parameters):
        names = ", ".join(parameter.name for parameter in method.parameters) or "none"
        raise LoraDropError(f"{name!r} has {len(texts)} values; the parameters of {plain} are {names}.")
    texts += [str(parameter.default(num_layers)) for parameter in method.parameters[len(texts) :]]
    pairs = zip(method.parameters, texts, strict=True)
    values = [_value(plain, parameter, text, num_layers) for parameter, text in pairs]
    more: dict[str, Any] = {}
    if method.schedule is not None:
        config, more = method.schedule(
            num_layers, lambda count: layers_to_skip(presets.order, num_layers, count), *values
        )
    elif plain == FULL:
        config = LoraDropConfig(period=1, drop_layers=(), adapters="none")
    elif plain == CONFIGURED:
        config = settings or LoraDropConfig()
    elif plain in HYBRIDS:
        config = presets[HYBRIDS[plain]].config.replace(**_looking_up(*values))
    elif plain in COMPARISONS:
        config = COMPARISONS[plain].applied_to(LoraDropConfig())
    else:
        config = presets[plain].config
    named = list(values)
    while named and (last := method.parameters[len(named) - 1]).words and named[-1] == last.default(num_layers):
        named.pop()
    return MethodLane(":".join([plain, *map(str, named)]), config, more)


def _value(method: str, parameter: Parameter, text: str, num_layers: int) -> int:
    high = parameter.high(num_layers)
    if not (text.isascii() and text.isdigit() and len(text) < 10 and parameter.low <= int(text) <= high):
        raise LoraDropError(
            f"{method}: the {parameter.name} must be a whole number from {parameter.low} to {high} on this model, "
            f"got {text[:20]!r}."
        )
    return int(text)


def layers_to_skip(order: Layers, num_layers: int, count: int) -> Layers:
    """So many layers of a model: the first of its order, or evenly spread ones where that is too short."""
    if count <= len(order):
        return tuple(sorted(order[:count]))
    low, high = default_range(num_layers)
    if count > high - low + 1:
        low, high = 1, num_layers - 1
    return dropped_layers(low, high, count / (high - low + 1))
