"""The edges of images that networks of doublings can make."""

from __future__ import annotations

from micrographia.errors import UserError

#: Pixels.
RESOLUTIONS = (16, 32, 64, 128, 256, 512, 1024)


def check_resolution(resolution: int) -> None:
    """Raise `UserError`, naming the nearest that are possible, unless networks can be built for this edge."""
    if resolution in RESOLUTIONS:
        return
    below = max((r for r in RESOLUTIONS if r < resolution), default=None)
    above = min((r for r in RESOLUTIONS if r > resolution), default=None)
    raise UserError(
        f"A resolution of {resolution} is not a power of two from {RESOLUTIONS[0]} to {RESOLUTIONS[-1]}: choose "
        f"{' or '.join(str(r) for r in (below, above) if r is not None)}."
    )
