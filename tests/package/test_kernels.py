"""The libraries of the wheels, which zig compiles: each path that can run here, under an emulator too, is the local
build's; the others are linked and export what they should; a wheel without a compiler uses its own."""

import json
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from lora_drop.decode.native import decoder, loader, structs
from lora_drop.decode.native.structs import F32, Q4_0, Q4_1, Q4_K, Q6_K, Q8_0
from lora_drop.errors import LoraDropError
from lora_drop.method.schedule import baseline_schedule
from lora_drop.paths import CHECKOUT
from tests.decode import test_rows
from tests.decode.test_fast import TOLERANCE
from tests.decode.test_rows import GGUF_KINDS, SCALES, SHAPES, matrix
from tests.package.conftest import install
from tests.support.decoding import logits_of

pytest.importorskip("ziglang", reason="make test-full installs zig")
lief = pytest.importorskip("lief")
wheels = pytest.importorskip("scripts.wheels")
pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(1800),  # zig compiles each path anew in a fresh checkout
    pytest.mark.skipif(loader.library() is None, reason="there is no C compiler here"),
]
# Processors of qemu, and the paths that they have; the emulator knows no AVX-512.
EMULATED = {
    "linux-x86_64": [("qemu-x86_64", "Nehalem", "plain"), ("qemu-x86_64", "Haswell", "plain avx2")],
    "linux-arm64": [("qemu-aarch64", "cortex-a53", "neon"), ("qemu-aarch64", "max", "neon neon-dot")],
}
SMALL = {Q4_0: 1 / 8, Q4_1: 1 / 8, Q8_0: 1 / 127, Q4_K: 1 / 945, Q6_K: 1 / 4064}  # of the codes' size
SYSROOT = Path("/usr/aarch64-linux-gnu")  # Debian's libc6-arm64-cross
HERE = loader.library_name()


@pytest.fixture(scope="module", params=wheels.PLATFORMS)
def built(request) -> tuple[str, Path]:
    """A platform and its library; of these very sources it may be there already."""
    return request.param, library_of(request.param)


def library_of(platform: str) -> Path:
    own = wheels.PLATFORMS[platform]
    path = loader.built_for_wheels() / own.library
    return path if path.is_file() else wheels.build_library(own)


@pytest.fixture(scope="module", params=loader.PATHS)
def fresh(request) -> loader.Library:
    """The library of this platform's wheel, with each path."""
    try:
        library = loader.bind(library_of("linux-x86_64"), request.param)
    except LoraDropError as error:
        pytest.skip(str(error))
    library.ld_threads(2)
    return library


# What each system has: its C library and, on Windows, the C runtime.
SYSTEM = re.compile(r"lib(c|m|pthread)\.so|ld-linux|/usr/lib/libSystem|KERNEL32|api-ms-win-crt|msvcrt", re.IGNORECASE)


def test_it_exports_its_functions_and_needs_the_system_alone(built):
    platform, path = built
    library, paths = lief.parse(str(path)), wheels.PLATFORMS[platform].paths
    exported = {function.name.removeprefix("_") for function in library.exported_functions}
    names = {loader.path_name(name, path) for name in structs.FUNCTIONS for path in paths}
    assert names == {name for name in exported if name.startswith("ld_")}
    needed = [str(getattr(one, "name", one)) for one in (library.imports if "win" in platform else library.libraries)]
    assert needed and all(name == path.name or SYSTEM.match(name) for name in needed), needed
    assert str(CHECKOUT).encode() not in path.read_bytes(), "no path of the machine that built it"
    versions = re.findall(r"GLIBC_2\.(\d+)", path.read_bytes().decode("latin-1"))
    assert max(map(int, versions), default=0) <= 17


# Several rows are, to the bit, what each is alone: here with this module's `fresh`.
test_rows_of_a_matrix = test_rows.test_a_matrix_gives_each_row_what_it_gives_alone
test_rows_of_several_kinds = test_rows.test_a_matrix_of_several_kinds_gives_what_each_gives_alone
test_blocks = test_rows.test_blocks_give_what_their_numbers_give_to_the_rounding_of_x


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Path:
    """A layer and a head of each kind of numbers, with inputs for some rows."""
    path = tmp_path_factory.mktemp("cases") / "inputs"
    d, heads, kv_heads, hs, inner, vocabulary, rows = 256, 4, 2, 64, 512, 512, 9
    shapes = [((heads + 2 * kv_heads) * hs, d), (d, heads * hs), (2 * inner, d), (d, inner), (vocabulary, d)]
    with path.open("wb") as file:
        for kind in dict.fromkeys(kind for kind, _, _ in SHAPES):
            file.write(struct.pack("8q", kind, d, heads, kv_heads, hs, inner, vocabulary, rows))
            query = torch.randn(rows, heads, hs, dtype=torch.float32 if kind == F32 else torch.bfloat16)
            angles = torch.arange(rows)[:, None] * torch.rand(hs)
            weights = [stored(kind, n, k) for n, k in shapes]
            for one in (torch.rand(d) / 16, angles.cos(), angles.sin(), torch.randn(rows, d), query, *weights):
                content = one.contiguous().view(torch.uint8).numpy().tobytes()
                file.write(struct.pack("q", len(content)) + content)
    return path


