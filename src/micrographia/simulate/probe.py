"""The electron probe: aberrations in, optical transfer function (OTF) out.

Incoherent imaging needs only the probe's intensity P(r), and of that only its Fourier transform, the OTF.
The aperture cuts the wave off at ``alpha / lambda``, so the OTF ends at twice that: everything is computed on
the few low frequencies where it is not zero.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.fft import next_fast_len

from micrographia.errors import UserError, did_you_mean
from micrographia.simulate.scattering import wavelength_A

#: C_nm in Krivanek's notation: order n, multiplicity m; a and b are the cosine and sine parts.
ABERRATIONS = tuple(
    f"C{n}{m}{part}"
    for n, multiplicities in {1: (2,), 2: (1, 3), 3: (0, 2, 4), 4: (1, 3, 5), 5: (0, 2, 4, 6)}.items()
    for m in multiplicities
    for part in (("a", "b") if m else ("",))
)
#: A hundred metres.
LARGEST_ABERRATION_A = 1e12


@dataclass(frozen=True)
class Optics:
    """The microscope's settings that shape an ADF image."""

    energy_keV: float = 80.0
    """Beam energy in keV (20 to 1000)."""
    convergence_mrad: float = 25.2
    """Convergence semi-angle: radius of the probe-forming aperture in mrad."""
    inner_mrad: float = 63.0
    """Inner angle of the annular detector in mrad."""
    outer_mrad: float = 200.0
    """Outer angle of the annular detector in mrad."""
    source_size_A: float = 0.8
    """Effective source size (full width at half maximum of a Gaussian) in Å."""
    defocus_A: float = 0.0
    """Defocus in Å; positive is underfocus."""
    defocus_spread_A: float = 0.0
    """Spread of the defocus through the energy width (full width at half maximum) in Å."""
    aberrations: dict[str, float] = field(default_factory=dict)
    """Aberration coefficients C_nm in Å by name, for example {"C30": 1e4, "C12a": 10, "C21b": 200}."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("energy_keV", 20, 1000),
            ("convergence_mrad", 0.1, 150),
            ("inner_mrad", 0, 1000),
            ("outer_mrad", 0, 1000),
            ("source_size_A", 0, 50),
            ("defocus_A", -1e5, 1e5),
            ("defocus_spread_A", 0, 1e4),
        ):
            value = getattr(self, name)
            if not low <= value <= high:  # False for NaN, too
                raise UserError(f"optics: {name} = {value} is outside the range {low} to {high}.")
        if self.inner_mrad >= self.outer_mrad:
            raise UserError(
                f"optics: the detector's inner angle ({self.inner_mrad} mrad) must be smaller than "
                f"its outer angle ({self.outer_mrad} mrad)."
            )
        for name, value in self.aberrations.items():
            if name not in ABERRATIONS:
                focus = " Focus is defocus_A = -C10." if name == "C10" else ""
                raise UserError(
                    f"optics: unknown aberration '{name}'.{focus}{did_you_mean(name, ABERRATIONS)}"
                )
            if not abs(value) <= LARGEST_ABERRATION_A:
                raise UserError(
                    f"optics: aberration {name} = {value} is not a length within {LARGEST_ABERRATION_A:g} Å."
                )


def pixel_pair(pixel_size_A: float | tuple[float, float]) -> tuple[float, float]:
    """Return the pixel's (height, width) in Å: a number means square pixels."""
    pair = pixel_size_A if isinstance(pixel_size_A, tuple) else (pixel_size_A, pixel_size_A)
    if not all(np.isfinite(p) and p > 0 for p in pair):
        raise UserError(f"The pixel size must be a positive length in Å, got {pixel_size_A}.")
    return float(pair[0]), float(pair[1])


