"""The recipe of `micrographia synthesize fit`: images to a generative model and a judgement of its samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from micrographia.errors import LARGEST_SEED, UserError, check_ranges
from micrographia.synthesize.gan import GanConfig


@dataclass(frozen=True)
class ImagesConfig:
    """What the networks are shown."""

    channels: Literal[1, 3] = 1
    """Grey images, or red, green and blue."""
    fit: Literal["crop", "resize"] = "crop"
    """Larger images are cut into patches at their own scale, or scaled down as a whole."""
    binning: int = 1
    """Squares of so many pixels become one: for finely sampled images, of which a patch would show too little."""
    scale_each: bool = False
    """Scale each micrograph by its own quantiles first: where brightness and contrast were set from image to image, and
    would else be most of what there is to learn."""
    height_px: int = 0
    """Height of the images where they are no squares; 0 = gan.resolution."""
    width_px: int = 0
    """Their width; 0 = gan.resolution."""
    crops_per_image: int = 0
    """Patches cut from each image at random places; 0 = as many as cover it."""
    classes: bool = False
    """Each folder in the given one holds a class; the model draws the class that it is told."""
    hold_out: float = 0.2
    """Share of the images that nothing is learnt from, to judge the samples by (and to steer augmentation): whole
    files where there are eight or more, else places in them, else blocks of successive frames."""

    def __post_init__(self) -> None:
        if (
            min(self.crops_per_image, self.height_px, self.width_px) < 0
            or self.binning < 1
            or not 0 <= self.hold_out <= 0.5
        ):
            raise UserError(
                "images: crops_per_image, height_px and width_px must not be negative, binning at least 1, hold_out 0 to 0.5."
            )


@dataclass(frozen=True)
class JudgeConfig:
    """How samples are compared with real images."""

    samples: int = 1000
    """Images drawn for the comparison."""
    phases: bool = True
    """The images show two phases, told apart by brightness: compare their fraction, correlations and sizes."""
    threshold_each: bool = False
    """Find the threshold of each image by itself, because brightness differs from image to image; else one of the
    real images cuts all."""
    inception_weights: str = ""
    """File of the Inception weights that torch-fidelity publishes: distances of its features, of images each scaled by
    itself, not those of the literature to the digit; empty = physical features."""
    bootstrap: int = 200
    """Resamples for the intervals."""

    def __post_init__(self) -> None:
        check_ranges("judge", self, samples=(16, inf), bootstrap=(10, inf))


@dataclass(frozen=True)
class SynthesizeRecipe:
    """One run of `micrographia synthesize fit`, completely."""

    journey: Literal["synthesize"] = "synthesize"
    """Which journey the recipe is for."""
    name: str = "stylegan2-ada"
    """What the recipe is called."""
    seed: int = 0
    """Fixes everything random."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the networks are trained and applied; auto takes a GPU when there is one."""
    pixel_size_A: float = 0.0
    """Pixel size of all images, Å, for the samples' scale; 0 = from the files."""
    images: ImagesConfig = field(default_factory=ImagesConfig)
    """The training images."""
    gan: GanConfig = field(default_factory=GanConfig)
    """The networks and their training."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """The judgement."""

    def __post_init__(self) -> None:
        check_ranges("", self, seed=(0, LARGEST_SEED), pixel_size_A=(0, inf))
