"""Reading and writing images: every microscope's format in, calibrated images with their provenance out."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from micrographia.errors import UserError
from micrographia.files import atomic_path, find_files, unique_names
from micrographia.formats import FOLDER_SUFFIXES, read_signals
from micrographia.micrograph import Micrograph, robust_scale
from micrographia.signals import Signal, calibration_from_json, microscope_from_json, told_json

__all__ = ["atomic_path", "read_folder", "read_images", "read_provenance", "write_image", "write_marked"]

#: Colours of the markers in HyperSpy files, told apart by colour-blind eyes, too.
MARKER_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#f0e442", "#56b4e9")
#: Edges of a pixel that differ by more than this share are told in the metadata.
_SQUARE_WITHIN = 0.005


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
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file.")
    if path.is_dir() and path.suffix.lower() != ".zspy":
        raise UserError(f"{path}: is a folder, not an image; read_folder reads folders.")
    try:
        signals = read_signals(path)
        images = [image for signal in signals for image in _images(signal, path)]
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}: {_first_line(error)}); "
            "the file is damaged, incomplete or of another format."
        ) from error
    if not images:
        reasons = "; ".join(reason for signal in signals if (reason := _why_no_image(signal)))
        raise UserError(f"{path}: holds no image [H, W] or stack [N, H, W] ({reasons or 'it is empty'}).")
    several = len(images) > 1
    return [
        _micrograph(image, f"{path.name}#{k}" if several else path.name, pixel_size_A)
        for k, image in enumerate(images)
    ]


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
            read = read_images(file, pixel_size_A)
        except UserError as error:
            failures.append((file, str(error)))
        else:
            images += [replace(image, name=name + image.name.removeprefix(file.name)) for image in read]
    if not images:
        reasons = "\n  ".join(reason for _, reason in failures[:5])
        more = f"\n  and {len(failures) - 5} more" if len(failures) > 5 else ""
        raise UserError(f"None of {len(failures)} files could be read:\n  {reasons}{more}")
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
        metadata = {**micrograph.metadata, "micrographia": {**synthetic, "synthetic": True}}
        micrograph = replace(micrograph, metadata=metadata)
    description = {
        "name": micrograph.name,
        "pixel_size_A": micrograph.pixel_size_A,
        "pixel_size_source": micrograph.pixel_size_source,
        "history": micrograph.history,
        "metadata": micrograph.metadata,
    }
    with atomic_path(path) as temporary:
        writer(temporary, micrograph, json.dumps(description, default=_plain))
        if path.suffix.lower() == ".npy":
            with atomic_path(path.with_suffix(".json")) as sidecar:
                sidecar.write_text(json.dumps(description, default=_plain, indent=1))


def read_provenance(path: str | Path) -> dict[str, Any] | None:
    """How a generated image was made, as :func:`write_image` noted it; None for any other image."""
    return read_images(path)[0].metadata.get("micrographia")


# ---------------------------------------------------------------- from signals to images

_Image = tuple[np.ndarray, float | None, dict[str, Any], tuple[str, ...]]


def _images(signal: Signal, path: Path) -> Iterator[_Image]:
    """Every frame of a signal as (data ``[H, W]``, pixel size in Å, metadata, history)."""
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
    history = tuple(map(str, description.get("history", ())))
    frames = [data] if data.ndim == (3 if signal.colour else 2) else data
    for k in range(len(frames)):
        frame = np.asarray(frames[k])
        yield (_grey(frame, path) if signal.colour else frame), size, dict(metadata), history


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
        raise UserError(
            f"{path}: is a colour photo or a coloured map, not a detector signal; save it in grey, "
            "without annotations, or use the microscope's own file."
        )
    return colours[..., 0]


def _micrograph(image: _Image, name: str, user_size_A: float | None) -> Micrograph:
    data, size, metadata, history = image
    if user_size_A is not None:
        return Micrograph(data, user_size_A, name, "user", metadata, history)
    return Micrograph(data, size, name, "file" if size else "unknown", metadata, history)


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


def _write_tiff(path: Path, micrograph: Micrograph, description: str) -> None:
    import tifffile

    told: dict[str, Any] = {"Info": description}
    resolution = None
    if micrograph.pixel_size_A is not None:
        told["unit"] = "nm"
        resolution = (10 / micrograph.pixel_size_A,) * 2
    tifffile.imwrite(path, micrograph.data, imagej=True, resolution=resolution, metadata=told)


def _write_png(path: Path, micrograph: Micrograph, description: str) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    try:
        scaled = robust_scale(micrograph.data)[0]
    except UserError as error:
        raise UserError(f"{micrograph.name}: cannot be shown as PNG. {error}") from error
    notes = PngInfo()
    notes.add_text("micrographia", description)
    grey = np.clip(np.round((scaled + 1) * 127.5), 0, 255).astype(np.uint8)
    Image.fromarray(grey).save(path, pnginfo=notes)


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
