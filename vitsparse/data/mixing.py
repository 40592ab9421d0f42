"""CutMix and MixUp: each image is blended with the one before it in the batch, and so are their targets.

CutMix: Yun et al. 2019 (arXiv 1905.04899); MixUp: Zhang et al. 2018 (arXiv 1710.09412). The partners are the batch
rolled by one place, as in torchvision: its order is random already. Which of the two, its lambda and its box are drawn
per image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .transforms import Uniform, box_mask

ATTEMPTS = 8  # each succeeds with probability over 0.95


@dataclass(frozen=True)
class Mix:
    """``share`` float32 [B] of an image's own target; ``boxes`` int64 [B, 4] that show the partner (CutMix).

    A box without area stands for MixUp: then ``share`` is the weight of the image's own pixels everywhere.
    """

    share: Tensor
    boxes: Tensor


def draw_mix(uniform: Uniform, alphas: tuple[float, float], probability: float, cutmix_share: float,
             size: tuple[int, int]) -> Mix:
    """Parameters of CutMix and MixUp; ``alphas`` are theirs, in this order, and 0 turns one off.

    An image is mixed with ``probability``; where both are on, CutMix is chosen for ``cutmix_share`` of those.
    """
    cutmix_alpha, mixup_alpha = alphas
    if not (cutmix_alpha and mixup_alpha):
        cutmix_share = float(cutmix_alpha > 0)
    chosen, which = uniform("mix", 2).unbind(1)
    mixed, by_cutmix = chosen < probability, which < cutmix_share
    share = torch.ones_like(chosen)
    boxes = torch.zeros(len(chosen), 4, dtype=torch.int64, device=chosen.device)
    if mixup_alpha:
        share = torch.where(mixed & ~by_cutmix, beta(uniform, "mixup", mixup_alpha), share)
    if cutmix_alpha:
        cut = _cut_boxes(uniform, beta(uniform, "cutmix", cutmix_alpha), size) * (mixed & by_cutmix)[:, None]
        share, boxes = share - cut[:, 2] * cut[:, 3] / (size[0] * size[1]), cut
    return Mix(share, boxes)


def mix(images: Tensor, targets: Tensor, parameters: Mix) -> tuple[Tensor, Tensor]:
    """Blend each of ``images`` [1 + B, C, H, W] and soft ``targets`` [1 + B, K] with the one before it; [B, ...] left.

    The first is only a partner: for a whole batch its last image, for a part of one the image before that part.
    """
    share, boxes = parameters.share, parameters.boxes
    everywhere = torch.where(boxes[:, 2] * boxes[:, 3] > 0, 1.0, share)
    own = everywhere[:, None, None, None] - box_mask(boxes, images.shape[-2:])
    mixed = (images[:-1] * (1 - own)).add_(images[1:] * own)
    return mixed, targets[:-1] * (1 - share[:, None]) + targets[1:] * share[:, None]


def beta(uniform: Uniform, purpose: str, alpha: float) -> Tensor:
    """float32 [B] from Beta(alpha, alpha) = X / (X + Y) with X, Y from Gamma(alpha), in logarithms for small alpha."""
    x, y = (_log_gamma_draw(uniform, f"{purpose}.{name}", alpha) for name in "xy")
    return torch.sigmoid(x - y).to(torch.float32)


def _log_gamma_draw(uniform: Uniform, purpose: str, alpha: float) -> Tensor:
    """Logarithm of Gamma(alpha) draws, float64 [B] (Marsaglia and Tsang 2000, with a fixed number of attempts).

    A draw from Gamma(alpha + 1) times U ** (1 / alpha) is one from Gamma(alpha); the last attempt counts in any case
    (all fail for one draw in 10 ** 10), so that the numbers consumed do not depend on their values.
    """
    numbers = uniform(purpose, 2 * ATTEMPTS + 1).to(torch.float64) + 2.0**-25  # centres of the steps: never 0 or 1
    z, u, boost = torch.special.ndtri(numbers[:, :ATTEMPTS]), numbers[:, ATTEMPTS:-1], numbers[:, -1]
    d = alpha + 2 / 3
    v = ((1 + z / (9 * d) ** 0.5) ** 3).clamp_min(1e-12)
    accepted = u.log() < z.square() / 2 + d * (1 - v + v.log())
    accepted[:, -1] = True
    first = accepted.to(torch.int8).argmax(dim=1, keepdim=True)
    return (d * v.gather(1, first)[:, 0]).log() + boost.log() / alpha


def _cut_boxes(uniform: Uniform, share: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes of about 1 - ``share`` of the image around a uniform centre, clipped at the edges (as in torchvision)."""
    centres, corners, extents = uniform("cutmix.centre", 2), [], []
    for centre, length in zip(centres.unbind(1), size, strict=True):
        centre, half = (centre * length).floor(), (0.5 * (1 - share).sqrt() * length).floor()
        corners.append((centre - half).clamp_min(0))
        extents.append((centre + half).clamp_max(length) - corners[-1])
    return torch.stack(corners + extents, dim=1).to(torch.int64)
