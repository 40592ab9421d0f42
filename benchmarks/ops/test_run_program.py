"""run_program: a whole dense ViT as one program, against the same model in eager torch."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ops.shapes import VITS, measure
from tests.ops.program_writer import write_dense
from vitsparse.model.vit import ViT
from vitsparse.ops.run_program import run_program


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("vit", VITS)
def test_run_program(benchmark, vit, backend):
    benchmark.group = f"dense ViT {vit}"
    images, tokens, width, heads = VITS[vit]
    size = 8 * round((tokens - 1) ** 0.5)
    model = ViT(img_size=size, patch_size=8, embed_dim=width, depth=6, num_heads=heads, num_classes=10).eval()
    program, x = write_dense(model), torch.randn(images, 3, size, size)
    words, blob = program.words(), program.blob()
    runs = {"cpu": lambda: run_program(x, words, blob), "torch": lambda: model(x)}
    measure(benchmark, runs[backend], 6.0 * images * tokens * width * (24 * width + 4 * tokens))
