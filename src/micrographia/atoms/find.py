"""Finding atoms: maxima of a band-passed image, or of the probability maps of a network.

An atom is a spot of known width, so the image is filtered with a kernel of that width and zero sum, which
takes out noise finer and background broader than an atom: minus the scale-normalised Laplacian of a Gaussian
(``"log"``; Lindeberg, Int. J. Comput. Vis. 30, 79 (1998)), the difference of two Gaussians (``"dog"``), or a
Gaussian minus a five times wider one (``"maxima"``: nearly the smoothed image itself, for isolated atoms).
Local maxima are taken from the highest down, each clearing a disc around itself: a square window, as a maximum
filter has, would lose atoms to the slope of a neighbour. Even so, the neighbours of an atom that outshines all
others (silicon in graphene) are displaced on its slope, or no maxima: it is taken out of the image, and they are looked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu

from micrographia.atoms.frames import Images, as_frames
from micrographia.errors import UserError
from micrographia.sites import concat_sites, make_sites

Method = Literal["log", "dog", "maxima"]
#: Outer over inner width of the difference of Gaussians; 1.6 is nearest to the Laplacian (Marr and Hildreth 1980).
_WIDER = {"dog": 1.6, "maxima": 5.0}
#: Maxima of pure noise, cleared within twice the scale, are about 2 standard deviations high in the median.
_STANDS_OUT, _CERTAIN = 3.0, 5.0
#: Below this fraction of the typical height, a maximum is not taken for an atom.
_FAINTEST = 0.4
#: An atom outshines the others at so many times the upper quartile of their heights; its slope reaches so many scales.
#: What is left of it, where it is no round spot, is less than the last of these times its height.
_OUTSHINES, _SLOPE, _REMNANT = 2.0, 5.0, 0.05


def find_atoms(
    images: Images,
    scale_A: float = 0.4,
    min_distance_A: float | None = None,
    threshold: float | None = None,
    method: Method = "log",
    dark: bool = False,
    kind: str = "atom",
    pixel_size_A: float | None = None,
) -> pd.DataFrame:
    """Find the atoms in one image, or in every frame of several.

    Parameters
    ----------
    images : Micrograph, sequence of Micrographs, or array ``[H, W]`` or ``[N, H, W]``
    scale_A : float
        Standard deviation of an atom in the image, Å: a third of the shortest distance between atoms is a good
        guess (graphene 0.4, MoS2 0.5).
    min_distance_A : float, optional
        Of two maxima closer than this the higher stays; twice the scale if not given.
    threshold : float, optional
        Least height of a maximum of the filtered image; :func:`automatic_threshold` for each frame if not given.
    method : ``"log"``, ``"dog"`` or ``"maxima"``
    dark : bool
        Atoms are darker than their surroundings (bright-field, phase contrast).
    kind : str
        What the sites are called.
    pixel_size_A : float, optional
        For arrays.

    Returns
    -------
    DataFrame
        Sites table, highest first within a frame, with the columns ``frame`` and ``height`` (of the filtered
        image). ``confidence`` is height / (height + threshold): 1/2 at the threshold. Atoms within one scale of
        the border are left out, since half of what tells them is not in the image.

    Raises
    ------
    UserError
        The scale does not fit the image or the sampling, an image is constant, or no pixel size is known.
    """
    frames = as_frames(images, pixel_size_A)
    if method not in ("log", "dog", "maxima"):
        raise UserError(f"method = '{method}' is not possible; choose log, dog or maxima.")
    distance_A = 2 * scale_A if min_distance_A is None else min_distance_A
    if not (scale_A > 0 and distance_A > 0):
        raise UserError(f"scale_A = {scale_A} and min_distance_A = {distance_A} must be greater than 0 Å.")
    tables = []
    for i, name in enumerate(frames.names):
        data, sigma = frames[i], scale_A / frames.pixel_sizes_A[i]
        if len(data) > 1:
            raise UserError(f"{name} has {len(data)} channels; find atoms in one, or use sites_from_maps.")
        if sigma < 0.5 or 8 * sigma > min(data.shape[1:]):
            raise UserError(
                f"{name}: a scale of {scale_A} Å is {sigma:.2g} px, for an image of {data.shape[2]} x "
                f"{data.shape[1]} px; it must be at least half a pixel and at most an eighth of the image. "
                "Check the pixel size, or change scale_A."
            )
        image = -data[0] if dark else data[0]
        if np.ptp(image) == 0:
            raise UserError(f"{name}: the image is constant: there are no atoms in it.")
        response = _filter(image, sigma, method)
        noise = _response_noise(image, sigma, method)
        apart = distance_A / frames.pixel_sizes_A[i]
        spots = _maxima(response, apart, sigma)
        least = automatic_threshold(spots[2], noise) if threshold is None else threshold
        spots = _by_the_brightest(image, spots[:, spots[2] >= least], least, apart, sigma, method)
        x, y, height = spots[:, np.argsort(-spots[2], kind="stable")]
        confidence = height / (height + max(least, 1e-30))
        tables.append(make_sites(name, x, y, kind, confidence).assign(frame=i, height=height))
    return concat_sites(tables) if any(map(len, tables)) else tables[0]


def automatic_threshold(height: np.ndarray, noise: float) -> float:
    """Choose the least height of an atom from the heights of all maxima.

    The heights are split in two classes (Otsu, on their logarithms), which are distinct where the median of the
    lower is below 0.45 times that of the upper one.

    1. Of distinct classes the lower one is noise or the ripples between atoms if its median is below three
       standard deviations of the noise: the split is the threshold. Otherwise it is a lighter species.
    2. Where most of all maxima do not stand out from the noise, only those of five standard deviations count.
    3. Otherwise nearly all maxima are atoms (in a dense lattice they leave the noise no room), and 0.4 times the
       median height, that of the lighter species if there are two, is the threshold.

    Parameters
    ----------
    height : float array ``[M]``, more than 0
    noise : float
        Standard deviation of the filtered image through noise alone.
    """
    if not len(height):
        return _CERTAIN * noise
    floor = max(noise, 1e-3 * float(height.max()))
    seen = np.log(np.maximum(height, floor))
    split = float(np.exp(threshold_otsu(seen))) if np.ptp(seen) > 0 else 0.0
    upper = np.median(height[height > split])
    lower = np.median(height[height <= split]) if (height <= split).any() else upper
    distinct = lower < 0.45 * upper
    if distinct and lower < max(_STANDS_OUT * noise, 0.02 * upper) and upper >= _STANDS_OUT * noise:
        return split
    typical = float(np.median(height))
    if typical < _STANDS_OUT * noise:
        return _CERTAIN * noise
    return _FAINTEST * min(typical, float(lower) if distinct else typical)


def sites_from_maps(
    maps: np.ndarray,
    kinds: Sequence[str],
    radius_A: float,
    maps_pixel_size_A: float,
    pixel_size_A: float | None = None,
    threshold: float = 0.5,
    image: str = "image",
) -> pd.DataFrame:
    """Turn the probability maps of one image, a map per species, into a sites table.

    Parameters
    ----------
    maps : float array ``[K, H, W]`` in [0, 1]
        For example the mean over the members of ``DefectFinder.confidence_maps``.
    kinds : K names
    radius_A : float
        Physical radius of an atom: the maps are smoothed a third as widely, and of maxima, of whatever species,
        closer than this the most probable stays.
    maps_pixel_size_A : float
        Sampling of the maps.
    pixel_size_A : float, optional
        Sampling of the image whose pixels the table counts in; that of the maps if not given.
    threshold : float
        Least probability.

    Raises
    ------
    UserError
        Shapes do not fit, or the maps are not probabilities.
    """
    maps = np.asarray(maps, dtype=np.float32)
    if maps.ndim != 3 or len(maps) != len(kinds):
        raise UserError(
            f"Expected maps [K, H, W] of the {len(kinds)} kinds {', '.join(kinds)}, got shape {maps.shape}; "
            "average over the members of an ensemble first."
        )
    if not (np.isfinite(maps).all() and maps.min() > -1e-3 and maps.max() < 1 + 1e-3):
        raise UserError(f"{image}: the maps hold values that are no probabilities (0 to 1).")
    if not (radius_A > 0 and maps_pixel_size_A > 0):
        raise UserError("radius_A and maps_pixel_size_A must be greater than 0 Å.")
    radius_px = radius_A / maps_pixel_size_A
    tables = []
    for kind, probability in zip(kinds, maps, strict=True):
        smooth = ndimage.gaussian_filter(probability, 0.35 * radius_px, mode="nearest")
        x, y, _ = _maxima(smooth, radius_px, 0.0)
        here = probability[y.round().astype(int), x.round().astype(int)]
        tables.append(
            make_sites(image, x[here >= threshold], y[here >= threshold], kind, here[here >= threshold])
        )
    table = concat_sites(tables)
    kept = _apart(table[["x_px", "y_px"]].to_numpy(float), table["confidence"].to_numpy(float), radius_px)
    zoom = maps_pixel_size_A / (pixel_size_A or maps_pixel_size_A)
    table = table.iloc[kept].reset_index(drop=True)
    return table.assign(image=image, x_px=table["x_px"] * zoom, y_px=table["y_px"] * zoom)


def _filter(image: np.ndarray, sigma: float, method: Method) -> np.ndarray:
    if method == "log":
        return -(sigma**2) * ndimage.gaussian_laplace(image, sigma, mode="nearest")
    wide = ndimage.gaussian_filter(image, _WIDER[method] * sigma, mode="nearest")
    return ndimage.gaussian_filter(image, sigma, mode="nearest") - wide


def _by_the_brightest(
    image: np.ndarray, spots: np.ndarray, least: float, apart: float, sigma: float, method: Method
) -> np.ndarray:
    """Spots (x, y, height; ``[3, n]``) with those on the slopes of the few brightest found anew, or at all.

    On a slope a maximum is displaced, or there is none. Each of the brightest is taken out of the image: the median
    of every circle around it, which three or four neighbours on the circle do not move.
    """
    height = spots[2]
    bright = height > _OUTSHINES * np.quantile(height, 0.75) if len(height) else height > 0
    if not bright.any():
        return spots
    rest, reach = image.astype(float), _SLOPE * sigma
    for middle in spots[:2, bright].T:
        left, top = np.maximum((middle - reach).astype(int), 0)
        right, bottom = (middle + reach).astype(int) + 2
        part = rest[top:bottom, left:right]
        rows, columns = np.indices(part.shape)
        distance = np.hypot(columns + left - middle[0], rows + top - middle[1])
        circle = np.rint(distance).astype(int)
        radii = np.unique(circle[distance <= reach])
        falling = np.minimum.accumulate(ndimage.median(part, circle, radii))
        part -= np.interp(distance, radii, falling - falling[-1])
    anew = _maxima(_filter(rest, sigma, method), apart, sigma)
    tree = cKDTree(spots[:2, bright].T)
    far, nearest = tree.query(anew[:2].T)
    beside = (far > apart) & (far <= reach)
    beside &= anew[2] >= np.maximum(least, _REMNANT * height[bright][nearest])
    kept = bright | (tree.query(spots[:2].T)[0] > reach)
    return np.concatenate([spots[:, kept], anew[:, beside]], axis=1)


def _response_noise(image: np.ndarray, sigma: float, method: Method) -> float:
    """Standard deviation of the filtered image, were there only the image's white noise.

    The noise is taken from differences of neighbouring pixels along both axes, in which no atom is left.
    """
    mixed = np.diff(np.diff(image, axis=0), axis=1) / 2
    white = float(np.median(np.abs(mixed))) / 0.6745
    reach = int(np.ceil(5 * sigma * _WIDER.get(method, 1.0)))
    impulse = np.zeros((2 * reach + 1, 2 * reach + 1))
    impulse[reach, reach] = 1
    return white * float(np.sqrt((_filter(impulse, sigma, method) ** 2).sum()))


def _maxima(image: np.ndarray, apart_px: float, border_px: float) -> np.ndarray:
    """Positive local maxima (x, y, height; ``[3, n]``), the highest first, no two closer than `apart_px`.

    Positions are the vertices of the parabolas through the maximum and its neighbours.
    """
    top = peak_local_max(image, min_distance=1, threshold_abs=0, exclude_border=1)
    row, col = top.T
    height = image[row, col].astype(float)
    keep = _apart(top.astype(float), height, apart_px)
    row, col, height = row[keep], col[keep], height[keep]
    y = row + _vertex(lambda d: image[row + d, col])
    x = col + _vertex(lambda d: image[row, col + d])
    rows, columns = image.shape
    inside = (np.minimum(x, columns - 1 - x) >= border_px) & (np.minimum(y, rows - 1 - y) >= border_px)
    return np.stack([x, y, height])[:, inside]


def _vertex(value: Callable[[int], np.ndarray]) -> np.ndarray:
    before, here, after = (value(d).astype(float) for d in (-1, 0, 1))
    bend = 2 * here - before - after
    return np.divide(0.5 * (after - before), bend, out=np.zeros_like(bend), where=bend > 0).clip(-0.5, 0.5)


def _apart(points: np.ndarray, height: np.ndarray, distance: float) -> np.ndarray:
    """Indices of the points that stay, highest first, when each clears the disc around itself."""
    order = np.argsort(-height, kind="stable")
    points = points[order]
    keep = np.ones(len(points), dtype=bool)
    if len(points):
        for i, near in enumerate(cKDTree(points).query_ball_point(points, distance)):
            if keep[i]:
                keep[[j for j in near if j > i]] = False
    return order[keep]
