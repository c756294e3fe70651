"""Try out a Space before it is pushed: `make space-check`, or `python -m scripts.space_check`.

Builds the folder to push and starts it as a Space does: in a fresh venv with only its requirements.txt (and Gradio in
the version of the front matter), from that folder, with a Space's environment, an empty home and an empty cache. Then
calls it with gradio_client. Prints a line a check; the exit code is 1 if one failed. It takes minutes, and gigabytes
if pip's torch is the one for CUDA.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load

from lora_drop.ui.serve import space_folder

OWNER, NAME = "someone", "lora-drop-studio"
HOST = f"{OWNER}-{NAME}.hf.space"
START_SECONDS, STOP_SECONDS, RUN_SECONDS = 600, 20, 300
PROMPT = "Explain why the sky is blue."
# Variables of this machine that a Space does not have; those of pip stay.
OURS = ("LORA_DROP_", "GRADIO_", "HF_", "SPACE", "OMP_", "GOMP_", "VIRTUAL_ENV", "PYTHON", "XDG_", "SYSTEM")


class Failed(Exception):
    """A check failed."""


def environment(home: Path, port: int, **more: str) -> dict[str, str]:
    """A CPU Space's environment, as the Hub documents it and Gradio reads it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {
        **inherited,
        "HOME": str(home),
        "PYTHONUNBUFFERED": "1",
        "SYSTEM": "spaces",  # tells Gradio that this is a Space
        "SPACE_ID": f"{OWNER}/{NAME}",
        "SPACE_HOST": HOST,
        "SPACE_AUTHOR_NAME": OWNER,
        "SPACE_REPO_NAME": NAME,
        "SPACE_TITLE": "LoRA-Drop Studio",
        "ACCELERATOR": "none",
        "CPU_CORES": "2",
        "MEMORY": "16Gi",
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SERVER_PORT": str(port),
        **more,
    }


def free_port() -> int:
    """A free port."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Checks:
    """Run checks, print a line for each and count the failures."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, words: str, check: Callable[[], Any]) -> bool:
        """Run a check that returns a detail to print; true if it did not fail."""
        started = time.monotonic()
        try:
            detail, mark = check(), "ok  "
        except Exception as error:  # a broken Space may raise anything
            detail, mark = f"{type(error).__name__}: {error}" if not isinstance(error, Failed) else error, "FAIL"
            self.failed += 1
        print(f"{mark} {words}: {detail} ({time.monotonic() - started:.1f} s)", flush=True)
        return mark == "ok  "


def hold(true: Any, otherwise: str) -> None:
    """Raise Failed with these words unless a condition is true."""
    if not true:
        raise Failed(otherwise)


def requirements(folder: Path) -> list[str]:
    """What a Space installs, as arguments of pip: the folder's requirements and Gradio as its front matter has it."""
    version = (metadata_load(folder / "README.md") or {})["sdk_version"]
    return ["-r", str(folder / "requirements.txt"), f"gradio=={version}"]


