"""Patches around atoms, or on a grid: the windows that latent models learn from.

A patch is centred on its atom to a fraction of a pixel: cubic B-splines (Unser, IEEE Signal Process. Mag. 16,
22 (1999)) evaluated at the atom's own offset, the same for every pixel of a patch, so that the interpolation is
four shifted sums along each axis. Patches are cut frame by frame, straight into the array that is returned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from scipy import ndimage

from micrographia.atoms.frames import Frames, Images, as_frames, frame_numbers
from micrographia.errors import UserError
from micrographia.micrograph import Micrograph
from micrographia.sites import concat_sites, make_sites

Sampling = Literal["cubic", "linear", "nearest"]
_BATCH = 512
_PAD = 3


@dataclass(frozen=True)
class AtomPatches:
    """Windows of one size and where they come from.

    Parameters
    ----------
    images : float32 array ``[N, H, W]``, or ``[N, C, H, W]`` with more than one channel
        In the units of the images. Channels of a time stack: all channels of frame t, then those of t + 1, ...
    sites : DataFrame
        N rows in the same order: the columns of the table that was given, and ``frame``. Positions are those in
        the original image.
    pixel_size_A : float
        Sampling of the patches.
    window_A : float
        Edge that was asked for; the patches' own is ``size_px * pixel_size_A``.
    size_px : int
    rows : int array ``[N]``
        Row (counted from 0) of each patch in the table that was given.
    dropped : int
        Sites whose window leaves the image.
    without_next : int
        Sites without the later frames that a time stack needs.
    """

    images: np.ndarray
    sites: pd.DataFrame
    pixel_size_A: float
    window_A: float
    size_px: int
    rows: np.ndarray
    dropped: int = 0
    without_next: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def select(self, which: np.ndarray) -> AtomPatches:
        """Return the patches that a mask or an array of indices names."""
        which = np.asarray(which)
        which = np.flatnonzero(which) if which.dtype == bool else which
        return replace(
            self,
            images=self.images[which],
            sites=self.sites.iloc[which].reset_index(drop=True),
            rows=self.rows[which],
        )


def cut_patches_around(
    images: Images,
    sites: pd.DataFrame,
    window_A: float,
    time_stack: int = 1,
    sampling: Sampling = "cubic",
    pixel_size_A: float | None = None,
) -> AtomPatches:
    """Cut a square window around every site.

    Parameters
    ----------
    images : Micrograph, sequence of Micrographs, or array ``[H, W]``, ``[N, H, W]`` or ``[N, C, H, W]``
        Micrographs of different pixel sizes are brought to the coarsest of them.
    sites : DataFrame
        Sites table; the frame of a site is its column ``frame``, or the image of its name.
    window_A : float
        Edge of the window in Å, rounded to whole pixels.
    time_stack : int
        Frames of a patch: the site's own and those after it, at the same position.
    sampling : ``"cubic"``, ``"linear"`` or ``"nearest"``
        The first two put the site at the exact centre, pixel (size_px - 1) / 2. ``"nearest"`` copies pixels: the
        site lies within half a pixel of it.
    pixel_size_A : float, optional
        For arrays.

    Returns
    -------
    AtomPatches
        Without the sites whose window leaves the image, which are counted: nothing is padded.

    Raises
    ------
    UserError
        No atoms, no pixel size, NaN, a window that is larger than an image or smaller than 3 pixels, frames of
        different numbers of channels, or no window inside any image.
    """
    if sampling not in ("cubic", "linear", "nearest"):
        raise UserError(f"sampling = '{sampling}' is not possible; choose cubic, linear or nearest.")
    frames = as_frames(images, pixel_size_A)
    frame = frame_numbers(sites, frames)
    pixel_A = float(frames.pixel_sizes_A.max())
    size = _size_px(window_A, pixel_A)
    _check_time_stack(time_stack, frames)
    lasts = frame + time_stack <= len(frames)
    xy = sites[["x_px", "y_px"]].to_numpy(float) * (frames.pixel_sizes_A[frame] / pixel_A)[:, None]
    corner = xy - (size - 1) / 2
    if sampling == "nearest":
        corner = np.floor(corner + 0.5)
    shapes = _shapes(frames, pixel_A, window_A, size)
    room = np.stack(
        [shapes[np.minimum(frame + t, len(frames) - 1), 1:] for t in range(time_stack)]
    ).min(axis=0)[:, ::-1]  # fmt: skip
    # A site on the last pixel that fits may miss it by the rounding of its own coordinates.
    inside = ((corner >= -1e-6) & (corner <= room - size + 1e-6)).all(axis=1)
    rows = np.flatnonzero(inside & lasts)
    if not len(rows):
        raise UserError(
            f"None of the {len(sites)} windows of {window_A:g} Å ({size} px) lies wholly inside its image"
            + (f" and has {time_stack - 1} later frames" if time_stack > 1 else "")
            + "; choose a smaller window."
        )
    channels = int(shapes[0, 0])
    out = np.empty((len(rows), time_stack * channels, size, size), dtype=np.float32)
    for i in range(len(frames)):
        own = [np.flatnonzero(frame[rows] + t == i) for t in range(time_stack)]
        if not any(map(len, own)):
            continue
        image = _resampled(frames, i, pixel_A)
        for c in range(channels):
            readable = _readable(image[c], sampling)
            for t, target in enumerate(own):
                _cut(readable, corner[rows[target]], size, sampling, out, target, t * channels + c)
    table = sites.iloc[rows].reset_index(drop=True).assign(frame=frame[rows])
    return AtomPatches(
        images=out[:, 0] if out.shape[1] == 1 else out,
        sites=table,
        pixel_size_A=pixel_A,
        window_A=float(window_A),
        size_px=size,
        rows=rows,
        dropped=int((~inside & lasts).sum()),
        without_next=int((~lasts).sum()),
    )


def cut_grid(
    images: Images,
    window_A: float,
    step_A: float,
    time_stack: int = 1,
    pixel_size_A: float | None = None,
) -> AtomPatches:
    """Cut windows on a square grid over every frame, whole pixels, centred in the image.

    The sites of the result are the centres of the windows, of the kind ``"window"``. Arguments and errors as of
    :func:`cut_patches_around`; `step_A` is the distance of neighbouring windows, rounded to whole pixels.
    """
    frames = as_frames(images, pixel_size_A)
    pixel_A = frames.one_pixel_size_A
    size = _size_px(window_A, pixel_A)
    _check_time_stack(time_stack, frames)
    if not step_A > 0:
        raise UserError(f"step_A = {step_A} must be greater than 0 Å.")
    step = max(1, round(step_A / pixel_A))
    shapes = _shapes(frames, pixel_A, window_A, size)
    tables = []
    for i in range(len(frames) - time_stack + 1):
        height, width = shapes[i, 1:]
        top, left = (np.arange((n - size) % step // 2, n - size + 1, step) for n in (height, width))
        y, x = (g.ravel() + (size - 1) / 2 for g in np.meshgrid(top, left, indexing="ij"))
        tables.append(make_sites(frames.names[i], x, y, "window").assign(frame=i))
    return cut_patches_around(images, concat_sites(tables), window_A, time_stack, "nearest", pixel_size_A)


def _check_time_stack(time_stack: int, frames: Frames) -> None:
    if not 1 <= time_stack <= len(frames):
        raise UserError(
            f"time_stack = {time_stack} is not possible with {len(frames)} frames; give 1 to {len(frames)}."
        )


def _size_px(window_A: float, pixel_A: float) -> int:
    size = round(window_A / pixel_A) if np.isfinite(window_A) else 0
    if size < 3:
        raise UserError(
            f"A window of {window_A:g} Å is {size} px at {pixel_A:.4g} Å/px; it needs at least 3. "
            "Choose a larger window, or check the pixel size."
        )
    return size


def _shapes(frames: Frames, pixel_A: float, window_A: float, size: int) -> np.ndarray:
    """(C, H, W) of every frame as it is cut; windows must fit, channels be the same everywhere."""
    shapes = np.empty((len(frames), 3), dtype=int)
    for i, zoom in enumerate(frames.pixel_sizes_A / pixel_A):
        item = frames.source[i]
        shape = item.shape if isinstance(item, Micrograph) else np.shape(item)
        shapes[i] = shape if len(shape) == 3 else (1, *shape)
        if abs(zoom - 1) > 1e-9:  # as Micrograph.resampled
            shapes[i, 1:] = np.maximum(2, np.floor((shapes[i, 1:] - 1) * zoom + 1e-9) + 1)
        if shapes[i, 1:].min() < size:
            raise UserError(
                f"{frames.names[i]}: the window of {window_A:g} Å ({size} px) is larger than the image "
                f"({shapes[i, 2]} x {shapes[i, 1]} px at {pixel_A:.4g} Å/px); choose a smaller window, or check "
                "the pixel size."
            )
    return shapes


def _resampled(frames: Frames, i: int, pixel_A: float) -> np.ndarray:
    data = frames[i]
    if abs(frames.pixel_sizes_A[i] / pixel_A - 1) < 1e-9:
        return data
    own = Micrograph(data[0], float(frames.pixel_sizes_A[i]), frames.names[i])
    return own.resampled(pixel_A).data[None]


def _readable(image: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Image ``[H, W]``, or its spline coefficients, with a rim that windows at the border read."""
    if sampling == "cubic":
        image = ndimage.spline_filter(image, order=3, output=np.float32, mode="mirror")
    return np.pad(image, _PAD, mode="reflect")


