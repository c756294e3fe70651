"""One request, start to end: a prompt and settings in, the records of its trace out.

This is where text, lanes, audit and trace meet; the command line and the page are both thin over `run`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lora_drop.adapters import CONFIG_NAME, WEIGHTS_NAME, AdapterBank
from lora_drop.audit import Audit
from lora_drop.config import COMPARISONS, PARTS, REUSE_RULES, LoraDropConfig
from lora_drop.decoder import Decoder
from lora_drop.engine import Lane, Sampling, Step
from lora_drop.errors import LoraDropError, is_out_of_memory
from lora_drop.models import LoadedModel, Outline, encode_prompt, free_memory
from lora_drop.race import VIEWS, take_turns
from lora_drop.schedule import Schedule, baseline_schedule, kv_bytes, speed_bound
from lora_drop.text import Detokenizer, piece
from lora_drop.trace import AuditRecord, Header, Record, StepRecord, Summary, Trace, first_divergence, number, pace
from lora_drop.trace import top1_agreement as agreement

BASELINE, LORA_DROP, THIRD = "baseline", "lora_drop", "third"
LANE_CHOICES = ("both", "baseline", "lora-drop")
SHIPPED_ADAPTERS = Path(__file__).resolve().parent.parent / "assets" / "adapters"
MAX_NEW_TOKENS = 100_000


@dataclass(frozen=True)
class Request:
    """What one run is asked to do; the names are the command line's.

    Args:
        compare: of `COMPARISONS`, what a third lane changes; None runs without one.

    Raises:
        LoraDropError: a value is outside what it may be, on any model.
    """

    prompt: str
    config: LoraDropConfig = field(default_factory=LoraDropConfig)
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    view: str = "race"
    audit: bool = True
    ignore_eos: bool = False
    lanes: str = "both"
    compare: str | None = None

    def __post_init__(self):
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise LoraDropError("the prompt is empty: write a question or an instruction.")
        if not _is_int(self.max_new_tokens) or not 1 <= self.max_new_tokens <= MAX_NEW_TOKENS:
            raise LoraDropError(
                f"max_new_tokens must be a whole number from 1 to {MAX_NEW_TOKENS:,}, got {self.max_new_tokens!r}."
            )
        if not _is_number(self.temperature) or not 0 <= self.temperature <= 100:
            raise LoraDropError(f"temperature must be 0 (greedy) or more, up to 100; got {self.temperature!r}.")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise LoraDropError(f"top_p must be above 0 and at most 1, got {self.top_p!r}.")
        if not _is_int(self.seed) or not 0 <= self.seed < 2**63:
            raise LoraDropError(f"seed must be a whole number from 0 to 2^63 - 1, got {self.seed!r}.")
        if self.view not in VIEWS:
            raise LoraDropError(f"view must be one of {', '.join(VIEWS)}; got {self.view!r}.")
        if self.lanes not in LANE_CHOICES:
            raise LoraDropError(f"lanes must be one of {', '.join(LANE_CHOICES)}; got {self.lanes!r}.")
        if self.compare is not None and self.compare not in tuple(COMPARISONS):  # it may be what no dict can look up
            raise LoraDropError(f"compare must be one of {', '.join(COMPARISONS)}; got {self.compare!r}.")
        if self.compare is not None and self.lanes != "both":
            raise LoraDropError("compare adds a third lane to both others: leave lanes at both.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class LanePlan:
    """What one lane of a run does."""

    label: str
    config: LoraDropConfig
    schedule: Schedule
    bank: AdapterBank | None = None

    @property
    def rank(self) -> int:
        """Of its corrections; 0 without."""
        return self.bank.rank if self.bank else 0


@dataclass(frozen=True)
class Plan:
    """A request that was checked against a model: nothing after this is the user's mistake."""

    lanes: dict[str, LanePlan]
    prompt_ids: list[int]
    notes: list[str]


