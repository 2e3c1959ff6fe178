import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from micrographia.detect import finder as room
from micrographia.detect.finder import DefectFinder, DetectConfig
from micrographia.errors import UserError
from micrographia.metrics.matching import score_sites
from micrographia.micrograph import Micrograph
from micrographia.simulate.degrade import Conditions, draw_conditions, narrowed
from micrographia.simulate.probe import Optics
from micrographia.simulate.scenes import Specimen, simulate_series
from micrographia.training.loop import train

PIXEL_A = 0.2
KIND = "vacancy-2Se"
SPECIMEN = Specimen(defects={KIND: 0.06}, holes=0.0)
EASY = narrowed(
    Conditions(), counts_per_A2=2000.0, readout=0.02, background=0.1, contamination=(0.0, 0.2), speckle=0.0,
    source_size_A=0.7, line_jitter_A=0.02, slow_jitter_A=0.1, afterglow_px=0.2, coma_A=0.0, threefold_A=0.0,
    astigmatism_A=0.0, defocus_A=0.0, blur_px=0.2, line_gain=0.0,
)  # fmt: skip
TINY = DetectConfig(steps=200, batch=4, patch_px=64, width=8, levels=1, learning_rate=1e-2, symmetries=False)


def _images(n: int, size: int, seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    drawn = draw_conditions(EASY, n, np.random.default_rng(seed))
    images, _, sites = simulate_series(SPECIMEN, Optics(), n, (size, size), PIXEL_A, seed, drawn)
    return images, sites


@pytest.fixture(scope="module")
def training():
    return _images(24, 96, 1)


@pytest.fixture(scope="module")
def trained(training, tmp_path_factory):
    images, sites = training
    folder = tmp_path_factory.mktemp("run")
    finder = DefectFinder([KIND], ["column-Se", "column-W"], PIXEL_A, TINY)
    finder.fit(images, sites, folder, seed=0, device="cpu")
    return finder, folder


@pytest.fixture(scope="module")
def unseen():
    images, sites = _images(6, 128, 99)
    micrographs = [Micrograph(image, PIXEL_A, f"{i}.tif") for i, image in enumerate(images)]
    return micrographs, sites.assign(image=[f"{i}.tif" for i in sites["index"]], confidence=1.0)


def _score(finder: DefectFinder, micrographs, truth, shape=(128, 128)):
    found = pd.concat([finder.find(m, device="cpu") for m in micrographs])
    return score_sites(
        found,
        truth[truth["kind"] == KIND],
        tolerance_px=1 / PIXEL_A,
        border_px=5,
        shapes={m.name: shape for m in micrographs},
        images=[m.name for m in micrographs],
    )


# --------------------------------------------------------------------------------------------------------- finding


def test_seconds_of_training_find_vacancies_in_easy_images(trained, unseen):
    score = _score(trained[0], *unseen)
    assert score.tp + score.fn >= 15
    assert score.f1 > 0.8  # as many guesses at random would hit less than one in ten


def test_untrained_weights_do_not(trained, unseen):
    finder = DefectFinder([KIND], ["column-Se", "column-W"], PIXEL_A, TINY)
    finder.networks = [room._build(3, TINY, 5).eval()]
    assert _score(finder, *unseen).f1 < 0.3


def test_what_is_found_has_its_columns_and_a_confidence_that_is_a_probability(trained, unseen):
    sites = trained[0].find(unseen[0][0], device="cpu")
    assert list(sites.columns[:5]) == ["image", "x_px", "y_px", "kind", "confidence"]
    assert set(sites["kind"]) == {KIND}  # the intact columns are learnt, not reported
    assert set(sites["image"]) == {"0.tif"}
    assert sites["confidence"].between(0, 1).all()
    assert sites["raw_confidence"].ge(trained[0].threshold).all()


def test_positions_are_those_of_the_atoms(trained, unseen):
    found = pd.concat([trained[0].find(m, device="cpu") for m in unseen[0]])
    truth = unseen[1][unseen[1]["kind"] == KIND]
    errors = []
    for name, group in truth.groupby("image"):
        own = found[found["image"] == name][["x_px", "y_px"]].to_numpy()
        for x, y in group[["x_px", "y_px"]].to_numpy():
            distance = np.hypot(*(own - (x, y)).T)
            if len(distance) and distance.min() < 5:
                errors.append(distance.min() * PIXEL_A)
    assert np.median(errors) < 0.3


def test_a_lower_threshold_finds_more(trained, unseen):
    counts = [len(trained[0].find(unseen[0][0], threshold=t, device="cpu")) for t in (0.05, 0.5, 0.99)]
    assert counts[0] >= counts[1] >= counts[2]
    assert counts[0] > counts[2]


@pytest.mark.parametrize("other_A", [0.1, 0.137])
def test_another_sampling_gives_the_same_positions_in_its_own_pixels(trained, unseen, other_A):
    finder = trained[0]
    image = max(unseen[0], key=lambda m: len(finder.find(m, device="cpu")))
    finer = image.resampled(other_A)
    one, two = finder.find(image, device="cpu"), finder.find(finer, device="cpu")
    xy = one[["x_px", "y_px"]].to_numpy() * PIXEL_A
    inside = (xy > 1.5).all(axis=1) & (xy < 127 * PIXEL_A - 1.5).all(axis=1)
    other = two[["x_px", "y_px"]].to_numpy() * other_A
    assert inside.sum() >= 3
    distance = np.hypot(*(xy[inside][:, None] - other[None]).transpose(2, 0, 1)).min(axis=1)
    assert distance.max() < 0.2


def test_an_image_larger_than_a_tile_is_searched_everywhere(trained):
    images, sites = _images(1, 320, 5)
    truth = sites.assign(image="large.tif", confidence=1.0)
    assert _score(trained[0], [Micrograph(images[0], PIXEL_A, "large.tif")], truth, (320, 320)).f1 > 0.8


@pytest.mark.parametrize("length", [40, 128, 500, 512, 576, 577, 1000, 1024, 4096])
def test_tiles_fit_the_image(length):
    tile = room._fitting_tile(length)
    step = tile - room.OVERLAP_PX
    tiles = 1 + max(0, -(-(length - tile) // step))
    assert 128 <= tile <= room.LONGEST_TILE_PX
    assert tile % 8 == step % 8 == 0
    assert tile + (tiles - 1) * step - length < max(8 * tiles, 128 - length + 1)


def test_gain_and_offset_do_not_matter(trained, unseen):
    image = unseen[0][2]
    other = image.with_data(3000 * image.data - 70000, "offset")
    one, two = (trained[0].find(m, device="cpu") for m in (image, other))
    assert len(one) == len(two) > 0
    np.testing.assert_allclose(one["x_px"], two["x_px"], atol=0.05)


# -------------------------------------------------------------------------------------------------- judging itself


def test_threshold_and_calibration_come_from_images_held_out(trained):
    finder, _ = trained
    assert 0 < finder.threshold < 1
    assert finder.validation_scores["f1"] > 0.7
    assert set(finder.validation.columns) == {"kind", "confidence", "true"}
    assert finder.validation["true"].dtype == bool


def test_an_ensemble_reports_an_uncertainty(trained, unseen):
    finder, _ = trained
    pair = DefectFinder(finder.kinds, finder.others, PIXEL_A, replace(TINY, members=2))
    pair.log_weights = finder.log_weights
    noisy = room._build(3, TINY, 0)
    noisy.load_state_dict(finder.networks[0].state_dict())
    with torch.no_grad():
        for p in noisy.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    pair.networks = [finder.networks[0], noisy.eval()]
    sites = pair.find(unseen[0][0], threshold=0.05, device="cpu")
    assert (sites["uncertainty"] >= 0).all()
    assert sites["uncertainty"].max() > 0
    assert pair.confidence_maps(unseen[0][0], "cpu").shape == (2, 1, 128, 128)
    pair.networks = [finder.networks[0]] * 2
    assert pair.find(unseen[0][0], threshold=0.05, device="cpu")["uncertainty"].max() == 0


def test_averaging_over_symmetries_makes_the_answer_turn_with_the_image(trained, unseen):
    finder = DefectFinder([KIND], ["column-Se", "column-W"], PIXEL_A, replace(TINY, symmetries=True))
    finder.networks, finder.log_weights = trained[0].networks, trained[0].log_weights
    image = unseen[0][0]
    straight = finder.confidence_maps(image, "cpu")[0, 0]
    turned = finder.confidence_maps(image.with_data(np.rot90(image.data).copy(), "turned"), "cpu")[0, 0]
    np.testing.assert_allclose(np.rot90(straight), turned, atol=1e-4)  # both are single tiles
    assert np.corrcoef(straight.ravel(), turned.ravel())[0, 1] < 0.5


# -------------------------------------------------------------------------------------------------------- on disk


def test_a_saved_finder_finds_the_same(trained, unseen, tmp_path):
    finder, _ = trained
    finder.save(tmp_path / "detector.safetensors")
    again = DefectFinder.load(tmp_path / "detector.safetensors")
    for image in unseen[0][:2]:
        pd.testing.assert_frame_equal(finder.find(image, device="cpu"), again.find(image, device="cpu"))
    assert again.validation_scores == finder.validation_scores
    assert again.config == finder.config


def test_a_truncated_or_other_model_file_is_refused(trained, tmp_path):
    path = tmp_path / "detector.safetensors"
    trained[0].save(path)
    whole = path.read_bytes()
    networks = {"member-0": torch.nn.Linear(2, 2)}
    room.save_model(path, networks, room.load_model(path, "detector")[1], "detector")
    with pytest.raises(UserError, match="another version of micrographia"):
        DefectFinder.load(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated"):
        DefectFinder.load(path)
    room.save_model(path, {}, {}, "translator")
    with pytest.raises(UserError, match="holds a 'translator'"):
        DefectFinder.load(path)
    with pytest.raises(UserError, match="no such model file"):
        DefectFinder.load(tmp_path / "absent.safetensors")


def test_a_finished_training_is_not_repeated_in_its_folder(trained, training, monkeypatch):
    finder, folder = trained
    taken = []

    def counting(model, batches, *rest, **options):
        return train(model, lambda step: taken.append(step) or batches(step), *rest, **options)

    monkeypatch.setattr(room, "train", counting)
    again = DefectFinder([KIND], ["column-Se", "column-W"], PIXEL_A, TINY)
    again.fit(*training, folder, seed=0, device="cpu")
    assert taken == [0]  # the first batch, by which the folder knows its data; no step
    assert again.threshold == finder.threshold
    for one, two in zip(finder.networks[0].parameters(), again.networks[0].parameters(), strict=True):
        assert torch.equal(one, two)
    assert (folder / "member-0" / "metrics.csv").exists()


# ------------------------------------------------------------------------------------------------------- mistakes


def test_mistakes_are_explained(training, tmp_path):
    images, sites = training
    finder = DefectFinder(["vacancy-1Se"], ["column-Se"], PIXEL_A, TINY)
    with pytest.raises(UserError, match="no site of kind vacancy-1Se"):
        finder.fit(images, sites, tmp_path)
    with pytest.raises(UserError, match="at least 4"):
        DefectFinder([KIND], [], PIXEL_A, TINY).fit(images[:2], sites, tmp_path)
    with pytest.raises(UserError, match="not trained"):
        finder.find(Micrograph(images[0], PIXEL_A))
    with pytest.raises(UserError, match="at least one kind"):
        DefectFinder([], [], PIXEL_A)


def test_images_without_scale_or_content_are_refused(trained):
    with pytest.raises(UserError, match="pixel size is unknown"):
        trained[0].find(Micrograph(np.random.default_rng(0).random((64, 64))))
    with pytest.raises(UserError, match="constant"):
        trained[0].find(Micrograph(np.ones((64, 64)), PIXEL_A))


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"patch_px": 1},
        {"width": 12},
        {"levels": -1},
        {"levels": 12},
        {"radius_A": 0.0},
        {"radius_A": float("nan")},
        {"members": 0},
        {"learning_rate": -1.0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"gain_jitter": -1.0},
        {"noise_jitter": -0.1},
    ],
)
def test_impossible_settings_are_refused_by_name(change):
    with pytest.raises(UserError, match=f"detect.{next(iter(change))}"):
        DetectConfig(**change)


def test_settings_are_plain_values(trained, tmp_path):
    trained[0].save(tmp_path / "m.safetensors")
    _, settings = room.load_model(tmp_path / "m.safetensors", "detector")
    assert json.loads(json.dumps(settings)) == settings
