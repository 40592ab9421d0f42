"""fit: it learns, records, resumes to the same bits, and says what is wrong."""

from __future__ import annotations

import csv
import dataclasses
import errno
import os

import pytest
import torch
from torch import nn

from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import fingerprint
from vitsparse.evaluation.evaluate import evaluate
from vitsparse.training import fit
from vitsparse.training.checkpoint import latest_checkpoint
from vitsparse.training.records import gradient_flow, layer_of


class Stopped(Exception):
    """Raised by a stream in place of a kill."""


@dataclasses.dataclass(frozen=True)
class Interrupted:
    """A stream that stops before batch ``at`` of the run."""

    stream: object
    at: int

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def epoch(self, epoch, start_step=0):
        for step, batch in enumerate(self.stream.epoch(epoch, start_step), start=start_step):
            if epoch * self.stream.steps_per_epoch + step == self.at:
                raise Stopped
            yield batch


def without_times(history):
    """Everything of a history that two equal runs share."""
    return [dataclasses.replace(row, seconds=0, images_per_second=0) for row in history.epochs], history.gradients


@pytest.fixture
def finished(make_vit, make_recipe, stream, tmp_path):
    """An undisturbed run: its weights and history."""
    model = make_vit()
    history = fit(model, stream, make_recipe(), out=tmp_path / "undisturbed", val_batches=stream.labelled(99))
    return fingerprint(model), without_times(history)


def test_a_small_vit_learns(make_vit, make_recipe, stream, tmp_path):
    model = make_vit()
    before = evaluate(model, stream.labelled(99)).accuracy
    history = fit(model, stream, make_recipe(epochs=12, lr=1e-2, checkpoint_every_steps=0), out=tmp_path,
                  val_batches=stream.labelled(99))
    assert before < 0.6
    assert history.epochs[-1].val_accuracy > 0.9
    assert history.epochs[-1].val_accuracy == evaluate(model, stream.labelled(99)).accuracy
    assert history.epochs[-1].train_loss < 0.5 * history.epochs[0].train_loss
    assert history.epochs[-1].train_accuracy > history.epochs[0].train_accuracy


def test_any_module_can_be_trained_and_its_mode_is_kept(make_recipe, stream, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(64, 4)).eval()
    history = fit(model, stream, make_recipe(epochs=8, lr=5e-2), out=tmp_path)
    assert history.epochs[-1].train_accuracy > 0.9
    assert history.epochs[-1].val_loss is None
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("at", [0, 1, 2, 5, 6, 7, 12, 17])
def test_resume_gives_the_same_bits(make_vit, make_recipe, stream, tmp_path, finished, at):
    with pytest.raises(Stopped):
        fit(make_vit(), Interrupted(stream, at), make_recipe(), out=tmp_path, val_batches=stream.labelled(99))
    torch.manual_seed(at)  # the caller's generator must not matter
    model = make_vit()
    history = fit(model, stream, make_recipe(), out=tmp_path, val_batches=stream.labelled(99), resume=True)
    assert (fingerprint(model), without_times(history)) == finished
    assert latest_checkpoint(tmp_path / "checkpoint").name == "step-00000018"


def test_a_finished_run_resumes_to_itself(make_vit, make_recipe, stream, tmp_path, finished):
    model = make_vit(seed=5)
    out, val = tmp_path / "undisturbed", stream.labelled(99)
    history = fit(model, stream, make_recipe(), out=out, val_batches=val, resume=True)
    assert (fingerprint(model), without_times(history)) == finished


def test_the_seed_decides_dropout(make_vit, make_recipe, stream, tmp_path, finished):
    model = make_vit()
    fit(model, stream, make_recipe(seed=1), out=tmp_path)
    assert fingerprint(model) != finished[0]


def test_without_resume_training_starts_anew(make_vit, make_recipe, stream, tmp_path, finished):
    model = make_vit()
    fit(model, stream, make_recipe(lr=1e-2), out=tmp_path)
    with pytest.raises(Stopped):
        fit(make_vit(), Interrupted(stream, 0), make_recipe(), out=tmp_path)
    assert latest_checkpoint(tmp_path / "checkpoint") is None
    model = make_vit()
    fit(model, stream, make_recipe(), out=tmp_path, resume=True)
    assert fingerprint(model) == finished[0]


