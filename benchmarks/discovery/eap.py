"""What EAP costs, beside one forward and backward of the dense model with the gradients of all its parameters.

python -m benchmarks.discovery.eap prints the rows: time and peak memory of tensors for the 12-layer, 8-head model, and
the memory of a whole process that scores the 32,491 edges of a ViT-B/16. "mask" is the same score by autograd in a mask
on every edge, each reader summing for itself: the definition, and how tools without a backward of their own do it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitsparse import Ablation, create_model, edgewise_forward
from vitsparse.circuit import Graph
from vitsparse.discovery import eap, eap_ig, relp
from vitsparse.evaluation.latency import measure
from vitsparse.evaluation.metrics import cross_entropy
from vitsparse.model.vit import ViT

MODEL, CLASSES = "vit_tiny_imagenet_p8_d256_l12_h8", 200
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH = 32 if DEVICE == "cpu" else 256
MASK_IMAGES = 2
"""What the mask is measured on: its memory grows with the square of the depth."""
VIT_B_IMAGES = 8


def rows() -> list[dict[str, Any]]:
    """Time and memory for two granularities, the mask, and ViT-B/16."""
    return [*(row for granularity in ("head", "qkv") for row in cost_rows(granularity)), mask_row(), vit_b_row()]


def cost_rows(granularity: str) -> list[dict[str, Any]]:
    """EAP, RelP and EAP-IG on a batch: ``time_ratio`` to one forward and backward; ``memory_beyond`` it as a share of
    what all senders write."""
    model, (images, labels) = create_model(MODEL, num_classes=CLASSES).eval().to(DEVICE), batch_of(BATCH)
    graph = Graph.of(model, granularity=granularity)
    arguments = {"graph": graph, "ablation": Ablation.mean(model, [batch_of(4)], graph), "progress": False}
    runs: dict[str, Callable[[], Any]] = {"forward + backward": lambda: forward_backward(model, images, labels)}
    for method in (eap, relp, eap_ig):
        runs[method.__name__] = lambda method=method: method(model, [(images, labels)], **arguments)
    times = measure(runs, warmup=1, repeats=5, min_seconds=0.0, device=DEVICE)
    peaks = {what: peak_bytes(run) for what, run in runs.items()}
    stack = 4 * len(graph.senders) * images.shape[0] * model.config.num_tokens * model.config.embed_dim
    base, base_peak = times["forward + backward"].p50, peaks["forward + backward"]
    return [{"what": what, "granularity": granularity, "edges": graph.num_edges, "batch": BATCH,
             "p20_ms": round(time.p20, 1), "p50_ms": round(time.p50, 1), "p80_ms": round(time.p80, 1),
             "time_ratio": round(time.p50 / base, 2), "peak_mb": round(peaks[what] / 2**20),
             "memory_beyond": round((peaks[what] - base_peak) / stack, 3)} for what, time in times.items()]


def mask_row() -> dict[str, Any]:
    """The gradient in the edge mask, beside EAP on the same few images."""
    model, (images, labels) = create_model(MODEL, num_classes=CLASSES).eval().to(DEVICE), batch_of(MASK_IMAGES)
    graph = Graph.of(model)
    ablation = Ablation.mean(model, [batch_of(4)], graph)
    keep = torch.ones(graph.num_edges, device=DEVICE, requires_grad=True)

    def mask() -> Tensor:
        logits = edgewise_forward(model, images, keep, graph=graph, ablation=ablation)
        return torch.autograd.grad(cross_entropy(logits, labels), keep)[0]

    runs = {"mask": mask, "eap": lambda: eap(model, [(images, labels)], graph=graph, ablation=ablation, progress=False)}
    times = measure(runs, warmup=1, repeats=5, min_seconds=0.0, device=DEVICE)
    peaks = {what: peak_bytes(run) for what, run in runs.items()}
    return {"what": "mask, beside eap", "granularity": "head", "edges": graph.num_edges, "batch": MASK_IMAGES,
            "p50_ms": round(times["mask"].p50, 1), "time_ratio_to_eap": round(times["mask"].p50 / times["eap"].p50, 1),
            "peak_mb": round(peaks["mask"] / 2**20), "memory_ratio_to_eap": round(peaks["mask"] / peaks["eap"], 1)}


def vit_b_row() -> dict[str, Any]:
    """The most memory of a process of its own, torch and the model included; on the CPU."""
    done = subprocess.run([sys.executable, "-c", "from benchmarks.discovery.eap import vit_b; vit_b()"], check=True,
                          cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def vit_b() -> None:
    """Score a ViT-B/16 at 224 pixels with split queries, keys and values; print the row."""
    model = ViT().eval()  # the defaults are ViT-B/16
    graph = Graph.of(model, granularity="qkv")
    images = torch.randn(VIT_B_IMAGES, 3, 224, 224)
    labels = torch.arange(VIT_B_IMAGES)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    eap(model, [(images, labels)], graph=graph, ablation=Ablation.zero(model), progress=False)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"what": "eap, ViT-B/16 at 224", "granularity": "qkv", "edges": graph.num_edges,
                      "batch": VIT_B_IMAGES, "process_mb": most // 1024, "before_mb": before // 1024}))


def forward_backward(model: ViT, images: Tensor, labels: Tensor) -> None:
    """One training step's gradients."""
    model.zero_grad(set_to_none=True)
    cross_entropy(model(images), labels).backward()


def batch_of(count: int) -> tuple[Tensor, Tensor]:
    """Random images and labels: neither time nor memory depends on them."""
    generator = torch.Generator().manual_seed(count)
    images, labels = torch.randn(count, 3, 64, 64, generator=generator), torch.arange(count) % CLASSES
    return images.to(DEVICE), labels.to(DEVICE)


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes of tensors alive at a time among those that ``run`` made."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = sorted((event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"),
                    key=lambda event: event.start_ns())
    return int(torch.tensor([event.nbytes() for event in events]).cumsum(0).max())


if __name__ == "__main__":
    for row in rows():
        print("  ".join(f"{key} {value}" for key, value in row.items()))
