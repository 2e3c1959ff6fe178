from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from micrographia.errors import UserError
from micrographia.simulate.degrade import (
    LOG_SCALE,
    NAMES,
    REACH_PX,
    Conditions,
    aberrated,
    degrade,
    draw_conditions,
    from_unit,
    moved,
    narrowed,
    sample_displaced,
)
from micrographia.simulate.fit import _reflect
from micrographia.simulate.imaging import render_patches
from micrographia.simulate.probe import Optics

PIXEL_A = 0.2
#: As good as undisturbed: every range that may be zero is, the logarithmic ones are negligible.
QUIET = {
    "counts_per_A2": 1e9,
    "background": 0.0,
    "readout": 1e-9,
    "blur_px": 0.0,
    "afterglow_px": 0.0,
    "line_jitter_A": 1e-9,
    "slow_jitter_A": 1e-9,
    "line_gain": 0.0,
    "contamination": 0.0,
    "contamination_length_A": 20.0,
    "speckle": 0.0,
    "speckle_length_A": 1.0,
}


def _degraded(images: torch.Tensor, seed: int = 0, **conditions: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Degrade under quiet conditions except for those given."""
    values = {"defocus_A": 0.0, "astigmatism_A": 0.0, "coma_A": 0.0, "threefold_A": 0.0, "source_size_A": 0.8}
    values |= QUIET | conditions
    drawn = {name: np.full(len(images), values[name]) for name in NAMES}
    return degrade(images, drawn, PIXEL_A, torch.Generator().manual_seed(seed))


def _lattice(n: int, size: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (2 + torch.cos(2 * torch.pi * x / 16) + torch.cos(2 * torch.pi * y / 16)).expand(n, size, size)


# ------------------------------------------------------------------------------------------- each parameter


def test_quiet_conditions_leave_the_image_alone_in_units_of_its_mean():
    image = _lattice(1, 96)
    out, displacement = _degraded(image)
    assert torch.allclose(out, image / 2, atol=1e-3)
    assert displacement.abs().max() < 1e-6


@pytest.mark.parametrize("dose", [10.0, 300.0])
def test_poisson_variance_is_one_over_the_counts_of_a_pixel(dose):
    out, _ = _degraded(torch.ones(2, 200, 200), counts_per_A2=dose)
    assert out.mean() == pytest.approx(1, rel=0.01)
    assert out.var() == pytest.approx(1 / (dose * PIXEL_A**2), rel=0.03)


def test_background_adds_to_the_signal_and_to_the_shot_noise():
    out, _ = _degraded(torch.ones(2, 200, 200), counts_per_A2=100.0, background=0.5)
    assert out.mean() == pytest.approx(1.5, rel=0.01)
    assert out.var() == pytest.approx(1.5 / (100 * PIXEL_A**2), rel=0.03)


def test_readout_is_the_standard_deviation_of_white_noise():
    out, _ = _degraded(torch.ones(2, 200, 200), readout=0.25)
    assert out.std() == pytest.approx(0.25, rel=0.02)
    neighbours = ((out[:, :, 1:] - 1) * (out[:, :, :-1] - 1)).mean() / out.var()
    assert abs(neighbours) < 0.02


def test_blur_multiplies_the_spectrum_of_the_shot_noise_by_a_gaussian():
    blur = 0.9
    out, _ = _degraded(torch.ones(8, 128, 128), counts_per_A2=100.0, blur_px=blur)
    power = torch.fft.fft2(out - out.mean()).abs().square().mean(dim=0)
    q = torch.fft.fftfreq(128)
    radius = torch.hypot(q[:, None], q[None, :])
    expected = torch.exp(-4 * (torch.pi * blur * radius) ** 2)
    for low, high in ((0.05, 0.1), (0.15, 0.2), (0.25, 0.3)):
        ring = (radius >= low) & (radius < high)
        level = power[ring].mean() / (128**2 / (100 * PIXEL_A**2))
        assert level == pytest.approx(float(expected[ring].mean()), rel=0.06)


def test_afterglow_decays_exponentially_to_the_right_only_and_keeps_the_mean():
    image = torch.full((1, 64, 64), 1e-6)
    image[0, 32, 30] = 1.0
    out, _ = _degraded(image, afterglow_px=2.0)
    row = out[0, 32] / out[0, 32].sum()
    a = np.exp(-1 / 2.0)
    assert row[30:36].numpy() == pytest.approx((1 - a) * a ** np.arange(6), abs=2e-3)
    assert row[:30].abs().max() < 1e-3  # nothing before the beam was there
    assert (out[0, 31].abs() + out[0, 33].abs()).max() < 1e-3 * out.max()  # nothing on other lines
    assert out.mean() == pytest.approx(1, rel=0.01)


def _displacements(size: int = 256, n: int = 8, **conditions: float) -> np.ndarray:
    return _degraded(torch.ones(n, size, 32), **conditions)[1].numpy() * PIXEL_A


def test_line_jitter_is_white_along_the_lines_and_half_as_strong_across_them():
    shift = _displacements(line_jitter_A=0.1)
    assert shift[..., 0].std() == pytest.approx(0.1, rel=0.06)
    assert shift[..., 1].std() == pytest.approx(0.05, rel=0.06)
    assert abs((shift[:, 1:, 0] * shift[:, :-1, 0]).mean()) < 0.06 * 0.1**2


def test_line_jitter_can_be_measured_in_the_image_by_correlating_rows():
    x = torch.arange(256.0)
    stripes = (2 + torch.cos(2 * torch.pi * x / 16)).expand(1, 200, 256)
    out, _ = _degraded(stripes, line_jitter_A=0.1)
    phase = torch.angle((out[0] * torch.exp(-2j * torch.pi * x / 16)).sum(dim=1))
    assert float(phase.std()) * 16 / (2 * np.pi) * PIXEL_A == pytest.approx(0.1, rel=0.12)


def test_slow_jitter_has_its_rms_across_the_image_and_is_smooth():
    shift = _displacements(n=200, size=128, slow_jitter_A=0.5)
    deviation = shift - shift.mean(axis=1, keepdims=True)
    assert np.sqrt((deviation**2).mean()) == pytest.approx(0.5, rel=0.15)
    assert np.diff(shift, axis=1).std() < 0.05 * 0.5 * 2.4


def test_line_gain_lifts_whole_lines():
    out, _ = _degraded(torch.ones(4, 200, 64), line_gain=0.1)
    assert out.mean(dim=2).std() == pytest.approx(0.1, rel=0.1)
    assert out.std(dim=2).max() < 1e-3


def test_speckle_has_its_strength_and_correlation_length():
    length_A = 1.2  # 6 px
    out, _ = _degraded(torch.ones(16, 128, 128), speckle=0.2, speckle_length_A=length_A)
    field = (out - 1) / 0.2
    assert field.std() == pytest.approx(1, rel=0.05)
    correlation = torch.fft.ifft2(torch.fft.fft2(field).abs().square()).real.mean(dim=0)
    correlation = correlation[0] / correlation[0, 0]
    assert correlation[6] == pytest.approx(np.exp(-1), abs=0.05)
    assert correlation[3] == pytest.approx(np.exp(-0.25), abs=0.05)
    assert abs(correlation[30]) < 0.08


def test_contamination_only_adds():
    out, _ = _degraded(torch.ones(16, 128, 128), contamination=0.5, contamination_length_A=1.5)
    assert out.min() > 0.99
    # The positive half of a Gaussian: mean 1 / sqrt(2 pi).
    assert out.mean() - 1 == pytest.approx(0.5 / np.sqrt(2 * np.pi), rel=0.15)


def test_a_field_longer_than_the_image_does_not_blow_up():
    out, _ = _degraded(torch.ones(64, 48, 48), contamination=0.5, contamination_length_A=60.0)
    assert out.max() < 1 + 0.5 * 5
    assert torch.isfinite(out).all()


def test_dark_and_constant_images_stay_finite():
    for image in (torch.zeros(2, 40, 40), torch.ones(2, 40, 40)):
        drawn = draw_conditions(Conditions(), 2, np.random.default_rng(0))
        out, shift = degrade(image, drawn, PIXEL_A, torch.Generator().manual_seed(0))
        assert torch.isfinite(out).all()
        assert torch.isfinite(shift).all()


def test_the_same_seed_gives_the_same_image_and_another_seed_another():
    drawn = draw_conditions(Conditions(), 2, np.random.default_rng(1))
    one, two, three = (
        degrade(_lattice(2, 64), drawn, PIXEL_A, torch.Generator().manual_seed(s))[0] for s in (5, 5, 6)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


# --------------------------------------------------------------------------------------------- displacement


def test_moved_tracks_atoms_in_a_rendered_image():
    rng = np.random.default_rng(3)
    grid = np.arange(20, 180, 20.0)
    x, y = (g.ravel() + rng.uniform(-4, 4, g.size) for g in np.meshgrid(grid, grid))
    clean = render_patches(
        [(x * PIXEL_A, y * PIXEL_A, np.ones(len(x)))], Optics(source_size_A=1.2), (200, 200), PIXEL_A
    )
    out, shift = _degraded(clean, seed=4, slow_jitter_A=0.4, line_jitter_A=0.03)
    new_x, new_y = moved(x, y, shift[0].numpy())
    assert np.hypot(new_x - x, new_y - y).max() > 2  # there is something to track

    image, error = out[0].numpy(), []
    v, u = np.mgrid[-7:8, -7:8]
    for a, b in zip(new_x, new_y, strict=True):
        column, row = round(a), round(b)
        if not (8 <= column < 192 and 8 <= row < 192):
            continue
        window = image[row - 7 : row + 8, column - 7 : column + 8]
        start = (window.max(), a - column, b - row, 2.5, 2.5)
        fit, _ = curve_fit(_spot, (u.ravel(), v.ravel()), window.ravel(), p0=start)
        error.append((column + fit[1] - a, row + fit[2] - b))
    assert len(error) > 50
    assert np.sqrt((np.array(error) ** 2).mean(axis=0)).max() < 0.15
    assert np.abs(np.mean(error, axis=0)).max() < 0.05


def _spot(place, height, x, y, width_x, width_y):
    u, v = place
    return height * np.exp(-((u - x) ** 2) / 2 / width_x**2 - (v - y) ** 2 / 2 / width_y**2)


def test_moved_is_the_identity_without_displacement():
    x, y = np.array([0.0, 10.5, 63.0]), np.array([3.0, 0.0, 63.0])
    new_x, new_y = moved(x, y, np.zeros((64, 2)))
    assert np.array_equal(new_x, x)
    assert np.array_equal(new_y, y)


def test_sampling_at_a_constant_displacement_reads_from_there():
    image = torch.rand(1, 32, 40)
    shift = torch.zeros(1, 32, 2)
    shift[..., 0], shift[..., 1] = 3, -2
    out = sample_displaced(image, shift)
    assert torch.allclose(out[0, 5:, :30], image[0, 3:-2, 3:33], atol=1e-4)


# ----------------------------------------------------------------------------------------------- conditions


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=len(NAMES), max_size=len(NAMES)))
def test_the_unit_cube_maps_into_the_ranges(unit):
    ranges = Conditions()
    for name, value in from_unit(np.array([unit]), ranges).items():
        low, high = getattr(ranges, name)
        assert low - 1e-9 * abs(low) <= value[0] <= high * (1 + 1e-9)


def test_the_middle_of_the_cube_is_the_arithmetic_or_the_geometric_mean():
    values = from_unit(np.full((1, len(NAMES)), 0.5), Conditions())
    for name in NAMES:
        low, high = getattr(Conditions(), name)
        middle = np.sqrt(low * high) if name in LOG_SCALE else (low + high) / 2
        assert values[name][0] == pytest.approx(middle)


@settings(deadline=None)
@given(st.floats(-3, 3))
def test_folding_back_stays_in_the_cube_and_leaves_the_inside_alone(value):
    folded = float(_reflect(np.array([value]))[0])
    assert 0 <= folded <= 1
    assert _reflect(np.array([folded]))[0] == pytest.approx(folded, abs=1e-12)
    assert folded == pytest.approx(float(_reflect(np.array([-value]))[0]), abs=1e-12)
    if 0 <= value <= 1:
        assert folded == pytest.approx(value, abs=1e-12)


def test_drawn_conditions_do_not_depend_on_how_many_follow():
    few, many = (draw_conditions(Conditions(), n, np.random.default_rng(2)) for n in (3, 10))
    for name in NAMES:
        assert np.array_equal(few[name], many[name][:3])


def test_narrowing_fixes_values_and_names_the_nearest_condition():
    ranges = narrowed(Conditions(), background=0.2, blur_px=(0.1, 0.3))
    assert ranges == replace(Conditions(), background=(0.2, 0.2), blur_px=(0.1, 0.3))
    with pytest.raises(UserError, match="Did you mean 'background'"):
        narrowed(Conditions(), backgruond=0.2)


@pytest.mark.parametrize("name", [f.name for f in fields(Conditions)])
@pytest.mark.parametrize("bad", [(2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_impossible_ranges_are_refused_by_name(name, bad):
    with pytest.raises(UserError, match=f"conditions.{name}"):
        Conditions(**{name: bad})


@pytest.mark.parametrize("name", [n for n in NAMES if n != "defocus_A"])
def test_negative_conditions_are_refused_and_zero_where_the_scale_is_logarithmic(name):
    with pytest.raises(UserError, match=f"conditions.{name}"):
        Conditions(**{name: (-1.0, 1.0)})
    if name in LOG_SCALE:
        with pytest.raises(UserError, match=f"conditions.{name}"):
            Conditions(**{name: (0.0, 1.0)})


def test_aberrations_have_the_drawn_size_in_random_directions_on_top_of_the_nominal_ones():
    drawn = draw_conditions(Conditions(), 20, np.random.default_rng(0))
    nominal = Optics(defocus_A=30.0, aberrations={"C12a": 7.0, "C30": 100.0})
    optics = aberrated(nominal, drawn, np.random.default_rng(1))
    for i, o in enumerate(optics):
        assert o.defocus_A == pytest.approx(30 + drawn["defocus_A"][i])
        assert o.source_size_A == pytest.approx(drawn["source_size_A"][i])
        assert o.aberrations["C30"] == 100
        size = np.hypot(o.aberrations["C12a"] - 7, o.aberrations["C12b"])
        assert size == pytest.approx(drawn["astigmatism_A"][i])
        assert np.hypot(o.aberrations["C21a"], o.aberrations["C21b"]) == pytest.approx(drawn["coma_A"][i])
    assert len({round(o.aberrations["C21a"] / o.aberrations["C21b"], 6) for o in optics}) == 20


def test_no_line_looks_beyond_what_is_rendered_around_an_image():
    conditions = {name: np.zeros(3) for name in NAMES} | {
        "counts_per_A2": np.full(3, 1e6),
        "contamination_length_A": np.ones(3),
        "speckle_length_A": np.ones(3),
        "slow_jitter_A": np.array([0.1, 2.0, 6.0]),
    }
    _, displacement = degrade(torch.ones(3, 96, 96), conditions, 0.1, torch.Generator().manual_seed(0))
    largest = displacement.abs().amax(dim=(1, 2))
    assert largest[0] < REACH_PX - 1
    assert largest[1:] == pytest.approx(REACH_PX, rel=1e-4)
