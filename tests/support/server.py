"""A real page in this process, on a port of its own, whose runs are recorded and can be replaced."""

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from gradio_client import Client
from transformers import LlamaConfig, LlamaForCausalLM

from lora_drop.models.load import LoadedModel
from lora_drop.models.pool import ModelPool
from lora_drop.models.tokens import ByteTokenizer
from lora_drop.run.trace.records import Record, StepRecord
from lora_drop.ui import callbacks
from lora_drop.ui.page import Page, build_app, launch
from lora_drop.ui.serve.policy import Policy
from scripts.space_check import free_port


@contextlib.contextmanager
def launched(pool: ModelPool, policy: Policy | None = None) -> Iterator[tuple[Page, int]]:
    """A page, launched as app.py does, and its port on 127.0.0.1."""
    demo = build_app(pool, policy)
    launch(demo, "127.0.0.1", port := free_port(), block=False)
    try:
        yield demo, port
    finally:
        demo.close(verbose=False)


def api_client(url: str) -> Client:
    """A client of the page's API, with time for a busy machine: the default is 5 s a request."""
    return Client(url, verbose=False, httpx_kwargs={"timeout": 60})


def request(
    port: int, method: str, path: str, body: object = None, source: str = "127.0.0.1", **headers: str
) -> http.client.HTTPResponse:
    """The answer to a request, not yet read. The path goes out letter for letter."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60, source_address=(source, 0))
    connection.request(method, path, body, {"Content-Type": "application/json", **headers})
    return connection.getresponse()


def ask(port: int, *args, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Status, content and headers of the answer to a `request`."""
    answer = request(port, *args, **headers)
    return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}


@dataclass
class Server:
    """A running page, the records of its runs, and a way to put another run in their place.

    Args:
        goes_on: until this is set, a run waits a tenth of a second after each step, however fast the machine is.
    """

    url: str
    loaded: LoadedModel
    runs: list[list[Record]] = field(default_factory=list)
    closed: int = 0
    script: Callable[[], Iterator[Record]] | None = None
    goes_on: threading.Event | None = None

    def run(self, loaded, request, should_stop=lambda: False, prompts=None) -> Iterator[Record]:
        records: list[Record] = []
        self.runs.append(records)
        source = self.script() if self.script else REAL_RUN(loaded, request, should_stop, prompts)
        try:
            for record in source:
                records.append(record)
                yield record
                if self.goes_on and isinstance(record, StepRecord):
                    self.goes_on.wait(0.1)
        finally:
            source.close()
            self.closed += 1


REAL_RUN = callbacks.run


def deep_model() -> LoadedModel:
    """30 narrow layers with random weights: as many numbers a step as the bundled model sends, in little time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(ByteTokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=30,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return LoadedModel(model, ByteTokenizer(), "deep test model", "0" * 16, 4096, torch.device("cpu"), torch.float32)


def serve(pool: ModelPool) -> Iterator[Server]:
    """A page over a pool; its runs, and those of every other page that is open, go through their `Server`."""
    with launched(pool) as (_, port):
        with pool.lend() as loaded:
            server = Server(f"http://127.0.0.1:{port}/", loaded)
        SERVERS[id(server.loaded)] = server
        callbacks.run = _run  # not a monkeypatch: pages of other modules begin and end in any order
        yield server
    for key in [key for key, other in SERVERS.items() if other is server]:
        del SERVERS[key]
    if not SERVERS:
        callbacks.run = REAL_RUN


def _run(loaded: LoadedModel, *args) -> Iterator[Record]:
    return SERVERS[id(loaded)].run(loaded, *args) if id(loaded) in SERVERS else REAL_RUN(loaded, *args)


SERVERS: dict[int, Server] = {}
