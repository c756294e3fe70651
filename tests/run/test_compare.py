"""Runs side by side: their differences, figures and curves, from traces made by hand."""

from lora_drop.run.report import compare
from lora_drop.run.trace.records import BASELINE, LORA_DROP
from lora_drop.run.trace.trace import Trace
from tests.support.made import audit, gathered, header, rejecting, steps, summary

TIMES = {"p": 20.0, "l": 4.126, "r": 12.0}


def compared(runs):
    return compare.compared({run_id: compare.side_of(trace) for run_id, trace in runs.items()})


VERDICT = {"kind": "compared", "text": "Faster.", "facts": {}}


def a_run(**more) -> Trace:
    rules = more.pop("rules", {})
    return gathered(header(rules, **more), *steps(BASELINE, "prr", TIMES), *steps(LORA_DROP, "plr", TIMES))


def test_only_settings_that_differ_are_listed():
    sampling = {"temperature": 0.0, "audit": True}
    runs = {
        "a": a_run(sampling=sampling),
        "b": a_run(sampling=sampling, rules={"period": 4, "reuse": "skip"}, seed=3),
        "c": a_run(sampling=sampling | {"audit": False}, prompt="How?", rules={"layers": None}),
    }
    assert {row["name"]: row["values"] for row in compared(runs)["settings"]} == {
        "period": ["3", "4", "3"],
        "layers": ["", "", "default"],
        "reuse": ["residual", "skip", "residual"],
        "seed": ["0", "3", "0"],
        "audit": ["true", "true", "false"],
        "prompt": ["Why?", "Why?", "How?"],
    }
    assert compared({"a": runs["a"], "again": runs["a"]})["settings"] == []


def test_figures_are_the_summary_s():
    trace = a_run()
    cut = compared({"x": trace})["runs"][0]
    assert cut["verdict"] is None and set(cut["figures"].values()) == {None}
    trace.add(summary(speedup=1.25, speedup_interval=[1.0, 1.5], verdict=VERDICT))
    run = compared({"x": trace})["runs"][0]
    assert (run["id"], run["name"], run["main"], run["verdict"]) == ("x", "Why?", LORA_DROP, "Faster.")
    assert run["speed"] == "1.25x (noisy: 1.00x to 1.50x)", "its own, also where it is no headline"
    assert run["figures"]["speedup"] == 1.25 and run["words"].startswith("2 of 4 layers skipped, ")
    assert run["lanes"][0] == {"id": BASELINE, "label": "baseline: of a test"}


def test_the_drift_is_the_mean_of_the_audited_steps():
    trace = a_run()
    trace.add(audit(2, drift=[0.1, 0.21234]))
    assert compared({"x": trace})["curves"]["drift"] == [[None, 0.1562]]
    trace.add(audit(1, drift=[0.0, 0.0]))
    assert compared({"x": trace})["curves"]["drift"] == [[0.0, 0.1562]]


def test_the_clock_counts_rejected_drafts_and_the_last_verification():
    """A rejected step's time is in the next one's, the last verification's in the last one's."""
    clocks = compared({"x": a_run(), "rejecting": gathered(*rejecting()), "empty": Trace(header())})["curves"]["clock"]
    assert clocks == [[4.13, 16.13], [4.0, 8.0, 20.0, 25.0, 43.0, 47.0, 57.0], []]
