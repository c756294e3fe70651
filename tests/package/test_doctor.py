"""`doctor` and `--version`: what is there, what is slow and what to do, nothing private, and with old packages too."""

import json
from pathlib import Path

import pytest

from lora_drop import runtime
from lora_drop.cli import doctor
from lora_drop.cli.main import main
from lora_drop.decode.native.loader import library
from lora_drop.runtime import VERSION

OLD = {"name": "torch", "installed": "1.0", "floor": "2.9", "bounds": ">=2.9", "is_old": True, "is_untested": False}
NEW = {"name": "gradio", "installed": "6.40.1", "bounds": ">=6.31,<6.32", "is_old": False, "is_untested": True}


def test_it_reports_in_full_and_keeps_secrets(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("LORA_DROP_OWNER_TOKEN", "owner-secret")
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path / "private"))
    assert main(["doctor", "--json"]) == 0
    text = capsys.readouterr().out
    facts = json.loads(text)
    assert facts["version"] == VERSION and facts["threads"] and facts["processor"]
    assert facts["kernels"]["runs"] == (library() and library().about)
    assert {"torch", "transformers", "gradio"} <= {package["name"] for package in facts["packages"]}
    assert facts["model"]["state"] == "missing"
    assert "lora-drop fetch --verify" in [one["do"] for one in facts["slow"]]
    assert not any(word in text for word in ("secret", "private", str(Path.home())))
    assert main(["doctor"]) == 0 and "the bundled model's files are missing" in capsys.readouterr().out


def test_a_damaged_file_is_named(bundled, monkeypatch, capsys):
    monkeypatch.setattr("lora_drop.paths.sha256", lambda path: "0" * 64)
    assert main(["doctor"]) == 0
    assert "model.safetensors: wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"kernels": {"runs": None, "paths": [], "note": "note: no compiler"}}, "no kernels (note: no compiler"),
        ({"kernels": {"runs": None, "paths": [], "note": None}}, "no kernels (LORA_DROP_NATIVE is 0"),
        ({"kernels": {"runs": "wheel, plain", "paths": ["plain", "avx2"], "note": None}}, "the kernels use plain"),
        ({"threads": 99}, "99 threads, where"),
        ({"load": 1e3}, "load 1000.0"),
        ({"gpus": [{"name": "a card", "fault": "its driver is too old"}]}, "its driver is too old"),
        ({"broken": "ImportError: libcuda"}, "cannot be imported"),
        ({"packages": [OLD]}, "older than this program needs: 'torch>=2.9'"),
        ({"packages": [NEW]}, "gradio 6.40.1 is not tested with"),
    ],
)
def test_each_problem_has_a_way_out(change, problem):
    facts = doctor.examine() | change
    (line,) = [(what, do) for what, do in doctor._problems(facts) if problem in what]
    assert line[1]


def test_with_old_packages_it_still_answers(monkeypatch, capsys):
    monkeypatch.setattr(runtime, "package_versions", lambda extra=None: [OLD])
    monkeypatch.setattr(doctor, "package_versions", lambda extra=None: [OLD])
    runtime.check_versions.cache_clear()
    assert main(["fetch"]) == 2 and "torch 1.0 is installed" in capsys.readouterr().err
    assert main(["doctor"]) == 0 and "pip install 'torch>=2.9'" in capsys.readouterr().out
    runtime.check_versions.cache_clear()


def test_the_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"lora-drop {VERSION}\n"
