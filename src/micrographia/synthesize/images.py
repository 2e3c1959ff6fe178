"""Training images of generative models, from a user's folders; samples, back in the units of those images.

One intensity window serves the whole set, never one per image: brightness and contrast are part of the
population that a model learns, and a sample written with the same window can be laid beside the originals.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from micrographia.errors import UserError
from micrographia.files import find_files, unique_names
from micrographia.formats import FOLDER_SUFFIXES
from micrographia.io import ColouredImage, StoredImage, read_stored, write_stored
from micrographia.micrograph import robust_scale
from micrographia.synthesize.resolution import RESOLUTIONS, check_resolution

#: Shares of all pixels below and above the intensity window.
WINDOW_QUANTILES = (0.001, 0.999)
#: Pixels of float images from which the window is measured, at most; of integers all are counted.
_MOST_PIXELS = 2**24
#: Pixel sizes that differ by more than this share are not one scale.
_SAME_SCALE_WITHIN = 0.005
#: Pictures that would not keep the grey levels; no names of folders either.
_NOT_WRITTEN = (".jpg", ".jpeg", ".gif", ".bmp", ".webp")
#: Names of the bit depths in messages.
_DEPTHS = {"uint8": "8-bit", "uint16": "16-bit", "float32": "float"}


@dataclass(frozen=True)
class Window:
    """The grey levels that become -1 and +1, and the number format of the originals."""

    low: float
    high: float
    dtype: Literal["uint8", "uint16", "float32"] = "float32"

    def __post_init__(self) -> None:
        if not self.high > self.low:
            raise UserError(
                f"The intensity window {self.low:g} to {self.high:g} is empty: the images are constant."
            )

    def scale(self, images: Tensor) -> Tensor:
        """Map grey levels to -1 ... +1, float32; levels outside the window are clipped."""
        scaled = (images.float() - self.low) * (2 / (self.high - self.low)) - 1
        return scaled.clamp_(-1, 1)

    def restore(self, images: np.ndarray) -> np.ndarray:
        """Map -1 ... +1 back to grey levels; integers are rounded and kept within their range."""
        levels = (np.asarray(images, np.float64) + 1) * ((self.high - self.low) / 2) + self.low
        if self.dtype != "float32":
            levels = np.clip(np.round(levels), 0, np.iinfo(self.dtype).max)
        return levels.astype(self.dtype)


@dataclass(frozen=True)
class TrainingSet:
    """Images of one size, in memory as compactly as the files hold them."""

    images: np.ndarray
    """``[N, C, H, W]``, uint8, uint16 or float32 as in the files: 3000 images of 512² and 8 bit are 0.8 GB,
    a quarter of what float32 takes. :meth:`batch` makes of some of them what a network sees."""
    window: Window
    """One for the whole set: its 0.1 % and 99.9 % quantiles."""
    names: tuple[str, ...]
    """``N`` names of the images that the patches were taken from; patches of one image share it."""
    corners_px: np.ndarray
    """``[N, 2]``, x and y of each patch's top left pixel in its image (after ``fit="resize"``: resized)."""
    failures: tuple[tuple[Path, str], ...] = ()
    """Files, or frames of them, that were left out, and why."""
    pixel_size_A: float | None = None
    """Of all patches, if they share one."""
    labels: np.ndarray | None = None
    """``[N]``, int64, number of each patch's class; None without classes."""
    classes: tuple[str, ...] = ()
    """Names of the classes."""
    notes: tuple[str, ...] = field(default=())
    """What a user should know about the set, in sentences."""
    binning: int = 1
    """Squares of so many pixels of the files are one here."""
    fit: Literal["crop", "resize"] = "crop"
    """Whether larger images were cut, or scaled as a whole."""
    scale_each: bool = False
    """Whether each image was scaled by itself before patches were cut (`robust_scale`)."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def class_numbers(self) -> np.ndarray:
        """`labels`, or zeros where there are no classes: ``[N]``, int64."""
        return np.zeros(len(self), np.int64) if self.labels is None else self.labels

    def part(self, which: np.ndarray) -> TrainingSet:
        """Some of the patches, by numbers or by a mask ``[N]``, in the same window."""
        which = np.arange(len(self))[which]
        return replace(
            self,
            images=self.images[which],
            names=tuple(self.names[i] for i in which),
            corners_px=self.corners_px[which],
            labels=None if self.labels is None else self.labels[which],
        )

    def batch(self, indices: Sequence[int] | np.ndarray | slice) -> Tensor:
        """Patches as networks see them: float32 ``[n, C, H, W]``, the window mapped to -1 ... +1.

        The 0.2 % of pixels outside the window are clipped: a hot pixel or an X-ray spike is nothing that a
        generator could or should learn.
        """
        chosen = np.ascontiguousarray(self.images[indices])
        if chosen.dtype == np.uint16:  # of which PyTorch knows little
            chosen = chosen.astype(np.int32)
        return self.window.scale(torch.from_numpy(chosen))


def read_training_set(
    paths: str | Path | Sequence[str | Path],
    resolution: int,
    channels: int = 1,
    fit: Literal["crop", "resize"] = "crop",
    crops_per_image: int | None = None,
    classes: bool = False,
    seed: int = 0,
    shape_px: tuple[int, int] | None = None,
    binning: int = 1,
    say: Callable[[str], None] | None = None,
    pixel_size_A: float | None = None,
    scale_each: bool = False,
) -> TrainingSet:
    """Read files, folders and patterns as training images that networks of this resolution can make.

    Parameters
    ----------
    paths : path or sequence of paths
        As :func:`micrographia.io.read_folder` takes them; with `classes` one folder of folders.
    resolution : int
        Edge of the patches in pixels, a power of two from 16 to 1024.
    channels : 1 or 3
        Grey, or red, green and blue. Images of the other kind are left out and listed.
    fit : "crop" or "resize"
        Larger images are cut into patches at their own scale, which is physical; or scaled until the short
        edge fits (mean over the area of each new pixel) and cropped about their centre: for photographs
        of whole things. Smaller images are left out, never enlarged.
    crops_per_image : int, optional
        With "crop": this many patches at random places, a function of `seed` and the file's number alone.
        None: the fewest patches that cover the image, overlapping evenly where they must.
    classes : bool
        Each sub-folder is a class; its name is the class's.
    seed : int
        Of the random places.
    shape_px : (int, int), optional
        Height and width of the patches where they are no squares, at most `resolution`.
    binning : int
        Squares of so many pixels become one before anything else: for finely sampled images, of which a patch
        would show too little.
    say : callable, optional
        Takes sentences for the user: what was left out, and notes.
    pixel_size_A : float, optional
        Of all files, in place of what they say.
    scale_each : bool
        Scale each image by its own quantiles (`robust_scale`) before patches are cut: where brightness and contrast
        were set from image to image, and would else be most of what there is to learn.

    Raises
    ------
    UserError
        The resolution is not a power of two; no file, or fewer than two patches; all images too small;
        bit depths mixed (grey levels of 8-bit, 16-bit and float images have nothing to do with each other); all images constant.
    """
    shape_px = shape_px or (resolution, resolution)
    _check_request(resolution, shape_px, channels, fit, crops_per_image, binning)
    files, class_of_file, class_names, outside = _files(paths, classes)
    reader = _Reader(shape_px, channels, fit, crops_per_image, seed, binning, pixel_size_A, scale_each)
    reader.failures += outside
    for number, (file, name) in enumerate(zip(files, unique_names(files), strict=True)):
        reader.add(number, file, name, class_of_file[number])
    reader.refuse_if_useless(len(files))
    images = np.stack(reader.patches)
    reader.patches.clear()
    shared_A, notes = _shared_pixel_size(reader.pixel_sizes_A)
    notes += reader.notes(len(files))
    labels = np.array(reader.labels, np.int64) if classes else None
    if labels is not None:
        counts = np.bincount(labels, minlength=len(class_names))
        if not counts.all():
            name = class_names[int(np.argmin(counts))]
            why = next(reason for file, reason in reader.failures if file.parent.name == name)
            raise UserError(
                f"No usable image in the class {name}: {why} Mend its images or take the folder away."
            )
    result = TrainingSet(
        images,
        _window(images),
        tuple(reader.names),
        np.array(reader.corners_px, np.int64),
        tuple(reader.failures),
        shared_A,
        labels,
        class_names,
        notes,
        binning,
        fit,
        scale_each,
    )
    if say is not None:
        for _, reason in result.failures[:5]:
            say(f"left out: {reason}")
        if len(result.failures) > 5:
            say(f"left out: {len(result.failures) - 5} more")
        for note in result.notes:
            say(f"note: {note}")
    return result


def sample_suffix(window: Window, channels: int) -> Literal[".png", ".tif"]:
    """What samples are written as if nothing else is asked for: PNG, which holds no colours of more than 8 bit."""
    return ".tif" if channels == 3 and window.dtype != "uint8" else ".png"


def write_samples(
    path: str | Path,
    images: np.ndarray | Tensor,
    window: Window,
    provenance: Mapping[str, Any],
    seeds: Sequence[int] | None = None,
    each: Sequence[Mapping[str, Any]] | None = None,
    pixel_size_A: float | None = None,
    suffix: Literal[".png", ".tif"] = ".png",
) -> list[Path]:
    """Write generated images in the grey levels of the training images, each marked as synthetic.

    No image is stretched by its own contrast: the training set's window applies to all. PNG holds 8- and
    16-bit samples as they are; samples of float images become 16 bit over the window, which the metadata
    tell. TIFF keeps the number format of the originals. Colours of more than 8 bit become TIFF (`sample_suffix`).

    Parameters
    ----------
    path : path
        A folder, or (for one image) a file with the suffix ``.png`` or ``.tif``.
    images : ``[N, C, H, W]``, ``[N, H, W]`` or, of one channel, ``[H, W]``
        In the working range -1 ... +1; what lies beyond is clipped, as in the training.
    window : Window
        Of the training set.
    provenance : mapping
        How all of them were made: model, psi, ...; kept with ``"synthetic": True`` and the version in the file.
    seeds : sequence of int, optional
        One for each image; kept in its file and in its name, ``seed-0017.png``. Without them
        images are numbered, ``sample-0000.png``.
    each : sequence of mappings, optional
        Further provenance for each image: class, latents, ...
    pixel_size_A : float, optional
        Of the training images.
    suffix : ".png" or ".tif"

    Returns
    -------
    list of Path

    Raises
    ------
    UserError
        Several images for one file, NaN, or a folder that cannot be written.
    """
    path = Path(path)
    stack = images.detach().float().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    stack = stack[None] if stack.ndim == 2 else stack
    stack = stack[:, None] if stack.ndim == 3 else stack
    if stack.ndim != 4 or stack.shape[1] not in (1, 3):
        raise UserError(f"Samples of shape {stack.shape} are not images [N, 1 or 3, H, W].")
    if not np.isfinite(stack).all():
        raise UserError(
            "Some samples are NaN or infinite: the model that made them has diverged; train it anew."
        )
    names = (
        [f"seed-{s:04d}" for s in seeds]
        if seeds is not None
        else [f"sample-{i:04d}" for i in range(len(stack))]
    )
    if len(names) != len(stack) or (each is not None and len(each) != len(stack)):
        raise ValueError(f"{len(stack)} samples, but another number of seeds or notes")
    if path.suffix.lower() in (".png", ".tif", ".tiff"):
        if len(stack) != 1:
            raise UserError(f"{path}: is one file for {len(stack)} samples; give a folder.")
        targets = [path]
    elif path.suffix.lower() in _NOT_WRITTEN:
        raise UserError(f"{path}: samples are written as .png or .tif, or into a folder.")
    else:
        suffix = ".tif" if suffix == ".tif" else sample_suffix(window, stack.shape[1])
        targets = [path / f"{name}{suffix}" for name in names]
    if len(set(targets)) < len(targets):
        raise UserError("Two samples have the same seed: they would be one file; give each its own.")
    for i, (target, image) in enumerate(zip(targets, stack.clip(-1, 1), strict=True)):
        made = dict(provenance)
        made |= {"seed": int(seeds[i])} if seeds is not None else {}
        made |= each[i] if each is not None else {}
        as_stored = window
        if window.dtype == "float32" and target.suffix.lower() == ".png":
            as_stored = Window(0, 65535, "uint16")
            made["grey_levels"] = {"0": window.low, "65535": window.high}
        made["window"] = [window.low, window.high]
        data = as_stored.restore(image)
        pixels = data[0] if len(data) == 1 else np.ascontiguousarray(np.moveaxis(data, 0, -1))
        write_stored(target, StoredImage(pixels, target.name, pixel_size_A), made)
    return targets


# ---------------------------------------------------------------- what was asked for


def _check_request(
    resolution: int,
    shape_px: tuple[int, int],
    channels: int,
    fit: str,
    crops_per_image: int | None,
    binning: int,
) -> None:
    check_resolution(resolution)
    if binning < 1:
        raise UserError(f"binning = {binning} is not possible: give 1 (none) or more.")
    if min(shape_px) < RESOLUTIONS[0]:
        raise UserError(
            f"Images of {shape_px[1]} x {shape_px[0]} px are too small: give at least {RESOLUTIONS[0]} px each way."
        )
    if max(shape_px) > resolution:
        raise UserError(
            f"Images of {shape_px[1]} x {shape_px[0]} px do not fit networks of {resolution} px: give a width and a height "
            f"from {RESOLUTIONS[0]} to {resolution}."
        )
    if channels not in (1, 3):
        raise UserError(f"{channels} channels cannot be read: choose 1 (grey) or 3 (red, green, blue).")
    if fit not in ("crop", "resize"):
        raise UserError(f"fit = '{fit}' is not possible: choose 'crop' or 'resize'.")
    if crops_per_image is not None and (crops_per_image < 1 or fit != "crop"):
        raise UserError(
            f"crops_per_image = {crops_per_image} with fit = '{fit}' is not possible: "
            "give at least 1, and fit = 'crop'."
        )


def _files(
    paths: str | Path | Sequence[str | Path], classes: bool
) -> tuple[list[Path], list[int], tuple[str, ...], list[tuple[Path, str]]]:
    """Files, the class of each, names of the classes, and files that belong to none."""
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    told = ", ".join(map(str, given)) or "no path given"
    for path in map(str, given):
        if not os.path.lexists(path) and not any(sign in path for sign in "*?["):
            raise UserError(f"{path}: no such file or folder.")
    folders = [folder for path in map(Path, given) if path.is_dir() for folder in _class_folders(path)]
    if not classes:
        files = find_files(given, FOLDER_SUFFIXES)
        if not files and folders:
            raise UserError(
                f"No image files directly in {told}; its folders {_some([f.name for f in folders])} hold some: "
                "name them, or say that they are classes."
            )
        if not files:
            raise UserError(f"No image files: {told}. Give files, folders or patterns such as 'scan_*.tif'.")
        return files, [0] * len(files), (), []
    if len(given) != 1 or len(folders) < 2:
        raise UserError(
            f"Classes are the sub-folders of one folder, two or more with images; {told} has {len(folders)}."
        )
    of_class = [find_files([folder], FOLDER_SUFFIXES) for folder in folders]
    loose = [
        (file, f"{file}: lies outside the class folders.") for file in find_files(given, FOLDER_SUFFIXES)
    ]
    files = [file for found in of_class for file in found]
    labels = [label for label, found in enumerate(of_class) for _ in found]
    return files, labels, tuple(folder.name for folder in folders), loose


def _class_folders(path: Path) -> list[Path]:
    inside = [p for p in path.iterdir() if p.is_dir() and p.name[0] != "." and p.suffix.lower() != ".zspy"]
    return sorted(p for p in inside if find_files([p], FOLDER_SUFFIXES))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


# ---------------------------------------------------------------- from files to patches


class _Reader:
    """Collects patches file by file, and what was wrong with the others."""

    def __init__(
        self,
        shape_px: tuple[int, int],
        channels: int,
        fit: str,
        crops: int | None,
        seed: int,
        binning: int,
        pixel_size_A: float | None = None,
        scale_each: bool = False,
    ) -> None:
        self.scale_each = scale_each
        self.height, self.width = shape_px
        self.channels, self.fit, self.crops, self.seed = channels, fit, crops, seed
        self.binning, self.pixel_size_A = binning, pixel_size_A
        self.patches: list[np.ndarray] = []
        self.names: list[str] = []
        self.corners_px: list[tuple[int, int]] = []
        self.labels: list[int] = []
        self.pixel_sizes_A: list[float | None] = []
        self.failures: list[tuple[Path, str]] = []
        self.depths: dict[str, list[str]] = {}
        self.levels: list[tuple[float, float]] = []
        self.too_small: list[int] = []
        self.generated = 0

    def add(self, number: int, file: Path, name: str, label: int) -> None:
        """Cut the patches of one file."""
        try:
            stored = read_stored(file, colours=self.channels == 3)
        except ColouredImage:
            why = (
                "is in colours, not in grey; save it in grey, or learn colours (fit --set images.channels=3)."
            )
            self.failures.append((file, f"{file}: {why}"))
            return
        except UserError as error:
            self.failures.append((file, str(error)))
            return
        self.generated += "micrographia" in stored[0].metadata
        for frame, image in enumerate(stored):
            own = name + image.name.removeprefix(file.name)
            reason = self._why_not(image.data)
            if reason:
                self.failures.append((file, f"{file.with_name(image.name)}: {reason}"))
                continue
            data = compact(image.data, self.scale_each)
            self.depths.setdefault(str(data.dtype), []).append(own)
            # In double precision: a sum of large float32 numbers overflows.
            self.levels.append((float(data.mean(dtype=float)), float(data.std(dtype=float))))
            data, scale = self._fitted(data)
            rng = np.random.default_rng([self.seed, number, frame])
            for x, y in self._corners(data, rng):
                patch = data[y : y + self.height, x : x + self.width]
                self.patches.append(np.moveaxis(np.atleast_3d(patch), -1, 0).copy())
                self.corners_px.append((x, y))
                self.names.append(own)
                self.labels.append(label)
            size_A = self.pixel_size_A or image.pixel_size_A
            self.pixel_sizes_A.append(size_A * scale if size_A else None)

    def _why_not(self, data: np.ndarray) -> str:
        largest = np.finfo(np.float32).max
        bad = int(data.size - (np.abs(data) <= largest).sum()) if data.dtype.kind == "f" else 0
        if bad:
            return f"{bad} of {data.size} pixels are NaN or infinite (or beyond {largest:.1g}); repair or crop them."
        if (data == data.flat[0]).all():
            return "is constant; there is nothing to learn from it."
        height, width = (n // self.binning for n in data.shape[:2])
        if height < self.height or width < self.width:
            self.too_small.append(min(height, width))
            return f"is {width} x {height} px, smaller than {self.width} x {self.height}."
        return ""

    def _fitted(self, data: np.ndarray) -> tuple[np.ndarray, float]:
        """The image from which patches are cut, and how many of its old pixels make a new one."""
        small = fitted(data, self.binning, self.fit, (self.height, self.width))
        # Of the rows that are left when squares are binned; the rest was cut off.
        return small, self.binning * min(
            (n // self.binning) / m for n, m in zip(data.shape, small.shape[:2], strict=False)
        )

    def _corners(self, data: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
        spare_y, spare_x = data.shape[0] - self.height, data.shape[1] - self.width
        if self.fit == "resize":
            return [(spare_x // 2, spare_y // 2)]
        if self.crops is None or spare_x == spare_y == 0:
            return [(x, y) for y in _cover(spare_y, self.height) for x in _cover(spare_x, self.width)]
        return [(int(rng.integers(spare_x + 1)), int(rng.integers(spare_y + 1))) for _ in range(self.crops)]

    def notes(self, files: int) -> tuple[str, ...]:
        """What the user should know about the images that were or were not taken."""
        notes = []
        if self.too_small:
            fits = [r for r in RESOLUTIONS if r <= min(self.too_small)]
            mend = f"; all would fit {fits[-1]} px" if fits else ""
            notes.append(
                f"{len(self.too_small)} images are smaller than {self.width} x {self.height} px and were left out{mend}."
            )
        if self.generated:
            notes.append(f"{self.generated} of {files} files were generated by micrographia, not measured.")
        brightness, contrast = np.transpose(self.levels)
        uneven = np.std(brightness) / np.median(contrast)
        if uneven > 1 and not self.scale_each:
            notes.append(
                f"brightness differs from image to image by {uneven:.1f} times the contrast "
                "within one, and is most of what will be learnt. If it was set at the microscope, images.scale_each=true "
                "takes it out."
            )
        return tuple(notes)

    def refuse_if_useless(self, files: int) -> None:
        """Raise for what no training could start from."""
        if len(self.depths) > 1:
            told = ", ".join(
                f"{len(names)} {_DEPTHS[dtype]} (such as {names[0]})" for dtype, names in self.depths.items()
            )
            raise UserError(
                f"The images are of several bit depths: {told}. Their grey levels cannot be compared: "
                "train on one kind, or convert all alike from the raw data."
            )
        if self.patches and len(self.patches) < 2:
            raise UserError(
                f"One image of {self.width} x {self.height} px ({self.names[0]}) is no population to learn: "
                "give more images, larger ones, or a smaller resolution."
            )
        if self.patches:
            return
        if self.too_small:
            fits = [r for r in RESOLUTIONS if r <= max(self.too_small)]
            mend = f"the largest that fits any of them is {fits[-1]}" if fits else "there is none that fits"
            all_fit = [r for r in RESOLUTIONS if r <= min(self.too_small)]
            mend += f", all of them {all_fit[-1]}" if all_fit and fits[-1] != all_fit[-1] else ""
            raise UserError(
                f"{len(self.too_small)} of {files} images are smaller than {self.width} x {self.height} px "
                f"(short edges {min(self.too_small)} to {max(self.too_small)} px), and the rest cannot be used: {mend}."
            )
        reasons = Counter(
            reason.partition(": ")[2].replace(str(file), "the file").replace(file.name, "the file")
            for file, reason in self.failures
        ).most_common(3)
        told = "; ".join(f"{count} x {reason}" for reason, count in reasons)
        raise UserError(f"None of {files} files can be learnt from, such as {self.failures[0][0]}: {told}")


def _cover(spare: int, edge: int) -> list[int]:
    """The fewest starts of patches that cover a line, evenly spaced."""
    count = -(-spare // edge) + 1
    return [round(start) for start in np.linspace(0, spare, count)]


def compact(data: np.ndarray, scale_each: bool = False) -> np.ndarray:
    """uint8 and uint16 as they are, bits as uint8, everything else (and what is scaled by itself) as float32; native."""
    if scale_each:
        return robust_scale(data.astype(np.float32))[0]
    if data.dtype.kind == "b":
        return data.astype(np.uint8)
    kept = data.dtype.kind == "u" and data.dtype.itemsize <= 2
    return data.astype(data.dtype.newbyteorder("=") if kept else np.float32)


def _binned(data: np.ndarray, binning: int) -> np.ndarray:
    """Mean over squares of pixels of ``[H, W]`` or ``[H, W, C]``; what is left over at the edge is cut off."""
    if binning == 1:
        return data
    height, width = (n // binning for n in data.shape[:2])
    return _area_resized(data[: height * binning, : width * binning], height, width)


def fitted(data: np.ndarray, binning: int, fit: str, shape_px: tuple[int, int]) -> np.ndarray:
    """An image ``[H, W]`` or ``[H, W, C]`` as patches of this shape are cut from it: binned, scaled if so wished."""
    data = _binned(data, binning)
    height, width = data.shape[:2]
    scale = min(height / shape_px[0], width / shape_px[1])
    if fit == "crop" or scale <= 1:
        return data
    return _area_resized(data, round(height / scale), round(width / scale))


def _area_resized(data: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each new pixel is the mean over its area; integers are rounded."""
    from PIL import Image

    planes = np.moveaxis(np.atleast_3d(data), -1, 0)
    small = [
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.Resampling.BOX))
        for plane in planes
    ]
    joined = np.stack(small, -1) if data.ndim == 3 else small[0]
    return joined if data.dtype == np.float32 else np.round(joined).astype(data.dtype)


