from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from micrographia.detect.finder import DetectConfig
from micrographia.errors import UserError
from micrographia.library import ImageLibrary
from micrographia.micrograph import Micrograph
from micrographia.simulate.degrade import NAMES
from micrographia.simulate.fit import FitConfig, FittedConditions
from micrographia.simulate.probe import Optics
from micrographia.simulate.scenes import Specimen, simulate_series
from micrographia.translate.cyclegan import TranslateConfig
from micrographia.workflows import stages
from micrographia.workflows.recipe import LibraryConfig, Recipe
from micrographia.workflows.runfolder import RunFolder
from micrographia.workflows.stages import LabelledSet

RECIPE = Recipe(
    device="cpu",
    specimen=Specimen(defects={"vacancy-2Se": 0.1}),
    library=LibraryConfig(images=8, size_px=64),
    fit=FitConfig(simulations=100, rounds=1, patch_px=48),
    translate=TranslateConfig(steps=2, batch=2, patch_px=48, width=8, blocks=1, evaluate_every=1),
    detect=DetectConfig(
        steps=120, batch=4, patch_px=48, width=8, levels=1, learning_rate=1e-2, symmetries=False
    ),
)


def _quiet(message: str) -> None:
    pass


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run", RECIPE)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A run with a hand-tuned and a noise-free library."""
    run = RunFolder(tmp_path_factory.mktemp("stages") / "run", RECIPE)
    tuned, clean = stages.simulate_stage(run, RECIPE, "tuned", stages.HAND_TUNED, _quiet)
    return run, tuned, clean


def _experiment(n: int = 3, size: int = 64) -> list[Micrograph]:
    rng = np.random.default_rng(0)
    return [Micrograph(rng.random((size, size)), RECIPE.sampling_A, f"{i}.tif") for i in range(n)]


def _fails(*_, **__):
    raise AssertionError("the work was done again")


# ------------------------------------------------------------------------------------------------------- simulation


def test_a_library_holds_images_labels_and_sites(shared):
    run, tuned, clean = shared
    assert tuned.images.shape == clean.shape == (8, 64, 64)
    assert set(tuned.sites["kind"]) == {"vacancy-2Se", "column-Se", "column-W"}
    assert sorted(tuned.sites["index"].unique()) == list(range(8))
    assert tuned.sites[["x_px", "y_px"]].to_numpy().min() >= -0.5
    library = ImageLibrary.open(run.path / "stages" / tuned.key / "library")
    assert list(library.kinds) == ["vacancy-2Se", "column-Se", "column-W"]
    assert library.pixel_size_A == RECIPE.sampling_A


def test_a_library_is_simulated_once(shared, monkeypatch):
    run, tuned, clean = shared
    monkeypatch.setattr(stages, "simulate_series", _fails)
    again, again_clean = stages.simulate_stage(run, RECIPE, "tuned", stages.HAND_TUNED, _quiet)
    assert np.array_equal(again.images, tuned.images)
    assert np.array_equal(again_clean, clean)
    pd.testing.assert_frame_equal(again.sites, tuned.sites)
    assert again.key == tuned.key


def test_noise_free_fitted_and_other_ranges_are_other_libraries(shared):
    run, tuned, _ = shared
    fitted = FittedConditions(
        np.full((4, len(NAMES)), 0.4), RECIPE.fit.prior, 0.05, dict.fromkeys(NAMES, 0.0), 2.0, 1.0, 0.5
    )
    free, free_clean = stages.simulate_stage(run, RECIPE, "free", None, _quiet)
    drawn, _ = stages.simulate_stage(run, RECIPE, "fitted", fitted, _quiet)
    assert np.array_equal(free.images, free_clean)
    assert len({free.key, drawn.key, tuned.key}) == 3
    for other in (free, drawn):  # the same scenes under other conditions
        assert other.sites["kind"].value_counts().sub(tuned.sites["kind"].value_counts()).abs().max() < 25


def test_conditions_are_fitted_once_and_read_back(run, monkeypatch):
    one = stages.fit_stage(run, _experiment(), RECIPE, _quiet)
    monkeypatch.setattr(stages, "fit_conditions", _fails)
    two = stages.fit_stage(run, _experiment(), RECIPE, _quiet)
    assert np.array_equal(one.unit, two.unit)
    assert one.prior == two.prior == RECIPE.fit.prior
    with pytest.raises(AssertionError, match="done again"):  # other images are another fit
        stages.fit_stage(run, _experiment(4), RECIPE, _quiet)


# ------------------------------------------------------------------------------------------------------ translation


