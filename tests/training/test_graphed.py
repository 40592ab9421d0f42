"""Replayed steps are the steps. On a CPU a recording is a plain call; ``pytest -m gpu`` runs the same with graphs."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vitsparse.circuit.circuit import Circuit
from vitsparse.circuit.graph import Graph
from vitsparse.compiler import sparsify
from vitsparse.data.ranks import Ranks
from vitsparse.evaluation.ablation import Ablation
from vitsparse.evaluation.evaluate import evaluate
from vitsparse.training import AmpPolicy, fit, loop
from vitsparse.training.graphed import Graphed, Tape, recorded
from vitsparse.training.muon import Muon
from vitsparse.training.optim import Updater


class PlainRecording:
    """Runs again what a graph would replay, and nothing while it is made."""

    def __init__(self, run):
        self.run, self.output = run, None

    def replay(self):
        self.output = self.run()


class PlainTape:
    aside = staticmethod(contextlib.nullcontext)
    recordings = 0

    def record(self, run):
        self.recordings += 1
        return PlainRecording(run)


@dataclass(frozen=True)
class Uneven:
    """A stream whose epochs end with a smaller batch."""

    stream: object

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def epoch(self, epoch, start_step=0):
        for step, (images, targets) in enumerate(self.stream.epoch(epoch, start_step), start=start_step):
            count = 5 if step == self.steps_per_epoch - 1 else len(images)
            yield images[:count], targets[:count]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.fixture
def made(device, monkeypatch):
    """What makes the steps of each run, as it is made."""
    found = []

    def chosen(updater, where):
        plain = device == "cpu" and updater.recipe.cuda_graph
        found.append(Graphed(updater, PlainTape()) if plain else recorded(updater, where))
        return found[-1]

    monkeypatch.setattr(loop, "recorded", chosen)
    return found


def _close(model, other, device):
    """To the bit on a CPU. On a GPU libraries may choose another kernel while recording."""
    rtol, atol = (0, 0) if device == "cpu" else (1e-3, 1e-4)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_replayed_steps_are_the_steps(make_vit, make_recipe, stream, tmp_path, made, device, optimizer):
    plain, replayed = make_vit().to(device), make_vit().to(device)
    recipe = make_recipe(epochs=2, amp="off", optimizer=optimizer)
    expected = fit(plain, stream, recipe, out=tmp_path / "plain")
    history = fit(replayed, stream, replace(recipe, cuda_graph=True), out=tmp_path / "replayed")
    assert made[1].halves is not None
    _close(replayed, plain, device)
    for row, other in zip(history.epochs, expected.epochs, strict=True):
        assert row.train_loss == pytest.approx(other.train_loss, rel=1e-4)
    assert [row.step for row in history.gradients] == [row.step for row in expected.gradients]
    for row, other in zip(history.gradients, expected.gradients, strict=True):
        assert (row.mean, row.max) == pytest.approx((other.mean, other.max), rel=1e-2, abs=1e-5)


def test_a_run_goes_on_with_and_without_recording(make_vit, make_recipe, stream, tmp_path, made, device):
    """Killed at step 9, resumed with recordings; the checkpoints are those of any run."""
    plain, replayed = make_vit().to(device), make_vit().to(device)
    recipe = make_recipe(epochs=2, amp="off")
    fit(plain, stream, recipe, out=tmp_path / "plain")

    class Stopping(type(stream)):
        def epoch(self, epoch, start_step=0):
            for step, batch in enumerate(super().epoch(epoch, start_step), start=start_step):
                if (epoch, step) == (1, 3):
                    raise KeyboardInterrupt
                yield batch

    with pytest.raises(KeyboardInterrupt):
        fit(copy.deepcopy(replayed), Stopping(), recipe, out=tmp_path / "killed")
    fit(replayed, stream, replace(recipe, cuda_graph=True), out=tmp_path / "killed", resume=True)
    assert made[-1].halves is not None
    _close(replayed, plain, device)


def test_batches_of_another_size_are_recorded_anew(make_vit, make_recipe, stream, tmp_path, made, device):
    plain, replayed = make_vit().to(device), make_vit().to(device)
    recipe = make_recipe(epochs=2, amp="off")
    fit(plain, Uneven(stream), recipe, out=tmp_path / "plain")
    fit(replayed, Uneven(stream), replace(recipe, cuda_graph=True), out=tmp_path / "replayed")
    assert made[-1].steps == 1  # of the last, smaller one
    _close(replayed, plain, device)


def test_a_sparse_model_with_its_teacher(make_vit, make_recipe, stream, tmp_path, made, device):
    dense, sparse = _pruned(make_vit, stream)
    dense, sparse, plain = dense.to(device), copy.deepcopy(sparse).to(device), sparse.to(device)
    recipe = make_recipe(epochs=2, amp="off", distill_weight=0.5)
    val = stream.labelled(99)
    fit(plain, stream, recipe, out=tmp_path / "plain", val_batches=val, teacher=dense)
    before = evaluate(sparse, val)  # packs the weights, where a backend does
    fit(sparse, stream, replace(recipe, cuda_graph=True), out=tmp_path / "replayed", val_batches=val, teacher=dense)
    assert made[-1].halves is not None
    _close(sparse, plain, device)
    after = evaluate(sparse, stream.labelled(99))
    assert after.loss == pytest.approx(evaluate(plain, stream.labelled(99)).loss, rel=1e-3)
    assert after.loss < before.loss


@pytest.mark.parametrize("device", ["cpu"])
@pytest.mark.parametrize(("kind", "times"), [("dense", 1), ("sparse", 2)])
def test_what_changes_its_parts_is_recorded_anew(make_vit, make_recipe, stream, tmp_path, made, kind, times):
    """Evaluated after each of two epochs, a sparse model makes its plan again; a dense one stays as it is."""
    model = dict(zip(("dense", "sparse"), _pruned(make_vit, stream), strict=True))[kind]
    recipe = make_recipe(epochs=2, amp="off", cuda_graph=True)
    fit(model, stream, recipe, out=tmp_path, val_batches=stream.labelled(99))
    assert made[-1].tape.recordings == 2 * times  # two halves each


def test_in_mixed_precision_replayed_steps_learn(make_vit, make_recipe, stream, tmp_path, made, device):
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bf16")
    model = make_vit().to(device)
    history = fit(model, stream, make_recipe(epochs=12, lr=1e-2, amp="bf16", cuda_graph=True, checkpoint_every_steps=0),
                  out=tmp_path, val_batches=stream.labelled(99))
    assert made[-1].halves is not None
    assert history.epochs[-1].val_accuracy > 0.9


@pytest.fixture
def broken(monkeypatch):
    """A CPU, too, cannot record."""
    def record(_tape, _run):
        raise RuntimeError("operation not permitted when stream is capturing\nlong explanations")

    monkeypatch.setattr(PlainTape, "record", record)


@pytest.mark.usefixtures("broken")
def test_what_cannot_be_recorded_is_run_as_it_is(make_vit, make_recipe, stream, tmp_path, made, device, caplog):
    class Waiting(nn.Module):
        def __init__(self):
            super().__init__()
            self.vit = make_vit()

        def forward(self, images):
            return self.vit(images * (1.0 if images.sum().item() < 1e9 else 0.0))

    model, plain = Waiting().to(device), Waiting().to(device)
    fit(plain, stream, make_recipe(epochs=2, amp="off"), out=tmp_path / "plain")
    fit(model, stream, make_recipe(epochs=2, amp="off", cuda_graph=True), out=tmp_path / "replayed")
    assert (made[-1].halves, made[-1].can_record) == (None, False)
    assert [record.message.count("cannot be recorded") for record in caplog.records] == [1]
    _close(model, plain, device)


@pytest.mark.parametrize(("graph", "kind", "ranks", "scaled"), [
    (False, "cuda", Ranks(), False), (True, "cpu", Ranks(), False), (True, "cuda", Ranks(0, 2), False),
    (True, "cuda", Ranks(), True),
])
def test_where_steps_are_not_recorded(make_vit, make_recipe, graph, kind, ranks, scaled):
    updater = Updater.create(make_vit(), make_recipe(cuda_graph=graph), AmpPolicy(), None, ranks)
    updater = replace(updater, policy=AmpPolicy(torch.float16, scale_loss=scaled))
    assert recorded(updater, torch.device(kind)) is updater


@pytest.mark.gpu
def test_a_tape_does_nothing_while_recording():
    tape, value = Tape(torch.device("cuda")), torch.zeros(3, device="cuda")
    with tape.aside():
        value += 1
    recording = tape.record(lambda: value.add_(1) * 2)
    assert value.tolist() == [1.0] * 3
    recording.replay()
    recording.replay()
    assert (value.tolist(), recording.output.tolist()) == ([3.0] * 3, [6.0] * 3)


class Waits(TorchDispatchMode):
    """Refuses what makes a GPU wait for the host, or brings it numbers from there."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function._schema.name.removeprefix("aten::")
        assert name not in ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "unique"), name
        return function(*arguments, **keywords or {})


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_step_asks_the_device_for_nothing(make_vit, make_recipe, stream, kind):
    dense, sparse = _pruned(make_vit, stream)
    recipe = make_recipe(distill_weight=0.5, label_smoothing=0.1, amp="bf16")
    model = make_vit() if kind == "dense" else sparse
    updater = Updater.create(model.train(), recipe, AmpPolicy(torch.bfloat16), dense, Ranks())
    images, targets = next(stream.epoch(0))
    with Waits():
        facts = updater.backward(images, targets)
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), 1.0, facts[-1])
        matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
        Muon(matrices, lr=torch.full((), 1e-3)).step()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Waits():
        facts[-1].item()


def _pruned(make_vit, stream):
    """A dense model, and a sparse one of it with a third of its edges cut."""
    dense = make_vit(proj_drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.0)
    graph = Graph.of(dense)
    keep = np.random.default_rng(0).random(graph.num_edges) < 0.67
    ablation = Ablation.mean(dense, stream.labelled(0), graph=graph)
    return dense, sparsify(dense, Circuit(graph, keep), ablation=ablation, backend="torch")
