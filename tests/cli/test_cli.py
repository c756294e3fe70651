"""The command line as other tools call it: JSON on stdout, one line on stderr, exit codes."""

import json
import os
import signal
import subprocess
import sys

import pytest

from lora_drop.cli.main import main
from lora_drop.run.trace.trace import read_trace
from tests.support.fuzzing import CORPUS

TINY = ["--model", "random:tiny-llama", "--device", "cpu", "--dtype", "float32"]
RUN = ["run", "--prompt", "Explain why the sky is blue.", *TINY, "--max-new-tokens", "12", "--ignore-eos"]


ENV = {**os.environ, "PYTHONPATH": os.getcwd()}


def process(*words):
    """Python with these words, in a process of its own."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=ENV)


def output(capsys, *argv):
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_run_prints_every_key_of_the_contract(capsys):
    result = output(capsys, *RUN)
    assert set(result) == {
        *("baseline", "lora_drop", "speedup", "bound", "kv_saved"),
        *("first_divergence", "top1_agreement", "config", "device"),
        *("accepted", "tokens_per_refresh", "speedup_interval", "quality", "verdict"),
    }
    for lane in ("baseline", "lora_drop"):
        figures = {"text", "token_ids", "tokens_per_second", "kv_bytes", "kv_allocated_bytes", "collapsed"} | {
            "answer",
            "thoughts",
        }
        assert set(result[lane]) == figures
        assert len(result[lane]["token_ids"]) == 12
    assert result["config"]["period"] == 4 and result["config"]["drop_ratio"] == 0.5
    assert result["config"]["reuse"] == "residual" and result["config"]["dropped"]


@pytest.mark.full
def test_period_1_gives_both_lanes_the_greedy_tokens_of_transformers(bundled, capsys):
    argv = ["run", "--prompt", "Explain why the sky is blue.", "--period", "1", "--adapters", "none"]
    result = output(capsys, *argv, "--dtype", "float32", "--device", "cpu", "--max-new-tokens", "24")
    import torch

    from lora_drop.models.tokens import encode_prompt

    ids = torch.tensor([encode_prompt(bundled.tokenizer, "Explain why the sky is blue.")])
    expected = bundled.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0
    )[0, ids.shape[1] :].tolist()
    assert result["baseline"]["token_ids"] == result["lora_drop"]["token_ids"] == expected
    assert result["first_divergence"] is None and result["bound"] == 1.0


def test_the_trace_replays_to_what_run_printed(capsys, tmp_path):
    result = output(capsys, *RUN, "--trace", str(tmp_path / "run.jsonl"))
    assert output(capsys, "replay", str(tmp_path / "run.jsonl")) == result
    assert main(["replay", str(tmp_path / "run.jsonl")]) == 0
    assert result["verdict"]["text"] in capsys.readouterr().out
    lines = (tmp_path / "run.jsonl").read_text().splitlines()
    (tmp_path / "cut.jsonl").write_text("\n".join(lines[:9]) + "\n" + lines[9][:20])
    cut = output(capsys, "replay", str(tmp_path / "cut.jsonl"))
    assert cut["speedup"] is None
    assert cut["baseline"]["token_ids"] == result["baseline"]["token_ids"][: len(cut["baseline"]["token_ids"])]
    assert main(["replay", str(tmp_path / "cut.jsonl")]) == 0
    assert "cut short" in capsys.readouterr().out


def test_options_reach_the_run(capsys):
    result = output(
        capsys, *RUN, "--period", "3", "--layers", "1-4", "--drop-ratio", "1", "--reuse", "state", "--part",
        "attention", "--kv", "write", "--adapters", "none", "--temperature", "0.7", "--top-p", "0.9", "--seed", "5",
        "--no-audit", "--lanes", "lora-drop",
    )  # fmt: skip
    config = result["config"]
    assert (config["temperature"], config["top_p"], config["audit"]) == (0.7, 0.9, False)
    assert config["dropped"] == [1, 2, 3, 4] and config["layers"] == [1, 4] and config["period"] == 3
    assert (config["reuse"], config["part"], config["kv"], config["seed"]) == ("state", "attention", "write", 5)
    assert result["baseline"] is None and result["top1_agreement"] is None
    assert output(capsys, *RUN, "--drop-layers", "4,2")["config"]["dropped"] == [2, 4]


def test_a_preset_is_a_start_that_options_change(capsys):
    preset = output(capsys, *RUN, "--preset", "paper")["config"]
    assert (preset["reuse"], preset["period"], preset["drop_ratio"]) == ("state", 4, 0.5)
    changed = output(capsys, *RUN, "--preset", "paper", "--period", "2")["config"]
    assert (changed["reuse"], changed["period"]) == ("state", 2)


def test_people_get_a_readable_report(capsys):
    assert main(RUN) == 0
    out = capsys.readouterr().out
    assert "speedup:" in out and "K/V memory saved:" in out and "untrained" in out


def test_as_a_process(tmp_path):
    """The real command: JSON alone on stdout, exit code 2 and one line without a traceback for a mistake.

    A run imports no evaluation.
    """
    trace = str(tmp_path / "run.jsonl")
    good = process("-X", "importtime", "-m", "lora_drop", *RUN, "--preset", "fast", "--json", "--trace", trace)
    assert good.returncode == 0 and json.loads(good.stdout)["bound"]
    imported = {line.rpartition("|")[2].strip() for line in good.stderr.splitlines()}
    assert "torch" in imported and not [name for name in imported if name.startswith("lora_drop.evaluation")]
    bad = process("-m", "lora_drop", "run", "--prompt", "x", "--period", "0")
    assert bad.returncode == 2 and bad.stdout == "" and len(bad.stderr.splitlines()) == 1


def test_a_prompt_longer_than_the_bundled_models_context_is_one_line(capsys):
    """By its own tokenizer."""
    assert main(["run", "--prompt", "word " * 9000, "--dtype", "float32"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "context of 8192" in captured.err and len(captured.err.splitlines()) == 1


def test_a_result_that_cannot_be_written_is_one_line(capsys, monkeypatch):
    with open("/dev/full", "w") as full:  # its close writes again, as the end of a process does
        monkeypatch.setattr(sys, "stdout", full)
        assert main([*RUN, "--json"]) == 1
    assert capsys.readouterr().err.splitlines() == ["lora-drop: cannot write the result: No space left on device."]


def test_control_c_keeps_the_trace(tmp_path):
    path, pipe = tmp_path / "run.jsonl", tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "lora_drop", *RUN[:3], *TINY, "--max-new-tokens", "4000", "--ignore-eos"]
    # Where the tests run in the background of a shell, Control-C is ignored, and a child would inherit that.
    listening = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen(
        [*command, "--trace", str(pipe)], stderr=subprocess.PIPE, text=True, env=ENV, **listening
    )
    with pipe.open("rb") as trace:
        begun = trace.read(20_000)  # a full pipe holds the run until the signal comes
        process.send_signal(signal.SIGINT)
        path.write_bytes(begun + trace.read())
    assert process.communicate(timeout=60)[1] == "lora-drop: interrupted.\n" and process.returncode == 130
    steps = read_trace(path).steps  # of both lanes: under load one may run far ahead of the other
    assert sum(map(len, steps.values())) > 10


def test_help_mistakes_and_replays_need_no_torch(tmp_path):
    """The parser of every command is built without what is slow to import; numpy draws a replay."""
    html, chrome = tmp_path / "run.html", tmp_path / "run.json"
    replay = ["replay", str(CORPUS / "traces" / "good_three_lanes.jsonl")]
    replays = [*replay, "--html", str(html), "--chrome", str(chrome)], [*replay, "--json"]
    code = f"""
