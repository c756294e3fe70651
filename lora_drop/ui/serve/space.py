"""ZeroGPU: a run borrows a GPU from HuggingFace's shared pool, for as long as it lasts. Elsewhere this does nothing.

What the pool asks for (read in the `spaces` package, 0.51), and what is done for it here:

- The server's process never has CUDA: it holds a stand-in of the model. Work on the GPU is a generator wrapped by
  `spaces.GPU` before the page is launched, which runs in a process forked for it: `runner`.
- What goes in and comes out is pickled: a request and a flag in, the records of the trace out, all of plain values.
- An exception comes back as the name of its class. Our own one-line mistakes therefore travel as values: `_Refusal`.
- An event of the server's process is not seen in the other one, and a closed generator would take the summary with it.
  So the Stop button writes a file, which the run looks for after each step: `StopFlag`.
- The time is declared beforehand and counted against the visitor's daily quota: `seconds` computes it from the tokens
  asked for, and a run that cannot fit is refused in one line, before it costs anything.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import math
import os
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import gradio as gr
import torch

from lora_drop.errors import LoraDropError
from lora_drop.models.load import LoadedModel, ModelInfo
from lora_drop.models.place import on_zero_gpu
from lora_drop.run.request import BASELINE, Plan, Request, plan
from lora_drop.run.trace.records import Record
from lora_drop.ui.serve.environment import positive_number

# Stated, not measured: this project had no ZeroGPU to measure on. They are meant to be twice what a run takes, since a
# run that is cut off is worse than one that gives time back. LORA_DROP_ZERO_RATE replaces the two of a step.
START_SECONDS = 5  # the process, the CUDA context, the first kernels
COPY_RATE = 2e9  # bytes of weights a second, from the disk to the GPU
LAYER_SECONDS = 5e-4  # a layer of a decode step in the reference decoder: Python and the launches of some 20 kernels
READ_RATE = 5e11  # bytes of weights a second that a decode step reads
PREFILL_RATE = 2e3  # prompt tokens a second

QUOTA_SECONDS = 120.0  # what a visitor without an account has in a day (HuggingFace's table, August 2026)
# `spaces` asks the pool for this many times the declared seconds on the GPUs of today (its `duration_factor`).
QUOTA_FACTOR = 1.5


class StopFlag:
    """A soft stop that a run on a borrowed GPU sees: a file, which another process can look for. It pickles."""

    def __init__(self):
        self._path = Path(tempfile.gettempdir()) / f"lora-drop-stop-{uuid4().hex}"
        self._ended = False

    def set(self) -> None:
        """Ask the run to end after its step; nothing once it has ended."""
        if not self._ended:
            self._path.touch()

    def is_set(self) -> bool:
        """True once it was asked for."""
        return self._path.exists()

    def end(self) -> None:
        """The run is over: leave no file behind."""
        self._ended = True
        self._path.unlink(missing_ok=True)


def stop_flag() -> threading.Event | StopFlag:
    """The flag of a Stop button, of the kind that this hardware's runs see."""
    return StopFlag() if on_zero_gpu() else threading.Event()


@dataclasses.dataclass(frozen=True)
class _Refusal:
    """A mistake that was only found on the GPU, on its way to the visitor."""

    line: str


def gpu(
    work: Callable[..., Generator[Any, None, None]], duration: Callable[..., int]
) -> Callable[..., Generator[Any, None, None]]:
    """A generator function on a borrowed GPU; outside of ZeroGPU, `work` itself.

    Args:
        work: takes and yields what pickles; everything else it needs, it holds already.
        duration: the seconds to declare, from the same arguments.

    Raises:
        LoraDropError: this is ZeroGPU, and the package `spaces` is missing. From the generator: what `work` raises of
            this kind, and whatever the pool says, in one line.
    """
    if not on_zero_gpu():
        return work
    try:
        import spaces
    except ModuleNotFoundError as error:
        raise LoraDropError(
            "SPACES_ZERO_GPU is set, but the package `spaces` is missing, which every Gradio Space has: unset it."
        ) from error

    @functools.wraps(work)
    def carried(*args: Any) -> Iterator[Any]:
        try:
            yield from work(*args)
        except LoraDropError as error:
            yield _Refusal(str(error))

    borrowed = spaces.GPU(carried, duration=duration)

    @functools.wraps(work)
    def borrowing(*args: Any) -> Generator[Any, None, None]:
        try:
            with closing(borrowed(*args)) as values:
                for value in values:
                    if isinstance(value, _Refusal):
                        raise LoraDropError(value.line)
                    yield value
        except gr.Error as error:
            raise LoraDropError(line_of(error)) from error

    return borrowing


