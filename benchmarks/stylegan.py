"""Time of a StyleGAN2 training step, against the paper's own formulation of the same networks in plain PyTorch.

The plain one scales the weights for each image and convolves in groups, filters by inserting zeros and convolving,
judges real and generated images one after the other, takes its penalties in passes of their own, and steps an
optimiser that is not fused. Same weights, same images, in turn in one process. On a CUDA device, if there is one,
also 256 px with bfloat16.

Both ways' steps are whole: ours also draws one batch for generator and critic where the plain one draws two.

python stylegan.py [steps] [repeats]
"""

from __future__ import annotations

import copy
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from types import MethodType

import torch
from common import publish, table
from torch import Tensor, nn
from torch.nn import functional as F

from micrographia.synthesize.gan import GAN, GanConfig
from micrographia.synthesize.stylegan import PlainConv, StyledConv, StyledLayer, StyleGenerator
from micrographia.training.device import autocast, choose_device, set_threads

BASE = GanConfig(r1_every=16)


# ------------------------------------------------------------------------------- the plain formulation


def upfirdn(x: Tensor, up: int, down: int, before: int, after: int, gain: float) -> Tensor:
    """Insert zeros, pad, filter with [1, 3, 3, 1], keep every `down`-th pixel (Karras et al. 2020, appendix B)."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h, 1, w, 1)
    x = F.pad(x, [0, up - 1, 0, 0, 0, up - 1]).reshape(n, c, h * up, w * up)
    x = F.pad(x, [before, after, before, after])
    line = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device)
    kernel = (gain / 64 * line[:, None] * line)[None, None].repeat(c, 1, 1, 1).to(x)
    return F.conv2d(x, kernel, groups=c)[:, :, ::down, ::down]


def plain_styled(self: StyledConv, x: Tensor, w: Tensor, gain: float = 1.0) -> Tensor:
    n, c_in, height, width = x.shape
    c_out, _, k, _ = self.weight.shape
    weight = self.weight * self.weight_gain * self.style(w)[:, None, :, None, None]
    if self.demodulate:
        weight = weight * gain * torch.rsqrt(weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
    x = x.reshape(1, n * c_in, height, width)
    if not self.up:
        x = F.conv2d(x, weight.reshape(n * c_out, c_in, k, k).to(x), padding=k // 2, groups=n)
        return x.reshape(n, c_out, height, width)
    weight = weight.transpose(1, 2).reshape(n * c_in, c_out, k, k)
    x = F.conv_transpose2d(x, weight.to(x), stride=2, groups=n)
    return upfirdn(x.reshape(n, c_out, *x.shape[-2:]), 1, 1, 1, 1, 4.0)


def plain_layer(self: StyledLayer, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
    x = self.conv(x, w)
    x = x + (self.fixed_noise if noise is None else noise) * self.noise_strength
    return F.leaky_relu(x + self.bias, 0.2) * 2**0.5


def plain_conv(self: PlainConv, x: Tensor) -> Tensor:
    k = self.weight.shape[-1]
    weight = self.weight / (self.weight[0].numel() ** 0.5)
    if self.down:
        x = upfirdn(x, 1, 1, 2 if k > 1 else 1, 2 if k > 1 else 1, 1.0)
        x = F.conv2d(x, weight, stride=2)
    else:
        x = F.conv2d(x, weight, padding=k // 2)
    return x if self.bias is None else F.leaky_relu(x + self.bias[:, None, None], 0.2) * 2**0.5


def plain_synthesis(self: StyleGenerator, w: Tensor, noise=None) -> Tensor:
    noises = iter(noise)
    x = self.first(self.constant.repeat(len(w), 1, 1, 1), w, next(noises))
    image = self.first_image(x, w)
    for raising, refining, to_image in zip(self.raising, self.refining, self.images, strict=True):
        x = refining(raising(x, w, next(noises)), w, next(noises))
        image = upfirdn(image, 2, 1, 2, 1, 4.0) + to_image(x, w)
    return self.grain(image, next(noises).float())


def made_plain(network: nn.Module) -> nn.Module:
    """A copy of a network, computed in the plain way."""
    network = copy.deepcopy(network)
    ways = {StyledConv: plain_styled, StyledLayer: plain_layer, PlainConv: plain_conv}
    for module in network.modules():
        if type(module) in ways:
            module.forward = MethodType(ways[type(module)], module)
    if isinstance(network, StyleGenerator):
        network.synthesise = MethodType(plain_synthesis, network)
    return network


class PlainGAN:
    """The paper's step: generator, critic, and every sixteenth time the gradient penalty, one after the other."""

    def __init__(self, model: GAN) -> None:
        self.config = model.config
        self.generator, self.critic = (made_plain(model.networks[n]) for n in ("generator", "critic"))
        self.steps = [
            torch.optim.Adam(n.parameters(), self.config.learning_rate, betas=(0.0, 0.99))
            for n in (self.generator, self.critic)
        ]

    def draw(self, real: Tensor) -> Tensor:
        n, device = len(real), real.device
        z = torch.randn(n, self.config.latent, device=device)
        noise = [torch.randn(n, 1, *shape, device=device) for shape in self.generator.noise_shapes()]
        return self.generator.synthesise(self.generator.mapping(z), noise).float()

    def training_step(self, batch: tuple[Tensor, Tensor], step: int) -> None:
        real, _ = batch
        to_generator, to_critic = self.steps
        self.critic.requires_grad_(False)
        to_generator.zero_grad()
        F.softplus(-self.critic(self.draw(real)).float()).mean().backward()
        to_generator.step()
        self.critic.requires_grad_(True)
        to_critic.zero_grad()
        with torch.no_grad():
            fake = self.draw(real)
        F.softplus(self.critic(fake).float()).mean().backward()
        F.softplus(-self.critic(real).float()).mean().backward()
        to_critic.step()
        if step % self.config.r1_every == 0:
            to_critic.zero_grad()
            seen = real.detach().requires_grad_()
            (slopes,) = torch.autograd.grad(self.critic(seen).float().sum(), seen, create_graph=True)
            penalty = slopes.square().sum() / len(real)
            (self.config.r1 / 2 * self.config.r1_every * penalty).backward()
            to_critic.step()


