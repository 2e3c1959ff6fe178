"""Reading and writing images: every microscope's format in, calibrated images with their provenance out."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from micrographia.errors import UserError
from micrographia.files import atomic_path, find_files, unique_names
from micrographia.formats import FOLDER_SUFFIXES, read_signals
from micrographia.micrograph import Micrograph, robust_scale
from micrographia.signals import Signal, calibration_from_json, microscope_from_json, told_json
from micrographia.video import VIDEO_SUFFIXES, read_video_provenance

__all__ = [
    "StoredImage",
    "atomic_path",
    "read_folder",
    "read_images",
    "read_provenance",
    "read_stored",
    "write_image",
    "write_marked",
    "write_stored",
]

#: Colours of the markers in HyperSpy files, told apart by colour-blind eyes, too.
MARKER_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#f0e442", "#56b4e9")
#: Edges of a pixel that differ by more than this share are told in the metadata.
_SQUARE_WITHIN = 0.005


@dataclass(frozen=True)
class StoredImage:
    """One image with the numbers that its file holds: not scaled, not converted, grey or in colours.

    :class:`Micrograph` is what the physics works with; this is for whoever needs the bit depth or colours.
    """

    data: np.ndarray
    """``[H, W]``, or ``[H, W, 3]`` in colours, of any dtype."""
    name: str = "image"
    """The file's name, with ``#k`` appended where it holds several images."""
    pixel_size_A: float | None = None
    """Edge of a square pixel in Å; None when nobody knows."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Plain values from the file or the generator."""
    history: tuple[str, ...] = ()
    """What was done to the image, oldest first."""


def read_images(path: str | Path, pixel_size_A: float | None = None) -> list[Micrograph]:
    """Read every image in one file.

    Parameters
    ----------
    path : path
        A file in a format that RosettaSciIO reads (dm3, dm4, emd, mrc, ser, emi, hspy, bcf, blo, ...),
        TIFF, PNG, JPEG, BMP, NumPy, HDF5, zspy or Igor ibw.
    pixel_size_A : float, optional
        Overrides the file's own.

    Returns
    -------
    list of Micrograph
        Named after the file; ``#k`` is appended where the file holds several images (frames, datasets).
        The pixel size is the file's, or that of a JSON file of the same name beside it, or that which a CSV
        table in the same folder gives (columns ``image`` and ``pixel_size_A`` or ``pixel_size_angstrom``), or
        None.

    Raises
    ------
    UserError
        The file cannot be read, or holds no image; the message names the file and the reason.
    """
    return [_micrograph(stored, pixel_size_A) for stored in read_stored(path)]


def _micrograph(stored: StoredImage, pixel_size_A: float | None) -> Micrograph:
    size = stored.pixel_size_A if pixel_size_A is None else pixel_size_A
    source = "user" if pixel_size_A is not None else "file" if size else "unknown"
    return Micrograph(stored.data, size, stored.name, source, stored.metadata, stored.history)


def read_stored(path: str | Path, colours: bool = False) -> list[StoredImage]:
    """Read every image in one file as it is stored; formats and names as :func:`read_images` has them.

    Parameters
    ----------
    path : path
    colours : bool
        Read red, green and blue, ``[H, W, 3]``, and refuse grey images; otherwise the reverse. A grey picture
        that was saved as colours passes for either.

    Raises
    ------
    UserError
        The file cannot be read, holds no image, or none of this kind.
    """
    path = Path(path)
    with _damage_explained(path):
        if not path.exists():
            raise UserError(f"{path}: no such file.")
        if path.is_dir() and path.suffix.lower() != ".zspy":
            raise UserError(f"{path}: is a folder, not an image; name a file in it.")
        signals = read_signals(path)
        images = [image for signal in signals for image in _images(signal, path, colours)]
    if not images:
        reasons = "; ".join(reason for signal in signals if (reason := _why_no_image(signal)))
        raise UserError(f"{path}: holds no image [H, W] or stack [N, H, W] ({reasons or 'it is empty'}).")
    several = len(images) > 1
    return [replace(image, name=f"{path.name}#{k}") if several else image for k, image in enumerate(images)]


class ColouredImage(UserError):
    """A picture in colours where a grey one is needed."""


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(
            f"{path}: cannot be read: no permission to open {error.filename or path}; get access to it, "
            "or a copy of your own."
        ) from error
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}: {_first_line(error)}); "
            "the file is damaged, incomplete or of another format."
        ) from error


