"""Every command that a text tells a reader to type, run as printed, without a GPU and on small files.

README's commands, and those that need a shell, run in a venv with the wheel alone. Other commands of this program, and
blocks of Python, run in this process: a new one imports torch for 3 to 10 s. What README has too runs once, unless it
writes a file. Those that cannot run here are listed below by reason; those that take minutes are stopped once their
work has begun.
"""

import _thread
import contextlib
import importlib.util
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import termios
import threading
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from lora_drop.cli.main import main
from lora_drop.errors import LoraDropError
from lora_drop.models.bundled import NAME as BUNDLED
from lora_drop.models.bundled import ensure
from lora_drop.paths import ASSETS
from scripts.space_check import free_port
from tests.support import ROOT
from tests.support.documented import NAME, PAGES, Command, gathered, parsers, strings
from tests.support.task_files import write_task_files

GATHERED = gathered()
# Reason -> the commands, as the start of each.
NOT_HERE = {
    "needs the Hub": (
        *(r"hf (repos|upload|download|auth)", r".*custom_generate=\"USER/REPOSITORY\""),
        *(r"(python -m lora_drop|lora-drop) adapters (pull|push) ", r"lora-drop run .*--adapters USER/"),
        r"(python -m lora_drop|lora-drop) fetch (qwen|\{\})",
    ),
    "needs the package index": (r"pip install",),
    "needs a checkout": (
        *(
            r"(\S+=\S+ )?make ",
            r"(\S+=\S+ )?python (-O )?-m (scripts|pytest|build|twine)\b",
            r"python tests/",
            r"source ",
            r"uv ",  # test_editable.py
        ),
    ),
    "needs a page that runs": (r"curl ", r".*from gradio_client import"),
    "needs the sources of a shipped bank": (r"python -m lora_drop train --model bundled:",),
    "needs cards": (r"accelerate launch --multi_gpu --num_processes 8",),
    "trains for minutes": (r".*lora_drop\.TrainJob\(",),  # test_train.py does the same with a tiny model
    "never ends": (r'python -c "while True',),
}
if importlib.util.find_spec("lm_eval") is None:
    NOT_HERE["needs the package lm_eval"] = (r"python -m lora_drop(\.evaluation\.tasks\.model| benchmark)",)
# The commands that take minutes to hours -> what they print once they are at work.
BEGINS = {
    r"python -m lora_drop train --(?!model)|ACCELERATE\S+ ": r"memory: |\d+ of \d+ texts",
    r"(python -m lora_drop|lora-drop) bench( |$)": r"warm-up|round|of \d",
    r"python -m lora_drop sweep ": r"[1-9]\d* of \d+ points",
    r'S="python -m lora_drop sweep ': r"of \d+ points.* \d\d:\d\d left",
    r"(python -m lora_drop|lora-drop) (presets|reproduce|compare)": r"\d of \d+ prompts",
    r"python -m lora_drop drop-order": r"\d+ \(KL",
    r"python -m lora_drop evaluate .*--free": r"[1-9]\d* answers",
    r"(\S+=\S+ )?lora-drop page ": r"is ready",
}
OF_OTHERS = {"--repo-type", "--extra-index-url"}  # options of hf and pip


def kind(command: Command) -> str:
    """`run`, a name that is not to be run, a reason why it cannot be, or what it prints when it has begun."""
    if NAME.fullmatch(command.text):
        return "name"
    text = command.text.replace("\n", " ")
    reasons = [reason for reason, starts in NOT_HERE.items() if any(re.match(start, text) for start in starts)]
    begins = [shown for start, shown in BEGINS.items() if re.match(start, text)]
    assert len(reasons) <= 1 and len(begins) <= 1, f"{command}: listed twice"
    return (*reasons, *begins, "run")[0]


def test_the_lists_are_not_stale():
    texts = [command.text.replace("\n", " ") for command in GATHERED]
    for start in (*BEGINS, *(start for starts in NOT_HERE.values() for start in starts)):
        assert any(re.match(start, text) for text in texts), f"no text has a command {start}"
    assert Counter(map(kind, GATHERED))["run"] >= 30


