"""ZeroGPU: a run borrows a GPU from HuggingFace's shared pool while it lasts. Elsewhere this module does nothing.

What ZeroGPU requires (read in the `spaces` package, 0.51), and what this module does for it:

- The server's process has no CUDA and holds a stand-in for the model. GPU work is a generator that `spaces.GPU` wraps
  before the page is launched, and that runs in a forked process: `runner`.
- Arguments and results are pickled: a request and a flag in, trace records out, all plain values.
- An exception arrives as the name of its class, so our one-line errors travel as values: `_Refusal`.
- A `threading.Event` does not cross to the other process, and closing the generator would lose the summary. So Stop
  creates a file that the run looks for after each step: `StopFlag`.
- The GPU time is declared beforehand and counts against the visitor's daily quota: `affordable` estimates it from the
  number of tokens, and a run that cannot fit is refused in one line before it costs anything.
"""

from __future__ import annotations

import dataclasses
import html
import math
import os
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import gradio as gr
import torch

from lora_drop.errors import LoraDropError
from lora_drop.models.load import LoadedModel, ModelInfo, with_eager_steps
from lora_drop.models.place import on_zero_gpu
from lora_drop.run.exports.replay_space import is_web
from lora_drop.run.request import Plan, Request, plan
from lora_drop.run.trace.records import BASELINE, Record
from lora_drop.ui.serve.environment import positive_number

# Estimates: this project had no ZeroGPU to measure on. They are about twice what a run should take, since a run that
# is cut off is worse than a run that returns time. LORA_DROP_ZERO_RATE replaces the two rates of a step.
START_SECONDS = 5  # the process, the CUDA context, the first kernels
COPY_RATE = 2e9  # bytes of weights a second, from the disk to the GPU
LAYER_SECONDS = 3e-4  # a layer of an eager decode step: about 15 kernels, each launched from Python in some 10 us
READ_RATE = 5e11  # bytes of weights that a decode step reads a second
PREFILL_RATE = 2e3  # prompt tokens a second

QUOTA_SECONDS = 120.0  # daily GPU time of a visitor without an account (HuggingFace's table, August 2026)
# On current GPUs `spaces` requests this many times the declared seconds (its `duration_factor`).
QUOTA_FACTOR = 1.5


class StopFlag:
    """A stop flag that another process can see: a file. It can be pickled."""

    def __init__(self) -> None:
        self._path = Path(tempfile.gettempdir()) / f"lora-drop-stop-{uuid4().hex}"
        self._ended = False

    def set(self) -> None:
        """Stop the run after its current step, unless it has ended."""
        if not self._ended:
            self._path.touch()

    def is_set(self) -> bool:
        """True once `set` was called."""
        return self._path.exists()

    def end(self) -> None:
        """Delete the file once the run is over."""
        self._ended = True
        self._path.unlink(missing_ok=True)


Stop = threading.Event | StopFlag


def stop_flag() -> Stop:
    """Return a stop flag of the kind that runs on this hardware can see."""
    return StopFlag() if on_zero_gpu() else threading.Event()


@dataclasses.dataclass(frozen=True)
class _Refusal:
    """A `LoraDropError` raised in the GPU's process, on its way to the visitor."""

    line: str


def runner(loaded: LoadedModel, run: Callable[..., Iterator[Record]]) -> Callable[..., Generator[Record, None, None]]:
    """Return `run` for one model, called as `(request, stop)` with an optional stop flag.

    On ZeroGPU the request is checked without a GPU first, and then runs in the GPU's process. Call this before the
    page is launched.

    Raises:
        LoraDropError: this is ZeroGPU and the package `spaces` is missing. From the generator: any `LoraDropError` of
            `run`, and any refusal by ZeroGPU, in one line.
    """

    there: list[LoadedModel] = []  # in the GPU's process, which may be used again

    def decode(request: Request, stop: Stop | None) -> Iterator[Record]:
        if on_zero_gpu() and not there:
            there.append(with_eager_steps(loaded))
        return run(there[0] if there else loaded, request, *([stop.is_set] if stop else []))

    def here(request: Request, stop: Stop | None = None) -> Generator[Record, None, None]:
        yield from decode(request, stop)

    if not on_zero_gpu():
        return here
    try:
        import spaces
    except ModuleNotFoundError as error:
        raise LoraDropError(
            "SPACES_ZERO_GPU is set, but the package `spaces`, which every Gradio Space has, is missing: unset it."
        ) from error

    def carried(request: Request, stop: Stop | None, needed: int) -> Iterator[Record | _Refusal]:
        try:
            yield from decode(request, stop)
        except LoraDropError as error:
            yield _Refusal(str(error))

    borrowed = spaces.GPU(carried, duration=lambda request, stop, needed: needed)

    def elsewhere(request: Request, stop: StopFlag | None = None) -> Generator[Record, None, None]:
        try:
            with closing(borrowed(request, stop, affordable(loaded, request))) as values:
                for value in values:
                    if isinstance(value, _Refusal):
                        raise LoraDropError(value.line)
                    yield value
        except gr.Error as error:
            raise LoraDropError(line_of(error)) from error
        finally:
            if stop:
                stop.end()

    return elsewhere


