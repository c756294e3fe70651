"""The presets: their bounds, the files that measure them, and what is read off those files."""

import copy
import dataclasses
import json

import pytest
import torch

from lora_drop.adapters import find
from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.find import config_fingerprint
from lora_drop.cli.main import main
from lora_drop.errors import LoraDropError
from lora_drop.evaluation import preset_results as measured
from lora_drop.evaluation import presets as module
from lora_drop.evaluation import prompts, samples, texts
from lora_drop.evaluation.preset_results import READS_WELL_GAP, default_preset, measured_presets, reads_well
from lora_drop.evaluation.prompts import EXAMPLES, HELD_OUT, SAMPLE_PROMPTS
from lora_drop.method.cost import ModelShape, speed_bound
from lora_drop.method.presets import COMPARISONS, PRESETS, presets_for
from lora_drop.ui.facts import preset_facts

TINY = ["--model", "random:tiny-llama", "--dtype", "float32"]
BUNDLED = ModelShape(30, 576, 9, 3, 64, 1536, 49_152, tied=True)  # a test holds it against the model itself
HOSTILE = "`${alert(1)}<img src=x onerror=alert(2)>{{7*7}}\\u0041"


def test_the_presets_have_the_bounds_that_they_promise():
    """Weights only, on the bundled model's shape, with the corrections of rank 64 read too; packed or not."""
    packed = dataclasses.replace(BUNDLED, matrix_size=0.3125, head_size=0.53125)
    for presets, shapes in ((PRESETS, [BUNDLED]), (presets_for("bundled"), [BUNDLED, packed])):
        for shape in shapes:
            bounds = {name: speed_bound(shape, p.config.schedule_for(30), rank=64) for name, p in presets.items()}
            assert set(bounds) == {"gentle", "balanced", "fast", "kv-saver", "paper"}
            assert bounds["balanced"] >= 1.2 and bounds["fast"] >= 1.3
    assert (PRESETS["kv-saver"].config.part, PRESETS["paper"].config.reuse) == ("attention", "state")
    assert PRESETS["paper"].config.period == 4 and PRESETS["paper"].config.drop_ratio == 0.5


def test_the_shape_is_the_bundled_models(bundled):
    assert bundled.shape == BUNDLED


def test_a_comparison_changes_one_setting():
    for name, comparison in COMPARISONS.items():
        for preset in PRESETS.values():
            before, after = preset.config.to_dict(), comparison.applied_to(preset.config).to_dict()
            changed = {key for key in before if before[key] != after[key]}
            already = all(before[key] == value for key, value in comparison.changes.items())
            assert changed == (set() if already else set(comparison.changes)), name


def test_the_samples_answer_the_pages_examples_and_two_more():
    assert set(EXAMPLES.values()) < set(SAMPLE_PROMPTS) and len(set(SAMPLE_PROMPTS)) == 6


# ---- the command ----


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"q": "What is it?", "a": "It is a cat."}) + "\n")
    return path


@pytest.fixture
def bank(tiny, tmp_path, monkeypatch):
    """A shipped bank for residual, block; its folder stands in for assets/adapters."""
    monkeypatch.setattr(find, "SHIPPED_ADAPTERS", tmp_path / "banks")

    def save(seed=0):
        torch.manual_seed(seed)
        bank = AdapterBank.new([3, 4], tiny.shape.hidden_size, rank=2)
        bank.b = {i: torch.randn_like(b) for i, b in bank.b.items()}
        bank.revision, bank.num_layers = tiny.revision, tiny.num_layers
        bank.save(tmp_path / "banks" / "ours")

    save()
    return save


def command(data, out, *argv):
    fields = ["--prompt-field", "q", "--target-field", "a"]
    return ["presets", "--data", str(data), *fields, *TINY, "--out", str(out), *argv]


def measure(capsys, data, out):
    assert main(command(data, out, "--json")) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


@pytest.fixture
def short(monkeypatch):
    """Two prompts and few tokens: what is tested does not depend on how many."""
    monkeypatch.setattr(samples, "SAMPLE_PROMPTS", SAMPLE_PROMPTS[:2])
    monkeypatch.setattr(samples, "SETTINGS", samples.SETTINGS | {"max_new_tokens": 12})
    monkeypatch.setattr(module, "HELD_OUT", HELD_OUT[:2])
    monkeypatch.setattr(prompts, "HELD_OUT", HELD_OUT[:2])
    monkeypatch.setattr(texts, "ANSWER_TOKENS", 24)