# ------------------------------------------------------------------------------- timing


def same_function(model: GAN, plain: PlainGAN, device: torch.device) -> float:
    """Largest relative difference between the two ways' images and verdicts."""
    generator = model.networks["generator"]
    z = torch.randn(4, model.config.latent, device=device)
    noise = [torch.randn(4, 1, *shape, device=device) for shape in generator.noise_shapes()]
    with torch.no_grad():
        w = generator.mapping(z)
        ours, theirs = generator.synthesise(w, noise), plain.generator.synthesise(w, noise)
        verdicts = model.networks["critic"](ours), plain.critic(ours)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in ((ours, theirs), verdicts))


def compare(config: GanConfig, steps: int, device: torch.device, precision: str = "fp32") -> list[object]:
    """Seconds per 1000 images of both, their steps in turn."""
    torch.manual_seed(0)
    model = GAN(config, 1, 0, (config.resolution,) * 2, 0)
    for network in model.networks.values():
        network.to(device).train()
    plain = PlainGAN(model)
    difference = same_function(model, plain, device)
    assert difference < 1e-3, f"the two formulations differ by {difference}"
    batch = (
        torch.rand(config.batch, 1, config.resolution, config.resolution, device=device) * 2 - 1,
        torch.zeros(config.batch, dtype=torch.int64, device=device),
    )
    spent = {"ours": [0.0, 0.0], "plain": [0.0, 0.0]}
    ways = {
        "ours": lambda step: model.training_step(batch, step, torch.Generator(device)),
        "plain": lambda step: plain.training_step(batch, step),
    }
    for step in range(-2, steps):
        for name, way in ways.items():
            with autocast(device, precision):
                if device.type == "cuda":
                    torch.cuda.synchronize()
                cpu, wall = time.process_time(), time.perf_counter()
                way(step % steps)
                if device.type == "cuda":
                    torch.cuda.synchronize()
            if step >= 0:
                spent[name][0] += time.process_time() - cpu
                spent[name][1] += time.perf_counter() - wall
    scale = 1000 / (steps * config.batch)
    ours, theirs = spent["ours"], spent["plain"]
    parameters = sum(p.numel() for n in model.networks.values() for p in n.parameters()) / 1e6
    where = str(device) if precision == "fp32" else f"{device}, {precision}"
    return [
        where, config.resolution, config.batch, f"{parameters:.2f}",
        f"{scale * ours[0]:.1f}", f"{scale * theirs[0]:.1f}", f"{theirs[0] / ours[0]:.2f}",
        f"{scale * ours[1]:.1f}", f"{scale * theirs[1]:.1f}", f"{theirs[1] / ours[1]:.2f}",
    ]  # fmt: skip


