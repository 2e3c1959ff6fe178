"""One reader per family of file formats; each returns every signal in the file with its axes calibrated.

Only :mod:`micrographia.io` uses this module. A reader may raise anything; io turns it into a `UserError`.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from micrographia.errors import UserError

#: Files above this size are opened lazily or memory-mapped, and computed frame by frame.
LAZY_ABOVE_BYTES = 256 * 2**20

#: Smallest edge (px) of an array in a container file that is taken for an image, not for a table.
SMALLEST_IMAGE = 32

_A_PER_UNIT = {
    "a": 1.0,
    "å": 1.0,
    "ang": 1.0,
    "angstrom": 1.0,
    "ångström": 1.0,
    "pm": 1e-2,
    "nm": 10.0,
    "nanometer": 10.0,
    "um": 1e4,
    "micron": 1e4,
    "micrometer": 1e4,
    "mm": 1e7,
    "cm": 1e8,
    "inch": 2.54e8,
    "m": 1e10,
    "meter": 1e10,
}


def length_A(value: Any, unit: Any) -> float | None:
    """Convert a length to Å; None if it is not a positive length (``'[]'``, ``''``, None, px, 1/nm, eV, -1).

    Every spelling of a unit that microscope software writes goes through here.
    """
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    # µ comes as U+00B5, as U+03BC, or as the escape sequence that ImageJ writes; Å as U+00C5 or U+212B.
    name = str(unit).replace("\\u00B5", "u").replace("\\u00b5", "u").replace("µ", "u").replace("μ", "u")
    name = name.replace("\u212b", "Å").strip().strip("[]").lower().removesuffix("s")
    factor = _A_PER_UNIT.get(name)
    return value * factor if factor is not None and np.isfinite(value) and value > 0 else None


@dataclass(frozen=True)
class Signal:
    """One array of a file: an image ``[H, W]``, a stack ``[N, H, W]`` or something that is neither.

    Parameters
    ----------
    data : array-like
        NumPy or Dask array.
    pixel_size_A : (float or None, float or None)
        Along y and x.
    metadata : dict
        What the reader understood: title, energy_keV, beam_current_pA, dwell_time_us.
    description : dict
        JSON that the file carries, as it is.
    colour : bool
        The last axis holds red, green, blue and perhaps alpha.
    not_image : str
        Why this signal is no image; empty if it may be one.
    """

    data: Any
    pixel_size_A: tuple[float | None, float | None] = (None, None)
    metadata: dict[str, Any] = field(default_factory=dict)
    description: dict[str, Any] = field(default_factory=dict)
    colour: bool = False
    not_image: str = ""


def read_signals(path: Path) -> list[Signal]:
    """Read every signal of one file with the reader for its suffix."""
    suffix = path.suffix.lower()
    reader = _READERS.get(suffix) or (_read_rsciio if suffix in rsciio_suffixes() else None)
    if reader is None:
        known = ", ".join(sorted(FOLDER_SUFFIXES))
        raise UserError(f"{path}: '{suffix}' is not a format that Micrographia reads (it reads {known}).")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # A reader's grumbles about a file that it reads are not for the user.
        return reader(path)


def rsciio_suffixes() -> set[str]:
    from rsciio import IO_PLUGINS

    return {f".{end.lower()}" for plugin in IO_PLUGINS for end in plugin["file_extensions"]}


def calibration_from_json(described: Any, width: int) -> float | None:
    """Pixel size (Å) told by metadata that somebody wrote beside or into a file.

    Known: our own ``pixel_size_A``, ``field_of_view_x`` with ``field_of_view_units``, ``scan size`` in nm.
    """
    own = length_A(_find(described, "pixel_size_A"), "Å")
    if own:
        return own
    field_A = length_A(_find(described, "field_of_view_x"), _find(described, "field_of_view_units"))
    field_A = field_A or length_A(_find(described, "scan size"), "nm")
    return field_A / width if field_A else None


def microscope_from_json(described: Any) -> dict[str, Any]:
    """Energy and beam current told by such metadata: ``{"voltage": "60 kV", "probe_current": "30 pA"}``."""
    found = {}
    for key, names in {
        "energy_keV": ("voltage", "acc voltage"),
        "beam_current_pA": ("probe_current",),
    }.items():
        for name in names:
            words = str(_find(described, name) or "").split()
            if words and _number(words[0]) and (len(words) == 1 or words[1] in ("kV", "keV", "pA")):
                found[key] = _number(words[0])
    return found


def told_json(text: Any) -> dict[str, Any]:
    """The dictionary in a JSON text, empty if the text is something else."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