def plan(loaded: LoadedModel | Outline, request: Request) -> Plan:
    """Check a request against the model, before anything runs.

    Raises:
        LoraDropError: the range, the adapters or the prompt's length do not fit the model, or the caches its memory.
    """
    lanes, notes = {}, []
    if request.lanes != "lora-drop":
        config = LoraDropConfig(period=1, drop_layers=(), adapters="none")
        lanes[BASELINE] = LanePlan("Baseline: every layer, every token", config, baseline_schedule(loaded.num_layers))
    wanted = [] if request.lanes == "baseline" else [(LORA_DROP, "LoRA-Drop", request.config)]
    if request.compare is not None:
        comparison = COMPARISONS[request.compare]
        wanted.append((THIRD, comparison.lane, comparison.applied_to(request.config)))
    request.config.schedule_for(loaded.num_layers)  # also where it does not run, its mistakes are told
    for name, label, config in wanted:
        schedule = config.schedule_for(loaded.num_layers)
        bank, said = find_bank(loaded, config, schedule)
        main = lanes.get(LORA_DROP)
        if main and (schedule.is_baseline or (schedule, bank is None) == (main.schedule, main.bank is None)):
            notes.append(f"no third lane: with these settings {label!r} would be LoRA-Drop's lane again.")
            continue
        lanes[name] = LanePlan(label, config, schedule, bank)
        notes += said if name == LORA_DROP else [f"{label}: {note}" for note in said]
    prompt_ids = encode_prompt(loaded.tokenizer, request.prompt)
    if len(prompt_ids) + request.max_new_tokens > loaded.context:
        room = loaded.context - len(prompt_ids)
        advice = f"ask for at most {room} new tokens" if room > 0 else "shorten the prompt"
        raise LoraDropError(
            f"the prompt has {len(prompt_ids)} tokens and {request.max_new_tokens} more were asked for, but "
            f"{loaded.id} has a context of {loaded.context}: {advice}."
        )
    _check_memory(loaded, request, lanes, len(prompt_ids))
    return Plan(lanes, prompt_ids, notes)


def _check_memory(
    loaded: LoadedModel | Outline, request: Request, lanes: dict[str, LanePlan], prompt_tokens: int
) -> None:
    """Refuse what the caches alone cannot hold, before anything runs."""

    def size(schedule: Schedule) -> int:
        return kv_bytes(loaded.shape, schedule, prompt_tokens, request.max_new_tokens - 1, loaded.dtype.itemsize)

    needed = sum(size(lane.schedule) for lane in lanes.values())
    if request.audit:
        needed += len(lanes.keys() - {BASELINE}) * size(baseline_schedule(loaded.num_layers))
    free = free_memory(loaded.device)
    if free is not None and needed > free:
        raise LoraDropError(
            f"{prompt_tokens} + {request.max_new_tokens} tokens need {needed / 1e9:.1f} GB for the KV caches, and "
            f"{loaded.device} has {free / 1e9:.1f} GB free: ask for fewer tokens, fewer lanes, or no audit."
        )


def find_bank(
    loaded: LoadedModel | Outline, config: LoraDropConfig, schedule: Schedule
) -> tuple[AdapterBank | None, list[str]]:
    """The adapters that a config names, on the model's device, and what there is to say about them.

    `auto` takes the shipped bank trained for this model and these rules, if there is one.

    Raises:
        LoraDropError: a named folder cannot be read or does not fit.
    """
    bank, notes = _named_bank(loaded, config, schedule)
    if schedule.is_adaptive and schedule.refresh_norm is not None and bank is None:
        notes.append("refresh_norm never fires here: without adapters there is no correction to measure.")
    return bank, notes


