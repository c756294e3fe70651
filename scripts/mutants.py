"""Mutation testing: change one expression of the method, the report, the lane or the refresher; does a test fail?

    make mutants
    python -m scripts.mutants [--count 400] [--seed 0] [--only NAME ...] [--json FILE] [--all-tests]

Draws mutants by a seed, runs the target's tests on each mutant, and prints the share killed per file, then the
survivors. A mutant changes one arithmetic, comparison, boolean or return expression. The tree is never changed: each
worker has a copy of it. One warm process imports the libraries once and forks a child a mutant.

A mutant is killed when a test fails, when it cannot be imported, and when its tests need far more processor time than
they do without it: that is an endless loop. The table has these as `timeout`, and counts them as killed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import importlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation import mutators

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 2
LIBRARIES = (  # what tests import and no mutant changes
    *("pytest", "hypothesis", "jsonschema", "torch", "safetensors.torch", "pydantic", "huggingface_hub", "filelock"),
    *("tokenizers", "gguf", "gradio", "accelerate", "pydantic.dataclasses"),
    "transformers.models.auto.tokenization_auto",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("llama", "mistral", "qwen2", "qwen3")),
)
OUTCOMES = {0: "survived", -1: "timeout"}  # by pytest's exit code; any other one is killed
PYTEST = ("-q", "-n", "0", "-p", "no:cacheprovider", "-p", "no:warnings", "-p", "no:anyio")
SLACK, LEAST = 2, 10  # a mutant may take so many times the processor time of the clean run, and so many seconds more
WALL = 5  # and, on a busy machine or waiting, so many times that


@dataclasses.dataclass(frozen=True)
class Target:
    """Files to mutate, and the tests that belong to them, the fastest first."""

    files: tuple[str, ...]  # globs from the repository's root
    tests: tuple[str, ...]  # from tests/

    def paths(self) -> list[Path]:
        """The files that match, from the repository's root."""
        return sorted(path.relative_to(ROOT) for pattern in self.files for path in ROOT.glob(pattern))

    def tests_of(self, path: Path) -> tuple[str, ...]:
        """The tests of one of the files: those named after it first."""
        named = f"test_{path.stem}.py"
        return tuple(f"tests/{test}" for test in sorted(self.tests, key=lambda test: Path(test).name != named))


METHOD_TESTS = (
    *(f"method/test_{name}.py" for name in ("interval", "frontier", "quality", "paper", "schedule", "cost")),
    *(f"method/test_{name}.py" for name in ("presets", "config", "settings")),
    *(f"evaluation/test_{name}.py" for name in ("results", "safe_zone", "preset_results")),
    *("run/test_session.py", "run/test_figures.py"),
)
REPORT_TESTS = (
    *(f"run/test_{name}.py" for name in ("trace", "words", "align", "replay_space", "compare", "race")),
    *(f"run/test_{name}.py" for name in ("trace_schema", "fuzz", "chrome", "report", "replay", "prompts", "session")),
    *(f"run/test_{name}.py" for name in ("commands", "why", "steps", "inspect", "verdict")),
)
DECODE_TESTS = (
    *("decode/test_lane.py", "run/test_stop.py", "run/test_session.py"),
    *(f"decode/test_{name}.py" for name in ("graphs", "engine", "repair", "refresh")),
)
TARGETS = (
    Target(("lora_drop/method/*.py",), METHOD_TESTS),
    Target(("lora_drop/run/report/*.py", "lora_drop/run/summary.py"), REPORT_TESTS),
    Target(("lora_drop/decode/lane.py", "lora_drop/decode/refresh.py"), DECODE_TESTS),
)


@dataclasses.dataclass(frozen=True, order=True)
class Mutant:
    """One change of one file. Sorted by the file's name without its folder, so that a moved file draws the same."""

    name: str  # of the file
    line: int
    column: int
    before: str
    after: str
    path: Path = dataclasses.field(compare=False)
    tests: tuple[str, ...] = dataclasses.field(compare=False)
    code: Callable[[], str] = dataclasses.field(compare=False, repr=False)  # the whole mutated file

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.before} -> {self.after}"


def returns_none(node: cst.Return) -> Iterator[cst.Return]:
    """`return value` becomes `return None`; of True and False another change makes the opposite."""
    constant = isinstance(node.value, cst.Name) and node.value.value in ("None", "True", "False")
    if node.value is not None and not constant:
        yield node.with_changes(value=cst.Name("None"))


