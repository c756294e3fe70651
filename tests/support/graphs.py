"""CUDA graphs on a CPU: a stub that records what a capture runs, and replays it over the very same memory.

As on a GPU a replay runs the recorded operations alone: it sees no Python, reads the tensors that were there at the
capture, and writes where the capture wrote. Between replays all that a graph computed is poisoned with NaN, so that
what reads it, be it an earlier replay's result or what was never computed in this one, shows.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What a capture refuses: a wait for the device, and a copy of a Python number that is made at the time.
REFUSED = ("aten::_local_scalar_dense", "aten::lift_fresh", "aten::nonzero", "aten::equal")


def tensors(values) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Graph:
    """Stands for `torch.cuda.CUDAGraph`. `all` are those of a test."""

    all: ClassVar[list[Graph]] = []

    def __init__(self):
        self.operations: list = []
        self.own: dict[int, torch.Tensor] = {}  # what it computes, by place in memory
        self.replays = 0
        Graph.all.append(self)

    def replay(self) -> None:
        for graph in Graph.all:
            graph.poison()
        for function, args, kwargs, results in self.operations:
            found = function(*args, **kwargs)
            for old, new in zip(tensors(results), tensors(found), strict=True):
                if old is not new and place(old) != place(new):
                    old.copy_(new)
        self.replays += 1

    def poison(self) -> None:
        for tensor in self.own.values():
            tensor.fill_(torch.nan if tensor.is_floating_point() else 1 if tensor.dtype == torch.bool else 0)


class Recording(TorchDispatchMode):
    """Stands for `torch.cuda.graph`: afterwards the memory of others is as before, as a capture runs nothing."""

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, own = kwargs or {}, self.graph.own
        assert func._schema.name not in REFUSED, func
        inputs = {place(tensor) for tensor in tensors((args, kwargs))}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            self.save(argument, value)
        for argument in func._schema.arguments:
            if argument.name in kwargs:
                self.save(argument, kwargs[argument.name])
        results = func(*args, **kwargs)
        changed = func._schema.is_mutable
        fresh = [tensor for tensor in tensors(results) if place(tensor) not in inputs]
        own.update({place(tensor): tensor for tensor in fresh})
        if fresh or changed:
            self.graph.operations.append((func, args, kwargs, results))
        return results

    def save(self, argument, value) -> None:
        """Keep what an operation is about to write over."""
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, torch.Tensor):
            if place(value) not in self.graph.own and place(value) not in self.before:
                self.before[place(value)] = value, value.clone()

    def __exit__(self, *error):
        super().__exit__(*error)
        for tensor, value in self.before.values():
            tensor.copy_(value)
        self.graph.poison()


class Stream:
    """Stands for `torch.cuda.Stream`; one device's."""

    def __init__(self, device):
        self.device = torch.device(device)

    def wait_stream(self, other) -> None:
        assert self.device == other.device


class Machine:
    """Stands for what CUDA knows of a thread: its current device, and each device's current stream."""

    def __init__(self):
        self.device = torch.device("cuda", 0)
        self.streams: list[Stream] = []  # entered and not left
        self.captures: list[Stream] = []  # the streams of all captures, in order
        self.calls: list[str] = []  # "capture" and "clear", in order

    @contextlib.contextmanager
    def on(self, device):
        before, self.device = self.device, torch.device(device)
        try:
            yield
        finally:
            self.device = before

    @contextlib.contextmanager
    def stream(self, stream):
        assert stream.device == self.device, "a stream of another device"
        self.streams.append(stream)
        try:
            yield
        finally:
            self.streams.pop()

    def current_stream(self, device=None):
        device = self.device if device is None else torch.device(device)
        here = [stream for stream in self.streams if stream.device == device]
        return here[-1] if here else Stream(device)

    def capture(self, graph, pool, stream, capture_error_mode):
        assert stream in self.streams and stream.device == self.device
        assert capture_error_mode == "thread_local"  # other threads may call CUDA meanwhile
        self.captures.append(stream)
        self.calls.append("capture")
        return Recording(graph)

    def clear(self) -> None:
        self.calls.append("clear")

    def memory_reserved(self, device) -> int:
        return sum(tensor.nbytes for graph in Graph.all for tensor in graph.own.values())


def install(monkeypatch) -> Machine:
    """Let a capture on the CPU be recorded."""
    machine = Machine()
    monkeypatch.setattr(Graph, "all", [])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", machine.capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "memory_reserved", machine.memory_reserved)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", machine.clear, raising=False)  # a CPU's has none
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", machine.current_stream)
    monkeypatch.setattr(torch.cuda, "stream", machine.stream)
    monkeypatch.setattr(torch.cuda, "device", machine.on)
    return machine


class Hostless(TorchDispatchMode):
    """Fails where something waits for the device, or copies a number from the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func._schema.name not in REFUSED, func
        return func(*args, **kwargs or {})


class Counting(TorchDispatchMode):
    """Counts what would be kernels: views and fresh memory are none."""

    def __init__(self):
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **kwargs or {})
        views = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        name = func._schema.name.removeprefix("aten::")
        if not views and not name.startswith(("empty", "new_empty", "_unsafe_view", "prim::")):
            self.names[name] += 1
        return results
