"""The Gradio API: `/generate`, `/compare`, `/estimate`, `/replay`, `/inspect`, with the settings of the table."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Literal

import gradio as gr

from lora_drop.errors import LoraDropError
from lora_drop.method.cost import kv_bytes, kv_saved, speed_bound
from lora_drop.method.fields import CALL, RUN, SCHEDULE, Setting
from lora_drop.method.kinds import Choice, Text
from lora_drop.method.presets import PRESETS, READABLE, config_from
from lora_drop.method.schedule import baseline_schedule
from lora_drop.method.settings import BY_NAME, settings_of
from lora_drop.models.load import LoadedModel, ModelInfo
from lora_drop.run.report.brief import brief
from lora_drop.run.request import Plan, Request, plan
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.trace.records import LORA_DROP, write_line
from lora_drop.run.trace.trace import gather
from lora_drop.ui.callbacks import COMPARED, FAILURE, Callbacks
from lora_drop.ui.components import SEE_LOG
from lora_drop.ui.controls import refuse_private
from lora_drop.ui.serve import space as zero
from lora_drop.ui.serve.gradio_private import api as add_function
from lora_drop.ui.serve.gradio_private import session_of
from lora_drop.ui.serve.memory import return_memory
from lora_drop.ui.stream import batches


def build_api(calls: Callbacks) -> None:
    """Add the API's functions to the open page."""
    api = functions(calls)
    add_function(api["generate"], api_name="generate", concurrency_id="gpu", concurrency_limit=1)
    add_function(api["compare"], api_name="compare", concurrency_id="gpu", concurrency_limit=1)
    add_function(api["estimate"], api_name="estimate", queue=False)
    add_function(api["replay"], api_name="replay")
    add_function(api["inspect"], api_name="inspect", concurrency_id="inspect", concurrency_limit=1)


def functions(calls: Callbacks) -> dict[str, Callable[..., Any]]:
    """The API's functions by name, with their parameters in their signatures, where Gradio reads them."""
    api = Api(calls)
    notes = " ".join(f"{name}: {preset.note}" for name, preset in presets_of(calls.pool.info(None)).items())
    offered = {setting.name: setting for setting in calls.settings}
    options = [offered.get(setting.name, setting) for setting in settings_of(CALL, SCHEDULE, RUN)]
    estimated = [setting for setting in options if setting.of != RUN or setting.name == "max_new_tokens"]
    return {
        "generate": _with_parameters(api.generate, options, "the user's message", notes),
        "compare": _with_parameters(api.compare, COMPARED, "the user's message", notes, preset=READABLE),
        "estimate": _with_parameters(api.estimate, estimated, "its tokens are counted; 0 without a prompt", notes),
        "replay": api.replay,
        "inspect": api.inspect,
    }