# ---------------------------------------------------------------- RosettaSciIO


def _read_rsciio(path: Path) -> list[Signal]:
    from rsciio import IO_PLUGINS

    suffix = path.suffix.lower().lstrip(".")
    modules = {p["api"]: None for p in IO_PLUGINS if suffix in [e.lower() for e in p["file_extensions"]]}
    if not path.stat().st_size:
        raise ValueError("the file is empty")
    failure: Exception = ValueError("no reader")
    # Several plugins claim one suffix; those whose own dependency is not installed are passed over.
    for api in modules:
        try:
            read = importlib.import_module(api).file_reader
            dictionaries = read(str(path), lazy=path.stat().st_size > LAZY_ABOVE_BYTES)
        except ImportError as error:
            failure = failure if not isinstance(failure, ValueError) else error
        except Exception as error:
            failure = error
        else:
            return [_signal_from_rsciio(dictionary) for dictionary in dictionaries]
    raise failure


def _signal_from_rsciio(dictionary: Mapping[str, Any]) -> Signal:
    data, axes = dictionary["data"], dictionary["axes"]
    metadata = _microscope(dictionary)
    description = told_json(dictionary.get("metadata", {}).get("micrographia"))
    title = _find(dictionary.get("metadata", {}), "title")
    if title:
        metadata["title"] = str(title)
    energy = [
        a for a in axes if "energy" in str(a.get("name")).lower() or str(a.get("units")) in ("eV", "keV")
    ]
    if energy:
        return Signal(data, metadata=metadata, not_image=f"a spectrum or spectrum image {tuple(data.shape)}")
    if getattr(data.dtype, "names", None):  # RosettaSciIO packs colours into a structured type.
        data = np.stack([np.asarray(data[name]) for name in data.dtype.names], axis=-1)
        return Signal(data, metadata=metadata, description=description, colour=True)
    sizes = [length_A(axis.get("scale"), axis.get("units")) for axis in axes[-2:]]
    pixel_size = (sizes[0], sizes[1]) if len(sizes) == 2 else (None, None)
    return Signal(data, pixel_size, metadata, description)


def _microscope(dictionary: Mapping[str, Any]) -> dict[str, Any]:
    """What later steps can use of the microscope's state: energy, current, dwell time."""
    instrument = dictionary.get("metadata", {}).get("Acquisition_instrument", {})
    scan = dictionary.get("original_metadata", {}).get("Scan", {})
    optics = dictionary.get("original_metadata", {}).get("Optics", {})
    values = {
        "energy_keV": _number(_find(instrument, "beam_energy"))
        or _number(_find(optics, "AccelerationVoltage")) / 1e3,
        "beam_current_pA": _number(_find(instrument, "beam_current")) * 1e3,
        "dwell_time_us": (_number(_find(instrument, "dwell_time")) or _number(_find(scan, "DwellTime")))
        * 1e6,
    }
    return {key: value for key, value in values.items() if value > 0}


def _read_zspy(path: Path) -> list[Signal]:
    # RosettaSciIO's own reader needs zarr 2.
    import zarr

    experiments: Any = zarr.open_group(path, mode="r")["Experiments"]
    signals = []
    for _, group in sorted(experiments.groups()):
        data = group["data"]
        axes = [dict(group[f"axis-{i}"].attrs) for i in range(data.ndim)]
        metadata = dict(group["metadata"].attrs) if "metadata" in group else {}
        signals.append(_signal_from_rsciio({"data": data[...], "axes": axes, "metadata": metadata}))
    return signals


# ---------------------------------------------------------------- TIFF


