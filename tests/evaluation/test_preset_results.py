"""What is read off the file of measured presets, by the page and by `run`."""

import copy
import json
import re
from types import SimpleNamespace

import pytest

from lora_drop.adapters import find
from lora_drop.adapters.find import config_fingerprint
from lora_drop.cli.main import main
from lora_drop.errors import LoraDropError
from lora_drop.method.presets import PRESETS
from lora_drop.method.quality import CRITERION, READS_WELL_LOSS, READS_WELL_REPEATS
from lora_drop.models.place import describe_device
from lora_drop.run.results import bank_presets, calibration
from lora_drop.run.results import preset_results as measured
from lora_drop.run.results.calibration import write_calibration
from lora_drop.run.results.preset_results import (
    default_preset,
    figures,
    measured_presets,
    preset_figures,
    preset_words,
    reads_well,
)
from lora_drop.ui.facts import preset_facts
from tests.support.golden import check_golden
from tests.support.presets import BUNDLED_PRESETS, lay_presets

TINY = ["--model", "random:tiny-llama", "--dtype", "float32"]
HOSTILE = "`${alert(1)}<img src=x onerror=alert(2)>{{7*7}}\\u0041"


def made_up(revision="r1", losses=None, **about):
    """A presets file with one row a preset; `losses` by preset, the others lose a nat."""
    losses = dict.fromkeys(PRESETS, 1.0) | (losses or {})
    bounds = {"balanced": 1.22, "fast": 1.33, "lossless": 1.1, "memory": 1.06, "paper": 1.34, "copying": 1.3}
    return {
        "format": "lora-drop-presets",
        "version": 2,
        "model": {"id": "m", "revision": revision, "dtype": "bfloat16"},
        "device": {"name": "a processor", "type": "cpu"},
        "data": {"file": "held-out.jsonl", "records": 3, "own": {"prompts": 32}},
        "date": "2026-01-01T00:00:00+00:00",
        "rows": [
            {
                "preset": name,
                "config": PRESETS[name].config.to_dict(),
                "adapters": "none",
                "adapters_fingerprint": None,
                "own_all_steps_kl": loss,
                "free_regret": loss,
                "free_repeated_4grams": 0.2,
                "free_repeated_4grams_baseline": 0.15,
                "speedup": 1.05,
                "bound": bounds[name],
                "kv_saved": 0.2,
            }
            for name, loss in losses.items()
        ],
    } | about


@pytest.fixture(autouse=True)
def shelf(tmp_path, monkeypatch):
    """A folder whose presets are those of every model; `auto` takes no bank of it."""
    monkeypatch.setattr(find, "SHIPPED_ADAPTERS", tmp_path / "banks")
    folder = tmp_path / "laid"
    monkeypatch.setattr(bank_presets, "presets_folder", lambda *_: folder if folder.exists() else None)
    return folder


@pytest.fixture
def read(shelf):
    def read(content, revision="r1", taken=None):
        lay_presets(shelf, content, revision)
        loaded = SimpleNamespace(id="m", revision=revision, sketch="", num_layers=30)
        return measured_presets(loaded, None, lambda config: taken)

    return read


def row_of(loss, repeats=0.0, **config):
    return {
        "config": config, "own_all_steps_kl": 1 - loss if loss else None, "free_regret": loss,
        "free_repeated_4grams": 0.15 + repeats, "free_repeated_4grams_baseline": 0.15,
    }  # fmt: skip


def test_reads_well_is_a_small_loss_and_no_circles():
    for loss, well in ((READS_WELL_LOSS, True), (READS_WELL_LOSS + 1e-9, False), (0.01, True), (None, False)):
        assert reads_well(row_of(loss)) is well
    for repeats, well in ((READS_WELL_REPEATS - 1e-9, True), (READS_WELL_REPEATS + 1e-9, False), (-0.1, True)):
        assert reads_well(row_of(0.01, repeats)) is well


