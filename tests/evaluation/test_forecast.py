"""The measured settings that the page's forecast chooses from."""

from __future__ import annotations

from itertools import permutations

import pytest

from lora_drop.method.cost import accepted_share, chance_of
from lora_drop.paths import SHIPPED_SWEEPS
from lora_drop.run.results.files import SWEEP
from lora_drop.run.results.forecast import forecast_facts
from lora_drop.run.results.preset_results import Measured
from tests.evaluation.test_safe_zone import EXACT, preset_row, row


def test_a_row_has_what_it_shares_with_a_setting_and_its_results():
    skipping = preset_row("memory", 0.1, 1.05)
    bare = skipping | {"corrections": False, "free_regret": None}
    verified = row(0.25, 3, 0.1, accepted=0.72, drop_layers=[4, 6], **EXACT)
    rows = [verified, row(0.5, 4, 0.6, accepted=None), row(0.5, 1), row(0.5, 2) | {"period": 0}]
    facts = forecast_facts(Measured({"memory": skipping}, {"memory": bare}), rows, 30)["rows"]
    assert [fact["label"] for fact in facts] == [
        *("Memory", "Memory", "drop ratio 0.25, period 3, chosen layers, accept 0.1", "drop ratio 0.5, period 4")
    ]
    assert [fact["corrected"] for fact in facts] == [True, False, True, True]
    assert [(fact["reads"], fact["regret"]) for fact in facts] == [
        *(("reads well", 0.1), (None, None), ("reads well", 0.1), ("reads badly", 0.6))
    ]
    assert (facts[2]["layers"], facts[2]["range"], facts[2]["accept"]) == ([4, 6], None, 0.1)
    assert accepted_share(facts[2]["chance"], 2) == pytest.approx(0.72, abs=1e-3) and facts[3]["chance"] is None
    assert facts[3]["range"] == [3, 28] and len(facts[3]["layers"]) == 13


def test_a_share_accepted_at_one_period_gives_that_at_another():
    rows = [one for one in SWEEP.read(SHIPPED_SWEEPS / "sweep.json")["rows"] if one.get("accepted") is not None]
    pairs = [(a, b) for a, b in permutations(rows, 2) if a["drop_layers"] == b["drop_layers"] is not None]
    errors = sorted(
        abs(accepted_share(chance_of(a["accepted"], a["period"] - 1), b["period"] - 1) - b["accepted"])
        for a, b in pairs
        if a["accept"] == b["accept"]
    )
    assert len(errors) >= 18 and errors[len(errors) // 2] < 0.08 and errors[-1] < 0.27
