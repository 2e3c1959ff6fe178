"""Whether an image repeats, and with which two vectors: its power spectrum and the lattice in it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

#: Spots nearer to the origin than this many periods per field are slow background.
MIN_PERIODS = 4.5
#: A spot that is asked for at a known place counts from here on, in units of its background ...
EXPECTED_SIGNIFICANCE, EXPECTED_NOISE = 7.0, 5.0
#: ... and one that is found anywhere from ln N, the strongest of N noise pixels, less this: some are noise.
SEARCH_SLACK = 2.0
#: No spot's place is known better than this part of the resolution, however few spots scatter little.
PLACE_ERROR = 0.2
#: Evidence of a lattice: the strongest of 426 images of noise or amorphous film reached 13.
MIN_EVIDENCE = 40.0
#: Squared signal-to-noise ratio of one unit cell below which a pattern is no picture of atoms.
MIN_STRENGTH = 1.0
#: Uncertainty of a spot's place: steps of the resolution 1/N, and distortion as a part of its frequency.
TOLERANCE_BINS, TOLERANCE_RELATIVE = 1.0, 0.012


@dataclass(frozen=True)
class Spectrum:
    """Power spectrum of a Hann-windowed image. Frequencies are in cycles per pixel, ``(q_x, q_y)``.

    Parameters
    ----------
    power : float array ``[H, W]``
        Zero frequency in the middle; divided by the window's energy, so that the mean of white noise is its
        variance.
    fine : float32 array ``[2H, W + 1]``
        The same on a grid twice as fine (zero padding), only q_x >= 0, zero frequency at ``[0, 0]``.
    radial_frequency, radial_power : float arrays ``[bins]``
        Mean power without the spots, from the quarter of each ring that is darkest.
    """

    power: np.ndarray
    fine: np.ndarray
    radial_frequency: np.ndarray
    radial_power: np.ndarray

    def background(self, q: np.ndarray) -> np.ndarray:
        """Return the radial background at frequencies ``[..., 2]``."""
        return np.interp(np.hypot(q[..., 0], q[..., 1]), self.radial_frequency, self.radial_power)

    def resolution(self) -> np.ndarray:
        """Return the resolution (1/W, 1/H)."""
        return 1 / np.array(self.power.shape[::-1], float)

    def noise_power(self) -> float:
        """Return the level that the spectrum falls to: the variance of white noise per pixel."""
        return float(np.median(self.radial_power[self.radial_frequency > 0.42]))


@dataclass(frozen=True)
class Lattice:
    """Two reciprocal vectors and the spots they explain.

    Parameters
    ----------
    reciprocal : float array ``[2, 2]``
        One vector ``(q_x, q_y)`` per row, cycles per pixel.
    spots : float array ``[K, 5]``
        ``h, k, q_x, q_y, significance`` of every harmonic seen, one of each pair ±q.
    others : float array ``[L, 3]``
        ``q_x, q_y, significance`` of the significant spots the lattice leaves unexplained.
    explained : float
        Part of all significant spots (weighted by log significance) that the lattice explains.
    evidence : float
        Sum of the spots' significances, each less what the largest of some noise pixels reaches.
    relative_error : float
        Standard error of the length scale, from the scatter of the spots about the lattice.
    strength : float
        Squared signal-to-noise ratio of one unit cell, summed over the harmonics.
    """

    reciprocal: np.ndarray
    spots: np.ndarray
    others: np.ndarray
    explained: float
    evidence: float
    relative_error: float
    strength: float


def hann(shape: tuple[int, ...]) -> np.ndarray:
    """Return the Hann window without its zero edges, ``[H, W]``."""
    return np.hanning(shape[0] + 2)[1:-1, None] * np.hanning(shape[1] + 2)[None, 1:-1]


def power_spectrum(image: np.ndarray) -> Spectrum:
    """Return the spectrum of an image ``[H, W]``."""
    image = np.asarray(image, np.float64)
    window = hann(image.shape)
    windowed = (image - (image * window).sum() / window.sum()) * window
    energy = (window**2).sum()
    fine = np.abs(fft.rfft2(windowed.astype(np.float32), [2 * n for n in image.shape])) ** 2 / energy
    half = fine[::2, ::2]  # the unpadded transform, q_x >= 0; the rest is its mirror image
    width = image.shape[1]
    mirrored = half[-np.arange(image.shape[0])][:, width - np.arange(width // 2 + 1, width)]
    power = np.fft.fftshift(np.concatenate([half[:, : width // 2 + 1], mirrored], axis=1))

    ring = (np.hypot(*np.meshgrid(*frequencies(image.shape), indexing="ij")) * min(image.shape)).astype(int)
    order = np.argsort(ring, axis=None, kind="stable")
    values = np.split(power.ravel()[order], np.cumsum(np.bincount(ring.ravel()))[:-1])
    # Noise power is exponentially distributed: its lower quartile is ln(4/3) of its mean. Even on a small
    # ring, which six spots fill to a good part, a quarter of the pixels is free of them.
    rings = [np.quantile(v, 0.25) / np.log(4 / 3) for v in values[: min(image.shape) // 2]]
    smooth = np.exp(ndimage.gaussian_filter1d(np.log(np.array(rings) + 1e-30), 1.0, mode="nearest"))
    return Spectrum(power, fine, (np.arange(len(rings)) + 0.5) / min(image.shape), smooth)


def frequencies(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the frequencies (q_y, q_x) of the rows and columns of `Spectrum.power`."""
    return np.fft.fftshift(np.fft.fftfreq(shape[0])), np.fft.fftshift(np.fft.fftfreq(shape[1]))