CHANGES: tuple[tuple[type[cst.CSTNode], Callable[[Any], Any]], ...] = (
    (cst.CSTNode, mutators.operator_swap_op),  # + to -, < to <=, == to !=, and to or
    (cst.CSTNode, mutators.operator_keywords),  # is to is not, in to not in
    (cst.AugAssign, mutators.operator_augmented_assignment),  # += to =
    (cst.UnaryOperation, mutators.operator_remove_unary_ops),  # not x to x
    (cst.Name, mutators.operator_name),  # True to False
    (cst.IfExp, mutators.operator_if_exp),  # always one branch
    (cst.Return, returns_none),
    (cst.Lambda, mutators.operator_lambda),  # its value is None
)


class Finder(cst.CSTVisitor):
    """Collects the changes of a module: (line, column, node, new node)."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[tuple[int, int, cst.CSTNode, cst.CSTNode]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        # Annotations are never evaluated, decorators declare, and `strict` of zip is itself a check.
        if isinstance(node, cst.Annotation | cst.Decorator | cst.Break | cst.Continue):
            return False
        if isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value == "strict":
            return False
        for kind, change in CHANGES:
            if isinstance(node, kind):
                start = self.get_metadata(PositionProvider, node).start
                self.changes.extend((start.line, start.column + 1, node, new) for new in change(node))
        return True


def mutants_of(path: Path, tests: tuple[str, ...]) -> Iterator[Mutant]:
    """Every mutant of a file."""
    wrapper = MetadataWrapper(cst.parse_module((ROOT / path).read_text(encoding="utf-8")))
    finder = Finder()
    wrapper.visit(finder)
    module = wrapper.module
    for line, column, node, new in finder.changes:
        before, after = (" ".join(module.code_for_node(expression).split()) for expression in (node, new))
        code = partial(lambda node, new: module.deep_replace(node, new).code, node, new)
        yield Mutant(path.name, line, column, before, after, path, tests, code)


def draw(count: int, seed: int, only: list[str]) -> list[Mutant]:
    """Draw `count` of all mutants by a seed, then keep those of the files in `only`, if any are named."""
    mutants = sorted(
        mutant for target in TARGETS for path in target.paths() for mutant in mutants_of(path, target.tests_of(path))
    )
    chosen = random.Random(seed).sample(mutants, min(count, len(mutants)))
    return sorted(mutant for mutant in chosen if not only or mutant.path.stem in only)


class Failures:
    """A pytest plugin: writes the id of each test that fails to a file."""

    def __init__(self, out: Path):
        self.out = out

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            with self.out.open("a", encoding="utf-8") as file:
                file.write(report.nodeid + "\n")


def copy_tree(to: Path) -> None:
    """Copy the files that git tracks, or would."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


class Worker:
    """A copy of the tree in which one child at a time runs tests."""

    def __init__(self, folder: Path):
        self.tree, self.log, self.failed = folder / "tree", folder / "log", folder / "failed"
        self.tree.mkdir(parents=True)
        copy_tree(self.tree)
        self.pid = 0
        self.began = self.deadline = 0.0

    def start(self, tests: tuple[str, ...], options: tuple[str, ...], limit: float) -> None:
        """Fork a child that runs tests on the copy, with a limit in seconds of processor time."""
        self.failed.write_text("")
        self.began = time.monotonic()
        self.deadline = self.began + WALL * limit
        sys.stdout.flush()
        if not (pid := os.fork()):
            self._child(tests, options, limit)
        self.pid = pid

    def _child(self, tests: tuple[str, ...], options: tuple[str, ...], limit: float) -> None:
        code = 3  # of pytest: an error within pytest
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, int(limit) + 5))
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(self.tree)
            sys.path[0] = str(self.tree)
            for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
                del sys.modules[name]
            import pytest

            arguments = [*PYTEST, *options, f"--basetemp={self.tree.parent / 'tmp'}", *tests]
            code = int(pytest.main(arguments, plugins=[Failures(self.failed)]))
        finally:
            sys.stdout.flush()
            os._exit(code)

    def result(self) -> tuple[int, float, float] | None:
        """None while the child runs; then pytest's exit code (-1: past a limit), its seconds, its processor time."""
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        late = not pid and time.monotonic() > self.deadline
        if not (pid or late):
            return None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it started, too
        if late:
            _, status, usage = os.wait4(self.pid, 0)
        self.pid = 0
        code = os.waitstatus_to_exitcode(status)
        past = late or code in (-signal.SIGXCPU, -signal.SIGKILL)
        return -1 if past else code, time.monotonic() - self.began, usage.ru_utime + usage.ru_stime


