"""Incoherent ADF-STEM images: every atom adds its cross-section times the probe's intensity.

``I(r) = sum_atoms occupancy * sigma(Z) * P(r - r_atom)`` with ``sum P dx dy = 1``, so a pixel's value is the
fraction of the beam that reaches the detector. In Fourier space that is the atoms' structure factor times the
OTF. The structure factor is a non-uniform FFT: the atoms are spread onto a coarse periodic grid with a
Kaiser-Bessel kernel, whose known transform is divided out (Greengard and Lee, SIAM Review 46, 443 (2004)).
The cost is linear in the atoms, plus one FFT pair, and positions are exact to a millionth of the maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from scipy.fft import next_fast_len

from micrographia.errors import UserError
from micrographia.simulate.probe import (
    Optics,
    fit_spectrum,
    low_frequency_transfer,
    pixel_pair,
    probe_intensity,
)
from micrographia.simulate.scattering import cross_section_A2

if TYPE_CHECKING:
    import pandas as pd
    from ase import Atoms

ELECTRONS_PER_PA_US = 6.24146
_KERNEL_WIDTH = 6
# Best shape for twofold oversampling (Beatty et al., IEEE Trans. Med. Imaging 24, 799 (2005)).
_KERNEL_BETA = float(np.pi * np.sqrt((0.75 * _KERNEL_WIDTH) ** 2 - 0.8))


def _kernel_transform(count: int, grid: int, device: torch.device) -> torch.Tensor:
    """Kaiser-Bessel kernel's Fourier transform at `count` frequencies (FFT order) of a `grid`."""
    f = torch.fft.fftfreq(count, 1 / count, device=device) / grid
    root = torch.sqrt(_KERNEL_BETA**2 - (np.pi * _KERNEL_WIDTH * f) ** 2)
    return _KERNEL_WIDTH * torch.sinh(root) / root


