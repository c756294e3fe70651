"""The last record of a run: each lane's figures, and what LoRA-Drop gives beside the baseline."""

from __future__ import annotations

import hashlib
from typing import Any

from lora_drop.decode.lane import Lane
from lora_drop.method.collapse import collapse_at
from lora_drop.models.load import LoadedModel
from lora_drop.run.report.figures import bytes_read
from lora_drop.run.report.report import with_told
from lora_drop.run.report.speed import cycles, makes_claims, speedup_interval, speedup_of
from lora_drop.run.trace.records import BASELINE, FREE, LORA_DROP, THIRD, TOGETHER, Summary
from lora_drop.run.trace.trace import Trace, first_divergence, quality_of, refresh_counts


def summarise(
    loaded: LoadedModel, trace: Trace, lanes: dict[str, Lane], stopped: bool, prefill_cached: bool = False
) -> Summary:
    """The last record of a run: each lane's figures, and what LoRA-Drop gives beside the baseline.

    A third lane has the same comparison with the baseline among its own figures.
    """
    nothing: dict[str, Any] = dict.fromkeys((*TOGETHER, *FREE))
    beside = {name: _beside(loaded, trace, lanes, name) for name in lanes if name != BASELINE}
    figures: dict[str, Any] = {
        name: {
            "tokens": len(trace.steps[name]),
            "tokens_per_second": lane.tokens_per_second and round(lane.tokens_per_second, 3),
            "prefill_ms": round(lane.prefill_ms, 3),
            "decode_ms": round(lane.decode_ms, 3),
            "kv_bytes": lane.kv_bytes,
            "kv_allocated_bytes": lane.state.kv.allocated_bytes,
            **refresh_counts(trace, name),
            **(beside[name] if name == THIRD else {}),
            "collapsed": collapse_at(_without_end(trace.token_ids(name), loaded)),
            "text_sha256": hashlib.sha256(trace.text(name).encode("utf-8", "surrogatepass")).hexdigest(),
            "ended": lane.ended or ("stopped" if stopped else "length"),
        }
        for name, lane in lanes.items()
    }
    main = beside.get(LORA_DROP, nothing)
    return with_told(trace, Summary(lanes=figures, **main, prefill_cached=prefill_cached))


def _without_end(token_ids: list[int], loaded: LoadedModel) -> list[int]:
    """The tokens of a text, without a stop token at its end."""
    return token_ids[:-1] if token_ids and token_ids[-1] in loaded.stop_ids else token_ids


def _beside(loaded: LoadedModel, trace: Trace, lanes: dict[str, Lane], name: str) -> dict[str, Any]:
    """A lane beside the baseline: None where there is none, or nothing was decoded."""
    one, two = lanes.get(BASELINE), lanes[name]
    steps = trace.steps[name]
    speedup = saved = interval = None
    if one and makes_claims(trace.header):
        lanes_cycles = cycles(trace.passes[BASELINE]), cycles(trace.passes[name])
        speedup, interval = speedup_of(*lanes_cycles), speedup_interval(*lanes_cycles)
    if one and steps and trace.steps[BASELINE]:
        shorter = min(len(steps), len(trace.steps[BASELINE])) - 1
        saved = round(1 - steps[shorter].kv_bytes / trace.steps[BASELINE][shorter].kv_bytes, 6)
    quality = quality_of(trace.quality[name].values())
    refreshes = refresh_counts(trace, name)["refreshes"]
    bound = bytes_read(trace, name, loaded.shape).bound
    return {
        "speedup": speedup and round(speedup, 4),
        "bound": round(bound or 1.0, 4),
        "kv_saved": saved,
        "first_divergence": first_divergence(trace.token_ids(BASELINE), trace.token_ids(name)) if one else None,
        "top1_agreement": quality and quality["lora_steps"]["top1_agreement"],
        "accepted": round(two.accepted / two.drafts, 6) if two.drafts else None,
        "tokens_per_refresh": round(two.decode_steps / refreshes, 4) if refreshes else None,
        "speedup_interval": interval,
        "quality": quality,
    }
