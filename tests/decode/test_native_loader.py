"""The C library's file: built once, trusted only where nobody else can have written it, and not needed."""

from __future__ import annotations

import errno
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lora_drop.decode.native import loader, structs
from lora_drop.decode.native.loader import build, find_compiler, library
from lora_drop.errors import LoraDropError
from lora_drop.run.report.headline import NO_KERNELS
from tests.decode.test_native import compiled
from tests.support import ROOT
from tests.support.fuzzing import mutated_bytes

pytestmark = pytest.mark.skipif(library() is None, reason="there is no C compiler here")


@pytest.fixture(scope="module", autouse=True)
def quick_builds():
    """Build without optimisation, and the same sources with the same flags once: the libraries are not run."""
    libraries, compile_library = {}, loader.compile_library

    def compile_once(compiler, flags, target):
        key = loader._checksum(compiler, tuple(flags))
        if key not in libraries:
            compile_library(compiler, flags, target)
            libraries[key] = target.read_bytes()
        target.write_bytes(libraries[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "FLAGS", tuple("-O0" if flag == "-O3" else flag for flag in loader.FLAGS))
        patch.setattr(loader, "compile_library", compile_once)
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory, quick_builds):
    """The library's file, as `build` leaves it in an empty folder."""
    folder = tmp_path_factory.mktemp("built")
    assert build(find_compiler(), folder) is not None
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_another_python_loads_what_this_one_has_built(built, version):
    """A cache outlives its venv: the file holds nothing of Python."""
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "--version"]).returncode:  # pyenv's stand-in for one that is off
        pytest.skip("not installed")
    load = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).ld_abi())"
    done = subprocess.run([python, "-c", load, built], capture_output=True, text=True)
    assert done.stdout.strip() == str(structs.ABI), done.stderr


def test_it_is_built_once(built):
    before = built.stat()
    assert build(find_compiler(), built.parent) is not None
    assert list(built.parent.iterdir()) == [built] and built.stat().st_mtime_ns == before.st_mtime_ns


def edited(tmp_path, name, change):
    """A copy of the sources with one file changed."""
    copied = tmp_path / "sources"
    shutil.copytree(loader.FOLDER, copied)
    (copied / name).write_text(change((copied / name).read_text()))
    return copied


@pytest.fixture
def other_abi(tmp_path):
    """A copy of the sources with another ABI number."""
    return edited(tmp_path, "abi.h", lambda text: text.replace(f"LD_ABI {structs.ABI}", "LD_ABI 99"))