def _aberration_phase(optics: Sequence[Optics], kx: torch.Tensor, ky: torch.Tensor) -> torch.Tensor:
    """Return chi without the defocus, ``[n, *k]``: (2 pi / lambda) sum alpha^(n+1) / (n+1) [a cos, b sin]."""
    names = sorted({name for o in optics for name, value in o.aberrations.items() if value})
    phase = torch.zeros(len(optics), *kx.shape, device=kx.device)
    k2 = kx**2 + ky**2
    for name in names:
        order, multiplicity, part = re.fullmatch(r"C(\d)(\d)([ab]?)", name).groups()  # type: ignore[union-attr]
        n, m = int(order), int(multiplicity)
        rotation = torch.complex(kx, ky) ** m
        angular = rotation.imag if part == "b" else rotation.real
        lam = np.array([wavelength_A(o.energy_keV) for o in optics])
        value = np.array([o.aberrations.get(name, 0.0) for o in optics])
        scale = torch.as_tensor(2 * np.pi * value * lam**n / (n + 1), dtype=torch.float32, device=kx.device)
        phase += scale.view(-1, *[1] * kx.dim()) * (k2 ** ((n + 1 - m) // 2) * angular)
    return phase


def low_frequency_transfer(
    optics: Optics | Sequence[Optics],
    shape: tuple[int, int],
    pixel_size_A: float | tuple[float, float],
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Return the OTF on the smallest frequency grid of this field that contains all of it.

    Same arguments as `probe_transfer`, which zero-fills the result. The grid has the frequency step of the
    field, ``1 / (N pixel_size)``, and may be smaller or larger than ``[H, W]``.

    Returns
    -------
    complex64 tensor ``[n, h, w // 2 + 1]`` in FFT order, h and w even; 1 at zero frequency.
    """
    settings = [optics] if isinstance(optics, Optics) else list(optics)
    if not settings:
        raise UserError("No optics given: expected at least one.")
    height, width = (n * p for n, p in zip(shape, pixel_pair(pixel_size_A), strict=True))
    lam = np.array([wavelength_A(o.energy_keV) for o in settings])
    cutoff = np.array([o.convergence_mrad * 1e-3 for o in settings]) / lam
    reach = [int(cutoff.max() * length) for length in (height, width)]
    # The intensity's spectrum reaches 2 x reach on either side: 4 x reach + 2 samples hold it unaliased.
    grid = [2 * next_fast_len(2 * r + 1) for r in reach]

    def column(values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)

    ky = (torch.arange(-reach[0], reach[0] + 1, device=device) / height)[:, None]
    kx = (torch.arange(-reach[1], reach[1] + 1, device=device) / width)[None, :]
    ky, kx = torch.broadcast_tensors(ky, kx)
    k2 = kx**2 + ky**2
    phase = _aberration_phase(settings, kx, ky)
    aperture = (k2 <= column(cutoff**2) * (1 + 1e-6)).float()

    nodes, weights = np.polynomial.hermite.hermgauss(9)
    if not any(o.defocus_spread_A for o in settings):
        nodes, weights = np.zeros(1), np.ones(1)
    spread = np.array([o.defocus_spread_A for o in settings]) / 2 / np.sqrt(np.log(2))
    intensity = torch.zeros(len(settings), *grid, device=device)
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        focus = np.array([o.defocus_A for o in settings]) + node * spread
        # exp(-i chi), of which the defocus contributes -pi lambda df k^2
        wave = torch.polar(aperture, column(np.pi * lam * focus) * k2 - phase)
        # The wave sits in a corner instead of around zero frequency: a phase ramp that |psi|^2 does not see.
        psi = torch.fft.fft2(wave, s=grid)
        intensity += float(weight) * (psi.real**2 + psi.imag**2)
    otf = torch.fft.rfft2(intensity)
    otf = otf / otf[:, :1, :1].real

    source = np.array([o.source_size_A for o in settings])
    fy = torch.fft.fftfreq(grid[0], 1 / grid[0], device=device)[:, None] / height
    fx = torch.fft.rfftfreq(grid[1], 1 / grid[1], device=device)[None, :] / width
    blur = column((np.pi * source / 2) ** 2 / np.log(2))
    return otf * torch.exp(-blur * (fx**2 + fy**2))


def fit_spectrum(spectrum: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Cut or zero-fill half-plane spectra ``[..., h, w // 2 + 1]`` to those of images of `shape` ``(H, W)``.

    The frequency -N/2 of an even grid has no partner of the opposite sign and is dropped, so that images stay
    real and shifts stay exact.
    """
    h, keep_x = spectrum.shape[-2], min(spectrum.shape[-1], (shape[1] + 1) // 2)
    keep_y = (min(h, shape[0]) + 1) // 2
    out = spectrum.new_zeros(*spectrum.shape[:-2], shape[0], shape[1] // 2 + 1)
    out[..., :keep_y, :keep_x] = spectrum[..., :keep_y, :keep_x]
    if keep_y > 1:
        out[..., 1 - keep_y :, :keep_x] = spectrum[..., 1 - keep_y :, :keep_x]
    return out


def probe_transfer(
    optics: Optics | Sequence[Optics],
    shape: tuple[int, int],
    pixel_size_A: float | tuple[float, float],
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Return the probe's optical transfer function, the Fourier transform of its normalised intensity.

    ``psi(r) = sum_{|k| <= alpha/lambda} exp(-i chi(k)) exp(-2 pi i k r)``, ``chi = 2 pi W / lambda``,
    ``W = -df alpha^2 / 2 + sum C_nm alpha^(n+1) / (n+1) cos/sin(m phi)`` (Kirkland, chapter 2 and 3).
    The defocus spread is a 9-point Gauss-Hermite average, the source size a Gaussian factor.

    Parameters
    ----------
    optics : Optics or sequence of n Optics
        One transfer function each, computed together.
    shape : (H, W)
        The periodic field in pixels.
    pixel_size_A : float or (height, width)
        Size of a pixel in Å.

    Returns
    -------
    complex64 tensor ``[n, H, W // 2 + 1]``, the `rfft2` half-plane; 1 at zero frequency.
    """
    return fit_spectrum(low_frequency_transfer(optics, shape, pixel_size_A, device), shape)


def probe_intensity(
    optics: Optics, shape: tuple[int, int], pixel_size_A: float | tuple[float, float]
) -> torch.Tensor:
    """Return the probe's intensity ``[H, W]`` in 1/Å² (integral 1), centred on pixel (H // 2, W // 2)."""
    dy, dx = pixel_pair(pixel_size_A)
    image = torch.fft.irfft2(probe_transfer(optics, shape, (dy, dx))[0], s=shape) / (dy * dx)
    return torch.fft.fftshift(image)
