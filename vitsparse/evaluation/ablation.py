"""Ablation: what stands in for the output of a sender on a cut edge."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..circuit.files import read_tensors, tensor_bytes, write_bytes
from ..circuit.frozen import Frozen
from ..circuit.graph import Graph
from ..errors import InputError
from ..model.edgewise import check_fits, check_model, sender_outputs
from ..model.vit import ViT
from .batches import pairs
from .evaluate import device_of, eval_mode
from .metrics import Metric, metric_named
from .optimal import Training, learn_constants

FORMAT, VERSION = "vitsparse.ablation", 1
KINDS = ("zero", "mean", "optimal")
"""The kinds that are values and have a file."""


@dataclass(frozen=True, eq=False)
class Ablation(Frozen):
    """The ablation values a_i of a model.

    ``kind`` is ``zero``, ``mean``, ``optimal`` or ``counterfactual``; ``values[name]`` is the float32 [T, D] of each
    sender ``input``, ``a{l}.h{h}``, ``m{l}`` (and of the MLP groups when made with ``graph=``), empty for
    ``counterfactual``, which has ``corrupt(images, labels) -> images`` instead. ``fingerprint`` is that of the model it
    was measured on.
    """

    kind: str
    values: Mapping[str, Tensor]
    fingerprint: str
    corrupt: Callable[[Tensor, Tensor | None], Tensor] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self._freeze("values")

    @classmethod
    def zero(cls, model: ViT, graph: Graph | None = None) -> Ablation:
        """A cut edge carries nothing: a_i = 0."""
        names = _names(model, graph)
        shape = (model.config.num_tokens, model.config.embed_dim)
        return cls("zero", {name: torch.zeros(shape) for name in names}, fingerprint(model))

    @classmethod
    def mean(cls, model: ViT, batches: Iterable, graph: Graph | None = None) -> Ablation:
        """A cut edge carries the mean of s_i over images of the dense run, per token position.

        ``batches`` is a re-iterable of (images, labels); ``graph`` is only needed for its MLP groups. Dropout is off,
        and sums are kept in float64, so that the order of the batches hardly matters.
        """
        fine = _fine_graph(model, graph)
        total, count = None, 0
        with torch.no_grad(), eval_mode(model):
            for images, _ in pairs(batches, device_of(model)):
                outputs = sender_outputs(model, images, fine).double().sum(1)
                total = outputs if total is None else total + outputs
                count += len(images)
        if total is None:
            raise InputError("no images to take the mean over", where="batches", expected="at least one batch",
                             found="none")
        return cls("mean", _by_name(fine, (total / count).float().cpu()), fingerprint(model),
                   provenance={"images": count})

    @classmethod
    def optimal(cls, model: ViT, batches: Iterable, graph: Graph | None = None, *,  # noqa: PLR0913
                metric: str | Metric = "kl", steps: int = 500, lr: float = 0.01, seed: int = 0,
                progress: bool = True) -> Ablation:
        """A cut edge carries the constant [T, D] that does the least harm: see :mod:`.optimal` for what is least.

        Learned from the means, for ``steps`` batches in turn. No sender does more harm than its mean, as measured on
        the first images of ``batches`` (a re-iterable of (images, labels), held in memory). ``m{l}`` of groups is their
        sum, as with :meth:`mean`. Raises :class:`InputError` as that does, for settings out of range, and for labels
        that the metric needs and that do not fit.
        """
        training = Training(metric_named(metric), steps, lr, seed)
        fine = _fine_graph(model, graph)
        mean = cls.mean(model, batches, fine)
        with torch.no_grad(), eval_mode(model):
            learned = learn_constants(model, fine, mean.stacked(fine), batches, training, progress=progress)
        return cls("optimal", _by_name(fine, learned), mean.fingerprint, provenance={
            **mean.provenance, "metric": training.metric.name, "steps": int(steps), "lr": float(lr), "seed": int(seed)})

    @classmethod
    def counterfactual(cls, model: ViT, corrupt: Callable[[Tensor, Tensor | None], Tensor]) -> Ablation:
        """A cut edge carries s_i of ``corrupt(images, labels)``: for analysis only, it cannot be compiled."""
        check_model(model)
        if not callable(corrupt):
            raise InputError("a counterfactual ablation needs a way to corrupt images", where="corrupt",
                             expected="a function corrupt(images, labels) -> images", found=type(corrupt).__name__)
        return cls("counterfactual", {}, fingerprint(model), corrupt=corrupt)

    def stacked(self, graph: Graph) -> Tensor:
        """[S, T, D] float32: the values of the senders of ``graph``; attention nodes are the sum of their heads."""
        if self.corrupt is not None:
            raise InputError("a counterfactual ablation depends on the image", where="ablation",
                             expected="zero, mean or optimal (the same for every image)", found=self.kind,
                             remedy="use Ablation.mean(model, batches) where constants are needed")
        return torch.stack([self._value(node.name, graph, node) for node in graph.sender_nodes])

    def _value(self, name: str, graph: Graph, node: Any) -> Tensor:
        if name in self.values:
            return self.values[name]
        if self.kind == "zero":  # zero for any sender, MLP groups of every number included
            return torch.zeros_like(self.values["input"])
        if node.kind == "attn" and f"a{node.layer}.h{graph.heads - 1}" in self.values:
            return torch.stack([self.values[f"a{node.layer}.h{h}"] for h in range(graph.heads)]).sum(0)
        raise InputError("the ablation has no value for a sender", where=f"ablation.values[{name!r}]",
                         expected=f"the senders of {graph!r}", found=f"{len(self.values)} values of kind {self.kind}",
                         remedy="make it with graph=, e.g. Ablation.mean(model, batches, graph=graph)")

    @property
    def sha256(self) -> str | None:
        """Hex sha256 of the file that :meth:`save` writes: how a circuit names it; None for a counterfactual one."""
        return None if self.corrupt is not None else hashlib.sha256(self._file()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What ``circuit.json`` says of it: kind and sha256."""
        return {"kind": self.kind, "sha256": self.sha256}

    def save(self, path: str | Path) -> None:
        """Write ``ablation.safetensors``, atomically; refuses a counterfactual one, which is code and not values."""
        if self.corrupt is not None:
            raise InputError("a counterfactual ablation cannot be saved", where="ablation", found=self.kind)
        write_bytes(path, self._file())

    def _file(self) -> bytes:
        metadata = {"format": FORMAT, "version": str(VERSION), "kind": self.kind, "fingerprint": self.fingerprint}
        return tensor_bytes({name: value.numpy() for name, value in self.values.items()}, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Ablation:
        """Read what :meth:`save` wrote; every complaint names the file."""
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != FORMAT or metadata.get("version") != str(VERSION):
            raise InputError("not an ablation file of this version", where=path, expected=f"{FORMAT} version {VERSION}",
                             found=f"{metadata.get('format')} version {metadata.get('version')}")
        if metadata.get("kind") not in KINDS or "fingerprint" not in metadata:
            raise InputError("the ablation's metadata is damaged", where=path, found=metadata,
                             expected=f"kind {', '.join(KINDS)}, and a fingerprint")
        shapes = {tensor.shape for tensor in tensors.values()}
        if len(shapes) != 1 or any(t.dtype.name != "float32" or t.ndim != 2 for t in tensors.values()):
            raise InputError("ablation values must be float32 [T, D], all of one shape", where=path, found=shapes)
        bad = next((name for name, t in tensors.items() if not torch.isfinite(torch.from_numpy(t)).all()), None)
        if bad is not None:
            raise InputError("ablation values must be finite", where=f"{path}: {bad}", found="NaN or infinity")
        return cls(metadata["kind"], {name: torch.from_numpy(t.copy()) for name, t in tensors.items()},
                   metadata["fingerprint"])

    def __repr__(self) -> str:
        return f"Ablation({self.kind}, {len(self.values)} senders, model {self.fingerprint[:12]})"


def fingerprint(model: torch.nn.Module) -> str:
    """Hex sha256 over the names, shapes and bytes of a model's state: tells its weights from others."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        # flattened because a tensor without dimensions cannot be viewed as bytes
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode() + data.numpy().tobytes())
    return digest.hexdigest()


def _fine_graph(model: ViT, graph: Graph | None) -> Graph:
    """The graph whose senders an ablation is measured for: single heads, and the groups of ``graph``."""
    check_model(model)
    if graph is not None:
        check_fits(model, graph)
    return Graph(model.depth, model.num_heads, mlp_groups=graph.mlp_groups if graph is not None else 1)


def _by_name(fine: Graph, stacked: Tensor) -> dict[str, Tensor]:
    """The values [S, T, D] of the senders of ``fine`` by name; where an MLP is in groups, their sum is its own."""
    values = dict(zip(fine.senders, stacked, strict=True))
    if fine.mlp_groups > 1:
        for layer in range(fine.depth):
            values[f"m{layer}"] = sum(values[f"m{layer}.g{k}"] for k in range(fine.mlp_groups))
    return values


def _names(model: ViT, graph: Graph | None) -> list[str]:
    names = set(_fine_graph(model, graph).senders) | set(_fine_graph(model, None).senders)
    return sorted(names)
