"""What a materials scientist checks on two-phase micrographs: fractions, correlations, chords and particles.

Images are cut into a bright and a dark phase (`phase_threshold`, `phase_masks`); everything else is measured on
the masks, per image, so that sets are compared by resampling images (`compare_microstructures`). The measures are
those of S. Torquato, *Random Heterogeneous Materials* (Springer 2002), chapter 2. None of them assumes that an
image is periodic. All describe the bright phase; for the dark one give ``~masks``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import fft, ndimage, sparse
from scipy.stats import wasserstein_distance
from skimage.filters import threshold_otsu

from micrographia.errors import UserError
from micrographia.metrics.distances import ENOUGH, rms_difference, shifted_interval
from micrographia.metrics.features import check_images

#: Smallest edge of an image: below, there are no lags to speak of.
SMALLEST_PX = 8
#: Classes of the distribution of the phase fraction over images.
FRACTION_CLASSES = 12
#: Pixels that are worked on at a time.
_PIXELS_AT_ONCE = 2**22


class Directional(NamedTuple):
    """A curve for each image, ``[N, L + 1]`` at 0, 1, ... L px: over all directions, along x, along y."""

    all: np.ndarray
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Particles:
    """Connected pieces of the bright phase that lie wholly inside their image, one entry for each."""

    image: np.ndarray
    """Index of the image, ``[M]``."""
    diameter_px: np.ndarray
    """Diameter of the circle of the same area, ``[M]``."""
    weight: np.ndarray
    """Per pixel of image area, ``[M]``: 1 / (places in the image at which this particle would be whole)."""


def phase_threshold(images: np.ndarray, smoothing_px: float = 1.0) -> float:
    """Find the one grey level that parts the phases of a whole set (Otsu 1979).

    The histogram of all smoothed images together is cut where the variance between the two classes is largest.
    Grey levels beyond the 0.1 % and 99.9 % quantiles count as these.

    Parameters
    ----------
    images : array, ``[N, H, W]``
        The REAL images: generated ones are cut at the threshold of the real ones.
    smoothing_px : float
        Standard deviation of a Gaussian filter against noise.

    Raises
    ------
    UserError
        No stack of finite images of at least `SMALLEST_PX` px, or constant images.

    Notes
    -----
    Otsu's threshold is pulled towards equal shares of the phases when their grey levels overlap. An error that
    real and generated images share cancels in a comparison, but the absolute phase fraction carries it.
    """
    values = _smoothed(check_images(images, SMALLEST_PX), smoothing_px)
    # Every image keeps its weight when the set is thinned to what quantiles need.
    low, high = np.quantile(values.ravel()[:: max(1, values.size // 2_000_000)], [0.001, 0.999])
    if not high > low:
        raise UserError("The images are constant: there are no two phases to part. Check what was read.")
    counts, edges = np.histogram(np.clip(values, low, high), bins=512, range=(float(low), float(high)))
    return float(threshold_otsu(hist=(counts, (edges[1:] + edges[:-1]) / 2)))


def phase_masks(images: np.ndarray, threshold: float | None = None, smoothing_px: float = 1.0) -> np.ndarray:
    """Cut images into phases.

    Parameters
    ----------
    images : array, ``[N, H, W]``
    threshold : float, optional
        One grey level for all, of `phase_threshold`: where grey levels are comparable between images. Without,
        each image is cut at its own Otsu threshold: where brightness and contrast differ from image to image.
        That forces two phases of similar share on each, so it needs images that show enough of both.
    smoothing_px : float
        As for `phase_threshold`.

    Returns
    -------
    bool array, ``[N, H, W]``
        True in the bright phase.

    Raises
    ------
    UserError
        As `phase_threshold`; a constant image only where it would need a threshold of its own.

    Notes
    -----
    What to expect: 9 SEM images of a superalloy whose phases differ by some 1.7 standard deviations of the noise
    were cut into 576 patches of 64 x 64 px. Thresholds of their own agree with masks drawn by hand in 87 % of
    the pixels (bright share 0.476, by hand 0.485), one threshold for all in 59 %, since brightness differs from
    image to image. Noise that survives the smoothing cuts chords first: their distribution is 4.2 px from that
    of the masks drawn by hand with `smoothing_px` 1, and 1.1 px with 2.
    """
    images = check_images(images, SMALLEST_PX)
    if threshold is not None:
        if not np.isfinite(threshold):
            raise UserError(f"The threshold between the phases must be a number, got {threshold}.")
        return _smoothed(images, smoothing_px) > threshold
    constant = np.flatnonzero(np.ptp(images, axis=(1, 2)) == 0)
    if len(constant):
        raise UserError(
            f"{len(constant)} of {len(images)} images are constant, the first is number {constant[0]}: each "
            "needs a threshold of its own here. Drop them, or use one threshold for all."
        )
    return np.stack(
        [_smoothed(x[None], smoothing_px)[0] > phase_threshold(x[None], smoothing_px) for x in images]
    )


def _smoothed(images: np.ndarray, smoothing_px: float) -> np.ndarray:
    if not (np.isfinite(smoothing_px) and smoothing_px >= 0):
        raise UserError(f"The smoothing must be 0 px or more, got {smoothing_px}.")
    return ndimage.gaussian_filter(images, (0, smoothing_px, smoothing_px)) if smoothing_px else images


def _check_masks(masks: np.ndarray) -> np.ndarray:
    masks = np.asarray(masks)
    if masks.ndim != 3 or not len(masks) or min(masks.shape[1:]) < SMALLEST_PX:
        raise UserError(
            f"Expected a stack of masks [N, H, W], N >= 1, of at least {SMALLEST_PX} x {SMALLEST_PX} pixels, "
            f"got shape {masks.shape}; stack masks of one size with numpy.stack."
        )
    if masks.dtype != bool:
        values = masks.ravel()
        if not ((values == 0) | (values == 1)).all():
            raise UserError("Masks hold True and False (or 1 and 0) only; make them with phase_masks.")
        masks = masks.astype(bool)
    return masks


def _longest(masks: np.ndarray, length_px: int | None) -> int:
    half = min(masks.shape[1:]) // 2
    if length_px is None:
        return half
    if not 1 <= length_px <= min(masks.shape[1:]) - 2:
        raise UserError(
            f"The longest length must be from 1 px to 2 px less than the shorter edge "
            f"({min(masks.shape[1:])} px), got {length_px}; half of the edge is a good choice."
        )
    return int(length_px)


def phase_fraction(masks: np.ndarray) -> np.ndarray:
    """Return the share of the bright phase in each image, ``[N]``."""
    return _check_masks(masks).mean((1, 2))


def two_point_correlation(masks: np.ndarray, max_lag_px: int | None = None) -> Directional:
    """Probability that two points at a distance r both lie in the bright phase, S2(r).

    Parameters
    ----------
    masks : bool array, ``[N, H, W]``
    max_lag_px : int, optional
        Largest r, L; half of the shorter edge by default.

    Returns
    -------
    Directional
        ``[N, L + 1]`` at r = 0 ... L px. `all` takes the pairs of all directions whose distance rounds to r,
        each with the same weight; `x` and `y` are pairs along rows and columns. S2(0) is the phase fraction.

    Notes
    -----
    Pairs are counted by Fourier transforms of the masks, padded with zeros so that nothing wraps around, and
    divided by the number of pairs that the image holds at this lag (without bias; Torquato 2002, section 12.6;
    for the transform Berryman 1985).
    """
    masks = _check_masks(masks)
    n, height, width = masks.shape
    reach = _longest(masks, max_lag_px)
    size = tuple(fft.next_fast_len(edge + reach, real=True) for edge in (height, width))
    dy, dx = np.arange(reach + 1), np.arange(-reach, reach + 1)
    pairs = (height - dy)[:, None] * (width - np.abs(dx))[None]
    # The other half plane holds the same pairs the other way round.
    once = (dy[:, None] > 0) | (dx[None] >= 0)
    r = np.rint(np.hypot(dy[:, None], dx[None])).astype(int)
    lag = np.flatnonzero(once & (r <= reach))
    ring = sparse.csr_array((np.ones(len(lag)), (r.ravel()[lag], lag)), shape=(reach + 1, r.size))
    pairs_in_ring = ring @ pairs.ravel()

    every, x, y = (np.empty((n, reach + 1)) for _ in range(3))
    step = max(1, _PIXELS_AT_ONCE // (size[0] * size[1]))
    for k in range(0, n, step):
        spectrum = fft.rfft2(masks[k : k + step].astype(float), size)
        counts = fft.irfft2(spectrum.real**2 + spectrum.imag**2, size)[:, dy][:, :, dx]
        counts = np.rint(counts)  # numbers of pairs are whole
        every[k : k + step] = (ring @ counts.reshape(len(counts), -1).T).T / pairs_in_ring
        x[k : k + step] = counts[:, 0, reach:] / pairs[0, reach:]
        y[k : k + step] = counts[:, :, reach] / pairs[:, reach]
    return Directional(every, x, y)


def lineal_path(masks: np.ndarray, max_px: int | None = None) -> Directional:
    """Probability that a segment of length r lies wholly in the bright phase (Lu and Torquato 1992).

    Parameters
    ----------
    masks : bool array, ``[N, H, W]``
    max_px : int, optional
        Largest r, L; half of the shorter edge by default.

    Returns
    -------
    Directional
        ``[N, L + 1]``: `x` and `y` for segments along rows and columns, `all` for both together. A segment of
        length r runs from a pixel's centre to the r-th next, over r + 1 pixels, so that r = 0 gives the phase
        fraction and a lineal path is nowhere above S2 along the same direction.
    """
    masks = _check_masks(masks)
    reach = _longest(masks, max_px)
    found = []
    for across in (masks, masks.transpose(0, 2, 1)):
        lines, length = across.shape[1:]
        longest = length + 1
        runs = _runs(across)
        histogram = _histogram(runs.image, runs.length, np.ones(len(runs.length)), len(masks), longest)
        # A run of l pixels holds l - r places for a segment over r + 1 pixels.
        places = np.clip(np.arange(longest)[:, None] - np.arange(reach + 1)[None], 0, None)
        found.append((histogram @ places, lines * (length - np.arange(reach + 1))))
    (in_x, of_x), (in_y, of_y) = found
    return Directional((in_x + in_y) / (of_x + of_y), in_x / of_x, in_y / of_y)


def chord_lengths(masks: np.ndarray, max_px: int | None = None) -> Directional:
    """Count chords: the segments into which the boundary of the bright phase cuts lines (Torquato & Lu 1993).

    Parameters
    ----------
    masks : bool array, ``[N, H, W]``
    max_px : int, optional
        Longest chord that is counted, L; half of the shorter edge by default.

    Returns
    -------
    Directional
        ``[N, L + 1]``: number of chords of 0 ... L px per pixel of line in each image. `x` and `y` are chords
        along rows and columns, `all` their mean. Divided by its sum, a mean over images is the chord-length
        density.

    Notes
    -----
    Chords cut by the border are left out. Long chords are cut more often than short ones; therefore each whole
    chord of l px in a line of W px weighs 1 / (W - l - 1), one over the number of its places at which both ends
    are seen (the correction of Miles 1974 and Lantuéjoul 1978). The count is then free of bias.
    """
    masks = _check_masks(masks)
    reach = _longest(masks, max_px)
    found = []
    for across in (masks, masks.transpose(0, 2, 1)):
        lines, length = across.shape[1:]
        runs = _runs(across)
        some = runs.whole & (runs.length <= reach)
        size = runs.length[some]
        found.append(
            _histogram(runs.image[some], size, 1 / (lines * (length - size - 1.0)), len(masks), reach + 1)
        )
    return Directional((found[0] + found[1]) / 2, *found)


class _Runs(NamedTuple):
    image: np.ndarray
    length: np.ndarray
    whole: np.ndarray
    """Neither end at the border."""


def _runs(masks: np.ndarray) -> _Runs:
    """Runs of True along the last axis."""
    n, lines, length = masks.shape
    # False on both sides of each line: runs start and end inside, and never go over to the next line.
    padded = np.zeros((n, lines, length + 2), np.int8)
    padded[:, :, 1:-1] = masks
    step = np.diff(padded.ravel())
    start, end = np.flatnonzero(step == 1), np.flatnonzero(step == -1)
    column = start % (length + 2)
    size = end - start
    return _Runs(start // (lines * (length + 2)), size, (column > 0) & (column + size < length))


def _histogram(image: np.ndarray, bin_: np.ndarray, weight: np.ndarray, n: int, bins: int) -> np.ndarray:
    """Sum of the weights in each bin of each image, ``[n, bins]``."""
    return np.bincount(image * bins + bin_, weight, minlength=n * bins).reshape(n, bins)


def particle_sizes(masks: np.ndarray, smallest_px: int = 4, max_px: int | None = None) -> Particles:
    """Sizes of connected pieces of the bright phase.

    Parameters
    ----------
    masks : bool array, ``[N, H, W]``
    smallest_px : int
        Pieces of fewer pixels are noise and left out.
    max_px : int, optional
        Pieces that are wider or higher are left out; half of the shorter edge by default.

    Returns
    -------
    Particles
        Pixels that share an edge belong together. Particles at the border are left out, and each other one of
        w x h px weighs 1 / ((W - w - 1) (H - h - 1)), one over the number of its places inside the border: large
        particles reach the border more often (Miles 1974; Lantuéjoul 1978). Sums of weights are numbers of
        particles per pixel of area, free of bias.
    """
    masks = _check_masks(masks)
    reach = _longest(masks, max_px)
    n, height, width = masks.shape
    within_image = np.zeros((3, 3, 3), bool)
    within_image[1] = ndimage.generate_binary_structure(2, 1)
    image, area, weight = [], [], []
    step = max(1, _PIXELS_AT_ONCE // (height * width))
    for k in range(0, n, step):
        labels, _ = ndimage.label(masks[k : k + step], within_image)
        boxes = [(z.start, y.start, y.stop, x.start, x.stop) for z, y, x in ndimage.find_objects(labels)]
        z, top, bottom, left, right = np.array(boxes, int).reshape(-1, 5).T
        size = np.bincount(labels.ravel(), minlength=len(boxes) + 1)[1:]
        h, w = bottom - top, right - left
        whole = (top > 0) & (left > 0) & (bottom < height) & (right < width)
        some = whole & (size >= smallest_px) & (np.maximum(h, w) <= reach)
        image.append(z[some] + k)
        area.append(size[some])
        weight.append(1 / ((height - h[some] - 1.0) * (width - w[some] - 1.0)))
    diameter = 2 * np.sqrt(np.concatenate(area) / np.pi)
    return Particles(np.concatenate(image), diameter, np.concatenate(weight))


@dataclass(frozen=True)
class Band:
    """A curve of one set of images with its 95 % band (images resampled)."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Measure:
    """One measure of two sets of images."""

    at: np.ndarray
    """Where the curves are given, ``[L]``: px, or the phase fraction."""
    real: Band
    generated: Band
    difference: float
    """One number for how far the curves are apart; NaN where one of them is not defined."""
    interval: tuple[float, float]
    """Its 95 % interval."""
    floor: float
    """The same number between halves of the real set."""