def _shared_pixel_size(sizes_A: Sequence[float | None]) -> tuple[float | None, tuple[str, ...]]:
    known = [size for size in sizes_A if size is not None]
    if not known:
        return None, ()
    if len(known) < len(sizes_A):
        missing = len(sizes_A) - len(known)
        return None, (f"{missing} of {len(sizes_A)} images have no pixel size, so the set has none.",)
    if max(known) > min(known) * (1 + _SAME_SCALE_WITHIN):
        told = f"{min(known):.4g} to {max(known):.4g} Å"
        return None, (
            f"the pixel sizes range from {told}: the model will mix scales, and the set has no pixel size.",
        )
    return float(np.mean(known)), ()


def _window(images: np.ndarray) -> Window:
    """The set's quantiles; the extremes where those coincide."""
    if images.dtype == np.float32:
        flat = images.reshape(-1)
        some = flat[:: -(-flat.size // _MOST_PIXELS) | 1]  # an odd step does not keep to one column
        low, high = map(float, np.quantile(some, WINDOW_QUANTILES))
    else:
        counts = sum(
            np.bincount(image.reshape(-1), minlength=np.iinfo(images.dtype).max + 1) for image in images
        )
        share = np.cumsum(counts) / images.size
        low, high = (float(np.searchsorted(share, q)) for q in WINDOW_QUANTILES)
    if high <= low:
        low, high = float(images.min()), float(images.max())
    return Window(low, high, str(images.dtype))  # type: ignore[arg-type]
