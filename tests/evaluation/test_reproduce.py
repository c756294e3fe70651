"""`reproduce README`: shipped speeds, measured again on this machine."""

import json

import pytest

from lora_drop import paths
from lora_drop.cli.main import main
from lora_drop.evaluation.measure import protocol
from lora_drop.run.results.files import COMPARE

METHODS = "balanced,prune:2,prompt-lookup:1:2"


@pytest.fixture
def shipped(tmp_path, monkeypatch, set_clocks, capsys):
    """Figures of a tiny model stand in for the shipped ones; returns what changes them."""
    set_clocks(0.001)
    folder = tmp_path / "shipped"
    monkeypatch.setattr(paths, "SHIPPED_METHODS", folder)
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path / "cache"))
    command = ["compare", "--model", "random:tiny-llama", "--methods", METHODS, "--out", str(folder)]
    assert main([*command, "--limit", "3", "--max-new-tokens", "9"]) == 0
    capsys.readouterr()

    def change(**parts):
        content = json.loads((folder / COMPARE.name).read_text())
        for name, part in parts.items():
            content[name] = (
                content[name] | part if isinstance(part, dict) else [row | part(row) for row in content[name]]
            )
        (folder / COMPARE.name).write_text(json.dumps(content))

    return change


def reproduced(capsys, *argv):
    code = main(["reproduce", "README", *argv])
    return code, *capsys.readouterr()


def test_each_row_agrees_or_differs(shipped, capsys):
    code, out, err = reproduced(capsys, "--json")
    rows = json.loads(out)
    assert code == 0 and [row["verdict"] for row in rows] == ["agrees"] * 3
    assert {row["method"] for row in rows} == {"balanced", "prune:2", "prompt-lookup:1:2"}
    assert "3 prompts, all methods in turn: takes about 1 min" in err and "tokens/s here, and at" in err
    shipped(rows=lambda row: {name: 2 * row[name] for name in ("speedup", "speedup_low", "speedup_high")})
    code, out, err = reproduced(capsys)
    assert code == 0 and out.count("differs in speedup") == 3 and "speedup there" in out.splitlines()[0]


def test_fewer_prompts_say_so(shipped, capsys):
    code, out, err = reproduced(capsys, "--limit", "2", "--json")
    assert code == 0 and {row["here"]["texts"] for row in json.loads(out)} == {2}
    assert "on the first 2 of 3 prompts" in err


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"device": {"name": "another processor"}}, "another processor: not comparable"),
        ({"data": {"sha256": "0" * 64}}, "other prompts: not comparable"),
    ],
)
def test_what_cannot_be_compared_is_measured_and_says_why(shipped, capsys, change, verdict):
    shipped(**change)
    code, out, _ = reproduced(capsys, "--json")
    assert code == 0 and {row["verdict"] for row in json.loads(out)} == {verdict}
    assert all(row["here"]["speedup"] for row in json.loads(out))


def test_other_weights_and_a_model_that_is_not_here_are_one_line(shipped, capsys):
    shipped(model={"revision": "0" * 16})
    code, _, err = reproduced(capsys)
    assert code == 2 and "with other weights than these" in err.splitlines()[-1]
    shipped(model={"id": "/no/such/model"})
    code, _, err = reproduced(capsys)
    assert code == 2 and "cannot be loaded here, so no row was measured" in err.splitlines()[-1]


def test_it_goes_on_after_a_stop_and_measures_nothing_twice(shipped, capsys, monkeypatch):
    real, calls = protocol.time_lanes, []

    def stops(*args, **more):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(protocol, "time_lanes", stops)
    assert reproduced(capsys)[0] == 130
    assert reproduced(capsys)[0] == 0 and len(calls) == 3 + 1 + 2, "a warm-up, and the two prompts that were left"
    assert reproduced(capsys)[0] == 0 and len(calls) == 6


def test_a_busy_machine_is_told(shipped, capsys, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (7.5, 0.0, 0.0))
    shipped(rows=lambda row: {"baseline_tokens_per_second": 2 * row["baseline_tokens_per_second"]})
    code, _, err = reproduced(capsys)
    assert code == 0 and "this machine is busy (load 7.5)" in err and "Measure again on an idle machine" in err
