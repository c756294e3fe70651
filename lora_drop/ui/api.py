"""The Gradio API: `/generate`, `/estimate`, `/replay`, `/inspect`; its settings are those of the table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

import gradio as gr

from lora_drop.errors import LoraDropError
from lora_drop.method.cost import kv_bytes, kv_saved, speed_bound
from lora_drop.method.fields import CALL, RUN, SCHEDULE, Setting
from lora_drop.method.presets import config_from
from lora_drop.method.schedule import baseline_schedule
from lora_drop.method.settings import BY_NAME, settings_of
from lora_drop.models.load import LoadedModel, ModelInfo
from lora_drop.run.exports.html import replay_html
from lora_drop.run.request import LORA_DROP, Plan, Request, plan
from lora_drop.run.trace.lines import write_line
from lora_drop.run.trace.trace import MAX_TRACE_BYTES, parse_trace
from lora_drop.ui.callbacks import FAILED, Callbacks
from lora_drop.ui.controls import refuse_private
from lora_drop.ui.serve import space as zero
from lora_drop.ui.serve.memory import return_memory
from lora_drop.ui.stream import batches

ESTIMATED = [one for one in settings_of(CALL, SCHEDULE, RUN) if one.of != RUN or one.name == "max_new_tokens"]


def build_api(calls: Callbacks) -> None:
    """Add the API's functions to the open page."""
    found = functions(calls)
    gr.api(found["generate"], api_name="generate", concurrency_id="gpu", concurrency_limit=1)
    gr.api(found["estimate"], api_name="estimate", queue=False)
    gr.api(found["replay"], api_name="replay")
    gr.api(found["inspect"], api_name="inspect", concurrency_id="inspect", concurrency_limit=1)


def functions(calls: Callbacks) -> dict[str, Callable[..., Any]]:
    """The API's functions by name, with parameters as Gradio reads them."""
    return {
        "generate": _generate(calls),
        "estimate": _estimate(calls),
        "replay": replay,
        "inspect": _inspect(calls),
    }


def _generate(calls: Callbacks) -> Callable[..., Iterator[str]]:
    def generate(prompt: str, **options: Any) -> Iterator[str]:
        return_memory()
        try:
            model = calls.pool.check(options["model"])
            run = {one.name: one.read(options[one.name]) for one in settings_of(RUN)}
            wanted = Request(prompt=prompt, config=_config(options, model), **run)
            with closing(calls.run(wanted, model=model)) as records:
                for text, _ in batches(records, write_line):
                    yield text
        except LoraDropError as error:
            calls.counters.refuse("input")
            raise gr.Error(str(error), print_exception=False) from None
        except Exception as error:
            raise gr.Error(FAILED) from error  # Gradio prints the traceback

    return with_parameters(
        generate,
        settings_of(CALL, SCHEDULE, RUN),
        "Run baseline and LoRA-Drop on a prompt; streams the growing trace (JSON Lines, the format of the file).\n\n"
        "Unset options of the schedule are the preset's, or without a preset the command line's defaults.",
        "the user's message",
    )


def _estimate(calls: Callbacks) -> Callable[..., dict]:
    def estimate(prompt: str | None = None, **options: Any) -> dict:
        try:
            info = calls.pool.info(options["model"])
            tokens = BY_NAME["max_new_tokens"].read(options["max_new_tokens"])
            wanted = Request(prompt=prompt or "-", config=_config(options, info.id), max_new_tokens=tokens)
            checked = plan(zero.planning(info), wanted)
        except LoraDropError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return estimated(info, checked, len(checked.prompt_ids) if prompt else 0, wanted)

    return with_parameters(
        estimate,
        ESTIMATED,
        "What the settings would do, with no model run: the skipped layers, the speed bound, the KV bytes.\n\n"
        "With early refreshes (`at_most` is true) bound and saving are those of the longest gaps: the most that a run "
        "can reach. The model must have been loaded before.",
        "gives its number of tokens; without one, it counts 0",
    )


