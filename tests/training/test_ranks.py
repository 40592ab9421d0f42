"""Data-parallel training: two ranks learn what one process learns, resume to the same bits, and end together."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitsparse.data import Augmentation, ImageSet, TrainStream
from vitsparse.data.ranks import ranks
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import fingerprint
from vitsparse.model.vit import ViT
from vitsparse.training import History, Recipe, fit
from vitsparse.training.optim import Updater

STEPS, BATCH = 21, 13  # thirteen images make parts of six and of seven
RECIPE = Recipe(epochs=7, batch_size=BATCH, lr=3e-3, warmup_epochs=1, clip_grad=0.5, label_smoothing=0.1,
                distill_weight=0.3, temperature=2.0, record_every=5, checkpoint_every_steps=4)
EVERYTHING = Augmentation(flip=0.5, crop_scale=(0.5, 1.0), noise_std=0.05, erase_prob=0.3, cutmix_alpha=1.0,
                          mixup_alpha=0.4)


class Stopped(Exception):
    """Raised by a stream in place of a kill."""


def images() -> ImageSet:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 3 * BATCH)
    pixels = draw.integers(0, 80, (3 * BATCH, 8, 8, 1)) + 80 * labels[:, None, None, None]
    return ImageSet(pixels.astype(np.uint8), labels, ("dark", "grey", "light"), (0.5,), (0.3,), "shades", "train")


def vit(seed: int) -> ViT:
    torch.manual_seed(seed)
    return ViT(img_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=2, num_heads=2, num_classes=3)


@dataclasses.dataclass(frozen=True)
class Until:
    """A stream that stops, or ends rank 1, before step ``at`` of the run."""

    stream: TrainStream
    at: int
    end: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator:
        for step, batch in enumerate(self.stream.epoch(epoch, start_step), start=start_step):
            if epoch * self.stream.steps_per_epoch + step == self.at:
                if self.end == "stop":
                    raise Stopped
                if not ranks().is_first:
                    os._exit(9)
            yield batch


def train(out: Path, *, until: int | None = None, end: str = "stop", resume: bool = False, seed: int = 0) -> dict:
    """Loss and gradient norm of each step, the history, and the final weights' digest."""
    stream = TrainStream(images(), BATCH, seed=5, num_classes=3, augmentation=EVERYTHING, ranks=ranks())
    model, steps, backward = vit(seed), [], Updater.backward

    def recorded(self, *batch):
        facts = backward(self, *batch)
        steps.append(facts.tolist())
        return facts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Updater, "backward", recorded)
        history = fit(model, stream if until is None else Until(stream, until, end), RECIPE, out=out, resume=resume,
                      teacher=vit(7), val_batches=[(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))])
    return {"steps": steps, "history": history.to_dict(), "weights": fingerprint(model)}


def undisturbed_and_resumed(folder: str) -> dict:
    root = Path(folder)
    undisturbed = train(root / f"undisturbed{ranks().rank}")
    with pytest.raises(Stopped):
        train(root / "stopped", until=10)
    if ranks().is_first:
        shutil.copytree(root / "stopped", root / "copy")
    ranks().barrier()
    return {"undisturbed": undisturbed, "resumed": train(root / "stopped", resume=True)}


@pytest.fixture(scope="module")
def pairs(two_ranks, tmp_path_factory) -> tuple[Path, dict, dict]:
    """The folder of two ranks, and what each of them found."""
    folder = tmp_path_factory.mktemp("ranks")
    return folder, *two_ranks("tests.training.test_ranks:undisturbed_and_resumed", str(folder))


def without_times(history: dict) -> tuple:
    found = History.from_dict(history)
    return [dataclasses.replace(row, seconds=0, images_per_second=0) for row in found.epochs], found.gradients


def test_two_ranks_give_the_losses_of_one_process(pairs, tmp_path):
    _, first, second = pairs
    alone = train(tmp_path)
    assert len(alone["steps"]) == STEPS
    np.testing.assert_allclose(first["undisturbed"]["steps"], alone["steps"], rtol=0, atol=1e-5)
    together = History.from_dict(first["undisturbed"]["history"])
    for ours, theirs in zip(together.epochs, History.from_dict(alone["history"]).epochs, strict=True):
        assert (ours.epoch, ours.step, ours.train_accuracy) == (theirs.epoch, theirs.step, theirs.train_accuracy)
        assert ours.train_loss == pytest.approx(theirs.train_loss, abs=1e-5)
        assert ours.val_loss == pytest.approx(theirs.val_loss, abs=1e-5)
    flow = [[row.mean, row.max] for history in (together, History.from_dict(alone["history"]))
            for row in history.gradients]
    np.testing.assert_allclose(*np.split(np.array(flow), 2), rtol=1e-3, atol=1e-6)
    assert first["undisturbed"] == second["undisturbed"]


def test_only_the_first_rank_writes(pairs):
    folder, *_ = pairs
    written = sorted(path.name for path in (folder / "undisturbed0").iterdir())
    assert written == ["checkpoint", "gradient_flow.csv", "metrics.csv"]
    assert not (folder / "undisturbed1").exists()


def test_two_ranks_resume_to_the_same_bits(pairs):
    _, *found = pairs
    for rank in found:
        assert rank["resumed"]["weights"] == rank["undisturbed"]["weights"]
        assert rank["resumed"]["steps"] == rank["undisturbed"]["steps"][-len(rank["resumed"]["steps"]):]
        assert without_times(rank["resumed"]["history"]) == without_times(rank["undisturbed"]["history"])
    assert len(found[0]["resumed"]["steps"]) == STEPS - 9  # from the end of the third epoch


def one_dies_or_differs(folder: str) -> list[str]:
    messages = []
    with pytest.raises(InputError) as caught:
        train(Path(folder, "other"), seed=ranks().rank)
    messages.append(str(caught.value))
    with pytest.raises(InputError) as caught:
        train(Path(folder, "killed"), until=10, end="kill")
    return [*messages, str(caught.value)]


def test_ranks_that_differ_are_refused_and_a_killed_one_ends_the_other(two_ranks, tmp_path):
    first, second = two_ranks("tests.training.test_ranks:one_dies_or_differs", str(tmp_path), may_die=True)
    assert second is None
    assert first[0].startswith("the ranks do not train the same thing")
    assert not list(tmp_path.glob("other/*"))
    assert first[1].startswith("another process of this run has ended")
    pointer = json.loads((tmp_path / "killed/checkpoint/latest.json").read_text())
    assert pointer["folder"] == "step-00000009"


def test_one_process_goes_on_where_two_ranks_were(pairs):
    """The number of ranks is no part of what is trained."""
    folder, first, _ = pairs
    steps = train(folder / "copy", resume=True)["steps"]
    assert len(steps) == STEPS - 9
    np.testing.assert_allclose(steps, first["undisturbed"]["steps"][-len(steps):], rtol=0, atol=1e-5)
