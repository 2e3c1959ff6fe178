"""A set of labelled training images on disk: Zarr arrays, a table of sites, and how it was made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

from micrographia.errors import UserError
from micrographia.files import atomic_path
from micrographia.sites import concat_sites, read_sites, write_sites

#: Raised when the layout changes; a library of another version is refused.
VERSION = 1

_SITES = "sites.csv"


class ImageLibrary:
    """Labelled images of one shape and one scale.

    Made with :meth:`create`, read with :meth:`open`. On disk it is a Zarr group with the arrays `images` and
    `labels`, its description in the group's attributes, and ``sites.csv`` (and Parquet) in the same folder.
    One image is one chunk.

    Attributes
    ----------
    images : zarr array, ``[N, H, W]`` float32
    labels : zarr array, ``[N, K, H, W]`` uint8 or float16
        Channel `k` shows the sites of ``kinds[k]``.
    kinds : tuple of str
    pixel_size_A : float
    metadata : dict
        How the library was made.
    """

    def __init__(self, path: Path, images: Any, labels: Any, described: dict[str, Any]) -> None:
        self.path = path
        self.images = images
        self.labels = labels
        self.kinds: tuple[str, ...] = tuple(described["kinds"])
        self.pixel_size_A = float(described["pixel_size_A"])
        self.metadata: dict[str, Any] = described["metadata"]
        self._tables: dict[int, pd.DataFrame] = {}
        self._written: set[int] = set()

    @classmethod
    @contextlib.contextmanager
    def create(
        cls,
        path: str | Path,
        n: int,
        shape: tuple[int, int],
        kinds: Sequence[str],
        pixel_size_A: float,
        metadata: dict[str, Any] | None = None,
        label_dtype: str = "uint8",
    ) -> Iterator[ImageLibrary]:
        """Make a library; inside ``with``, :meth:`write` every image.

        The folder appears under its name when the block ends without an error and every image was written.

        Parameters
        ----------
        path : path
            Must not exist yet.
        n : int
            Number of images.
        shape : (int, int)
            Height and width in pixels.
        kinds : sequence of str
            What the label channels show.
        pixel_size_A : float
        metadata : dict, optional
            Plain values.
        label_dtype : {"uint8", "float16"}

        Raises
        ------
        UserError
            The path exists, the disk is full, or the sizes make no sense.
        """
        path = Path(path)
        if path.exists():
            raise UserError(f"{path}: exists already; remove it or choose another name.")
        if n < 1 or min(shape) < 1 or not kinds:
            raise UserError(
                f"{path}: a library needs images and kinds, got {n} of {shape} with {list(kinds)}."
            )
        described = {
            "micrographia_library": VERSION,
            "n": n,
            "kinds": list(kinds),
            "pixel_size_A": pixel_size_A,
            "metadata": metadata or {},
        }
        with atomic_path(path) as room:
            group = zarr.create_group(room, attributes=described)
            # Empty chunks are written, so that a missing one is known to be damage.
            images, labels = (
                group.create_array(
                    name,
                    shape=(n, *item),
                    chunks=(1, *item),
                    dtype=dtype,
                    config={"write_empty_chunks": True},
                )
                for name, item, dtype in (
                    ("images", shape, "float32"),
                    ("labels", (len(kinds), *shape), label_dtype),
                )
            )
            library = cls(room, images, labels, described)
            yield library
            missing = sorted(set(range(n)) - library._written)
            if missing:
                raise ValueError(
                    f"{path}: {len(missing)} of {n} images were not written (first: {missing[0]})"
                )
            write_sites(library.sites, room / _SITES)
            library.path = path

    @classmethod
    def open(cls, path: str | Path) -> ImageLibrary:
        """Open a finished library for reading.

        Raises
        ------
        UserError
            It is not a library, not of this version, or incomplete.
        """
        path = Path(path)
        try:
            group = zarr.open_group(path, mode="r")
            described: dict[str, Any] = dict(group.attrs)
            version = described["micrographia_library"]
        except Exception as error:
            raise UserError(f"{path}: is not an image library of ours; make one with simulate.") from error
        if version != VERSION:
            raise UserError(
                f"{path}: library of version {version}, this program reads {VERSION}; make it anew."
            )
        try:
            images: Any = group["images"]
            labels: Any = group["labels"]
            n, kinds = described["n"], described["kinds"]
            whole = images.shape[0] == labels.shape[0] == n and labels.shape[1] == len(kinds)
            # Zarr reads a missing chunk as zeros, which would train a network on nothing.
            whole = whole and images.nchunks_initialized == labels.nchunks_initialized == n
            whole = whole and (path / _SITES).is_file()
            library = cls(path, images, labels, described)
        except Exception as error:
            raise UserError(f"{path}: the library is damaged ({error}); make it anew.") from error
        if not whole:
            raise UserError(f"{path}: the library is incomplete; make it anew.")
        return library

    def __len__(self) -> int:
        return int(self.images.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.images.shape[1]), int(self.images.shape[2])

    @property
    def sites(self) -> pd.DataFrame:
        """The site table of all images; its column ``image`` holds the image's index as text."""
        if self._tables:
            return concat_sites(self._tables[i] for i in sorted(self._tables))
        finished = self.path / _SITES
        return read_sites(finished) if finished.is_file() else concat_sites([])

    def write(self, i: int, image: np.ndarray, labels: np.ndarray, sites: pd.DataFrame) -> None:
        """Store image `i` ``[H, W]``, labels ``[K, H, W]`` and sites (their ``image`` becomes ``str(i)``)."""
        if image.shape != self.shape or labels.shape != self.labels.shape[1:]:
            raise ValueError(
                f"image {i}: expected shapes {self.shape} and {self.labels.shape[1:]}, "
                f"got {image.shape} and {labels.shape}"
            )
        if not np.isfinite(image).all():
            raise ValueError(f"image {i} is not finite")
        self.images[i] = image
        self.labels[i] = labels
        self._tables[i] = sites.assign(image=str(i))
        self._written.add(i)

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all images and labels as arrays in memory, which is how training wants them."""
        try:
            return np.asarray(self.images[:]), np.asarray(self.labels[:])
        except Exception as error:
            raise UserError(f"{self.path}: the library is damaged ({error}); make it anew.") from error
