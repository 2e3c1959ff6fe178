"""How often does the smallest GAN fail? Sixteen seeds of the lecture's settings and of ours.

python gaussian_gan.py [seeds]
"""

from __future__ import annotations

import sys
from datetime import date

import pandas as pd
from common import environment, publish, table

from micrographia.synthesize.gaussian import fit_gaussian_gan
from micrographia.training.device import set_threads

MEASURES = ["mean_error", "narrowest", "widest"]
#: Each measure's worst value over the seeds.
WORST = {"mean_error": max, "narrowest": min, "widest": max}
SETTINGS = {
    "`beta1=0.9, spread=0.02`, the lecture's": (0.9, 0.02),
    "`beta1=0.5, spread=0.02`": (0.5, 0.02),
    "`beta1=0.5, spread=0.5`, the default": (0.5, 0.5),
}


def row(name: str, tables: list[pd.DataFrame], which: str) -> list[str]:
    """Median and worst of each measure, and the seed of the narrowest."""
    found = pd.DataFrame([table[which] for table in tables], index=range(len(tables)))
    cells = [f"{found[m].median():.2f} ({WORST[m](found[m]):.2f})" for m in MEASURES]
    return [name, *cells, str(found["narrowest"].idxmin())]


def main(seeds: int = 16) -> None:
    set_threads()
    tables = {
        name: [fit_gaussian_gan(seed, beta1=beta1, spread=spread).table() for seed in range(seeds)]
        for name, (beta1, spread) in SETTINGS.items()
    }
    rows = [row(name, found, "generator") for name, found in tables.items()]
    rows.append(row("the 1000 points themselves", next(iter(tables.values())), "data"))
    publish(
        "gaussian_gan", "How often does the smallest GAN fail?", [
            f"A linear generator learns a Gaussian (20 epochs): median and, in brackets, worst of {seeds} seeds. *mean error*: "
            "how far off the mean is, in standard deviations; *narrowest*, *widest*: the width of the generated points in "
            "terms of the true one, in the directions where that is smallest and largest.",
            table(["", *(m.replace("_", " ") for m in MEASURES), "narrowest: seed"], rows),
        ], [], f"Measured on {date.today()}: {environment(['torch'])}.", str(seeds),
    )  # fmt: skip


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