def test_rows_are_the_sweeps_with_adapters_and_without(data, bank, short, tmp_path, capsys):
    result, _ = measure(capsys, data, tmp_path / "out")
    content = result["presets"]
    assert content == json.loads((tmp_path / "out" / "presets.json").read_text())
    found = [(row["preset"], row["adapters"]) for row in content["rows"]]
    # On this model `gentle` drops nothing, and so takes no adapters.
    assert found == [
        *(("gentle", "none"), ("balanced", "ours"), ("balanced", "none")),
        *(("fast", "ours"), ("fast", "none"), ("kv-saver", "none"), ("paper", "none")),
    ]
    assert content["data"]["file"] == "pairs.jsonl" and len(content["data"]["file_sha256"]) == 64
    assert content["model"]["revision"] and content["software"]["torch"] and content["date"]
    rows = {pair: row for pair, row in zip(found, content["rows"], strict=True)}
    for adapters in ("auto", "none"):
        point = ["--preset", "fast", "--adapters", adapters, "--json"]
        assert main(["evaluate", *command(data, "")[1:7], *TINY, *point]) == 0
        alone = json.loads(capsys.readouterr().out)
        row = rows["fast", "ours" if adapters == "auto" else "none"]
        assert main(["evaluate", "--target", "own", "--free", *TINY, *point]) == 0
        own = json.loads(capsys.readouterr().out)
        for steps in ("lora_steps", "full_steps", "all_steps"):
            found = {name: row[f"own_{steps}_{name}"] for name in own[steps]}
            assert found == pytest.approx(own[steps])
        assert [row["own_loss_low"], row["own_loss_high"]] == pytest.approx(own["loss_interval"])
        assert {name: row[f"free_{name}"] for name in own["free"]} == pytest.approx(own["free"])
        for steps in ("lora_steps", "full_steps", "all_steps"):
            assert {name: row[f"{steps}_{name}"] for name in alone[steps]} == pytest.approx(alone[steps])
    assert rows["fast", "ours"]["all_steps_kl"] != rows["fast", "none"]["all_steps_kl"]


def test_samples_are_unpicked_and_the_same_each_time(data, bank, short, tmp_path, capsys):
    first, second = (measure(capsys, data, tmp_path / name)[0]["samples"] for name in ("one", "two"))
    assert first["samples"] == second["samples"]
    texts = first["samples"]
    assert [s["lane"] for s in texts] == ["baseline", *PRESETS] * 2
    assert first["settings"] == {"max_new_tokens": 12, "temperature": 0.0, "seed": 0}
    run = ["run", "--prompt", SAMPLE_PROMPTS[1], *TINY, "--max-new-tokens", "12", "--preset", "balanced", "--json"]
    assert main(run) == 0
    alone = json.loads(capsys.readouterr().out)
    ours = next(s for s in texts if s["lane"] == "balanced" and s["prompt"] == SAMPLE_PROMPTS[1])
    assert (ours["text"], ours["first_divergence"]) == (alone["lora_drop"]["text"], alone["first_divergence"])
    assert ours["agreement"] == alone["top1_agreement"] and ours["adapters"] == "ours"
    written = (tmp_path / "one" / "samples.md").read_text()
    assert all(f"## {prompt}" in written for prompt in SAMPLE_PROMPTS[:2])
    assert written.count("```text") == len(texts) and "**balanced, adapters ours: agreement " in written


def test_a_text_cannot_close_its_fence():
    sample = {"prompt": "p", "lane": "baseline", "text": "a\n````\nb"}
    about = {"settings": samples.SETTINGS, "model": {"id": "m", "dtype": "d"}, "device": {"name": "n"}}
    assert "`````text\na\n````\nb\n`````\n" in samples.samples_text(about | {"samples": [sample]})


def test_a_killed_measurement_goes_on_and_what_is_out_of_date_is_renewed(
    data, bank, short, tmp_path, capsys, monkeypatch
):
    out, real, real_answer, calls = tmp_path / "out", module.measure, samples._answer, []

    def counted(loaded, point, *rest):
        calls.append((point.config.reuse, point.adapters))
        return real(loaded, point, *rest)

    def dies(loaded, point, *rest):
        if len(calls) == 3:
            raise KeyboardInterrupt
        return counted(loaded, point, *rest)

    monkeypatch.setattr(module, "measure", dies)
    assert main(command(data, out)) == 130
    assert len(json.loads((out / "presets.json").read_text())["rows"]) == 3
    capsys.readouterr()
    calls.clear()
    monkeypatch.setattr(module, "measure", counted)
    answered = []

    def dies_answering(loaded, key, *rest):
        if len(answered) == 4:
            raise KeyboardInterrupt
        answered.append(key["lane"])
        return real_answer(loaded, key, *rest)

    monkeypatch.setattr(samples, "_answer", dies_answering)
    assert main(command(data, out)) == 130
    assert len(calls) == 4 and answered == ["baseline", "gentle", "balanced", "fast"]
    assert "3 of 7 rows" in capsys.readouterr().err
    answered.clear()
    monkeypatch.setattr(samples, "_answer", lambda *args: answered.append(args[1]["lane"]) or real_answer(*args))
    whole, _ = measure(capsys, data, out)
    assert len(calls) == 4 and answered == ["baseline", "kv-saver", "paper", "baseline", *PRESETS]

    # The bank is trained further: its rows and texts are renewed, the others stay.
    bank(seed=1)
    calls.clear()
    answered.clear()
    renewed, _ = measure(capsys, data, out)
    assert calls == [("residual", "ours")] * 2 and answered == ["baseline", "balanced", "fast"] * 2
    rows = [content["presets"]["rows"] for content in (whole, renewed)]
    assert [a == b for a, b in zip(*rows, strict=True)] == [True, False, True, False, True, True, True]
    assert sorted(path.name for path in out.iterdir()) == ["presets.json", "samples.json", "samples.md"]

    assert main(command(data, out, "--context-tokens", "5")) == 2
    assert "out already holds presets of another settings" in capsys.readouterr().err
    (out / "samples.json").write_text("[]")
    assert main(command(data, out)) == 2
    assert "samples.json is not a samples.json of the presets command" in capsys.readouterr().err


