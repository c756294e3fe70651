"""`bench`: speed. (`benchmark` runs the paper's tasks.)"""

from __future__ import annotations

import argparse
from typing import Any

from lora_drop.cli.arguments import Commands, add_command, load, parse_path
from lora_drop.cli.output import cell, note, print_json, say
from lora_drop.method.cost import human_bytes
from lora_drop.method.presets import config_from
from lora_drop.run.report.speed import speedup_words


def add(commands: Commands) -> None:
    """The command's options."""
    parser = add_command(
        commands,
        "bench",
        run,
        "tokens a second of both lanes, interleaved, with the bound and transformers beside them",
    )
    parser.add_model_options()
    parser.add_config_options()
    parser.add_argument("--prompt-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--new-tokens", type=int, default=129, metavar="N", help="one more than decode steps")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="after a warm-up; figures are medians")
    parser.add_argument(
        "--prompts", type=parse_path, metavar="FILE.jsonl", help="real prompts, in a field named prompt, one a record"
    )
    parser.add_argument("--hf", action=argparse.BooleanOptionalAction, default=True, help="transformers' generate too")


def run(args: argparse.Namespace) -> int:
    """The command."""
    config = config_from(vars(args), args.model)
    from lora_drop.evaluation.measure.bench import bench
    from lora_drop.evaluation.measure.bench_reference import LOOKUP, gguf_of, hf_reference, llama_reference
    from lora_drop.evaluation.measure.pairs import read_prompts

    prompts = read_prompts(args.prompts, "prompt") if args.prompts else []
    loaded = load(args)
    result = bench(loaded, config, args.prompt_tokens, args.new_tokens, args.rounds, prompts, say)
    del loaded  # the reference loads a model of its own
    lengths = args.prompt_tokens, args.new_tokens, result["config"]["prompts"]
    for name, drafts in (("hf_generate", None), ("hf_prompt_lookup", LOOKUP)):
        reference = None
        if args.hf:
            say("transformers' generate" + (f", prompt_lookup_num_tokens {drafts}" if drafts else ""))
            reference = hf_reference(args.model, args.device, args.dtype, *lengths, drafts)
            if reference is None:
                note("transformers' generate failed, so there is no reference.")
        result[f"{name}_tokens_per_second"] = reference and reference["tokens_per_second"]
        result[f"{name}_dtype"] = reference and reference["dtype"]
    result["llama_cpp_tokens_per_second"] = None
    if gguf := gguf_of(result["model"]["id"], args.model, result["device"]["type"]):
        say("llama.cpp")
        result["llama_cpp_tokens_per_second"] = llama_reference(str(gguf), args.model, *lengths)
    if args.json:
        print_json(result)
    else:
        _show(result)
    return 0


def _show(result: dict[str, Any]) -> None:
    device, config = result["device"], result["config"]
    for text in config["notes"]:
        note(text)
    print(f"{result['model']['id']} ({result['dtype']}), {device['decoder']}, {device['name']}")
    given = f"{len(config['prompts'])} prompts, at most" if config["prompts"] else f"{config['prompt_tokens']} +"
    print(f"{given} {config['new_tokens']} tokens, medians of {config['rounds']} rounds\n")
    print("lane         tokens/s       KV held   KV allocated")
    for lane, name in (("baseline", "baseline"), ("LoRA-Drop", "lora_drop")):
        print(
            f"{lane:<11}  {result[f'{name}_tokens_per_second']:8.1f}  "
            f"{human_bytes(result[f'kv_bytes_{name}']):>12}   {human_bytes(result[f'kv_allocated_bytes_{name}']):>12}"
        )
    if rate := result["hf_generate_tokens_per_second"]:
        print(
            f"transformers {rate:8.1f}   generate, {result['hf_generate_dtype']}: the baseline is "
            f"{result['baseline_tokens_per_second'] / rate:.2f} times as fast"
        )
    if rate := result["llama_cpp_tokens_per_second"]:
        times = result["baseline_tokens_per_second"] / rate
        print(f"llama.cpp    {rate:8.1f}   on the same GGUF: the baseline is {times:.2f} times as fast")
    if rate := result["hf_prompt_lookup_tokens_per_second"]:
        print(f"transformers {rate:8.1f}   its own lossless drafts, prompt lookup, {result['hf_prompt_lookup_dtype']}")
    low, high = result["speedup_interval"] or (None, None)
    words = speedup_words(result["speedup"], result["speedup_interval"])
    print(f"\nthe prompt was read in {result['first_token_ms']:.1f} ms, once for all lanes")
    print(f"speedup between {cell(low, '.3f')}x and {cell(high, '.3f')}x in 95 of 100 draws of the refresh cycles")
    if alone := result["head_only"]:
        print(f"the full model with the screened head alone: {alone['speedup']:.3f}x, bound {alone['bound']:.3f}x")
    if result["accepted"] is not None:
        print(f"the full model kept {result['accepted']:.1%} of the drafts")
    costs = "  ".join(f"{rows} rows {cell(cost, '.2f')}" for rows, cost in result["rows_cost"].items())
    print(f"a repair in full steps: {costs}")
    print(
        f"speedup {result['speedup']:.3f}x{f', {words}' if words else ''}; bound, an estimate from memory traffic, "
        f"{result['bound']:.3f}x: {result['speedup_over_bound']:.1%} of it\n"
        f"the baseline reads {result['baseline_bytes_per_step'] / 1e6:.1f} MB a step, "
        f"{result['baseline_gb_per_second']:.1f} GB/s: {result['baseline_share_of_read_bandwidth']:.0%} of the "
        f"{result['read_gb_per_second']:.1f} GB/s that this device reads "
        f"({result['copy_gb_per_second']:.1f} GB/s copying)"
    )
