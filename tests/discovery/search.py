"""One small search with a journal. As a program (``search.py <journal>``) it is slow enough to be killed midway."""

from __future__ import annotations

import sys
import time

from tests.strategies import make_ablation, make_batches, make_model
from vitsparse.circuit import Circuit, Graph
from vitsparse.discovery import acdc, journal
from vitsparse.model.config import ViTConfig

CONFIG = ViTConfig(img_size=4, patch_size=2, in_chans=1, num_classes=3, embed_dim=8, depth=2, num_heads=2)
GRAPH = Graph(2, 2)


def search(path: object, **changes: object) -> Circuit:
    """ACDC over 26 edges; ``changes`` replace its arguments."""
    seed = changes.pop("seed", 1)
    model, batches = make_model(CONFIG, seed), make_batches(CONFIG, (3, 2))
    arguments = {"batches": batches, "graph": GRAPH, "ablation": make_ablation(model, GRAPH, "mean"), "threshold": 0.01}
    arguments |= changes
    return acdc(model, arguments.pop("batches"), **arguments, journal=path)


if __name__ == "__main__":
    record = journal.Journal.record

    def slowly(*arguments: object) -> None:
        record(*arguments)
        time.sleep(0.05)

    journal.Journal.record = slowly
    search(sys.argv[1])