def stored(kind: int, n: int, k: int) -> torch.Tensor:
    """A matrix of small numbers, as files have it."""
    kept = matrix(kind, n, k)[1]
    if kind not in SMALL:
        return kept[0]
    blocks = kept[2].reshape(-1, gguf.GGML_QUANT_SIZES[GGUF_KINDS[kind]][1])
    for at in SCALES[kind]:
        scales = blocks[:, at : at + 2].copy().view(np.float16) * np.float16(SMALL[kind])
        blocks[:, at : at + 2] = scales.view(np.uint8)
    return torch.from_numpy(blocks)


def drive(command: list[str | Path], library: Path, kernels: str, cases: Path, out: Path) -> np.ndarray:
    """The logits and the prompt's attention, a row for each case."""
    suffix = loader.path_name("", kernels)
    done = subprocess.run([*command, library, suffix, cases, out], capture_output=True, text=True)
    assert done.returncode == 0, f"{kernels}: exit code {done.returncode} {done.stderr}"
    return np.fromfile(out, dtype=np.float32).reshape(len(GGUF_KINDS) + 2, -1)


@pytest.mark.parametrize("platform", EMULATED)
def test_each_path_gives_what_the_local_build_gives(platform, cases, tmp_path, capsys):
    """By a driver in C, on this processor or an emulated one; it also compares rows together with single ones."""
    library, target = library_of(platform), wheels.PLATFORMS[platform].target
    for name, goal in (("driver", target), ("own", "x86_64-linux-gnu.2.17")):
        source = Path(__file__).with_name("driver.c")
        wheels.zig(["-target", goal, "-std=gnu11", "-O1", f"-I{loader.FOLDER}", source, "-o", tmp_path / name, "-ldl"])
    local = Path(shutil.copy(loader.library()._name, tmp_path / "local.so"))
    right = drive([tmp_path / "own"], local, "", cases, tmp_path / "out")
    runs = {}
    if library.name == HERE:
        able = subprocess.run(
            [tmp_path / "driver", library], capture_output=True, text=True, check=True
        ).stdout.split()
        runs = {path: [tmp_path / "driver"] for path in able}
    for emulator, processor, paths in EMULATED[platform]:
        if shutil.which(emulator) and (platform == "linux-x86_64" or SYSROOT.is_dir()):
            command = [
                emulator,
                "-cpu",
                processor,
                *(["-L", SYSROOT] if "arm" in platform else []),
                tmp_path / "driver",
            ]
            done = subprocess.run([*command, library], capture_output=True, text=True)
            assert done.stdout.strip() == paths, f"{processor} {done.stderr}"
            runs[f"{paths.split()[-1]} of an emulated {processor}"] = command
    for name, command in runs.items():
        out = drive(command, library, name.split()[0], cases, tmp_path / "out")
        error = np.linalg.norm(out - right, axis=1) / np.linalg.norm(right, axis=1)
        assert (error < 2e-3).all(), (name, error)  # NaNs too
    missing = wheels.PLATFORMS[platform].paths.keys() - {name.split()[0] for name in runs}
    with capsys.disabled():
        print(f"\n{platform}, run: {', '.join(runs) or 'nothing'}; not run here: {', '.join(missing) or 'nothing'}")


def test_the_wheel_s_tokens_are_the_local_build_s(bundled, fresh, monkeypatch):
    """Another token may come only where the local build's top two are closer than the stated tolerance."""
    ids = bundled.tokenizer(
        "The three laws of motion say that a body stays at rest until a force acts on it"
    ).input_ids
    both = []
    for library in (loader.library(), fresh):
        monkeypatch.setattr(decoder, "compiled", lambda library=library: library)
        both.append(logits_of(bundled.new_decoder(), baseline_schedule(30), None, ids[:4], ids[4:])[0])
    top = both[0].topk(2).values
    clear = top[:, 0] - top[:, 1] > TOLERANCE
    assert clear.sum() > 5 and torch.equal(*(logits.argmax(-1)[clear] for logits in both))


def test_without_a_compiler_a_wheel_runs_its_own_kernels(tmp_path):
    """In a folder with spaces and umlauts, which cannot be written; and where its library is another platform's."""
    wheel = wheels.build_wheel(wheels.PLATFORMS["linux-x86_64"], library_of("linux-x86_64"), tmp_path)
    assert re.search(r"-py3-none-manylinux_2_17_x86_64\.whl$", wheel.name)
    programs = install(tmp_path / "mit Leerzeichen und Ümläuten", wheel)
    (package,) = programs.parent.glob("lib/python*/site-packages/lora_drop/decode/native")
    package.chmod(0o555)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CC")}
    environment |= {"PATH": str(programs), "LORA_DROP_CACHE": "/dev/null/none"}

    def run() -> tuple[dict, str]:
        tiny = ("--model", "random:tiny-llama", "--dtype", "float32", "--prompt", "hi", "--max-new-tokens", "24")
        words = [programs / "lora-drop", "run", *tiny, "--json"]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    result, lines = run()
    assert result["device"]["kernels"].startswith("wheel, ") and not lines
    package.chmod(0o755)
    shutil.copy(library_of("linux-arm64"), package / HERE)
    result, lines = run()
    (line,) = lines.splitlines()
    assert "cannot be loaded" in line and "There is no C compiler" in line
    assert "kernels" not in result["device"] and result["speedup"] is None
    assert result["verdict"]["facts"]["speed"] is None and result["verdict"]["facts"]["speedup"] is None
    assert result["verdict"]["facts"]["no_kernels"] == result["device"]["kernels_missing"] == "compiler"
    assert "install a c compiler, or this platform's wheel): speed is not shown" in result["verdict"]["text"].lower()