def _read_tiff(path: Path) -> list[Signal]:
    import tifffile

    out = "memmap" if path.stat().st_size > LAZY_ABOVE_BYTES else None
    signals = []
    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        size, metadata = _tiff_calibration(tif)
        description = told_json((tif.imagej_metadata or {}).get("Info"))
        if size == (None, None) and not (tif.is_imagej or tif.is_ome or tif.is_shaped):
            size = _tiff_vendor_calibration(path)
        if not _grey_map(getattr(page, "colormap", None)):
            return [Signal(page.asarray(), colour=True, not_image="a colour picture with a palette")]
        for series in tif.series:
            if getattr(series.keyframe, "is_reduced", False):  # A thumbnail.
                continue
            data, axes = series.asarray(out=out), series.axes
            colour = axes.endswith("S") and series.keyframe.samplesperpixel > 1
            if "S" in axes and not colour:
                data = np.moveaxis(data, axes.index("S"), -1)
                colour = series.keyframe.samplesperpixel > 1
            plane = data.shape[-3:] if colour else data.shape[-2:]
            if data.ndim > len(plane):
                data = data.reshape(-1, *plane)
            signals.append(Signal(data, size, metadata, description, colour))
    return signals


def _tiff_calibration(tif: Any) -> tuple[tuple[float | None, float | None], dict[str, Any]]:
    """Pixel size (y, x) and metadata as ImageJ, OME, Zeiss, FEI or the plain resolution tag tell them."""
    page = tif.pages.first
    per_unit = [_resolution(page, name) for name in ("YResolution", "XResolution")]
    if tif.is_imagej:
        told = tif.imagej_metadata or {}
        size = tuple(length_A(1 / r if r else None, told.get("unit")) for r in per_unit)
        return (size[0], size[1]), {}
    if tif.is_ome:
        from xml.etree import ElementTree

        pixels = ElementTree.fromstring(tif.ome_metadata).find(".//{*}Pixels")
        told = pixels.attrib if pixels is not None else {}
        # The OME schema's default unit is the micrometre.
        size = tuple(
            length_A(told.get(f"PhysicalSize{axis}"), told.get(f"PhysicalSize{axis}Unit", "µm"))
            for axis in "YX"
        )
        return (size[0], size[1]), {}
    if tif.is_sem and tif.sem_metadata:
        told = tif.sem_metadata
        pixel = told.get("ap_image_pixel_size") or told.get("ap_pixel_size") or (None, None, None)
        first = told.get("", ())
        # The unnamed numbers hold the pixel size in metres, unrounded.
        exact = length_A(first[3], "m") if len(first) > 3 else None
        shown = length_A(pixel[1], pixel[2])
        metadata = {"energy_keV": float(told["ap_actualkv"][1])} if "ap_actualkv" in told else {}
        agree = exact and shown and abs(exact / shown - 1) < 0.01
        return ((exact, exact) if agree else (shown, shown)), metadata
    if tif.is_fei and tif.fei_metadata:
        scan = tif.fei_metadata.get("Scan", {})
        return (length_A(scan.get("PixelHeight"), "m"), length_A(scan.get("PixelWidth"), "m")), {}
    unit = {2: "inch", 3: "cm"}.get(int(page.resolutionunit or 1))
    size = tuple(length_A(1 / r if r else None, unit) for r in per_unit)
    # Coarser than 10 µm is a resolution for printing (72 or 300 dpi), not a calibration.
    if not all(edge and edge < 1e5 for edge in size):
        return (None, None), {}
    return (size[0], size[1]), {}


def _tiff_vendor_calibration(path: Path) -> tuple[float | None, float | None]:
    """Pixel size from the private tags that RosettaSciIO knows (Gatan, Olympus, JEOL, Hamamatsu ...)."""
    from rsciio.tiff import file_reader

    try:
        axes = file_reader(str(path), lazy=True)[0]["axes"][-2:]
        return length_A(axes[0]["scale"], axes[0]["units"]), length_A(axes[1]["scale"], axes[1]["units"])
    except Exception:  # tifffile has read the picture; no calibration is not an error.
        return (None, None)


def _resolution(page: Any, name: str) -> float | None:
    tag = page.tags.get(name)
    if tag is None or not tag.value[1]:
        return None
    return tag.value[0] / tag.value[1] or None


def _grey_map(colours: np.ndarray | None) -> bool:
    """Whether a palette (``[3, 256]``) is absent or merely grey, so that the indices are the signal."""
    if colours is None:
        return True
    return bool((colours == colours[0]).all() and (np.diff(colours[0].astype(int)) >= 0).all())


