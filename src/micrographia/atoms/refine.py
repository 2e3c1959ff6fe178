"""Sub-pixel positions of atoms: centre of mass, and least-squares fit of a 2-D Gaussian, for all atoms at once.

The fit writes the model as ``b + exp(c . phi)`` with phi the monomials 1, x, y, x², xy, y² on the pixels of the
window. Every atom then shares phi, so that the derivatives ``exp(c . phi) phi_k``, the normal equations (sums of
``exp(2 c . phi) phi_j phi_k``) and the gradient of thousands of atoms are a handful of matrix products: the
minimum is that of the usual Gaussian, its cost is not. Steps are Levenberg-Marquardt's (Marquardt 1963), and each
atom stops when the rest of its way is a hundredth of the standard error of where it is going.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from micrographia.atoms.frames import Frames, Images, as_frames, frame_numbers
from micrographia.errors import UserError

#: Atoms fitted together: their windows fit into the cache of a core.
_BATCH = 512
#: A disc of this radius holds 21 pixels; fits need 14.
_LEAST_RADIUS_PX = 2.24
#: Steps of the first fit, which says on which pixel an atom lies, and of the second. Where an atom is much wider
#: than the disc, height and width trade against the background without end; its place rests long before.
_STEPS = (6, 20)


def refine_com(
    images: Images,
    sites: pd.DataFrame,
    radius_A: float | None = None,
    dark: bool = False,
    pixel_size_A: float | None = None,
) -> pd.DataFrame:
    """Move every site to the centre of mass of the disc around it.

    The disc follows the atom until it rests (20 times at most); pixels on its edge count by the part covered.
    The lower quintile of the disc is subtracted first. An even background therefore does not move the result; a
    slope and neighbours that reach into the disc do.

    Parameters
    ----------
    images : as of :func:`micrographia.atoms.frames.as_frames`, one channel
    sites : DataFrame
        Sites table; the frame of a site is its column ``frame``, or the image of its name.
    radius_A : float, optional
        Radius of the disc; 0.4 times the median distance of nearest neighbours if not given.
    dark : bool
        Atoms are darker than their surroundings.
    pixel_size_A : float, optional
        For arrays.

    Returns
    -------
    DataFrame
        Copy of `sites` with new ``x_px``, ``y_px`` and the column ``refined``: False where the disc leaves the
        image, or the atom moved by more than the radius; such atoms keep their position.

    Raises
    ------
    UserError
        No sites, no pixel size, or a radius below one pixel.
    """
    windows = _Windows.of(images, sites, radius_A, pixel_size_A, dark, margin_px=2)
    start = sites[["x_px", "y_px"]].to_numpy(float)
    found, good = start.copy(), np.zeros(len(sites), dtype=bool)
    for rows, centre, values, radius in windows.batches(start):
        dx, dy = windows.grid(radius)
        level = values - np.quantile(values, 0.2, axis=1, keepdims=True)
        at = start[rows] - centre
        for _ in range(20):
            distance = np.hypot(dx - at[:, :1], dy - at[:, 1:])
            mass = level * (radius + 0.5 - distance).clip(0, 1)
            total = mass.sum(axis=1)
            with np.errstate(divide="ignore", invalid="ignore"):
                new = np.stack([(mass @ dx) / total, (mass @ dy) / total], axis=1)
            moved = np.abs(new - at).max(axis=1)
            ok = (total > 0) & (np.hypot(*new.T) < radius + 1)
            at = np.where(ok[:, None], new, np.nan)
            if not (moved[ok] > 0.005).any():
                break
        found[rows] = centre + at
        good[rows] = np.hypot(*(found[rows] - start[rows]).T) <= radius
    return _moved(sites, found, good)


def refine_gaussian(
    images: Images,
    sites: pd.DataFrame,
    radius_A: float | None = None,
    shape: Literal["elliptical", "round"] = "elliptical",
    dark: bool = False,
    pixel_size_A: float | None = None,
) -> pd.DataFrame:
    """Fit a Gaussian on an even background to the disc around every site.

    Parameters
    ----------
    images, sites, radius_A, dark, pixel_size_A
        As of :func:`refine_com`. The disc is that of whole pixels around the nearest one; where the atom turns
        out to lie on another pixel, it is fitted once more around that.
    shape : ``"elliptical"`` or ``"round"``
        Two widths and a direction (7 parameters), or one width (5): steadier where atoms are faint.

    Returns
    -------
    DataFrame
        Copy of `sites` with new ``x_px``, ``y_px`` and the columns

        * ``refined``: False where the disc leaves the image, the fit found no peak (or one that moved by more
          than the radius or is wider than twice the radius): such atoms keep their position;
        * ``amplitude``, ``background``: in the image's units (amplitude negative for dark atoms);
        * ``sigma_major_A``, ``sigma_minor_A``: standard deviations in Å;
        * ``ellipse_deg``: direction of the longer axis, counter-clockwise on the screen, -90 to 90;
        * ``position_error_px``: standard error along one axis, from the residuals, as if they were independent.

        All but the first are NaN where ``refined`` is False.

    Raises
    ------
    UserError
        No sites, no pixel size, or a disc with fewer pixels than twice the parameters.
    """
    if shape not in ("elliptical", "round"):
        raise UserError(f"shape = '{shape}' is not possible; choose elliptical or round.")
    windows = _Windows.of(images, sites, radius_A, pixel_size_A, dark)
    start = sites[["x_px", "y_px"]].to_numpy(float)
    found, good = start.copy(), np.zeros(len(sites), dtype=bool)
    extra = np.full((len(sites), 6), np.nan)
    todo = np.ones(len(sites), dtype=bool)
    for steps in _STEPS:
        for rows, centre, values, radius in windows.batches(found, todo):
            fit = _fit(values, *windows.grid(radius), radius, shape, steps)
            found[rows] = centre + fit.centre
            good[rows] = fit.good & (np.hypot(*(found[rows] - start[rows]).T) <= radius)
            extra[rows] = fit.extra
            todo[rows] = ~fit.rests | (np.rint(found[rows]) != centre).any(axis=1)
        found[~good] = start[~good]
    extra[~good] = np.nan
    extra[:, 2:4] *= windows.pixel_sizes_A[:, None]
    if dark:
        extra[:, :2] *= -1
    names = [
        "amplitude", "background", "sigma_major_A", "sigma_minor_A", "ellipse_deg", "position_error_px"
    ]  # fmt: skip
    return _moved(sites, found, good).assign(**dict(zip(names, extra.T, strict=True)))


def _moved(sites: pd.DataFrame, found: np.ndarray, good: np.ndarray) -> pd.DataFrame:
    """Copy of the table with the positions that are good, and which they are."""
    place = np.where(good[:, None], found, sites[["x_px", "y_px"]].to_numpy(float))
    return sites.assign(x_px=place[:, 0], y_px=place[:, 1], refined=good)


@dataclass(frozen=True)
class _Windows:
    """The discs of pixels around sites of many frames, read in batches."""

    frames: Frames
    frame: np.ndarray
    pixel_sizes_A: np.ndarray  # of every site
    radius_A: float
    sign: float
    margin_px: int

    @classmethod
    def of(cls, images, sites, radius_A, pixel_size_A, dark, margin_px=0) -> _Windows:
        frames = as_frames(images, pixel_size_A)
        frame = frame_numbers(sites, frames)
        sizes = frames.pixel_sizes_A[frame]
        if radius_A is None:
            apart_A = _neighbour_distance(sites, frame, sizes)
            # Coarse pixels need a disc that holds enough of them, as long as it stays short of the neighbours.
            radius_A = max(0.4 * apart_A, min(_LEAST_RADIUS_PX * sizes.max(), 0.6 * apart_A))
        if not np.isfinite(radius_A) or radius_A < sizes.max() * 1.5:
            raise UserError(
                f"A radius of {radius_A:.3g} Å is {radius_A / sizes.max():.2g} px; a refinement needs at least "
                "1.5 px. Give a larger radius_A, check the pixel size, or leave the positions as they were found "
                "(atoms.refine = none)."
            )
        return cls(frames, frame, sizes, float(radius_A), -1.0 if dark else 1.0, margin_px)

    def grid(self, radius: float) -> tuple[np.ndarray, np.ndarray]:
        """Offsets (dx, dy) in px of the pixels of the disc from its centre."""
        reach = int(radius) + self.margin_px
        dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        inside = np.hypot(dx, dy) <= radius + self.margin_px
        return dx[inside].astype(float), dy[inside].astype(float)

    def batches(self, positions: np.ndarray, wanted: np.ndarray | None = None):
        """Yield (rows, centres ``[n, 2]``, values ``[n, pixels]``, radius in px) of what is in the image."""
        wanted = np.ones(len(positions), dtype=bool) if wanted is None else wanted
        for i in np.unique(self.frame[wanted]):
            image = self.frames[i]
            if len(image) > 1:
                raise UserError(
                    f"{self.frames.names[i]} has {len(image)} channels; refine positions in one image of them."
                )
            radius = self.radius_A / self.frames.pixel_sizes_A[i]
            dx, dy = (offset.astype(int) for offset in self.grid(radius))
            if len(dx) < 14:
                raise UserError(
                    f"A radius of {self.radius_A:.3g} Å holds {len(dx)} pixels; at least 14 are needed. "
                    "Give a larger radius_A, or leave the positions as they were found (atoms.refine = none)."
                )
            rows = np.flatnonzero(wanted & (self.frame == i))
            centre = np.rint(positions[rows]).astype(int)
            room = np.array(image.shape[:0:-1]) - 1
            inside = ((centre >= dx.max()) & (centre <= room - dx.max())).all(axis=1)
            rows, centre = rows[inside], centre[inside]
            for k in range(0, len(rows), _BATCH):
                part = slice(k, k + _BATCH)
                x, y = centre[part].T
                values = image[0][y[:, None] + dy, x[:, None] + dx].astype(float)
                yield rows[part], centre[part].astype(float), self.sign * values, radius


def _neighbour_distance(sites: pd.DataFrame, frame: np.ndarray, sizes: np.ndarray) -> float:
    """Median distance of nearest neighbours in Å."""
    xy_A = sites[["x_px", "y_px"]].to_numpy(float) * sizes[:, None]
    nearest = [
        cKDTree(points).query(points, 2)[0][:, 1]
        for i in np.unique(frame)
        if len(points := xy_A[frame == i]) > 1
    ]
    if not nearest:
        raise UserError(
            "One atom alone has no neighbour to take the radius from; give radius_A, or leave its position as "
            "it was found (atoms.refine = none)."
        )
    return float(np.median(np.concatenate(nearest)))


@dataclass(frozen=True)
class _Fit:
    centre: np.ndarray  # [n, 2], px from the window's centre
    good: np.ndarray  # [n]
    rests: np.ndarray  # [n], converged
    extra: np.ndarray  # [n, 6] amplitude, background, sigmas (px), direction (degrees), error (px)


def _fit(values: np.ndarray, dx: np.ndarray, dy: np.ndarray, radius: float, shape: str, steps: int) -> _Fit:
    """Fit all windows ``[n, P]``; lengths are in units of the radius inside, so that numbers are near 1."""
    x, y = dx / radius, dy / radius
    second = [x * x + y * y] if shape == "round" else [x * x, x * y, y * y]
    phi = np.stack([np.ones_like(x), x, y, *second])
    offset, spread = values.mean(axis=1), values.std(axis=1)
    alive = spread > 0
    scale = np.where(alive, spread, 1.0)
    data = (values - offset[:, None]) / scale[:, None]
    beta, cost, normal, rests = _levenberg_marquardt(data, phi, steps)

    c, background = beta[:, :-1], beta[:, -1]
    xx, xy, yy = (c[:, 3], 0 * c[:, 3], c[:, 3]) if shape == "round" else c[:, 3:].T
    determinant = xx * yy - xy * xy / 4
    good = alive & (xx < 0) & (determinant > 1e-6) & np.isfinite(beta).all(axis=1)
    xx, yy, xy = np.where(good, xx, -1), np.where(good, yy, -1), np.where(good, xy, 0)
    determinant = np.where(good, determinant, 1)
    # -1/2 of the inverse of the quadratic form: the covariance of the Gaussian.
    vxx, vyy, vxy = -yy / (2 * determinant), -xx / (2 * determinant), xy / (4 * determinant)
    u, v = vxx * c[:, 1] + vxy * c[:, 2], vxy * c[:, 1] + vyy * c[:, 2]
    mean, half = (vxx + vyy) / 2, np.hypot((vxx - vyy) / 2, vxy)
    major, minor = np.sqrt(mean + half), np.sqrt(np.maximum(mean - half, 0))
    direction = np.rad2deg(0.5 * np.arctan2(-2 * vxy, vxx - vyy))  # y points down the screen
    top = np.where(good, c[:, 0] + (c[:, 1] * u + c[:, 2] * v) / 2, 0)
    # A peak must be inside the disc, wider than a third of a pixel and narrower than twice the disc.
    good &= (np.hypot(u, v) < 1.5) & (minor * radius > 0.3) & (major < 2) & (top < 7)

    error = _position_error(
        normal, cost / max(values.shape[1] - beta.shape[1], 1), u, v, vxx, vxy, vyy, shape
    )
    amplitude = np.exp(np.minimum(top, 7)) * scale
    extra = np.stack(
        [amplitude, background * scale + offset, major * radius, minor * radius, direction, error * radius],
        axis=1,
    )
    return _Fit(np.stack([u, v], axis=1) * radius, good, rests, extra)


def _levenberg_marquardt(
    data: np.ndarray, phi: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fit ``b + exp(c . phi)`` to each row of `data`.

    Returns
    -------
    beta : ``[n, K + 1]``, c then b
    cost : ``[n]``, sum of squared residuals
    normal : ``[n, K + 1, K + 1]``, normal matrix at the end
    rests : bool ``[n]``, converged
    """
    n, k = len(data), len(phi)
    upper = np.triu_indices(k)
    products = (phi[upper[0]] * phi[upper[1]]).T.copy()  # [P, K (K + 1) / 2]
    columns = phi.T.copy()
    beta = np.zeros((n, k + 1))
    beta[:, -1] = np.quantile(data, 0.1, axis=1)
    middle = np.argsort(phi[3:].sum(axis=0) if k == 4 else phi[3] + phi[5])[:5]
    beta[:, 0] = np.log(np.maximum(data[:, middle].mean(axis=1) - beta[:, -1], 0.1))
    beta[:, 3] = -2.0  # a standard deviation of half the radius
    if k == 6:
        beta[:, 5] = -2.0

    def model(b: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        peak = np.exp(np.minimum(b[:, :-1] @ phi, 30.0))
        rest = data[rows] - peak
        rest -= b[:, -1:]
        return peak, rest, np.einsum("np,np->n", rest, rest)

    rows = np.arange(n)
    peak, rest, now = model(beta, rows)
    cost, normal = now.copy(), np.zeros((n, k + 1, k + 1))
    damping, stiffer = np.full(n, 1e-2), np.full(n, 2.0)
    diagonal = np.arange(k + 1)
    degrees = max(data.shape[1] - k - 1, 1)
    for _ in range(steps):
        matrix = np.empty((len(rows), k + 1, k + 1))
        matrix[:, upper[0], upper[1]] = matrix[:, upper[1], upper[0]] = (peak * peak) @ products
        matrix[:, :k, k] = matrix[:, k, :k] = peak @ columns
        matrix[:, k, k] = data.shape[1]
        gradient = np.concatenate([(rest * peak) @ columns, rest.sum(axis=1, keepdims=True)], axis=1)
        normal[rows] = matrix
        curvature = matrix[:, diagonal, diagonal]
        matrix[:, diagonal, diagonal] *= 1 + damping[rows, None]
        matrix[:, diagonal, diagonal] += 1e-9
        step = np.linalg.solve(matrix, gradient[..., None])[..., 0]
        tried_peak, tried_rest, tried = model(beta[rows] + step, rows)
        # Half of step . (gradient + damping) is what the linear model promises (Nielsen 1999).
        promised = np.einsum("nk,nk->n", step, gradient + damping[rows, None] * curvature * step)
        gain = (now - tried) / np.maximum(promised, 1e-300)
        better = tried <= now  # False for NaN
        beta[rows[better]] += step[better]
        calmer = np.maximum(0.1, 1 - (2 * gain.clip(0, 1) - 1) ** 3)
        damping[rows] = np.where(better, damping[rows] * calmer, damping[rows] * stiffer[rows]).clip(
            1e-7, 1e7
        )
        stiffer[rows] = np.where(better, 2.0, 2 * stiffer[rows])
        # Half of step . gradient is what is left to gain; in units of the residual variance, a chi-square.
        left = np.einsum("nk,nk->n", step, gradient)
        done = (better & (left < 1e-4 * now / degrees)) | (now < 1e-16 * degrees) | (damping[rows] >= 1e7)
        peak = np.where(better[:, None], tried_peak, peak)
        rest = np.where(better[:, None], tried_rest, rest)
        now = np.where(better, tried, now)
        cost[rows] = now
        if done.any():
            rows, peak, rest, now = rows[~done], peak[~done], rest[~done], now[~done]
        if not len(rows):
            break
    rests = np.ones(n, dtype=bool)
    rests[rows] = False
    return beta, cost, normal, rests


def _position_error(normal, variance, u, v, vxx, vxy, vyy, shape: str) -> np.ndarray:
    """Standard error of the centre along one axis, from the covariance of the parameters.

    The centre is ``-Q^-1 l / 2`` with the linear coefficients l and the quadratic form Q, so that
    ``d centre = V (dl + 2 dQ centre)`` with the covariance ``V = -Q^-1 / 2`` of the Gaussian.
    """
    zero, one = np.zeros_like(u), np.ones_like(u)
    # d(l + 2 Q centre) by each parameter: c0, l_x, l_y, then the quadratic ones, then the background.
    quadratic = [(2 * u, 2 * v)] if shape == "round" else [(2 * u, zero), (v, u), (zero, 2 * v)]
    change = np.array([(zero, zero), (one, zero), (zero, one), *quadratic, (zero, zero)])  # [K + 1, 2, n]
    slope = np.array([vxx * change[:, 0] + vxy * change[:, 1], vxy * change[:, 0] + vyy * change[:, 1]])
    slope = slope.transpose(2, 1, 0)  # [n, K + 1, 2]
    tiny = 1e-9 * np.eye(normal.shape[1])
    covered = np.einsum("nkd,nkd->n", slope, np.linalg.solve(normal + tiny, slope))
    return np.sqrt(np.maximum(covered * variance, 0) / 2)
