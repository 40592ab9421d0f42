"""Equal searches have equal identities; whatever changes the result changes the identity."""

from __future__ import annotations

import json

import pytest
import torch

from tests.strategies import make_ablation, make_batches, make_model
from vitsparse.circuit import Graph
from vitsparse.discovery.identity import check_same_search, data_digest, identity
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation
from vitsparse.evaluation.metrics import METRICS
from vitsparse.model.config import ViTConfig

CONFIG = ViTConfig(img_size=4, patch_size=2, in_chans=1, num_classes=3, embed_dim=8, depth=2, num_heads=2)
GRAPH = Graph(2, 2)


def of(seed: int = 0, graph: Graph = GRAPH, kind: str = "mean", metric: str = "ce", **settings: object) -> dict:
    model = make_model(CONFIG, seed)
    batches = settings.pop("batches", make_batches(CONFIG))
    return identity("eap", model, graph, make_ablation(model, graph, kind), metric, data=data_digest(batches),
                    **settings)


def test_equal_searches_have_equal_identities_of_plain_values():
    found = of(steps=5)
    assert found == of(steps=5) == json.loads(json.dumps(found))
    assert (found["method"], found["metric"], found["steps"], found["device"]) == ("eap", "ce", 5, "cpu")
    assert of(metric=METRICS["ce"]) == of(metric="ce")


@pytest.mark.parametrize(("field", "changes"), [
    ("model", {"seed": 1}), ("graph", {"graph": Graph(2, 2, "qkv")}), ("ablation", {"kind": "zero"}),
    ("metric", {"metric": "kl"}), ("data", {"batches": make_batches(CONFIG, (2, 3))}), ("steps", {"steps": 7}),
])
def test_whatever_changes_the_result_is_named(tmp_path, field, changes):
    with pytest.raises(InputError, match=rf"another search\n  where: .*journal: {field}\n"):
        check_same_search(of(**changes), of(), tmp_path / "journal")


def test_every_tensor_counts_and_what_is_none_does_not():
    (images, labels), = make_batches(CONFIG, (3,))
    digests = {data_digest(batches) for batches in (
        [(images, labels)], [(images + 1, labels)], [(images, labels + 1)], [(images.double(), labels)],
        [(images, None)], [(images[:2], labels[:2]), (images[2:], labels[2:])], [(images.reshape(-1), labels)])}
    assert len(digests) == 7
    assert data_digest([images]) == data_digest([(images, None)]) == data_digest([(images, ["cat"])])


def test_a_counterfactual_is_told_by_the_images_it_makes():
    model, batches = make_model(CONFIG), make_batches(CONFIG)
    plain = data_digest(batches)
    assert data_digest(batches, Ablation.zero(model)) == plain
    flipped, moved = (data_digest(batches, Ablation.counterfactual(model, corrupt)) for corrupt in (
        lambda images, labels: images.flip(0), lambda images, labels: images + labels[:, None, None, None]))
    assert len({plain, flipped, moved}) == 3
    with pytest.raises(InputError, match="an image for each image"):
        data_digest(batches, Ablation.counterfactual(model, lambda images, labels: images[:1] * torch.ones(1)))