# ---- what is read off the file ----


def made_up(revision="r1", gaps=None, **about):
    """A presets file with one row a preset; `gaps` by preset, the others lose a nat."""
    gaps = dict.fromkeys(PRESETS, 1.0) | (gaps or {})
    bounds = {"gentle": 1.08, "balanced": 1.22, "fast": 1.33, "kv-saver": 1.06, "paper": 1.34}
    return {
        "format": "lora-drop-presets",
        "version": 1,
        "model": {"id": "m", "revision": revision, "dtype": "bfloat16"},
        "device": {"name": "a processor", "type": "cpu"},
        "data": {"file": "held-out.jsonl", "records": 3},
        "date": "2026-01-01T00:00:00+00:00",
        "rows": [
            {
                "preset": name,
                "config": PRESETS[name].config.to_dict(),
                "adapters": "none",
                "adapters_fingerprint": None,
                "tokens": 300,
                "lora_steps_top1_agreement": 0.75,
                "all_steps_nll_gap": gap,
                "speedup": 1.05,
                "bound": bounds[name],
                "kv_saved": 0.2,
            }
            for name, gap in gaps.items()
        ],
    } | about


@pytest.fixture
def read(tmp_path):
    def read(content, revision="r1", taken=None):
        path = tmp_path / "presets.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return measured_presets("m", revision, lambda config: taken, path)

    return read


def test_reads_well_is_the_measured_gap_alone():
    for gap, well in ((READS_WELL_GAP, True), (READS_WELL_GAP + 1e-9, False), (-0.01, True), (None, False)):
        assert reads_well({"all_steps_nll_gap": gap, "lora_steps_top1_agreement": 0.0}) is well


@pytest.mark.parametrize(
    ("gaps", "chosen"),
    [
        ({"gentle": 0.02, "balanced": 0.1}, "balanced"),  # of two that read well the faster, not the better
        ({"gentle": 0.02, "kv-saver": 0.01}, "gentle"),
        ({"balanced": 0.14, "fast": 0.151}, "balanced"),
        (dict.fromkeys(PRESETS, 0.15), "paper"),
        ({"kv-saver": 0.4, "gentle": 0.5}, "kv-saver"),  # none reads well: what loses the least
        (dict.fromkeys(PRESETS), "gentle"),
    ],
)
def test_the_default_is_the_fastest_that_reads_well(read, gaps, chosen):
    assert default_preset(read(made_up(gaps=gaps))) == chosen


def test_a_file_of_another_model_settings_or_bank_does_not_count(read, tmp_path, monkeypatch):
    good = made_up(gaps={"fast": 0.01})
    assert default_preset(read(good)) == "fast"
    other = read(good, revision="r2")
    assert not other.rows and other.missing == "not measured on this model" and default_preset(other) == "gentle"
    gone = measured_presets("m", "r1", lambda config: None, tmp_path / "none.json")
    assert (gone.rows, gone.missing, default_preset(gone)) == ({}, "not measured on this model", "gentle")
    with_bank = read(good, taken="f" * 16)
    assert not with_bank.rows and "adapters" in with_bank.missing and default_preset(with_bank) == "gentle"

    # A preset that was tuned since has no figures; the others keep theirs.
    tuned = copy.deepcopy(good)
    tuned["rows"][2]["config"]["period"] = 3
    now = read(tuned)
    assert set(now.rows) == set(PRESETS) - {"fast"} and default_preset(now) != "fast"
    trained = copy.deepcopy(good)
    trained["rows"].append(trained["rows"][1] | {"adapters": "ours", "adapters_fingerprint": "f" * 16})
    assert read(trained, taken="f" * 16).rows["balanced"]["adapters"] == "ours"
    assert read(trained, taken="f" * 16).bare["balanced"]["adapters"] == "none"