def test_the_callers_generator_is_left_alone(make_vit, make_recipe, stream, tmp_path):
    model = make_vit()
    state = torch.get_rng_state()
    fit(model, stream, make_recipe(epochs=1), out=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_how_often_to_write_may_change_on_resume(make_vit, make_recipe, stream, tmp_path, finished):
    with pytest.raises(Stopped):
        fit(make_vit(), Interrupted(stream, 9), make_recipe(checkpoint_every_steps=4), out=tmp_path)
    assert latest_checkpoint(tmp_path / "checkpoint").name == "step-00000006"  # the end of the first epoch
    model = make_vit()
    fit(model, stream, make_recipe(checkpoint_every_s=1e-9), out=tmp_path, resume=True)
    assert fingerprint(model) == finished[0]


def test_csv_files_hold_the_history(make_vit, make_recipe, stream, tmp_path):
    history = fit(make_vit(), stream, make_recipe(), out=tmp_path, val_batches=stream.labelled(99))
    for name, rows in (("metrics.csv", history.epochs), ("gradient_flow.csv", history.gradients)):
        with open(tmp_path / name, newline="") as file:
            read = list(csv.DictReader(file))
        assert read == [{key: str(value) for key, value in dataclasses.asdict(row).items()} for row in rows]
    assert [row.epoch for row in history.epochs] == [0, 1, 2]
    assert [row.step for row in history.epochs] == [6, 12, 18]
    assert all(row.images_per_second * row.seconds == pytest.approx(96) for row in history.epochs)
    assert sorted({row.step for row in history.gradients}) == [0, 4, 8, 12, 16]
    layers = [row.layer for row in history.gradients if row.step == 0]
    parts = [f"blocks.{i}.{part}" for i in (0, 1) for part in ("norm1", "attn", "norm2", "mlp")]
    assert layers == ["cls_token", "pos_embed", "patch_embed", *parts, "norm", "head"]


def test_rows_of_a_stopped_epoch_are_on_disk(make_vit, make_recipe, stream, tmp_path):
    with pytest.raises(Stopped):
        fit(make_vit(), Interrupted(stream, 13), make_recipe(), out=tmp_path)
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 2
    assert (tmp_path / "gradient_flow.csv").read_text().splitlines()[-1].startswith("12,head,")


def test_gradient_flow_is_mean_and_largest_magnitude_of_each_layer():
    model = nn.Sequential(nn.Linear(2, 1), nn.Tanh())
    model[0].weight.grad, model[0].bias.grad = torch.tensor([[1.0, -4.0]]), torch.tensor([1.0])
    (row,) = gradient_flow(model, 7)
    assert (row.step, row.layer, row.mean, row.max) == (7, "0", 2.0, 4.0)
    model[0].bias.grad = torch.tensor([torch.inf])
    assert gradient_flow(model, 7) == []


@pytest.mark.parametrize(("name", "layer"), [
    ("cls_token", "cls_token"), ("head.bias", "head"), ("patch_embed.proj.weight", "patch_embed"),
    ("blocks.11.attn.qkv.weight", "blocks.11.attn"), ("blocks.0.norm1.bias", "blocks.0.norm1"), ("0.weight", "0"),
])
def test_layer_of(name, layer):
    assert layer_of(name) == layer


def test_distillation_pulls_towards_the_teacher(make_vit, make_recipe, stream, tmp_path):
    teacher = make_vit(seed=1)  # untrained, so that the labels lead elsewhere
    torch.nn.init.normal_(teacher.head.weight)
    before, kl = fingerprint(teacher), {}
    for weight in (0.0, 1.0):
        student = make_vit(seed=3)
        fit(student, stream, make_recipe(epochs=6, lr=1e-2, distill_weight=weight, temperature=2.0),
            out=tmp_path / str(weight), teacher=teacher if weight else None)
        kl[weight] = evaluate(student, stream.labelled(99), dense=teacher).kl
    assert kl[1.0] < 0.5 * kl[0.0]
    assert fingerprint(teacher) == before
    assert teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_teacher_and_its_weight_belong_together(make_vit, make_recipe, stream, tmp_path):
    with pytest.raises(InputError, match=r"found: 0.5 with no teacher"):
        fit(make_vit(), stream, make_recipe(distill_weight=0.5), out=tmp_path)
    with pytest.raises(InputError, match=r"found: 0.0 with a teacher"):
        fit(make_vit(), stream, make_recipe(), out=tmp_path, teacher=make_vit())


@pytest.mark.parametrize("what", ["image", "gradient"])
def test_training_stops_when_it_is_no_longer_finite(make_vit, make_recipe, stream, tmp_path, what):
    class Poisoned(type(stream)):
        def epoch(self, epoch, start_step=0):
            for step, (images, targets) in enumerate(super().epoch(epoch, start_step), start=start_step):
                if (epoch, step) == (1, 3) and what == "image":
                    images[0, 0, 0, 0] = torch.nan
                yield images, targets

    model = make_vit()
    if what == "gradient":  # a finite loss whose gradient overflows
        calls = iter(range(100))
        model.head.weight.register_hook(lambda grad: grad * torch.inf if next(calls) == 9 else grad)
    with pytest.raises(InputError, match=r"not finite\n  where: step 9 \(epoch 1\)(.|\n)*checkpoint/step-00000008"):
        fit(model, Poisoned(), make_recipe(), out=tmp_path)


@pytest.mark.parametrize(("change", "field"), [
    ({"recipe": {"lr": 1e-2}}, "recipe.lr"), ({"recipe": {"epochs": 4}}, "recipe.epochs"),
    ({"recipe": {"betas": (0.9, 0.98)}}, r"recipe.betas\[1\]"),
    ({"model": {"depth": 3}}, "model.config.depth"), ({"model": {"embed_dim": 24}}, "model.config.embed_dim"),
    ({"stream": {"steps_per_epoch": 5}}, "stream.steps_per_epoch"), ({"stream": {"seed": 1}}, "stream.seed"),
])
def test_a_checkpoint_of_another_run_is_refused_by_field(make_vit, make_recipe, stream, tmp_path, change, field):
    with pytest.raises(Stopped):
        fit(make_vit(), Interrupted(stream, 3), make_recipe(), out=tmp_path)
    metrics = (tmp_path / "gradient_flow.csv").read_text()
    with pytest.raises(InputError, match=rf"where: .*: {field}\n"):
        fit(make_vit(**change.get("model", {})), type(stream)(**change.get("stream", {})),
            make_recipe(**change.get("recipe", {})), out=tmp_path, resume=True)
    assert (tmp_path / "gradient_flow.csv").read_text() == metrics


def test_another_teacher_is_refused(make_vit, make_recipe, stream, tmp_path):
    recipe = make_recipe(distill_weight=0.5)
    fit(make_vit(), stream, recipe, out=tmp_path, teacher=make_vit(seed=1))
    with pytest.raises(InputError, match=r"where: .*: teacher\n"):
        fit(make_vit(), stream, recipe, out=tmp_path, teacher=make_vit(seed=2), resume=True)


@pytest.mark.parametrize("call", range(1, 9))
def test_a_full_disk_leaves_the_old_checkpoint(make_vit, make_recipe, stream, tmp_path, finished, monkeypatch, call):
    with pytest.raises(Stopped):
        fit(make_vit(), Interrupted(stream, 5), make_recipe(record_every=0), out=tmp_path)
    calls = iter(range(1, 1000))

    def full(descriptor):
        if next(calls) >= call + 4:  # four for the two CSV files that a resumed run writes anew
            raise OSError(errno.ENOSPC, "No space left on device")

    recipe = make_recipe(record_every=0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="No space left on device"):
            fit(make_vit(), stream, recipe, out=tmp_path, resume=True)
    assert latest_checkpoint(tmp_path / "checkpoint").name in ("step-00000004", "step-00000006")
    model = make_vit()
    fit(model, stream, recipe, out=tmp_path, resume=True)
    assert fingerprint(model) == finished[0]


@pytest.mark.parametrize("steps", [0, -1])
def test_a_stream_without_batches_is_refused(make_vit, make_recipe, stream, tmp_path, steps):
    with pytest.raises(InputError, match="no full batch"):
        fit(make_vit(), dataclasses.replace(stream, steps_per_epoch=steps), make_recipe(), out=tmp_path)


def test_a_stream_that_ends_early_is_refused(make_vit, make_recipe, stream, tmp_path):
    class Short(type(stream)):
        def epoch(self, epoch, start_step=0):
            yield next(super().epoch(epoch, start_step))

    with pytest.raises(InputError, match="expected: 6 steps\n  found: 1"):
        fit(make_vit(), Short(), make_recipe(), out=tmp_path)


def test_one_shot_validation_batches_are_refused_before_training(make_vit, make_recipe, stream, tmp_path):
    with pytest.raises(InputError, match=r"list\(batches\)"):
        fit(make_vit(), stream, make_recipe(), out=tmp_path, val_batches=iter(stream.labelled(99)))
    assert not list(tmp_path.iterdir())
