"""The benchmarks' own arithmetic: what may be published, and that both ways compute the same."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

from micrographia.errors import UserError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def dual_phase(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The benchmark, which publishes into `tmp_path`."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("dual_phase")
    for owner in (module, importlib.import_module("common")):
        monkeypatch.setattr(owner, "DOCS", tmp_path / "docs" / "benchmarks")
    return module


def row(module: ModuleType, run: str = "DCGAN", minutes: float = 60.0, seed: int = 0, **more) -> dict:
    values = dict.fromkeys(module.COLUMNS, 0.5) | {f"{k}_floor": 0.25 for k in module.SHOWN}
    told = {"state": "best", "date": "2026-01-02", "where": "a machine of 2 cores", "code": "abc123"}
    return values | told | {"run": run, "minutes": minutes, "seed": seed} | more


def test_a_training_is_known_by_run_minutes_and_seed(dual_phase, tmp_path):
    none = dual_phase.read_results(tmp_path / "none.csv")
    assert not dual_phase.is_done(none, "DCGAN", 60.0, 0)
    file = tmp_path / "some.csv"
    rows = [row(dual_phase, seed=seed, code="1234567") for seed in (0, 2)]
    pd.DataFrame(rows).to_csv(file, index=False)
    results = dual_phase.read_results(file)
    assert results["code"].tolist() == ["1234567"] * 2
    assert dual_phase.is_done(results, "DCGAN", 60.0, 2)
    for other in (("R3GAN", 60.0, 2), ("DCGAN", 15.0, 2), ("DCGAN", 60.0, 1)):
        assert not dual_phase.is_done(results, *other)


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        (None, [], "nothing to publish, it has no training of 60 minutes"),
        ("", [], "not a readable table"),
        ("a,b\n1,2\n", [], "no column run"),
        (None, ["DCGANN"], "no run 'DCGANN'. Did you mean 'DCGAN'?"),
    ],
)
def test_without_results_no_page_is_written(dual_phase, tmp_path, text, names, message):
    file = tmp_path / "results.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        dual_phase.main(60.0, 0, str(file), *names)
    assert not (tmp_path / "docs").exists()


def test_trainings_of_one_length_make_a_page(dual_phase, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dual_phase, "JUDGES", 20)
    file = tmp_path / "results.csv"
    rows = [row(dual_phase, seed=s, fid=4.0 + s) for s in (0, 1)]
    few = row(dual_phase, run=dual_phase.FEW, minutes=15.0, fid=99.0)
    pd.DataFrame([*rows, few, few | {"state": "last", "fid": 98.0}]).to_csv(file, index=False)
    damaged = dual_phase.training_folder(tmp_path / "results", "DCGAN", 60.0, 0) / "model.safetensors"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no model")
    dual_phase.main(15.0, 0, str(file))
    dual_phase.main(60.0, 0, str(file))
    assert capsys.readouterr().err.count("not in the picture") == 4  # of DCGAN two seeds
    pages = tmp_path / "docs" / "benchmarks"
    short, long = ((pages / f"dual_phase_{m}min.md").read_text("utf-8") for m in (15, 60))
    assert "| StyleGAN2-ADA, 50 images | 1 | 0 | 0 | 99 |" in short
    assert "| StyleGAN2-ADA, 50 images, last state | 1 | 0 | 0 | 98 |" in short
    assert "| DCGAN | 2 | 0 | 0 | 4.5 ± 0.71 |" in long
    assert "50 images |" not in long
    assert "asked for is 0.3500" in long
    assert "from 2026-01-02 to 2026-01-02, seeds 0, 1, with abc123: a machine of 2 cores" in long
    assert 'Repeat: `python benchmarks/dual_phase.py 60 2 results.csv "DCGAN"`' in long
    assert "(../images/dual-phase-60min.png)" in long
    assert (pages.parent / "images" / "dual-phase-60min.png").exists()
    kept = dual_phase.read_results(pages / "dual_phase_60min.csv")
    pd.testing.assert_frame_equal(kept, dual_phase.read_results(file).iloc[:2])


def test_fifty_images_take_the_same_number_of_steps(dual_phase, tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(dual_phase, "steps_in", lambda config, minutes: measured.append(config) or 123)
    none = dual_phase.read_results(tmp_path / "none.csv")
    for name in (dual_phase.FEW_PLAIN, dual_phase.FEW, dual_phase.FEW):
        assert dual_phase.planned_steps(name, 60.0, none, tmp_path) == 123
    assert len(measured) == 1
    assert measured[0].augment.acts


def test_further_seeds_take_the_steps_of_finished_ones(dual_phase, tmp_path, monkeypatch):
    monkeypatch.setattr(dual_phase, "steps_in", lambda config, minutes: 123)
    finished = pd.DataFrame([row(dual_phase, run=dual_phase.FEW, steps=777)])
    for name in (dual_phase.FEW, dual_phase.FEW_PLAIN):
        assert dual_phase.planned_steps(name, 60.0, finished, tmp_path) == 777
    assert dual_phase.planned_steps(dual_phase.FEW, 15.0, finished, tmp_path) == 123
    assert dual_phase.planned_steps("DCGAN", 60.0, finished, tmp_path) == 123


def test_theory_is_met_by_the_population_and_missed_by_another(dual_phase):
    made = dual_phase.field_microstructures(300, seed=1)
    images = dual_phase.training_set(made).batch(slice(None)).numpy()
    level = dual_phase.phase_threshold(images[:, 0])
    own, other = (dual_phase.against_truth(x, level, made) for x in (images, images[:, :, :, ::2]))
    stretched = dual_phase.RUNS[dual_phase.ELONGATED].population(300, 1)
    found = dual_phase.against_truth(dual_phase.shown(stretched), level, stretched)
    assert (own.pop("anisotropy"), found.pop("anisotropy")) == pytest.approx((1, 2), rel=0.05)
    assert max(*own.values(), *found.values()) < 0.015  # what chance leaves of 300 images
    assert np.isnan(dual_phase._half_way(np.array([0.5, 0.45, 0.42, 0.4])))  # a collapsed generator's
    assert other["anisotropy"] == pytest.approx(0.5, rel=0.1)  # coarser, and as noisy
    assert other["truth_phase_error"] < 0.015
    assert other["truth_two_point_rms"] > 2 * own["truth_two_point_rms"]


def test_wrong_use_of_a_benchmark_exits_with_2(dual_phase, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dual_phase.py", "60", "0", str(tmp_path / "none.csv")])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(dual_phase.__file__, run_name="__main__")
    assert capsys.readouterr().err.count("\n") == 1


def test_the_plain_formulation_draws_the_same_images(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = importlib.import_module("stylegan")
    torch.manual_seed(0)
    config = benchmark.replace(benchmark.BASE, resolution=16, batch=4, width=4, widest=16, latent=8)
    model = benchmark.GAN(config, 1, 0, (16, 16), 0)
    assert benchmark.same_function(model, benchmark.PlainGAN(model), torch.device("cpu")) < 1e-4
