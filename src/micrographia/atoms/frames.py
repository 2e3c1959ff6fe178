"""Images as the atom tools take them: one image, a list, or a stack; and which frame each site lies in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from micrographia.errors import UserError
from micrographia.micrograph import Micrograph

#: A Micrograph, several, or an array ``[H, W]``, ``[N, H, W]`` or ``[N, C, H, W]`` with its pixel size.
Images: TypeAlias = Micrograph | Sequence[Micrograph] | np.ndarray


@dataclass(frozen=True)
class Frames:
    """Frames in order, read one at a time, so that a stack on disk (Zarr, memmap) stays there.

    Parameters
    ----------
    source : sequence of Micrographs, or array ``[N, H, W]`` or ``[N, C, H, W]``
    names : tuple of N str
    pixel_sizes_A : float array ``[N]``
    """

    source: Any
    names: tuple[str, ...]
    pixel_sizes_A: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> np.ndarray:
        """Frame `i` as finite float32 ``[C, H, W]``."""
        item = self.source[i]
        data = np.asarray(item.data if isinstance(item, Micrograph) else item, dtype=np.float32)
        bad = int(data.size - np.isfinite(data).sum())
        if bad:
            raise UserError(
                f"{self.names[i]}: {bad} of {data.size} pixels are NaN or infinite; repair or crop them "
                "(for example numpy.nan_to_num) and try again."
            )
        return data[None] if data.ndim == 2 else data

    @property
    def one_pixel_size_A(self) -> float:
        """The pixel size common to all frames."""
        low, high = self.pixel_sizes_A.min(), self.pixel_sizes_A.max()
        if high > low * 1.0001:
            raise UserError(
                f"The images have different pixel sizes ({low:.4g} to {high:.4g} Å); resample them to one "
                "(Micrograph.resampled) and try again."
            )
        return float(low)


def as_frames(images: Images, pixel_size_A: float | None = None) -> Frames:
    """Take images in any accepted form.

    Parameters
    ----------
    images : Micrograph, sequence of Micrographs, or array
        ``[H, W]``, ``[N, H, W]`` (a movie) or ``[N, C, H, W]`` (channels, such as probability maps).
    pixel_size_A : float, optional
        Needed for arrays, and for Micrographs that do not know theirs.

    Raises
    ------
    UserError
        No images, another shape, or no pixel size.
    """
    if isinstance(images, Micrograph):
        images = [images]
    if isinstance(images, Sequence) and len(images) and all(isinstance(i, Micrograph) for i in images):
        names = tuple(image.name for image in images)
        given = [pixel_size_A or image.pixel_size_A for image in images]
        source: Any = images
    else:
        source = images if hasattr(images, "ndim") else np.asarray(images)
        if source.ndim == 2:
            source = source[None]
        if source.ndim not in (3, 4) or source.dtype.kind not in "buif":
            raise UserError(
                f"Expected images as Micrographs or as an array [H, W], [N, H, W] or [N, C, H, W] of real "
                f"numbers, got shape {source.shape} of {source.dtype}."
            )
        names = tuple(f"frame {i}" for i in range(len(source)))
        given = [pixel_size_A] * len(source)
    if not names:
        raise UserError("There are no images; give at least one.")
    for name, size in zip(names, given, strict=True):
        if size is None or not 0 < size < np.inf:
            raise UserError(f"{name}: the pixel size is {size or 'unknown'}; give pixel_size_A, in Å.")
    return Frames(source, names, np.array(given, dtype=float))


def frame_numbers(sites: pd.DataFrame, frames: Frames) -> np.ndarray:
    """Return the frame of each site: its column ``frame``, else the image of its name, else the only one.

    Raises
    ------
    UserError
        No sites, positions that are not finite, or a site whose frame is not there.
    """
    if not len(sites):
        raise UserError("The table of sites is empty: no atoms. Find some first (a lower threshold?).")
    missing = [name for name in ("x_px", "y_px") if name not in sites.columns]
    if missing:
        raise UserError(f"The table of sites lacks the column {' and '.join(missing)}.")
    bad = ~np.isfinite(sites[["x_px", "y_px"]].to_numpy(float)).all(axis=1)
    if bad.any():
        raise UserError(f"{int(bad.sum())} of {len(sites)} sites have no finite position; remove them.")
    if "frame" in sites.columns:
        number = sites["frame"].to_numpy()
        if not np.isin(number, np.arange(len(frames))).all():
            raise UserError(
                f"The sites name frames {number.min()} to {number.max()}, but there are {len(frames)} images "
                "(counted from 0)."
            )
        return number.astype(int)
    if len(frames) == 1:
        if "image" in sites.columns and sites["image"].nunique() > 1:
            raise UserError(
                f"The table of sites names {sites['image'].nunique()} images, but there is only {frames.names[0]}; keep its rows."
            )
        return np.zeros(len(sites), dtype=int)
    if len(set(frames.names)) < len(frames):
        raise UserError(
            "Several images have the same name; give the sites a column 'frame' (counted from 0)."
        )
    number = sites["image"].map({name: i for i, name in enumerate(frames.names)}).to_numpy(float)
    if np.isnan(number).any():
        lost = sites["image"].to_numpy()[np.isnan(number)][0]
        raise UserError(
            f"There is no image '{lost}', which the table of sites names; give the sites a column 'frame'."
        )
    return number.astype(int)