def find_lattice(image: np.ndarray) -> Lattice | None:
    """Find the dominant lattice of an image, or None.

    The strongest spots are paired; the pair whose lattice explains most of all spots, beyond chance, wins.
    Its vectors are then fitted to all harmonics. Where the image as it is does not show a lattice clearly, what
    is far brighter or darker than the rest (dirt, holes, single heavy atoms) is removed first.

    Returns None unless three pairs of spots support it and one unit cell stands out of the noise: a weak,
    regular pattern over a large field is an artefact of a detector or of resampling, not atoms.
    """
    best = None
    # Heavy clusters need blanking, which may eat the columns of another lattice: the better of both.
    for treated in (_flattened, _blanked):
        found = _find(treated(image))
        if found is not None and (best is None or found.evidence > best.evidence):
            best = found
        if best is not None and best.evidence > 10 * MIN_EVIDENCE:
            break
    if best is None or best.evidence < MIN_EVIDENCE or best.strength < MIN_STRENGTH:
        return None
    return best


def _find(image: np.ndarray) -> Lattice | None:
    spectrum = power_spectrum(image)
    resolution = spectrum.resolution()
    candidates = find_spots(spectrum)
    reciprocal = _best_pair(candidates[:24], resolution)
    if reciprocal is None:
        return None
    reciprocal, spots = _fit(spectrum, reciprocal)
    finer = _finer(spectrum, reciprocal)
    if finer is not None:
        reciprocal, spots = _fit(spectrum, finer)
    if len(spots) < 3 or np.linalg.matrix_rank(spots[:, :2]) < 2:
        return None
    # Distortion splits strong spots: what lies beside one belongs to it.
    explained = _explained(candidates, reciprocal, resolution, 2.5)
    weight = np.log(candidates[:, 2] / np.log(image.size)).clip(0)
    miss = spots[:, 2:4] - spots[:, :2] @ reciprocal
    scatter = np.sqrt((miss**2).sum() / max(2 * len(spots) - 4, 1) + PLACE_ERROR**2 * (resolution**2).mean())
    leverage = np.sqrt((spots[:, 2:4] ** 2).sum())
    # The window leaves 1/2.25 of the field to a coherent sum, and a spot and its mirror image carry the same.
    cells = image.size * abs(np.linalg.det(reciprocal)) / 2.25
    return Lattice(
        reciprocal,
        spots,
        candidates[~explained & (weight > 0)],
        float(weight[explained].sum() / max(weight.sum(), 1e-9)),
        float((spots[:, 4] - EXPECTED_NOISE).clip(0).sum()),
        float(scatter / leverage),
        float(2 * (spots[:, 4] - 1).sum() / cells),
    )


def _flattened(image: np.ndarray) -> np.ndarray:
    """Remove slow background."""
    image = np.asarray(image, np.float64)
    return image - ndimage.gaussian_filter(image, min(image.shape) / 20, truncate=2)