def test_one_measure_says_how_a_text_reads_with_accept_and_without():
    for config in ({}, {"refresh": "repair", "kv": "write", "accept": 0.1}):
        assert measured.regret_of(row_of(0.9, **config)) == 0.9 and not reads_well(row_of(0.9, **config))


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ({"lossless": 0.02, "balanced": 0.1}, "balanced"),  # of two that read well the faster, not the better
        ({"lossless": 0.02, "memory": 0.01}, "lossless"),
        ({"balanced": 0.14, "fast": 0.151}, "balanced"),
        (dict.fromkeys(PRESETS, 0.15), "paper"),
        ({"memory": 0.4, "lossless": 0.5}, "memory"),  # none reads well: what loses the least
        (dict.fromkeys(PRESETS), "balanced"),
    ],
)
def test_the_default_is_the_fastest_that_reads_well(read, losses, chosen):
    assert default_preset(read(made_up(losses=losses))) == chosen


def test_the_page_opens_on_one_that_skips_layers_and_does_nothing_else(read):
    content = made_up(losses={"balanced": 0.1, "paper": 0.0})
    assert default_preset(read(content)) == "paper"
    row = next(row for row in content["rows"] if row["preset"] == "paper")
    row["lookup"] = 1
    assert default_preset(read(content)) == "balanced"  # nor one that gains by copying
    row |= {"lookup": 0, "layers_dropped": 0}
    assert default_preset(read(content)) == "balanced"


def here(speedup, width=0.02, lane="memory"):
    """A row of this machine's calibration."""
    return {
        "lane": lane,
        "config": PRESETS[lane].config.differences(),
        "adapters_fingerprint": None,
        "speedup": speedup,
        "speedup_interval": [speedup - width / 2, speedup + width / 2],
        "bound": 1.5,
        "accepted": None,
    }


def test_a_preset_in_words():
    def words(loss, speed=None, saved=0.0, repeats=0.0, **config):
        row = row_of(loss, repeats, **config) | {"speedup": 1.9, "kv_saved": saved}
        return preset_words(row, speed and here(speed))

    exact = {"refresh": "repair", "kv": "write", "accept": 1.0}
    sentences = {
        "reads well": words(0.1, 1.234),
        "reads well, barely faster": words(0.1, 1.044),
        "reads well, slower": words(0.1, 0.92, 0.04),
        "reads well, not calibrated": words(0.1),
        "reads well, too noisy": preset_words(row_of(0.1) | {"kv_saved": 0.0}, here(1.2, 0.5)),
        "slips": words(0.4, 1.0),
        "in circles": words(0.1, 1.0, repeats=0.2),
        "reads badly, saves memory": words(1.2, 1.05, 0.23),
        "reads badly, saves memory, not calibrated": words(1.2, None, 0.23),
        "reads badly, saves more time": words(1.2, 1.3, 0.23),
        "lossless": words(0.9, 0.6, **exact),
        "no loss": words(None, 1.1),
        "nothing": words(None),
        "no row": preset_words(None),
        "no row, calibrated": preset_words(None, here(1.1)),
    }
    check_golden("presets", sentences)


def test_the_shipped_presets_claim_no_speed_of_another_processor():
    for row in json.loads(BUNDLED_PRESETS.read_text())["rows"]:
        words = preset_words(row)
        assert not re.search(r"\dx", words) and figures(row)["speedup"] is None
        assert words.endswith(f"{row['kv_saved']:.0%} less K/V") == (row["kv_saved"] >= 0.05), words


def test_what_a_run_may_say_of_an_idle_machine_was_measured_on_this_one(tiny, shelf, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "calibrations", lambda: tmp_path / "kept")
    lay_presets(shelf, made_up(tiny.revision), tiny.revision)
    config = PRESETS["memory"].config
    assert preset_figures(tiny, config) is None, "another processor's speed says nothing"
    write_calibration(tiny, [here(1.2, 0.5)])
    assert preset_figures(tiny, config) is None, "too noisy"
    head = here(1.08) | {"lane": calibration.HEAD, "config": calibration.head_config(8).differences()}
    write_calibration(tiny, [here(1.2), head])
    device = describe_device(tiny.device)["name"]
    gains = {"speedup": 1.2, "head_speedup": 1.08, "device": device}
    assert preset_figures(tiny, config) == {"preset": "memory"} | gains
    low_high = (min(3, tiny.num_layers - 2), tiny.num_layers - 2)
    as_sliders_say_it = config.replace(layers=low_high)
    assert preset_figures(tiny, as_sliders_say_it) == preset_figures(tiny, config)
    assert preset_figures(tiny, config.replace(period=7)) is None, "that is no preset"
    assert preset_figures(tiny, config.replace(layers=(1, 99))) is None, "the run says what is wrong"
    lay_presets(shelf, "{", tiny.revision)
    assert preset_figures(tiny, config) is None


