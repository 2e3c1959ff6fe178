"""CycleGAN with discriminators on the image and on its Fourier amplitude: the algorithm.

Khan et al., npj Comput. Mater. 9, 85 (2023), after Zhu et al., ICCV 2017. `G` makes simulated images look
experimental, `F` the reverse. With least-squares adversarial losses (Mao et al. 2017)::

    L_G = ½ [ (D(G x) - 1)² + (D_fft(G x) - 1)² ] + λ_cycle |x - F(G x + ε)| + λ_identity |y - G y|

and the same with the domains exchanged for F. ε is a little fresh noise: without it G can hide its input in
invisible patterns that F reads back, and the cycle constrains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from micrographia.errors import UserError
from micrographia.training.distributed import optimizer_step
from micrographia.translate.networks import (
    CompactGenerator,
    FourierView,
    KhanDiscriminator,
    KhanGenerator,
    PatchDiscriminator,
)


@dataclass(frozen=True)
class TranslateConfig:
    """How the translation is built and trained. The paper's values (its public code) stand in brackets."""

    layout: Literal["compact", "khan2023"] = "compact"
    """Networks: compact for minutes on a CPU, khan2023 the paper's for a GPU. [khan2023]"""
    steps: int = 250
    """Generator steps. [about 12000: 5e5 patches in batches of 42]"""
    batch: int = 4
    """Patches of each domain per step. [42]"""
    patch_px: int = 96
    """Edge of a patch at the working sampling; khan2023 needs 256. [256]"""
    learning_rate: float = 4e-4
    """Adam's learning rate of the generators and discriminators. [2e-3]"""
    beta1: float = 0.5
    """Adam's first momentum. [0.9]"""
    hold: float = 0.5
    """Fraction of the steps at full learning rate, before its linear decay to zero. [0.5]"""
    cycle: float = 10.0
    """Weight of the cycle loss, mean absolute error. [10]"""
    identity: float = 5.0
    """Weight of the identity loss. [5, squared error]"""
    fourier: float = 1.0
    """Weight of the Fourier discriminators beside the image discriminators. [1]"""
    backward_noise: float = 0.05
    """Standard deviation of the noise added to a translated image before it is translated back. [0]"""
    pool: int = 50
    """Translated images kept to show the discriminators older ones, too; 0 = none. [0]"""
    ema_decay: float = 0.99
    """Decay of the running mean of the generators' weights. [0, none]"""
    width: int = 24
    """Channels of the compact networks. [64]"""
    blocks: int = 4
    """Residual blocks of the compact generators."""
    evaluate_every: int = 50
    """Steps between looks at the distance to the experiment."""
    patience: int = 0
    """Stop after this many looks without improvement; 0 = never."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "patch_px", "width", "blocks", "evaluate_every"):
            if getattr(self, name) < 1:
                raise UserError(f"translate.{name} = {getattr(self, name)}: give at least 1.")
        if self.layout == "khan2023" and self.patch_px % 256:
            raise UserError(
                f"translate.patch_px = {self.patch_px}: the layout khan2023 needs a multiple of 256."
            )
        if self.layout == "compact" and (self.patch_px % 8 or self.width % 8):
            raise UserError("translate: the compact layout needs patch_px and width to be multiples of 8.")
        if not 0 <= self.hold <= 1:
            raise UserError(f"translate.hold = {self.hold}: give a fraction between 0 and 1.")


class ImagePool:
    """The last translated images, from which the discriminators see a mixture (Shrivastava et al. 2017)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.images = torch.empty(0)

    def mix(self, new: Tensor, generator: torch.Generator) -> Tensor:
        """Return as many images as `new`: each new one, or with probability ½ an older one in exchange."""
        if self.size == 0:
            return new
        if len(self.images) < self.size:
            self.images = torch.cat([self.images.to(new), new]) if len(self.images) else new.clone()
            self.images = self.images[: self.size]
            return new
        exchange = torch.rand(len(new), generator=generator, device=new.device) < 0.5
        places = torch.randperm(self.size, generator=generator, device=new.device)[: len(new)][
            exchange[: self.size]
        ]
        self.images = self.images.to(new.device)  # a restored pool comes from the CPU
        out = new.clone()
        chosen = exchange.nonzero()[:, 0][: len(places)]
        out[chosen] = self.images[places]
        self.images[places] = new[chosen]
        return out


