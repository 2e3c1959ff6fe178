"""An image that knows its scale and its history, and the one way intensities are scaled."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import ndimage

from micrographia.errors import UserError

#: Pixel sizes outside this range (Å) cannot come from a working electron or force microscope.
PIXEL_SIZE_RANGE_A = (1e-3, 1e7)
#: Pixels are made smaller by this factor at most: larger ones show no atoms.
COARSEST = 4.0


@dataclass(frozen=True)
class Micrograph:
    """One image with its physical scale.

    Parameters
    ----------
    data : float32 array, ``[H, W]``
        Detector signal, row = y (down the screen), column = x.
    pixel_size_A : float or None
        Edge of a square pixel in Å; None when nobody knows.
    name : str
        What the image is called in every table: the file name, with ``#k`` appended for frame or
        dataset `k` of a file that holds several.
    pixel_size_source : str
        Where the pixel size comes from: ``"file"``, ``"user"``, ``"lattice"``, ``"assumed"`` or ``"unknown"``.
    metadata : dict
        Plain values from the file or the generator.
    history : tuple of str
        What was done to the image, oldest first.

    Raises
    ------
    UserError
        The data is not a finite, two-dimensional image, or the pixel size is absurd.
    """

    data: np.ndarray
    pixel_size_A: float | None = None
    name: str = "image"
    pixel_size_source: str = "unknown"
    metadata: dict[str, Any] = field(default_factory=dict)
    history: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        data = np.asarray(self.data)
        if data.ndim != 2 or min(data.shape) < 2:
            raise UserError(
                f"{self.name}: expected one image [H, W] of at least 2 x 2 pixels, got shape {data.shape}; "
                "choose one frame or channel."
            )
        object.__setattr__(self, "data", _finite_float32(data, self.name))
        if self.pixel_size_A is not None:
            low, high = PIXEL_SIZE_RANGE_A
            if not low <= float(self.pixel_size_A) <= high:
                raise UserError(
                    f"{self.name}: a pixel size of {self.pixel_size_A} Å is not plausible (range {low} to {high}); "
                    "give the right one with --pixel-size (in Å)."
                )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.data.shape  # type: ignore[return-value]

    def with_pixel_size(self, pixel_size_A: float, source: str) -> Micrograph:
        """Return the same image with another scale and where it comes from."""
        return replace(self, pixel_size_A=float(pixel_size_A), pixel_size_source=source)

    def with_data(self, data: np.ndarray, what: str) -> Micrograph:
        """Return a copy holding `data`, with `what` appended to the history."""
        return replace(self, data=data, history=(*self.history, what))

    def check_sampling(self, pixel_size_A: float) -> float:
        """Return the image's own pixel size; raise `UserError` if it cannot be resampled to `pixel_size_A`."""
        if self.pixel_size_A is None:
            raise UserError(f"{self.name}: the pixel size is unknown; give it with --pixel-size (in Å).")
        if self.pixel_size_A > COARSEST * pixel_size_A:
            raise UserError(
                f"{self.name}: pixels of {self.pixel_size_A:.4g} Å are far too coarse for work at {pixel_size_A:.4g} Å per "
                "pixel: an overview image or a wrong calibration. Leave it out, or give --pixel-size (in Å)."
            )
        return self.pixel_size_A

    def resampled(self, pixel_size_A: float) -> Micrograph:
        """Return the image at another sampling (Å per pixel), low-passed where it gets coarser.

        Pixel (0, 0) keeps its centre, so positions convert by the ratio of the pixel sizes alone:
        ``x_old = x_new * new_size / old_size``.

        Raises
        ------
        UserError
            The pixel size is unknown, or more than `COARSEST` times as large.
        """
        ratio = pixel_size_A / self.check_sampling(pixel_size_A)
        if abs(ratio - 1) < 1e-9:
            return self
        data = self.data
        if ratio > 1:
            # Gaussian whose variance makes up the difference between the two square pixels.
            data = ndimage.gaussian_filter(data, sigma=np.sqrt((ratio**2 - 1) / 12), mode="reflect")
        shape = [max(2, int(np.floor((n - 1) / ratio)) + 1) for n in data.shape]
        grid = np.meshgrid(np.arange(shape[0]) * ratio, np.arange(shape[1]) * ratio, indexing="ij")
        data = ndimage.map_coordinates(data, grid, order=3, mode="reflect").astype(np.float32)
        out = self.with_data(data, f"resampled from {self.pixel_size_A:.5g} to {pixel_size_A:.5g} Å/px")
        return replace(out, pixel_size_A=float(pixel_size_A))


def _finite_float32(data: np.ndarray, name: str) -> np.ndarray:
    """`data` as float32, C-contiguous; `UserError` about the image `name` if a pixel has no finite value."""
    with np.errstate(over="ignore"):  # what becomes infinite is told below
        narrow = np.ascontiguousarray(data, dtype=np.float32)
    bad = int(narrow.size - np.isfinite(narrow).sum())
    if bad and np.isfinite(data.astype(np.float64)).all():
        raise UserError(
            f"{name}: values up to {np.abs(data).max():.3g} are too large for 32-bit floats "
            f"({np.finfo(np.float32).max:.2g} at most); scale the data down and try again."
        )
    if bad:
        raise UserError(
            f"{name}: {bad} of {narrow.size} pixels are NaN or infinite; "
            "repair or crop them (for example numpy.nan_to_num) and try again."
        )
    return narrow


def robust_scale(image: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Scale one image so that its 0.5 % and 99.5 % quantiles fall on -1 and +1.

    Quantiles, not extremes: one hot pixel must not compress everything else. Nothing is clipped, so
    ``image = scaled * scale + centre`` is the exact inverse.

    Returns
    -------
    scaled : float32 array of the same shape
    centre, scale : float

    Raises
    ------
    UserError
        The image is constant.
    """
    low, high = np.quantile(image, [0.005, 0.995])
    if high <= low:
        low, high = float(image.min()), float(image.max())
    if high <= low:
        raise UserError("The image is constant: there is nothing to see in it.")
    centre, scale = float(high + low) / 2, float(high - low) / 2
    return ((image - centre) / scale).astype(np.float32), centre, scale
