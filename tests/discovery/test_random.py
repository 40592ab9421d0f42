"""The baseline that knows nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tests.strategies import make_ablation, make_batches, make_model
from vitsparse.circuit import EdgeScores, Graph
from vitsparse.discovery import METHODS, random
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import fingerprint
from vitsparse.model.config import ViTConfig

CONFIG = ViTConfig(img_size=4, patch_size=2, in_chans=1, num_classes=3, embed_dim=16, depth=3, num_heads=4)
GRAPH = Graph(3, 4, "qkv", 2)


def test_scores_are_uniform_and_those_of_their_seed():
    model = make_model(CONFIG)
    arguments = {"graph": GRAPH, "ablation": make_ablation(model, GRAPH, "zero")}
    scores = METHODS["random"](model, make_batches(CONFIG), metric="kl", journal=None, progress=False, **arguments)
    assert 0 <= scores.values.min() < 0.03
    assert 0.97 < scores.values.max() < 1
    assert abs(scores.values.mean() - 0.5) < 4 * 12**-0.5 / GRAPH.num_edges**0.5
    assert np.array_equal(random(model, **arguments).values, scores.values)
    assert not np.array_equal(random(model, seed=1, **arguments).values, scores.values)


def test_scores_say_where_they_come_from(tmp_path):
    model = make_model(CONFIG)
    ablation = make_ablation(model, GRAPH, "mean")
    scores = random(model, graph=GRAPH, ablation=ablation, seed=5)
    scores.save(tmp_path / "scores.safetensors")
    loaded = EdgeScores.load(tmp_path / "scores.safetensors").provenance
    assert (loaded["method"], loaded["seed"], loaded["model"]) == ("random", 5, fingerprint(model))
    assert dict(scores.top_k(10).ablation) == loaded["ablation"] == ablation.describe()


def test_any_graph_has_random_scores():
    model = make_model(CONFIG)
    for granularity in ("head", "layer", "block", "operator"):
        graph = Graph.of(model, granularity=granularity)
        scores = random(model, graph=graph, ablation=make_ablation(model, Graph.of(model), "zero"))
        assert scores.top_k(7).num_kept == 7


def test_a_graph_of_another_model_is_refused():
    model = make_model(CONFIG)
    with pytest.raises(InputError, match="model of another shape"):
        random(model, graph=Graph(3, 2), ablation=make_ablation(model, Graph.of(model), "zero"))
