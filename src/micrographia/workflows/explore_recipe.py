"""The recipe of `micrographia explore`: images to atoms, patches, a latent model, maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from micrographia.errors import LARGEST_SEED, UserError, check_ranges
from micrographia.latent.model import VaeConfig


@dataclass(frozen=True)
class AtomsConfig:
    """Finding the atoms, or laying a grid where there are none to find."""

    find: Literal["log", "dog", "maxima", "grid"] = "log"
    """Maxima of the Laplacian of a Gaussian (log), of a difference of Gaussians (dog), of the smoothed image
    (maxima, for isolated atoms); grid cuts patches on a square grid instead."""
    scale_A: float = 0.4
    """Standard deviation of an atom's spot, Å; about a third of the shortest distance between atoms."""
    min_distance_A: float = 0.0
    """Of two maxima closer than this the higher stays, Å; 0 = twice scale_A."""
    dark: bool = False
    """Atoms are darker than their surroundings."""
    refine: Literal["gaussian", "mass", "none"] = "gaussian"
    """How positions are refined: fit of a Gaussian, centre of mass, or not at all. In noisy images the places where atoms
    are found (the maxima of a filter as wide as an atom) are better than those of a fit to each by itself, in clean ones
    the fit is."""
    grid_A: float = 4.0
    """Distance of the patches cut on a grid, Å."""
    bond_A: float = 0.0
    """Bond length of a graphene-like sheet, Å: its bonds, rings and ring labels are found; 0 = none."""

    def __post_init__(self) -> None:
        if not (self.scale_A > 0 and self.grid_A > 0 and self.min_distance_A >= 0 and self.bond_A >= 0):
            raise UserError(
                "atoms: scale_A and grid_A must be greater than 0 Å, min_distance_A and bond_A not negative."
            )


@dataclass(frozen=True)
class PatchesConfig:
    """The windows that are cut around the atoms."""

    of: Literal["image", "positions"] = "image"
    """Windows of the image itself; or of the atoms drawn as spots of scale_A, alike however bright (one channel for
    each kind): order alone."""
    window_A: float = 8.0
    """Edge of the window, Å."""
    size_px: int = 28
    """Images finer than this many pixels per window are binned down to it."""
    time_stack: int = 1
    """Frames of a patch: the atom's own and those after it."""
    train_on: int = 8000
    """Patches that the model learns from at most, evenly spaced; all are encoded."""

    def __post_init__(self) -> None:
        if not self.window_A > 0 or self.size_px < 8 or self.time_stack < 1 or self.train_on < 10:
            raise UserError(
                "patches: window_A must be greater than 0 Å, size_px at least 8, time_stack at least 1 and train_on "
                "at least 10."
            )


@dataclass(frozen=True)
class LatentConfig:
    """The latent model."""

    model: Literal[
        "rvae", "shift_vae", "vae", "ae", "joint_vae", "joint_rvae", "conditional_vae", "conditional_rvae",
        "semi_supervised_rvae", "regression_rvae",
    ] = "rvae"  # fmt: skip
    """Which one: rvae takes rotation and shift out, shift_vae the shift, joint models find classes besides,
    conditional ones are told a column of the sites, the semi-supervised one learns from the label of some sites, the
    regression from their value."""
    latents: int = 2
    """Continuous latents."""
    classes: int = 4
    """Classes of joint models; of the others, clusters that a Gaussian mixture makes of the latents (0 = none)."""
    range_deg: float = 180.0
    """Rotations within plus and minus this are taken out, degrees."""
    shift_A: float = 0.3
    """Standard deviation of the shifts taken out, Å; of windows on a grid about a third of the lattice's period."""
    scale: float = 0.0
    """Standard deviation of the magnification's logarithm taken out; 0 = none."""
    symmetry: int = 1
    """Rotational symmetry modulo which angles are drawn and averaged: 6 for a hexagonal lattice, 4 for a square."""
    condition: str = ""
    """Column of the sites that a conditional model is told, for example frame."""
    steps: int = 800
    """Training steps, whatever the number of patches, in place of network.epochs; 0 = network.epochs counts."""
    members: int = 1
    """Trainings from different seeds; their spread is the uncertainty."""
    network: VaeConfig = field(default_factory=VaeConfig)
    """Networks and training."""

    def __post_init__(self) -> None:
        if min(self.latents, self.members, self.symmetry) < 1 or min(self.classes, self.steps) < 0:
            raise UserError(
                "latent: latents, members and symmetry must be at least 1, classes and steps not negative."
            )
        if self.model.startswith(("joint", "semi")) and self.classes < 2:
            raise UserError(f"latent.classes = {self.classes}: {self.model} needs at least 2 classes.")
        if self.model.startswith("conditional") and not self.condition:
            raise UserError(f"latent.condition is empty: say which column of the sites {self.model} is told.")
        if not (0 < self.range_deg <= 180 and self.shift_A >= 0 and 0 <= self.scale <= 1):
            raise UserError(
                "latent: range_deg must be 0 to 180 degrees, shift_A not negative, scale between 0 and 1."
            )


@dataclass(frozen=True)
class ExploreRecipe:
    """One run of `micrographia explore`, completely."""

    journey: Literal["explore"] = "explore"
    """Which journey the recipe is for."""
    name: str = "explore"
    """What the recipe is called."""
    seed: int = 0
    """Fixes everything random."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model is trained and applied; auto takes a GPU when there is one."""
    material: str = ""
    """Crystal whose lattice tells or checks the pixel size (graphene, WSe2, MoS2, SrTiO3 ...); empty = not used."""
    pixel_size_A: float = 0.0
    """Pixel size of all input images, Å; 0 = from the files, or the lattice of the material."""
    trust_lattice_percent: float = 2.0
    """A pixel size from a file that disagrees with the lattice by more than this is replaced by the
    lattice's; 100 = never. One that is off by a factor of 1.6 or more is kept, with a warning: the
    lattice may be another one."""
    series: Literal["auto", "yes", "no"] = "auto"
    """Whether the images are frames of one movie, in order; auto: three or more of one size."""
    track_A: float = 0.6
    """Largest displacement of an atom from frame to frame, Å, for tracking; 0 = no tracking."""
    compare: bool = True
    """Compare with components, mixtures and a plain autoencoder."""
    embedding: Literal["none", "tsne", "umap"] = "none"
    """Draw the latents in a plane by t-SNE or UMAP, too; worth it for three latents and more."""
    atoms: AtomsConfig = field(default_factory=AtomsConfig)
    """Where the patches are."""
    patches: PatchesConfig = field(default_factory=PatchesConfig)
    """What is cut."""
    latent: LatentConfig = field(default_factory=LatentConfig)
    """What is learnt."""

    def __post_init__(self) -> None:
        if self.patches.of == "positions" and self.atoms.find == "grid":
            raise UserError(
                "patches.of = positions draws atoms, and atoms.find = grid finds none; change one of them."
            )
        if self.embedding != "none" and self.latent.latents < 2:
            raise UserError(f"embedding = {self.embedding} draws latents in a plane; one alone needs none.")
        check_ranges("", self, seed=(0, LARGEST_SEED), pixel_size_A=(0, inf), track_A=(0, inf))
