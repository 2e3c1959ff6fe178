"""Two-phase microstructures of known truth, drawn as a scanning electron microscope would show them.

Two populations: level-cut Gaussian random fields, whose two-point function is known in closed form, and ferrite
grains of which a share are martensite islands, lamellar inside. Every image is a window on an endless
microstructure: the phase fraction is right over the population and fluctuates from image to image as it does
from one field of view to the next. Every set is a function of its arguments and seed alone; image `i` is the
same whatever the number of images. Angles are counter-clockwise as seen on the screen.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from scipy import fft
from scipy.spatial import cKDTree
from scipy.special import ndtr, ndtri, roots_jacobi, roots_legendre

from micrographia.errors import UserError

#: Grain boundaries wander about the straight edges of a Voronoi diagram by this share of a grain (one standard
#: deviation), over this share of a grain.
_WANDER, _WANDER_LENGTH = 0.06, 0.6
#: Seeds of grains reach this many grain sizes beyond the image, so that its edges are like its middle.
_MARGIN_GRAINS = 3.0
#: Nearest seeds looked at for each pixel. A phase that has none of them is further than everything that counts.
_NEIGHBOURS = 6


@dataclass(frozen=True)
class SemContrast:
    """How bright things are in a secondary-electron image, 0 (black) to 1 (white), and how noisy it is."""

    matrix: float = 0.32
    """Mean brightness of the matrix (ferrite: etched, lower, darker)."""
    islands: float = 0.64
    """Mean brightness of the islands (martensite: raised, brighter)."""
    variation: float = 0.03
    """Standard deviation of the brightness from grain to grain (channelling); in a random field it varies
    smoothly instead."""
    edge: float = 0.12
    """Extra brightness of the raised phase along its edges, where secondary electrons escape more easily."""
    edge_px: float = 1.5
    """How far inside the raised phase that rim is brightest."""
    groove: float = 0.12
    """By how much the etched boundaries between grains of one phase are darker."""
    blur_px: float = 0.6
    """Standard deviation of the Gaussian over which a phase boundary is smeared."""
    electrons: float = 400.0
    """Detected electrons in a white pixel: sets the shot noise."""
    readout: float = 0.01
    """Standard deviation of the detector's noise."""
    gain: float = 0.03
    """Standard deviation of the gain from image to image, relative."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            positive = f.name in ("edge_px", "blur_px", "electrons")
            if not (np.isfinite(value) and value >= 0) or (positive and value == 0):
                raise UserError(
                    f"contrast.{f.name} = {value}: give a {'positive ' if positive else ''}number."
                )
        for name in ("matrix", "islands"):
            if getattr(self, name) > 1:
                raise UserError(f"contrast.{name} = {getattr(self, name)}: give a brightness from 0 to 1.")


@dataclass(frozen=True)
class DualPhaseSet:
    """Images of a two-phase microstructure and the truth about them."""

    images: np.ndarray
    """float32 ``[N, H, W]``, from 0 (black) to 1 (white)."""
    masks: np.ndarray
    """bool ``[N, H, W]``: which pixels' centres lie in the second phase (the islands)."""
    phase_fraction: np.ndarray
    """Share of each mask that is second phase, ``[N]``."""
    parameters: dict[str, float]
    """What the population was asked to be; the arguments that :func:`field_two_point` needs, for fields."""


