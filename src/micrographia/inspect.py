"""Look at one image before using it: lattice, true pixel size, resolution, noise, distortion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg, ndimage, optimize

from micrographia.errors import UserError, did_you_mean
from micrographia.micrograph import Micrograph
from micrographia.periodicity import (
    Lattice,
    Spectrum,
    find_lattice,
    frequencies,
    hann,
    power_spectrum,
    reduced,
    refine_spot,
)

#: Kind of the projected lattice and its constant in Å: the numbers of `simulate`, with their sources there.
LATTICES = {
    "MoS2": ("hexagonal", 3.160),
    "WS2": ("hexagonal", 3.153),
    "MoSe2": ("hexagonal", 3.289),
    "WSe2": ("hexagonal", 3.282),
    "MoTe2": ("hexagonal", 3.518),
    "WTe2": ("hexagonal", 3.55),
    "graphene": ("hexagonal", 2.461),
    "SrTiO3": ("square", 3.905),
}
#: Ideal cells of constant 1: a1 along x, a2 counter-clockwise from it on the screen (y points down).
IDEAL_CELLS = {
    "hexagonal": np.array([[1.0, 0.0], [-0.5, -np.sqrt(0.75)]]),
    "square": np.array([[1.0, 0.0], [0.0, -1.0]]),
}
#: A lattice turned by this angle is itself.
SYMMETRY_DEG = {"hexagonal": 60.0, "square": 90.0, "oblique": 180.0}
#: How much more than one the ratio of the principal stretches may be by distortion; beyond it: oblique.
MAX_ANISOTROPY = 0.25
#: Evidence from which on a lattice is certain; noise stays far below.
SURE_EVIDENCE = 100.0
#: Deviation of the file's pixel size from the lattice's that is worth a warning (if beyond three errors).
PIXEL_SIZE_TOLERANCE = 0.02


@dataclass(frozen=True)
class Inspection:
    """What one image says about itself. What cannot be known is None.

    Parameters
    ----------
    name : str
    kind : str
        ``"hexagonal"``, ``"square"``, ``"oblique"`` or ``"none"``.
    confidence : float
        0 to 1: which part of the significant spots belongs to the lattice, times its evidence up to a limit.
    vectors_px : float array ``[2, 2]`` or None
        a1, a2 as rows ``(x, y)`` in pixels, as measured; a2 is counter-clockwise from a1 on the screen, by
        about 120° (hexagonal) or 90° (square).
    lattice_constant_px : float or None
        Edge of the undistorted cell of the same area.
    lattice_error_percent : float or None
        Standard error of the lattice constant, and so of the pixel size that follows from it.
    angle_deg : float or None
        Of a1 against the x axis, counter-clockwise on the screen, modulo the symmetry; distortion removed.
    second_angle_deg : float or None
        Angle of a second grain of the same lattice, if there is one.
    material : str or None
    pixel_size_A : float or None
        What the image came with.
    lattice_pixel_size_A : float or None
        What the material's lattice constant implies.
    strain : float array ``[2, 2]`` or None
        Distortion of the measured lattice against the ideal one of the same area, in the image's x and y.
    shear_percent : float or None
        Shift along x per step along y (drift during the scan), if rows are taken as straight.
    anisotropy_percent : float or None
        Longest over shortest principal stretch, less one.
    row_jitter_px : float or None
        Standard deviation of the rows' displacements, noise removed; unknown where there are two grains.
    information_limit_px : float or None
        Shortest period, in pixels, that stands above the noise.
    noise : float
        Standard deviation of the noise of one pixel, in units of the data.
    snr : float
        Standard deviation of the signal (without slow background) over that of the noise.
    spots : float array ``[K, 5]``
        ``h, k, q_x, q_y, significance`` of the lattice's harmonics, cycles per pixel.
    other_spots : float array ``[L, 3]``
        ``q_x, q_y, significance`` of spots that do not belong to it.
    warnings : tuple of str
    """

    name: str
    kind: str
    confidence: float
    vectors_px: np.ndarray | None
    lattice_constant_px: float | None
    lattice_error_percent: float | None
    angle_deg: float | None
    second_angle_deg: float | None
    material: str | None
    pixel_size_A: float | None
    lattice_pixel_size_A: float | None
    strain: np.ndarray | None
    shear_percent: float | None
    anisotropy_percent: float | None
    row_jitter_px: float | None
    information_limit_px: float | None
    noise: float
    snr: float
    spots: np.ndarray
    other_spots: np.ndarray
    warnings: tuple[str, ...] = ()

    @property
    def has_lattice(self) -> bool:
        """Whether a lattice was found."""
        return self.kind != "none"

    @property
    def best_pixel_size_A(self) -> float | None:
        """The lattice's pixel size if there is one, else the file's."""
        return self.lattice_pixel_size_A or self.pixel_size_A

    @property
    def pixel_size_ratio(self) -> float | None:
        """The file's pixel size over the lattice's: 1.05 = the file is 5 % too high."""
        if self.pixel_size_A is None or self.lattice_pixel_size_A is None:
            return None
        return self.pixel_size_A / self.lattice_pixel_size_A

    @property
    def vectors_A(self) -> np.ndarray | None:
        """The lattice vectors in Å, with the best pixel size."""
        if self.vectors_px is None or self.best_pixel_size_A is None:
            return None
        return self.vectors_px * self.best_pixel_size_A

    @property
    def information_limit_pm(self) -> float | None:
        """The information limit in pm, with the best pixel size."""
        if self.information_limit_px is None or self.best_pixel_size_A is None:
            return None
        return 100 * self.information_limit_px * self.best_pixel_size_A


#: Anisotropy of the scale that is worth a warning.
WORTH_WARNING_PERCENT = 5.0
#: Smallest angle between two grains that is told apart from one distorted grain.
MIN_TILT_DEG = 4.0
#: A harmonic counts for the information limit from here on; among a hundred noise places none does.
LIMIT_SIGNIFICANCE = 9.0
#: So many of the brightest spots give the typical one.
SPOTS_TO_AVERAGE = 60
#: Spots are in an image where some outshine by this factor the brightest of noise with the same spectrum; in noise, one
#: may.
SPOTS_OUTSHINE_NOISE = 1.2
#: Whatever is coarser than this (standard deviation of a Gaussian, px) is the film's.
FILM_PX = 16.0
#: So few say nothing about their width.
FEWEST_SPOTS = 4
#: Structure slower than this many periods per field is background.
_SLOW_RINGS = 3
#: Fields of `Inspection` that need a lattice.
_LATTICE_FACTS = (
    "vectors_px",
    "lattice_constant_px",
    "lattice_error_percent",
    "angle_deg",
    "second_angle_deg",
    "lattice_pixel_size_A",
    "strain",
    "shear_percent",
    "anisotropy_percent",
    "row_jitter_px",
)


def known_material(material: str) -> str:
    """Return a material's name as written here, in whatever case it is given; `UserError` if its lattice is unknown."""
    known = {name.lower(): name for name in LATTICES}
    if material.lower() not in known:
        raise UserError(
            f"The lattice constant of '{material}' is not known.{did_you_mean(material, LATTICES)}"
        )
    return known[material.lower()]


