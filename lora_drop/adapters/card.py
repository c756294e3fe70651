"""README.md of an adapter folder, which the Hub shows: the bank, its training text, its quality, and how to use it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lora_drop.adapters.hub import REPOSITORY
from lora_drop.errors import LoraDropError
from lora_drop.models.load import BUNDLED_ID

Bank = Any  # an AdapterBank, whose module imports this one
# Base models that have another name here -> (id on the Hub, licence).
BASES = {BUNDLED_ID: ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}
# Files that the shipped banks were trained on -> the dataset that they are from. Others have no id on the Hub.
DATASETS = {
    "gsm8k_train.jsonl": "openai/gsm8k",
    "c4_demo.jsonl": "allenai/c4",
    "glaive_toolcall_en_demo.json": "glaiveai/glaive-function-calling-v2",
    "self_instruct_seed_tasks.jsonl": "yizhongw/self_instruct",
}
LATER = ", made after this training from other text: the command below makes a bank without this head"


def card(bank: Bank) -> str:
    """Markdown of the card: metadata of the Hub, then `card.md` filled from the bank's config."""
    meta, base = bank.meta, _base(bank) or bank.base_model or "a model without a name"
    template = files("lora_drop.adapters").joinpath("card.md").read_text(encoding="utf-8")
    body = template.format(
        bank=bank,
        base=base,
        here=f" (`{bank.base_model}` in LoRA-Drop Studio)" if bank.base_model in BASES else "",
        layers=f"{bank.layers[0]}-{bank.layers[-1]}" if bank.layers else "none",
        training="\n".join(_training(bank)),
        quality=_quality(meta.get("quality")),
        again=f"## Make it again\n\n```\n{meta['command']}\n```\n\n" if "command" in meta else "",
    )
    return f"---\n{_metadata(bank).to_yaml()}\n---\n\n{body}"


def check_card(text: str, name: str) -> None:
    """Check a card's metadata as the Hub does, without asking it.

    Raises:
        LoraDropError: it cannot be read, or lacks a licence or the base model's id.
    """
    fault = f"the card of {name}, README.md,"
    if not text.startswith("---"):
        raise LoraDropError(f"{fault} is missing or has no metadata: delete it, and a push writes one.")
    try:
        data: Any = ModelCard(text).data
    except Exception as error:  # the YAML parser's among them
        raise LoraDropError(f"{fault} has metadata that cannot be read ({error}): mend or delete it.") from None
    if not _are_ids(data.base_model, REPOSITORY):
        raise LoraDropError(
            f"{fault} names no base model of the Hub (base_model: {data.base_model}): write its id, OWNER/NAME, there."
        )
    if not isinstance(data.license, str):
        raise LoraDropError(f"{fault} names no licence: write `license: apache-2.0`, or what yours is, there.")
    if data.datasets and not _are_ids(data.datasets, rf"{REPOSITORY}|[\w.-]+"):
        raise LoraDropError(f"{fault} names datasets that are no ids of the Hub ({data.datasets}): leave them out.")


def _are_ids(value: Any, pattern: str) -> bool:
    ids = value if isinstance(value, list) else [value]
    return bool(ids) and all(isinstance(name, str) and re.fullmatch(pattern, name, re.ASCII) for name in ids)


def _base(bank: Bank) -> str | None:
    """The base model's id on the Hub, if it has one."""
    name = BASES[bank.base_model][0] if bank.base_model in BASES else bank.base_model
    return name if _are_ids(name, REPOSITORY) else None


def _metadata(bank: Bank) -> ModelCardData:
    meta = bank.meta
    datasets = sorted({DATASETS[name] for name in meta.get("data", []) if name in DATASETS})
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name="Text that training kept apart",
            dataset_config=f"period {row['period']}, {dropped_in(row)}",
            metric_type=kind,
            metric_name=words,
            metric_value=round(row[key], 4),
        )
        for row in (meta.get("quality") or {}).get("schedules", [])
        for key, kind, words in (
            ("kl", "kl_divergence", "KL to the full model at LoRA steps, nats"),
            ("top1_agreement", "accuracy", "Same next token as the full model at LoRA steps"),
        )
    ]
    return ModelCardData(
        library_name="lora-drop",
        license=meta.get("license") or BASES.get(bank.base_model, (None, None))[1],
        base_model=_base(bank),
        base_model_relation="adapter",
        datasets=datasets or None,
        tags=["lora-drop", "efficient-inference", "arxiv:2601.02569"],
        model_name=f"LoRA-Drop adapters, {bank.reuse}, {bank.part}, rank {bank.rank}",
        eval_results=results or None,
    )


def _training(bank: Bank) -> list[str]:
    """The lines of the section on training."""
    meta = bank.meta
    lines = [f"- Rules: reuse `{bank.reuse}`, part `{bank.part}`, refresh `{bank.refresh}`, kv `{bank.kv}`."]
    if bank.head:
        later = "" if meta.get("settings", {}).get("head_rank", bank.head.rank) == bank.head.rank else LATER
        lines.append(f"- Screened head: rank {bank.head.rank} in 4 bits, {bank.head.best:,} exact tokens{later}.")
    if schedules := meta.get("trained_schedules"):
        order = schedules.get("drop_order")
        lines += [
            f"- Loss: KL to the full model over the vocabulary, {_where(schedules)}.",
            f"- Periods {_join(schedules['periods'])}; drop ratios {_join(schedules['drop_ratios'])}: one bank for "
            "every slider position.",
            *([f"- {_share(schedules)} of {_join(order)}."] if order else []),
        ]
    if "fit_tokens" in meta:
        lines.append(
            f"- Tokens: {meta['tokens']:,} read by gradient steps, after a regression over {meta['fit_tokens']:,}."
        )
    if "data" in meta:
        lines.append(f"- Text: {_join(meta['data'])}.")
    return lines


def _quality(quality: dict[str, Any] | None) -> str:
    """The section on quality; empty where nothing was measured."""
    if not quality:
        return ""
    rows = [
        f"| {row['period']} | {dropped_in(row)} | {row['top1_agreement']:.1%} | {row['kl']:.3f} |"
        for row in quality["schedules"]
    ]
    lines = [
        "## Quality\n",
        f"On {quality['tokens']:,} tokens that training kept apart, at LoRA steps (figures on other text",
        "are in the project's sweeps):\n",
        "| period | skipped | same next token as the full model | KL, nats |",
        "|---|---|---|---|",
    ]
    return "\n".join([*lines, *rows, "\n"])


def _where(schedules: dict[str, Any]) -> str:
    """The steps that the loss counts; banks from before exact refreshes do not name them."""
    return "at all decode steps" if schedules.get("refresh") == "single" else "at LoRA steps only"


def _share(schedules: dict[str, Any]) -> str:
    count = schedules.get("drop_count")
    if count:
        return f"Two of three batches skip the first {count}, the others a number drawn around it,"
    return "Half of the batches skip the first layers, how many is drawn,"


def dropped_in(row: dict[str, Any]) -> str:
    """Layers that an evaluated schedule skips, in words."""
    listed = row.get("drop_layers")
    return f"layers {_join(listed)}" if listed else f"ratio {row['drop_ratio']}"


def _join(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
