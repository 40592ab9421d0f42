"""Measure this machine's cost model: python -m benchmarks.cost_table FILE [threads]; or compare one with what runs:
python -m benchmarks.cost_table FILE --check. On a machine that does nothing else: others' work ends up in the table.
"""

from __future__ import annotations

import functools
import sys

import torch

from benchmarks.model.circuits import named_circuits
from vitsparse import Ablation, create_model, sparsify
from vitsparse.compiler.cost import CostModel, PlanCost
from vitsparse.compiler.cost_table import least_microseconds, measure_cost

MODELS = {"p8 d128 l6 h4": "vit_tiny_imagenet_p8_d128_l6_h4", "p8 d256 l12 h8": "vit_tiny_imagenet_p8_d256_l12_h8"}


@torch.inference_mode()
def check(table: CostModel, seconds: float = 3.0) -> None:
    """Print predicted and measured latencies of the named circuits; the least of many calls on both sides."""
    torch.set_num_threads(table.threads)
    for (name, key), batch in ((model, batch) for model in MODELS.items() for batch in table.batches):
        model, images = create_model(key, num_classes=200).eval(), torch.randn(batch, 3, 64, 64)
        cost, circuits = PlanCost(table, model.config, batch=batch), named_circuits(model.depth, model.num_heads)
        runs = {what: functools.partial(sparsify(model, circuit, ablation=Ablation.zero(model, circuit.graph)).eval(),
                                        images) for what, circuit in circuits.items()}
        measured = least_microseconds(runs, seconds)
        for what, circuit in circuits.items():
            predicted = cost.latency(circuit)
            print(f"{name:15} batch {batch:3} {what:8} measured {measured[what]:10.0f} us, predicted {predicted:10.0f} "
                  f"({predicted / measured[what] - 1:+.0%}); share of full {measured[what] / measured['full']:.3f}, "
                  f"predicted {predicted / cost.latency(circuits['full']):.3f}")


def main(path: str, *options: str) -> None:
    """See the module's head."""
    if options == ("--check",):
        return check(CostModel.load(path))
    if options:
        torch.set_num_threads(int(options[0]))
    measure_cost((1, 32)).save(path)
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
