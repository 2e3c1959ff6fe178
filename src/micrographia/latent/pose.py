"""Rotation, translation and scale: moving coordinates, and turning patches upright.

Coordinates: the patch's longer edge spans -1 to 1, x to the right, y down. An object drawn at q in its own
frame appears at ``p = scale R(angle) q + shift``; positive angles are counter-clockwise on the screen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pose:
    """How objects lie in their patches."""

    angle: Tensor
    """Radians ``[B]``."""
    shift: Tensor
    """(x, y) in half patch edges, ``[B, 2]``."""
    log_scale: Tensor
    """``[B]``."""


def pixel_axes(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Coordinates of the pixel centres, ``[height]`` and ``[width]``."""
    longer = max(height, width)
    return tuple((2 * torch.arange(n) + 1 - n) / longer for n in (height, width))  # type: ignore[return-value]


def rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Turn vectors counter-clockwise as seen on the screen (y down)."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def upright(images: Tensor, pose: Pose) -> Tensor:
    """Resample images ``[B, C, H, W]`` in the frame of the objects; what lies outside repeats the edge."""
    height, width = images.shape[-2:]
    y, x = (axis.to(images.device) for axis in pixel_axes(height, width))
    precise = torch.promote_types(pose.angle.dtype, torch.float32)
    angle, size, shift = (t.to(precise) for t in (pose.angle, pose.log_scale.exp(), pose.shift))
    # In the complex plane (x + iy; y down), where turning is a product: one sum for each pixel.
    turn = torch.complex(size * torch.cos(angle), -size * torch.sin(angle))[:, None]
    across, down = turn * x, turn * (1j * y) + torch.complex(shift[:, 0], shift[:, 1])[:, None]
    grid = torch.view_as_real(across[:, None, :] + down[:, :, None])
    if height != width:  # grid_sample measures each axis in its own half edge
        longer = max(height, width)
        grid = grid * grid.new_tensor([longer / width, longer / height])
    return torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def disc(height: int, width: int) -> Tensor:
    """One inside the largest circle of the patch, zero in its corners, soft over about a pixel."""
    y, x = pixel_axes(height, width)
    radius = torch.sqrt(x[None, :] ** 2 + y[:, None] ** 2)
    edge, longer = min(height, width) / max(height, width), max(height, width)
    return ((edge - radius) * longer / 2 + 0.5).clamp(0, 1)
