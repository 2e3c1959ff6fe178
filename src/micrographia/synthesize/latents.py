"""Paths between codes, and the code of a given image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def codes_of(seeds: Sequence[int] | np.ndarray, latent: int) -> Tensor:
    """Codes ``z [N, latent]``, each a function of its seed alone."""
    draws = [
        np.random.default_rng([int(seed), 71]).standard_normal(latent, dtype=np.float32) for seed in seeds
    ]
    return torch.from_numpy(np.stack(draws))


def noise_of(seeds: Sequence[int] | np.ndarray, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """Noise ``[N, 1, H, W]`` of each layer, each image's a function of its seed alone."""
    sizes = [h * w for h, w in shapes]
    draws = [np.random.default_rng([int(s), 73]).standard_normal(sum(sizes), dtype=np.float32) for s in seeds]
    parts = torch.from_numpy(np.stack(draws)).split(sizes, dim=1)
    return [part.reshape(-1, 1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def linear_path(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Straight line ``[steps, ...]`` between two codes or styles, both ends included."""
    t = torch.linspace(0, 1, steps).reshape(-1, *[1] * start.ndim)
    return start + t * (end - start)


def spherical_path(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Great circle ``[steps, D]`` between two codes ``[D]`` (Shoemake 1985), lengths interpolated along.

    Normal codes of many dimensions lie near a sphere; a straight line between two of them cuts through its
    inside, where no code was drawn in training. Codes in line with each other have no one great circle: the path
    is straight.
    """
    lengths = start.norm(), end.norm()
    a, b = start / lengths[0], end / lengths[1]
    angle = torch.arccos((a * b).sum().clamp(-1, 1))
    if float(torch.sin(angle)) < 1e-6:
        return linear_path(start, end, steps)
    t = torch.linspace(0, 1, steps)[:, None]
    direction = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    return direction * (lengths[0] + t * (lengths[1] - lengths[0]))


def project(
    generator: Any,
    image: Tensor,
    steps: int = 400,
    learning_rate: float = 0.05,
    seed: int = 0,
    watch: Callable[[int, float], None] | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Find the style whose image comes nearest to a given one (Karras et al. 2020, appendix D).

    From the mean style, by gradient descent with a decaying jitter of the style, on the squared difference of
    the images averaged over scales (each halving weighs as much as the one before), so that structure counts
    before noise. One style for all layers; the jitter is one twentieth of the styles' own spread, at first. The
    paper compares features of a network trained on photographs instead, and fits the noise, too, which here stays as
    it is.

    Parameters
    ----------
    generator : StyleGenerator
    image : ``[C, H, W]`` in -1 ... 1

    Returns
    -------
    style : ``[latent]``
    drawn : ``[C, H, W]``
        What the generator makes of it.
    difference : float
        Root mean square difference of the two images.
    """
    device = next(generator.parameters()).device
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        styles = generator.mapping(
            torch.randn(4096, generator.latent, generator=draw).to(device),
            classes_in_turn(generator.classes, 4096, device),
        )
    mean = generator.mean_style_of()
    spread = float((styles - mean).square().sum(dim=1).mean().sqrt())
    style = mean.clone().requires_grad_()
    goal = image[None].to(device)
    optimizer = torch.optim.Adam([style], learning_rate, betas=(0.9, 0.999))
    for step in range(steps):
        left = 1 - step / steps
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, 4 * left, 20 * (step + 1) / steps)
        jitter = 0.05 * spread * max(0.0, (4 * left - 1) / 3) ** 2  # over the first three quarters
        noise = torch.randn(style.shape, generator=draw).to(device)
        drawn = generator.synthesise((style + jitter * noise / len(style) ** 0.5)[None])
        loss = _over_scales(drawn, goal)
        (style.grad,) = torch.autograd.grad(loss, style)
        optimizer.step()
        if watch is not None:
            watch(step + 1, float(loss.detach()))
    with torch.no_grad():
        drawn = generator.synthesise(style.detach()[None])
    drawn = drawn.clamp(-1, 1)
    difference = float((drawn - goal).square().mean().sqrt())
    return style.detach().cpu(), drawn[0].cpu(), difference


def classes_in_turn(classes: int, n: int, device: torch.device) -> Tensor | None:
    """Numbers ``[n]`` of classes, each as often as the others; None for a generator that knows none."""
    return torch.arange(n, device=device) % classes if classes else None


def _over_scales(a: Tensor, b: Tensor) -> Tensor:
    total = (a - b).square().mean()
    while min(a.shape[-2:]) >= 8:
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        total = total + (a - b).square().mean()
    return total