import sys
from lora_drop.cli.main import main

for words in (["run", "--prompt", "x", "--period", "0"], ["--help"], *{replays!r}):
    assert words[0] == "replay" or "numpy" not in sys.modules
    try:
        main(words)
    except SystemExit:
        pass
print(*sys.modules)
"""
    done = process("-c", code)
    assert not set(done.stdout.splitlines()[-1].split()) & {"torch", "transformers", "gradio"}, done.stderr
    assert html.stat().st_size and chrome.stat().st_size


def test_fetch_prints_the_folder_of_the_bundled_model(capsys, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("lora_drop.models.bundled.ensure", lambda verify: asked.append(verify) or tmp_path)
    assert main(["fetch"]) == 0 and capsys.readouterr().out == f"{tmp_path}\n"
    assert output(capsys, "fetch", "--verify") == {"folder": str(tmp_path)} and asked == [False, True]


def test_page_passes_on_what_follows_its_name(monkeypatch):
    def started(argv, prog):
        assert prog == "lora-drop page"
        calls.append(argv)
        return 0

    calls = []
    monkeypatch.setattr("lora_drop.ui.main", started, raising=False)
    assert main(["page"]) == main(["page", "--port", "80", "--model", "x"]) == main(["page", "--help"]) == 0
    assert calls == [[], ["--port", "80", "--model", "x"], ["--help"]]


def test_the_script_s_usage_has_its_name(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["/usr/bin/lora-drop"])
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.startswith("usage: lora-drop [")