@dataclass(frozen=True)
class MicrostructureComparison:
    """Two sets of two-phase images, measure by measure."""

    measures: dict[str, Measure]
    """By name: phase_fraction, two_point(_x, _y), lineal_path(_x, _y), chord_length(_x, _y), particle_diameter."""
    real_fraction: np.ndarray
    """Phase fraction of each real image, ``[N]``."""
    generated_fraction: np.ndarray
    fraction_error: float
    """Absolute difference of the mean phase fractions."""
    fraction_error_interval: tuple[float, float]
    fraction_error_floor: float
    real_fraction_interval: tuple[float, float]
    """95 % interval of the mean phase fraction."""
    generated_fraction_interval: tuple[float, float]
    pixel_size_A: float | None = None

    def numbers(self) -> dict[str, Any]:
        """Plain numbers (and intervals) for a file of metrics; what is not defined (no whole particle) is left out."""
        out: dict[str, Any] = {
            "n_real": float(len(self.real_fraction)),
            "n_generated": float(len(self.generated_fraction)),
            "phase_fraction_real": float(self.real_fraction.mean()),
            "phase_fraction_real_interval": self.real_fraction_interval,
            "phase_fraction_generated": float(self.generated_fraction.mean()),
            "phase_fraction_generated_interval": self.generated_fraction_interval,
        }
        for measure, value, low, high, floor in self.table().itertuples(index=False):
            out |= {
                measure: float(value),
                f"{measure}_interval": (low, high),
                f"{measure}_floor": float(floor),
            }
        return {name: value for name, value in out.items() if np.isfinite(value).all()}

    def table(self) -> pd.DataFrame:
        """One row per number: measure, value, its 95 % interval, floor (between halves of the real set)."""
        error = self.fraction_error, *self.fraction_error_interval, self.fraction_error_floor
        rows = [("phase_fraction_error", *error)]
        rows += [
            (f"{name}_{_ending(name)}", m.difference, *m.interval, m.floor)
            for name, m in self.measures.items()
        ]
        return pd.DataFrame(rows, columns=["measure", "value", "low", "high", "floor"])


