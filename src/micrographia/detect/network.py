"""The fully convolutional network: a residual U-Net from an image to one logit map per kind of site."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from micrographia.nets.blocks import Residual, Up, down, pad_to_multiple


class ResidualUNet(nn.Module):
    """Residual U-Net (Ronneberger 2015; Zhang 2018) that works at half the image's resolution.

    A 2x2 pixel-unshuffle opens it and a pixel-shuffle closes it: micrographs are sampled well beyond their
    information limit, so the finest level of a plain U-Net costs most of the time and sees mainly noise.
    For the same reason the first level has a residual block only on the way up.

    Parameters
    ----------
    outputs : int
        Number of logit maps.
    width : int
        Channels at the first level; doubled at every coarser one.
    levels : int
        Number of coarser levels below the first.
    blocks : int
        Residual blocks on the way down at each coarser level; on the way up there is one at every level.

    Notes
    -----
    Input ``[N, 1, H, W]`` float32, any size; output logits ``[N, outputs, H, W]``.
    """

    def __init__(self, outputs: int, width: int = 32, levels: int = 2, blocks: int = 2) -> None:
        super().__init__()
        self.multiple = 2 ** (levels + 1)
        widths = [width * 2**i for i in range(levels + 1)]
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(4, width, 5, padding=2, padding_mode="reflect")
        )
        self.encoder = nn.ModuleList(_stack(w, blocks if w > width else 0) for w in widths[:-1])
        self.downs = nn.ModuleList(down(a, b) for a, b in pairwise(widths))
        self.bottom = _stack(widths[-1], blocks)
        self.ups = nn.ModuleList(Up(b, a) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(_stack(w, 1) for w in widths[:-1])
        self.head = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 4 * outputs, 1),
            nn.PixelShuffle(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x, (height, width) = pad_to_multiple(x, self.multiple, least=2)
        x = self.stem(x)
        skips = []
        for stack, shrink in zip(self.encoder, self.downs, strict=True):
            x = stack(x)
            skips.append(x)
            x = shrink(x)
        x = self.bottom(x)
        for grow, stack, skip in reversed(list(zip(self.ups, self.decoder, skips, strict=True))):
            x = stack(skip + grow(x))
        return self.head(x)[..., :height, :width]


def _stack(width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(width) for _ in range(blocks)))


def balanced_loss(logits: Tensor, target: Tensor, positive_weight: Tensor) -> Tensor:
    """Class-balanced cross-entropy ``[N, K, H, W]`` against soft targets in [0, 1].

    The mean over all pixels, which count ``1 + (w_k - 1) * target``: a rare kind weighs as much as its
    surroundings (`positive_weight` ``[K]``), and the soft edge of its disc proportionally less.
    """
    loss = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    weight = 1 + (positive_weight.view(1, -1, 1, 1) - 1) * target
    return (loss * weight).mean()


def class_weights(labels: Tensor, cap: float = 400.0) -> Tensor:
    """Return weights ``[K]`` that balance each kind in `labels` ``[N, K, H, W]``: background over kind, capped.

    The full ratio, not its root, and a high cap: with less weight, similar rare kinds (one or two atoms
    missing) stay confused for twice as many steps, or the rarest is never learnt.
    """
    share = labels.float().mean(dim=(0, 2, 3)).clamp_min(1e-6)
    return ((1 - share) / share).clamp(1.0, cap)
