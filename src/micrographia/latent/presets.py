"""The models of the literature, by name: each is a :class:`VAE` with certain blocks.

All take a :class:`VaeConfig`, a seed and a device. Sources: Bepler et al. 2019 (spatial-VAE); Kalinin, Dyck,
Jesse, Ziatdinov, Sci. Adv. 7, eabd5084 (2021) (rVAE); Ziatdinov, Kalinin, arXiv:2104.10180 (2021) (joint).
"""

from __future__ import annotations

from micrographia.latent.blocks import (
    Block,
    Capacity,
    Classes,
    Condition,
    Continuous,
    Discrete,
    Rotation,
    Scale,
    Translation,
    Values,
)
from micrographia.latent.model import VaeConfig
from micrographia.latent.vae import VAE

#: All patches are first aligned to one rigid template. Were the code open from the start, some contents could
#: settle on a template of their own, upright at another angle (seen: 4 % of patches, 110 degrees off).
TEMPLATE_FIRST = Capacity(opens=0.3, full=0.6)


def ae(n: int = 2, config: VaeConfig | None = None, seed: int = 0, device: str = "auto") -> VAE:
    """Plain autoencoder: a code without a prior."""
    return VAE([Continuous(n, beta=0.0, variational=False)], config, seed, device)


def vae(n: int = 2, config: VaeConfig | None = None, seed: int = 0, device: str = "auto") -> VAE:
    """Variational autoencoder, no invariance."""
    return VAE([Continuous(n)], config, seed, device)


def shift_vae(
    n: int = 2,
    prior_px: float = 1.5,
    config: VaeConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    scale: float = 0.0,
) -> VAE:
    """Invariant to shifts; `scale` > 0 (a standard deviation) takes magnification out, too.

    For windows cut on a grid, `prior_px` is about a third of the lattice's period.
    """
    return VAE([*_pose(0.0, prior_px, scale), Continuous(n, capacity=TEMPLATE_FIRST)], config, seed, device)


def rvae(
    n: int = 2,
    range_deg: float = 180.0,
    prior_px: float = 1.5,
    config: VaeConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    scale: float = 0.0,
) -> VAE:
    """Invariant to rotation within ± `range_deg` and to shifts."""
    return VAE(
        [*_pose(range_deg, prior_px, scale), Continuous(n, capacity=TEMPLATE_FIRST)], config, seed, device
    )


def joint_vae(
    classes: int = 4, n: int = 2, config: VaeConfig | None = None, seed: int = 0, device: str = "auto"
) -> VAE:
    """Unknown classes and a continuous code that opens after them."""
    return VAE([Discrete(classes), Continuous(n, capacity=Capacity())], config, seed, device)


def joint_rvae(
    classes: int = 4,
    n: int = 2,
    range_deg: float = 180.0,
    prior_px: float = 1.5,
    config: VaeConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    scale: float = 0.0,
) -> VAE:
    """`joint_vae`, invariant to rotation and shift."""
    blocks = [*_pose(range_deg, prior_px, scale), Discrete(classes), Continuous(n, capacity=Capacity())]
    return VAE(blocks, config, seed, device)


def conditional_vae(
    given: int = 1, n: int = 2, config: VaeConfig | None = None, seed: int = 0, device: str = "auto"
) -> VAE:
    """`vae` that is told `given` numbers, or one label of `given`, with every patch."""
    return VAE([Condition(given), Continuous(n)], config, seed, device)


def conditional_rvae(
    given: int = 1,
    n: int = 2,
    range_deg: float = 180.0,
    prior_px: float = 1.5,
    config: VaeConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    scale: float = 0.0,
) -> VAE:
    """`rvae` that is told `given` numbers, or one label of `given`, with every patch."""
    blocks = [*_pose(range_deg, prior_px, scale), Condition(given), Continuous(n, capacity=TEMPLATE_FIRST)]
    return VAE(blocks, config, seed, device)


def semi_supervised_rvae(
    classes: int,
    n: int = 2,
    range_deg: float = 180.0,
    prior_px: float = 1.5,
    config: VaeConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    scale: float = 0.0,
) -> VAE:
    """Classes known for some patches (`fit(X, y)` with -1 = unknown), invariant to rotation and shift."""
    blocks = [*_pose(range_deg, prior_px, scale), Classes(classes), Continuous(n, capacity=Capacity())]
    return VAE(blocks, config, seed, device)


def regression_rvae(
    values: int = 1,
    n: int = 2,
    range_deg: float = 180.0,
    prior_px: float = 1.5,
    config: VaeConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    scale: float = 0.0,
) -> VAE:
    """`values` numbers known for some patches (`fit(X, y)` with NaN = unknown), invariant to rotation and shift."""
    blocks = [*_pose(range_deg, prior_px, scale), Values(values), Continuous(n, capacity=Capacity())]
    return VAE(blocks, config, seed, device)


def _pose(range_deg: float, prior_px: float, scale: float) -> list[Block]:
    """Return the pose blocks whose extent is not zero."""
    blocks: list[Block] = [Rotation(range_deg)] if range_deg else []
    blocks += [Translation(prior_px)] if prior_px else []
    return [*blocks, Scale(scale)] if scale else blocks