def runner(loaded: LoadedModel, run: Callable[..., Iterator[Record]]) -> Callable[..., Generator[Record, None, None]]:
    """`session.run` over one model, as the page calls it: `(request, stop)`, the flag optional.

    On ZeroGPU the request is checked first, without a GPU, and then runs in the GPU's process.
    """

    def decode(request: Request, stop: threading.Event | StopFlag | None, _: int) -> Generator[Record, None, None]:
        yield from run(loaded, request, *([stop.is_set] if stop else []))

    on_gpu = gpu(decode, lambda request, stop, needed: needed)

    def start(request: Request, stop: threading.Event | StopFlag | None = None) -> Generator[Record, None, None]:
        try:
            needed = affordable(loaded, request) if on_zero_gpu() else 0
            with closing(on_gpu(request, stop, needed)) as records:
                yield from records
        finally:
            if isinstance(stop, StopFlag):
                stop.end()

    return start


def planning(loaded: LoadedModel | ModelInfo) -> LoadedModel | ModelInfo:
    """The model for `session.plan` in the server's process: on ZeroGPU nothing there may be put on the device."""
    return dataclasses.replace(loaded, device=torch.device("cpu")) if on_zero_gpu() else loaded


def refuse_sweeps() -> None:
    """Raise LoraDropError on ZeroGPU: a sweep takes minutes of a visitor's quota, and longer than a run may."""
    if on_zero_gpu():
        raise LoraDropError(
            "sweeps do not run on ZeroGPU, they take minutes of a visitor's daily GPU time: duplicate this Space to a "
            "CPU or GPU of your own, or use the sweep command."
        )


def seconds(loaded: LoadedModel, request: Request, checked: Plan) -> int:
    """GPU seconds to declare for a run: all of the tokens asked for, in every lane, and the audit's second passes."""
    fixed, each = _costs(loaded, request, checked)
    return math.ceil(fixed + each * request.max_new_tokens)


def _costs(loaded: LoadedModel, request: Request, checked: Plan) -> tuple[float, float]:
    """Seconds before the first token, and of each further one."""
    weights = loaded.shape.params * loaded.dtype.itemsize
    passes = len(checked.lanes)
    if request.audit:  # it reads what a lane wrote once more, in chunks: a full step for each is the most it can take
        passes += len(checked.lanes.keys() - {BASELINE})
    rate = positive_number("LORA_DROP_ZERO_RATE", 0.0)
    step = 1 / rate if rate else loaded.num_layers * LAYER_SECONDS + weights / READ_RATE
    prefill = len(checked.prompt_ids) / PREFILL_RATE
    return START_SECONDS + weights / COPY_RATE + prefill, passes * step


def affordable(loaded: LoadedModel, request: Request) -> int:
    """The seconds to declare, once the request is known to be right and to fit into what a visitor has.

    Raises:
        LoraDropError: it does not; the line says what would.
    """
    checked = plan(planning(loaded), request)
    needed, quota = seconds(loaded, request, checked), positive_number("LORA_DROP_ZERO_SECONDS", QUOTA_SECONDS)
    limit = quota / QUOTA_FACTOR
    if needed <= limit:
        return needed
    fixed, each = _costs(loaded, request, checked)
    room = math.floor((math.floor(limit) - fixed) / each)
    advice = [f"at most {room} new tokens"] if room > 0 else ["a shorter prompt"]
    advice += ["no audit"] if request.audit else []
    advice += ["no third lane"] if request.compare else []
    raise LoraDropError(
        f"this run asks for {math.ceil(needed * QUOTA_FACTOR)} s of GPU time, and a visitor has {quota:g} s a day: "
        f"ask for {' or '.join(advice)}.{_recorded()}"
    )


def line_of(error: gr.Error) -> str:
    """What the pool says, in one line; with a link to the recorded runs, where there are some."""
    title, message = str(getattr(error, "title", "")), str(error.message)
    if "aborted" in message:
        message = "the GPU was taken back before the run was over; what it wrote is kept. Ask for fewer tokens."
    return f"{title}: {message.rstrip('. ')}.{_recorded()}" if title else f"{message}{_recorded()}"


def replay_url() -> str | None:
    """The address of the recorded runs (LORA_DROP_REPLAY_URL); None if it is none of the web."""
    address = os.environ.get("LORA_DROP_REPLAY_URL", "").strip()
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    return address if parts.scheme in ("http", "https") and parts.netloc and not set(address) & set(' "<>') else None


def _recorded() -> str:
    address = replay_url()
    return f" Recorded runs need no GPU: {address}" if address else ""


def notice() -> str:
    """HTML for the page: what a run costs a visitor here, and where recorded runs are; empty where neither holds."""
    words = ["Each run borrows a GPU and counts against your daily ZeroGPU time."] if on_zero_gpu() else []
    if address := replay_url():
        link = f'<a href="{html.escape(address)}" target="_blank" rel="noopener">Recorded runs</a>'
        words.append(f"{link} need no GPU.")
    return f"<p class='ld-zero'>{' '.join(words)}</p>" if words else ""
