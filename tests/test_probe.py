from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from micrographia.errors import UserError
from micrographia.simulate.probe import (
    ABERRATIONS,
    Optics,
    low_frequency_transfer,
    probe_intensity,
    probe_transfer,
)
from micrographia.simulate.scattering import cross_section_A2, wavelength_A

REFERENCE = Path(__file__).parents[1] / "../shared/data/incostem-reference"

PSF = {
    "psf_ideal": Optics(source_size_A=0),
    "psf_source": Optics(source_size_A=0.8),
    "psf_spread": Optics(source_size_A=0, defocus_A=20, defocus_spread_A=60),
    "psf_cs_df": Optics(source_size_A=0, defocus_A=60, aberrations={"C30": 0.01e7, "C50": 5e7}),
}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", PSF)
def test_images_of_one_atom_match_the_reference_program(name):
    if not REFERENCE.exists():
        pytest.skip("reference images are absent (../shared/data/incostem-reference)")
    expected = np.load(REFERENCE / f"{name}.npy")
    image = cross_section_A2(74, 80, 63, 200) * probe_intensity(PSF[name], (256, 256), 0.2).numpy()
    assert np.abs(image - expected).max() <= 1e-3 * expected.max()


def _direct_probe(optics: Optics, n: int, pixel_A: float) -> np.ndarray:
    """The definition, in float64 on the full grid, term by term."""
    lam = wavelength_A(optics.energy_keV)
    k = np.fft.fftfreq(n, pixel_A)
    kx, ky = np.meshgrid(k, k)
    alpha, phi = lam * np.hypot(kx, ky), np.arctan2(ky, kx)
    W = -0.5 * optics.defocus_A * alpha**2
    for name, value in optics.aberrations.items():
        order, m = int(name[1]), int(name[2])
        angular = np.sin(m * phi) if name.endswith("b") else np.cos(m * phi)
        W += value * alpha ** (order + 1) / (order + 1) * angular
    psi = np.fft.fft2(np.exp(-2j * np.pi * W / lam) * (alpha <= optics.convergence_mrad * 1e-3))
    intensity = np.abs(psi) ** 2
    return intensity / intensity.sum() / pixel_A**2


@pytest.mark.parametrize("name", ABERRATIONS)
def test_every_aberration_follows_its_definition(name):
    size = 0.4 * wavelength_A(80) / 0.03 ** (int(name[1]) + 1)
    optics = Optics(convergence_mrad=30, source_size_A=0, defocus_A=15, aberrations={name: size, "C21b": 50})
    expected = np.fft.fftshift(_direct_probe(optics, 128, 0.15))
    assert np.abs(probe_intensity(optics, (128, 128), 0.15).numpy() - expected).max() < 1e-4 * expected.max()


def test_a_batch_equals_single_computations():
    optics = [
        Optics(energy_keV=60, convergence_mrad=31, defocus_A=30, aberrations={"C30": 1e4}),
        Optics(
            energy_keV=200, convergence_mrad=20, defocus_spread_A=40, aberrations={"C12a": 30, "C56b": 1e6}
        ),
        Optics(source_size_A=0),
    ]
    together = probe_transfer(optics, (64, 90), 0.25)
    for one, otf in zip(optics, together, strict=True):
        assert torch.allclose(probe_transfer(one, (64, 90), 0.25)[0], otf, atol=3e-6)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(24, 90),
    width=st.integers(24, 90),
    defocus=st.floats(-200, 200),
    astigmatism=st.floats(-50, 50),
)
def test_the_transfer_function_is_that_of_a_probability(height, width, defocus, astigmatism):
    optics = Optics(defocus_A=defocus, aberrations={"C12a": astigmatism})
    otf = probe_transfer(optics, (height, width), 0.2)
    assert otf.shape == (1, height, width // 2 + 1)
    assert otf[0, 0, 0] == pytest.approx(1, abs=1e-6)
    assert otf.abs().max() <= 1 + 1e-5
    assert (torch.fft.irfft2(otf, s=(height, width)) > -1e-6).all()


def test_the_compact_grid_holds_the_whole_transfer_function():
    compact = low_frequency_transfer(Optics(), (1024, 1024), 0.05)
    assert compact.shape[1] < 256
    image = torch.fft.irfft2(probe_transfer(Optics(), (1024, 1024), 0.05)[0], s=(1024, 1024))
    assert image.sum() == pytest.approx(1, abs=1e-5)
    assert image.min() > -1e-9


def test_source_size_is_the_full_width_at_half_maximum():
    # A needle-sharp probe (wide aperture) shows the source itself.
    image = probe_intensity(Optics(energy_keV=300, convergence_mrad=60, source_size_A=4), (256, 256), 0.1)
    row = image[128] / image.max()
    assert 0.1 * float((row >= 0.5).sum()) == pytest.approx(4.0, abs=0.15)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"energy_keV": -80}, "energy_keV"),
        ({"energy_keV": float("nan")}, "energy_keV"),
        ({"convergence_mrad": 0}, "convergence_mrad"),
        ({"inner_mrad": 200, "outer_mrad": 60}, "inner angle"),
        ({"source_size_A": -1}, "source_size_A"),
        ({"aberrations": {"C31": 1}}, "Did you mean"),
        ({"aberrations": {"C10": 1}}, "defocus_A"),
        ({"aberrations": {"C12": 1}}, "C12a"),
        ({"aberrations": {"C30": float("inf")}}, "C30 = inf"),
        ({"aberrations": {"C30": float("nan")}}, "C30 = nan"),
    ],
)
def test_impossible_optics_are_refused(settings_, message):
    with pytest.raises(UserError, match=message):
        Optics(**settings_)


def test_no_optics_or_no_pixel_are_refused():
    with pytest.raises(UserError, match="No optics"):
        probe_transfer([], (32, 32), 0.2)
    with pytest.raises(UserError, match="pixel size"):
        probe_transfer(Optics(), (32, 32), 0.0)
