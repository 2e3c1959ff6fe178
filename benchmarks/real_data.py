"""Score runs on real images with hand or machine labels, and draw what was found.

    micrographia run graphene-si --images ../shared/data/graphene-si/frames --out runs/graphene-si
    python benchmarks/real_data.py graphene-si runs/graphene-si

    micrographia run single-atoms --images ../shared/data/re-single-atoms/images --out runs/re --set element=Re
    python benchmarks/real_data.py re-single-atoms runs/re

The labels are read here for the first time: a run sees images only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from micrographia.io import read_images
from micrographia.metrics.matching import precision_recall_curve, score_sites
from micrographia.micrograph import Micrograph, robust_scale
from micrographia.sites import read_sites

HERE = Path(__file__).resolve().parent.parent


def graphene_si(data: Path) -> tuple[pd.DataFrame, float, dict[str, float], Path]:
    """Silicon in 124 frames; positions in Å because the pixel sizes differ; tolerance 0.75 Å."""
    folder = data / "graphene-si" / "frames"
    frames = pd.read_csv(folder / "frames.csv")
    size = dict(zip(frames["image"], frames["pixel_size_angstrom"], strict=True))
    truth = pd.read_csv(folder / "sites.csv")
    truth = truth[truth["species"] == "Si"].assign(kind="Si", confidence=1.0)
    return truth, 0.75, size, folder


def re_single_atoms(data: Path) -> tuple[pd.DataFrame, float, dict[str, float], Path]:
    """Rhenium in 11 hand-labelled images; tolerance 6 px."""
    folder = data / "re-single-atoms"
    tables = []
    names = {p.stem: p.name for p in (folder / "images").iterdir()}
    for path in sorted((folder / "labels").glob("*.csv")):
        clicks = pd.read_csv(path)
        tables.append(
            pd.DataFrame({"image": names[path.stem], "x_px": clicks["X"], "y_px": clicks["Y"], "kind": "Re"})
        )
    truth = pd.concat(tables, ignore_index=True).assign(confidence=1.0)
    return truth, 6.0, dict.fromkeys(names.values(), 1.0), folder / "images"


def scaled(table: pd.DataFrame, size: dict[str, float]) -> pd.DataFrame:
    """Return positions in Å (or px where the size is 1)."""
    factor = table["image"].map(size)
    return table.assign(x_px=table["x_px"] * factor, y_px=table["y_px"] * factor)


def picture(score, folder: Path, size: dict[str, float], path: Path, columns: int = 6) -> None:
    """Draw the images with most mistakes, then others: hits green, misses blue, false alarms red."""
    worst = score.per_image.assign(wrong=score.per_image["fp"] + score.per_image["fn"])
    names = worst.sort_values("wrong", ascending=False)["image"].tolist()
    step = max(1, (len(names) - columns) // columns)
    shown = [*names[:columns], *names[columns::step][:columns]]
    figure = Figure(figsize=(2.6 * columns, 5.6), layout="constrained")
    grid = list(figure.subplots(2, columns).flat)
    for axes in grid:
        axes.axis("off")
    for axes, name in zip(grid, shown, strict=False):
        image: Micrograph = read_images(folder / name)[0]
        axes.imshow(robust_scale(image.data)[0], cmap="gray", vmin=-1, vmax=1.4)
        own = score.outcomes[score.outcomes["image"] == name]
        for outcome, colour in (("tp", "#009e73"), ("fn", "#0072b2"), ("fp", "#d55e00")):
            some = own[own["outcome"] == outcome]
            axes.scatter(
                some["x_px"] / size[name], some["y_px"] / size[name], s=60, fc="none", ec=colour, lw=1.2
            )
        axes.set_title(name, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Score one run and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", choices=("graphene-si", "re-single-atoms"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, default=HERE.parent / "shared" / "data")
    arguments = parser.parse_args()
    load = {"graphene-si": graphene_si, "re-single-atoms": re_single_atoms}[arguments.which]
    truth, tolerance, size, folder = load(arguments.data)
    found = read_sites(arguments.run / "defects.csv")
    images = list(size)
    score = score_sites(scaled(found, size), scaled(truth, size), tolerance, images=images)
    candidates = scaled(read_sites(arguments.run / "candidates.csv"), size)
    best = precision_recall_curve(candidates, scaled(truth, size), tolerance)["f1"].max()
    print(
        "| precision | recall | F1 | 95 % interval of F1 | true sites | F1 at the threshold best by the labels |"
    )
    print("|---|---|---|---|---|---|")
    low, high = score.intervals["f1"]
    print(
        f"| {score.precision:.3f} | {score.recall:.3f} | {score.f1:.3f} | {low:.3f} to {high:.3f} | "
        f"{score.tp + score.fn} | {np.round(best, 3)} |"
    )
    picture(score, folder, size, HERE / "docs" / "images" / f"{arguments.which}.png")


if __name__ == "__main__":
    main()
