import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ase import Atoms

from micrographia.errors import UserError
from micrographia.simulate.imaging import (
    atom_weights,
    disc_maps,
    poisson_counts,
    render_adf,
    render_patches,
    simulate_image,
)
from micrographia.simulate.probe import Optics, low_frequency_transfer, probe_transfer
from micrographia.simulate.scattering import cross_section_A2

REFERENCE = Path(__file__).parents[1] / "../shared/data/incostem-reference"
ABERRATED = Optics(
    source_size_A=1.0,
    aberrations={"C30": 3e3, "C12a": 10, "C12b": 5, "C21a": 200, "C21b": -150, "C23a": 30, "C23b": 250},
)


def _read_reference(xyz: str) -> tuple[tuple[float, float], np.ndarray]:
    lines = (REFERENCE / xyz).read_text().splitlines()
    width, height, _ = (float(word) for word in lines[1].split())
    return (height, width), np.array(
        [line.split() for line in lines[2:] if line.strip() != "-1"], dtype=float
    )


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("xyz", "name", "optics"),
    [
        ("atomW_offgrid.xyz", "psf_offgrid__ybilinear", Optics(source_size_A=0.8)),
        ("wse2_256.xyz", "wse2_256__ybilinear", ABERRATED),
    ],
)
def test_bilinear_images_match_the_reference_program(xyz, name, optics):
    if not REFERENCE.exists():
        pytest.skip("reference images are absent (../shared/data/incostem-reference)")
    (height, width), atoms = _read_reference(xyz)
    pixel = (height / 256, width / 256)
    weight = atoms[:, 4] * [cross_section_A2(int(Z), 80, 63, 200) for Z in atoms[:, 0]]
    otf = probe_transfer(optics, (256, 256), pixel)
    image = render_adf(atoms[:, 1], atoms[:, 2], weight, 0, 1, (256, 256), pixel, otf, "bilinear")[0]
    expected = np.load(REFERENCE / f"{name}.npy")
    assert np.abs(image.numpy() - expected).max() <= 1e-3 * expected.max()


def _direct_sum(x, y, weight, shape, pixel, otf):
    """Every atom's phase at every frequency, in float64."""
    fy, fx = np.fft.fftfreq(shape[0], pixel), np.fft.rfftfreq(shape[1], pixel)
    rows, columns = np.exp(-2j * np.pi * np.outer(y, fy)), np.exp(-2j * np.pi * np.outer(x, fx))
    spectrum = np.einsum("a,ay,ax->yx", weight, rows, columns) * otf.numpy()
    return np.fft.irfft2(spectrum, s=shape) / pixel**2


@pytest.mark.parametrize(
    ("shape", "pixel"), [((64, 64), 0.2), ((63, 80), 0.2), ((50, 49), 0.3), ((40, 41), 0.6), ((16, 20), 0.2)]
)
def test_exact_placement_equals_the_direct_sum(shape, pixel):
    rng = np.random.default_rng(5)
    x, y, weight = rng.uniform(-10, 40, 80), rng.uniform(-10, 40, 80), rng.uniform(0.1, 1, 80)
    whole = probe_transfer(ABERRATED, shape, pixel)
    expected = _direct_sum(x, y, weight, shape, pixel, whole[0])
    for otf in (whole, low_frequency_transfer(ABERRATED, shape, pixel)):
        image = render_adf(x, y, weight, 0, 1, shape, pixel, otf)[0].numpy()
        assert np.abs(image - expected).max() <= 2e-5 * expected.max()


def test_an_image_moves_with_its_atoms_to_a_hundredth_of_a_pixel():
    # The reference program snaps atoms to whole pixels in y.
    shape, pixel = (64, 64), 0.2
    otf = low_frequency_transfer(Optics(), shape, pixel)
    column, row = np.meshgrid(np.arange(64), np.arange(64))
    for x_px, y_px in [(30.0, 33.0), (30.37, 33.0), (30.0, 33.37), (31.49, 32.51)]:
        image = render_adf([x_px * pixel], [y_px * pixel], [1.0], 0, 1, shape, pixel, otf)[0].numpy()
        near = image * (np.hypot(column - x_px, row - y_px) < 6)
        assert (near * column).sum() / near.sum() == pytest.approx(x_px, abs=0.02)
        assert (near * row).sum() / near.sum() == pytest.approx(y_px, abs=0.02)


