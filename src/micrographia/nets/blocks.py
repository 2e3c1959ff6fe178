"""Building blocks shared by the networks of several rooms."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """``x + conv(relu(norm(conv(relu(norm(x))))))``: He et al. 2016, pre-activation, group-normalised.

    The last convolution starts at zero, so that a new block is the identity and depth costs no signal.
    """

    def __init__(self, channels: int, groups: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect"),
            nn.GroupNorm(groups, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect"),
        )
        for parameter in self.body[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def down(channels_in: int, channels_out: int) -> nn.Conv2d:
    """Halve the resolution with a 2x2 convolution (no aliasing pattern, no overlap)."""
    return nn.Conv2d(channels_in, channels_out, 2, stride=2)


class Up(nn.Module):
    """Double the resolution bilinearly, then mix channels: no checkerboard."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.mix(x), scale_factor=2, mode="bilinear", align_corners=False)


def pad_to_multiple(x: Tensor, multiple: int, least: int = 1) -> tuple[Tensor, tuple[int, int]]:
    """Pad ``[N, C, H, W]`` at bottom and right by edge values to multiples; return it and the old size.

    At least `least` multiples: reflection inside a network needs more than a single pixel.
    """
    height, width = x.shape[-2:]
    bottom, right = (max(-size % multiple, least * multiple - size) for size in (height, width))
    if bottom or right:
        x = torch.nn.functional.pad(x, (0, right, 0, bottom), mode="replicate")
    return x, (height, width)