def warm() -> None:
    """Import the libraries, in the environment that tests/conftest.py and the package set up."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false"}
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # a child then collects only objects that it made


def run_all(jobs: list[Any], workers: list[Worker], start: Callable[..., None], end: Callable[..., None]) -> None:
    """Keep every worker busy: `start(worker, job)`, then `end(worker, job, result)`."""
    waiting = list(jobs)
    busy: dict[int, Any] = {}
    while waiting or busy:
        for at, worker in enumerate(workers):
            if at in busy and (result := worker.result()) is not None:
                end(worker, busy.pop(at), result)
            if at not in busy and waiting:
                busy[at] = waiting.pop(0)
                start(worker, busy[at])
        time.sleep(0.01)


def clean_runs(mutants: list[Mutant], workers: list[Worker]) -> dict[tuple[str, ...], float]:
    """The processor time of each list of tests, run on the tree as it is.

    Raises:
        SystemExit: a test fails as it is.
    """
    took: dict[tuple[str, ...], float] = {}

    def end(worker: Worker, tests: tuple[str, ...], result: tuple[int, float, float]) -> None:
        code, _, took[tests] = result
        if code:
            print(worker.log.read_text(encoding="utf-8", errors="replace")[-4000:], file=sys.stderr)
            raise SystemExit(f"mutants: the tests do not pass as they are (pytest's exit code {code}).")

    alike: dict[frozenset[str], tuple[str, ...]] = {frozenset(m.tests): m.tests for m in mutants}
    run_all(list(alike.values()), workers, lambda worker, tests: worker.start(tests, ("-x",), 600), end)
    return {tests: took[alike[frozenset(tests)]] for tests in {m.tests for m in mutants}}


def run_mutants(
    mutants: list[Mutant], workers: list[Worker], clean: dict[tuple[str, ...], float], stop: bool
) -> list[dict[str, Any]]:
    """One row a mutant, in the order in which they ended."""
    rows: list[dict[str, Any]] = []
    started = itertools.count()

    def start(worker: Worker, mutant: Mutant) -> None:
        mutated = worker.tree / mutant.path
        mutated.write_text(mutant.code(), encoding="utf-8")
        os.utime(mutated, (0, next(started)))  # compiled files are told apart by times in whole seconds
        worker.start(mutant.tests, ("-x",) if stop else (), SLACK * clean[mutant.tests] + LEAST)

    def end(worker: Worker, mutant: Mutant, result: tuple[int, float, float]) -> None:
        shutil.copy2(ROOT / mutant.path, worker.tree / mutant.path)
        code, seconds, cpu = result
        outcome = OUTCOMES.get(code, "killed")
        row: dict[str, Any] = {"file": mutant.path.as_posix()}
        row |= {name: getattr(mutant, name) for name in ("line", "column", "before", "after")}
        row |= {"outcome": outcome, "seconds": round(seconds, 2), "cpu": round(cpu, 2)}
        rows.append(row | {"failed": worker.failed.read_text(encoding="utf-8").splitlines()})
        print(f"{len(rows)}/{len(mutants)} {outcome:8} {seconds:5.1f} s  {mutant}", file=sys.stderr)

    run_all(mutants, workers, start, end)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The share killed, a line a file and one for all."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        for name in (row["file"], "all"):
            counts.setdefault(name, Counter())[row["outcome"]] += 1
    lines = [f"{'file':38} mutants killed timeout survived  share"]
    for name, each in sorted(counts.items(), key=lambda item: (item[0] == "all", item[0])):
        dead = each["killed"] + each["timeout"]
        numbers = f"{each.total():7} {each['killed']:6} {each['timeout']:7} {each['survived']:8}"
        lines.append(f"{name:38} {numbers} {dead / each.total():6.1%}")
    return "\n".join(lines)


def main() -> int:
    """The script; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=400, help="mutants drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="of those drawn, the ones in these files"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every mutant and its outcome")
    parser.add_argument("--all-tests", action="store_true", help="go on after the first failure: who kills what")
    parser.add_argument("--list", action="store_true", help="print the mutants drawn and run nothing")
    args = parser.parse_args()
    began = time.monotonic()
    mutants = draw(args.count, args.seed, args.only)
    if args.list or not mutants:
        print(*mutants, sep="\n")
        return 0
    warm()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        workers = [Worker(Path(folder) / str(number)) for number in range(WORKERS)]
        rows = run_mutants(mutants, workers, clean_runs(mutants, workers), not args.all_tests)
    rows.sort(key=lambda row: (row["file"], row["line"], row["column"]))
    minutes = (time.monotonic() - began) / 60
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"seed": args.seed, "minutes": round(minutes, 1), "mutants": rows}, indent=1))
    print("Survivors:")
    for row in rows:
        if row["outcome"] == "survived":
            print(f"{row['file']}:{row['line']}:{row['column']}: {row['before']} -> {row['after']}")
    print(table(rows))
    print(f"{minutes:.1f} minutes")
    return 0


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    os._exit(exit_code)  # at a usual exit Triton's bindings print pages about leaks
