"""THE table of settings: what a user can set, once, and everything else is made from it.

From an entry follow: the field of `LoraDropConfig`, `Request` or `TrainSettings` and its check, the flag of the
command line, the control of the page, the parameter of a link and of the Gradio API, the place in a trace's header,
the column of a sweep, and the row in docs/settings.md. A new setting is an entry here, at the table's end (callers of
the API may count positions), and the code that uses it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import pydantic
from pydantic import ConfigDict, ValidationError

from lora_drop.errors import LoraDropError
from lora_drop.method.setting import CALL, RUN, SCHEDULE, TRAINING, Setting
from lora_drop.method.values import Choice, Flag, LayerList, Layers, Number, Text, Whole

MAX_PERIOD = 10**9  # longer than any run; JSON's readers do not all take a whole number of any size
MAX_NEW_TOKENS = 100_000
MAX_SEED = 2**63 - 1
REUSE_RULES = ("state", "anchor", "residual", "skip")
PARTS = ("block", "attention")
KV_RULES = ("skip", "write")
REFRESHES = ("single", "repair")
HEADS = ("full", "screened")
# Of a correction, by the names that `parts` takes; `linear` is the paper's and always there.
CORRECTION_PARTS = ("auto", "linear", "linear+mlp", "linear+kept", "linear+mlp+kept")
MAX_REPAIR = 64  # the longest period with repair: rows of one pass
VIEWS = ("race", "lock-step")
LANES = ("both", "baseline", "lora-drop")


_ADAPTERS = "auto, none or an adapter folder"

SETTINGS: tuple[Setting, ...] = (
    Setting(
        *("preset", CALL, Text("a preset", off=True), None),
        "start from a named setting; what else is given changes it",
    ),
    Setting(
        *("period", SCHEDULE, Whole(1, MAX_PERIOD, "the baseline"), 4),
        "a full step (refresh) in every so many decode steps; 1 is the baseline",
        label="Period: one full step in every …",
        info="Longer: fewer full steps, more speed, more drift between them.",
        span=(1, 16, 1),
        main=True,
        words="full step every {} tokens",
    ),
    Setting(
        *("layers", SCHEDULE, Layers(off=True), None),
        "the range of layers that can be skipped, e.g. 3-28; unset, all but the first three and the last",
        label="Layers that can be skipped",
        info="Moves the rows of the activity map in which layers are skipped.",
        main=True,
        metavar="LOW-HIGH",
        words="layers {}",
    ),
    Setting(
        *("drop_ratio", SCHEDULE, Number(0, 1), 0.5),
        "share of that range that is skipped at LoRA steps, spread evenly",
        label="Drop ratio: share of that range",
        info="More: more rows of the activity map are skipped; faster, and more words differ.",
        span=(0, 1, 0.05),
        main=True,
        words="drop ratio {}",
    ),
    Setting(
        "reuse",
        SCHEDULE,
        Choice(
            REUSE_RULES,
            (
                "state: last token's output (paper)",
                "anchor: last refresh's output",
                "residual: what the last refresh added",
                "skip: nothing, the layer is passed by",
            ),
        ),
        "residual",
        "what stands in for a skipped layer",
        label="Reuse rule",
        info="Changes what stands in for a skipped layer: the words after the first full step.",
        words="{} rule",
    ),
    Setting(
        *("part", SCHEDULE, Choice(PARTS, ("layer (paper)", "attention only")), "block"),
        "what of a layer is skipped: the whole block, or its attention only",
        label="What is skipped",
        info="Attention only: less drift, less speed.",
        row="part",
        words="attention only",
    ),
    Setting(
        *("kv", SCHEDULE, Choice(KV_RULES, ("none (paper)", "still written")), "skip"),
        "whether a skipped layer writes no K/V (skip), or still computes and stores them (write)",
        label="K/V when skipped",
        info="Written: the memory line loses its gain.",
        row="part",
        words="K/V of skipped layers written",
    ),
    Setting(
        *("drop_layers", SCHEDULE, LayerList(off=True), None),
        "the skipped layers by number, in place of range and ratio",
        label="Exact layers to skip (instead of range and ratio)",
        info="Skips just these rows of the activity map.",
        metavar="4,6,8",
    ),
    Setting(
        *("adapters", SCHEDULE, Text(_ADAPTERS, ("auto", "none")), "auto"),
        "trained corrections: auto (those that ship for the model and rule), none, or an adapter folder",
        label="Trained corrections (adapters)",
        info="None: the drift line rises, and the text breaks sooner.",
    ),
    Setting(
        *("max_new_tokens", RUN, Whole(1, MAX_NEW_TOKENS), 128),
        "the most tokens that a lane writes",
        label="New tokens, at most",
        info="Longer answers, and longer charts.",
        main=True,
        words="{} new tokens",
    ),
    Setting(
        *("temperature", RUN, Number(0, 100), 0.0),
        "of sampling; 0 is greedy",
        label="Temperature",
        info="0: always the likeliest word. Higher: other answers, in every lane alike.",
        row="sampling",
        words="temperature {}",
    ),
    Setting(
        *("top_p", RUN, Number(0, 1, above=True), 1.0),
        "share of the probability that sampling draws from; 1 is all",
        label="Top-p",
        info="Lower: fewer odd words. 1 is off.",
        row="sampling",
        words="top-p {}",
    ),
    Setting(
        *("seed", RUN, Whole(0, MAX_SEED), 0),
        "of sampling, the same in each lane",
        label="Seed",
        info="Another seed draws another answer, where the temperature is above 0.",
        row="sampling",
    ),
    Setting(
        *("view", RUN, Choice(VIEWS, ("Race: each at its own pace", "Lock-step: step by step")), "race"),
        "whose turn it is: the lane whose clock is behind (race), or the same step of each (lock-step)",
        label="View",
        info="Changes the order in which the lanes compute, not what they write.",
        words="{} view",
    ),
    Setting(
        *("audit", RUN, Flag(), True),
        "compare with the full model on the same tokens: true drift, KL, agreement; outside every clock",
        label="Audit: true drift, KL, agreement (outside both clocks)",
        info="Off: the run ends sooner, and drift and quality are not shown.",
    ),
    Setting(
        *("ignore_eos", RUN, Flag(), False),
        "go on after a stop token",
        label="Go on after the model ends its text",
        info="On: every answer is as long as you ask.",
    ),
    Setting(
        *("lanes", RUN, Choice(LANES), "both"),
        "which lanes run",
    ),
    Setting(
        *("refresh_entropy", SCHEDULE, Number(0, off=True), None),
        "refresh early where the entropy of the last logits reaches so many nats",
        label="Refresh early at entropy",
        info="Nats. Lower: more early full steps where the model is unsure.",
        row="refresh",
        metavar="NATS",
        words="refresh at entropy {}",
    ),
    Setting(
        *("refresh_norm", SCHEDULE, Number(0, off=True), None),
        "refresh early where ||correction|| / ||cached state|| of the last LoRA step reaches this",
        label="… at correction",
        info="A share. Lower: more early full steps where corrections are large.",
        row="refresh",
        metavar="SHARE",
        words="refresh at norm {}",
    ),
    Setting(
        *("compare", RUN, Choice(("bare", "adapters-off", "skip", "state", "residual"), off=True), None),
        "a third lane: the same skipping alone (no corrections, no accept), its corrections off, or another rule",
    ),
    Setting(
        *("model", CALL, Text("a model", off=True), None),
        "bundled, a Hub id, a folder, or random:SHAPE",
    ),
    Setting(
        *("refresh", SCHEDULE, Choice(REFRESHES, ("the current token (paper)", "all since the last one")), "single"),
        "what a full step runs: the current token alone (single), or in one pass all tokens since the last (repair)",
        label="A full step reads",
        info="All since the last one: the drift falls to 0 at each full step, which is then wider in the race.",
        row="exact",
        words="full steps repair",
    ),
    Setting(
        *("accept", SCHEDULE, Number(0, 1), 0.0),
        "with repair: take back a token that the full model gives less than this share of its favourite's "
        "probability; 1 keeps only its own choices, 0 keeps all",
        label="Accept",
        info="Higher: more tokens are taken back. 0 keeps all, 1 gives the full model's own text.",
        row="exact",
        words="accept {}",
    ),
    Setting(
        *("head", SCHEDULE, Choice(HEADS, ("whole", "screened")), "full"),
        "at LoRA steps the head is read whole (full), or for the likeliest tokens of a preview only (screened)",
        label="Head at LoRA steps",
        info="Screened: LoRA steps get narrower in the race.",
        row="parts",
        words="screened head",
    ),
    Setting(
        *("parts", SCHEDULE, Choice(CORRECTION_PARTS), "auto"),
        "parts of the correction that run: linear is the paper's, auto takes all that the adapters have",
        label="Parts of the correction",
        info="Fewer parts: faster LoRA steps, more drift.",
        row="parts",
        words="parts {}",
    ),
    # Training draws the schedule of each batch where none is fixed.
    Setting(*("reuse", TRAINING, Choice(REUSE_RULES), "residual"), "the rule that the corrections are for"),
    Setting(*("part", TRAINING, Choice(PARTS), "block"), "the part that they are for"),
    Setting(*("kv", TRAINING, Choice(KV_RULES), "skip"), "the K/V rule that they are for"),
    Setting(*("period", TRAINING, Whole(2, MAX_PERIOD, off=True), None), "train for one period only (default: drawn)"),
    Setting(
        *("drop_ratio", TRAINING, Number(0, 1, above=True, off=True), None),
        "train for one drop ratio only (default: drawn)",
    ),
    Setting(
        *("drop_order", TRAINING, Text("layers with commas, such as 14,9,12", off=True), None),
        "layers, the cheapest to skip first (drop-order): half of the batches skip the first ones of this list",
        metavar="14,9,12",
    ),
    Setting(*("rank", TRAINING, Whole(1, 100_000), 64), "r of the corrections"),
    Setting(*("alpha", TRAINING, Number(0, 1e6), 64.0), "their scale is alpha / r"),
    # Trials found a start at 0.3 to 0.5 better than at 1.
    Setting(*("gate", TRAINING, Number(-10, 10), 0.4), "where the gate of the residual rule starts"),
    Setting(*("max_tokens", TRAINING, Whole(1, 10**15), 1_000_000), "the most tokens to train on"),
    Setting(*("length", TRAINING, Whole(16, 10**6), 256), "tokens of a window"),
    Setting(*("batch_size", TRAINING, Whole(1, 10**6), 8), "windows of a batch"),
    Setting(*("learning_rate", TRAINING, Number(0, 1, above=True), 2e-3), "the highest one, after the warm-up"),
    Setting(*("fit_batches", TRAINING, Whole(0, 10**6), 16), "batches of the regression it starts from; 0: none"),
    Setting(*("warmup", TRAINING, Number(0, 1), 0.05), "share of the steps"),
    Setting(*("seed", TRAINING, Whole(0, MAX_SEED), 0), "of windows, schedules and start"),
    Setting(
        *("refresh", TRAINING, Choice(REFRESHES), "single"),
        "the refreshes that they are for; with repair a LoRA step sees the full model's states up to its anchor",
    ),
    Setting(
        *("drop_count", TRAINING, Whole(1, 100_000, off=True), None),
        "how many first layers of drop_order two of three batches skip, and evaluation too (default: drawn)",
    ),
    Setting(*("mlp_width", TRAINING, Whole(0, 10**6), 0), "neurons of a skipped layer's mlp part; 0: none"),
    Setting(*("kept_rank", TRAINING, Whole(0, 100_000), 0), "rank of the kept part, of layers that run; 0: none"),
    Setting(*("head_rank", TRAINING, Whole(0, 100_000), 0), "rank of the screened head's preview; 0: none"),
    Setting(*("head_best", TRAINING, Whole(1, 10**7), 2048), "tokens whose logits the screened head computes exactly"),
    Setting(*("accumulate", TRAINING, Whole(1, 10**6), 1), "batches of a step, on each process"),
)


def settings_of(*owners: str) -> tuple[Setting, ...]:
    """The entries of these owners, in the table's order."""
    return tuple(setting for setting in SETTINGS if setting.of in owners)