def test_names_and_options_of_all_commands_are_there():
    """Also those that are not run: a command of this program must parse, a target, module or file must exist."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in GATHERED:
        if "<<" in command.text or "\n" in command.text:
            continue
        words = shlex.split(command.text, comments=True)
        while "=" in words[0]:
            words.pop(0)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), command
        for path in (word for word in words if re.match(r"(tests|docs|scripts)/", word)):
            assert (ROOT / path).exists(), command
        if words[:2] == ["python", "-m"] and words[2].startswith(("scripts", "lora_drop.")):
            assert importlib.util.find_spec(words[2]), command
        if words[:3] == ["python", "-m", "lora_drop"] or words[0] == "lora-drop":
            words = words[3 if words[0] == "python" else 1 :]
            if words:
                assert words[0] in parsers(), command
            if words[1:]:
                try:
                    parsers()[words[0]].parse_args(words[1:])
                except LoraDropError as error:
                    pytest.fail(f"{command}: {error}")


def test_the_readme_works_from_nothing():
    """Its commands read no file but those that commands above them wrote."""
    written = set()
    for command in (command.text for command in GATHERED if command.source == "README.md"):
        words = [] if "<<" in command else shlex.split(command, comments=True)
        after = dict(itertools.pairwise(words))
        read = {after[option] for option in ("--data", "--adapters", "--start") if option in after}
        read |= {after["replay"]} if "replay" in after else set()
        assert read <= written, command
        written |= {after[option] for option in ("--out", "--trace", "--html") if option in after}
    assert "my-adapters" in written


def test_hints_name_options_and_packages_that_there_are():
    flags = {flag for parser in parsers().values() for action in parser._actions for flag in action.option_strings}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    pinned = {line.name: line.specifier for line in map(Requirement, pinned)}
    for source, text in strings():
        if " " in text and source.endswith(".py"):
            named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![\w-])", text))
            assert named <= flags | OF_OTHERS, f"{source}: {text}"
        for quoted in re.findall(r"pip install ((?:'[^']+' ?)+)", text):
            for one in map(Requirement, shlex.split(quoted)):
                exact = [spec.version.removesuffix(".*") for spec in one.specifier if spec.operator == "=="]
                fits = str(one.specifier) in ("", str(pinned[one.name])) or all(v in pinned[one.name] for v in exact)
                assert fits, f"{source}: {text}"


def test_nobody_is_told_to_install_a_name_that_is_not_ours():
    """The name on the package index is anybody's to register: `pip install .`, or the wheel's file."""
    texts = [(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8")) for page in PAGES]
    texts += [(name, parser.format_help()) for name, parser in parsers().items()]
    texts += [*strings(), *((str(path), path.read_text(encoding="utf-8")) for path in ROOT.glob("lora_drop/**/*.md"))]
    for source, text in texts:
        for line in re.findall(r"(?:pip|uv|pipx)\w* (?:install|add|tool)[^\n`]*", text):
            names = re.findall(r"(?<![\w/.-])lora[-_]drop(?![\w-]*-\S*\.whl)", line, re.IGNORECASE)
            assert not names or source == "docs/publishing.md", f"{source}: {line}"


# ---- what a reader has ----------------------------------------------------------------------------------------------

PAIR = {"question": "Why is the sky blue?", "answer": "Because air scatters blue light more than red light."}
INSTRUCTION = {"prompt": PAIR["question"], "target": PAIR["answer"], "text": PAIR["answer"]}
ROW = {"ind": 1, "activity_label": "Cooking", "ctx_a": "A man is in a kitchen.", "ctx_b": "he", "label": "0"}
ROW |= {"ctx": "A man is in a kitchen. he", "endings": ["cooks.", "flies.", "is a tree.", "sings."], "source_id": "a"}
TRACE = ROOT / "tests" / "corpus" / "traces" / "good_three_lanes.jsonl"


def furnish(place: Path, page: str) -> None:
    """The files that the texts name, small ones."""
    place.mkdir()
    write_task_files(place / "BENCH")
    for name, record in (
        *(("pairs", PAIR), ("held-out", PAIR), ("mine", INSTRUCTION), ("instructions", INSTRUCTION)),
        *(("self_generated", INSTRUCTION), ("categories", INSTRUCTION)),
    ):
        (place / f"{name}.jsonl").write_text((json.dumps(record) + "\n") * (6 if name == "self_generated" else 1))
    (place / "text.txt").write_text(f"{PAIR['answer']} The quick brown fox jumps over the lazy dog.\n\n" * 28)
    if page == "docs/deploy.md":
        shutil.copyfile(TRACE, place / "run.jsonl")
    if page == "Spaces.md":
        shutil.copyfile(TRACE, place / "more.jsonl")
    else:
        (place / "more.jsonl").write_text(json.dumps(INSTRUCTION) + "\n")
    (place / "llms_from_scratch_instructions.json").write_text(
        json.dumps([{"instruction": "Why?", "input": "", "output": PAIR["answer"] * 3}])
    )
    (place / "sets").mkdir()
    shutil.copyfile(place / "mine.jsonl", place / "sets" / "report.jsonl")
    for name in ("train", "validation"):  # where `datasets` looks before it asks the Hub
        (place / "Rowan" / "hellaswag").mkdir(parents=True, exist_ok=True)
        (place / "Rowan" / "hellaswag" / f"{name}.jsonl").write_text(json.dumps(ROW) + "\n")
    if page.startswith("assets/adapters/"):
        (place / "THIS_FOLDER").symlink_to((ROOT / page).parent)
    if page == "docs/publishing.md":
        (place / "my-adapters").symlink_to(ASSETS / "adapters" / "smollm2-135m-residual-block-r64")


def trained(place: Path, text: str) -> None:
    """Leave in the folder of a training that was stopped what its hours would have left: a checkpoint."""
    out = place / re.search(r"--out (\S+)", text)[1]
    (out / "checkpoint").mkdir(parents=True)
    (out / "checkpoint" / "adapter").symlink_to(ASSETS / "adapters" / "smollm2-135m-residual-block-r64")


@pytest.fixture(scope="module")
def home(programs, tmp_path_factory) -> dict[str, str]:
    """The environment of a reader who has the bundled model and no GPU."""
    home = tmp_path_factory.mktemp("home")
    (home / "cache").mkdir()
    (home / "cache" / BUNDLED).symlink_to(ensure())
    return {
        "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "LORA_DROP_CACHE": str(home / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "GRADIO_SERVER_PORT": str(free_port()),
        "LORA_DROP_CALIBRATE": "0",
    }


def starts(command: Command, place: Path, env: dict[str, str], output: int) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", "-c", command.text],
        **{"cwd": place, "env": env, "stdout": output, "stderr": output, "start_new_session": True},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's is ignored
    )


def ends(command: Command, place: Path, env: dict[str, str]) -> None:
    """Run a command to its end."""
    with tempfile.TemporaryFile() as output:
        process = starts(command, place, env, output.fileno())
        try:
            code = process.wait(600)
        finally:
            stop(process)
        output.seek(0)
        assert code == 0, f"{command}: {output.read().decode()[-2000:]}"


def begins(command: Command, place: Path, env: dict[str, str], sign: str) -> None:
    """Run a command on a terminal, as progress is shown there, until it is at work; then interrupt it."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))  # without a width nothing is shown
    process, shown = starts(command, place, env, theirs), ""
    os.close(theirs)
    try:
        with open(ours, "rb", buffering=0) as output, contextlib.suppress(OSError):  # its end
            while text := output.read(4096).decode(errors="replace"):
                shown += text
                if sign and re.search(sign, shown):
                    os.killpg(process.pid, signal.SIGINT)
                    sign = ""
        assert not sign, f"{command} ended: {shown[-2000:]}"
        process.wait(60)
        if "accelerate launch" not in command.text:  # whose own launcher ends in a traceback
            # 2: safetensors reports an interrupt amid a file as a file that is broken.
            assert process.returncode in (0, 2, 130) and "Traceback" not in shown, f"{command}: {shown[-2000:]}"
    finally:
        stop(process)


def stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Watched(io.StringIO):
    """What a command prints. With a sign it is a terminal, as progress is shown there; at the sign Control-C comes."""

    sign = ""

    def isatty(self) -> bool:
        return bool(self.sign)

    def write(self, text: str) -> int:
        count = super().write(text)
        if self.sign and re.search(self.sign, self.getvalue()):
            self.sign = ""
            threading.Timer(0.1, _thread.interrupt_main).start()  # not within a bar, which holds a lock
        return count


def plain(command: Command) -> str:
    """A command without its comment."""
    return re.sub(r"\s+# .*", "", command.text)


README = {plain(command) for command in GATHERED if command.source == "README.md" and "--trace" not in command.text}


def words_of(command: Command) -> list[str]:
    """The words for `main`, with the shell's variables filled in; none where the command needs a shell or a venv."""
    *variables, line = command.text.split("\n")
    for name, value in (text.split("=", 1) for text in variables):
        line = line.replace(f"${name}", value.strip('"'))
    match = re.match(r"(?:python -m lora_drop|lora-drop) (?!page)", line)
    return shlex.split(line[match.end() :], comments=True) if match and "|" not in line else []


def runs_here(command: Command, sign: str) -> bool:
    """Run a command or a block of Python in this process, to its end or to the sign; false if it needs its own."""
    output = Watched()
    output.sign = sign
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        if command.text.startswith("python - <<"):
            exec("\n".join(command.text.splitlines()[1:-1]), {"__name__": "__main__"})
        elif words := words_of(command):
            assert main(words) == (130 if sign else 0) and not output.sign, f"{command}: {output.getvalue()[-2000:]}"
        else:
            return False
    return True


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", dict.fromkeys(command.source for command in GATHERED if "." in command.source))
def test_as_printed(page, home, tmp_path, monkeypatch):
    place = tmp_path / "place"
    furnish(place, page)
    monkeypatch.chdir(place)
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("COLUMNS", "100")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's is ignored
    for name in home.keys() - {"PATH", "GRADIO_SERVER_PORT"}:
        monkeypatch.setenv(name, home[name])
    for command in GATHERED:
        how = kind(command)
        if command.source != page or how == "name" or how in NOT_HERE:
            continue
        if page != "README.md" and plain(command) in README:
            continue
        sign = "" if how == "run" else how
        has_run = page != "README.md" and runs_here(command, sign)
        if not has_run and sign:
            begins(command, place, home, sign)
        elif not has_run:
            ends(command, place, home)
        if sign and "--out" in command.text and "train" in command.text:
            trained(place, command.text)
