"""Learn to find sites from labelled images; find them in others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from micrographia.detect.network import ResidualUNet, balanced_loss, class_weights
from micrographia.detect.peaks import find_peaks
from micrographia.detect.prevalence import adapt
from micrographia.errors import UserError, check_ranges
from micrographia.metrics.calibration import Calibration, fit_calibration
from micrographia.metrics.domain import DomainReference
from micrographia.metrics.matching import best_threshold, match_sites, precision_recall_curve
from micrographia.micrograph import Micrograph, robust_scale
from micrographia.nets.weights import built_alike, load_model, save_model
from micrographia.patches import apply_tiled, dihedral, dihedral_inverse, random_crops
from micrographia.simulate.scenes import label_maps
from micrographia.sites import concat_sites
from micrographia.training.device import choose_device
from micrographia.training.distributed import from_first, shard
from micrographia.training.loop import TrainConfig, TrainResult, train
from micrographia.training.supervised import Supervised

#: Sites below this confidence are never reported.
FAINTEST = 0.05
#: Courses of training at most: a further one follows only if a kind was hardly learnt (see `unlearnt`).
COURSES = 3
#: Overlap of the tiles that are searched, and about the longest edge of one (memory).
OVERLAP_PX, LONGEST_TILE_PX = 64, 576


@dataclass(frozen=True)
class DetectConfig:
    """How the network that finds sites is built and trained."""

    steps: int = 930
    """Training steps."""
    batch: int = 8
    """Patches per step."""
    patch_px: int = 128
    """Edge of a training patch at the working sampling."""
    learning_rate: float = 4e-3
    """Peak learning rate of AdamW; rises over the first 5 % of the steps, then falls along a cosine."""
    radius_A: float = 0.7
    """Radius of the disc that labels a site, Å: about that of an atomic column."""
    width: int = 24
    """Channels of the network's first level."""
    levels: int = 2
    """Coarser levels of the network."""
    blocks: int = 1
    """Residual blocks of each coarser level on the way down; on the way up every level has one."""
    gain_jitter: float = 0.15
    """Random change of each patch's gain and offset (standard deviation, in units of its contrast)."""
    noise_jitter: float = 0.1
    """Strongest white noise added to a patch (standard deviation, in units of its contrast)."""
    symmetries: bool = True
    """Average the confidence over the eight rotations and reflections when finding."""
    members: int = 1
    """Networks trained from different seeds; their spread is each site's uncertainty."""

    def __post_init__(self) -> None:
        check_ranges(
            "detect",
            self,
            steps=(1, math.inf),
            batch=(1, math.inf),
            patch_px=(16, math.inf),
            learning_rate=(1e-8, 1),
            radius_A=(0.01, 5),
            width=(8, math.inf),
            levels=(0, 6),  # every level doubles the channels
            blocks=(1, math.inf),
            gain_jitter=(0, 2),
            noise_jitter=(0, 10),
            members=(1, math.inf),
        )
        if self.width % 8:
            raise UserError(f"detect.width = {self.width}: give a multiple of 8.")


