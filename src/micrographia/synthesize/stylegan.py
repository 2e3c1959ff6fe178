"""StyleGAN2's networks in plain PyTorch (Karras et al., "Analyzing and improving the image quality of StyleGAN",
CVPR 2020).

A code ``z`` becomes a style ``w`` by a small network; styles scale the input channels of every convolution of
the generator, and what that does to the output's variance is divided out (modulation, demodulation). Each
resolution adds its picture to that of the resolution below (skip generator); the discriminator is residual and
sees how much the images of a small group differ.

Scaling weights for every image, as the paper writes it, needs a convolution of its own for each. Here the style
scales the activations before, and the demodulation those after, one convolution that all images share: the same
function (a convolution is linear in its input), several times faster on a CPU, and open to second derivatives.

One thing is not in the paper: the discriminator may see the fine detail of an image amplified beside the image.
Noise is faint beside the contrast of most micrographs, and it learns to see it only after a very long time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log2, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from micrographia.errors import UserError
from micrographia.synthesize.resolution import check_resolution

#: Images that the discriminator compares with one another (minibatch standard deviation).
GROUP = 4
_SLOPE = 0.2
#: Strength of a layer's noise at the start. The paper starts from 0; micrographs are noisy, and learn it late then.
_NOISE = 0.1
#: Grain of strength 1, on images of -1 to 1; in these units the strength is learnt as fast as weights are.
_GRAIN = 0.1
#: Detail fainter than this is rounding rather than noise.
_MOST_GAIN = 30.0
#: Cells along an edge in which a layout is described, and groups of real images that are compared.
_CELLS, _GROUPS = 8, 500
#: Standard deviation of a normal distribution over its median absolute deviation.
_HALF = 1.4826


def channels_at(resolution: int, size: int, width: int, widest: int) -> int:
    """Channels of the layers at `size` px: `width` at the full resolution, doubled with each halving."""
    return min(width * (resolution // size), widest)


class Dense(nn.Module):
    """Fully connected layer with equalised learning rate: weights of variance 1, scaled when used.

    Parameters
    ----------
    gain : float
        Of the whole output; sqrt(2) makes up for a leaky rectifier after it.
    rate : float
        Learning rate relative to that of other layers.
    """

    def __init__(
        self, features_in: int, features_out: int, bias: float = 0.0, gain: float = 1.0, rate: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features_out, features_in) / rate)
        self.bias = nn.Parameter(torch.full((features_out,), bias / rate))
        self.weight_gain, self.bias_gain = gain * rate / sqrt(features_in), gain * rate

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)


class Mapping(nn.Module):
    """From codes ``z [N, latent]`` (and classes ``[N]``) to styles ``w [N, latent]``."""

    def __init__(self, latent: int, layers: int, classes: int = 0) -> None:
        super().__init__()
        self.classes = nn.Embedding(classes, latent) if classes else None
        inner = [2 * latent if classes else latent] + [latent] * layers
        self.layers = nn.ModuleList(Dense(a, b, gain=sqrt(2), rate=0.01) for a, b in pairwise(inner))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        x = _unit(z)
        if self.classes is not None:
            if labels is None:
                raise UserError("This generator was trained with classes; say which class to draw.")
            x = torch.cat([x, _unit(self.classes(labels))], dim=1)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), _SLOPE)
        return x


class StyledConv(nn.Module):
    """Convolution whose input channels are scaled by a style, and its output to unit variance again.

    Doubles the resolution if `up`: transposed convolution of stride two, then the filter [1, 3, 3, 1].
    """

    blur: Tensor

    def __init__(
        self, channels_in: int, channels_out: int, latent: int, kernel: int = 3, up: bool = False,
        demodulate: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.style = Dense(latent, channels_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, kernel, kernel))
        self.weight_gain = 1 / sqrt(channels_in * kernel**2)
        self.up, self.demodulate = up, demodulate
        if up:
            self.register_buffer("blur", _blur_kernel(4.0, channels_out), persistent=False)

    def forward(self, x: Tensor, w: Tensor, gain: float = 1.0) -> Tensor:
        style, weight = self.style(w), self.weight * self.weight_gain
        x = x * style[:, :, None, None]
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            x = F.conv2d(x, self.blur.to(x), padding=1, groups=x.shape[1])
        else:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if self.demodulate:
            variance = style.square() @ weight.square().sum(dim=(2, 3)).T
            # In the features' own precision, which rsqrt leaves under autocast on a GPU.
            x = x * (gain * torch.rsqrt(variance + 1e-8)).to(x)[:, :, None, None]
        return x


class StyledLayer(nn.Module):
    """Styled convolution, noise, bias, leaky rectifier."""

    fixed_noise: Tensor

    def __init__(self, channels_in: int, channels_out: int, latent: int, size: int, up: bool) -> None:
        super().__init__()
        self.size = size
        self.conv = StyledConv(channels_in, channels_out, latent, up=up)
        self.bias = nn.Parameter(torch.zeros(channels_out, 1, 1))
        self.noise_strength = nn.Parameter(torch.tensor(_NOISE))
        self.register_buffer("fixed_noise", torch.randn(1, 1, size, size))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        x = self.conv(x, w, sqrt(2))
        noise = self.fixed_noise if noise is None else noise
        # The gain of sqrt(2) that keeps the variance through the rectifier, pulled before it.
        noise, bias = noise * (sqrt(2) * self.noise_strength), sqrt(2) * self.bias
        return F.leaky_relu(x + noise.to(x) + bias.to(x), _SLOPE)


class ToImage(nn.Module):
    """What a resolution adds to the picture."""

    def __init__(self, channels_in: int, channels: int, latent: int) -> None:
        super().__init__()
        self.conv = StyledConv(channels_in, channels, latent, kernel=1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.conv(x, w) + self.bias


class Grain(nn.Module):
    """The detector's noise on the finished image: white, of a learnt strength that changes with the brightness.

    Noise that enters the layers must pass rectifiers, and comes out stronger in one phase than in the other.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.strength = nn.Parameter(torch.full((channels, 1, 1), 0.3))
        self.slope = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, image: Tensor, noise: Tensor) -> Tensor:
        return image + _GRAIN * self.strength * (1 + self.slope * image) * noise