def read_folder(
    paths: str | Path | Iterable[str | Path], pixel_size_A: float | None = None
) -> tuple[list[Micrograph], list[tuple[Path, str]]]:
    """Read every image in files, folders and glob patterns; what cannot be read is left out and reported.

    A folder is searched for the usual image suffixes, not deeper, in natural order (``a2`` before ``a10``).
    Equal file names from different folders get the folder's name in front.

    Returns
    -------
    images : list of Micrograph
        Names are unique.
    failures : list of (file, reason)

    Raises
    ------
    UserError
        There are no files, or none of them can be read.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    files = find_files(given, FOLDER_SUFFIXES)
    if not files:
        told = ", ".join(map(str, given)) or "no path given"
        raise UserError(f"No image files: {told}. Give files, folders or patterns such as 'scan_*.dm4'.")
    images: list[Micrograph] = []
    failures: list[tuple[Path, str]] = []
    for file, name in zip(files, unique_names(files), strict=True):
        try:
            stored = read_stored(file)
        except UserError as error:
            failures.append((file, str(error)))
            continue
        for frame in stored:  # one with NaN does not take the others with it
            try:
                named = replace(frame, name=name + frame.name.removeprefix(file.name))
                images.append(_micrograph(named, pixel_size_A))
            except UserError as error:
                failures.append((file, str(error)))
    if not images:
        reasons = "\n  ".join(reason for _, reason in failures[:5])
        more = f"\n  and {len(failures) - 5} more" if len(failures) > 5 else ""
        raise UserError(f"None of {len(files)} files could be read:\n  {reasons}{more}")
    return images, failures


def write_image(path: str | Path, micrograph: Micrograph, synthetic: dict[str, Any] | None = None) -> None:
    """Write an image with its scale, metadata, history and provenance; the suffix chooses the format.

    ``.tif``: float32, calibrated as ImageJ does it. ``.png``: 8 bit, robustly scaled, for looking at.
    ``.npy``: float32, with a ``.json`` beside it. ``.hspy``: for HyperSpy. Files appear whole or never.

    Parameters
    ----------
    path : path
    micrograph : Micrograph
    synthetic : dict, optional
        How a generated image was made. It is kept as ``metadata["micrographia"]`` with ``"synthetic": True``,
        so that no generated image can pass for a measured one.

    Raises
    ------
    UserError
        Unknown suffix, a constant image as PNG, a folder that cannot be written, or a full disk.
    """
    path = Path(path)
    writers = {
        ".tif": _write_tiff,
        ".tiff": _write_tiff,
        ".png": _write_png,
        ".npy": _write_npy,
        ".hspy": _write_hspy,
    }
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise UserError(f"{path}: cannot write '{path.suffix}'; choose {', '.join(writers)}.")
    if synthetic is not None:
        micrograph = replace(micrograph, metadata=_as_synthetic(micrograph.metadata, synthetic))
    description = _description(micrograph)
    with atomic_path(path) as temporary:
        writer(temporary, micrograph, description)
        if path.suffix.lower() == ".npy":
            with atomic_path(path.with_suffix(".json")) as sidecar:
                sidecar.write_text(json.dumps(json.loads(description), indent=1))


def write_stored(path: str | Path, image: StoredImage, synthetic: dict[str, Any] | None = None) -> None:
    """Write the numbers of an image as they are, with its scale, metadata, history and provenance.

    ``.png``: 8 or 16 bit grey, 8 bit colours. ``.tif``: those, 16-bit colours and float32. Unlike
    :func:`write_image`, which scales a PNG by its own contrast, images written alike stay comparable.

    Parameters
    ----------
    path : path
    image : StoredImage
        uint8, uint16 or float32.
    synthetic : dict, optional
        As in :func:`write_image`.

    Raises
    ------
    UserError
        A suffix or a kind of data that cannot be written, a folder that cannot be written, or a full disk.
    """
    path = Path(path)
    kinds = {".png": ("uint8", "uint16"), **dict.fromkeys((".tif", ".tiff"), ("uint8", "uint16", "float32"))}
    suffix, dtype, colour = path.suffix.lower(), str(image.data.dtype), image.data.ndim == 3
    if suffix not in kinds:
        raise UserError(f"{path}: cannot write '{path.suffix}'; choose {', '.join(kinds)}.")
    if dtype not in kinds[suffix] or (suffix == ".png" and colour and dtype != "uint8"):
        what = f"{dtype} in colours" if colour else dtype
        raise UserError(
            f"{path}: '{suffix}' cannot hold {what} as it is; choose .tif with uint8, uint16 or float32."
        )
    if synthetic is not None:
        image = replace(image, metadata=_as_synthetic(image.metadata, synthetic))
    writer = _write_png_as_it_is if suffix == ".png" else _write_tiff
    with atomic_path(path) as temporary:
        writer(temporary, image, _description(image))


def write_array(path: str | Path, array: np.ndarray, synthetic: dict[str, Any]) -> None:
    """Write generated numbers of any shape as ``.npy``; a ``.json`` beside it tells how they were made.

    Raises
    ------
    UserError
        A folder that cannot be written, or a full disk.
    """
    path = Path(path)
    note = {"name": path.name, "metadata": _as_synthetic({}, synthetic)}
    with atomic_path(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(note, indent=1, default=str))
    with atomic_path(path) as temporary:
        np.save(temporary, array)


def _as_synthetic(metadata: dict[str, Any], synthetic: dict[str, Any]) -> dict[str, Any]:
    from micrographia import __version__

    made = {"software": f"micrographia {__version__}", **synthetic, "synthetic": True}
    return {**metadata, "micrographia": made}


def _description(image: Micrograph | StoredImage) -> str:
    source = {"pixel_size_source": image.pixel_size_source} if isinstance(image, Micrograph) else {}
    told = {
        "name": image.name,
        "pixel_size_A": image.pixel_size_A,
        **source,
        "history": image.history,
        "metadata": image.metadata,
    }
    return json.dumps(told, default=_plain)


def read_provenance(path: str | Path) -> dict[str, Any] | None:
    """How a generated image or movie was made, as it was noted on writing; None for any other."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file.")
    if path.suffix.lower() in VIDEO_SUFFIXES:
        with _damage_explained(path):
            return read_video_provenance(path)
    with _damage_explained(path):
        descriptions = [signal.description or _sidecar(path) for signal in read_signals(path)]
    for description in descriptions:
        metadata = description.get("metadata")
        if isinstance(metadata, dict) and "micrographia" in metadata:
            return metadata["micrographia"]
    return None