# ---------------------------------------------------------------- pictures, arrays, containers


def _read_picture(path: Path) -> list[Signal]:
    from PIL import Image

    with Image.open(path) as picture:
        description = told_json(picture.info.get("micrographia"))
        plain = {"P": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "LA": "L", "1": "L"}.get(picture.mode)
        data = np.array(picture.convert(plain) if plain else picture)
    return [Signal(data, description=description, colour=data.ndim == 3)]


def _read_numpy(path: Path) -> list[Signal]:
    large = path.stat().st_size > LAZY_ABOVE_BYTES
    if path.suffix.lower() == ".npy":
        arrays = {"": np.load(path, allow_pickle=False, mmap_mode="r" if large else None)}
    else:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    signals = []
    for name, data in arrays.items():
        colour = data.ndim == 3 and data.shape[2] in (3, 4) and min(data.shape[:2]) >= SMALLEST_IMAGE
        signals.append(Signal(data, metadata={"title": name} if name else {}, colour=colour))
    return signals


def _read_hdf5(path: Path) -> list[Signal]:
    """Any HDF5 file: each 2-D or 3-D dataset of at least 32 x 32; JSON texts in it are its metadata."""
    import h5py

    with h5py.File(path, "r") as file:
        if file.attrs.get("file_format") == "HyperSpy":
            return _read_rsciio(path)
        datasets = list(_datasets(file))
        texts = [told_json(_text(dataset)) for dataset in datasets if dataset.shape == ()]
        told = {key: value for text in texts for key, value in text.items()}
        signals = []
        for dataset in datasets:
            numeric = dataset.dtype.kind in "iufb"
            if not numeric or dataset.ndim not in (2, 3) or min(dataset.shape[-2:]) < SMALLEST_IMAGE:
                continue
            title = {"title": dataset.name.lstrip("/")}
            signals.append(Signal(dataset[()], metadata=title, description=told))
    return signals


def _datasets(group: Any) -> Iterator[Any]:
    import h5py

    for name in group:
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _datasets(item)
        else:
            yield item


def _text(dataset: Any) -> str:
    value = dataset[()]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _read_ibw(path: Path) -> list[Signal]:
    """Igor binary wave as atomic force microscopes write it: ``[x, y, channel]``, y upwards."""
    from igor2 import binarywave

    wave = binarywave.load(str(path))["wave"]
    data, header = wave["wData"], wave["wave_header"]
    if data.ndim not in (2, 3):
        return [Signal(data)]
    unit = [b"".join(header["dimUnits"][i]).decode(errors="replace") for i in (1, 0)]
    size = (length_A(header["sfA"][1], unit[0]), length_A(header["sfA"][0], unit[1]))
    names = [label.decode(errors="replace") for label in wave["labels"][2][1:]]
    channels = np.atleast_3d(data)
    return [
        Signal(channels[:, ::-1, k].T, size, {"title": names[k]} if k < len(names) else {})
        for k in range(channels.shape[2])
    ]


# ---------------------------------------------------------------- helpers


def _find(nested: Any, key: str) -> Any:
    """First value under `key` at any depth of nested mappings, or None."""
    if not isinstance(nested, Mapping):
        return None
    if key in nested:
        return nested[key]
    return next((found for value in nested.values() if (found := _find(value, key)) is not None), None)


def _number(value: Any) -> float:
    """`value` as a float, 0 if it is not a finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    return number if np.isfinite(number) else 0.0


_READERS: dict[str, Callable[[Path], list[Signal]]] = {
    **dict.fromkeys((".tif", ".tiff"), _read_tiff),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp"), _read_picture),
    **dict.fromkeys((".npy", ".npz"), _read_numpy),
    **dict.fromkeys((".h5", ".hdf5"), _read_hdf5),
    ".ibw": _read_ibw,
    ".zspy": _read_zspy,
}

#: What is taken for an image in a folder. Other formats that RosettaSciIO reads must be named one by one.
FOLDER_SUFFIXES = frozenset(_READERS) | {
    *(
        ".dm3",
        ".dm4",
        ".emd",
        ".mrc",
        ".ser",
        ".emi",
        ".hspy",
        ".bcf",
        ".blo",
        ".de5",
        ".prz",
        ".tvips",
        ".sur",
    ),
}