@pytest.mark.parametrize("damage", ["truncated", "no functions", "other number"])
def test_a_library_that_cannot_be_used_is_built_again(built, damage, tmp_path, other_abi, monkeypatch, capsys):
    content = built.read_bytes()
    cache = tmp_path / "cache"
    cache.mkdir()
    if damage == "truncated":
        (cache / built.name).write_bytes(content[: len(content) // 2])
    else:  # whole, and under a name that is looked for
        with monkeypatch.context() as patch:
            patch.setattr(loader, "FOLDER", other_abi)
            other = compiled(tmp_path / "other") if damage == "other number" else shared(tmp_path, "int nothing;")
        shutil.copy(other, named(cache, built, other))
    assert build(find_compiler(), cache).ld_abi() == structs.ABI
    (again,) = cache.iterdir()
    assert again.stat().st_size == len(content)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: ") and line.endswith(" They were built anew.")


def shared(tmp_path, source):
    """A library of one line of C."""
    code, built = tmp_path / "other.c", tmp_path / "other.so"
    code.write_text(source)
    subprocess.run([find_compiler(), "-shared", "-fPIC", "-o", built, code], check=True)
    return built


def named(cache, built, other):
    """The name under which a library is looked for in a cache, if `other` were this program's."""
    return cache / f"{built.stem.rpartition('-')[0]}-{loader._digest(other.read_bytes())}.so"


# It leaves a file when it is loaded.
EVIL = '#include <stdio.h>\n__attribute__((constructor)) void x(void) {{ fclose(fopen("{}/ran", "w")); }}'


@pytest.mark.parametrize("attack", ["somebody's", "writable", "link"])
def test_a_library_that_somebody_else_can_have_written_is_never_loaded(built, attack, tmp_path, capsys):
    evil = shared(tmp_path, EVIL.format(tmp_path))
    path = named(tmp_path / "cache", built, evil)
    path.parent.mkdir()
    shutil.copy(evil, path)
    if attack == "somebody's":
        if os.geteuid() != 0:
            pytest.skip("only root can give a file away")
        os.chown(path, 65534, 65534)
    elif attack == "writable":
        path.chmod(0o666)
    else:
        path.rename(tmp_path / "elsewhere.so")
        path.symlink_to(tmp_path / "elsewhere.so")
    assert build(find_compiler(), tmp_path / "cache").ld_abi() == structs.ABI
    assert not (tmp_path / "ran").exists() and not path.exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert "built anew" in line


@pytest.mark.parametrize("place", ["pipe", "folder"])
def test_what_is_no_file_under_the_librarys_name_stops_no_start(built, place, tmp_path, capsys):
    path = tmp_path / built.name
    os.mkfifo(path) if place == "pipe" else (path / "full").mkdir(parents=True)
    assert build(find_compiler(), tmp_path) is not None
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_library_is_its_owners_alone_to_write_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        assert build(find_compiler(), tmp_path / "cache") is not None
    finally:
        os.umask(before)
    (path,) = (tmp_path / "cache").iterdir()
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.full
def test_a_thousand_mutations_of_the_library_are_all_refused(built, tmp_path):
    rng, content, path = random.Random(0), built.read_bytes(), tmp_path / built.name
    for _ in range(1000):
        if (mutated := mutated_bytes(content, rng, [content])) != content:
            path.write_bytes(mutated)
            with pytest.raises(LoraDropError, match="damaged"):
                loader._load(path)


def as_nobody(cache, environment=None):
    """What `build` says to a user without rights, who is this one's child after a fork."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.environ.update(environment or {})
            tempfile.tempdir = None  # asked for anew
            sys.stderr = open(write, "w", closefd=False)  # noqa: SIM115
            native = build(find_compiler(), cache)
            sys.stderr.write(f"{native is not None and native.ld_abi()}")
            sys.stderr.flush()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        *lines, loaded = pipe.read().split("\n")
    os.waitpid(child, 0)
    assert loaded == str(structs.ABI), lines
    return lines


@pytest.mark.full
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_cache_and_temporary_folder_and_one_that_cannot_be_written(built):
    """In /tmp itself, for another user may not pass through pytest's folders."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        cache, own, foreign = (Path(place) / name for name in ("cache", "own", "foreign"))
        cache.mkdir()
        (line,) = as_nobody(cache)
        assert "cannot be kept in" in line and "LORA_DROP_CACHE" in line, "read-only"
        shutil.copy(built, cache)
        assert as_nobody(cache) == [], "what root has built is trusted"
        os.chown(cache / built.name, 1, 1)
        (line,) = as_nobody(cache)
        assert "by somebody else. They cannot be kept" in line and (cache / built.name).exists()
        own.mkdir()
        os.chown(own, 65534, 65534)
        foreign.mkdir(mode=0o700)
        assert as_nobody(own, {"TMPDIR": str(foreign)}) == [] and [path.name for path in own.iterdir()] == [built.name]


@pytest.mark.full
def test_a_full_disk_under_the_cache_is_one_line(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(loader.shutil, "copyfile", full)
    native = build(find_compiler(), tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert native and "cannot be kept in" in line and not list(tmp_path.iterdir())


@pytest.mark.full
def test_two_that_build_at_once_both_have_it(tmp_path):
    code = (
        "import sys; from pathlib import Path; from lora_drop.decode.native import loader; "
        "assert loader.build(loader.find_compiler(), Path(sys.argv[1]))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "c"], cwd=ROOT) for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    assert [path.suffix for path in (tmp_path / "c").iterdir()] == [".so"]


def test_one_that_cannot_be_used_even_when_new_is_reported_in_one_line(tmp_path, other_abi, monkeypatch, capsys):
    monkeypatch.setattr(loader, "FOLDER", other_abi)
    calls = []
    compile_library = loader.compile_library
    monkeypatch.setattr(loader, "compile_library", lambda *args: (calls.append(1), compile_library(*args)))
    for runs in (1, 2):  # with an empty cache, and with what the first call left
        assert build(find_compiler(), tmp_path / "cache") is None and len(calls) == runs
        (line,) = capsys.readouterr().err.splitlines()
        assert "have ABI 99, not " in line and "slower" in line


@pytest.mark.parametrize(
    ("compiler", "says"),
    [
        (None, "There is no C compiler"),
        ("/bin/false", "false cannot build them (exit code 1)"),
        ("/no/such/compiler", "compiler cannot build them (No such file or directory)"),
        ("dumb", "dumb cannot build them (error: unknown value 'native' for '-march')"),
    ],
)
def test_without_a_compiler_that_works_there_is_none_and_one_line(compiler, says, tmp_path, capsys):
    if compiler == "dumb":  # it has no name for the processor
        dumb = tmp_path / compiler
        dumb.write_text("#!/bin/sh\necho \"error: unknown value 'native' for '-march'\" >&2\nexit 1\n")
        dumb.chmod(0o755)
        compiler = str(dumb)
    assert build(compiler, tmp_path / "cache") is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: no compiled decode steps: ") and says in line and line.endswith("slower.")
    assert not (tmp_path / "cache").exists()


def test_where_the_cache_cannot_be_written_it_is_built_for_one_start(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert build(find_compiler(), tmp_path / "file" / "native").ld_abi() == structs.ABI
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be kept in" in line and "LORA_DROP_CACHE" in line


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The library as a start finds it that has LORA_DROP_NATIVE set."""

    def ask(value):
        monkeypatch.setenv("LORA_DROP_NATIVE", value)
        monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path))
        return library.__wrapped__()

    return ask


@pytest.mark.skipif(platform.machine() != "x86_64", reason="another family of processors")
def test_a_lesser_path_can_be_asked_for_beside_the_usual_one(asked, capsys):
    """Both are kept, each under its name."""
    assert asked("plain").ld_path() == b"plain" and asked("1").ld_path() == library().ld_path()
    assert asked("plain").ld_path() == b"plain" and not capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("0", ""),
        ("sse9", "is 'sse9', not 0, 1, plain, avx2, avx512, "),
        ("avx2", "for another processor"),
    ],
)
def test_a_path_that_there_is_not_is_one_line(asked, value, says, tmp_path, monkeypatch, capsys):
    """The last as on a processor without AVX2, whose compiler makes the file all the same."""
    lesser = '#include "abi.h"\nconst char *ld_paths(void) { return "plain"; }\n'
    monkeypatch.setattr(loader, "FOLDER", edited(tmp_path, "cpu.c", lambda text: lesser))
    assert asked(value) is None
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(says) and all(says in line and line.endswith("slower.") for line in lines)


def test_where_the_wheel_s_library_cannot_be_used_it_is_built_here(asked, tmp_path, monkeypatch, capsys):
    """Another platform's, or one without the path that is asked for: one line, and none without a compiler too."""
    foreign = tmp_path / "Bücher & mehr.so"
    foreign.write_bytes(b"\x7fELF" + bytes(200))
    monkeypatch.setattr(loader, "shipped_library", lambda: foreign)
    assert asked("1").about.startswith("built here, ")
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be loaded" in line and line.endswith("They were built anew.")
    monkeypatch.setattr(loader, "find_compiler", lambda: None)
    assert asked("1") is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be loaded" in line and "There is no C compiler" in line


@pytest.mark.parametrize(
    ("native", "compiler", "why"), [("0", "cc", "off"), ("1", None, "compiler"), ("1", "cc", "build")]
)
def test_why_there_is_no_library(monkeypatch, native, compiler, why):
    monkeypatch.setenv("LORA_DROP_NATIVE", native)
    monkeypatch.setattr(loader, "find_compiler", lambda: compiler)
    assert loader.why_missing() == why
    assert why in NO_KERNELS
