"""Finding vacancies: speed and quality against AtomAI's Segmentor, on the same images in one process.

Needs AtomAI (see benchmarks/README.md). `python benchmarks/detection.py [CPU seconds of training, default 90]`.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from common import clock, cpu_seconds, publish, stand_in_for_torchvision, table

from micrographia.detect.finder import DefectFinder, DetectConfig
from micrographia.errors import UserError
from micrographia.metrics.matching import DetectionScore, score_sites
from micrographia.micrograph import Micrograph, robust_scale
from micrographia.patches import random_crops
from micrographia.simulate.probe import Optics
from micrographia.simulate.scenes import Specimen, label_maps
from micrographia.simulate.virtual import record
from micrographia.sites import concat_sites, make_sites

PIXEL_A, RADIUS_A, TOLERANCE_A, BORDER_A = 0.2, 0.7, 1.0, 1.6
KINDS, OTHERS = ["vacancy-1Se"], ["column-W", "column-Se"]
CLASSES = KINDS + OTHERS
THRESHOLDS = np.arange(0.1, 0.95, 0.05)


def import_segmentor():
    stand_in_for_torchvision()
    import atomai

    return atomai.models.Segmentor


class AtomAI:
    """Segmentor with its defaults (U-Net, Adam at 1e-3, weights averaged), given the same labels."""

    def __init__(self, images: np.ndarray, sites: pd.DataFrame, held: int) -> None:
        n, height, width = images.shape
        scaled = torch.from_numpy(np.stack([self.scale(i) for i in images]))[:, None]
        maps = label_maps(sites, CLASSES, n, (height, width), RADIUS_A / PIXEL_A)
        background = 255 - maps.max(axis=1, keepdims=True)
        classes = torch.from_numpy(np.concatenate([maps, background], axis=1).argmax(axis=1))[:, None]
        rng = np.random.default_rng(0)
        self.train = [t.numpy() for t in random_crops(scaled[:-held], classes[:-held], 128, 400, rng)]
        self.test = [t.numpy() for t in random_crops(scaled[-held:], classes[-held:], 128, 8, rng)]
        self.model = None
        self.threshold = 0.5

    @staticmethod
    def scale(image: np.ndarray) -> np.ndarray:
        return (robust_scale(image)[0].clip(-1.5, 1.5) + 1.5) / 3

    def fit(self, cycles: int) -> None:
        with quiet():
            self.model = import_segmentor()("Unet", nb_classes=len(CLASSES) + 1)
            self.model.fit(
                self.train[0], self.train[1][:, 0], self.test[0], self.test[1][:, 0],
                training_cycles=cycles, batch_size=8, swa=cycles >= 30, rotation=True,
                plot_training_history=False, print_loss=10**6, filename=f"{tempfile.mkdtemp()}/atomai",
            )  # fmt: skip

    def maps(self, image: np.ndarray) -> np.ndarray:
        return self.model.predict(self.scale(image), compute_coords=False, norm=False, verbose=False)

    def find(
        self, micrograph: Micrograph, threshold: float | None = None, kind: str = KINDS[0]
    ) -> pd.DataFrame:
        _, found = self.model.predict(
            self.scale(micrograph.data), norm=False, verbose=False, thresh=threshold or self.threshold
        )
        rows = found[0][found[0][:, 2] == CLASSES.index(kind)]
        return make_sites(micrograph.name, rows[:, 1], rows[:, 0], kind)

    def choose_threshold(self, micrographs: list[Micrograph], truth: pd.DataFrame) -> None:
        def f1(threshold: float) -> float:
            found = concat_sites(self.find(m, threshold) for m in micrographs)
            return np.nan_to_num(judge(found, truth, micrographs).f1)

        self.threshold = float(max(THRESHOLDS, key=f1))


@contextlib.contextmanager
def quiet():
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def judge(
    found: pd.DataFrame, truth: pd.DataFrame, micrographs: list[Micrograph], kind: str = KINDS[0]
) -> DetectionScore:
    shapes = {m.name: m.data.shape for m in micrographs}
    return score_sites(
        found, truth, TOLERANCE_A / PIXEL_A, BORDER_A / PIXEL_A, shapes, [kind], images=list(shapes)
    )


def steps_for(budget_s: float, fit, few: int = 10) -> int:
    """How many training steps fit into the budget: the slope between a short and a longer training."""

    def train(steps: int) -> None:
        with contextlib.suppress(UserError):  # so short a training finds nothing
            fit(steps)

    train(2)  # imports, caches
    times = [cpu_seconds(lambda n=n: train(n)) for n in (few, 3 * few)]
    return max(20, int(budget_s / max((times[1] - times[0]) / (2 * few), 1e-3)))


def main() -> None:
    budget = float(sys.argv[1]) if len(sys.argv) > 1 else 90.0
    torch.set_num_threads(1)
    train, train_truth = record("day-b", Specimen(), Optics(), 40, (256, 256), PIXEL_A, seed=1)
    test, test_truth = record("day-b", Specimen(), Optics(), 6, (512, 512), PIXEL_A, seed=2)
    images = np.stack([m.data for m in train])
    order = {m.name: i for i, m in enumerate(train)}
    sites = train_truth.assign(index=train_truth["image"].map(order))
    held = 4  # the tenth that DefectFinder holds out, too
    config = DetectConfig(symmetries=False)

    ours: DefectFinder
    folder = tempfile.mkdtemp()

    def fit_ours(steps: int) -> None:
        nonlocal ours
        ours = DefectFinder(KINDS, OTHERS, PIXEL_A, replace(config, steps=steps))
        with quiet():
            ours.fit(images, sites, tempfile.mkdtemp(dir=folder), device="cpu")

    theirs = AtomAI(images, sites, held)
    steps = {"ours": steps_for(budget, fit_ours), "theirs": steps_for(budget, theirs.fit)}
    with clock() as our_fit:
        fit_ours(steps["ours"])
    with clock() as their_fit:
        theirs.fit(steps["theirs"])
    with quiet():
        theirs.choose_threshold(train[-held:], train_truth)

    with quiet():
        found = concat_sites(ours.find(m, device="cpu") for m in test)
        found_theirs = concat_sites(theirs.find(m) for m in test)
        columns = concat_sites(theirs.find(m, kind="column-W") for m in test)
    their_columns = judge(columns, test_truth, test, "column-W").f1
    our_score, their_score = judge(found, test_truth, test), judge(found_theirs, test_truth, test)

    megapixels = test[0].data.size / 1e6
    with quiet():
        # One image at a time, in turn.
        times = {name: [] for name in ("ours", "theirs", "our maps", "their maps")}
        for m in test:
            times["ours"].append(cpu_seconds(lambda m=m: ours.find(m, device="cpu")))
            times["theirs"].append(cpu_seconds(lambda m=m: theirs.find(m)))
            times["our maps"].append(cpu_seconds(lambda m=m: ours.confidence_maps(m, device="cpu")))
            times["their maps"].append(cpu_seconds(lambda m=m: theirs.maps(m.data)))
    speed = {name: megapixels / float(np.median(t)) for name, t in times.items()}

    def row(name: str, key: str, maps: str, score, n_steps: int, cpu: float) -> list[object]:
        low, high = score.intervals["f1"]
        return [
            name, f"{speed[key]:.2f}", f"{speed[maps]:.2f}", f"{score.precision:.3f}", f"{score.recall:.3f}",
            f"{score.f1:.3f} ({low:.3f} to {high:.3f})", n_steps, f"{cpu:.0f}",
        ]  # fmt: skip

    rows = [
        row("AtomAI Segmentor", "theirs", "their maps", their_score, steps["theirs"], their_fit["cpu"]),
        row("DefectFinder, symmetries off", "ours", "our maps", our_score, steps["ours"], our_fit["cpu"]),
    ]
    header = ["program", "Mpx/s to positions", "Mpx/s to maps", "precision", "recall", "F1 (95 %)",
              "training steps", "training CPU s"]  # fmt: skip
    truth_count = int((test_truth["kind"] == KINDS[0]).sum())
    section = (
        f"WSe2 with Se vacancies on the virtual microscope's day-b: trained on 40 labelled images of 256² "
        f"pixels (the last {held} only to choose the threshold) for {budget:.0f} s of CPU each, tested on "
        f"{len(test)} images of 512² with {truth_count} vacancies, tolerance {TOLERANCE_A} Å, border "
        f"{BORDER_A} Å. Both learn the same three classes. AtomAI with its defaults, weight averaging and "
        f"rotations; its threshold ({theirs.threshold:.2f}) was chosen on the same held-out images as ours.\n\n"
        + table(header, rows)
        + f"\n\nPrediction is **{speed['ours'] / speed['theirs']:.1f} times** as fast to positions, "
        f"{speed['our maps'] / speed['their maps']:.1f} times to maps. AtomAI "
        f"finds the frequent W columns with F1 {their_columns:.3f} after the same training: it is the rare class, "
        "which its plain cross-entropy does not balance, that needs more steps."
    )
    publish("detection", "Detection", [section], ["torch", "atomai"])


if __name__ == "__main__":
    main()
