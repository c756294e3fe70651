"""The facts of a verdict: every figure that its sentences may name, None where the run has none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lora_drop.method.quality import Reads
from lora_drop.method.schedule import Head, Part
from lora_drop.run.report.speed import Speed
from lora_drop.run.trace.records import PresetFigures

Kind = Literal["stopped", "nothing_skipped", "lossless", "collapsed", "compared"]


@dataclass(frozen=True, kw_only=True)
class TextFacts:
    """What a lane's text is beside the baseline's. Words are counted from 0.

    Attributes:
        words: `Alignment.counts`.
        first_token: the first one that differs.
        quality_loss: regret of the lane's text, in nats per token (`LaneReport.loss`).
        loss_of: whose text `quality_loss` is of.
        reads: how the text reads.
        refuses: the lane refuses to answer, and the full model does not.
        collapsed_word: where the loop begins in which the text ends.
        absurd_word: it has the first token that the full model finds absurd.
    """

    words: dict[str, int | None] | None
    first_token: int | None
    quality_loss: float | None
    loss_of: Literal["own"] | None
    reads: Reads | None
    refuses: bool
    collapsed_word: int | None
    absurd_word: int | None

    @property
    def first_word(self) -> int | None:
        """The first word that differs; None where the words are the same, or nothing is beside them."""
        return self.words["first"] if self.words else None


@dataclass(frozen=True, kw_only=True)
class ThirdFacts(TextFacts):
    """The facts of a third lane.

    Attributes:
        is_bare: it has LoRA-Drop's rule, and no corrections.
        is_uncorrected: nothing else differs.
        accepted: share of its drafts that the full model accepts.
        breaks_after: the words before its loop or its first absurd word.
        how: which of the two comes first.
    """

    lane: str
    label: str
    is_bare: bool
    is_uncorrected: bool
    accepted: float | None
    breaks_after: int | None
    how: Literal["loop", "absurd"] | None


@dataclass(frozen=True, kw_only=True)
class SpeedFacts:
    """How fast the run was.

    Attributes:
        speed: what the speedup says; `short` if the run was too short to say, `reference` of that decoder.
        no_kernels: why the speed is not shown where torch decodes on a CPU: the trace's `kernels_missing`.
        speedup_interval: 95%, [low, high].
        by_chance: the speedup is beyond its bound.
        preset_figures: what was measured of the preset before the run.
    """

    speed: Speed | Literal["short", "reference"] | None
    no_kernels: str | None
    speedup: float | None
    speedup_interval: list[float] | None
    bound: float | None
    by_chance: bool
    preset_figures: PresetFigures | None
    kv_saved: float | None

    @property
    def quiet_speedup(self) -> float | None:
        """The preset's speedup on this machine when it was quiet."""
        return self.preset_figures.get("speedup") if self.preset_figures else None


@dataclass(frozen=True, kw_only=True)
class Facts(TextFacts, SpeedFacts):
    """All facts of a run; those of a text are the lane's that the run is about.

    Attributes:
        lane: its id.
        tokens: of each lane.
        stopped: why the run has no end: it was stopped, or its file is cut short.
        nothing: why nothing was skipped: the period, no layer chosen, only the head screened, or no LoRA step.
        corrections: None where they ran, else off by request or missing.
        skipped_share: `LaneReport.skipped_share`.
        accepted: share of the drafts that the full model accepted.
        accepted_without: the same without corrections.
        accepted_in_its_kind: their group and this share, measured in answers that repeat themselves as much.
        baseline_collapsed_word: where the loop of the full model's text begins.
    """

    lane: str
    tokens: dict[str, int]
    stopped: Literal["stopped", "cut"] | None
    nothing: Literal["period", "layers", "head", "steps"] | None
    part: Part
    accept: float
    head: Head
    corrections: Literal["off", "missing"] | None
    skipped_share: float | None
    accepted: float | None
    accepted_without: float | None
    accepted_in_its_kind: tuple[str, float] | None
    baseline_collapsed_word: int | None
    third: ThirdFacts | None


def memory_words(saved: float | None) -> str | None:
    """The share of the K/V memory that a run saved, in words; None where it is about 0, or not known."""
    if saved is None or abs(saved) < 0.01:
        return None
    return f"{saved:.0%} of the K/V memory saved" if saved > 0 else f"{-saved:.0%} more K/V memory"


def notes(kind: Kind, facts: Facts) -> Iterator[str]:
    """Sentences beside the figures, in the verdict's text and in its line."""
    if kind != "stopped" and facts.baseline_collapsed_word is not None:
        yield f"The full model's own answer goes in circles from word {facts.baseline_collapsed_word + 1} on."
    if kind in ("collapsed", "compared") and facts.corrections == "missing":
        yield "There are no trained corrections for these settings: this is plain skipping."
    elif kind in ("collapsed", "compared") and facts.corrections == "off":
        yield "Corrections are off."
    if kind == "collapsed":
        yield "Skip fewer layers, or shorten the period."
