"""Encoders and decoders of the latent models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, pi, sqrt

import torch
from torch import Tensor, nn

from micrographia.latent.pose import Pose, pixel_axes, rotate
from micrographia.nets.blocks import Up


class MlpEncoder(nn.Module):
    """Images ``[B, C, H, W]`` and given numbers ``[B, n]`` to ``[B, out]``, by fully connected layers."""

    def __init__(self, shape: tuple[int, int, int], given: int, hidden: int, out: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.first = nn.Linear(channels * height * width + given, hidden)
        self.rest = nn.Sequential(
            nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), _quiet(nn.Linear(hidden, out))
        )

    def forward(self, images: Tensor, given: Tensor) -> Tensor:
        return self.rest(self.first(_beside(images.flatten(1), given)))


class ConvEncoder(nn.Module):
    """The same by convolutions that halve the resolution three times."""

    def __init__(self, shape: tuple[int, int, int], given: int, hidden: int, out: int) -> None:
        super().__init__()
        channels, height, width = shape
        first = max(hidden // 8, 8)
        layers: list[nn.Module] = []
        for before, after in ((channels, first), (first, 2 * first), (2 * first, 2 * first)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GELU()]
        self.body = nn.Sequential(*layers)
        self.first = nn.Linear(2 * first * ceil(height / 8) * ceil(width / 8) + given, hidden)
        self.rest = nn.Sequential(nn.GELU(), _quiet(nn.Linear(hidden, out)))

    def forward(self, images: Tensor, given: Tensor) -> Tensor:
        return self.rest(self.first(_beside(self.body(images).flatten(1), given)))


class FourierDecoder(nn.Module):
    """A code draws a plane ``sum_k a_k(code) cos(k.q) + b_k(code) sin(k.q)``; the pose moves k and phase.

    Coordinate decoder (Bepler et al. 2019) whose features are the Fourier series itself. Rotation, scale and
    shift are exact, without interpolation, and because ``exp(i k.p)`` is a product of a function of x and
    one of y, an image is a few products of an [H, F] and an [F, W] matrix: 100 times less work than a network
    evaluated at every pixel.

    Parameters
    ----------
    shape : (C, H, W)
    code_size, hidden : int
    reach : float
        Half the period of the series, in half patch edges: what a pose can bring into view must fit.
    detail : int
        Finest structure: cycles per patch edge.
    """

    k: Tensor
    falloff: Tensor
    x: Tensor
    y: Tensor

    def __init__(
        self, shape: tuple[int, int, int], code_size: int, hidden: int, reach: float, detail: int
    ) -> None:
        super().__init__()
        self.shape = shape
        finest = ceil(detail * reach)
        m, n = torch.meshgrid(torch.arange(-finest, finest + 1), torch.arange(finest + 1), indexing="ij")
        radius = torch.sqrt((m**2 + n**2).float())
        half = (radius <= finest) & ((n > 0) | (m >= 0))  # the other half of the plane is the conjugate
        self.register_buffer("k", torch.stack([m[half], n[half]]).float() * pi / reach, persistent=False)
        falloff = 1 / (1 + radius[half])  # images are smooth: fine structure starts faint
        self.register_buffer("falloff", falloff / falloff.square().sum().sqrt() * 3, persistent=False)
        y, x = pixel_axes(*shape[1:])
        self.register_buffer("y", y, persistent=False)
        self.register_buffer("x", x, persistent=False)
        self._kept: dict[int, Tensor] | None = None
        self.body = nn.Sequential(
            nn.Linear(code_size, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            _quiet(nn.Linear(hidden, shape[0] * 2 * self.k.shape[1])),
        )

    @torch.no_grad()
    def start_at(self, level: Tensor) -> None:
        """Make the untrained decoder draw about the constant `level` of each channel."""
        zero = int((self.k[0].abs() + self.k[1].abs()).argmin())
        last = self.body[-1]
        assert isinstance(last, nn.Linear)
        bias = last.bias.view(self.shape[0], 2, -1)
        bias[:, 0, zero] = level / self.falloff[zero]

    def forward(self, code: Tensor, pose: Pose | None, pool: int = 1) -> Tensor:
        """Draw ``[B, C, H / pool, W / pool]`` at every `pool`-th place; without a pose, upright."""
        if pose is None:
            return self._upright(code, pool)
        return self._posed(code, pose, _pooled(self.x, pool), _pooled(self.y, pool))

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """The weights do not change in here: what depends on them alone is kept from call to call."""
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def _upright(self, code: Tensor, pool: int) -> Tensor:
        if self._kept is None:
            images = self._templates(pool)
        else:
            if pool not in self._kept:
                self._kept[pool] = self._templates(pool)
            images = self._kept[pool]
        drawn = torch.addmm(images[-1], self.body[:-1](code), images[:-1])
        channels, height, width = self.shape
        return drawn.view(len(code), channels, height // pool, width // pool)

    def _templates(self, pool: int) -> Tensor:
        """One basis for all, so it joins the last layer: ``basis (W h + b) = (basis W) h + basis b``; W, then b."""
        x, y = _pooled(self.x, pool), _pooled(self.y, pool)
        phase = self.k[0, :, None, None] * x + self.k[1, :, None, None] * y[:, None]
        basis = torch.stack([phase.cos(), phase.sin()]) * self.falloff[:, None, None]
        last = self.body[-1]
        assert isinstance(last, nn.Linear)
        series = torch.cat([last.weight, last.bias[:, None]], dim=1)
        series = series.view(self.shape[0], -1, series.shape[1]).mT  # [C, hidden + 1, 2 F]
        return (series @ basis.flatten(2).flatten(0, 1)).permute(1, 0, 2).flatten(1)

    def _posed(self, code: Tensor, pose: Pose, x: Tensor, y: Tensor) -> Tensor:
        """Each in its own basis; what is even and odd in x and y is added up over one quadrant."""
        a, b = (self.body(code).view(len(code), self.shape[0], 2, -1) * self.falloff).unbind(2)
        kx, ky = rotate(self.k[0], self.k[1], pose.angle[:, None])
        smaller = (-pose.log_scale).exp()[:, None]
        kx, ky = kx * smaller, ky * smaller
        phase = kx * (x.mean() - pose.shift[:, :1]) + ky * (y.mean() - pose.shift[:, 1:])
        cos, sin = phase.cos()[:, None], phase.sin()[:, None]
        a, b = (a * cos + b * sin)[:, :, None], (b * cos - a * sin)[:, :, None]
        u = kx[:, None, None] * (x - x.mean())[len(x) // 2 :, None]
        v = ky[:, None, None] * (y - y.mean())[len(y) // 2 :, None]
        cos, sin = u.cos(), u.sin()
        by_cos = v.cos() @ torch.cat([a * cos, b * sin], dim=2).mT
        by_sin = v.sin() @ torch.cat([b * cos, a * sin], dim=2).mT
        even_y, odd_y = by_cos.chunk(2, dim=3), by_sin.chunk(2, dim=3)
        even = _mirrored(even_y[0], odd_y[0], len(y), 2)
        odd = _mirrored(even_y[1], -odd_y[1], len(y), 2)
        return _mirrored(even, odd, len(x), 3)


class ConvDecoder(nn.Module):
    """A code draws an image of the whole plane in reach by convolutions; the pose resamples it."""

    x: Tensor
    y: Tensor

    def __init__(
        self, shape: tuple[int, int, int], code_size: int, hidden: int, reach: float, detail: int
    ) -> None:
        super().__init__()
        self.shape, self.reach = shape, reach
        self.coarse = max(ceil(2 * detail * reach / 4), 2)
        width = max(hidden // 4, 8)
        self.width = width
        self.first = nn.Sequential(
            nn.Linear(code_size, hidden), nn.GELU(), nn.Linear(hidden, width * self.coarse**2)
        )
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.GELU(), Up(width, width // 2),
            nn.Conv2d(width // 2, width // 2, 3, padding=1), nn.GELU(), Up(width // 2, width // 2),
            nn.Conv2d(width // 2, shape[0], 3, padding=1),
        )  # fmt: skip
        y, x = pixel_axes(*shape[1:])
        self.register_buffer("y", y, persistent=False)
        self.register_buffer("x", x, persistent=False)

    @torch.no_grad()
    def start_at(self, level: Tensor) -> None:
        """Make the untrained decoder draw about the constant `level` of each channel."""
        last = self.body[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        last.bias.copy_(level)

    def forward(self, code: Tensor, pose: Pose | None, pool: int = 1) -> Tensor:
        """Draw ``[B, C, H / pool, W / pool]`` at every `pool`-th place; without a pose, upright."""
        plane = self.body(self.first(code).view(len(code), self.width, self.coarse, self.coarse))
        if pose is None:
            zeros = plane.new_zeros(len(code))
            pose = Pose(zeros, plane.new_zeros(len(code), 2), zeros)
        x = _pooled(self.x, pool)[None, None, :] - pose.shift[:, 0, None, None]
        y = _pooled(self.y, pool)[None, :, None] - pose.shift[:, 1, None, None]
        x, y = rotate(x, y, -pose.angle[:, None, None])
        grid = torch.stack([x, y], dim=-1) * (-pose.log_scale).exp()[:, None, None, None] / self.reach
        return nn.functional.grid_sample(plane, grid, padding_mode="border", align_corners=False)


def reach_of(turns: bool, shift: float, scale: float) -> float:
    """How far from the centre, in half patch edges, a patch may show the objects' plane."""
    return ((sqrt(2) if turns else 1.0) + 2 * shift) * (1 + 2 * scale) + 0.05


def _beside(features: Tensor, given: Tensor) -> Tensor:
    """Features and given numbers side by side; most models are given none, and a copy costs as much as a layer."""
    return torch.cat([features, given], dim=1) if given.shape[1] else features


def _pooled(axis: Tensor, pool: int) -> Tensor:
    """Coordinates of the means of `pool` pixels; a remainder is left out, as by `avg_pool2d`."""
    return axis[: len(axis) // pool * pool].view(-1, pool).mean(dim=1)


def _mirrored(even: Tensor, odd: Tensor, n: int, dim: int) -> Tensor:
    """``even + odd`` beyond the centre and ``even - odd`` before it, `n` in all; both start at the centre."""
    before = (even - odd).flip(dim)
    return torch.cat([before.narrow(dim, 0, n // 2), even + odd], dim=dim)


def _quiet(layer: nn.Linear) -> nn.Linear:
    """Start a last layer near zero: candidates begin where they were proposed, pictures begin grey."""
    with torch.no_grad():
        layer.weight.mul_(0.1)
        layer.bias.zero_()
    return layer
