"""The algorithm: an evidence lower bound with the angle and the class summed over, not guessed.

Regressing an angle from a picture has local minima (half a turn is as far as one can be wrong, and small
steps do not lead out), and a class that a network guesses collapses. So both are hypotheses. Each patch is
turned upright by every candidate angle; for each, one network infers the remainder of the pose and, from
the patch turned upright by all of it, another the content; each is decoded with each class. The bound

    log p(x) >= log sum_h p(h) exp(-L_h),   L_h = -log p(x | h) + KL of the continuous blocks

has the gradient ``sum_h r_h dL_h`` with the responsibilities ``r_h ~ p(h) exp(-L_h)``, so one hypothesis drawn
from r and differentiated is an unbiased estimate of it: the hypotheses cost forward passes only. This is
expectation maximisation as in the alignment of single particles (Scheres 2012), with amortised continuous
blocks; TARGET-VAE (Nasiri and Bepler 2022) guesses r by attention instead of computing it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from math import log, pi, radians
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from micrographia.errors import UserError
from micrographia.latent.blocks import Blocks, Classes, Discrete
from micrographia.latent.networks import ConvDecoder, ConvEncoder, FourierDecoder, MlpEncoder, reach_of
from micrographia.latent.pose import Pose, disc, rotate, upright
from micrographia.training.distributed import optimizer_step

_LOG_2PI_E = log(2 * pi) + 1
#: Orientations in which a classifier sees each labelled patch of a batch: labels are few, turning makes many of one.
TURNS = 4


@dataclass(frozen=True)
class VaeConfig:
    """Networks and training of a latent model."""

    loss: Literal["gaussian", "bernoulli", "poisson"] = "gaussian"
    """What the noise of a pixel is; bernoulli for probabilities (0 to 1), poisson for counts."""
    encoder: Literal["mlp", "conv"] = "mlp"
    """Fully connected or convolutional encoder."""
    decoder: Literal["fourier", "conv"] = "fourier"
    """Coordinate decoder (Fourier series) or convolutional decoder."""
    hidden: int = 128
    """Units per hidden layer."""
    detail: int = 8
    """Finest structure drawn, in cycles per patch edge (at most half the pixels)."""
    epochs: int = 60
    """Passes over all patches."""
    batch: int = 50
    """Patches per training step."""
    learning_rate: float = 2e-3
    """Of Adam; falls to zero along half a cosine."""
    annealing: float = 0.3
    """Fraction of the training over which the choice among angles and classes sharpens."""

    def __post_init__(self) -> None:
        for name in ("hidden", "detail", "epochs", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)} is not possible; give at least 1.")
        if not self.learning_rate > 0 or not 0 <= self.annealing <= 1:
            raise UserError("learning_rate must be more than 0, and annealing a fraction from 0 to 1.")
        for name, valid in _CHOICES.items():
            if getattr(self, name) not in valid:
                raise UserError(
                    f"{name} = '{getattr(self, name)}' is not possible; choose {', '.join(valid)}."
                )


_CHOICES = {
    "loss": ("gaussian", "bernoulli", "poisson"),
    "encoder": ("mlp", "conv"),
    "decoder": ("fourier", "conv"),
}


@dataclass(frozen=True)
class Inferred:
    """Continuous blocks of a batch, given a candidate angle for each patch."""

    pose: Pose
    code: Tensor
    """Code, then values, ``[B, n]``."""
    kl_pose: Tensor
    """Nats ``[B]``."""
    kl_code: Tensor
    """Nats ``[B]``."""
    kl_values: Tensor
    """Nats ``[B]`` of the values that are not known."""
    surprise: Tensor
    """``-log q`` of the values that are known, nats ``[B]``."""
    upright: Tensor
    """The patches as seen in the frame of the objects, ``[B, C, h, w]``."""


class LatentNetwork(nn.Module):
    """Encoders, decoder and bound of a latent space for patches of one shape.

    Parameters
    ----------
    blocks : Blocks
    shape : (C, H, W)
    config : VaeConfig
    """

    mean: Tensor
    std: Tensor
    variance: Tensor
    mask: Tensor
    pose_prior: Tensor
    decoder: FourierDecoder | ConvDecoder

    def __init__(self, blocks: Blocks, shape: tuple[int, int, int], config: VaeConfig) -> None:
        super().__init__()
        self.blocks, self.shape, self.config = blocks, shape, config
        channels, height, width = shape
        longer = max(height, width)
        self.pool = max(longer // 24, 1)  # encoders and comparisons of hypotheses need no more than 24 px
        seen = (channels, height // self.pool, width // self.pool)
        given = blocks.condition.n if blocks.condition else 0
        encoder = MlpEncoder if config.encoder == "mlp" else ConvEncoder
        decoder = FourierDecoder if config.decoder == "fourier" else ConvDecoder

        priors = []
        if blocks.rotation:
            self.cell = radians(blocks.rotation.cell_deg)
            priors.append(self.cell / 4)
        if blocks.translation:
            priors += 2 * [2 * blocks.translation.prior_px / longer]
        if blocks.scale:
            priors.append(blocks.scale.prior)
        self.register_buffer("pose_prior", torch.tensor(priors), persistent=False)
        self.pose_encoder = encoder(seen, given, config.hidden, 2 * len(priors)) if priors else None
        n = blocks.numbers
        self.content_encoder = encoder(seen, given, config.hidden, 2 * n) if n else None
        self.classifier = None
        if isinstance(blocks.discrete, Classes):  # wider than the others: it knows every orientation
            self.classifier = encoder(seen, given, 4 * config.hidden, blocks.discrete.k)
        shift = 2 * blocks.translation.prior_px / longer if blocks.translation else 0.0
        reach = reach_of(bool(blocks.rotation), shift, blocks.scale.prior if blocks.scale else 0.0)
        detail = min(config.detail, longer // 2)
        self.decoder = decoder(shape, max(blocks.code_size, 1), config.hidden, reach, detail)
        mask = disc(*seen[1:]) if blocks.rotation else torch.ones(seen[1:])
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("mean", torch.zeros(channels))  # of the data
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("variance", torch.ones(()))  # of the residual, in units of the data's variance

    def seen(self, images: Tensor) -> Tensor:
        """Standardised images as the encoders see them."""
        return nn.functional.avg_pool2d(images, self.pool) if self.pool > 1 else images

    def candidates(self, n: int, jitter: Tensor | None = None) -> Tensor:
        """Candidate angles in radians, ``[n, K]``; `jitter` (0 to 1, ``[n, 1]``) turns a full circle of them."""
        rotation = self.blocks.rotation
        if rotation is None:
            return self.variance.new_zeros(n, 1)
        centres = (torch.arange(rotation.candidates, device=self.variance.device) + 0.5) * self.cell
        centres = (centres - radians(rotation.span_deg)).expand(n, -1)
        if jitter is not None and rotation.span_deg == 180:
            centres = centres + (jitter - 0.5) * self.cell
        return centres

    def infer(
        self,
        seen: Tensor,
        candidate: Tensor,
        given: Tensor,
        noise: Tensor | None = None,
        closed: bool = False,
        known: Tensor | None = None,
    ) -> Inferred:
        """Infer pose, code and values of patches ``[B, C, h, w]`` near a `candidate` angle ``[B]``.

        With `noise` (standard normal ``[B, P + n]``) a sample, else the means. `closed`: the code is silent.
        `known`: values ``[B, v]``, NaN = unknown.
        """
        b, zeros = len(seen), torch.zeros_like(candidate)
        pose = Pose(candidate, zeros.new_zeros(b, 2), zeros)
        kl_pose, posed = zeros, len(self.pose_prior)
        turned_back = seen
        if self.pose_encoder is not None:
            looked = upright(seen, pose) * self.mask if self.blocks.rotation else seen
            mean, raw = self.pose_encoder(looked, given).chunk(2, dim=1)
            deviation = self.pose_prior * (raw - 1).clamp(-5, 1).exp()
            pose, kl_pose = self._pose(
                candidate, mean, deviation, None if noise is None else noise[:, :posed]
            )
            turned_back = upright(seen, pose)
        code, kl_code, kl_values, surprise = zeros.new_zeros(b, self.blocks.numbers), zeros, zeros, zeros
        if self.content_encoder is not None and (not closed or self.blocks.values):
            mean, raw = self.content_encoder(turned_back * self.mask, given).chunk(2, dim=1)
            deviation = (raw - 1).clamp(-6, 1).exp()
            code = mean if noise is None else mean + deviation * noise[:, posed:]
            kl = 0.5 * (mean**2 + deviation**2 - 1) - deviation.log()
            n = code.shape[1] - (self.blocks.values.n if self.blocks.values else 0)
            own, values = code[:, :n], code[:, n:]
            if self.blocks.continuous:
                kl_code = kl[:, :n].sum(1)
                if not self.blocks.continuous.variational:
                    own, kl_code = mean[:, :n], zeros
            if closed:
                own, values, kl, kl_code = torch.zeros_like(own), torch.zeros_like(values), 0 * kl, zeros
            if self.blocks.values:
                told = torch.zeros_like(values, dtype=torch.bool) if known is None else torch.isfinite(known)
                true = values if known is None else torch.where(told, known, 0.0)
                unlikely = 0.5 * ((true - mean[:, n:]) / deviation[:, n:]) ** 2 + deviation[:, n:].log()
                surprise = torch.where(told, unlikely, 0.0).sum(1)
                kl_values = torch.where(told, 0.0, kl[:, n:]).sum(1)
                values = torch.where(told, true, values)
            code = torch.cat([own, values], dim=1)
        return Inferred(pose, code, kl_pose, kl_code, kl_values, surprise, turned_back)

    def _pose(
        self, candidate: Tensor, mean: Tensor, deviation: Tensor, noise: Tensor | None
    ) -> tuple[Pose, Tensor]:
        """Pose from the encoder's numbers, and its KL; shifts are inferred in the turned frame."""
        blocks, zeros = self.blocks, torch.zeros_like(candidate)
        angle, tau, log_scale, kl, at = candidate, zeros.new_zeros(len(zeros), 2), zeros, zeros, 0
        drawn = torch.zeros_like(mean) if noise is None else deviation * noise
        if blocks.rotation:
            turn = self.cell * torch.tanh(mean[:, 0])
            kl = kl + log(self.cell) - deviation[:, 0].log() - 0.5 * _LOG_2PI_E  # to a uniform cell
            if blocks.rotation.span_deg < 180:
                outside = (candidate + turn).abs() - radians(blocks.rotation.range_deg)
                kl = kl + 0.5 * (outside.clamp(min=0) / radians(10)) ** 2
            angle, at = angle + turn + drawn[:, 0], 1
        gauss = mean[:, at:]  # in units of the prior
        width = deviation[:, at:] / self.pose_prior[at:]
        kl = kl + (0.5 * (gauss**2 + width**2 - 1) - width.log()).sum(1)
        rest = self.pose_prior[at:] * gauss + drawn[:, at:]
        if blocks.scale:
            log_scale = rest[:, -1]
        if blocks.translation:
            tau = rest[:, :2]
            tau = torch.stack(rotate(tau[:, 0], tau[:, 1], angle), dim=1) * log_scale.exp()[:, None]
        return Pose(angle, tau, log_scale), kl

    def class_scores(self, turned_back: Tensor, given: Tensor) -> Tensor:
        """Log-probabilities of the classes ``[B, C]`` of patches in the frame of the objects."""
        assert self.classifier is not None
        return torch.log_softmax(self.classifier(turned_back * self.mask, given), dim=1)

    def turned_at_random(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Patches ``[B, C, h, w]`` in any orientation that the rotation block allows."""
        if self.blocks.rotation is None:
            return images
        turn = 2 * torch.rand(len(images), generator=generator, device=images.device) - 1
        none = turn.new_zeros(len(turn), 2)
        return upright(images, Pose(turn * radians(self.blocks.rotation.range_deg), none, none[:, 0]))

    def draw(self, code: Tensor, one_hot: Tensor, given: Tensor, pose: Pose | None, pool: int = 1) -> Tensor:
        """Decode to standardised images, logits or log-rates, by the loss; without a pose, upright."""
        parts = torch.cat([code, one_hot, given], dim=1)
        if not self.blocks.code_size:
            parts = parts.new_ones(len(parts), 1)
        return self.decoder(parts, pose, pool)

    def at_rest(self) -> AbstractContextManager[None]:
        """Inside, the weights do not change, which saves work."""
        return self.decoder.at_rest() if isinstance(self.decoder, FourierDecoder) else nullcontext()

    @torch.no_grad()
    def learn_scale(self, mean: Tensor, std: Tensor) -> None:
        """Note mean and deviation of the data by channel; let the untrained decoder draw the mean."""
        self.mean.copy_(mean)
        self.std.copy_(std)
        if self.config.loss == "bernoulli":
            self.decoder.start_at(torch.logit(self.mean, eps=1e-3))
        elif self.config.loss == "poisson":
            self.decoder.start_at(self.mean.clamp(min=1e-3).log())

    def standardised(self, images: Tensor) -> Tensor:
        """Images as the encoders want them."""
        return (images - self.mean[:, None, None]) / self.std[:, None, None]

    def in_units(self, drawn: Tensor) -> Tensor:
        """What the decoder drew, in the units of the data."""
        if self.config.loss == "bernoulli":
            return drawn.sigmoid()
        if self.config.loss == "poisson":
            return drawn.clamp(max=15).exp()
        return drawn * self.std[:, None, None] + self.mean[:, None, None]

    def target(self, images: Tensor) -> Tensor:
        """What the loss compares with: standardised images, or the original intensities."""
        if self.config.loss == "gaussian":
            return images
        return images * self.std[:, None, None] + self.mean[:, None, None]

    def misfit(self, drawn: Tensor, target: Tensor) -> Tensor:
        """-log p(pixel | drawn) in nats up to a constant."""
        if self.config.loss == "gaussian":
            return 0.5 * (drawn - target) ** 2 / self.variance
        if self.config.loss == "bernoulli":
            return nn.functional.softplus(drawn) - target * drawn
        rate = drawn.clamp(max=15)
        return rate.exp() - target * rate

    def misfits(self, drawn: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """The same, summed with weights ``[H, W]``: drawings ``[B or 1, c, C, H, W]`` of targets ``[B, C, H, W]``.

        All three losses are exponential families, ``A(drawn) - target * drawn`` and what depends on the target
        alone, so the sum over the pixels is a product of matrices.
        """
        weight = weight.expand(target.shape[1:]).flatten()
        drawn, target = drawn.flatten(2), target.flatten(1)
        if self.config.loss == "gaussian" and len(drawn) > 1:  # nothing shared: the direct way is shorter
            return 0.5 * (drawn - target[:, None]).square() @ weight / self.variance
        if self.config.loss == "gaussian":
            partition = 0.5 * drawn.square()
        elif self.config.loss == "bernoulli":
            partition = nn.functional.softplus(drawn)
        else:
            drawn = drawn.clamp(max=15)
            partition = drawn.exp()
        weighted = target * weight
        if len(drawn) == 1:
            product = weighted @ drawn[0].mT
        else:
            product = (drawn @ weighted[:, :, None])[:, :, 0]
        total = partition @ weight - product
        if self.config.loss == "gaussian":
            total = (total + 0.5 * (target.square() @ weight)[:, None]) / self.variance
        return total

    @torch.no_grad()
    def weigh(
        self,
        images: Tensor,
        candidates: Tensor,
        given: Tensor,
        closed: bool = False,
        known: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """L_h of all hypotheses, ``[B, K, C]`` (angles, classes), at the means of the continuous blocks.

        The second is what a classifier says, log-probabilities ``[B, 1, C]``: the mean of its answers at all
        angles, on which a class does not depend; None without one. Compared in the frame of the objects and
        inside the disc that every rotation shows, where all hypotheses share one set of basis functions;
        weighted to the number of pixels of the whole patch.
        """
        b, k = candidates.shape
        c, seen, blocks = self.blocks.classes, self.seen(images), self.blocks
        given = given.repeat_interleave(k, 0)
        known = None if known is None else known.repeat_interleave(k, 0)
        found = self.infer(
            seen.repeat_interleave(k, 0), candidates.reshape(-1), given, closed=closed, known=known
        )
        cost = found.kl_pose + found.kl_values
        cost = cost + (blocks.continuous.beta * found.kl_code if blocks.continuous else 0.0)
        weight = self.mask * (images[0, 0].numel() / self.mask.sum())
        one_hot = torch.eye(c, device=images.device)[:, : c if blocks.discrete else 0]
        if closed and not given.shape[1] and not blocks.values:  # all patches share the templates
            code = found.code.new_zeros(c, found.code.shape[1])
            drawn = self.draw(code, one_hot, given.new_zeros(c, 0), None, self.pool)[None]
        else:
            code, each = (t.repeat_interleave(c, 0) for t in (found.code, given))
            drawn = self.draw(code, one_hot.repeat(b * k, 1), each, None, self.pool).unflatten(0, (b * k, c))
        cost = cost[:, None] + self.misfits(drawn, self.target(found.upright), weight)
        told = None
        if self.classifier is not None:
            told = self.class_scores(found.upright, given).view(b, k, c).logsumexp(1, keepdim=True) - log(k)
        return cost.view(b, k, c), told


def classified(cost: Tensor, told: Tensor | None) -> Tensor:
    """Costs ``[B, K, C]`` such that, for each angle, the classes have the log-probabilities `told`.

    What is left to the pictures is the angle: its cost is the mean over the classes. So a classifier decides on
    the class, as in Kingma et al., "Semi-supervised learning with deep generative models" (2014); were it left to
    the pictures, frequent classes with varied contents would lose to rare ones that draw noise better.
    """
    if told is None:
        return cost
    return (told.exp() * cost).sum(2, keepdim=True) - told


def responsibilities(cost: Tensor, nats: float) -> Tensor:
    """Posterior of the hypotheses ``[B, H]`` that carries at most `nats` on average.

    ``softmax(-cost / T)`` with the smallest ``T >= 1`` whose mean KL to the uniform prior is at most `nats`:
    the capacity C_alpha(t) of a discrete code, which is deterministic annealing. Infinite costs are hypotheses
    excluded by a label, and do not count.
    """

    def posterior(temperature: float) -> Tensor:
        return torch.softmax(-cost / temperature, dim=1)

    def carried(r: Tensor) -> float:
        possible = torch.isfinite(cost).sum(1)
        return float((torch.special.xlogy(r, r).sum(1) + possible.log()).mean())

    r = posterior(1.0)
    if carried(r) <= nats:
        return r
    low, high = 0.0, 20.0  # logarithm of the temperature
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if carried(posterior(np.exp(middle))) > nats else (low, middle)
    return posterior(np.exp(high))


def balanced(r: Tensor, classes: int, rounds: int = 10) -> Tensor:
    """Responsibilities ``[B, K * classes]`` nearest to `r` that use all classes about alike (Sinkhorn)."""
    for _ in range(rounds):
        used = r.view(len(r), -1, classes).mean((0, 1)).clamp(min=1e-8)
        r = (r.view(len(r), -1, classes) / used).flatten(1)
        r = r / r.sum(1, keepdim=True)
    return r


@dataclass(frozen=True)
class Sample:
    """What a physics term sees: one draw from the posterior of a batch."""

    network: LatentNetwork
    index: Tensor
    """Places of the patches in the stack, ``[B]``: to look up what else is known about them."""
    inferred: Inferred
    one_hot: Tensor
    """Class ``[B, k]``."""
    given: Tensor
    """Conditions, standardised ``[B, n]``."""
    drawn: Tensor
    """Reconstructions ``[B, C, H, W]``: standardised intensities, logits or log-rates, by the loss."""

    @property
    def code(self) -> Tensor:
        """Continuous code, then values, ``[B, n]``."""
        return self.inferred.code

    @property
    def pose(self) -> Pose:
        """Angle, shift and scale."""
        return self.inferred.pose

    @cached_property
    def upright(self) -> Tensor:
        """The same without their pose, ``[B, C, H, W]``."""
        return self.network.draw(self.code, self.one_hot, self.given, None).float()


#: A physics term: nats to add to the bound, for each patch ``[B]`` or as their mean.
Term = Callable[[Sample], Tensor]


class LatentTraining:
    """What the training loop needs: see `micrographia.training.loop.Trainable`.

    A batch is (standardised images ``[B, C, H, W]``, given ``[B, n]``, labels ``[B]``, -1 = unknown, values
    ``[B, v]``, NaN = unknown, places ``[B]`` of the patches in the stack).
    """

    def __init__(self, network: LatentNetwork, steps: int, terms: Sequence[Term] = ()) -> None:
        self.network, self.steps, self.terms = network, steps, terms
        self.networks: dict[str, nn.Module] = {"vae": network}
        optimizer = torch.optim.Adam(network.parameters(), lr=network.config.learning_rate)
        self.optimizers: dict[str, torch.optim.Optimizer] = {"vae": optimizer}
        self.schedulers = {"vae": torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)}

    def _rate(self, step: int) -> float:
        return min((step + 1) / 20, 0.5 * (1 + np.cos(pi * min(step / self.steps, 1.0))) + 1e-3)

    def training_step(
        self, batch: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], step: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Weigh the hypotheses, draw one for each patch, learn from it."""
        net, blocks, progress = self.network, self.network.blocks, step / self.steps
        images, given, labels, known, index = batch
        b, device = len(images), images.device
        continuous = blocks.continuous
        capacity = continuous.capacity if continuous else None
        allowed = capacity.at(progress) if capacity else None
        closed = allowed == 0
        candidates = net.candidates(b, torch.rand(b, 1, generator=generator, device=device))
        k, c = candidates.shape[1], blocks.classes
        chosen = torch.zeros(b, dtype=torch.long, device=device)
        share = min(1.0, progress / net.config.annealing) if net.config.annealing else 1.0
        weight = images.new_ones(b)
        if isinstance(blocks.discrete, Classes):  # the labelled lead, or the others settle on other classes
            weight = torch.where(labels >= 0, 1.0, share)
            weight = weight * (b / weight.sum().clamp(min=1e-3))
        if k * c > 1:
            cost, told = net.weigh(images, candidates, given, closed, known)
            if told is not None:  # a label is the truth, whatever the classifier says
                sure = torch.arange(c, device=device) == labels[:, None]
                told = torch.where((labels >= 0)[:, None, None], sure.float().log()[:, None], told)
            cost = classified(cost, told)
            r = responsibilities(cost.flatten(1), share * log(k * c) if share < 1 else torch.inf)
            if share < 1 and isinstance(blocks.discrete, Discrete):
                r = balanced(r, c)  # or a class that starts late dies before it has learnt anything
            chosen = torch.multinomial(r, 1, generator=generator)[:, 0]
        angle = candidates.gather(1, (chosen // c)[:, None])[:, 0]
        one_hot = torch.eye(c, device=device)[chosen % c] if blocks.discrete else images.new_zeros(b, 0)

        width = len(net.pose_prior) + blocks.numbers
        noise = torch.randn(b, width, generator=generator, device=device)
        found = net.infer(net.seen(images), angle, given, noise, closed, known)
        drawn = net.draw(found.code, one_hot, given, found.pose).float()
        target = net.target(images)
        misfit = (weight * net.misfit(drawn, target).sum((1, 2, 3))).mean()
        kl_pose, kl_code = (weight * found.kl_pose).mean(), (weight * found.kl_code).mean()
        beta = continuous.beta if continuous else 1.0
        loss = misfit + kl_pose + beta * kl_code
        if blocks.values:
            loss = loss + (found.kl_values + blocks.values.weight * found.surprise).mean()
        if net.classifier is not None and (labels >= 0).any():
            some = labels >= 0
            few = found.upright[some].detach().repeat(TURNS, 1, 1, 1)
            said = net.class_scores(net.turned_at_random(few, generator), given[some].repeat(TURNS, 1))
            loss = loss + images[0].numel() * nn.functional.nll_loss(said, labels[some].repeat(TURNS))
        if capacity and allowed:
            loss = loss + capacity.weight * (kl_code - allowed).clamp(min=0)
        sample = Sample(net, index, found, one_hot, given, drawn)
        physics = [torch.as_tensor(term(sample)).mean() for term in self.terms]
        loss = loss + sum(physics)
        pixels = images[0].numel()
        optimizer = self.optimizers["vae"]
        optimizer.zero_grad()
        (loss / pixels).backward()
        optimizer_step(optimizer, max_gradient_norm=1.0)
        if net.config.loss == "gaussian":
            with torch.no_grad():  # maximum likelihood of the noise, averaged over some twenty batches
                now = (weight[:, None, None, None] * (drawn - target).square()).mean().clamp(min=1e-3)
                net.variance.lerp_(now, 0.05)
        return {
            **{f"term{i + 1}": value for i, value in enumerate(physics)},
            "misfit": misfit,
            "kl_pose": kl_pose,
            "kl_code": kl_code,
            "variance": net.variance,
        }
