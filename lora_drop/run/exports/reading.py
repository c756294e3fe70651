"""What the page makes of a trace, as JSON, by the name of a job; and the process that does it for a stranger's file.

`python -m lora_drop.run.exports.reading` is that process. It reads `{"job", "arguments", "sizes", "most"}` as one line
from its input, then the texts of these sizes, and writes `{"answer"}`, or `{"error"}` with one line for the visitor.
It has no torch, and its memory is limited where the system can do that.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from lora_drop import system
from lora_drop.errors import LoraDropError
from lora_drop.run.exports.chrome import chrome_trace
from lora_drop.run.exports.html import replay_html, wire_text
from lora_drop.run.report.align import side_by_side
from lora_drop.run.report.compare import side_of
from lora_drop.run.report.steps import about_steps
from lora_drop.run.trace.trace import Trace, parse_trace

MEMORY = 512 * 2**20  # bytes beyond the process's size after its imports
TOGETHER = 256  # steps of an answer: a reader goes on to the neighbours, and a trace is not parsed for each
NICE = 5  # the device's runs come first


def opened(trace: Trace) -> dict[str, Any]:
    """The run for the live view, with each lane's label and number of tokens."""
    lanes = {lane["id"]: [lane["label"], len(trace.steps[lane["id"]])] for lane in trace.header.lanes}
    return {"wire": wire_text(trace), "lanes": lanes, "is_cut": trace.summary is None}


def steps_of(trace: Trace, lane: str, first: int) -> dict[str, Any]:
    """`about` `TOGETHER` steps as the records have them; and what reading the lane's text again takes: the header, and
    kinds and tokens of all the lane's steps."""
    about = about_steps(trace, lane, first, TOGETHER)
    steps = [[step.kind, step.token_id] for step in trace.steps[lane]]
    return {"about": about, "header": trace.header.to_file(), "steps": steps}


def text_of(trace: Trace, lane: Any) -> str:
    """The answer of a lane. Raises LoraDropError if there is none."""
    if lane not in list(trace.steps):
        raise LoraDropError("that run has no such lane.")
    return trace.text(lane)


OF_TRACE: dict[str, Callable[..., Any]] = {
    "open": opened,
    "html": replay_html,
    "chrome": chrome_trace,
    "compare": side_of,
    "steps": steps_of,
    "text": text_of,
}


def work(job: str, texts: Sequence[bytes], *arguments: Any) -> Any:
    """Do a job.

    Args:
        job: a name of `OF_TRACE`, or `align`.
        texts: a trace; for `align`, two answers.

    Raises:
        LoraDropError: the text is no trace, or the job does not fit it.
    """
    if job == "align":
        return side_by_side(*(text.decode() for text in texts))
    return OF_TRACE[job](parse_trace(texts[0]), *arguments)


def main() -> None:
    """Do one job for another process."""
    import numpy  # noqa: F401  # of the speedup's interval: it belongs to the size that is not limited

    system.limit_memory(MEMORY)
    system.step_back(NICE)
    request = json.loads(sys.stdin.buffer.readline())
    try:
        answer = {
            "answer": work(request["job"], list(map(sys.stdin.buffer.read, request["sizes"])), *request["arguments"])
        }
        written = json.dumps(answer, allow_nan=False)
        if len(written) > request["most"]:
            raise LoraDropError(f"what this trace comes to is larger than {request['most'] >> 20} MiB.")
    except LoraDropError as error:
        written = json.dumps({"error": str(error)})
    except MemoryError:
        written = json.dumps({"error": f"this trace needs more than {MEMORY >> 20} MiB of memory to be read."})
    sys.stdout.write(written)


if __name__ == "__main__":
    main()
