"""Label fidelity: images with a known displacement, known filled-in and invented vacancies."""

import numpy as np
import pytest
from scipy import ndimage

from micrographia.errors import UserError
from micrographia.metrics.fidelity import find_maxima, label_fidelity

PIXEL_A = 0.2
SIZE = 160


def honeycomb(seed):
    """Two sublattices, 3.28 Å, rotated a little: positions (px) of heavy and light columns."""
    a = 3.28 / PIXEL_A
    n = np.arange(-20, 21)
    u, v = np.meshgrid(n, n)
    angle = 0.1 + 0.3 * seed
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    heavy = np.stack([u + v / 2, v * np.sqrt(3) / 2], -1).reshape(-1, 2) * a
    light = heavy + np.array([a / 2, a / 2 / np.sqrt(3)])
    offset = np.random.default_rng(seed).uniform(0, a, 2)
    return tuple((p @ turn.T + SIZE / 2 + offset) for p in (heavy, light))


def draw(positions, weights, sigma=2.2):
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    image = np.zeros((SIZE, SIZE))
    for (px, py), w in zip(positions, weights, strict=True):
        if -10 < px < SIZE + 10 and -10 < py < SIZE + 10:
            image += w * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2))
    return image


@pytest.fixture(scope="module")
def sample():
    """Two images with vacancies in the light sublattice, and what is needed to draw variants."""
    out = {"before": [], "atoms": [], "intact": [], "defects": [], "positions": [], "weights": []}
    for seed in range(2):
        heavy, light = honeycomb(seed)
        rng = np.random.default_rng(seed)
        vacancy = rng.random(len(light)) < 0.1
        positions = np.concatenate([heavy, light])
        weights = np.concatenate([np.ones(len(heavy)), np.where(vacancy, 0.3, 0.6)])
        out["before"].append(draw(positions, weights))
        for name, value in {
            "atoms": positions[weights > 0.5],
            "intact": light[~vacancy],
            "defects": light[vacancy],
            "positions": positions,
            "weights": weights,
        }.items():
            out[name].append(value)
    out["before"] = np.stack(out["before"]).astype(np.float32)
    return out


def measure(sample, after, **options):
    return label_fidelity(
        sample["before"],
        np.asarray(after, np.float32),
        *(sample[k] for k in ("atoms", "intact", "defects")),
        PIXEL_A,
        **options,
    )


def redraw(sample, change=lambda k, p, w: (p, w), **options):
    pairs = zip(sample["positions"], sample["weights"], strict=True)
    return np.stack([draw(*change(k, p, w), **options) for k, (p, w) in enumerate(pairs)])


def test_maxima_of_single_columns_are_exact():
    rng = np.random.default_rng(0)
    points = np.stack(np.meshgrid([30, 80, 130], [30, 80, 130]), -1).reshape(-1, 2) + rng.uniform(
        -0.5, 0.5, (9, 2)
    )
    image = draw(points, np.ones(9))
    found = find_maxima(image, np.rint(points), 2.0, 3.0)
    np.testing.assert_allclose(found, points, atol=1e-3)
    assert np.isnan(find_maxima(np.ones((64, 64)), [[30.0, 30.0]], 2.0, 3.0)).all()
    assert np.isnan(find_maxima(image, [[55.0, 55.0]], 2.0, 3.0)).all()


def test_identity_and_gain_keep_everything(sample):
    for after in (sample["before"], 250 * sample["before"] + 1000):
        result = measure(sample, after)
        assert result.median_displacement_pm < 0.01
        assert result.lost_atoms == result.filled_in == result.invented == 0
        assert result.filled_in_before == result.invented_before == 0
        assert result.contrast_kept == pytest.approx(1, abs=0.01)
        assert result.contrast_before < 0
    assert result.n_defects > 10
    assert result.n_intact > 100


