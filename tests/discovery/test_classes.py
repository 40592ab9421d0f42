"""The circuit of a few classes: of their images, and of their logits among themselves."""

from __future__ import annotations

import pytest
import torch

from tests.planted import Planted
from vitsparse.circuit import Graph
from vitsparse.discovery import acdc
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation
from vitsparse.evaluation.batches import OnlyClasses
from vitsparse.evaluation.metrics import metric_named
from vitsparse.model.vit import ViT


def four_classes() -> ViT:
    """Classes 0 and 1 are told apart by what the first head writes, 2 and 3 by the second; nobody reads the third."""
    plant = Planted(depth=1, heads=3, channels=6)
    for head in range(3):
        plant.head(0, head, reads=(0,), writes=1 + head)
    plant.model.reset_classifier(4)
    with torch.no_grad():
        plant.model.head.weight.zero_()
        for label, channel, sign in ((0, 1, 1.0), (1, 1, -1.0), (2, 2, 1.0), (3, 2, -1.0)):
            plant.model.head.weight[label, 2 * channel] = sign
            plant.model.head.weight[label, 2 * channel + 1] = -sign
    return plant.model


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images whose brightness differs, of all four classes in turn."""
    images = torch.randn(12, 1, 4, 4, dtype=torch.float64) + torch.linspace(-2, 3, 12)[:, None, None, None]
    return [(images[:7], torch.arange(7) % 4), (images[7:], torch.arange(7, 12) % 4)]


@pytest.mark.parametrize(("classes", "heads"), [([0, 1], [0]), ([3, 2], [1]), ([1, 2], [0, 1]), ([0, 1, 2, 3], [0, 1])])
def test_acdc_finds_what_tells_the_chosen_classes_apart(classes, heads):
    model = four_classes()
    graph, chosen = Graph.of(model), OnlyClasses(batches(), classes)
    circuit = acdc(model, chosen, graph=graph, ablation=Ablation.mean(model, chosen, graph), threshold=1e-3,
                   metric=metric_named("kl").among(classes), progress=False)
    assert set(circuit.kept) == {edge for h in heads for edge in (f"input->a0.h{h}", f"a0.h{h}->logits")}
    assert circuit.provenance["metric"] == f"kl among {','.join(map(str, sorted(classes)))}"
    assert circuit.provenance["images"] == 3 * len(classes)


def test_classes_without_images_are_refused():
    model = four_classes()
    with pytest.raises(InputError, match="no images"):
        acdc(model, OnlyClasses(batches(), [4, 5]), graph=Graph.of(model), ablation=Ablation.zero(model), threshold=0.1)
    with pytest.raises(InputError, match=r"does not have this class[\s\S]*found: 9"):
        acdc(model, batches(), graph=Graph.of(model), ablation=Ablation.zero(model), threshold=0.1, progress=False,
             metric=metric_named("kl").among([0, 9]))
