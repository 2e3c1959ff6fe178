from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from micrographia.cli.main import main
from micrographia.errors import UserError
from micrographia.io import read_provenance
from micrographia.video import read_video_provenance, write_video


def frames(count: int = 4, shape: tuple[int, ...] = (20, 30)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def read_gif(path, mode: str) -> np.ndarray:
    with Image.open(path) as picture:
        out = []
        for k in range(picture.n_frames):
            picture.seek(k)
            out.append(np.asarray(picture.convert(mode)))
        return np.stack(out)


def smooth(count: int, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([127 + 100 * np.sin(x / 6 + k / 3) * np.cos(y / 8) for k in range(count)]).astype(
        np.uint8
    )


def test_a_grey_gif_holds_the_frames_exactly(tmp_path):
    movie = frames()
    write_video(tmp_path / "a.gif", movie, 8)
    assert np.array_equal(read_gif(tmp_path / "a.gif", "L"), movie)
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.info["duration"] == 120, "125 ms in hundredths of a second"
        assert picture.info["loop"] == 0


def test_a_coloured_gif_is_close(tmp_path):
    movie = np.stack([smooth(3, 24, 40), smooth(3, 24, 40) // 2, np.zeros((3, 24, 40), np.uint8)], axis=-1)
    write_video(tmp_path / "a.gif", movie)
    found = read_gif(tmp_path / "a.gif", "RGB")
    assert found.shape == movie.shape
    assert np.abs(found.astype(int) - movie).mean() < 3


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_the_command_line_tells_how_a_movie_was_made(tmp_path, suffix):
    if suffix == ".mp4":
        pytest.importorskip("imageio_ffmpeg")
    made = {"model": "run/modèle.safetensors", "between": [3, 17], "note": 'a = "b"; #c\\d\n' * 40}
    path = tmp_path / f"a{suffix}"
    write_video(path, smooth(5, 32, 48), 5, made)
    command = [sys.executable, "-m", "micrographia", "provenance", str(path)]
    told = json.loads(subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout)
    assert told.pop("software").startswith("micrographia ")
    assert told == {**made, "synthetic": True}


@pytest.mark.parametrize("shape", [(32, 48), (33, 47), (32, 48, 3)])
def test_mp4_plays_the_frames(tmp_path, shape):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    movie = smooth(7, *shape[:2])
    movie = np.stack([movie, movie, 255 - movie], axis=-1) if len(shape) == 3 else movie
    write_video(tmp_path / "a.mp4", movie, 7)
    reader = ffmpeg.read_frames(str(tmp_path / "a.mp4"), pix_fmt="rgb24")
    about = next(reader)
    assert about["fps"] == pytest.approx(7)
    width, height = about["size"]
    assert (height, width) == (shape[0] + shape[0] % 2, shape[1] + shape[1] % 2)
    played = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    assert len(played) == 7
    expected = movie if movie.ndim == 4 else movie[..., None].repeat(3, axis=-1)
    error = np.abs(np.stack(played)[:, : shape[0], : shape[1]].astype(float) - expected)
    assert error.mean() < (6 if movie.ndim == 4 else 2.5)


def test_without_the_encoder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match=r"micrographia\[video\].*choose \.gif"):
        write_video(tmp_path / "a.mp4", frames())
    assert list(tmp_path.iterdir()) == []


def test_other_movies_have_no_provenance(tmp_path):
    Image.fromarray(frames()[0]).save(tmp_path / "a.gif")
    assert read_provenance(tmp_path / "a.gif") is None
    (tmp_path / "b.mp4").write_bytes(b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\x08moov")
    assert read_provenance(tmp_path / "b.mp4") is None
    assert read_video_provenance(tmp_path / "b.mp4") is None


def test_a_truncated_mp4_is_damaged_not_somebody_elses(tmp_path, capsys):
    pytest.importorskip("imageio_ffmpeg")
    write_video(tmp_path / "a.mp4", frames())
    whole = (tmp_path / "a.mp4").read_bytes()
    table = whole.index(b"moov")
    for kept in (table - 4, table + 40, table + 4):
        (tmp_path / "b.mp4").write_bytes(whole[:kept])
        assert main(["provenance", str(tmp_path / "b.mp4")]) == 2
        assert "incomplete" in capsys.readouterr().err
    (tmp_path / "b.mp4").write_bytes(whole[:-9])  # only pictures are missing
    assert read_provenance(tmp_path / "b.mp4")["synthetic"] is True


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
@pytest.mark.parametrize("content", [b"", b"not a movie, whatever its name says " * 9, b"\0" * 99])
def test_damaged_movies(tmp_path, suffix, content):
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_provenance(tmp_path / f"a{suffix}")


@pytest.mark.parametrize(
    ("name", "movie", "rate", "message"),
    [
        ("a.avi", frames(), 5, r"choose \.gif or \.mp4"),
        ("a.gif", frames(0), 5, "no frames"),
        ("a.gif", frames(), 0, "give 0.01 to 50"),
        ("a.gif", frames(), 60, "give 0.01 to 50"),
        ("a.mp4", frames(), float("nan"), "give 0.01 to 1000"),
    ],
)
def test_bad_requests(tmp_path, name, movie, rate, message):
    with pytest.raises(UserError, match=message):
        write_video(tmp_path / name, movie, rate)
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "a.gif", frames().astype(float))
    assert list(tmp_path.iterdir()) == []