# ---------------------------------------------------------------- from signals to images


def _images(signal: Signal, path: Path, colours: bool) -> Iterator[StoredImage]:
    """Every frame of a signal, named after the file."""
    if _why_no_image(signal):
        return
    data = signal.data
    width = data.shape[-2] if signal.colour else data.shape[-1]
    description = signal.description or _sidecar(path)
    ours = description.get("metadata")
    metadata = {
        **microscope_from_json(description),
        **(ours if isinstance(ours, dict) else {}),
        **signal.metadata,
    }
    size = _square_pixel(signal, metadata)
    if size is None or "pixel_size_A" in description:  # Our own note is exact, a TIFF's resolution is not.
        size = calibration_from_json(description, width) or size
    if size is None:
        size = _table_size_A(path)
    frames = [data] if data.ndim == (3 if signal.colour else 2) else data
    for k in range(len(frames)):
        frame = np.asarray(frames[k])
        if colours:
            frame = _colours(frame, path)
        elif signal.colour:
            frame = _grey(frame, path)
        yield StoredImage(frame, path.name, size, dict(metadata), _history(description.get("history")))


def _history(told: Any) -> tuple[str, ...]:
    """What a description calls the history, which somebody may have written by hand: a list, one entry, null."""
    entries = told if isinstance(told, list) else [] if told is None else [told]
    return tuple(map(str, entries))


def _why_no_image(signal: Signal) -> str:
    shape = tuple(map(int, signal.data.shape))
    plane = 3 if signal.colour else 2
    if signal.not_image:
        return signal.not_image
    if len(shape) not in (plane, plane + 1):
        return f"{len(shape)}-D data {shape}"
    if signal.data.dtype.kind not in "iufb":
        return f"data of type {signal.data.dtype}"
    return ""


def _square_pixel(signal: Signal, metadata: dict[str, Any]) -> float | None:
    y, x = signal.pixel_size_A
    if y is None or x is None:
        return None
    if abs(y - x) > _SQUARE_WITHIN * min(x, y):
        metadata["warning"] = f"pixels are not square: {x:.5g} Å along x, {y:.5g} Å along y; the mean is used"
    return (x + y) / 2


def _grey(colours: np.ndarray, path: Path) -> np.ndarray:
    """One channel of ``[H, W, 3 or 4]`` whose colours are equal: a grey picture saved as colour."""
    if not (colours[..., :3] == colours[..., :1]).all():
        raise ColouredImage(
            f"{path}: is a colour photo or a coloured map, not a detector signal; save it in grey, "
            "without annotations, or use the microscope's own file."
        )
    return colours[..., 0]


def _colours(frame: np.ndarray, path: Path) -> np.ndarray:
    """Red, green and blue of ``[H, W, 3 or 4]``; a fourth channel is transparency."""
    if frame.ndim != 3:
        raise UserError(f"{path}: is grey, not in colours; leave it out, or read all as grey (one channel).")
    return frame[..., :3]


def _sidecar(path: Path) -> dict[str, Any]:
    """Metadata in a JSON file of the same name beside `path`."""
    beside = path.with_suffix(".json")
    return told_json(beside.read_text(errors="replace")) if beside.is_file() else {}


