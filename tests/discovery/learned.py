"""One small run of Edge Pruning with a journal. As a program (``learned.py <journal>``) it is slow enough to be killed
midway, and saves after every step."""

from __future__ import annotations

import sys
import time

from tests.strategies import make_ablation, make_batches, make_model
from vitsparse.circuit import EdgeScores, Graph
from vitsparse.discovery import edge_pruning, state
from vitsparse.evaluation.ablation import Ablation
from vitsparse.model.config import ViTConfig
from vitsparse.model.vit import ViT

CONFIG = ViTConfig(img_size=4, patch_size=2, in_chans=1, num_classes=3, embed_dim=8, depth=2, num_heads=2)
GRAPH = Graph(2, 2)
STEPS = 30


def learn(path: object, **changes: object) -> EdgeScores:
    """Scores of 26 edges; ``changes`` replace the arguments."""
    model, batches = make_model(CONFIG, 1), make_batches(CONFIG, (3, 2, 4))
    arguments = {"batches": batches, "graph": GRAPH, "ablation": make_ablation(model, GRAPH, "mean"), "steps": STEPS}
    arguments |= changes
    return edge_pruning(model, arguments.pop("batches"), **arguments, journal=path)


def in_ranks(path: str, kind: str) -> list[float]:
    """The scores in one of several ranks; the second batch has fewer images than there are ranks."""
    model = make_model(CONFIG, 1)
    return learn(path, batches=make_batches(CONFIG, (3, 1, 4)), ablation=ablation_of(kind, model)).values.tolist()


def ablation_of(kind: str, model: ViT) -> Ablation:
    if kind == "counterfactual":  # mixes the images of a batch, so ranks must not corrupt their parts alone
        return Ablation.counterfactual(model, lambda images, labels: images.flip(0))
    return make_ablation(model, GRAPH, kind)


if __name__ == "__main__":
    save = state.State.save

    def slowly(*arguments: object) -> None:
        save(*arguments)
        time.sleep(0.02)

    state.State.save, state.SAVE_SECONDS = slowly, 0.0
    learn(sys.argv[1])