def test_a_library_is_translated_with_its_sites(shared, monkeypatch):
    run, tuned, _ = shared
    translator, history = stages.translate_stage(run, tuned, _experiment(), RECIPE, _quiet)
    assert history["frechet"].notna().sum() == 2
    assert len(list(run.path.glob("stages/translate-*/samples/*.png"))) == 2
    translated = stages.apply_stage(run, translator, tuned, RECIPE, _quiet)
    assert translated.images.shape == tuned.images.shape
    assert not np.allclose(translated.images, tuned.images)
    columns = ["index", "x_px", "y_px", "kind"]
    pd.testing.assert_frame_equal(translated.sites[columns], tuned.sites[columns])

    monkeypatch.setattr(stages.Translator, "fit", _fails)
    monkeypatch.setattr(stages.Translator, "apply", _fails)
    again, _ = stages.translate_stage(run, tuned, _experiment(), RECIPE, _quiet)
    assert np.array_equal(stages.apply_stage(run, again, tuned, RECIPE, _quiet).images, translated.images)

    fidelity = stages.fidelity_of(tuned, translated, RECIPE.sampling_A)
    assert set(fidelity) == {"vacancy-2Se"}


@pytest.mark.parametrize(
    ("material", "kind"),
    [
        ("graphene", "Si"),
        ("graphene", "divacancy-C"),
        ("WSe2", "substitution-Te-1Se"),
        ("single-atoms", "Re"),
    ],
)
def test_label_fidelity_is_measured_for_every_kind_of_defect(material, kind):
    specimen = Specimen(material, defects={kind: 0.05})
    images, _, sites = simulate_series(specimen, Optics(), 4, (128, 128), 0.15, 0, None)
    before = stages.LabelledSet("simulated", images, sites, "")
    kept = stages.fidelity_of(before, before, 0.15)[kind]
    assert kept.n_defects > 3
    assert kept.median_displacement_pm < 0.1
    assert kept.filled_in == kept.filled_in_before <= 0.1
    gone = images.copy()
    rows = np.rint(sites.loc[sites["kind"] == kind, ["index", "y_px", "x_px"]]).to_numpy().astype(int)
    for i, y, x in rows:
        gone[i, max(y - 12, 0) : y + 13, max(x - 12, 0) : x + 13] = np.median(images[i])
    flat = stages.fidelity_of(before, replace(before, images=gone), 0.15)[kind]
    assert flat.contrast_kept < kept.contrast_kept - 0.3


def test_small_experimental_images_shrink_the_patches(shared):
    run, tuned, _ = shared
    recipe = replace(RECIPE, translate=replace(RECIPE.translate, patch_px=64))
    translator, _ = stages.translate_stage(run, tuned, _experiment(size=57), recipe, _quiet, "small")
    assert translator.config.patch_px == 56


def test_experimental_images_too_small_for_any_patch_are_refused(shared):
    run, tuned, _ = shared
    with pytest.raises(UserError, match="smaller than 48 px"):
        stages.translate_stage(run, tuned, _experiment(size=40), RECIPE, _quiet, "tiny")


# -------------------------------------------------------------------------------------------------------- detection


def test_a_detector_is_trained_once_on_several_sets(shared, monkeypatch):
    run, tuned, clean = shared
    sets = [tuned, LabelledSet("clean", clean, tuned.sites, "clean")]
    finder, history = stages.detect_stage(run, sets, RECIPE, _quiet)
    assert finder.kinds == ["vacancy-2Se"]
    assert finder.others == ["column-Se", "column-W"]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    monkeypatch.setattr(stages.DefectFinder, "fit", _fails)
    again, _ = stages.detect_stage(run, sets, RECIPE, _quiet)
    image = Micrograph(clean[0], RECIPE.sampling_A)
    pd.testing.assert_frame_equal(again.find(image, device="cpu"), finder.find(image, device="cpu"))
    assert again.validation.shape == finder.validation.shape


def _set(name: str, value: float, n: int = 3) -> LabelledSet:
    ramp = np.linspace(0, 1, 100).reshape(10, 10)
    images = np.stack([value + (i + 1) * ramp for i in range(n)]).astype(np.float32)
    sites = pd.DataFrame({"index": range(n), "x_px": 1.0, "y_px": np.arange(n) + value, "kind": name})
    return LabelledSet(name, images, sites, name)


def test_sets_are_interleaved_with_their_sites():
    images, sites = stages.interleave([_set("a", 0.0), _set("b", 100.0)])
    assert images.shape == (6, 10, 10)
    assert np.allclose(images[0], images[1], atol=1e-4)  # scaled robustly, so the offset is gone
    assert sites.sort_values("index")["kind"].tolist() == ["a", "b"] * 3
    assert sites.sort_values("index")["y_px"].tolist() == [0, 100, 1, 101, 2, 102]


def test_sets_of_different_size_are_not_interleaved():
    with pytest.raises(ValueError, match="same shape"):
        stages.interleave([_set("a", 0.0, 2), _set("b", 0.0, 3)])


# ------------------------------------------------------------------------------------------------------------ parts


def test_images_are_known_by_content_name_and_scale():
    images = _experiment()
    key = stages.images_key(images)
    assert key == stages.images_key(_experiment())
    assert key != stages.images_key(images[:2])
    assert key != stages.images_key([images[1], images[0], images[2]])
    assert key != stages.images_key([images[0].with_pixel_size(0.3, "user"), *images[1:]])