def planning(loaded: LoadedModel | ModelInfo) -> LoadedModel | ModelInfo:
    """The model to plan a run with in the server's process, which must not use the device on ZeroGPU."""
    return dataclasses.replace(loaded, device=torch.device("cpu")) if on_zero_gpu() else loaded


def refuse_sweeps() -> None:
    """Raise LoraDropError on ZeroGPU: a sweep takes minutes of a visitor's quota, longer than a run may."""
    if on_zero_gpu():
        raise LoraDropError(
            "sweeps do not run on ZeroGPU, because they take minutes of a visitor's daily GPU time: duplicate this "
            "Space to your own CPU or GPU, or use the sweep command."
        )


def _costs(loaded: LoadedModel, request: Request, checked: Plan) -> tuple[float, float]:
    """Seconds before the first token, and for each further one."""
    weights = loaded.shape.params * loaded.dtype.itemsize
    passes = len(checked.lanes)
    if request.audit:  # it reads a lane's text again in chunks: at most one full step a token
        passes += len(checked.lanes.keys() - {BASELINE})
    rate = positive_number("LORA_DROP_ZERO_RATE", 0.0)
    step = 1 / rate if rate else loaded.num_layers * LAYER_SECONDS + weights / READ_RATE
    prefill = len(checked.prompt_ids) / PREFILL_RATE
    return START_SECONDS + weights / COPY_RATE + prefill, passes * step


def affordable(loaded: LoadedModel, request: Request) -> int:
    """GPU seconds to declare for a request that is valid and fits a visitor's quota.

    They cover every token in every lane, and the audit's second passes.

    Raises:
        LoraDropError: the request is invalid or does not fit; the line says what would fit.
    """
    fixed, each = _costs(loaded, request, plan(planning(loaded), request))
    needed = math.ceil(fixed + each * request.max_new_tokens)
    quota = positive_number("LORA_DROP_ZERO_SECONDS", QUOTA_SECONDS)
    limit = quota / QUOTA_FACTOR
    if needed <= limit:
        return needed
    room = math.floor((math.floor(limit) - fixed) / each)
    advice = [f"at most {room} new tokens"] if room > 0 else ["a shorter prompt"]
    advice += ["no audit"] if request.audit else []
    advice += ["no third lane"] if request.compare else []
    raise LoraDropError(
        f"this run needs {math.ceil(needed * QUOTA_FACTOR)} s of GPU time, and a visitor has {quota:g} s a day: "
        f"ask for {' or '.join(advice)}.{_recorded()}"
    )


def line_of(error: gr.Error) -> str:
    """ZeroGPU's error in one line, with a link to recorded runs if there is one."""
    title, message = str(getattr(error, "title", "")), str(error.message)
    if "aborted" in message:
        message = "the GPU was taken back before the run ended. Its text so far is kept; ask for fewer tokens."
    return f"{title}: {message.rstrip('. ')}.{_recorded()}" if title else f"{message}{_recorded()}"


def replay_url() -> str | None:
    """Address of the recorded runs (LORA_DROP_REPLAY_URL); None unless it is a web address."""
    address = os.environ.get("LORA_DROP_REPLAY_URL", "").strip()
    return address if is_web(address) and not set(address) & set(' "<>') else None


def _recorded() -> str:
    address = replay_url()
    return f" Recorded runs need no GPU: {address}" if address else ""


def notice() -> str:
    """HTML notice: that a run costs GPU time, and where the recorded runs are; empty if there is nothing to say."""
    words = ["Each run borrows a GPU and counts against your daily ZeroGPU time."] if on_zero_gpu() else []
    if address := replay_url():
        link = f'<a href="{html.escape(address)}" target="_blank" rel="noopener">Recorded runs</a>'
        words.append(f"{link} need no GPU.")
    return f"<p class='ld-zero'>{' '.join(words)}</p>" if words else ""
