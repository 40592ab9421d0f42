"""Fine-tuning a SparseViT: the same loop, distilled from the dense model, resumable."""

from __future__ import annotations

import numpy as np
import pytest

from vitsparse.circuit.circuit import Circuit
from vitsparse.circuit.graph import Graph
from vitsparse.compiler import sparsify
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation, fingerprint
from vitsparse.evaluation.evaluate import evaluate
from vitsparse.training import fit


@pytest.fixture
def pruned(make_vit, make_recipe, stream, tmp_path):
    """A trained dense model, and a function from a seed to a SparseViT of it with a fifth of its edges cut."""
    dense = make_vit(proj_drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.0)
    fit(dense, stream, make_recipe(epochs=6, lr=1e-2), out=tmp_path / "dense")
    graph, ablation = Graph.of(dense), Ablation.mean(dense, stream.labelled(0))

    def prune(seed=1):
        keep = np.random.default_rng(seed).random(graph.num_edges) < 0.8
        return sparsify(dense, Circuit(graph, keep), ablation=ablation, backend="torch")

    return dense, prune


def test_fine_tuning_a_sparse_model_and_resuming_it(pruned, make_recipe, stream, tmp_path):
    dense, prune = pruned
    sparse, again = prune(), prune()
    recipe, out = make_recipe(distill_weight=0.5, temperature=2.0), tmp_path / "sparse"
    before = evaluate(sparse, stream.labelled(99))
    history = fit(sparse, stream, recipe, out=out, teacher=dense)
    assert evaluate(sparse, stream.labelled(99)).loss < before.loss
    assert {"blocks.0.attn", "blocks.1.mlp", "head"} <= {row.layer for row in history.gradients}
    assert fit(again, stream, recipe, out=out, teacher=dense, resume=True) == history
    assert fingerprint(again) == fingerprint(sparse)
    assert evaluate(again, stream.labelled(99)) == evaluate(sparse, stream.labelled(99))


def test_a_checkpoint_of_another_circuit_is_refused(pruned, make_recipe, stream, tmp_path):
    _, prune = pruned
    fit(prune(1), stream, make_recipe(epochs=1), out=tmp_path / "sparse")
    with pytest.raises(InputError, match=r": model\.kept_edges"):
        fit(prune(2), stream, make_recipe(epochs=1), out=tmp_path / "sparse", resume=True)
