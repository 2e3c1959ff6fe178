"""Generative adversarial training: the algorithm.

A generator draws images, a critic tells them from real ones, each learns from the other. Two objectives:

- ``logistic`` (Goodfellow et al. 2014, non-saturating; with R1, Mescheder et al. 2018, and path-length
  regularisation, Karras et al. 2020)::

      L_D = softplus(-D(x)) + softplus(D(G z)) + γ/2 |∇D(x)|²      L_G = softplus(-D(G z))

- ``relativistic`` (Huang et al., "The GAN is dead; long live the GAN!", 2024): real and generated images are
  judged in pairs, and both gradients are penalised::

      L_D = softplus(D(G z) - D(x)) + γ/2 (|∇D(x)|² + |∇D(G z)|²)  L_G = softplus(D(x) - D(G z))

With few training images the critic learns them by heart. It is then shown real and generated images through the
same random transformations T, as often as needed (adaptive augmentation, Karras et al. 2020; see `augment`): D(x)
above stands for D(T(x)), and gradients are taken at x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf, sqrt
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from micrographia.errors import UserError, check_ranges
from micrographia.synthesize.augment import (
    INTERVAL,
    AdaptiveProbability,
    AugmentConfig,
    Transforms,
    apply_transforms,
    draw_transforms,
)
from micrographia.synthesize.dcgan import DCDiscriminator, DCGenerator, measure_batch_norm
from micrographia.synthesize.latents import classes_in_turn
from micrographia.synthesize.resolution import check_resolution
from micrographia.synthesize.stylegan import GROUP, StyleDiscriminator, StyleGenerator, group_spread
from micrographia.training import distributed
from micrographia.training.parallel import backward_side_by_side, side_by_side
from micrographia.training.schedules import hold_then_decay

#: Weight of the newest path lengths in their running mean.
_PATH_DECAY = 0.01


@dataclass(frozen=True)
class GanConfig:
    """How the networks are built and trained. Values of the StyleGAN2-ADA paper stand in brackets."""

    network: Literal["stylegan2", "dcgan"] = "stylegan2"
    """StyleGAN2's networks, or those of the DCGAN that is taught."""
    loss: Literal["logistic", "relativistic"] = "logistic"
    """The objective: StyleGAN2's, or R3GAN's pairs of real and generated images."""
    resolution: int = 64
    """Edge of the images, a power of two from 16 to 1024."""
    steps: int = 4000
    """Training steps."""
    batch: int = 16
    """Images per step. [64]"""
    latent: int = 64
    """Numbers in a code. [512]"""
    width: int = 16
    """Channels at full resolution (of a DCGAN at half of it), doubled with each halving. [64 at 512 px]"""
    widest: int = 128
    """The most channels at any resolution; StyleGAN2 only. [512]"""
    mapping_layers: int = 2
    """Layers from a code to a style; StyleGAN2 only. [2 to 8]"""
    learning_rate: float = 0.01
    """Adam's learning rate for the generator. [0.0025]"""
    critic_rate: float = 0.15
    """The critic's learning rate as a share of the generator's: one that learns as fast wins at the start, and all
    samples become alike. [1]"""
    hold: float = 0.5
    """Fraction of the steps at full learning rates, before their linear decay to zero. [1]"""
    variety: float = 10.0
    """Weight of the penalty on samples whose layouts are more alike than those of nearly all real images; 0 = none.
    Without it a small generator may draw one layout for a thousand steps. [0]"""
    beta1: float = 0.0
    """Adam's first momentum. [0]"""
    r1: float = 1.0
    """Weight γ of the gradient penalty; 0 = none. [0.0002 · pixels / batch]"""
    r1_every: int = 16
    """Steps between gradient penalties, which weigh as much more; relativistic training takes 1. [16]"""
    detail: bool = True
    """Show the critic the fine detail of images amplified beside them: it sees noise early then; StyleGAN2 only.
    [false]"""
    path_length: float = 0.0
    """Weight of the path-length penalty; 0 = none. On a small network it kept all images alike. [2; 0 at 32 px]"""
    path_every: int = 8
    """Steps between path-length penalties, which weigh as much more. [4]"""
    mixing: float = 0.0
    """Probability that an image is drawn with two styles, one for its coarse and one for its fine layers. [0.9; 0 at
    32 px]"""
    average_images: float = 5000.0
    """Images after which the running mean of the generator's weights has forgotten half; 0 = no mean. [10000 to
    20000]"""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What the critic sees the images through."""
    slope: float = 0.2
    """Slope of the DCGAN critic's rectifiers below zero; 0 = plain ReLU. [0.2]"""
    accumulate: int = 1
    """Parts in which a batch is computed, to save memory."""
    evaluate_every: int = 250
    """Steps between looks at the distance to the real images."""
    patience: int = 0
    """Stop after this many looks without improvement; 0 = never."""

    def __post_init__(self) -> None:
        check_resolution(self.resolution)
        counts = (
            "steps", "batch", "latent", "width", "widest", "mapping_layers", "r1_every", "path_every", "accumulate",
            "evaluate_every",
        )  # fmt: skip
        weights = ("r1", "variety", "path_length", "average_images", "slope", "patience")
        ranges = dict.fromkeys(counts, (1, inf)) | dict.fromkeys(weights, (0, inf))
        check_ranges("gan", self, **ranges, mixing=(0, 1), hold=(0, 1))
        if self.batch % GROUP:
            raise UserError(
                f"gan.batch = {self.batch}: give a multiple of {GROUP}, which the critic compares."
            )
        if self.network == "dcgan" and (self.accumulate > 1):
            raise UserError(
                "gan.accumulate: DCGAN's batch normalisation needs the whole batch; set accumulate = 1."
            )
        for name in ("learning_rate", "critic_rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"gan.{name} = {getattr(self, name)}: give a number greater than 0.")
        if not 0 <= self.beta1 < 1:
            raise UserError(f"gan.beta1 = {self.beta1}: give a number from 0 to below 1.")

    def penalty_at(self, step: int) -> float:
        """Weight of the gradient penalty at a step, 0 where none is due; those left out weigh in the next."""
        return 0.0 if step % self.r1_every else self.r1_every * self.r1

    @property
    def ema_decay(self) -> float:
        """Decay per step of the running mean of the generator's weights."""
        return 0.5 ** (self.batch / self.average_images) if self.average_images else 0.0


class GAN:
    """The networks and one step of their training (see `training.loop.Trainable`).

    Parameters
    ----------
    config : GanConfig
    channels : int
        Of the images.
    classes : int
        0 = none.
    shape_px : (int, int)
        Of the images, no larger than the resolution.
    seed : int
        Of the weights and of everything random in the steps.
    detail : float
        Gain of the fine detail that the critic is shown (`stylegan.detail_gain`); 0 = none.
    spread : float
        How much the layouts of a group differ at least (`stylegan.least_spread`); 0 = that is not asked for.

    Notes
    -----
    A batch is computed in parts of whole groups, side by side on a CPU. Everything random is drawn for the batch
    of all processes together, and each process takes its own share: several processes do what one would do with
    their joint batch.
    """

    ema_networks = ("generator",)

    def __init__(
        self,
        config: GanConfig,
        channels: int,
        classes: int,
        shape_px: tuple[int, int],
        seed: int,
        detail: float = 0.0,
        spread: float = 0.0,
    ) -> None:
        self.config, self.seed, self.spread = config, seed, spread
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.networks: dict[str, nn.Module] = {
                "generator": make_generator(config, channels, classes, shape_px),
                "critic": _critic(config, channels, classes, detail),
            }
        betas = (config.beta1, 0.999 if config.network == "dcgan" else 0.99)
        rates = {"generator": config.learning_rate, "critic": config.critic_rate * config.learning_rate}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(network.parameters(), rates[name], betas=betas, fused=True)
            for name, network in self.networks.items()
        }
        self.schedulers = {
            name: hold_then_decay(o, config.hold, config.steps) for name, o in self.optimizers.items()
        }
        self.ema: dict[str, nn.Module] = {}  # filled by the training loop
        self.probability = AdaptiveProbability(config.augment)
        self.path_length = torch.zeros(())

    def state(self) -> dict[str, Tensor]:
        """What the next step depends on besides networks and optimizers."""
        return {"path_length": self.path_length, **self.probability.state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore :meth:`state`."""
        self.path_length = state["path_length"]
        self.probability.load_state(state)

    def training_step(
        self, batch: Sequence[Tensor], step: int, generator: torch.Generator
    ) -> dict[str, float | Tensor]:
        """Let critic and generator learn from real images ``[N, C, H, W]`` and their classes ``[N]``.

        Further images and their classes, at most as many as all processes' batches hold and the same in each, are real ones
        that are never learnt from: they tell the augmentation how much the critic knows by heart.
        """
        real, labels, *unseen = batch
        draw = _Draws(self.seed, step, len(real), real.device)
        critic: Any = self.networks["critic"]
        inputs = self._inputs(draw, labels if critic.classes is not None else None)
        # Drawn once for both to learn from; again for the generator where its graph would take too much memory. The
        # generator comes first: a critic that has just learnt these very images would tell it less.
        keep = self.config.accumulate == 1

        def generate(part: slice) -> Tensor:
            with torch.set_grad_enabled(keep):
                return self._generate(inputs.part(part)).float()

        parts = self._parts(len(real))
        fakes = side_by_side([partial(generate, part) for part in parts], real.device.type == "cpu")
        fake = torch.cat([part.detach() for part in fakes])
        values = self._generator_step(real, fakes if keep else None, inputs, step, draw)
        return values | self._critic_step(real, fake, inputs.classes, unseen, step, draw)

    @torch.no_grad()
    def drawing_generator(self) -> Any:
        """The generator that images are drawn with: the mean of its weights over the last steps, if one is kept."""
        network: Any = self.ema.get("generator", self.networks["generator"])
        if self.ema and self.config.network == "dcgan":
            # Its statistics are those of the latest weights, not of their mean.
            draw = torch.Generator().manual_seed(self.seed)
            codes = torch.randn(512, network.latent, generator=draw).to(next(network.parameters()).device)
            classes = network.classes.num_embeddings if network.classes else 0
            measure_batch_norm(network, codes, classes_in_turn(classes, len(codes), codes.device))
        return network.eval()

    # ------------------------------------------------------------ critic

    def _critic_step(
        self,
        real: Tensor,
        fake: Tensor,
        classes: Tensor | None,
        unseen: Sequence[Tensor],
        step: int,
        draw: _Draws,
    ) -> dict[str, float | Tensor]:
        config = self.config
        n = len(real)
        transforms = [self._own_transforms(images, draw) for images in (real, fake)]
        weight = config.penalty_at(step)
        penalise = weight > 0
        relativistic = config.loss == "relativistic"

        def judge(part: slice) -> tuple[Tensor, Tensor]:
            both = torch.cat([real[part], fake[part]]).requires_grad_(penalise)
            # Slopes are those of the images themselves, through what they are seen through.
            pairs = zip(both.chunk(2), transforms, strict=True)
            shown = torch.cat([_seen(images, drawn, part) for images, drawn in pairs])
            on_real, on_fake = self._judge(shown, None if classes is None else classes[part], 2).chunk(2)
            if relativistic:
                adversarial = F.softplus(on_fake - on_real).mean()
            else:
                adversarial = (F.softplus(-on_real) + F.softplus(on_fake)).mean()
            loss, penalty = adversarial, torch.zeros_like(adversarial)
            if penalise:
                judged = on_real.sum() + (on_fake.sum() if relativistic else 0)
                (slopes,) = torch.autograd.grad(judged, both, create_graph=True)
                penalty = slopes.float().square().sum() / len(on_real)
                loss = loss + weight / 2 * penalty
            share = len(on_real) / n
            # Of pairs only the difference counts: the critic may add any number to all its verdicts.
            sure = on_real - on_fake if relativistic else on_real
            signs = sure.detach().sign().mean()
            told = torch.stack(
                [
                    adversarial.detach(),
                    penalty.detach(),
                    signs,
                    on_real.detach().mean(),
                    on_fake.detach().mean(),
                ]
            )
            return share * loss, share * told

        on_unseen = self._on_unseen(unseen, step, draw, n)  # by the critic as it is before this step
        told = self._learn("critic", [partial(judge, part) for part in self._parts(n)])
        values: dict[str, float | Tensor] = {
            "critic": told[0],
            "real_logit": told[3],
            "generated_logit": told[4],
        }
        if penalise:
            values["r1"] = told[1]
        if not unseen and config.augment.target > 0:
            self.probability.update(told[2], 1.0, draw.world, real.device)
        elif on_unseen is not None:
            known, whole = told[3] - on_unseen, told[3] - told[4]
            overfit = self.probability.update(
                known, whole, INTERVAL * draw.world, real.device, by_unseen=True
            )
            values |= {} if overfit is None else {"overfit": overfit}
        return values | {"real_signs": told[2], "augment_p": self.probability.p}

    @torch.no_grad()
    def _on_unseen(self, unseen: Sequence[Tensor], step: int, draw: _Draws, batch: int) -> Tensor | None:
        """Mean verdict on real images that are not learnt from, now and then; None where there are none."""
        if not unseen or step % INTERVAL:
            return None
        images, labels = unseen
        critic: Any = self.networks["critic"]
        transforms = self._transforms(images, draw)  # each process asks about all of them

        def judge(part: slice) -> Tensor:
            shown = _seen(images[part], transforms, part)
            return self._judge(shown, None if critic.classes is None else labels[part], 1)

        return torch.cat([judge(part) for part in self._parts(len(images), batch)]).mean()

    # ------------------------------------------------------------ generator

    def _generator_step(
        self, real: Tensor, fakes: list[Tensor] | None, inputs: _Inputs, step: int, draw: _Draws
    ) -> dict[str, float | Tensor]:
        config = self.config
        transforms = self._own_transforms(real, draw)
        relativistic = config.loss == "relativistic"
        if relativistic:
            real = _seen(real, self._own_transforms(real, draw))
        measure = config.network == "stylegan2" and config.path_length > 0 and step % config.path_every == 0
        directions = draw.normal(*real.shape[1:]) if measure else real
        target = self.path_length.to(real.device)
        vary = config.variety > 0 and self.spread > 0

        def fool(part: slice, fake: Tensor | None) -> tuple[Tensor, Tensor]:
            own = inputs.part(part)
            fake = self._generate(own).float() if fake is None else fake
            shown = _seen(fake, transforms, part)
            if relativistic:
                on_real, on_fake = self._judge(torch.cat([real[part], shown]), own.classes, 2).chunk(2)
                adversarial = F.softplus(on_real - on_fake).mean()
            else:
                adversarial = F.softplus(-self._judge(shown, own.classes, 1)).mean()
            loss, penalty, length, alike = adversarial, *torch.zeros(3, device=fake.device)
            if vary:
                alike = F.relu(1 - group_spread(fake) / self.spread).mean()
                loss = loss + config.variety * alike
            if measure:
                lengths = self._path_lengths(own.part(slice(None, None, 2)), directions[part][::2])
                length, penalty = lengths.detach().mean(), (lengths - target).square().mean()
                loss = loss + config.path_length * config.path_every * penalty
            share = len(fake) / len(real)
            told = torch.stack([adversarial.detach(), penalty.detach(), length, alike.detach()])
            return share * loss, share * told

        parts = self._parts(len(real))
        drawn: Sequence[Tensor | None] = fakes or [None] * len(parts)
        self.networks["critic"].requires_grad_(False)
        told = self._learn("generator", [partial(fool, *t) for t in zip(parts, drawn, strict=True)])
        self.networks["critic"].requires_grad_(True)
        values: dict[str, float | Tensor] = {"generator": told[0]}
        if vary:
            values["alike"] = told[3]
        if measure:
            length = distributed.mean_over_processes([float(told[2])], real.device)[0]
            self.path_length = self.path_length + _PATH_DECAY * (length - self.path_length)
            values |= {"path_penalty": told[1], "path_length": length}
        return values

    def _path_lengths(self, inputs: _Inputs, directions: Tensor) -> Tensor:
        """How far a step in style space moves the image, for each style alike if space is well shaped."""
        network: Any = self.networks["generator"]
        styles = self._styles(inputs)
        images = network.synthesise(styles, inputs.noise).float()
        projected = (images * directions).sum() / sqrt(images.shape[-1] * images.shape[-2])
        (slopes,) = torch.autograd.grad(projected, styles, create_graph=True)
        return slopes.float().square().sum(dim=2).mean(dim=1).sqrt()

    # ------------------------------------------------------------ both

    def _inputs(self, draw: _Draws, classes: Tensor | None) -> _Inputs:
        """Draw codes, where they change over to others, and noise for the generator."""
        network: Any = self.networks["generator"]
        codes = draw.normal(network.latent)
        if self.config.network == "dcgan":
            return _Inputs(codes, classes)
        noise = [draw.normal(1, *shape) for shape in network.noise_shapes()]
        if not self.config.mixing:
            return _Inputs(codes, classes, noise=noise)
        other = draw.normal(network.latent)
        change = 1 + draw.integers(network.style_count - 1)
        change = torch.where(draw.uniform() < self.config.mixing, change, network.style_count)
        return _Inputs(codes, classes, other, change, noise)

    def _generate(self, inputs: _Inputs) -> Tensor:
        network: Any = self.networks["generator"]
        if self.config.network == "dcgan":
            return network(inputs.codes, inputs.classes)
        return network.synthesise(self._styles(inputs), inputs.noise)

    def _styles(self, inputs: _Inputs) -> Tensor:
        """One style for each image and layer: ``[N, style_count, latent]``."""
        network: Any = self.networks["generator"]
        if not self.config.mixing:
            return network.mapping(inputs.codes, inputs.classes)[:, None].repeat(1, network.style_count, 1)
        assert inputs.other is not None
        assert inputs.change is not None
        both = torch.cat([inputs.codes, inputs.other])
        classes = None if inputs.classes is None else inputs.classes.repeat(2)
        first, second = network.mapping(both, classes)[:, None].chunk(2)
        layers = torch.arange(network.style_count, device=first.device)
        return torch.where(layers[None, :, None] < inputs.change[:, None, None], first, second)

    def _judge(self, images: Tensor, classes: Tensor | None, sets: int) -> Tensor:
        """Logits of `sets` sets of images of the same classes, one after the other."""
        critic = self.networks["critic"]
        if (
            self.config.network == "dcgan"
        ):  # whose batch normalisation must not see real and generated ones together
            return torch.cat([critic(part, classes).float() for part in images.chunk(sets)])
        return critic(images, None if classes is None else classes.repeat(sets)).float()

    def _transforms(self, images: Tensor, draw: _Draws) -> Transforms | None:
        """What the joint batch of all processes is seen through; None where nothing is transformed."""
        p = self.probability.p
        shape = tuple(images.shape[1:])
        return draw_transforms(draw.world, shape, p, self.config.augment, draw.generator) if p else None

    def _own_transforms(self, images: Tensor, draw: _Draws) -> Transforms | None:
        """This process's share of them."""
        drawn = self._transforms(images, draw)
        return None if drawn is None else draw.share(drawn)

    def _parts(self, n: int, batch: int | None = None) -> list[slice]:
        """Parts of whole groups in which `n` images are computed, as large as those of a batch (of `n`)."""
        parts = 1
        if self.config.network == "stylegan2":
            cpu = next(self.networks["critic"].parameters()).device.type == "cpu"
            parts = max(self.config.accumulate, 2 if cpu else 1)
        size = -(-(batch or n) // (parts * GROUP)) * GROUP
        return [slice(start, min(start + size, n)) for start in range(0, n, size)]

    def _learn(self, name: str, terms: Sequence[Callable[[], tuple[Tensor, Tensor]]]) -> Tensor:
        """Let a network learn from the sum of all parts' losses; return the sum of what they tell."""
        optimizer = self.optimizers[name]
        told = backward_side_by_side(terms, optimizer.param_groups[0]["params"])
        distributed.optimizer_step(optimizer)
        return torch.stack(told).sum(dim=0)


@dataclass(frozen=True)
class _Inputs:
    """What the generator draws a batch from."""

    codes: Tensor
    classes: Tensor | None = None
    other: Tensor | None = None
    change: Tensor | None = None
    noise: list[Tensor] | None = None

    def part(self, which: slice) -> _Inputs:
        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[which]

        noise = None if self.noise is None else [n[which] for n in self.noise]
        return _Inputs(self.codes[which], cut(self.classes), cut(self.other), cut(self.change), noise)


class _Draws:
    """Random numbers for the joint batch of all processes, of which each gets its own share.

    A function of seed and step alone.
    """

    def __init__(self, seed: int, step: int, n: int, device: torch.device) -> None:
        self.world = n * distributed.rank_and_world()[1]
        self.device = device
        # Hashed: of a longer number the CPU's generator would take the last 32 bits, which are the step's.
        (hashed,) = np.random.SeedSequence([seed, 17, step]).generate_state(1, np.uint64) >> np.uint64(1)
        self.generator = torch.Generator(device).manual_seed(int(hashed))

    def normal(self, *shape: int) -> Tensor:
        return self.share(torch.randn(self.world, *shape, generator=self.generator, device=self.device))

    def uniform(self) -> Tensor:
        return self.share(torch.rand(self.world, generator=self.generator, device=self.device))

    def integers(self, high: int) -> Tensor:
        return self.share(torch.randint(high, (self.world,), generator=self.generator, device=self.device))

    def share(self, drawn):
        return distributed.shard(drawn)


def _seen(images: Tensor, transforms: Transforms | None, part: slice = slice(None)) -> Tensor:
    """Images through their part of the transformations that were drawn for a batch, if any were."""
    return images if transforms is None else apply_transforms(images, transforms[part])


def make_generator(config: GanConfig, channels: int, classes: int, shape_px: tuple[int, int]) -> nn.Module:
    """Build one untrained generator."""
    if config.network == "dcgan":
        return DCGenerator(config.resolution, channels, config.latent, config.width, classes=classes)
    return StyleGenerator(
        config.resolution, channels, config.latent, config.width, config.widest, config.mapping_layers, classes,
        shape_px,
    )  # fmt: skip


def _critic(config: GanConfig, channels: int, classes: int, detail: float) -> nn.Module:
    if config.network == "dcgan":
        return DCDiscriminator(config.resolution, channels, config.width, slope=config.slope, classes=classes)
    return StyleDiscriminator(
        config.resolution, channels, config.latent, config.width, config.widest, classes, detail
    )
