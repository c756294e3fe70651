"""The samples: what `run` writes, none left out, and renewed where a bank changes."""

import json

import pytest

from lora_drop.cli.main import main
from lora_drop.evaluation import sweep
from lora_drop.method.presets import PRESETS
from lora_drop.run.results.prompts import SAMPLE_PROMPTS
from scripts.lab import samples

TINY = ["--model", "random:tiny-llama", "--dtype", "float32"]


@pytest.fixture
def short(monkeypatch):
    """Two prompts and few tokens: what is tested does not depend on how many."""
    monkeypatch.setattr(samples, "SAMPLE_PROMPTS", SAMPLE_PROMPTS[:2])
    for module in (samples, sweep):
        monkeypatch.setattr(module, "SAMPLE_SETTINGS", sweep.SAMPLE_SETTINGS | {"max_new_tokens": 12})


def write(out):
    assert samples.main([*TINY, "--out", str(out)]) == 0
    return json.loads((out / "samples.json").read_text())


def test_samples_are_those_of_run(bank, short, tmp_path, capsys):
    content = write(tmp_path)
    texts = content["samples"]
    assert [s["lane"] for s in texts] == ["baseline", *PRESETS] * 2, "unpicked"
    assert content["settings"] == {"max_new_tokens": 12, "temperature": 0.0, "seed": 0}
    capsys.readouterr()
    run = ["run", "--prompt", SAMPLE_PROMPTS[1], *TINY, "--max-new-tokens", "12", "--preset", "balanced", "--json"]
    assert main(run) == 0
    alone = json.loads(capsys.readouterr().out)
    ours = next(s for s in texts if s["lane"] == "balanced" and s["prompt"] == SAMPLE_PROMPTS[1])
    assert (ours["text"], ours["first_divergence"]) == (alone["lora_drop"]["text"], alone["first_divergence"])
    assert ours["collapsed"] == alone["lora_drop"]["collapsed"] and ours["adapters"] == "ours"
    written = (tmp_path / "samples.md").read_text()
    assert all(f"## {prompt}" in written for prompt in SAMPLE_PROMPTS[:2])
    assert written.count("```text") == len(texts) and "**balanced, adapters ours: " in written


def test_killed_writing_goes_on_and_what_is_out_of_date_is_renewed(bank, short, tmp_path, capsys, monkeypatch):
    real, answered = samples._answer, []

    def dies_answering(loaded, prompt, lane, *rest):
        if len(answered) == 4:
            raise KeyboardInterrupt
        answered.append(lane)
        return real(loaded, prompt, lane, *rest)

    monkeypatch.setattr(samples, "_answer", dies_answering)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert answered == ["baseline", "balanced", "copying", "fast"]
    answered.clear()
    monkeypatch.setattr(samples, "_answer", lambda *args: answered.append(args[2]) or real(*args))
    write(tmp_path)
    assert answered == ["baseline", "lossless", "memory", "paper", "baseline", *PRESETS]

    bank(seed=1)  # trained further
    answered.clear()
    write(tmp_path)
    assert answered == ["baseline", "balanced", "copying", "fast", "memory"] * 2
    capsys.readouterr()
    (tmp_path / "samples.json").write_text("[]")
    assert samples.main([*TINY, "--out", str(tmp_path)]) == 2
    assert "samples.json is not a samples.json of the samples command" in capsys.readouterr().err


def test_a_text_cannot_close_its_fence():
    sample = {"prompt": "p", "lane": "baseline", "text": "a\n````\nb", "first_divergence": None}
    about = {"settings": sweep.SAMPLE_SETTINGS, "model": {"id": "m", "dtype": "d"}, "device": {"name": "n"}}
    [text] = samples._markdown(about | {"samples": [sample]}).values()
    assert "`````text\na\n````\nb\n`````\n" in text
