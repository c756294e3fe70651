"""One request, start to end: a prompt and settings in, the records of its trace out.

This is where text, lanes, audit and trace meet; the command line and the page are both thin over `run`.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Generator, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_drop.adapters.find import config_fingerprint
from lora_drop.adapters.hub import hub_name
from lora_drop.decode.lane import Lane, LaneEvent
from lora_drop.decode.native.loader import why_missing
from lora_drop.decode.reference import Decoder
from lora_drop.decode.sampling import Sampling
from lora_drop.decode.step import Prefilled, Rewind, Stopped, Verified
from lora_drop.errors import LoraDropError, is_out_of_memory
from lora_drop.method.fields import RUN
from lora_drop.method.methods import LISTS
from lora_drop.method.settings import settings_of
from lora_drop.models.load import LoadedModel
from lora_drop.models.place import describe_device
from lora_drop.models.tokens import Detokenizer, Thoughts, piece
from lora_drop.run.audit import DriftAudit, QualityAudit, top_of, top_words
from lora_drop.run.prompts import PromptCache
from lora_drop.run.race import owned, take_turns
from lora_drop.run.report.report import Report
from lora_drop.run.report.speed import lacks_kernels
from lora_drop.run.request import Plan, Request, plan
from lora_drop.run.results.preset_results import preset_figures
from lora_drop.run.summary import summarise
from lora_drop.run.trace.records import (
    BASELINE,
    TOP,
    AuditRecord,
    Header,
    JudgeRecord,
    Record,
    RewindRecord,
    StepRecord,
    number,
)

# Settings that a header has elsewhere: `seed` beside the prompt, `lanes` as its list of lanes.
ELSEWHERE = ("seed", "lanes")
COPIED = ("step", "token_id", "kind", "active", "kv_bytes", "trigger", "rows")  # of a step's result, into its record
NOT_PREPARED = (
    "this server prepared its GPU for the presets, and not for these settings: all lanes run without graphs, slower."
)


def run(
    loaded: LoadedModel,
    request: Request,
    should_stop: Callable[[], bool] = lambda: False,
    prompts: PromptCache | None = None,
    checked: Plan | None = None,
) -> Generator[Record, None, None]:
    """Generate in each lane, one step at a time, and yield the records of the trace as they happen.

    The header comes first and the summary last. The prompt is read once, for all lanes and audits. A run that
    `should_stop` ends keeps what it has: the audit of the steps that ran, and a summary. Closing the iterator releases
    everything; of a run only the prompt lives elsewhere, in `prompts`.

    Args:
        should_stop: asked after each step, and between the parts of a long prompt.
        prompts: the cache of prompts that were read before; this prompt goes into it.
        checked: lanes and prompt tokens in place of those that the request comes to.

    Raises:
        LoraDropError: before the first record, if the request does not fit the model; later, if memory runs out or
            a step's logits are not finite.
    """
    lanes: dict[str, Lane] = {}
    try:
        checked = checked or plan(loaded, request)
        records = _records(loaded, request, checked, should_stop, prompts or PromptCache(0), lanes)
        yield from owned(loaded.device, records)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        held = sum(lane.state.kv.allocated_bytes for lane in lanes.values())
        raise LoraDropError(
            f"{loaded.device} ran out of memory with {held / 1e9:.1f} GB in the KV caches: ask for fewer tokens, "
            "shorten the prompt, or take fewer lanes, no audit or a smaller model."
        ) from None


def _records(
    loaded: LoadedModel,
    request: Request,
    checked: Plan,
    should_stop: Callable[[], bool],
    prompts: PromptCache,
    lanes: dict[str, Lane],
) -> Iterator[Record]:
    """The records of `run`; puts the lanes that it makes into `lanes`."""
    preferred = loaded.new_decoder()
    decoder = preferred.ready_for([(lane.schedule, lane.bank) for lane in checked.lanes.values()])
    if decoder is not preferred:
        checked = dataclasses.replace(checked, notes=[*checked.notes, NOT_PREPARED])
    report = Report(_header(loaded, request, checked, decoder))
    yield report.trace.header
    cached, tokens = prompts.get(loaded, checked.prompt_ids), torch.tensor([checked.prompt_ids], device=loaded.device)
    try:
        prompt = cached or decoder.read_prompt(tokens, should_stop)
    except Stopped:
        lanes.update(_make_lanes(loaded, request, checked, decoder, dict.fromkeys(checked.lanes, tokens)))
        yield summarise(report, lanes)
        return
    prompts.put(loaded, checked.prompt_ids, prompt)
    # Its time counts in the run that prefilled it.
    prompt = dataclasses.replace(prompt, ms=0.0) if cached else prompt
    try:
        prompts_of = {  # a lane whose skipped layers never run reads the prompt by itself
            name: decoder.read_prompt(tokens, should_stop, lane.schedule.dropped) if lane.schedule.prunes else prompt
            for name, lane in checked.lanes.items()
        }
    except Stopped:
        prompts_of = dict.fromkeys(checked.lanes, prompt)
    lanes.update(_make_lanes(loaded, request, checked, decoder, prompts_of))
    observer = _Observer(loaded, request, checked, decoder, prompt, prompts_of)
    for name, event in take_turns(lanes, request.view):
        for record in observer.records(name, event):
            report.add(record)
            yield record
        if should_stop():
            break
    for record in observer.rest():
        report.add(record)
        yield record
    yield summarise(report, lanes, cached is not None)


def _header(loaded: LoadedModel, request: Request, checked: Plan, decoder: Decoder) -> Header:
    """The header of a run on this model, with every setting resolved."""
    shape = loaded.shape
    lanes: list[Any] = []
    for name, lane in checked.lanes.items():
        sizes = dataclasses.asdict(lane.corrections(shape))
        config = {
            **lane.config.to_dict(),
            # A folder's name only: a trace is shared, and the path would tell about the machine.
            "adapters": lane.config.adapters if hub_name(lane.config.adapters) else Path(lane.config.adapters).name,
            "dropped": list(lane.schedule.dropped),
            "rank": sizes.pop("rank"),
            "corrected": list(sizes.pop("layers")),
            "extras": sizes,
            **({"bank": config_fingerprint(loaded, lane.config)} if lane.bank else {}),
            **({"prunes": True} if lane.schedule.prunes else {}),
        }
        method = {"method": lane.method} if lane.method else {}
        lanes.append({"id": name, "label": lane.label, **method, "config": config})
    # Any: these have keys that the trace's types do not name.
    model: Any = {
        "id": loaded.id,
        "revision": loaded.revision,
        "layers": loaded.num_layers,
        "hidden_size": shape.hidden_size,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "params": shape.params,
        "kv_bytes_per_token": shape.kv_per_token * loaded.dtype.itemsize,
        "shape": dataclasses.asdict(shape),
    }
    device: Any = describe_device(loaded.device) | {"decoder": decoder.name}
    device |= {"kernels": decoder.kernels} if decoder.kernels else {}
    device |= {"kernels_missing": why_missing()} if lacks_kernels(device) else {}
    sampling: Any = {
        setting.name: getattr(request, setting.name) for setting in settings_of(RUN) if setting.name not in ELSEWHERE
    }
    sampling |= {"lanes": request.lanes} if request.lanes not in LISTS else {}
    return Header(
        lanes=lanes,
        model=model,
        device=device,
        prompt=request.prompt,
        prompt_tokens=len(checked.prompt_ids),
        seed=request.seed,
        sampling=sampling | {"notes": checked.notes},
        preset_figures=preset_figures(loaded, request.config),
        software={name: metadata.version(name) for name in ("torch", "transformers")}
        | {"python": platform.python_version()},
    )


class _Observer:
    """Turns the lanes' events into records, and audits them on the way."""

    def __init__(
        self,
        loaded: LoadedModel,
        request: Request,
        checked: Plan,
        decoder: Decoder,
        prompt: Prefilled,
        prompts: dict[str, Prefilled],
    ):
        self._loaded, self._checked, self._decoder, self._prompt = loaded, checked, decoder, prompt
        self._detokenizers = {name: Detokenizer(loaded.tokenizer) for name in checked.lanes}
        self._thoughts = {name: Thoughts(loaded.tokenizer, checked.prompt_ids) for name in checked.lanes}
        self._audits = request.audit
        self._drift: dict[str, DriftAudit] = {}
        others = {name: lane for name, lane in checked.lanes.items() if name != BASELINE}
        self._quality = {
            name: QualityAudit(decoder, lane.schedule, lane.bank, prompts[name], request.max_new_tokens)
            for name, lane in others.items()
            if request.audit and BASELINE in checked.lanes
        }

    def records(self, name: str, event: LaneEvent) -> Iterator[Record]:
        """The records of a lane's event."""
        if isinstance(event, Rewind):
            self._detokenizers[name].rewind(event.to + 1)
            self._thoughts[name].rewind(event.to + 1)
            if name in self._drift:
                self._drift[name].rewind(event.to)
            yield RewindRecord(name, event.to)
        elif isinstance(event, Verified):
            outside = number(event.outside_ms, 3)
            yield JudgeRecord(name, event.rows, round(event.ms, 3), event.accepted, outside)
        else:
            copied: Any = {key: getattr(event, key) for key in COPIED}
            text = self._detokenizers[name].add(event.token_id)
            tokenizer = self._loaded.tokenizer
            top: Any = None  # of a draft without a pass
            if event.logits is not None:
                top = top_words(tokenizer, event.top) if event.top else top_of(tokenizer, event.logits)[0]
            ms, entropy, outside = round(event.ms, 3), number(event.entropy, 4), number(event.outside_ms, 3)
            copied |= {"outside": outside, "thought": self._thoughts[name].add(event.token_id)}
            yield StepRecord(name, text=text, ms=ms, entropy=entropy, top=top, **copied)
            if name == BASELINE:
                for other, audit in self._quality.items():
                    yield self._audit(other, audit.add(event), drift=[], cosine=[], audit="quality")
            elif name in self._drift:
                for audited in self._drift[name].add(event):
                    yield self._audit(name, audited)
            elif self._audits:  # the prefill
                dropped = self._checked.lanes[name].schedule.dropped
                self._drift[name] = DriftAudit(self._decoder, dropped, self._prompt, event.token_id)
                if self._checked.lanes[name].schedule.prunes:
                    yield self._audit(name, self._drift[name].first(event))

    def rest(self) -> Iterator[Record]:
        """The audits of the steps that are left."""
        for name, audit in self._drift.items():
            for audited in audit.flush():
                yield self._audit(name, audited)

    def _audit(self, name: str, audited: dict[str, Any], **more: Any) -> AuditRecord:
        text = piece(self._loaded.tokenizer, audited.pop("argmax"))
        return AuditRecord(name, argmax_text=text, **audited, **more)


def _make_lanes(
    loaded: LoadedModel,
    request: Request,
    checked: Plan,
    decoder: Decoder,
    prompts: Mapping[str, Tensor | Prefilled],
) -> dict[str, Lane]:
    """A lane for each of the plan, by its id; a lane that is audited keeps what the audit compares."""
    return {
        name: Lane(
            decoder,
            prompts[name],
            lane.schedule,
            lane.bank,
            Sampling(request.temperature, request.top_p, request.seed),
            request.max_new_tokens,
            frozenset() if request.ignore_eos else loaded.stop_ids,
            watch=request.audit and name != BASELINE,
            top=TOP,
        )
        for name, lane in checked.lanes.items()
    }
