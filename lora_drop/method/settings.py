"""THE table of settings: each has one home, and everything else is made from it.

A schedule's settings are the fields of `LoraDropConfig` (`config.py`), a run's those of `RunSettings`, training's
those of `lora_drop.training.settings.TrainSettings`. From a field follow its check, the flag of the command line, the
control of the page, the parameter of a link and of the Gradio API, the place in a trace's header, the column of a
sweep, and the row in docs/settings.md. A new setting is such a field, and the code that uses it.
"""

from __future__ import annotations

from typing import Literal

from lora_drop.method.config import LoraDropConfig
from lora_drop.method.fields import CALL, RUN, Setting, checked, setting, settings_in
from lora_drop.method.methods import RIVALS

MAX_NEW_TOKENS = 100_000
MAX_SEED = 2**63 - 1
View = Literal["race", "lock-step"]
Thinking = Literal["auto", "on", "off"]
Compare = Literal["corrections-off", "bare", "screened-head", "adapters-off", "skip", "state", "residual"]


@checked(CALL)
class CallSettings:
    """Options of the command line and the API that are no part of a config."""

    preset: str | None = setting(None, "start from named settings; other options change them", allowed="a preset")
    model: str | None = setting(
        None,
        "bundled, qwen2.5-coder-1.5b, a Hub id, a folder, a GGUF file (of the Hub: OWNER/NAME/FILE.gguf), or "
        "random:SHAPE",
        allowed="a model",
    )


@checked(RUN)
class RunSettings:
    """Settings of a run, beside those of its schedule."""

    max_new_tokens: int = setting(
        128,
        "the most tokens that a lane writes",
        between=(1, MAX_NEW_TOKENS),
        label="New tokens, at most",
        info="Longer answers, and longer charts.",
        main=True,
        words="{} new tokens",
    )
    temperature: float = setting(
        0.0,
        "temperature of sampling; 0 is greedy",
        between=(0, 100),
        label="Temperature",
        info="0: always the likeliest token. Higher: more varied answers, in every lane.",
        row="sampling",
        words="temperature {}",
    )
    top_p: float = setting(
        1.0,
        "share of the probability that sampling draws from; 1 is all of it",
        between=(0, 1),
        above=True,
        label="Top-p",
        info="Lower: fewer odd words. 1 is off.",
        row="sampling",
        words="top-p {}",
    )
    seed: int = setting(
        0,
        "random seed of sampling, the same in each lane",
        between=(0, MAX_SEED),
        label="Seed",
        info="Another seed samples another answer if the temperature is above 0.",
        row="sampling",
    )
    view: View = setting(
        "race",
        "which lane steps next: the one whose clock is behind (race), or each in turn (lock-step)",
        labels=("Race: each at its own pace", "Lock-step: step by step"),
        label="View",
        info="Changes the order in which lanes compute, not their text.",
        words="{} view",
    )
    audit: bool = setting(
        True,
        "compare with the full model on the same tokens: true drift, KL, agreement; not timed",
        label="Audit: true drift, KL, agreement (not timed)",
        info="Off: the run ends sooner, without drift and quality.",
    )
    ignore_eos: bool = setting(
        False,
        "go on after a stop token",
        label="Go on after the model ends its text",
        info="On: every answer has the full length.",
    )
    lanes: str = setting(
        "both",
        "which lanes run: both, baseline, lora-drop, or up to four methods such as "
        "full,balanced,layerskip:12,prompt-lookup",
        allowed="both, baseline, lora-drop, or methods with commas",
        public=("both", *(f"full,lora-drop,{name}" for name in RIVALS)),
        labels=("none", *(method.label.partition(":")[0] for method in RIVALS.values())),
        label="Another method beside LoRA-Drop",
        info="Adds a lane on the same clock, and a table under the race.",
    )
    compare: Compare | None = setting(
        None,
        "add a third lane: corrections-off changes nothing else, bare rejects no draft either, screened-head is the "
        "full model with that head, adapters-off turns off corrections and head, the others are reuse rules",
    )
    system: str | None = setting(
        None,
        "system message before the prompt, through the chat template",
        allowed="a text",
        label="System message",
        info="Comes before the prompt, in every lane.",
        words="with a system message",
    )
    thinking: Thinking = setting(
        "auto",
        "whether the model thinks before it answers, where its chat template has the choice; auto leaves it alone",
        labels=("as the model does by itself", "on", "off"),
        label="Thinking",
        info="For models with that choice. Thoughts are shown apart.",
        row="template",
        words="thinking {}",
    )
    plain: bool = setting(
        False,
        "no chat template: the model continues the prompt as plain text",
        label="No chat template",
        info="On: the prompt is continued, not answered.",
        row="template",
        words="no chat template",
    )


SETTINGS = (*settings_in(CallSettings), *settings_in(LoraDropConfig), *settings_in(RunSettings))
BY_NAME = {setting.name: setting for setting in SETTINGS}


def settings_of(*owners: str) -> tuple[Setting, ...]:
    """The settings of these owners (CALL, SCHEDULE, RUN), in the API's order."""
    return tuple(setting for setting in SETTINGS if setting.of in owners)
