"""CycleGAN with discriminators on the image and on its Fourier amplitude: the algorithm.

Khan et al., npj Comput. Mater. 9, 85 (2023), after Zhu et al., ICCV 2017. `G` makes simulated images look
experimental, `F` the reverse. With least-squares adversarial losses (Mao et al. 2017)::

    L_G = ½ [ (D(G x) - 1)² + (D_fft(G x) - 1)² ] + λ_cycle |x - F(G x + ε)| + λ_identity |y - G y|

and the same with the domains exchanged for F. ε is a little fresh noise: without it G can hide its input in
invisible patterns that F reads back, and the cycle constrains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from micrographia.errors import UserError, check_ranges
from micrographia.training.distributed import optimizer_step
from micrographia.training.parallel import backward_side_by_side
from micrographia.training.schedules import hold_then_decay
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
    """Channels of the compact networks; khan2023 has the paper's. [64]"""
    blocks: int = 4
    """Residual blocks of the compact generators."""
    input_noise: float = 0.1
    """Standard deviation of the noise added to the input by khan2023; compact learns how much it needs. [0.1]"""
    dropout: float = 0.5
    """Share of the channels' values left out in khan2023's three innermost levels while it trains. [0.5]"""
    evaluate_every: int = 50
    """Steps between looks at the distance to the experiment."""
    patience: int = 20
    """Stop after this many looks without improvement; 0 = never."""

    def __post_init__(self) -> None:
        check_ranges(
            "translate",
            self,
            steps=(1, math.inf),
            batch=(1, math.inf),
            patch_px=(16, math.inf),
            learning_rate=(1e-8, 1),
            beta1=(0, 0.999),
            hold=(0, 1),
            cycle=(0, 1000),
            identity=(0, 1000),
            fourier=(0, 1000),
            backward_noise=(0, 10),
            pool=(0, math.inf),
            ema_decay=(0, 0.99999),
            width=(1, math.inf),
            blocks=(1, math.inf),
            input_noise=(0, 10),
            dropout=(0, 0.99),
            evaluate_every=(1, math.inf),
            patience=(0, math.inf),
        )
        if self.layout == "khan2023" and self.patch_px % 256:
            raise UserError(
                f"translate.patch_px = {self.patch_px}: the layout khan2023 needs a multiple of 256."
            )
        if self.layout == "compact" and (self.patch_px % 8 or self.width % 8):
            raise UserError("translate: the compact layout needs patch_px and width to be multiples of 8.")


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
        self.schedulers = {
            name: hold_then_decay(o, config.hold, config.steps) for name, o in self.optimizers.items()
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
        mixed = {"experiment": (y, fake_y), "simulation": (x, fake_x)}
        mixed = {d: (real, self.pools[d].mix(fake, generator)) for d, (real, fake) in mixed.items()}
        return losses | self._critics_step(mixed)

    def _generators_step(
        self, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Both directions side by side; what each network is asked to leave alone is judged with the other."""
        config = self.config
        to_y, to_x = self.networks["to_experiment"], self.networks["to_simulation"]
        noise = torch.randn((8, *x.shape), generator=generator, device=x.device)

        def same(image: Tensor) -> Tensor:
            return image

        def around(
            there: nn.Module,
            back: nn.Module,
            domain: str,
            start: Tensor,
            noise: Tensor,
            compare: Callable[[Tensor], Tensor],
        ) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
            fake = there(start, noise[0]).float()
            # In one pass, which is the same: the networks normalise every image by itself.
            both = torch.cat([fake + config.backward_noise * noise[1], start])
            returned, untouched = back(both, noise[2:].flatten(0, 1)).split(len(start))
            cycle = (compare(returned) - compare(start)).abs().mean()
            identity = (compare(untouched) - compare(start)).abs().mean()
            adversarial = self._fooling(domain, fake)
            loss = adversarial + config.cycle / 2 * cycle + config.identity / 2 * identity
            values = {"adversarial": adversarial, "cycle": cycle, "identity": identity}
            return loss, (fake.detach(), {k: v.detach() for k, v in values.items()})

        self._critics_learn(False)
        optimizer = self.optimizers["generators"]
        (fake_y, forth), (fake_x, back) = backward_side_by_side(
            [
                partial(around, to_y, to_x, "experiment", x, noise[:4], same),
                partial(around, to_x, to_y, "simulation", y, noise[4:], _low_pass),
            ],
            optimizer.param_groups[0]["params"],
            at_once=config.layout != "khan2023",  # its dropout draws from the one global generator
        )
        optimizer_step(optimizer)
        self._critics_learn(True)
        return fake_y, fake_x, {name: forth[name] + back[name] for name in forth}

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

    def _critics_step(self, mixed: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Show every critic the real and the translated images of its domain."""

        def judge(name: str) -> tuple[Tensor, Tensor]:
            real, fake = mixed[name.rpartition("_")[2]]
            on_real, on_fake = self.networks[name](torch.cat([real, fake])).float().split(len(real))
            loss = ((on_real - 1).square().mean() + on_fake.square().mean()) / 2
            return loss, loss.detach()

        views = ("image", "fourier") if self.config.fourier else ("image",)
        names = [f"{view}_{domain}" for domain in mixed for view in views]
        parameters = [p for name in names for p in self.networks[name].parameters()]
        losses = backward_side_by_side([partial(judge, name) for name in names], parameters)
        optimizer_step(self.optimizers["critics"])
        return {f"critic_{name}": loss for name, loss in zip(names, losses, strict=True)}


def generator(config: TranslateConfig) -> nn.Module:
    """Build one untrained generator."""
    if config.layout == "khan2023":
        return KhanGenerator(noise=config.input_noise, dropout=config.dropout)
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
