"""A Vision Transformer wired by hand; random circuits and logic gates are in ``vitsparse.evaluation.planted``.

With an ``eps`` that dwarfs any variance, and a weight of its root, a LayerNorm only subtracts the mean over channels;
and every value is written to a pair of channels with both signs, so that the mean is zero: a reader sees exactly the
channel it looks at, whoever else writes. Queries and keys are zero, so attention takes the mean over tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitsparse.model.vit import ViT

LINEAR_EPS = 1e12
GAIN = 10.0


class Planted:
    """A float64 ViT of 5 tokens that computes nothing yet; its methods plant one connection each.

    Channel ``c`` is the pair (2 c, 2 c + 1) of the residual stream; the embedding writes each patch's brightness to
    channel 0, and the class token starts at zero.
    """

    def __init__(self, *, depth: int, heads: int, channels: int, hidden: int = 4):
        self.model = ViT(img_size=4, patch_size=2, in_chans=1, num_classes=2, embed_dim=2 * channels, depth=depth,
                         num_heads=heads, mlp_ratio=hidden / (2 * channels), norm_eps=LINEAR_EPS, dtype=torch.float64)
        self.width = self.model.config.head_dim
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.zero_()
            for module in self.model.modules():
                if isinstance(module, torch.nn.LayerNorm):
                    module.weight.fill_(LINEAR_EPS**0.5)
            for name, parameter in self.model.named_parameters():
                if name == "patch_embed.proj.weight":
                    parameter[0], parameter[1] = 0.25, -0.25

    @torch.no_grad()
    def head(self, layer: int, head: int, *, reads: tuple[int, ...], writes: int) -> None:
        """The head writes the mean over tokens of the sum of the channels it reads."""
        attention, unit = self.model.blocks[layer].attn, head * self.width
        row = 2 * self.model.embed_dim + unit  # the values come after the queries and keys
        for channel in reads:
            attention.qkv.weight[row, 2 * channel] = 1.0
        self._write(attention.proj.weight[:, unit], writes, 1.0)

    @torch.no_grad()
    def unit(self, layer: int, unit: int, *, reads: tuple[int, ...], writes: int) -> None:
        """A hidden unit of the MLP writes ``GELU(sum of the channels it reads)``."""
        mlp = self.model.blocks[layer].mlp
        for channel in reads:
            mlp.fc1.weight[unit, 2 * channel] = 1.0
        self._write(mlp.fc2.weight[:, unit], writes, 1.0)

    @torch.no_grad()
    def logits(self, *, reads: tuple[int, ...]) -> None:
        """The two logits are plus and minus the sum of the channels read at the class token."""
        for channel in reads:
            self._write(self.model.head.weight[:, 2 * channel], 0, GAIN)

    @staticmethod
    def _write(row: Tensor, channel: int, value: float) -> None:
        row[2 * channel], row[2 * channel + 1] = value, -value


def two_roads() -> ViT:
    """input -> a0.h0 -> m0 -> logits;  m0 and input -> a1 (two heads) -> m1 -> logits. None reads what a0.h1 writes."""
    plant = Planted(depth=2, heads=2, channels=6)
    plant.head(0, 0, reads=(0,), writes=1)
    plant.head(0, 1, reads=(0,), writes=5)
    plant.unit(0, 0, reads=(1,), writes=2)
    plant.head(1, 0, reads=(0,), writes=3)
    plant.head(1, 1, reads=(2,), writes=3)
    plant.unit(1, 0, reads=(3,), writes=4)
    plant.logits(reads=(2, 4))
    return plant.model


def two_roads_edges(granularity: str, mlp_groups: int = 1) -> set[str]:
    """The true edges of :func:`two_roads`: its only hidden unit in use is in the first MLP group."""
    head = {"qkv": "a{}.h{}<v>", "head": "a{}.h{}"}.get(granularity, "a{}")
    sends = "a{}" if granularity == "block" else "a{}.h{}"
    mlp = "m{}" if mlp_groups == 1 else "m{}.g0"
    return {
        f"input->{head.format(0, 0)}", f"{sends.format(0, 0)}->m0", f"{mlp.format(0)}->logits",
        f"input->{head.format(1, 0)}", f"{mlp.format(0)}->{head.format(1, 1)}",
        f"{sends.format(1, 0)}->m1", f"{sends.format(1, 1)}->m1", f"{mlp.format(1)}->logits",
    }


def planted_batches(sizes: tuple[int, ...] = (6, 5)) -> list[tuple[Tensor, Tensor]]:
    """Images whose brightness differs, so that every planted road carries something."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for size in sizes:
        noise = torch.randn(size, 1, 4, 4, generator=generator, dtype=torch.float64)
        batches.append((noise + torch.linspace(-2, 3, size)[:, None, None, None], torch.zeros(size, dtype=torch.int64)))
    return batches