def _blanked(image: np.ndarray) -> np.ndarray:
    """Clip hot pixels, and fill dirt, holes and heavy atoms with the median: all beyond four robust deviations.

    Heavy atoms are sought in smoothed images, because every single pixel of one may lie within the noise.
    """
    image = _flattened(image)
    median, limit = _limits(image)
    image = np.clip(image, median - limit, median + limit)
    for width_px in (2.0, 4.0):
        smooth = ndimage.gaussian_filter(image, width_px)
        median, limit = _limits(smooth)
        outlier = (np.abs(smooth - median) > limit).astype(float)
        weight = np.clip(3 * ndimage.gaussian_filter(outlier, 1.5 * width_px), 0, 1)
        image = image + weight * (median - image)
    return image


def _limits(image: np.ndarray) -> tuple[float, float]:
    median = float(np.median(image))
    return median, 4 * 1.4826 * float(np.median(np.abs(image - median)))


def find_spots(spectrum: Spectrum, limit: int = 60) -> np.ndarray:
    """Return significant spots ``[K, 3]``: ``q_x, q_y``, power over background; the strongest first.

    Of each pair ±q one is listed.
    """
    power = spectrum.power
    qy, qx = frequencies(power.shape)
    grid = np.stack(np.meshgrid(qx, qy), -1)
    radius = np.hypot(grid[..., 0], grid[..., 1])
    flat = power / spectrum.background(grid)
    usable = (radius > MIN_PERIODS / min(power.shape)) & (radius < 0.5)
    usable &= (grid[..., 1] > 0) | ((grid[..., 1] == 0) & (grid[..., 0] > 0))
    threshold = np.log(power.size) - SEARCH_SLACK
    peaks = (flat == ndimage.maximum_filter(flat, 7)) & usable & (flat > threshold)
    q = grid[peaks][np.argsort(flat[peaks])[::-1][:limit]]
    spots = np.array([refine_spot(spectrum, x) for x in q]).reshape(-1, 3)
    spots = spots[spots[:, 2] > threshold]
    return spots[np.argsort(spots[:, 2])[::-1]]


def refine_spot(spectrum: Spectrum, q: np.ndarray) -> np.ndarray:
    """Return ``q_x, q_y``, power over background of the maximum within one resolution step of `q`.

    A paraboloid through the logarithm of the nearest values of the fine grid gives the place.
    """
    height, width = spectrum.power.shape
    column, row = np.rint(np.asarray(q) * (2 * width, 2 * height)).astype(int)
    near = _fine_power(spectrum, row + np.arange(-3, 4), column + np.arange(-3, 4))
    i, j = np.unravel_index(near[1:-1, 1:-1].argmax(), (5, 5))
    nine = np.log(near[i : i + 3, j : j + 3] + 1e-30)
    x = (column + j - 2 + _vertex(nine.mean(0))) / (2 * width)
    y = (row + i - 2 + _vertex(nine.mean(1))) / (2 * height)
    return np.array([x, y, near[i + 1, j + 1] / _local_background(spectrum, np.array([x, y]))])