def field_microstructures(
    n: int,
    size_px: int = 64,
    phase_fraction: float = 0.35,
    fraction_spread: float = 0.0,
    length_px: float = 7.0,
    anisotropy: float = 1.0,
    angle_deg: float = 0.0,
    contrast: SemContrast | None = None,
    seed: int = 0,
) -> DualPhaseSet:
    """Cut Gaussian random fields at a level: what lies above it is the second phase.

    The fields' autocorrelation is Gaussian (:func:`field_autocorrelation`). They are drawn exactly (circulant embedding: Dietrich and Newsam, SIAM J. Sci.
    Comput. 18, 1088 (1997)) and cut at the Gaussian's quantile, not at their own.

    Parameters
    ----------
    n : int
    size_px : int
        Edge of the square images.
    phase_fraction : float
        Mean share of the second phase over the population, between 0 and 1.
    fraction_spread : float
        Standard deviation of the fraction of the endless microstructures that the images are windows on (as
        between specimens; a beta distribution). The windows' own fluctuation comes on top.
    length_px : float
        Distance over which the field's autocorrelation falls to 1/e: about half the size of the islands.
    anisotropy : float
        Ratio of that length along and across the elongation, at least 1; their geometric mean is `length_px`.
    angle_deg : float
        Direction of the elongation, counter-clockwise on the screen from the horizontal.
    contrast : SemContrast, optional
    seed : int

    Raises
    ------
    UserError
        Impossible sizes, fractions or lengths.
    """
    _check(n, size_px, seed, phase_fraction, fraction_spread, length_px, anisotropy, angle_deg)
    contrast = contrast or SemContrast()
    draw = _FieldSampler(size_px, length_px, anisotropy, angle_deg)
    images = np.empty((n, size_px, size_px), np.float32)
    masks = np.empty(images.shape, bool)
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        level = ndtri(1 - _draw_fraction(phase_fraction, fraction_spread, rng))
        field, shading = draw(rng)
        height = field - np.float32(level)
        masks[i] = height > 0
        down, right = np.gradient(height)
        # Where the field is level its distance to the cut is unknown, but not infinite.
        slope = np.sqrt(down**2 + right**2 + (0.3 / length_px) ** 2)
        brightness = contrast.variation * shading
        images[i] = _expose(height / slope, brightness, brightness, contrast, rng)
    parameters = {
        "phase_fraction": phase_fraction,
        "fraction_spread": fraction_spread,
        "length_px": length_px,
        "anisotropy": anisotropy,
        "angle_deg": angle_deg,
    }
    return DualPhaseSet(images, masks, masks.mean(axis=(1, 2)), parameters)


def grain_microstructures(
    n: int,
    size_px: int = 64,
    phase_fraction: float = 0.35,
    fraction_spread: float = 0.0,
    grain_px: float = 13.0,
    irregularity: float = 0.5,
    anisotropy: float = 1.0,
    angle_deg: float = 0.0,
    lath_px: float = 3.5,
    lath_contrast: float = 0.09,
    contrast: SemContrast | None = None,
    seed: int = 0,
) -> DualPhaseSet:
    """Grow ferrite grains and martensite islands, as in a dual-phase steel.

    Grains are the cells of a Voronoi diagram. Each is martensite with the same probability whatever its size and
    neighbours: the population's fraction is exact, and its two-point function is ``f² + f (1 - f) P(r)`` with
    P(r) the probability that two points lie in one grain (Torquato, *Random Heterogeneous Materials*, 2002).

    Parameters
    ----------
    n, size_px, phase_fraction, fraction_spread, contrast, seed
        As of :func:`field_microstructures`.
    grain_px : float
        Square root of the mean grain area.
    irregularity : float
        How far the seeds stray from a triangular lattice (of random place and direction in each image), in
        units of `grain_px`: 0 gives hexagons, 0.5 natural grains, 1 nearly random seeds.
    anisotropy : float
        Elongation of the grains, as after rolling: their length to their width, at least 1, at the same area.
    angle_deg : float
        Direction of the elongation (of rolling).
    lath_px : float
        Mean spacing of the laths within an island; each island has its own direction.
    lath_contrast : float
        Amplitude of their brightness. The mask takes an island as a whole.

    Raises
    ------
    UserError
        Impossible sizes, fractions or lengths.
    """
    _check(n, size_px, seed, phase_fraction, fraction_spread, grain_px, anisotropy, angle_deg)
    if not 0 <= irregularity <= 1:
        raise UserError(f"irregularity = {irregularity}: give a number from 0 to 1.")
    if not (lath_px >= 2 and np.isfinite(lath_px) and 0 <= lath_contrast <= 0.5):
        raise UserError(
            f"lath_px = {lath_px} must be at least 2 px and lath_contrast = {lath_contrast} 0 to 0.5."
        )
    contrast = contrast or SemContrast()
    wander = _FieldSampler(size_px, _WANDER_LENGTH * grain_px, 1.0, 0.0)
    images = np.empty((n, size_px, size_px), np.float32)
    masks = np.empty(images.shape, bool)
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        fraction = _draw_fraction(phase_fraction, fraction_spread, rng)
        grains = _grow(size_px, grain_px, irregularity, anisotropy, angle_deg, wander, rng)
        is_island = rng.random(len(grains.seeds)) < fraction
        tone = rng.normal(0, contrast.variation, len(grains.seeds))
        ferrite, island = grains.nearest(~is_island), grains.nearest(is_island)
        masks[i] = is_island[grains.near[:, 0]].reshape(size_px, size_px)
        inside = grains.beyond_bisector(ferrite, island)
        groove = _groove(grains, is_island, contrast)
        laths = lath_contrast * grains.laths(island, lath_px, rng)
        # Either phase as if it went on beyond its boundary: that is what a pixel on the boundary mixes.
        look = (tone[grains.seed_of(ferrite)] - groove, tone[grains.seed_of(island)] - groove + laths)
        images[i] = _expose(inside, *look, contrast, rng).reshape(size_px, size_px)
    parameters = {
        "phase_fraction": phase_fraction,
        "fraction_spread": fraction_spread,
        "grain_px": grain_px,
        "irregularity": irregularity,
        "anisotropy": anisotropy,
        "angle_deg": angle_deg,
    }
    return DualPhaseSet(images, masks, masks.mean(axis=(1, 2)), parameters)


