"""The training loop: epochs, progress, records, checkpoints; :mod:`.optim` has the step itself.

Exact resume rests on three rules. The stream is a pure function of (epoch, step). Torch's generator is seeded from
(seed, epoch, step) before every step, so dropout does not depend on what was drawn before. Everything else that a step
reads is in the checkpoint. So on CPU a run that was killed at any moment ends, once resumed, with the same bits.

Under torchrun every rank runs this loop on its part of each batch. Only :mod:`.optim` adds up over the ranks; what it
returns is the same on all of them, and so is everything here. The first one alone writes.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..data.ranks import Ranks, ranks
from ..errors import InputError
from ..evaluation.ablation import fingerprint
from ..evaluation.batches import check_batches
from ..evaluation.evaluate import Batches, device_of, eval_mode, evaluate
from .checkpoint import (
    Checkpoint,
    clear_checkpoints,
    describe_model,
    first_difference,
    latest_checkpoint,
    load_checkpoint,
    model_tensors,
    optimizer_tensors,
    restore,
    save_checkpoint,
)
from .graphed import recorded
from .optim import Updater
from .recipe import FREE_FIELDS, Recipe, amp_policy, learning_rate
from .records import EpochRow, History, Recorder, gradient_flow

# How long losses may stay on the device before they are fetched, shown and checked: a fetch makes a GPU wait.
_FETCH_SECONDS = 1.0


class Stream(Protocol):
    """Training data: ``epoch(e, start_step=s)`` yields the batches of epoch ``e`` from number ``s`` on as (images
    [B, C, H, W], soft targets [B, K]), the same ones whenever it is asked."""

    steps_per_epoch: int

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


def fit(model: nn.Module, stream: Stream, recipe: Recipe, *, out: str | Path, val_batches: Batches | None = None,
        teacher: nn.Module | None = None, resume: bool = False) -> History:
    """Train ``model`` in place and return the history.

    ``model`` is any module from images [B, C, H, W] to logits [B, K], on any device. ``val_batches`` (re-iterable
    images, labels) are evaluated after each epoch. ``teacher`` is needed exactly when ``recipe.distill_weight`` is not
    0; its weights do not change. ``out`` receives ``metrics.csv``, ``gradient_flow.csv`` and ``checkpoint/``.

    With ``resume`` training goes on from the checkpoint in ``out``, if there is one; without, it starts anew and what
    an earlier run left there is removed. Raises :class:`InputError` naming the first differing field when the
    checkpoint is of another model, recipe, stream or teacher; when the loss or, without a loss scaler, a gradient is no
    longer finite; when a checkpoint cannot be written.

    Under torchrun the update is that of all ranks' batches together: give each a stream with its part of every batch
    (``TrainStream(..., ranks=ranks())``), and the losses are those of one process with the whole, up to rounding, if
    the model has no dropout. A run may be resumed with another number of ranks. Ranks that would not train the same
    thing are refused.
    """
    if (teacher is not None) != (recipe.distill_weight > 0):
        raise InputError("distillation needs a teacher and a weight above 0", where="distill_weight",
                         found=f"{recipe.distill_weight} with {'a' if teacher is not None else 'no'} teacher")
    if stream.steps_per_epoch < 1:
        raise InputError("the stream has no full batch", where="training stream", expected="steps_per_epoch >= 1",
                         found=stream.steps_per_epoch, remedy="use a smaller batch_size")
    if val_batches is not None:
        check_batches(val_batches)
    device, training = device_of(model), model.training
    with (torch.random.fork_rng([device] if device.type == "cuda" else []),
          nullcontext() if teacher is None else eval_mode(teacher)):
        try:
            return _Run(model, stream, recipe, Path(out), val_batches, teacher, ranks()).run(resume)
        finally:
            model.train(training)


def step_seed(seed: int, epoch: int, step: int, rank: int = 0) -> int:
    """The seed of torch's generator for one step: a hash of the numbers. Ranks drop out independently."""
    numbers = [seed, epoch, step] + [rank] * (rank > 0)
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _describe_stream(stream: Stream) -> dict[str, object]:
    """What decides the batches, as far as the stream tells it."""
    names = ("steps_per_epoch", "batch_size", "num_classes", "seed")
    numbers = {name: getattr(stream, name, None) for name in names}
    return {**numbers, "augmentation": str(getattr(stream, "augmentation", ""))}


