"""CUDA graphs on a CPU: a stub that records what a capture runs, and replays it over the very same memory.

As on a GPU a replay runs the recorded operations alone: it sees no Python, reads the tensors that were there at the
capture, and writes where the capture wrote. Between replays all that a graph computed is poisoned with NaN, so that
what reads it, be it an earlier replay's result or what was never computed in this one, shows.
"""

from __future__ import annotations

import contextlib

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

    all: list[Graph] = []

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

    def __init__(self, graph: Graph, **options):
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
    def wait_stream(self, other) -> None:
        pass


def install(monkeypatch) -> None:
    """Let a capture on the CPU be recorded."""
    monkeypatch.setattr(Graph, "all", [])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
