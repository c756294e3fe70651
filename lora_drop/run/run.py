"""One request, start to end: a prompt and settings in, the records of its trace out.

This is where text, lanes, audit and trace meet; the command line and the page are both thin over `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from lora_drop.decode import Lane, StepResult
from lora_drop.errors import LoraDropError, is_out_of_memory
from lora_drop.models.load import LoadedModel
from lora_drop.models.tokens import Detokenizer, piece
from lora_drop.run.audit import Audit
from lora_drop.run.header import make_header
from lora_drop.run.lanes import make_lanes
from lora_drop.run.race import take_turns
from lora_drop.run.records import BASELINE, AuditRecord, Record, StepRecord, number
from lora_drop.run.request import Request, plan
from lora_drop.run.summary import summarise
from lora_drop.run.trace import Trace


def run(
    loaded: LoadedModel, request: Request, should_stop: Callable[[], bool] = lambda: False
) -> Generator[Record, None, None]:
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
    lanes.update(make_lanes(loaded, request, checked, decoder))
    header = make_header(loaded, request, checked, decoder)
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