def inspect_image(micrograph: Micrograph, material: str | None = None) -> Inspection:
    """Measure lattice, pixel size, information limit, noise and distortion of one image.

    Parameters
    ----------
    micrograph : Micrograph
        At least 32 x 32 pixels and, for a lattice, five periods wide.
    material : str, optional
        One of `LATTICES`: gives the pixel size by the lattice and tells what the undistorted lattice is.

    Raises
    ------
    UserError
        The image is constant or tiny, or the material is unknown.
    """
    image = micrograph.data.astype(np.float64)
    if min(image.shape) < 16:
        raise UserError(
            f"{micrograph.name}: {image.shape} pixels are too few to inspect; give at least 16 x 16."
        )
    if np.ptp(image) == 0:
        raise UserError(f"{micrograph.name}: the image is constant: there is nothing to inspect.")
    if material is not None:
        material = known_material(material)
    spectrum = power_spectrum(image)
    lattice = find_lattice(image)
    noise = float(np.sqrt(spectrum.noise_power()))
    limit = _information_limit(spectrum, lattice)
    # A file's own doubt about its pixel size; whoever gives another knows better.
    doubt = micrograph.metadata.get("warning") if micrograph.pixel_size_source == "file" else None
    warnings = [str(doubt)] if doubt else []
    facts: dict[str, Any] = dict.fromkeys(_LATTICE_FACTS)
    kind, confidence = "none", 0.0
    if lattice is not None:
        kind, measured = _measure(lattice, LATTICES[material][0] if material else None)
        confidence = lattice.explained * min(1.0, lattice.evidence / SURE_EVIDENCE)
        facts["lattice_error_percent"] = 100 * lattice.relative_error
        facts.update(measured)
        if measured["second_angle_deg"] is not None:
            warnings.append(f"a second grain is turned to {measured['second_angle_deg']:.1f}°")
        else:
            facts["row_jitter_px"] = _row_jitter(image, lattice, noise)
        if measured.get("anisotropy_percent", 0) > WORTH_WARNING_PERCENT:
            warnings.append(
                f"the image is stretched: its scale differs by {measured['anisotropy_percent']:.0f} % "
                "with direction"
            )
        if material is not None:
            expected, constant_A = LATTICES[material]
            if kind == expected:
                facts["lattice_pixel_size_A"] = constant_A / measured["lattice_constant_px"]
            else:
                warnings.append(
                    f"the lattice is {kind}, that of {material} is {expected}: pixel size not derived"
                )
    elif material is not None:
        warnings.append(f"no lattice found: the pixel size cannot be checked against {material}")
    given, implied = micrograph.pixel_size_A, facts["lattice_pixel_size_A"]
    tolerance = max(PIXEL_SIZE_TOLERANCE, 0.03 * (facts["lattice_error_percent"] or 0.0))
    if given and implied and abs(given / implied - 1) > tolerance:
        warnings.append(
            f"the pixel size of the {micrograph.pixel_size_source} ({given:.4g} Å) is "
            f"{100 * (given / implied - 1):+.1f} % off that of the {material} lattice ({implied:.4g} Å)"
        )
    return Inspection(
        name=micrograph.name, kind=kind, confidence=confidence, material=material, pixel_size_A=given,
        information_limit_px=limit, noise=noise, snr=_signal(spectrum, limit) / max(noise, 1e-30),
        spots=lattice.spots if lattice else np.empty((0, 5)),
        other_spots=lattice.others if lattice else np.empty((0, 3)), warnings=tuple(warnings), **facts,
    )  # fmt: skip