def test_a_broken_file_is_one_clear_line(read):
    breaks = [
        "",
        "[]",
        '{"rows": []}',
        "[" * 100_000,
        made_up(format="lora-drop-sweep"),
        made_up(version=2),
        made_up(model=[]),
        made_up(device={"name": 3}),
        made_up(rows=[3]),
        made_up(rows=None),
        json.dumps(made_up()).replace("0.75", "NaN"),
        json.dumps(made_up()).replace("0.75", '"0.75"'),
        json.dumps(made_up()).replace("300", "1" + "0" * 400),
    ]
    for content in breaks:
        with pytest.raises(LoraDropError, match="presets.json is not a presets.json of the presets command") as error:
            read(content)
        assert "\n" not in str(error.value)


def test_hostile_names_are_only_names(read):
    content = made_up(device={"name": HOSTILE, "type": "cpu"}, data={"file": HOSTILE})
    content["rows"][0]["adapters"] = HOSTILE
    found = read(content)
    assert found.about["device"]["name"] == HOSTILE == found.rows["gentle"]["adapters"]
    assert HOSTILE in measured.in_words(found.rows["gentle"], found.about)


def test_run_shows_a_presets_measured_quality(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measured, "SHIPPED_PRESETS", tmp_path)
    run = ["run", "--prompt", "Hi", *TINY, "--max-new-tokens", "4", "--preset", "balanced"]

    def printed(*argv):
        assert main([*run, *argv]) == 0
        return capsys.readouterr()

    assert "as measured" not in printed().out
    (tmp_path / "presets.json").write_text(json.dumps(made_up(tiny.revision, {"balanced": 0.123})))
    line = next(line for line in printed().out.splitlines() if "as measured" in line)
    assert "75.0% of LoRA steps, quality loss +0.123 nats" in line
    assert "reads well (300 tokens of held-out.jsonl" in line
    assert "as measured" not in printed("--period", "5").out  # no longer what was measured
    assert set(json.loads(printed("--json").out)) >= {"baseline", "lora_drop"}
    (tmp_path / "presets.json").write_text("{}")
    broken = printed()
    assert "speedup" in broken.out and broken.err.count("presets.json is not") == 1


def test_the_fingerprint_is_that_of_the_bank_that_a_run_takes(tiny, bank, tmp_path):
    config = PRESETS["fast"].config
    taken = config_fingerprint(tiny, config)
    assert taken == find.bank_fingerprint(tmp_path / "banks" / "ours")
    assert config_fingerprint(tiny, config.replace(adapters="none")) is None
    assert config_fingerprint(tiny, PRESETS["paper"].config) is None
    facts = {"name": "ours", "rank": 2, "corrected": [3, 4], "tokens": None}
    facts |= dict.fromkeys(("mlp", "kept", "head_rank", "head_best"), 0)
    assert find.bank_facts(tiny.revision) == {
        f"residual/block/{refresh}/{kv}": facts for refresh in ("single", "repair") for kv in ("skip", "write")
    }
    (tmp_path / "banks" / "ours" / "lora_drop_config.json").write_text("{")
    with pytest.raises(LoraDropError, match="adapters in ours are broken"):
        find.bank_facts(tiny.revision)


def test_the_page_works_with_any_file(tiny, bank, tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "SHIPPED_PRESETS", tmp_path)

    def facts(content):
        (tmp_path / "presets.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return preset_facts(tiny)

    for content, missing in (
        ("{", "presets.json is not a presets.json of the presets command."),
        (made_up("another"), "not measured on this model"),
    ):
        found = facts(content)
        assert (found["default"], found["missing"], found["about"]) == ("gentle", missing, {})
        told = [(preset["name"], preset["measured"], preset["reads_well"]) for preset in found["presets"]]
        assert told == [(name, None, None) for name in PRESETS]

    found = facts(made_up(tiny.revision, {"paper": 0.1, "gentle": 0.12}))
    assert (found["default"], found["missing"], found["gap"]) == ("paper", "", READS_WELL_GAP)
    by_name = {preset["name"]: preset for preset in found["presets"]}
    assert by_name["paper"]["reads_well"] and not by_name["kv-saver"]["reads_well"]
    assert by_name["paper"]["measured"] == {
        "agreement": 0.75, "nll_gap": 0.1, "speedup": 1.05, "bound": 1.34, "kv_saved": 0.2,
    }  # fmt: skip
    # The shipped bank serves `balanced` and `fast`, which were measured without: those rows are the bare ones.
    assert by_name["fast"]["measured"] is None and by_name["fast"]["bare"]["agreement"] == 0.75