class Api:
    """What the functions do; Gradio shows their docstrings. `options` has a value for each setting."""

    def __init__(self, calls: Callbacks):
        self._calls = calls

    def generate(self, prompt: str, visitor: gr.Request | None = None, **options: Any) -> Iterator[str]:
        """Run baseline and LoRA-Drop on a prompt; streams the growing trace (JSON Lines, the format of the file).

        An unset option of the schedule takes its value from the preset, or from the command line's defaults.

        Returns:
            the trace so far: a header, a line for each step of a lane, a summary with the verdict.
        """
        return_memory()
        with _one_line_errors(self._calls), closing(_run(self._calls, prompt, visitor, options)) as records:
            for text, _ in batches(records, write_line):
                yield text

    def compare(self, prompt: str, visitor: gr.Request | None = None, **options: Any) -> dict[str, Any]:
        """Write an answer with the full model and with LoRA-Drop, which skips layers, and compare the two.

        Returns:
            at most 2 kB of JSON: verdict (in words), speed (speedup of LoRA-Drop, its 95% interval, its bound, and a
            note in place of a speedup that may not be claimed), regret (in nats per token: how much less likely
            LoRA-Drop's tokens are than the full model's favourites), accepted (share of its drafts), link (repeats the
            run on the page, relative to its address; null for a long prompt), and for baseline and lora_drop the text
            (without thoughts; is_cut if it does not fit), tokens, tokens_per_second.
        """
        return_memory()
        with _one_line_errors(self._calls), closing(_run(self._calls, prompt, visitor, options)) as records:
            return brief(gather(records))

    def estimate(self, prompt: str | None = None, **options: Any) -> dict[str, Any]:
        """Compute the effect of the settings without running a model: skipped layers, speed bound, KV bytes.

        With early refreshes (`at_most` is true) bound and saving assume the longest gaps, the most that a run can
        reach. The model must have been loaded before.

        Returns:
            dropped (the skipped layers), is_baseline, at_most, prompt_tokens, decode_steps, bound (of the speedup,
            from memory traffic), kv_bytes_baseline, kv_bytes, kv_saved (a share), and config (every setting).
        """
        with _one_line_errors():
            info = self._calls.pool.info(options["model"])
            tokens = BY_NAME["max_new_tokens"].read(options["max_new_tokens"])
            request = Request(
                prompt=prompt or "-",
                config=_config(options, self._calls.settings, info),
                max_new_tokens=tokens,
            )
            checked = plan(zero.planning(info), request)
            return _estimated(info, checked, len(checked.prompt_ids) if prompt else 0, request)

    def inspect(
        self, run_id: str | None = None, trace: str | None = None, lane: str = LORA_DROP, step: int = 0
    ) -> dict[str, Any]:
        """Inspect one step of a lane: what each layer did, its drift from the full model, and its logit lens.

        The lane's text up to the step is read again, teacher-forced, after all runs. The call fails if the weights or
        adapters have changed.

        Args:
            run_id: a run that this server still keeps, from the first line that the page receives; or pass trace.
            trace: the text of a trace file (JSON Lines), as generate streams it or the command line writes it.
            lane: baseline, lora_drop or third.
            step: number of the step; 0 is the prefill.

        Returns:
            prefix_of (the lanes with the same text before the step, on which layers, lens and full are computed),
            layers (did, drift, lens and full_lens of each), top (for each lane with the step, its five likeliest next
            tokens after its own prefix_of), full (the full model's five) and refresh (the full pass that followed: the
            tokens that it ran again and rejected). A token is [text, probability].
        """
        return_memory()
        with _one_line_errors():
            return self._calls.inspector.inspect(run_id, trace, lane, step)

    def replay(self, trace: str) -> str:
        """Make one self-contained HTML page of a recorded run; it opens offline.

        Args:
            trace: the text of a trace file (JSON Lines), as generate streams it or the command line writes it.

        Returns:
            the page's HTML.
        """
        return_memory()
        with _one_line_errors():
            if not isinstance(trace, str):
                raise LoraDropError("trace must be a text.")
            page: str = self._calls.reader.ask("html", trace.encode("utf-8", "replace"))
            return page


def _run(calls: Callbacks, prompt: str, visitor: gr.Request | None, options: dict[str, Any]) -> Any:
    """The records of a call's run; options that it does not have are at their defaults."""
    model = calls.pool.check(options["model"])
    run = {
        setting.name: setting.read(options[setting.name]) for setting in settings_of(RUN) if setting.name in options
    }
    # A mistake is reported before a model is loaded; the presets are those of its weights.
    request = Request(prompt=prompt, config=_config(options, calls.settings), **run)
    return calls.run(
        request,
        model=model,
        session=session_of(visitor),
        config_of=lambda loaded: _config(options, calls.settings, loaded),
    )


@contextmanager
def _one_line_errors(calls: Callbacks | None = None) -> Iterator[None]:
    """Turn exceptions into Gradio's error with one line.

    Args:
        calls: count a wrong input here.
    """
    try:
        yield
    except LoraDropError as error:
        if calls:
            calls.counters.refuse("input")
        raise gr.Error(str(error), print_exception=False) from None
    except Exception as error:
        raise gr.Error(f"{FAILURE} {SEE_LOG}") from error  # Gradio prints the traceback


