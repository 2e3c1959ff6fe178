"""Physics terms: what is known beyond the patches, added to the bound (`VAE(..., terms=[...])`).

A term is any function of a `micrographia.latent.model.Sample` that returns nats, by patch or as their mean. Those here
are worked examples; write your own in the same way.
"""

from __future__ import annotations

from math import pi

import numpy as np
import torch
from torch import Tensor

from micrographia.errors import UserError
from micrographia.latent.model import Sample, Term
from micrographia.latent.pose import Pose, disc, upright


def symmetric(fold: int, weight: float = 1.0) -> Term:
    """The upright object looks the same after a turn of 360 / `fold` degrees about the centre of the patch.

    Half the squared difference to the turned one, summed inside the circle that every turn shows; a `weight` of 1
    trusts the symmetry as much as a patch with noise of one standard deviation of the data. Too large a weight
    keeps the object round, which has every symmetry.
    """
    if fold < 2 or not weight > 0:
        raise UserError(
            f"symmetric({fold}, {weight}): give a symmetry of at least 2 and a weight of more than 0."
        )

    def term(sample: Sample) -> Tensor:
        image = sample.upright
        still = image.new_zeros(len(image))
        turned = upright(image, Pose(still + 2 * pi / fold, image.new_zeros(len(image), 2), still))
        difference = (image - turned) * disc(*image.shape[2:]).to(image.device)
        return 0.5 * weight * difference.square().sum((1, 2, 3))

    return term


def follows(values: np.ndarray, latent: int = 0, weight: float = 10.0) -> Term:
    """Latent number `latent` (0 = the first) grows with `values` ``[N]``, one for each patch: dose or time.

    The logistic loss of the order of every two patches of a batch (RankNet, Burges et al. 2005): it asks for
    growth, not for proportion.
    """
    order = np.asarray(values, dtype=np.float64)
    if order.ndim != 1 or not np.isfinite(order).all() or not np.ptp(order) > 0:
        raise UserError("follows needs finite numbers [N], one for each patch, and not all the same.")
    standard = torch.from_numpy((order - order.mean()) / order.std()).float()

    def term(sample: Sample) -> Tensor:
        if int(sample.index.max()) >= len(standard):
            raise UserError(
                f"follows was given {len(standard)} values, but there are more patches; give one for each."
            )
        if not 0 <= latent < sample.code.shape[1]:
            raise UserError(f"follows: there is no latent {latent}; the code has {sample.code.shape[1]}.")
        z, t = sample.code[:, latent], standard.to(sample.code.device)[sample.index]
        ahead = (t[:, None] - t).clamp(min=0)  # the further apart, the more the order counts
        return weight * (ahead * torch.nn.functional.softplus(z - z[:, None])).mean(1)

    return term
