from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from micrographia.errors import UserError
from micrographia.workflows.report import Report, figure_png

HOSTILE = "<script>alert('x')</script>&\"><img src=x onerror=alert(1)>.tif"


def figure() -> Figure:
    out = Figure(figsize=(3, 2))
    out.subplots().plot([0, 1], [1, 0])
    return out


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of <style>."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] != "style":
            self.words += data


def filled() -> Report:
    report = Report("Defects in WSe2", "12 images")
    report.section("Result").text("Two sentences.", "A second paragraph.").table(
        pd.DataFrame(
            {"training": ["noise-free", "ours"], "f1": [0.07123, np.nan], "n": [3, 80], "warn": [True, False]}
        ),
        "Scores",
    )
    report.section("Pictures").figure("curve", figure(), "A falling line").warning(
        "Far from the training images."
    )
    report.section("Empty")
    return report


def test_page_holds_everything_and_needs_nothing_else(tmp_path):
    html = filled().write(tmp_path / "run" / "report.html").read_text("utf-8")
    page = Page(html)
    for text in (
        "Defects in WSe2",
        "12 images",
        "A second paragraph.",
        "0.0712",
        "–",
        "80",
        "yes",
        "Far from",
    ):
        assert text in page.words
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    embedded = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    assert embedded == (tmp_path / "run" / "figures" / "curve.png").read_bytes()
    assert image["alt"] == "A falling line"
    # Nothing is loaded from elsewhere, and nothing runs.
    assert not re.search(r"https?://|url\(|@import", html)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["figures", "report.html"]
    targets = {a["id"] for _, a in page.tags if "id" in a}
    assert {a["href"].removeprefix("#") for tag, a in page.tags if tag == "a"} <= targets


def test_hostile_names_stay_text(tmp_path):
    report = Report(HOSTILE, HOSTILE)
    section = report.section(HOSTILE).text(HOSTILE).warning(HOSTILE)
    section.table(pd.DataFrame({HOSTILE: [HOSTILE]}, index=pd.Index([HOSTILE], name=HOSTILE)), HOSTILE)
    section.figure("f", figure(), HOSTILE)
    page = Page(report.write(tmp_path / "report.html").read_text("utf-8"))
    assert [tag for tag, _ in page.tags].count("img") == 1
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert (
        page.words.count(HOSTILE) == 12
    )  # title twice, subtitle, heading, text, note, 2 x 2 table, two captions


def test_figures_say_that_they_were_generated():
    with Image.open(io.BytesIO(figure_png(figure(), {"recipe": "wse2"}))) as image:
        assert image.text["Software"].startswith("micrographia")
        assert json.loads(image.text["micrographia"])["recipe"] == "wse2"
        assert "not a measured image" in image.text["Description"]


@pytest.mark.parametrize("name", ["../outside", "a/b", "", ".hidden", "a b"])
def test_figure_names_cannot_leave_the_folder(name):
    with pytest.raises(UserError, match="cannot name a figure"):
        Report("t").section("s").figure(name, figure())


def test_two_figures_of_one_name_are_refused_before_anything_is_written(tmp_path):
    report = Report("t")
    report.section("a").figure("f", figure())
    report.section("b").figure("f", figure())
    with pytest.raises(UserError, match="two figures"):
        report.write(tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    filled().write(tmp_path / "report.html")
    before = (tmp_path / "report.html").read_bytes()
    broken = filled()
    broken.section("x").parts.append({"kind": "figure", "name": "z", "figure": None, "caption": ""})
    with pytest.raises(AttributeError):
        broken.write(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == before


@pytest.mark.parametrize("width_px", [1200, 500])
def test_a_browser_shows_every_figure_and_no_text_runs_out_of_the_page(tmp_path, stands_in_browser, width_px):
    report = filled()
    report.section("Wide").table(pd.DataFrame([{f"column {k}": 1.2345 for k in range(40)}])).text("x" * 400)
    stands_in_browser(report.write(tmp_path / "report.html"), width_px)