def _measure(lattice: Lattice, expected: str | None) -> tuple[str, dict]:
    """Interpret reciprocal vectors: kind, real vectors, orientation and distortion."""
    cell = reduced(np.linalg.inv(lattice.reciprocal).T)
    best = None
    for kind in [expected] if expected else list(IDEAL_CELLS):
        vectors = _oriented(cell, kind)
        # vectors.T = stretch @ rotation @ ideal.T * constant
        rotation, stretch = linalg.polar(vectors.T @ np.linalg.inv(IDEAL_CELLS[kind].T), side="left")
        principal = np.linalg.eigvalsh(stretch)
        anisotropy = principal[1] / principal[0] - 1
        if best is None or anisotropy < best[0]:
            best = anisotropy, kind, vectors, rotation, stretch
    assert best is not None
    anisotropy, kind, vectors, rotation, stretch = best
    if anisotropy > MAX_ANISOTROPY:
        vectors = _oriented(cell, "square")
        angle = np.degrees(np.arctan2(-vectors[0, 1], vectors[0, 0])) % SYMMETRY_DEG["oblique"]
        facts = {"vectors_px": vectors, "lattice_constant_px": float(np.sqrt(abs(np.linalg.det(vectors)))),
                 "angle_deg": float(angle), "second_angle_deg": None}  # fmt: skip
        return "oblique", facts
    constant = float(np.sqrt(np.linalg.det(stretch)))
    upright, _ = linalg.rq(stretch @ rotation)
    angle = np.degrees(np.arctan2(-rotation[1, 0], rotation[0, 0])) % SYMMETRY_DEG[kind]
    facts = {
        "vectors_px": vectors,
        "lattice_constant_px": constant,
        "angle_deg": float(angle),
        "second_angle_deg": _second_angle(lattice, kind, stretch / constant, constant, float(angle)),
        "strain": stretch / constant - np.eye(2),
        "shear_percent": float(100 * upright[0, 1] / upright[1, 1]),
        "anisotropy_percent": float(100 * anisotropy),
    }
    return kind, facts


