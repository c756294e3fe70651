"""The last record of a run: each lane's figures, and what LoRA-Drop gives beside the baseline."""

from __future__ import annotations

import hashlib
from typing import Any

from lora_drop.decode import Lane
from lora_drop.method.cost import speed_bound
from lora_drop.models.load import LoadedModel
from lora_drop.run.records import BASELINE, LORA_DROP, THIRD, TOGETHER, Summary
from lora_drop.run.request import Plan
from lora_drop.run.trace import Trace, first_divergence, refresh_counts, top1_agreement


def summarise(loaded: LoadedModel, trace: Trace, lanes: dict[str, Lane], checked: Plan, stopped: bool) -> Summary:
    """The last record of a run: each lane's figures, and what LoRA-Drop gives beside the baseline.

    A third lane has the same comparison with the baseline among its own figures.
    """
    nothing = dict.fromkeys(TOGETHER)
    beside = {name: _beside(loaded, trace, lanes, checked, name) for name in lanes if name != BASELINE}
    figures: dict[str, Any] = {
        name: {
            "tokens": len(trace.steps[name]),
            "tokens_per_second": lane.tokens_per_second and round(lane.tokens_per_second, 3),
            "prefill_ms": round(lane.prefill_ms, 3),
            "decode_ms": round(lane.decode_ms, 3),
            "kv_bytes": lane.state.kv.nbytes,
            "kv_allocated_bytes": lane.state.kv.allocated_bytes,
            **refresh_counts(trace, name),
            **(beside[name] if name == THIRD else {}),
            "text_sha256": hashlib.sha256(trace.text(name).encode("utf-8", "surrogatepass")).hexdigest(),
            "ended": lane.ended or ("stopped" if stopped else "length"),
        }
        for name, lane in lanes.items()
    }
    return Summary(lanes=figures, **beside.get(LORA_DROP, nothing))


def _beside(loaded: LoadedModel, trace: Trace, lanes: dict[str, Lane], checked: Plan, name: str) -> dict[str, Any]:
    """A lane beside the baseline: None where there is none, or nothing was decoded."""
    one, two, lane = lanes.get(BASELINE), lanes[name], checked.lanes[name]
    steps = trace.steps[name]
    speedup = saved = None
    if one and one.tokens_per_second and two.tokens_per_second:
        speedup = round(two.tokens_per_second / one.tokens_per_second, 4)
    if one and steps and trace.steps[BASELINE]:
        shorter = min(len(steps), len(trace.steps[BASELINE])) - 1
        saved = round(1 - steps[shorter].kv_bytes / trace.steps[BASELINE][shorter].kv_bytes, 6)
    refreshes = [step.step for step in steps[1:] if step.kind == "refresh"]
    corrected = lane.bank.a if lane.bank else None
    prompt_tokens = len(checked.prompt_ids)
    bound = speed_bound(loaded.shape, lane.schedule, two.decode_steps, prompt_tokens, lane.rank, corrected, refreshes)
    return {
        "speedup": speedup,
        "bound": round(bound, 4),
        "kv_saved": saved,
        "first_divergence": first_divergence(trace.token_ids(BASELINE), trace.token_ids(name)) if one else None,
        "top1_agreement": top1_agreement(trace, name),
    }
