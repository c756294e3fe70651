"""One request, start to end: a prompt and settings in, the records of its trace out.

This is where text, lanes, audit and trace meet; the command line and the page are both thin over `run`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import torch

from lora_drop.decode import Decoder, Lane, Sampling, StepResult
from lora_drop.errors import LoraDropError, is_out_of_memory
from lora_drop.method.cost import speed_bound
from lora_drop.method.settings import RUN, settings_of
from lora_drop.models.load import LoadedModel
from lora_drop.models.place import describe_device
from lora_drop.models.tokens import Detokenizer, piece
from lora_drop.run.audit import Audit
from lora_drop.run.race import take_turns
from lora_drop.run.records import AuditRecord, Header, Record, StepRecord, Summary, number
from lora_drop.run.request import BASELINE, LORA_DROP, THIRD, Plan, Request, plan
from lora_drop.run.trace import Trace, first_divergence, refresh_counts
from lora_drop.run.trace import top1_agreement as agreement

# Settings that a header has elsewhere: `seed` beside the prompt, `lanes` as its list of lanes.
TOLD_ELSEWHERE = ("seed", "lanes")


def run(loaded: LoadedModel, request: Request, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Record]:
    """Generate in each lane, a step at a time, and yield the records of the trace as they happen.

    The header comes first and the summary last. A run that `should_stop` ends keeps what it has: the audit of the
    steps that ran, and a summary. Closing the iterator releases everything; nothing of a run lives elsewhere.

    Args:
        should_stop: asked after each step.

    Raises:
        LoraDropError: before the first record, if the request does not fit the model; later, if memory runs out or
            a step's logits are not finite.
    """
    lanes: dict[str, Lane] = {}
    try:
        yield from _records(loaded, request, should_stop, lanes)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        held = sum(lane.state.kv.allocated_bytes for lane in lanes.values())
        raise LoraDropError(
            f"{loaded.device} ran out of memory with {held / 1e9:.1f} GB in the KV caches: ask for fewer tokens, "
            "shorten the prompt, or take fewer lanes, no audit or a smaller model."
        ) from None


def _records(
    loaded: LoadedModel, request: Request, should_stop: Callable[[], bool], lanes: dict[str, Lane]
) -> Iterator[Record]:
    """The records of `run`; puts the lanes that it makes into `lanes`."""
    checked = plan(loaded, request)
    decoder = loaded.new_decoder()
    lanes.update(_lanes(loaded, request, checked, decoder))
    header = _header(loaded, request, checked, decoder)
    trace = Trace(header)
    yield header
    detokenizers = {name: Detokenizer(loaded.tokenizer) for name in lanes}
    audits: dict[str, Audit] = {}

    def audited(name: str, found: list[dict]) -> Iterator[AuditRecord]:
        for values in found:
            record = AuditRecord(name, argmax_text=piece(loaded.tokenizer, values.pop("argmax")), **values)
            trace.add(record)
            yield record

    stopped = False
    for name, step in take_turns(lanes, request.view):
        record = _step_record(name, step, detokenizers[name].add(step.token_id))
        trace.add(record)
        yield record
        if name != BASELINE and request.audit:
            if name in audits:
                yield from audited(name, audits[name].add(step))
            else:
                dropped = checked.lanes[name].schedule.dropped
                kv, prompt_tokens = lanes[name].state.kv, len(checked.prompt_ids)
                audits[name] = Audit(decoder, dropped, kv, prompt_tokens, step.token_id)
        if should_stop():
            stopped = True
            break
    for name, audit in audits.items():
        yield from audited(name, audit.flush())
    yield summarise(loaded, trace, lanes, checked, stopped)


def _lanes(loaded: LoadedModel, request: Request, checked: Plan, decoder: Decoder) -> dict[str, Lane]:
    return {
        name: Lane(
            decoder,
            torch.tensor([checked.prompt_ids], device=loaded.device),
            lane.schedule,
            lane.bank,
            Sampling(request.temperature, request.top_p, request.seed),
            request.max_new_tokens,
            frozenset() if request.ignore_eos else loaded.stop_ids,
            watch=request.audit and name != BASELINE,
        )
        for name, lane in checked.lanes.items()
    }


def _step_record(lane: str, step: StepResult, text: str) -> StepRecord:
    return StepRecord(
        lane=lane,
        step=step.step,
        token_id=step.token_id,
        text=text,
        kind=step.kind,
        active=step.active,
        ms=round(step.ms, 3),
        kv_bytes=step.kv_bytes,
        entropy=number(step.entropy, 4),
        trigger=step.trigger,
    )


def _header(loaded: LoadedModel, request: Request, checked: Plan, decoder: Decoder) -> Header:
    shape = loaded.shape
    return Header(
        lanes=[
            {
                "id": name,
                "label": lane.label,
                "config": {
                    **lane.config.to_dict(),
                    # The name alone: a trace is for showing around, and the path is nobody's business.
                    "adapters": Path(lane.config.adapters).name,
                    "dropped": list(lane.schedule.dropped),
                    "rank": lane.rank,
                    "corrected": lane.bank.layers if lane.bank else [],
                },
            }
            for name, lane in checked.lanes.items()
        ],
        model={
            "id": loaded.id,
            "revision": loaded.revision,
            "layers": loaded.num_layers,
            "hidden_size": shape.hidden_size,
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "params": shape.params,
            "kv_bytes_per_token": shape.kv_per_token * loaded.dtype.itemsize,
            "shape": dataclasses.asdict(shape),
        },
        device=describe_device(loaded.device) | {"decoder": decoder.name},
        prompt=request.prompt,
        prompt_tokens=len(checked.prompt_ids),
        seed=request.seed,
        sampling={
            **{one.name: getattr(request, one.name) for one in settings_of(RUN) if one.name not in TOLD_ELSEWHERE},
            "notes": checked.notes,
        },
        software={name: metadata.version(name) for name in ("torch", "transformers")}
        | {"python": platform.python_version()},
    )


def summarise(loaded: LoadedModel, trace: Trace, lanes: dict[str, Lane], checked: Plan, stopped: bool) -> Summary:
    """The last record of a run: each lane's figures, and what LoRA-Drop gives beside the baseline.

    A third lane has the same comparison with the baseline among its own figures.
    """
    nothing = dict.fromkeys(("speedup", "bound", "kv_saved", "first_divergence", "top1_agreement"))
    beside = {name: _beside(loaded, trace, lanes, checked, name) for name in lanes if name != BASELINE}
    return Summary(
        lanes={
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
        },
        **beside.get(LORA_DROP, nothing),
    )


def _beside(
    loaded: LoadedModel, trace: Trace, lanes: dict[str, Lane], checked: Plan, name: str
) -> dict[str, float | int | None]:
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
        "top1_agreement": agreement(trace, name),
    }
