"""`bench`: measure speed. (`benchmark` runs the paper's tasks.)"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from lora_drop.cli.arguments import Commands, add_command, load_with_config
from lora_drop.cli.output import Row, cell, note, print_result, print_table, say
from lora_drop.method.cost import human_bytes
from lora_drop.method.presets import config_from
from lora_drop.run.report.speed import quotient, speedup_words

TIMED = {  # figures that every run has, but for a noisy clock
    "baseline_tokens_per_second": "the baseline",
    "lora_drop_tokens_per_second": "LoRA-Drop",
    "speedup": "the speedup",
    "row_cost": "the cost of a repair's row",
    "read_gb_per_second": "the read bandwidth",
}


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = add_command(
        commands,
        "bench",
        run,
        "tokens per second of both lanes, interleaved, with the bound and transformers beside them",
    )
    parser.add_model_options()
    parser.add_config_options()
    parser.add_argument("--prompt-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--new-tokens", type=int, default=129, metavar="N", help="one more than decode steps")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="after a warm-up; figures are medians")
    parser.add_path("--prompts", "FILE.jsonl", "real prompts, in a field named prompt, one a record")
    parser.add_argument("--hf", action=argparse.BooleanOptionalAction, default=True, help="transformers' generate too")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    config_from(vars(args), None)  # a mistake in the options is reported at once
    from lora_drop.evaluation.measure.bench import bench
    from lora_drop.evaluation.measure.bench_reference import LOOKUP, gguf_of, isolated
    from lora_drop.evaluation.measure.pairs import read_prompts

    prompts = read_prompts(args.prompts, "prompt") if args.prompts else []
    loaded, config = load_with_config(args)
    result = bench(loaded, config, args.prompt_tokens, args.new_tokens, args.rounds, prompts, say)
    del loaded  # the references load the model again
    lengths, read = (args.prompt_tokens, args.new_tokens, result["config"]["prompts"]), result["read_gb_per_second"]
    for name, drafts in (("hf_generate", None), ("hf_prompt_lookup", LOOKUP)):
        reference = None
        if args.hf:
            say("transformers' generate" + (f", prompt_lookup_num_tokens {drafts}" if drafts else ""))
            reference = isolated("hf_generate", args.model, args.device, args.dtype, *lengths, drafts, read)
            if reference is None:
                note("transformers' generate failed, so there is no reference.")
            elif reference["tokens_per_second"] is None:
                note("transformers' generate is too noisy to time here: raise --new-tokens.")
        result[f"{name}_tokens_per_second"] = reference and reference["tokens_per_second"]
        result[f"{name}_dtype"] = reference and reference["dtype"]
    result["llama_cpp_tokens_per_second"] = None
    if gguf := gguf_of(result["model"]["id"], args.model, result["device"]["type"]):
        say("llama.cpp")
        rate = isolated("llama_generate", str(gguf), args.model, *lengths, result["device"]["threads"])
        result["llama_cpp_tokens_per_second"] = rate
    print_result(args, result, lambda: _show(result))


def _show(result: dict[str, Any]) -> None:
    device, config = result["device"], result["config"]
    note(*config["notes"])
    print(f"{result['model']['id']} ({result['dtype']}), {device['decoder']}, {device['name']}")
    texts = f"{len(config['prompts'])} prompts, at most" if config["prompts"] else f"{config['prompt_tokens']} +"
    print(f"{texts} {config['new_tokens']} tokens, medians of {config['rounds']} rounds\n")
    print_table(
        [{"held": "", "allocated": "", "beside": ""} | row for row in (*_lanes(result), *_references(result))],
        {
            "": ("name",),
            "tokens/s": ("rate", ".1f"),
            "KV held": ("held",),
            "KV allocated": ("allocated",),
            "beside the baseline": ("beside",),
        },
    )
    low, high = result["speedup_interval"] or (None, None)
    words = speedup_words(result["speedup"], result["speedup_interval"])
    print(f"\nprompt read in {cell(result['first_token_ms'], '.1f', ' ms')}, once for all lanes")
    if alone := result["head_only"]:
        speedup = cell(alone["speedup"], ".3f", "x")
        print(f"full model with the screened head alone: {speedup}, bound {alone['bound']:.3f}x")
    if result["accepted"] is not None:
        print(f"drafts that the full model accepted: {result['accepted']:.1%}")
    costs = ", ".join(f"{cell(cost, '.2f')} of {rows} rows" for rows, cost in result["rows_cost"].items())
    print(f"cost of a repair in full steps: {costs}")
    lora, row = (cell(result[name], ".3f") for name in ("lora_cost", "row_cost"))
    print(f"cost in full steps: {lora} of a LoRA step (l), {row} of one more row of a repair (m)")
    if cost := result["token_cost"]:
        print(
            f"a token costs at least l (w-1)/w + (1 + m (w-1))/w = {cost:.3f} of them at w {config['period']}, "
            f"which is {1 / cost:.3f}x if no draft is rejected"
        )
    share = cell(result["baseline_share_of_read_bandwidth"], ".0%")
    reached, bandwidth = (cell(result[f"{name}_gb_per_second"], ".1f", " GB/s") for name in ("baseline", "read"))
    print(
        f"speedup {cell(result['speedup'], '.3f', 'x')}{f', {words}' if words else ''} (95% interval "
        f"{cell(low, '.3f')} to {cell(high, '.3f')}); bound {result['bound']:.3f}x, an estimate from memory traffic: "
        f"{cell(result['speedup_over_bound'], '.1%')} of it\n"
        f"the baseline reads {result['baseline_bytes_per_step'] / 1e6:.1f} MB a step, {reached}: {share} of the "
        f"{bandwidth} that this device reads"
    )
    if noisy := [words for name, words in TIMED.items() if result[name] is None]:
        print(f"too noisy to time: {', '.join(noisy)}; raise --new-tokens or --rounds")


def _lanes(result: dict[str, Any]) -> Iterator[Row]:
    for label, name in (("baseline", "baseline"), ("LoRA-Drop", "lora_drop")):
        held, allocated = (human_bytes(result[f"{size}_{name}"]) for size in ("kv_bytes", "kv_allocated_bytes"))
        yield {"name": label, "rate": result[f"{name}_tokens_per_second"], "held": held, "allocated": allocated}


def _references(result: dict[str, Any]) -> Iterator[Row]:
    """The references that ran."""
    for label, name in (
        ("transformers", "hf_generate"),
        ("transformers, prompt lookup", "hf_prompt_lookup"),
        ("llama.cpp, same GGUF", "llama_cpp"),
    ):
        if rate := result[f"{name}_tokens_per_second"]:
            dtype, times = result.get(f"{name}_dtype"), quotient(result["baseline_tokens_per_second"], rate)
            yield {
                "name": f"{label}, {dtype}" if dtype else label,
                "rate": rate,
                "beside": f"the baseline is {times:.2f} times as fast" if times else None,
            }