def setting(name: str, owner: str) -> Setting:
    """One entry. Raises KeyError: there is none."""
    for found in SETTINGS:
        if (found.name, found.of) == (name, owner):
            return found
    raise KeyError(name)


class Checked:
    """The base of a frozen dataclass whose fields are entries of the table, checked by pydantic when it is made.

    Raises:
        LoraDropError: a value is not what its setting can have, or there is no such setting; in one line.
    """

    _settings: dict[str, Setting]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]  # of the other base, see `fields`

    def __init__(self, *args: Any, **values: Any):
        names = {field.name for field in dataclasses.fields(self)}
        if unknown := sorted(values.keys() - names):
            raise LoraDropError(f"unknown setting {unknown[0]!r}; the settings are {', '.join(sorted(names))}.")
        try:
            super().__init__(*args, **values)
        except ValidationError as error:
            found = error.errors()[0]
            at = found["loc"][0]  # a name, or the position of an argument
            name = at if isinstance(at, str) else dataclasses.fields(self)[at].name
            raise LoraDropError(_line(name, found, self._settings)) from None
        self.check()

    def check(self) -> None:
        """What concerns more than one setting. Raises LoraDropError."""


def fields(name: str, settings: Iterable[Setting], *first: tuple, last: Iterable[tuple] = ()) -> Any:
    """The base class of a settings object: a frozen dataclass with a field an entry, after the fields `first`.

    Args:
        first, last: (name, type) or (name, type, default) of fields that are no settings, as
            `dataclasses.make_dataclass` has them.
    """
    table = {entry.name: entry for entry in settings}
    made = dataclasses.make_dataclass(
        name,
        [*first, *((entry.name, entry.kind.annotation, entry.default) for entry in table.values()), *last],
        frozen=True,
    )
    checked = pydantic.dataclasses.dataclass(made, frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
    return type(name, (Checked, checked), {"_settings": table, "__doc__": None})


def _line(name: str, error: Any, settings: dict[str, Setting]) -> str:
    given = error["input"]
    if error["type"] == "layers":
        return f"{name} {error['ctx']['message']}."
    entry = settings.get(name)
    if entry is None:
        return f"{name}: {error['msg']}."
    # NaN is a number that lies nowhere; a text or a flag is none.
    is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
    said = entry.kind.out_of_range() if is_number else None
    return f"{name} {said}, got {given!r}." if said else f"{name} must be {entry.kind.says}; got {given!r}."
