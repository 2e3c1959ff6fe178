"""Label fidelity: does a translation keep every atom where it was, and every labelled defect what it was?

A translation that looks real may still move atoms, fill vacancies in or invent new ones; labels then lie.
Both
questions are answered at known sites by the same two measurements on the image before and after, both freed
of their slow background first (less a Gaussian mean four times as wide as the mask):

Position
    The maximum of the image correlated with a Gaussian of width `mask_A` (the matched filter of a round
    column), found to sub-pixel accuracy by Newton steps that start at the labelled position. The displacement
    is the difference of the two maxima; nothing else is subtracted, so a common shift counts.

Contrast
    I(s) = the image under that same Gaussian at the site s; t(s) = I(s) - median of I over the `neighbours`
    nearest intact sites of the same image. So intact sites have t near 0, vacancies negative and bright
    dopants positive t. The two images differ in gain; the gain a of each pair is the regression of the
    filtered image after on the filtered image before, and t_after / a is in the units of t_before. A pair
    without positive correlation kept no contrast: t_after = 0 everywhere. The threshold lies midway between
    the medians of t_before over all intact sites and over all defects. A defect whose t_after / a lies on the
    intact side was *filled in*; an intact site on the defect side was *invented*.

Noise in the images after displaces maxima and misplaces contrasts even if the translation is perfect. The
same numbers for a reference (the images before, with noise of the same strength from a degradation that
cannot move labels) show how much that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from micrographia.errors import UserError
from micrographia.metrics.features import check_images, check_pixel_size

_NEWTON_STEPS = 12


@dataclass(frozen=True)
class LabelFidelity:
    """What a translation did to the labels.

    Parameters
    ----------
    median_displacement_pm, displacement_95_pm : float
        Median and 95 % quantile of the displacement of atoms.
    shift_pm : (float, float)
        Median displacement vector (x, y): a common shift, for example by half a pixel.
    lost_atoms : float
        Fraction of atoms without a maximum within the search radius after the translation (not among the
        displacements).
    n_atoms, n_intact, n_defects : int
        Measured sites (those too close to the edge are not).
    contrast_before, contrast_after : float
        Median of t over the defects less that over the intact sites, in units of the image before. NaN
        without defects.
    contrast_kept : float
        Their ratio: 1 if labelled defects keep their contrast, 0 if they vanish.
    filled_in, invented : float
        Fraction of defects that look intact, and of intact sites that look like defects, after.
    filled_in_before, invented_before : float
        The same in the images before: how well the measurement separates the classes at all.
    reference : LabelFidelity or None
        The same for the reference images.
    """

    median_displacement_pm: float
    displacement_95_pm: float
    shift_pm: tuple[float, float]
    lost_atoms: float
    n_atoms: int
    n_intact: int
    n_defects: int
    contrast_before: float
    contrast_after: float
    contrast_kept: float
    filled_in: float
    invented: float
    filled_in_before: float
    invented_before: float
    reference: LabelFidelity | None = None


def label_fidelity(
    before: np.ndarray,
    after: np.ndarray,
    atoms: Sequence[np.ndarray],
    intact: Sequence[np.ndarray],
    defects: Sequence[np.ndarray],
    pixel_size_A: float,
    mask_A: float = 0.4,
    search_A: float = 0.6,
    neighbours: int = 6,
    reference: np.ndarray | None = None,
) -> LabelFidelity:
    """Measure how well a translation keeps positions and labelled contrasts.

    Parameters
    ----------
    before, after : array, ``[N, H, W]``
        The (noise-free) labelled images and their translations.
    atoms : list of N arrays ``[M, 2]``
        x_px, y_px of the columns whose displacement is measured.
    intact, defects : list of N arrays ``[K, 2]``
        Intact columns of one sublattice, and the labelled defects on it, of one kind (call once per kind: the
        two medians must mean something). Where a defect replaces empty support (single atoms), give empty
        positions as intact.
    pixel_size_A : float
    mask_A : float
        Standard deviation of the Gaussian in Å, about that of a column's image; at least 0.8 px is used.
    search_A : float
        A maximum further than this from the label is not that atom's; less than half the distance of columns.
    neighbours : int
        Intact sites that a site is compared with.
    reference : array, ``[N, H, W]``, optional
        `before` with noise as strong as in `after`, see the module.

    Raises
    ------
    UserError
        Shapes or lengths disagree, images are not finite, or there are no measurable sites.
    """
    check_pixel_size(pixel_size_A)
    before, after = check_images(before), check_images(after)
    if before.shape != after.shape:
        raise UserError(
            f"Images before {before.shape} and after {after.shape} the translation differ in shape."
        )
    for name, sites in (("atoms", atoms), ("intact", intact), ("defects", defects)):
        if len(sites) != len(before):
            raise UserError(
                f"{name} has {len(sites)} lists of positions for {len(before)} images; give one each."
            )
    sigma = max(mask_A / pixel_size_A, 0.8)

    shifts, searched = [], 0
    t_before: dict[str, list[np.ndarray]] = {"intact": [], "defects": []}
    t_after: dict[str, list[np.ndarray]] = {"intact": [], "defects": []}
    for one, two, *sites in zip(before, after, atoms, intact, defects, strict=True):
        atom, whole, defect = (_inside(xy, one.shape, sigma) for xy in sites)
        one, two = _flattened(one, sigma), _flattened(two, sigma)
        start = find_maxima(one, atom, sigma, search_A / pixel_size_A)
        found = np.isfinite(start).all(axis=1)
        end = find_maxima(two, start[found], sigma, search_A / pixel_size_A)
        searched += int(found.sum())
        shifts.append((end - start[found]) * pixel_size_A * 100)
        if len(whole) < 3:  # nothing to compare a site with
            continue
        contrasts = _relative_intensity(one, two, whole, defect, sigma, neighbours)
        for name, (t, u) in zip(("intact", "defects"), contrasts, strict=True):
            t_before[name].append(t)
            t_after[name].append(u)

    if not searched:
        raise UserError(
            "None of the atoms is a maximum of the images before: check that atoms are x_px, y_px of bright "
            "columns, at least 3 mask widths inside the image, and that the pixel size is right."
        )
    shift = np.concatenate(shifts)
    shift = shift[np.isfinite(shift).all(axis=1)]
    lost = 1 - len(shift) / searched
    if not len(shift):
        shift = np.full((1, 2), np.nan)
    displacement = np.hypot(*shift.T)
    contrast = _contrast(
        {k: _join(v) for k, v in t_before.items()}, {k: _join(v) for k, v in t_after.items()}
    )
    return LabelFidelity(
        median_displacement_pm=float(np.median(displacement)),
        displacement_95_pm=float(np.quantile(displacement, 0.95)),
        shift_pm=(float(np.median(shift[:, 0])), float(np.median(shift[:, 1]))),
        lost_atoms=lost,
        n_atoms=searched,
        **contrast,
        reference=None
        if reference is None
        else label_fidelity(
            before, reference, atoms, intact, defects, pixel_size_A, mask_A, search_A, neighbours
        ),
    )


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


def _flattened(image: np.ndarray, sigma: float) -> np.ndarray:
    """The image without what is slow on the scale of a column: contamination, thickness."""
    image = image.astype(float)
    return image - ndimage.gaussian_filter(image, 4 * sigma, mode="reflect")


def _inside(sites, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Sites whose Gaussian lies inside the image, ``[M, 2]``."""
    sites = np.asarray(sites, float).reshape(-1, 2)
    margin = np.ceil(3 * sigma)
    return sites[((sites >= margin) & (sites <= np.array(shape[::-1]) - 1 - margin)).all(axis=1)]