def _spread(
    u: torch.Tensor,
    v: torch.Tensor,
    weight: torch.Tensor,
    index: torch.Tensor,
    grid: tuple[int, int, int],
    exact: bool,
) -> torch.Tensor:
    """Add atoms at column u, row v (grid units, periodic) to `grid` [n, rows, columns]."""
    n, rows, columns = grid
    width = _KERNEL_WIDTH if exact else 2
    offset = torch.arange(width, device=u.device)

    def neighbours(position: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        first = torch.ceil(position - width / 2)
        distance = first[:, None] + offset - position[:, None]
        if exact:
            inside = (1 - (2 * distance / width) ** 2).clamp_(min=0)
            value = torch.special.i0(_KERNEL_BETA * inside.float().sqrt_())
        else:
            value = (1 - distance.abs()).clamp_(min=0)
        return (first.long()[:, None] + offset) % size, value.float()

    column, column_weight = neighbours(u, columns)
    row, row_weight = neighbours(v, rows)
    target = ((index[:, None] * rows + row) * columns)[:, :, None] + column[:, None, :]
    value = (row_weight * weight[:, None])[:, :, None] * column_weight[:, None, :]
    out = torch.zeros(n * rows * columns, device=u.device)
    return out.index_add_(0, target.reshape(-1), value.reshape(-1)).view(grid)


def render_adf(
    x_A: torch.Tensor | np.ndarray,
    y_A: torch.Tensor | np.ndarray,
    weight: torch.Tensor | np.ndarray,
    image_index: torch.Tensor | np.ndarray | int,
    n: int,
    shape: tuple[int, int],
    pixel_size_A: float | tuple[float, float],
    otf: torch.Tensor,
    placement: Literal["exact", "bilinear"] = "exact",
) -> torch.Tensor:
    """Render n periodic images from one flat list of atoms.

    Parameters
    ----------
    x_A, y_A : ``[atoms]``
        Positions in Å; x to the right, y down, pixel (0, 0) at the origin; wrapped periodically.
    weight : ``[atoms]``
        Occupancy times cross-section in Å².
    image_index : ``[atoms]`` or int
        Which of the n images the atom belongs to.
    shape, pixel_size_A
        (H, W) and the pixel's size in Å, a number or (height, width).
    otf : complex tensor ``[n or 1, h, w // 2 + 1]``
        Half-plane with the frequency step of this field. `probe_transfer` gives the whole of it, and
        `low_frequency_transfer` the part that is not zero, which is faster.
    placement : ``"exact"`` or ``"bilinear"``
        Band-limited (error about 1e-6 of the maximum), or Incostem's linear split between four pixels.

    Returns
    -------
    float32 tensor ``[n, H, W]`` on the OTF's device: fraction of the beam that reaches the detector.
    """
    device = otf.device
    dy, dx = pixel_pair(pixel_size_A)
    height, width = shape
    dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no doubles
    x, y, atom_weight = (
        torch.as_tensor(
            a if isinstance(a, torch.Tensor) else np.array(a, dtype=float), dtype=dtype, device=device
        )
        for a in (x_A, y_A, weight)
    )
    if not bool(torch.isfinite(x + y + atom_weight).all()):
        raise UserError("An atom's position or weight is NaN or infinite; check the crystal.")
    index = torch.as_tensor(image_index, device=device).long().expand(x.shape)

    # The frequencies that survive: 0 to keep - 1 and their negatives, held by the image and by the OTF.
    keep_y = (min(otf.shape[-2], height) + 1) // 2
    keep_x = min(otf.shape[-1], (width + 1) // 2)
    band = (2 * keep_y - 1, 2 * keep_x - 1)
    if placement == "exact":
        coarse = [next_fast_len(max(size, 2 * _KERNEL_WIDTH), real=True) for size in band]
        grid = (2 * coarse[0], 2 * coarse[1])
    else:
        grid = shape
    u, v = x / (dx * width) * grid[1], y / (dy * height) * grid[0]
    spectrum = torch.fft.rfft2(_spread(u, v, atom_weight.float(), index, (n, *grid), placement == "exact"))
    spectrum = fit_spectrum(spectrum, band) * fit_spectrum(otf, band) / (dx * dy)
    if placement == "exact":
        kernel_y = _kernel_transform(band[0], grid[0], device)[:, None]
        spectrum /= kernel_y * _kernel_transform(band[1], grid[1], device)[:keep_x]
    # Two one-dimensional steps: only the few columns that are not zero are transformed along y.
    tall = spectrum.new_zeros(n, height, keep_x)
    tall[:, :keep_y] = spectrum[:, :keep_y]
    if keep_y > 1:
        tall[:, 1 - keep_y :] = spectrum[:, 1 - keep_y :]
    return torch.fft.irfft(torch.fft.ifft(tall, dim=-2), n=width, dim=-1)


def _render_open_field(
    x_A: np.ndarray,
    y_A: np.ndarray,
    weight: np.ndarray,
    index: np.ndarray,
    optics: Sequence[Optics],
    n: int,
    shape: tuple[int, int],
    pixel_size_A: float,
    margin_A: float,
    device: torch.device | str | None,
) -> torch.Tensor:
    """Render n non-periodic fields: pad by a margin, render periodically on an FFT-friendly grid, crop."""
    margin = int(np.ceil(margin_A / pixel_size_A))
    padded = (
        next_fast_len(shape[0] + 2 * margin, real=True),
        next_fast_len(shape[1] + 2 * margin, real=True),
    )
    x, y = x_A + margin * pixel_size_A, y_A + margin * pixel_size_A
    # Atoms beyond the margin would come back in on the other side. (NaN is kept, and reported by render_adf.)
    outside = (x < 0) | (y < 0) | (x > padded[1] * pixel_size_A) | (y > padded[0] * pixel_size_A)
    keep = ~outside
    otf = low_frequency_transfer(optics, padded, pixel_size_A, device)
    image = render_adf(x[keep], y[keep], weight[keep], index[keep], n, padded, pixel_size_A, otf)
    return image[:, margin : margin + shape[0], margin : margin + shape[1]]


def render_patches(
    positions: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    optics: Optics | Sequence[Optics],
    shape: tuple[int, int],
    pixel_size_A: float,
    margin_A: float = 6.0,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Render many small non-periodic images at once, each with its own atoms and, if given, its own optics.

    Parameters
    ----------
    positions : n tuples (x_A, y_A, weight)
        Atoms in the patch's own coordinates (pixel (0, 0) at the origin) and their weights (Å², see
        `atom_weights`). Atoms up to `margin_A` outside the patch contribute; those further away are ignored.
    optics : Optics or n Optics

    Returns
    -------
    float32 tensor ``[n, H, W]``
    """
    n = len(positions)
    settings = [optics] if isinstance(optics, Optics) else list(optics)
    if n == 0:
        raise UserError("No patches to render: the list of positions is empty.")
    if len(settings) not in (1, n):
        raise UserError(f"Got {len(settings)} optics for {n} patches; give one, or one per patch.")
    x, y, weight = (np.concatenate([np.asarray(p[i], dtype=float) for p in positions]) for i in range(3))
    index = np.repeat(np.arange(n), [len(p[0]) for p in positions])
    return _render_open_field(x, y, weight, index, settings, n, shape, pixel_size_A, margin_A, device)


def atom_weights(atoms: Atoms, optics: Optics) -> np.ndarray:
    """Return each atom's cross-section on the detector in Å², times ``atoms.arrays["occupancy"]`` if set."""
    table = np.zeros(int(atoms.numbers.max(initial=0)) + 1)
    for Z in np.unique(atoms.numbers):
        table[Z] = cross_section_A2(int(Z), optics.energy_keV, optics.inner_mrad, optics.outer_mrad)
    weight = table[atoms.numbers]
    return weight * atoms.arrays["occupancy"] if "occupancy" in atoms.arrays else weight


def disc_maps(
    x_px: np.ndarray, y_px: np.ndarray, channel: np.ndarray, n: int, shape: tuple[int, int], radius_px: float
) -> torch.Tensor:
    """Return ``[n, H, W]`` maps, 1 within `radius_px` of a site of that channel, with smooth edges."""
    reach = int(np.ceil(radius_px + 0.5))
    x, y = torch.from_numpy(np.array(x_px, dtype=float)), torch.from_numpy(np.array(y_px, dtype=float))
    offset = torch.arange(-reach, reach + 1)
    column, row = x.round().long()[:, None] + offset, y.round().long()[:, None] + offset
    square_x, square_y = (column - x[:, None]).float() ** 2, (row - y[:, None]).float() ** 2
    distance = (square_y[:, :, None] + square_x[:, None, :]).sqrt_()
    coverage = distance.neg_().add_(radius_px + 0.5).clamp_(max=1)
    in_x, in_y = (column >= 0) & (column < shape[1]), (row >= 0) & (row < shape[0])
    drawn = (coverage > 0) & in_y[:, :, None] & in_x[:, None, :]
    first_row = torch.from_numpy(np.array(channel, dtype=np.int64))[:, None] * shape[0] + row
    target = (first_row * shape[1])[:, :, None] + column[:, None, :]
    out = torch.zeros(n * shape[0] * shape[1])
    return out.index_add_(0, target[drawn], coverage[drawn]).clamp_(max=1).view(n, *shape)


def simulate_image(
    atoms: Atoms,
    optics: Optics,
    shape: tuple[int, int],
    pixel_size_A: float,
    sites: pd.DataFrame | None = None,
    kinds: Sequence[str] = (),
    label: Literal["disc", "position", "probe"] = "disc",
    label_radius_A: float = 0.8,
    thermal_rms_A: float = 0.0,
    margin_A: float = 6.0,
    device: torch.device | str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Simulate one noise-free image of a field of atoms, and a label map per kind of site.

    Parameters
    ----------
    atoms : ase.Atoms
        Positions in Å, pixel (0, 0) at the origin, x right, y down; `build_crystal` makes them. The field is
        not periodic: atoms up to `margin_A` outside contribute.
    shape, pixel_size_A
        (H, W) and the edge of the square pixel in Å.
    sites : frame with x_A, y_A, kind
        What to label; `introduce_defects` makes it.
    kinds : K names
        The label maps, in this order. Sites of other kinds are not drawn.
    label : ``"disc"``, ``"position"`` or ``"probe"``
        A disc of `label_radius_A` with smooth edges, the nearest pixel alone, or the probe scaled to 1.
    thermal_rms_A : float
        Root mean square thermal displacement along one axis (Å): a Gaussian blur of the image, the average
        over vibrations that are much faster than the scan. 0 if the crystal's atoms are displaced already.

    Returns
    -------
    image : float32 tensor ``[H, W]``, fraction of the beam on the detector
    labels : float32 tensor ``[K, H, W]``, 0 to 1
    """
    if min(shape) < 2:
        raise UserError(f"An image needs at least 2 x 2 pixels, got {shape}.")
    if not 0 <= thermal_rms_A < 5:
        raise UserError(f"thermal_rms_A = {thermal_rms_A} must be between 0 and 5 Å.")
    if label not in ("disc", "position", "probe"):
        raise UserError(f"Unknown label shape '{label}'; valid: disc, position, probe.")
    if label == "disc" and not label_radius_A > 0:
        raise UserError(f"label_radius_A must be positive, got {label_radius_A}.")
    pixel_size_A, _ = pixel_pair(pixel_size_A)
    blurred = optics
    if thermal_rms_A:
        source = np.hypot(optics.source_size_A, thermal_rms_A * np.sqrt(8 * np.log(2)))
        blurred = replace(optics, source_size_A=float(source))

    x, y, weight = atoms.positions[:, 0], atoms.positions[:, 1], atom_weights(atoms, optics)
    index = np.zeros(len(atoms), dtype=int)
    site_x = site_y = np.zeros(0)
    channel = np.zeros(0, dtype=int)
    if sites is not None and len(kinds):
        order = {kind: i for i, kind in enumerate(kinds)}
        chosen = sites[sites["kind"].isin(list(kinds))]
        site_x, site_y = chosen["x_A"].to_numpy(float), chosen["y_A"].to_numpy(float)
        channel = chosen["kind"].map(order).to_numpy(int)

    if label == "probe" and len(kinds):
        peak = float(probe_intensity(blurred, (256, 256), 0.1).max())
        x, y = np.concatenate([x, site_x]), np.concatenate([y, site_y])
        weight = np.concatenate([weight, np.full(len(site_x), 1 / peak)])
        index = np.concatenate([index, channel + 1])
        stack = _render_open_field(
            x, y, weight, index, [blurred], 1 + len(kinds), shape, pixel_size_A, margin_A, device
        )
        return stack[0], stack[1:].clamp_(0, 1)
    image = _render_open_field(x, y, weight, index, [blurred], 1, shape, pixel_size_A, margin_A, device)[0]
    radius_px = label_radius_A / pixel_size_A if label == "disc" else 0.5
    if label == "position":
        site_x, site_y = (np.rint(s / pixel_size_A) * pixel_size_A for s in (site_x, site_y))
    labels = disc_maps(site_x / pixel_size_A, site_y / pixel_size_A, channel, len(kinds), shape, radius_px)
    return image, labels.to(image.device)


def poisson_counts(
    image: torch.Tensor, current_pA: float, dwell_us: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Return the number of electrons counted per pixel: Poisson of ``I * current * dwell * 6.24146``.

    Parameters
    ----------
    image : tensor of any shape
        Fraction of the beam that reaches the detector.
    current_pA, dwell_us : float
        Beam current and time per pixel.

    Returns
    -------
    float32 tensor of the same shape
    """
    if not (current_pA > 0 and dwell_us > 0):
        raise UserError(
            f"Beam current and dwell time must be positive, got {current_pA} pA and {dwell_us} µs."
        )
    return torch.poisson(
        image.clamp(min=0) * (current_pA * dwell_us * ELECTRONS_PER_PA_US), generator=generator
    )