def call(*command: str | Path) -> str:
    """Run a command; its output. Raises Failed with the end of its errors."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    hold(done.returncode == 0, f"{' '.join(map(str, command[1:4]))} failed: {done.stderr.strip()[-300:]}")
    return done.stdout


def resolve(python: str | Path, folder: Path, *options: str) -> list[str]:
    """Packages that pip would install for the folder, as `name==version`; nothing is installed."""
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--dry-run", "--quiet", "--report", "-"]
    report = json.loads(call(*pip, *options, *requirements(folder)))
    packages = [package["metadata"] for package in report["install"]]
    return [f"{package['name']}=={package['version']}" for package in packages]


def check_packages(venv: Path, folder: Path, python: str) -> str:
    """The requirements resolve."""
    call(python, "-m", "venv", venv)
    packages = resolve(venv / "bin" / "python", folder)
    torch = [name for name in packages if name.startswith("torch==")]
    nvidia = [name for name in packages if name.startswith("nvidia")]
    return f"{len(packages)} packages, {', '.join(torch)}, {len(nvidia)} of NVIDIA"


def make_venv(venv: Path, folder: Path) -> str:
    """Install what a Space does into a venv."""
    call(venv / "bin" / "python", "-m", "pip", "install", "--quiet", *requirements(folder))
    code = (
        "import sys; from importlib.metadata import version; "
        "print(sys.version.split()[0], *(f'{name} {version(name)}' for name in ('gradio', 'torch', 'transformers')))"
    )
    return f"Python {call(venv / 'bin' / 'python', '-c', code).strip()}"


@contextmanager
def server(
    python: Path, folder: Path, log: Path, env: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start the app: its process and address, once the page answers. Always stopped at the end."""
    url = f"http://127.0.0.1:{env['GRADIO_SERVER_PORT']}"
    with log.open("wb") as output:
        process = subprocess.Popen([python, "app.py"], cwd=folder, env=env, stdout=output, stderr=output)
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            hold(process.poll() is None, f"app.py ended with {process.poll()}: {tail(log)}")
            hold(time.monotonic() < end, f"no answer in {START_SECONDS} s: {tail(log)}")
            try:
                fetch(f"{url}/config")
                break
            except OSError:
                time.sleep(0.5)
        yield process, url
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def tail(log: Path) -> str:
    """The last words of a log, in one line."""
    return " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-400:]


def fetch(url: str, headers: dict[str, str] | None = None) -> str:
    """Get the text at an address. Raises OSError: the answer is not 200."""
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=30) as answer:
        return str(answer.read(), "utf-8")


def check_page(url: str) -> str:
    """Get the page and each of its scripts."""
    page = fetch(url)
    hold("LoRA-Drop Studio" in page, "the page is not ours")
    paths = sorted(set(re.findall(r"gradio_api/file=[^\"'\\ >]+", page)))
    hold(paths, "the page names none of its scripts")
    for path in paths:
        hold(fetch(f"{url}/{path}"), f"{path} is empty")
    return f"{len(page) / 1e3:.0f} kB, and {len(paths)} scripts answer"


def check_proxy(url: str) -> str:
    """Behind the Hub's proxy, with https and the Space's name, no address may lead elsewhere."""
    config = json.loads(fetch(f"{url}/config", {"Host": HOST, "X-Forwarded-Host": HOST, "X-Forwarded-Proto": "https"}))
    root = config.get("root", "")
    hold(root == f"https://{HOST}", f"the page's root is {root}")
    return str(root)


def check_estimate(client: Any) -> str:
    """`/estimate` on its defaults."""
    estimate = client.predict(prompt=PROMPT, api_name="/estimate")
    hold(estimate["bound"] >= 1 and estimate["prompt_tokens"] > 0, f"unlikely: {estimate}")
    return f"bound {estimate['bound']:.2f}, {estimate['prompt_tokens']} prompt tokens"


def check_generate(client: Any) -> str:
    """`/generate` streams a whole trace of two lanes."""
    job = client.submit(prompt=PROMPT, max_new_tokens=24, ignore_eos=True, api_name="/generate")
    updates = list(job)
    records = [json.loads(line) for line in updates[-1].splitlines()]
    hold(records[0]["type"] == "header" and records[-1]["type"] == "summary", "the trace is cut short")
    lanes = records[-1]["lanes"]
    hold(all(lane["tokens"] == 24 for lane in lanes.values()) and len(lanes) == 2, f"lanes: {lanes}")
    hold(len(updates) > 1, "it came in one piece")
    paces = ", ".join(f"{name} {lane['tokens_per_second']:.0f} tokens/s" for name, lane in lanes.items())
    return f"{len(updates)} updates, {records[0]['device']['decoder']} decoder, {paces}"


def check_mistake(client: Any) -> str:
    """A visitor's mistake is one clear line."""
    try:
        client.predict(prompt=PROMPT, layers="3-999", api_name="/estimate")
    except Exception as error:
        line = str(error)
        hold("999" in line and "\n" not in line, f"not one clear line: {line}")
        return line
    raise Failed("it was taken")


