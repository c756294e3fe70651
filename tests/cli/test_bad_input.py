"""Bad input to every command: exit code 2, nothing on stdout, and one line on stderr, which the golden file keeps."""

import builtins
import io
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lora_drop.cli.main import main
from lora_drop.paths import ASSETS
from tests.support import ROOT
from tests.support.commands import COMMANDS, PROGRESS
from tests.support.fuzzing import CORPUS
from tests.support.golden import check_golden

LINES = [line for line in (ROOT / "tests/cli/bad_input.txt").read_text().splitlines() if line and line[0] != "#"]
DAMAGED = {"cut": '{"rows": [', "a_list": "[1]", "deep": "[" * 100_000, "words_as_rows": '{"rows": "many"}'}
CONFIGS = {
    "cut_config": "{",
    "config_is_a_list": "[]",
    "config_is_deep": "[" * 100_000,
    "words_as_sizes": {"hidden_size": "many"},
    "gpt2": {"model_type": "gpt2"},
    "quantised": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "own_code": {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}},
    "other_sizes": {"intermediate_size": 200},
}


def lay_models(folder: Path, good: Path) -> None:
    """Copies of a model's folder, each with one thing wrong."""
    for name, change in CONFIGS.items():
        path = shutil.copytree(good, folder / name) / "config.json"
        path.write_text(change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change))
    (shutil.copytree(good, folder / "no_tokenizer") / "tokenizer.json").write_text("{}")
    (shutil.copytree(good, folder / "rubbish_weights") / "model.safetensors").write_text("rubbish")
    weights = shutil.copytree(good, folder / "cut_weights") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    weights = shutil.copytree(good, folder / "a_weight_less") / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    weights = shutil.copytree(good, folder / "pickled") / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, tiny) -> Path:
    """A folder with what the lines name."""
    from tests.support.tokenizer import make_tokenizer

    folder = tmp_path_factory.mktemp("shelf")
    for name in ("empty-folder", "lines", "swept", "tasks/hellaswag", "secret", "sweeps", "presets", "trained"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(CORPUS / "adapters", folder, dirs_exist_ok=True)
    shutil.copytree(CORPUS / "traces", folder, dirs_exist_ok=True)
    shutil.copy(ASSETS / "sweeps" / "sweep.json", folder / "swept")
    shutil.copy(CORPUS / "traces" / "good_three_lanes.jsonl", folder / "run.jsonl")
    (folder / "pairs.jsonl").write_text('{"q": "Why is the sky blue?", "a": "It scatters light."}\n')
    (folder / "asked.jsonl").write_text('{"prompt": "Why is the sky blue?"}\n')
    (folder / "text.txt").write_text("The sky is blue because the air scatters light. " * 40)
    (folder / "text.gguf").write_text("no model")
    lines = {"empty": b"", "a_list": b"[1]\n", "deep": b"[" * 100_000, "not_utf8": b'{"q": "\xff", "a": "b"}\n'}
    lines |= {"numbers": b'{"q": 1, "a": 2}\n', "cut": b'{"q": "Why', "nan": b'{"q": NaN, "a": "b"}\n'}
    lines |= {"no_answer": b'{"q": "a", "reply": "b"}\n', "empty_answer": b'{"q": "a", "a": ""}\n'}
    lines |= {"blank_question": b'{"q": " ", "a": "b"}\n', "long": b'{"q": "a", "a": "' + b"b" * 5000 + b'"}\n'}
    for name, content in lines.items():
        (folder / "lines" / f"{name}.jsonl").write_bytes(content)
    for name, text in DAMAGED.items():
        for kind, file in (("sweeps", "sweep.json"), ("presets", "presets.json")):
            (folder / kind / name).mkdir()
            (folder / kind / name / file).write_text(text)
    (folder / "trained" / "checkpoint").mkdir()
    (folder / "trained" / "checkpoint" / "state.safetensors").write_text("rubbish")
    changed = shutil.copytree(folder / "good", folder / "changed")
    (changed / "SHA256SUMS").write_text("0  adapter_model.safetensors\n")
    other = shutil.copytree(folder / "good", folder / "other-model") / "lora_drop_config.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"num_layers": 30}))
    tiny.model.save_pretrained(folder / "models" / "good")
    make_tokenizer().save_pretrained(folder / "models" / "good")
    lay_models(folder / "models", folder / "models" / "good")
    return folder


def forbid(monkeypatch, *names: str) -> None:
    """No right to what has one of these names in its path, also where the tests run as root."""
    for module, name in ((io, "open"), (builtins, "open"), (os, "open"), (os, "mkdir")):
        real = getattr(module, name)

        def refuse(path, *args, real=real, **kwargs):
            if isinstance(path, (str, Path)) and any(name in Path(path).parts for name in names):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *args, **kwargs)

        monkeypatch.setattr(module, name, refuse)


def cases() -> list[str]:
    """The lines of bad_input.txt, with one for each bad file of the corpus."""
    bad = {"run": sorted((CORPUS / "adapters").glob("bad_*")), "replay": sorted((CORPUS / "traces").glob("bad_*"))}
    return [
        line.replace("CORPUS", path.name)
        for line in LINES
        for path in (bad[line.split()[0]] if "CORPUS" in line else [CORPUS])
    ]


def words_of(line: str) -> list[str]:
    """A line as a program gets it."""
    words = shlex.split(re.sub(r"(\w)\*5000", lambda match: 5000 * match[1], line))
    if "…" in words:
        at = words.index("…")
        words[at : at + 1] = [] if words[0] in ("replay", "sweep-figures") else COMMANDS.get(words[0], [])
    return words


def refused(line: str, capsys, caplog, monkeypatch, folder: Path) -> str:
    """The one line of a command that must be refused, less what is this machine's or comes from another library."""
    words = words_of(line)
    with monkeypatch.context() as patch:
        while words and re.match(r"[A-Z_]+=", words[0]):
            patch.setenv(*words.pop(0).split("=", 1))
        code = main(words)
    assert not caplog.records, line  # a library's warnings would be further lines
    captured = capsys.readouterr()
    left = [text for text in captured.err.splitlines() if not PROGRESS.match(text)]
    assert (code, captured.out, len(left)) == (2, "", 1), (line, code, captured)
    text = left[0].replace(str(folder), "FOLDER")
    assert text.startswith("lora-drop") and text.isprintable() and len(text) < 1000, (line, text)
    for pattern in (
        r"(cannot be (?:read|loaded)[\w ]*) \(.*\)\.",
        r"(deserializing header): .*?\.",
        r"( )\(choose from .*?\) ",
    ):
        text = re.sub(pattern, lambda match: f"{match[1]}...", text)
    return re.sub(r"[0-9a-f]{16}(?=\.part)", "", text)


@pytest.mark.timeout(900)  # 370 commands: 15 s on an idle machine
def test_bad_input_is_one_line_and_exit_code_2(shelf, monkeypatch, capsys, caplog):
    monkeypatch.chdir(shelf)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("LORA_DROP_CACHE", str(shelf / "cache"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(shelf / "uploads"))
    forbid(monkeypatch, "secret")
    check_golden("errors", {line: refused(line, capsys, caplog, monkeypatch, shelf) for line in cases()})