def _oriented(cell: np.ndarray, kind: str) -> np.ndarray:
    """Choose among the equivalent vectors: a1 in the first symmetry sector, a2 counter-clockwise from it."""
    a, b = cell
    if kind == "hexagonal" and a @ b > 0:
        b = -b
    if a[0] * b[1] - a[1] * b[0] > 0:  # y down: a positive cross product is clockwise on the screen
        a, b = b, a
    turns = [(a, b), (-a, -b)]
    if kind == "hexagonal":
        turns += [(b, -a - b), (-b, a + b), (-a - b, a), (a + b, -a)]
    else:
        turns += [(b, -a), (-b, a)]
    angles = [np.degrees(np.arctan2(-x[1], x[0])) % 360 for x, _ in turns]
    return np.array(turns[int(np.argmin(angles))])


def _second_angle(
    lattice: Lattice, kind: str, stretch: np.ndarray, constant: float, angle: float
) -> float | None:
    """Orientation that two unexplained spots or more share, on the rings where this lattice has its own."""
    if len(lattice.others) < 2:
        return None
    q = lattice.others[:, :2] @ stretch * constant  # distortion removed, in units of 1 / lattice constant
    length, direction = np.hypot(*q.T), np.degrees(np.arctan2(-q[:, 1], q[:, 0]))
    if kind == "hexagonal":
        rings = ((2 / np.sqrt(3), 30.0), (2.0, 0.0))
    else:
        rings = ((1.0, 0.0), (np.sqrt(2), 45.0))
    symmetry = SYMMETRY_DEG[kind]
    turned = np.concatenate(
        [(direction - offset)[np.abs(length / ring - 1) < 0.05] % symmetry for ring, offset in rings]
    )
    for candidate in turned:
        near = (turned - candidate + symmetry / 2) % symmetry - symmetry / 2
        mean = candidate + near[np.abs(near) < 2].mean()
        distance = abs((mean - angle + symmetry / 2) % symmetry - symmetry / 2)
        if (np.abs(near) < 2).sum() >= 2 and distance > MIN_TILT_DEG:
            return float(mean % symmetry)
    return None


def _information_limit(spectrum: Spectrum, lattice: Lattice | None) -> float | None:
    """Shortest period in px above the noise: of the lattice's harmonics, or else of the radial spectrum."""
    if lattice is not None:
        seen = [s for s in lattice.spots if refine_spot(spectrum, s[2:4])[2] > LIMIT_SIGNIFICANCE]
        # Outwards without a gap wider than the lattice's own: a lone spot far out is noise.
        q = np.sort([np.hypot(*s[2:4]) for s in seen])
        gap = np.flatnonzero(np.diff(q) > 1.05 * np.hypot(*lattice.reciprocal.T).max())
        if len(q):
            return float(1 / q[gap[0] if len(gap) else -1])
    floor = spectrum.noise_power()
    # A ring of radius r holds about πr independent values, so its mean is known to 1/sqrt(πr).
    n = np.maximum(np.pi * spectrum.radial_frequency * min(spectrum.power.shape), 1)
    above = (spectrum.radial_power > floor * (1 + 5 / np.sqrt(n)))[_SLOW_RINGS:]
    run = int(np.argmin(above)) if not above.all() else len(above)
    return float(1 / spectrum.radial_frequency[_SLOW_RINGS + run - 1]) if run > 1 else None


def _signal(spectrum: Spectrum, limit_px: float | None) -> float:
    """Standard deviation of what lies between slow background (three periods per field) and the limit."""
    if limit_px is None:
        return 0.0
    radius = np.hypot(*np.meshgrid(*frequencies(spectrum.power.shape), indexing="ij"))
    band = (radius > _SLOW_RINGS / min(spectrum.power.shape)) & (radius < 1.1 / limit_px)
    excess = (spectrum.power[band] - spectrum.noise_power()).sum() / spectrum.power.size
    return float(np.sqrt(max(excess, 0.0)))


