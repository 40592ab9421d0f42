"""run_program: a whole dense ViT as one program, against the same model in eager torch; on a GPU by each way to run."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ops.shapes import VITS, measure
from tests.ops.program_writer import write_dense
from vitsparse import Ablation, Circuit, Graph, sparsify
from vitsparse.compiler.runners import WAYS
from vitsparse.model.vit import ViT
from vitsparse.ops.run_program import run_program


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("vit", VITS)
def test_run_program(benchmark, vit, backend):
    model, x = dense(benchmark, vit)
    program = write_dense(model)
    words, blob = program.words(), program.blob()
    runs = {"cpu": lambda: run_program(x, words, blob), "torch": lambda: model(x)}
    measure(benchmark, runs[backend], flops(vit))


@pytest.mark.parametrize(("device", "backend"), [("cuda", "cuda")])
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("vit", VITS)
def test_ways(benchmark, vit, how, device, backend):
    model, x = dense(benchmark, vit)
    sparse = sparsify(model, Circuit.full(Graph.of(model)), ablation=Ablation.zero(model)).eval().to(device).half()
    x = x.to(device).half()
    run = sparse.ways(x)[how]
    measure(benchmark, lambda: run(x), flops(vit), device)


def dense(benchmark, vit: str) -> tuple[ViT, torch.Tensor]:
    """Six layers of a shape, and images."""
    benchmark.group = f"dense ViT {vit}"
    images, tokens, width, heads = VITS[vit]
    size = 8 * round((tokens - 1) ** 0.5)
    model = ViT(img_size=size, patch_size=8, embed_dim=width, depth=6, num_heads=heads, num_classes=10).eval()
    return model, torch.randn(images, 3, size, size)


def flops(vit: str) -> float:
    images, tokens, width, _ = VITS[vit]
    return 6.0 * images * tokens * width * (24 * width + 4 * tokens)
