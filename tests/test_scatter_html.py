from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from micrographia.errors import UserError
from micrographia.plots import scatter_html
from micrographia.plots.scatter_html import write_scatter_html

HOSTILE = "</script><script>document.title='caught'</script><img src=x onerror=\"document.title='caught'\">"


def table(n: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "z1": rng.normal(size=n),
            "z2": rng.normal(size=n),
            "cluster": np.arange(n) % 3,
            "ring": [HOSTILE, "b"] * (n // 2),
        }
    )


def patches(n: int = 40) -> np.ndarray:
    """Patch i is i bright pixels in a row."""
    return (np.arange(64) < np.arange(n)[:, None]).reshape(n, 8, 8).astype(np.float32)


def data_of(path: Path) -> dict:
    page = path.read_text("utf-8")
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S).group(1)
    )


def test_page_holds_the_table_and_every_patch_in_its_place(tmp_path):
    frame = table()
    frame.loc[2, "z2"] = np.nan
    data = data_of(write_scatter_html(tmp_path / "s.html", frame, patches(), colour="cluster"))
    columns = {c["name"]: c for c in data["columns"]}
    assert columns["z1"]["values"] == pytest.approx(frame["z1"], rel=1e-4)
    assert columns["z2"]["values"][2] is None
    assert columns["cluster"]["classes"] == ["0", "1", "2"]
    assert [columns["ring"]["classes"][v] for v in columns["ring"]["values"]] == frame["ring"].tolist()
    sprite = data["sprite"]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(sprite["source"].split(",")[1]))))
    for i in (0, 7, 39):
        r, c = divmod(i, sprite["across"])
        cut = sheet[8 * r : 8 * r + 8, 8 * c : 8 * c + 8]
        assert (cut > 127).sum() == i


def test_nothing_is_fetched_and_no_text_becomes_markup(tmp_path):
    page = write_scatter_html(tmp_path / "s.html", table(), title=HOSTILE).read_text("utf-8")
    assert "http" not in page
    assert "<img" not in page
    assert page.count("<script") == 2
    assert page.count("</script>") == 2


def test_many_atoms_are_thinned_with_a_note_and_patches_follow(tmp_path, monkeypatch):
    monkeypatch.setattr(scatter_html, "MOST_POINTS", 10)
    frame = table().assign(row=np.arange(40))
    path = write_scatter_html(tmp_path / "s.html", frame, patches())
    assert "10 of 40 atoms" in path.read_text("utf-8")
    data = data_of(path)
    rows = next(c["values"] for c in data["columns"] if c["name"] == "row")
    assert len(rows) == data["count"] == 10
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["sprite"]["source"].split(",")[1]))))
    first = (sheet[:8, :8] > 127).sum()
    assert first == rows[0]


def test_large_sets_are_shrunk_and_colour_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(scatter_html, "MOST_PIXELS", 40 * 10 * 10)
    data = data_of(
        write_scatter_html(tmp_path / "s.html", table(), np.random.default_rng(0).random((40, 2, 30, 20)))
    )
    assert (data["sprite"]["width"], data["sprite"]["height"]) == (7, 10)
    sheet = Image.open(io.BytesIO(base64.b64decode(data["sprite"]["source"].split(",")[1])))
    assert sheet.mode == "RGB"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": table(0)}, "empty"),
        ({"x": "z9"}, "no column 'z9'"),
        ({"colour": "dose"}, "no column 'dose'"),
        ({"x": "ring"}, "holds no numbers"),
        ({"patches": patches(3)}, "3 patches for 40 rows"),
        ({"table": pd.concat([table(), table()], axis=1)}, "two columns 'z1'"),
    ],
)
def test_what_cannot_be_shown_is_told(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        write_scatter_html(tmp_path / "s.html", **{"table": table(), **changes})
    assert not (tmp_path / "s.html").exists()


def test_a_browser_shows_the_patch_under_the_pointer_zooms_and_hides_classes(tmp_path, in_browser):
    path = write_scatter_html(tmp_path / "s.html", table(), patches(), colour="cluster", title=HOSTILE)
    told = in_browser(
        path,
        """
        const box = canvas.getBoundingClientRect();
        const at = (i) => [toScreen().x(DATA.columns[0].values[i]), toScreen().y(DATA.columns[1].values[i])];
        const act = (type, [x, y], more = {}) => {
          const init = { clientX: box.left + x, clientY: box.top + y, pointerId: 1, ...more };
          canvas.dispatchEvent(type === "wheel" ? new WheelEvent(type, init) : new PointerEvent(type, init));
        };
        act("pointermove", at(5));
        told.cells = [...document.querySelectorAll("#told td")].map((cell) => cell.textContent);
        const pixels = patch.getContext("2d").getImageData(0, 0, patch.width, patch.height).data;
        told.bright = pixels.filter((v, i) => i % 4 === 0 && v > 127).length / (patch.width * patch.height);
        const before = view.x1 - view.x0;
        act("wheel", [300, 200], { deltaY: -400 });
        told.zoom = (view.x1 - view.x0) / before;
        document.querySelector("#legend button").click();
        told.hidden = nearest(...at(6));  // of the class just hidden
        told.seen = nearest(...at(5));
        byId("colour").value = 0;
        byId("colour").onchange();
        told.bar = document.querySelectorAll("#bar").length;
        """,
    )
    cells = dict(zip(told["cells"][::2], told["cells"][1::2], strict=True))
    assert cells["cluster"] == "2"  # of row 5
    assert cells["ring"] == "b"
    assert told["bright"] == pytest.approx(5 / 64, abs=0.01)  # the patch of row 5
    assert told["zoom"] == pytest.approx(1.0015**-400, rel=1e-3)
    assert told["hidden"] != 6
    assert told["seen"] == 5
    assert told["bar"] == 1
    assert told["title"] == HOSTILE