def _row_jitter(image: np.ndarray, lattice: Lattice, noise: float) -> float:
    """Root mean square displacement of rows against their neighbours, in px.

    The lattice alone (Fourier spots and what lies within a few steps of them: slow distortion) is the model
    M. Each row's displacement d follows by least squares from I - M = -d dM/dx; half the variance of the
    difference of neighbouring rows is the jitter's, plus the noise's, which is known.
    """
    height, width = image.shape
    transform = np.fft.fft2((image - image.mean()) * hann(image.shape))
    qy, qx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    mask = np.zeros(image.shape)
    for _, _, x, y, _ in lattice.spots:
        for sign in (1, -1):
            mask = np.maximum(
                mask, np.exp(-(((qx - sign * x) * width) ** 2 + ((qy - sign * y) * height) ** 2) / 8)
            )
    model = np.fft.ifft2(transform * mask).real
    slope = np.fft.ifft2(transform * mask * 2j * np.pi * qx).real
    rest = np.fft.ifft2(transform).real - model
    middle = slice(height // 4, 3 * height // 4)
    energy = (slope[middle] ** 2).sum(1)
    displacement = -(rest[middle] * slope[middle]).sum(1) / energy
    noise_variance = noise**2 * (slope[middle] ** 2 * hann(image.shape)[middle] ** 2).sum(1) / energy**2
    return float(np.sqrt(max(np.diff(displacement).var() / 2 - noise_variance.mean(), 0.0)))


def spot_scale(image: np.ndarray) -> float:
    """Return the typical full width at half maximum, in px, of bright spots (single atoms) on an uneven film.

    The scale-normalised Laplacian of Gaussian finds the spots and their rough width: a Gaussian spot of standard
    deviation s answers most strongly at the scale s (Lindeberg, Int. J. Comput. Vis. 30, 79 (1998)). A Gaussian
    through the mean of the brightest then gives the width. With a probe of known size it implies a pixel size,
    but an assumed one: mark it so.

    Raises
    ------
    UserError
        The image is constant, or nothing in it stands out of its noise as a spot.
    """
    image = np.asarray(image, np.float64)
    if np.ptp(image) == 0:
        raise UserError("The image is constant: there are no spots in it.")
    row, column, scale, strength = _brightest_spots(image)
    of_noise = _brightest_of_noise(image)
    significant = strength > of_noise
    reach = int(6 * np.median(scale[significant])) if significant.any() else 1
    height, width = image.shape
    within = (np.minimum(row, height - 1 - row) >= reach) & (np.minimum(column, width - 1 - column) >= reach)
    inside = np.flatnonzero(significant & within)
    if (strength[inside] > SPOTS_OUTSHINE_NOISE * of_noise).sum() < FEWEST_SPOTS:
        raise UserError(
            "Too few spots in the image stand out of its noise as single atoms would to tell how wide they are."
        )
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    patches = [image[row[k] + y, column[k] + x] for k in inside]
    distance, mean = np.hypot(x, y).ravel(), np.median(patches, 0).ravel()

    rough = float(np.median(scale[inside]))
    # The film's level is taken well outside, where neighbours may lie: the lower quartile does not see them.
    base = float(np.quantile(mean[(distance > 3.5 * rough) & (distance < 6 * rough)], 0.25))

    def gaussian(r: np.ndarray, height: float, sigma: float) -> np.ndarray:
        return base + height * np.exp(-(r**2) / (2 * sigma**2))

    near = distance < 2 * rough
    start = (float(mean.max()) - base, rough)
    limits = ([0, 0.3], [np.inf, 2 * rough])
    fitted, _ = optimize.curve_fit(gaussian, distance[near], mean[near], start, bounds=limits)
    return float(2.3548 * fitted[1])


def _brightest_of_noise(image: np.ndarray) -> float:
    """Strength of the brightest spot in noise that is as grainy as the image.

    The noise has the image's amplitudes and phases of its own: whatever has a place in the image is spread over it.
    Slopes of the film and outliers would be spread, too, and are taken out before.
    """
    flat = image - ndimage.gaussian_filter(image, FILM_PX)
    flat = np.clip(flat, *np.quantile(flat, [0.001, 0.999]))
    phases = np.exp(1j * np.angle(np.fft.rfft2(np.random.default_rng(0).standard_normal(image.shape))))
    noise = np.fft.irfft2(np.abs(np.fft.rfft2(flat)) * phases, image.shape)
    return float(_brightest_spots(noise)[3].max(initial=0.0))


def _brightest_spots(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Row, column, scale (px) and strength of the spots that answer most strongly, the strongest first."""
    scales = 2 ** np.arange(0, 3.6, 0.5)
    stack = np.stack([-(s**2) * ndimage.gaussian_laplace(image, s) for s in scales])
    peaks = (stack == ndimage.maximum_filter(stack, (3, 5, 5))) & (stack > 0)
    peaks[[0, -1]] = False  # the largest answer must lie inside the range of scales
    order = np.argsort(stack[peaks])[::-1][:SPOTS_TO_AVERAGE]
    level, row, column = (index[order] for index in np.nonzero(peaks))
    return row, column, scales[level], stack[level, row, column]