def _fine_power(spectrum: Spectrum, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Values of the fine grid at signed indices; a real image's spectrum is the same at q and -q."""
    row, column = np.meshgrid(rows, columns, indexing="ij")
    row, column = np.where(column < 0, -row, row), np.abs(column)
    return spectrum.fine[row % spectrum.fine.shape[0], np.minimum(column, spectrum.fine.shape[1] - 1)]


def reduced(vectors: np.ndarray) -> np.ndarray:
    """Return the two shortest vectors (rows) that span the same lattice (Gauss's algorithm)."""
    a, b = vectors
    while True:
        if a @ a > b @ b:
            a, b = b, a
        n = np.rint(a @ b / (a @ a))
        if n == 0:
            return np.array([a, b])
        b = b - n * a


def _vertex(values: np.ndarray) -> float:
    curvature = values[0] - 2 * values[1] + values[2]
    return float(np.clip((values[0] - values[2]) / (2 * curvature), -1, 1)) if curvature < 0 else 0.0


def _local_background(spectrum: Spectrum, q: np.ndarray) -> float:
    """The larger of the ring's and the neighbourhood's background: streaks and flares are no spots."""
    height, width = spectrum.power.shape
    column, row = np.rint(q * (width, height) + (width // 2, height // 2)).astype(int)
    rows, columns = np.arange(row - 6, row + 7), np.arange(column - 6, column + 7)
    around = spectrum.power[np.ix_(rows % height, columns % width)]
    around = around[np.maximum(*np.abs(np.mgrid[-6:7, -6:7])) > 2]
    # Rows that jitter draw a spot out into a vertical streak.
    rows = row + np.r_[-14:-5, 6:15]
    streak = spectrum.power[np.ix_(rows % height, (column + np.arange(-1, 2)) % width)]
    local = max(float(np.median(around)), float(np.median(streak))) / np.log(2)
    return max(local, float(spectrum.background(q)))


def _explained(
    spots: np.ndarray, reciprocal: np.ndarray, resolution: np.ndarray, slack: float = 1.0
) -> np.ndarray:
    """Which spots ``[K, 2+]`` lie on the lattice."""
    q = spots[:, :2]
    miss = q - np.rint(q @ np.linalg.inv(reciprocal)) @ reciprocal
    tolerance = TOLERANCE_BINS + TOLERANCE_RELATIVE * np.hypot(*(q / resolution).T)
    return np.hypot(*(miss / resolution).T) < slack * tolerance


def _best_pair(spots: np.ndarray, resolution: np.ndarray) -> np.ndarray | None:
    """The lattice of two spots that explains most; a spot counts by how unlikely it lies there by chance."""
    best, best_score = None, 0.0
    for i, j in itertools.combinations(range(len(spots)), 2):
        pair = spots[[i, j], :2] / resolution
        area = abs(np.linalg.det(pair))
        if area < 0.25 * np.hypot(*pair[0]) * np.hypot(*pair[1]):
            continue
        basis = reduced(pair)
        if np.hypot(*basis[0]) < MIN_PERIODS:
            continue
        basis = basis * resolution
        tolerance = TOLERANCE_BINS + TOLERANCE_RELATIVE * np.hypot(*(spots[:, :2] / resolution).T)
        surprise = -np.log(np.minimum(1, np.pi * tolerance**2 / area))
        on = _explained(spots, basis, resolution)
        score = float((np.log(spots[:, 2]) * surprise)[on].sum())
        if score > best_score:
            best, best_score = basis, score
    return best


def _fit(spectrum: Spectrum, reciprocal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit the vectors to all harmonics that are seen, going outwards as the prediction gets sharper."""
    orders = np.array([hk for hk in itertools.product(range(-8, 9), repeat=2) if hk > (0, 0)])
    spots = np.empty((0, 5))
    for outermost in (2.1, 3.6, 8.0):
        q = orders @ reciprocal
        length = np.hypot(*q.T)
        inside = (length < outermost * np.hypot(*reciprocal[0])) & (np.abs(q).max(1) < 0.48)
        found = np.array([refine_spot(spectrum, x) for x in q[inside]]).reshape(-1, 3)
        spots = np.column_stack([orders[inside], found])
        miss = np.hypot(*((found[:, :2] - q[inside]) / spectrum.resolution()).T)
        spots = spots[(spots[:, 4] > EXPECTED_SIGNIFICANCE) & (miss < 1.1)]
        if len(spots) < 2 or np.linalg.matrix_rank(spots[:, :2]) < 2:
            return reciprocal, spots
        # Strong spots are misplaced by distortion, not by noise: beyond 50 significance buys no more weight.
        weight = np.sqrt(spots[:, 4] / (1 + spots[:, 4] / 50))[:, None]
        reciprocal = np.linalg.lstsq(spots[:, :2] * weight, spots[:, 2:4] * weight, rcond=None)[0]
    return reciprocal, spots


def _finer(spectrum: Spectrum, reciprocal: np.ndarray) -> np.ndarray | None:
    """The basis with first-order spots too weak for the search (fractions 1/2 and 1/3), if they are seen."""
    b = reduced(reciprocal)
    if b[0] @ b[1] > 0:
        b[1] = -b[1]  # hexagonal: 120°, so that (2 b1 + b2) / 3 is the centre of a triangle
    thirds = np.array([(2, 1), (1, 2), (1, -1)]) / 3
    # Fractional orders to look for, and the integer order that completes the basis.
    for fractions, other in (
        (np.array([(1, 1)]) / 2, (1, 0)),
        (np.array([(1, 0)]) / 2, (0, 1)),
        (np.array([(0, 1)]) / 2, (1, 0)),
        (thirds, thirds[1]),
    ):
        q = np.concatenate([fractions, fractions + np.array([1, -1])]) @ b  # each, and one equivalent to it
        if np.hypot(*q.T).min() < MIN_PERIODS * spectrum.resolution().max():
            continue
        if all(refine_spot(spectrum, x)[2] > EXPECTED_SIGNIFICANCE for x in q):
            return reduced(np.array([q[0], np.array(other) @ b]))
    return None
