from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real microscope data beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real microscope data is not here: {SHARED_DATA} does not exist")
    return SHARED_DATA


@pytest.fixture(scope="session")
def in_browser(tmp_path_factory) -> Callable[..., dict[str, Any]]:
    """Open a page in a real browser, run a script in it that fills the object `told`, and return that.

    ``title`` is the page's title as the browser understood it.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here")

    def opened(page: Path, script: str, width_px: int = 1000) -> dict[str, Any]:
        acts = f"""<script>
        const faults = [];
        addEventListener("error", (event) => faults.push(event.message));
        setTimeout(() => {{
          const told = {{ title: document.title, faults }};
          {script}
          const out = document.createElement("pre");
          out.id = "result";
          out.textContent = JSON.stringify(told);
          document.body.append(out);
        }}, 300);
        </script></body>"""
        folder = tmp_path_factory.mktemp("browser")
        copy = folder / page.name
        # Pages that allow no script allow this one; the rest of their policy stays.
        text = page.read_text("utf-8").replace(
            "default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';"
        )
        copy.write_text(text.replace("</body>", acts), "utf-8")
        run = subprocess.run(
            [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
             f"--window-size={width_px},700", "--virtual-time-budget=3000", "--dump-dom", copy.as_uri()],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        found = re.search(r'<pre id="result">(.*?)</pre>', run.stdout, re.S)
        assert found, run.stderr[-1500:]
        told = json.loads(unescape(found.group(1)))
        assert told["faults"] == []
        return told

    return opened


@pytest.fixture(scope="session")
def stands_in_browser(in_browser) -> Callable[..., None]:
    """Require of a page that a real browser shows all its figures and that nothing runs out of it."""

    def require(page: Path, width_px: int = 1000) -> None:
        told = in_browser(
            page,
            """
            told.drawn = [...document.images].map((image) => image.naturalWidth);
            told.broad = [...document.images].some((image) => image.clientWidth > innerWidth);
            told.over = document.documentElement.scrollWidth - document.documentElement.clientWidth;
            """,
            width_px,
        )
        assert told["drawn"]
        assert min(told["drawn"]) > 100
        assert not told["broad"]
        assert told["over"] <= 0

    return require