@dataclass
class _Sums:
    """What the epoch under way has added up; in the checkpoint, so that its row comes out the same after a resume."""

    loss: float = 0.0
    right: int = 0
    images: int = 0
    seconds: float = 0.0
    skipped: int = 0


@dataclass
class _Run:
    """One call of :func:`fit`. ``epoch`` and ``step`` (within the epoch) name the next batch to train on."""

    model: nn.Module
    stream: Stream
    recipe: Recipe
    out: Path
    val_batches: Batches | None
    teacher: nn.Module | None
    ranks: Ranks
    epoch: int = 0
    step: int = 0
    sums: _Sums = field(default_factory=_Sums)
    # (step, what Updater.backward returned) of steps not yet fetched from the device
    pending: list[tuple[int, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.device = device_of(self.model)
        capability = torch.cuda.get_device_capability(self.device) if self.device.type == "cuda" else None
        policy = amp_policy(self.recipe.amp, self.device.type, capability)
        self.updater = Updater.create(self.model, self.recipe, policy, self.teacher, self.ranks)
        self.stepper = recorded(self.updater, self.device)
        self.per_epoch = self.stream.steps_per_epoch
        self.identity = {
            "recipe": {k: v for k, v in self.recipe.to_dict().items() if k not in FREE_FIELDS},
            "model": describe_model(self.model), "stream": _describe_stream(self.stream),
            "teacher": None if self.teacher is None else fingerprint(self.teacher),
        }

    @property
    def total_step(self) -> int:
        return self.epoch * self.per_epoch + self.step

    def run(self, resume: bool) -> History:
        checkpoint = load_checkpoint(self.out / "checkpoint") if resume else None
        if checkpoint is not None:
            self._restore(checkpoint)
        self._check_ranks()
        if checkpoint is None and self.ranks.is_first:
            clear_checkpoints(self.out / "checkpoint")
        history = History() if checkpoint is None else History.from_dict(checkpoint.state["history"])
        self.recorder = Recorder(self.out if self.ranks.is_first else None, history)
        self.saved_step, self.saved_at = self.total_step, time.monotonic()
        self.bar = self._progress_bar()
        with self.bar:
            while self.epoch < self.recipe.epochs:
                self._train_epoch()
        self.ranks.barrier()
        return self.recorder.history

    def _train_epoch(self) -> None:
        self.model.train()
        self.fetched_at = time.monotonic()
        for images, targets in self.stream.epoch(self.epoch, start_step=self.step):
            self._train_step(images.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True))
            self.step += 1
            if self.step == self.per_epoch:
                self._finish_epoch()
            elif time.monotonic() - self.fetched_at > _FETCH_SECONDS:
                self._fetch()
            if self._checkpoint_due():
                self._save()
            if self.step == 0:
                return
        raise InputError("the stream ended before its epoch did", where="training stream",
                         expected=f"{self.per_epoch} steps", found=f"{self.step}")

    def _train_step(self, images: Tensor, targets: Tensor) -> None:
        number = self.total_step
        torch.manual_seed(step_seed(self.recipe.seed, self.epoch, self.step, self.ranks.rank))
        facts = self.stepper.backward(images, targets)
        if self.recipe.record_every and number % self.recipe.record_every == 0:
            self.recorder.add_gradients(gradient_flow(self.model, number))
        self.stepper.update(learning_rate(self.recipe, number, self.per_epoch), facts[-1])
        self.pending.append((number, facts))
        self.bar.update(self.recipe.batch_size)

    def _finish_epoch(self) -> None:
        self._fetch()
        sums, lr = self.sums, learning_rate(self.recipe, self.total_step - 1, self.per_epoch)
        seconds = self.ranks.gather([sums.seconds])[0][0]  # every rank's row is the first one's
        val = evaluate(self.model, self.val_batches) if self.val_batches is not None else None
        if val is not None and not math.isfinite(val.loss):
            raise self._not_finite("validation loss", self.total_step - 1, val.loss)
        self.recorder.add_epoch(EpochRow(
            self.epoch, self.total_step, lr, sums.loss / sums.images, sums.right / sums.images,
            val.loss if val else None, val.accuracy if val else None, seconds, sums.images / seconds, sums.skipped))
        self.epoch, self.step, self.sums = self.epoch + 1, 0, _Sums()

    def _fetch(self) -> None:
        """Bring the pending losses to the host, check them, add them up and show the last one."""
        if self.pending:
            values = torch.stack([facts for _, facts in self.pending]).tolist()
            for (number, _), (loss, right, count, norm) in zip(self.pending, values, strict=True):
                if not math.isfinite(loss):
                    raise self._not_finite("training loss", number, loss)
                if not math.isfinite(norm):
                    if not self.updater.policy.scale_loss:
                        raise self._not_finite("gradient norm", number, norm)
                    self.sums.skipped += 1
                self.sums.loss += loss * count
                self.sums.right += round(right)
                self.sums.images += round(count)
            lr = learning_rate(self.recipe, number, self.per_epoch)
            self.bar.set_postfix(epoch=self.epoch, loss=f"{loss:.3f}", lr=f"{lr:.1e}", refresh=False)
            self.pending.clear()
        now = time.monotonic()
        self.sums.seconds += now - self.fetched_at
        self.fetched_at = now

    def _checkpoint_due(self) -> bool:
        recipe, done, at_end = self.recipe, self.total_step, self.step == 0
        if not self.ranks.is_first:
            return False
        return (done == recipe.epochs * self.per_epoch
                or bool(at_end and recipe.checkpoint_every_epochs and self.epoch % recipe.checkpoint_every_epochs == 0)
                or bool(recipe.checkpoint_every_s and time.monotonic() - self.saved_at >= recipe.checkpoint_every_s)
                or bool(recipe.checkpoint_every_steps and done - self.saved_step >= recipe.checkpoint_every_steps))

    def _save(self) -> None:
        if self.step:
            self._fetch()
        state = {**self.identity, "epoch": self.epoch, "step": self.step, "scaler": self.updater.scaler.state_dict(),
                 "sums": asdict(self.sums), "history": self.recorder.history.to_dict(),
                 "recipe": self.recipe.to_dict(), "torch": torch.__version__}
        tensors = optimizer_tensors(self.model, self.updater.optimizers)
        save_checkpoint(self.out / "checkpoint", Checkpoint(model_tensors(self.model), tensors, state), self.total_step)
        self.saved_step, self.saved_at = self.total_step, time.monotonic()
        self.fetched_at = self.saved_at  # writing is not training time

    def _restore(self, checkpoint: Checkpoint) -> None:
        for name, current in self.identity.items():
            saved = checkpoint.state.get(name)
            if name == "recipe":
                saved = {k: v for k, v in saved.items() if k not in FREE_FIELDS}
            difference = first_difference(saved, current, name)
            if difference:
                where, expected, found = difference
                raise InputError("the checkpoint is of another run", where=f"{checkpoint.path}: {where}",
                                 expected=f"{expected} (in the checkpoint)", found=found,
                                 remedy="resume with what it was trained with, or choose another output folder")
        restore(checkpoint, self.model, self.updater.optimizers)
        state = checkpoint.state
        if state["scaler"] and self.updater.policy.scale_loss:
            self.updater.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.sums = state["epoch"], state["step"], _Sums(**state["sums"])

    def _check_ranks(self) -> None:
        """Refuse ranks that differ in weights, settings or place: their sums would be of nothing."""
        if self.ranks.world == 1:
            return
        state = json.dumps([self.identity, fingerprint(self.model), self.total_step], sort_keys=True)
        digest = int(hashlib.sha256(state.encode()).hexdigest()[:12], 16)  # 48 bits: a float holds them
        if len({tuple(found) for found in self.ranks.gather([digest])}) > 1:
            raise InputError("the ranks do not train the same thing", where="torchrun", found="different weights, "
                             "settings or checkpoints", remedy="start all with the same command, seed and folder")

    def _not_finite(self, what: str, number: int, value: float) -> InputError:
        last = latest_checkpoint(self.out / "checkpoint")
        return InputError(f"the {what} is not finite", where=f"step {number} (epoch {number // self.per_epoch})",
                          found=value, remedy=f"lower lr or raise warmup_epochs; last good checkpoint: {last}")

    def _progress_bar(self):
        from tqdm import tqdm  # here, so that importing vitsparse does not need it

        batch = self.recipe.batch_size
        # disable=None: quiet when the output is not a terminal
        return tqdm(total=self.recipe.epochs * self.per_epoch * batch, initial=self.total_step * batch, unit="img",
                    unit_scale=True, desc="train", disable=None if self.ranks.is_first else True)