def _named_bank(
    loaded: LoadedModel | Outline, config: LoraDropConfig, schedule: Schedule
) -> tuple[AdapterBank | None, list[str]]:
    folder = bank_folder(loaded, config, schedule)
    if folder is None:
        if config.adapters == "none" or schedule.is_baseline:
            return None, []
        return None, [
            f"no trained adapters are shipped for {loaded.id} with reuse {schedule.reuse}, part {schedule.part}: "
            "this is the untrained rule."
        ]
    bank = AdapterBank.load(folder)
    warning = bank.check(
        num_layers=loaded.num_layers,
        hidden_size=loaded.shape.hidden_size,
        revision=loaded.revision,
        reuse=schedule.reuse,
        part=schedule.part,
        name=folder.name,
    )
    notes = [warning] if warning else []
    if bank.kv != schedule.kv:
        notes.append(f"adapters {folder.name} were trained for kv {bank.kv}, this run has kv {schedule.kv}.")
    if bare := [i for i in schedule.dropped if i not in bank.a]:
        notes.append(f"adapters {folder.name} have no correction for layers {', '.join(map(str, bare))}.")
    if schedule.is_baseline or len(bare) == len(schedule.dropped):
        return None, notes
    return bank.to(loaded.device, loaded.dtype), notes


def bank_folder(loaded: LoadedModel | Outline, config: LoraDropConfig, schedule: Schedule) -> Path | None:
    """The adapter folder that a config takes on a model; None if it takes none.

    Raises:
        LoraDropError: see `shipped_bank`.
    """
    if config.adapters == "none" or (config.adapters == "auto" and schedule.is_baseline):
        return None
    if config.adapters == "auto":
        return shipped_bank(loaded.revision, schedule.reuse, schedule.part)
    return Path(config.adapters)


def shipped_bank(revision: str, reuse: str, part: str) -> Path | None:
    """The folder of the bank that `auto` takes for these weights and rules, from the folders' configs alone.

    Raises:
        LoraDropError: a shipped folder's config is broken.
    """
    wanted = {"revision": revision, "reuse": reuse, "part": part}
    for path in sorted(SHIPPED_ADAPTERS.glob(f"*/{CONFIG_NAME}")):
        if wanted.items() <= _bank_config(path.parent).items():
            return path.parent
    return None


def _bank_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError
    except (OSError, ValueError, RecursionError):
        raise LoraDropError(f"the adapters in {folder.name} are broken: {CONFIG_NAME} cannot be read.") from None
    return config


def bank_facts(revision: str) -> dict[str, dict[str, Any]]:
    """What `auto` takes on these weights: `{"residual/block": {"name", "rank", "corrected", "tokens"}, ...}`.

    A rule and part without a shipped bank has no entry. `corrected` are the layers that have a correction, `tokens`
    those that it was trained on (None if the bank does not say).

    Raises:
        LoraDropError: see `shipped_bank`.
    """
    facts = {}
    for reuse in REUSE_RULES:
        for part in PARTS:
            if folder := shipped_bank(revision, reuse, part):
                config = _bank_config(folder)
                facts[f"{reuse}/{part}"] = {
                    "name": folder.name,
                    "rank": config.get("r", 0),
                    "corrected": config.get("layers", []),
                    "tokens": config.get("tokens"),
                }
    return facts


def bank_fingerprint(folder: Path) -> str:
    """16 hex digits of a bank's files."""
    digest = hashlib.sha256()
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def config_fingerprint(loaded: LoadedModel | Outline, config: LoraDropConfig) -> str | None:
    """The fingerprint of the bank that a config takes on a model; None if it takes none.

    Raises:
        LoraDropError: the settings do not fit the model, or see `shipped_bank`.
    """
    folder = bank_folder(loaded, config, config.schedule_for(loaded.num_layers))
    return folder and bank_fingerprint(folder)


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
    decoder = loaded.decoder
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


def _step_record(lane: str, step: Step, text: str) -> StepRecord:
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
            "max_new_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "ignore_eos": request.ignore_eos,
            "view": request.view,
            "audit": request.audit,
            "compare": request.compare,
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
                **pace(trace, name),
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


def describe_device(device: torch.device) -> dict[str, Any]:
    """The device by type and name, for headers and reports."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device)}
    return {
        "type": device.type,
        "name": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "gomp_spincount": os.environ.get("GOMP_SPINCOUNT", "default"),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            for line in info:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