def test_the_whole_scattered_beam_is_conserved():
    otf = low_frequency_transfer(ABERRATED, (60, 80), 0.25)
    image = render_adf([3.0, 7.1], [2.2, 9.9], [0.01, 0.03], 0, 1, (60, 80), 0.25, otf)
    assert float(image.sum()) * 0.25**2 == pytest.approx(0.04, rel=1e-5)


def test_a_batch_of_patches_equals_cuts_from_one_large_image():
    rng = np.random.default_rng(1)
    x, y, weight = rng.uniform(-6, 46, 600), rng.uniform(-6, 46, 600), rng.uniform(0.5, 1, 600)
    large = render_patches([(x, y, weight)], Optics(), (200, 200), 0.2)[0]
    corners = [(0, 0), (37, 90), (136, 136)]
    patches = [(x - column * 0.2, y - row * 0.2, weight) for row, column in corners]
    small = render_patches(patches, Optics(), (64, 64), 0.2)
    for (row, column), patch in zip(corners, small, strict=True):
        cut = large[row : row + 64, column : column + 64]
        # The probe's tails beyond the margin, and the aperture on another frequency grid.
        assert (patch - cut).abs().max() < 0.02 * cut.max()


def test_patches_have_their_own_optics():
    atom = (np.array([3.2]), np.array([3.2]), np.array([1.0]))
    sharp, blurred = render_patches(
        [atom, atom], [Optics(source_size_A=0), Optics(source_size_A=2)], (33, 33), 0.2
    )
    assert sharp.max() > 2 * blurred.max()
    with pytest.raises(UserError, match="2 optics for 1 patches"):
        render_patches([atom], [Optics(), Optics()], (33, 33), 0.2)


def test_atoms_far_outside_do_not_come_back_on_the_other_side():
    far = (np.array([5.0, -30.0]), np.array([5.0, 5.0]), np.array([0.0, 1.0]))
    assert render_patches([far], Optics(), (50, 50), 0.2).abs().max() == 0


def _field(n=200, field_A=30.0, seed=0):
    rng = np.random.default_rng(seed)
    return Atoms(
        numbers=rng.choice([34, 74], n),
        positions=np.c_[rng.uniform(0, field_A, (n, 2)), np.zeros(n)],
        cell=[field_A, field_A, 1],
    )


def test_disc_labels_have_the_physical_area_wherever_they_lie():
    sites = pd.DataFrame({"x_A": [10.03, 20.2], "y_A": [5.11, 22.22], "kind": ["a", "b"]})
    _, labels = simulate_image(_field(), Optics(), (150, 150), 0.2, sites, ("b", "a"), label_radius_A=1.5)
    assert labels.shape == (2, 150, 150)
    for channel, (x, y) in zip(labels.numpy(), [(20.2, 22.22), (10.03, 5.11)], strict=True):
        assert channel.sum() * 0.04 == pytest.approx(np.pi * 1.5**2, rel=0.02)
        row, column = np.indices(channel.shape)
        assert (channel * column).sum() / channel.sum() * 0.2 == pytest.approx(x, abs=0.02)
        assert (channel * row).sum() / channel.sum() * 0.2 == pytest.approx(y, abs=0.02)


def test_overlapping_and_cut_discs_stay_between_0_and_1():
    maps = disc_maps(
        np.array([0.0, 1.0, 31.6, -9]), np.array([0.0, 0.5, 10.0, 5]), np.array([0, 0, 0, 0]), 1, (32, 32), 4
    )
    assert maps.max() == 1
    assert maps.min() == 0
    assert maps[0, 10, 31] == 1
    assert maps[0, 5, 0] == 0