def check_stop(process: subprocess.Popen[bytes]) -> str:
    """A Space is stopped with SIGTERM."""
    process.terminate()
    try:
        return f"exit code {process.wait(STOP_SECONDS)}"
    except subprocess.TimeoutExpired:
        raise Failed(f"still there after {STOP_SECONDS} s") from None


def check_no_home(venv: Path, folder: Path, log: Path, home: Path) -> str:
    """Without a folder for the model: one line that names the variable to set, and no traceback."""
    env = environment(home, free_port(), LORA_DROP_MODEL="bundled")
    with log.open("wb") as output:
        done = subprocess.run(
            [venv / "bin" / "python", "app.py"],
            cwd=folder,
            env=env,
            stdout=output,
            stderr=output,
            timeout=START_SECONDS,
        )
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    hold(done.returncode == 2 and "LORA_DROP_CACHE" in lines[-1], f"exit code {done.returncode}: {tail(log)}")
    hold("Traceback" not in tail(log), "a traceback")
    return lines[-1]


def drive(check: Checks, venv: Path, folder: Path, log: Path, env: dict[str, str], words: str) -> None:
    """Start the Space, and check it as a visitor and the Hub use it."""
    from gradio_client import Client

    running = server(venv / "bin" / "python", folder, log, env)
    opened: list[tuple[subprocess.Popen[bytes], str]] = []

    def start() -> str:
        opened.append(running.__enter__())
        return f"pid {opened[0][0].pid}"

    if not check(f"starts, {words}", start):
        return
    try:
        process, url = opened[0]
        check("the page", lambda: check_page(url))
        check("behind the Hub's proxy", lambda: check_proxy(url))
        client = Client(url, verbose=False, httpx_kwargs={"timeout": 60})
        check("/estimate", lambda: check_estimate(client))
        check("/generate", lambda: check_generate(client))
        check("a visitor's mistake", lambda: check_mistake(client))
        client.close()
        check("stops", lambda: check_stop(process))
    finally:
        running.__exit__(None, None, None)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.space_check", description=__doc__.split(":")[0])
    parser.add_argument("--python", default=sys.executable, help="the interpreter for the venv (this one)")
    parser.add_argument("--model", default="bundled", help="of LORA_DROP_MODEL; random:tiny-llama is quick")
    parser.add_argument("--zero-gpu", action="store_true", help="with ZeroGPU's torch")
    parser.add_argument("--torch-index", metavar="URL", help="as of `lora-drop space`")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this new folder, and keep it")
    args = parser.parse_args(argv)
    work = args.keep or Path(tempfile.mkdtemp(prefix="lora-drop-space-"))
    work.mkdir(parents=True, exist_ok=True)
    check, started = Checks(), time.monotonic()
    folder, venv, home, log = (work / name for name in ("app", "venv", "home", "log.txt"))
    home.mkdir()
    no_home = work / "no-home"  # a file: nothing can be written below it, not even by root
    no_home.touch()
    try:

        def built() -> str:
            sizes = space_folder.build(folder, f"{OWNER}/{NAME}", args.zero_gpu, args.torch_index)
            return f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB"

        if (
            check("the folder", built)
            and check("its requirements", lambda: check_packages(venv, folder, args.python))
            and check("the venv", lambda: make_venv(venv, folder))
        ):
            env = environment(home, free_port(), LORA_DROP_MODEL=args.model)
            drive(check, venv, folder, log, env, f"model {args.model}, empty cache")
            cache = {"LORA_DROP_CACHE": str(home / ".cache" / "lora-drop"), "LORA_DROP_MODEL": args.model}
            env = environment(no_home, free_port(), **cache)
            drive(check, venv, folder, log, env, "home not writable, LORA_DROP_CACHE filled")
            check("home not writable and no cache named", lambda: check_no_home(venv, folder, log, no_home))
    finally:
        if not args.keep:
            shutil.rmtree(work, ignore_errors=True)
    ending = f"{check.failed} checks failed" if check.failed else "all checks passed"
    print(f"{ending} ({time.monotonic() - started:.0f} s)")
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
