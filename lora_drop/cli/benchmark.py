"""`benchmark`: run the paper's tasks. (`bench` measures speed.)"""

from __future__ import annotations

import argparse
import os

from lora_drop.cli.arguments import Commands, add_command, load_with_config
from lora_drop.cli.output import note, print_result, progress
from lora_drop.method.presets import config_from


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = add_command(
        commands, "benchmark", run, "the paper's benchmarks from local files, full model and LoRA-Drop"
    )
    parser.add_path("--data-dir", "DIR", "holds gsm8k/, bbh/ and so on", required=True)
    parser.add_argument("--tasks", metavar="NAME,NAME", help="such as gsm8k,bbh (default: all that DIR has)")
    parser.add_argument("--limit", type=int, metavar="N", help="N records a task, from its files in turn")
    parser.add_out("gets the table; goes on where it ended")
    parser.add_argument("--run-code", action="store_true", help="run the programs that the model writes (sandboxed)")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="of an answer (default 256)")
    parser.add_argument("--context-tokens", type=int, metavar="N", help="cut the middle out of prompts longer than N")
    parser.add_model_options()
    parser.add_config_options()


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    config_from(vars(args), None)  # a mistake in the options is reported at once
    from lora_drop.evaluation.tasks.utils import Options

    names = None if args.tasks is None else tuple(name.strip() for name in args.tasks.split(","))
    options = Options(
        *(args.data_dir, args.out, names, args.limit),
        *(args.run_code, args.max_new_tokens, args.context_tokens),
    )
    # Read when lm-eval imports `datasets`: the tasks are local. HF_HUB_OFFLINE would keep `--model` from the Hub too.
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    from lora_drop.evaluation.tasks.benchmark import benchmark, markdown, read_tasks
    from lora_drop.run.results.files import BENCHMARK

    tasks = read_tasks(options, note)
    loaded, config = load_with_config(args)
    with BENCHMARK.writing(options.out), progress("records", every=30) as show:
        result = benchmark(loaded, config, tasks, options, note, show)
    note(*result["notes"])
    print_result(args, result, lambda: print(markdown(result).rstrip("\n")))