def alone(resolution: int, batch: int, way: str) -> tuple[float, float]:
    """CPU seconds per 1000 images and peak memory in MB of one way, in a process that does nothing else."""
    set_threads()
    config = replace(BASE, resolution=resolution, batch=batch)
    model = GAN(config, 1, 0, (resolution, resolution), 0)
    images = torch.rand(batch, 1, resolution, resolution), torch.zeros(batch, dtype=torch.int64)
    if way == "ours":
        take = partial(model.training_step, generator=torch.Generator())
    else:
        take = PlainGAN(model).training_step
    times = []
    for step in range(4):  # the penalty comes at the first
        cpu = time.process_time()
        take(images, step)
        times.append(time.process_time() - cpu)
    each = (times[0] + (BASE.r1_every - 1) * sum(times[1:]) / 3) / BASE.r1_every
    return 1000 * each / batch, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def scaling() -> list[list[object]]:
    """Seconds per 1000 images and memory of both ways, over resolution and batch."""
    rows = []
    for resolution, batch in ((32, 16), (64, 8), (64, 16), (64, 32), (128, 16), (256, 8)):
        measured = []
        for way in ("ours", "plain"):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                measured += process.submit(alone, resolution, batch, way).result()
        rows.append([resolution, batch, *(f"{m:.0f}" for m in measured)])
    return rows


def main(steps: int = 16, repeats: int = 3) -> None:
    set_threads()
    cpu = torch.device("cpu")
    growth = scaling()
    runs = [
        compare(replace(BASE, resolution=r, batch=b), steps, cpu)
        for r, b in ((64, 8), (64, 16))
        for _ in range(repeats)
    ]
    if torch.cuda.is_available():
        gpu = choose_device("cuda")
        wide = replace(BASE, resolution=256, batch=32, width=32, widest=512, latent=512)
        runs += [compare(wide, steps, gpu, p) for p in ("fp32", "bf16") for _ in range(repeats)]
    header = [
        "device", "px", "batch", "parameters (M)", "CPU s/kimg", "plain CPU s/kimg", "ratio", "wall s/kimg",
        "plain wall s/kimg", "ratio",
    ]  # fmt: skip
    publish(
        "stylegan", "A StyleGAN2 training step", [
            "Seconds per 1000 images (kimg), gradient penalty every 16 steps included. *Plain*: the paper's "
            "formulation of the same networks in PyTorch's own operations; both ways' images and verdicts agree. Steps are "
            "whole: ours draws one batch for generator and critic, where the plain one draws two. Left out "
            "on both sides: what the paper does not have and the default settings do, the amplified detail that the critic is "
            f"shown (`gan.detail`) and the penalty on samples that are alike (`gan.variety`). Each was measured {repeats} times.",
            table(header, runs),
            "How both grow with resolution and batch, each in a process of its own, penalty included (in the peak memory, too, MB):",
            table(["px", "batch", "CPU s/kimg", "peak MB", "plain CPU s/kimg", "plain peak MB"], growth),
        ], ["torch"], arguments=f"{steps} {repeats}",
    )  # fmt: skip


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