def test_position_and_probe_labels():
    sites = pd.DataFrame({"x_A": [10.03, 70.0], "y_A": [5.11, 5.0], "kind": ["a", "a"]})
    _, position = simulate_image(_field(), Optics(), (150, 150), 0.2, sites, ("a",), label="position")
    assert position.nonzero().tolist() == [[0, 26, 50]]
    assert position.sum() == 1
    image, probe = simulate_image(_field(), Optics(), (150, 150), 0.2, sites, ("a",), label="probe")
    plain, _ = simulate_image(_field(), Optics(), (150, 150), 0.2)
    assert torch.allclose(image, plain, atol=1e-5 * float(plain.max()))
    assert 0.9 < probe.max() <= 1
    assert divmod(int(probe[0].argmax()), 150) == (26, 50)


def test_thermal_vibration_equals_the_average_over_many_displacements():
    rng = np.random.default_rng(0)
    n = 20000
    displaced = 5 + rng.normal(0, 0.3, (2, n))
    still = Atoms("W", positions=[[5, 5, 0]])
    weight = atom_weights(still, Optics())
    average = render_patches([(*displaced, np.full(n, weight[0] / n))], Optics(), (51, 51), 0.2)[0]
    image, _ = simulate_image(still, Optics(), (51, 51), 0.2, thermal_rms_A=0.3)
    assert (image - average).abs().max() < 0.03 * image.max()


def test_occupancy_scales_an_atom():
    half = Atoms("W", positions=[[5, 5, 0]])
    half.set_array("occupancy", np.array([0.5]))
    full = Atoms("W", positions=[[5, 5, 0]])
    a, b = (simulate_image(atoms, Optics(), (50, 50), 0.2)[0] for atoms in (half, full))
    assert torch.allclose(2 * a, b, rtol=1e-4, atol=1e-7)


def test_counts_are_poisson_and_repeatable():
    image = torch.full((200, 200), 0.02)
    counts = poisson_counts(image, 30, 10, torch.Generator().manual_seed(3))
    mean = 0.02 * 30 * 10 * 6.24146
    assert float(counts.mean()) == pytest.approx(mean, rel=0.01)
    assert float(counts.var()) == pytest.approx(mean, rel=0.05)
    assert torch.equal(counts, poisson_counts(image, 30, 10, torch.Generator().manual_seed(3)))
    with pytest.raises(UserError, match="positive"):
        poisson_counts(image, -1, 10)


def test_bad_requests_are_refused():
    broken = _field()
    broken.positions[3, 1] = np.nan
    with pytest.raises(UserError, match="NaN"):
        simulate_image(broken, Optics(), (64, 64), 0.2)
    with pytest.raises(UserError, match="pixel size"):
        simulate_image(_field(), Optics(), (64, 64), -0.2)
    with pytest.raises(UserError, match="label shape"):
        simulate_image(_field(), Optics(), (64, 64), 0.2, label="blob")
    with pytest.raises(UserError, match="2 x 2"):
        simulate_image(_field(), Optics(), (1, 64), 0.2)
    with pytest.raises(UserError, match="empty"):
        render_patches([], Optics(), (64, 64), 0.2)


def test_an_image_without_atoms_is_empty_not_an_error():
    image, labels = simulate_image(Atoms(), Optics(), (32, 32), 0.2, None, ("a",))
    assert image.abs().max() == 0
    assert labels.shape == (1, 32, 32)


def test_a_labelled_1024_image_costs_a_twentieth_of_the_reference_program():
    atoms = _field(14022, 1024 * 0.205)
    kinds = tuple("abcdef")
    rng = np.random.default_rng(0)
    sites = pd.DataFrame(
        {"x_A": atoms.positions[:600, 0], "y_A": atoms.positions[:600, 1], "kind": rng.choice(kinds, 600)}
    )
    costs = []
    for _ in range(5):
        start = time.process_time()
        simulate_image(atoms, ABERRATED, (1024, 1024), 0.205, sites, kinds)
        costs.append(time.process_time() - start)
    assert min(costs) <= 0.45 * 7 / 20