def _with_parameters(
    function: Callable[..., Any], settings: Iterable[Setting], prompt: str, notes: str, **defaults: Any
) -> Callable[..., Any]:
    """Give a function of a prompt and options one parameter for each option, where Gradio reads them.

    Args:
        prompt: words on the prompt, for the docstring.
        notes: each preset's sentence, the same.
        defaults: in place of the settings' defaults, by name.
    """
    settings = list(settings)
    written = inspect.signature(function)
    parameters = [written.parameters["prompt"], *(_parameter(setting, defaults) for setting in settings)]
    if "visitor" in written.parameters:  # which Gradio fills in
        parameters.append(written.parameters["visitor"])
    streams = inspect.isgeneratorfunction(function)
    returned = str if streams else written.return_annotation  # of each update
    signature = written.replace(parameters=parameters, return_annotation=returned)

    def arguments(*args: Any, **kwargs: Any) -> dict[str, Any]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
        yield from function(**arguments(*args, **kwargs))

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(**arguments(*args, **kwargs))

    made: Callable[..., Any] = stream if streams else call
    made.__name__ = function.__name__
    made.__signature__ = signature  # type: ignore[attr-defined]  # `inspect` reads it, the type has none
    made.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": returned}
    about, _, returns = (inspect.getdoc(function) or "").partition("Returns:")
    lines = [f"prompt: {prompt}.", *(_about(setting, notes) for setting in settings)]
    made.__doc__ = f"{about}Args:\n" + "".join(f"    {line}\n" for line in lines) + f"\nReturns:{returns}"
    return made


def _parameter(setting: Setting, defaults: dict[str, Any]) -> inspect.Parameter:
    """A setting as a function's parameter. The schedule's settings have no default here: the preset sets them."""
    default = defaults.get(setting.name, setting.default if setting.of == RUN else None)
    words = _words(setting)
    kind: Any = Literal[words] if words else setting.kind.python
    annotation = kind if default is not None else kind | None
    return inspect.Parameter(
        setting.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation
    )


def _about(setting: Setting, notes: str) -> str:
    """A setting's line in a function's docstring; that of `preset` has each preset's sentence."""
    values = notes if setting.name == "preset" else f"{setting.kind.must_be}."
    return f"{setting.name}: {setting.help}; {values}"


def _words(setting: Setting) -> tuple[str, ...]:
    """The words that a setting can have in a call; none where it takes others too."""
    if isinstance(setting.kind, Choice):
        return setting.kind.words
    public = setting.kind.public if isinstance(setting.kind, Text) and not setting.kind.written else ()
    return tuple(PRESETS) if setting.name == "preset" else public


def _config(
    options: dict[str, Any], settings: Iterable[Setting], loaded: LoadedModel | ModelInfo | None = None
) -> Any:
    """Read the config from a call's options as the command line does.

    Args:
        settings: as visitors may choose them.
        loaded: the model; None before it is loaded.
    """
    for setting in settings:
        if options.get(setting.name) is not None:
            refuse_private(setting, options[setting.name])
    texts = {setting.name for setting in settings_of(SCHEDULE) if setting.kind.python is str}
    values = {name: str(value) if name in texts and value is not None else value for name, value in options.items()}
    return config_from(values, presets_of(loaded, values.get("adapters")) if loaded else None)


def _estimated(loaded: LoadedModel | ModelInfo, checked: Plan, prompt_tokens: int, request: Request) -> dict[str, Any]:
    """Figures of the forecast, by the formulas of `lora_drop.method.cost`."""
    lane = checked.lanes[LORA_DROP]
    schedule = lane.schedule
    steps, size = request.max_new_tokens - 1, loaded.dtype.itemsize
    full = baseline_schedule(loaded.num_layers)
    return {
        "dropped": list(schedule.dropped),
        "is_baseline": schedule.is_baseline,
        "at_most": schedule.is_adaptive,
        "prompt_tokens": prompt_tokens,
        "decode_steps": steps,
        "bound": speed_bound(loaded.shape, schedule, steps, prompt_tokens, lane.corrections(loaded.shape)),
        "kv_bytes_baseline": kv_bytes(loaded.shape, full, prompt_tokens, steps, size),
        "kv_bytes": kv_bytes(loaded.shape, schedule, prompt_tokens, steps, size),
        "kv_saved": kv_saved(loaded.shape, schedule, prompt_tokens, steps),
        "config": request.config.to_dict(),
    }
