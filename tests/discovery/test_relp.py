"""RelP is EAP with two factors held constant: written down here as plain loops over readers, with autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.discovery.test_eap import CONFIG, ablation_of, linear_model
from tests.strategies import make_batches, make_model
from tests.tolerances import ORACLE
from vitsparse.circuit import Graph
from vitsparse.discovery import METHODS, eap, relp
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation
from vitsparse.evaluation.metrics import METRICS
from vitsparse.evaluation.planted import or_gate
from vitsparse.model.edgewise import sender_outputs
from vitsparse.model.vit import ViT


def norm(module: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    deviation = (x.var(-1, correction=0, keepdim=True) + module.eps).sqrt()
    return (x - x.mean(-1, keepdim=True)) / deviation.detach() * module.weight + module.bias


def gelu(x: Tensor) -> Tensor:
    return x * (torch.nn.functional.gelu(x) / x).detach()


def plain_run(model: ViT, images: Tensor, keep: dict[str, Tensor], ablated: dict[str, Tensor]) -> Tensor:
    """Logits of a ``"qkv"`` graph; ``keep`` by the name of the edge, ``ablated`` by that of the sender."""
    heads, width, bias = model.num_heads, model.config.head_dim, 0.0
    wrote = {"input": model.embed(images)}

    def read(name: str) -> Tensor:
        return bias + sum(keep[f"{sender}->{name}"] * value + (1 - keep[f"{sender}->{name}"]) * ablated[sender]
                          for sender, value in wrote.items())

    for layer, block in enumerate(model.blocks):
        rows, biases = (tensor.unflatten(0, (3, heads, width)) for tensor in
                        (block.attn.qkv.weight, block.attn.qkv.bias))
        outputs = {}
        for h in range(heads):
            q, k, v = (norm(block.norm1, read(f"a{layer}.h{h}<{part}>")) @ rows[i, h].T + biases[i, h]
                       for i, part in enumerate("qkv"))
            z = torch.softmax(q @ k.mT / width**0.5, -1) @ v
            outputs[f"a{layer}.h{h}"] = z @ block.attn.proj.weight[:, h * width: (h + 1) * width].T
        wrote |= outputs
        bias = bias + block.attn.proj.bias
        wrote[f"m{layer}"] = block.mlp.fc2(gelu(block.mlp.fc1(norm(block.norm2, read(f"m{layer}")))))
    return model.head(norm(model.norm, read("logits")[:, 0]))


@pytest.mark.parametrize("kind", ["zero", "mean", "counterfactual"])
def test_is_the_gradient_with_two_factors_held_constant(kind):
    model, batches = make_model(CONFIG, 1, torch.float64), make_batches(CONFIG, (3,), dtype=torch.float64)
    graph = Graph.of(model, granularity="qkv")
    ablation, (images, labels) = ablation_of(kind, model, graph), batches[0]
    keep = torch.ones(graph.num_edges, dtype=torch.float64, requires_grad=True)
    if kind == "counterfactual":
        values = sender_outputs(model, ablation.corrupt(images, labels), graph)
    else:
        values = ablation.stacked(graph)
    logits = plain_run(model, images, dict(zip(graph.edge_names, keep, strict=True)),
                       dict(zip(graph.senders, values.detach().double(), strict=True)))
    assert torch.allclose(logits, model(images))
    expected = -torch.autograd.grad(METRICS["ce"](logits, labels, logits), keep)[0].numpy()
    scores = relp(model, batches, graph=graph, ablation=ablation)
    assert np.abs(scores.values - expected).max() <= ORACLE * np.abs(expected).max()
    assert np.abs(scores.values - eap(model, batches, graph=graph, ablation=ablation).values).max() > 1e-2


def test_is_eap_and_so_the_truth_on_a_linear_model():
    model, batches = linear_model(), make_batches(CONFIG, (4,), dtype=torch.float64)
    graph = Graph.of(model)
    ablation = ablation_of("mean", model, graph)
    expected = eap(model, batches, graph=graph, ablation=ablation, metric="logit_difference:1:2")
    scores = relp(model, batches, graph=graph, ablation=ablation, metric="logit_difference:1:2")
    assert np.abs(scores.values - expected.values).max() <= 1e-6 * np.abs(expected.values).max()


def test_is_blind_to_an_or_gate():
    planted = or_gate()
    scores = relp(planted.model, planted.batches(), graph=planted.graph, ablation=Ablation.zero(planted.model),
                  metric="logit_difference")
    into_the_gate = [scores.values[planted.graph.edge_index(f"a0.h{h}->m0")] for h in range(2)]
    assert into_the_gate == pytest.approx([0, 0], abs=1e-9)


def test_metrics_that_are_flat_at_the_dense_model_are_refused():
    model = make_model(CONFIG)
    with pytest.raises(InputError, match=r"relp would score rounding errors[\s\S]*eap_ig, exact or acdc"):
        relp(model, make_batches(CONFIG), graph=Graph.of(model), ablation=Ablation.zero(model), metric="kl")
    assert METHODS["relp"] is relp
