"""Run the programs in docs/models and write what they print, and the pictures they save, into the pages.

The blocks of a page share their variables. What a block prints stands in the block of text after it; a picture that a page
saves and shows as ../images/NAME.png is kept there.

python docs/run_models.py [--check] [page ...]    --check: compare with what the pages say, change nothing
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

DOCS = Path(__file__).parent
_BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<said>.*?)```\n)?", re.DOTALL)
_NUMBER = re.compile(r"-?\d+\.?\d*")  # also as arrays print whole ones: 1.


def run(page: Path) -> tuple[str, dict[str, bytes]]:
    """The text of a page with what its programs print now, and the pictures that it shows."""
    names: dict[str, object] = {}
    text = page.read_text("utf-8")

    def renewed(block: re.Match[str]) -> str:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(block["code"], str(page), "exec"), names)
        output = f"\n```text\n{said.getvalue()}```\n" if said.getvalue() else ""
        return f"```python\n{block['code']}```\n{output}"

    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            new = _BLOCK.sub(renewed, text)
            shown = re.findall(r"\.\./images/([\w-]+\.png)", text)
            pictures = {name: marked(Path(name), page.name) for name in shown if Path(name).exists()}
        finally:
            os.chdir(here)
    return new, pictures


def marked(picture: Path, page: str) -> bytes:
    """A picture with a note of what made it."""
    note, file = PngInfo(), io.BytesIO()
    note.add_text("Description", f"Drawn by docs/models/{page} from generated patches; not a measured image")
    with Image.open(picture) as image:
        image.save(file, "PNG", pnginfo=note, optimize=True)
    return file.getvalue()


def differences(before: str, now: str) -> list[str]:
    """Lines that say something else, or numbers off by more than 0.05 and 15 %: threads and processors round differently."""
    told = []
    for old, new in zip(_BLOCK.finditer(before), _BLOCK.finditer(now), strict=True):
        a, b = old["said"] or "", new["said"] or ""
        numbers = [list(map(float, _NUMBER.findall(t))) for t in (a, b)]
        # Arrays are padded with spaces to the width of their numbers.
        words = ["".join(_NUMBER.sub("#", t).split()) for t in (a, b)]
        same = words[0] == words[1] and all(
            abs(x - y) <= 0.05 + 0.15 * abs(x) for x, y in zip(*numbers, strict=True)
        )
        if not same:
            told.append(f"{a}--- now\n{b}")
    return told


def main(*arguments: str) -> int:
    pages = [Path(a) for a in arguments if a != "--check"] or sorted((DOCS / "models").glob("*.md"))
    wrong = 0
    for page in pages:
        new, pictures = run(page)
        if "--check" in arguments:
            found = differences(page.read_text("utf-8"), new)
            print(page.name, *(found or ["as it says"]), sep="\n")
            wrong += len(found)
            continue
        page.write_text(new, "utf-8")
        for name, data in pictures.items():
            (DOCS / "images" / name).write_bytes(data)
        print(page.name, *pictures)
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:])))
