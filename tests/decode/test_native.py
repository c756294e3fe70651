"""The C steps: built once and safely, the same from several threads, after a fork, and not needed."""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lora_drop.decode.logits import entropy
from lora_drop.decode.native import loader, structs
from lora_drop.decode.native.loader import find_compiler, library
from lora_drop.decode.native.weights import BLOCK_KINDS
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.schedule import REUSE_RULES
from lora_drop.models.load import load_model
from tests.support import ROOT
from tests.support.decoding import PROMPT, decoder_of
from tests.support.parts import full_bank

pytestmark = pytest.mark.skipif(library() is None, reason="there is no C compiler here")


@pytest.fixture(scope="module")
def decoder(tiny):
    return decoder_of(tiny.model, "native")


def greedy(decoder, period=3, steps=60, bank=None, **rules):
    """The text and the last logits of a run of its own."""
    schedule = LoraDropConfig(period=period, drop_ratio=1.0, **rules).schedule_for(decoder.num_layers)
    state, tokens = decoder.new_state(schedule, bank), []
    logits = decoder.prefill(torch.tensor([PROMPT]), state).logits
    for _ in range(steps):
        tokens.append(int(logits.argmax()))
        logits = decoder.step(torch.tensor([tokens[-1:]]), state).logits
    return tokens, logits


def compiled(folder, flags=(), compiler=None):
    """A library of the sources for this processor, with the program's own flags and these."""
    folder.mkdir(exist_ok=True)
    own = (*loader.FLAGS, *loader._processor_flags(None), *flags)
    loader.compile_library(compiler or find_compiler(), own, folder / "step.so")
    return folder / "step.so"


def test_both_sides_have_one_layout(tmp_path):
    names = ("Matrix", "Layer", "Store", "Plan", "Step", "Screen", "Ends", "Answer")
    kinds = [getattr(structs, name) for name in names]
    lines = ["#include <stddef.h>", f'#include "{loader.FOLDER / "abi.h"}"']
    for kind in kinds:
        lines.append(f'_Static_assert(sizeof({kind.__name__}) == {ctypes.sizeof(kind)}, "");')
        for name, *_ in kind._fields_:
            lines.append(f'_Static_assert(offsetof({kind.__name__}, {name}) == {getattr(kind, name).offset}, "");')
    for number in ("F32", "BF16", *BLOCK_KINDS):
        lines.append(f'_Static_assert({number} == {getattr(structs, number)}, "");')
    for number in ("OK", "NO_MEMORY", "NO_THREADS", "ABI"):
        lines.append(f'_Static_assert(LD_{number} == {getattr(structs, number)}, "");')
    for i, rule in enumerate(REUSE_RULES):
        lines.append(f'_Static_assert({rule.upper()} == {i}, "");')
    (tmp_path / "layout.c").write_text("\n".join(lines))
    subprocess.run([find_compiler(), "-std=gnu11", "-fsyntax-only", tmp_path / "layout.c"], check=True)


@pytest.mark.parametrize("compiler", ["gcc", pytest.param("clang", marks=pytest.mark.full)])
def test_it_compiles_without_a_warning(compiler, tmp_path):
    """Debian's clang has its version in its name, unless the package `clang` is installed too."""
    names = (compiler, *(f"{compiler}-{version}" for version in range(22, 11, -1)))
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"there is no {compiler} here")
    compiled(tmp_path, ["-Werror"], path)


# Calls that fail once as many as `allowed` have been made.
SCARCE = """
#include <pthread.h>
#include <stdlib.h>
__attribute__((visibility("default"))) int allowed = 1 << 30;
void *__real_aligned_alloc(size_t, size_t);
void *__wrap_aligned_alloc(size_t a, size_t n) { return allowed-- > 0 ? __real_aligned_alloc(a, n) : NULL; }
int __real_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *x) {
    return allowed-- > 0 ? __real_pthread_create(t, a, f, x) : 11;
}
"""


def test_where_memory_or_threads_run_out_it_is_reported(decoder, tiny, tmp_path, monkeypatch):
    """Each allocation fails in turn. Then, with memory again, the same library decodes the same text."""
    (tmp_path / "scarce.c").write_text(SCARCE)
    wrapped = [f"-Wl,--wrap={name}" for name in ("aligned_alloc", "pthread_create")]
    try:
        library = loader.bind(compiled(tmp_path, [*wrapped, str(tmp_path / "scarce.c")]))
    except subprocess.SubprocessError:
        pytest.skip("this linker cannot wrap functions")
    allowed = ctypes.c_int.in_dll(library, "allowed")
    every_buffer = {"bank": full_bank(tiny, "residual"), "head": "screened", "refresh": "repair", "kv": "write"}
    right = greedy(decoder, **every_buffer)
    monkeypatch.setattr(decoder, "_library", library)
    failed = 0
    for allowed.value in range(100):
        try:
            text = greedy(decoder, **every_buffer)
            break
        except MemoryError as error:
            assert "no memory for a decode step" in str(error)
            failed += 1
    assert failed >= 6 and text[0] == right[0]
    allowed.value = 1
    with pytest.raises(LoraDropError, match="no more threads for decoding"):
        library.ld_threads(4)
    allowed.value = 100  # the thread that there was needs memory of its own
    assert greedy(decoder, **every_buffer)[0] == right[0]


