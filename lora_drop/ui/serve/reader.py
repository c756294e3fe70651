"""Read traces of strangers in another process: `exports.reading`, started for each trace and gone after it.

A start costs 0.2 s. Answers are cached by the hash of the question. A trace that this server wrote is read here.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.run.exports.reading import work
from lora_drop.run.shares import Shares
from lora_drop.ui.serve.gradio_private import address_of_call
from lora_drop.ui.serve.policy import MIB

AT_ONCE = 2  # processes; an address may have a single process
PATIENCE = 30.0  # seconds that a call waits for a process
SECONDS, SECONDS_A_MIB = 30.0, 4.0  # most time of a process: 8 MiB of the densest records take 12 s of an idle core
MOST_ANSWERS, MOST_BYTES = 1000, 64 * MIB  # answers, and their bytes
LEAST_ANSWER = 16 * MIB  # bytes that an answer may have (plotly.js takes 1.5), and four times the largest trace
# Environment variables that the reading process gets: no secret is among them.
PASSED = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")


class Reader:
    """Does jobs of `exports.reading`, each once as long as its answer is cached.

    Args:
        most_bytes: of a text.
    """

    def __init__(self, most_bytes: int):
        self.most_bytes = most_bytes
        self._answers: Shares[bytes, bytes] = Shares(MOST_ANSWERS, MOST_BYTES)  # owned by addresses
        self._busy: set[str] = set()  # addresses with a process
        self._free = threading.Condition()

    def ask(self, job: str, *texts: bytes, arguments: tuple[Any, ...] = (), trusted: bool = False) -> Any:
        """The answer to a job.

        Args:
            job: see `exports.reading.work`.
            texts: the same.
            arguments: the same.
            trusted: the texts are this server's.

        Raises:
            LoraDropError: see `work`; or the reading took too much time or memory, or others are being read.
        """
        if not trusted and max(map(len, texts)) > self.most_bytes:
            raise LoraDropError(f"a trace may have at most {self.most_bytes // MIB} MiB here.")
        asked = json.dumps([job, arguments, *(hashlib.sha256(text).hexdigest() for text in texts)])
        key = hashlib.sha256(asked.encode()).digest()
        with self._free:
            answer = self._answers.get(key)
        if answer is None:
            answer = (
                json.dumps(work(job, texts, *arguments)).encode()
                if trusted
                else self._elsewhere(job, texts, arguments)
            )
        with self._free:
            self._answers.put(key, answer, address_of_call(), len(answer))
        return json.loads(answer)

    def _elsewhere(self, job: str, texts: Sequence[bytes], arguments: tuple[Any, ...]) -> bytes:
        address, end = address_of_call(), time.monotonic() + PATIENCE
        with self._free:
            while address in self._busy or len(self._busy) >= AT_ONCE:
                if not self._free.wait(end - time.monotonic()):
                    raise LoraDropError("other traces are being read: try again in a moment.")
            self._busy.add(address)
        try:
            return self._process(job, texts, arguments)
        finally:
            with self._free:
                self._busy.discard(address)
                self._free.notify_all()

    def _process(self, job: str, texts: Sequence[bytes], arguments: tuple[Any, ...]) -> bytes:
        sizes = list(map(len, texts))
        most = LEAST_ANSWER + 4 * self.most_bytes
        request = json.dumps({"job": job, "arguments": arguments, "sizes": sizes, "most": most}).encode() + b"\n"
        environment = {name: value for name, value in os.environ.items() if name in PASSED}
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
        seconds = SECONDS + SECONDS_A_MIB * sum(sizes) / MIB
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "lora_drop.run.exports.reading"],
                input=b"".join((request, *texts)),
                stdout=subprocess.PIPE,
                env=environment,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            raise LoraDropError(f"reading this trace took longer than {seconds:.0f} s: it was given up.") from None
        if done.returncode:
            raise LoraDropError("reading this trace failed: it may need more memory than a trace gets here.")
        answer = json.loads(done.stdout)
        if "error" in answer:
            raise LoraDropError(answer["error"])
        return json.dumps(answer["answer"]).encode()