def test_a_run_may_say_how_many_guesses_were_accepted_without_corrections_and_in_its_kind(tiny, shelf):
    content = made_up(tiny.revision)
    row = next(row for row in content["rows"] if row["preset"] == "balanced")

    def gain(**changes):
        rows = {"rows": [*content["rows"], row | {"corrections": False, "accepted": 0.64} | changes]}
        lay_presets(shelf, content | rows, tiny.revision)
        return preset_figures(tiny, PRESETS["balanced"].config)

    assert gain() == {"preset": "balanced", "accepted_without": 0.64}
    assert gain(accepted=None) is None is gain(adapters_fingerprint="f" * 16)
    row["by_repeats"] = {"under 5%": {"accepted": 0.9, "speedup": 1.1}, "50% and more": {"accepted": None}}
    assert gain(accepted=None) == {"preset": "balanced", "accepted_by_repeats": {"under 5%": 0.9}}
    lay_presets(shelf, made_up("another"), tiny.revision)
    assert preset_figures(tiny, PRESETS["balanced"].config) is None


def test_a_file_of_another_model_settings_or_bank_does_not_count(read, shelf):
    good = made_up(losses={"fast": 0.01})
    assert default_preset(read(good)) == "fast"
    other = read(good, revision="r2")
    assert not other.rows and other.missing == "not measured on this model" and default_preset(other) == "balanced"
    with_bank = read(good, taken="f" * 16)
    assert not with_bank.rows and "adapters" in with_bank.missing and default_preset(with_bank) == "balanced"

    # A preset that was tuned since has no figures; the others keep theirs.
    tuned = copy.deepcopy(good)
    next(row for row in tuned["rows"] if row["preset"] == "fast")["config"]["period"] = 3
    now = read(tuned)
    assert set(now.rows) == set(PRESETS) - {"fast"} and default_preset(now) != "fast"
    trained = copy.deepcopy(good)
    trained["rows"].append(trained["rows"][0] | {"adapters": "ours", "adapters_fingerprint": "f" * 16})
    assert read(trained, taken="f" * 16).rows["balanced"]["adapters"] == "ours"
    assert read(trained, taken="f" * 16).bare == {}
    trained["rows"].append(trained["rows"][-1] | {"corrections": False, "speedup": 0.9})
    both = read(trained, taken="f" * 16)
    assert (both.rows["balanced"]["speedup"], both.bare["balanced"]["speedup"]) == (1.05, 0.9)


def test_a_broken_file_is_one_clear_line(read):
    breaks = [
        '{"rows": []}',
        made_up(format="lora-drop-sweep"),
        made_up(version=1),
        made_up(model=[]),
        made_up(device={"name": 3}),
        made_up(data={"file": "held-out.jsonl"}),
        made_up(rows=[3]),
        made_up(rows=None),
        json.dumps(made_up()).replace("1.05", "NaN"),
        json.dumps(made_up()).replace("1.05", '"1.05"'),
        json.dumps(made_up()).replace("32", "1" + "0" * 400),
    ]
    for content in breaks:
        with pytest.raises(LoraDropError, match="presets.json is not a presets.json of the presets command") as error:
            read(content)
        assert "\n" not in str(error.value)


def test_hostile_names_are_only_names(read):
    content = made_up(device={"name": HOSTILE, "type": "cpu"}, data={"file": HOSTILE, "own": {"prompts": 32}})
    content["rows"][3]["adapters"] = HOSTILE
    found = read(content)
    assert found.about["device"]["name"] == HOSTILE == found.rows["lossless"]["adapters"]
    assert HOSTILE in measured.in_words(found.rows["lossless"], found.about)


def test_run_shows_a_presets_measured_quality(tiny, shelf, capsys):
    run = ["run", "--prompt", "Hi", *TINY, "--max-new-tokens", "4", "--preset", "balanced"]

    def printed(*argv):
        assert main([*run, *argv]) == 0
        return capsys.readouterr()

    assert "as measured" not in printed().out
    lay_presets(shelf, made_up(tiny.revision, {"balanced": 0.123}), tiny.revision)
    line = next(line for line in printed().out.splitlines() if "as measured" in line)
    assert "regret 0.123 nats per token: reads well (answers to 32 prompts, bfloat16 on a processor)" in line
    assert "as measured" not in printed("--period", "5").out  # no longer what was measured
    assert set(json.loads(printed("--json").out)) >= {"baseline", "lora_drop"}
    lay_presets(shelf, "{}", tiny.revision)
    assert main(run) == 2 and capsys.readouterr().err.count("presets.json is not") == 1