@pytest.mark.full
def test_sanitizers_find_nothing(tmp_path, monkeypatch):
    """Address and undefined-behaviour sanitizers over whole decodes, in a process of their own."""
    monkeypatch.setattr(loader, "COMPILE_SECONDS", 600)  # on a busy machine it may take long
    flags = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    compiler = find_compiler()
    try:
        built = compiled(tmp_path, flags)
    except subprocess.SubprocessError:
        pytest.skip("this compiler has no sanitizers")
    asan = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    runtime = Path(asan.stdout.strip())
    if not runtime.is_absolute():
        pytest.skip("the sanitizers of this compiler cannot be loaded into Python")
    here = Path(__file__).parent
    environment = os.environ | {
        "LD_PRELOAD": str(runtime),
        # Leaks are Python's own. What looks for use after return gives frames that are not aligned to 64 bytes.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
    }
    command = [sys.executable, str(here / "sanitized_decode.py"), str(built)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "decoded\n", done.stderr[-5000:]


def test_models_load_without_it(monkeypatch):
    monkeypatch.setattr("lora_drop.models.load.library", lambda: None)
    assert load_model("random:tiny-llama", device="cpu", dtype="float32").new_decoder().name == "static (float32)"
    monkeypatch.undo()
    assert load_model("random:tiny-llama", device="cpu", dtype="float32").new_decoder().name == "native (float32)"


def test_runs_in_several_threads_do_not_mix(decoder):
    """Calls take turns at the pool; each must find its own numbers, to the bit, over thousands of phases."""
    periods = (1, 2, 3, 5)
    alone = [greedy(decoder, period) for period in periods]
    with ThreadPoolExecutor(len(periods)) as pool:
        together = list(pool.map(lambda period: [greedy(decoder, period) for _ in range(3)], periods))
    for (tokens, logits), runs in zip(alone, together, strict=True):
        assert all(again[0] == tokens and torch.equal(again[1], logits) for again in runs)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_no_bit(decoder, threads):
    before = greedy(decoder)
    library().ld_threads(threads)  # a pool only grows
    after = greedy(decoder)
    assert after[0] == before[0] and torch.equal(after[1], before[1])


def test_a_forked_process_has_threads_of_its_own(decoder):
    """A worker that a Space forks would wait for ever for threads that only its parent has.

    Prefill comes before the fork, which torch's own OpenMP does not survive.
    """
    states = [
        decoder.new_state(LoraDropConfig(period=3, drop_ratio=1.0).schedule_for(decoder.num_layers)) for _ in "ab"
    ]
    for state in states:
        decoder.prefill(torch.tensor([PROMPT]), state)

    def steps(state):
        return repr([round(float(decoder.step(torch.tensor([[7]]), state).logits.sum()), 3) for _ in range(20)])

    def in_child(threads):
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            try:
                if threads:
                    library().ld_threads(threads)
                os.write(write, steps(states[0]).encode())
            finally:
                os._exit(0)
        os.close(write)
        try:
            with os.fdopen(read) as pipe:
                return pipe.read() if select.select([pipe], [], [], 60)[0] else "it hangs"
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    library().ld_threads(2)
    answers = [in_child(2)]
    ended = threading.Event()
    with ThreadPoolExecutor(1) as other:  # a fork in the middle of another thread's call, with workers inside
        busy = other.submit(lambda: [steps(states[1]) for _ in iter(ended.is_set, True)])
        answers += [in_child(0) for _ in range(5)]
        ended.set()
        busy.result()
    assert answers == [steps(states[0])] * 6


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_the_entropy_is_the_softmaxs(scale):
    logits = scale * torch.randn(1, 1003, generator=torch.Generator().manual_seed(0))
    assert library().ld_entropy(logits.data_ptr(), 1003) == pytest.approx(entropy(logits), rel=1e-5, abs=1e-6)
    logits[0, 7] = float("nan")
    assert library().ld_entropy(logits.data_ptr(), 1003) != library().ld_entropy(logits.data_ptr(), 1003)


@pytest.mark.parametrize("n", [1, 5, 63, 64, 65, 1003])
def test_the_best_is_the_first_of_the_largest(n):
    logits = torch.randn(3, n, generator=torch.Generator().manual_seed(n)).round(decimals=1)  # some are equal
    logits[1] = -float("inf")
    logits[2, n // 2] = float("nan")
    best = [library().ld_best(row.data_ptr(), n) for row in logits]
    assert best[:2] == [int(logits[0].numpy().argmax()), 0] and 0 <= best[2] < n
