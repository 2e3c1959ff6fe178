"""The demo at the smallest size: every way of training, both days, across days; and its resumption."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest
from test_find import TINY

from micrographia.simulate.scenes import Specimen
from micrographia.workflows import demo
from micrographia.workflows.recipe import load_recipe


@pytest.fixture
def small(monkeypatch):
    recipe = load_recipe("wse2", [*TINY, "detect.steps=100"])
    monkeypatch.setattr(demo, "demo_recipe", lambda seed: replace(recipe, name="demo", seed=seed))
    monkeypatch.setattr(demo, "EXPERIMENT", Specimen(defects={"vacancy-2Se": 0.1}))
    for name, value in (("UNLABELLED", 10), ("TESTED", 3), ("FIELD_PX", 128)):
        monkeypatch.setattr(demo, name, value)


def test_the_full_demo_judges_every_way_on_both_days_and_resumes(small, tmp_path, stands_in_browser):
    said: list[str] = []
    table = demo.run_demo(tmp_path / "demo", full=True, say=said.append)
    assert list(table["way"]) == [*demo.ROWS, *demo.ROWS]
    assert set(table["day"]) == {"day-a", "day-b"}
    assert table[["precision", "recall"]].apply(lambda c: c.dropna().between(0, 1).all()).all()
    assert (table["true_sites"] > 10).all()
    oracle = table[(table["way"] == "oracle") & (table["day"] == "day-b")]
    assert oracle["f1"].item() > 0.5  # easy double vacancies, though the network saw few
    metrics = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    across = pd.DataFrame(metrics["across_days"])
    assert list(across["trained on"]) == ["day-a", "day-b"]
    assert set(metrics["label_fidelity"]["day-a, seed 0"]) == {"CycleGAN", demo.DEFAULT_WAY}
    report = (tmp_path / "demo" / "report.html").read_text()
    assert "Trained on one day" in report
    stands_in_browser(tmp_path / "demo" / "report.html")
    assert "Pictures of day-b" in report

    said.clear()
    again = demo.run_demo(tmp_path / "demo", full=True, resume=True, say=said.append)
    pd.testing.assert_frame_equal(again, table)
    assert not any("started" in line for line in said)