class DefectFinder:
    """A trained ensemble of networks with its calibration and threshold.

    Parameters
    ----------
    kinds : names of the defects to find
    others : names of further labelled sites (intact columns): learnt alongside, because a vacancy is told by
        what should be there, and never reported
    pixel_size_A : float
        The working sampling: what is searched is resampled to it.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        others: Sequence[str],
        pixel_size_A: float,
        config: DetectConfig | None = None,
    ) -> None:
        if not kinds:
            raise UserError("detect: name at least one kind of defect to find.")
        self.kinds, self.others = list(kinds), list(others)
        self.pixel_size_A = float(pixel_size_A)
        self.config = config or DetectConfig()
        self.networks: list[ResidualUNet] = []
        self.log_weights = torch.zeros(len(self.kinds))
        """Logarithms of the weights that balanced the classes in training. Balancing multiplies the odds that
        a network reports; taken off again, the confidences of frequent and rare kinds compare fairly."""
        self.calibration: Calibration | None = None
        self.threshold = 0.5
        self.validation: pd.DataFrame | None = None
        """Every site found in the validation images: raw ``confidence`` and whether it is ``true``."""
        self.validation_scores: dict[str, float] = {}
        self.density_per_A2: dict[str, float] = {}
        """Expected sites of each kind per area of the validation images, for `prevalence.adapt`."""
        self.recall: dict[str, float] = {}
        """Fraction of the sites in the validation images that were found at the threshold, by kind there."""
        self.home: DomainReference | None = None
        """What the images look like that this detector was made for."""
        self.scale: dict[str, Any] = {}
        """How the pixel size of such images is decided (`workflows.scale.ScaleRule`); empty: as the file says."""

    # ------------------------------------------------------------------------------------------------- learn

    def fit(
        self,
        images: np.ndarray,
        sites: pd.DataFrame,
        folder: str | Path,
        seed: int = 0,
        device: str = "auto",
        tolerance_A: float = 1.0,
    ) -> list[TrainResult]:
        """Train on labelled images and choose calibration and threshold on a tenth of them, held out.

        If a kind is hardly found there, training goes on for another `config.steps`, at most twice.

        Parameters
        ----------
        images : float32 ``[N, H, W]`` at the working sampling
        sites : DataFrame
            ``index, x_px, y_px, kind``.
        folder : path
            Of the training runs (checkpoints, metrics.csv); an interrupted training resumes from it.
        """
        config = self.config
        n, height, width = images.shape
        if min(height, width) < config.patch_px:
            config = replace(config, patch_px=min(height, width))
        missing = [k for k in self.kinds if not (sites["kind"] == k).any()]
        if missing:
            raise UserError(f"detect: the training images hold no site of kind {', '.join(missing)}.")
        held = max(2, n // 10)
        if n - held < 1:
            raise UserError(f"detect: {n} training images are too few; give at least 4.")
        scaled = np.stack([robust_scale(image)[0] for image in images])
        radius_px = config.radius_A / self.pixel_size_A
        labels = torch.from_numpy(label_maps(sites, self.kinds + self.others, n, (height, width), radius_px))
        tensors = torch.from_numpy(scaled)[:, None]
        weights = class_weights(labels[:-held].float() / 255)
        self.log_weights = weights[: len(self.kinds)].log()
        self.networks = [_build(len(labels[0]), config, seed + 1000 * m) for m in range(config.members)]
        validation = scaled[-held:], sites[sites["index"] >= n - held], n - held, tolerance_A
        results: list[TrainResult] = []
        for course in range(COURSES):
            for member, network in enumerate(self.networks):
                own_seed = seed + 1000 * member + 500 * course
                run = TrainConfig(
                    steps=config.steps,
                    seed=own_seed,
                    device=device,  # type: ignore[arg-type]
                    ema_decay=0.99,
                    log_every=20,
                    checkpoint_every=max(config.steps // 4, 1),
                )
                model = _trainable(network, weights, config)
                batches = _batches(tensors[:-held], labels[:-held], config, own_seed)
                room = Path(folder) / (f"member-{member}" + f"-course-{course + 1}" * (course > 0))
                result = train(model, batches, run, room, label="detector")
                results.append(result)
                if result.stopped == "interrupted":
                    raise KeyboardInterrupt
                network.load_state_dict(model.ema["network"].state_dict())
                network.eval()
            self._validate(*validation)
            if not from_first(self.unlearnt()):
                break
        if not any(self.recall.values()):
            raise UserError(
                "detect: after training, no labelled site was found in the validation images; train longer "
                "(detect.steps), or give images in which the defects can be seen."
            )
        return results

    def unlearnt(self) -> list[str]:
        """Return the kinds that were found much more rarely than others in the validation images.

        Kinds that look alike (one or two atoms of a column missing) are told apart by a sudden step in the
        training, which comes late for the rarer one.
        """
        enough = 0.5 * max([0.5, *self.recall.values()])
        return [kind for kind, found in self.recall.items() if found < enough]

    def _validate(self, scaled: np.ndarray, sites: pd.DataFrame, first: int, tolerance_A: float) -> None:
        """Calibrate, and set the threshold that maximises F1, on images of the training domain held out."""
        tolerance_px = tolerance_A / self.pixel_size_A
        found, truth, rows = [], [], []
        for i, image in enumerate(scaled):
            peaks = self._peaks(image, str(i))
            true = sites[(sites["index"] == first + i) & sites["kind"].isin(self.kinds)].assign(
                image=str(i), confidence=1.0
            )
            for kind in self.kinds:
                p, t = peaks[peaks["kind"] == kind], true[true["kind"] == kind]
                hits, _, _ = match_sites(
                    p[["x_px", "y_px"]].to_numpy(), t[["x_px", "y_px"]].to_numpy(), tolerance_px
                )
                is_true = np.zeros(len(p), dtype=bool)
                is_true[hits] = True
                rows.append(
                    pd.DataFrame({"kind": kind, "confidence": p["confidence"].to_numpy(), "true": is_true})
                )
            found.append(peaks)
            truth.append(true)
        self.validation = pd.concat(rows, ignore_index=True)
        true_sites = concat_sites(truth)
        there = true_sites["kind"].value_counts()
        self.calibration, self.recall = None, dict.fromkeys(there.index, 0.0)
        if not self.validation["true"].any():
            return
        if self.validation["true"].nunique() == 2:
            self.calibration = fit_calibration(
                self.validation["confidence"].to_numpy(), self.validation["true"].to_numpy()
            )
        area_A2 = scaled.size * self.pixel_size_A**2
        chance = self._calibrated(self.validation["confidence"].to_numpy())
        for kind in self.kinds:
            own = (self.validation["kind"] == kind).to_numpy()
            self.density_per_A2[kind] = float(chance[own].sum() / area_A2)
        curve = precision_recall_curve(concat_sites(found), true_sites, tolerance_px)
        chosen = best_threshold(curve)
        best = curve.iloc[(curve["threshold"] - chosen).abs().argmin()]
        # Half-way to the next candidate: the weakest true site of a few images is no safe limit for others.
        below = curve["threshold"][curve["threshold"] < chosen].max()
        below = FAINTEST if np.isnan(below) else below
        self.threshold = float(np.clip((chosen + below) / 2, FAINTEST, 0.95))
        self.validation_scores = {k: float(best[k]) for k in ("precision", "recall", "f1")}
        hits = self.validation[self.validation["true"] & (self.validation["confidence"] >= self.threshold)]
        self.recall = {kind: float((hits["kind"] == kind).sum() / n) for kind, n in there.items()}

    # -------------------------------------------------------------------------------------------------- find

    @torch.inference_mode()
    def confidence_maps(self, micrograph: Micrograph, device: str = "auto") -> np.ndarray:
        """Return ``[members, K, H, W]`` raw confidence at the working sampling."""
        return self._maps(robust_scale(micrograph.resampled(self.pixel_size_A).data)[0], device)

    def _maps(self, scaled: np.ndarray, device: str = "cpu") -> np.ndarray:
        if not self.networks:
            raise UserError("detect: this finder is not trained; call fit or load first.")
        where = choose_device(device)
        image = torch.from_numpy(np.ascontiguousarray(scaled))[None]
        turns = range(8) if self.config.symmetries else range(1)

        def apply(network: ResidualUNet) -> Callable[[Tensor], Tensor]:
            def function(tiles: Tensor) -> Tensor:
                total = torch.zeros(())
                for k in turns:
                    turned = dihedral(tiles.to(where), k).contiguous(memory_format=torch.channels_last)
                    logits = network(turned)[:, : len(self.kinds)]
                    confidence = (logits.float().cpu() - self.log_weights[:, None, None]).sigmoid()
                    total = total + dihedral_inverse(confidence, k)
                return total / len(turns)

            return function

        tile = _fitting_tile(scaled.shape[0]), _fitting_tile(scaled.shape[1])
        batch = 1 if where.type == "cpu" else 8  # one tile at a time stays in a processor's cache
        maps = []
        for network in self.networks:
            network.to(where, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            maps.append(apply_tiled(apply(network), image, tile, OVERLAP_PX, batch, extend=False).numpy())
        return np.stack(maps)

    def _peaks(self, scaled: np.ndarray, name: str, device: str = "cpu") -> pd.DataFrame:
        maps = self._maps(scaled, device)
        radius_px = self.config.radius_A / self.pixel_size_A
        sites = find_peaks(maps.mean(axis=0), self.kinds, radius_px, FAINTEST, name)
        if len(self.networks) > 1:
            rows = sites["y_px"].round().astype(int).clip(0, scaled.shape[0] - 1)
            cols = sites["x_px"].round().astype(int).clip(0, scaled.shape[1] - 1)
            channel = sites["kind"].map({k: i for i, k in enumerate(self.kinds)}).to_numpy(int)
            sites["uncertainty"] = maps[:, channel, rows, cols].std(axis=0, ddof=1)
        return sites

    def _calibrated(self, confidence: np.ndarray) -> np.ndarray:
        return self.calibration.apply(confidence) if self.calibration is not None else confidence

    def candidates(self, micrograph: Micrograph, device: str = "auto") -> pd.DataFrame:
        """Return every possible site of one image, however doubtful, with raw and calibrated confidence.

        Returns
        -------
        DataFrame
            ``image, x_px, y_px, kind, confidence, raw_confidence`` (``uncertainty`` with an ensemble);
            positions in the pixels of `micrograph`.
        """
        at_work = micrograph.resampled(self.pixel_size_A)
        sites = self._peaks(robust_scale(at_work.data)[0], micrograph.name, device)
        ratio = self.pixel_size_A / float(micrograph.pixel_size_A or self.pixel_size_A)
        raw = sites["confidence"].to_numpy()
        return sites.assign(
            x_px=sites["x_px"] * ratio,
            y_px=sites["y_px"] * ratio,
            confidence=self._calibrated(raw),
            raw_confidence=raw,
        )

    def find(
        self, micrograph: Micrograph, threshold: float | None = None, device: str = "auto"
    ) -> pd.DataFrame:
        """Find the sites in one image of any size and pixel size.

        Parameters
        ----------
        threshold : float, optional
            On the raw confidence; by default the one that served best on the validation images.

        Returns
        -------
        DataFrame
            As :meth:`candidates`. The confidence is the chance that a site is real if the image is like the
            training images, in the frequency of its defects, too; :meth:`find_all` drops that last condition.
        """
        sites = self.candidates(micrograph, device)
        limit = self.threshold if threshold is None else threshold
        return sites[sites["raw_confidence"] >= limit].reset_index(drop=True)

    def find_all(
        self, micrographs: Sequence[Micrograph], device: str = "auto"
    ) -> tuple[pd.DataFrame, pd.DataFrame, float]:
        """Find the sites in images of one kind, adapted to how rare they are there (see `prevalence`).

        Returns
        -------
        sites : DataFrame
            What was found: candidates at least as confident as the threshold.
        candidates : DataFrame
            All of them, with adapted confidence.
        threshold : float
            On the adapted confidence. Where no false site was met in validation, nothing is known of their
            confidences and nothing can be adapted: the threshold is that of validation.
        """
        tables = [self.candidates(m, device) for m in micrographs]
        if self.calibration is None:
            every = concat_sites(tables)
            return every[every["confidence"] >= self.threshold].reset_index(drop=True), every, self.threshold
        area = sum(m.data.size * float(m.pixel_size_A or self.pixel_size_A) ** 2 for m in micrographs)
        candidates, threshold, _ = adapt(concat_sites(tables), area, self.density_per_A2)
        found = candidates[candidates["confidence"] >= threshold].reset_index(drop=True)
        return found, candidates, threshold

    # ------------------------------------------------------------------------------------------ save and load

    def save(self, path: str | Path) -> None:
        """Write the networks, their calibration and all settings to one ``.safetensors`` file."""
        settings = {
            "kinds": self.kinds,
            "others": self.others,
            "pixel_size_A": self.pixel_size_A,
            "config": asdict(self.config),
            "density_per_A2": self.density_per_A2,
            "log_weights": self.log_weights.tolist(),
            "threshold": self.threshold,
            "calibration": self.calibration.to_dict() if self.calibration else None,
            "validation_scores": self.validation_scores,
            "recall": self.recall,
            "home": self.home.to_dict() if self.home else None,
            "scale": self.scale,
        }
        save_model(Path(path), {f"member-{i}": n for i, n in enumerate(self.networks)}, settings, "detector")

    @classmethod
    def load(cls, path: str | Path) -> DefectFinder:
        """Read what :meth:`save` wrote."""
        states, settings = load_model(Path(path), "detector")
        with built_alike(path):
            finder = cls(
                settings["kinds"],
                settings["others"],
                settings["pixel_size_A"],
                DetectConfig(**settings["config"]),
            )
            finder.density_per_A2 = settings["density_per_A2"]
            finder.log_weights = torch.tensor(settings["log_weights"])
            finder.threshold, finder.validation_scores = settings["threshold"], settings["validation_scores"]
            finder.recall, finder.scale = settings.get("recall", {}), settings.get("scale", {})
            if settings.get("home"):
                finder.home = DomainReference.from_dict(settings["home"])
            if settings["calibration"]:
                finder.calibration = Calibration.from_dict(settings["calibration"])
            for name in sorted(states):
                network = _build(len(finder.kinds) + len(finder.others), finder.config, 0)
                network.load_state_dict(states[name])
                finder.networks.append(network.eval())
        return finder


def _fitting_tile(length: int) -> int:
    """Return the edge of tiles that cover `length` px with little to spare (see `patches.apply_tiled`)."""
    covered = length - OVERLAP_PX
    tiles = max(1, -(-covered // (LONGEST_TILE_PX - OVERLAP_PX)))
    return max(128, OVERLAP_PX + 8 * -(-covered // (8 * tiles)))


def _build(outputs: int, config: DetectConfig, seed: int) -> ResidualUNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ResidualUNet(outputs, config.width, config.levels, config.blocks)


def _trainable(network: ResidualUNet, weights: Tensor, config: DetectConfig) -> Supervised:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return balanced_loss(logits, target, weights.to(logits.device))

    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps + 1, pct_start=0.05, cycle_momentum=False
    )
    # Parts of two patches: cores share them, and their number does not depend on that of the cores.
    parts = max(1, config.batch // 2)
    return Supervised(network, loss, optimizer, schedule, parts, max_gradient_norm=2.0)


def _batches(
    images: Tensor, labels: Tensor, config: DetectConfig, seed: int
) -> Callable[[int], tuple[Tensor, Tensor]]:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([seed, step])
        x, y = random_crops(images, labels, config.patch_px, config.batch, rng)
        gain = torch.from_numpy(np.exp(rng.normal(0, config.gain_jitter, (config.batch, 1, 1, 1)))).float()
        offset = torch.from_numpy(rng.normal(0, config.gain_jitter, (config.batch, 1, 1, 1))).float()
        noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
        level = torch.from_numpy(rng.uniform(0, config.noise_jitter, (config.batch, 1, 1, 1))).float()
        return shard((gain * x + offset + level * noise, y.float() / 255))

    return batch