def field_autocorrelation(
    dx_px: np.ndarray, dy_px: np.ndarray, length_px: float, anisotropy: float = 1.0, angle_deg: float = 0.0
) -> np.ndarray:
    """Autocorrelation of the uncut field, ``exp(-(u²/a + v² a) / length²)``, at displacements (x right, y down).

    u runs along the elongation and v across it; `a` is the anisotropy.
    """
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    x, y = np.asarray(dx_px, float), np.asarray(dy_px, float)
    along, across = c * x - s * y, s * x + c * y
    return np.exp(-(along**2 / anisotropy + across**2 * anisotropy) / length_px**2)


def field_two_point(
    dx_px: np.ndarray,
    dy_px: np.ndarray,
    phase_fraction: float,
    length_px: float,
    anisotropy: float = 1.0,
    angle_deg: float = 0.0,
    fraction_spread: float = 0.0,
) -> np.ndarray:
    """Two-point function S2 of :func:`field_microstructures`: the probability that both points are second phase.

    For a field cut at the level t with autocorrelation ρ (Berk, Phys. Rev. Lett. 58, 2718 (1987); Teubner,
    Europhys. Lett. 14, 403 (1991))::

        S2 = f² + 1/(2π) ∫_0^{arcsin ρ} exp[-t² / (1 + sin θ)] dθ

    averaged over the distribution of f if it has a spread.

    Parameters
    ----------
    dx_px, dy_px : arrays of one shape
        Displacement, x to the right and y down.
    phase_fraction, length_px, anisotropy, angle_deg, fraction_spread : float
        As of :func:`field_microstructures`; ``**parameters`` of its set.

    Returns
    -------
    s2 : array of the shape of the displacements
    """
    rho = field_autocorrelation(dx_px, dy_px, length_px, anisotropy, angle_deg)
    top = np.arcsin(np.clip(rho, 0, 1))
    nodes, weights = roots_legendre(48)
    theta = (nodes + 1) / 2 * top[..., None]
    out = np.zeros(rho.shape)
    for fraction, share in zip(*_fractions(phase_fraction, fraction_spread), strict=True):
        t = ndtri(1 - fraction)
        integral = (np.exp(-(t**2) / (1 + np.sin(theta))) @ weights) * top / 2
        out += share * (fraction**2 + integral / (2 * np.pi))
    return out