def _cut(
    readable: np.ndarray,
    corner: np.ndarray,
    size: int,
    sampling: Sampling,
    out: np.ndarray,
    target: np.ndarray,
    channel: int,
) -> None:
    """Write the windows whose first pixels lie at `corner` (x, y) of one image into `out`."""
    first = np.floor(corner).astype(int)
    fraction = (corner - first).astype(np.float32)
    taps = {"nearest": 1, "linear": 2, "cubic": 4}[sampling]
    before = 1 if sampling == "cubic" else 0
    reach = np.arange(size + taps - 1)
    for k in range(0, len(target), _BATCH):
        x, y = first[k : k + _BATCH].T + (_PAD - before)
        block = readable[y[:, None, None] + reach[:, None], x[:, None, None] + reach]
        if sampling != "nearest":
            wx, wy = (_weights(fraction[k : k + _BATCH, a], sampling) for a in (0, 1))
            block = sum(wy[:, j, None, None] * block[:, j : j + size] for j in range(taps))
            block = sum(wx[:, j, None, None] * block[:, :, j : j + size] for j in range(taps))
        out[target[k : k + _BATCH], channel] = block


def _weights(f: np.ndarray, sampling: Sampling) -> np.ndarray:
    """B-spline weights ``[n, taps]`` of the neighbours of a point `f` past a pixel."""
    if sampling == "linear":
        return np.stack([1 - f, f], axis=1)
    g = 1 - f
    return np.stack([g**3, 4 - 6 * f**2 + 3 * f**3, 4 - 6 * g**2 + 3 * g**3, f**3], axis=1) / 6
