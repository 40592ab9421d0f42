"""vitsparse: find the circuit of a Vision Transformer, prune it, and run what is left on kernels that skip the rest.

The main road, from a model and ``batches`` (a re-iterable of (images, labels)) to a faster model:

    model = vs.create_model("vit_digits_p2_d64_l6_h4", num_classes=10)
    graph = vs.Graph.of(model)                                  # what could be connected
    ablation = vs.Ablation.mean(model, batches)                 # what stands in for a cut edge
    circuit = vs.discover.acdc(model, batches, graph=graph, ablation=ablation, threshold=1e-2)
    sparse = vs.sparsify(model, circuit, ablation=ablation)     # a drop-in module; print(sparse.plan)
    vs.evaluate(sparse, batches, dense=model)

Every compiled circuit equals ``vs.edgewise_forward(model, images, circuit.keep, graph=graph, ablation=ablation)``.
"""

from __future__ import annotations

from . import discovery as discover
from .circuit import Circuit, EdgeScores, Graph
from .compiler import SparseViT, sparsify
from .errors import InputError
from .evaluation.ablation import Ablation
from .evaluation.evaluate import evaluate
from .model.convert import from_timm, from_torchvision
from .model.edgewise import edgewise_forward
from .model.neurons import sort_neurons
from .model.registry import create_model, list_models
from .model.vit import ViT
from .version import __version__

__all__ = [
    "Ablation", "Circuit", "EdgeScores", "Graph", "InputError", "SparseViT", "ViT", "__version__", "create_model",
    "discover", "edgewise_forward", "evaluate", "from_timm", "from_torchvision", "list_models", "sort_neurons",
    "sparsify",
]