def _check(
    n: int,
    size_px: int,
    seed: int,
    phase_fraction: float,
    fraction_spread: float,
    length_px: float,
    anisotropy: float,
    angle_deg: float,
) -> None:
    if n < 1 or size_px < 8 or seed < 0:
        raise UserError(
            f"n = {n}, size_px = {size_px}, seed = {seed}: give at least 1 image of at least 8 px and a seed from 0."
        )
    if not 0 < phase_fraction < 1:
        raise UserError(f"phase_fraction = {phase_fraction}: give a number between 0 and 1.")
    if not 0 <= fraction_spread**2 < 0.9 * phase_fraction * (1 - phase_fraction):
        raise UserError(
            f"fraction_spread = {fraction_spread} is more than fractions about {phase_fraction} can spread; "
            f"give less than {np.sqrt(0.9 * phase_fraction * (1 - phase_fraction)):.2f}, or 0."
        )
    if not 1.5 <= length_px <= 4 * size_px:
        raise UserError(
            f"A length of {length_px} px does not suit images of {size_px} px: give 1.5 to {4 * size_px}."
        )
    if not (1 <= anisotropy <= 20 and np.isfinite(angle_deg)):
        raise UserError(f"anisotropy = {anisotropy} (1 to 20) at angle_deg = {angle_deg} is not possible.")


def _beta(mean: float, spread: float) -> tuple[float, float]:
    """Shape parameters of the beta distribution of this mean and standard deviation."""
    k = mean * (1 - mean) / spread**2 - 1
    return mean * k, (1 - mean) * k


def _draw_fraction(mean: float, spread: float, rng: np.random.Generator) -> float:
    if spread == 0:
        return mean
    return float(np.clip(rng.beta(*_beta(mean, spread)), 1e-6, 1 - 1e-6))


