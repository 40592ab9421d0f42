"""What tells one search from another: of a search that goes on where it was, and of scores that say how they came."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..circuit import Graph
from ..errors import InputError
from ..evaluation.ablation import Ablation, fingerprint
from ..evaluation.evaluate import device_of
from ..evaluation.metrics import Metric, metric_named
from ..model.edgewise import corrupted
from ..model.vit import ViT
from ..version import __version__


def identity(method: str, model: ViT, graph: Graph, ablation: Ablation, metric: str | Metric, *, data: str,
             **settings: Any) -> dict[str, Any]:
    """Plain JSON values on which the result depends: two searches with equal ones find the same.

    ``data`` is the :func:`data_digest` of the batches; ``settings`` are those of the method (the number of images
    among them). The device is part of it because devices round differently.
    """
    return {"method": method, **settings, "metric": metric_named(metric).name, "model": fingerprint(model),
            "graph": graph.to_dict(), "ablation": ablation.describe(), "data": data, "device": device_of(model).type,
            "vitsparse": __version__, "torch": str(torch.__version__)}


def data_digest(batches: Iterable[Any], ablation: Ablation | None = None) -> str:
    """Hex sha256 over the tensors of ``batches``: tensors, or tuples of tensors (what is no tensor is passed over).

    With a counterfactual ``ablation``, which is code and not values, the images it makes of each batch of (images,
    labels) count as well.
    """
    digest = hashlib.sha256()
    for batch in batches:
        tensors = [batch] if isinstance(batch, Tensor) else list(batch)
        if ablation is not None and ablation.corrupt is not None:
            tensors.append(corrupted(ablation, *tensors))
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
                # flattened because a tensor without dimensions cannot be viewed as bytes
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_same_search(written: Mapping[str, Any], search: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Raise :class:`InputError` naming the first field in which the search that wrote ``path`` is not ``search``."""
    for field in [*search, *written]:
        if field not in written or field not in search or written[field] != search[field]:
            raise InputError("the file is of another search", where=f"{path}: {field}",
                             expected=f"{search.get(field)} (this search)", found=f"{written.get(field)} (the file)",
                             remedy="search as then, or give a path that does not exist yet")