class StyleGenerator(nn.Module):
    """Codes to images.

    Parameters
    ----------
    resolution : int
        Edge of the square that the layers work on, a power of two.
    channels : int
        Of the image.
    latent : int
        Numbers in a code ``z`` and in a style ``w``.
    width, widest : int
        Channels at full resolution, and the most at any.
    mapping_layers : int
    classes : int
        0 = none.
    shape_px : (int, int), optional
        Height and width of the images where they are no such square: the centre is cut out.
    """

    blur: Tensor
    mean_style: Tensor

    def __init__(
        self, resolution: int, channels: int = 1, latent: int = 128, width: int = 16, widest: int = 256,
        mapping_layers: int = 4, classes: int = 0, shape_px: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_resolution(resolution)
        self.resolution, self.latent, self.classes = resolution, latent, classes
        self.shape_px = shape_px or (resolution, resolution)
        self.mapping = Mapping(latent, mapping_layers, classes)
        self.register_buffer("mean_style", torch.zeros((classes, latent) if classes else latent))
        sizes = [4 << k for k in range(int(log2(resolution)) - 1)]
        width_at = [channels_at(resolution, size, width, widest) for size in sizes]
        self.constant = nn.Parameter(torch.randn(1, width_at[0], 4, 4))
        self.first = StyledLayer(width_at[0], width_at[0], latent, 4, up=False)
        self.first_image = ToImage(width_at[0], channels, latent)
        self.raising, self.refining, self.images = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for size, a, b in zip(sizes[1:], width_at[:-1], width_at[1:], strict=True):
            self.raising.append(StyledLayer(a, b, latent, size, up=True))
            self.refining.append(StyledLayer(b, b, latent, size, up=False))
            self.images.append(ToImage(b, channels, latent))
        self.grain = Grain(channels, resolution)
        self.register_buffer("blur", _blur_kernel(4.0, channels), persistent=False)

    @property
    def style_count(self) -> int:
        """Styles of one image: one for each convolution, pictures share that of the layer after them."""
        return 2 * len(self.raising) + 2

    def noise_shapes(self) -> list[tuple[int, int]]:
        """Height and width of the noise of each layer, and of the image's grain."""
        layers: list[Any] = [
            self.first,
            *(layer for pair in zip(self.raising, self.refining, strict=True) for layer in pair),
            self.grain,
        ]
        return [(layer.size, layer.size) for layer in layers]

    def forward(
        self, z: Tensor, labels: Tensor | None = None, noise: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Codes ``[N, latent]`` to images ``[N, C, H, W]``; without noise (`noise_shapes`) that of the layers is fixed, and no grain."""
        return self.synthesise(self.mapping(z, labels), noise)

    def mean_style_of(self, labels: Tensor | None = None) -> Tensor:
        """The mean style ``[latent]``, or those of some classes ``[N, latent]``."""
        if not self.classes:
            return self.mean_style
        return self.mean_style.mean(dim=0) if labels is None else self.mean_style[labels]

    def truncated(self, w: Tensor, truncation: float, labels: Tensor | None = None) -> Tensor:
        """Move styles towards the mean one, each towards that of its class: 1 leaves them, 0 gives the mean image."""
        mean = self.mean_style_of(labels)
        mean = mean if w.ndim == 2 else mean.unsqueeze(-2)
        return mean + truncation * (w - mean)

    def synthesise(self, w: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Styles ``[N, latent]``, or one for each layer ``[N, style_count, latent]``, to images."""
        if w.ndim == 2:
            w = w[:, None].expand(-1, self.style_count, -1)
        styles = w.unbind(dim=1)
        noises = iter(noise if noise is not None else [None] * self.style_count)
        x = self.constant.expand(len(w), -1, -1, -1)
        x = self.first(x, styles[0], next(noises))
        image = self.first_image(x, styles[1]).float()
        for k, (raising, refining, to_image) in enumerate(
            zip(self.raising, self.refining, self.images, strict=True)
        ):
            x = raising(x, styles[2 * k + 1], next(noises))
            x = refining(x, styles[2 * k + 2], next(noises))
            image = _upsample(image, self.blur) + to_image(x, styles[2 * k + 3]).float()
        grain = next(noises)
        if grain is not None:
            image = self.grain(image, grain.float())
        return _centre(image, self.shape_px)


class StyleDiscriminator(nn.Module):
    """Images ``[N, C, H, W]`` (and classes) to one number each: high for real ones.

    Parameters as those of `StyleGenerator`, and:

    Parameters
    ----------
    detail : float
        Gain of the fine detail that is shown beside the image (see `detail_gain`); 0 = the image alone.
    """

    def __init__(
        self, resolution: int, channels: int = 1, latent: int = 128, width: int = 16, widest: int = 256,
        classes: int = 0, detail: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        check_resolution(resolution)
        self.resolution, self.detail = resolution, detail
        sizes = [resolution >> k for k in range(int(log2(resolution)) - 1)]
        width_at = [channels_at(resolution, size, width, widest) for size in sizes]
        self.first = PlainConv(2 * channels if detail else channels, width_at[0], 1)
        self.blocks = nn.ModuleList(LoweringBlock(a, b) for a, b in pairwise(width_at))
        last = width_at[-1]
        self.last = PlainConv(last + 1, last, 3)
        self.dense = Dense(last * 16, last, gain=sqrt(2))
        self.judge = Dense(last, latent if classes else 1)
        self.classes = nn.Embedding(classes, latent) if classes else None

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        below, right = (self.resolution - n for n in images.shape[-2:])
        if below or right:
            images = F.pad(
                images, (right // 2, right - right // 2, below // 2, below - below // 2), "replicate"
            )
        if self.detail:
            images = torch.cat([images, self.detail * fine_detail(images)], dim=1)
        x = self.first(images)
        for block in self.blocks:
            x = block(x)
        x = self.last(torch.cat([x, group_deviation(x)], dim=1))
        x = F.leaky_relu(self.dense(x.flatten(1)), _SLOPE)
        out = self.judge(x)
        if self.classes is None:
            return out[:, 0]
        # Projection (Miyato and Koyama 2018): agreement with the direction of the class.
        return (out * _unit(self.classes(labels))).sum(dim=1) / sqrt(out.shape[1])


class PlainConv(nn.Module):
    """Convolution with equalised learning rate, bias and leaky rectifier; halves the resolution if `down`."""

    blur: Tensor

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, down: bool = False, linear: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, kernel, kernel))
        self.bias = None if linear else nn.Parameter(torch.zeros(channels_out))
        self.gain = sqrt(1 if linear else 2)
        self.weight_gain = self.gain / sqrt(channels_in * kernel**2)
        self.down = down
        if down:
            self.register_buffer("blur", _blur_kernel(1.0, channels_in), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        padding = kernel // 2
        if self.down:
            # A 1x1 convolution reads every second pixel: only those are filtered.
            stride = 2 if kernel == 1 else 1
            x = F.conv2d(
                x, self.blur.to(x), padding=1 if kernel == 1 else 2, stride=stride, groups=x.shape[1]
            )
            padding = 0
        stride = 2 if self.down and kernel > 1 else 1
        bias = None if self.bias is None else self.bias * self.gain
        x = F.conv2d(x, self.weight * self.weight_gain, bias, stride, padding)
        return x if self.bias is None else F.leaky_relu(x, _SLOPE)


class LoweringBlock(nn.Module):
    """Residual block that halves the resolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.same = PlainConv(channels_in, channels_in, 3)
        self.down = PlainConv(channels_in, channels_out, 3, down=True)
        self.skip = PlainConv(channels_in, channels_out, 1, down=True, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        return (self.down(self.same(x)) + self.skip(x)) / sqrt(2)


def fine_detail(images: Tensor) -> Tensor:
    """What a smoothing with [1, 2, 1] / 4 along both axes takes out of images ``[N, C, H, W]``."""
    # Twice the mean of 2 x 2 neighbours: the same weights, with no kernel to copy to a GPU, in full precision.
    smooth = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), "replicate"), 2, stride=1)
    return images - F.avg_pool2d(smooth, 2, stride=1)


def detail_gain(images: Tensor) -> float:
    """The gain that gives the fine detail of images ``[N, C, H, W]`` the spread of the images; 1 to 30.

    The spread of detail is that of its middle half: noise is everywhere, edges are in few places.
    """
    fine = fine_detail(images)
    noise = _HALF * float(fine.abs().median()) or float(fine.std())
    return min(max(float(images.std()) / noise, 1.0), _MOST_GAIN) if noise > 0 else 1.0


def group_deviation(x: Tensor) -> Tensor:
    """Mean standard deviation between the images of each group, as a map ``[N, 1, H, W]``.

    It shows the discriminator when a generator draws the same image again and again. Groups are neighbours in
    the batch, so that a batch may be shared out to processes in pieces of whole groups.
    """
    n = len(x)
    size = next(k for k in range(min(GROUP, n), 0, -1) if n % k == 0)
    groups = x.float().unflatten(0, (n // size, size))
    deviation = (groups.var(dim=1, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return deviation.repeat_interleave(size)[:, None, None, None].expand(-1, 1, *x.shape[2:]).to(x)


def group_spread(images: Tensor) -> Tensor:
    """How much the layouts of the images ``[N, C, H, W]`` of each group differ: ``[N / GROUP]``.

    Root-mean-square difference of neighbours in the group, averaged over 8 x 8 cells: no noise, no texture.
    """
    coarse = F.adaptive_avg_pool2d(images, _CELLS).unflatten(0, (-1, GROUP))
    difference = coarse - coarse.roll(1, dims=1)
    return (difference.square().mean(dim=(2, 3, 4)) + 1e-12).sqrt().mean(dim=1)


def least_spread(images: Tensor) -> float:
    """The spread that nineteen of twenty groups of real images ``[N, C, H, W]`` exceed, whichever are grouped."""
    draw = torch.Generator().manual_seed(0)
    whole = len(images) // GROUP * GROUP
    rounds = -(-_GROUPS * GROUP // whole)
    orders = torch.cat([torch.randperm(len(images), generator=draw)[:whole] for _ in range(rounds)])
    coarse = F.adaptive_avg_pool2d(images, _CELLS)
    return float(group_spread(coarse[orders]).quantile(0.05))


def _unit(z: Tensor) -> Tensor:
    return z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)


def _blur_kernel(gain: float, channels: int) -> Tensor:
    line = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return (gain / 64 * line[:, None] * line)[None, None].repeat(channels, 1, 1, 1)


def _upsample(image: Tensor, blur: Tensor) -> Tensor:
    """Double the size with the filter [1, 3, 3, 1]."""
    # Pictures, unlike features, stay as they are in mixed precision: 8 bits would be coarser than their noise.
    with torch.autocast(image.device.type, enabled=False):
        return F.conv_transpose2d(image, blur, stride=2, padding=1, groups=image.shape[1])


def _centre(image: Tensor, shape: tuple[int, int]) -> Tensor:
    top, left = ((have - want) // 2 for have, want in zip(image.shape[-2:], shape, strict=True))
    return image[..., top : top + shape[0], left : left + shape[1]]
