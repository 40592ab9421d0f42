"""Ablation values: what they are, and their file."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import SEEDS, configs, graphs_of, make_ablation, make_batches, make_model
from vitsparse.circuit import Graph
from vitsparse.circuit.files import read_tensors, write_tensors
from vitsparse.data.corruption import CORRUPTIONS, MeanImage, corruption_named
from vitsparse.errors import InputError, MissingFile
from vitsparse.evaluation.ablation import Ablation, fingerprint
from vitsparse.model.config import ViTConfig
from vitsparse.model.edgewise import edgewise_forward

CONFIG = ViTConfig(img_size=6, patch_size=2, in_chans=1, num_classes=5, embed_dim=15, depth=2, num_heads=3,
                   pos_drop_rate=0.5)
SENDERS = {"input", "m0", "m1", *(f"a{l}.h{h}" for l in range(2) for h in range(3))}
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # float32 forwards, summed in another order


def test_the_mean_is_that_of_the_dense_run():
    """Against the named intermediates of the dense model, over batches of unequal size."""
    model, batches = make_model(CONFIG), make_batches(CONFIG, (4, 1, 2))
    values = Ablation.mean(model, batches).values
    assert set(values) == SENDERS
    images = torch.cat([images for images, _ in batches])
    with torch.no_grad():
        _, dense = model(images, intermediates=["embed", "blocks.1.attn.z", "blocks.1.mlp.out"])
    weight = model.blocks[1].attn.proj.weight.detach()
    assert torch.allclose(values["input"], dense["embed"].mean(0), **ROUNDING)
    assert torch.allclose(values["m1"], dense["blocks.1.mlp.out"].mean(0), **ROUNDING)
    for h in range(3):
        head = dense["blocks.1.attn.z"][:, :, h] @ weight[:, 5 * h: 5 * h + 5].T
        assert torch.allclose(values[f"a1.h{h}"], head.mean(0), **ROUNDING)


def test_the_mean_does_not_depend_on_how_images_are_batched_or_on_the_mode():
    model, (batch,) = make_model(CONFIG), make_batches(CONFIG, (7,))
    expected = Ablation.mean(model, [batch])
    split = [(batch[0][i: i + 3], batch[1][i: i + 3]) for i in (0, 3, 6)]
    model.train()
    actual = Ablation.mean(model, split)
    assert model.training
    for name in SENDERS:
        assert torch.allclose(actual.values[name], expected.values[name], **ROUNDING)


@settings(max_examples=15)
@given(data=st.data(), config=configs(), seed=SEEDS)
def test_values_of_groups_and_of_whole_attentions_add_up(data, config, seed):
    graph = data.draw(graphs_of(config))
    model = make_model(config, seed)
    ablation = Ablation.mean(model, make_batches(config, seed=seed), graph)
    heads, groups = range(config.num_heads), range(graph.mlp_groups)
    for layer in range(config.depth):
        if graph.mlp_groups > 1:
            total = sum(ablation.values[f"m{layer}.g{k}"] for k in groups)
            assert torch.allclose(total, ablation.values[f"m{layer}"], **ROUNDING)
        if graph.granularity == "block":
            stacked = ablation.stacked(graph)[graph.senders.index(f"a{layer}")]
            assert torch.allclose(stacked, sum(ablation.values[f"a{layer}.h{h}"] for h in heads), **ROUNDING)
    assert ablation.stacked(graph).shape == (len(graph.senders), config.num_tokens, config.embed_dim)


def test_zero():
    model = make_model(CONFIG)
    ablation = Ablation.zero(model, Graph.of(model, mlp_groups=2))
    assert set(ablation.values) == SENDERS | {f"m{l}.g{k}" for l in range(2) for k in range(2)}
    assert all(value.shape == (10, 15) and not value.any() for value in ablation.values.values())


def test_groups_not_measured_are_asked_for():
    model = make_model(CONFIG)
    with pytest.raises(InputError, match=r"values\['m0\.g0'\](.*\n)*.*make it with graph="):
        make_ablation(model, Graph.of(model), "mean").stacked(Graph.of(model, mlp_groups=2))


def test_counterfactual_is_code_and_not_values(tmp_path):
    model = make_model(CONFIG)
    ablation = Ablation.counterfactual(model, lambda images, labels: -images)
    assert ablation.describe() == {"kind": "counterfactual", "sha256": None}
    with pytest.raises(InputError, match="depends on the image"):
        ablation.stacked(Graph.of(model))
    with pytest.raises(InputError, match="cannot be saved"):
        ablation.save(tmp_path / "ablation.safetensors")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_edge_cut_by_a_corruption_carries_the_corrupted_image(name):
    """With all edges cut, the logits are those of the corrupted images; with none, those of the images."""
    model, (images, labels) = make_model(CONFIG), *make_batches(CONFIG, (5,))
    graph, corrupt = Graph.of(model), corruption_named(name, patch_size=2, batches=make_batches(CONFIG, seed=9))
    ablation = Ablation.counterfactual(model, corrupt)
    with torch.no_grad():
        for keep, expected in ((0.0, model(corrupt(images, labels))), (1.0, model(images))):
            keeps = torch.full((graph.num_edges,), keep)
            logits = edgewise_forward(model, images, keeps, graph=graph, ablation=ablation, labels=labels)
            assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("corrupt", "found"), [
    (lambda images, labels: images[:, :, :4], r"\[2, 1, 4, 6\]"), (lambda images, labels: None, "NoneType"),
    (lambda images, labels: images[:1], r"\[1, 1, 6, 6\]"), (MeanImage(torch.zeros(1, 8, 8)), r"\[2, 1, 8, 8\]"),
])
def test_a_corruption_must_give_an_image_for_each_image(corrupt, found):
    model, (images, labels) = make_model(CONFIG), *make_batches(CONFIG, (2,))
    graph, ablation = Graph.of(model), Ablation.counterfactual(model, corrupt)
    with pytest.raises(InputError, match=rf"an image for each[\s\S]*tensor \[2, 1, 6, 6\]\n  found: {found}"):
        edgewise_forward(model, images, [1.0] * graph.num_edges, graph=graph, ablation=ablation, labels=labels)


@pytest.mark.parametrize(("batches", "message"), [
    ((pair for pair in make_batches(CONFIG)), "read only once"), ([], "no images"), (3, "must be iterable"),
    ([torch.zeros(2, 3, 8, 8)], "found: Tensor"), ((torch.zeros(2, 3, 8, 8), torch.zeros(2)), "found: Tensor"),
    ([(torch.zeros(2, 3, 8, 8).numpy(), None)], r"batch 0\n[\s\S]*ndarray"),
    ([{"image": 1, "label": 2}], "found: dict"),
])
def test_batches_that_cannot_be_averaged_are_refused(batches, message):
    with pytest.raises(InputError, match=message):
        Ablation.mean(make_model(CONFIG), batches)


def test_what_is_no_dense_vit_is_refused():
    for make in (Ablation.zero, lambda model: Ablation.mean(model, make_batches(CONFIG)),
                 lambda model: Ablation.counterfactual(model, lambda images, _: images)):
        with pytest.raises(InputError, match=r"found: Linear[\s\S]*from_timm"):
            make(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="a function corrupt"):
        Ablation.counterfactual(make_model(CONFIG), 3)


def test_a_graph_of_another_shape_is_refused():
    model = make_model(CONFIG)
    with pytest.raises(InputError, match="model of another shape"):
        Ablation.mean(model, make_batches(CONFIG), Graph(3, 3))
    with pytest.raises(InputError, match="model of another shape"):
        Ablation.zero(model, Graph(2, 5))


def test_fingerprint_tells_weights_apart():
    model = make_model(CONFIG, 1)
    assert fingerprint(model) == fingerprint(make_model(CONFIG, 1)) != fingerprint(make_model(CONFIG, 2))
    before = fingerprint(model)
    with torch.no_grad():
        bias = model.blocks[1].mlp.fc2.bias
        bias[3] = torch.nextafter(bias[3], torch.tensor(9.0))
    assert fingerprint(model) != before
    assert fingerprint(make_model(CONFIG, 1).to(torch.bfloat16)) not in (before, fingerprint(model))


def test_the_digest_tells_values_apart():
    model, batches = make_model(CONFIG), make_batches(CONFIG)
    mean = Ablation.mean(model, batches)
    assert mean.sha256 == Ablation.mean(model, batches).sha256
    assert mean.describe() == {"kind": "mean", "sha256": mean.sha256}
    grouped = Ablation.mean(model, batches, Graph(2, 3, mlp_groups=2))
    others = [Ablation.zero(model), Ablation.mean(model, batches[:1]), grouped]
    assert len({ablation.sha256 for ablation in [mean, *others]}) == 4


def test_values_cannot_be_exchanged():
    ablation = Ablation.zero(make_model(CONFIG))
    with pytest.raises(TypeError):
        ablation.values["input"] = torch.ones(10, 15)


@pytest.mark.parametrize("groups", [1, 2])
def test_files_round_trip(tmp_path, groups):
    model = make_model(CONFIG)
    ablation = Ablation.mean(model, make_batches(CONFIG), Graph.of(model, mlp_groups=groups))
    ablation.save(tmp_path / "ablation.safetensors")
    loaded = Ablation.load(tmp_path / "ablation.safetensors")
    assert (loaded.kind, loaded.fingerprint, loaded.sha256) == ("mean", fingerprint(model), ablation.sha256)
    assert all(torch.equal(loaded.values[name], value) for name, value in ablation.values.items())


def rewritten(change=lambda tensors: tensors, **metadata):
    def apply(path) -> None:
        tensors, old = read_tensors(path)
        merged = {name: value for name, value in (old | metadata).items() if value is not None}
        write_tensors(path, change(tensors), merged)
    return apply


def first(value):
    """Replace the first tensor by ``value(it)``."""
    def apply(tensors: dict) -> dict:
        name = min(tensors)
        return tensors | {name: value(tensors[name])}
    return apply


@pytest.mark.parametrize(("damaged", "message"), [
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), "not a readable safetensors"),
    (lambda path: path.write_bytes(b"{}"), "not a readable safetensors"),
    (rewritten(format="vitsparse.edge_scores"), "not an ablation file"),
    (rewritten(version="0"), "not an ablation file of this version"),
    (rewritten(kind="median"), "metadata is damaged"),
    (rewritten(fingerprint=None), "metadata is damaged"),
    (rewritten(lambda tensors: {}), "one shape"),
    (rewritten(first(lambda t: t[1:])), "one shape"),
    (rewritten(first(lambda t: t.astype(np.float64))), "float32"),
    (rewritten(first(lambda t: t * np.float32("nan"))), r"safetensors: a0\.h0\n  found: NaN"),
    (rewritten(first(lambda t: t / np.float32(1e-45))), r"safetensors: a0\.h0\n  found: NaN or infinity"),
])
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_damaged_files_name_the_file(tmp_path, damaged, message):
    path = tmp_path / "my.safetensors"
    model = make_model(CONFIG)
    Ablation.mean(model, make_batches(CONFIG)).save(path)
    damaged(path)
    with pytest.raises(InputError, match=r"my\.safetensors") as raised:
        Ablation.load(path)
    raised.match(message)


def test_missing_file(tmp_path):
    with pytest.raises(MissingFile, match="absent"):
        Ablation.load(tmp_path / "absent.safetensors")


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path, model = tmp_path / "ablation.safetensors", make_model(CONFIG)
    old = Ablation.mean(model, make_batches(CONFIG))
    old.save(path)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Ablation.zero(model).save(path)
    monkeypatch.undo()
    assert Ablation.load(path).sha256 == old.sha256
    assert os.listdir(tmp_path) == ["ablation.safetensors"]


def test_a_zero_ablation_fits_any_number_of_mlp_groups():
    model = make_model(CONFIG)
    stacked = Ablation.zero(model).stacked(Graph.of(model, mlp_groups=3))
    assert not stacked.any()
    assert len(stacked) == len(Graph.of(model, mlp_groups=3).senders)