def _table_size_A(path: Path) -> float | None:
    """The pixel size that a CSV table in the same folder gives for this file.

    Any table counts that has a column ``image`` and one of ``pixel_size_A`` and ``pixel_size_angstrom``.
    """
    for table in sorted(path.parent.glob("*.csv")):
        found = _pixel_sizes(table, table.stat().st_mtime_ns).get(path.name)
        if found is not None:
            return found
    return None


@functools.lru_cache(maxsize=64)
def _pixel_sizes(table: Path, changed: int) -> dict[str, float]:
    try:
        head = pd.read_csv(table, nrows=0).columns
        column = next((c for c in ("pixel_size_A", "pixel_size_angstrom") if c in head), None)
        if column is None or "image" not in head:
            return {}
        values = pd.read_csv(table, usecols=["image", column]).dropna()
        return dict(zip(values["image"].astype(str), values[column].astype(float), strict=True))
    except (ValueError, OSError):  # not a table, or not of numbers: it says nothing about pixel sizes
        return {}


# ---------------------------------------------------------------- writing


def _write_tiff(path: Path, image: Micrograph | StoredImage, description: str) -> None:
    import tifffile

    size_A = image.pixel_size_A
    if image.data.ndim == 3:  # ImageJ's own TIFF has no 16-bit colours
        tifffile.imwrite(
            path,
            image.data,
            photometric="rgb",
            resolution=(1e8 / size_A,) * 2 if size_A else None,
            resolutionunit="CENTIMETER" if size_A else None,
            metadata={"micrographia": description},
        )
        return
    told: dict[str, Any] = {"Info": description}
    resolution = None
    if size_A is not None:
        told["unit"] = "nm"
        resolution = (10 / size_A,) * 2
    tifffile.imwrite(path, image.data, imagej=True, resolution=resolution, metadata=told)


def _write_png(path: Path, micrograph: Micrograph, description: str) -> None:
    try:
        scaled = robust_scale(micrograph.data)[0]
    except UserError as error:
        raise UserError(f"{micrograph.name}: cannot be shown as PNG. {error}") from error
    grey = np.clip(np.round((scaled + 1) * 127.5), 0, 255).astype(np.uint8)
    _write_png_as_it_is(path, StoredImage(grey), description)


def _write_png_as_it_is(path: Path, image: StoredImage, description: str) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    notes.add_text("micrographia", description)
    Image.fromarray(image.data).save(path, pnginfo=notes)


def _write_npy(path: Path, micrograph: Micrograph, description: str) -> None:
    np.save(path, micrograph.data)


def write_marked(path: str | Path, micrograph: Micrograph, sites: pd.DataFrame) -> None:
    """Write an image ``.hspy`` with its sites as HyperSpy markers, one set per kind.

    `hyperspy.api.load(path).plot()` shows them; HyperSpy itself is not needed to write them.
    """
    scale = micrograph.pixel_size_A / 10 if micrograph.pixel_size_A else 1.0
    markers = {}
    for colour, (kind, own) in zip(MARKER_COLOURS * 10, sites.groupby("kind"), strict=False):
        arguments = {
            "offsets": np.c_[own["x_px"], own["y_px"]] * scale,
            "sizes": np.array([10.0]),
            "facecolor": "none",
            "edgecolor": colour,
        }
        markers[str(kind)] = {
            "class": "Points",
            "name": str(kind),
            "plot_on_signal": True,
            "kwargs": arguments,
        }
    with atomic_path(path) as temporary:
        _write_hspy(temporary, micrograph, "{}", markers)


def _write_hspy(path: Path, micrograph: Micrograph, description: str, markers: dict | None = None) -> None:
    from rsciio.hspy import file_writer

    from micrographia import __version__

    scale, unit = (micrograph.pixel_size_A / 10, "nm") if micrograph.pixel_size_A else (1.0, "")
    axes = [
        {"name": name, "size": size, "scale": scale, "offset": 0.0, "units": unit, "navigate": False}
        for name, size in zip("yx", micrograph.shape, strict=True)
    ]
    signal = {
        "data": micrograph.data,
        "axes": axes,
        "metadata": {
            "General": {"title": micrograph.name},
            "Signal": {"signal_type": ""},
            "micrographia": description,
            **({"Markers": markers} if markers else {}),
        },
        "original_metadata": {},
        # HyperSpy would look for its signal class in a package named here; this is a plain Signal2D.
        "package_info": {"package": "", "package_version": __version__},
        "tmp_parameters": {},
        "learning_results": {},
        "attributes": {"_lazy": False},
        "models": {},
    }
    file_writer(str(path), signal)


def _plain(value: Any) -> Any:
    """JSON for NumPy scalars, arrays and everything else that metadata may hold."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