#: Measures that are a probability at every length; the others are distributions.
_PROBABILITIES = ("two_point", "lineal_path")


def _ending(name: str) -> str:
    """What the one number of a measure is called."""
    if name.startswith(_PROBABILITIES):
        return "rms"
    return "distance" if name == "phase_fraction" else "distance_px"


def compare_micrographs(
    real: np.ndarray,
    generated: np.ndarray,
    per_image: bool = False,
    smoothing_px: float = 1.0,
    pixel_size_A: float | None = None,
    max_px: int | None = None,
    smallest_px: int = 4,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> MicrostructureComparison:
    """Compare real and generated images of two phases: `phase_masks`, then `compare_microstructures`.

    Parameters
    ----------
    real, generated : array, ``[N, H, W]`` and ``[M, H, W]``
        Of one pixel size and one intensity scale.
    per_image : bool
        Cut each image at its own threshold, in both sets, because grey levels differ from image to image. By
        default the one threshold of the real images cuts all; it cuts constant images in any case.
    smoothing_px : float
        As for `phase_threshold`.
    """
    real, generated = check_images(real, SMALLEST_PX), check_images(generated, SMALLEST_PX)
    common = phase_threshold(real, smoothing_px)

    def masks(images: np.ndarray) -> np.ndarray:
        out = phase_masks(images, common, smoothing_px)
        own = np.ptp(images, axis=(1, 2)) > 0
        if per_image and own.any():
            out[own] = phase_masks(images[own], None, smoothing_px)
        return out

    real, generated = masks(real), masks(generated)
    return compare_microstructures(real, generated, pixel_size_A, max_px, smallest_px, n_bootstrap, seed)


def compare_microstructures(
    real: np.ndarray,
    generated: np.ndarray,
    pixel_size_A: float | None = None,
    max_px: int | None = None,
    smallest_px: int = 4,
    n_bootstrap: int = 200,
    seed: int = 0,
    splits: int = 20,
) -> MicrostructureComparison:
    """Compare two sets of phase masks, with the noise floor of every number and bands for every curve.

    Parameters
    ----------
    real, generated : bool array, ``[N, H, W]`` and ``[M, H, W]``
        True in the bright phase; of one pixel size.
    pixel_size_A : float, optional
        Only for the axes of figures: all numbers are in pixels.
    max_px : int, optional
        Largest lag, chord and particle; half of the shortest edge by default.
    smallest_px : int
        Of particles, in pixels of area.
    n_bootstrap : int
        Resamples of the images of each set for the bands and intervals.
    splits : int
        Random halvings of the real set for the noise floors (their mean). Where halves have fewer images than the
        sets, floors are on the high side; where the generated set is smaller than they are, on the low side.

    Returns
    -------
    MicrostructureComparison
        The one number of each measure: for the phase fraction, the difference of the means and the Wasserstein
        distance of its distributions over the images; for S2 and the lineal path, the root mean square over r
        of the difference of the mean curves; for chords and particle diameters (in classes of 1 px) the
        Wasserstein distance of the distributions in px.

    Raises
    ------
    UserError
        Fewer than 8 masks in a set, or what `phase_fraction` refuses.

    Notes
    -----
    Resampling makes sets look less alike: the bootstrap distribution of a number is shifted to it before its quantiles
    are taken. Chords and particles have no interval where fewer than `ENOUGH` images of a set hold any. Patches of one
    image are not independent: bands, intervals and floors are then too narrow.
    """
    real, generated = _check_masks(real), _check_masks(generated)
    if min(len(real), len(generated)) < 8:
        raise UserError(
            f"Comparing microstructures needs at least 8 images in each set, got {len(real)} and {len(generated)}."
        )
    if pixel_size_A is not None and not (np.isfinite(pixel_size_A) and pixel_size_A > 0):
        raise UserError(
            f"The pixel size must be a positive number of Å, got {pixel_size_A}; or leave it out."
        )
    reach = min(_longest(x, max_px) for x in (real, generated))
    rng = np.random.default_rng(seed)
    counts = [rng.multinomial(len(x), np.full(len(x), 1 / len(x)), n_bootstrap) for x in (real, generated)]
    halves = np.array([rng.permutation(len(real)) < len(real) // 2 for _ in range(splits)])

    fractions = phase_fraction(real), phase_fraction(generated)
    means = [w @ x[:, None] / len(x) for x, w in zip(fractions, counts, strict=True)]
    intervals = [_quantiles(m) for m in means]
    error = float(abs(fractions[0].mean() - fractions[1].mean()))
    between_halves = [(fractions[0][half], fractions[0][~half]) for half in halves]
    low, high = np.quantile(np.concatenate(fractions), [0, 1]) + np.array([-0.005, 0.005])
    edges = np.linspace(low, high, FRACTION_CLASSES + 1)
    bands = [
        _band(np.eye(FRACTION_CLASSES)[np.digitize(x, edges) - 1] / np.diff(edges), w, density=False)[0]
        for x, w in zip(fractions, counts, strict=True)
    ]
    distance = float(wasserstein_distance(*fractions))
    resampled = [
        wasserstein_distance(*fractions, u_weights=one, v_weights=two)
        for one, two in zip(*counts, strict=True)
    ]
    measures = {
        "phase_fraction": Measure(
            (edges[1:] + edges[:-1]) / 2,
            bands[0],
            bands[1],
            distance,
            shifted_interval(distance, np.array(resampled), 0.0),
            float(np.mean([wasserstein_distance(*pair) for pair in between_halves])),
        )
    }
    for (name, a), b in zip(
        _curves(real, reach, smallest_px).items(),
        _curves(generated, reach, smallest_px).values(),
        strict=True,
    ):
        density = not name.startswith(_PROBABILITIES)
        apart = _earth_movers if density else rms_difference
        (one, ones), (two, twos) = _band(a, counts[0], density), _band(b, counts[1], density)
        floors = apart(_mean_curve(a, halves, density), _mean_curve(a, ~halves, density))
        floor = floors[np.isfinite(floors)].mean() if np.isfinite(floors).any() else np.nan
        difference = float(apart(one.value, two.value))
        # Of densities a whole set may rest on one image that holds a particle at all.
        telling = min((x.sum(axis=1) > 0).sum() for x in (a, b)) if density else ENOUGH
        draws = apart(ones, twos) if telling >= ENOUGH else np.empty(0)
        interval = shifted_interval(difference, draws, 0.0)
        measures[name] = Measure(np.arange(reach + 1.0), one, two, difference, interval, float(floor))
    return MicrostructureComparison(
        measures,
        *fractions,
        fraction_error=error,
        fraction_error_interval=shifted_interval(error, np.abs(means[0] - means[1])[:, 0], 0.0),
        fraction_error_floor=float(np.mean([abs(a.mean() - b.mean()) for a, b in between_halves])),
        real_fraction_interval=(float(intervals[0][0][0]), float(intervals[0][1][0])),
        generated_fraction_interval=(float(intervals[1][0][0]), float(intervals[1][1][0])),
        pixel_size_A=pixel_size_A,
    )


def _curves(masks: np.ndarray, reach: int, smallest_px: int) -> dict[str, np.ndarray]:
    """Every curve of every image, ``[N, reach + 1]`` by name."""
    found = {
        "two_point": two_point_correlation(masks, reach),
        "lineal_path": lineal_path(masks, reach),
        "chord_length": chord_lengths(masks, reach),
    }
    curves = {
        name + ending: curve
        for name, directions in found.items()
        for ending, curve in zip(("", "_x", "_y"), directions, strict=True)
    }
    p = particle_sizes(masks, smallest_px, reach)
    # A particle that fits a square of `reach` px has no larger diameter than sqrt(4 / pi) of that.
    size = np.minimum(np.rint(p.diameter_px).astype(int), reach)
    return curves | {"particle_diameter": _histogram(p.image, size, p.weight, len(masks), reach + 1)}


def _mean_curve(curves: np.ndarray, counts: np.ndarray, density: bool) -> np.ndarray:
    """Mean of curves ``[N, L]`` of which each occurs so often, ``[B, N]``; a density sums to 1, or is NaN."""
    total = counts.astype(float) @ curves
    by = total.sum(1, keepdims=True) if density else counts.sum(1, keepdims=True)
    return np.divide(total, by, out=np.full(total.shape, np.nan), where=by > 0)


def _band(curves: np.ndarray, counts: np.ndarray, density: bool) -> tuple[Band, np.ndarray]:
    """The mean curve with its band, and that of every resample, ``[B, L]``."""
    value = _mean_curve(curves, np.ones((1, len(curves))), density)[0]
    draws = _mean_curve(curves, counts, density)
    return Band(value, *_quantiles(draws)), draws


def _quantiles(draws: np.ndarray) -> np.ndarray:
    """2.5 % and 97.5 % of each column; NaN without draws."""
    draws = draws[np.isfinite(draws).all(1)]
    return np.quantile(draws, [0.025, 0.975], axis=0) if len(draws) else np.full((2, draws.shape[1]), np.nan)


def _earth_movers(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Wasserstein distance of two densities over classes of 1 px."""
    return np.abs(np.cumsum(a - b, axis=-1)).sum(-1)