def test_the_fingerprint_is_that_of_the_bank_that_a_run_takes(tiny, bank, tmp_path):
    config = PRESETS["fast"].config
    taken = config_fingerprint(tiny, config)
    assert taken == find.bank_fingerprint(tmp_path / "banks" / "ours")
    assert config_fingerprint(tiny, config.replace(adapters="none")) is None
    assert config_fingerprint(tiny, PRESETS["paper"].config) is None
    for facts in find.bank_facts(tiny).values():
        assert facts.items() >= {"name": "ours", "rank": 2, "corrected": [3, 4], "tokens": None}.items()
    (tmp_path / "banks" / "ours" / "lora_drop_config.json").write_text("{")
    with pytest.raises(LoraDropError, match="adapters in ours are broken"):
        find.bank_facts(tiny)


def test_the_page_has_the_figures_of_the_file(tiny, bank, shelf):
    def facts(content):
        lay_presets(shelf, content, tiny.revision)
        return preset_facts(tiny)

    with pytest.raises(LoraDropError, match="presets.json is not a presets.json of the presets command."):
        facts("{")
    found = facts(made_up("another"))
    assert (found["default"], found["missing"], found["about"]) == ("balanced", "not measured on this model", {})
    told = [(preset["name"], preset["measured"], preset["reads"]) for preset in found["presets"]]
    assert told == [(name, None, None) for name in PRESETS]

    found = facts(made_up(tiny.revision, {"paper": 0.1, "lossless": 0.12}))
    assert (found["default"], found["missing"], found["criterion"]) == ("paper", "", CRITERION)
    by_name = {preset["name"]: preset for preset in found["presets"]}
    one_nat = {preset["name"]: preset for preset in facts(made_up(tiny.revision))["presets"]}
    assert (by_name["paper"]["reads"], one_nat["paper"]["reads"]) == ("well", "badly")
    assert found["show_me"] == {"preset": "paper", "compare": "corrections-off"}
    assert by_name["paper"]["short"] == "reads well, 20% less K/V" and by_name["fast"]["short"] == "not measured"
    assert by_name["paper"]["measured"] == {"regret": 0.1, "speedup": None, "kv_saved": 0.2, "accepted": None}
    assert by_name["fast"]["measured"] is by_name["fast"]["bare"] is None, "measured without the shipped bank"


def test_the_page_shows_the_speeds_of_this_machine_and_where_nothing_is_gained(tiny, shelf, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "calibrations", lambda: tmp_path / "kept")
    lay_presets(shelf, made_up(tiny.revision, {"paper": 0.1}), tiny.revision)

    def facts():
        content = preset_facts(tiny)
        return content, {preset["name"]: preset for preset in content["presets"]}

    content, by_name = facts()
    assert (content["is_calibrated"], content["is_calibrating"], content["head"]) == (False, False, None)
    monkeypatch.setenv("LORA_DROP_CALIBRATE", "1")
    assert facts()[0]["is_calibrating"]
    head = here(1.08) | {"lane": calibration.HEAD, "config": calibration.head_config(8).differences()}
    write_calibration(tiny, [here(1.3, lane="paper"), here(0.98), here(1.2, 0.6, "fast"), head])
    content, by_name = facts()
    assert content["is_calibrated"] and not content["is_calibrating"]
    assert by_name["paper"]["short"] == "reads well, 1.3x" and by_name["paper"]["note"] == PRESETS["paper"].note
    assert by_name["paper"]["measured"] == {"regret": 0.1, "speedup": 1.3, "kv_saved": 0.2, "accepted": None}
    assert by_name["memory"]["note"] == f"{PRESETS['memory'].note} {calibration.no_gain_words(here(0.98))}"
    assert by_name["fast"]["measured"]["speedup"] is None, "too noisy"
    assert content["head"] == {
        "label": "Full model, screened head", "period": 8, "speedup": 1.08, "bound": 1.5,
    }  # fmt: skip