def _inspect(calls: Callbacks) -> Callable[..., dict]:
    def inspect(run_id: str | None = None, trace: str | None = None, lane: str = LORA_DROP, step: int = 0) -> dict:
        """A look inside one step of a lane: what each layer did, its drift from the full model, its logit lens.

        The lane's text up to the step is read again, teacher-forced, off every clock and after all runs. The answer
        has prefix_of (the lanes whose text before the step is this one: layers, lens and full stand on it), layers
        (did, drift, lens and full_lens of each), top (of each lane that has the step: its five likeliest next tokens,
        on its own prefix_of), full (the full model's five) and refresh (the full pass that followed: what it ran
        again and took back). A token is [text, probability]. It is refused where weights or adapters have changed.

        Args:
            run_id: of a run that this server still keeps (the first line of what the page is sent); or give trace.
            trace: the text of a trace file (JSON Lines), as generate streams it or the command line writes it.
            lane: baseline, lora_drop or third.
            step: number of the step; 0 is the prefill.
        """
        return_memory()
        try:
            return calls.inspector.inspect(run_id, trace, lane, step)
        except LoraDropError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception as error:
            raise gr.Error(FAILED) from error  # Gradio prints the traceback

    return inspect


def replay(trace: str) -> str:
    """A recorded run as one self-contained HTML page that opens offline.

    Args:
        trace: the text of a trace file (JSON Lines), as generate streams it or the command line writes it.
    """
    return_memory()
    try:
        if not isinstance(trace, str) or len(trace) > MAX_TRACE_BYTES:
            raise LoraDropError(f"trace must be a text of at most {MAX_TRACE_BYTES // 2**20} MiB.")
        return replay_html(parse_trace(trace.encode("utf-8", "replace")))
    except LoraDropError as error:
        raise gr.Error(str(error), print_exception=False) from None


def with_parameters(
    function: Callable[..., Any], settings: Iterable[Setting], doc: str, prompt: str
) -> Callable[..., Any]:
    """A function of a prompt and of options, with the options as parameters of their own, as Gradio reads them.

    Args:
        doc, prompt: what the function does, and what the prompt is for.
    """
    own = inspect.signature(function, eval_str=True)
    first = own.parameters["prompt"]
    parameters, lines = [first], [f"prompt: {prompt}."]
    for one in settings:
        # Only a run's settings have a default of their own here: a schedule's come from the preset.
        default = one.default if one.of == RUN else None
        kind = one.kind.python if default is not None else one.kind.python | None
        parameters.append(
            inspect.Parameter(one.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)
        )
        lines.append(f"{one.name}: {one.help}; {one.kind.must_be}.")
    signature = own.replace(parameters=parameters)

    def bound(*args: Any, **kwargs: Any) -> dict[str, Any]:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        return given.arguments

    if inspect.isgeneratorfunction(function):

        def call(*args: Any, **kwargs: Any) -> Any:
            yield from function(**bound(*args, **kwargs))
    else:

        def call(*args: Any, **kwargs: Any) -> Any:
            return function(**bound(*args, **kwargs))

    made: Any = call  # to a type checker a function has no signature to be set
    made.__name__, made.__signature__ = function.__name__, signature
    made.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": own.return_annotation}
    made.__doc__ = doc + "\n\nArgs:\n" + "".join(f"    {line}\n" for line in lines)
    return made


def _config(options: dict[str, Any], model: str) -> Any:
    """The config of a call: its options are the command line's, and read in the same way."""
    for one in settings_of(SCHEDULE):
        if options[one.name] is not None:
            refuse_private(one, options[one.name])
    texts = {one.name for one in settings_of(SCHEDULE) if one.kind.python is str}
    given = {name: str(value) if name in texts and value is not None else value for name, value in options.items()}
    return config_from(given, model)


def estimated(loaded: LoadedModel | ModelInfo, checked: Plan, prompt_tokens: int, wanted: Request) -> dict[str, Any]:
    """The figures of the what-if strip, by the formulas of `lora_drop.method.cost`."""
    lane = checked.lanes[LORA_DROP]
    schedule, rank, corrected = lane.schedule, lane.rank, lane.bank.layers if lane.bank else None
    steps, size = wanted.max_new_tokens - 1, loaded.dtype.itemsize
    full = baseline_schedule(loaded.num_layers)
    return {
        "dropped": list(schedule.dropped),
        "is_baseline": schedule.is_baseline,
        "at_most": schedule.is_adaptive,
        "prompt_tokens": prompt_tokens,
        "decode_steps": steps,
        "bound": speed_bound(loaded.shape, schedule, steps, prompt_tokens, rank, corrected),
        "kv_bytes_baseline": kv_bytes(loaded.shape, full, prompt_tokens, steps, size),
        "kv_bytes": kv_bytes(loaded.shape, schedule, prompt_tokens, steps, size),
        "kv_saved": kv_saved(loaded.shape, schedule, prompt_tokens, steps),
        "config": wanted.config.to_dict(),
    }
