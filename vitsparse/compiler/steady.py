"""Which readers may take their input as a difference from a longer sum.

The difference of two large vectors keeps only the digits in which they differ: where the stream R of all live senders
is many times as large as what a reader keeps of it, r, an error in R's last bit is no longer one in r's. So the dense
model is run on a few images, and where |R| > 30 |r| in some token the reader's senders are added up instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..circuit.circuit import Circuit
from ..circuit.liveness import depends_on_input, reaches_logits
from ..errors import InputError
from ..model.edgewise import sender_outputs
from ..model.vit import ViT

LARGEST = 30.0
TOKENS = 16


def calibration_images(model: ViT, images: Tensor | None) -> Tensor:
    """``images`` [B, C, S, S] as the model takes them, or one image of noise; raises :class:`InputError`."""
    like, config = model.head.weight, model.config
    shape = (config.in_chans, config.img_size, config.img_size)
    if images is None:
        return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(like)
    if tuple(images.shape[1:]) != shape or len(images) < 1:
        raise InputError("the images do not fit the model", where="calibration", found=list(images.shape),
                         expected=f"[B, {', '.join(map(str, shape))}]")
    return images.to(like)


@torch.no_grad()
def unsteady_readers(model: ViT, circuit: Circuit, constants: Tensor, images: Tensor) -> frozenset[str]:
    """Names of the readers of ``circuit`` whose input would be cancelled digits.

    ``constants`` [S, T, D] stand in for cut edges; ``images`` [B, C, S, S] decide. Sixteen tokens of an image are
    looked at, the class token among them.
    """
    graph, keep = circuit.graph, torch.from_numpy(circuit.keep.copy())
    alive = torch.from_numpy(reaches_logits(graph, circuit.keep) & depends_on_input(graph, circuit.keep))
    readers = [reader for reader in graph.reader_nodes if (alive[: reader.fan_in] & ~keep[reader.edges]).any()]
    if not readers:
        return frozenset()
    kept, before = torch.zeros(2, len(readers), len(alive), dtype=torch.bool)
    for row, reader in enumerate(readers):
        kept[row, : reader.fan_in], before[row, : reader.fan_in] = keep[reader.edges], True
    tokens = slice(None, None, -(-constants.shape[1] // TOKENS))
    outputs = sender_outputs(model, images, graph)[:, :, tokens]
    constants = constants[:, None, tokens].to(outputs)
    own = _weighted(kept, outputs) + _weighted(before & ~kept, constants)
    biases = [block.ls1(block.attn.proj.bias) for block in model.blocks]
    for row, reader in enumerate(readers):
        own[row] += sum(biases[: reader.layer + (reader.kind == "mlp")], own.new_zeros(()))
    stream = _weighted(before & alive, outputs)
    cancels = (stream.norm(dim=-1) > LARGEST * own.norm(dim=-1)).flatten(1).any(1)
    return frozenset(reader.name for reader, yes in zip(readers, cancels.tolist(), strict=True) if yes)


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """Sums [R, B, T, D] of the values [S, B, T, D] that each row of ``weights`` [R, S] names."""
    return torch.tensordot(weights.to(values), values, dims=1)
