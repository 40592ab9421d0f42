"""What a model loaded for inference alone holds: its weights and offsets once, and the buffers of one forward."""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import threading
from pathlib import Path

import pytest
import torch

from tests.compiler.cases import case_of, needs_cpu
from vitsparse.circuit import Graph
from vitsparse.compiler import SparseViT
from vitsparse.model.config import ViTConfig

ALLOWED = 1.1
CONFIG = ViTConfig(img_size=32, patch_size=4, in_chans=3, num_classes=100, embed_dim=192, depth=4, num_heads=6)
FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class Mallinfo(ctypes.Structure):
    """``struct mallinfo2`` of the GNU C library."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in FIELDS)


def allocated() -> int:
    """Bytes that this process has from malloc: all of torch's, of numpy's and of the kernels'."""
    gc.collect()
    function = ctypes.CDLL(None).mallinfo2
    function.restype = Mallinfo
    found = function()
    return found.uordblks + found.hblkhd


def load(folder: Path) -> SparseViT:
    return SparseViT.from_pretrained(folder, backend="cpu").drop_parameters()


def held_by(folder: Path, images: torch.Tensor) -> int:
    """Bytes that loading a model and one forward leave, in a thread whose memory for values is not there yet."""
    found = []

    def run() -> None:
        before = allocated()
        sparse = load(folder)
        with torch.no_grad():
            sparse(images)
        found.append(allocated() - before)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


@needs_cpu
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="counts what malloc gives")
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
@pytest.mark.parametrize(("kind", "ablation"), [("full", "zero"), ("dense", "mean"), ("sparse", "mean"),
                                                ("dead parts", "mean")])
def test_a_loaded_model_holds_little_more_than_its_numbers(kind, ablation, tmp_path):
    case = case_of(kind, ablation, config=CONFIG, graph=Graph(CONFIG.depth, CONFIG.num_heads, "qkv", 4))
    sparse = case.sparse("cpu")
    weights = sum(value.nbytes for value in sparse.parameters())
    needed = weights + sum(value.nbytes for value in sparse.plan.constants.values()) + 4 * sparse.plan.memory[1]
    sparse.save_pretrained(tmp_path)
    held_by(tmp_path, case.images[:1])  # what is imported and set up once does not count
    held = held_by(tmp_path, case.images[:1])
    assert weights < held <= ALLOWED * needed


@needs_cpu
@pytest.mark.parametrize("kind", ["sparse", "constant"])
def test_what_is_held_is_enough(kind, tmp_path):
    case = case_of(kind)
    sparse = case.sparse("cpu")
    with torch.no_grad():
        expected = sparse(case.images)
        sparse.save_pretrained(tmp_path)
        packed = load(tmp_path)
        assert str(packed.plan) == str(sparse.plan)
        assert not [*packed.parameters(), *packed.buffers()]
        assert torch.equal(packed(case.images), expected)
        assert torch.equal(copy.deepcopy(packed)(case.images), expected)