def find_maxima(image: np.ndarray, start: np.ndarray, sigma_px: float, search_px: float) -> np.ndarray:
    """Maxima of the image correlated with a Gaussian, nearest to the starting points.

    Parameters
    ----------
    image : array, ``[H, W]``
    start : array, ``[M, 2]``
        x_px, y_px.
    sigma_px : float
        Standard deviation of the Gaussian.
    search_px : float
        Largest distance from the start.

    Returns
    -------
    array, ``[M, 2]``
        x_px, y_px; NaN where there is no maximum within the search radius.

    Notes
    -----
    With g the Gaussian around c, C(c) = sum I g has the gradient sum I g (p - c) / sigma^2 and the Hessian
    sum I g ((p - c)(p - c)^T / sigma^2 - 1) / sigma^2, which Newton's method takes from the pixels
    themselves: no grid of the correlation, no interpolation.
    """
    start = np.asarray(start, float).reshape(-1, 2)
    radius = int(np.ceil(4 * sigma_px + search_px))
    # Reflection keeps sites near the edge usable.
    padded = np.pad(np.asarray(image, float), radius, mode="reflect" if min(image.shape) > radius else "edge")
    offset = np.arange(-radius, radius + 1)
    origin = np.rint(start).astype(int)
    patch = padded[
        (origin[:, 1, None] + radius + offset)[:, :, None], (origin[:, 0, None] + radius + offset)[:, None, :]
    ]
    patch = patch - patch.mean(axis=(1, 2), keepdims=True)

    def derivatives(centre: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Gradient ``[M, 2]`` and Hessian xx, xy, yy ``[M]`` of C, times sigma and sigma^2."""
        factors = []
        for axis in (0, 1):
            u = (offset - (centre[:, axis] - origin[:, axis])[:, None]) / sigma_px
            g = np.exp(-(u**2) / 2)
            factors.append(np.stack([g, g * u, g * (u**2 - 1)], axis=1))  # order of the derivative
        m = np.einsum("mab,mia,mjb->mij", patch, factors[1], factors[0], optimize=True)
        return np.stack([m[:, 0, 1], m[:, 1, 0]], axis=1), m[:, 0, 2], m[:, 1, 1], m[:, 2, 0]

    centre = start.copy()
    step = np.zeros_like(centre)
    maximum = np.zeros(len(centre), bool)
    for _ in range(_NEWTON_STEPS):
        gradient, xx, xy, yy = derivatives(centre)
        determinant = xx * yy - xy**2
        maximum = (xx < 0) & (determinant > 0)
        safe = np.where(maximum, determinant, 1.0)
        newton = -np.stack(
            [yy * gradient[:, 0] - xy * gradient[:, 1], xx * gradient[:, 1] - xy * gradient[:, 0]], 1
        )
        length = np.maximum(np.linalg.norm(gradient, axis=1), 1e-300)
        # Where the surface is not yet dome-shaped, walk uphill.
        step = np.where(maximum[:, None], newton / safe[:, None], 0.5 * gradient / length[:, None]) * sigma_px
        step *= np.minimum(1, 0.5 * sigma_px / np.maximum(np.linalg.norm(step, axis=1), 1e-300))[:, None]
        centre = centre + step
        centre = np.clip(centre, start - search_px - 1, start + search_px + 1)
    good = maximum & (np.linalg.norm(step, axis=1) < 0.01)
    good &= np.linalg.norm(centre - start, axis=1) <= search_px
    return np.where(good[:, None], centre, np.nan)


def _relative_intensity(one, two, intact, defects, sigma: float, neighbours: int):
    """((t_before, t_after / a) at intact sites, the same at defects) of one pair of images."""
    tree = cKDTree(intact)
    filtered = [ndimage.gaussian_filter(image, sigma, mode="reflect", truncate=5) for image in (one, two)]
    a, b = (f - f.mean() for f in filtered)
    variance = float((a**2).mean())
    gain = float((a * b).mean()) / variance if variance > 0 else 0.0

    out = []
    for sites in (intact, defects):
        own = sites is intact
        if not len(sites):
            out.append((np.zeros(0), np.zeros(0)))
            continue
        k = min(neighbours + own, len(intact))
        _, near = tree.query(sites, k)
        near = near.reshape(len(sites), k)[:, int(own) :]  # a site is its own nearest neighbour
        t = []
        for f in filtered:
            level = ndimage.map_coordinates(f, intact[:, ::-1].T, order=3, mode="reflect")
            value = ndimage.map_coordinates(f, sites[:, ::-1].T, order=3, mode="reflect")
            t.append(value - np.median(level[near], axis=1))
        out.append((t[0], t[1] / gain if gain > 0 else np.zeros(len(sites))))
    return out


def _contrast(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict:
    nan = float("nan")
    counts = {"n_intact": len(before["intact"]), "n_defects": len(before["defects"])}
    if not counts["n_intact"] or not counts["n_defects"]:
        names = ("contrast_before", "contrast_after", "contrast_kept", "filled_in", "invented")
        return counts | dict.fromkeys((*names, "filled_in_before", "invented_before"), nan)
    whole, defect = (float(np.median(before[name])) for name in ("intact", "defects"))
    middle, sign = (whole + defect) / 2, np.sign(whole - defect)
    contrast_after = float(np.median(after["defects"]) - np.median(after["intact"]))

    def misplaced(t: dict[str, np.ndarray]) -> tuple[float, float]:
        # On the threshold itself (a pair without any contrast when medians coincide) a site looks intact.
        looks_intact = {name: sign * (values - middle) >= 0 for name, values in t.items()}
        return float(looks_intact["defects"].mean()), float(1 - looks_intact["intact"].mean())

    filled_in, invented = misplaced(after)
    filled_in_before, invented_before = misplaced(before)
    return counts | {
        "contrast_before": defect - whole,
        "contrast_after": contrast_after,
        "contrast_kept": contrast_after / (defect - whole) if defect != whole else nan,
        "filled_in": filled_in,
        "invented": invented,
        "filled_in_before": filled_in_before,
        "invented_before": invented_before,
    }
