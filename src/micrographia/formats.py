"""One reader per family of file formats; each returns every signal in the file with its axes calibrated.

Only :mod:`micrographia.io` uses this module. A reader may raise anything; io turns it into a `UserError`.
"""

from __future__ import annotations

import importlib
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from micrographia.errors import UserError
from micrographia.signals import (
    LAZY_ABOVE_BYTES,
    SMALLEST_IMAGE,
    Signal,
    find_key,
    length_A,
    number,
    told_json,
)
from micrographia.tiff import read_tiff


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
            # Readers leave files open in what they fail with, to be closed when that is let go.
            traceback.clear_frames(error.__traceback__)
        else:
            return [_signal_from_rsciio(dictionary) for dictionary in dictionaries]
    raise failure


def _signal_from_rsciio(dictionary: Mapping[str, Any]) -> Signal:
    data, axes = dictionary["data"], dictionary["axes"]
    metadata = _microscope(dictionary)
    description = told_json(dictionary.get("metadata", {}).get("micrographia"))
    title = find_key(dictionary.get("metadata", {}), "title")
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
        "energy_keV": number(find_key(instrument, "beam_energy"))
        or number(find_key(optics, "AccelerationVoltage")) / 1e3,
        "beam_current_pA": number(find_key(instrument, "beam_current")) * 1e3,
        "dwell_time_us": (number(find_key(instrument, "dwell_time")) or number(find_key(scan, "DwellTime")))
        * 1e6,
    }
    return {key: value for key, value in values.items() if value > 0}


def _read_zspy(path: Path) -> list[Signal]:
    # RosettaSciIO's own reader needs zarr 2.
    import zarr

    experiments: Any = zarr.open_group(path, mode="r")["Experiments"]
    signals = []
    for _, group in sorted(experiments.groups()):
        stored = group["data"]
        data = stored[...] if stored.ndim in (2, 3) else stored  # no image is not worth reading
        axes = [dict(group[f"axis-{i}"].attrs) for i in range(data.ndim)]
        metadata = dict(group["metadata"].attrs) if "metadata" in group else {}
        signals.append(_signal_from_rsciio({"data": data, "axes": axes, "metadata": metadata}))
    return signals


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


_READERS: dict[str, Callable[[Path], list[Signal]]] = {
    **dict.fromkeys((".tif", ".tiff"), read_tiff),
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