def _fractions(mean: float, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Fractions and their weights: the quadrature of the distribution that `_draw_fraction` draws from."""
    if spread == 0:
        return np.array([mean]), np.ones(1)
    a, b = _beta(mean, spread)
    nodes, weights = roots_jacobi(16, b - 1, a - 1)
    return (nodes + 1) / 2, weights / weights.sum()


class _FieldSampler:
    """Draws pairs of independent Gaussian random fields ``[H, W]`` of unit variance on a torus, cut to the size."""

    def __init__(self, size_px: int, length_px: float, anisotropy: float, angle_deg: float) -> None:
        # Far enough for the correlation across the torus's seam to vanish (below 1e-4).
        edge = fft.next_fast_len(size_px + int(np.ceil(3.1 * length_px * np.sqrt(anisotropy))))
        self.size_px = size_px
        wrap = np.arange(edge)
        wrap = np.where(wrap > edge // 2, wrap - edge, wrap)
        # Neighbouring copies of the torus as well, or the power would not be positive.
        power = np.zeros((edge, edge))
        for shift_x in (-edge, 0, edge):
            for shift_y in (-edge, 0, edge):
                power += field_autocorrelation(
                    wrap[None, :] + shift_x, wrap[:, None] + shift_y, length_px, anisotropy, angle_deg
                )
        spectrum = np.maximum(fft.fft2(power).real, 0)
        self.amplitude = (np.sqrt(spectrum) / edge).astype(np.float32)

    def __call__(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        white = rng.standard_normal((2, *self.amplitude.shape), dtype=np.float32)
        both = fft.fft2(self.amplitude * (white[0] + 1j * white[1]))[: self.size_px, : self.size_px]
        return both.real, both.imag


@dataclass(frozen=True)
class _Grains:
    """A Voronoi diagram in the frame in which its grains are round, seen by P pixels."""

    pixels: np.ndarray
    """``[P, 2]``: where (x, y) each pixel looks, with the wander of the boundaries."""
    stretch: np.ndarray
    """``[2, 2]``: from (x, y) to the frame."""
    seeds: np.ndarray
    """``[S, 2]``, in the frame."""
    near: np.ndarray
    """``[P, K]``: the nearest seeds."""
    distance: np.ndarray
    """``[P, K]``: how far they are, in the frame."""

    def nearest(self, member: np.ndarray) -> np.ndarray:
        """Place in `near` of the nearest seed that is a member, ``[P]``; -1 where there is none."""
        hit = member[self.near]
        return np.where(hit.any(axis=1), hit.argmax(axis=1), -1)

    def seed_of(self, place: np.ndarray) -> np.ndarray:
        return self.near[np.arange(len(place)), np.maximum(place, 0)]

    def beyond_bisector(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Distance in pixels from the line between the seeds in places `a` and `b`, positive on the side of `b`."""
        rows = np.arange(len(a))
        seed_a, seed_b = (self.seeds[self.seed_of(place)] for place in (a, b))
        difference = (self.distance[rows, a] ** 2 - self.distance[rows, b] ** 2) / 2
        slope = np.linalg.norm((seed_b - seed_a) @ self.stretch, axis=1)
        line = difference / np.maximum(slope, 1e-6)
        return np.where(a < 0, np.inf, np.where(b < 0, -np.inf, line))

    def laths(self, place: np.ndarray, lath_px: float, rng: np.random.Generator) -> np.ndarray:
        """Alternating laths, -1 to 1, in the direction of the grain in `place`."""
        n = len(self.seeds)
        direction, start = rng.uniform(0, np.pi, n), rng.uniform(0, 2 * np.pi, n)
        wave = 2 * np.pi / (lath_px * rng.uniform(0.85, 1.2, n))
        vectors = wave[:, None] * np.c_[np.cos(direction), np.sin(direction)]
        seed = self.seed_of(place)
        return np.tanh(1.5 * np.sin((self.pixels * vectors[seed]).sum(axis=1) + start[seed]))


def _grow(
    size_px: int,
    grain_px: float,
    irregularity: float,
    anisotropy: float,
    angle_deg: float,
    wander: _FieldSampler,
    rng: np.random.Generator,
) -> _Grains:
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    root = np.sqrt(anisotropy)
    stretch = np.array([[c / root, -s / root], [s * root, c * root]])
    y, x = np.mgrid[:size_px, :size_px]
    pixels = np.stack([x.ravel(), y.ravel()], axis=1).astype(float)
    pixels += _WANDER * grain_px * np.stack(wander(rng), axis=-1).reshape(-1, 2)
    points = pixels @ stretch.T
    margin = _MARGIN_GRAINS * grain_px
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    # A triangular lattice of one point per grain, of random place and direction, then shaken.
    a = grain_px * np.sqrt(2 / np.sqrt(3))
    reach = int(np.ceil(np.linalg.norm(high - low) / 2 / (a * np.sqrt(3) / 2))) + 2
    steps = np.arange(-2 * reach, 2 * reach + 1)
    i, j = (k.ravel() for k in np.meshgrid(steps, steps))
    shift = rng.random(2)
    u = np.stack([i + shift[0] + (j + shift[1]) / 2, (j + shift[1]) * np.sqrt(3) / 2], axis=1) * a
    turn = rng.uniform(0, 2 * np.pi)
    turned = u @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    seeds = turned + (low + high) / 2
    seeds = seeds[((seeds > low) & (seeds < high)).all(axis=1)]
    seeds = seeds + irregularity * grain_px * rng.standard_normal(seeds.shape)
    distance, near = cKDTree(seeds).query(points, k=_NEIGHBOURS)
    return _Grains(pixels, stretch, seeds, near, distance)


def _groove(grains: _Grains, is_island: np.ndarray, contrast: SemContrast) -> np.ndarray:
    """Darkness along the boundaries between grains of one phase, ``[P]``."""
    first, second = np.zeros(len(grains.near), int), np.ones(len(grains.near), int)
    across = grains.beyond_bisector(second, first)
    same = is_island[grains.near[:, 0]] == is_island[grains.near[:, 1]]
    return contrast.groove * same * np.exp(-0.5 * (across / (1.2 * contrast.blur_px)) ** 2)


def _expose(
    inside_px: np.ndarray,
    matrix_detail: np.ndarray,
    island_detail: np.ndarray,
    contrast: SemContrast,
    rng: np.random.Generator,
) -> np.ndarray:
    """Turn distances from the phase boundary (positive inside the islands) into a noisy image."""
    share = ndtr(inside_px / contrast.blur_px)
    depth = np.clip(inside_px / contrast.edge_px, 0, 20)
    # No brighter at the boundary itself, or a threshold halfway would find too much of the islands.
    rim = contrast.edge * depth * np.exp(1 - depth)
    signal = contrast.matrix + matrix_detail
    signal = signal + share * (contrast.islands + island_detail + rim - signal)
    signal = np.maximum(signal, 0) * max(0.0, 1 + contrast.gain * rng.standard_normal())
    counts = rng.poisson(contrast.electrons * signal) / contrast.electrons
    noisy = counts + contrast.readout * rng.standard_normal(signal.shape)
    return np.clip(noisy, 0, 1).astype(np.float32)
