import numpy as np
import pytest

from micrographia.errors import UserError
from micrographia.simulate.scattering import (
    cross_section_A2,
    interaction_constant,
    kirkland_table,
    projected_potential_VA,
    scattering_factor_A,
    wavelength_A,
)

# 80 kV, 63 to 200 mrad; an independent float64 integration, checked against Kirkland's program.
REFERENCE_A2 = {
    6: 6.626e-4,
    8: 1.192e-3,
    22: 7.060e-3,
    34: 1.4866e-2,
    38: 1.7161e-2,
    42: 1.944e-2,
    52: 2.610e-2,
    74: 3.971e-2,
}


@pytest.mark.parametrize(("Z", "expected"), REFERENCE_A2.items())
def test_cross_sections_match_the_reference(Z, expected):
    assert cross_section_A2(Z, 80, 63, 200) == pytest.approx(expected, rel=1e-3)


def test_wavelength_and_interaction_constant():
    # Kirkland, table 2.1 and figure 5.1.
    assert wavelength_A(100) == pytest.approx(0.037014, abs=2e-6)
    assert wavelength_A(200) == pytest.approx(0.025079, abs=2e-6)
    assert interaction_constant(100) == pytest.approx(9.244e-4, rel=1e-3)


def test_born_overestimates_tungsten_by_68_percent():
    lam = wavelength_A(80)
    theta = np.linspace(63e-3, 200e-3, 4001)
    mass_ratio = 1 + 80 / 510.99906
    amplitude = mass_ratio * scattering_factor_A(74, 2 * np.sin(theta / 2) / lam)
    born = np.trapezoid(2 * np.pi * amplitude**2 * theta, theta)
    assert born / cross_section_A2(74, 80, 63, 200) == pytest.approx(1.68, abs=0.01)


@pytest.mark.parametrize("Z", [6, 42, 74])
def test_projected_potential_is_the_hankel_transform_of_the_scattering_factor(Z):
    # f_e(0) = 2 pi m0 e / h^2 times the integral of the potential; the Born limit in Kirkland's constants.
    r = np.geomspace(1e-6, 30, 20001)
    integral = np.trapezoid(2 * np.pi * r * projected_potential_VA(Z, r), r)
    assert integral == pytest.approx(47.878 * scattering_factor_A(Z, np.zeros(1))[0], rel=2e-4)


def test_the_table_is_complete():
    table = kirkland_table()
    assert table.shape == (103, 12)
    assert (table[:, 1:6:2] > 0).all()
    assert (table[:, 7::2] > 0).all()


@pytest.mark.parametrize(
    "arguments",
    [(0, 80, 63, 200), (104, 80, 63, 200), (6, -1, 63, 200), (6, 80, 200, 63), (6, 80, 63, np.nan)],
)
def test_impossible_requests_are_refused(arguments):
    with pytest.raises(UserError):
        cross_section_A2(*arguments)
