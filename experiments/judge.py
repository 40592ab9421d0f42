"""The row of a model: what it answers, and what it is made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitsparse import SparseViT, ViT, evaluate
from vitsparse.compiler import dense_flops
from vitsparse.data import Batches
from vitsparse.evaluation.intervals import right_answers
from vitsparse.model.config import ViTConfig

from .narrow import flops_of


def row(model: ViT | SparseViT, batches: Batches, reference: ViT | None, full: ViTConfig) -> dict[str, Any]:
    """Accuracy, mean loss (nats), KL from ``reference`` (or None), the answers to single images, and sizes.

    ``S`` is the FLOPs of a dense model of the shape ``full`` over those of ``model`` (None: it has none left).
    """
    found, right = evaluate(model, batches, dense=reference), right_answers(model, batches)
    return {"accuracy": float(right.mean()), "loss": found.loss, "kl": found.kl, "images": len(right),
            "right": np.packbits(right).tobytes().hex(), **size_of(model, full)}


def size_of(model: ViT | SparseViT, full: ViTConfig) -> dict[str, Any]:
    """FLOPs an image, parameters, and the circuit's edges and nodes (None for a dense model)."""
    circuit = getattr(model, "circuit", None)
    flops = model.plan.flops if circuit is not None else flops_of(model)
    about = dict.fromkeys(("edges_kept", "edges", "nodes_dead", "nodes_constant", "nodes"))
    if circuit is not None:
        about = {"edges_kept": circuit.num_kept, "edges": circuit.graph.num_edges, "nodes_dead": len(circuit.dead),
                 "nodes_constant": len(circuit.constant), "nodes": len(circuit.graph.senders)}
    return {"flops": flops, "S": dense_flops(full) / flops if flops else None,
            "parameters": sum(p.numel() for p in model.parameters()), **about}


def answers(row: dict[str, Any]) -> np.ndarray:
    """[N] bool: the answers that a row keeps."""
    packed = np.frombuffer(bytes.fromhex(row["right"]), dtype=np.uint8)
    return np.unpackbits(packed, count=row["images"]).astype(bool)