class CycleGAN:
    """The networks and one step of their training (see `training.loop.Trainable`).

    Parameters
    ----------
    config : TranslateConfig
    real_simulated, real_experimental : tensors ``[N, 1, H, W]``
        Patches of either domain; they set the Fourier views' statistics.
    seed : int
        Of the initial weights.
    """

    ema_networks = ("to_experiment", "to_simulation")

    def __init__(
        self, config: TranslateConfig, real_simulated: Tensor, real_experimental: Tensor, seed: int
    ) -> None:
        self.config = config
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.networks: dict[str, nn.Module] = {
                "to_experiment": generator(config),
                "to_simulation": generator(config),
            }
            for domain, real in (("experiment", real_experimental), ("simulation", real_simulated)):
                view = FourierView(config.patch_px)
                view.standardise_by(real)
                self.networks[f"image_{domain}"] = _discriminator(config)
                self.networks[f"fourier_{domain}"] = nn.Sequential(view, _discriminator(config))
        generators = [self.networks[n] for n in self.ema_networks]
        critics = [n for name, n in self.networks.items() if name not in self.ema_networks]
        self.optimizers = {"generators": _adam(generators, config), "critics": _adam(critics, config)}
        hold, steps = config.hold * config.steps, config.steps

        def decay(step: int) -> float:
            return 1.0 if step < hold else max(0.0, (steps - step) / max(steps - hold, 1))

        self.schedulers = {
            name: torch.optim.lr_scheduler.LambdaLR(o, decay) for name, o in self.optimizers.items()
        }
        self.ema: dict[str, nn.Module] = {}  # filled by the training loop
        self.pools = {domain: ImagePool(config.pool) for domain in ("experiment", "simulation")}

    def state(self) -> dict[str, Tensor]:
        """What the next step depends on besides networks and optimizers."""
        return {f"pool_{domain}": pool.images for domain, pool in self.pools.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore :meth:`state`."""
        for domain, pool in self.pools.items():
            pool.images = state[f"pool_{domain}"]

    def training_step(
        self, batch: tuple[Tensor, Tensor], step: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Step the generators, then the discriminators, on (simulated, experimental) patches."""
        x, y = batch
        fake_y, fake_x, losses = self._generators_step(x, y, generator)
        self.optimizers["critics"].zero_grad(set_to_none=True)
        losses |= self._critics_step("experiment", y, self.pools["experiment"].mix(fake_y, generator))
        losses |= self._critics_step("simulation", x, self.pools["simulation"].mix(fake_x, generator))
        optimizer_step(self.optimizers["critics"])
        return losses

    def _generators_step(
        self, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        config, n = self.config, len(x)
        to_y, to_x = self.networks["to_experiment"], self.networks["to_simulation"]

        def noise(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, device=like.device)

        # Both inputs of a network go through it at once: translation and identity share a forward pass.
        fake_y, same_y = to_y(torch.cat([x, y]), noise(torch.cat([x, y]))).float().split(n)
        fake_x, same_x = to_x(torch.cat([y, x]), noise(torch.cat([y, x]))).float().split(n)
        back_x = to_x(fake_y + config.backward_noise * noise(fake_y), noise(fake_y))
        back_y = to_y(fake_x + config.backward_noise * noise(fake_x), noise(fake_x))

        cycle = (back_x - x).abs().mean() + (_low_pass(back_y) - _low_pass(y)).abs().mean()
        identity = (_low_pass(same_y) - _low_pass(y)).abs().mean() + (same_x - x).abs().mean()
        self._critics_learn(False)
        adversarial = self._fooling("experiment", fake_y) + self._fooling("simulation", fake_x)
        loss = adversarial + config.cycle / 2 * cycle + config.identity / 2 * identity
        self.optimizers["generators"].zero_grad(set_to_none=True)
        loss.backward()
        optimizer_step(self.optimizers["generators"])
        self._critics_learn(True)
        values = {"adversarial": adversarial.detach(), "cycle": cycle.detach(), "identity": identity.detach()}
        return fake_y.detach(), fake_x.detach(), values

    def _critics_learn(self, learn: bool) -> None:
        """Leave the critics' own gradients out of the generators' step: a sixth of its work, thrown away."""
        for name, network in self.networks.items():
            if name not in self.ema_networks:
                network.requires_grad_(learn)

    def _fooling(self, domain: str, fake: Tensor) -> Tensor:
        image = (self.networks[f"image_{domain}"](fake) - 1).square().mean()
        if not self.config.fourier:
            return image
        fourier = (self.networks[f"fourier_{domain}"](fake) - 1).square().mean()
        return (image + self.config.fourier * fourier) / (1 + self.config.fourier)

    def _critics_step(self, domain: str, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        losses = {}
        for name in (f"image_{domain}", f"fourier_{domain}"):
            if name.startswith("fourier") and not self.config.fourier:
                continue
            scores_real, scores_fake = self.networks[name](torch.cat([real, fake])).float().split(len(real))
            loss = ((scores_real - 1).square().mean() + scores_fake.square().mean()) / 2
            loss.backward()
            losses[f"critic_{name}"] = loss.detach()
        return losses


def generator(config: TranslateConfig) -> nn.Module:
    """Build one untrained generator."""
    if config.layout == "khan2023":
        return KhanGenerator()
    return CompactGenerator(config.width, config.blocks)


def _discriminator(config: TranslateConfig) -> nn.Module:
    return KhanDiscriminator() if config.layout == "khan2023" else PatchDiscriminator(1, config.width)


def _adam(networks: list[nn.Module], config: TranslateConfig) -> torch.optim.Optimizer:
    parameters = [p for n in networks for p in n.parameters()]
    return torch.optim.Adam(parameters, config.learning_rate, betas=(config.beta1, 0.99), fused=True)


def _low_pass(x: Tensor) -> Tensor:
    """Blur with a 5x5 binomial: two draws of a noisy image agree in what is left, not in their noise."""
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=x.device) / 16
    padded = nn.functional.pad(x.float(), (2, 2, 2, 2), mode="reflect")
    return nn.functional.conv2d(padded, (kernel[:, None] * kernel)[None, None])
