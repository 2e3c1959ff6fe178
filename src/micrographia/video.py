"""Movies of generated images, GIF and MP4, that say in their metadata how they were made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from micrographia import __version__
from micrographia.errors import UserError
from micrographia.files import atomic_path

#: What :func:`write_video` writes and :func:`read_video_provenance` reads.
VIDEO_SUFFIXES = (".gif", ".mp4")
#: GIF counts time in hundredths of a second, and viewers slow down what is shown for less than two.
_FASTEST_GIF_FPS = 50


def write_video(
    path: str | Path,
    frames: np.ndarray,
    frames_per_second: float = 10.0,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write frames as ``.gif`` or ``.mp4`` (H.264; needs the extra ``video``). The file appears whole or never.

    Grey GIFs hold the frames exactly, coloured ones in 256 colours a frame. MP4 loses what the eye does not miss;
    a frame of odd height or width gets its last row or column twice.

    Parameters
    ----------
    path : path
    frames : uint8 array, ``[T, H, W]`` or ``[T, H, W, 3]``
    frames_per_second : float
        At most 50 in a GIF, which rounds the time of a frame to hundredths of a second.
    provenance : mapping, optional
        How the movie was made; kept with ``"synthetic": True`` and the version. Read by
        :func:`read_video_provenance` and ``micrographia provenance FILE``.

    Raises
    ------
    UserError
        Another suffix, no frames, an impossible rate, no encoder for MP4, or a file that cannot be written.
    """
    path, frames = Path(path), np.asarray(frames)
    suffix = path.suffix.lower()
    if suffix not in VIDEO_SUFFIXES:
        raise UserError(
            f"{path}: '{path.suffix}' is no format of movies; choose {' or '.join(VIDEO_SUFFIXES)}."
        )
    if frames.dtype != np.uint8 or not (frames.ndim == 3 or (frames.ndim == 4 and frames.shape[3] == 3)):
        raise ValueError(f"frames must be uint8 [T, H, W] or [T, H, W, 3], not {frames.dtype} {frames.shape}")
    if not frames.size:
        raise UserError(f"{path}: a movie of no frames cannot be written.")
    fastest = _FASTEST_GIF_FPS if suffix == ".gif" else 1000
    if not 0.01 <= frames_per_second <= fastest:
        raise UserError(
            f"{path}: {frames_per_second:g} frames per second are not possible; give 0.01 to {fastest}."
        )
    made = {"software": f"micrographia {__version__}", **(provenance or {}), "synthetic": True}
    comment = json.dumps({"micrographia": made}, default=str)
    write = _write_gif if suffix == ".gif" else _write_mp4
    with atomic_path(path) as temporary:
        write(temporary, frames, frames_per_second, comment)


def read_video_provenance(path: str | Path) -> dict[str, Any] | None:
    """How a movie was made, as :func:`write_video` noted it; None for any other movie.

    Raises
    ------
    ValueError, OSError
        The file is not what its suffix says, or damaged.
    """
    path = Path(path)
    comment = _gif_comment(path) if path.suffix.lower() == ".gif" else _mp4_comment(path)
    try:
        told = json.loads(comment)
    except ValueError:
        return None
    return told.get("micrographia") if isinstance(told, dict) else None


# ---------------------------------------------------------------- GIF


def _write_gif(path: Path, frames: np.ndarray, frames_per_second: float, comment: str) -> None:
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames]
    if frames.ndim == 4:
        pictures = [picture.quantize(256) for picture in pictures]
    pictures[0].save(
        path,
        save_all=True,
        append_images=pictures[1:],
        duration=10 * round(100 / frames_per_second),
        loop=0,
        comment=comment.encode("ascii"),
        optimize=False,
    )


def _gif_comment(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path, formats=["GIF"]) as picture:
        return picture.info.get("comment", b"")


# ---------------------------------------------------------------- MP4


def _write_mp4(path: Path, frames: np.ndarray, frames_per_second: float, comment: str) -> None:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UserError(
            f"{path}: MP4 needs an encoder: pip install 'micrographia[video]', or choose .gif."
        ) from error
    # Colours are stored for blocks of 2 x 2 pixels.
    odd = [(0, n % 2) for n in frames.shape[1:3]]
    frames = np.pad(frames, [(0, 0), *odd, *[(0, 0)] * (frames.ndim - 3)], mode="edge")
    height, width = frames.shape[1:3]
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        pix_fmt_in="gray" if frames.ndim == 3 else "rgb24",
        fps=frames_per_second,
        codec="libx264",
        quality=None,
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-crf", "16", "-movflags", "+faststart", "-metadata", f"comment={comment}"],
    )
    try:
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()
    # The encoder does not say when the disk was full; what it leaves then has no table of contents.
    try:
        whole = bool(_mp4_comment(path))
    except (UserError, ValueError, OSError):
        whole = False
    if not whole:
        raise OSError("the encoder left an incomplete file")


def _mp4_comment(path: Path) -> bytes:
    """The text that the MP4 container keeps at moov / udta / meta / ilst / ©cmt / data."""
    with path.open("rb") as file:
        end = path.stat().st_size
        if next((kind for kind, _, _ in _boxes(file, 0, end)), None) != b"ftyp":
            raise ValueError("not an MP4 file")
        start = 0
        # 'meta' begins with a version, 'data' with its type and language.
        for wanted, skip in (
            (b"moov", 0),
            (b"udta", 0),
            (b"meta", 4),
            (b"ilst", 0),
            (b"\xa9cmt", 0),
            (b"data", 8),
        ):
            found = next(((a, b) for kind, a, b in _boxes(file, start, end) if kind == wanted), None)
            if found is None and wanted == b"moov":
                raise ValueError("incomplete: its table of contents is missing")
            if found is None:
                return b""
            start, end = found[0] + skip, found[1]
        file.seek(start)
        return file.read(end - start)


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Every box (ISO/IEC 14496-12) between two places: its kind, and where its content begins and ends."""
    while start + 8 <= end:
        file.seek(start)
        size, kind = int.from_bytes(file.read(4), "big"), file.read(4)
        content = start + 8
        if size == 1:
            size, content = int.from_bytes(file.read(8), "big"), start + 16
        size = size or end - start
        if size < content - start:
            raise ValueError("not an MP4 file, or a damaged one")
        if start + size > end and kind != b"mdat":  # pictures may be cut off, and the rest still be told
            raise ValueError("incomplete: it is cut off")
        yield kind, content, min(start + size, end)
        start += size
