"""A size at which every cell takes a second: random images, four layers, two updates."""

from __future__ import annotations

import dataclasses

from experiments.sizes import SMALL

TINY = dataclasses.replace(SMALL.shrunk(), name="tiny", model="vit_tiny_imagenet_p16_d64_l4_h2", classes=4,
                           chosen=(1, 3), batches=(1, 2))