def test_known_displacements_in_pm(sample):
    shifted = redraw(sample, lambda k, p, w: (p + np.array([0.5, -0.25]), w))
    result = measure(sample, shifted)
    assert result.shift_pm == pytest.approx((10, -5), abs=0.2)
    assert result.median_displacement_pm == pytest.approx(np.hypot(10, 5), abs=0.2)
    rng = np.random.default_rng(0)
    jitter = [rng.normal(0, 0.25, p.shape) for p in sample["positions"]]  # 5 pm each way
    result = measure(sample, redraw(sample, lambda k, p, w: (p + jitter[k], w)))
    # Overlapping neighbours pull at each other's maxima by a few per cent.
    assert result.median_displacement_pm == pytest.approx(5 * np.sqrt(2 * np.log(2)), rel=0.2)
    assert result.displacement_95_pm == pytest.approx(5 * np.sqrt(2 * np.log(20)), rel=0.2)


def test_filled_in_and_invented_are_counted(sample):
    rng = np.random.default_rng(1)

    def change(k, positions, weights):
        weights = weights.copy()
        vacancies, light = np.flatnonzero(weights == 0.3), np.flatnonzero(weights == 0.6)
        weights[rng.choice(vacancies, len(vacancies) // 2, False)] = 0.6
        weights[rng.choice(light, len(light) // 20, False)] = 0.3
        return positions, weights

    result = measure(sample, redraw(sample, change))
    assert result.filled_in == pytest.approx(0.5, abs=0.15)
    assert result.invented == pytest.approx(0.05, abs=0.02)
    everything = measure(sample, redraw(sample, lambda k, p, w: (p, np.where(w == 0.3, 0.6, w))))
    assert everything.filled_in == 1
    assert everything.invented == 0
    assert everything.contrast_kept == pytest.approx(0, abs=0.05)


def test_blur_gamma_and_background_are_not_lost_labels(sample):
    y, x = np.mgrid[:SIZE, :SIZE]
    cloud = 1.5 * np.exp(-((x - 60) ** 2 + (y - 90) ** 2) / (2 * 40**2))
    blurred = ndimage.gaussian_filter(sample["before"], (0, 1.5, 1.5))
    for after in (blurred, sample["before"] ** 0.8, sample["before"] + cloud):
        result = measure(sample, after)
        assert result.filled_in <= 0.02
        assert result.invented <= 0.01
        assert result.median_displacement_pm < 3


def test_noise_shows_in_the_reference_too(sample):
    rng = np.random.default_rng(2)
    noisy = [sample["before"] + rng.normal(0, 0.4, sample["before"].shape) for _ in range(2)]
    result = measure(sample, noisy[0], reference=noisy[1])
    clean = measure(sample, sample["before"])
    assert result.median_displacement_pm > clean.median_displacement_pm + 2
    reference = result.reference
    assert reference.median_displacement_pm == pytest.approx(result.median_displacement_pm, rel=0.2)
    assert reference.filled_in == pytest.approx(result.filled_in, abs=0.25)  # two sigma of 19 defects
    assert reference.invented == pytest.approx(result.invented, abs=0.1)
    assert reference.invented > 0.01
    assert result.contrast_kept == pytest.approx(1, abs=0.4)  # three sigma


def test_a_translation_unrelated_to_its_input_loses_every_label(sample):
    result = measure(sample, -sample["before"])
    assert result.filled_in == 1
    assert result.invented == 0
    assert result.lost_atoms > 0.9
    empty = measure(sample, np.ones_like(sample["before"]))
    assert empty.lost_atoms == empty.filled_in == 1
    assert np.isnan(empty.median_displacement_pm)


def test_without_defects_only_positions_are_judged(sample):
    nothing = [np.zeros((0, 2))] * 2
    result = label_fidelity(
        sample["before"], sample["before"], sample["atoms"], sample["intact"], nothing, PIXEL_A
    )
    assert result.n_defects == 0
    assert np.isnan(result.filled_in)
    assert result.median_displacement_pm < 0.01


def test_bad_input(sample):
    with pytest.raises(UserError, match="shape"):
        measure(sample, sample["before"][:, :100])
    with pytest.raises(UserError, match="lists"):
        label_fidelity(sample["before"], sample["before"], [], sample["intact"], sample["defects"], PIXEL_A)
    blank = np.ones_like(sample["before"])
    with pytest.raises(UserError, match="None of the atoms"):
        label_fidelity(blank, blank, *(sample[k] for k in ("atoms", "intact", "defects")), PIXEL_A)
    with pytest.raises(UserError, match="pixel size"):
        label_fidelity(
            sample["before"], sample["before"], *(sample[k] for k in ("atoms", "intact", "defects")), -1
        )
