from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from micrographia.errors import UserError
from micrographia.micrograph import robust_scale
from micrographia.nets.weights import load_tree, save_model, save_tree
from micrographia.training.loop import train
from micrographia.translate import translator as room
from micrographia.translate.cyclegan import TranslateConfig
from micrographia.translate.networks import CompactGenerator
from micrographia.translate.translator import Translator, Watch

TINY = TranslateConfig(steps=4, batch=2, patch_px=32, width=8, blocks=1, evaluate_every=2, pool=4)


def _images(n: int, size: int, seed: int, noise: float) -> np.ndarray:
    """Lattice images with white noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    crystal = np.cos(2 * np.pi * x / 11) + np.cos(2 * np.pi * y / 13)
    return (crystal + noise * rng.standard_normal((n, size, size))).astype(np.float32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, seen = tmp_path_factory.mktemp("run"), []
    translator = Translator(0.2, TINY)
    result = translator.fit(
        _images(6, 48, 0, 0.0), _images(4, 40, 1, 0.7), folder, 0, "cpu", lambda *call: seen.append(call)
    )
    return translator, result, folder, seen


def test_the_distance_to_the_experiment_is_watched(trained):
    _, result, _, seen = trained
    assert result.stopped == "done"
    looks = result.history.dropna(subset=["frechet"])
    assert looks["step"].tolist() == [2, 4]
    assert {"frechet", "kl"} <= set(looks)
    assert result.best_score == pytest.approx(looks["frechet"].min())
    assert [step for step, _ in seen] == [2, 4]
    sample = seen[0][1]
    assert isinstance(sample, Watch)
    assert sample.simulated.shape == sample.translated.shape == sample.experimental.shape == (48, 32, 32)


def test_translations_keep_shape_and_place_and_differ_by_seed(trained):
    translator = trained[0]
    images = _images(2, 50, 3, 0.0)[:, :, :37]
    one, again, other = (translator.apply(images, seed, "cpu") for seed in (0, 0, 1))
    assert one.shape == images.shape
    assert one.dtype == np.float32
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    scaled = np.stack([robust_scale(image)[0] for image in images])
    assert np.corrcoef(one.ravel(), scaled.ravel())[0, 1] > 0.8


def test_an_image_does_not_depend_on_those_after_it(trained):
    images = _images(3, 48, 4, 0.0)
    np.testing.assert_array_equal(
        trained[0].apply(images, 0, "cpu")[:1], trained[0].apply(images[:1], 0, "cpu")
    )


def test_the_way_back_is_another_network(trained):
    images = _images(1, 48, 4, 0.0)
    forth, back = (trained[0].apply(images, 0, "cpu", reverse=r) for r in (False, True))
    assert not np.array_equal(forth, back)


def _strong_generator() -> CompactGenerator:
    """A generator that changes its input as much as a trained one does."""
    torch.manual_seed(3)
    network = CompactGenerator(16, 3)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    network.head[1].weight.data.mul_(0.1)
    return network.eval()


def _seams(change: np.ndarray, period: int) -> float:
    """Power of the columns' roughness at the harmonics of a period, over the power elsewhere."""
    rough = np.abs(np.diff(change, 2, axis=1)).mean(axis=0)
    rough = rough[: len(rough) // period * period]
    power = np.abs(np.fft.rfft(rough - rough.mean())) ** 2
    harmonic = np.arange(len(power)) % (len(rough) // period) == 0
    return float(power[harmonic].mean() / power[~harmonic].mean())


def test_tiles_leave_no_seam_in_the_power_spectrum():
    translator = Translator(0.2, TINY)
    translator.to_experiment = _strong_generator()
    noise = np.random.default_rng(0).standard_normal((640, 640))
    image = robust_scale(ndimage.gaussian_filter(noise, 1.5))[0]
    z = np.random.default_rng([0, 0]).standard_normal(image.shape, dtype=np.float32)
    both = torch.from_numpy(np.stack([robust_scale(image)[0], z]))[None].split(1, dim=1)
    with torch.inference_mode():
        whole = translator.to_experiment(*both)[0, 0].numpy()
    blended = translator.apply(image[None], 0, "cpu")[0] - whole
    assert np.abs(blended[16:-16, 16:-16]).max() < 0.1 * whole.std()
    assert _seams(blended, 256 - 64) < 2

    # Tiles that are merely laid side by side show what the test sees.
    beside = -whole
    with torch.inference_mode():
        for r, c in np.ndindex(5, 5):
            here = (slice(128 * r, 128 * r + 128), slice(128 * c, 128 * c + 128))
            beside[here] += translator.to_experiment(*(part[(..., *here)] for part in both))[0, 0].numpy()
    assert _seams(beside, 128) > 5


def test_a_saved_translator_translates_the_same(trained, tmp_path):
    path, images = tmp_path / "translator.safetensors", _images(1, 48, 4, 0.0)
    trained[0].save(path)
    again = Translator.load(path)
    assert again.config == TINY
    assert again.pixel_size_A == 0.2
    for reverse in (False, True):
        one, two = (t.apply(images, 0, "cpu", reverse) for t in (trained[0], again))
        assert np.array_equal(one, two)


def test_a_finished_training_is_not_repeated_in_its_folder(trained, monkeypatch):
    taken = []

    def counting(model, batches, *rest, **options):
        return train(model, lambda step: taken.append(step) or batches(step), *rest, **options)

    monkeypatch.setattr(room, "train", counting)
    again = Translator(0.2, TINY)
    again.fit(_images(6, 48, 0, 0.0), _images(4, 40, 1, 0.7), trained[2], 0, "cpu")
    assert taken == [0]  # the first batch, by which the folder knows its data; no step
    images = _images(1, 48, 4, 0.0)
    assert np.array_equal(again.apply(images, 0, "cpu"), trained[0].apply(images, 0, "cpu"))


def test_patience_stops_a_training_that_gets_no_better(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "frechet_distance", lambda a, b: 1.0)
    translator = Translator(0.2, replace(TINY, steps=40, evaluate_every=1, patience=2))
    result = translator.fit(_images(4, 40, 0, 0.0), _images(4, 40, 1, 0.7), tmp_path, 0, "cpu")
    assert (result.stopped, result.steps, result.best_step) == ("early", 3, 1)


@pytest.mark.parametrize("which", ["simulated", "experimental"])
def test_images_that_hold_no_patch_are_refused(which, tmp_path):
    sets = {"simulated": _images(2, 48, 0, 0.0), "experimental": _images(2, 48, 0, 0.0)}
    sets[which] = sets[which][:, :20]
    with pytest.raises(UserError, match=f"{which} images .* 32 x 32"):
        Translator(0.2, TINY).fit(**sets, folder=tmp_path)


@pytest.mark.parametrize("shape", [(48, 48), (0, 48, 48)])
def test_no_stack_of_images_is_refused(shape, tmp_path):
    with pytest.raises(UserError, match="simulated images"):
        Translator(0.2, TINY).fit(np.zeros(shape, np.float32), _images(2, 48, 0, 0.0), tmp_path)


def test_an_untrained_translator_neither_translates_nor_saves(tmp_path):
    with pytest.raises(UserError, match="not trained"):
        Translator(0.2).apply(_images(1, 48, 0, 0.0))
    with pytest.raises(UserError, match="not trained"):
        Translator(0.2).save(tmp_path / "x.safetensors")


def test_another_model_file_is_refused(tmp_path):
    save_model(tmp_path / "x.safetensors", {}, {}, "detector")
    with pytest.raises(UserError, match="holds a 'detector'"):
        Translator.load(tmp_path / "x.safetensors")


def test_a_file_of_another_version_is_refused(trained, tmp_path):
    path = tmp_path / "then.safetensors"
    trained[0].save(path)
    tree = load_tree(path, "translator")
    tree["config"]["config"]["widht"] = 3
    save_tree(path, tree, "translator")
    with pytest.raises(UserError, match="another version of micrographia"):
        Translator.load(path)
