"""Runs that tests look at, of a model and of none."""

from __future__ import annotations

from lora_drop.method.config import LoraDropConfig
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import AuditRecord, Header, StepRecord, Summary
from lora_drop.run.trace.trace import Trace, gather
from lora_drop.ui.facts import model_facts
from tests.support.page import HOSTILE

# A random model's drafts are kept now and then, also such that the full model would not write itself.
JUDGED = LoraDropConfig(period=4, layers=(1, 4), drop_ratio=1.0, refresh="repair", kv="write", accept=0.6)


def taken_back(loaded, tokens: int = 40) -> Trace:
    """A run in which tokens are taken back, and the last drafts judged."""
    return gather(run(loaded, Request("Why?", JUDGED, tokens, ignore_eos=True)))


def hostile_run(loaded):
    """A hand-made run whose every text tries to be code."""
    shape, config = model_facts(loaded)["shape"], LoraDropConfig(period=2, drop_layers=(2, 3)).to_dict()
    lanes = [
        {"id": "baseline", "label": HOSTILE, "config": {**config, "period": 1, "dropped": [], "rank": 0}},
        {"id": "lora_drop", "label": "LoRA-Drop", "config": {**config, "dropped": [2, 3], "rank": 0}},
    ]
    model = {"id": HOSTILE, "layers": shape["num_layers"], "dtype": "float32", "kv_bytes_per_token": 64}
    sampling = {"max_new_tokens": 9, "notes": [HOSTILE]}
    yield Header(lanes, model, {"name": HOSTILE, "type": "cpu"}, HOSTILE, 3, 0, sampling, {})
    texts = [HOSTILE, "</script><script>alert(3)</script>", "\ud800", "{{this}}", "\x00\u2028", "](javascript:x)", "Z"]
    for step, text in enumerate(texts):
        for lane in ("baseline", "lora_drop"):
            kind = "prefill" if step == 0 else "refresh" if lane == "baseline" or step % 2 == 0 else "lora"
            yield StepRecord(lane, step, step, text, kind, [1] * shape["num_layers"], 1.0, 64 * (step + 1), None)
        if step:
            yield AuditRecord("lora_drop", step, [0.1, None], [0.9, None], None, False, HOSTILE)
    lane = {"tokens": 7, "tokens_per_second": 5.0, "prefill_ms": 1.0, "kv_bytes": 1, "ended": "length"}
    yield Summary({"baseline": lane, "lora_drop": lane}, 1.0, 1.1, 0.1, None, 0.0)
